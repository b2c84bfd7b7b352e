"""Attacks: benches that share one --out and truncate, overwrite, forget or mix up what the others compute; killed ones that
leave a lock, a half array or a half state behind.

Run: pytest -m slow tests/evaluation/test_shared_out.py
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swav.data.synthetic.writers import write_shapes
from swav.results.render import write_tables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ONE, TWO = "random:tiny", "random:cifar10"
SETTINGS = [
    "protocol=smoke",
    "size=32",
    "workers=0",
    "knn.k=[1, 5]",
    "linear.epochs=2",
    "linear.batch=32",
    "device=cpu",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "imagenet", "imagenet", train=120, val=60, size=32)
    write_shapes(folder / "VOCdevkit", "voc", train=80, val=40, size=32)
    return folder


def start(data, out, weights, benches=("knn", "linear", "svm"), fault=None):
    command = [sys.executable, "-m", "swav", "bench", *benches, "--weights", weights, "--data", data, "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"SWAV_FAULT": fault} if fault else {})
    with (out.parent / f"{out.name}.{weights.replace(':', '-')}.log").open("a") as log:
        return subprocess.Popen([*command, *SETTINGS], cwd=ROOT, env=environment, stdout=log, stderr=log)


def ended(processes):
    try:
        return [process.wait(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()


def numbers(out):
    rows = json.loads((out / "results.json").read_text())["results"]
    return {(row["weights"], row["bench"], row["metric"]): row["value"] for row in rows}


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """Numbers of each weights by itself, in a folder of its own."""
    folder, found = tmp_path_factory.mktemp("alone"), dict[tuple[str, str, str], float]()
    for number, weights in enumerate((ONE, TWO)):
        assert ended([start(data, folder / str(number), weights)]) == [0]
        found |= numbers(folder / str(number))
    assert len(found) == 2 * (4 + 2 + 6)
    return found


def of(weights, rows):
    return {key: value for key, value in rows.items() if key[0] in weights}


def nothing_is_left(out):
    left = [path for path in out.rglob("*") if path.name.endswith((".tmp", ".part")) or ".tmp-" in path.name]
    return not left


@pytest.mark.parametrize("weights", [(ONE, ONE), (ONE, TWO), (ONE, ONE, TWO, TWO)], ids=["same", "different", "four"])
def test_benches_into_one_folder_give_the_numbers_of_each_alone_and_lose_no_row(data, tmp_path, alone, weights):
    out = tmp_path / "out"
    assert ended([start(data, out, one) for one in weights]) == [0] * len(weights)
    assert numbers(out) == of(weights, alone)
    written = {path.name: path.read_bytes() for path in out.glob("tables.*")}
    assert {path.name: path.read_bytes() for path in write_tables(out)} == written  # of all rows, not of those before
    assert nothing_is_left(out)


@pytest.mark.parametrize("fault", ["features:noted:1", "features:whole:2", "linear:epoch:1", "save:written:1"])
def test_a_bench_that_is_killed_beside_another_leaves_no_lock_and_no_half_behind(data, tmp_path, alone, fault):
    out = tmp_path / "out"
    killed, other = start(data, out, ONE, fault=fault), start(data, out, ONE)
    codes = ended([killed, other])
    assert codes[1] == 0 and codes[0] in (-signal.SIGKILL, 0)  # 0: the other had done that part before
    assert numbers(out) == of([ONE], alone)


def test_a_pre_training_and_a_bench_share_a_folder(data, tmp_path, alone):
    run = tmp_path / "run"
    settings = [f"data={data / 'imagenet'}", "batch=32", "epochs=2", "workers=0", "device=cpu"]
    command = [sys.executable, "-m", "swav", "pretrain", "tiny", *settings, "--out", str(run)]
    with (tmp_path / "pretrain.log").open("w") as log:
        training = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    assert ended([training, start(data, run, ONE)]) == [0, 0]
    assert numbers(run) == of([ONE], alone)
    assert (run / "report.html").exists() and list((run / "checkpoints").glob("step_*")) and nothing_is_left(run)
