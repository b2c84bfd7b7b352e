"""Attacks: an image that is scored by what has seen it, twice or never; a setting, a protocol or a data set that protocol own takes
for another; uncertainty that is not in results.json.

Run: pytest tests/evaluation/test_own.py
"""

import json
import os
import shutil
import statistics
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from swav.cli import app
from swav.data.overlap import SharedImages
from swav.errors import ConfigError, DataError
from swav.evaluation import own, runner
from swav.evaluation.catalog import CATALOG
from swav.evaluation.request import read_request, resolve
from swav.recipe_files import load_recipe
from swav.results.intervals import wilson
from swav.results.paired import paired_difference

QUICK: dict[str, Any] = {"protocol": "own", "size": 16, "workers": 0, "device": "cpu"}


def bench(names, data, out, weights: Any = "random:tiny", **settings):
    return runner.bench(names, weights=weights, data=data, out=out, **QUICK | settings)


# -- folds


@pytest.mark.parametrize("counts", [(10, 10, 10), (7, 23, 1), (1, 1, 40), (3, 3)])
def test_folds_have_equal_shares_of_all_and_of_each_class(counts):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = own.folds_of(labels, 0)
    for mask in (labels >= 0, *(labels == k for k in range(len(counts)))):
        sizes = np.bincount(folds[mask], minlength=own.FOLDS)
        assert sizes.max() - sizes.min() <= 1
    assert (folds == own.folds_of(labels, 0)).all()
    assert len(labels) < 20 or (folds != own.folds_of(labels, 1)).any()
    largest = np.bincount(folds, minlength=own.FOLDS).max()
    assert own.smallest_part(len(labels)) == len(labels) - largest


class Remembers:
    """Answers class 0 for what it has learned from, and the last class for what it has not."""

    def __init__(self, features, last):
        self.seen, self.last = {row.tobytes() for row in features}, last

    def ranked(self, features):
        return {"": np.array([[0 if row.tobytes() in self.seen else self.last] for row in features])}

    def described(self):
        return {}


@pytest.fixture
def undivided(colours, tmp_path):
    """Class folders without val/, 8 images each."""
    shutil.copytree(colours / "train", tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("whole", [False, True])
def test_every_image_is_scored_once_by_what_has_never_seen_it(colours, undivided, tmp_path, monkeypatch, whole):
    sizes, calls = list[int](), list[Any]()

    def scores(task, name, data, learn, *more, kept=own.scores):
        def remembering(features, labels, groups, like):
            sizes.append(len(features))
            calls.append(like)
            return Remembers(features, task.num_classes - 1)

        return kept(task, name, data, remembering, *more)

    monkeypatch.setattr(own, "scores", scores)
    (row,) = bench(["knn"], colours if whole else undivided, tmp_path / "out").results
    assert row.metric == "top-1" and row.value == pytest.approx(100 / 3)  # the last class is right, and no other
    assert (row.n, sorted(sizes)) == ((12, [19, 19, 19, 19, 20, 24]) if whole else (24, [19, 19, 19, 19, 20]))
    assert [like is None for like in calls] == ([True] + [False] * 5 if whole else [True] * 5)
    assert row.log is not None
    names = json.loads((tmp_path / "out" / row.log).read_text())["answers"]["images"]
    assert len(names) == len(set(names)) == row.n


def test_labels_at_random_are_not_learned_where_every_image_is_scored(tmp_path):
    """100 images whose label is in no pixel: an image that helped to learn its own label, or to choose, would raise the score."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(300, 64)).astype(np.float32), rng.integers(0, 3, 300)
    from swav.evaluation import logistic

    costs, right = [1e-3, 0.1, 10.0], 0
    folds = own.folds_of(labels, 0)
    for fold in range(own.FOLDS):
        out = folds == fold
        by_cost = logistic.right_by_cost(features[~out], labels[~out], own.folds_of(labels[~out], 0), costs)
        (layer,) = logistic.fit(features[~out], labels[~out], [costs[int(by_cost.argmax())]])
        right += int((layer.ranked(features[out])[:, 0] == labels[out]).sum())
    assert abs(right / 300 - 1 / 3) < 0.09  # three standard deviations


# -- rows


def test_rows_carry_spread_interval_and_the_answers_by_which_weights_are_paired(colours, tmp_path):
    results = bench(["knn", "linear"], colours, tmp_path, ["random:tiny", "random:cifar10"]).results
    assert [row.metric for row in results[:4]] == [f"top-1 k={k}" for k in (1, 5, 10)] + [
        "top-1"
    ]  # 3 classes: no top-5
    for row in results:
        assert (
            row.protocol == "own" and row.comparable is False and row.difference.startswith("protocol own; 24 training")
        )
        assert row.value is not None and row.n == 12 and row.log is not None and row.seed == 0
        assert row.interval == pytest.approx([100 * end for end in wilson(round(row.value * 12 / 100), 12)])
        log = json.loads((tmp_path / row.log).read_text())
        assert (
            row.spread == pytest.approx(statistics.stdev(log["parts"][row.metric]))
            and len(log["parts"][row.metric]) == 5
        )
        assert row.value == pytest.approx(100 * log["answers"]["right"][row.metric].count("1") / 12)
    assert "no k=[20, 100, 200], more than the smallest bank" in results[0].difference
    for first, second in zip(results[:4], results[4:], strict=True):
        found = paired_difference(first, second, tmp_path)
        assert second.value == pytest.approx(first.value + 100 * found.difference)
    assert bench(["knn", "linear"], colours, tmp_path, ["random:tiny", "random:cifar10"]).results == results
    assert "Protocol own" in (tmp_path / "tables.md").read_text()


def test_rare_classes_are_scored_and_what_cannot_be_learned_is_refused_in_a_line(undivided, tmp_path):
    for path in sorted((undivided / "red").iterdir())[1:]:
        path.unlink()
    rows = bench(["knn", "linear"], undivided, tmp_path / "out").results
    assert {row.n for row in rows} == {17} and all("scored in 5 folds" in row.difference for row in rows)
    for path in sorted((undivided / "blue").iterdir())[2:]:
        path.unlink()
    with pytest.raises(DataError, match="at least two classes with 3 images to learn from, found 1") as caught:
        bench(["linear"], undivided, tmp_path / "other")
    assert "\n" not in str(caught.value) and not (tmp_path / "other").exists()


def test_a_list_without_splits_is_scored_whole_and_one_with_splits_is_not(colours, tmp_path):
    rows = [(path, path.parent.name, path.parents[1].name) for path in sorted(colours.rglob("*.png"))]
    for name, columns, n in (("whole", "path,label", 36), ("halves", "path,label,split", 12)):
        lines = [",".join(map(str, row[: len(columns.split(","))])) for row in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join([columns, *lines]))
        found = bench(["linear"], tmp_path / f"{name}.csv", tmp_path / name).results
        assert {row.n for row in found} == {n}


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_image_that_is_twice_in_a_set_scored_in_folds_is_refused(undivided, tmp_path, link):
    link(undivided / "red" / "0.png", undivided / "red" / "again.png")
    with pytest.raises(SharedImages, match=r"red/0\.png and \S+red/again\.png to be one file; list"):
        bench(["knn"], undivided, tmp_path / "out")


# -- settings


def test_the_size_is_the_networks_own_unless_one_is_given(colours, tmp_path):
    own_size = load_recipe("tiny").resolution
    settings = {key: value for key, value in QUICK.items() if key != "size"}
    found = runner.bench(["knn"], weights="random:tiny", data=colours, out=tmp_path / "a", **settings).results
    assert own_size != 224 and {row.config.model_dump()["size"] for row in found} == {own_size}
    found = bench(["knn"], colours, tmp_path / "b", **{"knn.k": [3], "knn.size": 24}).results
    assert [(row.metric, row.config.model_dump()["size"]) for row in found] == [("top-1 k=3", 24)]
    with pytest.raises(DataError, match=r"knn.k: expected at most 19 .*found 20; use knn.k=\[19\]"):
        bench(["knn"], colours, tmp_path / "c", **{"knn.k": [20]})


def test_a_benchmark_without_protocol_own_is_refused_by_name_and_not_run_under_all(colours, undivided, tmp_path):
    only = "which only knn, linear, segment-linear have; use protocol=published or protocol=smoke"
    with pytest.raises(ConfigError, match=f"svm: expected a protocol that it has, found own, {only}"):
        resolve(["knn", "svm"], {"protocol": "own"})
    have = ["knn", "linear", "segment-linear"]
    assert list(resolve(["all"], {"protocol": "own"})[1]) == have
    request = read_request(["all"], ["random:tiny"], {"protocol": "own"})
    assert [row.bench for row in request.absent] == [name for name in CATALOG if name not in have]
    content = bench(["all"], undivided, tmp_path / "out")
    assert {row.bench for row in content.results} == {"knn", "linear"}
    assert {row.bench for row in content.not_run} == set(CATALOG) - {"knn", "linear"}  # segment-linear has no data here
    with pytest.raises(ConfigError, match=r"unknown key 'linear\.epochs'"):
        resolve(["linear"], {"protocol": "own", "linear.epochs": 3})
    with pytest.raises(ConfigError, match="score_images: expected none"):
        bench(["knn"], undivided, tmp_path / "other", score_images=5)
    assert {row.n for row in bench(["knn"], undivided, tmp_path / "other", train_images=15).results} == {15}


def test_a_dry_run_names_the_data_and_writes_nothing(undivided, tmp_path):
    rows = bench(["knn", "linear"], undivided, tmp_path / "out", dry_run=True).dry_run
    assert [getattr(row, "data", "") for row in rows] == [f"{undivided} (the whole of it): 24, in folds"] * 2
    assert not (tmp_path / "out").exists()


def test_the_command_prints_differences_to_the_first_weights(colours, tmp_path):
    words = ["bench", "knn", "linear", *(f"{key}={value}" for key, value in QUICK.items())]
    words += ["--weights", "random:tiny", "--weights", "random:cifar10", "--data", str(colours), "--out", str(tmp_path)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0
    assert "knn top-1 k=10, random:cifar10: difference to random:tiny: " in shown.stdout
    assert "linear top-1, random:cifar10: difference to random:tiny: " in shown.stdout
