"""The options of a step, each against its definition: teacher, hard codes, KoLeo, several sets of prototypes.

Attacks: an option that changes nothing, one that changes a step while it is off, a teacher that gradients or a step that
is not finite reach, state that a checkpoint forgets. The step itself is tested in test_golden.py and test_train.py.
Run: pytest tests/training/test_step.py
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swav.algorithm import hard_assignments, koleo_loss, sinkhorn_codes, swapped_loss
from swav.checkpoint import Checkpoint
from swav.config import Recipe
from swav.errors import ConfigError
from swav.network.heads import SwavNetwork, build_network
from swav.recipe_files import load_recipe
from swav.training.auto import derive
from swav.training.choices import MachineAndData
from swav.training.monitor import STEP_VALUES
from swav.training.step import Trainer

SMALL: dict[str, Any] = {
    "data": "unused",
    "crops": [{"count": 1, "size": 16, "scale": [0.1, 0.3]}, {"count": 2, "size": 24, "scale": [0.3, 1.0]}],
    "width": 0.125,
    "head_hidden": 16,
    "head_dim": 8,
    "prototypes": 12,
    "batch": 8,
    "queue_length": 0,
    "epochs": 4,
    "freeze_prototypes_steps": 0,
    "precision": "fp32",
}
OPTIONS: list[dict[str, Any]] = [
    {"teacher_momentum": 0.9},
    {"hard_codes": True},
    {"koleo": 0.1},
    {"prototypes": [12, 5]},
]


def recipe(**changes: Any) -> Recipe:
    return derive(load_recipe("tiny", SMALL | changes), MachineAndData(num_images=32))[0]


def trainer(settings: Recipe) -> Trainer:
    return Trainer(settings, build_network(settings), steps_per_epoch=4)


def crops(seed: int = 0, images: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count * images, 3, size, size, generator=generator) for count, size in ((1, 16), (2, 24))]


def last_layer(network: SwavNetwork) -> nn.Parameter:
    return dict(network.projection_head.named_parameters())["3.weight"]


def weights(ours: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in ours.network.parameters()])


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_an_option_changes_what_is_learned(changes):
    results = []
    for settings in (recipe(), recipe(**changes)):
        ours = trainer(settings)
        for step in range(2):
            ours.step([crops(step)], step)
        results.append(weights(ours)[:2000])
    assert not torch.allclose(results[0], results[1], atol=1e-7)


def moved(settings: Recipe, steps: int) -> dict[str, float]:
    """How far each part moves in some steps."""
    ours = trainer(settings)
    before = {name: p.detach().clone() for name, p in ours.network.named_parameters()}
    for step in range(steps):
        ours.step([crops(step)], step)
    far = dict.fromkeys(("trunk", "projection_head", "prototypes"), 0.0)
    for name, parameter in ours.network.named_parameters():
        part = name.partition(".")[0]
        far[part] = max(far[part], float((parameter.detach() - before[name]).abs().max()))
    return far


def test_the_backbone_keeps_its_weights_while_it_is_frozen_and_learns_after_it():
    frozen = recipe(freeze_backbone_steps=2, warmup_epochs=0)
    still = moved(frozen, 2)
    assert still["trunk"] == 0 and still["projection_head"] > 0 and still["prototypes"] > 0
    assert moved(frozen, 3)["trunk"] > 0


@pytest.mark.parametrize("optimizer", ["larc", "lars", "adam", "adamw"])
def test_the_backbones_rate_is_a_factor_on_the_rate(optimizer):
    known = {"optimizer": optimizer, "warmup_epochs": 0, "weight_decay": 0, "lr": 1e-3}
    whole, tenth = moved(recipe(**known), 1), moved(recipe(**known, backbone_lr_factor=0.1), 1)
    assert tenth["trunk"] == pytest.approx(0.1 * whole["trunk"], rel=1e-3)
    assert tenth["projection_head"] == whole["projection_head"]


def test_gradients_are_clipped_to_their_common_norm_and_short_ones_left_alone():
    def after(clip: float) -> tuple[float, list[Tensor]]:
        ours = trainer(
            recipe(clip_gradient=clip, optimizer="adam")
        )  # LARC rescales gradients in place, Adam leaves them
        told = ours.step([crops()], 0)[STEP_VALUES.index("gradient_norm")]
        gradients = [p.grad for p in ours.network.parameters() if p.grad is not None]
        return float(told), gradients

    norm, free = after(0.0)
    told, clipped = after(norm / 4)
    assert told == norm  # what is logged is the norm before
    assert float(torch.stack([g.norm() for g in clipped]).norm()) == pytest.approx(norm / 4, rel=1e-4)
    assert all(torch.allclose(a / 4, b, rtol=1e-4, atol=1e-9) for a, b in zip(free, clipped, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(free, after(2 * norm)[1], strict=True))


def test_hard_codes_are_all_on_the_largest_entry():
    codes = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], dtype=torch.float64)
    assert hard_assignments(codes).tolist() == [[0, 1, 0], [1, 0, 0]]
    ours = trainer(recipe(hard_codes=True))
    ours.step([crops()], 0)
    assert torch.equal(ours.codes[0].amax(dim=2), torch.ones(2, 8)) and torch.equal(
        ours.codes[0].sum(dim=2), torch.ones(2, 8)
    )
    soft = trainer(recipe())
    soft.step([crops()], 0)
    assert torch.equal(ours.codes[0].argmax(dim=2), soft.codes[0].argmax(dim=2))  # the same, rounded


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_other():
    points = nn.functional.normalize(torch.randn(2, 5, 3, dtype=torch.float64), dim=2).requires_grad_()
    logs = [
        min((crop[i] - crop[j]).norm() for j in range(5) if j != i).log() for crop in points.detach() for i in range(5)
    ]
    loss = koleo_loss(points)
    torch.testing.assert_close(loss.detach(), -torch.stack(logs).mean(), atol=1e-7, rtol=0)
    assert torch.autograd.gradcheck(koleo_loss, [points])
    (gradient,) = torch.autograd.grad(loss, points)
    assert koleo_loss(points.detach() - 0.01 * gradient) < loss  # downhill they are further apart


def test_koleo_is_told_what_it_needs():
    with pytest.raises(ValueError, match="expected at least 2 samples to spread, found 1"):
        koleo_loss(torch.ones(2, 1, 3))
    with pytest.raises(ConfigError, match="koleo: expected at least 2 images per forward"):
        recipe(koleo=0.1, micro_batch=1)


def test_equal_embeddings_leave_koleo_finite():
    points = torch.ones(1, 4, 3, requires_grad=True)
    koleo_loss(points).backward()
    assert points.grad is not None and points.grad.isfinite().all()


def test_koleo_adds_its_gradient_at_its_weight_and_is_not_in_the_loss_that_is_told():
    told = []
    for weight in (0.0, 0.1, 0.3):
        ours = trainer(recipe(koleo=weight))
        told.append(ours.step([crops()], 0)[0])
    assert torch.equal(told[0], told[1]) and torch.equal(told[0], told[2])
    by_weight = []  # LARC rescales gradients in place, Adam leaves them
    for weight in (0.0, 0.1, 0.3):
        ours = trainer(recipe(koleo=weight, optimizer="adam"))
        ours.step([crops()], 0)
        gradient = last_layer(ours.network).grad
        assert gradient is not None
        by_weight.append(gradient)
    torch.testing.assert_close(by_weight[2] - by_weight[0], 3 * (by_weight[1] - by_weight[0]), atol=1e-5, rtol=1e-4)
    assert (by_weight[1] - by_weight[0]).abs().max() > 1e-4


def test_koleo_spreads_the_code_giving_crops_alone(monkeypatch):
    seen: list[Tensor] = []

    def noted(embeddings: Tensor) -> Tensor:
        seen.append(embeddings.detach())
        return koleo_loss(embeddings)

    monkeypatch.setattr("swav.training.step.koleo_loss", noted)
    ours = trainer(recipe(koleo=0.1))
    ours.step([crops()], 0)
    assert len(seen) == 1 and torch.equal(seen[0], ours.embeddings[[1, 2]])  # the large ones, which come second here


def test_several_sets_of_prototypes_have_codes_and_losses_of_their_own():
    settings = recipe(prototypes=[12, 5], optimizer="adam")
    ours = trainer(settings)
    before = [p.detach().clone() for p in ours.network.parameters()]
    value = ours.step([crops()], 0)[0]
    assert [part.shape for part in ours.codes] == [(2, 8, 12), (2, 8, 5)]
    twin = build_network(settings)
    for parameter, old in zip(twin.parameters(), before, strict=True):
        parameter.data.copy_(old)
    nn.functional.normalize(twin.prototypes.weight.data, dim=1, out=twin.prototypes.weight.data)
    _, scores = twin(crops(), 8)
    parts = scores.detach().split([12, 5], dim=2)
    losses = [
        swapped_loss(
            part, torch.stack([sinkhorn_codes(part[v], settings.epsilon) for v in (1, 2)]), (1, 2), settings.temperature
        )
        for part in parts
    ]
    torch.testing.assert_close(value, torch.stack(losses).mean(), atol=1e-5, rtol=0)


def test_one_set_given_as_a_list_is_the_same_run():
    results = []
    for prototypes in (12, [12]):
        ours = trainer(recipe(prototypes=prototypes))
        ours.step([crops()], 0)
        results.append(weights(ours))
    assert torch.equal(results[0], results[1])


def test_the_teacher_follows_by_its_momentum_and_gives_the_codes():
    ours = trainer(recipe(teacher_momentum=0.9))
    assert ours.teacher is not None
    for step in range(3):
        before = [p.detach().clone() for p in ours.teacher.network.parameters()]
        before[-1] = nn.functional.normalize(before[-1], dim=1)  # the prototypes, at the start of a step
        ours.step([crops(step)], step)
        assert all(parameter.grad is None for parameter in ours.teacher.network.parameters())
        for new, old, own in zip(ours.teacher.network.parameters(), before, ours.network.parameters(), strict=True):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * own, atol=1e-6, rtol=0)
    teacher = ours.teacher
    nn.init.normal_(last_layer(teacher.network))  # another network altogether
    given = crops(9)
    with torch.no_grad():  # of the large crops alone
        teacher_prototypes = nn.functional.normalize(teacher.prototypes, dim=1)
        embeddings, _ = teacher.network([given[1]], 8)
    expected = torch.stack([sinkhorn_codes(embeddings[v] @ teacher_prototypes.T, ours.recipe.epsilon) for v in (0, 1)])
    ours.step([given], 3)
    torch.testing.assert_close(ours.codes[0], expected, atol=1e-5, rtol=0)


def test_momentum_and_weight_decay_move_by_half_a_cosine_to_their_last_values():
    options = {"teacher_momentum": 0.5, "final_teacher_momentum": 1.0, "weight_decay": 0.1, "final_weight_decay": 0.4}
    ours = trainer(recipe(**options, optimizer="adamw", decay_vectors=False, epochs=2))
    assert ours.teacher is not None
    for step in range(8):
        before = [p.detach().clone() for p in ours.teacher.network.parameters()]
        before[-1] = nn.functional.normalize(before[-1], dim=1)
        ours.step([crops(step)], step)
        share = (1 - math.cos(math.pi * step / 8)) / 2
        for new, old, own in zip(ours.teacher.network.parameters(), before, ours.network.parameters(), strict=True):
            torch.testing.assert_close(new, old.lerp(own.detach(), 0.5 - 0.5 * share), atol=1e-6, rtol=0)
        decays = sorted({group["weight_decay"] for group in ours.optimizer.param_groups})
        assert decays == pytest.approx([0.0, 0.1 + 0.3 * share])


def test_the_queue_holds_what_the_teacher_sees():
    ours = trainer(recipe(teacher_momentum=0.9, queue_length=8, queue_start_epoch=0))
    assert ours.teacher is not None and ours.queue is not None
    nn.init.normal_(last_layer(ours.teacher.network))
    with torch.no_grad():
        expected, _ = ours.teacher([crops()[1]], 8)
    ours.step([crops()], 0)
    torch.testing.assert_close(ours.queue.embeddings, expected, atol=1e-6, rtol=0)


def test_a_queue_of_the_teachers_is_scored_by_its_prototypes(monkeypatch):
    ours = trainer(recipe(teacher_momentum=0.9, queue_length=8, queue_start_epoch=0))
    assert ours.teacher is not None and ours.queue is not None
    ours.step([crops()], 0)
    nn.init.normal_(ours.teacher.prototypes)
    scored: list[Tensor] = []

    def noted(scores: Tensor, *rest: Any) -> Tensor:
        scored.append(scores)
        return sinkhorn_codes(scores, *rest)

    monkeypatch.setattr("swav.training.step.sinkhorn_codes", noted)
    expected = ours.queue.embeddings @ nn.functional.normalize(ours.teacher.prototypes, dim=1).T
    ours.step([crops(1)], 1)
    torch.testing.assert_close(torch.stack(scored)[:, :8], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_pieces_of_a_batch_learn_what_the_whole_learns(changes):
    """BatchNorm in eval mode, so that a sample's embedding is its own; KoLeo's neighbours are those of a piece."""
    results = []
    for count in (1, 2):
        ours = trainer(recipe(**changes, optimizer="adam", lr=0.001))
        for part in (ours.network, *([ours.teacher.network] if ours.teacher else [])):
            part.eval()
        whole = crops()
        micro_batches = [
            [torch.unflatten(c, 0, (-1, 8))[:, 8 // count * i : 8 // count * (i + 1)].flatten(0, 1) for c in whole]
            for i in range(count)
        ]
        ours.step(micro_batches, 0)
        results.append(torch.cat([p.grad.flatten() for p in ours.network.parameters() if p.grad is not None]))
    same = torch.allclose(results[0], results[1], atol=1e-5, rtol=1e-3)
    assert same is not ("koleo" in changes)


def test_a_step_that_is_not_finite_leaves_the_teacher_alone():
    ours = trainer(recipe(teacher_momentum=0.5))
    ours.step([crops()], 0)
    assert ours.teacher is not None
    before = [p.detach().clone() for p in ours.teacher.network.parameters()]
    poisoned = crops(1)
    poisoned[0][0] = torch.nan
    assert ours.step([poisoned], 1)[len(STEP_VALUES)] == 1
    assert all(torch.equal(new, old) for new, old in zip(ours.teacher.network.parameters(), before, strict=True))


def test_the_teacher_comes_back_from_a_checkpoint():
    one, other = (trainer(recipe(teacher_momentum=0.9)) for _ in range(2))
    for step in range(2):
        one.step([crops(step)], step)
    other.load(
        Checkpoint(2, one.network.state_dict(), one.optimizer_tensors(), [], {}, Path("unused")), one.local_tensors()
    )
    for ours in (one, other):
        ours.step([crops(2)], 2)
    assert torch.equal(weights(one), weights(other))
    assert one.teacher is not None and other.teacher is not None
    for mine, theirs in zip(one.teacher.network.parameters(), other.teacher.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_momentum": 1.0}, "teacher_momentum"),
        ({"koleo": -1}, "koleo"),
        ({"prototypes": []}, "prototypes: expected a whole number of at least 1, a list .* found "),
        ({"prototypes": [3, 0]}, r"prototypes\.1: expected a whole number of at least 1, found 0"),
    ],
    ids=str,
)
def test_values_out_of_range_name_their_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)
