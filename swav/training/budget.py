"""The time budget of a run (`hours`): how many epochs it makes, planned anew at the end of every epoch and kept on disk.

The speed measured before the first step decides for one epoch only. From then on each plan follows from the pace of the last
epochs and the time that is left, so a machine that was busy at the start costs nothing but that epoch.

Every plan is a line of plan.jsonl, synced before a step is made by it. A resumed run repeats the plans it finds there, so its
weights are those of a run that was never stopped; the clock decides again only at ends of epochs that no command reached
before. Time counts while a command of the run is at work: from its start, with evaluations, checkpoints and report.
"""

import bisect
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav import dist, jsonl
from swav.config import Recipe
from swav.files import PLAN, not_essential, warn, write_text_durably
from swav.system import fault_point
from swav.training.auto import MOST_EPOCHS

_LAST_SHARE = 0.1  # of an epoch: the least in which the learning rate comes down, where the time is up already
_NEAR = 0.01  # of the budget: a plan that ends so near to it stays
_WINDOW = 0.02  # of the budget: the pace is that of the last epochs that took so long together
_NOTE_SECONDS = 60.0  # time spent is noted so often,
_NOTE_SHARE = 0.01  # or after this share of the budget if that is sooner
_REPORT_SECONDS = 1.0  # verdict and report, at a usual pace


def now() -> float:
    """Seconds of a clock that nobody sets. (A test may put another one in its place.)"""
    return time.monotonic()


class Costs(NamedTuple):
    """What the rest of a run takes, as measured so far.

    Attributes:
        epoch: seconds of an epoch's steps, with the checkpoints among them.
        evaluation: seconds of one; 0 without.
        every: epochs between evaluations; the last epoch has one too.
        ending: seconds after the last step, but for an evaluation: checkpoint, export, report.
    """

    epoch: float
    evaluation: float = 0.0
    every: int = 1
    ending: float = 0.0

    def seconds(self, done: int, epochs: int) -> float:
        """Time from the end of epoch `done` to the end of a run of so many epochs."""
        evaluations = epochs // self.every - done // self.every + (epochs % self.every != 0)
        return (epochs - done) * self.epoch + evaluations * self.evaluation + self.ending


def plan_steps(left: float, budget: float, done: int, total: int, steps_per_epoch: int, costs: Costs) -> int:
    """Return how many steps a run is to make in all, so that it ends when its time does.

    Whole epochs, at least one more, whose end is nearest to the budget's; or the plan so far, where that ends near enough.
    Where even one more would end half an epoch late: the steps for which there is time, at least a tenth of an epoch, in
    which the learning rate comes down.

    Args:
        left: seconds of the budget that are left; may be negative.
        budget: seconds in all.
        done: steps made; whole epochs, fewer than `total`.
        total: steps planned so far.
    """
    epochs = done // steps_per_epoch

    def off(count: int) -> float:
        return abs(costs.seconds(epochs, count) - left)

    if total % steps_per_epoch == 0 and off(total // steps_per_epoch) <= _NEAR * budget:
        return total
    if costs.seconds(epochs, epochs + 1) - left > costs.epoch / 2:
        share = (left - costs.ending - costs.evaluation) / costs.epoch
        return done + max(1, round(max(_LAST_SHARE, share) * steps_per_epoch))
    later = bisect.bisect_left(range(MOST_EPOCHS), left, epochs + 1, key=lambda count: costs.seconds(epochs, count))
    return steps_per_epoch * min((max(epochs + 1, later - 1), later), key=off)


class Pace:
    """How long steps and evaluations take, from when they end.

    Args:
        window: seconds that the epochs by which the pace is judged take together, at least.
        evaluation: an evaluation's time in that of an epoch, until one was made.
    """

    def __init__(self, steps_per_epoch: int, window: float, evaluation: float):
        self._steps_per_epoch, self._window, self._evaluation = steps_per_epoch, window, evaluation
        self._epochs = deque[tuple[int, float]]()  # steps and seconds of the last ones
        self._steps, self._seconds = 0, 0.0  # of all of these
        self._mark: tuple[int, float] | None = None

    def made(self, done: int) -> None:
        """Take note of a step. The first of a command is not counted: workers start, memory is taken, kernels are built."""
        if self._mark is None:
            self._mark = done, now()

    def epoch_made(self, done: int) -> None:
        """Take note of an epoch's last step."""
        assert self._mark is not None
        steps, seconds = done - self._mark[0], now() - self._mark[1]
        if steps:
            self._epochs.append((steps, seconds))
            self._steps, self._seconds = self._steps + steps, self._seconds + seconds
            while len(self._epochs) > 1 and self._seconds - self._epochs[0][1] >= self._window:
                steps, seconds = self._epochs.popleft()
                self._steps, self._seconds = self._steps - steps, self._seconds - seconds
        self._mark = done, now()

    def evaluated(self, done: int, made: bool) -> None:
        """Take note that what follows an epoch's last step has ended; whether an evaluation was made."""
        assert self._mark is not None
        if made and (epoch := self.epoch()):
            self._evaluation = (now() - self._mark[1]) / epoch
        self._mark = done, now()

    def epoch(self) -> float | None:
        """Seconds of an epoch at the present pace; None before any was made."""
        return max(1e-6, self._seconds) / self._steps * self._steps_per_epoch if self._steps else None

    def evaluation(self) -> float:
        """Seconds of an evaluation at the present pace."""
        return self._evaluation * (self.epoch() or 0.0)


class Budget:
    """The time of a run, and the plan that keeps to it. The first process's clock decides for all.

    Args:
        hours: the budget.
        epochs: of the first plan.
        began: when this command began, by `now`.
        out: the run's folder, or None where nothing is to be written.
        run: what identifies the run's settings and images.
        reason: of the first plan.
        every: epochs between evaluations; 0: none.
        evaluation: the time of an evaluation in that of an epoch, as guessed.
        lines: of plan.jsonl, by earlier commands.

    Attributes:
        total_steps: of the run, as planned now.
        changes: (step, steps of the whole run) of the plans that took effect and changed it.
    """

    def __init__(
        self,
        hours: float,
        epochs: int,
        steps_per_epoch: int,
        *,
        began: float,
        out: Path | None = None,
        run: str = "",
        reason: str = "",
        every: int = 0,
        evaluation: float = 0.0,
        lines: Sequence[Mapping[str, Any]] = (),
    ):
        self.hours, self._seconds = hours, 3600 * hours
        self._steps_per_epoch, self._began, self._every = steps_per_epoch, began, every
        self._path = out / PLAN if out is not None and dist.rank() == 0 else None
        self.total_steps = epochs * steps_per_epoch
        self.changes: list[tuple[int, int]] = []
        self._first: dict[str, Any] = {"step": 0, "total_steps": self.total_steps, "epochs": epochs}
        self._first |= {"hours": hours, "run": run, "reason": reason}
        self._lines = list(lines)
        self._before = max((line["seconds"] for line in lines), default=0.0)
        self._pace = Pace(steps_per_epoch, _WINDOW * self._seconds, evaluation)
        self._saving = 0.0
        self._noted = 0.0
        self._ends: float | None = None

    @property
    def most_steps(self) -> int:
        """That a plan may come to."""
        return max(MOST_EPOCHS * self._steps_per_epoch, self.total_steps)

    def spent(self) -> float:
        """Seconds that all commands of the run have taken so far, this one included."""
        return self._before + now() - self._began

    def seconds_left(self) -> float:
        """Seconds to the end of the run, as planned."""
        return max(0.0, (self._seconds if self._ends is None else self._ends) - self.spent())

    def begin(self) -> None:
        """Keep the first plan, before the first step of a run that has no checkpoint; or the plans of a command that saved
        nothing, which are repeated."""
        if self._path is not None and not self._lines:
            self._first["seconds"] = self.spent()
            write_text_durably(self._path, "")
            jsonl.append(self._path, self._first, durable=True)
        elif self._path is not None:
            jsonl.repair(self._path, is_plan)
            self._note(0)

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Put the plans in effect by which a checkpoint was made.

        Args:
            state: what the checkpoint says, see `state`.
        """
        self._before = max(self._before, state["seconds"])
        self.changes[:] = [(start, end) for start, end in state["changes"]]
        self.total_steps = self.changes[-1][1] if self.changes else self._first["total_steps"]
        if self._path is None:
            return
        with not_essential(str(self._path)):
            jsonl.repair(self._path, is_plan)
            if first_plan(self._lines) is None:
                warn(f"{self._path}: was lost or damaged; the plans up to step {step} are taken from its checkpoint")
                write_text_durably(self._path, "")
                jsonl.append(self._path, self._first | {"seconds": self._before}, durable=True)
                self._lines = []
            if step < self.total_steps:
                self._note(step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the plans that it was made by."""
        first = {key: value for key, value in self._first.items() if key != "seconds"}
        return {"plan": {"first": first, "changes": list(self.changes), "seconds": self.spent()}}

    def made(self, done: int) -> None:
        """Take note of a step that was made."""
        self._pace.made(done)
        if self.spent() - self._noted > min(_NOTE_SECONDS, _NOTE_SHARE * self._seconds):
            self._note(done)

    def saved(self, seconds: float) -> None:
        """Take note of how long a checkpoint took."""
        self._saving = seconds

    def epoch_made(self, done: int) -> None:
        """Take note of an epoch's last step, before the evaluation that may follow it."""
        self._pace.epoch_made(done)

    def plan(self, done: int) -> str | None:
        """Plan the length of the run anew at the end of an epoch, or repeat what was planned there before.

        Every process calls it, after the evaluation.

        Returns:
            What changed, or None.
        """
        self._pace.evaluated(done, bool(self._every) and done // self._steps_per_epoch % self._every == 0)
        total, self._ends, reason = dist.on_rank0(lambda: self._planned(done))
        if total == self.total_steps:
            return None
        before, self.total_steps = self.total_steps, total
        self.changes.append((done, total))
        return f"{self._epochs(total)} epochs instead of {self._epochs(before)}: {reason}"

    def _planned(self, done: int) -> tuple[int, float | None, str]:
        """Steps of the whole run, the time spent at its end, and a reason; on disk when this returns."""
        epoch = self._pace.epoch()
        costs = None if epoch is None else self._costs(epoch)
        stored = next((line for line in self._lines if line["step"] == done and "total_steps" in line), None)
        if stored is not None and stored["total_steps"] > done:
            total, reason = stored["total_steps"], "as an earlier command planned here"
        elif costs is not None:
            left = self._seconds - self.spent()
            total = plan_steps(left, self._seconds, done, self.total_steps, self._steps_per_epoch, costs)
            reason = f"{costs.epoch:.3g} s an epoch, {max(0.0, left):.0f} s of {self._seconds:.0f} left"
        else:  # a single step since the command began
            total, reason = self.total_steps, "no pace is known yet"
        if stored is None and self._path is not None:
            line = {"step": done, "total_steps": total, "epochs": total / self._steps_per_epoch}
            line |= {"seconds": self.spent(), "reason": reason}
            if not jsonl.append(
                self._path, line, durable=True
            ):  # what is not kept is not done: a resume could not repeat it
                total, reason = self.total_steps, "a new plan could not be written"
            fault_point("plan:written")
        if costs is None:
            return total, None, reason
        whole, rest = divmod(total - done, self._steps_per_epoch)
        epochs = done // self._steps_per_epoch
        seconds = costs.seconds(epochs, epochs + whole + (rest > 0)) - (rest > 0) * costs.epoch
        return total, self.spent() + seconds + rest / self._steps_per_epoch * costs.epoch, reason

    def _costs(self, epoch: float) -> Costs:
        evaluation = self._pace.evaluation() if self._every else 0.0
        return Costs(epoch, evaluation, max(1, self._every), 2 * self._saving + _REPORT_SECONDS)

    def _note(self, step: int) -> None:
        """Keep the time spent, so that a command that is killed has spent it."""
        self._noted = self.spent()
        if self._path is not None:
            jsonl.append(self._path, {"step": step, "seconds": self._noted}, durable=True)

    def _epochs(self, steps: int) -> str:
        return f"{round(steps / self._steps_per_epoch, 2):g}"


def is_plan(line: dict[str, Any]) -> bool:
    """Whether a line is of plan.jsonl: a step, the seconds spent until there, and where it is a plan the steps planned."""
    steps, seconds = [line.get("step"), line.get("total_steps", 1)], line.get("seconds")
    whole = all(type(count) is int and count >= 0 for count in steps)
    return whole and isinstance(seconds, int | float) and math.isfinite(seconds)


def read_plans(out: Path) -> list[dict[str, Any]]:
    """Read the lines that earlier commands of a run left, oldest first."""
    return jsonl.read_if_possible(out / PLAN, is_plan)


def first_plan(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The plan that the run began with, if the lines hold it."""
    first = lines[0] if lines else {}
    whole = first.get("step") == 0 and type(first.get("epochs")) is int and isinstance(first.get("run"), str)
    return first if whole and first["epochs"] > 0 else None


def evaluation_share(recipe: Recipe, images: int, scored: int) -> float:
    """An evaluation's time in that of an epoch, before one was made.

    An evaluation is a forward of one view; a step is worth three forwards of all crops. Decoding is the same.
    """
    pixels = sum(crop.count * crop.size**2 for crop in recipe.crops)
    return scored / images / min(4.0, 3 * pixels / recipe.resolution**2)
