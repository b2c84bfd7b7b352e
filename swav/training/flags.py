"""What a step found on any process: whether to end, to save, or that its loss was not finite; read one step late on a GPU."""

from typing import NamedTuple

from torch import Tensor

from swav.system import Readback
from swav.training.monitor import STEP_VALUES


class Flags(NamedTuple):
    """What all processes know after a step.

    Attributes:
        step: 0-based.
        values: of STEP_VALUES, means over all processes.
        not_finite: the loss or a gradient was not, and nothing was changed by the step.
        too_many_unreadable: a process met more unreadable images than are allowed.
        save_due: the first process wants a checkpoint.
        stop_code: exit code that a signal asks for; 0: none.
    """

    step: int
    values: list[float]
    not_finite: bool
    too_many_unreadable: bool
    save_due: bool
    stop_code: int


class FlagReader:
    """Reads the flags of steps; on a GPU, which is a step ahead of the host, when the next step is on its way.

    Args:
        late: the steps are made on a GPU.
    """

    def __init__(self, late: bool):
        self._late = late
        self._last: tuple[int, Readback] | None = None

    def add(self, step: int, values: Tensor) -> Flags | None:
        """Take what a step returned; return the flags that can be read without waiting: of this step, or of the one before."""
        before, self._last = self._last, (step, Readback(values))
        ready = before if self._late else self._last
        return None if ready is None else _flags(*ready)

    def last(self) -> Flags:
        """Return the flags of the last step, at once."""
        assert self._last is not None
        return _flags(*self._last)


def _flags(step: int, values: Readback) -> Flags:
    found = values.tolist()
    not_finite, too_many, due, asked = found[len(STEP_VALUES) :]
    return Flags(step, found[: len(STEP_VALUES)], bool(not_finite), bool(too_many), bool(due), round(asked))
