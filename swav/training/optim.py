"""How parameters move: LARC, LARS or Adam, and what changes over a run: the learning rate, weight decay, the teacher's momentum.

All three are torch's own fused kernels; LARC and LARS rescale the gradients before them. The kernels skip an update on the
device when `found_inf` is set, so a non-finite step is undone by never being made: no parameter and no momentum is
touched, and the host need not look.

The classes of torch.optim call the same kernels, but also import torch's compiler when they are made: 4 s of CPU.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swav.config import Recipe


class _Leg(NamedTuple):
    """The schedule from a step on, up to the end that was planned there.

    Attributes:
        start: its first step.
        end: steps of the whole run.
        warmup: the step at which the warm-up ends; `start` or less where it has.
        rate: at the start, where the warm-up is under way.
        progress: along the cosine at the start, 0 to 1.
    """

    start: int
    end: int
    warmup: int
    rate: float
    progress: float


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, changes: Sequence[tuple[int, int]] = ()) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine from `lr` to `final_lr`.

    The peak appears twice (last step of the warm-up, first of the cosine) and `final_lr` is approached, not reached,
    as in the released code. With `lr_schedule: epoch` the rate is that of the epoch's first step.

    Where the run's length was changed on the way, the cosine continues from the point that it has reached, and takes what
    is left of it in the steps that are left: the rate never jumps, and is as low at the new end as at the old one.

    Args:
        recipe: without `auto`.
        step: 0-based.
        steps_per_epoch: of this run.
        changes: (step, steps of the whole run as planned from there on), in order, at ends of epochs.

    Source: section A.1; linspace and cosine as in the released code (golden: lr_schedule.json).
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    leg = _Leg(0, recipe.epochs * steps_per_epoch, warmup, recipe.warmup_start_lr, 0.0)
    for start, end in changes:
        if start <= step:
            leg = _next_leg(recipe, leg, start, end, steps_per_epoch)
    if recipe.lr_schedule == "epoch" and not (leg.start and leg.end - leg.start <= steps_per_epoch):
        step -= step % steps_per_epoch  # but in a last epoch that was planned at its start the rate must yet come down
    return _rate(recipe, leg, step)


def moved(first: float, last: float | None, step: int, steps: int, changes: Sequence[tuple[int, int]] = ()) -> float:
    """A setting that moves from one value to another over a run, by half a cosine and without a warm-up.

    Args:
        first, last: at step 0 and (approached) at the end; a last of None: it does not move.
        step: 0-based.
        steps: of the whole run as first planned.
        changes: as of `learning_rate`; the way continues from the point that it has reached.

    Source: Caron et al. 2021 (arXiv 2104.14294), implementation details: weight decay and the teacher's momentum.
    """
    if last is None:
        return first
    leg = _Leg(0, steps, 0, 0.0, 0.0)
    for start, end in changes:
        if start <= step:
            leg = _Leg(start, end, 0, 0.0, _progress(leg, start))
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * _progress(leg, step)))


def _rate(recipe: Recipe, leg: _Leg, step: int) -> float:
    if step < leg.warmup:
        return leg.rate + (recipe.lr - leg.rate) * (step - leg.start) / max(1, leg.warmup - 1 - leg.start)
    return recipe.final_lr + 0.5 * (recipe.lr - recipe.final_lr) * (1 + math.cos(math.pi * _progress(leg, step)))


def _progress(leg: _Leg, step: int) -> float:
    begin = max(leg.start, leg.warmup)
    return leg.progress + (1 - leg.progress) * (step - begin) / (leg.end - begin)


def _next_leg(recipe: Recipe, leg: _Leg, start: int, end: int, steps_per_epoch: int) -> _Leg:
    """The schedule from a change on. A warm-up under way may take a quarter of what is left; none where that is no epoch."""
    if start >= leg.warmup:
        return _Leg(start, end, leg.warmup, recipe.lr, _progress(leg, start))
    rate = _rate(recipe, leg, start)
    room = (end - start) // 4 if end - start >= steps_per_epoch else 0
    warmup = min(leg.warmup, start + room)
    if warmup > start:
        return _Leg(start, end, warmup, rate, 0.0)
    share = (rate - recipe.final_lr) / (recipe.lr - recipe.final_lr) if recipe.lr > recipe.final_lr else 0.0
    return _Leg(start, end, warmup, rate, math.acos(2 * min(1.0, max(0.0, share)) - 1) / math.pi)


class LossScale:
    """What the loss is multiplied by so that small gradients in float16 are not lost to 0; they are divided by it again.

    Halved when a gradient is not finite (that step is skipped), doubled after 2000 steps without one. All on the device:
    the host never waits. A gradient that is not finite with the scale at its floor is not the scale's fault.

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), section 3.2; start and pace as in torch.amp.GradScaler.
    """

    FLOOR, CEILING, PATIENCE = 1.0, 2.0**24, 2000

    def __init__(self, device: torch.device | str = "cpu"):
        self.value = torch.tensor(2.0**16, device=device)
        self.good_steps = torch.zeros((), device=device)

    @property
    def exhausted(self) -> Tensor:
        return self.value <= self.FLOOR

    def update_(self, skipped: Tensor) -> None:
        """Take note of a step; `skipped` is a flag on the device."""
        self.good_steps = torch.where(skipped, 0.0, self.good_steps + 1)
        patient = self.good_steps >= self.PATIENCE
        self.value = torch.where(skipped, self.value / 2, torch.where(patient, self.value * 2, self.value))
        self.value = self.value.clamp(self.FLOOR, self.CEILING)
        self.good_steps = torch.where(patient, 0.0, self.good_steps)

    def state_dict(self) -> dict[str, Tensor]:
        return {"loss_scale/value": self.value, "loss_scale/good_steps": self.good_steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value.copy_(state["loss_scale/value"])
        self.good_steps.copy_(state["loss_scale/good_steps"])


class Optimizer:
    """Parameters in groups, a learning rate for each, and what the rule remembers of each parameter.

    Attributes:
        param_groups: dicts of "params", "lr", the "factor" that the recipe's learning rate is multiplied by for them,
            "weight_decay", and whether it "decays" at all.
        state: of each parameter, its tensors by name. Made at once, so that a first step that is skipped leaves nothing
            undefined.
        found_inf: a flag on the device: where it is 1, a step moves nothing.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], weight_decay: float):
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(group), "lr": 0.0, "factor": 1.0, "weight_decay": weight_decay} for group in groups
        ]
        self.state = {parameter: self._fresh(parameter) for group in groups for parameter in group}
        self.found_inf: Tensor | None = None

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient. Gradients may be changed in place."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(parameters, [p.grad for p in parameters], group["lr"], group["weight_decay"])

    def _state_of(self, parameters: Sequence[Tensor], key: str) -> list[Tensor]:
        return [self.state[parameter][key] for parameter in parameters]


class LayerwiseSGD(Optimizer):
    """SGD with momentum on gradients that are rescaled per parameter: LARC, or LARS.

        g <- (g + wd p) * trust * |p| / (|g| + wd |p| + eps)

    where |p| and |g| are not 0, else plain g without weight decay (apex's LARC without clipping, as the paper's runs
    used it: on all parameters, biases and BatchNorm too). With LARC the learning rate multiplies the momentum buffer;
    with LARS it is inside the buffer, and where a norm is 0 the weight decay stays: the two differ when the rate
    changes. No host synchronisation.

    Args:
        groups: of parameters, all of one device and type.
        momentum: of SGD.
        weight_decay: wd.
        trust: trust coefficient.
        lr_inside: False for LARC, True for LARS.
        eps: guards the division.

    Source: You et al. 2017 (arXiv 1708.03888); LARC: apex, trust 0.001, clip off (section A.1). LARS: as in the
    target page's code base.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        momentum: float,
        weight_decay: float,
        trust: float,
        lr_inside: bool,
        eps: float = 1e-8,
    ):
        super().__init__(groups, weight_decay)
        self.momentum, self.trust, self.lr_inside, self.eps = momentum, trust, lr_inside, eps

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float) -> None:
        self._adapt(parameters, gradients, lr, decay)
        torch._fused_sgd_(
            parameters,
            gradients,
            self._state_of(parameters, "momentum_buffer"),
            weight_decay=0.0,  # _adapt has added it
            momentum=self.momentum,
            lr=1.0 if self.lr_inside else lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,  # the buffers are there
            found_inf=self.found_inf,
        )

    def _adapt(self, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float) -> None:
        trust = self.trust
        size = torch.stack(torch._foreach_norm(parameters))
        slope = torch.stack(torch._foreach_norm(gradients))
        adaptive = (size > 0) & (slope > 0)
        scale = torch.where(adaptive, trust * size / (slope + decay * size + self.eps), 1.0)
        decays = scale * decay if self.lr_inside else torch.where(adaptive, scale * decay, 0.0)
        if self.lr_inside:
            scale, decays = scale * lr, decays * lr
        torch._foreach_mul_(gradients, scale.unbind())
        torch._foreach_add_(gradients, torch._foreach_mul(parameters, decays.unbind()))


class Adam(Optimizer):
    """Adam, or with `decoupled` AdamW, with the defaults of torch.optim (betas .9 and .999, eps 1e-8).

    Args:
        groups: of parameters, all of one device and type.
        weight_decay: added to the gradients; where decoupled, taken off the parameters.
        decoupled: AdamW.

    Source: Kingma and Ba 2015 (arXiv 1412.6980); Loshchilov and Hutter 2019 (arXiv 1711.05101).
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], weight_decay: float, decoupled: bool):
        super().__init__(groups, weight_decay)
        self.decoupled = decoupled

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], lr: float, decay: float) -> None:
        steps = self._state_of(parameters, "step")
        torch._foreach_add_(steps, 1)
        move = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        move(
            parameters,
            gradients,
            self._state_of(parameters, "exp_avg"),
            self._state_of(parameters, "exp_avg_sq"),
            [],
            steps,
            lr=lr,
            beta1=0.9,
            beta2=0.999,
            weight_decay=decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:  # a step that was skipped does not count
            torch._foreach_sub_(steps, [self.found_inf] * len(steps))


class Snapshot:
    """Takes back what a step did to tensors, where a flag on the device says so.

    Args:
        tensors: of one kind and device, as they are before the step.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors
        self.before = self._flat()

    def _flat(self) -> Tensor:
        """All in one: a launch each for a handful of tensors or hundreds."""
        return torch.cat([tensor.flatten() for tensor in self.tensors])

    @torch.no_grad()
    def restore_if(self, flag: Tensor) -> None:
        chosen = torch.where(flag, self.before, self._flat())
        parts = torch.split(chosen, [tensor.numel() for tensor in self.tensors])
        torch._foreach_copy_(
            list(self.tensors), [new.view_as(old) for new, old in zip(parts, self.tensors, strict=True)]
        )


def build_optimizer(recipe: Recipe, network: nn.Module) -> Optimizer:
    """The recipe's optimiser over all parameters, in groups: backbone, head, prototypes; without `decay_vectors` biases and norms
    in groups of their own. Each has its `factor` on the learning rate."""
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        part = name.partition(".")[0]
        part = part if part in ("trunk", "prototypes") else "projection_head"
        groups.setdefault((part, recipe.decay_vectors or parameter.ndim > 1), []).append(parameter)
    optimizer = _of_groups(recipe, list(groups.values()))
    for (part, decays), group in zip(groups, optimizer.param_groups, strict=True):
        group["factor"] = recipe.backbone_lr_factor if part == "trunk" else 1.0
        group["decays"] = decays
        if not decays:
            group["weight_decay"] = 0.0
    return optimizer


def _of_groups(recipe: Recipe, groups: Sequence[Sequence[Tensor]]) -> Optimizer:
    if recipe.optimizer in ("larc", "lars"):
        return LayerwiseSGD(
            groups, recipe.momentum, recipe.weight_decay, recipe.trust_coefficient, lr_inside=recipe.optimizer == "lars"
        )
    return Adam(groups, recipe.weight_decay, decoupled=recipe.optimizer == "adamw")


def optimizer_tensors(optimizer: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state by parameter name, as `layer1.0.conv1.weight/momentum_buffer`."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: Optimizer, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put a state back in place. (That shapes and types agree is found before, see tensors.require_same_form.)

    Raises:
        KeyError: a value of this optimiser is not among the tensors.
    """
    for name, tensor in optimizer_tensors(optimizer, network).items():
        tensor.copy_(tensors[name])
