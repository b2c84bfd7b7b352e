"""Crops: where they are cut, how they are cut, and the numbers behind both, as pure functions of (seed, epoch, sample).

An image is decoded once; all its crops are cut straight from the decoded array by antialiased resizing, in place in
the batch.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from swav.config import Recipe
from swav.data.photometric import NUM_UNIFORMS, parameters

_TRIES = 10  # of torchvision's RandomResizedCrop
_RATIO = (math.log(3 / 4), math.log(4 / 3))
_CROP_UNIFORMS = 2 * _TRIES + 2


def draw(
    recipe: Recipe, epoch: int, sample: int, height: int, width: int
) -> tuple[Int[np.ndarray, "V 4"], Float[np.ndarray, "V 11"]]:
    """Boxes (top, left, height, width) [pixels] and photometric parameters of an image's views.

    A counter-based generator keyed by (seed, epoch) starts at the sample's own place, so nothing depends on workers,
    processes, or what was drawn before.
    """
    generator = np.random.Generator(np.random.Philox(key=[recipe.seed, epoch], counter=[0, 0, 0, sample]))
    uniforms = generator.random((recipe.num_views, _CROP_UNIFORMS + NUM_UNIFORMS))
    scales = np.array([crop.scale for crop in recipe.crops for _ in range(crop.count)])
    return boxes(uniforms[:, :_CROP_UNIFORMS], scales, height, width), parameters(uniforms[:, _CROP_UNIFORMS:], recipe)


def boxes(
    uniforms: Float[np.ndarray, "V 22"], scales: Float[np.ndarray, "V 2"], height: int, width: int
) -> Int[np.ndarray, "V 4"]:
    """The law of torchvision's RandomResizedCrop: area uniform, aspect log-uniform in 3/4..4/3, ten tries, then the
    largest centre crop of an allowed aspect.

    Returns:
        [V, 4] top, left, height, width; inside the image.
    """
    tries = uniforms[:, : 2 * _TRIES].reshape(-1, 2, _TRIES)
    area = height * width * (scales[:, :1] + (scales[:, 1:] - scales[:, :1]) * tries[:, 0])
    ratio = np.exp(_RATIO[0] + (_RATIO[1] - _RATIO[0]) * tries[:, 1])
    wide, high = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(len(first))
    found = fits[rows, first]
    centre_high, centre_wide = _largest_allowed(height, width)
    high = np.where(found, high[rows, first], centre_high)
    wide = np.where(found, wide[rows, first], centre_wide)
    top = np.where(found, np.floor(uniforms[:, -2] * (height - high + 1)), (height - high) // 2)
    left = np.where(found, np.floor(uniforms[:, -1] * (width - wide + 1)), (width - wide) // 2)
    return np.stack([top, left, high, wide], axis=1).astype(np.int64)


def _largest_allowed(height: int, width: int) -> tuple[int, int]:
    if width / height < 3 / 4:
        return max(1, round(width / (3 / 4))), width
    if width / height > 4 / 3:
        return height, max(1, round(height * (4 / 3)))
    return height, width


def resize_into(image: UInt8[np.ndarray, "H W 3"], box: Int[np.ndarray, " 4"], out: UInt8[Tensor, "S S 3"]) -> None:
    """Cuts a box and resizes it, antialiased and bilinear, straight into its place in a batch."""
    top, left, high, wide = box.tolist()
    source = torch.from_numpy(image[top : top + high, left : left + wide]).permute(2, 0, 1)[None]
    side = list(out.shape[:2])
    torch.ops.aten._upsample_bilinear2d_aa.out(source, side, False, None, None, out=out.permute(2, 0, 1)[None])


def to_input(
    crops: UInt8[Tensor, "N S S 3"], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Float[Tensor, "N 3 S S"]:
    """Normalises uint8 RGB; the result is float32, channels last."""
    x = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    scale = torch.tensor(std, device=x.device)[:, None, None] * 255
    return (x - torch.tensor(mean, device=x.device)[:, None, None] * 255).div_(scale)


def evaluation_view(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Short side to 256/224 of `size`, then the centre: the field's view for evaluation (256 and 224 at full size)."""
    short = round(size * 256 / 224)
    height, width = image.shape[:2]
    high, wide = (short, int(short * width / height)) if width >= height else (int(short * height / width), short)
    source = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(source, (high, wide), mode="bilinear", antialias=True)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return resized[0, :, top : top + size, left : left + size].permute(1, 2, 0).contiguous().numpy()
