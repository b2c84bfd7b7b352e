"""Frozen features with the labels and names that belong to them, for tests."""

from typing import NamedTuple

import torch
from torch import Tensor

from swav.data.images import Images
from swav.feature_store import FeatureStore
from swav.features import EvaluationView, Precision
from swav.progress import Progress
from swav.weights.encoder import Encoder


class Frozen(NamedTuple):
    """Rows agree: features, labels (-1 where there are none) and names of the readable images."""

    features: Tensor
    labels: Tensor
    names: list[str]


def pooled_features(
    encoder: Encoder,
    images: Images,
    size: int,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    precision: Precision = "fp32",
) -> Frozen:
    """Pooled features on the CPU, kept in memory."""
    store = FeatureStore(
        encoder,
        images,
        EvaluationView("centre", size),
        out=None,
        device=torch.device("cpu"),
        workers=workers,
        precision=precision,
    )
    found = store.get(progress=progress)
    assert found.pooled is not None
    labels = torch.full((len(images),), -1) if images.labels is None else torch.from_numpy(images.labels)
    return Frozen(found.pooled, labels[found.kept], [images.name(i) for i in found.kept])
