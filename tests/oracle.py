"""SwAV's codes and loss a second time: NumPy, float64, straight from the paper's equations. Slow, plain, independent.

Nothing here is shared with swav/algorithm.py: other orientation, other scaling, loops in the place of einsum.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]


def codes(scores: Array, epsilon: float = 0.05, iterations: int = 3) -> Array:
    """Equations (3) to (5): Q = Diag(u) exp(C'Z / epsilon) Diag(v), its rows 1/K of the mass, its columns 1/B.

    u and v by Sinkhorn-Knopp, prototypes first; in logarithms, so that no epsilon is too small. Times B, transposed.
    """
    batch, prototypes = scores.shape
    log_m = scores.T / epsilon
    log_u, log_v = np.zeros(prototypes), np.zeros(batch)
    for _ in range(iterations):
        log_u = -np.log(prototypes) - logsumexp(log_m + log_v[None, :], axis=1)
        log_v = -np.log(batch) - logsumexp(log_m + log_u[:, None], axis=0)
    return np.asarray(np.exp(log_u[:, None] + log_m + log_v[None, :]).T * batch)


def loss(scores: Array, codes: Array, code_views: Sequence[int], temperature: float = 0.1) -> float:
    """Equations (1), (2) and (6), term by term: every code is predicted from every other crop."""
    terms = []
    for q, a in zip(codes, code_views, strict=True):
        for v in range(len(scores)):
            if v != a:
                for sample in range(scores.shape[1]):
                    logits = scores[v, sample] / temperature
                    terms.append(-float(q[sample] @ (logits - logsumexp(logits))))
    return float(np.mean(terms))


def cosines(seed: int, *shape: int, dim: int = 4) -> Array:
    """Scores as training has them: unit embeddings [..., B, dim] times unit prototypes [K, dim]."""
    rng = np.random.default_rng(seed)
    embeddings, prototypes = rng.standard_normal((*shape[:-1], dim)), rng.standard_normal((shape[-1], dim))
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
    prototypes /= np.linalg.norm(prototypes, axis=-1, keepdims=True)
    return np.asarray(embeddings @ prototypes.T)
