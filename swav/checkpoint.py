"""Checkpoints: one verified directory each, never a half one, never one that runs code.

    step_XXXXXXXX/  model.safetensors  optim.safetensors  rank_R.safetensors  state.json  manifest.json

A directory is written beside its place, every file synced, the manifest (sizes and SHA-256) last, and then renamed.
`latest` is a hint for people; the truth is the newest directory whose manifest verifies.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swav import dist
from swav.errors import CheckpointError, EnvironmentError_
from swav.runtime import fault_point, sync_folder, write_text_durably

FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass
class Checkpoint:
    """What a directory holds: tensors of the model and the optimiser, of one process, and plain state."""

    step: int
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    local: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optim: Mapping[str, Tensor],
    local: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    best: int | None = None,
) -> Path:
    """Writes a checkpoint; every process calls it, the first publishes it.

    Args:
        folder: of all checkpoints of a run.
        step: steps done.
        model, optim: the same on all processes; the first one's are written.
        local: this process's own.
        state: JSON values.
        keep: newest checkpoints to keep; older ones are deleted once the new one verifies.
        best: a step that is kept beside them.

    Raises:
        EnvironmentError_: the disk is full or refuses; the checkpoints before are untouched.
    """
    place = folder / f"step_{step:08d}"
    temporary: Path | None = None
    problem: str | None = None
    if dist.rank() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            temporary = folder / f".{place.name}.tmp-{secrets.token_hex(4)}"
            temporary.mkdir()
        except OSError as error:
            problem = _complaint(folder, error, 0)
    temporary, problem = dist.broadcast_object((temporary, problem))
    if problem is None:
        assert temporary is not None
        problem = _write(temporary, model, optim, local, {**state, "step": step})
    problems = [found for found in dist.gather_objects(problem) if found]
    if problems:
        if dist.rank() == 0 and temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise EnvironmentError_(problems[0])
    if dist.rank() == 0:
        assert temporary is not None
        try:
            _publish(temporary, place, step)
            _retain(folder, keep, best, place)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            problem = _complaint(folder, error, 0)
    problem = dist.broadcast_object(problem)
    if problem:
        raise EnvironmentError_(problem)
    return place


def _write(
    temporary: Path, model: Mapping[str, Tensor], optim: Mapping[str, Tensor], local: Mapping[str, Tensor], state: Any
) -> str | None:
    """Writes this process's files; returns a complaint instead of raising, as the other processes must hear of it."""
    tensors = {f"rank_{dist.rank()}.safetensors": local}
    if dist.rank() == 0:
        tensors |= {"model.safetensors": model, "optim.safetensors": optim}
    try:
        for name, content in tensors.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}, temporary / name)
        if dist.rank() == 0:
            (temporary / "state.json").write_text(json.dumps(state, indent=1))
        for name in [*tensors, *(["state.json"] if dist.rank() == 0 else [])]:
            _settle(temporary / name)
    except (OSError, SafetensorError) as error:
        needed = sum(tensor.nbytes for content in tensors.values() for tensor in content.values())
        return _complaint(temporary.parent, error, needed)
    return None


def _settle(path: Path) -> None:
    """Syncs a file to disk, with the permissions that the user's umask gives (safetensors writes 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, place: Path, step: int) -> None:
    fault_point("save:written")
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(temporary.iterdir())}
    manifest = temporary / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    _settle(manifest)
    sync_folder(temporary)
    fault_point("save:manifest")
    if place.exists():
        _delete(place)
    temporary.rename(place)
    sync_folder(place.parent)
    fault_point("save:renamed")
    write_text_durably(place.parent.parent / "latest", place.name + "\n")


def _retain(folder: Path, keep: int, best: int | None, newest_place: Path) -> None:
    """Deletes what is older than the newest `keep` (but the best), once the new one verifies."""
    if damage(newest_place):
        return
    spared = None if best is None else f"step_{best:08d}"
    for path in _directories(folder)[keep:]:
        if path.name != spared:
            _delete(path)


def _delete(path: Path) -> None:
    """Renames, then removes: a kill in between leaves nothing that looks like a checkpoint."""
    aside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    path.rename(aside)
    fault_point("save:retention")
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    for leftover in folder.glob(".step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _directories(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _complaint(folder: Path, error: BaseException, needed: int) -> str:
    full = getattr(error, "errno", None) in _FULL or any(f"os error {number}" in str(error) for number in _FULL)
    if not full:
        return f"{folder}: the checkpoint could not be written ({error}); the one before is untouched"
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return (
        f"{folder}: the disk is full; this checkpoint needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. "
        "The one before is untouched: make room, and the same command goes on"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """Says what is wrong with a checkpoint's directory, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] > FORMAT:
            return f"is of a newer format ({manifest['format']}) than this version reads ({FORMAT}); update swav"
        if manifest["step"] != int(path.name[5:]):
            return f"has the manifest of step {manifest['step']}"
        for name, expected in manifest["files"].items():
            file = path / Path(name).name
            if file.stat().st_size != expected["size"] or _sha256(file) != expected["sha256"]:
                return f"has a damaged {name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be verified ({type(error).__name__}: {error})"
    return None


def _warn(message: str) -> None:
    print(f"swav: {message}", file=sys.stderr)


def newest(folder: Path, warn: Callable[[str], None] = _warn) -> Path | None:
    """The newest directory that verifies; None if there are none at all.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
    """
    if not folder.is_dir():
        return None
    directories = _directories(folder)
    for path in directories:
        found = damage(path)
        if found is None:
            return path
        warn(f"{path} {found}; the one before it is used")
    if directories:
        raise CheckpointError(
            f"{folder}: none of {len(directories)} checkpoints verifies; restore one, or use another --out"
        )
    return None


def read(path: Path, rank: int | None) -> Checkpoint:
    """Loads a checkpoint after verifying it; `rank` None leaves out what belongs to one process.

    Raises:
        CheckpointError: it is damaged, or was written by fewer processes.
    """
    found = damage(path)
    if found:
        raise CheckpointError(f"{path} {found}")
    local_path = path / f"rank_{rank}.safetensors"
    state = json.loads((path / "state.json").read_text())
    if rank is not None and not local_path.exists():
        raise CheckpointError(
            f"{path}: expected {local_path.name}, found the files of {state.get('world_size')} processes; "
            "go on with as many processes as the run began with"
        )
    try:
        return Checkpoint(
            state["step"],
            load_file(path / "model.safetensors"),
            load_file(path / "optim.safetensors"),
            {} if rank is None else load_file(local_path),
            state,
            path,
        )
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not safetensors ({error})") from None


class RunLock(contextlib.AbstractContextManager["RunLock"]):
    """Keeps a second run out of a run's folder.

    A POSIX record lock: forked loader workers do not inherit it, and it goes with the process, however that ends.

    Raises:
        EnvironmentError_: another process trains in this folder.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> "RunLock":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert self._file is not None
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise EnvironmentError_(
                f"{self.path.parent}: another run is at work here ({holder}); wait for it, stop it, or use another --out"
            ) from None
        except OSError as error:
            raise EnvironmentError_(
                f"{self.path.parent}: cannot be written ({error}); choose an --out that can"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
