"""The class of every pixel of a whole image: all of it at once, or by windows that overlap."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from swav.evaluation.segmentation.fcn import resized

Logits = Callable[[Float[Tensor, "N C h w"]], Float[Tensor, "N K h w"]]  # of as many pixels as it is given


def windows(height: int, width: int, side: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield windows that cover an image; the last of each row and column ends at its border.

    Args:
        side: of a window [pixels], or the image's where that is smaller.
        stride: between windows.
    """
    starts = [
        [min(i * stride, max(length - side, 0)) for i in range(max(length - side + stride - 1, 0) // stride + 1)]
        for length in (height, width)
    ]
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def sliding_logits(logits: Logits, image: Float[Tensor, "1 C H W"], side: int, stride: int) -> Float[Tensor, "1 K H W"]:
    """Return the mean logits of all windows that show a pixel."""
    height, width = image.shape[2:]
    total = seen = torch.zeros(())
    for box in windows(height, width, side, stride):
        part = logits(image[(..., *box)])
        if total.ndim == 0:
            total, seen = part.new_zeros(1, part.shape[1], height, width), part.new_zeros(1, 1, height, width)
        total[(..., *box)] += part
        seen[(..., *box)] += 1
    return total / seen


def classes_of(
    logits: Logits,
    image: Float[Tensor, "1 C H W"],
    size: tuple[int, int],
    *,
    align_corners: bool,
    side: int = 0,
    stride: int = 0,
) -> Int64[Tensor, "h w"]:
    """Return the most likely class of every pixel of an image at another size.

    Args:
        logits: the network's, at the size of what it is given.
        size: height and width of the result.
        align_corners: as the network was trained.
        side, stride: of windows [pixels]; 0: the whole image at once.
    """
    found = sliding_logits(logits, image, side, stride) if side else logits(image)
    return resized(found, size, align_corners)[0].argmax(dim=0)
