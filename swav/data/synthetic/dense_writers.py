"""`shapes` with its boxes and masks: in the layouts of PASCAL VOC, COCO and Cityscapes."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from swav.data.synthetic.shapes import CLASSES, Scene
from swav.data.targets import VOID

_OTHER_IDS = 500_000  # the numbers of the split that is scored begin here: ids are unique over both


def write_image(path: Path, image: UInt8[np.ndarray, "H W 3"], *options: int) -> None:
    """Write an image as the path's extension says."""
    _, data = cv2.imencode(path.suffix, image[..., ::-1], options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _write_jpeg(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    write_image(path, image, cv2.IMWRITE_JPEG_QUALITY, 95)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def _bordered(drawn: Scene, labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Set VOID along the outside of each object, one pixel wide: a thin form keeps its pixels."""
    depth = np.zeros(labels.shape, np.uint8)
    for place, mask in enumerate(drawn.instances, start=1):  # from back to front
        depth[mask] = place
    nearest = cv2.dilate(depth, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    return np.where(nearest > depth, VOID, labels).astype(np.uint8)


# --- voc: FOLDER/VOC2007/{JPEGImages,Annotations,ImageSets/Main}, with the splits trainval and test -------------------

_DIFFICULT = 0.015  # of the image's area: an object that shows less is marked as hard to recognise

Listed = tuple[str, Int[np.ndarray, " 10"]]  # id, and per class 1 present, 0 difficult ones only, -1 absent


def draw_voc2007(drawn: Scene, folder: Path, split: str, index: int) -> Listed:
    return _draw_voc(drawn, folder / "VOC2007", f"{index + (_OTHER_IDS if split == 'val' else 0):06d}", segmented=False)


def _draw_voc(drawn: Scene, home: Path, name: str, segmented: bool) -> Listed:
    _write_jpeg(home / "JPEGImages" / f"{name}.jpg", drawn.image)
    size = drawn.image.shape[0]
    difficult = drawn.instances.mean(axis=(1, 2)) < _DIFFICULT
    root = ElementTree.Element("annotation")
    _leaves(root, folder=home.name, filename=f"{name}.jpg")
    _leaves(ElementTree.SubElement(root, "size"), width=size, height=size, depth=3)
    _leaves(root, segmented=int(segmented))
    for label, (x0, y0, x1, y1), hard in zip(drawn.classes, drawn.boxes, difficult, strict=True):
        item = ElementTree.SubElement(root, "object")
        _leaves(item, name=CLASSES[label], pose="Unspecified", truncated=0, difficult=int(hard))
        # VOC counts pixels from 1, and the last one belongs to the box
        _leaves(ElementTree.SubElement(item, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    ElementTree.indent(root, "\t")
    _write_text(home / "Annotations" / f"{name}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")
    labels = np.full(len(CLASSES), -1)
    labels[drawn.classes[difficult]] = 0
    labels[drawn.classes[~difficult]] = 1
    return name, labels


def _leaves(parent: ElementTree.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def list_voc2007(folder: Path, listed: dict[str, list[Listed]]) -> None:
    trainval = listed["train"]
    splits = {"trainval": trainval, "train": trainval[::2], "val": trainval[1::2], "test": listed["val"]}
    _list_voc(folder / "VOC2007", splits)


def _list_voc(home: Path, splits: dict[str, list[Listed]]) -> None:
    """The lists of ImageSets/Main: ids per split, and per class and split an id and its label a line."""
    for split, rows in splits.items():
        _write_text(home / f"ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name, _ in rows))
        for k, label in enumerate(CLASSES):
            text = "".join(f"{name} {labels[k]:2d}\n" for name, labels in rows)
            _write_text(home / f"ImageSets/Main/{label}_{split}.txt", text)


# --- voc0712: the same, and beside it FOLDER/VOC2012 of as many other training scenes, with masks -----------------

VOC2012 = "VOC2012"
# Of four images in a row one is of segmentation's train, one of its val, and two have a mask of SBD's kind only (aug).
_MASKED = ("train", "val", "aug", "aug")


def draw_voc0712(drawn: Scene, folder: Path, split: str, index: int) -> Listed:
    if split != VOC2012:
        return draw_voc2007(drawn, folder, split, index)
    home, name, part = folder / VOC2012, f"2012_{index:06d}", _MASKED[index % 4]
    _write_mask(home / "SegmentationClassAug" / f"{name}.png", drawn.semantic)
    if part != "aug":
        _write_mask(home / "SegmentationClass" / f"{name}.png", _bordered(drawn, drawn.semantic))
    return _draw_voc(drawn, home, name, segmented=part != "aug")


def _write_mask(path: Path, labels: UInt8[np.ndarray, "H W"]) -> None:
    """Write a map as a PNG with VOC's colours."""
    mask = Image.fromarray(labels)  # mode L becomes P: the indices stay
    mask.putpalette(_palette().tobytes())
    data = io.BytesIO()
    mask.save(data, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())


def _palette() -> UInt8[np.ndarray, "256 3"]:
    """VOC's colours: of an index, every third bit belongs to one channel, the lowest to its highest bit."""
    indices = np.arange(256)
    channels = [sum(((indices >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


def list_voc0712(folder: Path, listed: dict[str, list[Listed]]) -> None:
    list_voc2007(folder, listed)
    home, trainval = folder / VOC2012, listed[VOC2012]
    numbers = [int(name.removeprefix("2012_")) for name, _ in trainval]
    even, odd = ([row for row, n in zip(trainval, numbers, strict=True) if n % 2 == rest] for rest in (0, 1))
    _list_voc(home, {"trainval": trainval, "train": even, "val": odd})
    names: dict[str, list[str]] = {"train": [], "val": [], "aug": []}
    for (name, _), number in zip(trainval, numbers, strict=True):
        names[_MASKED[number % 4]].append(name)
    names["trainval"] = sorted(names["train"] + names["val"])
    for split, its_names in names.items():
        _write_text(home / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in its_names))
    _write_classes(home, ["background", *CLASSES])


def _write_classes(home: Path, names: Sequence[str]) -> None:
    """The names of the classes of maps, which the data set itself would have fixed."""
    _write_text(home / "classes.txt", "".join(f"{name}\n" for name in names))


# --- coco: FOLDER/{train,val}2017/ID.jpg and FOLDER/annotations/instances_{train,val}2017.json ----------------------------

_CATEGORIES = {name: 3 * k + 2 for k, name in enumerate(CLASSES)}  # with gaps, as COCO's
_FINE = 4  # outlines are traced in quarters of a pixel


def draw_coco(drawn: Scene, folder: Path, split: str, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the image's entry and its annotations'; these have no ids yet."""
    number = 1 + index + (_OTHER_IDS if split == "val" else 0)
    name = f"{number:012d}.jpg"
    _write_jpeg(folder / f"{split}2017" / name, drawn.image)
    height, width = drawn.image.shape[:2]
    annotations = [
        {
            "image_id": number,
            "category_id": _CATEGORIES[CLASSES[label]],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": float(mask.sum()),
            "iscrowd": 0,
            "segmentation": _segmentation(mask),
        }
        for label, (x0, y0, x1, y1), mask in zip(drawn.classes, drawn.boxes, drawn.instances, strict=True)
    ]
    return {"id": number, "file_name": name, "height": height, "width": width}, annotations


def _segmentation(mask: Bool[np.ndarray, "H W"]) -> list[list[float]] | dict[str, Any]:
    """Polygons around the parts of a mask; of a mask with a hole, which polygons can't have, an uncompressed run-length code."""
    fine = np.kron(mask, np.ones((_FINE, _FINE), np.uint8)).astype(np.uint8)
    outlines, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (tree[0, :, 3] < 0).all():  # none lies inside another
        polygons: list[list[float]] = [((outline.reshape(-1) + 0.5) / _FINE).tolist() for outline in outlines]
        return polygons
    pixels = mask.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if pixels[0] else runs}


def list_coco(folder: Path, listed: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]]) -> None:
    categories = [{"id": number, "name": name, "supercategory": "shape"} for name, number in _CATEGORIES.items()]
    for split, rows in listed.items():
        annotations = [annotation for _, its_own in rows for annotation in its_own]
        content = {
            "images": [image for image, _ in rows],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
            "categories": categories,
        }
        _write_text(folder / f"annotations/instances_{split}2017.json", json.dumps(content))


# --- cityscapes: FOLDER/{leftImg8bit,gtFine}/{train,val}/CITY/NAME_{leftImg8bit,gtFine_labelTrainIds}.png -----------------

_CITIES = {"train": ("northtown", "southtown"), "val": ("easttown",)}


def draw_cityscapes(drawn: Scene, folder: Path, split: str, index: int) -> None:
    """The first ten train ids are the forms, in order, the eleventh is the background."""
    city = _CITIES[split][index % len(_CITIES[split])]
    name = f"{split}/{city}/{city}_{index:06d}_000019"
    write_image(folder / "leftImg8bit" / f"{name}_leftImg8bit.png", drawn.image, cv2.IMWRITE_PNG_COMPRESSION, 3)
    train_ids = np.where(drawn.semantic > 0, drawn.semantic - 1, len(CLASSES)).astype(np.uint8)
    _, data = cv2.imencode(".png", _bordered(drawn, train_ids))
    path = folder / "gtFine" / f"{name}_gtFine_labelTrainIds.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def list_cityscapes(folder: Path, listed: dict[str, list[Any]]) -> None:
    """The folders list the images."""
    _write_classes(folder, [*CLASSES, "background"])
