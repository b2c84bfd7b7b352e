"""Find out what a path is: a list, CIFAR, a known data set, a folder with splits, or any other tree. Looks at names only.

Data sets with splits are sought in the folder itself and down to three levels below it, as archives unpack
(ILSVRC/Data/CLS-LOC/train). Where there is more than one, the folder is a tree, which is trained on whole.
"""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from swav.data.sources import cifar
from swav.data.sources.list_text import read_lines
from swav.data.sources.lists import is_flat_imagenet
from swav.data.sources.walk import (
    IMAGE_EXTENSIONS,
    TRAIN_SPLITS,
    VAL_SPLITS,
    Listing,
    first_of,
    may_hold_images,
    read_list,
    subfolders,
)
from swav.errors import DataError, printable

Kind = Literal["cifar-binary", "cifar-strips", "splits", "flat-imagenet", "voc", "coco", "cityscapes", "list", "tree"]
LEVELS = 3  # below the path, where data sets with splits are sought
NAMES = {
    "voc": "PASCAL VOC",
    "coco": "COCO",
    "cityscapes": "Cityscapes",
}  # known by their folders; no image has one class
_SHOWN = 3  # folders in a message
_OLD_VAL_SPLITS = ("val", "valid", "validation", "test")  # of versions that knew no other layout


class DataLayout(NamedTuple):
    """What a path turned out to be.

    Attributes:
        root: what names of images are relative to.
        val: the split for scoring: a folder below the root, or a word; empty: it has none of its own.
        train: the folder below the root that is trained on, where there is a `val`.
        folders: of photographs below the root, of PASCAL VOC's years.
        maps: whether folders of masks are read as images, as versions before known layouts did.
        warnings: what in the folder is not used.
    """

    kind: Kind
    root: Path
    val: str = ""
    version: str = ""
    listing: Listing | None = None
    train: str = "train"
    folders: tuple[str, ...] = ()
    maps: bool = False
    warnings: tuple[str, ...] = ()


def find_layout(path: str | Path, as_before: bool = False) -> DataLayout:
    """Tell what a path is.

    Args:
        as_before: as versions did that knew splits only as train/ beside val/, valid/, validation/ or test/ in the folder
            itself, and no known layouts: for runs that began with them.

    Raises:
        DataError: nothing is there, or it is a file that is not a list.
    """
    where = printable(str(path))
    try:
        root = Path(path).expanduser()
        if root.is_file():
            if root.suffix.lower() not in (".txt", ".csv"):
                raise DataError(
                    f"{where}: expected a folder or a list (.txt, .csv), found another file; give its folder"
                )
            listing = read_list(root)
            val = ""
            if listing.splits is not None:  # of rows for training only, `val` is found to be empty
                val = next((name for name in VAL_SPLITS if name in listing.splits), "val")
            return DataLayout("list", root, val, listing=listing)
        if not root.is_dir():
            found = "no such path" if not os.path.lexists(root) else "neither"
            raise DataError(
                f"{where}: expected a folder of images or a list (.txt, .csv), found {found}; check the path"
            )
        if binary := cifar.find_binary(root):
            return DataLayout("cifar-binary", binary[0], "test", version=binary[1])
        if cifar.has_strips(root):
            return DataLayout("cifar-strips", root, "test")
        return _as_before(root) if as_before else _of_folder(root)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path; ~NOBODY
        raise DataError(f"{where}: expected a folder of images, found: {error}") from error


def _as_before(root: Path) -> DataLayout:
    val = next((name for name in _OLD_VAL_SPLITS if (root / name).is_dir()), "")
    if val and (root / "train").is_dir():
        return DataLayout("splits", root, val, maps=True)
    return DataLayout("tree", root, maps=True)


def _of_folder(root: Path) -> DataLayout:
    homes = _homes(root)
    if len(homes) != 1:
        return DataLayout("tree", root)
    (home, found), *_ = homes.items()
    if found.kind == "voc":
        found = found._replace(val=" and ".join(_voc_lists(found)))
    return found._replace(warnings=_unused(root, home, found))


def _homes(root: Path) -> dict[str, DataLayout]:
    """Data sets with splits in a folder and down to three levels below it, by the folder that each lies in."""
    found: dict[str, DataLayout] = {}
    level, seen = [""], set[str]()
    for depth in range(LEVELS + 1):
        below = []
        for place in level:
            real = os.path.realpath(root / place)
            if real in seen:  # a link to what was found by its own name, or back up
                continue
            seen.add(real)
            names = subfolders(root / place)
            layout = _recognised(root, place, names, at_top=depth == 0)
            if layout is None:
                below += [
                    _join(place, name) for name in sorted(names, key=lambda name: (root / place / name).is_symlink())
                ]
            elif layout.kind != "voc" or depth == 0:
                found[place] = layout
            else:  # the years beside each other are one data set
                home = os.path.dirname(place)  # noqa: PTH120
                others = found[home].folders if home in found else ()
                found[home] = layout._replace(folders=(*others, *layout.folders))
        level = below
    return found


def _recognised(root: Path, place: str, names: list[str], at_top: bool) -> DataLayout | None:
    """What the folder root/place is by the names of its folders, if it is a data set with splits."""
    there = set(names)
    if "JPEGImages" in there and _has(root / place, "Annotations", "ImageSets", "SegmentationClass"):
        return DataLayout("voc", root, folders=(_join(place, "JPEGImages"),), train=_join(place, "JPEGImages"))
    if "leftImg8bit" in there and _has(root / place, "gtFine", "gtCoarse"):
        inside = subfolders(root / place / "leftImg8bit")
        if (train := first_of(TRAIN_SPLITS, inside)) and (val := first_of(VAL_SPLITS, inside)):
            folder = _join(place, "leftImg8bit")
            return DataLayout("cityscapes", root, _join(folder, val), train=_join(folder, train))
    if "annotations" in there:
        for train in sorted(name for name in there if re.fullmatch(r"train\d{4}", name)):
            val = train.replace("train", "val")
            if val in there and (root / place / "annotations" / f"instances_{train}.json").is_file():
                return DataLayout("coco", root, _join(place, val), train=_join(place, train))
    train, val = first_of(TRAIN_SPLITS, names), first_of(VAL_SPLITS, names)
    if not (train and val):
        return None
    if not at_top and not all(may_hold_images(root / place / name) for name in (train, val)):
        return None  # as labels/train beside images/train
    kind: Kind = "flat-imagenet" if (train, val) == ("train", "val") and is_flat_imagenet(root / place) else "splits"
    return DataLayout(kind, root, _join(place, val), train=_join(place, train))


def _has(folder: Path, *names: str) -> bool:
    """Whether a folder holds one of these; `subfolders` leaves those of maps out."""
    return any((folder / name).is_dir() for name in names)


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _unused(root: Path, home: str, found: DataLayout) -> tuple[str, ...]:
    """What lies beside the way down from the root to the data set, and holds images: none of it is trained on."""
    beside, way = list[str](), Path(home).parts
    for depth, step in enumerate(way):
        place = "/".join(way[:depth])
        beside += [
            _join(place, name)
            for name in subfolders(root / place)
            if name != step and may_hold_images(root / place / name)
        ]
        if _holds_images(root / place):
            beside.append(place or ".")
    if found.kind == "voc" and found.folders != ("JPEGImages",):
        years = {Path(folder).parts[len(way)] for folder in found.folders}
        others = [_join(home, name) for name in subfolders(root / home) if name not in years]
        beside += [name for name in others if may_hold_images(root / name)]
    if not beside:
        return ()
    used = f"{found.train}/" if found.kind != "voc" else "/, ".join(found.folders) + "/"
    return (
        f"images in {some_folders(beside)} of {printable(str(root))} are not used: it holds a data set with its own splits, of which "
        f"{printable(used)} is trained on; give another folder as data= to train on them",
    )


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(
            os.path.splitext(os.fsencode(entry.name))[1].lower() in IMAGE_EXTENSIONS  # noqa: PTH122
            for entry in entries
            if not entry.name.startswith(".")
        )


def some_folders(names: Collection[str]) -> str:
    shown = ", ".join(f"{printable(name)}/" for name in list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _voc_lists(layout: DataLayout) -> list[str]:
    """The lists of PASCAL VOC, below the root, of images to score: of each year ImageSets/Main/test.txt, or else Segmentation/val.txt."""
    found = []
    for folder in layout.folders:
        lists = [_join(os.path.dirname(folder), f"ImageSets/{name}.txt") for name in ("Main/test", "Segmentation/val")]  # noqa: PTH120
        found += [path for path in lists if (layout.root / path).is_file()][:1]
    return found


def voc_scored(layout: DataLayout) -> set[bytes]:
    """Images of PASCAL VOC that its lists keep for scoring, below the root and without extension.

    Raises:
        DataError: a list cannot be read.
    """
    scored = set[bytes]()
    for path in _voc_lists(layout):
        folder = _join(path.partition("ImageSets/")[0].rstrip("/"), "JPEGImages")
        lines = read_lines(layout.root / path, "a list of images")
        scored |= {os.fsencode(f"{folder}/{line.split()[0]}") for _, line in lines}
    return scored


def unused_splits(names: Iterable[bytes]) -> list[str]:
    """Folders of images that look like a split for scoring by their names, as seg_test/ beside seg_train/: in a tree without
    splits they are trained on.
    """
    folders = {os.path.dirname(name) for name in names}  # noqa: PTH120
    children: dict[str, set[str]] = {}
    for folder in folders:
        parts = [part for part in os.fsdecode(folder).split("/") if part]
        for depth, part in enumerate(parts):
            children.setdefault("/".join(parts[:depth]), set()).add(part)
    found = []
    for place, its in sorted(children.items()):
        beside_train = any(_words(name) & set(TRAIN_SPLITS) for name in its)
        found += [
            _join(place, name)
            for name in sorted(its)
            if name.lower() in VAL_SPLITS or (beside_train and _words(name) & set(VAL_SPLITS))
        ]
    return found


def _words(name: str) -> set[str]:
    """The words in the name of a folder: test1, TestImages and seg_test have `test` in them."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
