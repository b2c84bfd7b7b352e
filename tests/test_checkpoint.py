"""Attacks: a checkpoint that is believed though it is damaged, lost though it was whole, or that runs code.

Damage of every kind, kills at every point of a save, full disks, failures on one process of two, and locks.

Run: pytest tests/test_checkpoint.py
"""

import errno
import hashlib
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from swav import checkpoint, dist
from swav.errors import CheckpointError, MachineError
from swav.files import write_text_durably

ROOT = Path(__file__).parents[1]


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"b.weight": torch.randn(20, 30, generator=generator), "a.count": torch.tensor(seed)}


def save(folder: Path, step: int, keep: int = 3, best: int | None = None, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "model": weights(step),
        "optim": {"momentum": torch.full((7,), float(step))},
        "local": {"queue": torch.full((5, 2), float(dist.rank()))},
        "state": {"world_size": dist.world_size()},
    }
    return checkpoint.save(folder, step, keep=keep, best=best, **content | changes)


def names(folder: Path) -> list[str]:
    """All there is, hidden leftovers too."""
    return sorted(path.name for path in folder.iterdir())


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def test_what_was_saved_is_read_back_to_the_bit(tmp_path):
    path = save(tmp_path / "checkpoints", 12)
    found = checkpoint.read(path)
    assert found.step == 12 and found.state == {"world_size": 1, "step": 12} and found.path == path
    for key, tensor in weights(12).items():
        assert torch.equal(found.model[key], tensor) and found.model[key].dtype == tensor.dtype
    assert torch.equal(found.optim["momentum"], torch.full((7,), 12.0))
    assert len(found.locals) == 1 and torch.equal(found.locals[0]["queue"], torch.zeros(5, 2))
    assert (tmp_path / "latest").read_text() == "step_00000012\n"
    assert names(path) == [
        "manifest.json",
        "model.safetensors",
        "optim.safetensors",
        "rank_0.safetensors",
        "state.json",
    ]


def test_the_same_weights_give_the_same_bytes_in_any_order_layout_and_place(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "another").mkdir()
    first = save(tmp_path / "one" / "checkpoints", 3)
    turned = dict(reversed(weights(3).items()))
    turned["b.weight"] = turned["b.weight"].T.contiguous().T  # other strides, same values
    second = save(tmp_path / "another" / "checkpoints", 3, model=turned)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_views_of_one_memory_are_saved_each_for_itself(tmp_path):
    base = torch.arange(6.0)
    found = checkpoint.read(save(tmp_path, 1, model={"tail": base[3:], "whole": base, "tied": base}))
    assert torch.equal(found.model["tail"], base[3:])
    assert torch.equal(found.model["whole"], base) and torch.equal(found.model["tied"], base)
    assert (found.path / "model.safetensors").stat().st_size < 400


def test_no_checkpoint_is_none_and_other_files_are_no_checkpoints(tmp_path):
    assert checkpoint.newest(tmp_path / "absent") is None
    (tmp_path / "step_final").mkdir()
    (tmp_path / "step_00000009").write_text("a file")
    assert checkpoint.newest(tmp_path) is None


# -- damage ---------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def zero_the_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


def change_the_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


FILES = ["model.safetensors", "optim.safetensors", "rank_0.safetensors", "state.json"]
DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "of zero bytes": lambda path: os.truncate(path, 0),
    "with one flipped bit": flip_a_bit,
    "missing": Path.unlink,
}
DIRECTORY_DAMAGE: dict[str, Callable[[Path], object]] = {
    "a zeroed tail": lambda folder: zero_the_tail(folder / "model.safetensors"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a truncated manifest": lambda folder: os.truncate(folder / "manifest.json", 40),
    "a manifest that lists nothing": lambda folder: change_the_manifest(folder, files={}),
    "a manifest that is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "a manifest of another step": lambda folder: change_the_manifest(folder, step=1),
    "a file too many": lambda folder: (folder / "rank_1.safetensors").write_bytes(b"?"),
    "nothing in it": lambda folder: list(map(Path.unlink, folder.iterdir())),
}


def assert_passed_over(folder: Path, damaged: Path) -> None:
    """The one before is used, with one warning that names the damaged one; alone, it is an error."""
    warnings: list[str] = []
    assert checkpoint.newest(folder, warnings.append) == folder / step_name(1)
    assert len(warnings) == 1 and str(damaged) in warnings[0]
    with pytest.raises(CheckpointError, match=damaged.name):
        checkpoint.read(damaged)
    (folder / step_name(1)).rename(folder.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        checkpoint.newest(folder, warnings.append)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_seen_and_the_checkpoint_before_is_used(tmp_path, name, damage):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    last = save(folder, 2)
    DAMAGE[damage](last / name)
    assert_passed_over(folder, last)


@pytest.mark.parametrize("damage", DIRECTORY_DAMAGE)
def test_a_directory_with_any_other_damage_is_passed_over(tmp_path, damage):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    last = save(folder, 2)
    DIRECTORY_DAMAGE[damage](last)
    assert_passed_over(folder, last)


def test_the_manifest_of_another_run_does_not_verify(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    other = save(tmp_path / "other" / "checkpoints", 2, model=weights(77))
    folder = tmp_path / "run" / "checkpoints"
    save(folder, 1)
    last = save(folder, 2)
    (last / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    assert_passed_over(folder, last)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Bomb.target),)

    target = Path()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("safetensors")])
def test_a_pickle_named_safetensors_is_refused_and_never_run_even_if_the_manifest_vouches_for_it(tmp_path, name):
    path = save(tmp_path / "checkpoints", 2)
    Bomb.target = tmp_path / "executed"
    (path / name).write_bytes(pickle.dumps(Bomb()))
    manifest = json.loads((path / "manifest.json").read_text())
    content = (path / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)
    assert not Bomb.target.exists()
    pickle.loads(content)
    assert Bomb.target.exists()  # it would have


@pytest.mark.parametrize("hint", ["step_00000099\n", "/etc\n", "../../elsewhere\n", ""])
def test_latest_is_a_hint_that_nothing_believes(tmp_path, hint):
    last = save(tmp_path / "checkpoints", 2)
    (tmp_path / "latest").write_text(hint)
    assert checkpoint.newest(tmp_path / "checkpoints") == last
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(tmp_path / "nowhere")
    assert checkpoint.newest(tmp_path / "checkpoints") == last
    save(tmp_path / "checkpoints", 3)
    assert (tmp_path / "latest").read_text() == "step_00000003\n" and not (tmp_path / "nowhere").exists()


# -- the same step, retention, leftovers -----------------------------------------------------------------------------


def test_a_whole_checkpoint_of_the_same_step_is_kept_and_a_damaged_one_replaced(tmp_path):
    path = save(tmp_path / "checkpoints", 5)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert save(tmp_path / "checkpoints", 5) == path
    assert before == {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    flip_a_bit(path / "model.safetensors")
    save(tmp_path / "checkpoints", 5)
    assert checkpoint.damage(path) is None
    assert names(tmp_path / "checkpoints") == [path.name]


def test_the_newest_and_the_best_stay(tmp_path):
    for step in (10, 20, 30, 40, 100):
        save(tmp_path / "checkpoints", step, keep=2, best=10)
    assert names(tmp_path / "checkpoints") == [step_name(step) for step in (10, 40, 100)]
    save(tmp_path / "checkpoints", 110, keep=1, best=110)
    assert names(tmp_path / "checkpoints") == [step_name(110)]


def test_a_damaged_later_checkpoint_does_not_cost_the_new_one_its_place(tmp_path):
    save(tmp_path / "checkpoints", 10)
    flip_a_bit(save(tmp_path / "checkpoints", 20) / "optim.safetensors")
    new = save(tmp_path / "checkpoints", 15, keep=1)
    assert checkpoint.newest(tmp_path / "checkpoints", lambda warning: None) == new


def test_nothing_is_deleted_if_the_new_one_does_not_verify(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save(folder, step)

    def rot(name: str) -> None:
        if name == "save:renamed":
            flip_a_bit(folder / step_name(3) / "model.safetensors")

    monkeypatch.setattr(checkpoint, "fault_point", rot)
    with pytest.raises(MachineError, match="read back"):
        save(folder, 3, keep=1)
    assert checkpoint.newest(folder, lambda warning: None) == folder / step_name(2)


def test_who_writes_removes_what_killed_saves_left_and_who_reads_does_not(tmp_path):
    folder = tmp_path / "checkpoints"
    last = save(folder, 1)
    leftovers = [folder / ".step_00000002.tmp-0123abcd", tmp_path / ".latest.4711.tmp"]

    def litter() -> None:
        leftovers[0].mkdir()
        (leftovers[0] / "model.safetensors").write_bytes(b"half")
        leftovers[1].write_text("")

    litter()
    assert checkpoint.newest(folder) == last and all(path.exists() for path in leftovers)  # it may be a live save's
    with checkpoint.RunLock(tmp_path):
        assert not any(path.exists() for path in leftovers)
    litter()
    save(folder, 2)
    assert not any(path.exists() for path in leftovers)


# -- kills -----------------------------------------------------------------------------------------------------------

SAVE_SECOND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.test_checkpoint import save
save(Path(sys.argv[2]), 2, keep=1)
"""


@pytest.mark.parametrize(
    ("point", "survivor"),
    [
        pytest.param("save:written", 1, marks=pytest.mark.slow),
        ("save:manifest", 1),
        pytest.param("save:renamed", 2, marks=pytest.mark.slow),
        pytest.param("save:retention", 2, marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint_and_no_trace_after_the_next(tmp_path, point, survivor):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    command = [sys.executable, "-c", SAVE_SECOND, str(ROOT), str(folder)]
    environment = os.environ | {"SWAV_FAULT": f"{point}:1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    warnings: list[str] = []
    path = checkpoint.newest(folder, warnings.append)
    assert path is not None and path.name == step_name(survivor) and not warnings
    assert torch.equal(checkpoint.read(path).model["b.weight"], weights(survivor)["b.weight"])
    save(folder, 2, keep=1)
    save(folder, 3, keep=1)
    assert names(folder) == [step_name(3)] and names(tmp_path) == ["checkpoints", "latest"]


# -- full disks ------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_checkpoint_before_and_names_the_bytes(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow beyond it: EFBIG
    try:
        with pytest.raises(MachineError, match=r"full or a limit.*400,068 bytes, [\d,]+ are free") as caught:
            save(folder, 2, model={"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 4
    assert names(folder) == [step_name(1)] and checkpoint.newest(folder) == folder / step_name(1)
    save(folder, 2, model={"w": torch.zeros(100_000)})
    assert names(folder) == [step_name(1), step_name(2)]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "bytes"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "bytes"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "bytes"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ValueError("no such thing"), "ValueError: no such thing"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("place", ["save_file", "sync_file", "sync_folder"])
def test_any_failure_of_a_save_removes_its_folder_and_leaves_the_one_before(tmp_path, monkeypatch, error, words, place):
    folder = tmp_path / "checkpoints"
    save(folder, 1)

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, place, fail)
    with pytest.raises(MachineError, match=words) as caught:
        save(folder, 2)
    assert len(str(caught.value).splitlines()) <= 3
    assert names(folder) == [step_name(1)] and checkpoint.newest(folder) == folder / step_name(1)


def test_a_pointer_that_cannot_be_written_costs_nothing_but_the_pointer(tmp_path, monkeypatch):
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text_durably", fail)
    path = save(tmp_path / "checkpoints", 1)
    assert checkpoint.newest(tmp_path / "checkpoints") == path and not (tmp_path / "latest").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_users_umask_gives_the_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = save(tmp_path / "checkpoints", 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask


# -- two processes ---------------------------------------------------------------------------------------------------


def save_and_read_on_both(folder: str) -> list[float]:
    path = save(Path(folder), 4)
    return checkpoint.read(path).locals[dist.rank()]["queue"].flatten().tolist()


def fail_on_rank_1(folder: str) -> str:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if dist.rank() == 1:
            patch.setattr(checkpoint, "save_file", full)
        try:
            save(Path(folder), 5)
        except MachineError as error:
            return str(error)
    return "no error"


def test_two_processes_write_their_own_files_and_one_publishes(two_processes, tmp_path):
    folder = tmp_path / "checkpoints"
    assert two_processes(save_and_read_on_both, str(folder)) == [[0.0] * 10, [1.0] * 10]
    assert names(folder) == [step_name(4)]
    assert "rank_1.safetensors" in json.loads((folder / step_name(4) / "manifest.json").read_text())["files"]
    found = checkpoint.read(folder / step_name(4))  # by this test, which is one process
    assert [local["queue"].flatten().tolist() for local in found.locals] == [[0.0] * 10, [1.0] * 10]


def test_a_failure_on_one_process_is_the_same_error_on_both_and_leaves_no_folder(two_processes, tmp_path):
    folder = tmp_path / "checkpoints"
    two_processes(save_and_read_on_both, str(folder))
    one, other = two_processes(fail_on_rank_1, str(folder))
    assert one == other and "No space left" in one
    assert names(folder) == [step_name(4)]
    assert two_processes(save_and_read_on_both, str(folder)) == [[0.0] * 10, [1.0] * 10]


# -- the lock --------------------------------------------------------------------------------------------------------

HOLD = """
import os, signal, sys, time
from pathlib import Path
from swav.checkpoint import RunLock
lock = RunLock(Path(sys.argv[1])).__enter__()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_while_the_first_lives_and_welcome_once_it_is_killed(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another-machine, long dead\n")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        try:
            refused = pytest.raises(MachineError, match=f"process {first.pid} on ")
            with refused as caught, checkpoint.RunLock(tmp_path):
                pass
            assert caught.value.exit_code == 4
            first.kill()
            first.wait()
            with checkpoint.RunLock(tmp_path):  # though its forked child still holds the file open
                assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        finally:
            first.kill()
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"), checkpoint.RunLock(tmp_path / "file" / "run"):
        pass


def test_a_state_is_amended_whole_or_not_at_all(tmp_path, monkeypatch):
    place = save(tmp_path, 1)
    before = checkpoint.read_state(place)

    def no_manifest(path: Path, text: str) -> None:
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text_durably(path, text)

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "write_text_durably", no_manifest)
        with pytest.raises(OSError, match="No space"):
            checkpoint.amend_state(place, {"best_step": 1})
    assert checkpoint.damage(place) is None and checkpoint.read_state(place) == before
    checkpoint.amend_state(place, {"best_step": 1})
    assert checkpoint.read(place).state == before | {"best_step": 1} == checkpoint.read_state(place)
    (place / "late.json").write_text("{}")
    assert "late.json" in str(checkpoint.damage(place))
