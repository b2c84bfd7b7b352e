"""A small labelled data set and small encoders, for the benchmarks' tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav.data.synthetic.writers import write_shapes

CLASSES = ("blue", "grey", "red")


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def write_set(folder: Path, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """CLASS folders of 28 x 20 pixels, told apart by colour, with noise."""
    rng = np.random.default_rng(seed)
    colours = {"blue": (60, 60, 190), "grey": (120, 120, 120), "red": (190, 60, 60)}
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colours[name]) + rng.normal(0, 25, 3) + rng.normal(0, 25, (20, 28, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A root that holds shapes as VOC 2007, of 80 and 40 images."""
    folder: Path = tmp_path_factory.mktemp("root")
    write_shapes(folder / "VOCdevkit", "voc", train=80, val=40, size=32)
    return folder
