"""PASCAL VOC 2007 and 2012 as images with boxes: learned from trainval of both years, scored on test of 2007.

Lists are ImageSets/Main/{trainval,test}.txt, boxes Annotations/ID.xml. Boxes stay as annotated: they count pixels from 1, and
the last pixel belongs to the box. Boxes of parts (a person's head, hands, feet) are no objects.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from swav.data.images import Images
from swav.data.sources import voc
from swav.data.sources.annotated import dropped_note, fitted, read_ids, upright_size
from swav.data.sources.decode import Unreadable, read_file
from swav.data.sources.lists import listed_split
from swav.data.sources.walk import path_of
from swav.data.targets import Objects, ObjectSets
from swav.errors import DataError, printable

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
HOW = (
    "unpack VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar "
    "(host.robots.ox.ac.uk/pascal/VOC) there, or draw a stand-in: swav data shapes ROOT/VOCdevkit --layout voc0712"
)
LATER = "VOC2012"
MOST = 2**24  # pixels; as far as boxes, of float32, are exact
NO_AREA, OUTSIDE = "of no area", "outside the image"


class _Object(NamedTuple):
    name: str
    box: tuple[int, int, int, int]
    difficult: bool


class _Annotation(NamedTuple):
    """What an XML says of an image: height and width [pixels] ((0, 0): nothing), and its objects."""

    size: tuple[int, int]
    objects: list[_Object]


def detection_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (trainval of 2007 and 2012, test of 2007). Their targets are ObjectSets.

    Args:
        root: the VOCdevkit, a folder that holds it, or (without 2012, if that may be missing) VOC2007 itself.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: take VOC2007 alone where 2012 is not there, and leave out listed images that are not; the note says so.

    Raises:
        DataError: there is no such data set; a list, an image or an annotation is missing, damaged or contradicts another.
    """
    root = Path(root).expanduser()
    home = voc.find_home(root)
    alone = home == root  # what lies beside the folder named is not part of the data
    home = home.resolve() if alone else home  # `.` has no name
    kit, years, note = home.parent, [home.name], ""
    if not alone and (kit / LATER / "ImageSets" / "Main" / "trainval.txt").is_file():
        years.append(LATER)
    elif allow_missing:
        note = f" ({home.name} alone: {LATER} is not there)"
    else:
        name_it = f"{printable(str(home))} was named: name the folder above it" if alone else HOW
        raise DataError(
            f"{printable(str(kit))}: expected {LATER} beside {home.name}, found no {LATER}/ImageSets/Main/trainval.txt\n{name_it}"
        )
    names = {
        "trainval": [name for year in years for name in _names(kit, year, "trainval")],
        "test": _names(kit, years[0], "test"),
    }
    annotations = {split: [_read(kit, name, allow_missing) for name in its_own] for split, its_own in names.items()}
    found = {item.name for each in annotations.values() for one in each for item in one.objects}
    classes = CLASSES if found <= set(CLASSES) else sorted(found, key=os.fsencode)
    train, val = (
        _split(kit, split, names[split], annotations[split], classes, cache, allow_missing) for split in names
    )
    train.note += note
    return train, val


def _names(kit: Path, year: str, split: str) -> list[bytes]:
    """Names of a list's images below the kit."""
    ids = read_ids(kit / year / "ImageSets" / "Main" / f"{split}.txt", HOW)
    return [os.fsencode(f"{year}/JPEGImages/{image}.jpg") for image in ids]


def _split(
    kit: Path,
    split: str,
    names: list[bytes],
    annotations: Sequence[_Annotation],
    classes: Sequence[str],
    cache: Path | None,
    allow_missing: bool,
) -> Images:
    number = {name: k for k, name in enumerate(classes)}
    sizes = np.array([each.size for each in annotations], dtype=np.int64).reshape(-1, 2)
    kept: list[_Object] = []
    counts = np.zeros(len(names), dtype=np.int64)
    dropped: Counter[str] = Counter()
    for i, (size, items) in enumerate(annotations):
        for item in items:
            if reason := _unfit(item.box, *size):
                dropped[reason] += 1
            else:
                kept.append(item)
                counts[i] += 1
    boxes = np.array([item.box for item in kept], dtype=np.float32).reshape(-1, 4)
    objects = Objects(
        boxes=boxes,
        labels=np.array([number[item.name] for item in kept], dtype=np.int64),
        difficult=np.array([item.difficult for item in kept], dtype=np.bool_),
        crowd=np.zeros(len(kept), dtype=np.bool_),
        area=(boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1),  # the last pixel belongs to the box
        numbers=np.arange(1, len(kept) + 1),
    )
    targets = ObjectSets.from_flat(objects, counts, classes, sizes=sizes, ids=np.arange(len(names)), dropped=dropped)
    images = listed_split(kit, names, targets, split=split, cache=cache, allow_missing=allow_missing)
    assert isinstance(images.targets, ObjectSets)
    return fitted(images, images.targets.sizes, dropped_note(dropped))


def _unfit(box: tuple[int, int, int, int], height: int, width: int) -> str | None:
    """Why a box is left out. One that reaches over the border is not: it stays as it is."""
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        return NO_AREA
    return OUTSIDE if x1 < 1 or y1 < 1 or x0 > width or y0 > height else None


def _read(kit: Path, name: bytes, allow_missing: bool) -> _Annotation:
    """The annotation of an image. Its size is the image's own, where the XML gives none."""
    xml = name.replace(b"/JPEGImages/", b"/Annotations/").removesuffix(b".jpg") + b".xml"
    where = printable(os.fsdecode(path_of(kit, xml)))
    try:
        annotation = _parsed(read_file(path_of(kit, xml), where, image=False))
    except Unreadable as error:
        if allow_missing and not os.path.lexists(path_of(kit, name)):
            return _Annotation((0, 0), [])  # goes with its image
        raise DataError(f"{where}: expected the objects of an image, found {error.reason}\n{HOW}") from None
    except (ElementTree.ParseError, ValueError, OverflowError, LookupError) as error:
        raise DataError(
            f"{where}: expected the objects of an image as VOC writes them, found {printable(str(error))[:120]}; get the file again"
        ) from None
    return annotation if all(annotation.size) else annotation._replace(size=upright_size(kit, name))


def _parsed(xml: bytes) -> _Annotation:
    """What an XML says.

    Raises:
        ParseError, ValueError, OverflowError, LookupError: it is damaged, or a field is missing or has another content.
    """
    if b"<!ENTITY" in xml:  # may expand to any length; VOC has none
        raise ValueError("entities")
    root = ElementTree.fromstring(xml)
    size = (_number(root, "size/height", "0"), _number(root, "size/width", "0"))
    objects = [
        _Object(
            name=_text(item, "name"),
            box=(
                *(_number(item, "bndbox/xmin"), _number(item, "bndbox/ymin")),
                *(_number(item, "bndbox/xmax"), _number(item, "bndbox/ymax")),
            ),
            difficult=_number(item, "difficult", "0") != 0,
        )
        for item in root.findall("object")
    ]
    return _Annotation(size, objects)


def _text(item: ElementTree.Element, path: str, default: str = "") -> str:
    text = (item.findtext(path) or default).strip()
    if not text:
        raise ValueError(f"no {path} in <{item.tag}>")
    return text


def _number(item: ElementTree.Element, path: str, default: str = "") -> int:
    """A whole number. Some coordinates of VOC2012 have decimals (45.70000076293945): these are cut off."""
    number = int(float(_text(item, path, default)))
    if abs(number) > MOST:
        raise ValueError(f"{number:.3g} in {path}")
    return number
