"""Attacks: a checkpoint that is deleted, replaced or passed over though it may be whole; one of values that are no numbers;
hidden files of other systems that make a whole one look damaged.

Damage itself, kills and full disks are in test_checkpoint.py. Run: pytest tests/test_checkpoint_refusals.py
"""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from swav import checkpoint, dist, files
from swav.errors import CheckpointError, MachineError, NumericsError
from tests.test_checkpoint import change_the_manifest, flip_a_bit, names, save, step_name, weights

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses between tries, which tests need not wait for."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


# -- of a newer format -------------------------------------------------------------------------------------------------


def newer(folder: Path, step: int) -> Path:
    path = save(folder, step)
    change_the_manifest(path, format=checkpoint.FORMAT + 1, files="whatever it may be then")
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_newer_format_is_neither_read_nor_passed_over_nor_replaced(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    path = newer(folder, 2)
    before = content(path)
    for work in (lambda: checkpoint.newest(folder), lambda: checkpoint.read(path), lambda: save(folder, 2)):
        with pytest.raises(CheckpointError, match=r"newer format \(2\) than this version reads \(1\); update swav"):
            work()
    assert content(path) == before and names(folder) == [step_name(1), step_name(2)]


def test_a_newer_format_among_older_checkpoints_is_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    newer(folder, 2)
    save(folder, 3)
    for step in (4, 5):
        save(folder, step, keep=1)
    assert names(folder) == [step_name(2), step_name(5)]


def test_a_damaged_one_after_a_newer_format_does_not_hide_it(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    newer(folder, 2)
    flip_a_bit(save(folder, 3) / "model.safetensors")
    with pytest.raises(CheckpointError, match="update swav"):
        checkpoint.newest(folder, lambda warning: None)


# -- that cannot be read just now --------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, number: int, times: int, name: str = step_name(2)) -> list[Path]:
    """Reading any file of a checkpoint to its end fails so many times."""
    failures: list[Path] = []
    before = checkpoint._sha256

    def read(path: Path) -> str:
        if path.parent.name == name and len(failures) < times:
            failures.append(path)
            raise OSError(number, errno.errorcode[number], str(path))
        return before(path)

    monkeypatch.setattr(checkpoint, "_sha256", read)
    return failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT], ids=errno.errorcode.__getitem__)
def test_a_passing_error_is_waited_out(tmp_path, monkeypatch, pauses, number):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    path = save(folder, 2)
    failures = failing(monkeypatch, number, 2)
    assert checkpoint.newest(folder, lambda warning: pytest.fail(warning)) == path
    assert len(failures) == 2 and pauses == list(files.PAUSES_SECONDS[:2])


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES], ids=errno.errorcode.__getitem__
)
def test_what_cannot_be_read_is_not_passed_over_and_costs_nothing(tmp_path, monkeypatch, number):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    path = save(folder, 2)
    failing(monkeypatch, number, 10**6)
    for work in (lambda: checkpoint.newest(folder), lambda: checkpoint.read(path), lambda: save(folder, 2)):
        with pytest.raises(MachineError, match=r"step_00000002: cannot be read just now \(E[A-Z]+\)") as caught:
            work()
        assert caught.value.exit_code == 4 and len(str(caught.value).splitlines()) <= 3
    monkeypatch.undo()
    assert checkpoint.newest(folder, lambda warning: pytest.fail(warning)) == path
    assert names(folder) == [step_name(1), step_name(2)]


def test_nothing_is_deleted_while_an_older_one_cannot_be_read(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step)
    before = checkpoint._manifest

    def manifest(path: Path) -> Any:
        if path.name == step_name(1):
            raise OSError(errno.ESTALE, "Stale file handle")
        return before(path)

    monkeypatch.setattr(checkpoint, "_manifest", manifest)
    save(folder, 3, keep=1)
    assert names(folder) == [step_name(1), step_name(3)]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.__getitem__)
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch, number):
    """Path.glob takes it for empty, and a run would begin anew."""
    save(tmp_path, 1)

    def refuse(folder: Path, pattern: str = "*") -> list[Path]:
        raise OSError(number, errno.errorcode[number])

    monkeypatch.setattr(checkpoint, "visible", refuse)
    for work in (checkpoint.newest, checkpoint.any_exist):
        with pytest.raises(MachineError, match="cannot be read just now"):
            work(tmp_path)


# -- hidden files ------------------------------------------------------------------------------------------------------


def test_hidden_files_of_other_systems_change_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    path = save(folder, 1)
    for place in (folder / "._step_00000001", *(path / f"._{file.name}" for file in list(path.iterdir()))):
        place.write_bytes(APPLE_DOUBLE)
    (folder / ".step_00000009").mkdir()
    assert checkpoint.newest(folder, lambda warning: pytest.fail(warning)) == path
    assert checkpoint.read(path).state == {"world_size": 1, "step": 1}


def test_a_hidden_file_that_appears_during_a_save_is_not_listed(tmp_path, monkeypatch):
    def appear(name: str) -> None:
        if name == "save:written":
            (temporary,) = (tmp_path / "checkpoints").glob(".step_*")
            (temporary / "._model.safetensors").write_bytes(APPLE_DOUBLE)

    monkeypatch.setattr(checkpoint, "fault_point", appear)
    path = save(tmp_path / "checkpoints", 1)
    (path / "._model.safetensors").unlink()
    assert checkpoint.damage(path) is None


# -- what is not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["model", "optim", "local"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_never_saved_and_the_one_before_stays(tmp_path, part, value):
    folder = tmp_path / "checkpoints"
    broken: dict[str, Any] = {part: {"fine": torch.ones(2), "odd": torch.tensor([1.0, value])}}
    with pytest.raises(NumericsError, match=r"step 1: .*in odd; they are not saved\n.*there is no checkpoint yet"):
        save(folder, 1, **broken)
    assert not folder.exists()
    path = save(folder, 1)
    before = content(path)
    with pytest.raises(NumericsError, match="the last checkpoint is step 1") as caught:
        save(folder, 2, keep=1, **broken)
    assert caught.value.exit_code == 5 and content(path) == before and names(folder) == [step_name(1)]


def save_what_rank_1_has_broken(folder: str) -> str:
    local = {"queue": torch.tensor([1.0, float("inf") if dist.rank() == 1 else 1.0])}
    try:
        save(Path(folder), 4, model=weights(4), local=local)
    except NumericsError as error:
        return str(error)
    return "saved"


def test_a_value_of_one_process_that_is_not_finite_ends_the_save_on_all(two_processes, tmp_path):
    one, other = two_processes(save_what_rank_1_has_broken, str(tmp_path / "checkpoints"))
    assert one == other and "in queue; they are not saved" in one
    assert not (tmp_path / "checkpoints").exists()
