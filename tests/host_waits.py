"""A GPU that is not there: tensors of shapes and types only, and a record of where the host would wait for the device.

Every tensor operation passes through `FakeGpu`, so what it counts is what would reach a GPU: values read by the host, copies
between host and device that block, indices that lie on the host. What it cannot see: waits inside of an operator, of
libraries (NCCL, torch's SyncBatchNorm), and whether the memory of a copy that does not block is pinned.
"""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import swav
from swav.data.augment.crops import _of_255

PACKAGE = Path(swav.__file__).parent

AnyModule = TypeVar("AnyModule", bound=nn.Module)
GPU, META = torch.device("cuda", 0), torch.device("meta")
_READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")
_COPIES = ("_to_copy", "copy_")


class FakeGpu(TorchDispatchMode):
    """Records waits, as `operation at file:line` of the code under test. Use it by `fake_gpu`.

    torch's backward pass asks the driver for the device of its tensors, and fails without one. Therefore code in C++ finds
    the device `meta` (where the memory of fake tensors is), and only Python finds a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "device":
            device = func(*args, **kwargs)
            return META if device.type == "cuda" else device
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
            kwargs["device"] = GPU
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(tensor.device.type == "cuda" for tensor in tensors)
        if name in _READS and here:
            self._record(name)
            if name in ("_local_scalar_dense", "item"):
                return 1.0 if tensors[0].is_floating_point() else 1
            return True
        if (
            name == "lift_fresh" and tensors[0].device.type == "meta"
        ):  # C++ made it of a Python list, for a tensor on the GPU
            self._record("a list of indices to cuda")
        elif name in _COPIES:
            self._copy(name, args, kwargs)
        elif here and any(tensor.device.type == "cpu" and tensor.ndim for tensor in tensors):
            self._record(f"{name} with a tensor of the host")
        elif name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor)
        ):
            self._record(f"{name} by a mask")
        if name == "_fused_sgd_":  # changes its tensors in place, and torch has no version of it without values
            return None
        return func(*args, **kwargs)

    def _copy(self, name: str, args: Any, kwargs: Any) -> None:
        if name == "_to_copy":
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
            blocks = not kwargs.get("non_blocking", False)
        else:
            source, target = args[1].device, args[0].device
            blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if blocks and {source.type, target.type} == {"cpu", "cuda"}:
            self._record(f"{name} {source.type} to {target.type}")

    def _record(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        self.waits.append(f"{what} at {where}")


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Inside, torch makes fake tensors, those for `GPU` too, and waits for it are recorded."""
    _of_255.cache_clear()  # what is on the device once and for all is on this one
    try:
        with _CopiedAsItself(), FakeGpu() as gpu:
            yield gpu
    finally:
        _of_255.cache_clear()


class _CopiedAsItself(FakeTensorMode):
    def __deepcopy__(self, memo: Any) -> "_CopiedAsItself":
        return self


def placed(network: AnyModule) -> AnyModule:
    """The network on the GPU, without values. (`to` would swap tensors, which fake ones do not bear.)"""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    on_gpu = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)
                    wanted = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(on_gpu, tensor.requires_grad) if wanted else on_gpu  # type: ignore[assignment]
    return network
