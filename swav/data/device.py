"""A batch on the device: normalised crops, all at once or some images at a time."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from swav.data.augment.crops import to_input
from swav.data.augment.photometric import apply_batched
from swav.data.augment.spec import ViewSpec
from swav.data.loader import Batch


class MicroBatches(Sequence[list[Tensor]]):
    """The micro-batches of a batch, each made when it is asked for: float crops of a large batch are never all in memory.

    Each is one tensor per kind of crop [count * n, C, S, S] of n images, crop-major. Asked for twice, it is made twice,
    to the same bits; colour and blur are done here where the loader left them to the device.

    Args:
        batch: of this process, as the loader gives it.
        spec: the views.
        device: where they go.
        size: n, a divisor of the batch.
    """

    def __init__(self, batch: Batch, spec: ViewSpec, device: torch.device, size: int):
        self.batch, self.spec, self.device, self.size = batch, spec, device, size

    def __len__(self) -> int:
        return len(self.batch.indices) // self.size

    @overload
    def __getitem__(self, i: int) -> list[Tensor]: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[list[Tensor]]: ...
    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[one] for one in range(len(self))[i]]
        first = range(len(self))[i] * self.size
        crops = []
        for kind, views in enumerate(self.batch.views):
            views = self._sent(views, first)
            if self.batch.params is not None:
                views = apply_batched(views, self._sent(self.batch.params[kind], first), self.spec)
            crops.append(to_input(views, self.spec.mean, self.spec.std, self.spec.in_channels))
        return crops

    def _sent(self, rows: Tensor, first: int) -> Tensor:
        """Rows of the micro-batch's images, crop by crop: a whole stretch of pinned memory each, so that the host need not wait."""
        of_crops = torch.unflatten(rows, 0, (-1, len(self.batch.indices)))[:, first : first + self.size]
        if self.size == len(self.batch.indices):
            return of_crops.flatten(0, 1).to(self.device, non_blocking=True)
        return torch.cat([crop.to(self.device, non_blocking=True) for crop in of_crops])
