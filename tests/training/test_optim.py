"""Attacks: an optimiser that is nearly LARC. Every rule against a few lines written from its formula; the schedule at
the steps where it bends; steps that must not move anything.

Run: pytest tests/training/test_optim.py
"""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from swav.config import Recipe
from swav.training.optim import (
    Optimizer,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    moved,
    optimizer_tensors,
)
from tests import checks

TRUST, DECAY, MOMENTUM = 0.001, 1e-2, 0.9  # a decay large enough to be seen
KINDS = ["larc", "lars", "adam", "adamw"]


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "optimizer": "larc",
        "lr": 1.0,
        "final_lr": 0.0,
        "epochs": 10,
        "weight_decay": DECAY,
        "momentum": MOMENTUM,
        "trust_coefficient": TRUST,
    }
    return Recipe(**values | changes)


class Small(nn.Module):
    """A matrix, a vector, a bias at zero as every bias of BatchNorm starts, and prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(6, dtype=torch.float64))
        self.zero = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.prototypes = nn.Linear(4, 7, bias=False, dtype=torch.float64)


def give_gradients(network: nn.Module, seed: int, none_to_prototypes: bool = False) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if none_to_prototypes and name == "prototypes.weight":
            parameter.grad = None


def make_step(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def snapshot(network: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    tensors = [*network.parameters(), *optimizer_tensors(optimizer, network).values()]
    return [tensor.detach().clone() for tensor in tensors]


def larc(p: Tensor, g: Tensor, buffer: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """apex's LARC without clipping, then SGD: a zero norm means the plain gradient and no weight decay."""
    if p.norm() != 0 and g.norm() != 0:
        g = (g + DECAY * p) * TRUST * p.norm() / (g.norm() + DECAY * p.norm() + 1e-8)
    buffer = MOMENTUM * buffer + g
    return p - lr * buffer, buffer


def lars(p: Tensor, g: Tensor, buffer: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """You et al. 2017: the local and the global rate inside the momentum; a zero norm means a local rate of 1."""
    local = 1.0
    if p.norm() != 0 and g.norm() != 0:
        local = (TRUST * p.norm() / (g.norm() + DECAY * p.norm() + 1e-8)).item()
    buffer = MOMENTUM * buffer + lr * local * (g + DECAY * p)
    return p - buffer, buffer


# -- layer-wise rates


@pytest.mark.parametrize("rule", [larc, lars], ids=lambda rule: rule.__name__)
def test_steps_are_those_of_the_formula_also_from_a_norm_of_zero(rule):
    network = Small()
    optimizer = build_optimizer(recipe(optimizer=rule.__name__), network)
    expected = {name: (p.detach().clone(), torch.zeros_like(p)) for name, p in network.named_parameters()}
    for step, lr in enumerate([0.5, 2.0, 2.0, 0.1, 0.0]):  # a changing rate is where the two rules part
        give_gradients(network, step)
        if step == 3:
            assert network.vector.grad is not None
            network.vector.grad.zero_()  # the other norm that can be zero
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            expected[name] = rule(expected[name][0], parameter.grad.clone(), expected[name][1], lr)
        make_step(optimizer, lr)
        for name, parameter in network.named_parameters():
            checks.close(parameter.detach(), expected[name][0], 1e-12)


def test_a_zero_parameter_moves_by_the_whole_learning_rate_under_larc():
    network = Small()
    optimizer = build_optimizer(recipe(), network)
    give_gradients(network, 0)
    assert network.zero.grad is not None
    gradient = network.zero.grad.clone()
    make_step(optimizer, 4.8)
    checks.close(network.zero.detach(), -4.8 * gradient, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_without_decay_of_vectors_biases_and_norms_alone_are_left_out(kind):
    both, matrices = Small(), Small()
    matrices.load_state_dict(both.state_dict())
    optimizers = [
        build_optimizer(recipe(optimizer=kind, weight_decay=0.1, decay_vectors=decays), network)
        for network, decays in ((both, True), (matrices, False))
    ]
    for network, optimizer in zip((both, matrices), optimizers, strict=True):
        give_gradients(network, 0)
        make_step(optimizer, 0.1)
    for name, parameter in both.named_parameters():
        differs = not torch.equal(parameter, matrices.get_parameter(name))
        assert differs == (name == "vector"), name  # zero has nothing to decay


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_prototypes_get_no_step_no_momentum_and_no_decay(kind):
    network = Small()
    optimizer = build_optimizer(recipe(optimizer=kind), network)
    give_gradients(network, 0)
    make_step(optimizer, 0.1)  # so that there is momentum that could move them
    prototypes = network.prototypes.weight
    before = [prototypes.detach().clone(), *(value.clone() for value in optimizer.state[prototypes].values())]
    matrix = network.matrix.detach().clone()
    for step in range(3):
        give_gradients(network, step, none_to_prototypes=True)
        make_step(optimizer, 0.1)
    after = [prototypes.detach(), *optimizer.state[prototypes].values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not torch.equal(matrix, network.matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_flagged_touches_no_parameter_and_no_momentum(kind):
    network = Small()
    optimizer = build_optimizer(recipe(optimizer=kind), network)
    for step, flag in enumerate([0.0, 1.0, 0.0]):
        give_gradients(network, step)
        if flag:
            assert network.matrix.grad is not None
            network.matrix.grad[2, 1] = math.nan
            assert network.vector.grad is not None
            network.vector.grad[0] = math.inf
        before = snapshot(network, optimizer)
        optimizer.found_inf = torch.tensor(flag)
        make_step(optimizer, 0.1)
        after = snapshot(network, optimizer)
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert all(same) if flag else not any(same[: len(list(network.parameters()))])
        assert all(tensor.isfinite().all() for tensor in after)


def test_the_flag_is_also_heeded_at_the_very_first_step():
    network = Small()
    optimizer = build_optimizer(recipe(), network)
    give_gradients(network, 0)
    before = snapshot(network, optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    make_step(optimizer, 0.1)
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(network, optimizer), strict=True))


@pytest.mark.parametrize(("kind", "torchs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_is_torchs(kind, torchs):
    ours, theirs = Small(), Small()
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(recipe(optimizer=kind), ours)
    reference = torchs(theirs.parameters(), lr=0.01, weight_decay=DECAY, fused=False, foreach=False)
    for step in range(4):
        for network in (ours, theirs):
            give_gradients(network, step)
        make_step(optimizer, 0.01)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        checks.close(a.detach(), b.detach(), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimiser_goes_on_from_its_tensors_to_the_bit(kind):
    network, copy = Small(), Small()
    optimizer, other = build_optimizer(recipe(optimizer=kind), network), build_optimizer(recipe(optimizer=kind), copy)
    give_gradients(network, 0)
    make_step(optimizer, 0.1)
    copy.load_state_dict(network.state_dict())
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, network).items()}
    load_optimizer_tensors(other, copy, saved)
    for each, its in ((network, optimizer), (copy, other)):
        give_gradients(each, 1)
        make_step(its, 0.05)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(network, optimizer), snapshot(copy, other), strict=True))


def test_a_state_that_lacks_a_value_is_refused_by_its_name():
    network = Small()
    optimizer = build_optimizer(recipe(), network)
    tensors = optimizer_tensors(optimizer, network)
    del tensors["matrix/momentum_buffer"]
    with pytest.raises(KeyError, match="matrix/momentum_buffer"):
        load_optimizer_tensors(optimizer, network, tensors)


# -- schedule (the values of the released code are in test_golden.py)


def test_the_warm_up_is_a_line_that_ends_on_the_peak():
    warm = recipe(lr=4.0, warmup_epochs=2.0, warmup_start_lr=1.0)
    assert [learning_rate(warm, step, 2) for step in range(5)] == pytest.approx([1, 2, 3, 4, 4])


def test_the_cosine_starts_at_the_peak_passes_the_middle_and_approaches_the_end():
    plain = recipe(lr=2.0, final_lr=1.0, warmup_epochs=0.0)
    rates = [learning_rate(plain, step, 10) for step in range(100)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.5)
    assert 1.0 < rates[-1] < 1.001
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("warmup_epochs", [0.1, 0.05])
def test_a_warm_up_of_one_step_or_of_none_does_no_harm(warmup_epochs):
    short = recipe(lr=2.0, warmup_epochs=warmup_epochs, warmup_start_lr=0.5)
    first = learning_rate(short, 0, 10)
    assert first == (0.5 if warmup_epochs == 0.1 else 2.0)
    assert all(math.isfinite(learning_rate(short, step, 10)) for step in range(100))


def test_a_schedule_by_epoch_keeps_the_rate_of_the_epochs_first_step():
    by_step, by_epoch = recipe(), recipe(lr_schedule="epoch")
    for step in range(100):
        assert learning_rate(by_epoch, step, 10) == learning_rate(by_step, step - step % 10, 10)


# -- a run whose length changes on the way (a time budget)

lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), max_size=5)


@given(lengths, st.sampled_from([0.0, 0.5, 2.0, 8.0]))
def test_a_change_of_length_never_makes_the_rate_jump_and_it_still_comes_down(changes, warmup_epochs):
    settings = recipe(lr=2.0, final_lr=0.002, warmup_epochs=warmup_epochs, warmup_start_lr=0.02)
    made: list[tuple[int, int]] = []
    for epoch, more in sorted(changes):
        end = made[-1][1] if made else settings.epochs * 100
        if 100 * epoch < end and (not made or made[-1][0] < 100 * epoch):
            made.append((100 * epoch, 100 * (epoch + more)))
    end = made[-1][1] if made else settings.epochs * 100
    rates = [learning_rate(settings, step, 100, made) for step in range(end)]
    for start, _ in made:
        before = [change for change in made if change[0] < start]
        assert rates[start] == pytest.approx(learning_rate(settings, start, 100, before))
        assert rates[:start] == [learning_rate(settings, step, 100, before) for step in range(start)]
    peak = rates.index(max(rates))
    assert all(0.002 <= later <= earlier for earlier, later in itertools.pairwise(rates[peak:]))
    assert max(rates) == pytest.approx(2.0) and rates[-1] < 0.01


def test_after_a_change_the_cosine_takes_what_is_left_of_it_in_the_steps_that_are_left():
    plain = recipe(lr=1.0, final_lr=0.0, warmup_epochs=0.0)  # ten epochs: at 50 of 100 steps half of the way
    shorter = [learning_rate(plain, step, 10, [(50, 60)]) for step in range(60)]
    longer = [learning_rate(plain, step, 10, [(50, 150)]) for step in range(150)]
    for i in range(10):
        assert shorter[50 + i] == pytest.approx(learning_rate(plain, 50 + 5 * i, 10))
    for i in range(50):
        assert longer[50 + 2 * i] == pytest.approx(learning_rate(plain, 50 + i, 10))


def test_a_warm_up_under_way_takes_at_most_a_quarter_of_what_is_left_and_none_of_a_part_of_an_epoch():
    warm = recipe(lr=1.0, final_lr=0.0, warmup_epochs=5.0)
    ahead = [learning_rate(warm, step, 10, [(10, 50)]) for step in range(50)]
    assert ahead.index(max(ahead)) in (19, 20) and max(ahead) == 1.0
    out = [learning_rate(warm, step, 10, [(10, 13)]) for step in range(13)]
    assert out[10] == pytest.approx(10 / 49) and out[10] > out[11] > out[12]


def test_by_epoch_the_rate_comes_down_within_a_last_epoch_that_was_planned_at_its_start():
    by_epoch = recipe(lr=1.0, final_lr=0.0, warmup_epochs=0.0, lr_schedule="epoch")
    rates = [learning_rate(by_epoch, step, 10, [(20, 30)]) for step in range(30)]
    assert len(set(rates[:20])) == 2 and rates[29] < 0.05


# -- settings that move over a run


def test_a_setting_moves_by_half_a_cosine_or_stays():
    values = [moved(0.996, 1.0, step, 100) for step in range(101)]
    assert values[0] == 0.996 and values[50] == pytest.approx(0.998) and values[100] == pytest.approx(1.0)
    assert values == sorted(values)
    assert [moved(0.04, None, step, 100) for step in (0, 50, 99)] == [0.04] * 3


def test_a_setting_goes_on_from_where_it_is_when_the_run_becomes_shorter():
    changes = [(40, 60)]
    before, at = moved(0.0, 1.0, 39, 100, changes), moved(0.0, 1.0, 40, 100, changes)
    assert before == moved(0.0, 1.0, 39, 100) and at == pytest.approx(moved(0.0, 1.0, 40, 100))
    assert moved(0.0, 1.0, 50, 100, changes) == pytest.approx(moved(0.0, 1.0, 70, 100))
    assert moved(0.0, 1.0, 60, 100, changes) == pytest.approx(1.0)
