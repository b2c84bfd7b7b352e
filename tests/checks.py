"""What must hold of codes, loss and prototypes, as functions that raise AssertionError where it does not.

test_algorithm.py runs them over many inputs; mutants.py runs them on wrong variants, each of which must fail one.
Tolerances are those of float64 (1e-10: some hundred operations on numbers near 1) unless said.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swav import algorithm, dist
from swav.config import Crop, Recipe
from swav.network import heads
from swav.network.backbone import ResNet
from tests import oracle

Run = Callable[..., list[Any]]  # as Processes: function, arguments -> all results


def close(ours: Any, expected: Any, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), rtol=tolerance, atol=tolerance)


def cosines(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(oracle.cosines(seed, *shape))


def codes_equal_the_oracle(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> None:
    ours = algorithm.sinkhorn_codes(scores, epsilon, iterations)
    close(ours, oracle.codes(scores.numpy(), epsilon, iterations))


def loss_equals_the_oracle(scores: Tensor, codes: Tensor, code_views: Sequence[int], temperature: float = 0.1) -> None:
    ours = algorithm.swapped_loss(scores, codes, code_views, temperature)
    close(ours, oracle.loss(scores.numpy(), codes.numpy(), code_views, temperature))


def codes_are_assignments(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> None:
    """Rows sum to 1 exactly, whatever the iterations; nothing is negative."""
    codes = algorithm.sinkhorn_codes(scores, epsilon, iterations)
    close(codes.sum(dim=1), 1.0, 1e-10 if scores.dtype == torch.float64 else 1e-5)
    assert (codes >= 0).all() and codes.isfinite().all()


def codes_ignore_a_constant_per_prototype(scores: Tensor, iterations: int = 3) -> None:
    """The prototypes' first normalisation takes it away (one per sample would stay)."""
    shift = torch.linspace(-1, 1, scores.shape[1], dtype=scores.dtype)
    plain, shifted = (algorithm.sinkhorn_codes(s, iterations=iterations) for s in (scores, scores + shift))
    close(shifted, plain)


def codes_feel_a_constant_per_sample(scores: Tensor) -> None:
    """At three iterations they do: so no implementation may subtract one."""
    shift = torch.linspace(-1, 1, len(scores), dtype=scores.dtype)[:, None]
    assert (algorithm.sinkhorn_codes(scores + shift) - algorithm.sinkhorn_codes(scores)).abs().max() > 1e-3


def codes_follow_permutations(scores: Tensor) -> None:
    rows, columns = torch.randperm(len(scores)), torch.randperm(scores.shape[1])
    close(algorithm.sinkhorn_codes(scores[rows][:, columns]), algorithm.sinkhorn_codes(scores)[rows][:, columns])


def many_iterations_balance_the_prototypes(scores: Tensor) -> None:
    """At an epsilon where that is certain: an iteration shrinks the distance from balance (Hilbert's metric) by at least
    tanh(diameter / 4)^2, and the diameter of exp(cosines / epsilon) is at most 4 / epsilon (Birkhoff; Franklin and Lorenz
    1989). At .5 that is .93 per iteration, 1e-16 after 500; at the paper's .05 some scores need many thousands.
    """
    codes = algorithm.sinkhorn_codes(scores, epsilon=0.5, iterations=500)
    close(codes.sum(dim=0), len(scores) / scores.shape[1])


def gradient_is_the_closed_form(scores: Tensor, code_views: Sequence[int], temperature: float = 0.1) -> None:
    """d loss / d scores[v] = sum over a != v of (softmax(scores[v] / t) - codes[a]) / (t * B * A * (V - 1))."""
    codes = torch.stack([algorithm.sinkhorn_codes(scores[view]) for view in code_views])
    leaf = scores.clone().requires_grad_()
    algorithm.swapped_loss(leaf, codes, code_views, temperature).backward()
    expected = torch.zeros_like(scores)
    for q, a in zip(codes, code_views, strict=True):
        for v in range(len(scores)):
            if v != a:
                expected[v] += (scores[v] / temperature).softmax(dim=1) - q
    close(leaf.grad, expected / (temperature * scores.shape[1] * len(codes) * (len(scores) - 1)))


def codes_loss_and_gradient(scores: Tensor, code_views: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Those of this process's share of the samples."""
    share = scores.chunk(dist.world_size(), dim=1)[dist.rank()].clone().requires_grad_()
    codes = torch.stack([algorithm.sinkhorn_codes(share[view].detach()) for view in code_views])
    loss = algorithm.swapped_loss(share, codes, code_views)
    (gradient,) = torch.autograd.grad(loss, share)
    return codes, loss.detach(), gradient


def two_processes_equal_one(two_processes: Run, scores: Tensor, code_views: Sequence[int]) -> None:
    """Codes of each half are the whole's; losses and gradients, averaged over processes, are the whole's."""
    codes, loss, gradient = codes_loss_and_gradient(scores, code_views)
    parts = two_processes(codes_loss_and_gradient, scores, code_views)
    close(torch.cat([part[0] for part in parts], dim=1), codes)
    close(sum(part[1] for part in parts) / 2, loss)
    close(torch.cat([part[2] for part in parts], dim=1) / 2, gradient)


def largest_crops_give_the_codes() -> None:
    """By their size, not by their place in the list."""
    small, large = (Crop(count=2, size=size, scale=(0.1, 1.0)) for size in (16, 32))
    assert Recipe(crops=(large, small)).code_views == (0, 1)
    assert Recipe(crops=(small, large)).code_views == (2, 3)
    assert Recipe(crops=(small, large), code_crops=(1, 3)).code_views == (1, 3)


def scores_are_cosines() -> None:
    """Unit embeddings times unit prototypes, and nothing more."""
    network = heads.SwavNetwork(ResNet("basic", (1, 1, 1, 1), width=0.125), hidden=8, dim=4, prototypes=6).double()
    algorithm.normalize_prototypes_(network.prototypes.weight)
    with torch.no_grad():
        embeddings, scores = network([torch.randn(8, 3, 16, 16, dtype=torch.float64)], 4)
    close(embeddings.norm(dim=2), 1.0)
    close(network.prototypes.weight.detach().norm(dim=1), 1.0)
    close(scores, embeddings @ network.prototypes.weight.detach().T)
