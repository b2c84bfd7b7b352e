"""Batches of views in an order that is a pure function of (seed, epoch, position).

One DataLoader serves the whole training, so there is no pause between epochs; its state is one integer, the step.
Neither the number of workers nor the number of processes changes a bit of what a sample gives.
"""

import ctypes
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from swav.config import Recipe
from swav.data.images import Images, Unreadable
from swav.data.photometric import NUM_PARAMS, apply_opencv
from swav.data.views import draw, resize_into
from swav.errors import DataError, EnvironmentError_

_REPLACEMENTS = 100  # tries to replace an image that cannot be read


@dataclasses.dataclass
class Batch:
    """What one process trains on in one step.

    Attributes:
        step: 0-based.
        views: one uint8 tensor [count * B, S, S, 3] per kind of crop, crop-major.
        params: photometric parameters [count * B, 11] per kind, where colour and blur are left to the device.
        indices: of the images, as drawn (before replacement) [B].
        unreadable: (name, reason) of images that had to be replaced.
        wait: seconds that the training waited for this batch.
    """

    step: int
    views: list[Tensor]
    params: list[Tensor] | None
    indices: Tensor
    unreadable: list[tuple[str, str]]
    wait: float = 0.0


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """A permutation of all images."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 1, 0])).permutation(num_images)


class _Steps:
    """Batch sampler: for every step the (step, epoch, samples) of this process."""

    def __init__(self, recipe: Recipe, num_images: int, rank: int, world_size: int, steps: range, per_epoch: int):
        self.recipe, self.num_images, self.steps, self.per_epoch = recipe, num_images, steps, per_epoch
        self.share = recipe.batch // world_size
        self.first = rank * self.share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order, order_of = np.empty(0), -1
        for step in self.steps:
            epoch, position = divmod(step, self.per_epoch)
            if epoch != order_of:
                order, order_of = epoch_order(self.recipe.seed, epoch, self.num_images), epoch
            start = position * self.recipe.batch + self.first
            yield [(step, epoch, int(sample)) for sample in order[start : start + self.share]]


class _Views(Dataset[Batch]):
    """Makes whole batches, written straight into shared memory."""

    def __init__(self, images: Images, recipe: Recipe, on_device: bool):
        self.images, self.recipe, self.on_device = images, recipe, on_device

    def __getitems__(self, samples: Sequence[tuple[int, int, int]]) -> Batch:
        recipe, size = self.recipe, len(samples)
        views = [_shared((crop.count, size, crop.size, crop.size, 3), torch.uint8) for crop in recipe.crops]
        params = [_shared((crop.count, size, NUM_PARAMS), torch.float32) for crop in recipe.crops]
        unreadable: list[tuple[str, str]] = []
        for place, (_, epoch, sample) in enumerate(samples):
            image = self._read(sample, unreadable)
            boxes, colours = draw(recipe, epoch, sample, *image.shape[:2])
            view = 0
            for kind, crop in enumerate(recipe.crops):
                for i in range(crop.count):
                    out = views[kind][i, place]
                    resize_into(image, boxes[view], out)
                    if not self.on_device:
                        pixels = out.numpy()
                        pixels[:] = apply_opencv(pixels, colours[view], recipe)
                    view += 1
                params[kind][:, place] = torch.from_numpy(colours[view - crop.count : view])
        return Batch(
            samples[0][0],
            [tensor.flatten(0, 1) for tensor in views],
            [tensor.flatten(0, 1) for tensor in params] if self.on_device else None,
            torch.tensor([sample for _, _, sample in samples]),
            unreadable,
        )

    def _read(self, sample: int, unreadable: list[tuple[str, str]]) -> np.ndarray:
        """The image, or in place of one that cannot be read another, always the same."""
        generator = np.random.Generator(np.random.Philox(key=[self.recipe.seed, 0], counter=[0, 0, 2, sample]))
        for _ in range(_REPLACEMENTS):
            try:
                return self.images.read(sample)
            except Unreadable as error:
                unreadable.append((error.name, error.reason))
                sample = int(generator.integers(len(self.images)))
        raise DataError(f"{self.images.root}: {_REPLACEMENTS} images drawn in place of unreadable ones are unreadable too; check the disk")


class Loader:
    """Iterates over the batches of steps start_step..total_steps - 1 of one process.

    Args:
        images: what is trained on.
        recipe: settings without `auto`.
        rank, world_size: of this process.
        start_step, total_steps, steps_per_epoch: where in the run.
        on_device: leave colour and blur to the device, and pin memory for the way there.

    Raises:
        EnvironmentError_: a worker died.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        *,
        rank: int,
        world_size: int,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        on_device: bool,
    ):
        assert isinstance(recipe.workers, int)
        steps = _Steps(recipe, len(images), rank, world_size, range(start_step, total_steps), steps_per_epoch)
        self._loader: DataLoader[Batch] = DataLoader(
            _Views(images, recipe, on_device),
            batch_sampler=steps,  # type: ignore[arg-type]
            num_workers=recipe.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            prefetch_factor=4 if recipe.workers else None,
            multiprocessing_context="fork" if recipe.workers and sys.platform == "linux" else None,
        )
        self._iterator: Iterator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._iterator = iter(self._loader)
        while True:
            began = time.monotonic()
            try:
                batch = next(self._iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise EnvironmentError_(
                    "a loader process died, most often for want of memory (or of /dev/shm); use fewer workers=N or a smaller batch, "
                    f"then the same command goes on ({str(error).splitlines()[0]})"
                ) from None
            batch.wait = time.monotonic() - began
            yield batch

    def close(self) -> None:
        """Ends the workers."""
        shut = getattr(self._iterator, "_shutdown_workers", None)
        if shut is not None:
            shut()
        self._iterator = None


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that the training process can read without a copy; plain memory in the training process itself."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    empty = torch.empty(0, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * empty.element_size())  # type: ignore[no-untyped-call]
    return empty.set_(storage, 0, shape, torch.empty(shape, device="meta").stride())  # type: ignore[call-overload, no-any-return]


def _start_worker(_: int) -> None:
    """One thread each; and death with the parent, so that a killed run leaves no orphans."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
