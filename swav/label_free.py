"""Numbers that judge features without labels. Tensors in, numbers out; no file, no model.

None of them is proof by itself: which of them agree with the kNN vote over many runs, and which are fooled, is measured by
benchmarks/label_free.py and written down in docs/log.md.
"""

import itertools

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from swav.metrics import nearest, rankme


@torch.no_grad()
def view_retrieval(views: Float[Tensor, "N Q F"]) -> Int64[Tensor, " N"]:
    """How often each image's own view is the nearest: of Q (Q - 1) times that one of its views looks among the views of
    another kind of all N images.

    Args:
        views: features of Q views of each image.
    """
    count, kinds = views.shape[:2]
    of_kinds, own = views.unbind(1), torch.arange(count, device=views.device)
    hits = torch.zeros(count, dtype=torch.int64, device=views.device)
    for first, second in itertools.permutations(range(kinds), 2):
        hits += nearest(of_kinds[second], of_kinds[first], 1)[1][:, 0] == own
    return hits


@torch.no_grad()
def neighbour_survival(first: Float[Tensor, "N F"], second: Float[Tensor, "_ _"], k: int = 10) -> float:
    """Share of the k nearest other images that two views of an image have in common, mean over the images."""
    _check(first, second)
    return float(_overlap(_others(first, k), _others(second, k)))


@torch.no_grad()
def neighbour_overlap(features: Float[Tensor, "N F"], others: Float[Tensor, "N G"], k: int = 10) -> float:
    """Share of the k nearest other images by some features that are also the nearest by others, as by thumbnails: what a
    shortcut by colour shows in."""
    return float(_overlap(_others(features, k), _others(others, k)))


@torch.no_grad()
def lidar(views: Float[Tensor, "N Q F"], delta: float = 1e-4, axes: int = 128) -> float:
    """Effective rank of the linear discriminant analysis whose classes are the images and whose samples are their views.

    Args:
        views: features of Q views of each of N images.
        delta: added to the covariance within images, as a share of its mean variance.
        axes: at most so many principal axes are looked at, so that N may be small.

    Source: Thilak et al. 2023 (LiDAR, arXiv 2312.04000), section 3. There delta is absolute and N at least F.
    """
    if views.ndim != 3:
        raise ValueError(f"views: expected [N, Q, F], found {list(views.shape)}; stack the views of each image")
    x = views.double()
    flat = x.flatten(0, 1) - x.mean((0, 1))
    _, _, basis = torch.linalg.svd(flat, full_matrices=False)
    x = (x - x.mean((0, 1))) @ basis[: min(axes, x.shape[0] // 2)].T
    means = x.mean(1)
    within = (x - means[:, None]).flatten(0, 1)
    within_covariance = within.T @ within / max(1, x.shape[0] * (x.shape[1] - 1))
    within_covariance += delta * within_covariance.diagonal().mean() * torch.eye(len(within_covariance)).to(x)
    values, vectors = torch.linalg.eigh(within_covariance)
    whitened = means @ (vectors * values.clamp(min=1e-300).rsqrt())
    spectrum = torch.linalg.eigvalsh(whitened.T @ whitened).clamp(min=0)
    share = spectrum / spectrum.sum() + 1e-7
    return float((-share * share.log()).sum().exp())


@torch.no_grad()
def rotation_accuracy(turned: Float[Tensor, "4 N F"], ridge: float = 1e-2) -> float:
    """Accuracy of a linear classifier of the quarter turn of images [%]: fitted on one half of the images, scored on the other.

    Source: Gidaris et al. 2018 (arXiv 1803.07728) as a probe; here a ridge regression in closed form.
    """
    turns, count, _ = turned.shape
    x = turned.double()
    x = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-6)
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    half = count // 2
    known, asked = x[:, :half].flatten(0, 1), x[:, half:].flatten(0, 1)
    labels = torch.arange(turns, device=x.device)
    targets = torch.eye(turns, dtype=x.dtype, device=x.device)[labels.repeat_interleave(half)]
    gram = known.T @ known
    gram += ridge * len(known) * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, known.T @ targets)
    right = (asked @ weights).argmax(1) == labels.repeat_interleave(count - half)
    return 100 * float(right.double().mean())


@torch.no_grad()
def cluster_agreement(first: Float[Tensor, "N F"], second: Float[Tensor, "N F"], clusters: int, seed: int = 0) -> float:
    """Adjusted mutual information of the clusters of the first views with those that the second views fall into."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    _check(first, second)
    a, b = (normalize(part.float(), dim=1).cpu().numpy() for part in (first, second))
    means = KMeans(clusters, n_init=3, random_state=seed).fit(a)
    return float(adjusted_mutual_info_score(means.labels_, means.predict(b)))


@torch.no_grad()
def effective_rank(features: Float[Tensor, "N F"]) -> float:
    """Effective rank of centred features, see metrics.rankme, which does not centre."""
    return rankme(features - features.mean(0))


def _others(features: Tensor, k: int) -> Int64[Tensor, "N k"]:
    found = nearest(features, features, k + 1)[1]
    own = found == torch.arange(len(found), device=found.device)[:, None]
    own[:, -1] |= ~own.any(1)  # of equal images another may stand in its place
    return found[~own].view(len(found), k)


def _overlap(first: Int64[Tensor, "N k"], second: Int64[Tensor, "N k"]) -> Tensor:
    """Mean share of a row's entries that are in the same row of the other."""
    return (first[:, :, None] == second[:, None]).any(2).double().mean()


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"expected features [N, F] of two views of the same images, found {list(first.shape)} and {list(second.shape)}"
        )
