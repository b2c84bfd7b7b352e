"""Attacks: a comparison that finds a gain in noise, lets labels choose, begins anew, or trains for hours before it misses its labels.

Run: pytest tests/test_comparison.py
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from swav import comparison
from swav.comparison import Arm, compare, judged, pairs_of
from swav.data.synthetic.writers import write_shapes
from swav.errors import ConfigError, DataError
from swav.files import CONFIG
from swav.results.intervals import PairedDifference
from swav.training.setup import read_settings
from tests.processes import LAUNCHER_VARIABLES

GAIN, LOSS, NONE = PairedDifference(20, 90, 1000), PairedDifference(90, 20, 1000), PairedDifference(48, 52, 1000)
JUST = PairedDifference(39, 61, 1000)
QUICK: dict[str, Any] = {
    "crops": [{"count": 2, "size": 16, "scale": [0.3, 1.0]}],
    "width": 0.125,
    "head_hidden": 16,
    "batch": 16,
    "epochs": 2,
    "workers": 0,
}


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([GAIN, GAIN], "worth it"),
        ([GAIN, NONE], "worth it"),
        ([NONE, NONE], "not worth it, no difference is shown"),
        ([LOSS, NONE], "not worth it, it is worse"),
        ([GAIN, LOSS], "not clear, one is better and one worse"),
        ([JUST, NONE], "not worth it, no difference is shown"),  # p = .04, and two were looked at
        ([JUST, GAIN], "worth it"),
    ],
)
def test_only_differences_beyond_chance_count(differences, words):
    assert judged(differences) == words


def test_each_training_is_compared_with_what_one_has_without_it():
    arms = [Arm("random", "r"), Arm("given", "w"), Arm("from scratch", "s", 60.0), Arm("adapted", "a", 60.0)]
    assert [(one.name, other.name) for one, other in pairs_of(arms)] == [
        ("random", "from scratch"),
        ("given", "from scratch"),
        ("given", "adapted"),
        ("from scratch", "adapted"),
    ]
    assert [(one.name, other.name) for one, other in pairs_of([arms[0], arms[2]])] == [("random", "from scratch")]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=64, val=40, size=24, seed=0)
    return folder


@pytest.mark.parametrize("key", ["init", "hours", "knn_every_epochs"])
def test_what_it_sets_itself_is_refused(key, shapes, tmp_path):
    with pytest.raises(ConfigError, match=f"{key}: is set by compare itself") as caught:
        comparison.refuse_own_keys({key: 1})
    assert caught.value.exit_code == 2


def test_missing_labels_are_found_before_anything_is_trained(shapes, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((shapes / "train").rglob("*.png"))[:20]:
        (flat / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError) as caught:
        compare(flat, out=tmp_path / "out", **QUICK)
    assert "--labelled" in str(caught.value) and len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_wrong_setting_is_refused_at_once(shapes, tmp_path):
    command = [sys.executable, "-m", "swav", "compare", "--data", str(shapes), "--out", str(tmp_path / "out")]
    ended = subprocess.run([*command, "epoch=2"], capture_output=True, text=True)
    assert ended.returncode == 2 and "epochs" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_table_holds_every_kind_of_weights_and_the_same_call_resumes(shapes, tmp_path, capsys):
    given = compare(shapes, out=tmp_path / "first", **QUICK)
    assert given is not None
    table = compare(shapes, out=tmp_path / "out", init=tmp_path / "first" / "scratch", **QUICK)
    assert table is not None
    text = table.read_text()
    for words in (
        "Budget of each training: 2 epochs.",
        "| random",
        "| given",
        "| from scratch",
        "| adapted",
        "- adapted, against the given weights",
    ):
        assert words in text
    for run in ("scratch", "adapted"):
        recipe = read_settings(tmp_path / "out" / run / CONFIG)
        assert recipe.knn_every_epochs == 0 and recipe.stop_when_worse == (run == "adapted")
    content = json.loads((tmp_path / "out/comparison.json").read_text())
    assert content["format"] == 1 and [row["name"] for row in content["weights"]] == [
        "random",
        "given",
        "from scratch",
        "adapted",
    ]
    adapted = next(each for each in content["differences"] if (each["of"], each["over"]) == ("adapted", "given"))
    low, high = adapted["knn"]["interval"]
    assert low <= adapted["knn"]["points"] <= high
    values = {row["name"]: row["knn"] for row in content["weights"]}
    assert adapted["knn"]["points"] == pytest.approx(values["adapted"] - values["given"])

    capsys.readouterr()
    again = compare(shapes, out=tmp_path / "out", init=tmp_path / "first" / "scratch", **QUICK)
    assert again == table and table.read_text() == text
    assert capsys.readouterr().err.count("nothing to do") == 2


@pytest.mark.slow
def test_two_processes_make_one_comparison(shapes, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"{key}={json.dumps(value)}" for key, value in QUICK.items()]
    command = [sys.executable, "-m", "swav", "compare", "--data", str(shapes), "--out", str(tmp_path / "out"), *words]
    variables = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            command,
            env=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "| from scratch" in said[0][0] and not said[1][0]
    assert "over 2 processes" in said[0][1] and (tmp_path / "out/comparison.json").exists()
