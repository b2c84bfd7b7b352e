"""Images that would be learned from and scored: by the same name, or as one file under two, through a link."""

import os
from pathlib import Path

import numpy as np

from swav.data.images import Images
from swav.errors import DataError, printable


class SharedImages(DataError):
    """The splits of a data set have images in common."""


def refuse_same_folder(train: Path, val: Path) -> None:
    """Refuse splits that are one folder.

    Raises:
        SharedImages: by the two paths.
    """
    if train.exists() and val.exists() and train.samefile(val):
        raise SharedImages(
            f"{printable(str(train))}: expected other images than those to score, found the same folder as "
            f"{printable(str(val))} (a link); put the images to score there"
        )


def refuse_shared(train: Images, val: Images) -> None:
    """Refuse splits that have an image in common: what is learned from and scored would flatter.

    Of links to one file device and inode agree. (Some file systems have none: 0.) Copies are not found: `swav data scan` is
    what compares content.

    Raises:
        SharedImages: with the first of them, by its path or paths.
    """
    found = _same_files(train, val)
    if train.root == val.root:
        scored = {val.name(i): i for i in range(len(val))}
        named = [(i, scored[name]) for i in range(len(train)) if (name := train.name(i)) in scored]
        found = named or found
    if not found:
        return
    i, j = found[0]
    first, second = (printable(os.path.join(split.root, split.name(k))) for split, k in ((train, i), (val, j)))  # noqa: PTH118
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    where = f"{first}{more} in both" if first == second else f"{first} and {second} to be one file{more}"
    raise SharedImages(
        f"{printable(str(train.root))}: expected no image both to learn from and to score, found {where}; "
        "list each image once, and in one split only"
    )


def refuse_doubled(images: Images) -> None:
    """Refuse a set in which an image is twice, by its name or as one file under two: it is to be scored in folds, and would be
    scored by what has learned from its double.

    Raises:
        SharedImages: with the first two, by their paths.
    """
    keys: list[tuple[tuple[object, ...], int]] = [((images.name(i),), i) for i in range(len(images))]
    if images.inodes is not None:
        numbered = np.flatnonzero(images.inodes[:, 1] != 0)
        keys += list(zip(_keys(images, numbered), numbered.tolist(), strict=True))
    seen: dict[tuple[object, ...], int] = {}
    firsts = dict[int, int]()  # of each double, which its name and its file both tell, the image that it doubles
    for key, i in keys:
        if (first := seen.setdefault(key, i)) != i:
            firsts.setdefault(i, first)
    found = [(first, i) for i, first in firsts.items()]
    if not found:
        return
    labels = images.labels
    named = [(i, j) for i, j in found if images.name(i) == images.name(j)]
    differing = [] if labels is None else [(i, j) for i, j in named if labels[i] != labels[j]]
    one, other = (printable(os.path.join(images.root, images.name(i))) for i in (differing or found)[0])  # noqa: PTH118
    where = f"{one} twice" if one == other else f"{one} and {other} to be one file"
    if differing:
        where += " or more, of several classes, which is not supported here"
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    raise SharedImages(
        f"{printable(str(images.root))}: expected each image once, as each is scored by what the others teach, found "
        f"{where}{more}; list each image once"
    )


def _same_files(train: Images, val: Images) -> list[tuple[int, int]]:
    """Places in both splits of images that are one file."""
    if train.inodes is None or val.inodes is None:
        return []
    places = np.flatnonzero(np.isin(train.inodes[:, 1], val.inodes[:, 1]) & (train.inodes[:, 1] != 0))
    if not len(places):  # the usual case costs no look at each
        return []
    scored: dict[tuple[int, ...], int] = {}
    for j, key in enumerate(_keys(val, np.arange(len(val)))):
        scored.setdefault(key, j)
    return [(int(i), scored[key]) for i, key in zip(places, _keys(train, places), strict=True) if key in scored]


def _keys(split: Images, places: np.ndarray) -> list[tuple[int, ...]]:
    """Device, inode and size. (Sizes of one file agree; without them, a file system that numbers badly would be believed.)"""
    assert split.inodes is not None
    return list(
        map(tuple, np.column_stack([split.inodes[places], split.rows["size"][places].astype(np.uint64)]).tolist())
    )
