"""What a run writes down while it trains: metrics, bad files, and the views as the network saw them."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from swav import dist
from swav.data.loader import Batch
from swav.data.photometric import apply_batched
from swav.features import knn_top1
from swav.monitor import STEP_VALUES, Monitor
from swav.network.encoder import Encoder
from swav.network.heads import SwavNetwork
from swav.optim import learning_rate
from swav.reporting.pictures import write_views
from swav.run import Run
from swav.runtime import memory_gb


class Log:
    """metrics.jsonl (a flushed line each), bad_files.jsonl, and TensorBoard if it is installed."""

    def __init__(self, out: Path):
        self.bad_path = out / "bad_files.jsonl"
        self.bad = self._known_bad()
        self.metrics: IO[str] | None = None  # of the first process only: the others write no metrics
        self.recent: list[dict[str, Any]] = []
        if dist.rank() == 0:
            self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
            text = (out / "metrics.jsonl").read_text(encoding="utf-8")
            self.recent = [json.loads(line) for line in text.splitlines()]
        try:
            from torch.utils.tensorboard import SummaryWriter  # an extra: here only if it is installed
        except ImportError:
            self.board: Any = None
        else:
            self.board = SummaryWriter(str(out / "tensorboard")) if dist.rank() == 0 else None

    def write(self, values: Mapping[str, float]) -> None:
        clean = {
            key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in values.items()
        }
        assert self.metrics is not None
        self.metrics.write(json.dumps(clean) + "\n")
        self.metrics.flush()
        self.recent.append(clean)
        for key, value in clean.items():
            if self.board is not None and value is not None and key not in ("step", "epoch"):
                self.board.add_scalar(key, value, values["step"])

    def _known_bad(self) -> set[str]:
        lines = self.bad_path.read_text(encoding="utf-8").splitlines() if self.bad_path.exists() else []
        return {json.loads(line)["file"] for line in lines if line.endswith("}")}

    def add_bad(self, found: Sequence[tuple[str, str]]) -> int:
        """Lists files not listed yet (other processes write here too); returns how many are listed."""
        new = [(name, reason) for name, reason in found if name not in self.bad]
        if new:
            self.bad |= self._known_bad()
            with self.bad_path.open("a", encoding="utf-8") as file:
                for name, reason in new:
                    if name not in self.bad:
                        file.write(json.dumps({"file": name, "reason": reason}) + "\n")
                        self.bad.add(name)
        return len(self.bad)

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        if self.board is not None:
            self.board.close()


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
    scored = knn_top1(encoder, bank, queries, recipe.resolution, recipe.knn_k, run.device, recipe.workers)
    network.train()
    return scored


def draw_views(batch: Batch, run: Run) -> None:
    """The first images' crops as the network sees them, for the report."""
    shown = min(8, len(batch.indices))
    rows: list[list[Any]] = [[] for _ in range(shown)]

    def first(values: Tensor) -> Tensor:
        return torch.unflatten(values, 0, (-1, len(batch.indices)))[:, :shown].flatten(0, 1)

    for kind, views in enumerate(batch.views):
        views = first(views)
        if batch.params is not None:
            views = apply_batched(views, first(batch.params[kind]), run.recipe)
        for crop in torch.unflatten(views, 0, (-1, shown)):
            for row in range(shown):
                rows[row].append(crop[row].numpy())
    write_views(run.out / "report" / "views.png", rows)
