"""Attacks: hours of training that end without a number; backbones that are refused only when their turn comes; gradients that never
come, for which several processes would wait.

Run: pytest tests/evaluation/detection/test_checks.py
"""

import numpy as np
import pytest
import torch
from torch import nn

from swav.data.targets import LabelMaps
from swav.errors import ConfigError, DataError
from swav.evaluation import dense
from swav.evaluation.catalog import CATALOG
from swav.evaluation.detection import training
from swav.evaluation.protocols import detect_coco, detect_voc, segment_linear, segment_voc
from swav.evaluation.supervised import TrainingResult
from swav.evaluation.task import NoScore, Score
from swav.network.backbone import TimmTrunk
from swav.network.dilated import dilated
from tests.evaluation.dense import dense_task, encoder_of, in_memory, object_sets, objects_of

PIXELS = np.zeros((2, 40, 40, 3), np.uint8)
BOX = objects_of([[4, 4, 30, 30]], [0])


def task_of(tmp_path, *, train=(BOX, BOX), val=(BOX, BOX)):
    first, second = (in_memory(PIXELS, object_sets(*objects, size=(40, 40))) for objects in (train, val))
    return dense_task(CATALOG["detect-voc"].settings(**{"batch": 2}), first, second, tmp_path / "out")


@pytest.mark.parametrize("mark", ["crowd", "difficult"])
def test_nothing_that_counts_to_score_is_said_before_the_training(tmp_path, mark):
    marked = objects_of([[0, 0, 9, 9]], [0], **{mark: [True]})
    with pytest.raises(DataError, match=r"expected objects to score in .*, found none that counts"):
        detect_voc.check(task_of(tmp_path, val=(marked, marked)))
    detect_voc.check(task_of(tmp_path, val=(marked, BOX)))


def test_no_object_to_learn_from_is_said_before_the_training(tmp_path):
    crowd = objects_of([[0, 0, 9, 9]], [0], crowd=[True])
    with pytest.raises(DataError, match="expected images with objects to learn from"):
        detect_voc.check(task_of(tmp_path, train=(crowd, crowd)))


def test_images_that_are_all_too_small_to_learn_from_are_said_to_be(tmp_path):
    images = in_memory(np.zeros((1, 31, 31, 3), np.uint8), object_sets(BOX, size=(31, 31)))
    task = dense_task(CATALOG["detect-voc"].settings(**{"batch": 1}), images, images, tmp_path / "out")
    with pytest.raises(DataError, match=r"found none \(all have a side below 32 pixels\); use larger images"):
        detect_voc.check(task)


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_objects_without_masks_are_said_before_the_training_that_needs_them(tmp_path, lacking):
    masked = objects_of([[4, 4, 30, 30]], [0], masks=[[[4, 4, 30, 4, 30, 30, 4, 30]]])
    task = task_of(tmp_path, **({"train": (masked, masked), "val": (masked, masked)} | {lacking: (BOX, BOX)}))
    with pytest.raises(
        DataError, match=r"expected a mask of each object \(segmentation\) in .*, found boxes only; add"
    ):
        detect_coco.check(task)
    assert object_sets(masked).has_masks and not object_sets(BOX).has_masks


def test_a_map_to_score_that_cannot_be_read_is_said_before_the_training(tmp_path, monkeypatch):
    """Its replacement is another data set, whose training begins anew."""

    def read(name: str) -> np.ndarray:
        if name == "b":
            raise DataError("b: expected indices from 0 to 1")
        return np.zeros((40, 40), np.uint8)

    first, second = (in_memory(PIXELS, LabelMaps(names, ["0", "1"], read, [b"", b""])) for names in ("ac", "ab"))
    task = dense_task(CATALOG["segment-linear"].settings(**{"size": 32, "batch": 2}), first, second, tmp_path / "out")
    monkeypatch.setattr(dense, "train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(DataError, match=r"^b: expected indices"):
        segment_linear.run(task)


def test_counts_of_objects_that_count():
    both = objects_of([[0, 0, 9, 9]] * 3, [0] * 3, crowd=[True, False, False], difficult=[False, True, False])
    sets = object_sets(both, objects_of([], []), BOX, size=(40, 40))
    assert sets.num_counting().tolist() == [1, 0, 1]
    assert sets.num_counting(difficult=True).tolist() == [2, 0, 1]


def test_a_metric_without_a_number_is_listed_with_the_reason(tmp_path):
    result = TrainingResult({"AP50": 12.0}, 2, 2, "log.jsonl")
    first, second = training.scores(task_of(tmp_path), result, ("AP50", "AP75"))
    assert isinstance(first, Score) and first.value == 12.0
    assert isinstance(second, NoScore) and second.metric == "AP75" and "found none that counts" in second.reason


def test_parameters_that_no_map_depends_on_are_frozen_and_others_are_not():
    trunk = TimmTrunk("efficientnet_b0")
    dense.freeze_unreached(trunk)
    frozen = {name.partition(".")[2].partition(".")[0] for name, p in trunk.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_head", "bn2"} and trunk.training
    network = dilated(encoder_of().trunk.requires_grad_(True))
    dense.freeze_unreached(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


class Square(nn.Module):
    """Takes one size only, as a transformer with fixed positions."""

    stage_names, stage_channels = ("last",), (4,)

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, stride=8)

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        if images.shape[2] != images.shape[3]:
            raise ValueError("expected a square")
        return [self.layer(images)]


def test_backbones_that_the_segmenters_cannot_take_are_refused_in_one_line(tmp_path):
    maps = LabelMaps(["a", "b"], ["0", "1"], lambda _: np.zeros((40, 40), np.uint8), [b"", b""])
    images = in_memory(PIXELS, maps)
    task = dense_task(CATALOG["segment-linear"].settings(size=32), images, images, tmp_path / "out")
    segment_linear.check(task)
    task.encoder.trunk = Square()
    task.encoder.stage_names, task.encoder.stage_channels = ["last"], [4]
    with pytest.raises(ConfigError, match=r"takes images of any shape, found one that does not take 32 x 64 pixels"):
        segment_linear.check(task)
    with pytest.raises(ConfigError, match="needs the maps of its last two"):
        segment_voc.check(task)
    task.encoder.stage_channels = [4, 4]
    with pytest.raises(ConfigError, match="expected a ResNet, or a convolutional model"):
        segment_voc.check(task)
