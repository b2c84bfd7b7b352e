"""Multinomial logistic regression on standardised features, and the choice of its cost by folds. Arrays in, arrays out.

Minimises |W|^2 / 2 + C times the summed cross-entropy, the bias without penalty: scikit-learn's LogisticRegression with L-BFGS,
in float32. Each feature is brought to mean 0 and standard deviation 1 over the images that the layer is fitted to: a penalty
is then the same for all of them, and costs mean the same for every backbone.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from swav.signals import stop_if_asked

TOLERANCE = 1e-4  # of the largest partial derivative of the mean objective
SEARCH_TOLERANCE = 1e-3  # while a cost is chosen: four times quicker at weak penalties, and the same choices
ITERATIONS = 1000


@dataclasses.dataclass(frozen=True)
class LogisticLayer:
    """A layer that was fitted.

    Attributes:
        mean, scale: of each feature; one that is constant has scale 1.
        weight, bias: of each class that was there to learn from.
        classes: which those are.
        cost: C.
        iterations: of L-BFGS.
        converged: whether it ended by the tolerance.
    """

    mean: Float32[np.ndarray, " F"]
    scale: Float32[np.ndarray, " F"]
    weight: Float32[np.ndarray, "C F"]
    bias: Float32[np.ndarray, " C"]
    classes: Int64[np.ndarray, " C"]
    cost: float
    iterations: int
    converged: bool

    def ranked(self, features: Float32[np.ndarray, "M F"]) -> Int64[np.ndarray, "M C"]:
        """Classes, likeliest first; of equal ones the first."""
        return self.classes[np.argsort(-self._scores(features), axis=1, kind="stable")]

    def answers(
        self, features: Float32[np.ndarray, "M F"]
    ) -> tuple[Int64[np.ndarray, " M"], Float64[np.ndarray, " M"]]:
        """The likeliest class of each, as `ranked` has it, and how likely it is, 0..1."""
        likely = self.probabilities(features)
        return self.classes[likely.argmax(axis=1)], likely.max(axis=1)

    def probabilities(self, features: Float32[np.ndarray, "M F"]) -> Float64[np.ndarray, "M C"]:
        """How likely each of `classes` is (softmax), 0..1."""
        scores = self._scores(features).astype(np.float64)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely: Float64[np.ndarray, "M C"] = odds / odds.sum(axis=1, keepdims=True)
        return likely

    def _scores(self, features: Float32[np.ndarray, "M F"]) -> Float32[np.ndarray, "M C"]:
        scores: Float32[np.ndarray, "M C"] = (features - self.mean) / self.scale @ self.weight.T + self.bias
        return scores


def fit(
    features: Float32[np.ndarray, "N F"],
    labels: Int64[np.ndarray, " N"],
    costs: Sequence[float],
    tolerance: float = TOLERANCE,
) -> list[LogisticLayer]:
    """Fit a layer per cost, each from the one before: give them in rising order.

    Args:
        features, labels: of at least two classes.
        costs: C.
        tolerance: see TOLERANCE.

    Raises:
        ValueError: there is one class only.
        Stopped: a signal asked for an end.
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to import, which other benchmarks need not pay
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = features.std(axis=0, dtype=np.float64).astype(np.float32)
    scale[scale <= 1e-6 * np.abs(mean) + 1e-30] = 1  # constant but for rounding: of no use, and no noise is blown up
    inputs = (features - mean) / scale
    solver = LogisticRegression(tol=tolerance, max_iter=ITERATIONS, warm_start=True)
    layers = []
    for cost in costs:
        stop_if_asked()
        solver.set_params(C=cost)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            solver.fit(inputs, labels)
        weight, bias = np.array(solver.coef_, np.float32), np.array(solver.intercept_, np.float32)
        if len(weight) == 1:  # two classes are one direction
            weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
        converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
        classes = solver.classes_.astype(np.int64)
        layers.append(LogisticLayer(mean, scale, weight, bias, classes, cost, int(solver.n_iter_.max()), converged))
    return layers


def right_by_cost(
    features: Float32[np.ndarray, "N F"],
    labels: Int64[np.ndarray, " N"],
    folds: Int64[np.ndarray, " N"],
    costs: Sequence[float],
) -> Int64[np.ndarray, " K"]:
    """How many images are right at each cost, each image by a layer fitted to the other folds.

    Args:
        folds: the number of each image's fold.
        costs: C, in rising order.
    """
    right = np.zeros(len(costs), np.int64)
    for fold in np.unique(folds):
        out = folds == fold
        for i, layer in enumerate(fit(features[~out], labels[~out], costs, SEARCH_TOLERANCE)):
            right[i] += (layer.ranked(features[out])[:, 0] == labels[out]).sum()
    return right
