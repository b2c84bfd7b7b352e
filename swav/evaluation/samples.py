"""Batches of images of any size with what is known about them, for benchmarks of detection and segmentation.

Which images a step takes is a pure function of (seed, step), and how each is augmented of (seed, step, place in the batch): the
state of the data is the step alone, and neither workers nor processes change a pixel.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from swav import dist
from swav.data.augment.crops import generator, to_input
from swav.data.images import Images
from swav.data.loader import read_or_replacement
from swav.data.workers import Workers
from swav.weights.encoder import Encoder

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")
Draw = np.random.Generator
Pixels = UInt8[np.ndarray, "_ _ 3"]


@dataclasses.dataclass(frozen=True)
class Sample(Generic[T]):
    """One augmented image.

    Attributes:
        pixels: RGB.
        target: what is known about it, in its own pixels.
        image: its index.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    target: T
    image: int


# An image's index, its pixels and numbers to draw from, to a sample.
Augment = Callable[[int, Pixels, Draw], Sample[T]]


@dataclasses.dataclass
class SampleBatch(Generic[T]):
    """What one process trains on in one step.

    Attributes:
        step: 0-based.
        first: place of its first sample in the batch of all processes.
        samples: this process's share.
        unreadable: (name, reason) of images that another one stands in for, with its own target.
    """

    step: int
    first: int
    samples: list[Sample[T]]
    unreadable: list[tuple[str, str]]


def endless_order(seed: int, images: int, batch: int) -> Callable[[int], NDArray[np.int64]]:
    """Return step -> indices of its images: one permutation after the other, without a gap."""

    def at(step: int) -> NDArray[np.int64]:
        places = np.arange(step * batch, (step + 1) * batch)
        rounds = {int(i): generator(seed, int(i), "order").permutation(images) for i in np.unique(places // images)}
        return np.array([rounds[int(place // images)][place % images] for place in places], dtype=np.int64)

    return at


class GroupedOrder:
    """Batches of images that are all wide or all high, so that little is padded: epochs of them, shuffled.

    Each group's last batch of an epoch is filled up with the group's first images, as MMDetection's sampler does.

    Args:
        seed: of the order.
        sizes: height and width of each image.
        batch: images of a step.
    """

    def __init__(self, seed: int, sizes: Int64[np.ndarray, "N 2"], batch: int):
        self.seed, self.batch = seed, batch
        wide = sizes[:, 1] >= sizes[:, 0]
        self._groups = [group for group in (np.flatnonzero(wide), np.flatnonzero(~wide)) if len(group)]
        self.steps_per_epoch = sum(-(-len(group) // batch) for group in self._groups)
        self._epoch, self._batches = -1, np.empty((0, batch), np.int64)

    def __call__(self, step: int) -> NDArray[np.int64]:
        """Return the indices of a step's images."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            draw = generator(self.seed, epoch, "order")
            rows = [
                np.resize(draw.permutation(group), (-(-len(group) // self.batch), self.batch)) for group in self._groups
            ]
            self._epoch, self._batches = epoch, draw.permutation(np.concatenate(rows))
        batch: NDArray[np.int64] = self._batches[place]
        return batch


class _Reader(Generic[T]):
    """Makes a sample of an image, in a worker."""

    def __init__(self, images: Images, augment: Augment[T], seed: int):
        self.images, self.augment, self.seed = images, augment, seed

    def __call__(self, question: tuple[int, int, int]) -> tuple[Sample[T], list[tuple[str, str]], set[str]]:
        step, place, index = question
        i, pixels, unreadable = read_or_replacement(self.images, self.seed, index)
        return self.augment(i, pixels, generator(self.seed, step, "sample", place)), unreadable, self.images.damaged


class _Questions(Sequence[tuple[int, int, int]]):
    """(step, place in the batch, image) of this process's samples, in order, made when they are asked for."""

    def __init__(self, order: Callable[[int], NDArray[np.int64]], steps: range, share: range):
        self._order, self._steps, self._share = order, steps, share
        self._of, self._indices = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._steps) * len(self._share)

    def __getitem__(self, i: Any) -> Any:
        step, place = self._steps[i // len(self._share)], self._share[i % len(self._share)]
        if step != self._of:
            self._of, self._indices = step, self._order(step)
        return step, place, int(self._indices[place])


def sample_batches(
    images: Images,
    augment: Augment[T],
    order: Callable[[int], NDArray[np.int64]],
    *,
    batch: int,
    steps: range,
    seed: int,
    workers: int,
) -> Iterator[SampleBatch[T]]:
    """Yield this process's shares of the batches of some steps.

    Args:
        order: step -> indices [batch].
        seed: of what `augment` draws.
        workers: processes that read and augment; 0: this one.

    Raises:
        DataError: hardly an image can be read.
        MachineError: a worker died.
    """
    first, end = (batch * rank // dist.world_size() for rank in (dist.rank(), dist.rank() + 1))
    questions = _Questions(order, steps, range(first, end))
    read = _Reader(images, augment, seed)
    made = answers(read, questions, workers)
    for step in steps:
        found = SampleBatch[T](step, first, [], [])
        for _ in range(first, end):
            sample, unreadable, damaged = next(made)
            found.samples.append(sample)
            found.unreadable += unreadable
            images.damaged |= damaged
        yield found


def answers(read: Callable[[Q], A], questions: Sequence[Q], workers: int) -> Iterator[A]:
    """Yield what `read` makes of each question, in order.

    Args:
        workers: processes that do it; 0: this one.

    Raises:
        MachineError: a worker died.
    """
    workers = min(workers, len(questions))
    if not workers:
        yield from map(read, questions)
        return
    with Workers(read, workers, "rerun with fewer workers=N; what was trained is kept") as processes:
        yield from processes.map(questions)


class Scale(NamedTuple):
    """The largest sides that an image is resized to, keeping its shape [pixels]."""

    long: int
    short: int

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after it, as MMCV rounds them; of a strip, which MMCV cannot resize, at least a pixel."""
        factor = min(self.long / max(height, width), self.short / min(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def times(self, ratio: float) -> "Scale":
        return Scale(int(self.long * ratio), int(self.short * ratio))


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize bilinearly, without antialiasing, as OpenCV does.

    Args:
        size: height and width.
    """
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)


def padded_input(
    pixels: Sequence[Pixels], encoder: Encoder, device: torch.device, multiple: int = 1
) -> Float32[Tensor, "N C H W"]:
    """Return normalised images as one batch, with zeros at the right and at the bottom of the smaller ones.

    Args:
        encoder: says how to normalise.
        multiple: both sides are one of it [pixels].
    """
    high, wide = (-(-max(one.shape[axis] for one in pixels) // multiple) * multiple for axis in (0, 1))
    batch = np.zeros((len(pixels), high, wide, 3), dtype=np.uint8)
    for place, one in zip(batch, pixels, strict=True):
        place[: one.shape[0], : one.shape[1]] = one
    x = to_input(torch.from_numpy(batch).to(device), encoder.mean, encoder.std, encoder.in_channels)
    for image, one in zip(x, pixels, strict=True):
        image[:, one.shape[0] :] = 0
        image[:, :, one.shape[1] :] = 0
    return x
