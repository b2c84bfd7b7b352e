"""kNN: what a frozen backbone's features are worth without any training.

Data        ImageNet-1k, labelled: the bank is train (1,281,167), the queries are val (50,000). Any labelled set will do.
Transform   short side to 256/224 of the size, centre crop of the size (224); both for bank and queries. No augmentation.
Layer       global average of the last stage, scaled to unit length.
Vote        the k nearest by cosine, exactly; each votes for its class with weight exp(cosine / T), T = .07.
Metric      top-1 and top-5 [%], k = 10, 20, 100, 200. A class without a vote is no prediction.
Seeds       none: nothing is drawn.
Source      MMSelfSup 0.x knn_imagenet.py and test_knn.py, from DINO's eval_knn.py.
Where we differ: any number of queries and classes; Pillow's antialiased bilinear resizing as in MMSelfSup 0.x (1.x: cv2).
Smoke       size 112, at most 5,000 + 1,000 images; a k above the bank is left out instead of refused.
Time        smoke, ResNet-50, Imagenette: 208 s of CPU, 104 s of two cores.
"""

import torch

from swav.errors import DataError
from swav.evaluation.settings import KnnSettings
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.metrics import knn_vote, top_k_accuracy


def check(task: Task[KnnSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        DataError: a k is larger than the bank.
    """
    _usable(task.settings.k, len(task.train), task.protocol)


def estimate_resources(task: Task[KnnSettings]) -> ResourceEstimate:
    """Estimate resources. The vote took 9.6 s of 100,000 x 5,000 x 2,048 (benchmarks/results/knn.md)."""
    bank, queries, width = len(task.train), len(task.val), task.encoder.num_features
    features = 4 * width * (bank + queries)
    vote = 9.6 * bank * queries * width / (100_000 * 5_000 * 2_048)
    return ResourceEstimate(bank + queries, solving=vote, memory=features, disk=features)


def run(task: Task[KnnSettings]) -> list[Score]:
    """Scores one encoder; a row per k and metric.

    Raises:
        DataError: a k is larger than the bank, or no image of a split can be read.
    """
    check(task)  # an error must not wait for the features
    device, settings = task.device, task.settings
    # on disk, so that an interrupted pass over ImageNet can resume
    bank, queries = task.features("knn: features", stages=False, pooled=True)
    assert bank.pooled is not None and queries.pooled is not None
    assert task.train.labels is not None and task.val.labels is not None
    labels = torch.from_numpy(task.train.labels[bank.kept])
    truth = torch.from_numpy(task.val.labels[queries.kept])
    ks = _usable(settings.k, len(labels), task.protocol)
    on_device = (bank.pooled.to(device), labels.to(device), queries.pooled.to(device))
    ranked = knn_vote(*on_device, ks, task.num_classes, settings.temperature)
    dropped = sorted(set(settings.k) - set(ks))
    deviations = task.deviations(len(labels), len(truth), *([f"no k={dropped}, more than the bank"] if dropped else []))
    return [
        Score(
            f"top-{rank} k={k}",
            top_k_accuracy(ranked[k].cpu(), truth, rank),
            len(truth),
            _with_unpublished_k(k, deviations),
        )
        for k in ks
        for rank in (1, 5)
    ]


def _usable(ks: tuple[int, ...], bank: int, protocol: str) -> list[int]:
    """The k that the bank has room for; protocol published insists on all of them."""
    usable = [k for k in ks if k <= bank]
    if len(usable) < len(ks) and protocol == "published":
        raise DataError(
            f"knn.k: expected at most {bank} (the images of the bank), found {max(ks)}; use knn.k={usable or [bank]}"
        )
    return usable or [bank]


def _with_unpublished_k(k: int, deviations: str) -> str:
    published = KnnSettings().k
    own = "" if k in published else f"k={k}, published for k={list(published)}"
    return "; ".join(part for part in (own, deviations) if part)
