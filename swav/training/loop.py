"""Pre-training: from a recipe and a folder of images to a run folder, in reading order.

`pretrain` prepares the run, `_train` makes its steps, `_finish` writes what it leaves; `Trainer.step` (step.py) is one step of
the algorithm.
"""

from contextlib import ExitStack
from pathlib import Path

from swav import checkpoint, dist
from swav.agreement import code, require_agreement, seen
from swav.config import Recipe
from swav.data import manifest
from swav.data.device import MicroBatches
from swav.data.loader import Loader
from swav.errors import DataError, NumericsError, Stopped
from swav.files import REPORT, not_essential, out_folder
from swav.network.heads import build_network
from swav.output import deliver
from swav.progress import Progress
from swav.recipe_files import load_recipe, to_yaml, validated
from swav.reporting.page import report
from swav.signals import StopRequest, work
from swav.system import environment_errors, fault_point, pick_device, seed_process, share_cpus
from swav.training import budget
from swav.training.budget import Budget
from swav.training.estimate import estimate_run
from swav.training.flags import FlagReader, Flags
from swav.training.init import facts_of, init_from, load_init_weights, require_fitting
from swav.training.log import LiveReport, Log, Recorder, draw_views
from swav.training.monitor import Monitor
from swav.training.preflight import check_pretraining
from swav.training.resume import local_shard, resume
from swav.training.saving import Saver
from swav.training.scoring import Scoring
from swav.training.setup import RunSetup, prepare, shared_settings
from swav.training.step import Trainer
from swav.training.summary import describe, memory_advice, resume_message, screen
from swav.training.verdict import verdict
from swav.views import view_spec
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
        ConfigError, DataError, MachineError, NumericsError, CheckpointError: see swav.errors.
        Stopped: a signal asked for an end; a checkpoint was saved.
    """
    if isinstance(recipe, Recipe):
        wanted = validated(Recipe, recipe.model_dump() | settings, "settings")
    else:
        wanted = load_recipe(str(recipe), settings)
    return run_or_resume(wanted, out_folder(out), dry_run, budget.now())


def run_or_resume(wanted: Recipe, out: Path, dry_run: bool, began: float, full: bool = False) -> Path:
    """Pre-train, or resume the run in `out`: see `pretrain`.

    Args:
        full: of a dry run, print every reason, and all settings as YAML.
        began: when the command began, by budget.now: what it imported before belongs to its time too.
    """
    device = pick_device(wanted.device)
    with dist.process_group(device), environment_errors(), ExitStack() as stack:
        share_cpus(dist.world_size())
        require_agreement(shared_settings(wanted) | {"--out": str(out), "--dry-run": dry_run} | code())
        dist.on_rank0(lambda: check_pretraining(wanted, out, dry_run))
        start = load_init_weights(wanted, out)
        require_agreement({f"init={wanted.init}": start.sha256 if start is not None else None})
        run = prepare(wanted, out, device, dry_run, began, facts_of(start) if start is not None else None)
        own_view = {"images": run.images.fingerprint, "steps": run.total_steps, "data": seen(run.images, wanted.seed)}
        require_agreement(shared_settings(run.recipe) | own_view)
        if start is not None:
            require_fitting(start, run.recipe)
        if dry_run:
            scored = sum(map(len, run.labelled)) if run.labelled else 0
            dist.say("trying some steps, to estimate time and memory")
            lines = estimate_run(run.images, scored, run.recipe, device, out, run.speed)
            taken = (
                f"\ninit       {init_from(build_network(run.recipe), start, run.recipe)}" if start is not None else ""
            )
            if dist.rank() == 0:
                settings = f"\n\n{to_yaml(run.settings)}".rstrip("\n") if full else ""
                deliver(screen(f"{describe(run)}{taken}", lines, full) + settings)
            return out
        if dist.rank() == 0:
            stack.enter_context(checkpoint.RunLock(out))
        network = build_network(run.recipe)
        taken = f"\ninit       {init_from(network, start, run.recipe)}" if start is not None else ""
        del start  # its memory is the network's to use
        trainer = Trainer(run.recipe, network.to(device), run.steps_per_epoch, run.changes)
        monitor = Monitor(sum(run.recipe.prototype_sets), run.recipe.head_dim, device)
        saved = resume(run)
        require_agreement({"checkpoint": None if saved is None else checkpoint.fingerprint(saved)})
        start_step = saved.step if saved is not None else 0
        seed_process(run.recipe.seed, start_step, dist.rank())
        if saved is not None:
            own = local_shard(saved)
            trainer.load(saved, own)
            monitor.load_state_dict(own, f"{saved.path}/rank_{dist.rank()}.safetensors")
        scoring = Scoring(run, saved)
        if scoring.ended is not None:
            run.ended_at = start_step
        if start_step == run.total_steps and not scoring.put_off:
            why = f", where it stopped by itself: {scoring.ended}" if scoring.ended else ""
            dist.say(f"{out}: finished at step {start_step}{why}; nothing to do")
            exported = dist.on_rank0(lambda: export_missing(out, *scoring.exported(start_step)))
            if dist.rank() == 0 and (exported or not (out / REPORT).exists()):
                with not_essential(f"{out}/report.html"):
                    report(out)
            if exported:
                dist.say(how_to_use(exported, out / FOLDER))
            return out
        dist.say(describe(run) + taken if saved is None else resume_message(run, saved))
        log = Log(run.out)
        _train(run, trainer, monitor, scoring, log, start_step, stack.enter_context(work()))
        _finish(run, log, scoring)
    return out


def _train(
    run: RunSetup,
    trainer: Trainer,
    monitor: Monitor,
    scoring: Scoring,
    log: Log,
    start_step: int,
    stop: StopRequest,
) -> None:
    """Make the steps from `start_step` to the end, with checkpoints, a log, and an exit that loses nothing."""
    recipe, device, first = run.recipe, run.device, dist.rank() == 0
    log.add_unreadable([*run.images.bad, *run.images.gone])
    allowed = manifest.allowed_bad(run.images, recipe.max_unreadable)
    at_a_time = recipe.images_per_forward(dist.world_size())
    views = view_spec(recipe)
    loader = Loader(
        run.images,
        views,
        batch=recipe.batch,
        workers=recipe.workers,
        rank=dist.rank(),
        world_size=dist.world_size(),
        start_step=start_step,
        total_steps=run.total_steps if run.budget is None else run.budget.most_steps,
        steps_per_epoch=run.steps_per_epoch,
        on_device=device.type == "cuda",
    )
    progress = Progress("pre-training", run.total_steps, start_step, quiet=not first)
    if run.budget is not None:
        progress.plan(run.total_steps, run.budget.seconds_left())
    recorder = Recorder(run, trainer, monitor, log, progress)
    live = LiveReport(run, log)
    saver = Saver(run, trainer, monitor, scoring, log, stop, start_step)
    flags = FlagReader(late=device.type == "cuda")
    done = start_step
    stop.unsaved = lambda: done - saver.saved_at
    try:
        if scoring.is_fresh:
            scoring.begin(trainer.network, log, progress)
            if scoring.is_best(0):  # given weights, which may stay the best
                saver.save(0)
        if scoring.put_off:
            scoring.catch_up(done, trainer.network, log, progress, stop)
            _end_if_it_harms(run, scoring, done, progress)
        for batch in loader if done < run.total_steps else ():
            too_many = log.add_unreadable(batch.unreadable) > allowed
            save_due = saver.is_due()
            if batch.step == start_step and first:
                log.check_folder()
                with not_essential(f"{run.out}/report/views.png"):
                    draw_views(batch, views, run.out)

            def requests(too_many: bool = too_many, save_due: bool = save_due) -> tuple[float, ...]:
                return too_many, save_due, stop.exit_code

            micro_batches = MicroBatches(batch, views, device, at_a_time)
            with environment_errors(memory_advice(at_a_time)):
                found = flags.add(batch.step, trainer.step(micro_batches, batch.step, requests))
            done = batch.step + 1
            recorder.watch(done, batch.wait)
            if run.budget is not None:
                run.budget.made(done)
            if found is not None:
                _refuse(found, run, allowed, saver.saved_at)
            stop_code = 0 if found is None else found.stop_code
            save_now = found is not None and found.save_due and found.step >= saver.saved_at  # not due before that save
            if recorder.is_due(done):
                recorder.record(done, flags.last().values)
                if not live.is_there:
                    live.renew(done)
            fault_point("step:end")
            if done % run.steps_per_epoch == 0 or done == run.total_steps:
                if run.budget is not None:
                    run.budget.epoch_made(done)
                put_off_by = scoring.evaluate(done, trainer.network, log, progress, stop, stop_code)
                stop_code = max(stop_code, put_off_by)
                live.renew(done)
                _end_if_it_harms(run, scoring, done, progress)
                if run.budget is not None and done < run.total_steps:
                    _plan_anew(run.budget, done, progress)
                fault_point("epoch:end")
            if save_now or stop_code or saver.is_wanted(done):
                _refuse(
                    flags.last(), run, allowed, saver.saved_at
                )  # read early: a step that was not finite is never saved
                saver.save(done)
                live.renew(done)
            if stop_code and (done < run.total_steps or scoring.put_off):
                raise Stopped(
                    f"stopped by a signal after step {done}/{run.total_steps}; checkpoint saved, rerun the same command to resume",
                    stop_code,
                )
            if done == run.total_steps:
                break
    except (Stopped, NumericsError, DataError):
        live.renew(done, at_once=True)
        raise
    finally:
        progress.close()
        loader.close()
        log.close()


def _end_if_it_harms(run: RunSetup, scoring: Scoring, done: int, progress: Progress) -> None:
    if scoring.ended is not None:
        run.ended_at = done
        progress.say(f"step {done}: stops here: {scoring.ended}")


def _plan_anew(plan: Budget, done: int, progress: Progress) -> None:
    changed = plan.plan(done)
    progress.plan(plan.total_steps, plan.seconds_left())
    if changed is not None:
        progress.say(f"step {done}: planned anew: {changed}")


def _refuse(found: Flags, run: RunSetup, allowed: int, saved_at: int) -> None:
    """End the run where a step cannot be built upon.

    Raises:
        NumericsError: its loss or a gradient was not finite.
        DataError: too many images are unreadable.
    """
    if found.not_finite:
        raise NumericsError(
            f"step {found.step}: the loss or a gradient is not finite (loss {found.values[0]}); no parameter was changed by it\n"
            "lower the learning rate, raise epsilon, or use precision=fp32; "
            + (f"the last checkpoint is step {saved_at}" if saved_at else "there is no checkpoint yet")
        )
    if found.too_many_unreadable:
        raise DataError(
            f"more than {allowed} unreadable images (max_unreadable={run.recipe.max_unreadable}), see {run.out}/bad_files.jsonl\n"
            "put them back or raise max_unreadable=X and rerun the same command to resume; or start a new run without them, in another --out"
        )


def _finish(run: RunSetup, log: Log, scoring: Scoring) -> None:
    """Say how the run went, and write its verdict, the exported backbone and the report."""
    first = dist.rank() == 0
    if first:
        log.check_folder()
        state, advice = verdict(log.recent, run.health_facts, ended=True, harm=scoring.harm)
        dist.say(f"{state}: {advice}")
    try:
        exported = dist.on_rank0(lambda: export_backbone(run.out, scoring.exported(run.total_steps)[1]))
    finally:
        if first and (page := LiveReport(run, log).write(state, advice)) is not None:
            dist.say(f"report: {page}")
    dist.say(how_to_use(exported, run.out / FOLDER))
