"""Attacks: protocol own, where a group or a copy is on both sides, nothing is said of it, or a column changes what has none.

Run: pytest tests/evaluation/test_own_groups.py
"""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swav.data.sources.open import open_any
from swav.errors import DataError
from swav.evaluation import own, runner
from swav.evaluation.protocols import linear_own
from swav.results.intervals import PairedDifference, of_share
from swav.results.paired import paired_difference

QUICK: dict[str, Any] = {"protocol": "own", "size": 16, "workers": 0, "device": "cpu", "linear.costs": [0.01, 1.0]}


def bench(data, out, **settings):
    return runner.bench(["linear"], weights="random:tiny", data=data, out=out, **QUICK | settings).results


def write_list(folder, path, group):
    rows = [(name, name.parent.name) for name in sorted((folder / "train").rglob("*.png"))]
    lines = [f"{name},{label},{group(i)}" for i, (name, label) in enumerate(rows)]
    path.write_text("\n".join(["path,label,group", *lines]))
    return path


def test_no_layer_learns_from_the_group_that_it_scores_nor_chooses_its_cost_so(colours, tmp_path, monkeypatch):
    """24 images in 8 groups: an image's group is known by its place in the list."""
    seen, made = list[Any](), linear_own.learner

    def learner(settings):
        learn = made(settings)

        def watched(features, labels, groups, like):
            seen.append(groups)
            return learn(features, labels, groups, like)

        return watched

    parts = list[Any]()

    def folds_of(labels, seed, groups=None, kept=own.folds_of):
        found = kept(labels, seed, groups)
        assert groups is not None and all(len(set(found[groups == g].tolist())) == 1 for g in np.unique(groups))
        parts.append(len(labels))
        return found

    monkeypatch.setattr(linear_own, "learner", learner)
    monkeypatch.setattr(own, "folds_of", folds_of)
    (row,) = bench(write_list(colours, tmp_path / "l.csv", lambda i: f"g{i % 8}"), tmp_path / "out")
    whole = set(range(8))
    left_out = [whole - set(groups.tolist()) for groups in seen]
    assert len(seen) == 5 and all(left_out) and sorted(g for part in left_out for g in part) == sorted(whole)
    assert 24 in parts and any(part < 24 for part in parts)
    assert "scored in 5 folds of whole groups" in row.difference and row.n == 24


def test_fewer_groups_than_folds_are_folds_themselves_and_too_few_are_refused(colours, tmp_path):
    (row,) = bench(write_list(colours, tmp_path / "three.csv", lambda i: f"g{i % 3}"), tmp_path / "out")
    assert "scored in 3 folds of whole groups" in row.difference
    assert len(json.loads((tmp_path / "out" / row.log).read_text())["parts"]["top-1"]) == 3
    with pytest.raises(
        DataError, match=r"expected groups enough that two classes are left .*, found 1 group; use"
    ) as caught:
        bench(write_list(colours, tmp_path / "one.csv", lambda i: "g"), tmp_path / "none")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        DataError, match="found 3 groups"
    ):  # a group is a class: none is learned from where it is scored
        bench(write_list(colours, tmp_path / "classes.csv", lambda i: f"g{i // 8}"), tmp_path / "none")


def test_groups_that_are_the_classes_are_refused_however_many_there_are(colours):
    """Of four classes three were left to learn from, and each scored image's own was not among them: 0.0 %, as a result."""
    labels = np.repeat(np.arange(4), 5)
    images = open_any(colours / "train", None)
    for in_folds in (True, False):
        with pytest.raises(
            DataError, match=r"in 2 groups or more, .* found 0; is the column group the class"
        ) as caught:
            own.require_labels(images, labels, in_folds, labels + 7)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match="found 1; is"):
            own.require_labels(images, labels, in_folds, np.where(np.arange(20) == 0, 99, labels))
        own.require_labels(images, labels, in_folds, labels + 10 * (np.arange(20) % 2))


def test_other_groups_are_another_log_and_without_the_column_nothing_changes(colours, tmp_path):
    shutil.copytree(colours / "train", tmp_path / "set")
    (row,) = bench(tmp_path / "set", tmp_path / "out")
    of = json.loads((tmp_path / "out" / row.log).read_text())
    assert "groups" not in of["of"] and "groups" not in of["answers"]["of"]
    rows = [
        bench(write_list(colours, tmp_path / "l.csv", group), tmp_path / "out")[0]
        for group in (lambda i: i % 8, lambda i: i % 12)
    ]
    assert len({row.log, *(each.log for each in rows)}) == 3
    logs = [json.loads((tmp_path / "out" / each.log).read_text()) for each in rows]
    assert logs[0]["answers"]["of"]["groups"] != logs[1]["answers"]["of"]["groups"]


def test_intervals_of_a_row_and_of_a_gain_are_those_of_its_groups(colours, tmp_path):
    path = write_list(colours, tmp_path / "l.csv", lambda i: f"g{i % 8}")
    found = runner.bench(
        ["linear"], weights=["random:tiny", "random:cifar10"], data=path, out=tmp_path / "out", **QUICK
    )
    logs = [json.loads((tmp_path / "out" / row.log).read_text())["answers"] for row in found.results]
    groups = np.array([i % 8 for i in range(24)])
    rights = [np.array([mark == "1" for mark in log["right"]["top-1"]]) for log in logs]
    for row, right in zip(found.results, rights, strict=True):
        assert row.interval == pytest.approx([100 * end for end in of_share(right, groups)])
    (one, other), (first, second) = found.results, rights
    assert paired_difference(one, other, tmp_path / "out") == PairedDifference.of(first, second, groups)


def test_copies_in_other_folds_are_counted_warned_of_and_in_the_row(colours, tmp_path, capsys):
    folder = tmp_path / "set"
    shutil.copytree(colours / "train", folder)
    rng = np.random.default_rng(0)
    for i in range(6):  # each with a copy of another size
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        for k, size in enumerate((64, 48)):
            picture.resize((size, size)).save(folder / "red" / f"double{i}{'ab'[k]}.png")
    own._found.clear()
    (row,) = bench(folder, tmp_path / "out")
    log = json.loads((tmp_path / "out" / row.log).read_text())["near_duplicates"]
    pairs = [tuple(name.rpartition("double")[2] for name in pair) for pair in log["pairs"]]
    assert pairs and all(one[0] == other[0] and one != other for one, other in pairs) and log["complete"]
    assert f"; {len(pairs)} near-duplicates of what is learned from" in row.difference
    said = capsys.readouterr().err
    assert f"{len(pairs)} of 36 scored images have a near-duplicate in another fold (as red/double" in said
    assert "give copies one value in a CSV's column group" in said
    lines = [
        f"{name},{name.parent.name},{name.stem[:-1] if 'double' in name.name else name}"
        for name in sorted(folder.rglob("*.png"))
    ]
    (tmp_path / "grouped.csv").write_text("\n".join(["path,label,group", *lines]))
    (row,) = bench(tmp_path / "grouped.csv", tmp_path / "out")
    assert "near-duplicate" not in row.difference and "near-duplicate" not in capsys.readouterr().err
