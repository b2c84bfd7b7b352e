"""COCO 2017 as images with boxes and masks: learned from train2017, scored on val2017, by annotations/instances_*2017.json.

Boxes become left, top, right, bottom, in edges of pixels from 0. Categories, whose numbers have gaps, become classes in the order
of their numbers; masks stay as annotated, polygons or run-length codes.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from swav.data.images import Images
from swav.data.sources.annotated import dropped_note, find_one, fitted, upright_size
from swav.data.sources.decode import Unreadable, read_file
from swav.data.sources.lists import listed_split
from swav.data.targets import Objects, ObjectSets
from swav.errors import DataError, printable

HOW = (
    "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip there (cocodataset.org), "
    "or draw a stand-in: swav data shapes ROOT/coco --layout coco"
)
SPLITS = ("train2017", "val2017")
NO_AREA, OUTSIDE = "of no area", "outside the image"
HOMES = ("", "coco", "*")

# Nine tenths of the file are numbers of polygons. Parsed, those of train2017 take 3.5 GB and half a minute; as they are only
# looked at when their image is trained on, their text is cut out before, which halves both. Only what is certainly polygons,
# each of three points or more, is: a quote inside a JSON string has a backslash before it, and here is none.
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?+[0-9]++)?+"
_POINT = _NUMBER + rb"\s*+,\s*+" + _NUMBER
_POLYGON = rb"\[\s*+" + _POINT + rb"(?:\s*+,\s*+" + _POINT + rb"){2,}+\s*+\]"
_POLYGONS = re.compile(
    rb'(?<!\\)"segmentation"\s*+:\s*+(\[\s*+' + _POLYGON + rb"(?:\s*+,\s*+" + _POLYGON + rb")*+\s*+\])"
)
_CUT = "segmentation at"  # the key in place of `segmentation`, for the number of a text that was cut out


class _Instances(NamedTuple):
    """A file of annotations.

    Attributes:
        images, annotations: as they are there, but for the masks.
        texts: of masks, as JSON; empty where no object has one.
        categories: name by number, in the order of the numbers.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    texts: list[bytes]
    categories: dict[int, str]


def detection_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> tuple[Images, Images]:
    """Return (train2017, val2017). Their targets are ObjectSets, with masks.

    Images without objects are among them.

    Args:
        root: COCO itself, or a folder that holds it, as coco/ or as the only one.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out images that are not there, and say so in the note; else they are an error.

    Raises:
        DataError: there is no such data set; annotations are damaged, or name an image or a category that is not there.
    """
    home = find_home(root)
    (names, targets), (val_names, val_targets) = (_read(home, split) for split in SPLITS)
    categories, val_categories = (
        set(zip(each.class_ids, each.classes, strict=True)) for each in (targets, val_targets)
    )
    if odd := sorted(categories ^ val_categories):
        raise DataError(
            f"{printable(str(_path(home, SPLITS[1])))}: expected the categories of train2017, found that {odd[0][0]}, "
            f"{printable(odd[0][1])}, is in one of both only; get both files again"
        )
    return (
        _split(home, SPLITS[0], names, targets, cache, allow_missing),
        _split(home, SPLITS[1], val_names, val_targets, cache, allow_missing),
    )


def find_home(root: str | Path) -> Path:
    """The folder of COCO at a path or below; looks at no image.

    Raises:
        DataError: there is none, or more than one.
    """
    root = Path(root).expanduser()
    what = f"COCO 2017 there or as coco/ below it (annotations/instances_{SPLITS[0]}.json)"
    return find_one(root, HOMES, lambda path: _path(path, SPLITS[0]).is_file(), what, HOW)


def _path(home: Path, split: str) -> Path:
    return home / "annotations" / f"instances_{split}.json"


def _read(home: Path, split: str) -> tuple[list[bytes], ObjectSets]:
    """Names of a split's images below COCO's folder, and their objects."""
    path = _path(home, split)
    where = printable(str(path))
    try:
        instances = _parsed(read_file(os.fsencode(path), where, image=False))
        names = [os.fsencode(f"{split}/{each['file_name']}") for each in instances.images]
        return names, _targets(instances, _sizes(home, names, instances.images))
    except Unreadable as error:
        raise DataError(f"{where}: expected annotations, found {error.reason}\n{HOW}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{where}: expected images, annotations and categories as COCO has them, found {printable(what)[:160]}; get it again"
        ) from None


def _parsed(content: bytes) -> _Instances:
    """What a file says.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError: it is no such file.
    """
    cut: list[bytes] = []

    def taken(found: re.Match[bytes]) -> bytes:
        cut.append(found[1])
        return b'"%s":%d' % (_CUT.encode(), len(cut) - 1)

    parsed: Any = json.loads(_POLYGONS.sub(taken, content))
    categories = {int(each["id"]): str(each["name"]) for each in parsed["categories"]}
    if len(categories) < len(parsed["categories"]):
        raise ValueError("a category twice")
    annotations = parsed["annotations"]
    texts: list[bytes] = []
    if any(_CUT in each or each.get("segmentation") for each in annotations):
        texts = [cut[each[_CUT]] if _CUT in each else _mask_text(each) for each in annotations]
    if not parsed["images"]:
        raise ValueError("no image")
    return _Instances(parsed["images"], annotations, texts, dict(sorted(categories.items())))


def _mask_text(annotation: dict[str, Any]) -> bytes:
    """A mask that was not cut out: a run-length code, none, or polygons of which some enclose nothing and are left out.

    Raises:
        ValueError: it is nothing of these.
    """
    mask = annotation.get("segmentation") or []
    match mask:
        case {"counts": str() | list(), "size": [int(), int()]}:
            return json.dumps(mask).encode()
        case [*polygons] if all(_is_polygon(each) for each in polygons):
            return json.dumps([each for each in polygons if len(each) >= 6]).encode()
        case _:
            number = annotation.get("id")
            raise ValueError(f"a segmentation in annotation {number} that is neither polygons nor a run-length code")


def _is_polygon(mask: object) -> bool:
    return isinstance(mask, list) and len(mask) % 2 == 0 and all(isinstance(each, int | float) for each in mask)


def _split(
    home: Path, split: str, names: list[bytes], targets: ObjectSets, cache: Path | None, allow_missing: bool
) -> Images:
    images = listed_split(home, names, targets, split=split, cache=cache, allow_missing=allow_missing)
    assert isinstance(images.targets, ObjectSets)
    return fitted(images, images.targets.sizes, dropped_note(targets.dropped))


def _sizes(home: Path, names: Sequence[bytes], images: Sequence[dict[str, Any]]) -> Int64[np.ndarray, "N 2"]:
    """Height and width as annotated, or the image's own where they are not."""
    sizes = np.array([(each.get("height") or 0, each.get("width") or 0) for each in images], dtype=np.int64)
    for i in np.flatnonzero((sizes < 1).any(axis=1)).tolist():
        sizes[i] = upright_size(home, names[i])
    return sizes


def _targets(instances: _Instances, sizes: Int64[np.ndarray, "N 2"]) -> ObjectSets:
    """The objects, image by image, in the order of the file.

    Raises:
        ValueError, LookupError, TypeError, OverflowError: an annotation names another image or category, or has no true box.
    """
    annotations, numbers = instances.annotations, [*instances.categories]
    ids = _column(instances.images, "id")
    places = _places(ids, _column(annotations, "image_id"), "image", annotations)
    labels = _places(np.array(numbers, dtype=np.int64), _column(annotations, "category_id"), "category", annotations)
    boxes = np.array([each["bbox"] for each in annotations], dtype=np.float64).reshape(len(annotations), 4)
    area = np.array([each.get("area", np.nan) for each in annotations], dtype=np.float64)
    area = np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area)
    if len(odd := np.flatnonzero(~np.isfinite(boxes).all(axis=1) | ~np.isfinite(area))):
        raise ValueError(f"no finite box and area in annotation {annotations[odd[0]].get('id')}")
    crowd = np.array([bool(each.get("iscrowd", 0)) for each in annotations], dtype=np.bool_)
    _check_codes(instances.texts, sizes[places], annotations)
    boxes[:, 2:] += boxes[:, :2]
    reasons = _unfit(boxes, sizes[places])
    kept = np.flatnonzero(reasons == "")
    kept = kept[np.argsort(places[kept], kind="stable")]
    objects = Objects(
        boxes=boxes[kept].astype(np.float32),
        labels=labels[kept],
        difficult=np.zeros(len(kept), dtype=np.bool_),
        crowd=crowd[kept],
        area=area[kept].astype(np.float32),
        numbers=_numbers(annotations)[kept],
    )
    return ObjectSets.from_flat(
        objects,
        np.bincount(places[kept], minlength=len(ids)).astype(np.int64),
        list(instances.categories.values()),
        sizes=sizes,
        ids=ids,
        dropped=Counter(reasons[reasons != ""].tolist()),
        class_ids=numbers,
        mask_texts=[instances.texts[i] for i in kept.tolist()] if instances.texts else (),
    )


def _column(rows: Sequence[dict[str, Any]], key: str) -> Int64[np.ndarray, " N"]:
    """A field of whole numbers."""
    values = [each[key] for each in rows]
    if odd := next((value for value in values if type(value) is not int), None):
        raise ValueError(f"{key} {odd!r}, no whole number")
    return np.array(values, dtype=np.int64)


def _places(
    known: Int64[np.ndarray, " K"], wanted: Int64[np.ndarray, " n"], what: str, annotations: Sequence[dict[str, Any]]
) -> Int64[np.ndarray, " n"]:
    """Where each of `wanted` is in `known`.

    Raises:
        ValueError: it is not there, or known ones are not unique.
    """
    order = np.argsort(known, kind="stable")
    if len(twice := np.flatnonzero(np.diff(known[order]) == 0)):
        raise ValueError(f"{what} {known[order][twice[0]]} twice")
    if len(odd := np.flatnonzero(~np.isin(wanted, known))):
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise ValueError(f"the unknown {what} {wanted[odd[0]]} in annotation {annotations[odd[0]].get('id')}{more}")
    return order[np.searchsorted(known, wanted, sorter=order)].astype(np.int64)


def _numbers(annotations: Sequence[dict[str, Any]]) -> Int64[np.ndarray, " n"]:
    """The annotations' own numbers; new ones, from 1, where these don't distinguish them. (COCOeval takes 0 for no object.)"""
    own = [each.get("id") for each in annotations]
    if all(type(number) is int and 0 < number < 2**63 for number in own) and len(set(own)) == len(own):
        return np.array(own, dtype=np.int64)
    return np.arange(1, len(own) + 1)


def _unfit(boxes: Float64[np.ndarray, "n 4"], sizes: Int64[np.ndarray, "n 2"]) -> np.ndarray:
    """Per box why it is left out, or an empty text. One that reaches over the border stays as it is."""
    x0, y0, x1, y1 = boxes.T
    height, width = sizes.T
    outside = (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)
    return np.where((x1 <= x0) | (y1 <= y0), NO_AREA, np.where(outside, OUTSIDE, ""))


def _check_codes(
    texts: Sequence[bytes], sizes: Int64[np.ndarray, "n 2"], annotations: Sequence[dict[str, Any]]
) -> None:
    """Refuse a run-length code of another size than its image's."""
    for i in [i for i, text in enumerate(texts) if text.startswith(b"{")]:
        code, (height, width) = json.loads(texts[i]), sizes[i].tolist()
        its_height, its_width = code["size"]
        where = f"in annotation {annotations[i].get('id')}, whose image has {width}x{height}"
        if (its_height, its_width) != (height, width):
            raise ValueError(f"a mask of {its_width}x{its_height} pixels {where}")
        if isinstance(code["counts"], list) and sum(code["counts"]) != height * width:
            raise ValueError(f"a mask of {sum(code['counts'])} pixels {where}")
