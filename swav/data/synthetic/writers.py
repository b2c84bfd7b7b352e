"""`shapes` as folders: the drawn scenes in the layouts of the field's data sets, so that every reader and every benchmark
runs offline.

A folder takes the place of the data set's own: ROOT/imagenet, ROOT/VOCdevkit and so on, each written by one call, are a
ROOT in which `swav bench` finds all of them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from swav.data.synthetic import dense_writers as dense
from swav.data.synthetic.dense_writers import write_image
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
        second_train: name of a second training split, as large as train and of other scenes; empty: there is none.
    """

    draw: Callable[[Scene, Path, str, int], Any]
    finish: Callable[[Path, dict[str, list[Any]]], None]
    second_train: str = ""


def _no_lists(folder: Path, listed: dict[str, list[Any]]) -> None:
    """The folders tell all."""


# --- imagenet: FOLDER/{train,val}/CLASS/INDEX.png ---------------------------------------------------------------------


def _draw_imagenet(drawn: Scene, folder: Path, split: str, index: int) -> None:
    path = folder / split / CLASSES[drawn.label] / f"{index:06d}.png"
    write_image(path, drawn.image, cv2.IMWRITE_PNG_COMPRESSION, 3)


# --- places205: FOLDER/data/vision/.../images256/LETTER/CLASS/NAME.jpg, and lists of a path and a label a line ------------

_PLACES_IMAGES = "data/vision/torralba/deeplearning/images256"


def _draw_places205(drawn: Scene, folder: Path, split: str, index: int) -> str:
    label = CLASSES[drawn.label]
    name = f"{label[0]}/{label}/{split}_{index:08d}.jpg"
    write_image(folder / _PLACES_IMAGES / name, drawn.image, cv2.IMWRITE_JPEG_QUALITY, 95)
    return f"{name} {drawn.label}\n"


def _list_places205(folder: Path, listed: dict[str, list[str]]) -> None:
    home = folder / "trainvalsplit_places205"
    home.mkdir(parents=True, exist_ok=True)
    for split, lines in listed.items():
        (home / f"{split}_places205.csv").write_text("".join(lines), encoding="ascii")


# --- inat18: FOLDER/train_val2018/Shapes/NUMBER/NAME.jpg, and train2018.json and val2018.json ---------------------------


def _draw_inat18(drawn: Scene, folder: Path, split: str, index: int) -> tuple[str, int]:
    name = f"train_val2018/Shapes/{drawn.label}/{split}{index:08d}.jpg"
    write_image(folder / name, drawn.image, cv2.IMWRITE_JPEG_QUALITY, 95)
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
    "voc": LayoutWriter(dense.draw_voc2007, dense.list_voc2007),
    "voc0712": LayoutWriter(dense.draw_voc0712, dense.list_voc0712, second_train=dense.VOC2012),
    "coco": LayoutWriter(dense.draw_coco, dense.list_coco),
    "cityscapes": LayoutWriter(dense.draw_cityscapes, dense.list_cityscapes),
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
        draw, finish, second_train = LAYOUTS[layout]
        jobs = [
            (split, split, index) for split, count in zip(SPLITS, (train, val), strict=True) for index in range(count)
        ]
        if second_train:
            jobs += [(second_train, SPLITS[0], index) for index in range(train, 2 * train)]
        listed: dict[str, list[Any]] = {name: [] for name, _, _ in jobs}
        for done, (name, split, index) in enumerate(jobs, start=1):
            listed[name].append(draw(scene(seed, split, index, size), folder, name, index))
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
