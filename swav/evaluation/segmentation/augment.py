"""How images and their maps of classes are augmented for segmentation: resize, crop, flip and colour, as in MMSegmentation 0.30."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import UInt8

from swav.data.targets import VOID, LabelMaps
from swav.evaluation.samples import Draw, Pixels, Sample, Scale, resize

CROP_TRIES = 10  # for a crop that is not nearly all of one class
BRIGHTNESS, CONTRAST, HUE = 32, (0.5, 1.5), 18  # added; factor, also of the saturation; added, of 180

Map = UInt8[np.ndarray, "_ _"]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augments an image with its map: an `Augment`.

    Attributes:
        maps: of all images.
        scale: what images are resized to, times a ratio that is drawn.
        ratios: smallest and largest ratio, drawn uniformly.
        size: side of the crop; what the image lacks of it is void [pixels].
        most_of_one_class: largest share of a crop's labelled pixels that may be of one class; 1: any.
        flip: probability of a horizontal flip.
        colour: whether to change brightness, contrast, saturation and hue.
    """

    maps: LabelMaps
    scale: Scale
    ratios: tuple[float, float]
    size: int
    most_of_one_class: float
    flip: float
    colour: bool

    def __call__(self, index: int, pixels: Pixels, draw: Draw) -> Sample[Map]:
        labels = self.maps[index]
        size = self.scale.times(draw.uniform(*self.ratios)).of(*labels.shape)
        pixels = resize(pixels, size)
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        top, left = crop_place(labels, self.size, self.most_of_one_class, draw)
        box = slice(top, top + self.size), slice(left, left + self.size)
        pixels, labels = pixels[box], labels[box]
        if draw.random() < self.flip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        pixels = np.ascontiguousarray(pixels)
        if self.colour:
            pixels = distort_colours(pixels, draw)
        return Sample(pixels, padded_map(labels, self.size), index)


def crop_place(labels: Map, size: int, most_of_one_class: float, draw: Draw) -> tuple[int, int]:
    """Draw where to crop: the first of ten places with more than one class, none of them on more than the given share of the
    labelled pixels; else an eleventh."""
    height, width = labels.shape
    top, left = (int(draw.integers(max(side - size, 0) + 1)) for side in (height, width))
    if most_of_one_class == 1:
        return top, left
    for _ in range(CROP_TRIES):
        counts = np.bincount(labels[top : top + size, left : left + size].ravel(), minlength=VOID + 1)[:VOID]
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most_of_one_class:
            break
        top, left = (int(draw.integers(max(side - size, 0) + 1)) for side in (height, width))
    return top, left


def padded_map(labels: Map, size: int) -> Map:
    """Fill a map up to a square, at the right and at the bottom, with void."""
    padded = np.full((size, size), VOID, np.uint8)
    padded[: labels.shape[0], : labels.shape[1]] = labels
    return padded


def distort_colours(pixels: Pixels, draw: Draw) -> Pixels:
    """Change brightness, contrast, saturation and hue, each with probability one half; contrast comes second or last.

    Each step is rounded to bytes. Source: MMSegmentation's PhotoMetricDistortion, after SSD (Liu et al. 2016).
    """
    if draw.random() < 0.5:
        pixels = _linear(pixels, 1.0, draw.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = draw.random() < 0.5
    if contrast_first:
        pixels = _contrast(pixels, draw)
    if draw.random() < 0.5:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(hsv[..., 1], draw.uniform(*CONTRAST), 0.0)
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if draw.random() < 0.5:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(draw.integers(-HUE, HUE))) % 180
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return pixels if contrast_first else _contrast(pixels, draw)


def _contrast(pixels: Pixels, draw: Draw) -> Pixels:
    return _linear(pixels, draw.uniform(*CONTRAST), 0.0) if draw.random() < 0.5 else pixels


def _linear(values: UInt8[np.ndarray, "..."], factor: float, offset: float) -> UInt8[np.ndarray, "..."]:
    found: UInt8[np.ndarray, ...] = np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
    return found
