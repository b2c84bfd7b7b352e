"""Attacks: sizes that MMCV would round otherwise; maps that part from their images; colours that change too much or never.

Run: pytest tests/evaluation/segmentation/test_augment.py
"""

from typing import Any

import cv2
import numpy as np
import pytest

from swav.data.targets import LabelMaps
from swav.evaluation.samples import Scale, resize
from swav.evaluation.segmentation.augment import Augmentation, crop_place, distort_colours, padded_map


class Fixed(np.random.Generator):
    """Numbers that are drawn in the order given; `uniform` and `integers` map a share to their range."""

    def __init__(self, *shares: float):
        super().__init__(np.random.PCG64(0))
        self.shares = list(shares)

    def random(self) -> float:  # type: ignore[override]
        return self.shares.pop(0)

    def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
        return low + (high - low) * self.shares.pop(0)

    def integers(self, low: int, high: int | None = None) -> int:  # type: ignore[override]
        low, high = (0, low) if high is None else (low, high)
        return low + int((high - low) * self.shares.pop(0))


@pytest.mark.parametrize(
    ("scale", "shape", "size"),
    [
        ((2048, 512), (375, 500), (512, 683)),  # 682.67
        ((2048, 512), (500, 375), (683, 512)),
        ((2048, 512), (100, 800), (256, 2048)),  # the long side decides
        ((2049, 1025), (1024, 2048), (1025, 2049)),  # 2050 would be too long
        ((512, 128), (333, 500), (128, 192)),
        ((1792, 224), (1, 4000), (1, 1792)),  # .448 would be none
        ((1333, 800), (6000, 2), (1333, 1)),
    ],
)
def test_sizes_are_mmcvs(scale, shape, size):
    assert Scale(*scale).of(*shape) == size


def test_a_ratio_is_cut_off_to_whole_pixels():
    assert Scale(2048, 512).times(0.7) == (1433, 358)


def test_resizing_does_not_antialias():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 3::4] = 200
    assert (resize(pixels, (16, 4)) == 0).all()  # the mean of two of the four pixels; of all it would be 50
    pixels[:, 2::4] = 200
    assert (resize(pixels, (8, 4)) == 100).all()


def augmentation(labels: np.ndarray, **changed) -> Augmentation:
    maps = LabelMaps(["a"] * 8, ["0", "1", "2"], lambda _: labels, [b""] * 8)
    wanted: dict[str, Any] = {
        "scale": Scale(256, 64), "ratios": (0.5, 2.0), "size": 48, "most_of_one_class": 0.75, "flip": 0.5, "colour": False,
    }  # fmt: skip
    return Augmentation(maps, **(wanted | changed))


def picture(height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red value is 40 times its class, and a map of three classes."""
    labels = np.zeros((height, width), np.uint8)
    labels[10:40, 20:50], labels[30:, 60:] = 1, 2
    pixels = np.repeat((40 * labels)[..., None], 3, axis=2)
    return pixels, labels


@pytest.mark.parametrize("seed", range(8))
def test_map_and_image_stay_together(seed):
    pixels, labels = picture()
    sample = augmentation(labels)(7, pixels, np.random.default_rng(seed))
    high, wide = sample.pixels.shape[:2]
    inner = sample.target[:high, :wide]
    assert sample.image == 7 and max(high, wide) <= 48 and sample.target.shape == (48, 48)
    assert (sample.target[high:] == 255).all() and (sample.target[:, wide:] == 255).all() and (inner != 255).all()
    differs = np.abs(sample.pixels[..., 0].astype(int) - 40 * inner) > 20
    assert differs.mean() < 0.05  # borders: bilinear there, nearest here


def test_scale_flip_and_place_are_those_drawn():
    pixels, labels = picture(64, 64)
    given = augmentation(labels, size=128, most_of_one_class=1.0)
    at_rest = given(0, pixels, Fixed(1 / 3, 0.0, 0.0, 0.9))  # ratio 1, the first place, no flip
    assert (at_rest.target[:64, :64] == labels).all() and (at_rest.pixels == pixels).all()
    flipped = given(0, pixels, Fixed(1 / 3, 0.0, 0.0, 0.4))
    assert (flipped.target[:64, :64] == labels[:, ::-1]).all() and (flipped.pixels == pixels[:, ::-1]).all()
    assert given(0, pixels, Fixed(1.0, 0.0, 0.0, 0.9)).pixels.shape[:2] == (128, 128)
    assert given(0, pixels, Fixed(0.0, 0.0, 0.0, 0.9)).pixels.shape[:2] == (32, 32)


def test_a_crop_of_nearly_one_class_is_drawn_again_up_to_ten_times():
    labels = np.zeros((8, 100), np.uint8)
    labels[:, 96:] = 1
    draws = Fixed(*[0.0, 0.0] * 3, 0.0, 0.999, 0.5)
    assert crop_place(labels, 8, 0.75, draws) == (0, 92)  # half of it is of either class
    never = Fixed(*[0.0, 0.0] * 10, 0.0, 0.5, 0.0, 0.9)
    assert crop_place(labels, 8, 0.75, never) == (0, 46) and len(never.shares) == 2  # the eleventh, as it is
    void = labels.copy()
    void[:, 97:] = 255  # of what is labelled of that crop 5 of 6 are of one class
    assert crop_place(void, 9, 0.75, Fixed(*[0.0, 0.999] * 11)) == (0, 91)
    once = Fixed(0.0, 0.0, 0.0, 0.5)
    assert crop_place(labels, 8, 1.0, once) == (0, 0) and len(once.shares) == 2


def test_a_map_is_filled_up_with_void_at_the_right_and_below():
    found = padded_map(np.ones((2, 3), np.uint8), 4)
    assert found.tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]


def test_each_change_of_colour_by_hand():
    grey = np.full((2, 2, 3), 100, np.uint8)
    no = 0.9
    assert (distort_colours(grey, Fixed(no, no, no, no, no)) == 100).all()
    # brightness is added, and cut off at the ends
    assert (distort_colours(grey, Fixed(0.0, 1.0, no, no, no, no)) == 132).all()
    assert (distort_colours(grey - 90, Fixed(0.0, 0.0, no, no, no, no)) == 0).all()
    # contrast is a factor, second or last
    assert (distort_colours(grey, Fixed(no, 0.0, 0.0, 1.0, no, no)) == 150).all()
    assert (distort_colours(grey, Fixed(no, no, no, no, 0.0, 0.0)) == 50).all()
    red = np.full((1, 1, 3), (200, 100, 100), np.uint8)
    hsv = cv2.cvtColor(red, cv2.COLOR_RGB2HSV)[0, 0].astype(int)
    more = cv2.cvtColor(distort_colours(red, Fixed(no, no, 0.0, 1.0, no, no)), cv2.COLOR_RGB2HSV)[0, 0]
    assert abs(int(more[1]) - 1.5 * hsv[1]) <= 2 and more[2] == hsv[2]
    turned = cv2.cvtColor(distort_colours(red, Fixed(no, no, no, 0.0, 0.0, no)), cv2.COLOR_RGB2HSV)[0, 0]
    assert turned[0] == 162  # -18 of 180
    assert distort_colours(red, Fixed(no, no, no, 0.0, 0.999, no))[0, 0].tolist() != [200, 100, 100]


def test_colours_are_left_where_they_are_not_to_change():
    pixels, labels = picture(64, 64)
    shares = (1 / 3, 0.0, 0.0, 0.9)
    assert (augmentation(labels, size=64)(0, pixels, Fixed(*shares)).pixels == pixels).all()
    changed = augmentation(labels, size=64, colour=True)(0, pixels, Fixed(*shares, 0.0, 1.0, *[0.9] * 4))
    assert (changed.pixels[labels == 0] == 32).all()
