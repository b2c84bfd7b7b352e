"""The loop of every benchmark that trains on labels. It does not know what it trains: an objective gives loss and metrics.

The state is a verified checkpoint after each epoch, every ten minutes within one, and when a signal asks for an end, be it
during an evaluation; so an interrupted training resumes from that step and ends, on a CPU, with the same bits. What is reported is the last evaluation,
not the best. Under torchrun each process takes its share of every batch.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from swav import checkpoint, dist, signals
from swav.agreement import require_agreement
from swav.data.images import Images
from swav.errors import CheckpointError, NumericsError, Stopped
from swav.files import CHECKPOINTS, FileLock, FolderGuard, not_essential, remove_leftovers, write_text_durably
from swav.network.ddp import in_parallel
from swav.progress import Progress, per_second
from swav.system import environment_errors, fault_point, memory_gb, random_state, seed_process, set_random_state
from swav.tensors import require_same_form

KEPT = 2  # checkpoints, of weights and the optimiser's state
SAVE_SECONDS = 600.0  # between checkpoints within an epoch
LOG = "log.jsonl"
Damaged = tuple[list[str], list[str]]  # names of images to train on, and to score


@runtime_checkable
class AnyBatch(Protocol):
    """What the loop itself reads of a batch: its step, counted from 0, and (name, reason) of images that were replaced."""

    step: int
    unreadable: list[tuple[str, str]]


B = TypeVar("B", bound=AnyBatch, contravariant=True)


class Metric(NamedTuple):
    """One measured number; `unit` as tables show it."""

    name: str
    value: float
    unit: str = "%"


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        scored: images that could be read.
        metrics: with different names.
        headline: the most telling of them, for the progress line.
    """

    scored: int
    metrics: Sequence[Metric]
    headline: str


@runtime_checkable
class Objective(Protocol[B]):
    """What is trained: a model, its optimiser, its loss and its metrics.

    Attributes:
        model: on the device.
        optimizer: of the model: SGD, Adam or AdamW.
    """

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def count(self, batch: B) -> int:
        """Return over how many samples (images, boxes, pixels) the loss of a batch is a mean. Those that stand in for what
        cannot be read do not count."""
        ...

    def loss(self, model: nn.Module, batch: B) -> Tensor:
        """Return the mean loss of this process's share of a batch.

        Args:
            model: `self.model`, or what wraps it under several processes.
            batch: where nothing in it counts, the loss is 0 and its backward pass takes part all the same.
        """
        ...

    def evaluate(self) -> Evaluation:
        """Measure the model, on all processes together.

        Raises:
            DataError: nothing can be scored.
            NumericsError: an output is not finite, on any process.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How an objective is trained.

    Attributes:
        bench: the benchmark's name.
        label: for messages and progress: that name, and what distinguishes its trainings.
        folder: of the state and the log.
        steps: of the whole training.
        epoch: steps after which the log gets a line.
        evaluate_every: epochs between evaluations; the last step is always followed by one; 0: only it.
        rates: learning rate of each of the optimiser's groups at a step, counted from 0.
        seed: of torch's generators, which dropout uses.
    """

    bench: str
    label: str
    folder: Path
    steps: int
    epoch: int
    evaluate_every: int
    rates: Callable[[int], list[float]]
    seed: int


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The last line of the log, how many training and scored images could be read, and where the log lies."""

    last: dict[str, Any]
    trained: int
    scored: int
    log: str


@dataclasses.dataclass
class _State:
    """How far a training is.

    Attributes:
        step: steps done.
        lines: of the log.
        unreadable: names of images to train on that could not be decoded.
        damaged: see Damaged.
        totals: sum of the loss and of the samples since the last line, of this process.
    """

    step: int
    lines: list[dict[str, Any]]
    unreadable: set[str]
    damaged: Damaged
    totals: Tensor


def fit(
    objective: Objective[B],
    plan: TrainingPlan,
    batches: Callable[[int], Iterator[B]],
    *,
    train: Images,
    val: Images,
    device: torch.device,
    out: Path,
) -> TrainingResult:
    """Train an objective and evaluate it, continuing from the state of an interrupted training.

    Args:
        batches: this process's shares of the batches from a step on; a pure function of the step.
        train, val: the images behind them.
        out: the results' folder, above `plan.folder`.

    Raises:
        DataError: hardly an image can be read.
        NumericsError: the loss, an output or a weight is not finite.
        CheckpointError: there is saved state, and none of it verifies, or it is of another training.
        TypeError: another optimiser, whose state could not be resumed.
        Stopped: a signal asked for an end; the state is saved.
    """
    if not isinstance(objective.optimizer, torch.optim.SGD | torch.optim.Adam):  # AdamW is an Adam
        raise TypeError(f"optimizer: expected SGD, Adam or AdamW, found {type(objective.optimizer).__name__}")
    seen = [train.fingerprint, train.labels_fingerprint, val.fingerprint]  # a list may be another on each machine
    require_agreement({f"images of {plan.label}": seen})
    with _the_only_one(plan, out), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _fit(objective, plan, batches, train, val, device, out)


def _fit(
    objective: Objective[B],
    plan: TrainingPlan,
    batches: Callable[[int], Iterator[B]],
    train: Images,
    val: Images,
    device: torch.device,
    out: Path,
) -> TrainingResult:
    guard = FolderGuard(plan.folder)
    dist.on_rank0(guard.check)
    seed_process(plan.seed, dist.rank())
    state = _resumed(objective, plan, device)
    for images, names in zip((train, val), state.damaged, strict=True):
        images.damaged |= set(names)
    model, optimizer = in_parallel(objective.model, device), objective.optimizer
    saved_at, saved_time = state.step, time.monotonic()

    def save() -> None:
        nonlocal saved_at, saved_time
        state.unreadable = set().union(*dist.gather_objects(state.unreadable))
        state.damaged = _damaged_of_all(train, val)
        dist.on_rank0(guard.check)  # saving would make a new one
        _save(objective, plan, state, device)
        signals.note_saved()
        saved_at, saved_time = state.step, time.monotonic()

    def finish_epoch() -> None:
        """Evaluate where that is due, and save. Of a signal on the way the state before is saved, without the line."""
        try:
            line = _line(objective, plan, state.step, dist.all_reduce_sum(state.totals))
        except Stopped:
            if saved_at < state.step:
                save()
            dist.stop_together()  # with its words for what is saved
            raise
        state.lines.append(line)
        state.totals = torch.zeros_like(state.totals)
        save()
        fault_point(f"{plan.bench}:epoch")

    if _lacks_line(plan, state):
        finish_epoch()
    made = batches(state.step) if state.step < plan.steps else iter(())
    pace = _Pace(device)
    try:
        with Progress(plan.label, plan.steps, state.step, quiet=dist.rank() > 0) as progress:
            for batch in made:
                due = time.monotonic() - saved_time > SAVE_SECONDS
                if any(dist.gather_objects(due or bool(signals.end_asked_for()[0]))):
                    if saved_at < state.step:
                        save()
                    dist.stop_together()
                state.unreadable |= {name for name, _ in batch.unreadable}
                objective.model.train()
                for group, rate in zip(optimizer.param_groups, plan.rates(batch.step), strict=True):
                    group["lr"] = rate
                loss, count = _step(objective, model, batch)
                state.totals += torch.stack([loss.double() * count, torch.full_like(state.totals[0], count)])
                state.step = batch.step + 1
                pace.images += count * dist.world_size()  # shares of a batch differ by one at most
                parts = [state.lines[-1]["text"]] if state.lines else []
                progress.update(state.step, "  ".join([*parts, pace.text()]))
                if _ends_epoch(plan, state.step):
                    finish_epoch()
                    pace = _Pace(device)
    finally:
        if callable(close := getattr(made, "close", None)):  # a generator's loader has processes to end
            close()
    lost = sum(train.name(i) in state.unreadable for i in range(len(train))) if state.unreadable else 0
    last = state.lines[-1]
    return TrainingResult(last, len(train) - lost, last["scored"], str((plan.folder / LOG).relative_to(out)))


class _Pace:
    """How fast a training is since its log's last line, and the memory that it took. It is shown only: the log has no times, so
    that trainings of the same bits have the same log.

    Attributes:
        images: of all processes, since then.
    """

    def __init__(self, device: torch.device):
        self.images, self._since, self._device = 0, time.monotonic(), device

    def text(self) -> str:
        """Format both for the line of progress."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        return f"{per_second(self.images / seconds)}  {memory_gb(self._device):.1f} GB"


def _step(objective: Objective[B], model: nn.Module, batch: B) -> tuple[Tensor, int]:
    """Make one step; return the mean loss before it, and over how many samples it is.

    Losses of several processes are weighted by their samples, so that together they are one batch's.
    """
    count, share = objective.count(batch), 1.0
    if dist.is_active():
        counts = dist.gather_objects(count)
        share = count * len(counts) / max(1, sum(counts))
        count_of_all = sum(counts)
    else:
        count_of_all = count
    if not count_of_all:
        return torch.zeros((), device=next(model.parameters()).device), 0
    loss = objective.loss(model, batch)
    objective.optimizer.zero_grad(set_to_none=True)
    (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
    objective.optimizer.step()
    return loss.detach(), count


def _line(objective: Objective[B], plan: TrainingPlan, step: int, totals: Tensor) -> dict[str, Any]:
    """Return a line of the log: how the epoch went, and what an evaluation found after it, where one is due."""
    loss, epoch = float(totals[0] / totals[1].clamp(min=1)), -(-step // plan.epoch)
    if not math.isfinite(loss):
        raise NumericsError(
            f"{plan.label}, epoch {epoch}: the loss is not finite; use a smaller learning rate, and look at the features' size"
        )
    rates = plan.rates(step - 1)
    line: dict[str, Any] = {"epoch": epoch, "lr": rates[0] if len(rates) == 1 else rates, "loss": loss}
    text = f"loss {loss:.3f}"
    if step == plan.steps or (plan.evaluate_every and epoch % plan.evaluate_every == 0):
        with torch.no_grad():
            objective.model.eval()
            found = objective.evaluate()
        line |= {"scored": found.scored} | {metric.name: metric.value for metric in found.metrics}
        text += f"  {found.headline}"
    return line | {"text": text}


def _resumed(objective: Objective[B], plan: TrainingPlan, device: torch.device) -> _State:
    """Bring model, optimiser and random numbers to where an interrupted training was; return how far it is."""
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    path = dist.on_rank0(lambda: checkpoint.newest(plan.folder / CHECKPOINTS))
    if path is None:
        return _State(0, [], set(), ([], []), totals)
    saved = checkpoint.read(path)
    of = saved.state.get("of", plan.folder.name)  # older states do not say
    if of != plan.folder.name:
        raise CheckpointError(
            f"{path}: expected the state of {plan.folder.name}, found that of {of}; remove it, and this training begins anew"
        )
    require_same_form(f"{path}/model.safetensors", saved.model, objective.model.state_dict())
    _load_optimizer(f"{path}/optim.safetensors", saved.optim, objective)
    objective.model.load_state_dict(saved.model)
    lines = list(saved.state["log"])
    # Earlier versions saved at the ends of epochs only, and counted these.
    step = saved.step if saved.state.get("by_step") else len(lines) * plan.epoch
    if len(saved.locals) == dist.world_size():
        own = saved.locals[dist.rank()]
        set_random_state(own, device)
        totals += own["totals"].to(device) if "totals" in own else 0
    elif dist.rank() == 0:  # of other processes: the sum is what counts
        totals += sum(local["totals"].to(device) for local in saved.locals if "totals" in local)
    damaged = saved.state.get("damaged", [[], []])  # older states have none
    state = _State(step, lines, set(saved.state["unreadable"]), (damaged[0], damaged[1]), totals)
    if _ends_epoch(plan, step) and not _lacks_line(plan, state):  # they were made into its line, perhaps later
        state.totals = torch.zeros_like(totals)
    return state


def _ends_epoch(plan: TrainingPlan, step: int) -> bool:
    return step > 0 and (step % plan.epoch == 0 or step == plan.steps)


def _lacks_line(plan: TrainingPlan, state: _State) -> bool:
    """Whether a signal put off the line of the epoch that the state is at the end of."""
    return _ends_epoch(plan, state.step) and len(state.lines) < -(-state.step // plan.epoch)


def _load_optimizer(path: str, saved: Mapping[str, Tensor], objective: Objective[B]) -> None:
    """Restore the optimiser's tensors, named PARAMETER/KIND; earlier versions had PARAMETER for SGD's momentum."""
    parameters = dict(objective.model.named_parameters())
    found = {name if name not in parameters else f"{name}/momentum_buffer": value for name, value in saved.items()}
    known = {key: key.rpartition("/") for key in found if key.rpartition("/")[0] in parameters}
    count = torch.zeros((), dtype=torch.float32)  # Adam's number of steps
    require_same_form(
        path, found, {key: count if kind == "step" else parameters[name] for key, (name, _, kind) in known.items()}
    )
    for key, (name, _, kind) in known.items():
        parameter, value = parameters[name], found[key]
        if kind != "step":  # in the parameter's memory order
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        elif any(group.get("fused") or group.get("capturable") for group in objective.optimizer.param_groups):
            value = value.to(parameter.device)
        objective.optimizer.state[parameter][kind] = value


def _save(objective: Objective[B], plan: TrainingPlan, state: _State, device: torch.device) -> None:
    tensors = {
        f"{name}/{kind}": value
        for name, parameter in objective.model.named_parameters()
        for kind, value in objective.optimizer.state[parameter].items()
        if value is not None
    }
    notes = {
        "of": plan.folder.name,
        "by_step": True,
        "log": state.lines,
        "unreadable": sorted(state.unreadable),
        "damaged": state.damaged,
    }
    path = checkpoint.save(
        plan.folder / CHECKPOINTS,
        state.step,
        model=objective.model.state_dict(),
        optim=tensors,
        local=random_state(device) | {"totals": state.totals},
        state=notes,
        keep=KEPT,
    )
    # Of a step that was saved before its evaluation, the checkpoint is there and has no line yet.
    dist.on_rank0(lambda: _amend(path, notes))
    if dist.rank() == 0:
        with not_essential(f"{plan.folder / LOG}"):  # the checkpoint holds it too
            write_text_durably(plan.folder / LOG, "".join(json.dumps(line) + "\n" for line in state.lines))


def _amend(path: Path, notes: Mapping[str, Any]) -> None:
    if len(checkpoint.read_state(path)["log"]) < len(notes["log"]):
        checkpoint.amend_state(path, dict(notes))


def _damaged_of_all(train: Images, val: Images) -> Damaged:
    """Sorted names of damaged images to train on and to score, of all processes; each of them knows all."""
    noted = dist.gather_objects((train.damaged, val.damaged))
    for images, place in ((train, 0), (val, 1)):
        images.damaged |= set().union(*(names[place] for names in noted))
    return sorted(train.damaged), sorted(val.damaged)


@contextlib.contextmanager
def _the_only_one(plan: TrainingPlan, out: Path) -> Iterator[None]:
    """Inside, no other command trains into the same state: the second waits, and finds what the first has left. Of several
    processes the first holds the lock for all.
    """
    with contextlib.ExitStack() as stack:

        def acquire() -> None:
            owner = f"the training of {plan.label} in {plan.folder}"
            lock = FileLock(plan.folder / ".lock", waiting_for=owner, base=out)
            with environment_errors():
                stack.enter_context(lock)
            remove_leftovers(plan.folder / LOG)

        dist.on_rank0(acquire)
        yield
