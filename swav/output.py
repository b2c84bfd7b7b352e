"""Output that cannot end the work: a terminal may be closed, a pipe have no reader, a device be full."""

import contextlib
import io
import os
import select
import stat
import sys
from pathlib import Path
from typing import Any

from swav.errors import MachineError, printable_lines

PATIENCE_SECONDS = 10.0  # for who reads messages slowly; who has stopped (Ctrl-S, a pager) must not stop the work


class TolerantFile(io.RawIOBase):
    """The raw end of an output stream: what cannot be written is dropped, and nobody above learns of it.

    At this depth it holds for `print`, for rich, for `stream.buffer` and for the flush at the interpreter's end alike.

    Args:
        descriptor: not closed with this object.
        messages: what is written is for people only, and is dropped where nobody reads it for some seconds. Else it is
            what the command was asked for: a slow reader is waited for.
    """

    def __init__(self, descriptor: int, messages: bool):
        super().__init__()
        self.descriptor = descriptor
        self.problem: OSError | None = None  # the last one in writing
        self._drops = messages and not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._patience = PATIENCE_SECONDS

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and (not self._drops or self._ready(self._patience)):
                try:
                    rest = rest[os.write(self.descriptor, rest[: select.PIPE_BUF] if self._drops else rest) :]
                except BlockingIOError:  # another program has set this for all that share the pipe
                    self._ready(None)
        except OSError as error:
            self.problem = error
        return size

    def _ready(self, seconds: float | None) -> bool:
        """Wait until something can be written. After a wait in vain the next one is short: who has stopped reading stays so."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        ready = bool(poll.poll(None if seconds is None else 1000 * seconds))
        self._patience = PATIENCE_SECONDS if ready else 0.0
        return ready


def tolerant(stream: Any, messages: bool = True) -> Any:
    """Return a stream to the same descriptor on which printing never fails; the same stream where it has no descriptor.

    Args:
        messages: see TolerantFile.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # one that a test or a notebook has put there
        return stream
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    raw = TolerantFile(descriptor, messages)
    at_once = bool(getattr(stream, "write_through", False))  # python -u
    # TextIOWrapper writes to a raw file as well as to a buffer, which python -u relies on too.
    buffer: Any = raw if at_once else io.BufferedWriter(raw)
    lines = bool(getattr(stream, "line_buffering", False))
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=lines, write_through=at_once)


def protect_output() -> None:
    """Make this process's standard streams ones on which printing never fails, and open those that are closed.

    A descriptor 0, 1 or 2 that is closed (`2>&-`) would be given to the next file that is opened, a checkpoint perhaps,
    and what libraries print would land in it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, open(os.devnull, "w") if stream is None else tolerant(stream, name == "stderr"))  # noqa: PTH123, SIM115


def print_path(path: Path) -> None:
    """Print on stdout, made safe as by `deliver`, where the work that is done lies. That nobody can read it is no failure of the work."""
    with contextlib.suppress(OSError, ValueError):
        print(_shown(str(path), sys.stdout), flush=True)


def deliver(text: str) -> None:
    """Print on stdout what the command was asked for. A reader that has left (`| head`) has had enough.

    Names and paths in it may be anyone's: what would steer the terminal, or what it cannot show, is printed as its code.

    Raises:
        MachineError: it could not be written, as on a full disk.
    """
    print(_shown(text, sys.stdout), flush=True)
    buffer = getattr(sys.stdout, "buffer", None)
    problem = getattr(getattr(buffer, "raw", buffer), "problem", None)
    if problem is not None and not isinstance(problem, BrokenPipeError):
        raise MachineError(f"the output could not be written ({problem.strerror}); write it to another place")


def say(text: str) -> None:
    """Print a line on stderr, made safe as by `deliver`. A terminal that is gone or full stops nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(_shown(text, sys.stderr), file=sys.stderr, flush=True)


def _shown(text: str, stream: Any) -> str:
    """The text without control characters, in characters that the stream has."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return printable_lines(text).encode(encoding, "backslashreplace").decode(encoding)
