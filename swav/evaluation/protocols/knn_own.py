"""kNN under protocol own: the vote of `knn`, on a data set of one's own.

Data        labelled. With a split for scoring (val/, test/): the bank is train, the queries are the other split. Without: five
            stratified folds of all images; the queries are each fold in turn, the bank is the other four.
Transform   short side to 256/224 of the size, centre crop of the size: the network's own (224 of a ResNet for ImageNet).
Layer       global average of the last stage, scaled to unit length.
Vote        that of `knn`: the k nearest by cosine, weight exp(cosine / T), T = .07.
Metric      top-1 and, of more than five classes, top-5 [%], k = 1, 5, 10, 20, 100, 200, as far as every bank has room for them (that
            of the smallest part, see below).
Uncertainty spread: standard deviation (over n - 1) of five values, of banks that each lack one of five folds of train, or of the
            folds. Interval: Wilson's, 95 %, over the scored images.
Seeds       none: folds are those of seed 0.
Source      ours; the vote is that of `knn`.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from swav.errors import DataError
from swav.evaluation import own
from swav.evaluation.settings import KnnOwnSettings
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.metrics import knn_vote


@dataclasses.dataclass(frozen=True)
class Bank:
    """Features that vote for their labels."""

    features: Float32[np.ndarray, "N F"]
    labels: Int64[np.ndarray, " N"]
    ks: list[int]
    num_classes: int
    temperature: float
    device: torch.device

    def ranked(self, features: Float32[np.ndarray, "M F"]) -> own.Ranked:
        """Classes by the vote of each k."""
        bank, labels, queries = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            for array in (self.features, self.labels, features)
        )
        votes = knn_vote(bank, labels, queries, self.ks, self.num_classes, self.temperature)
        return {f" k={k}": classes.cpu().numpy() for k, classes in votes.items()}

    def described(self) -> dict[str, Any]:
        """Its size."""
        return {"bank": len(self.labels)}


def check(task: Task[KnnOwnSettings]) -> None:
    """Validate settings and labels before any computation.

    Raises:
        ConfigError: images to score are to be drawn where all are scored.
        DataError: every k is larger than the smallest bank, or too few images of too few classes.
    """
    own.check(task)
    _usable(task.settings.k, len(task.train))


def estimate_resources(task: Task[KnnOwnSettings]) -> ResourceEstimate:
    """Estimate resources. The vote took 9.6 s of 100,000 x 5,000 x 2,048 (benchmarks/results/knn.md); here it is made six times,
    or of folds once."""
    images = len(task.train) if task.in_folds else len(task.train) + len(task.val)
    width, times = task.encoder.num_features, 1 if task.in_folds else 1 + own.FOLDS
    vote = 9.6 * times * len(task.train) * len(task.val) * width / (100_000 * 5_000 * 2_048)
    return ResourceEstimate(images, solving=vote, memory=2 * 4 * width * images, disk=4 * width * images)


def run(task: Task[KnnOwnSettings]) -> list[Score]:
    """Scores one encoder; a row per k and metric.

    Raises:
        DataError: every k is larger than the smallest bank, or no image of a split can be read, or too few of them.
    """
    check(task)  # an error must not wait for the features
    settings, data = task.settings, own.labelled_features(task, "knn")
    ks = _usable(settings.k, len(data.labels))

    def learn(features: Float32[np.ndarray, "N F"], labels: Int64[np.ndarray, " N"], *_: object) -> Bank:
        return Bank(features, labels, ks, task.num_classes, settings.temperature, task.device)

    dropped = sorted(set(settings.k) - set(ks))
    left_out = [f"no k={dropped}, more than the smallest bank"] if dropped else []
    return own.scores(task, "knn", data, learn, *left_out)


def _usable(ks: tuple[int, ...], images: int) -> list[int]:
    """The k that every bank has room for."""
    most = own.smallest_part(images)
    usable = [k for k in ks if k <= most]
    if not usable:
        raise DataError(
            f"knn.k: expected at most {most} (four fifths of the images to learn from), found {min(ks)}; use knn.k={[most]}"
        )
    return usable
