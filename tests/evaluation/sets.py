"""Labelled sets of odd images, drawn here: neither square nor of one size, of classes that a random network half tells apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.evaluation import pipeline

COLOURS = np.array(
    [(150, 110, 110), (110, 150, 110), (110, 110, 150), (150, 150, 110), (110, 150, 150), (150, 110, 150)]
)


class Split(NamedTuple):
    """Images in the order of their paths, as Pillow reads them, and labels [N], or marks [N, C] as VOC's."""

    images: list[Image.Image]
    labels: np.ndarray


Patch = tuple[np.ndarray, float]  # colour, and share of the short side


def picture(
    width: int, height: int, rng: np.random.Generator, colour: np.ndarray, patches: Sequence[Patch] = ()
) -> Image.Image:
    """Clouds of a colour with some noise, and patches anywhere on them."""
    coarse = rng.normal(0, 40, (height // 9, width // 9, 3)) + colour
    clouds = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(clouds).astype(float)
    for its_colour, share in patches:
        side = max(3, int(share * min(width, height)))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        pixels[top : top + side, left : left + side] = its_colour
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def write_folders(root: Path, train: int = 10, val: int = 6) -> tuple[Split, Split]:
    """Writes CLASS folders of six classes."""
    rng, splits = np.random.default_rng(0), list[Split]()
    for split, count in (("train", train), ("val", val)):
        paths = []
        for k, colour in enumerate(COLOURS):
            (root / split / f"class{k}").mkdir(parents=True)
            for i in range(count):
                paths.append(root / split / f"class{k}" / f"{i:02d}.png")
                width, height = rng.integers(60, 120, 2).tolist()
                picture(width, height, rng, colour + rng.normal(0, 20, 3)).save(paths[-1])
        splits.append(Split(pipeline.opened(paths), np.repeat(np.arange(len(COLOURS)), count)))
    return splits[0], splits[1]


def write_voc(root: Path, train: int = 64, test: int = 40) -> tuple[Split, Split]:
    """Writes VOC 2007 with three classes; an image may show several, some only as a small patch ("difficult").

    All are wider than high: squeezing others, Pillow and torch round in another order (see data/augment/test_crops.py).
    """
    rng, splits = np.random.default_rng(0), list[Split]()
    for folder in ("JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, first, count in (("trainval", 0, train), ("test", train, test)):
        marks = rng.choice([1, 0, -1], p=[0.22, 0.08, 0.7], size=(count, 3))
        names = [f"{first + i:06d}" for i in range(count)]
        for name, row in zip(names, marks, strict=True):
            height, width = sorted(rng.integers(60, 120, 2).tolist())
            patches = [(COLOURS[c], 0.5 if mark == 1 else 0.15) for c, mark in enumerate(row) if mark >= 0]
            colour = 125 + (row + 1) / 2 @ (COLOURS[:3] - 123)  # difficult ones half look as if they showed it
            picture(width, height, rng, colour, patches).save(root / f"JPEGImages/{name}.jpg", quality=95)
        for c in range(3):
            lines = [f"{name} {row[c]:2d}\n" for name, row in zip(names, marks, strict=True)]
            (root / f"ImageSets/Main/class{c}_{split}.txt").write_text("".join(lines))
        splits.append(Split(pipeline.opened([root / f"JPEGImages/{name}.jpg" for name in names]), marks))
    return splits[0], splits[1]
