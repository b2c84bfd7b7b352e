"""Attacks: what befalls a run's folder between two sittings or during one, and must neither end the run nor change a byte
of it: damaged logs and settings, a disk that refuses them, reports that fail, a folder that goes away, images that are lost.

Run: pytest tests/test_lost_work.py
"""

import contextlib
import errno
import hashlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swav import checkpoint, files, jsonl
from swav.data.synthetic.writers import write_shapes
from swav.errors import CheckpointError, ConfigError, DataError, MachineError
from swav.evaluation import runner
from swav.recipe_files import checked_yaml
from swav.training import log, loop, setup
from tests.processes import LAUNCHER_VARIABLES
from tests.training.test_loop import SMALL

LAST = 12


@pytest.fixture(autouse=True)
def _nothing_warned_of_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=64, val=32, size=32, seed=0)
    return folder


class Interrupted(Exception):
    """Stands for a kill, between two instructions of the loop."""


def pretrain(data: Path, out: Path, **changes: Any) -> Path:
    torch.set_num_threads(1)  # in fixtures of the module too: another number is other rounding
    return loop.pretrain("tiny", out=out, **SMALL | {"data": str(data)} | changes)


def interrupted(data: Path, out: Path, at: int, then: Callable[[], None] = lambda: None) -> Path:
    """A run that ends in the middle of a step (counted from 1), with its last checkpoint four or fewer steps before."""
    passed: list[str] = []

    def interrupt(name: str) -> None:
        passed.append(name)
        if passed.count("step:middle") == at:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swav.training.step.fault_point", interrupt)
        with pytest.raises(Interrupted):
            pretrain(data, out)
    then()
    return out


def outcome(out: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's tensors."""
    place = out / "checkpoints" / f"step_{LAST:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.glob("*.safetensors")}


def steps(out: Path) -> list[int]:
    return [line["step"] for line in jsonl.read_lines(out / "metrics.jsonl").values if "loss" in line]


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> dict[str, str]:
    return outcome(pretrain(shapes, tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def begun(shapes, tmp_path_factory) -> Path:
    return interrupted(shapes, tmp_path_factory.mktemp("begun") / "run", 7)


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    """A copy of a run that was cut off in step 7, after the checkpoint of step 4."""
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def test_damaged_logs_and_settings_are_repaired_and_change_no_byte(whole, shapes, out, capsys):
    metrics, bad, config = (out / name for name in ("metrics.jsonl", "bad_files.jsonl", "config.yaml"))
    settings = config.read_text()
    start, *lines = metrics.read_bytes().splitlines(keepends=True)  # the first is of the weights at the start
    text = lines[2].replace(b'"loss_gap": ', b'"loss_gap": "n/a", "gap": ')
    damaged = [
        start,
        lines[0],
        b"\xff" + lines[1],
        b"garbage\n",
        text,
        *lines[2:],
        b'{"step": "3"}\n',
        b'{"step": 9, "lo',
    ]
    metrics.write_bytes(b"".join(damaged))
    bad.write_bytes(b'{"file": "\xe9.png", "reason": "cut"}\n\xff\n{"file": "x.p')
    config.write_bytes(settings.encode()[:200] + b"\xff" + settings.encode()[200:])
    pretrain(shapes, out)
    assert outcome(out) == whole
    said = capsys.readouterr().err
    assert "metrics.jsonl: 4 damaged lines and a torn end dropped" in said
    assert "bad_files.jsonl: 1 damaged line and a torn end dropped; 1 good line kept" in said
    assert "config.yaml cannot be used" in said and "step_00000004/state.json" in said
    assert config.read_text() == settings
    assert steps(out) == [1, 3, 4, *range(5, LAST + 1)]
    assert jsonl.read_lines(bad).values == [{"file": os.fsdecode(b"\xe9.png"), "reason": "cut"}]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:-7]),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "unknown key": lambda path: path.write_text(path.read_text().replace("epsilon:", "epsilom:")),
    "another value": lambda path: path.write_text(path.read_text().replace("batch: 16", "batch: 15")),
    "a line fewer": lambda path: path.write_text(re.sub(r"\nbatch: .*", "", path.read_text())),
    "cut at the end of a line": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:30])),
    "no value of it": lambda path: path.write_text(path.read_text().replace("batch: 16", "batch: 1x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_settings_that_are_lost_are_taken_from_the_newest_checkpoint(shapes, out, damage, monkeypatch, capsys):
    settings = (out / "config.yaml").read_text()
    DAMAGE[damage](out / "config.yaml")
    found = setup.settings_of(out)
    assert found is not None and checked_yaml(found) == settings
    assert capsys.readouterr().err.count("swav: warning: ") == 1
    with pytest.raises(ConfigError, match=r"epsilon: 0.05 -> 0.04"):
        pretrain(shapes, out, epsilon=0.04)
    monkeypatch.setattr(loop, "_train", lambda *_: None)
    monkeypatch.setattr(loop, "_finish", lambda *_: None)
    pretrain(shapes, out)
    assert (out / "config.yaml").read_text() == settings


def test_settings_of_a_version_without_the_checksum_are_read(out):
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text("".join(text.splitlines(True)[:-1]))
    found = setup.settings_of(out)
    assert found is not None and checked_yaml(found) == text


def test_without_settings_and_without_a_whole_checkpoint_nothing_is_begun_anew(shapes, out):
    (out / "config.yaml").unlink()
    (out / "checkpoints" / "step_00000004" / "state.json").write_text("{}")
    before = sorted(out.rglob("*"))
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        pretrain(shapes, out)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_refuses_logs_pictures_and_reports_ends_no_run(
    whole, shapes, tmp_path, monkeypatch, capsys, number
):
    real = os.open
    refused: list[str] = []

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".jsonl") and "metrics" in str(path) and len(refused) < 3:
            refused.append(str(path))
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    def broken(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    class Board:
        def add_scalar(self, *_: object) -> None:
            raise RuntimeError("the writer's thread has died")

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(log, "write_views", broken)
    monkeypatch.setattr(log, "_tensorboard", lambda _: Board())
    monkeypatch.setattr(log, "report", broken)
    out = pretrain(shapes, tmp_path / "run")
    assert outcome(out) == whole and len(refused) == 3
    assert steps(out) == list(range(3, LAST + 1))  # a line a step: that of the start and two were lost
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("swav: warning: ")]
    assert [word for word in ("views.png", "metrics.jsonl", "tensorboard", "report.html") if word in "".join(said)] == [
        "views.png",
        "metrics.jsonl",
        "tensorboard",
        "report.html",
    ]
    assert len(said) == 4


def test_a_bad_file_that_could_not_be_listed_counts_and_is_listed_later(tmp_path, monkeypatch):
    of_run = log.Log(tmp_path)
    monkeypatch.setattr(log, "append", lambda *_: False)
    assert of_run.add_unreadable([("a", "cut"), ("b", "cut")]) == 2 and of_run.add_unreadable([]) == 2
    monkeypatch.undo()
    assert of_run.add_unreadable([("a", "cut"), ("c", "cut")]) == 3
    assert [line["file"] for line in jsonl.read_lines(tmp_path / "bad_files.jsonl").values] == ["a", "b", "c"]


def test_files_that_are_back_do_not_count_as_unreadable(tmp_path):
    first = log.Log(tmp_path)
    assert first.add_unreadable([("a", "gone"), ("b", "gone"), ("c", "gone")]) == 3
    later = log.Log(tmp_path)
    assert (
        later.add_unreadable([]) == 0
        and later.add_unreadable([("b", "gone"), ("d", "cut")]) == 2
        and later.add_unreadable([("b", "gone")]) == 2
    )
    names = [line["file"] for line in jsonl.read_lines(tmp_path / "bad_files.jsonl").values]
    assert names == ["a", "b", "c", "d"]


def test_a_full_disk_under_a_checkpoint_is_exit_4(shapes, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MachineError, match="the disk is full") as caught:
        pretrain(shapes, tmp_path / "run")
    assert caught.value.exit_code == 4 and steps(tmp_path / "run") == [1, 2, 3, 4]


def removed(out: Path) -> None:
    shutil.rmtree(out)


def moved(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def moved_and_made_anew(out: Path) -> None:
    moved(out)
    out.mkdir()


@pytest.mark.parametrize("befall", [removed, moved, moved_and_made_anew])
@pytest.mark.parametrize(
    ("log_every_steps", "found_at"), [(1, 6), (100, 8)], ids=["at the next line of the log", "at the next checkpoint"]
)
def test_a_folder_that_goes_away_ends_the_run_and_is_not_made_again(
    shapes, tmp_path, monkeypatch, befall, log_every_steps, found_at
):
    passed: list[str] = []

    def step(name: str) -> None:
        passed.append(name)
        if passed.count("step:middle") == 6 and name == "step:middle":  # after the checkpoint of step 4
            befall(tmp_path / "run")

    monkeypatch.setattr("swav.training.step.fault_point", step)
    with pytest.raises(MachineError, match=r"run: was removed or moved during the run") as caught:
        pretrain(shapes, tmp_path / "run", log_every_steps=log_every_steps)
    assert caught.value.exit_code == 4 and passed.count("step:middle") == found_at
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    if befall is not removed:
        assert (tmp_path / "elsewhere" / "checkpoints" / "step_00000004" / "manifest.json").exists()


@pytest.mark.parametrize("before", ["_begin", "_write", "_publish"])
def test_a_folder_that_goes_away_while_a_checkpoint_is_written_is_named(shapes, tmp_path, monkeypatch, before):
    real = getattr(checkpoint, before)

    def at_once_removed(*arguments: Any) -> Any:
        removed(tmp_path / "run")
        return real(*arguments)

    monkeypatch.setattr(checkpoint, before, at_once_removed)
    with pytest.raises(MachineError, match=r"run: was removed or moved during the run"):
        pretrain(shapes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bench", "before"),
    [
        ("knn", "swav.feature_store.FileLock"),
        ("knn", "swav.feature_store.read_views"),
        ("linear", "swav.evaluation.supervised.FileLock"),
        ("knn", "swav.results.results.results_lock"),
    ],
)
def test_a_folder_that_goes_away_under_a_benchmark_is_named_and_not_made_again(
    shapes, tmp_path, monkeypatch, bench, before
):
    module, _, name = before.rpartition(".")
    real = getattr(importlib.import_module(module), name)
    calls: list[object] = []

    def at_once_removed(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if name != "results_lock" or len(calls) > 1:  # the first one makes the folder
            removed(tmp_path / "out")
        return real(*arguments, **more)

    monkeypatch.setattr(before, at_once_removed)
    with pytest.raises(MachineError, match=r"out: was removed or moved during the run"):
        runner.bench(
            [bench],
            weights=["random:tiny"],
            data=shapes,
            out=tmp_path / "out",
            protocol="smoke",
            size=32,
            workers=0,
            device="cpu",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_real_run_whose_folder_is_moved_ends_with_exit_4(shapes, tmp_path, processes):
    """Of two processes the first finds it, and the other ends with it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "swav", "pretrain", "tiny"]
    settings = ("batch=16", "width=0.125", "prototypes=12", "queue_length=32", "epochs=2000", "workers=1")
    plain = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    if sys.platform == "linux":
        plain.setdefault("GLOO_SOCKET_IFNAME", "lo")
    out = tmp_path / "run"
    with subprocess.Popen(
        [*command, f"data={shapes}", *settings, "--out", str(out)],
        cwd=Path(__file__).parents[1],
        env=plain,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            while process.poll() is None and not steps(out):
                time.sleep(0.02)
            out.rename(tmp_path / "elsewhere")
            _, said = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # no orphan trains on
    assert process.returncode == (4 if processes == 1 else 1), said  # torchrun's own
    assert said.count("was removed or moved during the run") == 1 and (processes == 1 or "exitcode  : 4" in said)
    assert not out.exists() and 'Traceback (most recent call last):\n  File "/' not in said.partition("torch/dist")[0]


@pytest.fixture
def photos(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the data that may be damaged."""
    shutil.copytree(shapes, tmp_path / "photos")
    return tmp_path / "photos"


def trained_on(photos: Path) -> list[Path]:
    return sorted((photos / "train").rglob("*.png"))


@pytest.mark.parametrize("damaged", [False, True], ids=["deleted", "damaged in its header"])
def test_an_image_lost_between_two_sittings_is_as_one_lost_during_a_run(photos, tmp_path, monkeypatch, capsys, damaged):
    """To the byte: resumed twice, and against a run in which the image was lost after the step of the checkpoint."""
    lost = trained_on(photos)[17]
    content = lost.read_bytes()

    def lose() -> None:
        if damaged:
            lost.write_bytes(b"\0" * len(content))
        else:
            lost.unlink()

    begun = interrupted(photos, tmp_path / "parts", 7)
    shutil.copytree(begun, tmp_path / "again")
    roster = (begun / "images.npz").read_bytes()
    lose()
    expected: dict[str, str] = {}
    for out in (begun, tmp_path / "again"):
        capsys.readouterr()
        pretrain(photos, out)
        name = str(lost.relative_to(photos))
        assert f"1 image of this run cannot be read any more: {name} (" in capsys.readouterr().err
        assert [line["file"] for line in jsonl.read_lines(out / "bad_files.jsonl").values] == [name]
        assert (out / "images.npz").read_bytes() == roster and steps(out) == list(range(1, LAST + 1))
        assert expected in ({}, outcome(out))
        expected = outcome(out)

    lost.write_bytes(content)
    passed: list[str] = []

    def step(name: str) -> None:
        passed.append(name)
        if passed.count("step:end") == 4 and name == "step:end":
            lose()

    monkeypatch.setattr(loop, "fault_point", step)
    assert outcome(pretrain(photos, tmp_path / "whole")) == expected


def test_more_lost_images_than_max_bad_are_exit_3_and_fewer_or_a_larger_max_bad_continue(photos, out, monkeypatch):
    monkeypatch.setattr(loop, "_train", lambda *_: None)
    monkeypatch.setattr(loop, "_finish", lambda *_: None)
    for path in trained_on(photos)[:11]:
        path.unlink()
    with pytest.raises(
        DataError, match=r"at most 10 unreadable images .* found 11, first train/\S+ \(no such file\)"
    ) as caught:
        pretrain(photos, out)
    assert caught.value.exit_code == 3
    pretrain(photos, out, max_unreadable=0.2)


def test_added_files_are_left_out_and_another_data_set_is_refused(whole, photos, out, capsys):
    folder = trained_on(photos)[0].parent
    shutil.copy(trained_on(photos)[5], folder / "0.png")
    capsys.readouterr()
    pretrain(photos, out)
    assert outcome(out) == whole and "1 file" in capsys.readouterr().err
    for path in trained_on(photos):
        path.rename(path.with_name(f"other {path.name}"))
    with pytest.raises(ConfigError, match=r"the 64 images that the run .* found 64 of them missing .*png and 61 more"):
        pretrain(photos, out)


def test_a_run_of_an_earlier_version_has_no_list_and_gets_one(photos, out, monkeypatch, capsys):
    monkeypatch.setattr(loop, "_train", lambda *_: None)
    monkeypatch.setattr(loop, "_finish", lambda *_: None)
    written = (out / "images.npz").read_bytes()
    for content in (None, b"PK damaged"):
        (out / "images.npz").unlink()
        if content is not None:
            (out / "images.npz").write_bytes(content)
        lost = trained_on(photos)[3]
        kept = lost.read_bytes()
        lost.unlink()
        with pytest.raises(ConfigError, match="expected the 64 images that the run"):
            pretrain(photos, out)
        lost.write_bytes(kept)
        capsys.readouterr()
        pretrain(photos, out)
        assert ("cannot be used" in capsys.readouterr().err) == (content is not None)
        assert (out / "images.npz").read_bytes() == written
