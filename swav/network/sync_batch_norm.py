"""BatchNorm over several processes, and passes that leave its running statistics as they are."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swav import dist
from swav.errors import ConfigError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronised(network: nn.Module, device: torch.device, group: Any = None) -> nn.Module:
    """Replace every BatchNorm by one whose statistics are those of all processes, or of a group; names and values stay.

    torch's own on CUDA; it refuses tensors of a CPU, where ours takes its place. With equal shares of a batch, codes,
    loss and gradients are then those of one process. (With groups they are not, and neither are running statistics, which
    each group has of its own.)

    Args:
        network: as a whole or a part of one.
        device: of the network.
        group: of the processes that have their statistics together, as dist.neighbours gives it; None: all.

    Raises:
        ConfigError: a layer is a variety of BatchNorm that neither can stand for.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in _PLAIN:
            raise ConfigError(
                f"sync_bn: expected plain BatchNorm layers, found {type(module).__name__} at {name}; use sync_bn=false"
            )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network, group)  # type: ignore[no-untyped-call, no-any-return]
    return _replaced(network, group)


def _replaced(module: nn.Module, group: Any) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return SynchronisedBatchNorm.like(module, group)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, group))
    return module


class SynchronisedBatchNorm(_BatchNorm):
    """BatchNorm of any number of dimensions, with the mean and variance over the samples of all processes, or of a group.

    In training each of these processes must call it equally often, forward and backward. Running statistics, momentum and eval
    mode are nn.BatchNorm2d's.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1 and the gradients of its section 3.
    """

    group: Any = None

    @classmethod
    def like(cls, other: _BatchNorm, group: Any = None) -> "SynchronisedBatchNorm":
        """With another's settings, and its very parameters and buffers."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new._parameters, new._buffers, new.training = other._parameters, other._buffers, other.training
        new.group = group
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least [N, C], found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, variance * count / (count - 1))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            assert running is not None
            running.mul_(1 - rate).add_(new.to(running.dtype), alpha=rate)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, statistics over a group of processes, in float32 at least.

    The variance is the mean squared distance from the mean of all, in a second sum: no cancellation.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, ...]:
        ctx.group = group
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own_count = wide.new_tensor([x.numel() / x.shape[1]])
        total = dist.all_reduce_sum(torch.cat([_over_samples(wide), own_count]), group)
        count = total[-1:]
        mean = total[:-1] / count
        centred = wide - _along_channels(mean, x)
        variance = dist.all_reduce_sum(_over_samples(centred.square()), group) / count
        inverse = (variance + eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        output = centred * _along_channels(scale, x)
        if bias is not None:
            output += _along_channels(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The sums over samples in the gradient of x are those of the group; weight and bias get this one's share."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        wide = gradient.to(mean.dtype)
        normal = (x.to(mean.dtype) - _along_channels(mean, x)) * _along_channels(inverse, x)
        of_bias, of_weight = _over_samples(wide), _over_samples(wide * normal)
        sums = dist.all_reduce_sum(torch.cat([of_bias, of_weight]), ctx.group)
        through_mean, through_variance = sums.div(count).chunk(2)
        scale = inverse if weight is None else inverse * weight
        of_x = wide - _along_channels(through_mean, x) - normal * _along_channels(through_variance, x)
        of_x = (of_x * _along_channels(scale, x)).to(x.dtype)
        return of_x, None if weight is None else of_weight, of_bias if ctx.needs_input_grad[2] else None, None, None


def _over_samples(x: Float[Tensor, "N C ..."]) -> Float[Tensor, " C"]:
    return x.sum(dim=[d for d in range(x.dim()) if d != 1])


def _along_channels(values: Float[Tensor, " C"], x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


@contextlib.contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises as its mode says, and its running statistics stay as they are.

    (A momentum of 0 would not do: 0 times a NaN is a NaN.)
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
