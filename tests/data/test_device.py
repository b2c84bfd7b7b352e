"""Attacks: pieces of a batch that are other images, other crops or other bits than the whole batch's.

Run: pytest tests/data/test_device.py
"""

import pytest
import torch

from swav.config import Crop, Recipe
from swav.data.augment.photometric import NUM_PARAMS
from swav.data.device import MicroBatches
from swav.data.loader import Batch
from swav.views import view_spec

BATCH = 6
CROPS = (Crop(count=2, size=10, scale=(0.1, 1.0)), Crop(count=3, size=8, scale=(0.1, 1.0)))
SPEC = view_spec(Recipe(crops=CROPS, blur=0.0))
CPU = torch.device("cpu")


def batch(left_to_the_device: bool) -> Batch:
    views = [torch.randint(256, (c.count * BATCH, c.size, c.size, 3), dtype=torch.uint8) for c in CROPS]
    params = [torch.rand(len(kind), NUM_PARAMS) for kind in views]
    for kind in params:  # orders of operations, and factors
        kind[:, 1:5] = kind[:, 1:5].argsort(dim=1)
    return Batch(0, views, params if left_to_the_device else None, torch.arange(BATCH), [])


@pytest.mark.parametrize("left_to_the_device", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_pieces_put_together_are_the_whole_batch(size, left_to_the_device):
    given = batch(left_to_the_device)
    (whole,) = MicroBatches(given, SPEC, CPU, BATCH)
    micro_batches = MicroBatches(given, SPEC, CPU, size)
    assert len(micro_batches) == BATCH // size == len(list(micro_batches))
    for kind, crop in enumerate(CROPS):
        rows = [torch.unflatten(piece[kind], 0, (crop.count, size)) for piece in micro_batches]
        assert torch.equal(torch.cat(rows, dim=1).flatten(0, 1), whole[kind])
        assert whole[kind].dtype == torch.float32 and whole[kind].shape == (crop.count * BATCH, 3, crop.size, crop.size)


def test_a_piece_asked_for_twice_has_the_same_bits_and_the_batch_is_left_alone():
    given = batch(True)
    before = [view.clone() for view in given.views]
    micro_batches = MicroBatches(given, SPEC, CPU, 2)
    assert all(torch.equal(a, b) for a, b in zip(micro_batches[1], micro_batches[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, given.views, strict=True))
    with pytest.raises(IndexError):
        micro_batches[3]
