"""Processes that train together: rank, world size and the few collectives that SwAV needs.

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

from swav.errors import ConfigError, SwavError

Result = TypeVar("Result")


def is_active() -> bool:
    """True while a process group runs."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    return torch_dist.get_rank() if is_active() else 0


def world_size() -> int:
    return torch_dist.get_world_size() if is_active() else 1


def launched_world_size() -> int:
    """How many processes the launcher started; read before the process group exists."""
    return _environment_int("WORLD_SIZE", 1)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sums x over all processes, in place, and returns it."""
    if is_active():
        torch_dist.all_reduce(x, op=torch_dist.ReduceOp.SUM)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """Takes the maximum of x over all processes, in place, and returns it."""
    if is_active():
        torch_dist.all_reduce(x, op=torch_dist.ReduceOp.MAX)
    return x


def barrier() -> None:
    if is_active():
        torch_dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Returns every process's value, in order of rank, on every process."""
    if not is_active():
        return [value]
    values: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Returns rank 0's value on every process."""
    if not is_active():
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first(work: Callable[[], Result]) -> Result:
    """Does the work on the first process and returns its result on every process, where its error is raised too.

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


@contextmanager
def process_group(device: torch.device, timeout_minutes: float = 10.0) -> Iterator[None]:
    """Joins the group that `torchrun` announced, if any, and leaves it on every path out.

    NCCL on CUDA, gloo on CPU. A process that exits without leaving its group can abort (SIGABRT).

    Raises:
        ConfigError: the launcher's variables are malformed.
    """
    if is_active() or (launched_world_size() == 1 and "RANK" not in os.environ):
        yield
        return
    _environment_int("RANK", 0)
    torch_dist.init_process_group(
        backend="nccl" if device.type == "cuda" else "gloo",
        timeout=datetime.timedelta(minutes=timeout_minutes),
    )
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(
            f"environment variable {name}: expected a whole number, found '{text}'; start several processes with torchrun"
        )
    return int(text)
