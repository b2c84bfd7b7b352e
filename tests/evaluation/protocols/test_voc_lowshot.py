"""Attacks: samples of wrong counts, of difficult images or that change; a cost chosen on the wrong images; a k that cannot be.

Run: pytest tests/evaluation/protocols/test_voc_lowshot.py
"""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from swav.data.sources.voc import classification_splits
from swav.errors import DataError
from swav.evaluation.protocols import voc_lowshot
from swav.evaluation.protocols.voc_lowshot import draw_sample
from swav.evaluation.settings import LowshotSettings
from swav.evaluation.stages import MultiLabelSplits
from swav.evaluation.svm_solver import principal_axes, unit_rows
from swav.evaluation.task import NoScore, Score, Task
from swav.metrics import average_precision
from swav.progress import Progress
from swav.weights import encoder


def marks(n=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([1, 0, -1], dtype=np.int8), p=(0.1, 0.1, 0.8), size=(n, classes))


@pytest.fixture
def task(drawn, tmp_path):
    settings = LowshotSettings(size=32, workers=0, device="cpu", k=(1, 2, 64), draws=3, costs=(1.0, 0.01, 10.0))
    train, score = classification_splits(drawn)
    return Task(encoder.load("random:tiny"), train, score, settings, "smoke", torch.device("cpu"), tmp_path)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_a_sample_holds_k_positives_and_nineteen_k_negatives_of_each_class_and_none_difficult(k):
    truth = marks()
    sample = draw_sample(truth, k, seed=0, number=1)
    assert (sample == 1).sum(axis=0).tolist() == [k] * 4 and (sample == -1).sum(axis=0).tolist() == [19 * k] * 4
    assert np.array_equal(sample[sample != 0], truth[sample != 0])


def test_samples_depend_on_seed_number_and_k_only():
    truth = marks()
    assert np.array_equal(draw_sample(truth, 4, 0, 1), draw_sample(truth, 4, 0, 1))
    for other in ((4, 1, 1), (4, 0, 2)):
        assert not np.array_equal(draw_sample(truth, 4, 0, 1), draw_sample(truth, *other))


def test_scores_are_those_of_machines_trained_one_by_one_and_costs_are_chosen_where_it_is_said():
    rng, told = np.random.default_rng(5), np.random.default_rng(9).normal(size=(4, 50))
    splits = []
    for seed in (0, 1):
        truth = marks(seed=seed)
        x = np.maximum(0, rng.normal(size=(300, 50)) + 0.4 + 0.5 * (truth == 1) @ told)
        splits.append((unit_rows(x.astype(np.float32)), truth))
    (x, train), (scored, truth) = splits
    settings = LowshotSettings(costs=(1.0, 0.01, 10.0), tolerance=1e-8)
    samples = [draw_sample(train, 4, 0, number) for number in (1, 2)]
    marked = MultiLabelSplits(train, truth, list("abcd"))
    with Progress("lowshot", 3, quiet=True) as progress:
        curve = voc_lowshot._curve(x, principal_axes(x), scored, marked, samples, settings, progress)
    assert curve.unfinished == 0
    for place, cost in enumerate(settings.costs):
        for number, sample in enumerate(samples):
            test, outside = list[float](), list[float]()
            for c in range(4):
                rows = sample[:, c] != 0
                machine = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-9, max_iter=100_000, random_state=0)
                machine.fit(x[rows].double().numpy(), sample[rows, c])
                for part, its_marks, found in ((scored, truth, test), (x, train, outside)):
                    kept = its_marks[:, c] != 0
                    if found is outside:
                        kept &= ~rows
                    decision = torch.from_numpy(machine.decision_function(part[kept].double().numpy()))
                    found.append(average_precision(decision[:, None], torch.from_numpy(its_marks[kept, c] == 1)).item())
            assert curve.test[place, number] == pytest.approx(np.mean(test), abs=1e-6)
            assert curve.outside[place, number] == pytest.approx(np.mean(outside), abs=1e-6)


def test_mean_spread_and_the_honest_choice_stand_beside_each_other_and_a_k_too_large_is_told(task):
    rows = voc_lowshot.run(task)
    scores = {row.metric: row for row in rows if isinstance(row, Score)}
    for k in (1, 2):
        flattered, honest = scores[f"mAP k={k}"], scores[f"mAP k={k}, cost by trainval"]
        assert 0 < honest.value <= flattered.value < 100 and scores[f"spread k={k}"].value > 0
        assert "not chosen on test" in honest.deviations and "not chosen on test" not in flattered.deviations
    (missing,) = [row for row in rows if isinstance(row, NoScore)]
    assert missing.metric == "mAP k=64" and missing.reason.startswith(
        "expected 64 images of each class and 1216 without"
    )


def test_the_honest_cost_is_the_best_outside_of_the_samples(task, monkeypatch):
    curve = voc_lowshot.Curve(
        np.array([[0.5, 0.7], [0.9, 0.8], [0.2, 0.3]]), np.array([[0.4, 0.6], [0.1, 0.2], [0.7, 0.1]]), 0
    )
    monkeypatch.setattr(voc_lowshot, "_curve", lambda *_: curve)
    scores = {row.metric: row.value for row in voc_lowshot.run(task) if isinstance(row, Score)}
    assert scores["mAP k=1"] == pytest.approx(85) and scores["mAP k=1, cost by trainval"] == pytest.approx(60)


def test_a_k_that_is_not_published_says_so(task):
    task = dataclasses.replace(task, settings=task.settings.model_copy(update={"k": (2, 3)}))
    rows = {row.metric: row.deviations for row in voc_lowshot.run(task) if isinstance(row, Score)}
    assert "k=3, published for k=[1, 2," in rows["mAP k=3"] and "published for" not in rows["mAP k=2"]


def test_every_stage_where_asked_for(task):
    task = dataclasses.replace(task, settings=task.settings.model_copy(update={"layers": "all", "k": (1,)}))
    names = [row.metric for row in voc_lowshot.run(task)]
    assert len(names) == 15 and "mAP k=1 feature5" in names


def test_official_samples_are_read_and_used(task, tmp_path):
    truth = MultiLabelSplits.of(task).train
    expected = {row.metric: row for row in voc_lowshot.run(task) if isinstance(row, Score)}
    (tmp_path / "samples").mkdir()
    for number in (1, 2, 3):
        for k in (1, 2):
            sample = draw_sample(truth, k, task.settings.seed, number)
            targets = np.where(sample == 1, 1, np.where(sample == -1, 0, -1)).astype(np.int32)
            np.save(tmp_path / f"samples/train_targets_sample{number}_k{k}.npy", targets)
    settings = task.settings.model_copy(update={"samples": str(tmp_path / "samples"), "k": (1, 2)})
    found = voc_lowshot.run(dataclasses.replace(task, settings=settings))
    assert {row.metric: row.value for row in found if isinstance(row, Score)} == {
        name: row.value for name, row in expected.items()
    }


def test_samples_that_are_missing_or_of_other_images_are_refused(task, tmp_path):
    def check(folder):
        settings = task.settings.model_copy(update={"samples": str(folder), "k": (1,)})
        voc_lowshot.check(dataclasses.replace(task, settings=settings))

    with pytest.raises(DataError, match="found no folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train_targets_sample1_k1\.npy: expected the targets of a sample"):
        check(tmp_path)
    np.save(tmp_path / "train_targets_sample1_k1.npy", np.zeros((5011, 20), dtype=np.int32))
    with pytest.raises(DataError, match=r"expected targets of 80 images and 10 classes, found \[5011, 20\]"):
        check(tmp_path)
    np.save(tmp_path / "train_targets_sample1_k1.npy", np.zeros((80, 10), dtype=np.int32))
    with pytest.raises(DataError, match="both 1 and 0 of each class"):
        check(tmp_path)
