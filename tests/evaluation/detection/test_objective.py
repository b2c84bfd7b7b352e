"""Attacks: losses whose weight depends on how images are dealt to processes; boxes that come back at another size or in another
convention; statistics of BatchNorm that are a running mean where the plain one is asked for.

Run: pytest tests/evaluation/detection/test_objective.py
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swav import dist
from swav.data.targets import ObjectSets
from swav.errors import DataError, NumericsError
from swav.evaluation import dense, supervised
from swav.evaluation.detection.augment import Learned, scaled_boxes
from swav.evaluation.detection.coco_eval import coco_metrics, decode_masks, encode_mask
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.models import Detector, c4_detector, fpn_detector
from swav.evaluation.detection.objective import Detection, compute_statistics, in_image, joined, sampling_seed
from swav.evaluation.detection.structures import DETECTRON2, MMDET, Counts, ImageDetections, Rules
from swav.evaluation.detection.training import NO_SHIFT, SHIFTS
from swav.evaluation.detection.voc_ap import voc_metrics
from swav.evaluation.samples import Sample, SampleBatch, Scale
from swav.evaluation.segmentation.fcn import Fcn
from swav.evaluation.segmentation.objective import Inference, Segmentation
from swav.evaluation.supervised import Objective
from swav.network.ddp import in_parallel
from swav.network.resnet import ResNet
from tests.evaluation.dense import CPU, encoder_of, in_memory, object_sets, objects_of

COUNTS = Counts(before_nms=(60, 20), after_nms=(30, 5), anchors=32, rois=8)
NOTHING = in_memory(np.zeros((1, 8, 8, 3), np.uint8), object_sets(objects_of([], [])))


def narrow_trunk() -> ResNet:
    torch.manual_seed(1)
    return ResNet("bottleneck", (1, 1, 1, 1), width=0.0625)  # 4 to 32 channels


def in_float64(model: nn.Module) -> nn.Module:
    """The model in float64, which brings its images there itself."""
    model.double().register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))
    return model


def detection(model: nn.Module, rules: str = "mmdet", **options: Any) -> Detection:
    return Detection(
        label="x",
        encoder=encoder_of(),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        val=options.pop("val", NOTHING),
        scale=Scale(128, 64),
        rules=rules,  # type: ignore[arg-type]
        shift=options.pop("shift", NO_SHIFT),
        score=options.pop("score", lambda _, found: {"AP50": float(len(found))}),
        headline="AP50",
        precision="fp32",
        seed=3,
        workers=0,
        **options,
    )


# -- two processes


class Case(NamedTuple):
    """A model and the objects of the five images of a batch, of which the first process has two."""

    kind: str
    rules: Rules = MMDET
    objects: tuple[int, ...] = (1, 0, 4, 2, 3)


CASES = {
    "C4": Case("c4"),
    "C4 by detectron2's rules": Case("c4", DETECTRON2),
    "pyramid with masks": Case("fpn"),
    "pyramid, nothing on the first process": Case("fpn", DETECTRON2, (0, 0, 4, 2, 3)),
    "FCN, corners not aligned": Case("fcn"),
    "FCN, corners aligned": Case("fcn aligned"),
}
SIZES = ((64, 96), (60, 90), (50, 96), (64, 70), (64, 96))  # either process pads to 64 x 96


def learned(rng: np.random.Generator, count: int, height: int, width: int) -> Learned:
    corners = rng.uniform(0, 0.5, (count, 2)) * (width, height)
    sides = rng.uniform(0.3, 0.5, (count, 2)) * (width, height)
    masks = (rng.random((count, height, width)) < 0.5).astype(np.uint8)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return Learned(boxes, rng.integers(0, 3, count), np.packbits(masks, axis=2))


def objective_and_samples(case: Case) -> tuple[Objective[Any], list[Sample[Any]]]:
    rng, trunk = np.random.default_rng(0), narrow_trunk()
    pixels = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in SIZES]
    if case.kind.startswith("fcn"):
        squares = [one[:40, : 33 + i] for i, one in enumerate(pixels)]  # what they lack of 40 x 40 is void
        maps = [np.full((40, 40), 255, np.uint8) for _ in pixels]
        for i, one in enumerate(maps):
            one[:40, : 33 + i] = rng.integers(0, 3, (40, 33 + i))
        model = Fcn(trunk, trunk.stage_channels, 3, channels=8)
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0  # each process draws its own
        model = dense.to_device(in_float64(model), CPU)  # type: ignore[assignment]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        how = Inference(Scale(64, 64), align_corners=case.kind == "fcn aligned")
        given = [Sample(one, its, i) for i, (one, its) in enumerate(zip(squares, maps, strict=True))]
        return Segmentation("x", encoder_of(), model, optimizer, NOTHING, how, 0), given
    objects = [learned(rng, count, *size) for count, size in zip(case.objects, SIZES, strict=True)]
    made = (
        c4_detector(trunk, 3, case.rules, 0, COUNTS)
        if case.kind == "c4"
        else fpn_detector(trunk, 3, case.rules, 0, counts=COUNTS, channels=8, features=16)
    )
    shown = [Sample(one, its, i) for i, (one, its) in enumerate(zip(pixels, objects, strict=True))]
    return detection(dense.to_device(in_float64(made), CPU)), shown


def one_step(case: Case) -> dict[str, Tensor]:
    """This process's part of the batch's loss, all gradients, and all buffers, after a step of the loop."""
    objective, samples = objective_and_samples(case)
    first, end = (len(samples) * rank // dist.world_size() for rank in (dist.rank(), dist.rank() + 1))
    batch = SampleBatch(5, first, samples[first:end], [])
    model = in_parallel(objective.model.train(), CPU)
    loss, count = supervised._step(objective, model, batch)
    assert count == end - first
    gradients = {f"grad {name}": p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    buffers = {name: value for name, value in objective.model.named_buffers() if value.is_floating_point()}
    return {"loss": loss.double() * count / len(samples)} | gradients | buffers


def every_case() -> dict[str, dict[str, Tensor]]:
    return {name: one_step(case) for name, case in CASES.items()}


def test_two_processes_have_the_loss_the_gradients_and_the_statistics_of_one(two_processes):
    """Of each tensor's largest value 1e-6: networks in float64, whose losses are weighted in float32; and 1e-5 of the FCNs, whose
    logits are brought to float32."""
    expected = every_case()
    parts = two_processes(every_case)
    for name, its in expected.items():
        tolerance = 1e-5 if name.startswith("FCN") else 1e-6
        both = [part[name] for part in parts]
        assert its.keys() == both[0].keys() == both[1].keys()
        torch.testing.assert_close(both[0]["loss"] + both[1]["loss"], its["loss"], rtol=tolerance, atol=0)
        for key in its.keys() - {"loss"}:
            size = float(its[key].abs().max())
            for found in both:
                worst = float((found[key] - its[key]).abs().max())
                assert worst <= tolerance * max(size, 1e-6), f"{name}, {key}: {worst} of {size}"
        moved = [key for key in its if key.startswith("grad") and its[key].abs().max() > 0]
        assert len(moved) > 0.9 * sum(key.startswith("grad") for key in its), name


def test_each_part_of_the_loss_is_divided_by_what_was_sampled_of_all_images():
    """The loss of a batch is no mean of the losses of its images, which have different numbers of regions."""
    objective, samples = objective_and_samples(CASES["pyramid with masks"])
    batch = SampleBatch(5, 0, samples, [])
    assert isinstance(objective, Detection)
    model = objective.model.eval()  # statistics do not move: both calls see the same network
    terms = objective._terms(model, batch)
    assert list(terms) == ["rpn_objectness", "rpn_box", "classifier", "box", "mask"]
    expected = sum(float(term.total.detach()) / max(float(term.count), 1) for term in terms.values())
    assert float(objective.loss(model, batch).detach()) == pytest.approx(expected, rel=1e-6)
    assert len({float(term.count) for term in terms.values()}) >= 3


def test_counts_and_images_of_other_processes_are_added_before_anything_is_divided(monkeypatch):
    """Another process has three images, and of each part a number of its own. The loop weighs this process by 2 of 5."""
    objective, samples = objective_and_samples(CASES["C4"])
    assert isinstance(objective, Detection)
    objective.model.eval()
    batch = SampleBatch(5, 0, samples[:2], [])
    terms = objective._terms(objective.model, batch)
    others = torch.tensor([100.0, 200.0, 300.0, 400.0, 3.0])
    monkeypatch.setattr(dist, "all_reduce_sum", lambda x: x + others)
    expected = sum(
        float(term.total.detach()) / float(term.count + other)
        for term, other in zip(terms.values(), others[:4], strict=True)
    )
    assert float(objective.loss(objective.model, batch).detach()) * 2 / 5 == pytest.approx(expected, rel=1e-6)


def test_what_is_sampled_depends_on_seed_step_and_place_alone():
    seeds = [sampling_seed(seed, step, place) for seed in (0, 1) for step in (0, 1, 257) for place in (0, 1, 16)]
    assert len(set(seeds)) == 18 and seeds == [
        sampling_seed(seed, step, place) for seed in (0, 1) for step in (0, 1, 257) for place in (0, 1, 16)
    ]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_second_image_of_a_share_is_sampled_by_its_place_in_the_whole_batch(monkeypatch):
    asked: list[list[int]] = []

    def forward(x: Tensor, sizes: Any, truths: Any, draws: list[int]) -> dict[str, Any]:
        asked.append(draws)
        return {}

    objective, samples = objective_and_samples(CASES["C4"])
    assert isinstance(objective, Detection)
    monkeypatch.setattr(objective.model, "forward", forward)
    objective._terms(objective.model, SampleBatch(7, 2, samples[2:4], []))
    assert asked == [[sampling_seed(3, 7, 2), sampling_seed(3, 7, 3)]]


# -- back to the image


VOC_BOXES = [[1, 1, 40, 30], [21, 11, 100, 80], [50, 50, 50, 50]]  # the last is one pixel


@pytest.mark.parametrize("rules", ["mmdet", "detectron2"])
def test_a_perfect_detection_of_a_voc_image_is_worth_100(rules):
    truth = object_sets(objects_of(VOC_BOXES, [0, 1, 2]), size=(80, 100))
    shift, before = SHIFTS[rules], (160, 200)
    boxes = scaled_boxes(np.array(VOC_BOXES, np.float32) - np.array(shift, np.float32), (80, 100), before)
    found = ImageDetections(torch.from_numpy(boxes), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2]))
    back = in_image(found, before, (80, 100), shift)
    np.testing.assert_allclose(back.boxes, VOC_BOXES, atol=1e-4)
    assert (back.images == 0).all() and back.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(back.scores, [0.9, 0.8, 0.7], rtol=1e-6)
    metrics = voc_metrics(truth, back, match_at_threshold=rules == "mmdet", as_text=rules == "detectron2")
    assert metrics == {"AP50": 100.0, "AP": 100.0, "AP75": 100.0}
    other = SHIFTS["detectron2" if rules == "mmdet" else "mmdet"]
    wrong = in_image(found, before, (80, 100), other)
    assert np.abs(wrong.boxes - VOC_BOXES)[:, 2:].min() > 0.9  # a whole pixel


def test_masks_come_back_at_the_images_own_size():
    mask = np.zeros((40, 60), np.bool_)
    mask[10:30, 20:50] = True
    truth = object_sets(objects_of([[20, 10, 50, 30]], [1], masks=[encode_mask(mask)]), size=(40, 60))
    full = torch.ones(1, 28, 28)
    found = ImageDetections(torch.tensor([[40.0, 20.0, 100.0, 60.0]]), torch.tensor([0.5]), torch.tensor([1]), full)
    back = in_image(found, (80, 120), (40, 60), NO_SHIFT)
    assert (decode_masks(back.masks, 40, 60)[0].astype(bool) == mask).all()
    metrics = coco_metrics(truth, back)
    assert metrics["box AP"] == metrics["mask AP"] == pytest.approx(100)
    bf16 = found._replace(boxes=found.boxes.bfloat16(), scores=found.scores.bfloat16(), masks=full.bfloat16())
    assert in_image(bf16, (80, 120), (40, 60), NO_SHIFT).boxes.dtype == np.float32


def test_detections_of_several_images_are_joined_in_order_and_none_are_fine():
    nothing = joined([])
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.masks == []
    one, two = (
        Detections(
            np.full(n, i),
            np.arange(n),
            np.full(n, 0.5, np.float32),
            np.full((n, 4), float(i), np.float32),
            [f"m{i}"] * n,
        )
        for i, n in ((0, 2), (3, 1))
    )
    both = joined([one, two])
    assert both.images.tolist() == [0, 0, 1] and both.labels.tolist() == [0, 1, 0]
    assert both.boxes[:, 0].tolist() == [0, 0, 3] and both.masks == ["m0", "m0", "m3"]
    assert both.boxes.dtype == both.scores.dtype == np.float32


# -- scoring


class Answering(Detector):
    """A detector that gives the same detections for every image, and records the sizes of its inputs."""

    def __init__(self, found: ImageDetections):
        nn.Module.__init__(self)
        self.weight, self.found, self.padding = nn.Parameter(torch.zeros(1)), found, 32
        self.seen: list[tuple[tuple[int, ...], Any]] = []

    def forward(self, images: Tensor, sizes: Any, *_: Any) -> Any:
        self.seen.append((tuple(images.shape), list(sizes)))
        return [self.found]


def found_at(left: float, score: float = 0.9) -> ImageDetections:
    return ImageDetections(torch.tensor([[left, 0.0, left + 8, 8.0]]), torch.tensor([score]), torch.tensor([0]))


def three_images() -> Any:
    return in_memory(
        np.zeros((3, 16, 16, 3), np.uint8), object_sets(*[objects_of([[0, 0, 8, 8]], [0])] * 3, size=(16, 16))
    )


def test_images_are_scored_at_their_own_size_whatever_the_network_saw():
    kept: list[Detections] = []

    def score(truth: ObjectSets, found: Detections) -> dict[str, float]:
        kept.append(found)
        return {"AP50": 12.5}

    model = Answering(found_at(32.0))
    objective = detection(model, val=three_images(), score=score, shift=(1, 1, 0, 0))
    evaluation = objective.evaluate()
    assert model.seen == [((1, 3, 64, 64), [(64, 64)])] * 3  # 16 pixels at Scale(128, 64)
    assert kept[0].images.tolist() == [0, 1, 2] and kept[0].boxes.tolist() == [[9.0, 1.0, 10.0, 2.0]] * 3
    assert evaluation.scored == 3 and [tuple(metric) for metric in evaluation.metrics] == [("AP50", 12.5, "%")]
    assert evaluation.headline == "AP50 12.50"


def test_scores_that_are_not_finite_end_it(monkeypatch):
    for found in (found_at(0.0, float("nan")), found_at(float("inf"))):
        with pytest.raises(NumericsError, match="x: expected finite outputs to score by, found others"):
            detection(Answering(found), val=three_images()).evaluate()


def test_no_readable_image_is_an_error_and_an_unreadable_one_does_not_count(monkeypatch):
    from swav.data.images import Unreadable

    images = three_images()
    real, broken = type(images).read, {1}

    def read(self: Any, i: Any) -> Any:
        if i in broken:
            raise Unreadable(str(i), "broken")
        return real(self, i)

    monkeypatch.setattr(type(images), "read", read)
    kept: list[Any] = []
    objective = detection(Answering(found_at(0.0)), val=images, score=lambda *given: kept.append(given) or {})  # type: ignore[func-returns-value]
    assert objective.evaluate().scored == 2
    ((truth, found),) = kept
    assert found.images.tolist() == [0, 1] and truth.ids.tolist() == images.targets.ids[[0, 2]].tolist()
    broken |= {0, 2}
    with pytest.raises(DataError, match="x: expected readable images to score, found none"):
        objective.evaluate()


# -- precise BN


def test_precise_statistics_are_the_plain_mean_over_batches_and_leave_momentum_and_mode():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.1), nn.ReLU(), nn.BatchNorm2d(4, momentum=0.3)
    )
    model.eval()
    weights = copy.deepcopy([*model.parameters()])
    batches = [torch.randn(5, 3, 2, 3) * (i + 1) + i for i in range(4)]
    first = [model[0](batch).detach() for batch in batches]
    second = [torch.relu(nn.functional.batch_norm(x, None, None, training=True)) for x in first]
    model(batches[0])
    compute_statistics(model, batches, model)
    for norm, maps in ((model[1], first), (model[3], second)):
        assert isinstance(norm, nn.BatchNorm2d)
        means = torch.stack([x.mean(dim=(0, 2, 3)) for x in maps])
        variances = torch.stack([x.var(dim=(0, 2, 3), unbiased=True) for x in maps])
        torch.testing.assert_close(norm.running_mean, means.mean(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, variances.mean(dim=0), rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == 4
    assert [model[1].momentum, model[3].momentum] == [0.1, 0.3] and not model.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ZeroDivisionError):
        compute_statistics(model.train(), batches, lambda _: 1 / 0)
    assert [model[1].momentum, model[3].momentum] == [0.1, 0.3] and model.training


def test_statistics_are_computed_anew_before_an_evaluation_only_where_that_is_asked_for():
    objective, samples = objective_and_samples(CASES["C4"])
    assert isinstance(objective, Detection)
    batches = [SampleBatch(i, 0, samples[:2], []) for i in range(2)]
    norm = next(module for module in objective.model.modules() if isinstance(module, nn.BatchNorm2d))
    objective.model.eval()
    assert norm.running_mean is not None
    with torch.no_grad():
        objective.evaluate()
        assert (norm.running_mean == 0).all()
        with_precise = detection(objective.model, precise=lambda: iter(batches))
        with_precise.evaluate()
    assert (norm.running_mean != 0).any() and norm.num_batches_tracked == 2 and not objective.model.training
