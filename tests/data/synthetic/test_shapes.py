"""Attacks: a drawn data set that depends on more than its seed, gives its classes away by colour or by pixels, has labels,
boxes or masks that contradict each other.

Run: pytest tests/data/synthetic/test_shapes.py
"""

import cv2
import numpy as np
import pytest

from swav.data.synthetic.shapes import CLASSES, scene
from swav.errors import ConfigError


@pytest.fixture(scope="module")
def scenes():
    return [scene(0, "train", index) for index in range(200)]


def test_a_scene_is_a_function_of_seed_split_and_index(scenes):
    scene(5, "val", 3)  # whatever was drawn before
    assert np.array_equal(scene(0, "train", 17).image, scenes[17].image)
    for other in (scene(1, "train", 17), scene(0, "val", 17), scene(0, "train", 27)):
        assert other.label == scenes[17].label and not np.array_equal(other.image, scenes[17].image)


def test_a_scene_is_the_same_picture_at_every_size(scenes):
    for index in (3, 24, 65):
        large = scene(0, "train", index, size=128)
        halved = cv2.resize(large.image, (64, 64), interpolation=cv2.INTER_AREA)
        assert list(large.classes) == list(scenes[index].classes)
        assert np.abs(halved.astype(float) - scenes[index].image).mean() < 3
        assert np.abs(large.boxes / 2 - scenes[index].boxes).max() <= 1.5


def test_every_class_is_drawn_equally_often_and_one_to_four_objects_occur(scenes):
    assert np.array_equal(np.bincount([drawn.label for drawn in scenes]), [20] * 10)
    assert {len(drawn.classes) for drawn in scenes} == {1, 2, 3, 4}


def test_the_label_is_the_largest_object_by_far_and_the_others_are_of_other_classes(scenes):
    for drawn in scenes:
        areas = drawn.instances.sum(axis=(1, 2))
        main = areas.argmax()
        assert drawn.classes[main] == drawn.label
        assert areas[main] > 0.04 * 64 * 64
        others = np.delete(areas, main)
        assert not len(others) or areas[main] > 1.5 * others.max()
        assert drawn.label not in np.delete(drawn.classes, main)


def test_boxes_instances_and_the_semantic_mask_tell_the_same(scenes):
    for drawn in scenes:
        assert drawn.instances.sum(axis=0).max() == 1
        assert np.array_equal(drawn.semantic > 0, drawn.instances.any(axis=0))
        for kind, (x0, y0, x1, y1), mask in zip(drawn.classes, drawn.boxes, drawn.instances, strict=True):
            assert (drawn.semantic[mask] == kind + 1).all()
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_masks_lie_where_objects_are_painted(scenes):
    """An edge of the mask is an edge of the image; the same mask moved by 3 pixels sees less of one."""

    def contrast(drawn, mask):
        grey = drawn.image.mean(axis=2)
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        rim &= ~drawn.instances.any(axis=0)
        return abs(grey[mask].mean() - grey[rim].mean()) if rim.any() and mask.any() else 0.0

    singles = [drawn for drawn in scenes if len(drawn.classes) == 1]
    at_place = [contrast(drawn, drawn.instances[0]) for drawn in singles]
    moved = [contrast(drawn, np.roll(drawn.instances[0], 3, axis=(0, 1))) for drawn in singles]
    assert np.mean(at_place) > 1.4 * np.mean(moved)


def test_a_small_image_leaves_out_what_cannot_be_seen():
    for index in range(40):
        drawn = scene(0, "val", index, size=16)
        assert len(drawn.classes) == len(drawn.boxes) == len(drawn.instances) > 0
        assert drawn.instances.any(axis=(1, 2)).all()


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="expected train or val, found 'test'"):
        scene(0, "test", 0)


def knn_accuracy(bank, labels, queries, truth, k=20):
    """The plain vote of the k nearest by Euclid's distance [%]."""
    distances = (bank**2).sum(axis=1) - 2 * queries @ bank.T
    nearest = labels[np.argsort(distances, axis=1)[:, :k]]
    votes = (nearest[:, :, None] == np.arange(len(CLASSES))).sum(axis=1)
    return 100 * (votes.argmax(axis=1) == truth).mean()


def small(drawn, side):
    return cv2.resize(drawn.image, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def histogram(drawn):
    counts, _ = np.histogramdd(drawn.image.reshape(-1, 3), bins=4, range=[(0, 256)] * 3)
    return np.sqrt(counts).ravel()


DESCRIPTIONS = {
    "colours": histogram,
    "pixels": lambda drawn: small(drawn, 64).ravel(),
    "pixels at 16": lambda drawn: small(drawn, 16).ravel(),
    "grey pixels without their mean": lambda drawn: (grey := small(drawn, 32).mean(axis=2).ravel()) - grey.mean(),
}


@pytest.mark.slow
def test_neither_colours_nor_pixels_tell_the_classes_apart():
    train, val = ([scene(0, split, i) for i in range(count)] for split, count in (("train", 2000), ("val", 500)))
    labels, truth = (np.array([drawn.label for drawn in split]) for split in (train, val))
    for name, describe in DESCRIPTIONS.items():
        bank, queries = (np.stack([describe(drawn) for drawn in split]) for split in (train, val))
        euclid = knn_accuracy(bank, labels, queries, truth)
        bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
        cosine = knn_accuracy(bank, labels, queries, truth)
        assert max(euclid, cosine) < 40, name


def test_what_shows_form_alone_does_tell_them_apart():
    """The check above can fail: the share of object pixels by distance from the object's middle nearly names the class."""

    def form(drawn):
        main = drawn.instances[drawn.instances.sum(axis=(1, 2)).argmax()]
        y, x = np.nonzero(main)
        distance = np.hypot(x - x.mean(), y - y.mean())
        bins = np.histogram(distance / distance.max(), bins=12, range=(0, 1))[0]
        return np.sqrt(bins / bins.sum())

    train, val = ([scene(0, split, i) for i in range(count)] for split, count in (("train", 400), ("val", 100)))
    labels, truth = (np.array([drawn.label for drawn in split]) for split in (train, val))
    assert knn_accuracy(*(np.stack([form(d) for d in train]), labels, np.stack([form(d) for d in val]), truth)) > 60
