"""Linear support vector machines, many at once: what LIBLINEAR computes, to a certified distance, and much faster
(benchmarks/svm.py).

Each column of signs is one machine over the same rows x, to which a constant 1 is appended (the bias, so that it counts in
the penalty, as in LIBLINEAR with intercept_scaling 1):

    minimise over w   |w|^2 / 2 + sum_i C_i max(0, 1 - y_i w.x_i)^2

(L2 penalty, squared hinge; scikit-learn's LinearSVC with its default loss.) C_i is the cost times the weight of the row's
class, and 0 where a row is left out, so that the folds of a cross-validation are columns too.

How: the rows are turned into the coordinates of their principal axes once (at most as many as there are rows, whatever
the number of features). There, Newton's method [1] takes a handful of steps per cost; each direction comes from conjugate
gradients on all columns at once, that is from matrix products, preconditioned by the axes' spectrum, which makes the
problem round; it starts from the solution of the cost before. Directions are computed in float32, gradients in float64.

What is certified: the objective is 1-strongly convex, so the distance |w - w*| is at most the gradient's length. A machine is
done where that is below `tolerance` |w|; one that is not is counted, never hidden.

[1] Keerthi and DeCoste 2005, "A modified finite Newton method for fast solution of large scale linear SVMs".
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from swav.signals import stop_if_asked

TOLERANCE = 1e-5
MAX_STEPS = 60  # of Newton
CG_STEPS = 200  # for a direction
CG_ACCURACY = 0.03  # of a direction: relative residual; more accurate ones cost more than they save
ROWS_AT_A_TIME = 1024  # that are turned to float64 together


class Axes(NamedTuple):
    """Rows [x, 1] in the coordinates of their principal axes; inner products are kept.

    Attributes:
        rows: coordinates.
        spectrum: squared length of each coordinate over all rows, rows.T @ rows = diag(spectrum).
    """

    rows: Float64[Tensor, "N R"]
    spectrum: Float64[Tensor, " R"]


class Machines(NamedTuple):
    """M machines of one cost.

    Attributes:
        decision: w.[x, 1] of every row, also of those left out.
        alpha: w is the sum of alpha_i [x_i, 1].
        bound: |w - w*| is at most this.
        converged: whether the bound is within the tolerance.
    """

    decision: Float64[Tensor, "N M"]
    alpha: Float64[Tensor, "N M"]
    bound: Float64[Tensor, " M"]
    converged: Bool[Tensor, " M"]


def unit_rows(features: Float32[np.ndarray, "N F"]) -> Float32[Tensor, "N F"]:
    """Rows divided by their length + 1e-5 in float64, as the protocol has it, and kept in float32."""
    out = torch.empty(features.shape)
    for first in range(0, len(features), ROWS_AT_A_TIME):
        part = torch.from_numpy(features[first : first + ROWS_AT_A_TIME].astype(np.float64))
        out[first : first + ROWS_AT_A_TIME] = part / (part.norm(dim=1, keepdim=True) + 1e-5)
    return out


def principal_axes(x: Float32[Tensor, "N F"]) -> Axes:
    """Rotate the rows, each with a constant 1 at its end, into their principal axes."""
    n, f = x.shape
    if n <= f + 1:  # by the Gram matrix of the rows: K = U S U', coordinates U S^(1/2)
        gram = torch.ones(n, n, dtype=torch.float64)
        for part in x.split(ROWS_AT_A_TIME, dim=1):  # type: ignore[no-untyped-call]
            some = part.double()
            gram.addmm_(some, some.T)
        spectrum, axes = torch.linalg.eigh(gram)
        del gram
        kept = spectrum > spectrum[-1] * n * torch.finfo(torch.float64).eps
        return Axes((axes * spectrum.clamp(min=0).sqrt())[:, kept], spectrum[kept])
    gram = torch.zeros(f + 1, f + 1, dtype=torch.float64)
    for part in x.split(ROWS_AT_A_TIME):  # type: ignore[no-untyped-call]
        some = _with_one(part.double())
        gram.addmm_(some.T, some)
    spectrum, axes = torch.linalg.eigh(gram)
    rows = torch.cat([_with_one(part.double()) @ axes for part in x.split(ROWS_AT_A_TIME)])  # type: ignore[no-untyped-call]
    return Axes(rows, spectrum.clamp(min=0))


def _with_one(x: Float64[Tensor, "N F"]) -> Float64[Tensor, "N G"]:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def weights_of(alpha: Float64[Tensor, "N M"], x: Float32[Tensor, "N F"]) -> Float64[Tensor, "F M"]:
    """w of the machines, without the bias, which is the sum of alpha."""
    weights = torch.zeros(x.shape[1], alpha.shape[1], dtype=torch.float64)
    for some, its_alpha in zip(x.split(ROWS_AT_A_TIME), alpha.split(ROWS_AT_A_TIME), strict=True):  # type: ignore[no-untyped-call]
        weights.addmm_(some.double().T, its_alpha)
    return weights


def decide(
    alpha: Float64[Tensor, "N M"], x: Float32[Tensor, "N F"], *scored: Float32[Tensor, "_ F"]
) -> list[Float64[Tensor, "_ M"]]:
    """Decision values w.[x, 1] of other rows, from the machines' alpha over the rows x that they were trained on."""
    weights, bias = weights_of(alpha, x), alpha.sum(dim=0)
    return [
        torch.cat([some.double() @ weights + bias for some in rows.split(ROWS_AT_A_TIME)])  # type: ignore[no-untyped-call]
        for rows in scored
    ]


def solve_svms(
    axes: Axes,
    signs: Float64[Tensor, "N M"],
    weights: Float64[Tensor, "N M"],
    costs: Sequence[float],
    tolerance: float = TOLERANCE,
) -> Iterator[tuple[int, Machines]]:
    """Solve all columns for one cost after the other, the smallest first, each from the solution of the one before.

    Args:
        axes: of the rows; of a choice of all rows, with the spectrum of all.
        signs: y, +1 or -1.
        weights: C_i / C; 0: the row is left out.
        costs: C.
        tolerance: of |gradient| / |w|.

    Yields:
        (place of the cost in `costs`, its machines).
    """
    z, narrow = axes.rows, axes.rows.float()
    w = torch.zeros(z.shape[1], signs.shape[1], dtype=torch.float64)
    decision = torch.zeros_like(signs)
    for place in sorted(range(len(costs)), key=costs.__getitem__):
        share = costs[place] * weights
        # For small costs w grows with the cost: the best point on the ray through the last solution is a better start.
        scale = _line_search(torch.zeros_like(w), w, torch.zeros_like(signs), decision, signs, share)
        w, decision = scale * w, scale * decision
        bound, length = _newton(z, narrow, axes.spectrum, w, decision, signs, share, tolerance)
        alpha = _alpha(decision, signs, share)
        yield place, Machines(decision, alpha, bound, bound <= tolerance * length)
        decision = decision.clone()  # what was handed out stays as it was


def _alpha(decision: Tensor, signs: Tensor, share: Tensor) -> Float64[Tensor, "N M"]:
    return 2 * share * signs * (1 - signs * decision).clamp(min=0)


def _newton(
    z: Float64[Tensor, "N R"],
    narrow: Float32[Tensor, "N R"],
    spectrum: Float64[Tensor, " R"],
    w: Float64[Tensor, "R M"],
    decision: Float64[Tensor, "N M"],
    signs: Float64[Tensor, "N M"],
    share: Float64[Tensor, "N M"],
    tolerance: float,
) -> tuple[Float64[Tensor, " M"], Float64[Tensor, " M"]]:
    """Improve w and decision = z @ w in place; return the lengths of gradient and w. Finished columns drop out."""
    bound, length = w.new_zeros(w.shape[1]), w.new_zeros(w.shape[1])
    left = torch.arange(w.shape[1])
    for step in range(MAX_STEPS + 1):
        stop_if_asked()
        some_w, some_decision, y, c = w[:, left], decision[:, left], signs[:, left], share[:, left]
        gradient = some_w - z.T @ _alpha(some_decision, y, c)
        bound[left], length[left] = gradient.norm(dim=0), some_w.norm(dim=0)
        unfinished = bound[left] > tolerance * length[left]
        if not unfinished.any() or step == MAX_STEPS:
            break
        left = left[unfinished]
        some_w, some_decision, y, c, gradient = (
            part[:, unfinished] for part in (some_w, some_decision, y, c, gradient)
        )
        curvature = 2 * c * (y * some_decision < 1)
        direction = _direction(narrow, spectrum, curvature, gradient).double()
        slope = z @ direction
        t = _line_search(some_w, direction, some_decision, slope, y, c)
        w[:, left] = some_w + t * direction
        decision[:, left] = some_decision + t * slope
    return bound, length


def _direction(
    z: Float32[Tensor, "N R"],
    spectrum: Float64[Tensor, " R"],
    curvature: Float64[Tensor, "N M"],
    gradient: Float64[Tensor, "R M"],
) -> Float32[Tensor, "R M"]:
    """Solve (1 + z' diag(curvature) z) d = -gradient for each column, by preconditioned conjugate gradients.

    The preconditioner takes the curvature for the same everywhere, where the axes make the matrix diagonal.
    """
    size = gradient.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    # of rows that are a choice of all, as many share the spectrum's mean square
    inverse = (1 / (1 + spectrum[:, None] * curvature.sum(dim=0) / _rows_of(spectrum, z))).float()
    curved = curvature.float()
    residual = (-gradient / size).float()  # unit length: no cost is too small for float32
    x = torch.zeros_like(residual)
    scaled = inverse * residual
    p, product = scaled, (residual * scaled).sum(dim=0)
    for _ in range(CG_STEPS):
        turned = p + z.T @ (curved * (z @ p))
        step = _ratio(product, (p * turned).sum(dim=0))
        x += step * p
        residual -= step * turned
        if residual.norm(dim=0).max() <= CG_ACCURACY:
            break
        scaled = inverse * residual
        before, product = product, (residual * scaled).sum(dim=0)
        p = scaled + _ratio(product, before) * p
    direction: Tensor = x * size.float()
    return direction


def _rows_of(spectrum: Tensor, z: Tensor) -> float:
    """How many rows like those of z the spectrum is of: total square over mean square."""
    return float(spectrum.sum() / z.square().sum().double() * len(z))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0)


def _line_search(w: Tensor, direction: Tensor, decision: Tensor, slope: Tensor, signs: Tensor, share: Tensor) -> Tensor:
    """The t of each column at which w + t direction has the least objective, exactly enough.

    The derivative along t is increasing and piecewise linear: Newton's method, kept within the bracket of its zero.
    """
    linear, square = (w * direction).sum(dim=0), direction.square().sum(dim=0)
    margin, change = 1 - signs * decision, -signs * slope
    low, high = torch.zeros_like(square), torch.full_like(square, torch.inf)
    t = torch.ones_like(square)
    for _ in range(30):
        at = margin + t * change
        weighed = 2 * share * change * (at > 0)
        derivative = linear + t * square + (weighed * at).sum(dim=0)
        second = square + (weighed * change).sum(dim=0)
        low, high = torch.where(derivative < 0, t, low), torch.where(derivative > 0, t, high)
        new = t - _ratio(derivative, second)
        middle = torch.where(high.isinf(), 2 * t, (low + high) / 2)
        new = torch.where((new > low) & (new < high) | (second == 0), new, middle)
        if ((new - t).abs() <= 1e-9 * t).all():
            break
        t = new
    return torch.where(square > 0, t, 1.0)
