"""Batches of views: in which order, and by whom they are made.

The order is a pure function of (seed, epoch), a view of (seed, epoch, sample, view). So the state of the data is one
integer, the step, and neither the number of workers nor the number of processes changes a pixel.

Worker processes write batches straight into memory that they share with the training process; only a step's number
and a few words go through a pipe. They serve the whole training, so there is no pause between epochs.
"""

import dataclasses
import itertools
import mmap
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.multiprocessing  # so that tensors in shared memory can be sent to workers that are not forked
from jaxtyping import Int64
from torch import Tensor

from swav.data.augment.crops import ViewSampler, center_crop_view, cut, generator, planes
from swav.data.augment.photometric import NUM_PARAMS, apply_opencv
from swav.data.augment.spec import ViewSpec
from swav.data.images import Images, Unreadable
from swav.data.storage import Pixels
from swav.data.workers import FORKS, Workers
from swav.errors import DataError, MachineError

_AHEAD = 2  # stretches of a batch that each worker may be ahead of the training
_STRETCH = 256  # images that a worker makes at a time: at a batch of 4096 all workers share one, and few are in memory
_CHUNK = (
    16  # images that are cut before they are coloured: their crops stay in the cache, and so does each kind of code
)
_ADVICE = "rerun with fewer workers=N to resume from the last checkpoint"
_REPLACEMENTS = 100  # images tried in place of one that cannot be read


@dataclasses.dataclass
class Batch:
    """What one process trains on in one step.

    The tensors lie in a ring of shared memory: they are overwritten once the next batch but one is asked for.

    Attributes:
        step: 0-based.
        views: one uint8 tensor [count * B, S, S, 3] per kind of crop, crop-major.
        params: photometric parameters [count * B, 11] per kind, where colour and blur are left to the device.
        indices: of the images, as drawn (before replacement) [B].
        unreadable: (name, reason) of images that had to be replaced.
        wait: seconds that the training waited for this batch.
        epoch: 0-based.
    """

    step: int
    views: list[Tensor]
    params: list[Tensor] | None
    indices: Tensor
    unreadable: list[tuple[str, str]]
    wait: float = 0.0
    epoch: int = 0


def epoch_order(seed: int, epoch: int, num_images: int) -> Int64[np.ndarray, " N"]:
    """A permutation of all images."""
    return generator(seed, epoch, "order").permutation(num_images)


def read_or_replacement(images: Images, seed: int, i: int) -> tuple[int, Pixels, list[tuple[str, str]]]:
    """Read an image, or in place of one that cannot be read another, always the same.

    Returns:
        The index of what was read, its pixels, and (name, reason) of those that could not be.

    Raises:
        DataError: a hundred others cannot be read either.
    """
    unreadable: list[tuple[str, str]] = []
    for index in itertools.chain([i], _replacements(len(images), seed, i)):
        try:
            return index, images.read(index), unreadable
        except Unreadable as error:
            unreadable.append((error.name, error.reason))
    raise DataError(
        f"{images.root}: {_REPLACEMENTS} images drawn in place of an unreadable one are unreadable too, "
        f"last {unreadable[-1][0]} ({unreadable[-1][1]}); check the disk"
    )


def _replacements(images: int, seed: int, i: int) -> Iterator[int]:
    """Drawn where one is asked for: most images can be read."""
    yield from generator(seed, 0, "replacement", i).integers(images, size=_REPLACEMENTS).tolist()


@dataclasses.dataclass
class _Slot:
    """Memory of one batch: [count, B, S, S, 3] and [count, B, 11] per kind of crop, and [B]."""

    views: list[Tensor]
    params: list[Tensor]
    indices: Tensor


class _Maker:
    """Makes this process's share of any step's batch."""

    def __init__(
        self,
        images: Images,
        spec: ViewSpec,
        batch: int,
        rank: int,
        world_size: int,
        steps_per_epoch: int,
        on_device: bool,
    ):
        self.images, self.spec, self.steps_per_epoch, self.on_device = images, spec, steps_per_epoch, on_device
        self.batch, self.rank, self.world_size = batch, rank, world_size
        self.share = batch // world_size
        self._order, self._order_of = np.empty(0, np.int64), -1

    def slot(self, shared: bool) -> _Slot:
        new = _shared if shared else torch.empty
        crops, share = self.spec.crops, self.share
        return _Slot(
            views=[new((crop.count, share, crop.size, crop.size, 3), dtype=torch.uint8) for crop in crops],
            params=[new((crop.count, share, NUM_PARAMS), dtype=torch.float32) for crop in crops],
            indices=new((share,), dtype=torch.int64),
        )

    def fill(self, slot: _Slot, step: int, rows: slice = slice(None)) -> list[tuple[str, str]]:
        """Write a step's batch, or some rows of it; return (name, reason) of the images that had to be replaced."""
        epoch, position = divmod(step, self.steps_per_epoch)
        samples = self._samples(epoch, position)[rows]
        if not samples:
            return []
        rows = slice(rows.start or 0, (rows.start or 0) + len(samples))
        draws = ViewSampler(self.spec, epoch, samples)
        views = [view[rows] for kind in slot.views for view in kind]  # V of [B, S, S, 3]
        unreadable: list[tuple[str, str]] = []
        for start in range(0, len(samples), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(samples)))
            self._cut(views, samples, chunk, draws, unreadable)
            if not self.on_device:
                self._colour(views, chunk, draws)
        params = torch.from_numpy(draws.params.swapaxes(0, 1))
        for kind, its_params in zip(
            slot.params, params.split_with_sizes([len(kind) for kind in slot.params]), strict=True
        ):
            kind[:, rows].copy_(its_params)
        slot.indices[rows].copy_(torch.tensor(samples))
        return unreadable

    def _cut(
        self,
        views: list[Tensor],
        samples: list[int],
        chunk: range,
        draws: ViewSampler,
        unreadable: list[tuple[str, str]],
    ) -> None:
        places = [view.permute(0, 3, 1, 2) for view in views]
        for b in chunk:
            image = self._read(samples[b], unreadable)
            if self.spec.square is not None:
                image = center_crop_view(image, self.spec.square, self.spec.square)
            source = planes(image)
            for v, box in enumerate(draws.boxes(b, *image.shape[:2])):
                cut(source, box, places[v][b : b + 1])

    def _colour(self, views: list[Tensor], chunk: range, draws: ViewSampler) -> None:
        for v, view in enumerate(views):
            pixels = view.numpy()
            for b in chunk:
                crop = pixels[b]
                coloured = apply_opencv(crop, draws.params[b, v], self.spec)
                if coloured is not crop:
                    crop[:] = coloured

    def _samples(self, epoch: int, position: int) -> list[int]:
        if epoch != self._order_of:
            self._order, self._order_of = epoch_order(self.spec.seed, epoch, len(self.images)), epoch
        batch = self._order[position * self.batch :][: self.batch]
        first, end = (len(batch) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        samples: list[int] = batch[first:end].tolist()
        return samples

    def size(self, step: int) -> int:
        """Images of a step's share: fewer in a last, partial batch, and none where others have them all."""
        return len(self._samples(*divmod(step, self.steps_per_epoch)))

    def _read(self, sample: int, unreadable: list[tuple[str, str]]) -> np.ndarray:
        """The image, or in place of one that cannot be read another, the same in every epoch."""
        _, pixels, missing = read_or_replacement(self.images, self.spec.seed, sample)
        unreadable += missing
        return pixels


class Loader:
    """Iterates over the batches of steps start_step..total_steps - 1 of one process.

    Args:
        images: to train on.
        spec: the views of each image.
        batch: images of a step, of all processes.
        workers: processes that make the batches; 0: this one.
        rank, world_size: of this process.
        start_step, total_steps, steps_per_epoch: where in the run. Steps per epoch rounded down leave out the last, partial
            batch of an epoch; rounded up they keep it, and each process has its share of it, which may be empty.
        on_device: leave colour and blur to the device, and give batches in pinned memory.

    Raises:
        DataError: hardly an image can be read.
        MachineError: a worker died, or there is no memory for the batches.
    """

    def __init__(
        self,
        images: Images,
        spec: ViewSpec,
        *,
        batch: int,
        workers: int,
        rank: int,
        world_size: int,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        on_device: bool,
    ):
        self._steps = range(start_step, total_steps)
        self._maker = _Maker(images, spec, batch, rank, world_size, steps_per_epoch, on_device)
        self._on_device, self._pin = on_device, on_device and torch.cuda.is_available()
        self._stretches = [slice(i, i + _STRETCH) for i in range(0, self._maker.share, _STRETCH)]
        self._num_workers = min(workers, self._num_stretches)
        self._slots: list[_Slot] = []
        self._workers: Workers | None = None

    def __iter__(self) -> Iterator[Batch]:
        try:
            if self._num_workers:
                self._start()
            for step in self._steps:
                began = time.perf_counter()
                slot, unreadable = self._received(step) if self._num_workers else self._made(step)
                batch = self._batch(step, slot, unreadable)
                batch.wait = time.perf_counter() - began
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
        self._workers, self._slots = None, []

    @property
    def _num_stretches(self) -> int:
        return len(self._steps) * len(self._stretches)

    def _start(self) -> None:
        self._ahead = min(_AHEAD * self._num_workers, self._num_stretches)
        slots = batches_in_memory(self._maker.share, self._num_workers)
        try:
            self._slots = [self._maker.slot(shared=True) for _ in range(slots)]
        except (OSError, RuntimeError) as error:
            raise MachineError(
                f"no memory for {slots} batches ({error}); use fewer workers=N or a smaller batch"
            ) from None
        self._workers = Workers(_Stretches(self._maker, self._slots), self._num_workers, _ADVICE)
        for place in range(self._ahead):
            self._ask_for(place)

    def _ask_for(self, place: int) -> None:
        """Ask for the stretch of this place, counted from the first step's first: the worker whose turn it is."""
        assert self._workers is not None
        of_steps, stretch = divmod(place, len(self._stretches))
        order = (self._steps[of_steps], of_steps % len(self._slots), self._stretches[stretch])
        self._workers.ask(place % self._num_workers, *order)

    def _received(self, step: int) -> tuple[_Slot, list[tuple[str, str]]]:
        assert self._workers is not None
        of_steps = step - self._steps.start
        unreadable = []
        for place in range(of_steps * len(self._stretches), (of_steps + 1) * len(self._stretches)):
            missing, damaged = self._workers.receive(place % self._num_workers)
            unreadable += missing
            self._maker.images.damaged |= damaged
            if place + self._ahead < self._num_stretches:
                self._ask_for(place + self._ahead)
        return self._slots[of_steps % len(self._slots)], unreadable

    def _made(self, step: int) -> tuple[_Slot, list[tuple[str, str]]]:
        slot = self._maker.slot(shared=False)
        return slot, self._maker.fill(slot, step)

    def _batch(self, step: int, slot: _Slot, unreadable: list[tuple[str, str]]) -> Batch:
        size = self._maker.size(step)
        views, params = ([kind[:, :size].flatten(0, 1) for kind in kinds] for kinds in (slot.views, slot.params))
        if self._pin:
            views, params = [kind.pin_memory() for kind in views], [kind.pin_memory() for kind in params]
        return Batch(
            step,
            views,
            params if self._on_device else None,
            slot.indices[:size],
            unreadable,
            epoch=step // self._maker.steps_per_epoch,
        )


def batches_in_memory(share: int, workers: int) -> int:
    """Batches of a process with loader workers that are in memory at a time: made ahead, with the training, and the last one."""
    ahead = -(-_AHEAD * workers // -(-share // _STRETCH))
    return ahead + 2  # the last one stays as it is: copies to a device may still read it


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that this process and its workers see."""
    if not FORKS:
        anywhere: Tensor = torch.empty(shape, dtype=dtype).share_memory_()  # type: ignore[no-untyped-call]
        return anywhere
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)  # inherited by fork; needs no /dev/shm


@dataclasses.dataclass
class _Stretches:
    """Makes stretches of batches, in a worker."""

    maker: _Maker
    slots: list[_Slot]

    def __call__(self, step: int, slot: int, rows: slice) -> tuple[list[tuple[str, str]], set[str]]:
        """What could not be read, and what was read though it is damaged (so far: this process's notes are not seen elsewhere)."""
        return self.maker.fill(self.slots[slot], step, rows), self.maker.images.damaged
