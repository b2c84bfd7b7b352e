"""Regions: their features, which are trained on, their losses and detections, against plain loops in float64."""

import numpy as np
import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from swav.evaluation.detection.roi import BoxPredictor, Rois, detect, level_of, pool, roi_losses, sample_rois
from swav.evaluation.detection.structures import C4_COUNTS, DETECTRON2, MMDET, Truth
from tests.evaluation.detection import references

STRIDES = (4, 8, 16, 32)
BOXES = [[3.2, 5.1, 40.7, 30.3], [0.0, 0, 90, 64], [50, 10, 96, 64], [10, 20, 12.5, 21]]


@pytest.mark.parametrize("side", [7, 14])
def test_features_are_those_of_aligned_and_adaptive_roi_align(side):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 24).double()
    found = pool(
        [x], (4,), [torch.tensor(BOXES, dtype=torch.float64), torch.tensor(BOXES[:1], dtype=torch.float64)], side
    )
    expected = [
        references.roi_align(x[i].numpy(), box, side, 1 / 4) for i, box in [*((0, b) for b in BOXES), (1, BOXES[0])]
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-12)
    older = MultiScaleRoIAlign(["0"], side, 2)({"0": x}, [torch.tensor(BOXES, dtype=torch.float64)], [(64, 96)])
    assert (older - found[:4]).abs().max() > 0.1  # torchvision's is half a pixel off


def test_the_level_of_a_region_is_that_of_its_size():
    sides = torch.tensor([10.0, 55, 111, 112, 223, 224, 447, 448, 900, 2000])
    boxes = torch.stack([torch.full_like(sides, 7), torch.full_like(sides, 9), 7 + sides, 9 + sides], dim=1)
    assert level_of(boxes, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    wide = torch.tensor([[0.0, 0, 448, 28]])  # as large as 112 x 112
    assert level_of(wide, 4).tolist() == [1]


def test_each_region_is_cut_out_of_its_own_level_and_image():
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 512 // stride, 512 // stride).double() for stride in STRIDES]
    boxes = [[10.0, 20, 300, 260], [5, 5, 60, 60], [0, 0, 500, 490], [30, 40, 160, 170], [1, 2, 3, 4]]
    tensors = torch.tensor(boxes).double()
    found = pool(maps, STRIDES, [tensors[:3], tensors[3:]], 7)
    for k, (box, level) in enumerate(zip(boxes, [2, 0, 3, 1, 0], strict=True)):
        image = maps[level][0 if k < 3 else 1].numpy()
        expected = references.roi_align(image, box, 7, 1 / STRIDES[level])
        np.testing.assert_allclose(found[k].numpy(), expected, atol=1e-12)


def test_features_keep_the_type_of_the_map_but_are_computed_in_float32():
    x = torch.randn(1, 3, 16, 24).bfloat16()
    boxes = [torch.tensor(BOXES)]
    found = pool([x], (4,), boxes, 7)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, pool([x.float()], (4,), boxes, 7).bfloat16())


TRUTH = Truth(torch.tensor([[0.0, 0, 20, 20], [10, 0, 30, 20], [10, 0, 30, 20]]), torch.tensor([2, 0, 1]))
PROPOSALS = torch.tensor([[0.0, 0, 20, 10], [0, 0, 20, 9.75], [6, 0, 26, 20], [50, 50, 60, 60], [0, 0, 19, 20]])


def sampled(rules, best=None, proposals=PROPOSALS, truth=TRUTH, seed=0, **changes):
    counts = C4_COUNTS._replace(**({"positive_rois": 1.0} | changes))
    return sample_rois(proposals, truth, seed, num_classes=5, rules=rules, counts=counts, best=best)


def by_box(rois):
    return sorted(zip(rois.boxes.tolist(), rois.labels.tolist(), strict=True))


def test_regions_are_positive_from_an_overlap_of_one_half_and_true_boxes_join_them():
    rois = sampled(DETECTRON2)
    assert by_box(rois) == sorted(
        [
            ([0, 0, 20, 10], 2),  # exactly one half
            ([0, 0, 20, 9.75], 5),
            ([6, 0, 26, 20], 0),  # .54 with the first, .67 with the second
            ([50, 50, 60, 60], 5),
            ([0, 0, 19, 20], 2),
            ([0, 0, 20, 20], 2),
            ([10, 0, 30, 20], 0),
            (
                [10, 0, 30, 20],
                0,
            ),  # to detectron2 a true box is one more proposal: the first of two equal objects has it
        ]
    )
    assert rois.labels[: len(rois.objects)].tolist() == TRUTH.labels[rois.objects].tolist()
    assert (rois.labels[len(rois.objects) :] == 5).all()


def test_to_mmdet_a_true_box_is_its_own_object():
    found = by_box(sampled(MMDET))
    assert [label for box, label in found if box == [10, 0, 30, 20]] == [0, 1]
    assert [each for each in found if each[0] != [10, 0, 30, 20]] == [
        each for each in by_box(sampled(DETECTRON2)) if each[0] != [10, 0, 30, 20]
    ]


def test_in_mmdets_mask_rcnn_an_object_takes_its_best_proposal_from_another():
    """The third proposal overlaps the second object more than the first, but the third object likes none better."""
    labels = {best: dict((tuple(box), label) for box, label in by_box(sampled(MMDET, best))) for best in (None, 0.5)}
    assert labels[None][6, 0, 26, 20] == 0
    assert labels[0.5][6, 0, 26, 20] == 1
    assert labels[0.5][0, 0, 19, 20] == labels[None][0, 0, 19, 20] == 2


def test_regions_are_sampled_by_number_share_and_seed():
    torch.manual_seed(0)
    corner = torch.rand(200, 2) * 8
    proposals = torch.cat([corner, corner + 10 + torch.rand(200, 2) * 12], dim=1)
    kwargs = {"proposals": proposals, "rois": 40, "positive_rois": 0.25}
    rois = [sampled(DETECTRON2, seed=seed, **kwargs) for seed in (1, 1, 2)]
    assert all(len(each.boxes) == 40 and len(each.objects) == 10 for each in rois)
    assert torch.equal(rois[0].boxes, rois[1].boxes)
    assert not torch.equal(rois[0].boxes, rois[2].boxes)
    assert torch.equal(rois[0].positives, rois[0].boxes[:10])


def test_without_objects_all_regions_are_background():
    nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for rules in (MMDET, DETECTRON2):
        rois = sampled(rules, best=0.5, truth=nothing)
        assert rois.labels.tolist() == [5] * len(PROPOSALS)
        assert len(rois.objects) == 0


def test_losses_are_divided_by_the_number_of_all_regions():
    """Two images of 3 and 2 regions, of which 2 and 1 are positive."""
    torch.manual_seed(0)
    truths = [
        Truth(torch.tensor([[0.0, 0, 9, 9], [3, 3, 30, 20]]), torch.tensor([1, 0])),
        Truth(torch.tensor([[5.0, 5, 9, 30]]), torch.tensor([2])),
    ]
    rois = [
        Rois(
            torch.tensor([[1.0, 1, 30, 19], [0, 1, 9, 8], [50, 50, 60, 70]]).double(),
            torch.tensor([0, 1, 3]),
            torch.tensor([1, 0]),
        ),
        Rois(torch.tensor([[4.0, 6, 10, 28], [40, 40, 42, 43]]).double(), torch.tensor([2, 3]), torch.tensor([0])),
    ]
    logits, deltas = torch.randn(5, 4).double(), torch.randn(5, 3, 4).double()
    terms = roi_losses(logits, deltas, rois, truths)
    expected = references.cross_entropy(logits.numpy(), np.array([0, 1, 3, 2, 3])).sum()
    assert terms["classifier"].total.item() == pytest.approx(expected, rel=1e-9)
    box = 0.0
    for place, label, roi, target in (
        (0, 0, [1, 1, 30, 19], [3, 3, 30, 20]),
        (1, 1, [0, 1, 9, 8], [0, 0, 9, 9]),
        (3, 2, [4, 6, 10, 28], [5, 5, 9, 30]),
    ):
        box += np.abs(deltas[place, label].numpy() - references.steps([roi], [target], (10, 10, 5, 5))[0]).sum()
    assert terms["box"].total.item() == pytest.approx(box, rel=1e-9)
    assert terms["classifier"].count == terms["box"].count == 5


def test_detections_are_the_likely_classes_of_proposals_without_those_that_cover_a_surer_one():
    torch.manual_seed(0)
    size, classes = (60, 90), 3
    corner = torch.rand(40, 2) * 50
    proposals = torch.cat([corner, corner + 8 + torch.rand(40, 2) * 30], dim=1).double()
    logits, deltas = 1.5 * torch.randn(40, classes + 1).double(), torch.randn(40, classes, 4).double()
    found = detect(logits, deltas, proposals, size, DETECTRON2, C4_COUNTS._replace(detections=25, score=0.2))
    exp = np.exp(logits.numpy())
    probability = exp / exp.sum(axis=1, keepdims=True)
    boxes, scores, labels = [], [], []
    for i in range(40):
        left, top, right, bottom = proposals[i].numpy()
        for k in range(classes):
            if probability[i, k] > 0.2:
                dx, dy, dw, dh = deltas[i, k].numpy() / [10, 10, 5, 5]
                w, h = right - left, bottom - top
                x, y, w, h = (left + right) / 2 + dx * w, (top + bottom) / 2 + dy * h, w * np.exp(dw), h * np.exp(dh)
                box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                boxes.append(np.clip(box, 0, [size[1], size[0]] * 2))
                scores.append(probability[i, k])
                labels.append(k)
    kept = references.suppressed(np.array(boxes), scores, labels, 0.5)
    assert len(kept) > 25
    kept = kept[:25]
    np.testing.assert_allclose(found.boxes.numpy(), np.array(boxes)[kept], rtol=1e-9)
    np.testing.assert_allclose(found.scores.numpy(), np.array(scores)[kept], rtol=1e-9)
    assert found.labels.tolist() == np.array(labels)[kept].tolist()
    assert found.scores.diff().max() <= 0


def test_of_a_proposal_that_is_not_finite_nothing_is_detected():
    logits, deltas = torch.tensor([[5.0, 0], [5.0, 0]]), torch.zeros(2, 1, 4)
    deltas[0, 0, 1] = float("nan")
    found = detect(logits, deltas, torch.tensor([[0.0, 0, 9, 9], [0, 0, 5, 5]]), (20, 20), MMDET, C4_COUNTS)
    assert found.boxes.tolist() == [[0, 0, 5, 5]]


def test_the_published_limits_of_detections():
    """The score must be above .05 and two boxes of a class may overlap by half, but not more."""
    assert (C4_COUNTS.score, C4_COUNTS.detection_nms, C4_COUNTS.detections) == (0.05, 0.5, 100)
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.1], [30, 30, 40, 40]])
    logits = torch.tensor([[4.0, 0], [3, 0], [2, 0], [-2.944439, 0]])  # the last: 1/20, or a little below
    found = detect(logits, torch.zeros(4, 1, 4), proposals, (50, 50), DETECTRON2, C4_COUNTS)
    assert found.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 5]]


def test_the_predictors_are_initialised_as_published():
    torch.manual_seed(0)
    made = BoxPredictor(2048, 20)
    assert made.classes.weight.shape == (21, 2048) and made.boxes.weight.shape == (80, 2048)
    assert made.classes.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert made.boxes.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert not made.classes.bias.any() and not made.boxes.bias.any()
