"""Attacks: a kNN score that is not the protocol's, or that is called comparable when it is not.

Oracle: scikit-learn's brute force on the same features. Run: pytest tests/evaluation/protocols/test_knn.py
"""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from swav.data.sources.open import labelled_splits
from swav.errors import DataError
from swav.evaluation.protocols import knn
from swav.evaluation.settings import BenchSettings, KnnSettings
from swav.evaluation.task import Task
from swav.weights.encoder import load
from tests.frozen import pooled_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def task(colours, tmp_path_factory) -> Task[KnnSettings]:
    settings = KnnSettings(size=24, k=(1, 5, 20), workers=0)
    return Task(
        load("random:tiny"), *labelled_splits(colours), settings, "published", CPU, tmp_path_factory.mktemp("out")
    )


def with_settings(task, protocol="published", **changed):
    return dataclasses.replace(task, protocol=protocol, settings=task.settings.model_copy(update=changed))


def test_scores_are_scikit_learns_on_the_same_features(task):
    scores = {score.metric: score.value for score in knn.run(task)}
    bank, queries = (pooled_features(task.encoder, split, 24, workers=0) for split in (task.train, task.val))
    for k in (1, 5, 20):
        oracle = KNeighborsClassifier(k, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        oracle.fit(bank.features.numpy(), bank.labels.numpy())
        expected = 100 * oracle.score(queries.features.numpy(), queries.labels.numpy())
        assert scores[f"top-1 k={k}"] == pytest.approx(expected)
        assert scores[f"top-5 k={k}"] >= scores[f"top-1 k={k}"]
    assert scores["top-1 k=5"] > 60  # chance is 33: colours survive a random network


def test_the_published_protocol_is_the_default():
    settings = KnnSettings()
    assert (settings.k, settings.temperature, settings.size) == ((10, 20, 100, 200), 0.07, 224)


def test_a_k_above_the_bank_is_refused_by_page_and_left_out_by_smoke(task, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(DataError, match="at most 24"):
        patch.setattr(
            "swav.evaluation.task.FeatureStore", lambda *_, **__: pytest.fail("complains only after the work")
        )
        knn.run(with_settings(task, k=(20, 25)))
    scores = knn.run(with_settings(task, "smoke", k=(20, 25)))
    assert [score.metric for score in scores] == ["top-1 k=20", "top-5 k=20"]
    assert "no k=[25]" in scores[0].deviations and "protocol smoke" in scores[0].deviations
    assert knn.run(with_settings(task, "smoke", k=(25,)))[0].metric == "top-1 k=24"


def test_the_difference_names_images_classes_size_and_k(task):
    difference = knn.run(with_settings(task, k=(5,)))[0].deviations
    for part in (
        "24 training images instead of 1,281,167",
        "12 scored images",
        "3 classes",
        "size 24 instead of 224",
        "k=5",
    ):
        assert part in difference


def test_only_imagenet_by_the_letter_is_comparable(task):
    class_names = [str(k) for k in range(BenchSettings.published["classes"])]
    train = task.train.select(range(3))
    train.targets.classes = class_names
    page = dataclasses.replace(task, train=train, settings=KnnSettings(workers=3, device="cpu"))
    assert page.deviations(BenchSettings.published["training images"], BenchSettings.published["scored images"]) == ""
    assert "1,281,166" in page.deviations(
        BenchSettings.published["training images"] - 1, BenchSettings.published["scored images"]
    )
    assert "1,281,168" in page.deviations(1_281_168, 50_000)  # more are another set, too
    smaller = with_settings(page, size=128, precision="bf16")
    assert smaller.deviations(1_281_167, 50_000) == "size 128 instead of 224; precision bf16 instead of fp32"
