"""Data sets that come with lists: Places205, iNaturalist 2018, and ImageNet with a flat val/. Each is two splits with the
same classes.

Every image of a list must be there, or those that are not are left out, and the note says so (allow_missing).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swav.data.images import Images
from swav.data.sources.decode import printable, reason_of
from swav.data.sources.open import listed_split
from swav.data.targets import ClassLabels
from swav.errors import DataError
from swav.files import visible

Rows = tuple[list[bytes], list[int]]  # names below the folder of images, and labels

HOW_PLACES205 = (
    "unpack imagesPlaces205_resize.tar.gz and trainvalsplit_places205.tar.gz there (places.csail.mit.edu), "
    "or draw a stand-in: swav data shapes ROOT/Places205 --layout places205"
)
HOW_INAT18 = (
    "unpack train_val2018.tar.gz, train2018.json.tar.gz and val2018.json.tar.gz there (the iNaturalist competition of 2018), "
    "or draw a stand-in: swav data shapes ROOT/iNaturalist2018 --layout inat18"
)
HOW_IMAGENET = "get meta/train.txt and meta/val.txt again (lines of a path below train/ or val/ and a label)"
_PLACES_LISTS = "trainvalsplit_places205"
_PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"
_INAT_IMAGES = "train_val2018"


def is_flat_imagenet(home: Path) -> bool:
    """Whether val/ is as its archive unpacks, without class folders, and lists say what its images show."""
    if not all((home / "meta" / f"{split}.txt").is_file() for split in ("train", "val")) or not (home / "val").is_dir():
        return False
    return not any(entry.is_dir() for entry in visible(home / "val"))


def imagenet_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train, val) of ImageNet by meta/train.txt and meta/val.txt: lines of a path below train/ or val/ and a label.

    Args, Raises: as places205_splits.
    """
    home = Path(root).expanduser()
    train, val = (_listed(home / "meta" / f"{split}.txt", HOW_IMAGENET) for split in ("train", "val"))
    return _splits(home, ("train", "val"), train, val, cache, allow_missing)


def places205_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train, val) of Places205: images below data/vision/torralba/deeplearning/images256, lists of `path label`.

    Args:
        root: Places205 itself, or a folder that holds it under this name.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out listed images that are not there.

    Raises:
        DataError: there is no such data set, a list is missing or damaged, or a list names a missing image.
    """
    home, _ = find_places205(root)
    train, val = (_listed(home / _PLACES_LISTS / f"{split}_places205.csv", HOW_PLACES205) for split in ("train", "val"))
    return _splits(home, (_PLACES_IMAGES, _PLACES_IMAGES), train, val, cache, allow_missing)


def inat18_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train, val) of iNaturalist 2018: images below train_val2018, and train2018.json and val2018.json beside it (or
    in annotations/), or lists of `path label` as meta/train.txt and meta/val.txt.

    Args, Raises: as places205_splits.
    """
    home, mark = find_inat18(root)
    first = home / mark
    read = _listed if first.suffix == ".txt" else read_inat_json
    train, val = (read(first.with_name(first.name.replace("train", split)), HOW_INAT18) for split in ("train", "val"))
    return _splits(home, (_INAT_IMAGES, _INAT_IMAGES), train, val, cache, allow_missing)


def read_inat_json(path: Path, how: str = HOW_INAT18) -> Rows:
    """Names and categories of a COCO-like JSON, in the order of its images, in time linear in it.

    Raises:
        DataError: it cannot be read, or an image has no category.
    """
    where = printable(str(path))
    try:
        content: Any = json.loads(path.read_bytes())
        category = {row["image_id"]: int(row["category_id"]) for row in content["annotations"]}
        images = [(row["id"], str(row["file_name"])) for row in content["images"]]
    except OSError as error:
        raise DataError(f"{where}: expected annotations, found {reason_of(error)}\n{how}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected JSON with images (id, file_name) and annotations (image_id, category_id), found "
            f"{type(error).__name__}: {printable(str(error))[:80]}\n{how}"
        ) from None
    for number, name in images:
        if number not in category:
            raise DataError(
                f"{where}: expected a category of every image, found none of {printable(name)}; get it again"
            )
    names = [name.removeprefix(f"{_INAT_IMAGES}/").encode("utf-8", "surrogateescape") for _, name in images]
    return names, [category[number] for number, _ in images]


def _listed(path: Path, how: str) -> Rows:
    """Lines of a path and a label, parted by the last blank (paths may hold blanks)."""
    where = printable(str(path))
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{where}: expected a list of paths and labels, found {reason_of(error)}\n{how}") from None
    names, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(b" ")
        if not name or not label.isdigit():
            raise DataError(
                f"{where}: expected a path and a label in line {number}, found "
                f"'{printable(line.decode('utf-8', 'surrogateescape'))[:60]}'; get the list again"
            )
        names.append(name.strip().removeprefix(f"{_INAT_IMAGES}/".encode()))
        labels.append(int(label))
    return names, labels


def find_places205(root: str | Path) -> tuple[Path, str]:
    """The folder Places205 at a path or below, and its first list; looks at no image.

    Raises:
        DataError: there is none.
    """
    return _home(root, "Places205", [f"{_PLACES_LISTS}/train_places205.csv"], HOW_PLACES205)


def find_inat18(root: str | Path) -> tuple[Path, str]:
    """As find_places205, of iNaturalist 2018."""
    marks = ("train2018.json", "annotations/train2018.json", "meta/train.txt")
    return _home(root, "iNaturalist2018", marks, HOW_INAT18)


def _home(root: str | Path, name: str, marks: Sequence[str], how: str) -> tuple[Path, str]:
    """The data set itself, or the folder of its name below, and which of its marks is there."""
    path = Path(root).expanduser()
    for place in (path, path / name):
        for mark in marks:
            if (place / mark).is_file():
                return place, mark
    raise DataError(f"{printable(str(path))}: expected {name} there or as {name}/ below it, found no {marks[0]}\n{how}")


def _splits(
    home: Path, folders: tuple[str, str], train: Rows, val: Rows, cache: Path | None, allow_missing: bool
) -> tuple[Images, Images]:
    numbers = sorted(set(train[1]))
    if odd := sorted(set(val[1]) - set(numbers)):
        raise DataError(
            f"{printable(str(home))}: expected the classes of train in val too, found class {odd[0]} only in val; "
            "get the lists again"
        )
    number = {label: k for k, label in enumerate(numbers)}
    first, second = (
        listed_split(
            home / folder,
            names,
            ClassLabels(np.array([number[label] for label in labels], dtype=np.int64), list(map(str, numbers))),
            split=split,
            cache=cache,
            allow_missing=allow_missing,
        )
        for split, folder, (names, labels) in zip(("train", "val"), folders, (train, val), strict=True)
    )
    return first, second
