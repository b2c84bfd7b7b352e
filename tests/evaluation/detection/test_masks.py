"""Masks: their targets, their loss and how they are pasted, against plain loops in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from swav.evaluation.detection.masks import MaskHead, mask_loss, mask_targets, paste_masks
from swav.evaluation.detection.roi import Rois
from swav.evaluation.detection.structures import DETECTRON2, MMDET, Truth
from tests.evaluation.detection import references


def bitmap(height=40, width=50):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((rows - 18) / 14) ** 2 + ((columns - 30) / 19) ** 2 < 1).to(torch.uint8)


@pytest.mark.parametrize("box", [[10.3, 3.9, 50, 33.2], [12.0, 5, 40, 33], [25.2, 11.7, 30.9, 16.5], [0.0, 0, 50, 40]])
def test_targets_are_the_masks_in_the_boxes_by_half_at_least(box):
    mask = bitmap().double()
    found = mask_targets(torch.stack([1 - mask, mask]), torch.tensor([box]).double(), torch.tensor([1]))
    share = references.roi_align(mask[None].numpy(), box, 28, 1.0)[0]
    sure = np.abs(share - 0.5) > 1e-9
    assert sure.mean() > 0.9
    assert (found[0].numpy() == (share >= 0.5))[sure].all()


def test_a_cell_of_one_half_is_the_objects():
    """A box of 56 pixels has cells of 2: half of one is the mask's."""
    mask = torch.zeros(1, 60, 60)
    mask[:, :, 31:] = 1
    found = mask_targets(mask, torch.tensor([[0.0, 0, 56, 56]]), torch.tensor([0]))
    assert found[0, 0].tolist() == [0.0] * 15 + [1.0] * 13  # cell 15 is of pixels 30 and 31


@pytest.mark.parametrize("padding", [None, 32])
def test_the_loss_is_the_mean_over_positives_and_pixels_of_the_true_class(padding):
    torch.manual_seed(0)
    boxes = torch.tensor([[45.3, 4.5, 50, 33.3], [0.7, 0.3, 30.1, 40], [5, 5, 9, 9]])  # two reach the border
    bitmaps = (torch.rand(2, 40, 50) < 0.5).to(torch.uint8)
    truth = Truth(boxes[:2], torch.tensor([1, 2]), bitmaps)
    empty = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 30, 20, dtype=torch.uint8))
    rois = [
        Rois(boxes.double(), torch.tensor([2, 1, 4]), torch.tensor([1, 0])),
        Rois(boxes[:1].double(), torch.tensor([4]), torch.tensor([], dtype=torch.int64)),
    ]
    logits = torch.randn(2, 4, 28, 28).double()
    term = mask_loss(logits, rois, [truth, empty], padding)
    expected = 0.0
    for k, (of, label) in enumerate([(1, 2), (0, 1)]):
        mask = bitmaps[of].numpy().astype(float)
        if padding:
            mask = np.pad(mask, ((0, 24), (0, 14)))
        share = references.roi_align(mask[None], boxes[k].tolist(), 28, 1.0)[0]
        expected += references.binary_cross_entropy(logits[k, label].numpy(), share >= 0.5).mean()
    assert term.total.item() == pytest.approx(expected, rel=1e-9)
    assert term.count == 2


@pytest.mark.parametrize(
    "box", [[3.2, 4.7, 20.1, 15.3], [-4.0, -3, 12, 9], [10.5, 2.5, 44, 40], [5.0, 5, 8.2, 7.1], [0.0, 0, 30, 24]]
)
def test_masks_are_pasted_over_their_boxes(box):
    torch.manual_seed(0)
    mask = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 5).double(), 28, mode="bicubic")[0, 0].clamp(0, 1)
    found = paste_masks(torch.stack([mask, torch.ones_like(mask)]), torch.tensor([box, box]).double(), 24, 30)
    assert found.dtype == torch.bool and found.shape == (2, 24, 30)
    assert np.array_equal(found[0].numpy(), references.pasted(mask.numpy(), box, 24, 30))
    assert np.array_equal(found[1].numpy(), references.pasted(np.ones((28, 28)), box, 24, 30))
    assert found[1].any()


def test_masks_without_area_and_outside_are_pasted_nowhere():
    boxes = torch.tensor([[5.0, 5, 5, 9], [5, 9, 8, 9], [40, 5, 50, 9], [-9, 5, -4, 9], [0, 0, 2, 2]])
    found = paste_masks(torch.ones(5, 28, 28), boxes, 20, 30)
    assert found.flatten(1).sum(dim=1).tolist() == [0, 0, 0, 0, 4]
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), 20, 30).shape == (0, 20, 30)


@pytest.mark.parametrize(("rules", "std"), [(DETECTRON2, 0.001), (MMDET, math.sqrt(2 / 80))])
def test_the_head_doubles_the_size_and_is_initialised_as_published(rules, std):
    torch.manual_seed(0)
    head: Any = MaskHead(16, 32, 80, rules)
    assert head(torch.randn(3, 16, 14, 14)).shape == (3, 80, 28, 28)
    assert head.predictor.weight.std().item() == pytest.approx(std, rel=0.05)
    assert head.upsample.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 4)), rel=0.05)
    assert head.convs[1][0].weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert not head.predictor.bias.any() and not head.upsample.bias.any()
