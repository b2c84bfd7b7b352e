"""Anchors, their coding, their assignment to objects, and the choice among them, against plain loops in float64."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from swav.evaluation.detection.boxes import (
    ROI_WEIGHTS,
    RPN_WEIGHTS,
    cell_anchors,
    decode,
    draws,
    encode,
    grid_anchors,
    in_image_cells,
    inside,
    match,
    overlaps,
    sample,
)
from tests.evaluation.detection import references

C4_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)


def test_anchors_of_a_cell_are_not_rounded_and_run_over_the_sizes_first():
    found = cell_anchors(C4_SIZES)
    assert found.shape == (15, 4)
    np.testing.assert_allclose(found.numpy(), references.boxes_of_cell(C4_SIZES), rtol=1e-12)
    assert found[0].tolist() == pytest.approx(
        [-22.627417, -11.3137085, 22.627417, 11.3137085]
    )  # 45.25 x 22.63: ratio 1/2
    assert found[1].tolist() == [-16, -16, 16, 16]
    assert found[13].tolist() == [-256, -256, 256, 256]


def test_a_pyramids_last_anchor_lies_at_its_fixed_stride():
    """800x1344: p5 is 25x42 and p6 13x21, whose stride would be 61 and 64 if it was the image's size divided by the map's."""
    found = grid_anchors(cell_anchors((512.0,)), (13, 21), 64).view(13, 21, 3, 4)
    centres = (found[..., :2] + found[..., 2:]) / 2
    assert centres[0, 0].abs().max() == 0
    assert centres[12, 20].tolist() == [[1280, 768]] * 3
    assert centres[1, 0].tolist() == [[0, 64]] * 3  # rows before columns before anchors
    assert found[0, 0, 1].tolist() == [-256, -256, 256, 256]


def test_cells_beyond_an_image_padded_by_itself_are_found():
    """100 x 65 pixels become 128 x 96 of a batch's 128 x 160."""
    flags = in_image_cells([(32, 40), (2, 3)], [4, 64], 3, (100, 65), 32)
    first, second = flags[: 32 * 40 * 3].view(32, 40, 3), flags[32 * 40 * 3 :].view(2, 3, 3)
    assert first[:, :24].all() and not first[:, 24:].any()
    assert second[:, :2].all() and not second[:, 2:].any()  # 96 / 64 rounded up


def test_a_box_at_the_far_border_is_not_inside():
    boxes = torch.tensor([[0.0, 0, 9, 4], [0, 0, 10, 4], [0, 0, 9, 5], [-0.1, 0, 9, 4], [0, -0.1, 9, 4]])
    assert inside(boxes, (5, 10)).tolist() == [True, False, False, False, False]


coordinate = st.floats(-500, 500, width=32)
side = st.floats(0.5, 500, width=32)


@given(
    st.lists(st.tuples(coordinate, coordinate, side, side), min_size=2, max_size=6),
    st.sampled_from([RPN_WEIGHTS, ROI_WEIGHTS]),
)
def test_decoding_undoes_coding_where_no_step_is_too_large(rows, weights):
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float64)
    targets = boxes.flip(0)
    coded = encode(boxes, targets, weights)
    np.testing.assert_allclose(coded, references.steps(boxes.numpy(), targets.numpy(), weights), rtol=1e-7, atol=1e-7)
    ratios = (boxes[:, 2:] - boxes[:, :2]) / (targets[:, 2:] - targets[:, :2])
    fits = (ratios.log().abs() < math.log(1000 / 16)).all(dim=1)
    found = decode(coded, boxes, weights, clamp_both_ends=True)
    torch.testing.assert_close(found[fits], targets[fits], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("both", [True, False])
def test_steps_of_the_size_are_limited_at_the_upper_end_and_for_mmdet_at_both(both):
    box = torch.tensor([[0.0, 0, 16, 16]], dtype=torch.float64)
    large = decode(torch.tensor([[0, 0, 9.0, 9]], dtype=torch.float64), box, RPN_WEIGHTS, clamp_both_ends=both)
    small = decode(torch.tensor([[0, 0, -9.0, -9]], dtype=torch.float64), box, RPN_WEIGHTS, clamp_both_ends=both)
    assert (large[0, 2] - large[0, 0]).item() == pytest.approx(1000)
    assert (small[0, 2] - small[0, 0]).item() == pytest.approx(16 * 16 / 1000 if both else 16 * math.exp(-9))


def test_steps_in_bf16_are_decoded_in_float32():
    """Boxes at 1,000 pixels are 4 to 8 apart in bf16."""
    boxes = torch.tensor([[1001.0, 1003.0, 1100.0, 1201.0]])
    found = decode(torch.zeros(1, 4, dtype=torch.bfloat16), boxes, RPN_WEIGHTS, clamp_both_ends=False)
    assert found.dtype == torch.float32
    assert torch.equal(found, boxes)
    steps = torch.tensor([[0.3, -0.7, 0.9, 1.1]]).bfloat16()
    found = decode(steps, boxes, ROI_WEIGHTS, clamp_both_ends=False)
    assert torch.equal(found, decode(steps.float(), boxes, ROI_WEIGHTS, clamp_both_ends=False))


def test_class_specific_steps_are_decoded_from_one_box():
    deltas, boxes = torch.randn(3, 5, 4), torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9], [1, 2, 30, 4]])
    found = decode(deltas, boxes[:, None], ROI_WEIGHTS, clamp_both_ends=True)
    for k in range(5):
        alone = decode(deltas[:, k], boxes, ROI_WEIGHTS, clamp_both_ends=True)
        torch.testing.assert_close(found[:, k], alone)


def scene():
    """Objects and many small boxes around them, with ties, and a box that both objects like most."""
    rng = np.random.default_rng(0)
    objects = np.array([[10, 10, 50, 50], [30, 10, 74, 50], [100, 100, 104, 103]], float)
    near = objects[rng.integers(3, size=60)] + rng.integers(-14, 15, size=(60, 4))
    near = near[(near[:, 2] > near[:, 0]) & (near[:, 3] > near[:, 1])]
    return objects, np.concatenate([near, near[:5], [[20, 10, 62, 50], [99, 99, 140, 140]]])


@pytest.mark.parametrize(("moves", "minimum"), [(False, 0.0), (True, 0.3)])
def test_anchors_belong_to_objects_as_the_code_base_has_it(moves, minimum):
    objects, anchors = scene()
    iou = overlaps(torch.from_numpy(objects), torch.from_numpy(anchors))
    np.testing.assert_allclose(iou.numpy(), references.iou(objects, anchors), atol=1e-12)
    labels, of = match(iou, 0.3, 0.7, best=minimum, best_moves=moves)
    expected, expected_of = references.anchor_labels(objects, anchors, moves, minimum)
    assert labels.tolist() == expected.tolist()
    assert of[labels == 1].tolist() == expected_of[expected == 1].tolist()


def test_an_objects_best_anchor_below_the_minimum_is_positive_in_detectron2_only():
    iou = torch.tensor([[0.2, 0.1, 0.0]])
    assert match(iou, 0.3, 0.7, best=0.0)[0].tolist() == [1, 0, 0]
    assert match(iou, 0.3, 0.7, best=0.3)[0].tolist() == [0, 0, 0]
    assert match(iou, 0.3, 0.7)[0].tolist() == [0, 0, 0]


def test_of_an_object_that_overlaps_nothing_nothing_is_positive():
    assert match(torch.zeros(1, 3), 0.3, 0.7, best=0.0)[0].tolist() == [0, 0, 0]


def test_a_best_anchor_moves_to_its_object_of_several_to_the_last():
    iou = torch.tensor([[0.9, 0.1], [0.8, 0.0], [0.5, 0.5]])
    assert match(iou, 0.3, 0.7, best=0.3, best_moves=False)[1].tolist() == [0, 2]
    labels, of = match(iou, 0.3, 0.7, best=0.3, best_moves=True)
    assert labels.tolist() == [1, 1]
    assert of.tolist() == [2, 2]


def test_thresholds_belong_to_the_upper_class():
    iou = torch.tensor([[0.3, 0.7, 0.29, 0.69, 0.8]], dtype=torch.float64)
    assert match(iou, 0.3, 0.7)[0].tolist() == [-1, 1, 0, -1, 1]


@pytest.mark.parametrize("boxes", [0, 3])
def test_without_objects_all_are_negative(boxes):
    labels, of = match(torch.zeros(0, boxes), 0.3, 0.7, best=0.0)
    assert labels.tolist() == [0] * boxes
    assert of.tolist() == [0] * boxes


def test_boxes_without_area_overlap_nothing():
    flat = torch.tensor([[5.0, 5, 5, 5]])
    assert overlaps(flat, flat).tolist() == [[0.0]]


@given(st.integers(0, 40), st.integers(0, 200), st.integers(1, 64), st.sampled_from([0.25, 0.5]))
def test_a_sample_has_at_most_its_share_of_positives_and_is_filled_with_negatives(positives, negatives, count, share):
    labels = torch.tensor([1] * positives + [-1] * 7 + [0] * negatives, dtype=torch.int8)
    positive, negative = sample(labels, count, share, draws(0, "rois"))
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    assert len(set(positive.tolist())) == len(positive) == min(positives, int(count * share))
    assert len(set(negative.tolist())) == len(negative) == min(negatives, count - len(positive))
    assert positive.tolist() == sorted(positive.tolist())


def test_a_sample_depends_on_its_seed_and_on_its_purpose_and_every_box_is_as_likely():
    labels = torch.zeros(1000, dtype=torch.int8)
    chosen = [sample(labels, 100, 0.5, draws(seed, "anchors"))[1] for seed in (5, 5, 6)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert not torch.equal(chosen[0], sample(labels, 100, 0.5, draws(5, "rois"))[1])
    counts = torch.zeros(20)
    for seed in range(400):
        counts[sample(labels[:20], 5, 0.5, draws(seed, "anchors"))[1]] += 1
    assert counts.sum() == 2000
    assert ((counts - 100).abs() < 5 * math.sqrt(100 * 0.75)).all()
