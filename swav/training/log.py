"""What a run writes down while it trains: metrics, bad files, and the views as the network saw them."""

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
from swav.data.images import Images
from swav.data.loader import Batch
from swav.feature_store import FeatureStore
from swav.features import EvaluationView
from swav.files import FolderGuard, not_essential
from swav.jsonl import append, is_bad_file, is_metrics, read_if_possible
from swav.metrics import knn_vote, top_k_accuracy
from swav.network.heads import SwavNetwork
from swav.progress import memory_gb
from swav.reporting.pictures import write_views
from swav.training.monitor import STEP_VALUES, Monitor
from swav.training.optim import learning_rate
from swav.training.setup import Run
from swav.weights.encoder import Encoder


class Log:
    """metrics.jsonl, bad_files.jsonl, and TensorBoard if it is installed. A line that cannot be written ends no run; that the
    folder is another one, or gone, does.

    Attributes:
        recent: lines of metrics.jsonl, those of earlier sittings included.
        bad: names of the files that are listed in bad_files.jsonl, or would be if it could be written.
    """

    def __init__(self, out: Path):
        self.metrics_path, self.bad_path = out / "metrics.jsonl", out / "bad_files.jsonl"
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
            EnvironmentError_: the run's folder was removed, moved or unmounted.
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

    def add_bad(self, found: Sequence[tuple[str, str]]) -> int:
        """Lists files not listed yet (other processes write here too); returns how many this command found unreadable: files
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


class Clock:
    """Time of steps and of waiting for images since the last line of the log."""

    def __init__(self) -> None:
        self.began = self.since = time.monotonic()
        self.steps, self.waited = 0, 0.0

    def tick(self, waited: float) -> None:
        self.steps += 1
        self.waited += waited

    def read(self) -> tuple[float, float]:
        """Steps per second and share of time spent waiting, since the last reading."""
        elapsed = max(1e-9, time.monotonic() - self.since)
        rates = self.steps / elapsed, min(1.0, self.waited / elapsed)
        self.since, self.steps, self.waited = time.monotonic(), 0, 0.0
        return rates


def metrics_line(
    run: Run, done: int, values: list[float], monitor: Monitor, clock: Clock, **more: float
) -> dict[str, float]:
    """One line of metrics.jsonl. Loss, codes and gradients are the means over all processes; monitor's are the first's."""
    steps_per_second, waiting = clock.read()
    named = dict(zip(STEP_VALUES, values, strict=False))
    return {
        "step": done,
        "epoch": done / run.steps_per_epoch,
        **named,
        "loss_gap": run.recipe.ln_prototypes - named["loss"],
        **monitor.summary(),
        "lr": learning_rate(run.recipe, done - 1, run.steps_per_epoch),
        "images_per_second": steps_per_second * run.recipe.batch,
        "data_wait": waiting,
        "memory_gb": memory_gb(run.device),
        "seconds": time.monotonic() - clock.began,
        **more,
    }


def score_by_knn(run: Run, network: SwavNetwork) -> tuple[float, int] | None:
    """Top-1 of the kNN vote on frozen features [%] and its k, where labels exist; the network is left in train mode."""
    if run.labelled is None:
        return None
    bank, queries = run.labelled
    recipe = run.recipe
    assert isinstance(recipe.workers, int)
    network.eval()
    encoder = Encoder(network, recipe, str(run.out))
    view = EvaluationView("centre", recipe.resolution)
    scored = knn_top1(encoder, bank, queries, view, recipe.knn_k, run.device, recipe.workers)
    network.train()
    return scored


def knn_top1(
    encoder: Encoder, train: Images, val: Images, view: EvaluationView, k: int, device: torch.device, workers: int
) -> tuple[float, int]:
    """Return the top-1 of the weighted kNN vote [%], the measure of learning during training, and the k that it is of.

    Args:
        train, val: labelled, with the same classes: the bank, and what is scored.
        k: neighbours; of a bank with fewer readable images, all.
    """
    assert train.labels is not None and val.labels is not None and train.classes is not None
    bank, queries = (
        FeatureStore(encoder, images, view, out=None, device=device, workers=workers).get() for images in (train, val)
    )
    assert bank.pooled is not None and queries.pooled is not None
    labels, truth = torch.from_numpy(train.labels)[bank.kept], torch.from_numpy(val.labels)[queries.kept]
    k = min(k, len(labels))
    ranked = knn_vote(
        bank.pooled.to(device), labels.to(device), queries.pooled.to(device), [k], len(train.classes), ranks=1
    )
    return top_k_accuracy(ranked[k].cpu(), truth, 1), k


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
    write_views(out / "report" / "views.png", rows)
