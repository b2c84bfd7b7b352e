"""Durable files and locks between processes. No torch here.

A file system may lack what is asked for (CIFS and exFAT: syncing a folder; Lustre, some FUSE mounts: locks). Then the work
continues without it, and a warning says once what is not protected.
"""

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from swav.errors import ConfigError, MachineError, Stopped, SwavError
from swav.output import say
from swav.signals import stop_if_asked

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
RETRY_SECONDS = 0.1
REMINDER_SECONDS = 60.0
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # what a network file system reports while its server is away
PAUSES_SECONDS = (0.1, 0.5, 2.0)  # between the tries of `patiently`
# Names in a run's folder. One that holds the first two is a run's; both are made before step 1.
CONFIG, CHECKPOINTS = "config.yaml", "checkpoints"
PREDICTIONS = "predictions.webp"  # of a benchmark that is drawn, beside its log
METRICS, BAD_FILES, IMAGE_LIST, PLAN = "metrics.jsonl", "bad_files.jsonl", "images.npz", "plan.jsonl"
REPORT, REPORT_PARTS = "report.html", "report"

Result = TypeVar("Result")

_warned: set[str] = set()
_waited_for: set[Path] = set()  # locks of this process that others wait for


def warn(message: str) -> None:
    """Print a warning on stderr. A terminal that is gone or full stops nothing."""
    say(f"swav: warning: {message}")


def warn_once(message: str) -> None:
    """Print a warning unless this process has printed the same one before."""
    if message not in _warned:
        _warned.add(message)
        warn(message)


@contextlib.contextmanager
def not_essential(what: str) -> Iterator[None]:
    """Make any failure to write something that a run can do without a warning: a report, a picture, TensorBoard.

    Raises:
        Stopped: a signal asked for an end meanwhile.
    """
    try:
        yield
    except Stopped:
        raise
    except Exception as error:  # libraries of others write some of it, and raise what they like
        warn_once(f"{what} could not be written ({type(error).__name__}: {error}); the run is not affected")


def expand_home(path: str | Path) -> str:
    """A path in which a leading ~ is the user's home, or ~NAME another's. One of an unknown user stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path's raises


def out_folder(path: str | Path) -> Path:
    """The folder for what is written, as --out names it; ~ is the user's home.

    Raises:
        ConfigError: its name is no UTF-8, in which settings, results and reports are written, and it holds no run yet.
    """
    folder = Path(expand_home(path))
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        if is_run(folder):
            return folder
        raise ConfigError(
            f"--out {ascii(str(folder))[1:-1]}: expected a name in UTF-8, as settings and reports hold it, found other bytes; use another"
        ) from None
    return folder


def refuse_inside(out: Path, data: str | Path, resumes: bool) -> None:
    """Refuse a new folder for results inside the data: what is written there would be among the images of the next command.

    Args:
        resumes: whether there is something in `out` already that is resumed or added to.

    Raises:
        ConfigError: with the name of a folder beside the data.
    """
    given = Path(expand_home(data))
    place, root = Path(os.path.realpath(out)), Path(os.path.realpath(given))
    if resumes or not root.is_dir() or not place.is_relative_to(root):
        return
    below = "-".join(place.relative_to(root).parts) or "out"
    start = (
        given.parent / f"{given.name}-{below}" if given.name not in ("", "..") else root.parent / f"{root.name}-{below}"
    )
    names = [start, *(start.with_name(f"{start.name}-{number}") for number in range(2, 100))]
    beside = next((name for name in names if not os.path.lexists(name)), start)
    raise ConfigError(
        f"--out {out}: expected a folder outside of the images in {given}, found one inside; use --out {beside}"
    )


def check_writable(folder: Path) -> None:
    """Find out whether files can be written in a folder, which need not be there yet. Leaves nothing behind.

    Raises:
        MachineError: they cannot, as where a file is in the way.
    """
    place = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    try:
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=place):
            pass
    except OSError as error:
        if error.errno in DISK_IS_FULL:  # there may be room for what is wanted; who writes it says so
            return
        raise MachineError(
            f"{folder}: cannot be written ({place}: {error.strerror}); choose an --out that can"
        ) from None


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """Entries of a folder whose names match a pattern and begin with no dot, in order.

    Names with a dot belong to the system or an editor: macOS puts a `._x` beside every x on a disk of another kind.

    Raises:
        OSError: the folder is missing or cannot be read. (Path.glob would take one without permission for an empty one.)
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.match(pattern))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a pre-training run."""
    return (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir()


def patiently(work: Callable[[], Result], pauses: Sequence[float] = PAUSES_SECONDS) -> Result:
    """Do some reading, and after a pause again where the file system reports an error that often passes.

    Args:
        pauses: seconds, between the tries.

    Raises:
        OSError: of the last try, or one that does not pass.
    """
    for pause in pauses:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause)
    return work()


@contextlib.contextmanager
def replaced_durably(path: Path) -> Iterator[Path]:
    """Replace a file in one step: the old content or the new is there, never a part, even after a power cut.

    Yields:
        A path beside it, to write to. It takes the file's place at the end, and is removed after an error.

    Raises:
        OSError: the file cannot be written; the old one is untouched, and no temporary file is left.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        sync_file(beside)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_durably(path: Path, text: str) -> None:
    """Replace a text file in one step, see replaced_durably.

    Raises:
        OSError: the file cannot be written; the old one is untouched, and no temporary file is left.
    """
    with replaced_durably(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file of bytes in one step, see replaced_durably.

    Raises:
        OSError: the file cannot be written; the old one is untouched, and no temporary file is left.
    """
    with replaced_durably(path) as beside:
        beside.write_bytes(content)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Only for the holder of the lock under which it is written."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Make a file durable, and give it the permissions of the user's umask. (safetensors writes 0600.)

    Raises:
        OSError: the disk fails.
    """
    mask = os.umask(0)
    os.umask(mask)
    try:
        path.chmod(0o666 & ~mask)
    except PermissionError:  # CIFS, exFAT: permissions are the mount's
        warn_once(f"{path.parent}: this file system keeps its own permissions")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable, where the file system can.

    Raises:
        OSError: the folder is gone, or the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(f"{folder}: this file system cannot sync a folder; after a power cut the newest files may be missing")
    finally:
        os.close(descriptor)


class FolderGuard:
    """Notice that a folder was removed, moved or unmounted while this process works in it.

    Writing on would make a new folder without what was there, or reach no folder at all. From the first check on the folder
    is kept open, so that no new one gets its inode number.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._begun: os.stat_result | None = None

    def check(self) -> None:
        """Compare the folder of this name with the one at the first check.

        Raises:
            MachineError: there is none, or another one.
        """
        try:
            if self._begun is None:
                descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                weakref.finalize(self, os.close, descriptor)
                self._begun = os.fstat(descriptor)
            same = os.path.samestat(self.folder.stat(), self._begun)
        except (FileNotFoundError, NotADirectoryError):
            same = False
        except OSError:  # a network file system that does not answer says nothing of the folder
            return
        if not same:
            raise gone(self.folder)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Where the work inside fails and the folder is gone, that is the reason to give.

        Raises:
            MachineError: see check.
        """
        try:
            yield
        except (OSError, SwavError):
            self.check()
            raise


def gone(folder: Path) -> MachineError:
    """The error of a folder that was there when the work began."""
    return MachineError(
        f"{folder}: was removed or moved during the run (or its disk unmounted); nothing more was written there\n"
        "put it back and rerun the same command to resume from what was saved in it"
    )


def make_below(base: Path, folder: Path) -> None:
    """Make a folder and those above it up to `base`, which must be there: a new one would lack what was in it.

    Raises:
        MachineError: `base` is gone.
        OSError: a folder cannot be made.
        ValueError: `folder` is not below `base`.
    """
    place = base
    try:
        for part in folder.relative_to(base).parts:
            place /= part
            place.mkdir(exist_ok=True)
    except FileNotFoundError:
        if base.is_dir():  # a folder between them was removed just now
            raise
        raise gone(base) from None


class FileLock(contextlib.AbstractContextManager["FileLock"]):
    """An exclusive lock between processes, which ends with its process, however that ends.

    A POSIX record lock: forked loader workers do not inherit it. It does not exclude threads of one process, and one process
    must not open the lock file in another way. The file holds the owner's process and host, for people only.

    A process that waits for a lock must hold no other that is waited for: so no two can wait for each other.

    Args:
        path: of the lock file; its folder is made.
        base: a folder above it that must be there already, see make_below; None: whatever is missing is made.
        waiting_for: what the owner does, for the message of who waits, as "the features in OUT"; None: do not wait.
        say: prints that message.

    Raises:
        BlockingIOError: another process holds the lock, and `waiting_for` is None; its text names the owner.
        MachineError: the lock file of one that is waited for cannot be made.
        OSError: another one's cannot, or the disk is full.
        RuntimeError: a lock that is waited for is asked for while this process holds one (a fault of the caller).
    """

    def __init__(
        self,
        path: Path,
        waiting_for: str | None = None,
        say: Callable[[str], None] = warn,
        base: Path | None = None,
    ):
        self.path, self.waiting_for, self.say, self.base = path, waiting_for, say, base
        self._file: IO[str] | None = None

    def __enter__(self) -> "FileLock":
        if self.waiting_for is not None and _waited_for:
            raise RuntimeError(f"{self.path}: this process already holds {', '.join(map(str, _waited_for))}")
        try:
            if self.base is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            else:
                make_below(self.base, self.path.parent)
            self._file = self.path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            if self.base is not None and isinstance(error, FileNotFoundError) and not self.base.is_dir():
                raise gone(self.base) from None
            if self.waiting_for is None or error.errno in DISK_IS_FULL:
                raise
            raise MachineError(f"{self.path}: cannot be written ({error.strerror}); choose an --out that can") from None
        try:
            self._acquire(self._file)
        except BaseException:
            self._close()
            raise
        if self.waiting_for is not None:
            _waited_for.add(self.path)
        return self

    def _acquire(self, file: IO[str]) -> None:
        told_at: float | None = None
        while not self._try(file):
            if self.waiting_for is None:
                raise BlockingIOError(errno.EAGAIN, self._owner(file), str(self.path))
            if told_at is None or time.monotonic() - told_at > REMINDER_SECONDS:
                self.say(f"waiting for {self._owner(file)}, which holds {self.waiting_for}")
                told_at = time.monotonic()
            time.sleep(RETRY_SECONDS)
            stop_if_asked()
        with contextlib.suppress(OSError):  # for people only: a full disk is no reason to stop
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()

    def _try(self, file: IO[str]) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):  # POSIX allows either
                return False
            if error.errno not in UNSUPPORTED:
                raise
            warn_once(
                f"{self.path.parent}: this file system has no locks; nothing keeps a second process from writing here too"
            )
        return True

    def _owner(self, file: IO[str]) -> str:
        file.seek(0)
        return file.read(200).strip() or "another process"

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written a moment ago is tried again here
                self._file.close()
            self._file = None

    def __exit__(self, *exception: object) -> None:
        _waited_for.discard(self.path)
        self._close()
