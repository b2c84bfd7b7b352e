"""What frozen weights are worth on a labelled set, in seconds: kNN, and a linear layer on every stage.

The image's centre at the network's own size goes through the network once; the maps of each stage are averaged. kNN: k=20, cosine,
weights exp(cosine / .07), on the last stage. Linear: multinomial logistic regression on standardised features; of five costs the one
that is best on a fifth of the training images, which the layer is then trained on too. Nothing is chosen by the scored images.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from swav.data.augment.crops import to_input
from swav.data.images import Images
from swav.evaluation.logistic import SEARCH_TOLERANCE, fit
from swav.evaluation.own import folds_of
from swav.features import EvaluationView, read_views
from swav.metrics import knn_vote, top_k_accuracy
from swav.weights.encoder import Encoder

K = 20
COSTS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Scores(NamedTuple):
    """Of one set of weights [%].

    Attributes:
        knn: top-1 of the kNN vote.
        linear: top-1 of a linear layer on each stage that was asked for, the last stage last.
    """

    knn: float
    linear: list[float]

    @property
    def last(self) -> float:
        return self.linear[-1]

    @property
    def best(self) -> float:
        return max(self.linear)


def score(encoder: Encoder, train: Images, val: Images, all_stages: bool = True) -> Scores:
    """Score weights on images with one label each.

    Args:
        train, val: what is learned from, and what is scored.
        all_stages: a linear layer on each stage, not on the last one alone.
    """
    device = next(encoder.parameters()).device
    (known, labels), (queries, truth) = (_features(encoder, images, device) for images in (train, val))
    classes = len(train.classes or [])
    k = min(K, len(labels))
    bank, votes, asked = torch.from_numpy(known[-1]), torch.from_numpy(labels), torch.from_numpy(queries[-1])
    ranked = knn_vote(bank, votes, asked, [k], classes, 0.07)
    knn = top_k_accuracy(ranked[k], torch.from_numpy(truth), 1)
    stages = range(len(known)) if all_stages else [len(known) - 1]
    return Scores(knn, [_linear(known[i], labels, queries[i], truth) for i in stages])


def _features(
    encoder: Encoder, images: Images, device: torch.device
) -> tuple[list[NDArray[np.float32]], NDArray[np.int64]]:
    """Average of every stage's maps, of all readable images, and their labels."""
    assert images.labels is not None
    parts: list[list[torch.Tensor]] = []
    kept: list[int] = []
    for views, places in read_views(images, EvaluationView("centre", encoder.size), 128, workers=0):
        with torch.inference_mode():
            pixels = to_input(torch.from_numpy(views).to(device), encoder.mean, encoder.std, encoder.in_channels)
            parts.append([maps.mean((2, 3)).float().cpu() for maps in encoder.stages(pixels)])
        kept += places
    return [torch.cat(part).numpy() for part in zip(*parts, strict=True)], images.labels[kept]


def _linear(
    known: NDArray[np.float32], labels: NDArray[np.int64], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> float:
    held = folds_of(labels, seed=0) == 0
    layers = fit(known[~held], labels[~held], COSTS, SEARCH_TOLERANCE)
    right = [(layer.ranked(known[held])[:, 0] == labels[held]).mean() for layer in layers]
    (layer,) = fit(known, labels, [COSTS[int(np.argmax(right))]])
    return 100 * float((layer.ranked(queries)[:, 0] == truth).mean())
