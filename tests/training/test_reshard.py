"""Attacks: a queue that another number of processes takes over in another order, or with other rows.

Run: pytest tests/training/test_reshard.py
"""

from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swav import checkpoint, dist
from swav.algorithm import Queue
from swav.training import resume

BATCH = 12
PROCESSES = st.sampled_from([1, 2, 3, 4, 6, 12])


def queues(processes: int, pushes: int, length: int) -> list[Queue]:
    """Queues of so many processes that were pushed the same batches, row b of push p being 100 p + b."""
    made = [Queue(length // processes, 1, 2) for _ in range(processes)]
    for push in range(1, pushes + 1):
        batch = torch.arange(BATCH).float() + 100 * push
        for queue, rows in zip(made, batch.chunk(processes), strict=True):
            queue.push(torch.stack([rows, -rows])[..., None])
    return made


def shares_after(before: int, after: int, pushes: int, length: int) -> list[dict[str, Tensor]]:
    """What each of `after` processes takes from a checkpoint of `before`."""
    local = [{f"queue/{k}": v for k, v in q.state_dict().items()} for q in queues(before, pushes, length)]
    saved = checkpoint.Checkpoint(3, {}, {}, local, {"recipe": {"batch": BATCH}}, Path())
    found = []
    for rank in range(after):
        with (
            mock.patch.object(dist, "world_size", lambda: after),
            mock.patch.object(dist, "rank", lambda rank=rank: rank),
        ):
            found.append(resume.local_shard(saved))
    return found


@given(PROCESSES, PROCESSES, st.integers(0, 5), st.integers(1, 3))
def test_a_queue_of_whole_batches_is_what_the_other_processes_would_have_made(before, after, pushes, batches):
    expected = queues(after, pushes, batches * BATCH)
    for share, queue in zip(shares_after(before, after, pushes, batches * BATCH), expected, strict=True):
        assert torch.equal(share["queue/embeddings"], queue.embeddings)
        assert int(share["queue/count"]) == queue.count


@given(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6]), st.integers(0, 5))
def test_any_other_queue_keeps_its_rows_newest_batch_first_and_comes_back_from_a_detour(before, after, pushes):
    length = 2 * BATCH + BATCH // 2
    there = shares_after(before, after, pushes, length)
    shards = [share["queue/embeddings"] for share in there]
    ages = [(shard[0, :, 0] // 100).tolist() for shard in shards]
    assert all(age == sorted(age, reverse=True) for age in ages)
    back = resume.reshard(shards, BATCH, before)
    assert all(torch.equal(a, q.embeddings) for a, q in zip(back, queues(before, pushes, length), strict=True))


def test_random_states_belong_to_processes_that_are_there_again():
    local = [{"rng/torch": torch.tensor([rank])} for rank in range(2)]
    saved = checkpoint.Checkpoint(3, {}, {}, local, {"recipe": {"batch": BATCH}}, Path())
    with mock.patch.object(dist, "world_size", lambda: 2), mock.patch.object(dist, "rank", lambda: 1):
        assert resume.local_shard(saved)["rng/torch"].item() == 1
    assert resume.local_shard(saved) == {}


@pytest.mark.parametrize("shards", [1, 4])
def test_shards_of_different_length_are_refused(shards):
    uneven = [torch.zeros(2, 12 // shards, 1)] * shards + [torch.zeros(2, 30, 1)]
    with pytest.raises(ValueError):
        resume.reshard(uneven, BATCH, 1)
