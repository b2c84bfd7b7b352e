"""Attacks: machines that are not at the optimum, or of another problem than LIBLINEAR's.

Oracle: scikit-learn's LinearSVC at a tolerance of 1e-10. Run: pytest tests/evaluation/test_svm_solver.py
"""

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from swav.evaluation import svm_solver
from swav.evaluation.settings import SvmSettings
from swav.evaluation.svm_solver import decide, principal_axes, solve_svms, unit_rows

COSTS = SvmSettings().costs


def problem(n, f, classes=3, seed=0):
    """Features of a backbone's kind (not negative, with a common direction), and classes that they half tell."""
    rng = np.random.default_rng(seed)
    positive = rng.random((n, classes)) < 0.2
    features = np.maximum(0, rng.normal(size=(n, f)) + 0.4 + positive @ rng.normal(size=(classes, f)))
    x = unit_rows(features.astype(np.float32))
    signs = torch.from_numpy(np.where(positive, 1.0, -1.0))
    return x, signs, torch.where(signs > 0, 2.0, 1.0).double()


def of_scikit_learn(x, signs, cost):
    machine = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-10, max_iter=1_000_000, dual=True, random_state=0)
    return machine.fit(x.double().numpy(), signs.numpy())


@pytest.mark.parametrize(("n", "f"), [(60, 200), (150, 40)])
def test_decisions_are_scikit_learns_at_every_cost_with_more_features_than_rows_or_fewer(n, f):
    x, signs, weights = problem(n, f)
    other = problem(30, f, seed=1)[0]
    seen = []
    for place, found in solve_svms(principal_axes(x), signs, weights, COSTS):
        seen.append(place)
        assert found.converged.all()
        (decision,) = decide(found.alpha, x, other)
        if COSTS[place] > 10:
            continue  # LIBLINEAR takes a minute there; the certificate below covers it
        for k in range(signs.shape[1]):
            oracle = of_scikit_learn(x, signs[:, k], COSTS[place])
            length = float(np.hypot(np.linalg.norm(oracle.coef_), oracle.intercept_[0]))
            for ours, theirs in ((found.decision, x), (decision, other)):
                difference = np.abs(ours[:, k].numpy() - oracle.decision_function(theirs.double().numpy())).max()
                assert (
                    difference <= 4 * svm_solver.TOLERANCE * length
                )  # of rows of length sqrt(2), for w and for alpha's w
    assert sorted(seen) == list(range(len(COSTS)))


def test_the_gradient_vanishes_at_the_largest_cost_and_bounds_the_distance():
    """Of the objective as it stands in the file's head, by automatic differentiation."""
    x, signs, weights = problem(80, 120)
    rows = torch.cat([x.double(), torch.ones(80, 1, dtype=torch.float64)], dim=1)
    ((_, rough),) = solve_svms(principal_axes(x), signs, weights, [100.0], tolerance=1e-2)
    ((_, exact),) = solve_svms(principal_axes(x), signs, weights, [100.0], tolerance=1e-9)
    w = (rows.T @ exact.alpha).requires_grad_()
    loss = (
        w.square().sum(dim=0) / 2 + (100 * weights * (1 - signs * (rows @ w)).clamp(min=0).square()).sum(dim=0)
    ).sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.norm() < 1e-5 * w.norm()
    distance = (rows.T @ rough.alpha - w).norm(dim=0)
    assert (distance.detach() <= 2 * rough.bound).all() and rough.converged.all()


def test_a_row_of_weight_zero_is_as_good_as_absent():
    x, signs, weights = problem(60, 90)
    held = torch.arange(60) % 3 == 0
    ((_, masked),) = solve_svms(principal_axes(x), signs, weights * ~held[:, None], [1.0])
    ((_, alone),) = solve_svms(principal_axes(x[~held]), signs[~held], weights[~held], [1.0])
    (expected,) = decide(alone.alpha, x[~held], x)
    torch.testing.assert_close(masked.decision, expected, rtol=1e-4, atol=1e-4)
    assert not masked.alpha[held].any()


def test_a_choice_of_rows_keeps_the_axes_of_all():
    x, signs, weights = problem(60, 90)
    axes, some = principal_axes(x), torch.arange(0, 60, 4)
    chosen = axes._replace(rows=axes.rows[some])
    ((_, found),) = solve_svms(chosen, signs[some], weights[some], [1.0])
    ((_, alone),) = solve_svms(principal_axes(x[some]), signs[some], weights[some], [1.0])
    torch.testing.assert_close(found.decision, alone.decision, rtol=1e-4, atol=1e-4)


def test_machines_that_run_out_of_steps_are_counted_not_hidden(monkeypatch):
    monkeypatch.setattr(svm_solver, "MAX_STEPS", 1)
    x, signs, weights = problem(60, 90)
    ((_, found),) = solve_svms(principal_axes(x), signs, weights, [100.0])
    assert not found.converged.all() and (found.bound > 0).all()


@pytest.mark.parametrize(("n", "f"), [(30, 70), (70, 30), (30, 30)])
def test_axes_keep_every_inner_product_and_are_orthogonal(n, f):
    x = problem(n, f)[0]
    axes = principal_axes(x)
    torch.testing.assert_close(axes.rows @ axes.rows.T, x.double() @ x.double().T + 1, rtol=0, atol=1e-10)
    torch.testing.assert_close(axes.rows.T @ axes.rows, torch.diag(axes.spectrum), rtol=0, atol=1e-10)


def test_rows_are_divided_by_their_length_and_a_little():
    """The little shows in short rows only."""
    rows = unit_rows(np.array([[3.0, 4.0], [3e-5, 4e-5], [0.0, 0.0]], dtype=np.float32))
    torch.testing.assert_close(rows, torch.tensor([[3 / 5, 4 / 5], [3 / 6, 4 / 6], [0.0, 0.0]]), rtol=0, atol=1e-5)
