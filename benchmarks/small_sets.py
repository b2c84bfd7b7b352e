"""The small labelled sets of the search and of the accuracy tables, made from public ones.

Run: python benchmarks/small_sets.py SHARED --out FOLDER [NAME ...]

SHARED holds `imagenette/`, `cifar10/`, `voc07/` and `voc12aug/` (a VOCdevkit each) and `coco_tiny/` (COCO's layout). FOLDER gets

    cifar20k      20,000 + 5,000 images of CIFAR-10, drawn, 32 pixels
    cifar5k        5,000 + 2,000 of them
    imagenette64  Imagenette in 64 pixels
    objects       one crop per box of VOC and COCO of at least 32 pixels, in 64 pixels, its class as label (classes of 10 and more)
    grey300       300 + 300 images of Imagenette in grey, 64 pixels
    shapes        2,000 + 500 drawn scenes of 64 pixels

A set that is there is not made again. All is drawn from seed 0.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from swav.data.sources.open import labelled_splits
from swav.data.synthetic.writers import write_shapes

SIDE = 64
LEAST_SIDE, LEAST_COUNT = 32, 10
SPLITS = ("train", "val")
# VOC's names of classes that COCO has too.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
Box = tuple[float, float, float, float]


def small(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def cifar(counts: tuple[int, int]) -> Callable[[Path, Path], None]:
    def make(shared: Path, folder: Path) -> None:
        for split, images, count in zip(SPLITS, labelled_splits(shared / "cifar10"), counts, strict=True):
            assert images.labels is not None and images.classes is not None
            for i in np.sort(np.random.default_rng(0).permutation(len(images))[:count]):
                save(
                    Image.fromarray(images.read(int(i))),
                    folder / split / images.classes[images.labels[i]] / f"{i:05d}.png",
                )

    return make


def imagenette64(shared: Path, folder: Path) -> None:
    root = shared / "imagenette"
    for path in sorted(root.glob("*/*/*.JPEG")):
        save(small(Image.open(path).convert("RGB")), folder / path.relative_to(root).with_suffix(".png"))


def grey300(shared: Path, folder: Path) -> None:
    for split in SPLITS:
        paths = sorted((shared / "imagenette" / split).glob("*/*.JPEG"))
        for i in np.random.default_rng(0).permutation(len(paths))[:300]:
            path = paths[i]
            save(small(Image.open(path).convert("L")), folder / split / path.parent.name / f"{path.stem}.png")


def objects(shared: Path, folder: Path) -> None:
    boxes = [
        (path, COCO_NAMES.get(name, name), box)
        for path, name, box in [*voc_boxes(shared), *coco_boxes(shared)]
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE
    ]
    counts = Counter(name for _, name, _ in boxes)
    for number, (path, name, box) in enumerate(boxes):
        if counts[name] >= LEAST_COUNT and path.is_file():
            left, top, right, bottom = (round(value) for value in box)
            save(
                small(Image.open(path).convert("RGB").crop((left, top, right, bottom))),
                folder / name / f"{number:05d}.png",
            )


def voc_boxes(shared: Path) -> list[tuple[Path, str, Box]]:
    found = []
    for voc in sorted(shared.glob("voc*/VOCdevkit/VOC20*")):
        for note in sorted((voc / "Annotations").glob("[!.]*.xml")):
            for item in ElementTree.parse(note).getroot().iter("object"):
                corners = item.find("bndbox")
                if corners is not None and item.findtext("difficult") != "1":
                    left, top, right, bottom = (
                        float(corners.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax")
                    )
                    image = voc / "JPEGImages" / f"{note.stem}.jpg"
                    found.append((image, item.findtext("name", ""), (left, top, right, bottom)))
    return found


def coco_boxes(shared: Path) -> list[tuple[Path, str, Box]]:
    found = []
    for part in ("train2017", "val2017"):
        for notes in sorted((shared / "coco_tiny" / "annotations").glob(f"instances_{part}*.json")):
            content = json.loads(notes.read_text(encoding="utf-8"))
            names = {one["id"]: one["name"] for one in content["categories"]}
            files = {one["id"]: one["file_name"] for one in content["images"]}
            for one in content["annotations"]:
                x, y, width, height = one["bbox"]
                if not one.get("iscrowd"):
                    image = shared / "coco_tiny" / part / files[one["image_id"]]
                    found.append((image, names[one["category_id"]], (x, y, x + width, y + height)))
    return found


def shapes(_: Path, folder: Path) -> None:
    write_shapes(folder, "imagenet", train=2000, val=500, size=SIDE, seed=0)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


SETS: dict[str, Callable[[Path, Path], None]] = {
    "cifar20k": cifar((20_000, 5_000)),
    "cifar5k": cifar((5_000, 2_000)),
    "imagenette64": imagenette64,
    "objects": objects,
    "grey300": grey300,
    "shapes": shapes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SETS)}; all of them if none is named")
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_intermixed_args()
    for name in wanted.names or SETS:
        folder, unfinished = wanted.out / name, wanted.out / f"{name}.part"
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            SETS[name](wanted.shared, unfinished)
            unfinished.rename(folder)
        print(f"{folder}: {sum(1 for path in folder.rglob('*.png'))} images", flush=True)


if __name__ == "__main__":
    main()
