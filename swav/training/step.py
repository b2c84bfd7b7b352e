"""One step of SwAV, and all that it moves: network, teacher, optimiser, queue.

`Trainer.step` is the algorithm's pseudo-code (the paper, appendix A) with what a real run needs around it. The loop that
calls it is loop.py; its tensors in, tensors out are algorithm.py.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from swav import checkpoint, dist
from swav.algorithm import Queue, hard_assignments, koleo_loss, normalize_prototypes_, sinkhorn_codes, swapped_loss
from swav.config import Recipe
from swav.network.ddp import gradients_averaged, in_parallel
from swav.network.heads import SwavNetwork
from swav.network.sync_batch_norm import running_statistics_kept, synchronised
from swav.system import autocast, fault_point, random_state, set_random_state
from swav.tensors import require_same_form
from swav.training.monitor import code_statistics
from swav.training.optim import (
    LossScale,
    Snapshot,
    build_optimizer,
    learning_rate,
    load_optimizer_tensors,
    moved,
    optimizer_tensors,
)

Crops = Sequence[Tensor]  # normalised images, one tensor per kind of crop [count * B, C, S, S], crop-major


class Trainer:
    """Network, teacher, optimiser and queue of one process, and the step that moves them.

    Args:
        recipe: settings without `auto`.
        network: on its device. Its BatchNorm layers become synchronised ones where the recipe says so.
        steps_per_epoch: of this run, for the schedules.
        changes: of the run's length, see optim.learning_rate; looked at in every step.

    Attributes:
        batch: images of a step on this process.
        teacher: gives the codes in the network's stead where the recipe has a `teacher_momentum`; else None.
        queue: of this process, or None.
        scale: of the loss, or None (precision other than fp16).
        embeddings, codes: of the last step, detached, for the monitor: [V, B, D], and [A, B, K] for each set of prototypes.

    Raises:
        ConfigError: BatchNorm layers that cannot be synchronised.
    """

    def __init__(
        self, recipe: Recipe, network: SwavNetwork, steps_per_epoch: int, changes: Sequence[tuple[int, int]] = ()
    ):
        self.recipe, self.steps_per_epoch, self._changes = recipe, steps_per_epoch, changes
        self.prototypes = network.prototypes.weight
        self.device = self.prototypes.device
        self.batch = recipe.batch // dist.world_size()
        self.network = network
        self.teacher = Teacher(network, recipe) if recipe.teacher_momentum else None
        if recipe.synchronises(dist.world_size()):
            group = dist.neighbours(recipe.processes_per_statistic(dist.world_size()))
            for part in [network] if self.teacher is None else [network, self.teacher.network]:
                synchronised(part, self.device, group)
        self.optimizer = build_optimizer(recipe, network)
        self.scale = LossScale(self.device) if recipe.precision == "fp16" else None
        self.parallel = in_parallel(network, self.device)
        self.model: Callable[..., Any] = (
            torch.compile(self.parallel, dynamic=False) if recipe.compile else self.parallel
        )
        self.queue: Queue | None = None
        if recipe.queue_length:
            self.queue = Queue(
                recipe.queue_length // dist.world_size(),
                recipe.head_dim,
                len(recipe.code_views),
                dtype=self.prototypes.dtype,
                device=self.device,
            )
        # What a forward changes before it is known whether the step counts.
        self._touched = [self.prototypes.data, *(b for b in network.buffers() if b.is_floating_point())]
        if self.teacher is not None:
            self._touched.append(self.teacher.prototypes.data)

    def step(
        self, micro_batches: Sequence[Crops], step: int, requests: Callable[[], Sequence[float]] = lambda: ()
    ) -> Tensor:
        """One step of SwAV: codes from the code-giving crops, predicted by the other crops.

        Args:
            micro_batches: the batch of this process; one, or several of equal size if it is larger than memory. A single
                one is asked for once, each of several twice, once per pass.
            step: 0-based, over the whole run.
            requests: gives numbers whose maximum over all processes is to be known by all (see Returns). It is called
                in the middle of the step, so that what a signal asks for is known at the step's end.

        Returns:
            On the device: the values of STEP_VALUES, means over all processes, then whether something was not finite on
            any process (0 or 1), then the maximum of each request. Read it a step later and the host never waits for a
            GPU. The loss is the swapped loss, without a KoLeo term. A step with a loss or gradient that is not finite
            changes no parameter, no statistic, no momentum, no teacher and no queue. In fp16 a gradient that is not
            finite is reported only once the loss cannot be scaled down further.
        """
        snapshot = Snapshot(self._touched)
        normalize_prototypes_(self.prototypes.data)
        if self.teacher is not None:
            normalize_prototypes_(self.teacher.prototypes.data)
        self.optimizer.zero_grad()

        if len(micro_batches) == 1:
            crops = micro_batches[0]
            embeddings, scores = self._forward(crops, self.batch, self.model)
            target_embeddings, target_scores = self._targets(crops, embeddings, scores)
            del crops  # in a half type the network keeps copies of its own for the way back
            codes = self._codes(target_scores)
            loss = self._learn(embeddings, scores, codes)
        else:
            embeddings, target_embeddings, codes, loss = self._accumulated(micro_batches)
        fault_point("step:middle")

        self._drop_frozen(step)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if self.scale is not None:
            torch._foreach_mul_(gradients, 1 / self.scale.value)
        gradient_norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self.recipe.clip_gradient:
            torch._foreach_mul_(gradients, (self.recipe.clip_gradient / (gradient_norm + 1e-6)).clamp(max=1))
        problems = [~torch.isfinite(loss), ~torch.isfinite(gradient_norm)]
        # filled by the device itself: for a copy of the host's memory the host would wait
        asked = [torch.full((), x, dtype=torch.float32, device=self.device) for x in requests()]
        shared = dist.all_reduce_max(torch.stack([*(problem.float() for problem in problems), *asked]))
        skip = stop = shared[:2].amax()
        if self.scale is not None:
            stop = torch.maximum(shared[0], shared[1] * self.scale.exhausted)
            self.scale.update_(skip > 0)

        self._update(step, skip)
        snapshot.restore_if(skip > 0)
        if self.teacher is not None:
            momentum = self._moved(self.recipe.teacher_momentum, self.recipe.final_teacher_momentum, step)
            self.teacher.ema_update(self.network, skip > 0, momentum)
        if self.queue is not None and step >= self._queue_start_step:
            self.queue.push(target_embeddings, skip=skip > 0)

        self.embeddings, self.codes = embeddings.detach(), codes
        values = dist.all_reduce_mean(torch.stack([loss, *code_statistics(codes), gradient_norm]))
        return torch.cat([values, stop[None].to(values.dtype), shared[2:].to(values.dtype)])

    def _accumulated(self, micro_batches: Sequence[Crops]) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """A batch larger than memory: as `step` goes through a whole one; gradients are left in the parameters.

        Pass 1 runs all crops without gradient, for the codes of the whole batch. Pass 2 runs them again, to the same
        embeddings (BatchNorm's statistics are a micro-batch's in both), and learns. Running statistics follow pass 2 only.
        (A teacher's pass 1 is over the code-giving crops alone.)

        Returns:
            Embeddings [V, B, D], those of the code-giving crops [A, B, D], codes, and loss.
        """
        seen, states = [], []
        with torch.no_grad(), running_statistics_kept(self.network):
            for crops in micro_batches:
                states.append(random_state(self.device))
                own = self._forward(crops, self._images(crops), self.model) if self.teacher is None else ()
                seen.append(self._targets(crops, *own))
            del crops
        target_embeddings, target_scores = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        codes = self._codes(target_scores)
        its_codes = zip(*(of_a_head.chunk(len(micro_batches), dim=1) for of_a_head in codes), strict=True)
        loss = torch.zeros((), dtype=codes[0].dtype, device=self.device)
        embedded = []
        for i, its_own in enumerate(its_codes):
            set_random_state(states[i], self.device)  # whatever a network draws, it draws again
            with gradients_averaged(self.parallel, now=i == len(micro_batches) - 1):
                crops = micro_batches[i]
                embeddings, scores = self._forward(crops, self._images(crops), self.model)
                del crops
                loss += self._learn(embeddings, scores, its_own, share=1 / len(micro_batches))
            embedded.append(embeddings.detach())
        return torch.cat(embedded, dim=1), target_embeddings, codes, loss

    def _forward(self, crops: Crops, batch: int, model: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        """Embeddings [V, B, D] and scores [V, B, K] of a micro-batch, where K counts the prototypes of all sets."""
        with autocast(self.device, self.recipe.precision):
            return model(crops, batch)  # type: ignore[no-any-return]

    def _images(self, crops: Crops) -> int:
        return len(crops[0]) // self.recipe.crops[0].count

    @torch.no_grad()
    def _targets(self, crops: Crops, *own: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [A, B, D] and scores [A, B, K] that codes are made of: the network's `own`, or the teacher's."""
        if self.teacher is None:
            embeddings, scores = own
            places = list(self.recipe.code_views)
        else:
            places = self.teacher.places
            embeddings, scores = self._forward(
                [crops[kind] for kind in self.teacher.kinds], self._images(crops), self.teacher
            )
        return _of_views(embeddings.detach(), places), _of_views(scores.detach(), places)

    @torch.no_grad()
    def _codes(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Codes [A, B, K] for each set of prototypes, with the queue's embeddings in the balance once it is full."""
        recipe = self.recipe
        if self.queue is not None and self.queue.full:
            prototypes = self.prototypes if self.teacher is None else self.teacher.prototypes
            scores = torch.cat([self.queue.embeddings @ prototypes.T, scores], dim=1)
        codes = []
        with dist.single_process() if recipe.sinkhorn == "local" else nullcontext():
            for of_a_head in torch.split(scores, list(recipe.prototype_sets), dim=2):
                balanced = [sinkhorn_codes(view, recipe.epsilon, recipe.sinkhorn_iterations) for view in of_a_head]
                codes.append(torch.stack([view[-self.batch :] for view in balanced]))
        return tuple(hard_assignments(part) for part in codes) if recipe.hard_codes else tuple(codes)

    def _learn(self, embeddings: Tensor, scores: Tensor, codes: Sequence[Tensor], share: float = 1.0) -> Tensor:
        """Add the gradients of a micro-batch that is a `share` of the batch; return its share of the swapped loss."""
        recipe, views = self.recipe, self.recipe.code_views
        predictions = torch.split(scores, list(recipe.prototype_sets), dim=2)
        losses = [swapped_loss(s, q, views, recipe.temperature) for s, q in zip(predictions, codes, strict=True)]
        loss = share * torch.stack(losses).mean()
        total = loss + share * recipe.koleo * koleo_loss(_of_views(embeddings, views)) if recipe.koleo else loss
        (total if self.scale is None else total * self.scale.value).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _drop_frozen(self, step: int) -> None:
        """Without a gradient there is no momentum and no weight decay: the optimiser passes a parameter over."""
        if step < self.recipe.freeze_prototypes_steps:
            self.prototypes.grad = None
        if step < self.recipe.freeze_backbone_steps:
            for parameter in self.network.trunk.parameters():
                parameter.grad = None

    def _update(self, step: int, skip: Tensor) -> None:
        rate = learning_rate(self.recipe, step, self.steps_per_epoch, self._changes)
        decay = self._moved(self.recipe.weight_decay, self.recipe.final_weight_decay, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * rate
            group["weight_decay"] = decay if group["decays"] else 0.0
        self.optimizer.found_inf = skip  # the fused kernels skip the update where it is 1
        self.optimizer.step()

    def _moved(self, first: float, last: float | None, step: int) -> float:
        return moved(first, last, step, self.recipe.epochs * self.steps_per_epoch, self._changes)

    @property
    def _queue_start_step(self) -> int:
        return self.recipe.queue_start_epoch * self.steps_per_epoch

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, the loss scale's, and the teacher's weights."""
        more = [part.state_dict() for part in (self.scale, self.teacher) if part is not None]
        return optimizer_tensors(self.optimizer, self.network) | {k: v for part in more for k, v in part.items()}

    def local_tensors(self) -> dict[str, Tensor]:
        """What differs between processes: the queue's share and torch's random state."""
        queue = {f"queue/{key}": value for key, value in self.queue.state_dict().items()} if self.queue else {}
        return queue | random_state(self.device)

    def load(self, saved: checkpoint.Checkpoint, own: dict[str, Tensor]) -> None:
        """Put a checkpoint's tensors in place: those that all share, and this process's own.

        Random states may be missing: of a device that the run was not on before, or of another number of processes.

        Raises:
            CheckpointError: a tensor is missing, unexpected, or of another shape or type; nothing was changed.
        """
        kept = {name: value for name, value in own.items() if not name.startswith(("rng/", "monitor/"))}
        local = self.local_tensors()
        expected = {name: value for name, value in local.items() if not name.startswith("rng/")}
        random = {name: own[name] for name in local if name.startswith("rng/") and name in own}
        require_same_form(f"{saved.path}/model.safetensors", saved.model, self.network.state_dict())
        require_same_form(f"{saved.path}/optim.safetensors", saved.optim, self.optimizer_tensors())
        require_same_form(
            f"{saved.path}/rank_{dist.rank()}.safetensors", kept | random, expected | {k: local[k] for k in random}
        )
        self.network.load_state_dict(saved.model)
        load_optimizer_tensors(self.optimizer, self.network, saved.optim)
        for part in (self.scale, self.teacher):
            if part is not None:
                part.load_state_dict(saved.optim)
        if self.queue is not None:
            self.queue.load_state_dict({"embeddings": own["queue/embeddings"], "count": own["queue/count"]})
        set_random_state(random, self.device)


def _of_views(x: Tensor, views: Sequence[int]) -> Tensor:
    """Some views of [V, ...], in this order. (A list as an index would be copied to the device, and the host waits for that.)"""
    return torch.stack([x[view] for view in views])


class Teacher:
    """A slow copy of a network, prototypes included, which gives the codes: an option, not the paper's method.

    After each step  t <- m t + (1 - m) s  for every parameter t of the teacher and s of the network. Its BatchNorm
    normalises by the statistics of what it is given, as the network's does; it sees the code-giving crops only.

    Attributes:
        kinds: of crops, those that it is to be given.
        places: of the code-giving crops among its views.

    Source: Caron et al. 2021 (arXiv 2104.14294), table 15 ("SwAV" with momentum); they raise m to 1 over the run, as
    `final_teacher_momentum: 1` does here.
    """

    def __init__(self, network: SwavNetwork, recipe: Recipe):
        self.network = copy.deepcopy(network).requires_grad_(False)
        kind_of_view = [kind for kind, crop in enumerate(recipe.crops) for _ in range(crop.count)]
        self.kinds = sorted({kind_of_view[view] for view in recipe.code_views})
        shown = [view for view, kind in enumerate(kind_of_view) if kind in self.kinds]
        self.places = [shown.index(view) for view in recipe.code_views]

    @property
    def prototypes(self) -> Tensor:
        return self.network.prototypes.weight

    def __call__(self, crops: Crops, batch: int) -> tuple[Tensor, Tensor]:
        """Embeddings and scores of the crops of its `kinds`; its running statistics, which nobody asks for, stay."""
        with torch.no_grad(), running_statistics_kept(self.network):
            return self.network(crops, batch)  # type: ignore[no-any-return]

    @torch.no_grad()
    def ema_update(self, network: SwavNetwork, skip: Tensor, momentum: float) -> None:
        """A step after the network, by `momentum`; none where the flag `skip` is true on the device."""
        own: list[Tensor] = list(self.network.parameters())
        followed: list[Tensor] = list(network.parameters())
        ahead = torch._foreach_sub(followed, own)
        torch._foreach_mul_(ahead, torch.where(skip, 0.0, 1 - momentum))
        torch._foreach_add_(own, list(ahead))

    def state_dict(self) -> dict[str, Tensor]:
        return {f"teacher/{name}": parameter.data for name, parameter in self.network.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(state[f"teacher/{name}"])
