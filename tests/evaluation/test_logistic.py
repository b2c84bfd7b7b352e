"""Attacks: a layer that is not the minimum of its objective; features whose scale changes it; a choice of the cost by images that a
layer has learned from.

Oracle: SciPy's minimiser on the objective in float64. Run: pytest tests/evaluation/test_logistic.py
"""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from swav.evaluation import logistic
from swav.evaluation.own import folds_of


def drawn(n=150, f=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(n, f)) + 0.7 * rng.normal(size=(classes, f))[labels]).astype(np.float32), labels


def minimum(x, y, cost, classes):
    """Weights and biases of the least |W|^2 / 2 + C times the summed cross-entropy, and its value."""

    def objective(flat):
        weight, bias = flat[: classes * x.shape[1]].reshape(classes, -1), flat[classes * x.shape[1] :]
        logits = x @ weight.T + bias
        return (weight**2).sum() / 2 + cost * (logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]).sum()

    found = minimize(objective, np.zeros(classes * (x.shape[1] + 1)), method="BFGS", options={"gtol": 1e-6})
    return found.x[: classes * x.shape[1]].reshape(classes, -1), objective


@pytest.mark.parametrize("cost", [0.01, 1.0])
def test_the_layer_is_the_minimum_of_the_stated_objective_on_standardised_features(cost):
    features, labels = drawn()
    x = ((features - features.mean(0)) / features.std(0)).astype(np.float64)
    weight, objective = minimum(x, labels, cost, 3)
    (layer,) = logistic.fit(features, labels, [cost])
    ours = objective(np.concatenate([layer.weight.ravel(), layer.bias]).astype(np.float64))
    best = objective(np.concatenate([weight.ravel(), layer.bias]).astype(np.float64))
    assert layer.converged and ours <= best * (1 + 1e-4)
    assert np.abs(layer.weight - weight).max() < 0.02 * np.abs(weight).max()
    logits = x @ layer.weight.T + layer.bias
    assert (layer.ranked(features)[:, 0] == logits.argmax(1)).all()


def test_scale_and_shift_of_a_feature_and_one_that_is_constant_change_nothing():
    features, labels = drawn()
    other = features * np.array([100, 1, 1, 0.01, 1, 1], np.float32) + np.array([5, 0, 0, 0, 3, 0], np.float32)
    other = np.concatenate([other, np.full((len(other), 1), 7.3, np.float32)], axis=1)
    (one,), (two,) = logistic.fit(features, labels, [0.1]), logistic.fit(other, labels, [0.1])
    assert np.abs(one.weight - two.weight[:, :-1]).max() < 1e-2 and np.abs(two.weight[:, -1]).max() < 1e-6
    assert (one.ranked(features) == two.ranked(other)).mean() > 0.98


def test_two_classes_and_classes_that_are_missing_keep_their_numbers():
    features, labels = drawn(classes=2)
    (layer,) = logistic.fit(features, np.array([3, 7])[labels], [1.0])
    assert layer.classes.tolist() == [3, 7] and layer.weight.shape == (2, 6)
    ranked = layer.ranked(features)
    assert set(ranked[:, 0]) == {3, 7} and (ranked[:, 0] == np.array([3, 7])[labels]).mean() > 0.7


def test_a_cost_is_judged_by_images_that_the_layer_has_not_seen():
    """Of labels at random a weak penalty learns every image by heart, and is right no more often than by chance."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(120, 200)).astype(np.float32), rng.integers(0, 2, 120)
    (layer,) = logistic.fit(features, labels, [10.0])
    assert (layer.ranked(features)[:, 0] == labels).all()
    right = logistic.right_by_cost(features, labels, folds_of(labels, 0), [1e-3, 10.0])
    assert (np.abs(right / 120 - 0.5) < 0.15).all()


def test_a_path_of_costs_gives_what_each_cost_gives_alone():
    features, labels = drawn()
    costs = [1e-3, 0.1, 10.0]
    for layer, cost in zip(logistic.fit(features, labels, costs), costs, strict=True):
        (alone,) = logistic.fit(features, labels, [cost])
        assert layer.cost == cost and np.abs(layer.weight - alone.weight).max() < 0.05 * np.abs(alone.weight).max()
