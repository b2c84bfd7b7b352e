"""Attacks: boxes a pixel off, masks that part from their boxes, objects that are learned and should not be, and the other's resize.

Run: pytest tests/evaluation/detection/test_augment.py
"""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from swav.data.targets import Objects, ObjectSets
from swav.evaluation.detection.augment import (
    Augmentation,
    Learned,
    learned,
    resize_as_pillow,
    scaled_boxes,
    with_objects,
)
from swav.evaluation.detection.coco_eval import encode_mask
from swav.evaluation.detection.training import NO_SHIFT, SHIFTS
from tests.evaluation.dense import object_sets, objects_of


def augmentation(objects: ObjectSets, **changed: Any) -> Augmentation:
    wanted: dict[str, Any] = {
        "rules": "mmdet", "sides": (20,), "long": 1000, "flip": 0.0, "shift": NO_SHIFT, "masks": False,
    }  # fmt: skip
    return Augmentation(objects, **(wanted | changed))


def augmented(objects: Objects, pixels: np.ndarray, **changed: Any) -> tuple[np.ndarray, Learned]:
    sample = augmentation(object_sets(objects), **changed)(0, pixels, np.random.default_rng(0))
    return sample.pixels, sample.target


PLAIN = np.zeros((20, 40, 3), np.uint8)
VOC = objects_of([[1, 1, 40, 20], [11, 6, 21, 11]], [0, 1])  # the first is the whole image


def test_voc_counts_from_one_and_each_rule_takes_away_its_own():
    mmdet = augmented(VOC, PLAIN, shift=SHIFTS["mmdet"])[1].boxes
    assert mmdet.tolist() == [[0, 0, 39, 19], [10, 5, 20, 10]]
    detectron2 = augmented(VOC, PLAIN, shift=SHIFTS["detectron2"], rules="detectron2")[1].boxes
    assert detectron2.tolist() == [[0, 0, 40, 20], [10, 5, 21, 11]]
    assert augmented(VOC, PLAIN)[1].boxes.tolist() == [[1, 1, 40, 20], [11, 6, 21, 11]]


def test_boxes_grow_with_the_image_and_end_in_it():
    objects = objects_of([[-3, 2, 50, 10], [4, 4, 8, 30]], [0, 1])
    pixels, found = augmented(objects, PLAIN, sides=(50,), long=1000)
    assert pixels.shape == (50, 100, 3)
    assert found.boxes.tolist() == [[0, 5, 100, 25], [10, 10, 20, 50]]
    assert found.boxes.dtype == np.float32 and found.labels.tolist() == [0, 1]
    pixels, found = augmented(objects, PLAIN, sides=(50,), long=60)  # the long side decides
    assert pixels.shape == (30, 60, 3) and found.boxes.tolist() == [[0, 3, 60, 15], [6, 6, 12, 30]]


def test_width_and_height_are_scaled_each_by_its_own_factor():
    found = scaled_boxes(np.array([[1, 2, 3, 4]], np.float32), (10, 20), (15, 22))
    np.testing.assert_allclose(found, [[1.1, 3.0, 3.3, 6.0]], rtol=1e-6)
    back = scaled_boxes(found, (15, 22), (10, 20))
    np.testing.assert_allclose(back, [[1, 2, 3, 4]], rtol=1e-6)


def test_an_object_of_one_pixel_that_the_shift_makes_empty_is_not_learned():
    objects = objects_of([[5, 5, 5, 5], [5, 5, 6, 6], [7, 7, 7, 12]], [0, 1, 2])
    assert augmented(objects, PLAIN, shift=SHIFTS["mmdet"])[1].labels.tolist() == [1]
    found = augmented(objects, PLAIN, shift=SHIFTS["detectron2"], rules="detectron2")[1]
    assert found.labels.tolist() == [0, 1, 2] and found.boxes[0].tolist() == [4, 4, 5, 5]
    outside = objects_of([[41, 3, 60, 9], [0, 25, 9, 30]], [0, 1])
    assert len(augmented(outside, PLAIN)[1].labels) == 0


def masked(seed: int = 0, width: int = 37, height: int = 23) -> tuple[Objects, np.ndarray, np.ndarray]:
    """Three objects with masks that fill their boxes in part, an image that is bright where the first one is, and the masks."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, height, width), np.uint8)
    boxes = [[2, 3, 15, 20], [0, 0, 37, 9], [30, 10, 36, 22]]
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.7
        mask[top : top + 1, left:right] = mask[top:bottom, left : left + 1] = 1
        mask[bottom - 1, left:right] = mask[top:bottom, right - 1] = 1
    objects = objects_of(boxes, [0, 1, 2], masks=[encode_mask(mask.astype(bool)) for mask in masks])
    return objects, np.repeat(200 * masks[0][..., None], 3, axis=2), masks


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_a_flip_turns_image_boxes_and_masks_together_and_twice_is_none():
    objects, pixels, masks = masked()
    options: dict[str, Any] = {"sides": (23,), "masks": True, "rules": "detectron2"}
    plain, at_rest = augmented(objects, pixels, flip=0.0, **options)
    turned, flipped = augmented(objects, pixels, flip=1.0, **options)
    assert (plain == pixels).all() and (turned == pixels[:, ::-1]).all() and turned.flags.c_contiguous
    unpacked = [np.unpackbits(each.masks, axis=2, count=37) for each in (at_rest, flipped)]  # type: ignore[arg-type]
    assert (unpacked[0] == masks).all() and (unpacked[1] == masks[:, :, ::-1]).all()
    assert [extent(mask) for mask in unpacked[0]] == at_rest.boxes.tolist()
    assert [extent(mask) for mask in unpacked[1]] == flipped.boxes.tolist()
    again = objects_of(flipped.boxes, flipped.labels, masks=[encode_mask(mask.astype(bool)) for mask in unpacked[1]])
    twice, found = augmented(again, turned, flip=1.0, **options)
    assert found.masks is not None and at_rest.masks is not None
    assert (twice == pixels).all() and found.boxes.tolist() == at_rest.boxes.tolist()
    assert np.array_equal(found.masks, at_rest.masks) and found.labels.tolist() == at_rest.labels.tolist()


def test_half_of_the_images_are_flipped_and_every_side_is_drawn():
    objects, pixels, _ = masked()
    given = augmentation(object_sets(objects), sides=(23, 46), flip=0.5)
    seen = [given(0, pixels, np.random.default_rng(seed)) for seed in range(60)]
    heights = [one.pixels.shape[0] for one in seen]
    flipped = [one.target.boxes[0, 0] > one.pixels.shape[1] / 2 for one in seen]
    assert 18 <= heights.count(23) <= 42 and heights.count(23) + heights.count(46) == 60
    assert 18 <= sum(flipped) <= 42


@pytest.mark.parametrize("width", [37, 8, 9, 15, 16, 17, 1])
def test_masks_are_packed_and_come_back_at_every_width(width):
    rng = np.random.default_rng(width)
    masks = (rng.random((2, 5, width)) < 0.5).astype(np.uint8)
    found = Learned(np.zeros((2, 4), np.float32), np.arange(2), np.packbits(masks, axis=2)).truth(
        width, torch.device("cpu")
    )
    assert found.masks is not None and (found.masks.numpy() == masks).all() and found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(("side", "long"), [(23, 1000), (12, 1000), (31, 1000), (64, 1000), (40, 50), (7, 1000)])
def test_masks_are_resized_as_opencv_does_to_the_nearest(side, long):
    objects, pixels, masks = masked()
    resized, found = augmented(objects, pixels, sides=(side,), long=long, masks=True)
    high, wide = resized.shape[:2]
    expected = [cv2.resize(mask, (wide, high), interpolation=cv2.INTER_NEAREST) for mask in masks]
    assert found.masks is not None
    assert (np.unpackbits(found.masks, axis=2, count=wide) == np.stack(expected)).all()


def test_masks_of_dropped_objects_go_with_them():
    objects, pixels, masks = masked()
    boxes = objects.boxes.copy()
    boxes[1] = [3, 3, 3, 3]
    fewer = objects_of(boxes, [0, 1, 2], crowd=[True, False, False], masks=objects.masks)
    found = augmented(fewer, pixels, sides=(23,), masks=True)[1]
    assert found.labels.tolist() == [2] and found.masks is not None
    assert (np.unpackbits(found.masks, axis=2, count=37) == masks[2:]).all()
    assert found.truth(37, torch.device("cpu")).boxes.tolist() == boxes[2:].tolist()
    none = augmented(objects_of([], []), pixels, sides=(23,), masks=True)[1]
    assert none.masks is not None and none.masks.shape == (0, 23, 5) and none.boxes.shape == (0, 4)


def test_difficult_objects_are_learned_by_detectron2s_rules_only_and_crowds_never():
    objects = objects_of(
        [[0, 0, 9, 9]] * 4, [0, 1, 2, 0], difficult=[False, True, False, True], crowd=[False, False, True, True],
        masks=["a", "b", "c", "d"],
    )  # fmt: skip
    assert learned(objects, "mmdet").labels.tolist() == [0] and learned(objects, "mmdet").masks == ["a"]
    assert learned(objects, "detectron2").labels.tolist() == [0, 1] and learned(objects, "detectron2").masks == [
        "a",
        "b",
    ]
    assert learned(objects, "detectron2").numbers.tolist() == [1, 2]


def test_each_rule_has_its_own_resize():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 3)).astype(np.uint8)
    opencv = augmented(VOC, pixels, sides=(9,))[0]
    pillow = augmented(VOC, pixels, sides=(9,), rules="detectron2")[0]
    assert (opencv == cv2.resize(pixels, (18, 9), interpolation=cv2.INTER_LINEAR)).all()
    expected = np.asarray(Image.fromarray(pixels).resize((18, 9), Image.Resampling.BILINEAR))
    assert (pillow == expected).all() and (resize_as_pillow(pixels, (9, 18)) == expected).all()
    assert np.abs(opencv.astype(int) - pillow).mean() > 10  # without antialiasing, and with it


def test_what_there_is_to_train_on():
    sets = ObjectSets(
        [
            objects_of([[0, 0, 9, 9]], [0]),
            objects_of([], []),
            objects_of([[0, 0, 9, 9]], [0], crowd=[True]),
            objects_of([[0, 0, 9, 9]], [0], difficult=[True]),
            objects_of([[0, 0, 9, 9]] * 2, [0, 1], crowd=[True, False]),
            objects_of([[0, 0, 9, 9]], [0]),
            objects_of([[0, 0, 9, 9]], [0]),
        ],
        ["a", "b"],
        sizes=np.array([[50, 60]] * 5 + [[31, 60], [60, 32]]),
        ids=np.arange(7),
    )
    assert with_objects(sets, "detectron2").tolist() == [0, 3, 4, 5, 6]
    assert with_objects(sets, "mmdet").tolist() == [
        0,
        3,
        4,
        6,
    ]  # difficult ones are background there, and 31 pixels too few
    assert with_objects(sets.select(np.array([1, 2])), "mmdet").tolist() == []
