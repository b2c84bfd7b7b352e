"""Frozen features: every image once through an encoder, with the field's view for evaluation.

Images are decoded and cut by the loader's workers, cross as uint8, and are normalised where the encoder is.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from swav.data.augment.crops import resize_view, to_input, val_view
from swav.data.images import Images, Unreadable
from swav.data.workers import Workers
from swav.errors import MachineError
from swav.network.backbone import ResNet
from swav.system import autocast
from swav.weights.encoder import Encoder

Precision = Literal["fp32", "bf16"]
ViewKind = Literal["centre", "squeezed"]
VIEWS: dict[ViewKind, Callable[[UInt8[np.ndarray, "H W 3"], int], UInt8[np.ndarray, "S S 3"]]] = {
    "centre": val_view,
    "squeezed": resize_view,
}

# Sides of the grids that feature1..feature5 are pooled to, and, of maps of an image of 224 pixels, by which windows:
# {(grid, side of the map): (kernel, stride, padding)}. MMSelfSup 0.x and VISSL, pool type "specified".
PAGE_GRIDS = (12, 6, 4, 3, 2)
SPECIFIED = {(12, 112): (10, 10, 4), (6, 56): (16, 8, 0), (4, 28): (13, 5, 0), (3, 14): (8, 3, 0), (2, 7): (6, 1, 0)}
MOST_VALUES = 9216  # of a pooled map


class EvaluationView(NamedTuple):
    """The view of an image that features are computed of.

    Attributes:
        kind: the centre, or all of the image in another shape (VOC's SVM).
        size: its side [pixels].
    """

    kind: ViewKind
    size: int


def features_of(
    encoder: Encoder, views: UInt8[Tensor, "B S S 3"], device: torch.device, precision: Precision = "fp32"
) -> Float32[Tensor, "B F"]:
    """Features of cut images, without gradient, in float32 whatever they were computed in."""
    at_a_time = len(views) if device.type == "cuda" else 64  # on a CPU more is no faster, and its maps fill the memory
    parts = []
    with torch.no_grad(), autocast(device, precision):
        for part in views.split(max(1, at_a_time)):  # type: ignore[no-untyped-call]
            images = to_input(part.to(device, non_blocking=True), encoder.mean, encoder.std, encoder.in_channels)
            parts.append(encoder(images).float())
    return torch.cat(parts)


def stage_features_of(
    encoder: Encoder,
    views: UInt8[Tensor, "B S S 3"],
    device: torch.device,
    precision: Precision = "fp32",
    pooled: bool = False,
    lighting: Float32[Tensor, "B 3"] | None = None,
) -> list[Float32[Tensor, "B D"]]:
    """Pooled maps of every stage of cut images, as features_of; with `pooled`, the features too, as the last.

    Args:
        lighting: of each image, see crops.to_input.

    Raises:
        ConfigError: the backbone has no stages.
    """
    at_a_time = len(views) if device.type == "cuda" else 32  # the maps of 32 images at 224 pixels: .3 GB of a ResNet-50
    grids, parts = stage_grids(encoder.stage_channels), []
    with torch.no_grad(), autocast(device, precision):
        for place, part in enumerate(views.split(max(1, at_a_time))):  # type: ignore[no-untyped-call]
            lit = None if lighting is None else lighting[place * at_a_time :][: len(part)].to(device)
            images = to_input(part.to(device, non_blocking=True), encoder.mean, encoder.std, encoder.in_channels, lit)
            maps = encoder.stages(images)
            found = [one.float() for one in pool_stages(maps, grids)]
            if pooled:  # of our own backbones it is the last map's average; timm's pool in ways of their own
                found.append(
                    maps[-1].mean((2, 3)).float() if isinstance(encoder.trunk, ResNet) else encoder(images).float()
                )
            parts.append(found)
    return [torch.cat(some) for some in zip(*parts, strict=True)]


def stage_grids(channels: Sequence[int]) -> tuple[int, ...]:
    """Sides of the grids that a backbone's maps are pooled to.

    Five stages: the page's 12, 6, 4, 3, 2, whatever their channels. Others, as the blocks of a transformer: the largest
    grid of at most 9,216 values, a rule that gives the page's for the page's ResNet-50.
    """
    if len(channels) == len(PAGE_GRIDS):
        return PAGE_GRIDS
    return tuple(max(1, math.isqrt(MOST_VALUES // count)) for count in channels)


def pool_stages(maps: Sequence[Tensor], grids: Sequence[int]) -> list[Tensor]:
    """Average each map [N, C, H, W] over the cells of its grid: [N, C * grid * grid], channel by channel, row by row.

    Maps of a 224-pixel image's size are averaged by the page's windows (SPECIFIED), which overlap, and of which the first
    map's count padding as zeros; others adaptively, by cells that cover the map. A grid finer than its map is the map.

    Args:
        maps: of the stages, as Encoder.stages gives them.
        grids: side of each map's grid, as stage_grids gives them.

    Source: MMSelfSup 0.x MultiPooling("specified"); of a ResNet-50 at 224 pixels 9216, 9216, 8192, 9216, 8192 values.
    """
    return [_pooled(one, grid).flatten(1) for one, grid in zip(maps, grids, strict=True)]


def page_windows(one: Float[Tensor, "N C H W"], grid: int) -> tuple[int, int, int] | None:
    """Kernel, stride and padding by which the page pools a map of this size; None where it has none of this size."""
    high, wide = one.shape[2:]
    return SPECIFIED.get((grid, high)) if high == wide else None


def _pooled(one: Float[Tensor, "N C H W"], grid: int) -> Float[Tensor, "N C h w"]:
    high, wide = one.shape[2:]
    if windows := page_windows(one, grid):
        return nn.functional.avg_pool2d(one, *windows)
    return nn.functional.adaptive_avg_pool2d(one, (min(grid, high), min(grid, wide)))


Views = tuple[UInt8[np.ndarray, "B S S 3"], list[int]]


class _Views:
    """Makes batches of evaluation views, with their places; unreadable images are left out. With them come the names of
    those that were found damaged: a worker's own notes are not seen here.
    """

    def __init__(self, images: Images, view: EvaluationView, insist: bool):
        self.images, self.size, self.cut, self.insist = images, view.size, VIEWS[view.kind], insist

    def __call__(self, places: Sequence[int]) -> tuple[Views, set[str]]:
        views = np.empty((len(places), self.size, self.size, 3), dtype=np.uint8)
        kept: list[int] = []
        for i in places:
            try:
                image = self.images.read(i)
            except Unreadable as error:
                if self.insist and error.passing:
                    raise MachineError(
                        f"{error.name}: cannot be read just now ({error.reason}); what was computed is kept, and the same "
                        "command continues"
                    ) from None
                continue
            views[len(kept)] = self.cut(image, self.size)
            kept.append(i)
        return (views[: len(kept)], kept), set(self.images.damaged)


def read_views(
    images: Images,
    view: EvaluationView,
    batch: int,
    workers: int,
    start: int = 0,
    insist: bool = False,
) -> Iterator[Views]:
    """Views of all images from place `start` on, a batch at a time, and the places that could be read. Names of damaged ones
    are added to `images.damaged`.

    Args:
        insist: on an error of the disk that may pass, end instead of leaving the image out.

    Raises:
        MachineError: a loader process died; or, where `insist` is set, an image cannot be read just now.
    """
    make = _Views(images, view, insist)
    parts = [range(first, min(first + batch, len(images))) for first in range(start, len(images), batch)]
    workers = min(workers, len(parts))
    with contextlib.ExitStack() as stack:
        made: Iterator[tuple[Views, set[str]]] = map(make, parts)
        if workers:
            made = stack.enter_context(Workers(make, workers, "use fewer workers=N")).map(parts)
        for views, damaged in made:
            images.damaged |= damaged
            yield views
