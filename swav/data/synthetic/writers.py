"""`shapes` as folders: the drawn scenes in the layouts of the field's data sets, so that every reader and every benchmark
runs offline.

A folder takes the place of the data set's own: ROOT/imagenet, ROOT/VOCdevkit and so on, each written by one call, are a
ROOT in which `swav bench` finds all of them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from swav.data.synthetic.shapes import CLASSES, SPLITS, Scene, scene
from swav.errors import ConfigError, DataError, MachineError, did_you_mean
from swav.files import visible, write_text_durably
from swav.progress import Progress

RECORD = "shapes.json"  # what a folder holds, and whether it is complete


class LayoutWriter(NamedTuple):
    """How a layout is written.

    Attributes:
        draw: draw(scene, folder, split, index) writes one scene; what it returns is listed.
        finish: finish(folder, {split: what draw returned}) writes what stands beside the images, as lists.
    """

    draw: Callable[[Scene, Path, str, int], Any]
    finish: Callable[[Path, dict[str, list[Any]]], None]


def _write_image(path: Path, image: UInt8[np.ndarray, "H W 3"], *options: int) -> None:
    """As the path's extension says."""
    _, data = cv2.imencode(path.suffix, image[..., ::-1], options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _no_lists(folder: Path, listed: dict[str, list[Any]]) -> None:
    """The folders tell all."""


# --- imagenet: FOLDER/{train,val}/CLASS/INDEX.png ---------------------------------------------------------------------


def _draw_imagenet(drawn: Scene, folder: Path, split: str, index: int) -> None:
    path = folder / split / CLASSES[drawn.label] / f"{index:06d}.png"
    _write_image(path, drawn.image, cv2.IMWRITE_PNG_COMPRESSION, 3)


# --- voc: FOLDER/VOC2007/{JPEGImages,Annotations,ImageSets/Main}, with the splits trainval and test -------------------

_TEST_IDS = 500_000  # the numbers of the test split begin here: ids are unique over both
_DIFFICULT = 0.015  # of the image's area: an object that shows less is marked as hard to recognise

_Listed = tuple[str, Int[np.ndarray, " 10"]]  # id, and per class 1 present, 0 difficult ones only, -1 absent


def _draw_voc(drawn: Scene, folder: Path, split: str, index: int) -> _Listed:
    name = f"{index + (_TEST_IDS if split == 'val' else 0):06d}"
    home = folder / "VOC2007"
    _write_image(home / "JPEGImages" / f"{name}.jpg", drawn.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    size = drawn.image.shape[0]
    difficult = drawn.instances.mean(axis=(1, 2)) < _DIFFICULT
    root = ElementTree.Element("annotation")
    _leaves(root, folder="VOC2007", filename=f"{name}.jpg")
    _leaves(ElementTree.SubElement(root, "size"), width=size, height=size, depth=3)
    _leaves(root, segmented=0)
    for label, (x0, y0, x1, y1), hard in zip(drawn.classes, drawn.boxes, difficult, strict=True):
        item = ElementTree.SubElement(root, "object")
        _leaves(item, name=CLASSES[label], pose="Unspecified", truncated=0, difficult=int(hard))
        # VOC counts pixels from 1, and the last one belongs to the box
        _leaves(ElementTree.SubElement(item, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    path = home / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root, "\t")
    path.write_bytes(ElementTree.tostring(root) + b"\n")
    labels = np.full(len(CLASSES), -1)
    labels[drawn.classes[difficult]] = 0
    labels[drawn.classes[~difficult]] = 1
    return name, labels


def _leaves(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _list_voc(folder: Path, listed: dict[str, list[_Listed]]) -> None:
    """The lists of ImageSets/Main: ids per split, and per class and split an id and its label a line."""
    home = folder / "VOC2007" / "ImageSets" / "Main"
    home.mkdir(parents=True, exist_ok=True)
    trainval, test = listed["train"], listed["val"]
    for split, rows in {"trainval": trainval, "train": trainval[::2], "val": trainval[1::2], "test": test}.items():
        (home / f"{split}.txt").write_text("".join(f"{name}\n" for name, _ in rows), encoding="ascii")
        for k, label in enumerate(CLASSES):
            text = "".join(f"{name} {labels[k]:2d}\n" for name, labels in rows)
            (home / f"{label}_{split}.txt").write_text(text, encoding="ascii")


# --- places205: FOLDER/data/vision/.../images256/LETTER/CLASS/NAME.jpg, and lists of a path and a label a line ------------

_PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"


def _draw_places205(drawn: Scene, folder: Path, split: str, index: int) -> str:
    label = CLASSES[drawn.label]
    name = f"{label[0]}/{label}/{split}_{index:08d}.jpg"
    _write_image(folder / _PLACES_IMAGES / name, drawn.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    return f"{name} {drawn.label}\n"


def _list_places205(folder: Path, listed: dict[str, list[str]]) -> None:
    home = folder / "trainvalsplit_places205"
    home.mkdir(parents=True, exist_ok=True)
    for split, lines in listed.items():
        (home / f"{split}_places205.csv").write_text("".join(lines), encoding="ascii")


# --- inat18: FOLDER/train_val2018/Shapes/NUMBER/NAME.jpg, and train2018.json and val2018.json ---------------------------


def _draw_inat18(drawn: Scene, folder: Path, split: str, index: int) -> tuple[str, int]:
    name = f"train_val2018/Shapes/{drawn.label}/{split}{index:08d}.jpg"
    _write_image(folder / name, drawn.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    return name, drawn.label


def _list_inat18(folder: Path, listed: dict[str, list[tuple[str, int]]]) -> None:
    categories = [{"id": k, "name": name, "supercategory": "Shapes"} for k, name in enumerate(CLASSES)]
    first = 1
    for split, rows in listed.items():
        numbers = range(first, first + len(rows))
        first += len(rows)
        content = {
            "images": [{"id": i, "file_name": name} for i, (name, _) in zip(numbers, rows, strict=True)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": label} for i, (_, label) in zip(numbers, rows, strict=True)
            ],
            "categories": categories,
        }
        (folder / f"{split}2018.json").write_text(json.dumps(content), encoding="ascii")


LAYOUTS: dict[str, LayoutWriter] = {
    "imagenet": LayoutWriter(_draw_imagenet, _no_lists),
    "voc": LayoutWriter(_draw_voc, _list_voc),
    "places205": LayoutWriter(_draw_places205, _list_places205),
    "inat18": LayoutWriter(_draw_inat18, _list_inat18),
}


def write_shapes(
    folder: str | Path,
    layout: str = "imagenet",
    *,
    train: int = 2000,
    val: int = 500,
    size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write the data set. Same arguments, same bytes; where it is complete already, nothing is done.

    A write that was cut off is known by its record (shapes.json says `"complete": false`) and is made again.

    Args:
        folder: new, empty, or one that this function wrote with the same arguments.
        layout: of which data set the folder takes the form.
        train, val: images; val becomes the split that the layout's own data set is scored on.
        size: side of an image [pixels].
        seed: another seed, other images.
        progress: is updated with the number of images done.

    Raises:
        ConfigError: an unknown layout, or a folder that holds shapes of other arguments.
        DataError: a folder that holds something else.
        MachineError: the disk is full, or refuses.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f"layout: expected one of {', '.join(LAYOUTS)}, found '{layout}'{did_you_mean(layout, LAYOUTS)}"
        )
    folder = Path(folder)
    wanted: dict[str, str | int] = {"layout": layout, "train": train, "val": val, "size": size, "seed": seed}
    try:
        if _is_complete(folder, wanted):
            return
        folder.mkdir(parents=True, exist_ok=True)
        _write_record(folder, wanted, complete=False)
        draw, finish = LAYOUTS[layout]
        jobs = [(split, index) for split, count in zip(SPLITS, (train, val), strict=True) for index in range(count)]
        listed: dict[str, list[Any]] = {split: [] for split in SPLITS}
        for done, (split, index) in enumerate(jobs, start=1):
            listed[split].append(draw(scene(seed, split, index, size), folder, split, index))
            if progress is not None:
                progress.update(done)
        finish(folder, listed)
        _write_record(folder, wanted, complete=True)
    except OSError as error:
        raise MachineError(f"{folder}: cannot be written ({error}); make room, or name another folder") from None


def _is_complete(folder: Path, wanted: dict[str, str | int]) -> bool:
    """Whether all is there already.

    Raises:
        ConfigError, DataError: the folder holds something else, which is left alone.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, found a file; name another folder")
    record = folder / RECORD
    if not record.exists():
        if visible(folder):
            raise DataError(
                f"{folder}: expected an empty folder or one of shapes, found other files; name another folder"
            )
        return False
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("complete"), bool):
        raise DataError(
            f"{record}: expected what `swav data shapes` wrote, found something else; remove it, or name another folder"
        )
    complete: bool = found.pop("complete")
    if found != wanted:
        changed = [
            f"{key}={found.get(key)} instead of {value}" for key, value in wanted.items() if found.get(key) != value
        ]
        raise ConfigError(f"{folder}: holds shapes with {', '.join(changed)}; remove it, or name another folder")
    return complete


def _write_record(folder: Path, wanted: dict[str, str | int], complete: bool) -> None:
    write_text_durably(folder / RECORD, json.dumps(wanted | {"complete": complete}) + "\n")
