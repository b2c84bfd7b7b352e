"""What a run writes down while it trains: metrics, bad files, and the views as the network saw them."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swav import dist
from swav.data.augment.photometric import apply_batched
from swav.data.augment.spec import ViewSpec
from swav.data.loader import Batch
from swav.files import BAD_FILES, METRICS, REPORT, REPORT_PARTS, FolderGuard, not_essential, write_text_durably
from swav.jsonl import append, is_bad_file, is_metrics, read_if_possible
from swav.progress import Progress
from swav.reporting.page import report
from swav.reporting.pictures import write_views
from swav.system import memory_gb
from swav.training.monitor import STEP_VALUES, Monitor
from swav.training.optim import learning_rate
from swav.training.setup import RunSetup
from swav.training.step import Trainer
from swav.training.verdict import HealthCheck, verdict


class Log:
    """metrics.jsonl, bad_files.jsonl, and TensorBoard if it is installed. A line that cannot be written ends no run; that the
    folder is another one, or gone, does.

    Attributes:
        recent: lines of metrics.jsonl, those of earlier commands included.
        bad: names of the files that are listed in bad_files.jsonl, or would be if it could be written.
    """

    def __init__(self, out: Path):
        self.metrics_path, self.bad_path = out / METRICS, out / BAD_FILES
        self._guard = FolderGuard(out)
        self.check_folder()
        self.bad = self._known_bad()
        self._earlier, self._again = (
            set(self.bad),
            set[str](),
        )  # of earlier commands, and those of them that still are bad
        self.unlisted: list[tuple[str, str]] = []
        self.recent: list[dict[str, Any]] = read_if_possible(self.metrics_path, is_metrics) if dist.rank() == 0 else []
        self.board: Any = None
        with not_essential(f"{out}/tensorboard"):
            self.board = _tensorboard(out / "tensorboard") if dist.rank() == 0 else None

    def check_folder(self) -> None:
        """On the first process, before it writes.

        Raises:
            MachineError: the run's folder was removed, moved or unmounted.
        """
        if dist.rank() == 0:
            self._guard.check()

    def write(self, values: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl; only the first process does."""
        clean = {
            key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in values.items()
        }
        self.check_folder()
        append(self.metrics_path, clean)
        self.recent.append(clean)
        board, self.board = self.board, None  # not asked again once it has failed
        with not_essential(f"{self.metrics_path.parent}/tensorboard"):
            for key, value in clean.items():
                if board is not None and value is not None and key not in ("step", "epoch"):
                    board.add_scalar(key, value, values["step"])
            self.board = board

    def _known_bad(self) -> set[str]:
        return {line["file"] for line in read_if_possible(self.bad_path, is_bad_file)}

    def add_unreadable(self, found: Sequence[tuple[str, str]]) -> int:
        """List files not listed yet (other processes write here too); return how many this command found unreadable: files
        that an earlier one could not read may be back."""
        new = [(name, reason) for name, reason in found if name not in self.bad]
        if new:
            self.bad |= self._known_bad()
            for name, reason in new:
                if name not in self.bad:
                    self.unlisted.append((name, reason))
                    self.bad.add(name)
        if self.unlisted:
            self.check_folder()
        while self.unlisted and append(self.bad_path, dict(zip(("file", "reason"), self.unlisted[0], strict=True))):
            del self.unlisted[0]
        self._again |= {name for name, _ in found if name in self._earlier}
        return len(self.bad - self._earlier) + len(self._again)

    def close(self) -> None:
        with not_essential(f"{self.metrics_path.parent}/tensorboard"):
            if self.board is not None:
                self.board.close()


def _tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard's files; None if that is not installed (it is an extra)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


class Recorder:
    """Records how steps go: a line of metrics, warnings about the run's health, and the progress line."""

    def __init__(self, run: RunSetup, trainer: Trainer, monitor: Monitor, log: Log, progress: Progress):
        self._run, self._trainer, self._monitor, self._log, self._progress = run, trainer, monitor, log, progress
        self._health = HealthCheck(run.health_facts)
        self._health.catch_up(log.recent)
        self._clock = _Clock()

    def watch(self, done: int, waited: float) -> None:
        """Take note of the step that was just made, the `done`th, for which the training waited so long for its batch [seconds]."""
        self._monitor.watch(self._trainer.embeddings, self._trainer.codes)
        self._clock.tick(waited)
        if not self.is_due(done):  # else `record` says how far the run is
            self._progress.update(done, place=self._epoch(done))

    def is_due(self, done: int) -> bool:
        """Whether a line is due after so many steps; the first process writes it."""
        last = done == self._run.total_steps
        return dist.rank() == 0 and (last or done % self._run.recipe.log_every_steps == 0)

    def record(self, done: int, values: list[float]) -> None:
        """Write a line.

        Args:
            values: of STEP_VALUES.
        """
        scale = self._trainer.scale
        more = {} if scale is None else {"loss_scale": float(scale.value)}
        line = self._line(done, values) | more
        self._log.write(line)
        if (warning := self._health.news(self._log.recent)) is not None:
            self._progress.say(f"step {done}: {warning}")
        self._progress.update(
            done,
            f"loss {line['loss']:.3f}  {line['images_per_second']:.0f} images/s  waiting {line['data_wait']:.0%}  "
            f"{line['memory_gb']:.1f} GB",
            self._epoch(done),
        )

    def _epoch(self, done: int) -> str:
        """The epoch that the last step was of, and how many are planned."""
        per_epoch = self._run.steps_per_epoch
        return f"epoch {-(-done // per_epoch)}/{-(-self._progress.total // per_epoch)}"

    def _line(self, done: int, values: list[float]) -> dict[str, float]:
        """Loss, codes and gradients are means over all processes; the monitor's values are the first's."""
        run = self._run
        named = dict(zip(STEP_VALUES, values, strict=True))
        steps_per_second, waiting = self._clock.read()
        return {
            "step": done,
            "epoch": done / run.steps_per_epoch,
            **named,
            "loss_gap": run.recipe.log_prototypes - named["loss"],
            **self._monitor.summary(),
            "lr": learning_rate(run.recipe, done - 1, run.steps_per_epoch, run.changes),
            "images_per_second": steps_per_second * run.recipe.batch,
            "data_wait": waiting,
            "memory_gb": memory_gb(run.device),
            "seconds": time.monotonic() - self._clock.began,
        }


class LiveReport:
    """The report and the verdict of a run, renewed while it trains at no more than a hundredth of its time.

    Attributes:
        is_there: this command has written them.
    """

    def __init__(self, run: RunSetup, log: Log):
        self._run, self._log = run, log
        self._due = 0.0
        self.is_there = False

    def renew(self, done: int, at_once: bool = False) -> None:
        """Write both as they are after so many steps, unless that was done just before; only the first process does.

        Args:
            at_once: the run ends here.
        """
        began = time.monotonic()
        if dist.rank() > 0 or (began < self._due and not at_once):
            return
        state, advice = verdict(self._log.recent, self._run.health_facts)
        self.write(state, f"so far, at step {done} of {self._run.total_steps}: {advice}")
        self._due = time.monotonic() + 100 * (time.monotonic() - began)

    def write(self, state: str, advice: str) -> Path | None:
        """Write both with this verdict; return the report's path, None where it could not be written."""
        out = self._run.out
        with not_essential(f"{out}/{REPORT_PARTS}/verdict.json"):
            (out / REPORT_PARTS).mkdir(exist_ok=True)
            write_text_durably(out / REPORT_PARTS / "verdict.json", json.dumps({"state": state, "advice": advice}))
        self.is_there = True
        page: Path | None = None
        with not_essential(f"{out}/{REPORT}"):
            page = report(out)
        return page


class _Clock:
    """Time of steps and of waiting for images since the last line of the log."""

    def __init__(self) -> None:
        self.began = self.since = time.monotonic()
        self.steps, self.waited = 0, 0.0

    def tick(self, waited: float) -> None:
        self.steps += 1
        self.waited += waited

    def read(self) -> tuple[float, float]:
        """Return steps per second and share of time spent waiting, since the last reading."""
        elapsed = max(1e-9, time.monotonic() - self.since)
        rates = self.steps / elapsed, min(1.0, self.waited / elapsed)
        self.since, self.steps, self.waited = time.monotonic(), 0, 0.0
        return rates


def draw_views(batch: Batch, spec: ViewSpec, out: Path) -> None:
    """Draw the first images' views as the network sees them, for the report."""
    shown = min(8, len(batch.indices))
    rows: list[list[Any]] = [[] for _ in range(shown)]

    def first(values: Tensor) -> Tensor:
        return torch.unflatten(values, 0, (-1, len(batch.indices)))[:, :shown].flatten(0, 1)

    for kind, views in enumerate(batch.views):
        views = first(views)
        if batch.params is not None:
            views = apply_batched(views, first(batch.params[kind]), spec)
        for crop in torch.unflatten(views, 0, (-1, shown)):
            for row in range(shown):
                rows[row].append(crop[row].numpy())
    write_views(out / REPORT_PARTS / "views.png", rows)
