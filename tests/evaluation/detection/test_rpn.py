"""The proposal network against plain loops in float64, by the rules of both code bases."""

import numpy as np
import pytest
import torch

from swav.evaluation.detection.rpn import AnchorPredictions, ProposalNetwork
from swav.evaluation.detection.structures import C4_COUNTS, DETECTRON2, FPN_COUNTS, MMDET, Truth
from tests.evaluation.detection import references

SIZES = [(60, 90), (64, 40)]  # of the images, in a batch of 64 x 96
OBJECTS = [  # the first is an anchor, which the second has as its best too; the last is much smaller than any
    torch.tensor([[8.0, 8, 40, 40], [10, 9, 38, 37], [30, 12, 66, 50], [70, 50, 76, 55]]),
    torch.zeros(0, 4),
]
TRUTHS = [Truth(boxes, torch.zeros(len(boxes), dtype=torch.int64)) for boxes in OBJECTS]
RULES = {"mmdet": MMDET, "detectron2": DETECTRON2}


def network(rules, inside_only=False, **counts):
    torch.manual_seed(0)
    made = ProposalNetwork(
        4,
        [(16.0, 32.0), (40.0, 64.0)],
        (8, 16),
        rules,
        FPN_COUNTS._replace(**counts),
        inside_only=inside_only,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


def maps():
    torch.manual_seed(1)
    return [torch.randn(2, 4, 8, 12).double(), torch.randn(2, 4, 4, 6).double()]


def all_anchors():
    found = []
    for sizes, (height, width), stride in (((16, 32), (8, 12), 8), ((40, 64), (4, 6), 16)):
        for row in range(height):
            for column in range(width):
                found.append(references.boxes_of_cell(sizes) + np.array([column, row, column, row]) * stride)
    return np.concatenate(found)


def test_predictions_are_in_the_order_of_the_anchors():
    """Of one anchor at one place: the three convolutions by hand."""
    rpn, x = network(DETECTRON2), maps()
    found = rpn(x)
    np.testing.assert_allclose(found.anchors.numpy(), all_anchors(), rtol=1e-6)
    assert found.per_level(rpn.anchors) == [8 * 12 * 6, 4 * 6 * 6]
    row, column, anchor = 2, 3, 4
    hidden = torch.relu(torch.nn.functional.conv2d(x[1], rpn.conv.weight, rpn.conv.bias, padding=1))[1, :, row, column]
    k = 8 * 12 * 6 + (row * 6 + column) * 6 + anchor
    logit = rpn.objectness.weight[anchor, :, 0, 0] @ hidden + rpn.objectness.bias[anchor]
    steps = rpn.deltas.weight[4 * anchor : 4 * anchor + 4, :, 0, 0] @ hidden + rpn.deltas.bias[4 * anchor :][:4]
    torch.testing.assert_close(found.logits[1, k], logit)
    torch.testing.assert_close(found.deltas[1, k], steps)


def usable(anchors, size, rules, inside_only):
    """Of MMDetection: anchors of cells within the image padded to 32; of its C4: that don't cross its border."""
    height, width = size
    flags = np.ones(len(anchors), bool)
    if rules is MMDET:
        for k in range(len(anchors)):
            first = k < 8 * 12 * 6
            cell = k // 6 if first else (k - 8 * 12 * 6) // 6
            row, column = divmod(cell, 12 if first else 6)
            stride = 8 if first else 16
            padded = [-(-side // 32) * 32 for side in size]
            flags[k] = row * stride < padded[0] and column * stride < padded[1]
    if inside_only:
        flags &= (anchors[:, :2] >= 0).all(axis=1) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
    return flags


@pytest.mark.parametrize(("name", "inside_only"), [("mmdet", True), ("mmdet", False), ("detectron2", False)])
def test_losses_are_those_of_the_code_base(name, inside_only):
    rules = RULES[name]
    rpn = network(rules, inside_only, anchors=30)
    found = rpn(maps())
    anchors = found.anchors.numpy()
    objectness = box = count = 0.0
    for i, size in enumerate(SIZES):
        objects = OBJECTS[i].numpy().astype(float)
        flags = usable(anchors, size, rules, inside_only)
        moves, minimum = (True, 0.3) if rules is MMDET else (False, 0.0)
        labels, of = references.anchor_labels(objects, anchors[flags], moves, minimum)
        places = np.flatnonzero(flags)
        positive, negative, index = rpn.assign(found, size, OBJECTS[i].double(), seed=7 + i)
        # the sample: all that may be in it, of the right kind and number
        candidates = set(places[labels == 1].tolist()), set(places[labels == 0].tolist())
        assert set(positive.tolist()) <= candidates[0] and set(negative.tolist()) <= candidates[1]
        assert len(positive) == min(15, len(candidates[0]))
        assert len(negative) == min(30 - len(positive), len(candidates[1]))
        by_place = dict(zip(places.tolist(), of.tolist(), strict=True))
        assert index.tolist() == [by_place[place] for place in positive.tolist()]
        # the losses of it
        logits, deltas = found.logits[i].detach().numpy(), found.deltas[i].detach().numpy()
        p, n = positive.numpy(), negative.numpy()
        objectness += references.binary_cross_entropy(logits[p], 1).sum()
        objectness += references.binary_cross_entropy(logits[n], 0).sum()
        box += np.abs(deltas[p] - references.steps(anchors[p], objects[index.numpy()])).sum()
        count += max(len(p), 1) + max(len(n), 1) if rules is MMDET else 30
    terms = rpn.losses(found, SIZES, TRUTHS, [7, 8])
    assert terms["rpn_objectness"].total.item() == pytest.approx(objectness, rel=1e-9)
    assert terms["rpn_box"].total.item() == pytest.approx(box, rel=1e-6)
    assert terms["rpn_objectness"].count.item() == terms["rpn_box"].count.item() == count
    assert box > 0


def test_mmdet_drops_anchors_across_the_border_before_an_objects_best_is_looked_for():
    """The best anchor crosses the border, so the second best takes its place; it would be neither otherwise."""
    objects = torch.tensor([[0.0, 8, 38, 28]]).double()
    sizes = {}
    for inside_only in (True, False):
        rpn = network(MMDET, inside_only)
        found = rpn(maps())
        positive = rpn.assign(found, SIZES[0], objects, seed=0)[0]
        sizes[inside_only] = found.anchors[positive]
    assert len(sizes[True]) and (sizes[True] >= 0).all()
    assert len(sizes[False]) and (sizes[False] < 0).any()


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_the_best_of_each_level_that_no_better_one_of_it_covers(training):
    rpn = network(DETECTRON2, before_nms=(50, 20), after_nms=(30, 10))
    found = rpn(maps())
    before, after = (50, 30) if training else (20, 10)
    proposals = rpn.proposals(found, SIZES, training=training)
    for i, (height, width) in enumerate(SIZES):
        boxes, scores, levels = [], [], []
        for level, (first, last) in enumerate(((0, 576), (576, 720))):
            logits = found.logits[i, first:last].detach().numpy()
            for k in np.argsort(-logits)[:before] + first:
                anchor, (dx, dy, dw, dh) = found.anchors[k].numpy(), found.deltas[i, k].detach().numpy()
                w, h = anchor[2:] - anchor[:2]
                x, y = (anchor[:2] + anchor[2:]) / 2 + np.array([dx * w, dy * h])
                w, h = w * np.exp(min(dw, np.log(62.5))), h * np.exp(min(dh, np.log(62.5)))
                edges = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                edges = np.clip(edges, 0, [width, height, width, height])
                if edges[2] > edges[0] and edges[3] > edges[1]:
                    boxes.append(edges)
                    scores.append(found.logits[i, k].item())
                    levels.append(level)
        kept = references.suppressed(np.array(boxes), scores, levels, 0.7)[:after]
        np.testing.assert_allclose(proposals[i].numpy(), np.array(boxes)[kept], rtol=1e-6, atol=1e-6)
        assert not proposals[i].requires_grad


def test_proposals_of_another_level_suppress_nothing():
    rpn = ProposalNetwork(4, [(16.0,), (32.0,)], (8, 16), DETECTRON2, C4_COUNTS, inside_only=False)
    rpn.anchors = 2
    anchors = torch.tensor([[0.0, 0, 30, 30], [0, 0, 29, 30], [0, 0, 30, 28], [50, 0, 70, 20]])
    found = AnchorPredictions(anchors, torch.tensor([[4.0, 3, 2, 1]]), torch.zeros(1, 4, 4), [(1, 1), (1, 1)])
    assert torch.equal(rpn.proposals(found, [(50, 100)], training=True)[0], anchors[[0, 2, 3]])


def test_proposals_that_are_empty_or_not_finite_are_dropped():
    anchors = torch.tensor([[0.0, 0, 10, 10], [90, 0, 110, 10], [0, 0, 20, 20], [0, 0, 30, 30]])
    logits = torch.tensor([[1.0, 4, 3, 2]])
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 1, 0], deltas[0, 2, 1] = 9.0, float("nan")  # to the right of the image; nowhere
    rpn = ProposalNetwork(4, [(16.0, 32.0)], (8,), DETECTRON2, C4_COUNTS, inside_only=False)
    rpn.anchors = 4
    found = AnchorPredictions(anchors, logits, deltas, [(1, 1)])
    assert rpn.proposals(found, [(50, 100)], training=True)[0].tolist() == [[0, 0, 30, 30], [0, 0, 10, 10]]


def test_of_images_without_objects_only_the_objectness_counts():
    rpn = network(MMDET)
    terms = rpn.losses(rpn(maps()), SIZES, [TRUTHS[1]] * 2, [0, 1])
    assert terms["rpn_box"].total == 0 and terms["rpn_objectness"].total > 0
    assert terms["rpn_objectness"].count == 2 * (256 + 1)  # MMDetection counts one positive that isn't there
    sum(term.total for term in terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in rpn.parameters())
