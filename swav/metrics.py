"""Numbers by which features are judged, each with its source. Tensors in, numbers out; no file, no model."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from swav.errors import ConfigError, DataError
from swav.signals import stop_if_asked

# Queries and rows of the bank compared at a time. Fewer queries leave the processor's matrix units idle (at 16: 2.3 times
# slower than at 256), more only take memory: 134 MB on a CPU, 2 GB on a GPU, for the similarities; and, of 2048 features,
# .5 GB and 1 GB for the rows of the bank, scaled. Beside that, 12 bytes per query and neighbour.
_TILE = {"cpu": (512, 2**16), "cuda": (4096, 2**17)}


@torch.no_grad()
def nearest(
    bank: Float[Tensor, "N F"], queries: Float[Tensor, "M F"], k: int
) -> tuple[Float[Tensor, "M k"], Int64[Tensor, "M k"]]:
    """The k most similar rows of the bank for every query, exactly, most similar first.

    Args:
        bank, queries: features of any length; they are scaled to unit length here.
        k: neighbours; at most N.

    Returns:
        Cosine similarities, and indices into the bank. Of equal similarities any may come first.

    Raises:
        ValueError: features of another shape.
        ConfigError: k is below 1.
        DataError: k is larger than the bank.
    """
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"expected a bank [N, F] and queries [M, F] of one F, found {list(bank.shape)} and {list(queries.shape)}; "
            "give both as encoder(images) returns them: one image is features[None]"
        )
    if not 0 < k <= len(bank):
        kind = DataError if k > len(bank) else ConfigError
        raise kind(f"k: expected 1 to {len(bank)} (the images of the bank), found {k}; use a smaller k")
    rows = torch.nn.functional.normalize(queries, dim=1)
    height, width = _TILE.get(bank.device.type, _TILE["cpu"])
    similarity = rows.new_full((len(rows), k), -math.inf)
    indices = torch.zeros(len(rows), k, dtype=torch.int64, device=rows.device)
    for left in range(0, len(bank), width):  # a bank on disk is read once, and never copied whole
        columns = torch.nn.functional.normalize(bank[left : left + width], dim=1).T
        for top in range(0, len(rows), height):
            stop_if_asked()  # the search of ImageNet's 50,000 images takes minutes on a CPU
            here = slice(top, top + height)
            values, places = _best(rows[here] @ columns, k, left)
            best = torch.cat([similarity[here], values], dim=1).topk(k, dim=1)
            similarity[here] = best.values
            indices[here] = torch.cat([indices[here], places], dim=1).gather(1, best.indices)
    return similarity, indices


def _best(scores: Float[Tensor, "m w"], k: int, first: int) -> tuple[Tensor, Tensor]:
    """The best k of a tile, or all of it, with their places in the bank."""
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    return best.values, best.indices + first


@torch.no_grad()
def knn_vote(
    bank: Float[Tensor, "N F"],
    labels: Int64[Tensor, " N"],
    queries: Float[Tensor, "M F"],
    k: Sequence[int],
    num_classes: int,
    temperature: float = 0.07,
    ranks: int = 5,
) -> dict[int, Int64[Tensor, "M R"]]:
    """Classify by the weighted vote of the k nearest neighbours, for several k from one search.

    A neighbour votes for its class with weight exp(cosine / temperature). A class without a vote is no prediction: its
    place holds -1. (DINO's code fills such places with classes in no particular order, some of which count as right.)

    Args:
        bank, labels: what votes.
        queries: what is classified.
        k: numbers of neighbours.
        num_classes: labels are 0..num_classes - 1.
        temperature: T; small: the nearest neighbour decides alone.
        ranks: how many classes to return, at most num_classes.

    Returns:
        {k: classes [M, R], most voted first}.

    Raises:
        ValueError: features or labels of another shape.
        DataError: a k is larger than the bank.

    Source: Wu et al. 2018 (arXiv 1805.01978), section 3.4, as in DINO's and MMSelfSup's kNN.
    """
    if labels.ndim != 1 or len(labels) != len(bank):
        raise ValueError(
            f"labels: expected a class of each row of the bank [{len(bank)}], found {list(labels.shape)}; "
            "of one-hot rows give labels.argmax(dim=1)"
        )
    similarity, neighbours = nearest(bank, queries, max(k))
    # Relative to the nearest: one factor per query, which changes no order and cannot overflow. In float64, so that the
    # order of summation on a GPU changes no rank.
    weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
    votes_for = labels[neighbours]
    ranked = {}
    for count in k:
        votes = weights.new_zeros(len(queries), num_classes)
        votes.scatter_add_(1, votes_for[:, :count], weights[:, :count])
        top = votes.topk(min(ranks, num_classes), dim=1)
        ranked[count] = top.indices.masked_fill(top.values == 0, -1)
    return ranked


def top_k_accuracy(ranked: Int64[Tensor, "M R"], labels: Int64[Tensor, " M"], k: int) -> float:
    """Share of samples whose label is among the first k classes [%].

    Args:
        ranked: classes, best first; all R are used where k is larger.
        labels: the truth.

    Raises:
        ValueError: classes or labels of another shape, or scores in the place of classes.
    """
    if ranked.ndim != 2 or labels.ndim != 1 or len(ranked) != len(labels) or ranked.is_floating_point():
        raise ValueError(
            f"expected classes [M, R], best first, and labels [M], found {str(ranked.dtype).removeprefix('torch.')} "
            f"{list(ranked.shape)} and {list(labels.shape)}; of scores [M, classes] give scores.topk(k).indices"
        )
    return 100.0 * float((ranked[:, :k] == labels[:, None]).any(dim=1).double().mean())


@torch.no_grad()
def average_precision(scores: Float[Tensor, "N M"], positive: Bool[Tensor, " N"]) -> Float64[Tensor, " M"]:
    """Area under the envelope of precision over recall, of M scorings of the same samples, each 0..1.

    The precision at a recall is the best one at that recall or beyond (VOC 2010 and later, "all-point"; the page's SVM).
    The plain curve's area is scikit-learn's average_precision_score.

    Args:
        scores: the higher, the surer. Of equal scores the sample with the lower index counts as surer.
        positive: the truth; with no positive there is no recall, and the result is NaN.

    Raises:
        ValueError: scores or truth of another shape, or a truth that is not bool.
    """
    if scores.ndim != 2 or positive.ndim != 1 or len(scores) != len(positive) or positive.dtype != torch.bool:
        raise ValueError(
            f"expected scores [N, M] and bool positives [N], found {list(scores.shape)} and "
            f"{str(positive.dtype).removeprefix('torch.')} {list(positive.shape)}; "
            "of one scoring give average_precision(scores[:, None], labels == 1)"
        )
    order = scores.double().argsort(dim=0, descending=True, stable=True)
    hits = positive[order].double()
    precision = hits.cumsum(dim=0) / torch.arange(1, len(hits) + 1, dtype=torch.float64, device=hits.device)[:, None]
    precision = precision.flip(0).cummax(dim=0).values.flip(0)
    return (hits * precision).sum(dim=0) / hits.sum(dim=0)


@torch.no_grad()
def rankme(embeddings: Float[Tensor, "N D"]) -> float:
    """Effective rank: how many directions the embeddings fill, between 1 and min(N, D).

    The exponential of the entropy of the singular values, scaled to sum 1 (plus 1e-7, as published). Singular values
    come from the smaller Gram matrix in float64: ten times faster than an SVD, and 1e-8 of the largest is still seen.

    Returns:
        The effective rank; 0 if all is zero, NaN if something is not finite (a monitor must not stop what it watches).

    Raises:
        ValueError: embeddings of another shape.

    Source: Garrido et al. 2023 (RankMe, arXiv 2210.02885), equation 1.
    """
    if embeddings.ndim != 2:
        raise ValueError(
            f"embeddings: expected [N, D], found {list(embeddings.shape)}; "
            "of several crops give one crop's, or all as embeddings.flatten(0, 1)"
        )
    x = embeddings.double()
    if not torch.isfinite(x).all():
        return math.nan
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    sigma = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not sigma.any():
        return 0.0
    p = sigma / sigma.sum() + 1e-7
    return float((-p * p.log()).sum().exp())
