"""The loop of every benchmark that trains: labelled crops, one model with one or several heads, SGD, a score per head.

The state after each epoch is a verified checkpoint, so an interrupted benchmark goes on from its last finished epoch and
ends, on a CPU, with the same bits. What is reported is the last epoch, not the best. The last, partial batch of an epoch is
trained on too, as in the sources. Under torchrun each process takes its share of every batch.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from swav import checkpoint, dist, signals
from swav.agreement import require_agreement
from swav.data.augment.crops import lighting
from swav.data.augment.spec import RandomResizedCrop, ViewSpec
from swav.data.images import Images
from swav.data.loader import Batch, Loader
from swav.errors import CheckpointError, ConfigError, DataError, NumericsError
from swav.evaluation.settings import TrainSettings
from swav.evaluation.task import Task
from swav.features import read_views
from swav.files import FileLock, FolderGuard, not_essential, remove_leftovers, write_text_durably
from swav.metrics import top_k_accuracy
from swav.network.ddp import in_parallel
from swav.network.sync_batch_norm import synchronised
from swav.progress import Progress
from swav.system import environment_errors, fault_point
from swav.tensors import require_same_form

AnyModel = TypeVar("AnyModel", bound=nn.Module)

KEPT = 2  # checkpoints, of weights and momentum
LOG = "log.jsonl"
Damaged = tuple[list[str], list[str]]  # names of images to train on, and to score
IGNORED = -100  # label of what stands in for an image that cannot be read
# Part of a state's name, so that a state of another version of this loop is not resumed. 2: partial batches are kept.
LOOP_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Course:
    """What sets one training apart from the others.

    Attributes:
        bench: the benchmark's name.
        label: of messages and progress: that name, and what tells its trainings apart.
        folder: of its state and log, below the benchmark's own.
        heads: a name per output of the model; one empty name: the only one.
        model: what is trained, on the device. It takes what `inputs` gives, and returns logits [B, C] per head.
        optimizer: of the model.
        rates: learning rate of each of its groups in an epoch, counted from 0.
        inputs: uint8 views [B, S, S, 3], and lighting [B, 3] or None, to what the model takes. No gradient is needed.
        scored: all images to score, as (what the model takes, labels), this process's share of them.
        views: of the images to train on, see `training_views`.
    """

    bench: str
    label: str
    folder: Path
    heads: tuple[str, ...]
    model: nn.Module
    optimizer: torch.optim.SGD
    rates: Callable[[int], list[float]]
    inputs: Callable[[Tensor, Tensor | None], Any]
    scored: Callable[[], Iterable[tuple[Any, Tensor]]]
    views: ViewSpec


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training came to: its last line of log, and how many training images could be read."""

    last: dict[str, Any]
    trained: int
    scored: int
    log: str


def training_views(task: Task[Any]) -> ViewSpec:
    """Return the views that most protocols train on: one random resized crop, and a flip."""
    settings: TrainSettings = task.settings
    crop = RandomResizedCrop(1, settings.size, settings.crop_scale)
    return ViewSpec((crop,), settings.seed, flip=settings.flip)


def check_batch(task: Task[Any], bench: str) -> None:
    """Refuse a batch that cannot be parted among the processes.

    Args:
        bench: for the message.

    Raises:
        ConfigError: it is no multiple of them.
    """
    if task.settings.batch % dist.world_size():
        raise ConfigError(
            f"{bench}.batch: expected a multiple of the {dist.world_size()} processes, found {task.settings.batch}"
        )


def state_folder(task: Task[Any], bench: str, train: Images, *more: Any) -> Path:
    """Where the state lies, below the benchmark's own folder.

    Args:
        train: the images to learn from; some of the task's, or all.
        more: what else sets this training apart.
    """
    return task.out / bench / task.identity(LOOP_VERSION, train.fingerprint, *more)[1]


def check_last_batch(task: Task[Any], bench: str, images: int) -> None:
    """Refuse a last batch of an epoch that BatchNorm cannot normalise: one image, of whose last map one pixel is left.

    Args:
        images: to train on.

    Raises:
        ConfigError: there is such a batch.
    """
    if images % task.settings.batch != 1 or not task.encoder.stage_channels or task.stage_maps()[-1][0, 0].numel() > 1:
        return
    raise ConfigError(
        f"{bench}.batch: expected a last batch that BatchNorm can normalise, found one image (of {images}, by "
        f"{task.settings.batch}) whose last map is one pixel; use {bench}.batch={task.settings.batch + 1}"
        f" or a larger {bench}.size"
    )


def placed(model: AnyModel, device: torch.device) -> AnyModel:
    """The model on the device; under several processes its BatchNorm takes the statistics of all of them."""
    if dist.is_active():
        model = cast(AnyModel, synchronised(model, device))
    return model.to(device)


def scorings(settings: TrainSettings) -> int:
    """How often the images to score are scored."""
    every = settings.score_every_epochs or settings.epochs
    return -(-settings.epochs // every)  # rounded up: the last epoch is always scored


def steps_passed(steps: Iterable[int], epoch: int) -> int:
    """How many steps of the learning rate lie behind an epoch, counted from 0."""
    return sum(epoch >= step for step in steps)


def train(task: Task[Any], train: Images, course: Course) -> Outcome:
    """Trains and scores, going on from the last finished epoch of an earlier sitting.

    Args:
        train: the images to learn from.

    Raises:
        DataError: hardly an image can be read.
        NumericsError: the loss, a logit or a weight is not finite.
        CheckpointError: there is saved state, and none of it verifies, or it is of another training.
        Stopped: a signal asked for an end.
    """
    seen = [
        train.fingerprint,
        train.labels_fingerprint,
        task.score.fingerprint,
    ]  # a list may be another on each machine
    require_agreement({f"images of {course.label}": seen})
    with _the_only_one(course, task.out):
        return _train(task, train, course)


def _train(task: Task[Any], train: Images, course: Course) -> Outcome:
    settings: TrainSettings = task.settings
    epochs = settings.epochs
    guard = FolderGuard(course.folder)
    dist.on_first(guard.check)
    log, unreadable, damaged = _resumed(course)
    for images, names in zip((train, task.score), damaged, strict=True):
        images.damaged |= set(names)
    per_epoch = -(-len(train) // settings.batch)  # rounded up: the last batch may be a partial one
    loader = Loader(
        train,
        course.views,
        batch=settings.batch,
        workers=task.workers,
        rank=dist.rank(),
        world_size=dist.world_size(),
        start_step=len(log) * per_epoch,
        total_steps=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        on_device=False,  # a crop, a flip, perhaps colours: little is left for the device
    )
    model = in_parallel(course.model, task.device)
    totals = torch.zeros(2, dtype=torch.float64, device=task.device)  # loss, images
    try:
        with Progress(course.label, epochs * per_epoch, len(log) * per_epoch, quiet=dist.rank() > 0) as progress:
            for batch in loader if len(log) < epochs else ():
                dist.stop_together()
                epoch = batch.step // per_epoch
                labels = _labels(train, batch)
                unreadable |= {name for name, _ in batch.unreadable}
                light = _light(course, epoch, batch)
                course.model.train()
                for group, rate in zip(course.optimizer.param_groups, course.rates(epoch), strict=True):
                    group["lr"] = rate
                loss, count = _step(model, course.optimizer, course.inputs(batch.views[0], light), labels)
                totals += torch.stack([loss.double() * count, torch.full_like(totals[0], count)])
                progress.update(batch.step + 1, log[-1]["text"] if log else "")
                if (batch.step + 1) % per_epoch == 0:
                    log.append(_line(course, settings, epoch, dist.all_reduce_sum(totals)))
                    unreadable = set().union(*dist.gather_objects(unreadable))
                    dist.on_first(guard.check)  # saving would make a new one
                    damaged = _damaged_of_all(train, task.score)
                    _save(course, log, unreadable, damaged)
                    signals.note_saved()
                    fault_point(f"{course.bench}:epoch")
                    totals = torch.zeros_like(totals)
    finally:
        loader.close()
    lost = sum(train.name(i) in unreadable for i in range(len(train))) if unreadable else 0
    path = str((course.folder / LOG).relative_to(task.out))
    return Outcome(log[-1], len(train) - lost, log[-1]["scored"], path)


def evaluation_batches(
    task: Task[Any], inputs: Callable[[Tensor, Tensor | None], Any]
) -> Callable[[], Iterable[tuple[Any, Tensor]]]:
    """The images to score, cut anew each time: nothing is kept of them."""

    def batches() -> Iterable[tuple[Any, Tensor]]:
        share = task.score.select(range(dist.rank(), len(task.score), dist.world_size()))
        assert share.labels is not None
        at_a_time = 256 if task.device.type == "cuda" else 64
        for views, places in read_views(share, task.settings.size, at_a_time, task.workers):
            if not dist.is_active():  # the others would wait for this process
                signals.stop_if_asked()
            if places:
                yield inputs(torch.from_numpy(views), None), torch.from_numpy(share.labels)[places]

    return batches


def _resumed(course: Course) -> tuple[list[dict[str, Any]], set[str], Damaged]:
    """Brings model and optimiser to what an earlier sitting left. Returns its line per finished epoch, and the names of
    the images that could not be decoded in them; and of damaged ones to train on and to score.
    """
    path = dist.on_first(lambda: checkpoint.newest(course.folder / "checkpoints"))
    if path is None:
        return [], set(), ([], [])
    saved = checkpoint.read(path)
    if saved.state.get("of", course.folder.name) != course.folder.name:  # older ones do not say
        raise CheckpointError(
            f"{path}: expected the state of {course.folder.name}, found that of {saved.state['of']}; remove it, and this "
            "training begins anew"
        )
    parameters = dict(course.model.named_parameters())
    momentum = {name: parameters[name] for name in parameters if name in saved.optim}
    require_same_form(f"{path}/model.safetensors", saved.model, course.model.state_dict())
    require_same_form(f"{path}/optim.safetensors", saved.optim, momentum)
    course.model.load_state_dict(saved.model)
    for name, parameter in parameters.items():
        if name in saved.optim:  # without momentum there is no buffer
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(saved.optim[name])  # in its memory order
            course.optimizer.state[parameter]["momentum_buffer"] = buffer
    damaged = saved.state.get("damaged", [[], []])  # older states have none
    return list(saved.state["log"]), set(saved.state["unreadable"]), (damaged[0], damaged[1])


def _damaged_of_all(train: Images, score: Images) -> Damaged:
    """Sorted names of damaged images to train on and to score, of all processes; each of them knows all."""
    noted = dist.gather_objects((train.damaged, score.damaged))
    for images, place in ((train, 0), (score, 1)):
        images.damaged |= set().union(*(names[place] for names in noted))
    return sorted(train.damaged), sorted(score.damaged)


@contextlib.contextmanager
def _the_only_one(course: Course, out: Path) -> Iterator[None]:
    """Inside, no other command trains into the same state: the second waits, and finds what the first has left. Of several
    processes the first holds the lock for all.
    """
    with contextlib.ExitStack() as stack:

        def acquire() -> None:
            owner = f"the training of {course.label} in {course.folder}"
            lock = FileLock(course.folder / ".lock", waiting_for=owner, base=out)
            with environment_errors():
                stack.enter_context(lock)
            remove_leftovers(course.folder / LOG)

        dist.on_first(acquire)
        yield


def _labels(train: Images, batch: Batch) -> Tensor:
    """Labels of a batch; none at the places where another image stands in for one that cannot be read."""
    assert train.labels is not None
    labels = torch.from_numpy(train.labels)[batch.indices]
    if batch.unreadable:
        missing = {name for name, _ in batch.unreadable}
        labels[torch.tensor([train.name(i) in missing for i in batch.indices.tolist()])] = IGNORED
    return labels


def _light(course: Course, epoch: int, batch: Batch) -> Tensor | None:
    if not course.views.lighting:
        return None
    return torch.from_numpy(lighting(course.views.seed, epoch, batch.indices.tolist(), course.views.lighting))


def _step(model: nn.Module, optimizer: torch.optim.SGD, inputs: Any, labels: Tensor) -> tuple[Tensor, int]:
    """One step; returns the sum over heads of the mean loss before it, and how many images it is of.

    Losses of several processes are weighted by their readable images, so that together they are one batch's.
    """
    device = next(model.parameters()).device
    count, share = int((labels != IGNORED).sum()), 1.0
    if dist.is_active():
        counts = dist.gather_objects(count)
        share = count * len(counts) / max(1, sum(counts))
        if not sum(counts):
            return torch.zeros((), device=device), 0
    elif not count:
        return torch.zeros((), device=device), 0
    outputs = model(inputs)
    labels = labels.to(device)
    if count:
        loss = sum(nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED) for logits in outputs)
    else:  # of this process no image counts; its backward pass takes part
        loss = sum(0.0 * logits.float().sum() for logits in outputs)
    assert isinstance(loss, Tensor)
    optimizer.zero_grad(set_to_none=True)
    (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach(), count


def _line(course: Course, settings: TrainSettings, epoch: int, totals: Tensor) -> dict[str, Any]:
    """A line of the log: how the epoch went, and the scores after it, where they are due."""
    loss = float(totals[0] / totals[1].clamp(min=1))
    if not math.isfinite(loss):
        raise NumericsError(
            f"{course.label}, epoch {epoch + 1}: the loss is not finite; use a smaller learning rate, and look at the features' size"
        )
    rates = course.rates(epoch)
    line: dict[str, Any] = {"epoch": epoch + 1, "lr": rates[0] if len(rates) == 1 else rates, "loss": loss}
    last = epoch + 1 == settings.epochs
    text = f"loss {loss:.3f}"
    if last or (settings.score_every_epochs and (epoch + 1) % settings.score_every_epochs == 0):
        line |= score(course)
        best = max(value for key, value in line.items() if key.startswith("top1"))
        text += f"  top-1 {best:.2f}"
    return line | {"text": text}


@torch.no_grad()
def score(course: Course) -> dict[str, Any]:
    """Top-1 and top-5 [%] of each head over all images that can be read, as {"top1 NAME": ...}, and their number.

    Raises:
        DataError: no image can be read.
        NumericsError: a logit is not finite, on any process.
    """
    course.model.eval()
    ranked: list[list[Tensor]] = [[] for _ in course.heads]
    truth: list[Tensor] = []
    sound = torch.ones((), dtype=torch.bool, device=next(course.model.parameters()).device)
    for inputs, labels in course.scored():
        for found, logits in zip(ranked, course.model(inputs), strict=True):
            sound &= logits.isfinite().all()
            found.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
        truth.append(labels.cpu())
    own = ([torch.cat(found) for found in ranked], torch.cat(truth)) if truth else None
    shares = dist.gather_objects((own, bool(sound)))
    if not all(fine for _, fine in shares):  # they have an order all the same, and would give a number
        raise NumericsError(
            f"{course.label}: expected finite logits to score by, found others; use a smaller learning rate"
        )
    parts = [part for part, _ in shares if part is not None]
    if not parts:
        raise DataError(f"{course.label}: expected readable images to score, found none; check the files")
    all_labels = torch.cat([labels for _, labels in parts])
    scores: dict[str, Any] = {"scored": len(all_labels)}
    for head, name in enumerate(course.heads):
        order = torch.cat([found[head] for found, _ in parts])
        for k in (1, 5):
            scores[f"top{k} {name}".strip()] = top_k_accuracy(order, all_labels, k)
    return scores


def _save(course: Course, log: list[dict[str, Any]], unreadable: set[str], damaged: Damaged) -> None:
    state = course.optimizer.state
    buffers = {
        name: state[parameter]["momentum_buffer"]
        for name, parameter in course.model.named_parameters()
        if state[parameter].get("momentum_buffer") is not None
    }
    checkpoint.save(
        course.folder / "checkpoints",
        len(log),
        model=course.model.state_dict(),
        optim=buffers,
        local={},
        state={"of": course.folder.name, "log": log, "unreadable": sorted(unreadable), "damaged": damaged},
        keep=KEPT,
    )
    if dist.rank() == 0:
        with not_essential(f"{course.folder / LOG}"):  # the checkpoint holds it too
            write_text_durably(course.folder / LOG, "".join(json.dumps(line) + "\n" for line in log))
