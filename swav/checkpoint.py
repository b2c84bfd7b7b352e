"""Checkpoints: one verified directory each, never a half one, never one that runs code.

    step_XXXXXXXX/  model.safetensors  optim.safetensors  rank_R.safetensors  state.json  [late.json]  manifest.json

A directory is written beside its place, every file synced, the manifest (sizes and SHA-256) last, and then renamed.
`latest` is a hint for people; the truth is the newest directory whose manifest verifies. One that does not verify is
passed over, with a warning; one that cannot be read just now, or is of a newer format, is not: then nothing is read,
written or deleted. What is not finite is never saved.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import secrets
import shutil
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swav import dist
from swav.errors import CheckpointError, MachineError, NumericsError, SwavError
from swav.files import (
    BAD_FILES,
    CHECKPOINTS,
    CONFIG,
    DISK_IS_FULL,
    IMAGE_LIST,
    METRICS,
    FileLock,
    patiently,
    remove_leftovers,
    sync_file,
    sync_folder,
    visible,
    warn,
    write_text_durably,
)
from swav.system import fault_point
from swav.tensors import not_finite, some

FORMAT = 1
WRITTEN_BY_A_RUN = (CONFIG, IMAGE_LIST, METRICS, BAD_FILES, "latest")
_ABSENT = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)  # a file is not there: damage, and no failure to read
_LATE = "late.json"  # what was found out of a checkpoint after it was saved, and replaces values of its state
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


def fingerprint(saved: Checkpoint) -> str:
    """SHA-256 of a checkpoint's manifest, which holds those of its files."""
    return hashlib.sha256((saved.path / "manifest.json").read_bytes()).hexdigest()


def require_of_pretraining(saved: Checkpoint) -> None:
    """Refuse a checkpoint of something else, as the state of a benchmark that trains.

    Raises:
        CheckpointError: what a pre-training run writes into its state is not there.
    """
    if lacking := [key for key in ("recipe", "num_images") if key not in saved.state]:
        raise CheckpointError(
            f"{saved.path}: expected a checkpoint of a pre-training run, found another's, perhaps a benchmark's "
            f"(no {lacking[0]} in state.json); name the run's folder"
        )


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
    """Write a checkpoint; every process calls it, the first publishes it.

    Args:
        folder: of all checkpoints of a run.
        step: steps done.
        model, optim: the first process's are written (BatchNorm statistics of the others are lost, if they differ).
        local: this process's own.
        state: JSON values.
        keep: newest checkpoints to keep; older ones are deleted once the new one verifies.
        best: a step that is kept beside them.

    Raises:
        NumericsError: a tensor of any process is not finite; nothing was written.
        MachineError: the disk is full or refuses; the checkpoints before are untouched.
        CheckpointError: a checkpoint of a newer format is in this one's place.
    """
    require_finite(folder, step, model, optim, local)
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


def require_finite(folder: Path, step: int, *contents: Mapping[str, Tensor]) -> None:
    """Find out, on all processes together, whether tensors may be saved. Waits once for the device.

    Args:
        folder: of all checkpoints.
        step: steps done.
        contents: tensors of this process.

    Raises:
        NumericsError: on every process, if a tensor of one of them is not finite.
    """
    own = [name for content in contents for name in not_finite(content)]
    broken = list(dict.fromkeys(name for names in dist.gather_objects(own) for name in names))
    if not broken:
        return
    message = None
    if dist.rank() == 0:
        before = _directories(folder)
        message = (
            f"step {step}: expected finite weights, found values that are infinite or no number in {some(broken)}; they are not saved\n"
            "lower the learning rate, or use precision=fp32; "
            + (f"the last checkpoint is step {_step(before[0])}" if before else "there is no checkpoint yet")
        )
    raise NumericsError(dist.broadcast_object(message))


def _together(work: Callable[[], Result], folder: Path, needed: int, temporary: Path | None = None) -> Result:
    """Do the work on every process. A failure on one becomes the same error on all, and the temporary folder goes.

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
    said = failure if failure is None or isinstance(failure, SwavError) else (_is_full(failure), _in_words(failure))
    reports = dist.gather_objects((needed, said))
    failures = [found for _, found in reports if found is not None]
    if not failures:
        return result
    if dist.rank() == 0 and temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    if isinstance(failures[0], SwavError):
        raise failures[0] from failure
    message = None
    if dist.rank() == 0:
        full, words = failures[0]
        message = _save_error(folder, full, words, sum(size for size, _ in reports))
    raise MachineError(dist.broadcast_object(message)) from failure


def _begin(folder: Path, place: Path) -> Path | None:
    """Make the temporary folder; None if the checkpoint is there already and verifies."""
    folder.mkdir(exist_ok=True)  # the run's own folder is there, or was removed
    remove_partial_saves(folder)
    if place.exists() and damage(place) is None:
        return None
    temporary = _set_aside_path(place)
    temporary.mkdir()
    return temporary


def _write(temporary: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any] | None) -> None:
    """Write this process's files."""
    for name, content in tensors.items():
        save_file(_writable(content), temporary / name)
        sync_file(temporary / name)
    if state is not None:
        (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        sync_file(temporary / "state.json")


def _writable(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU, contiguous, no shared storage, as safetensors requires. Copies only when needed."""
    ready: dict[str, Tensor] = {}
    memory: set[int] = set()
    for key, tensor in content.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        ready[key] = plain.clone() if address in memory else plain
        memory.add(address)
    return ready


def _publish(temporary: Path, place: Path, step: int) -> None:
    fault_point("save:written")
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in visible(temporary)}
    manifest = temporary / "manifest.json"
    manifest.write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1), encoding="utf-8")
    sync_file(manifest)
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
    """Delete what is older than the newest `keep` (but the best), once the new one verifies."""
    if found := damage(newest_place):
        raise OSError(f"{newest_place.name} {found} when read back")
    # Only what is older counts: a later directory is a damaged one that the run went back before.
    older = [path for path in _directories(folder) if _step(path) < _step(newest_place)]
    for path in older[keep - 1 :]:
        if _step(path) != best and _may_be_deleted(path):
            _delete(path)


def _may_be_deleted(path: Path) -> bool:
    """Not one of a newer format, nor one that cannot be read just now: it may be."""
    try:
        return bool(_manifest(path)["format"] <= FORMAT)
    except OSError as error:
        return error.errno in _ABSENT
    except (ValueError, KeyError, TypeError):  # damaged
        return True


def _delete(path: Path) -> None:
    """Renames, then removes: a kill in between leaves nothing that looks like a checkpoint."""
    aside = _set_aside_path(path)
    path.rename(aside)
    fault_point("save:retention")
    shutil.rmtree(aside, ignore_errors=True)


def _set_aside_path(place: Path) -> Path:
    """A fresh hidden name beside a checkpoint's place, on the same file system."""
    return place.with_name(f".{place.name}.tmp-{secrets.token_hex(4)}")


def remove_partial_saves(folder: Path) -> None:
    """Remove what killed saves left behind. Only for who writes here: a reader would take a live save's folder away."""
    for leftover in folder.glob(".step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in WRITTEN_BY_A_RUN:  # not all of them: a benchmark may be writing into the same folder
        remove_leftovers(folder.parent / name)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _directories(folder: Path) -> list[Path]:
    """Newest first.

    Raises:
        MachineError: the folder is there and cannot be read.
    """
    try:
        entries = patiently(lambda: visible(folder, "step_*"))
        found = [path for path in entries if path.name[5:].isdecimal() and path.is_dir()]
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise MachineError(_unreadable(folder, error)) from None
    return sorted(found, key=_step, reverse=True)


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot be read just now ({error.strerror or error}); nothing was changed\n"
        "try again when the file system answers; if one checkpoint never can be read, move it away and the one before is used"
    )


def any_exist(folder: Path) -> bool:
    """Whether a run's folder of checkpoints holds any, damaged or not. (A copy that a user has named step_10.old is none.)"""
    return bool(_directories(folder))


def _is_full(error: Exception) -> bool:
    """Whether the disk, the quota or the limit of a file's size is reached (safetensors says so in its text only)."""
    return getattr(error, "errno", None) in DISK_IS_FULL or any(
        f"(os error {number})" in str(error) for number in DISK_IS_FULL
    )


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | SafetensorError) else f"{type(error).__name__}: {error}"


def _save_error(folder: Path, full: bool, words: str, needed: int) -> str:
    if not full:
        return f"{folder}: the checkpoint could not be written ({words}); the one before is untouched"
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return (
        f"{folder}: the disk is full or a limit is reached ({words}); this checkpoint needs {needed:,} bytes, {free:,} are free\n"
        "the one before is untouched: make room, then rerun the same command to resume"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(path: Path) -> Any:
    return json.loads(patiently(lambda: (path / "manifest.json").read_text(encoding="utf-8")))


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint's directory, or None if every file is as its manifest says.

    Raises:
        CheckpointError: it is of a newer format, of which this version cannot tell.
        MachineError: a file is there and cannot be read, after some tries.
    """
    try:
        manifest = _manifest(path)
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"{path} is of a newer format ({manifest['format']}) than this version reads ({FORMAT}); update swav, or move "
                "it away: it is never deleted or passed over"
            )
        if manifest["step"] != _step(path):
            return f"has the manifest of step {manifest['step']}"
        files = {name: expected for name, expected in manifest["files"].items() if not name.startswith(".")}
        present = {file.name for file in patiently(lambda: visible(path, "*.safetensors"))}
        if unlisted := sorted((present | _ALWAYS) - set(files)):
            return f"holds or lacks {unlisted[0]}, which its manifest does not list"
        for name, expected in files.items():
            file = path / Path(name).name
            if not patiently(lambda file=file, expected=expected: _is_as_listed(file, expected)):  # type: ignore[misc]
                return f"has a damaged {file.name}"
    except OSError as error:
        if error.errno not in _ABSENT:
            raise MachineError(_unreadable(path, error)) from None
        return f"cannot be verified ({type(error).__name__}: {error})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be verified ({type(error).__name__}: {error})"
    return None


def _is_as_listed(file: Path, expected: Mapping[str, Any]) -> bool:
    return bool(file.stat().st_size == expected["size"] and _sha256(file) == expected["sha256"])


def newest(folder: Path, warn: Callable[[str], None] = warn) -> Path | None:
    """The newest directory that verifies; None if there are none at all. Changes nothing: others may be writing here.

    Args:
        folder: of all checkpoints of a run.
        warn: gets a message for every damaged one that is passed over.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies; or one of a newer format comes first.
        MachineError: one that comes first cannot be read. (Then none before it is used: it may be whole.)
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
    """Load a checkpoint after verifying it, whatever the number of processes that wrote it.

    Raises:
        CheckpointError: it is damaged, or of a newer format.
        MachineError: it cannot be read.
    """
    found = damage(path)
    if found:
        raise CheckpointError(f"{path} {found}")
    try:
        writers = len(visible(path, "rank_*.safetensors"))
        return Checkpoint(
            _step(path),
            load_file(path / "model.safetensors"),
            load_file(path / "optim.safetensors"),
            [load_file(path / f"rank_{rank}.safetensors") for rank in range(writers)],
            read_state(path),
            path,
        )
    except OSError as error:
        if error.errno not in _ABSENT:
            raise MachineError(_unreadable(path, error)) from None
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's plain state: settings, step and others.

    Raises:
        CheckpointError: it is damaged.
        MachineError: it cannot be read.
    """
    try:
        names = ["state.json"] + [_LATE] * (_LATE in _manifest(path)["files"])
        parts = [json.loads(patiently((path / name).read_text)) for name in names]
    except OSError as error:
        if error.errno not in _ABSENT:
            raise MachineError(_unreadable(path, error)) from None
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return dict(ChainMap(*reversed(parts)))


def amend_state(path: Path, values: Mapping[str, Any]) -> None:
    """Replace values of a saved checkpoint's state, durably. One that is interrupted leaves the checkpoint as it was.

    The manifest decides: until it is replaced, the new file is one that it does not list.

    Raises:
        OSError: it cannot be written; the checkpoint is as it was.
    """
    manifest = _manifest(path)
    late = path / _LATE
    remove_leftovers(late)
    remove_leftovers(path / "manifest.json")
    write_text_durably(late, json.dumps(values, indent=1))
    manifest["files"][_LATE] = {"size": late.stat().st_size, "sha256": _sha256(late)}
    write_text_durably(path / "manifest.json", json.dumps(manifest, indent=1))


class RunLock(FileLock):
    """Keeps a second run out of a run's folder, and removes what a killed one left in it.

    Raises:
        MachineError: another process trains in this folder, or it cannot be written.
    """

    def __init__(self, folder: Path):
        super().__init__(folder / ".lock")

    def __enter__(self) -> "RunLock":
        folder = self.path.parent
        try:
            super().__enter__()
        except BlockingIOError as error:
            raise MachineError(
                f"{folder}: another run is at work here ({error.strerror}); wait for it, stop it, or use another --out"
            ) from None
        except OSError as error:
            raise MachineError(f"{folder}: cannot be written ({error}); choose an --out that can") from None
        remove_partial_saves(folder / CHECKPOINTS)
        return self
