"""What a benchmark is given and what it returns: the seam between the runner and a protocol."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from swav.data.images import Images
from swav.evaluation.settings import BenchSettings, deviations_of
from swav.feature_store import FeatureStore, FrozenFeatures
from swav.features import EvaluationView, ViewKind, pool_stages, stage_grids
from swav.progress import Progress
from swav.results.units import metric_of
from swav.system import available_cpus
from swav.weights.encoder import Encoder

# Settings that leave every bit of a state as it is, or nearly (another device rounds otherwise); and those that are part of the
# images' fingerprint where they change a pixel.
_BESIDE_THE_STATE = {"workers", "device", "score_every_epochs", "pictures", "white_level", "alpha"}

AnyBench = TypeVar("AnyBench", bound=BenchSettings)


@dataclasses.dataclass(frozen=True)
class Task(Generic[AnyBench]):
    """One benchmark of one set of weights.

    Attributes:
        encoder: frozen, in eval mode, on `device`.
        train, val: labelled, with the same classes; one object where the data set has no split for scoring (protocol own).
        settings: of this benchmark.
        protocol: published, own or smoke.
        device: to compute on.
        out: folder of the results; a benchmark that keeps state does so in a folder of its own below it.
    """

    encoder: Encoder
    train: Images
    val: Images
    settings: AnyBench
    protocol: str
    device: torch.device
    out: Path

    @property
    def workers(self) -> int:
        """One core is left for the backbone; more than eight decode faster than any backbone takes."""
        workers = self.settings.workers
        return min(8, max(1, available_cpus() - 1)) if workers == "auto" else workers

    @property
    def in_folds(self) -> bool:
        """Whether the images that are scored are those to learn from: in folds, each by what the other folds teach."""
        return self.train is self.val

    @property
    def num_classes(self) -> int:
        assert self.train.classes is not None
        return len(self.train.classes)

    def deviations(self, trained: int, scored: int, *more: str) -> str:
        """Describe what sets a result apart from the published ones; empty where nothing does.

        Args:
            trained, scored: images that took part (unreadable ones do not).
            more: what only the benchmark knows.
        """
        published = self.settings.published
        found = {"training images": trained, "scored images": scored, "classes": self.num_classes}
        sizes = [
            f"{found[key]:,} {key} instead of {count:,}" for key, count in published.items() if found[key] != count
        ]
        protocol = [] if self.protocol == "published" else [f"protocol {self.protocol}"]
        return "; ".join([*protocol, *sizes, *deviations_of(self.settings), *more])

    def one_image(self) -> Tensor:
        """An image of the size that is asked for, where the network is: of a dry run not yet where it will compute."""
        where = next(self.encoder.parameters()).device
        return torch.zeros(1, self.encoder.in_channels, self.settings.size, self.settings.size, device=where)

    def stage_maps(self) -> list[Tensor]:
        """The maps of one image, for their sizes."""
        with torch.no_grad():
            return self.encoder.stages(self.one_image())

    def stage_values(self) -> list[int]:
        """How many values each stage of a view is pooled to."""
        grids = stage_grids(self.encoder.stage_channels)
        return [part.shape[1] for part in pool_stages(self.stage_maps(), grids)]

    def identity(self, *more: Any) -> tuple[dict[str, Any], str]:
        """What a state or a log of this task is of, and a name made of it: other weights, images, labels or settings have
        another.

        Args:
            more: what only the benchmark knows.
        """
        of = {
            "weights": self.encoder.sha256,
            "network": self.encoder.architecture,
            "normalisation": [self.encoder.mean, self.encoder.std],
            "train": self.train.content_fingerprint,
            "score": self.val.content_fingerprint,
            "labels": [self.train.labels_fingerprint, self.val.labels_fingerprint],
            "settings": self.settings.model_dump(mode="json", exclude=_BESIDE_THE_STATE),
            "more": more,
        }
        if (
            self.protocol == "own" and self.train.groups is not None
        ):  # elsewhere groups make no difference, but in what is drawn
            of["groups"] = [self.train.groups_fingerprint, self.val.groups_fingerprint]
        return of, hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]

    def features(
        self, label: str, *, stages: bool, pooled: bool, view: ViewKind = "centre"
    ) -> tuple[FrozenFeatures, FrozenFeatures]:
        """Return features of both splits, kept in `out`: for benchmarks that augment nothing.

        Args:
            label: of the progress.
            stages, pooled: as for FeatureStore.get, with its errors.
            view: kind of it.
        """
        splits = [self.train] if self.in_folds else [self.train, self.val]
        with Progress(label, sum(map(len, splits))) as progress:
            found = [
                FeatureStore(
                    self.encoder,
                    images,
                    EvaluationView(view, self.settings.size),
                    out=self.out,
                    device=self.device,
                    workers=self.workers,
                    precision=self.settings.precision,
                ).get(stages=stages, pooled=pooled, progress=progress)
                for images in splits
            ]
        return found[0], found[-1]


@dataclasses.dataclass(frozen=True)
class ResourceEstimate:
    """What a benchmark takes, in units that a short probe turns into time.

    Attributes:
        forwards: images through the frozen backbone, reading and cropping included.
        trained: images through the backbone and back.
        solving: seconds of two cores beside that, as measured on our machine (benchmarks/results).
        memory: bytes, beside the network's.
        disk: bytes below OUT.
    """

    forwards: int
    trained: int = 0
    solving: float = 0.0
    memory: int = 0
    disk: int = 0


@dataclasses.dataclass(frozen=True)
class Score:
    """One number, named by its metric and what it is of.

    Attributes:
        metric: its name, as in `top-1 k=20`.
        value: in the metric's unit.
        n: images scored.
        deviations: as Task.deviations gives them.
        log: path below `Task.out` of what was written on the way, or None.
        spread: sample standard deviation of the value over parts of the training images, in its unit; None where not measured.
        interval: 95 % interval of the value over the scored images, in its unit; None where not computed.
    """

    metric: str
    value: float
    n: int
    deviations: str
    log: str | None = None
    spread: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        """Of the metric.

        Raises:
            ValueError: swav.results.units.METRICS does not have it.
        """
        return metric_of(self.metric).unit


@dataclasses.dataclass(frozen=True)
class NoScore:
    """A number that the data do not allow, though others of the same benchmark are there.

    Attributes:
        metric: its name.
        reason, expected: why, and what it would take.
    """

    metric: str
    reason: str
    expected: str


@runtime_checkable
class ProtocolModule(Protocol):
    """The module of a protocol; swav/evaluation/catalog.py names it."""

    def check(self, task: Task[Any]) -> None:
        """Validate settings and data before any computation.

        Raises:
            ConfigError, DataError: with what to do.
        """
        ...

    def run(self, task: Task[Any]) -> Sequence[Score | NoScore]:
        """Return the scores."""
        ...

    def estimate_resources(self, task: Task[Any]) -> ResourceEstimate:
        """Estimate time, memory and disk."""
        ...


def subsample(images: Images, count: int, seed: int) -> Images:
    """`count` images drawn at random, in their order; all of them where count is 0 or not below their number."""
    if not 0 < count < len(images):
        return images
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return images.select(chosen, f"{count} drawn (seed {seed}) of {images.note}")
