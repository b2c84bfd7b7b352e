"""Reads a golden file (numbers of the original implementation, tests/golden/README.md) and says how far ours are.

What a file holds is told from its content, so another folder may bring other names, seeds and sizes.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from swav import algorithm
from swav.config import Crop, Recipe
from swav.network import heads
from swav.network.backbone import ResNet
from swav.training import optim
from swav.training import step as of_a_step
from swav.training.step import Trainer
from tests.checks import Run

TOLERANCE = 1e-9  # the issue's; a fresh implementation in float64 reaches 2e-14
FOLDER = Path(os.environ.get("SWAV_GOLDEN") or Path(__file__).parent / "golden")


def found() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*") if path.suffix in (".npz", ".json"))


def largest_difference(path: Path, two_processes: Run) -> float:
    """The largest |ours - theirs| over every number of a file.

    Raises:
        AssertionError: nothing here knows such a file, or ours has another shape.
    """
    if path.suffix == ".npz":
        with np.load(path) as file:
            values = dict(file)
        return loss_difference(values) if "grad" in values else codes_difference(values)
    content = read_json(path)
    if "values" in content:
        return schedule_difference(content)
    assert "steps" in content, f"{path.name}: expected codes, a loss, a schedule or a trace, found {sorted(content)}"
    return trace_difference(content, two_processes)


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def codes_difference(values: Mapping[str, Any]) -> float:
    cases = [key.removeprefix("scores_") for key in values if key.startswith("scores_")]
    assert cases
    worst = 0.0
    for case in cases:
        scores = torch.from_numpy(values[f"scores_{case}"].astype(np.float64))
        ours = algorithm.sinkhorn_codes(scores, float(values[f"epsilon_{case}"]), int(values[f"iterations_{case}"]))
        worst = max(worst, _distance(ours.numpy(), values[f"codes_{case}"]))
    return worst


def loss_difference(values: Mapping[str, Any]) -> float:
    scores = torch.from_numpy(values["scores"].astype(np.float64)).requires_grad_()
    code_views = [int(view) for view in values.get("code_views", (0, 1))]
    epsilon, iterations = float(values.get("epsilon", 0.05)), int(values.get("iterations", 3))
    codes = torch.stack([algorithm.sinkhorn_codes(scores[view], epsilon, iterations) for view in code_views])
    loss = algorithm.swapped_loss(scores, codes, code_views, float(values.get("temperature", 0.1)))
    loss.backward()
    assert scores.grad is not None
    return max(_distance(loss.item(), values["loss"]), _distance(scores.grad.numpy(), values["grad"]))


def schedule_difference(content: Mapping[str, Any]) -> float:
    recipe = Recipe(
        lr=content["base"],
        final_lr=content["final"],
        warmup_start_lr=content["start"],
        warmup_epochs=float(content["warmup_epochs"]),
        epochs=content["epochs"],
    )
    steps = content["steps_per_epoch"]
    assert content["values"]
    return max(_distance(optim.learning_rate(recipe, int(step), steps), lr) for step, lr in content["values"].items())


def trace_difference(trace: Mapping[str, Any], two_processes: Run, steps: int | None = None) -> float:
    """Trains as the trace did, with the real step; of its first `steps` steps, or of all."""
    assert trace["world_size"] in (1, 2), f"expected a trace of 1 or 2 processes, found {trace['world_size']}"
    ranks = [run_trace(trace, steps)] if trace["world_size"] == 1 else two_processes(run_trace, trace, steps)
    differences = []
    for rank, ours in enumerate(ranks):
        for row, theirs in zip(ours["steps"], trace["steps"][:steps], strict=True):
            told = {**theirs, "loss": theirs["loss_per_rank"][rank]}
            differences += [_distance(value, told[key]) for key, value in row.items()]
        if steps is None:
            differences.append(_distance(ours["norm"], trace["final_parameter_norm"]))
            differences.append(_distance(ours["queue"] or 0.0, trace["final_queue_norm"] or 0.0))
    return max(differences)


def run_trace(trace: Mapping[str, Any], steps: int | None = None) -> dict[str, Any]:
    """This process's part of a trace: after every step its rate, its loss and what the file tells of the parameters."""
    trainer = Trainer(_recipe(trace), _network(trace), _steps_per_epoch(trace))
    losses: list[float] = []
    real_loss = vars(of_a_step)["swapped_loss"]

    def noted(*arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = real_loss(*arguments)
        losses.append(loss.item())  # in float64: what a step returns is rounded to float32
        return loss

    rows = []
    with mock.patch.object(of_a_step, "swapped_loss", noted):
        for step in range(len(trace["steps"][:steps])):
            trainer.step([_crops(trace, step)], step)
            (rate,) = {group["lr"] for group in trainer.optimizer.param_groups}
            rows.append({"lr": rate, "loss": losses[-1], **_told(trainer.network)})
    norm = torch.stack([p.detach().norm() for p in trainer.network.parameters()]).norm().item()
    queue = None if trainer.queue is None else trainer.queue.embeddings.norm().item()
    return {"steps": rows, "norm": norm, "queue": queue}


def _steps_per_epoch(trace: Mapping[str, Any]) -> int:
    """As many as let an epoch begin where the queue does, so that steps and epochs are told apart where they can be."""
    return math.gcd(trace["queue_start_step"], len(trace["steps"]))


def _rates(trace: Mapping[str, Any]) -> dict[str, float]:
    """First and final rate of the half cosine that a trace's rates lie on; the schedule itself is left to swav."""
    rates = [row["lr"] for row in trace["steps"]]
    share = (1 + math.cos(math.pi * (len(rates) - 1) / len(rates))) / 2  # of the first rate in the last row's
    final = (rates[-1] - share * rates[0]) / (1 - share) if len(rates) > 1 else 0.0
    return {"lr": rates[0], "final_lr": max(0.0, round(final, 12))}


def _recipe(trace: Mapping[str, Any]) -> Recipe:
    processes = trace["world_size"]
    steps_per_epoch = _steps_per_epoch(trace)
    return Recipe(
        crops=tuple(Crop(count=count, size=size, scale=(0.1, 1.0)) for count, size in trace["crops"]),
        code_crops=(0, 1),
        prototypes=trace["prototypes"],
        head_hidden=trace["hidden"],
        head_dim=trace["dim"],
        epsilon=trace["epsilon"],
        sinkhorn_iterations=trace["iterations"],
        temperature=trace["temperature"],
        batch=trace["batch_per_rank"] * processes,
        queue_length=trace["queue_length"],
        queue_start_epoch=trace["queue_start_step"] // steps_per_epoch,
        freeze_prototypes_steps=trace["freeze_prototypes_steps"],
        epochs=len(trace["steps"]) // steps_per_epoch,
        **_rates(trace),
        optimizer="larc",
        momentum=trace["momentum"],
        weight_decay=trace["weight_decay"],
        trust_coefficient=trace["trust_coefficient"],
        precision="fp32",
        sync_bn=False,  # the traces' statistics are each process's own
        device="cpu",
    )


def _network(trace: Mapping[str, Any]) -> heads.SwavNetwork:
    """The trace's network in float64, with the initial values that the README gives."""
    trunk = ResNet("basic", (1, 1, 1, 1))
    network = heads.SwavNetwork(trunk, trace["hidden"], trace["dim"], trace["prototypes"]).double()
    named = {name.removeprefix("trunk."): parameter for name, parameter in network.named_parameters()}
    for i, name in enumerate(sorted(named)):
        shape = tuple(named[name].shape)
        r = np.random.default_rng([trace["seed"], 2, i])
        if len(shape) == 4:
            value = r.standard_normal(shape) * np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        elif len(shape) == 2:
            value = r.standard_normal(shape) / np.sqrt(shape[1])
        elif name in ("projection_head.0.bias", "projection_head.3.bias"):
            value = 0.05 * r.standard_normal(shape)
        else:
            value = np.ones(shape) if name.endswith("weight") else np.zeros(shape)
        with torch.no_grad():
            named[name].copy_(torch.from_numpy(value))
    return network


def _crops(trace: Mapping[str, Any], step: int) -> list[torch.Tensor]:
    """One tensor per kind of crop [count * B, 3, S, S], crop-major: the rows of this process."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    batch = trace["batch_per_rank"]
    crops, v = [], 0
    for count, size in trace["crops"]:
        views = []
        for _ in range(count):
            r = np.random.default_rng([trace["seed"], 3, step, v])
            views.append(r.standard_normal((batch * trace["world_size"], 3, size, size))[rank * batch :][:batch])
            v += 1
        crops.append(torch.from_numpy(np.concatenate(views)))
    return crops


def _told(network: heads.SwavNetwork) -> dict[str, float]:
    """What a trace's row tells of the parameters."""
    values = {name.removeprefix("trunk."): p.detach() for name, p in network.named_parameters()}
    return {
        "conv1": values["conv1.weight"].norm().item(),
        "bn1_bias": values["bn1.bias"].norm().item(),
        "head0": values["projection_head.0.weight"].norm().item(),
        "prototypes": values["prototypes.weight"].norm().item(),
        "proto00": values["prototypes.weight"][0, 0].item(),
        "head3_00": values["projection_head.3.weight"][0, 0].item(),
    }


def _distance(ours: Any, theirs: Any) -> float:
    """max |ours - theirs|; infinite where one is not a number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"expected the shape {theirs.shape}, found {ours.shape}"
    difference = np.abs(ours - theirs).max(initial=0.0)
    return float(difference) if np.isfinite(difference) else np.inf
