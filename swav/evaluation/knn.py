"""kNN: what a frozen trunk's features are worth without any training.

Data        ImageNet-1k, labelled: the bank is train (1,281,167), the queries are val (50,000). Any labelled set will do.
Transform   short side to 256/224 of the size, centre crop of the size; both for bank and queries. No augmentation.
Layer       global average of the last stage, scaled to unit length.
Vote        the k nearest by cosine, exactly; each votes for its class with weight exp(cosine / T), T = .07.
Metric      top-1 and top-5 [%], k = 10, 20, 100, 200. A class without a vote is no prediction.
Seeds       none: nothing is drawn.
Source      target page: 60.5 60.6 59.0 57.6 (SwAV ResNet-50, 200 epochs, batch 256). MMSelfSup 0.x knn_imagenet.py and
            test_knn.py, from DINO's eval_knn.py.
Where we differ: any number of queries and classes; Pillow's antialiased bilinear resizing as in MMSelfSup 0.x (1.x: cv2).
Smoke       size 112, at most 5,000 + 1,000 images; a k above the bank is left out instead of refused.
"""

import torch

from swav.errors import ConfigError
from swav.evaluation.settings import KnnSettings
from swav.evaluation.task import Score, Task
from swav.feature_cache import cached_features
from swav.features import Features
from swav.metrics import knn_vote, top_k_accuracy
from swav.runtime import Progress


def check(task: Task[KnnSettings]) -> None:
    """Complains of what can be known without any work.

    Raises:
        ConfigError: a k is larger than the bank.
    """
    _usable(task.settings.k, len(task.train), task.protocol)


def run(task: Task[KnnSettings]) -> list[Score]:
    """Scores one encoder; a row per k and metric.

    Raises:
        ConfigError: a k is larger than the bank.
        DataError: no image of a half can be read.
    """
    check(task)  # a complaint must not wait for the features
    with Progress("knn: features", len(task.train) + len(task.score)) as progress:
        bank, queries = _features(task, progress)
    device, settings = task.device, task.settings
    ks = _usable(settings.k, len(bank.labels), task.protocol)
    on_device = (bank.features.to(device), bank.labels.to(device), queries.features.to(device))
    ranked = knn_vote(*on_device, ks, task.num_classes, settings.temperature)
    dropped = sorted(set(settings.k) - set(ks))
    difference = task.difference(
        len(bank.labels), len(queries.labels), *([f"no k={dropped}, more than the bank"] if dropped else [])
    )
    return [
        Score(
            f"top-{rank} k={k}",
            top_k_accuracy(ranked[k].cpu(), queries.labels, rank),
            len(queries.labels),
            _with_unpublished_k(k, difference),
        )
        for k in ks
        for rank in (1, 5)
    ]


def _features(task: Task[KnnSettings], progress: Progress) -> tuple[Features, Features]:
    """Of bank and queries; they stay on disk, so that an interrupted pass over ImageNet goes on."""
    halves = []
    for images in (task.train, task.score):
        found = cached_features(
            task.encoder,
            images,
            task.settings.size,
            out=task.out,
            stages=False,
            pooled=True,
            workers=task.workers,
            device=task.device,
            progress=progress,
            precision=task.settings.precision,
        )
        assert found.pooled is not None and images.labels is not None
        labels = torch.from_numpy(images.labels[found.kept])
        halves.append(Features(found.pooled, labels, [images.name(i) for i in found.kept]))
    return halves[0], halves[1]


def _usable(ks: tuple[int, ...], bank: int, protocol: str) -> list[int]:
    """The k that the bank has room for; protocol page insists on all of them."""
    usable = [k for k in ks if k <= bank]
    if len(usable) < len(ks) and protocol == "page":
        raise ConfigError(
            f"knn.k: expected at most {bank} (the images of the bank), found {max(ks)}; use knn.k={usable or [bank]}"
        )
    return usable or [bank]


def _with_unpublished_k(k: int, difference: str) -> str:
    published = KnnSettings().k
    own = "" if k in published else f"k={k}, published for k={list(published)}"
    return "; ".join(part for part in (own, difference) if part)
