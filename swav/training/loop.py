"""Pre-training: from a recipe and a folder of images to a run folder, in reading order.

`pretrain` sets the scene, `_loop` walks through the steps; `Learner.step` (step.py) is one step of the algorithm.
"""

import json
import time
from contextlib import ExitStack
from pathlib import Path

from swav import checkpoint, dist
from swav.agreement import code, require_agreement, seen
from swav.config import Recipe
from swav.data import manifest
from swav.data.device import Pieces
from swav.data.loader import Loader
from swav.errors import DataError, EnvironmentError_, NumericsError, Stopped
from swav.files import not_essential, write_text_durably
from swav.jsonl import is_metrics, read_if_possible
from swav.network.heads import build_network
from swav.output import deliver
from swav.progress import Progress
from swav.recipe_files import load_recipe, to_yaml, validated
from swav.reporting.page import report
from swav.signals import StopRequest, work
from swav.system import Readback, environment_errors, fault_point, pick_device, seed_process, share_cpus
from swav.training.estimate import forecast
from swav.training.init import take_over, weights_to_start_from
from swav.training.log import Clock, Log, draw_views, metrics_line, score_by_knn
from swav.training.monitor import STEP_VALUES, Monitor, Watch, verdict
from swav.training.preflight import check_pretraining
from swav.training.resume import own_share, resume, state
from swav.training.setup import Run, prepare, shared_settings
from swav.training.step import Learner
from swav.training.summary import describe, going_on, memory_advice
from swav.weights.export import export_backbone, export_missing
from swav.weights.exported import FOLDER, how_to_use


def pretrain(recipe: str | Path | Recipe, *, out: str | Path, dry_run: bool = False, **settings: object) -> Path:
    """Pre-train a network, or resume the run in `out` if it holds one with the same settings.

    Args:
        recipe: a recipe's name, a YAML file, or settings.
        out: the run's folder.
        dry_run: print what would be done, with the reason for every derived value, and after some seconds of trying an
            estimate of time, memory and disk; and do nothing.
        settings: replace the recipe's, as `data="photos", epochs=100`.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, checkpoints/, report.html, export/.

    Raises:
        ConfigError, DataError, EnvironmentError_, NumericsError, CheckpointError: see swav.errors.
        Stopped: a signal asked for an end; a checkpoint was saved.
    """
    if isinstance(recipe, Recipe):
        wanted = validated(Recipe, recipe.model_dump() | settings, "settings")
    else:
        wanted = load_recipe(str(recipe), settings)
    device = pick_device(wanted.device)
    with dist.process_group(device), environment_errors(), ExitStack() as stack:
        out = Path(out)
        share_cpus(dist.world_size())
        require_agreement(shared_settings(wanted) | {"--out": str(out), "--dry-run": dry_run} | code())
        dist.on_first(lambda: check_pretraining(wanted, out, dry_run))
        run = prepare(wanted, out, device, dry_run)
        own_view = {"images": run.images.fingerprint, "steps": run.total_steps, "data": seen(run.images, wanted.seed)}
        require_agreement(shared_settings(run.recipe) | own_view)
        start = weights_to_start_from(run.recipe, out)
        require_agreement({f"init={run.recipe.init}": start.sha256 if start is not None else None})
        if dry_run:
            scored = sum(map(len, run.labelled)) if run.labelled else 0
            dist.say("trying some steps, to estimate time and memory")
            lines = forecast(run.images, scored, run.recipe, device, out, run.speed)
            taken = (
                f"\ninit       {take_over(build_network(run.recipe), start, run.recipe)}" if start is not None else ""
            )
            if dist.rank() == 0:
                deliver(f"{describe(run)}{taken}\n{lines}\n\n{to_yaml(run.recipe)}".rstrip("\n"))
            return out
        if dist.rank() == 0:
            stack.enter_context(checkpoint.RunLock(out))
        network = build_network(run.recipe)
        taken = f"\ninit       {take_over(network, start, run.recipe)}" if start is not None else ""
        del start  # its memory is the network's to use
        learner = Learner(run.recipe, network.to(device), run.steps_per_epoch)
        monitor = Monitor(sum(run.recipe.prototype_heads), run.recipe.head_dim, device)
        start_step, best = 0, None
        saved = resume(run)
        require_agreement({"checkpoint": None if saved is None else checkpoint.fingerprint(saved)})
        seed_process(run.recipe.seed, saved.step if saved else 0, dist.rank())
        if saved is not None:
            own = own_share(saved)
            learner.load(saved, own)
            monitor.load_state_dict(own, f"{saved.path}/rank_{dist.rank()}.safetensors")
            start_step = saved.step
            best = None if saved.state["best_step"] is None else (saved.state["best_step"], saved.state["best_knn"])
        unscored = saved is not None and bool(saved.state.get("unscored"))
        if unscored and (top1 := dist.on_first(lambda: _scored_late(out, start_step))) is not None:
            unscored, best = False, best if best is not None and best[1] >= top1 else (start_step, top1)
            assert saved is not None
            dist.on_first(lambda: _amend(saved, best))
        if start_step == run.total_steps and not unscored:
            dist.say(f"{out}: finished at step {start_step}; nothing to do")
            exported = dist.on_first(lambda: export_missing(out, start_step))
            if dist.rank() == 0 and (exported or not (out / "report.html").exists()):
                with not_essential(f"{out}/report.html"):
                    report(out)
            if exported:
                dist.say(how_to_use(exported, out / FOLDER))
            return out
        dist.say(describe(run) + taken if saved is None else going_on(run, saved))
        _loop(run, learner, monitor, saved, best, unscored, stack.enter_context(work()))
    return out


def _loop(
    run: Run,
    learner: Learner,
    monitor: Monitor,
    saved: checkpoint.Checkpoint | None,
    best: tuple[int, float] | None,
    unscored: bool,
    stop: StopRequest,
) -> None:
    """Steps from the checkpoint that was loaded to the end, with checkpoints, a log, and an exit that loses nothing.

    Args:
        saved: None of a fresh run.
        unscored: a signal came before or in the kNN evaluation that is due at its step.
    """
    start_step = saved.step if saved is not None else 0
    recipe, device, first = run.recipe, run.device, dist.rank() == 0
    log = Log(run.out)
    log.add_bad([*run.images.bad, *run.images.gone])
    allowed_bad = manifest.allowed_bad(run.images, recipe.max_unreadable)
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
    facts = recipe.ln_prototypes, len(run.images), max(recipe.prototype_heads)
    watch = Watch(*facts)
    watch.catch_up(log.recent)
    clock = Clock()
    pending: Readback | None = None
    saved_at, save_time = start_step, time.monotonic()
    done = start_step
    bad_count, due = 0, False
    at_a_time = recipe.images_per_forward(dist.world_size())
    stop.unsaved = lambda: done - saved_at

    def requests() -> tuple[float, ...]:
        return bad_count > allowed_bad, due, stop.exit_code

    def save() -> None:
        nonlocal saved_at, save_time
        dist.on_first(log.check_folder)
        try:
            checkpoint.save(
                run.out / "checkpoints",
                done,
                model=learner.network.state_dict(),
                optim=learner.optimizer_tensors(),
                local=learner.local_tensors() | monitor.state_dict(),
                state=state(run, best) | ({"unscored": True} if unscored else {}),
                keep=recipe.keep_checkpoints,
                best=best[0] if best else None,
            )
        except EnvironmentError_:
            dist.on_first(log.check_folder)  # it went away in the middle
            raise
        saved_at, save_time, stop.saved = done, time.monotonic(), True

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
                f"more than {allowed_bad} unreadable images (max_unreadable={recipe.max_unreadable}), see {run.out}/bad_files.jsonl\n"
                "put them back or raise max_unreadable=X, and the same command goes on; or begin again without them, in another --out"
            )
        return bool(due) and step >= saved_at, round(asked)  # not what was due before the last save

    try:
        if unscored:
            best, stop_code = _evaluate(run, learner, done, best, log, progress, stop)
            if stop_code:  # nothing was saved by this command; of several processes the largest code is that of all
                code, message = max(dist.gather_objects((stop.final_code, stop.message())))
                raise Stopped(message, code or stop_code)
            unscored = not dist.broadcast_object(run.labelled is not None)  # labels that are away may be back some day
            if saved is not None and not unscored:
                dist.on_first(lambda: _amend(saved, best))
            unscored = False  # of the steps to come
        for batch in loader:
            bad_count = log.add_bad(batch.unreadable)
            due = (
                recipe.checkpoint_every_minutes > 0
                and first
                and time.monotonic() - save_time > 60 * recipe.checkpoint_every_minutes
            )
            if batch.step == start_step and first:
                log.check_folder()
                with not_essential(f"{run.out}/report/views.png"):
                    draw_views(batch, run)
            pieces = Pieces(batch, recipe, device, at_a_time)
            with environment_errors(memory_advice(at_a_time)):
                current = Readback(learner.step(pieces, batch.step, requests))
            done = batch.step + 1
            monitor.watch(learner.embeddings, learner.codes)
            clock.tick(batch.wait)
            # A GPU is a step ahead of the host, and what a step found is read when the next is on its way.
            ready = pending if device.type == "cuda" else current
            pending = current
            step_of_ready = batch.step if ready is current else batch.step - 1
            should_save, stop_code = (False, 0) if ready is None else settle(ready.tolist(), step_of_ready)
            end_of_epoch = done % run.steps_per_epoch == 0
            if first and (done % recipe.log_every_steps == 0 or done == run.total_steps):
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
                best, code = _evaluate(run, learner, done, best, log, progress, stop, stop_code)
                unscored, stop_code = bool(code), max(code, stop_code)
                fault_point("epoch:end")
            by_step = recipe.checkpoint_every_steps and done % recipe.checkpoint_every_steps == 0
            if should_save or stop_code or by_step or done == run.total_steps or (best and best[0] == done):
                settle(pending.tolist(), done - 1)
                save()
            if stop_code and (done < run.total_steps or unscored):
                raise Stopped(
                    f"stopped by a signal after step {done} of {run.total_steps}; saved, the same command goes on",
                    stop_code,
                )
    finally:
        progress.close()
        loader.close()
        log.close()
    if first:
        log.check_folder()
        judgement, advice = verdict(log.recent, *facts)
        with not_essential(f"{run.out}/report/verdict.json"):
            (run.out / "report").mkdir(exist_ok=True)
            write_text_durably(run.out / "report" / "verdict.json", json.dumps({"state": judgement, "advice": advice}))
        dist.say(f"{judgement}: {advice}")
    try:
        exported = dist.on_first(lambda: export_backbone(run.out))
    finally:
        if first:
            with not_essential(f"{run.out}/report.html"):
                dist.say(f"report: {report(run.out)}")
    dist.say(how_to_use(exported, run.out / FOLDER))


def _amend(saved: checkpoint.Checkpoint, best: tuple[int, float] | None) -> None:
    """Notes in a checkpoint the best score as it is after a late evaluation: RUN@best and the export read it there."""
    found = {"best_step": best[0], "best_knn": best[1]} if best is not None else {}
    with not_essential(f"the score of {saved.path}"):
        checkpoint.amend_state(saved.path, {"unscored": False} | found)


def _scored_late(out: Path, step: int) -> float | None:
    """The top-1 of a last step that an earlier command scored after its checkpoint was saved."""
    found = [
        line.get("knn_top1") for line in read_if_possible(out / "metrics.jsonl", is_metrics) if line.get("step") == step
    ]
    return next((float(top1) for top1 in found if isinstance(top1, int | float)), None)


def _evaluate(
    run: Run,
    learner: Learner,
    done: int,
    best: tuple[int, float] | None,
    log: Log,
    progress: Progress,
    stop: StopRequest,
    stop_code: int = 0,
) -> tuple[tuple[int, float] | None, int]:
    """kNN at the end of an epoch where one is due and labels exist.

    On millions of images it takes longer than a scheduler waits for a checkpoint: a signal ends it, and the run's next
    sitting begins with it.

    Args:
        stop_code: a signal asks all processes for an end already.

    Returns:
        The best (step, top-1) so far on all processes; and the exit code if the evaluation is yet to be made.
    """
    epoch = done // run.steps_per_epoch
    due = run.recipe.knn_every_epochs and (
        epoch % max(1, round(run.recipe.knn_every_epochs)) == 0 or done == run.total_steps
    )
    if not due:
        return best, 0
    scored = None
    if not stop_code:
        checkpoint.require_finite(run.out / "checkpoints", done, learner.network.state_dict())  # or it would be scored
        try:
            scored = score_by_knn(run, learner.network)
        except Stopped:
            stop_code = stop.exit_code
    if scored is not None:
        top1, k = scored
        if not any(line["step"] == done and "knn_top1" in line for line in log.recent):
            log.write({"step": done, "epoch": epoch, "knn_top1": top1})
        progress.say(f"epoch {epoch}: kNN top-1 {top1:.2f} (k={k}, {run.recipe.resolution} pixels)")
        if best is None or top1 > best[1]:
            best = (done, top1)
    if run.labelled is None:  # of the first process, whose word counts
        stop_code = 0
    return dist.broadcast_object((best, stop_code))  # type: ignore[no-any-return]
