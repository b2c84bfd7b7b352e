"""How images and their objects are brought to a detector: resize, flip, and which objects are learned, by MMDetection or detectron2."""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from swav.data.targets import Objects, ObjectSets
from swav.evaluation.dense_settings import DetectRules
from swav.evaluation.detection.coco_eval import decode_masks
from swav.evaluation.detection.structures import Truth
from swav.evaluation.samples import Draw, Pixels, Sample, Scale, resize

LEAST, MOST = 1, 2**31  # sides of an object or an image [pixels]
SMALLEST = 32  # side of an image that MMDetection trains on [pixels]

Boxes = Float32[np.ndarray, "n 4"]


class Learned(NamedTuple):
    """The objects of an augmented image that are learned.

    Attributes:
        boxes: in its pixels.
        labels: indices into the classes.
        masks: 1 where the object is, packed along the width (np.packbits); None: there are none.
    """

    boxes: Boxes
    labels: Int64[np.ndarray, " n"]
    masks: UInt8[np.ndarray, "n H w"] | None

    def truth(self, width: int, device: torch.device) -> Truth:
        """Return them for the network.

        Args:
            width: of the image [pixels].
        """
        masks = None
        if self.masks is not None:
            masks = torch.from_numpy(np.unpackbits(self.masks, axis=2, count=width)).to(device)
        return Truth(torch.from_numpy(self.boxes).to(device), torch.from_numpy(self.labels).to(device), masks)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augments an image with its objects: an `Augment`.

    Attributes:
        objects: of all images.
        rules: whose.
        sides: short sides, of which one is drawn [pixels].
        long: the longest side [pixels].
        flip: probability of a horizontal flip.
        shift: what is subtracted from left, top, right, bottom to count pixels from 0.
        masks: whether masks are learned.
    """

    objects: ObjectSets
    rules: DetectRules
    sides: tuple[int, ...]
    long: int
    flip: float
    shift: tuple[int, int, int, int]
    masks: bool

    def __call__(self, index: int, pixels: Pixels, draw: Draw) -> Sample[Learned]:
        found = learned(self.objects[index], self.rules)
        side = self.sides[int(draw.integers(len(self.sides)))]
        size = Scale(self.long, side).of(*pixels.shape[:2])
        boxes = scaled_boxes(found.boxes - np.array(self.shift, np.float32), pixels.shape[:2], size)
        boxes = boxes.clip(0, np.array([size[1], size[0]] * 2, np.float32))
        masks = self._masks(found, pixels.shape[:2], size) if self.masks else None
        resized = resize(pixels, size) if self.rules == "mmdet" else resize_as_pillow(pixels, size)
        if draw.random() < self.flip:
            resized = np.ascontiguousarray(resized[:, ::-1])
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
            masks = None if masks is None else masks[:, :, ::-1]
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        packed = None if masks is None else np.packbits(masks[kept], axis=2)
        return Sample(resized, Learned(boxes[kept], found.labels[kept], packed), index)

    def _masks(self, found: Objects, before: tuple[int, ...], size: tuple[int, int]) -> UInt8[np.ndarray, "n H W"]:
        masks = decode_masks(found.masks, before[0], before[1])
        if not len(masks):
            return np.zeros((0, *size), np.uint8)
        # places as OpenCV's INTER_NEAREST chooses them
        rows, columns = (
            np.minimum(np.arange(new) * (old / new), old - 1).astype(np.int64)
            for old, new in zip(before, size, strict=True)
        )
        return masks[:, rows][:, :, columns]


def learned(objects: Objects, rules: DetectRules) -> Objects:
    """Return the objects that are learned: no crowds, and by MMDetection's rules no difficult ones and none of less than a pixel."""
    kept = ~objects.crowd
    if rules == "mmdet":
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        kept = kept & ~objects.difficult & (objects.area > 0) & (sides.min(axis=1, initial=MOST) >= LEAST)
    masks = [mask for mask, wanted in zip(objects.masks, kept, strict=True) if wanted] if objects.masks else []
    boxes, labels, difficult, crowd, area, numbers = (field[kept] for field in objects[:-1])
    return Objects(boxes, labels, difficult, crowd, area, numbers, masks)


def scaled_boxes(boxes: Boxes, before: tuple[int, ...], size: tuple[int, ...]) -> Boxes:
    """Return boxes of an image in the pixels of the image at another size (height, width)."""
    factors = np.array([size[1] / before[1], size[0] / before[0]] * 2, np.float32)
    return boxes * factors


def resize_as_pillow(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize bilinearly with antialiasing, as Pillow does.

    Args:
        size: height and width.
    """
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def with_objects(objects: ObjectSets, rules: DetectRules, smallest: int = SMALLEST) -> Int64[np.ndarray, " N"]:
    """Return the indices of images to train on: those with an object that is no crowd; by MMDetection's rules also large enough.

    Args:
        smallest: side of an image by MMDetection's rules [pixels].
    """
    kept = objects.num_counting(difficult=True) > 0
    if rules == "mmdet":
        kept &= objects.sizes.min(axis=1, initial=MOST) >= smallest
    return np.flatnonzero(kept)
