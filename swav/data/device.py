"""A batch on the device: normalised crops, all at once or some images at a time."""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from swav.config import Recipe
from swav.data.augment.crops import to_input
from swav.data.augment.photometric import apply_batched
from swav.data.loader import Batch


class Pieces(Sequence[list[Tensor]]):
    """The pieces of a batch, each made when it is asked for: float crops of a large batch are never all in memory.

    A piece is one tensor per kind of crop [count * n, C, S, S] of n images, crop-major. Asked for twice, it is made twice,
    to the same bits; colour and blur are done here where the loader left them to the device.

    Args:
        batch: of this process, as the loader gives it.
        recipe: settings without `auto`.
        device: where the pieces go.
        size: n, a divisor of the batch.
    """

    def __init__(self, batch: Batch, recipe: Recipe, device: torch.device, size: int):
        self.batch, self.recipe, self.device, self.size = batch, recipe, device, size

    def __len__(self) -> int:
        return len(self.batch.indices) // self.size

    @overload
    def __getitem__(self, piece: int) -> list[Tensor]: ...
    @overload
    def __getitem__(self, piece: slice) -> Sequence[list[Tensor]]: ...
    def __getitem__(self, piece: Any) -> Any:
        if isinstance(piece, slice):
            return [self[i] for i in range(len(self))[piece]]
        first = range(len(self))[piece] * self.size
        crops = []
        for kind, views in enumerate(self.batch.views):
            views = self._sent(views, first)
            if self.batch.params is not None:
                views = apply_batched(views, self._sent(self.batch.params[kind], first), self.recipe)
            crops.append(to_input(views, self.recipe.mean, self.recipe.std, self.recipe.in_channels))
        return crops

    def _sent(self, rows: Tensor, first: int) -> Tensor:
        """Rows of the piece's images, crop by crop: a whole stretch of pinned memory each, so that the host need not wait."""
        of_crops = torch.unflatten(rows, 0, (-1, len(self.batch.indices)))[:, first : first + self.size]
        if self.size == len(self.batch.indices):
            return of_crops.flatten(0, 1).to(self.device, non_blocking=True)
        return torch.cat([crop.to(self.device, non_blocking=True) for crop in of_crops])
