"""PASCAL VOC 2007 as a set of images with several labels each: the splits trainval and test, and 20 classes.

A class is whatever has a list ImageSets/Main/CLASS_{trainval,test}.txt, of an id and a mark a line: 1, the image shows it;
-1, it does not; 0, it shows hard to recognise ones only ("difficult"). Images go by their ids.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swav.data.images import Images
from swav.data.sources.list_text import read_lines
from swav.data.sources.lists import listed_split
from swav.data.targets import MultiLabels
from swav.errors import DataError, printable
from swav.files import visible

TRAIN, VAL = "trainval", "test"
# below a root: it is the year, the kit, a folder of data sets, or one that holds the kit in a folder of its own
HOMES = ("", "VOC2007", "VOCdevkit/VOC2007", "*/VOCdevkit/VOC2007")
HOW = (
    "unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar (host.robots.ox.ac.uk/pascal/VOC/voc2007) there, "
    "or draw a stand-in: swav data shapes ROOT/VOCdevkit --layout voc"
)


def classification_splits(
    root: str | Path, cache: Path | None = None, allow_missing: bool = False
) -> tuple[Images, Images]:
    """Return (trainval, test). Their targets are MultiLabels.

    Args:
        root: VOC2007 itself, the VOCdevkit, or a folder that holds it.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out listed images that are not there, and say so in the note; else they are an error.

    Raises:
        DataError: there is no such data set, a split or a list is missing, or a list names a missing image.
    """
    home = find_home(root)
    lists = home / "ImageSets" / "Main"
    classes = {split: _classes(lists, split) for split in (TRAIN, VAL)}
    for split in (TRAIN, VAL):
        if not classes[split]:
            raise DataError(
                f"{printable(str(home))}: expected the splits trainval and test, found no list "
                f"ImageSets/Main/CLASS_{split}.txt\n{HOW}"
            )
    if odd := sorted(set(classes[TRAIN]) ^ set(classes[VAL])):
        missing = VAL if odd[0] in classes[TRAIN] else TRAIN
        raise DataError(
            f"{printable(str(lists))}: expected the same classes in both splits, found no {odd[0]}_{missing}.txt; "
            "unpack both archives into the same folder"
        )
    train, val = (_split(home, split, classes[TRAIN], cache, allow_missing) for split in (TRAIN, VAL))
    return train, val


def find_home(root: str | Path) -> Path:
    """The folder VOC2007 at a path or below; looks at no image.

    Raises:
        DataError: there is none, or more than one.
    """
    root = Path(root).expanduser()
    for below in HOMES:
        there = sorted(root.glob(below) if below else [root])
        hidden = [path for path in there if any(part.startswith(".") for part in path.relative_to(root).parts)]
        homes = [path for path in there if path not in hidden and (path / "ImageSets" / "Main").is_dir()]
        if len(homes) > 1:
            raise DataError(
                f"{printable(str(root))}: expected one PASCAL VOC 2007 below it, found {printable(str(homes[0]))} and "
                f"{printable(str(homes[1]))}; name one as --data"
            )
        if homes:
            return homes[0]
    raise DataError(
        f"{printable(str(root))}: expected PASCAL VOC 2007 there (ImageSets/Main, JPEGImages) or in VOCdevkit/VOC2007 "
        f"below it, found none\n{HOW}"
    )


def _classes(lists: Path, split: str) -> list[str]:
    """Sorted; `train` is one of them, so train_test.txt is the list of a class and train.txt is not."""
    return sorted(path.name.removesuffix(f"_{split}.txt") for path in visible(lists, f"*_{split}.txt"))


def _split(home: Path, split: str, classes: Sequence[str], cache: Path | None, allow_missing: bool) -> Images:
    lists = home / "ImageSets" / "Main"
    by_class = {name: _read_labels(lists / f"{name}_{split}.txt") for name in classes}
    ids = sorted(by_class[classes[0]])
    for name, its_labels in by_class.items():
        if odd := sorted(set(ids) ^ set(its_labels)):
            raise DataError(
                f"{printable(str(lists))}: expected the same images in all lists of {split}, found {printable(odd[0])} not in "
                f"both {classes[0]}_{split}.txt and {name}_{split}.txt; get the lists again"
            )
    labels = np.array([[by_class[name][image] for name in classes] for image in ids], dtype=np.int8)
    return listed_split(
        home,
        [f"JPEGImages/{image}.jpg".encode() for image in ids],
        MultiLabels(labels, classes),
        split=split,
        cache=cache,
        allow_missing=allow_missing,
    )


def _read_labels(path: Path) -> dict[str, int]:
    """Read {id: label} of a class list: 1 present, 0 difficult, -1 absent."""
    labels: dict[str, int] = {}
    for number, line in read_lines(path, "a list of ids and labels", names_of_files=False):
        match line.split():
            case [image, ("1" | "0" | "-1") as label] if image not in labels:
                labels[image] = int(label)
            case _:
                raise DataError(
                    f"{printable(str(path))}: expected a new id and 1, 0 or -1 in line {number}, found "
                    f"'{printable(line)[:60]}'; get the list again"
                )
    return labels
