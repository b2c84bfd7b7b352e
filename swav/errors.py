"""What can go wrong, as users meet it: one clear message and one exit code per kind.

A message says what was expected, what was found and what to do, in at most three lines.
"""

import difflib
from collections.abc import Iterable

EXIT_PREEMPTED = 75  # a signal asked us to stop; what was done is saved (EX_TEMPFAIL: please requeue)
EXIT_INTERRUPTED = 130  # Ctrl-C


class SwavError(Exception):
    """Base of every error that a user can mend. `exit_code` is what the command returns.

    `reported_elsewhere`, of several processes: whether another one reports the error. None: they have not agreed on it.
    """

    exit_code = 1
    reported_elsewhere: bool | None = None


class ConfigError(SwavError, ValueError):
    """A setting, a recipe or the command line is wrong."""

    exit_code = 2


class DataError(SwavError):
    """A path is missing, empty, unreadable, or holds too few images."""

    exit_code = 3


class MachineError(SwavError):
    """Disk, memory or device do not allow the work."""

    exit_code = 4


class NumericsError(SwavError):
    """A loss or a gradient is not finite."""

    exit_code = 5


class CheckpointError(SwavError):
    """A checkpoint or a weight file is damaged, foreign or does not fit."""

    exit_code = 6


class Stopped(SwavError):
    """The work was asked to stop, and has saved what was done (or had done nothing: see the exit code)."""

    def __init__(
        self, message: str, exit_code: int = EXIT_PREEMPTED
    ):  # with a default: as it is pickled for other processes
        super().__init__(message)
        self.exit_code = exit_code


class SignalExit(BaseException):
    """A signal ends the command at once, as there is nothing to save. No Exception: no library may take it for a failure."""

    reported_elsewhere: bool | None = None  # as SwavError's

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'epochs'?)`, or an empty string where nothing known is near, or it is the word itself."""
    near = difflib.get_close_matches(word, [each for each in known if each != word], n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def counted(number: float, thing: str) -> str:
    """Format a count with its noun: `1 epoch`, `0 epochs`, `1.5 hours`, `2 processes`."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number if isinstance(number, int) else format(number, 'g')} {thing}{ending}"


def printable(text: str) -> str:
    """The text as it may safely reach a terminal or a log: control characters and undecodable bytes are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def printable_lines(text: str) -> str:
    """As printable, of text that has lines: line ends and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
