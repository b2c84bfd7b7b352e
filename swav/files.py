"""Durable files and locks between processes. No torch here.

A file system may lack what is asked for (CIFS and exFAT: syncing a folder; Lustre, some FUSE mounts: locks). Then the work
continues without it, and a warning says once what is not protected.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from swav.output import say
from swav.signals import stop_if_asked

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
RETRY_SECONDS = 0.1
REMINDER_SECONDS = 60.0

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


def write_text_durably(path: Path, text: str) -> None:
    """Replace a file in one step: the old content or the new is there, never a part, even after a power cut.

    Raises:
        OSError: the file cannot be written; the old one is untouched, and no temporary file is left.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Only for the holder of the lock under which it is written."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink(missing_ok=True)


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


class FileLock(contextlib.AbstractContextManager["FileLock"]):
    """An exclusive lock between processes, which ends with its process, however that ends.

    A POSIX record lock: forked loader workers do not inherit it. It does not exclude threads of one process, and one process
    must not open the lock file in another way. The file holds the owner's process and host, for people only.

    A process that waits for a lock must hold no other that is waited for: so no two can wait for each other.

    Args:
        path: of the lock file; its folder is made.
        waiting_for: what the owner does, for the message of who waits, as "the features in OUT"; None: do not wait.
        say: prints that message.

    Raises:
        BlockingIOError: another process holds the lock, and `waiting_for` is None; its text names the owner.
        OSError: the lock file cannot be made.
        RuntimeError: a lock that is waited for is asked for while this process holds one (a fault of the caller).
    """

    def __init__(self, path: Path, waiting_for: str | None = None, say: Callable[[str], None] = warn):
        self.path, self.waiting_for, self.say = path, waiting_for, say
        self._file: IO[str] | None = None

    def __enter__(self) -> "FileLock":
        if self.waiting_for is not None and _waited_for:
            raise RuntimeError(f"{self.path}: this process already holds {', '.join(map(str, _waited_for))}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8", errors="replace")
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
