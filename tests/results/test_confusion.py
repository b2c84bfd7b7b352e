"""Attacks: numbers of a classifier that are another library's of the transposed table, or that a class without images bends.

Run: pytest tests/results/test_confusion.py
"""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from swav.results import confusion as ours


@pytest.mark.parametrize("seed", range(4))
def test_every_number_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, 5, 60), rng.integers(0, 6, 60)  # one that is said only
    counts = ours.confusion(truth, said, 7)  # one that is neither there nor said
    assert (counts[:6, :6] == metrics.confusion_matrix(truth, said, labels=range(6))).all()
    assert ours.top1(counts) == pytest.approx(metrics.accuracy_score(truth, said))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours.balanced_accuracy(counts) == pytest.approx(metrics.balanced_accuracy_score(truth, said))
        assert ours.macro_f1(counts) == pytest.approx(metrics.f1_score(truth, said, average="macro", zero_division=0))
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, said, labels=range(5))
    assert ours.precision(counts)[:5] == pytest.approx(precision)
    assert ours.recall(counts)[:5] == pytest.approx(recall)
    assert ours.f1(counts)[:5] == pytest.approx(f1)
    assert np.isnan(ours.recall(counts)[5:]).all() and np.isnan(ours.precision(counts)[6])


def test_pairs_come_by_how_often_and_what_is_right_or_never_said_is_none():
    truth, said = np.array([0, 0, 0, 1, 2, 2, 2]), np.array([1, 1, 0, 1, 0, 1, 2])
    assert ours.most_confused(ours.confusion(truth, said, 3), 10) == [(0, 1, 2), (2, 0, 1), (2, 1, 1)]
    assert ours.most_confused(ours.confusion(truth, said, 3), 1) == [(0, 1, 2)]
    assert ours.most_confused(np.diag([3, 4]), 5) == []
