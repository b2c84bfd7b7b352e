"""Pre-training: from a recipe and a folder of images to a run folder, in reading order.

`pretrain` sets the scene, `_loop` walks through the steps, `Learner.step` is one step of the algorithm.
"""

import inspect
import json
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swav import checkpoint, dist
from swav.algorithm import Queue, normalize_prototypes_, sinkhorn_codes, swapped_loss
from swav.config import Recipe, load_recipe, settings_hash, to_yaml, validated
from swav.data.loader import Batch, Loader
from swav.data.photometric import apply_batched
from swav.data.views import to_input
from swav.errors import ConfigError, DataError, NumericsError, Stopped
from swav.features import knn_top1
from swav.monitor import STEP_VALUES, Monitor, Watch, code_statistics, verdict
from swav.network.encoder import Encoder
from swav.network.heads import SwavNetwork, build_network
from swav.optim import build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors
from swav.record import Clock, Log, draw_views, metrics_line
from swav.reporting.page import write_report
from swav.run import Run, describe, prepare, resume, say
from swav.runtime import (
    Progress,
    StopRequest,
    available_cpus,
    environment_errors,
    fault_point,
    pick_device,
    versions,
    write_text_durably,
)


class Learner:
    """Network, optimiser and queue of one process, and the step that moves them.

    Args:
        recipe: settings without `auto`.
        network: on its device.
        steps_per_epoch: of this run, for the schedules.

    Attributes:
        queue: of this process, or None.
        embeddings, codes: of the last step, detached, for the monitor.
    """

    def __init__(self, recipe: Recipe, network: SwavNetwork, steps_per_epoch: int):
        assert isinstance(recipe.queue_length, int)
        self.recipe, self.network, self.steps_per_epoch = recipe, network, steps_per_epoch
        self.prototypes = network.prototypes.weight
        self.device = self.prototypes.device
        self.batch = recipe.batch // dist.world_size()
        self.optimizer = build_optimizer(recipe, network)
        self.model: nn.Module = network
        if dist.is_active():
            on_gpu = [self.device.index] if self.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(network, device_ids=on_gpu, **_keep_own_statistics())
        self.queue: Queue | None = None
        if recipe.queue_length:
            self.queue = Queue(
                recipe.queue_length // dist.world_size(),
                recipe.head_dim,
                len(recipe.code_views),
                dtype=self.prototypes.dtype,
                device=self.device,
            )

    def step(self, crops: Sequence[Tensor], step: int, requests: Sequence[float] = ()) -> Tensor:
        """One step of SwAV: codes from the code-giving crops, predicted by the other crops.

        Args:
            crops: normalised images, one tensor per kind of crop [count * B, 3, S, S], crop-major.
            step: 0-based, over the whole run.
            requests: numbers whose maximum over all processes is to be known by all (see Returns).

        Returns:
            On the device: the values of STEP_VALUES, then whether something was not finite on any process (0 or 1),
            then the maximum of each request. Read it a step later and the host never waits for the device. A step with
            a loss or gradient that is not finite changes no parameter, no momentum and no queue.
        """
        recipe = self.recipe
        before = self.prototypes.detach().clone()
        normalize_prototypes_(self.prototypes.data)

        with self._autocast():
            embeddings, scores = self.model(crops, self.batch)
        codes = self._codes(scores)
        loss = swapped_loss(scores, codes, recipe.code_views, recipe.temperature)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # gradients are averaged over processes here
        fault_point("step:middle")

        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        gradient_norm = torch.stack(torch._foreach_norm(gradients)).norm()
        finite = torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm)
        shared = torch.stack([(~finite).float(), *(torch.tensor(x, device=self.device) for x in requests)])
        stop = dist.all_reduce_max(shared)[0]

        self._update(step, stop)
        self.prototypes.data.copy_(torch.where(stop > 0, before, self.prototypes.data))
        if self.queue is not None and step >= self._queue_start_step:
            self.queue.push(embeddings.detach()[list(recipe.code_views)], keep=stop > 0)

        self.embeddings, self.codes = embeddings.detach(), codes
        values = torch.stack([loss.detach(), *code_statistics(codes), gradient_norm])
        return torch.cat([values, shared.to(values.dtype)])

    def _autocast(self) -> AbstractContextManager[Any]:
        return (
            torch.autocast(self.device.type, dtype=torch.bfloat16) if self.recipe.precision == "bf16" else nullcontext()
        )

    @torch.no_grad()
    def _codes(self, scores: Tensor) -> Tensor:
        """Codes of the code-giving crops [A, B, K], with the queue's embeddings in the balance once it is full."""
        chosen = scores.detach()[list(self.recipe.code_views)]
        if self.queue is not None and self.queue.full:
            chosen = torch.cat([self.queue.embeddings @ self.prototypes.T, chosen], dim=1)
        codes = [sinkhorn_codes(view, self.recipe.epsilon, self.recipe.sinkhorn_iterations) for view in chosen]
        return torch.stack([view[-self.batch :] for view in codes])

    def _update(self, step: int, stop: Tensor) -> None:
        assert isinstance(self.recipe.freeze_prototypes_steps, int)
        if step < self.recipe.freeze_prototypes_steps:
            self.prototypes.grad = None  # no gradient, no momentum, no weight decay: the optimiser passes it over
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, step, self.steps_per_epoch)
        self.optimizer.found_inf = stop  # type: ignore[attr-defined]  # the fused kernels skip the update where it is 1
        self.optimizer.step()

    @property
    def _queue_start_step(self) -> int:
        assert isinstance(self.recipe.queue_start_epoch, int)
        return self.recipe.queue_start_epoch * self.steps_per_epoch

    def local_tensors(self) -> dict[str, Tensor]:
        """What differs between processes: the queue's share and torch's random state."""
        queue = {f"queue/{key}": value for key, value in self.queue.state_dict().items()} if self.queue else {}
        return queue | {"rng/torch": torch.get_rng_state()}

    def load(self, saved: checkpoint.Checkpoint) -> None:
        """Puts a checkpoint's tensors in place."""
        self.network.load_state_dict(saved.model)
        load_optimizer_tensors(self.optimizer, self.network, saved.optim)
        if self.queue is not None:
            self.queue.load_state_dict(
                {"embeddings": saved.local["queue/embeddings"], "count": saved.local["queue/count"]}
            )
        torch.set_rng_state(saved.local["rng/torch"])


def _keep_own_statistics() -> dict[str, Any]:
    """Each process keeps its own BatchNorm statistics; torch renamed the argument that says so after 2.11."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def pretrain(recipe: str | Recipe, out: str | Path, dry_run: bool = False, **settings: Any) -> Path:
    """Pre-trains a network, or goes on with the run in `out` if it holds one with the same settings.

    Args:
        recipe: a recipe's name, a YAML file, or settings.
        out: the run's folder.
        dry_run: print what would be done, with the reason for every derived value, and do nothing.
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
        run = prepare(wanted, out, device, dry_run)
        if dry_run:
            if dist.rank() == 0:
                print(f"{describe(run)}\n\n{to_yaml(run.recipe)}", end="")
            return out
        if dist.rank() == 0:
            stack.enter_context(checkpoint.RunLock(out))
        stop = stack.enter_context(StopRequest())
        if dist.world_size() > 1:  # torchrun leaves each process one thread; a process alone keeps what the user set
            torch.set_num_threads(max(1, available_cpus() // dist.world_size()))
        torch.manual_seed(run.recipe.seed + dist.rank())  # in a new process torch's generator begins anywhere
        learner = Learner(run.recipe, build_network(run.recipe).to(device), run.steps_per_epoch)
        start_step, best = 0, None
        if (saved := resume(run)) is not None:
            learner.load(saved)
            start_step = saved.step
            best = None if saved.state["best_step"] is None else (saved.state["best_step"], saved.state["best_knn"])
        if start_step == run.total_steps:
            say(f"{out}: finished at step {start_step}; nothing to do")
            if dist.rank() == 0 and not (out / "report.html").exists():
                write_report(out)
            return out
        say(describe(run) if saved is None else f"{out}: goes on from step {start_step} of {run.total_steps}")
        _loop(run, learner, start_step, best, stop)
    return out


def _loop(run: Run, learner: Learner, start_step: int, best: tuple[int, float] | None, stop: StopRequest) -> None:
    """Steps from `start_step` to the end, with checkpoints, a log, and an exit that loses nothing."""
    recipe, device, first = run.recipe, run.device, dist.rank() == 0
    log = Log(run.out)
    log.add_bad(run.images.bad)
    allowed_bad = max(10, math.floor(recipe.max_bad * (len(run.images) + len(run.images.bad))))
    assert isinstance(recipe.prototypes, int)
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

    def save() -> None:
        nonlocal saved_at, save_time
        state = {
            "recipe": recipe.model_dump(mode="json"),
            "settings_hash": settings_hash(recipe),
            "data_fingerprint": run.images.fingerprint,
            "num_images": len(run.images),
            "world_size": dist.world_size(),
            "versions": versions(),
            "best_step": best[0] if best else None,
            "best_knn": best[1] if best else None,
        }
        checkpoint.save(
            run.out / "checkpoints",
            done,
            model=learner.network.state_dict(),
            optim=optimizer_tensors(learner.optimizer, learner.network),
            local=learner.local_tensors(),
            state=state,
            keep=recipe.keep,
            best=best[0] if best else None,
        )
        saved_at, save_time = done, time.monotonic()

    def settle(values: list[float], step: int) -> tuple[bool, bool]:
        """Acts on what a step found on any process; returns whether to save, and whether to stop."""
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
        return bool(due) and step >= saved_at, bool(asked)  # not what was due before the last save

    try:
        for batch in loader:
            bad_count = log.add_bad(batch.unreadable)
            due = (
                recipe.checkpoint_minutes > 0
                and first
                and time.monotonic() - save_time > 60 * recipe.checkpoint_minutes
            )
            crops = _to_device(batch, recipe, device)
            if batch.step == start_step and first:
                draw_views(batch, run)
            current = learner.step(
                crops, batch.step, (float(bad_count > allowed_bad), float(due), float(stop.signal is not None))
            )
            done = batch.step + 1
            monitor.watch(learner.embeddings, learner.codes)
            clock.tick(batch.wait)
            should_save, should_stop = settle(pending.tolist(), done - 2) if pending is not None else (False, False)
            pending = current
            end_of_epoch = done % run.steps_per_epoch == 0
            if first and (done % recipe.log_steps == 0 or done == run.total_steps):
                line = metrics_line(run, done, pending.tolist(), monitor, clock)
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
            if should_save or should_stop or by_step or done == run.total_steps or (best and best[0] == done):
                settle(pending.tolist(), done - 1)
                save()
            if should_stop and done < run.total_steps:
                raise Stopped(
                    f"stopped by a signal after step {done} of {run.total_steps}; saved, the same command goes on",
                    stop.exit_code,
                )
    finally:
        progress.close()
        loader.close()
        log.close()
    if first:
        state, advice = verdict(log.recent, recipe.prototypes)
        write_text_durably(run.out / "report" / "verdict.json", json.dumps({"state": state, "advice": advice}))
        say(f"{state}: {advice}")
        say(f"report: {write_report(run.out)}")


def _to_device(batch: Batch, recipe: Recipe, device: torch.device) -> list[Tensor]:
    """Normalised crops on the device; colour and blur happen there where the loader left them to it."""
    crops = []
    for kind, views in enumerate(batch.views):
        views = views.to(device, non_blocking=True)
        if batch.params is not None:
            views = apply_batched(views, batch.params[kind].to(device, non_blocking=True), recipe)
        crops.append(to_input(views, recipe.mean, recipe.std))
    return crops


def _evaluate(
    run: Run, learner: Learner, done: int, best: tuple[int, float] | None, log: Log, progress: Progress
) -> tuple[int, float] | None:
    """kNN at the end of an epoch where one is due and labels exist; returns the best (step, top-1) so far on all processes."""
    epoch = done // run.steps_per_epoch
    due = run.recipe.knn_epochs and (epoch % max(1, round(run.recipe.knn_epochs)) == 0 or done == run.total_steps)
    if not due:
        return best
    if run.labelled is not None:
        bank, queries = run.labelled
        assert isinstance(run.recipe.workers, int)
        learner.network.eval()
        encoder = Encoder(learner.network, run.recipe, str(run.out))
        top1, k = knn_top1(
            encoder, bank, queries, run.recipe.resolution, run.recipe.knn_k, run.device, run.recipe.workers
        )
        learner.network.train()
        log.write({"step": done, "epoch": epoch, "knn_top1": top1})
        progress.say(
            f"epoch {epoch}: kNN top-1 {top1:.2f} (k={k}, {run.recipe.resolution} pixels, {len(queries)} images)"
        )
        if best is None or top1 > best[1]:
            best = (done, top1)
    return dist.broadcast_object(best)  # type: ignore[no-any-return]
