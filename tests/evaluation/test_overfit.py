"""Attacks: detection and segmentation that cannot learn a handful of images by heart, from fresh weights, with a small trunk.

Eight bottlenecks of 16 to 128 channels, short side at most 256, four to eight images with large objects, scored on what was
learned. The real sets are those under SWAV_DATA.

Run: pytest tests/evaluation/test_overfit.py -m long    (5 to 10 minutes each)
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swav.data.images import Images
from swav.data.sources.catalog import DATASETS
from swav.data.synthetic.writers import write_shapes
from swav.data.targets import LabelMaps, ObjectSets
from swav.evaluation.dense_settings import (
    DetectCocoSettings,
    DetectVocSettings,
    SegmentCityscapesSettings,
    SegmentVocSettings,
)
from swav.evaluation.detection.models import fpn_detector
from swav.evaluation.protocols import detect_coco, detect_voc, segment_cityscapes, segment_voc
from tests.evaluation.dense import dense_task, encoder_of, small_bottleneck

DETECT: dict[str, Any] = {
    "batch": 2, "size": 160, "sides": (160,), "long": 256, "rois": 32, "proposals": (200, 100), "workers": 0, "pictures": 0,
}  # fmt: skip
SEGMENT: dict[str, Any] = {"batch": 4, "channels": 64, "workers": 0, "pictures": 0, "ratios": (0.9, 1.1)}


def trained_images(name: str, root: Path) -> Images:
    return DATASETS[name].find(root, None, True)[0]


def with_large_objects(images: Images, count: int) -> Images:
    """Those whose smallest object covers most of the image; none is difficult or a crowd."""
    targets = images.targets
    assert isinstance(targets, ObjectSets)
    smallest = []
    for i in range(len(targets)):
        objects, (height, width) = targets[i], targets.sizes[i]
        sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
        fine = len(objects) and not (objects.difficult | objects.crowd).any()
        smallest.append(sides.prod(axis=1).min() / (height * width) if fine else 0.0)
    return images.select(np.sort(np.argsort(-np.array(smallest), kind="stable")[:count]))


def with_large_masks(images: Images, count: int) -> Images:
    """Those of which objects cover about half, and none of their classes less than a tenth."""
    maps = images.targets
    assert isinstance(maps, LabelMaps)
    suited = []
    for i in range(len(maps)):
        shares = np.bincount(maps[i].ravel(), minlength=256)[1:255] / maps[i].size
        smallest = shares[shares > 0].min(initial=1)
        suited.append(abs(shares.sum() - 0.5) + (smallest < 0.1))
    return images.select(np.sort(np.argsort(suited, kind="stable")[:count]))


def numbers(module: Any, settings: Any, images: Images, out: Path) -> dict[str, float]:
    """What a benchmark reports, scored on the images that it is trained on."""
    task = dense_task(settings, images, images, out, encoder_of(small_bottleneck()))
    module.check(task)
    found = {score.metric: score.value for score in module.run(task)}
    print(found)
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_c4_learns_six_photos_by_heart(data_root, tmp_path):
    images = with_large_objects(trained_images("voc0712", data_root / "voc07"), 6)
    settings = DetectVocSettings(**DETECT, iterations=300, lr=0.02, warmup=50)
    assert numbers(detect_voc, settings, images, tmp_path / "out")["AP50"] >= 80


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_mask_r_cnn_learns_four_photos_by_heart(data_root, tmp_path, monkeypatch):
    narrow = functools.partial(fpn_detector, channels=64, features=256)  # as the trunk; published are 256 and 1,024
    monkeypatch.setattr(detect_coco, "fpn_detector", narrow)
    images = with_large_objects(trained_images("coco", data_root / "coco_tiny"), 4)
    settings = DetectCocoSettings(**DETECT, iterations=600, lr=0.02, warmup=50)
    assert numbers(detect_coco, settings, images, tmp_path / "out")["mask AP50"] >= 90


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_fcn_learns_six_photos_by_heart(data_root, tmp_path):
    images = with_large_masks(trained_images("voc12aug", data_root / "voc12aug"), 6)
    settings = SegmentVocSettings(**SEGMENT, scale=(640, 160), size=160, iterations=600, lr=0.05)
    assert numbers(segment_voc, settings, images, tmp_path / "out")["mIoU"] >= 90


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_fcn_with_windows_learns_four_street_scenes_by_heart(tmp_path):
    write_shapes(tmp_path / "cityscapes", "cityscapes", train=4, val=1, size=128)
    images = trained_images("cityscapes", tmp_path)
    settings = SegmentCityscapesSettings(**SEGMENT, scale=(513, 257), size=193, iterations=400, lr=0.05)
    assert numbers(segment_cityscapes, settings, images, tmp_path / "out")["mIoU"] >= 90
