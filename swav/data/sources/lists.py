"""Data sets that come with lists: Places205, iNaturalist 2018, and ImageNet with a flat val/. Each is two splits with the
same classes.

Every image of a list must be there, or those that are not are left out, and the note says so (allow_missing).
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swav.data.images import Images
from swav.data.sources.decode import reason_of
from swav.data.sources.header_index import check_headers
from swav.data.sources.list_text import as_name, best_reading, read_lines, sampled, without_label
from swav.data.sources.walk import any_there, look_up, subfolders
from swav.data.storage import Files
from swav.data.targets import ClassLabels, Targets
from swav.errors import DataError, printable
from swav.files import visible

Rows = tuple[list[bytes], list[str]]  # names below the folder of images, and labels

HOW_PLACES205 = (
    "unpack imagesPlaces205_resize.tar.gz and trainvalsplit_places205.tar.gz there (places.csail.mit.edu), "
    "or draw a stand-in: swav data shapes ROOT/Places205 --layout places205"
)
HOW_INAT18 = (
    "unpack train_val2018.tar.gz, train2018.json.tar.gz and val2018.json.tar.gz there (the iNaturalist competition of 2018), "
    "or draw a stand-in: swav data shapes ROOT/iNaturalist2018 --layout inat18"
)
HOW_IMAGENET = (
    "get meta/train.txt and meta/val.txt (train.txt and val.txt of caffe_ilsvrc12.tar.gz: a path below train/ or val/ and a label a "
    "line), or move each image of val/ into a folder of its class"
)
CAUSE_BY = 4  # missing images of a list, to find out why they are not found
_PLACES_LISTS = "trainvalsplit_places205"
_PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"
_INAT_IMAGES = "train_val2018"


def is_flat_imagenet(home: Path) -> bool:
    """Whether val/ is as its archive unpacks, without class folders, and lists say what its images show."""
    if not all((home / "meta" / f"{split}.txt").is_file() for split in ("train", "val")) or not (home / "val").is_dir():
        return False
    return not subfolders(home / "val")


def imagenet_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train, val) of ImageNet by meta/train.txt and meta/val.txt: lines of a path below train/ or val/ and a label.

    Args, Raises: as places205_splits.
    """
    home = Path(root).expanduser()
    train, val = (imagenet_rows(home, split) for split in ("train", "val"))
    return _splits(home, ("train", "val"), train, val, cache, allow_missing)


def imagenet_rows(home: Path, split: str) -> Rows:
    """Names below home/split, and labels, by home/meta/split.txt.

    Raises:
        DataError: the list cannot be read, or a line is not a path and a label.
    """
    return _listed(home / "meta" / f"{split}.txt", HOW_IMAGENET, split, home / split)


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
    train, val = (
        _listed(home / _PLACES_LISTS / f"{split}_places205.csv", HOW_PLACES205, split, home / _PLACES_IMAGES)
        for split in ("train", "val")
    )
    return _splits(home, (_PLACES_IMAGES, _PLACES_IMAGES), train, val, cache, allow_missing)


def inat18_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train, val) of iNaturalist 2018: images below train_val2018, and train2018.json and val2018.json beside it (or
    in annotations/), or lists of `path label` as meta/train.txt and meta/val.txt.

    Args, Raises: as places205_splits.
    """
    home, mark = find_inat18(root)
    first = home / mark
    paths = {split: first.with_name(first.name.replace("train", split)) for split in ("train", "val")}
    train, val = (
        _listed(path, HOW_INAT18, split, home / _INAT_IMAGES) if path.suffix == ".txt" else read_inat_json(path)
        for split, path in paths.items()
    )
    return _splits(home, (_INAT_IMAGES, _INAT_IMAGES), train, val, cache, allow_missing)


def read_inat_json(path: Path, how: str = HOW_INAT18) -> Rows:
    """Names and categories of a COCO-like JSON, in the order of its images, in time linear in it.

    Raises:
        DataError: it cannot be read, or an image has no category.
    """
    where = printable(str(path))
    try:
        content: Any = json.loads(path.read_bytes())
        category = {row["image_id"]: str(int(row["category_id"])) for row in content["annotations"]}
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


def _listed(path: Path, how: str, split: str, folder: Path) -> Rows:
    """Lines of a path and a label behind it, parted by a tab, semicolon, comma or blank (paths may hold blanks).

    Args:
        how: to get the list.
        split: that it is of, for messages.
        folder: that the paths are below. A path may begin with its name: whichever way the files are found counts.
    """
    where = printable(str(path))
    what = f"the list of {split}: a path and a label a line"
    try:
        lines = read_lines(path, what)
    except DataError as error:
        raise DataError(f"{error}\n{how}") from None
    texts, labels = list[str](), list[str]()
    for number, line in lines:
        parts = without_label(line)
        if parts is None or (parts[1].isdecimal() is not (labels or [parts[1]])[0].isdecimal()):
            raise DataError(
                f"{where}: expected a path and a label in line {number} of the list of {split}, found "
                f"'{printable(line)[:60]}'; get the list again"
            )
        texts.append(parts[0])
        labels.append(parts[1])

    def is_there(name: bytes) -> bool:
        return any_there(folder, [name])

    def below_its_name(text: str) -> bytes:
        return as_name(text.replace("\\", "/").removeprefix("./").removeprefix(f"{folder.name}/"))

    reading = best_reading(texts, (as_name, below_its_name), is_there) if texts else as_name
    return [reading(text) for text in texts], labels


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
    classes = sorted_classes(train[1])
    if odd := sorted_classes(set(val[1]) - set(classes)):
        raise DataError(
            f"{printable(str(home))}: expected the classes of train in val too, found class {printable(odd[0])} only in val; "
            "get the lists again"
        )
    number = {label: k for k, label in enumerate(classes)}
    first, second = (
        listed_split(
            home / folder,
            names,
            ClassLabels(np.array([number[label] for label in labels], dtype=np.int64), classes),
            split=split,
            cache=cache,
            allow_missing=allow_missing,
        )
        for split, folder, (names, labels) in zip(("train", "val"), folders, (train, val), strict=True)
    )
    return first, second


def sorted_classes(texts: Iterable[str]) -> list[str]:
    """Class names by their bytes, as folders are sorted; numbers (in a list) by their value."""
    names = set(texts)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names, key=os.fsencode)


def listed_split(
    root: Path,
    names: list[bytes],
    targets: Targets,
    *,
    split: str,
    cache: Path | None,
    allow_missing: bool,
) -> Images:
    """A split of a data set whose lists say what belongs to it, as those of VOC, Places205 and iNaturalist do.

    Args:
        root: what `names` are relative to.
        targets: of each name.
        split: its name, for messages.
        allow_missing: leave out listed images that are not there, and say so in the note.

    Raises:
        DataError: a listed image is missing, or none can be read.
    """
    where = printable(str(root))
    found, kept = look_up(root, names)
    if found.bad and (not allow_missing or not len(kept)):
        more = f" and {len(found.bad) - 1} more of {len(names)}" if len(found.bad) > 1 else ""
        raise DataError(
            f"{where}: expected every image of the list of {split}, found none at {printable(found.bad[0][0])}{more}"
            f"{likely_cause(root, [name for name, _ in found.bad])}; unpack the archives again, or use protocol=smoke"
        )
    rows, reasons = check_headers(root, found.names, found.rows, cache, split)
    good = [i for i in range(len(rows)) if i not in reasons]
    if not good:
        raise DataError(f"{where}: expected readable images of {split}, found none; check the files")
    missing = f" ({len(found.bad)} listed images are not there)" if found.bad else ""
    return Images(
        Files(root, (found.names[i] for i in good), rows[good], found.inodes[good]),
        targets.select(np.asarray(kept[good])),
        bad=sorted(found.bad + [(os.fsdecode(found.names[i]), reason) for i, reason in reasons.items()]),
        note=f"{split} of {where}{missing}",
    )


def likely_cause(root: Path, missing: Sequence[str]) -> str:
    """Why files of a list are not found below a folder, where that can be seen from what is there; else empty."""
    few = [name for name in sampled(list(missing)) if name and not os.path.isabs(name)][:CAUSE_BY]  # noqa: PTH117
    if not few:
        return ""

    def are_below(place: Path, *readings: Callable[[str], str]) -> bool:
        return all(any_there(place, [as_name(reading(name)) for reading in readings]) for name in few)

    if are_below(root, lambda name: name.replace("\\", "/")):
        return " (paths of Windows: write / for \\)"
    above = root.parent
    places = [
        *(root / name for name in subfolders(root)),
        above,
        *(above / name for name in subfolders(above)),
        above.parent,
    ]
    for place in places:
        if place != root and are_below(place, str, lambda name: (without_label(name) or (name,))[0]):
            return f" (they are there below {printable(str(place))}: the paths are relative to that folder)"
    path = root / few[0]
    if not path.parent.is_dir():
        return f" (there is no folder {printable(str(path.parent))})"
    alike = [
        each.name for each in visible(path.parent) if each.name.lower() == path.name.lower() or each.stem == path.stem
    ]
    if alike:
        return f" ({printable(alike[0])} is there: names must be as the files have them)"
    return " (the list is no UTF-8: save it so)" if any("\udc80" <= letter <= "\udcff" for letter in few[0]) else ""
