"""Pre-training: from a recipe and a folder of images to a run folder, in reading order.

`pretrain` sets the scene, `_loop` walks through the steps, `Learner.step` is one step of the algorithm.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swav import checkpoint, dist
from swav.algorithm import Queue, normalize_prototypes_, sinkhorn_codes, swapped_loss
from swav.config import Recipe, load_recipe, to_yaml, validated
from swav.data.device import Pieces
from swav.data.loader import Loader
from swav.errors import ConfigError, DataError, NumericsError, Stopped
from swav.monitor import STEP_VALUES, Monitor, Watch, code_statistics, verdict
from swav.network.batch_norm import running_statistics_kept, synchronised
from swav.network.heads import SwavNetwork, build_network
from swav.network.parallel import gradients_averaged, in_parallel
from swav.network.start import take_over, weights_to_start_from
from swav.optim import LossScale, Undo, build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors
from swav.probe import forecast
from swav.record import Clock, Log, draw_views, metrics_line, score_by_knn
from swav.reporting.page import write_report
from swav.run import Run, describe, going_on, memory_advice, own_share, prepare, resume, say, state
from swav.runtime import (
    Progress,
    StopRequest,
    available_cpus,
    environment_errors,
    fault_point,
    out_of_memory_told,
    pick_device,
    random_state,
    seed_process,
    set_random_state,
    write_text_durably,
)

Crops = Sequence[Tensor]  # normalised images, one tensor per kind of crop [count * B, 3, S, S], crop-major
_HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """Network, optimiser and queue of one process, and the step that moves them.

    Args:
        recipe: settings without `auto`.
        network: on its device. Its BatchNorm layers become synchronised ones where the recipe says so.
        steps_per_epoch: of this run, for the schedules.

    Attributes:
        queue: of this process, or None.
        scale: of the loss, or None (precision other than fp16).
        embeddings, codes: of the last step, detached, for the monitor.

    Raises:
        ConfigError: BatchNorm layers that cannot be synchronised.
    """

    def __init__(self, recipe: Recipe, network: SwavNetwork, steps_per_epoch: int):
        self.recipe, self.steps_per_epoch = recipe, steps_per_epoch
        self.prototypes = network.prototypes.weight
        self.device = self.prototypes.device
        self.batch = recipe.batch // dist.world_size()
        if recipe.synchronises(dist.world_size()):
            synchronised(network, self.device)
        self.network = network
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

    def step(self, pieces: Sequence[Crops], step: int, requests: Callable[[], Sequence[float]] = lambda: ()) -> Tensor:
        """One step of SwAV: codes from the code-giving crops, predicted by the other crops.

        Args:
            pieces: the batch of this process; whole, or cut into several pieces of equal size if it is larger than
                memory: then each is asked for twice.
            step: 0-based, over the whole run.
            requests: gives numbers whose maximum over all processes is to be known by all (see Returns). It is called
                in the middle of the step, so that what a signal asks for is known at the step's end.

        Returns:
            On the device: the values of STEP_VALUES, means over all processes, then whether something was not finite on
            any process (0 or 1), then the maximum of each request. Read it a step later and the host never waits for a
            GPU. A step with a loss or gradient that is not finite changes no parameter, no statistic, no momentum and
            no queue. In fp16 a gradient that is not finite is reported only once the loss cannot be scaled down further.
        """
        recipe = self.recipe
        undo = Undo(self._touched)
        normalize_prototypes_(self.prototypes.data)
        self.optimizer.zero_grad(set_to_none=True)

        if len(pieces) == 1:
            embeddings, scores = self._forward(pieces[0])
            codes = self._codes(scores.detach()[list(recipe.code_views)])
            loss = swapped_loss(scores, codes, recipe.code_views, recipe.temperature)
            self._backward(loss)
        else:
            embeddings, codes, loss = self._by_pieces(pieces)
        fault_point("step:middle")

        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if self.scale is not None:
            torch._foreach_mul_(gradients, 1 / self.scale.value)
        gradient_norm = torch.stack(torch._foreach_norm(gradients)).norm()
        loss = loss.detach()
        problems = [~torch.isfinite(loss), ~torch.isfinite(gradient_norm)]
        asked = [torch.tensor(x, dtype=torch.float32, device=self.device) for x in requests()]
        shared = dist.all_reduce_max(torch.stack([*(problem.float() for problem in problems), *asked]))
        skip = stop = shared[:2].amax()
        if self.scale is not None:
            stop = torch.maximum(shared[0], shared[1] * self.scale.exhausted)
            self.scale.update_(skip > 0)

        self._update(step, skip)
        undo.where(skip > 0)
        if self.queue is not None and step >= self._queue_start_step:
            self.queue.push(embeddings.detach()[list(recipe.code_views)], keep=skip > 0)

        self.embeddings, self.codes = embeddings.detach(), codes
        values = dist.all_reduce_mean(torch.stack([loss, *code_statistics(codes), gradient_norm]))
        return torch.cat([values, stop[None].to(values.dtype), shared[2:].to(values.dtype)])

    def _by_pieces(self, pieces: Sequence[Crops]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [V, B, D], codes and loss of a batch larger than memory; gradients are left in the parameters.

        Pass 1 runs all crops without gradient, for the codes of the whole batch. Pass 2 runs them again, to the same
        embeddings (BatchNorm's statistics are a piece's in both), and learns. Running statistics follow pass 2 only.
        """
        recipe = self.recipe
        seen, states = [], []
        with torch.no_grad(), running_statistics_kept(self.network):
            for crops in pieces:
                states.append(random_state(self.device))
                embeddings, scores = self._forward(crops)
                seen.append((embeddings, scores[list(recipe.code_views)]))
        embeddings, scores = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        codes = self._codes(scores)
        loss = torch.zeros((), dtype=codes.dtype, device=self.device)
        for i, its_codes in enumerate(codes.chunk(len(pieces), dim=1)):
            set_random_state(states[i], self.device)  # whatever a network draws, it draws again
            with gradients_averaged(self.parallel, now=i == len(pieces) - 1):
                _, scores = self._forward(pieces[i])
                its_loss = swapped_loss(scores, its_codes, recipe.code_views, recipe.temperature) / len(pieces)
                self._backward(its_loss)
            loss += its_loss.detach()
        return embeddings, codes, loss

    def _forward(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """Embeddings [V, B, D] and scores [V, B, K] of a piece."""
        half = _HALF_TYPES.get(self.recipe.precision)
        with nullcontext() if half is None else torch.autocast(self.device.type, dtype=half):
            embeddings, scores = self.model(crops, len(crops[0]) // self.recipe.crops[0].count)
        return embeddings, scores

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scale is None else loss * self.scale.value).backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _codes(self, scores: Tensor) -> Tensor:
        """Codes [A, B, K] of the code-giving crops' scores, with the queue's embeddings in the balance once it is full."""
        if self.queue is not None and self.queue.full:
            scores = torch.cat([self.queue.embeddings @ self.prototypes.T, scores], dim=1)
        with dist.alone() if self.recipe.sinkhorn == "local" else nullcontext():
            codes = [sinkhorn_codes(view, self.recipe.epsilon, self.recipe.sinkhorn_iterations) for view in scores]
        return torch.stack([view[-self.batch :] for view in codes])

    def _update(self, step: int, skip: Tensor) -> None:
        if step < self.recipe.freeze_prototypes_steps:
            self.prototypes.grad = None  # no gradient, no momentum, no weight decay: the optimiser passes it over
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step, self.steps_per_epoch)
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # the fused kernels skip the update where it is 1
        self.optimizer.step()

    @property
    def _queue_start_step(self) -> int:
        return self.recipe.queue_start_epoch * self.steps_per_epoch

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, and the loss scale's."""
        return optimizer_tensors(self.optimizer, self.network) | (self.scale.state_dict() if self.scale else {})

    def local_tensors(self) -> dict[str, Tensor]:
        """What differs between processes: the queue's share and torch's random state."""
        queue = {f"queue/{key}": value for key, value in self.queue.state_dict().items()} if self.queue else {}
        return queue | random_state(self.device)

    def load(self, saved: checkpoint.Checkpoint, own: dict[str, Tensor]) -> None:
        """Puts a checkpoint's tensors in place: those that all share, and this process's own."""
        self.network.load_state_dict(saved.model)
        load_optimizer_tensors(self.optimizer, self.network, saved.optim)
        if self.scale is not None:
            self.scale.load_state_dict(saved.optim)
        if self.queue is not None:
            self.queue.load_state_dict({"embeddings": own["queue/embeddings"], "count": own["queue/count"]})
        if "rng/torch" in own:
            set_random_state(own, self.device)


def pretrain(recipe: str | Recipe, out: str | Path, dry_run: bool = False, **settings: Any) -> Path:
    """Pre-trains a network, or goes on with the run in `out` if it holds one with the same settings.

    Args:
        recipe: a recipe's name, a YAML file, or settings.
        out: the run's folder.
        dry_run: print what would be done, with the reason for every derived value, and after some seconds of trying an
            estimate of time, memory and disk; and do nothing.
        settings: replace the recipe's, as `data="photos", epochs=100`.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, checkpoints/, report.html.

    Raises:
        ConfigError, DataError, EnvironmentError_, NumericsError, CheckpointError: see swav.errors.
        Stopped: a signal asked for an end; a checkpoint was saved.
    """
    if isinstance(recipe, str):
        wanted = load_recipe(recipe, settings)
    else:
        wanted = validated(Recipe, recipe.model_dump() | settings, "settings")
    if wanted.data is None:
        raise ConfigError("data: expected data=PATH (a folder of images, a list file, or CIFAR), found nothing")
    device = pick_device(wanted.device)
    with environment_errors(), dist.process_group(device), ExitStack() as stack:
        out = Path(out)
        if dist.world_size() > 1:  # torchrun leaves each process one thread; a process alone keeps what the user set
            torch.set_num_threads(max(1, available_cpus() // dist.world_size()))
        run = prepare(wanted, out, device, dry_run)
        start = weights_to_start_from(run.recipe, out)
        if dry_run:
            scored = sum(map(len, run.labelled)) if run.labelled else 0
            say("trying some steps, to estimate time and memory")
            lines = forecast(run.images, scored, run.recipe, device, out, run.speed)
            taken = f"\ninit       {take_over(build_network(run.recipe), start)}" if start is not None else ""
            if dist.rank() == 0:
                print(describe(run) + taken, lines, f"\n{to_yaml(run.recipe)}", sep="\n", end="")
            return out
        if dist.rank() == 0:
            stack.enter_context(checkpoint.RunLock(out))
        stop = stack.enter_context(StopRequest())
        network = build_network(run.recipe)
        taken = f"\ninit       {take_over(network, start)}" if start is not None else ""
        del start  # its memory is the network's to use
        learner = Learner(run.recipe, network.to(device), run.steps_per_epoch)
        start_step, best = 0, None
        saved = resume(run)
        seed_process(run.recipe.seed, saved.step if saved else 0, dist.rank())
        if saved is not None:
            learner.load(saved, own_share(saved))
            start_step = saved.step
            best = None if saved.state["best_step"] is None else (saved.state["best_step"], saved.state["best_knn"])
        if start_step == run.total_steps:
            say(f"{out}: finished at step {start_step}; nothing to do")
            if dist.rank() == 0 and not (out / "report.html").exists():
                write_report(out)
            return out
        say(describe(run) + taken if saved is None else going_on(run, saved))
        _loop(run, learner, start_step, best, stop)
    return out


def _loop(run: Run, learner: Learner, start_step: int, best: tuple[int, float] | None, stop: StopRequest) -> None:
    """Steps from `start_step` to the end, with checkpoints, a log, and an exit that loses nothing."""
    recipe, device, first = run.recipe, run.device, dist.rank() == 0
    log = Log(run.out)
    log.add_bad(run.images.bad)
    allowed_bad = max(10, math.floor(recipe.max_bad * (len(run.images) + len(run.images.bad))))
    monitor = Monitor(recipe.prototypes, recipe.head_dim, device)
    loader = Loader(
        run.images,
        recipe,
        rank=dist.rank(),
        world_size=dist.world_size(),
        start_step=start_step,
        total_steps=run.total_steps,
        steps_per_epoch=run.steps_per_epoch,
        on_device=device.type == "cuda",
    )
    progress = Progress("pre-training", run.total_steps, start_step, quiet=not first)
    watch = Watch(recipe.prototypes)
    clock = Clock()
    pending: Tensor | None = None
    saved_at, save_time = start_step, time.monotonic()
    done = start_step
    bad_count, due = 0, False
    at_a_time = recipe.images_per_forward(dist.world_size())

    def requests() -> tuple[float, ...]:
        return bad_count > allowed_bad, due, stop.exit_code

    def save() -> None:
        nonlocal saved_at, save_time
        checkpoint.save(
            run.out / "checkpoints",
            done,
            model=learner.network.state_dict(),
            optim=learner.optimizer_tensors(),
            local=learner.local_tensors(),
            state=state(run, best),
            keep=recipe.keep,
            best=best[0] if best else None,
        )
        saved_at, save_time = done, time.monotonic()

    def settle(values: list[float], step: int) -> tuple[bool, int]:
        """Acts on what a step found on any process; returns whether to save, and the exit code if a signal asks to stop."""
        not_finite, too_bad, due, asked = values[len(STEP_VALUES) :]
        if not_finite:
            raise NumericsError(
                f"step {step}: the loss or a gradient is not finite (loss {values[0]}); no parameter was changed by it\n"
                "lower the learning rate, raise epsilon, or use precision=fp32; "
                + (f"the last checkpoint is step {saved_at}" if saved_at else "there is no checkpoint yet")
            )
        if too_bad:
            raise DataError(
                f"more than {allowed_bad} unreadable images (max_bad={recipe.max_bad}), see {run.out}/bad_files.jsonl\n"
                "raise max_bad=X and the same command goes on; or begin again without these files, in another --out"
            )
        return bool(due) and step >= saved_at, round(asked)  # not what was due before the last save

    try:
        for batch in loader:
            bad_count = log.add_bad(batch.unreadable)
            due = (
                recipe.checkpoint_minutes > 0
                and first
                and time.monotonic() - save_time > 60 * recipe.checkpoint_minutes
            )
            if batch.step == start_step and first:
                draw_views(batch, run)
            pieces = Pieces(batch, recipe, device, at_a_time)
            with out_of_memory_told(memory_advice(at_a_time)):
                current = learner.step(pieces, batch.step, requests)
            done = batch.step + 1
            monitor.watch(learner.embeddings, learner.codes)
            clock.tick(batch.wait)
            # A GPU is a step ahead of the host, and what a step found is read when the next is on its way.
            ready = pending if device.type == "cuda" else current
            pending = current
            step_of_ready = batch.step if ready is current else batch.step - 1
            should_save, stop_code = (False, 0) if ready is None else settle(ready.tolist(), step_of_ready)
            end_of_epoch = done % run.steps_per_epoch == 0
            if first and (done % recipe.log_steps == 0 or done == run.total_steps):
                more = {} if learner.scale is None else {"loss_scale": float(learner.scale.value)}
                line = metrics_line(run, done, pending.tolist(), monitor, clock, **more)
                log.write(line)
                if (news := watch.news(log.recent)) is not None:
                    progress.say(f"step {done}: {news}")
                progress.update(
                    done,
                    f"loss {line['loss']:.3f}  {line['images_per_second']:.0f} images/s  waiting {line['data_wait']:.0%}  {line['memory_gb']:.1f} GB",
                )
            fault_point("step:end")
            if end_of_epoch:
                best = _evaluate(run, learner, done, best, log, progress)
                fault_point("epoch:end")
            by_step = recipe.checkpoint_steps and done % recipe.checkpoint_steps == 0
            if should_save or stop_code or by_step or done == run.total_steps or (best and best[0] == done):
                settle(pending.tolist(), done - 1)
                save()
            if stop_code and done < run.total_steps:
                raise Stopped(
                    f"stopped by a signal after step {done} of {run.total_steps}; saved, the same command goes on",
                    stop_code,
                )
    finally:
        progress.close()
        loader.close()
        log.close()
    if first:
        judgement, advice = verdict(log.recent, recipe.prototypes)
        write_text_durably(run.out / "report" / "verdict.json", json.dumps({"state": judgement, "advice": advice}))
        say(f"{judgement}: {advice}")
        say(f"report: {write_report(run.out)}")


def _evaluate(
    run: Run, learner: Learner, done: int, best: tuple[int, float] | None, log: Log, progress: Progress
) -> tuple[int, float] | None:
    """kNN at the end of an epoch where one is due and labels exist; returns the best (step, top-1) so far on all processes."""
    epoch = done // run.steps_per_epoch
    due = run.recipe.knn_epochs and (epoch % max(1, round(run.recipe.knn_epochs)) == 0 or done == run.total_steps)
    if not due:
        return best
    scored = score_by_knn(run, learner.network)
    if scored is not None:
        top1, k = scored
        log.write({"step": done, "epoch": epoch, "knn_top1": top1})
        progress.say(f"epoch {epoch}: kNN top-1 {top1:.2f} (k={k}, {run.recipe.resolution} pixels)")
        if best is None or top1 > best[1]:
            best = (done, top1)
    return dist.broadcast_object(best)  # type: ignore[no-any-return]
