"""Attacks: a group that is torn apart, a class or all images heaped into one fold, groups of a list that are lost on the way.

Run: pytest tests/data/test_folds.py
"""

import numpy as np
import pytest
from PIL import Image

from swav.data.folds import group_folds
from swav.data.sources.open import labelled_splits, open_images


def made(seed: int, groups: int, classes: int, largest: int):
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(groups), rng.integers(1, largest + 1, groups))
    return rng.integers(0, classes, len(numbers)), rng.permutation(numbers) * 7 + 3


@pytest.mark.parametrize(("groups", "classes", "largest"), [(40, 3, 6), (200, 10, 3), (60, 2, 1), (12, 4, 9)])
def test_groups_stay_whole_and_shares_are_near_to_equal(groups, classes, largest):
    labels, numbers = made(1, groups, classes, largest)
    folds = group_folds(labels, numbers, 5, 0)
    assert all(len(set(folds[numbers == group].tolist())) == 1 for group in np.unique(numbers))
    sizes = np.bincount(folds, minlength=5)
    assert sizes.max() - sizes.min() <= largest
    if groups >= 40:
        for k in range(classes):
            counts = np.bincount(folds[labels == k], minlength=5)
            assert counts.max() - counts.min() <= largest
    assert (folds == group_folds(labels, numbers, 5, 0)).all()
    assert (folds != group_folds(labels, numbers, 5, 1)).any()


def test_a_rare_class_is_in_every_fold():
    labels = np.array([0] * 80 + [1] * 5)
    numbers = np.array([*np.repeat(np.arange(40), 2), *range(40, 45)])
    for seed in range(5):
        assert sorted(group_folds(labels, numbers, 5, seed)[80:]) == [0, 1, 2, 3, 4]


def test_the_largest_groups_are_placed_first():
    """Seven large ones that came late would leave two folds larger: nothing small would be left to even them out."""
    numbers = np.array([*range(90), *np.repeat(np.arange(90, 97), 30)])
    folds = group_folds(np.zeros(len(numbers), np.int64), numbers, 5, 0)
    assert np.bincount(folds).tolist() == [60] * 5


@pytest.fixture
def listed(tmp_path):
    """A writer of a CSV of 24 pictures: of two classes, four of a patient."""

    def write(header, row):
        for i in range(24):
            Image.new("RGB", (12, 12), (i * 10, 90, 255 - i * 10)).save(tmp_path / f"{i}.png")
        (tmp_path / "list.csv").write_text("\n".join([header, *(row(i) for i in range(24))]))
        return tmp_path / "list.csv"

    return write


def test_the_column_group_is_kept_and_whole_in_drawn_splits(listed, tmp_path):
    path = listed("path,label,group", lambda i: f"{i}.png,{'ab'[i // 2 % 2]},patient{i // 4}")
    (tmp_path / "3.png").unlink()  # listed, and not there
    (tmp_path / "6.png").write_bytes(b"none")
    images = open_images(path, "all", tmp_path / "cache")
    assert images.groups is not None and images.groups_fingerprint
    assert [int(name.partition(".")[0]) // 4 for name in map(images.name, range(22))] == images.groups.tolist()
    chosen = images.select([5, 0]).groups
    assert chosen is not None and chosen.tolist() == [images.groups[5], images.groups[0]]
    train, val = labelled_splits(path, tmp_path / "cache")
    patients = [{int(split.name(i).partition(".")[0]) // 4 for i in range(len(split))} for split in (train, val)]
    assert patients[1] and not patients[0] & patients[1] and patients[0] | patients[1] == set(range(6))
    assert "groups whole" in train.note and len(train) + len(val) == 22


def test_an_image_without_a_group_is_alone_and_a_list_without_the_column_has_none(listed, tmp_path):
    path = listed("path,label,group", lambda i: f"{i}.png,{'ab'[i % 2]},{'p' if i < 4 else ''}")
    groups = open_images(path, "all", tmp_path / "cache").groups
    assert groups is not None and np.unique(groups, return_counts=True)[1].tolist() == [4] + [1] * 20
    path = listed("path,label", lambda i: f"{i}.png,{'ab'[i % 2]}")
    images = open_images(path, "all", tmp_path / "cache")
    assert images.groups is None and not images.groups_fingerprint and images.select([1]).groups is None
    assert "groups" not in labelled_splits(path, tmp_path / "cache")[0].note


def test_a_group_on_both_sides_of_the_users_own_split_is_warned_of(listed, tmp_path, capsys):
    path = listed(
        "path,label,split,group", lambda i: f"{i}.png,{'ab'[i % 2]},{'val' if i in (0, 1, 8) else 'train'},p{min(i, 4)}"
    )
    train, val = labelled_splits(path, tmp_path / "cache")
    assert (len(train), len(val)) == (21, 3) and val.groups is not None
    assert "1 group of the column group on both sides of the column split" in capsys.readouterr().err
