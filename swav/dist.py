"""Processes that train together: rank, world size, the few collectives that SwAV needs, and how they end together.

Every function works without a process group, where it does nothing. One process needs no launcher;
several are started by `torchrun` (which sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*).
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from swav import output, signals
from swav.errors import ConfigError, MachineError, SignalExit, Stopped, SwavError

Result = TypeVar("Result")

# How long a process waits for another that lives but does not answer. One that died is noticed at once by gloo (its
# connections close); with NCCL it is torchrun that ends the others of a machine, within 30 seconds.
TIMEOUT_MINUTES = 10.0
# Objects travel by gloo in a group of their own: one process may score or save for longer while the others wait.
_object_group: Any = None
_PATIENCE = datetime.timedelta(days=1)


_alone = False


def is_active() -> bool:
    """True while a process group runs (but not inside `alone`)."""
    return not _alone and torch_dist.is_available() and torch_dist.is_initialized()


@contextmanager
def single_process() -> Iterator[None]:
    """Inside, this process is one by itself: sums and maxima are its own.

    Only for `sinkhorn=local`, which balances codes over each process as the target page's code base did by mistake.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    return torch_dist.get_rank() if is_active() else 0


def world_size() -> int:
    return torch_dist.get_world_size() if is_active() else 1


def launched_world_size() -> int:
    """How many processes the launcher started; read before the process group exists."""
    return _environment_int("WORLD_SIZE", 1)


def all_reduce_sum(x: Tensor, group: Any = None) -> Tensor:
    """Sums x over all processes, or those of a group of `neighbours`, in place, and returns it."""
    if is_active():
        torch_dist.all_reduce(x, op=torch_dist.ReduceOp.SUM, group=group)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Take the maximum of x over all processes, in place, and return it."""
    if is_active():
        torch_dist.all_reduce(x, op=torch_dist.ReduceOp.MAX)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Average x over all processes, in place, and return it."""
    return all_reduce_sum(x).div_(world_size())


def neighbours(count: int) -> Any:
    """The group of `count` processes, next to each other by rank, that this one is in; None: all. Every process must call it.

    Args:
        count: a divisor of the number of processes.
    """
    if not is_active() or count == world_size():
        return None
    timeout = datetime.timedelta(minutes=TIMEOUT_MINUTES)
    return torch_dist.new_subgroups(group_size=count, timeout=timeout)[0]


def barrier() -> None:
    if is_active():
        torch_dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Return every process's value, in order of rank, on every process."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(values, value, group=_object_group)
    return values


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every process."""
    if not is_active():
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, group=_object_group)
    return box[0]


def on_rank0(work: Callable[[], Result]) -> Result:
    """Do the work on the first process and return its result on every process, where its error is raised too.

    Without this, an error on one process leaves the others waiting for it.
    """
    if not is_active():
        return work()
    result, problem = None, None
    if rank() == 0:
        try:
            result = work()
        except SwavError as error:
            problem = error
    result, problem = broadcast_object((result, problem))
    if problem is not None:
        raise problem
    return cast(Result, result)


def on_all_ranks(work: Callable[[], Result]) -> list[Result]:
    """Do the work on every process and return all results, in order of rank; an error of one is raised on all."""
    result, problem = None, None
    try:
        result = work()
    except SwavError as error:
        problem = error
    results = gather_objects((result, problem))
    for _, problem in results:
        if problem is not None:
            raise problem
    return [result for result, _ in results]


def say(text: str) -> None:
    """Print a line on stderr, once for all processes."""
    if rank() == 0:
        output.say(text)


def stop_together() -> None:
    """End the work on all processes if a signal asks one of them for it. All of them must call it.

    Raises:
        Stopped: a signal does.
    """
    code, message = max(gather_objects(signals.end_asked_for()))
    if code:
        raise Stopped(message, code)


@contextmanager
def process_group(device: torch.device, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Join the group that `torchrun` announced, if any, and leave it on every path out.

    NCCL on CUDA, gloo on CPU. A process that exits without leaving its group can abort (SIGABRT). An error on any
    process ends all of them: one reports the reason, and all end with its exit code.

    Raises:
        ConfigError: the launcher's variables are malformed.
        MachineError: not all processes came, or one died or fell silent.
    """
    if is_active() or _is_launched_alone():
        yield
        return
    global _object_group
    timeout = datetime.timedelta(minutes=timeout_minutes)
    try:
        store, own_rank, size = next(rendezvous("env://", timeout=timeout))
        torch_dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=own_rank,
            world_size=size,
            timeout=timeout,
        )
        _object_group = torch_dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        alone = MachineError(
            f"the {launched_world_size()} processes could not meet ({_first_line(error)})\n"
            "start all of them with torchrun, which sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
        alone.reported_elsewhere = False  # there is nobody to agree with
        raise alone from None
    try:
        yield
    except (SwavError, SignalExit) as error:
        signals.note_ending()
        _elect_reporter(store, error)
        raise
    except RuntimeError as error:
        if not _tells_of_a_lost_process(error):
            raise
        lost = MachineError(
            f"rank {own_rank} of {size}: another process exited or stopped responding ({_first_line(error)})\n"
            "usually out of memory; rerun the same command to resume from the last checkpoint"
        )
        _elect_reporter(store, lost)
        raise lost from None
    finally:
        _object_group = None
        torch_dist.destroy_process_group()


def _is_launched_alone() -> bool:
    """Whether no launcher announced a group: a RANK of 0 by itself, as some schedulers set it, is one process."""
    launched, first = launched_world_size(), _environment_int("RANK", 0) == 0
    if launched > 1 or not first:
        return False
    return not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def _elect_reporter(store: Store, error: SwavError | SignalExit) -> None:
    """The first failing rank reports the error and sets the exit code; later failures are consequences and stay silent."""
    store.set_timeout(datetime.timedelta(seconds=5))
    try:
        error.reported_elsewhere = store.add("swav/failures", 1) > 1
        if error.reported_elsewhere:
            error.exit_code = int(store.get("swav/exit_code"))
        else:
            store.set("swav/exit_code", str(error.exit_code))
    except RuntimeError:  # the store died with its process: then every survivor reports what it knows
        error.reported_elsewhere = False


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    """gloo has no exception of its own."""
    return isinstance(error, torch_dist.DistError) or "/gloo/" in str(error)


def _first_line(error: Exception) -> str:
    """Without the path of a C++ file, and without advice that is not ours."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.partition("] ")[2].partition(". This is")[0] if "/gloo/" in line else line


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(
            f"environment variable {name}: expected a whole number, found '{text}'; start several processes with torchrun"
        )
    return int(text)
