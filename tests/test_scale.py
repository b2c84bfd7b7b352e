"""Attacks: a step that several processes or several micro-batches make in another way than one process at once.

In float64, so that 1e-9 leaves room for the order of sums only. The real step runs, with synchronised BatchNorm, queue,
freezing, LARC and DistributedDataParallel. Run: pytest tests/test_scale.py -rP   (prints the largest differences)
"""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from swav import dist
from swav.algorithm import sinkhorn_codes
from swav.config import Crop, Recipe
from swav.network.backbone import ResNet
from swav.network.heads import SwavNetwork
from swav.network.sync_batch_norm import SynchronisedBatchNorm
from swav.training.monitor import STEP_VALUES
from swav.training.step import Trainer

TOLERANCE = 1e-9
BATCH, STEPS = 16, 8
CROPS = (Crop(count=2, size=16, scale=(0.1, 1.0)), Crop(count=2, size=8, scale=(0.1, 1.0)))


def recipe(**changes: Any) -> Recipe:
    """The queue fills in two steps and is used from the third; prototypes are freed at the third too."""
    settings: dict[str, Any] = {
        "crops": CROPS,
        "prototypes": 12,
        "head_hidden": 16,
        "head_dim": 8,
        "batch": BATCH,
        "epochs": 4,
        "queue_length": 2 * BATCH,
        "queue_start_epoch": 0,
        "freeze_prototypes_steps": 2,
        "lr": 0.6,
        "final_lr": 0.1,
        "precision": "fp32",
        "device": "cpu",
    }
    return Recipe(**settings | changes)


def trainer(settings: Recipe) -> Trainer:
    torch.manual_seed(1)
    network = SwavNetwork(ResNet("basic", (1, 1, 1, 1), width=0.125), hidden=16, dim=8, prototypes=12).double()
    return Trainer(settings, network, steps_per_epoch=4)


def micro_batches(step: int, count: int = 1) -> list[list[Tensor]]:
    """This process's images of a step, in so many pieces: the same images whatever the processes and pieces."""
    cut: list[list[Tensor]] = [[] for _ in range(count)]
    for kind, crop in enumerate(CROPS):
        noise = np.random.default_rng([step, kind]).standard_normal((crop.count, BATCH, 3, crop.size, crop.size))
        own = torch.from_numpy(noise).chunk(dist.world_size(), dim=1)[dist.rank()]
        for piece, rows in zip(cut, own.chunk(count, dim=1), strict=True):
            piece.append(rows.flatten(0, 1))
    return cut


def trained(
    settings: Recipe, count: int = 1, steps: int = STEPS, evaluating: bool = False
) -> dict[str, dict[str, Any]]:
    """What a run of some steps was made of, by name: numbers of every step, then tensors at the end.

    Codes and gradients are those of this process; all else is to be the same on every process.
    """
    ours = trainer(settings)
    ours.network.train(not evaluating)
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}

    def noted(step: int, skip: Tensor) -> None:  # the optimiser rescales gradients in place
        shared[f"gradients {step}"] = torch.cat(
            [p.grad.flatten() for p in ours.network.parameters() if p.grad is not None]
        )
        update(step, skip)

    update = ours._update
    with mock.patch.object(ours, "_update", noted):
        for step in range(steps):
            values = ours.step(micro_batches(step, count), step)
            shared[f"loss {step}"] = values[: len(STEP_VALUES)].double()
            own[f"codes {step}"] = torch.cat(ours.codes, dim=2)
            own[f"embeddings {step}"] = ours.embeddings
    assert ours.queue is not None
    own["queue"] = ours.queue.embeddings
    shared |= {f"weights {name}": tensor.detach().double() for name, tensor in ours.network.state_dict().items()}
    return {"own": own, "shared": shared}


def whole(parts: list[dict[str, dict[str, Any]]]) -> dict[str, Tensor]:
    """Of all processes what one would have: own rows put together in order of rank; shared values are everybody's."""
    for part in parts[1:]:
        assert_close(part["shared"], parts[0]["shared"], 1e-12)
    together = {name: torch.cat([part["own"][name] for part in parts], dim=1) for name in parts[0]["own"]}
    together["queue"] = by_rows([part["own"]["queue"] for part in parts])
    return together | parts[0]["shared"]


def by_rows(queues: list[Tensor]) -> Tensor:
    """Queues of several processes as one would hold them: batch by batch, the rows of all ranks."""
    ages = [queue.unflatten(1, (-1, BATCH // len(queues))) for queue in queues]
    return torch.cat(ages, dim=2).flatten(1, 2)


def assert_close(
    ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Returns the largest difference of each kind of value (the first word of its name)."""
    assert ours.keys() == expected.keys()
    worst: dict[str, float] = {}
    for name in ours:
        kind = name.partition(" ")[0]
        assert ours[name].shape == expected[name].shape, name
        worst[kind] = max(worst.get(kind, 0.0), (ours[name] - expected[name]).abs().max().item())
    assert max(worst.values()) < tolerance, worst
    return worst


def report(what: str, worst: Mapping[str, float]) -> None:
    print(f"{what}: largest differences " + ", ".join(f"{kind} {value:.0e}" for kind, value in worst.items()))


# -- processes


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return whole([trained(recipe())])


def test_two_processes_are_one(two_processes, alone):
    report("2 processes, 8 steps", assert_close(whole(two_processes(trained, recipe())), alone))


@pytest.mark.slow
def test_four_processes_are_one(four_processes, alone):
    report("4 processes, 8 steps", assert_close(whole(four_processes(trained, recipe())), alone))


def test_without_synchronised_statistics_two_processes_are_not_one(two_processes, alone):
    parts = two_processes(trained, recipe(sync_bn=False), 1, 1)
    difference = torch.cat([part["own"]["codes 0"] for part in parts], dim=1) - alone["codes 0"]
    assert difference.abs().max() > 1e-3


def grouped(size: int) -> list[int]:
    """Of how many processes the statistics of each BatchNorm are, a teacher's too, after a step."""
    ours = trainer(recipe(sync_bn_group=size, teacher_momentum=0.9))
    ours.step(micro_batches(0), 0)
    assert ours.teacher is not None
    parts = (ours.network, ours.teacher.network)
    layers = [module for part in parts for module in part.modules() if isinstance(module, SynchronisedBatchNorm)]
    return [dist.world_size() if layer.group is None else layer.group.size() for layer in layers]


@pytest.mark.slow
def test_groups_reach_every_layer_and_the_teachers(four_processes):
    for size, found in ((2, 2), (8, 4)):
        parts = four_processes(grouped, size)
        assert all(set(part) == {found} and len(part) == 2 * 13 for part in parts)


# -- micro-batches


def test_with_fixed_statistics_pieces_are_the_whole(alone):
    """4 x 4 against 1 x 16: loss, gradients, codes and weights of every step, the queue in use."""
    plain, cut = (whole([trained(recipe(), count, evaluating=True)]) for count in (1, 4))
    report("4 micro-batches, BatchNorm in eval mode", assert_close(cut, plain))
    assert (plain["loss 0"] - alone["loss 0"]).abs().max() > 1e-3  # in train mode it is another network


def test_pieces_on_two_processes_are_the_whole_on_one(two_processes):
    plain = whole([trained(recipe(), evaluating=True)])
    cut = whole(two_processes(trained, recipe(), 2, STEPS, True))
    report("2 processes of 2 micro-batches, eval mode", assert_close(cut, plain))


def test_the_second_pass_makes_the_embeddings_of_the_first_to_the_bit_and_statistics_follow_it_alone():
    """In train mode, with the queue on, dropout included: whatever the network draws is drawn again."""
    ours = trainer(recipe())
    ours.network.projection_head.insert(3, torch.nn.Dropout(0.5))
    seen: list[Tensor] = []
    means: list[Tensor] = []

    def noted(network: SwavNetwork, given: Any, made: tuple[Tensor, Tensor]) -> None:
        seen.append(made[0].detach().clone())
        means.append(network.get_buffer("trunk.bn1.running_mean").clone())

    ours.network.register_forward_hook(noted)
    for step in range(3):
        before = ours.network.get_buffer("trunk.bn1.running_mean").clone()
        seen.clear()
        means.clear()
        ours.step(micro_batches(step, 4), step)
        first, second = torch.cat(seen[:4], dim=1), torch.cat(seen[4:], dim=1)
        assert torch.equal(first, second) and torch.equal(first, ours.embeddings)
        assert all(torch.equal(mean, before) for mean in means[:4])
        assert not any(torch.equal(mean, before) for mean in means[4:])
        passes = 2 * 4 * (step + 1)  # a pass per resolution and piece
        assert ours.network.get_buffer("trunk.bn1.num_batches_tracked") == passes


def test_codes_of_pieces_are_those_of_the_whole_batch_not_of_each():
    ours = trainer(recipe(queue_length=0))
    ours.step(micro_batches(0, 4), 0)
    scores = ours.embeddings[:2] @ torch.nn.functional.normalize(trainer(recipe()).prototypes.detach(), dim=1).T
    expected = torch.stack([sinkhorn_codes(view) for view in scores])
    torch.testing.assert_close(ours.codes[0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("evil", [0, 3])
def test_a_piece_that_is_not_finite_leaves_everything_as_it_is(evil):
    ours = trainer(recipe(freeze_prototypes_steps=0))
    ours.step(micro_batches(0, 4), 0)

    def state() -> list[Tensor]:
        assert ours.queue is not None
        momentum = [value for values in ours.optimizer.state.values() for value in values.values()]
        kept = [b for b in ours.network.buffers() if b.is_floating_point()]
        return [t.detach().clone() for t in (*ours.network.parameters(), *kept, *momentum, ours.queue.embeddings)]

    before, poisoned = state(), micro_batches(1, 4)
    poisoned[evil][1][0, 0, 0, 0] = float("inf")
    assert ours.step(poisoned, 1)[len(STEP_VALUES)] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert ours.step(micro_batches(2, 4), 2)[len(STEP_VALUES)] == 0


def all_reduces(count: int) -> int:
    """How often gradients travel in a step of so many pieces."""
    ours = trainer(recipe())
    calls: list[int] = []

    def counted(
        _: Any,
        bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[Tensor]:
        calls.append(1)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ours.parallel.register_comm_hook(None, counted)  # type: ignore[operator]
    ours.step(micro_batches(0, count), 0)
    return len(calls)


def test_gradients_travel_once_whatever_the_number_of_pieces(two_processes):
    assert two_processes(all_reduces, 4) == two_processes(all_reduces, 1)
