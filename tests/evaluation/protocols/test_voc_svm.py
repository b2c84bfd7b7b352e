"""Attacks: a score that is not the protocol's: of other folds, another cost, difficult images counted, or a doubt unsaid.

Oracle: scikit-learn's own cross-validation on the same features. Run: pytest tests/evaluation/protocols/test_voc_svm.py
"""

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from swav.data.sources.voc import classification_splits
from swav.data.targets import MultiLabels
from swav.errors import ConfigError, DataError
from swav.evaluation import svm_solver
from swav.evaluation.catalog import CATALOG
from swav.evaluation.protocols import voc_svm
from swav.evaluation.runner import bench
from swav.evaluation.settings import SvmSettings
from swav.evaluation.svm_solver import unit_rows
from swav.evaluation.task import Score, Task
from swav.feature_store import FrozenFeatures
from swav.metrics import average_precision
from swav.progress import Progress
from swav.weights import encoder


@pytest.fixture
def task(drawn, tmp_path):
    settings = SvmSettings(size=32, workers=0, device="cpu")
    train, score = classification_splits(drawn)
    return Task(encoder.load("random:tiny"), train, score, settings, "smoke", torch.device("cpu"), tmp_path)


def features(n=90, f=60, classes=4, seed=0):
    """A fifth of the marks of each class positive, a tenth difficult, and features that half tell."""
    rng = np.random.default_rng(seed)
    marks = rng.choice(np.array([1, 0, -1], dtype=np.int8), p=(0.25, 0.1, 0.65), size=(n, classes))
    told = np.random.default_rng(9).normal(size=(classes, f))
    x = np.maximum(0, rng.normal(size=(n, f)) + 0.4 + 0.7 * (marks == 1) @ told)
    return unit_rows(x.astype(np.float32)), marks


def test_costs_validation_and_scores_are_those_of_scikit_learn():
    (x, labels), (scored, truth) = features(), features(seed=1)
    settings = SvmSettings(costs=(1.0, 10.0, 0.5**4, 0.5**8, 0.5**12), tolerance=1e-8)
    with Progress("svm", 5, quiet=True) as progress:
        layer = voc_svm.score_stage(x, labels, scored, truth, settings, progress)
    for k in range(labels.shape[1]):
        signs = np.where(labels[:, k] == 1, 1, -1)  # difficult ones are negatives
        machine = [
            LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-9, max_iter=100_000, dual=True, random_state=0)
            for cost in settings.costs
        ]
        means = [
            cross_val_score(one, x.double().numpy(), signs, cv=3, scoring="average_precision").mean() for one in machine
        ]
        assert layer.validated[:, k].tolist() == pytest.approx(means, abs=1e-6)
        best = int(np.argmax(means))
        assert layer.costs[k] == settings.costs[best]
        decision = machine[best].fit(x.double().numpy(), signs).decision_function(scored.double().numpy())
        kept = torch.from_numpy(truth[:, k] != 0)  # difficult ones do not count
        expected = average_precision(torch.from_numpy(decision)[kept, None], torch.from_numpy(truth[:, k] == 1)[kept])
        assert layer.precision[k].item() == pytest.approx(expected.item(), abs=1e-9)
        plain = average_precision_score(truth[kept.numpy(), k] == 1, decision[kept.numpy()])
        assert expected.item() >= plain  # the envelope lies above
    assert layer.unfinished == 0


def test_a_row_per_stage_and_the_best_one_with_a_log(task):
    scores = [score for score in voc_svm.run(task) if isinstance(score, Score)]
    assert [score.metric for score in scores] == [*(f"mAP feature{i}" for i in range(1, 6)), "mAP best layer"]
    values = [score.value for score in scores]
    assert values[-1] == max(values[:-1]) and all(0 < value < 100 for value in values)
    assert all("80 training images instead of 5,011" in score.deviations for score in scores)
    assert all("pooled adaptively to 12/6/4/3/2" in score.deviations for score in scores)
    log = json.loads((task.out / str(scores[0].log)).read_text())
    assert np.mean(list(log["feature2"]["AP"].values())) == pytest.approx(values[1])
    assert set(log["feature1"]["cost"].values()) <= set(task.settings.costs)


def test_machines_that_did_not_converge_are_told_with_the_score(task, monkeypatch):
    monkeypatch.setattr(svm_solver, "MAX_STEPS", 1)
    first = voc_svm.run(task)[0]
    assert isinstance(first, Score) and "machines did not converge to svm.tolerance=1e-05" in first.deviations


def test_only_voc_by_the_letter_is_comparable(task):
    assert "5,010 training images instead of 5,011" in task.deviations(5010, 4952)
    page = Task(task.encoder, task.train, task.val, SvmSettings(), "published", task.device, task.out)
    assert isinstance(page.train.targets, MultiLabels)
    page.train.targets.classes = [str(k) for k in range(20)]
    assert page.deviations(5011, 4952) == ""


def test_a_class_without_images_enough_is_refused_before_the_work(task):
    assert task.train.targets is not None
    task.train.targets.values[:, 3] = -1
    with pytest.raises(DataError, match="at least 3 training images of each class, found 0 of lattice"):
        voc_svm.check(task)


def test_a_class_that_unreadable_images_leave_too_few_of_is_told(task, monkeypatch):
    shown = np.flatnonzero(task.train.targets.values[:, 0] == 1)

    def without(self, label, **named):
        kept = np.setdiff1d(np.arange(len(self.train)), shown[2:])
        return FrozenFeatures([np.ones((len(kept), 2), np.float32)], None, kept), FrozenFeatures(
            [np.ones((40, 2))], None, np.arange(40)
        )

    monkeypatch.setattr(Task, "features", without)
    with pytest.raises(DataError, match="expected at least 3 training images of each class, found 2 of"):
        voc_svm.run(task)


def test_a_trunk_without_stages_is_refused(task, monkeypatch):
    monkeypatch.setattr(task.encoder, "stage_channels", [])
    with pytest.raises(ConfigError, match="expected a backbone with stages"):
        voc_svm.check(task)


@pytest.mark.slow
def test_the_command_runs_both_benchmarks_and_says_what_is_missing(drawn, tmp_path):
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings: dict[str, Any] = {"protocol": "smoke", "size": 32, "workers": 0, "lowshot.k": [1, 64]}
        settings["detect-voc.iterations"] = 1  # it does with VOC 2007 alone
        content = bench(["all"], weights=["random:tiny"], data=drawn, out=out, **settings)
    run = {"svm", "lowshot", "detect-voc"}
    assert {row.bench for row in content.results} == run
    missing = {(row.bench, row.metric) for row in content.not_run}
    assert missing == {(name, "") for name in set(CATALOG) - run} | {("lowshot", "mAP k=64")}
    with pytest.raises(DataError, match="VOCtest_06-Nov-2007"):
        bench("svm", weights="random:tiny", data=tmp_path, out=tmp_path / "other", protocol="smoke")
