"""Attacks: a look at a data set that misses colour, sees it where there is none, or reads every image.

Run: pytest tests/data/test_sample.py
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swav.data import sample
from swav.data.images import Images
from swav.data.sample import is_grey, short_side, threads_for
from swav.data.sources.open import open_images
from swav.data.sources.walk import ROW


def folder_of(folder: Path, pictures: list[Image.Image], ending: str) -> Images:
    folder.mkdir()
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:03d}.{ending}")
    return open_images(folder, cache=folder.parent)


def noise(seed: int, mode: str = "L") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60), dtype=np.uint8)).convert(mode)


def coloured(seed: int) -> Image.Image:
    return Image.merge("RGB", [noise(seed), noise(seed + 1), noise(seed + 2)])


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("L", "jpg"), ("RGB", "png"), ("RGB", "jpg")])
def test_grey_images_are_grey_however_they_are_stored(tmp_path, mode, ending):
    assert is_grey(folder_of(tmp_path / "images", [noise(i, mode) for i in range(5)], ending))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_one_coloured_image_among_grey_ones_is_colour(tmp_path, ending):
    pictures = [*(noise(i, "RGB") for i in range(4)), coloured(9)]
    assert not is_grey(folder_of(tmp_path / "images", pictures, ending))


def test_headers_that_say_grey_are_believed_without_decoding(tmp_path, monkeypatch):
    images = folder_of(tmp_path / "images", [noise(i) for i in range(3)], "png")
    monkeypatch.setattr(Images, "read", lambda *_: pytest.fail("decoded"))
    assert is_grey(images)


def test_only_a_sample_is_decoded_and_it_is_spread_over_all(tmp_path, monkeypatch):
    images = folder_of(tmp_path / "images", [noise(i, "RGB") for i in range(20)], "png")
    read: list[int] = []
    real = Images.read

    def noted(self: Images, i: int) -> np.ndarray:
        read.append(i)
        return real(self, i)

    monkeypatch.setattr(sample, "SAMPLE", 5)
    monkeypatch.setattr(Images, "read", noted)
    assert is_grey(images) and read == [0, 4, 9, 14, 19]


def test_images_of_which_none_can_be_read_are_not_called_grey(tmp_path):
    images = folder_of(tmp_path / "images", [noise(0, "RGB")], "png")
    (tmp_path / "images" / "000.png").write_bytes(b"gone")
    assert not is_grey(images)


@pytest.mark.parametrize(("side", "threads"), [(0, 8), (1000, 8), (5000, 5), (8000, 2), (11585, 1), (30_000, 1)])
def test_few_large_images_are_decoded_at_a_time(side, threads):
    rows = np.zeros(3, ROW)
    rows["width"], rows["height"] = (100, 100, side), (100, side, side)
    assert threads_for(rows, 8) == threads


def test_the_short_side_is_the_median_of_the_headers(tmp_path):
    pictures = [Image.new("RGB", size) for size in [(30, 90), (200, 50), (70, 70)]]
    assert short_side(folder_of(tmp_path / "images", pictures, "png")) == 50
