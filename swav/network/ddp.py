"""A network on several processes: gradients are averaged, once per batch."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from swav import dist


def in_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, with gradients that are averaged over processes during backward; itself where there is one only."""
    if not dist.is_active():
        return network
    on_gpu = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=on_gpu, **_keep_own_statistics())


def _keep_own_statistics() -> dict[str, Any]:
    """DDP leaves BatchNorm's statistics to each process; torch renamed the argument that says so after 2.11."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def gradients_averaged(model: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """Around forward and backward: averages gradients over processes now, or adds them up for a later time."""
    if now or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
