"""Checkpoints: one verified directory each, never a half one, never one that runs code.

    step_XXXXXXXX/  model.safetensors  optim.safetensors  rank_R.safetensors  state.json  manifest.json

A directory is written beside its place, every file synced, the manifest (sizes and SHA-256) last, and then renamed.
`latest` is a hint for people; the truth is the newest directory whose manifest verifies.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swav import dist
from swav.errors import CheckpointError, EnvironmentError_
from swav.files import DISK_IS_FULL, FileLock, remove_leftovers, sync_folder, warn_once, write_text_durably
from swav.output import say
from swav.runtime import fault_point

FORMAT = 1
WRITTEN_BY_A_RUN = ("config.yaml", "metrics.jsonl", "bad_files.jsonl", "latest")
_ALWAYS = {"model.safetensors", "optim.safetensors", "state.json"}  # in every checkpoint, beside the files of ranks

Result = TypeVar("Result")


@dataclasses.dataclass
class Checkpoint:
    """What a directory holds: tensors of the model and the optimiser, those of each process by rank, and plain state."""

    step: int
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    locals: list[dict[str, Tensor]]
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
        model, optim: the first process's are written (BatchNorm statistics of the others are lost, if they differ).
        local: this process's own.
        state: JSON values.
        keep: newest checkpoints to keep; older ones are deleted once the new one verifies.
        best: a step that is kept beside them.

    Raises:
        EnvironmentError_: the disk is full or refuses; the checkpoints before are untouched.
    """
    place = folder / f"step_{step:08d}"
    first = dist.rank() == 0
    tensors = {f"rank_{dist.rank()}.safetensors": local}
    if first:
        tensors |= {"model.safetensors": model, "optim.safetensors": optim}
    needed = sum(tensor.nbytes for content in tensors.values() for tensor in content.values())

    begun = _together(lambda: _begin(folder, place) if first else None, folder, needed)
    temporary: Path | None = dist.broadcast_object(begun)
    if temporary is None:  # this step is here already, whole: a run that was killed after its save makes it again
        return place
    _together(lambda: _write(temporary, tensors, {**state, "step": step} if first else None), folder, needed, temporary)
    _together(lambda: _publish(temporary, place, step) if first else None, folder, needed, temporary)
    _together(lambda: _retain(folder, keep, best, place) if first else None, folder, needed)
    return place


def _together(work: Callable[[], Result], folder: Path, needed: int, temporary: Path | None = None) -> Result:
    """Does the work on every process. A failure on one becomes the same error on all, and the temporary folder goes.

    Args:
        work: of this process.
        folder: of all checkpoints.
        needed: bytes that this process wants to write.
        temporary: what to remove after a failure.
    """
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # whatever it is: the other processes must hear of it, or they wait for minutes
        failure = error
    told = dist.gather_objects((needed, None if failure is None else (_is_full(failure), _in_words(failure))))
    failures = [found for _, found in told if found is not None]
    if not failures:
        return result
    message = None
    if dist.rank() == 0:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        full, words = failures[0]
        message = _complaint(folder, full, words, sum(size for size, _ in told))
    raise EnvironmentError_(dist.broadcast_object(message)) from failure


def _begin(folder: Path, place: Path) -> Path | None:
    """Makes the temporary folder; None if the checkpoint is there already and verifies."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    if place.exists() and damage(place) is None:
        return None
    temporary = _aside(place)
    temporary.mkdir()
    return temporary


def _write(temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any] | None) -> None:
    """Writes this process's files."""
    for name, content in tensors.items():
        save_file(_writable(content), temporary / name)
        _settle(temporary / name)
    if state is not None:
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        _settle(temporary / "state.json")


def _writable(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: on the CPU, contiguous, no two in one memory. Copied only where that is not so."""
    ready: dict[str, Tensor] = {}
    memory: set[int] = set()
    for key, tensor in content.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        ready[key] = plain.clone() if address in memory else plain
        memory.add(address)
    return ready


def _settle(path: Path) -> None:
    """Syncs a file to disk, with the permissions that the user's umask gives (safetensors writes 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    try:
        path.chmod(0o666 & ~mask)
    except PermissionError:  # CIFS, exFAT: permissions are the mount's
        warn_once(f"{path.parent.parent}: this file system keeps its own permissions")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, place: Path, step: int) -> None:
    fault_point("save:written")
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(temporary.iterdir())}
    manifest = temporary / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1), encoding="utf-8")
    _settle(manifest)
    sync_folder(temporary)
    fault_point("save:manifest")
    if place.exists():  # damaged, or it would have been kept
        _delete(place)
    temporary.rename(place)
    sync_folder(place.parent)
    fault_point("save:renamed")
    with contextlib.suppress(OSError):  # a hint, and no reason to call a good checkpoint a failure
        write_text_durably(place.parent.parent / "latest", place.name + "\n")


def _retain(folder: Path, keep: int, best: int | None, newest_place: Path) -> None:
    """Deletes what is older than the newest `keep` (but the best), once the new one verifies."""
    if found := damage(newest_place):
        raise OSError(f"{newest_place.name} {found} when read back")
    # Only what is older counts: a later directory is a damaged one that the run went back before.
    older = [path for path in _directories(folder) if _step(path) < _step(newest_place)]
    for path in older[keep - 1 :]:
        if _step(path) != best:
            _delete(path)


def _delete(path: Path) -> None:
    """Renames, then removes: a kill in between leaves nothing that looks like a checkpoint."""
    aside = _aside(path)
    path.rename(aside)
    fault_point("save:retention")
    shutil.rmtree(aside, ignore_errors=True)


def _aside(place: Path) -> Path:
    """A fresh hidden name beside a checkpoint's place, on the same file system."""
    return place.with_name(f".{place.name}.tmp-{secrets.token_hex(4)}")


def sweep(folder: Path) -> None:
    """Removes what killed saves left behind. Only for who writes here: a reader would take a live save's folder away."""
    for leftover in folder.glob(".step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in WRITTEN_BY_A_RUN:  # not all of them: a benchmark may be writing into the same folder
        remove_leftovers(folder.parent / name)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _directories(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def are_in(folder: Path) -> bool:
    """Whether a run's folder of checkpoints holds any, damaged or not. (A copy that a user has named step_10.old is none.)"""
    return bool(_directories(folder))


def _is_full(error: Exception) -> bool:
    """Whether the disk, the quota or the limit of a file's size is reached (safetensors says so in its text only)."""
    return getattr(error, "errno", None) in DISK_IS_FULL or any(
        f"(os error {number})" in str(error) for number in DISK_IS_FULL
    )


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | SafetensorError) else f"{type(error).__name__}: {error}"


def _complaint(folder: Path, full: bool, words: str, needed: int) -> str:
    if not full:
        return f"{folder}: the checkpoint could not be written ({words}); the one before is untouched"
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return (
        f"{folder}: the disk is full or a limit is reached ({words}); this checkpoint needs {needed:,} bytes, {free:,} are free\n"
        "the one before is untouched: make room, and the same command goes on"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str | None:
    """Says what is wrong with a checkpoint's directory, or None if every file is as its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] > FORMAT:
            return f"is of a newer format ({manifest['format']}) than this version reads ({FORMAT}); update swav"
        if manifest["step"] != _step(path):
            return f"has the manifest of step {manifest['step']}"
        files = manifest["files"]
        present = {file.name for file in path.glob("*.safetensors")}
        if unlisted := sorted((present | _ALWAYS) - set(files)):
            return f"holds or lacks {unlisted[0]}, which its manifest does not list"
        for name, expected in files.items():
            file = path / Path(name).name
            if file.stat().st_size != expected["size"] or _sha256(file) != expected["sha256"]:
                return f"has a damaged {file.name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be verified ({type(error).__name__}: {error})"
    return None


def _warn(message: str) -> None:
    say(f"swav: {message}")


def newest(folder: Path, warn: Callable[[str], None] = _warn) -> Path | None:
    """The newest directory that verifies; None if there are none at all. Changes nothing: others may be writing here.

    Args:
        folder: of all checkpoints of a run.
        warn: is told of every damaged one that is passed over.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
    """
    directories = _directories(folder)
    for path in directories:
        found = damage(path)
        if found is None:
            return path
        if not path.is_dir():  # a live run has just deleted it, after a newer one
            return newest(folder, warn)
        warn(f"{path} {found}; it is passed over")
    if directories:
        raise CheckpointError(
            f"{folder}: none of {len(directories)} checkpoints verifies; restore one, or use another --out"
        )
    return None


def read(path: Path) -> Checkpoint:
    """Loads a checkpoint after verifying it, whatever the number of processes that wrote it.

    Raises:
        CheckpointError: it is damaged.
    """
    found = damage(path)
    if found:
        raise CheckpointError(f"{path} {found}")
    writers = len(list(path.glob("rank_*.safetensors")))
    try:
        return Checkpoint(
            _step(path),
            load_file(path / "model.safetensors"),
            load_file(path / "optim.safetensors"),
            [load_file(path / f"rank_{rank}.safetensors") for rank in range(writers)],
            json.loads((path / "state.json").read_text(encoding="utf-8")),
            path,
        )
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


class RunLock(FileLock):
    """Keeps a second run out of a run's folder, and removes what a killed one left in it.

    Raises:
        EnvironmentError_: another process trains in this folder, or it cannot be written.
    """

    def __init__(self, folder: Path):
        super().__init__(folder / ".lock")

    def __enter__(self) -> "RunLock":
        folder = self.path.parent
        try:
            super().__enter__()
        except BlockingIOError as error:
            raise EnvironmentError_(
                f"{folder}: another run is at work here ({error.strerror}); wait for it, stop it, or use another --out"
            ) from None
        except OSError as error:
            raise EnvironmentError_(f"{folder}: cannot be written ({error}); choose an --out that can") from None
        sweep(folder / "checkpoints")
        return self
