"""Whole detectors: their parts, their backbones, and what does and does not change their loss and their detections."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from swav import dist
from swav.errors import ConfigError
from swav.evaluation.detection.models import c4_detector, fpn_detector
from swav.evaluation.detection.structures import C4_COUNTS, DETECTRON2, FPN_COUNTS, MMDET
from swav.network.backbone import TimmTrunk
from swav.network.resnet import ResNet
from swav.network.sync_batch_norm import SynchronisedBatchNorm, synchronised
from tests.evaluation.detection.tiny import CLASSES, SIZES, detector, images, loss, resnet, truths

KINDS = ["c4", "fpn"]
RULES = {"mmdet": MMDET, "detectron2": DETECTRON2}
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("build", "classes", "parameters", "norms"),
    [(c4_detector, 20, 33_234_160, 54), (fpn_detector, 80, 45_711_152, 69)],
)
def test_the_resnet_50_models_have_all_the_trunk_and_train_all_of_it(build, classes, parameters, norms):
    with torch.device("meta"):
        trunk = ResNet("bottleneck", (3, 4, 6, 3))
        names = set(trunk.state_dict())
        made = build(trunk, classes, MMDET, seed=0)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert [type(m) for m in made.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [
        nn.BatchNorm2d
    ] * norms
    assert all(p.requires_grad for p in made.parameters())
    assert {f"body.trunk.{name}" for name in names} <= set(made.state_dict())
    assert not any("Frozen" in type(m).__name__ for m in made.modules())
    assert len({id(p) for p in made.parameters()}) == len(list(made.parameters()))


def test_the_published_shapes():
    with torch.device("meta"):
        c4 = c4_detector(ResNet("bottleneck", (3, 4, 6, 3)), 20, MMDET, 0)
        fpn = fpn_detector(ResNet("bottleneck", (3, 4, 6, 3)), 80, MMDET, 0)
    shapes = {name: tuple(p.shape) for made in (c4, fpn) for name, p in made.named_parameters() if "trunk" not in name}
    assert shapes["body.norm.weight"] == (2048,)
    assert shapes["body.fpn.inner_blocks.0.0.weight"] == (256, 256, 1, 1)
    assert shapes["body.fc.weight"] == (1024, 256 * 7 * 7)
    assert {name: tuple(p.shape) for name, p in c4.rpn.named_parameters()} == {
        "conv.weight": (1024, 1024, 3, 3),
        "conv.bias": (1024,),
        "objectness.weight": (15, 1024, 1, 1),
        "objectness.bias": (15,),
        "deltas.weight": (60, 1024, 1, 1),
        "deltas.bias": (60,),
    }
    assert tuple(fpn.rpn.objectness.weight.shape) == (3, 256, 1, 1)
    assert not any(
        name.startswith("body.fpn") and name.endswith("bias") and p.dim() > 1 for name, p in fpn.named_parameters()
    )
    assert (c4.body.strides, fpn.body.strides) == ((16,), (4, 8, 16, 32, 64))
    assert (c4.rpn.sizes, fpn.rpn.sizes) == ([(32, 64, 128, 256, 512)], [(32,), (64,), (128,), (256,), (512,)])


def test_the_published_numbers_of_boxes():
    assert C4_COUNTS[:2] == ((12000, 6000), (2000, 1000))
    assert FPN_COUNTS[:2] == ((2000, 1000), (1000, 1000))
    assert C4_COUNTS[2:] == FPN_COUNTS[2:] == (256, 0.5, 512, 0.25, 100, 0.7, 0.5, 0.05)


def test_what_the_code_bases_do_differently_in_one_of_the_models_only():
    """detectron2 pads C4's images to the largest of the batch; border and best proposals are in MMDetection's configurations."""
    made = {(kind, name): detector(kind, rules) for kind in KINDS for name, rules in RULES.items()}
    assert {key: (each.padding, each.rpn.inside_only, each.best_roi_iou) for key, each in made.items()} == {
        ("c4", "mmdet"): (32, True, None),
        ("c4", "detectron2"): (1, False, None),
        ("fpn", "mmdet"): (32, False, 0.5),
        ("fpn", "detectron2"): (32, False, None),
    }


def test_the_level_of_the_largest_anchors_has_no_features_of_regions():
    maps = [torch.full((1, 8, 256 >> i, 256 >> i), float(i)) for i in range(5)]
    made: Any = detector("fpn")
    pooled = made.body.pooled(maps, [torch.tensor([[0.0, 0, 1000, 1000]])], 7)
    assert (pooled == 3).all()


@pytest.mark.parametrize(("name", "bound"), [("detectron2", math.sqrt(3 / 1024)), ("mmdet", math.sqrt(6 / 1280))])
def test_the_initial_weights_of_a_pyramid_are_those_of_its_code_base(name, bound):
    trunk = ResNet("basic", (1, 1, 1, 1), width=2)  # 1,024 channels in the last layer
    made: Any = fpn_detector(trunk, CLASSES, RULES[name], 0, channels=256, features=64, masks=False)
    lateral = made.body.fpn.inner_blocks[3][0].weight
    assert lateral.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert lateral.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    fan = 256 * 49 if name == "detectron2" else (256 * 49 + 64) / 2
    assert made.body.fc.weight.abs().max().item() == pytest.approx(math.sqrt(3 / fan), rel=0.01)
    assert made.body.convs[0][0].weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    for layer in (made.rpn.conv, made.rpn.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and not layer.bias.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_is_a_function_of_its_trunk_and_its_seed(kind):
    before = torch.random.get_rng_state()
    first, second = detector(kind), detector(kind)
    torch.random.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    trunk = resnet()
    state = torch.random.get_rng_state()
    made = c4_detector(trunk, CLASSES, MMDET, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert made.body.trunk is trunk
    assert not torch.equal(made.rpn.conv.weight, c4_detector(resnet(), CLASSES, MMDET, 2).rpn.conv.weight)


@pytest.mark.parametrize("stem", ["imagenet", "half"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_resnets_of_any_block_and_of_stride_16_can_be_detectors(block, stem):
    for build in (c4_detector, fpn_detector):
        made = build(resnet(block, stem=stem), CLASSES, DETECTRON2, 0).eval()
        with torch.no_grad():
            maps = made.body(images(1))
        assert [tuple(x.shape[2:]) for x in maps] == (
            [(4, 6)] if build is c4_detector else [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        )


def test_timms_resnets_have_all_and_its_other_hierarchies_a_pyramid():
    image = images(1)
    with torch.no_grad():
        for build in (c4_detector, fpn_detector):
            made: Any = build(TimmTrunk("test_resnet"), CLASSES, MMDET, 0).eval()
            stages = made.body.trunk.stages(image)
            last = {64 // x.shape[2]: x for x in stages}
            if build is c4_detector:
                torch.testing.assert_close(made.body(image)[0], last[16])
        other: Any = fpn_detector(TimmTrunk("test_efficientnet"), CLASSES, MMDET, 0).eval()
        strides = [64 // x.shape[2] for x in other.body.trunk.stages(image)]
        assert [strides[place] for place in other.body.places] == [4, 8, 16, 32]
        assert all(place == max(i for i, s in enumerate(strides) if s == strides[place]) for place in other.body.places)
    with pytest.raises(ConfigError, match=r"expected a ResNet.*found timm:test_efficientnet"):
        c4_detector(TimmTrunk("test_efficientnet"), CLASSES, MMDET, 0)


@pytest.mark.parametrize("build", [c4_detector, fpn_detector])
@pytest.mark.parametrize(
    "trunk", [lambda: TimmTrunk("test_vit"), lambda: resnet(stem="small"), lambda: nn.Linear(3, 3)]
)
def test_other_backbones_are_refused_in_one_line(build, trunk):
    with pytest.raises(ConfigError, match=r"expected a .*, found .*; use ") as refusal:
        build(trunk(), CLASSES, MMDET, 0)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_without_objects_the_loss_is_finite_and_reaches_every_parameter(kind, rules):
    for empty in ((1,), (0, 1)):
        made = detector(kind, rules)
        terms = made(images(), SIZES[:2], truths(empty=empty), [0, 1])
        assert set(terms) == {"rpn_objectness", "rpn_box", "classifier", "box"} | ({"mask"} if kind == "fpn" else set())
        if len(empty) == 2:
            for name, term in terms.items():
                assert (term.total == 0) == (name not in ("rpn_objectness", "classifier"))
            assert kind == "c4" or terms["mask"].count == 0
        loss(terms).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
        assert not any(term.count.requires_grad for term in terms.values())


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_halves_of_a_batch_have_its_samples_and_its_loss(kind, rules):
    made = detector(kind, rules).double().eval()
    whole = images(4, torch.float64)
    arguments = [whole, SIZES, truths(4, empty=(2,)), [5, 6, 7, 8]]
    expected = made(*arguments)
    halves = [made(*(part[half] for part in arguments)) for half in (slice(0, 2), slice(2, 4))]
    for name, term in expected.items():
        torch.testing.assert_close(sum(half[name].total for half in halves), term.total, rtol=1e-10, atol=1e-10)
        assert sum(half[name].count for half in halves) == term.count


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_seeds_change_the_samples(kind):
    made = detector(kind).eval()
    torch.manual_seed(9)
    found = [loss(made(images(), SIZES[:2], truths(), seeds)).item() for seeds in ([1, 2], [1, 2], [1, 3], [4, 2])]
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_within_the_image_and_by_falling_score(kind):
    made = detector(kind, score=0.1).eval()
    with torch.no_grad():
        nn.init.normal_(made.predictor.classes.weight, std=0.5)
        nn.init.normal_(made.predictor.boxes.weight, std=0.1)
        found, again = (made(images(), SIZES[:2]) for _ in range(2))
    for (height, width), image, other in zip(SIZES, found, again, strict=False):
        assert len(image.boxes) > 3
        assert (image.boxes >= 0).all() and (image.boxes <= torch.tensor([width, height, width, height])).all()
        assert (image.scores.diff() <= 0).all()
        assert image.labels.min() >= 0 and image.labels.max() < CLASSES
        assert torch.equal(image.boxes, other.boxes)
        if kind == "fpn":
            assert image.masks.shape == (len(image.boxes), 28, 28)
            assert image.masks.min() >= 0 and image.masks.max() <= 1
        else:
            assert image.masks is None


def test_masks_are_those_of_the_detected_classes():
    """The mask head's output is one number per class here."""
    made = detector("fpn", score=0.1).eval()
    with torch.no_grad():
        nn.init.normal_(made.predictor.classes.weight, std=0.5)
        made.mask_head.predictor.weight.zero_()
        made.mask_head.predictor.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).logit())
        found = made(images(), SIZES[:2])
    for image in found:
        assert len(set(image.labels.tolist())) > 1
        torch.testing.assert_close(image.masks[:, 0, 0], (image.labels + 1) / 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_beside_makes_no_difference_to_detections(kind):
    made = detector(kind, score=0.1).double().eval()
    with torch.no_grad():
        both = made(images(2, torch.float64), SIZES[:2])
        alone = made(images(2, torch.float64)[1:], SIZES[1:2])[0]
    torch.testing.assert_close(both[1].boxes, alone.boxes)
    torch.testing.assert_close(both[1].scores, alone.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_the_boxes_and_the_loss_are_float32_and_near(kind):
    made = detector(kind, score=0.05).eval()
    with torch.no_grad():
        exact = made(images(), SIZES[:2], truths(), [0, 1])
        with torch.autocast("cpu", torch.bfloat16):
            terms = made(images(), SIZES[:2], truths(), [0, 1])
            found = made(images(), SIZES[:2])
            anchors = made.rpn(made.body(images()))
    assert all(term.total.dtype == term.count.dtype == torch.float32 for term in terms.values())
    assert all(
        part.dtype == torch.float32 for part in (found[0].boxes, found[0].scores, anchors.logits, anchors.deltas)
    )
    assert found[0].masks is None or found[0].masks.dtype == torch.float32
    for name in ("rpn_objectness", "classifier"):
        assert (terms[name].total / terms[name].count).item() == pytest.approx(
            (exact[name].total / exact[name].count).item(), rel=0.02
        )
    boxes = found[0].boxes
    assert (boxes != boxes.bfloat16().float()).float().mean() > 0.3  # the others end at the image's border


def test_training_uses_its_own_number_of_proposals_in_eval_mode_too():
    made = detector("c4", after_nms=(7, 3), rois=1000, positive_rois=1.0).eval()
    terms = made(images(), SIZES[:2], truths(), [0, 1])
    assert terms["classifier"].count == 2 * (7 + 2)  # two true boxes in each
    with torch.no_grad():
        assert [len(p) for p in made.rpn.proposals(made.rpn(made.body(images())), SIZES[:2], training=False)] == [3, 3]


def test_truths_need_seeds():
    with pytest.raises(ValueError, match="seeds: expected one for each image"):
        detector("c4")(images(), SIZES[:2], truths())


@pytest.mark.parametrize("kind", KINDS)
def test_batchnorm_in_training_is_over_all_regions_of_the_batch(kind):
    made = detector(kind)
    norm = made.body.norm if kind == "c4" else made.body.convs[0][1]
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = made.train()(images(), SIZES[:2], truths(), [0, 1])
    assert len(seen) == 1 and len(seen[0]) == terms["classifier"].count
    torch.testing.assert_close(norm.running_mean, 0.1 * seen[0].mean(dim=(0, 2, 3)))
    assert seen[0].shape[2:] == (7, 7)  # of C4: 14 x 14, halved by the last layer


@pytest.mark.parametrize("kind", KINDS)
def test_synchronised_batchnorm_takes_the_place_of_every_layer(kind):
    made = detector(kind).double()
    other: Any = synchronised(copy.deepcopy(made), CPU)
    assert list(other.state_dict()) == list(made.state_dict())
    assert not any(type(m) is nn.BatchNorm2d for m in other.modules())
    arguments = images(dtype=torch.float64), SIZES[:2], truths(), [0, 1]
    expected, found = made(*arguments), other(*arguments)
    for name, term in expected.items():
        torch.testing.assert_close(found[name].total, term.total, rtol=1e-9, atol=1e-9)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(
            other.state_dict()[name], value, rtol=1e-9, atol=1e-9
        )  # all statistics were followed
    assert isinstance(other.body.trunk.layer4[0].bn1, SynchronisedBatchNorm)


def share(kind: str, empty: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Terms, gradients and running statistics of this process's share of two images, of which some have no objects."""
    made = detector(kind, DETECTRON2).double()
    if dist.is_active():
        synchronised(made, CPU)
    mine = slice(dist.rank(), dist.rank() + 1) if dist.is_active() else slice(0, 2)
    terms = made(images(2, torch.float64)[mine], SIZES[:2][mine], truths(empty=empty)[mine], [0, 1][mine])
    counts = {name: dist.all_reduce_sum(term.count.clone()).clamp(min=1) for name, term in terms.items()}
    sum(term.total / counts[name] for name, term in terms.items()).backward()
    found = {f"sum total {name}": term.total.detach() for name, term in terms.items()}
    found |= {f"sum count {name}": term.count for name, term in terms.items()}
    found |= {f"sum gradient {name}": p.grad for name, p in made.named_parameters()}
    return found | {f"same {name}": b for name, b in made.named_buffers() if "running" in name}


@pytest.mark.parametrize(("kind", "empty"), [("c4", (1,)), ("fpn", (1,)), ("fpn", (0, 1))])
def test_two_processes_have_the_loss_and_the_gradients_of_one(two_processes, kind, empty):
    """Also where one of them, or both, have no object at all, and so no region for a mask."""
    expected, parts = share(kind, empty), two_processes(share, kind, empty)
    for name, value in expected.items():
        found = parts[0][name] if name.startswith("same") else parts[0][name] + parts[1][name]
        torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-9, msg=f"{name} differs")
