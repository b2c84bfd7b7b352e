"""When a run saves a checkpoint, and what is in it."""

import time

from swav import checkpoint, dist
from swav.errors import MachineError
from swav.files import CHECKPOINTS
from swav.signals import StopRequest
from swav.training import budget
from swav.training.log import Log
from swav.training.monitor import Monitor
from swav.training.resume import state
from swav.training.scoring import Scoring
from swav.training.setup import RunSetup
from swav.training.step import Trainer


class Saver:
    """Saves a run.

    Args:
        step: of the checkpoint that the run continues from; 0 of a fresh one.
        stop: the request to stop, for its message on unsaved steps.

    Attributes:
        saved_at: step of the newest checkpoint; 0 if there is none.
    """

    def __init__(
        self,
        run: RunSetup,
        trainer: Trainer,
        monitor: Monitor,
        scoring: Scoring,
        log: Log,
        stop: StopRequest,
        step: int,
    ):
        self._run, self._trainer, self._monitor, self._scoring = run, trainer, monitor, scoring
        self._log, self._stop = log, stop
        self.saved_at, self._time = step, time.monotonic()

    def is_due(self) -> bool:
        """Whether enough time has passed; for the first process to say."""
        minutes = self._run.recipe.checkpoint_every_minutes
        if self._run.budget is not None:  # what a kill undoes is paid for twice
            minutes = min(minutes, 60 * self._run.budget.hours / 20)
        return minutes > 0 and dist.rank() == 0 and time.monotonic() - self._time > 60 * minutes

    def is_wanted(self, done: int) -> bool:
        """Whether a checkpoint is wanted after so many steps, whatever the time."""
        every = self._run.recipe.checkpoint_every_steps
        by_step = bool(every) and done % every == 0
        return by_step or done == self._run.total_steps or self._scoring.is_best(done)

    def save(self, done: int) -> None:
        """Save everything that the next step reads.

        Raises:
            MachineError: the disk is full or refuses, or the run's folder is gone.
            NumericsError: a weight is not finite; the checkpoint before stays.
        """
        dist.on_rank0(self._log.check_folder)
        best, began = self._scoring.best, budget.now()
        try:
            checkpoint.save(
                self._run.out / CHECKPOINTS,
                done,
                model=self._trainer.network.state_dict(),
                optim=self._trainer.optimizer_tensors(),
                local=self._trainer.local_tensors() | self._monitor.state_dict(),
                state=state(self._run) | self._scoring.state(),
                keep=self._run.recipe.keep_checkpoints,
                best=best[0] if best else None,
            )
        except MachineError:
            dist.on_rank0(self._log.check_folder)  # it went away in the middle
            raise
        self.saved_at, self._time, self._stop.saved = done, time.monotonic(), True
        if self._run.budget is not None:
            self._run.budget.saved(budget.now() - began)
