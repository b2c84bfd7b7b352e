"""Attacks: schedules that a step, a batch or a protocol shifts; parameters that are trained twice, never, or with the wrong decay;
deviations that go unsaid.

Run: pytest tests/evaluation/detection/test_training.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swav.errors import ConfigError, DataError
from swav.evaluation import dense
from swav.evaluation.catalog import CATALOG
from swav.evaluation.dense_settings import (
    DetectCocoSettings,
    DetectSettings,
    DetectVocSettings,
    SegmentCityscapesSettings,
    SegmentLinearSettings,
    SegmentVocSettings,
)
from swav.evaluation.detection.models import c4_detector, fpn_detector
from swav.evaluation.detection.structures import DETECTRON2, MMDET
from swav.evaluation.detection.training import NO_SHIFT, RULES, SHIFTS, optimizer, trained_on, warmed_up
from swav.evaluation.request import read_request, resolve
from swav.evaluation.segmentation.training import poly
from swav.evaluation.settings import deviations_of
from swav.evaluation.task import Task
from swav.network.resnet import ResNet
from swav.recipe_files import parse_overrides
from tests.evaluation.dense import CPU, encoder_of, in_memory, object_sets, objects_of

ALL: dict[str, Any] = {
    "detect-voc": DetectVocSettings,
    "detect-coco": DetectCocoSettings,
    "segment-voc": SegmentVocSettings,
    "segment-cityscapes": SegmentCityscapesSettings,
    "segment-linear": SegmentLinearSettings,
}


def voc_rates(**changed: Any):
    settings = DetectVocSettings(**changed)
    rates = warmed_up(settings, settings.steps, settings.drops)
    return lambda step: rates(step)[0]


def of_protocol(name: str, protocol: str) -> Any:
    return resolve([name], {"protocol": protocol})[1][name]


# -- schedules


def test_the_published_learning_rates_by_hand():
    rate = voc_rates()
    expected = {
        0: 0.02 * 0.001,
        1: 0.02 * (0.001 + 0.999 / 100),
        50: 0.02 * (0.001 + 0.999 * 0.5),
        99: 0.02 * (0.001 + 0.999 * 0.99),
        100: 0.02,
        17_999: 0.02,
        18_000: 0.002,
        21_999: 0.002,
        22_000: 0.0002,
        23_999: 0.0002,
    }
    assert {step: rate(step) for step in expected} == pytest.approx(expected, rel=1e-12)
    groups = warmed_up(DetectVocSettings(), 24_000, (0.75, 22 / 24))(100)
    assert groups == [0.02, 0.02]  # norms as all else


def test_the_swav_protocol_warms_up_longer_from_a_third_of_a_larger_rate():
    settings = of_protocol("detect-voc", "swav")
    rates = warmed_up(settings, settings.steps, settings.drops)
    found = [rates(step)[0] for step in (0, 500, 1000, 18_000, 22_000)]
    assert found == pytest.approx([0.1 / 3, 0.1 * 2 / 3, 0.1, 0.01, 0.001], rel=1e-12)
    moco = of_protocol("detect-voc", "moco")
    assert [warmed_up(moco, moco.steps, moco.drops)(step)[0] for step in (50, 100)] == pytest.approx([0.01001, 0.02])


def test_coco_drops_after_eight_and_eleven_of_twelve_epochs():
    settings = DetectCocoSettings()
    epoch = settings.steps // 12
    assert epoch == 7330
    rates = warmed_up(settings, settings.steps, settings.drops)
    steps = (999, 1000, 8 * epoch - 1, 8 * epoch, 11 * epoch - 1, 11 * epoch)
    expected = [0.02 * (0.001 + 0.999 * 0.999), 0.02, 0.02, 0.002, 0.002, 0.0002]
    assert [rates(step)[0] for step in steps] == pytest.approx(expected, rel=1e-12)


def test_a_training_shorter_than_its_warm_up_still_reaches_the_rate():
    settings = DetectVocSettings(iterations=40)
    rates = warmed_up(settings, 40, ())
    assert rates(0)[0] == pytest.approx(2e-5) and 0.019 < rates(39)[0] < 0.02
    assert warmed_up(DetectVocSettings(warmup=0), 40, ())(0)[0] == 0.02


def test_the_polynomial_schedule_by_hand():
    rates = poly(0.01, 20_000)
    assert rates(0) == pytest.approx([0.01]) and rates(10_000) == pytest.approx([0.0099 * 0.5**0.9 + 0.0001])
    assert 0.0001 < rates(19_999)[0] < 0.000102


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [4, 8, 16, 32])
def test_rate_per_image_and_images_seen_stay_at_every_batch(name, batch):
    page, settings = ALL[name](), ALL[name](batch=batch)
    assert settings.rate / batch == pytest.approx(page.rate / page.batch, rel=1e-12)
    assert settings.steps * batch == page.steps * page.batch
    if isinstance(settings, DetectVocSettings) and isinstance(page, DetectVocSettings):
        assert settings.warmup_steps * batch == page.warmup_steps * page.batch == 1600
        assert voc_rates(batch=batch)(24_000 * 16 * 3 // 4 // batch) == pytest.approx(settings.rate / 10)
        assert voc_rates(batch=batch)(24_000 * 16 * 3 // 4 // batch - 1) == pytest.approx(settings.rate)
    rule = f"lr {settings.rate:g}"
    rule += "" if settings.in_epochs else f", {settings.steps} iterations"
    rule += f", a warm-up of {settings.warmup_steps}" if isinstance(settings, DetectSettings) else ""
    rule += " by the linear rule"
    assert dense.scaled(settings) == ([] if batch == page.batch else [rule])


def test_what_is_given_is_not_scaled_and_only_what_is_scaled_is_said():
    rule = "48000 iterations, a warm-up of 200 by the linear rule"
    assert dense.scaled(DetectVocSettings(batch=8, lr=0.5)) == [rule]
    assert dense.scaled(DetectVocSettings(batch=8, iterations=7, warmup=3)) == ["lr 0.01 by the linear rule"]
    both = DetectVocSettings(batch=8, iterations=7, lr=0.5, warmup=3)
    assert dense.scaled(both) == [] and (both.steps, both.rate, both.warmup_steps) == (7, 0.5, 3)
    assert SegmentCityscapesSettings().share == 1 and SegmentCityscapesSettings(batch=16).rate == 0.02


# -- optimiser


def trunk() -> ResNet:
    return ResNet("bottleneck", (1, 1, 1, 1), width=0.0625)


MODELS = {
    "C4": lambda: c4_detector(trunk(), 2, MMDET, 0),
    "pyramid": lambda: fpn_detector(trunk(), 2, MMDET, 0, channels=8, features=16),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decay", [True, False])
def test_every_parameter_is_trained_once_and_norms_decay_where_they_should(name, decay):
    model = MODELS[name]()
    found = optimizer(model, DetectVocSettings(decay_norms=decay))
    assert len(found.param_groups) == 2
    ids = [id(parameter) for group in found.param_groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(parameter) for parameter in model.parameters()}
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in (module.weight, module.bias)
    }
    others, of_norms = found.param_groups
    assert {id(parameter) for parameter in of_norms["params"]} == norms and norms
    assert others["weight_decay"] == 1e-4 and of_norms["weight_decay"] == (1e-4 if decay else 0.0)
    assert all(
        (group["momentum"], group["lr"], group["nesterov"]) == (0.9, 0.02, False) for group in found.param_groups
    )


def test_segmentation_decays_all_that_is_trained():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1).requires_grad_(False))
    (group,) = dense.sgd(model, SegmentVocSettings()).param_groups
    assert len(group["params"]) == 4 and group["weight_decay"] == 5e-4 and group["lr"] == 0.01


# -- protocols


def test_each_protocol_of_voc_is_what_its_source_says():
    published, moco, swav = (of_protocol("detect-voc", protocol) for protocol in ("published", "moco", "swav"))
    for settings, lr, warmup, factor in ((moco, 0.02, 100, 0.001), (swav, 0.1, 1000, 1 / 3)):
        assert isinstance(settings, DetectVocSettings) and settings.rules == "detectron2"
        assert not settings.decay_norms and settings.precise_norms == 200
        assert (settings.rate, settings.warmup_steps, settings.warmup_factor) == (lr, warmup, factor)
        half = settings.model_copy(update={"batch": 8})
        assert (half.rate, half.warmup_steps, half.steps) == (lr / 2, 2 * warmup, 48_000)
        assert deviations_of(settings) == [] and "batch 8 instead of 16" in deviations_of(half)
        explicit = settings.model_copy(update={"iterations": 24_000, "lr": lr, "warmup": warmup})
        assert deviations_of(explicit) == []  # the published values, given by the user
    assert published == DetectVocSettings() and (published.rules, published.precise_norms) == ("mmdet", 0)
    assert published.sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800) and published.long == 1333
    assert published.decay_norms and not moco.decay_norms
    assert RULES["mmdet"] is MMDET and RULES["detectron2"] is DETECTRON2
    assert SHIFTS == {"mmdet": (1, 1, 1, 1), "detectron2": (1, 1, 0, 0)} and NO_SHIFT == (0, 0, 0, 0)
    words = parse_overrides(["protocol=swav", "detect-voc.lr=0.05"])
    assert resolve(["detect-voc"], words)[1]["detect-voc"] == swav.model_copy(update={"lr": 0.05})


@pytest.mark.parametrize(
    ("name", "protocol", "has"),
    [
        ("detect-coco", "moco", "protocol=published or protocol=smoke"),
        ("segment-voc", "swav", "protocol=published or protocol=smoke"),
        ("segment-cityscapes", "own", "protocol=published or protocol=smoke"),
        ("detect-voc", "own", "protocol=published or protocol=smoke or protocol=moco or protocol=swav"),
        ("segment-linear", "published", "protocol=own or protocol=smoke"),
        ("segment-linear", "moco", "protocol=own or protocol=smoke"),
    ],
)
def test_a_protocol_that_a_bench_does_not_have_is_refused_by_name_and_left_out_under_all(name, protocol, has):
    with pytest.raises(ConfigError, match=f"{name}: expected a protocol that it has, found {protocol}.*; use {has}$"):
        resolve([name], {"protocol": protocol})
    request = read_request(["all"], ["random:tiny"], {"protocol": protocol})
    assert name not in request.candidates
    (row,) = [row for row in request.absent if row.bench == name]
    assert row.expected == has and row.reason.startswith(f"expected a protocol that it has, found {protocol}")
    if protocol in ("moco", "swav"):
        assert list(request.candidates) == ["detect-voc"] and "which only detect-voc has" in row.reason


def test_segment_linear_is_run_by_its_own_protocol_unless_another_one_is_asked_for():
    assert CATALOG["segment-linear"].protocols_for("auto") == ("own",)
    assert CATALOG["segment-linear"].protocols_for("smoke") == ("smoke",)
    assert CATALOG["segment-voc"].protocols_for("auto") == ("published",)
    assert "segment-linear" in resolve(["all"], {})[1]
    assert resolve(["segment-linear"], {})[1]["segment-linear"] == SegmentLinearSettings()


# -- what is said


def test_what_differs_from_the_published_protocol_is_said_with_both_values():
    found = deviations_of(DetectVocSettings(iterations=150, rules="detectron2", sides=(128, 160), workers=2, seed=4))
    assert found == [
        "iterations 150 instead of 24,000",
        "rules detectron2 instead of mmdet",
        f"sides [128, 160] instead of {list(range(480, 801, 32))}",
    ]
    assert deviations_of(DetectVocSettings(batch=4, iterations=150, lr=0.1)) == [
        "batch 4 instead of 16",
        "iterations 150 instead of 96,000",
        "lr 0.1 instead of 0.005",
    ]
    assert deviations_of(DetectVocSettings(score_every=100, pictures=0, score_images=7)) == []
    assert deviations_of(SegmentCityscapesSettings(size=97)) == ["size 97 instead of 769"]
    assert deviations_of(SegmentVocSettings(scale=(384, 96))) == ["scale [384, 96] instead of [2048, 512]"]
    assert deviations_of(DetectVocSettings()) == []


def task_on(objects: Any, **settings: Any) -> Task[Any]:
    images = in_memory(np.zeros((len(objects), 8, 8, 3), np.uint8), objects)
    return Task(encoder_of(), images, images, DetectVocSettings(**settings), "smoke", CPU, Path("nowhere"))


def test_the_text_of_a_result_names_images_classes_settings_and_what_was_scaled():
    task = task_on(object_sets(objects_of([], [])), batch=8)
    text = task.deviations(160, 140, *dense.scaled(task.settings))
    assert text == (
        "protocol smoke; 160 training images instead of 16,551; 140 scored images instead of 4,952; 3 classes instead of 20; "
        "batch 8 instead of 16; lr 0.01, 48000 iterations, a warm-up of 200 by the linear rule"
    )


def test_images_without_anything_to_learn_are_left_out_and_none_at_all_is_an_error():
    box = objects_of([[0, 0, 9, 9]], [0])
    crowd = objects_of([[0, 0, 9, 9]], [0], crowd=[True])
    task = task_on(object_sets(crowd, box, objects_of([], []), box, size=(40, 40)))
    chosen = trained_on(task)
    assert [chosen.name(i) for i in range(len(chosen))] == ["1", "3"] and chosen.targets is not None
    assert len(chosen.targets) == 2
    with pytest.raises(DataError, match=r"expected images with objects to learn from, found none \(crowds are not"):
        trained_on(task_on(object_sets(crowd, size=(40, 40))))


def test_a_batch_that_leaves_a_process_without_an_image_is_refused(monkeypatch):
    task = task_on(object_sets(objects_of([], [])), batch=2)
    dense.check_batch(task, "detect-voc")
    monkeypatch.setattr("swav.dist.world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"detect-voc.batch: expected at least one image for each of the 3 processes"):
        dense.check_batch(task, "detect-voc")


def test_the_backbone_of_other_benchmarks_is_not_the_one_that_is_trained():
    task = task_on(object_sets(objects_of([], [])))
    copied = dense.trunk_of(task)
    assert all(parameter.requires_grad for parameter in copied.parameters())
    assert not any(parameter.requires_grad for parameter in task.encoder.trunk.parameters())
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert not torch.equal(next(copied.parameters()), next(task.encoder.trunk.parameters()))
