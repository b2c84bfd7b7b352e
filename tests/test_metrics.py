"""Attacks: neighbours that are not the nearest, votes of the wrong weight, ranks and percentages off by one.

Oracles: scikit-learn's brute force with the same weights, an SVD in float64. Run: pytest tests/test_metrics.py
"""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve
from sklearn.neighbors import KNeighborsClassifier

from swav import metrics
from swav.errors import ConfigError, DataError
from swav.metrics import average_precision, knn_vote, nearest, rankme, top_k_accuracy

CLASSES = 7


def data(n=500, m=83, dim=16, seed=0):
    """Features of overlapping clusters, so that votes are contested."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, dim))
    labels = rng.integers(CLASSES, size=n + m)
    features = centres[labels] + 1.5 * rng.normal(size=(n + m, dim))
    x, y = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)
    return x[:n], y[:n], x[n:], y[n:]


def sklearn_ranked(bank, labels, queries, k, temperature):
    oracle = KNeighborsClassifier(
        k, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    shares = oracle.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())
    return shares.argsort(axis=1)[:, ::-1], np.sort(shares, axis=1)[:, ::-1]


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_those_of_scikit_learns_brute_force(temperature):
    bank, labels, queries, _ = data()
    ranked = knn_vote(bank, labels, queries, [1, 10, 200], CLASSES, temperature)
    for k, ours in ranked.items():
        classes, shares = sklearn_ranked(bank, labels, queries, k, temperature)
        voted = shares[:, :5] > 0
        assert (ours.numpy()[voted] == classes[:, :5][voted]).all()
        assert (ours.numpy()[~voted] == -1).all()


def test_the_weight_of_a_vote_matters():
    bank, labels, queries, _ = data()
    sharp, flat = (knn_vote(bank, labels, queries, [200], CLASSES, t)[200][:, 0] for t in (0.01, 100.0))
    assert not torch.equal(sharp, flat)
    alone = knn_vote(bank, labels, queries, [1], CLASSES)[1][:, 0]
    assert torch.equal(knn_vote(bank, labels, queries, [200], CLASSES, 1e-4)[200][:, 0], alone)


def test_neighbours_do_not_depend_on_how_queries_and_bank_are_divided(monkeypatch):
    bank, _, queries, _ = data()
    whole = nearest(bank, queries, 20)
    monkeypatch.setitem(metrics._TILE, "cpu", (16, 15))  # tiles smaller than k, and not of one size
    parts = nearest(bank, queries, 20)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_length_of_a_feature_does_not_matter_and_its_own_image_is_nearest():
    bank, labels, _, _ = data()
    ranked = knn_vote(bank, labels, bank * torch.rand(len(bank), 1).add(0.1), [1], CLASSES, ranks=1)
    assert torch.equal(ranked[1][:, 0], labels)


def test_several_k_give_what_each_alone_gives():
    bank, labels, queries, _ = data()
    together = knn_vote(bank, labels, queries, [50, 3, 10], CLASSES)
    for k in (3, 10, 50):
        assert torch.equal(together[k], knn_vote(bank, labels, queries, [k], CLASSES)[k])


def test_shuffled_labels_score_chance():
    bank, labels, queries, truth = data(n=3000, m=1000)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    score = top_k_accuracy(knn_vote(bank, shuffled, queries, [20], CLASSES)[20], truth, 1)
    real = top_k_accuracy(knn_vote(bank, labels, queries, [20], CLASSES)[20], truth, 1)
    assert abs(score - 100 / CLASSES) < 5 < 50 < real


@pytest.mark.parametrize("k", [0, 501])
def test_a_k_outside_the_bank_is_refused(k):
    bank, labels, queries, _ = data()
    with pytest.raises(DataError if k > 500 else ConfigError, match=f"1 to 500.*found {k}"):
        knn_vote(bank, labels, queries, [k], CLASSES)


def test_top_k_counts_the_first_k():
    ranked = torch.tensor([[3, 1, 2], [1, 3, -1], [0, -1, -1], [2, 1, 3]])
    truth = torch.tensor([3, 3, 3, 3])
    assert [top_k_accuracy(ranked, truth, k) for k in (1, 2, 3, 5)] == [25.0, 50.0, 75.0, 75.0]


@pytest.mark.parametrize("shape", [(200, 24), (24, 200)])
def test_rankme_is_the_published_formula_on_an_svd(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.logspace(0, -3, shape[1])
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert rankme(torch.from_numpy(x)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_rankme_counts_equal_directions_and_survives_what_is_broken():
    assert rankme(torch.eye(12).repeat(5, 1)) == pytest.approx(12, rel=1e-4)
    assert rankme(torch.ones(50, 12)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.zeros(5, 3)) == 0
    assert math.isnan(rankme(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])))


def test_average_precision_of_voc_is_the_hand_worked_one():
    """Ranked: hit, miss, miss, hit, hit. Precision 1, 1/2, 1/3, 1/2, 3/5; from any place on at best 1, then 3/5, 3/5."""
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.5, 0.5]])
    positive = torch.tensor([True, False, False, True, True])
    expected = [(1 + 3 / 5 + 3 / 5) / 3, (1 + 1 + 3 / 5) / 3]  # the second scoring is the reverse of the first
    torch.testing.assert_close(average_precision(scores, positive), torch.tensor(expected, dtype=torch.float64))


def test_of_equal_scores_the_first_sample_counts_as_surer():
    scores = torch.tensor([[0.5], [0.5], [0.2], [0.2]])
    for positive, expected in (([True, False, False, True], (1 + 2 / 4) / 2), ([False, True, True, False], 2 / 3)):
        assert average_precision(scores, torch.tensor(positive)).item() == pytest.approx(expected)


def test_the_envelope_is_that_of_scikit_learns_curve():
    rng = np.random.default_rng(0)
    scores, positive = rng.random((60, 4)), rng.random(60) < 0.2
    for column, ours in zip(
        scores.T, average_precision(torch.from_numpy(scores), torch.from_numpy(positive)), strict=True
    ):
        precision, recall, _ = precision_recall_curve(positive, column)  # by falling recall
        best = np.maximum.accumulate(precision)[:-1]
        assert float(ours) == pytest.approx(float((best * -np.diff(recall)).sum()), abs=1e-12)


def test_without_a_positive_there_is_no_average_precision():
    assert average_precision(torch.rand(5, 2), torch.zeros(5, dtype=torch.bool)).isnan().all()
