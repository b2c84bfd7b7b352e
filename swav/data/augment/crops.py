"""Crops: where they are cut, how they are cut, and the random numbers behind them.

An image is decoded once; all its crops are cut straight from the decoded array by antialiased resizing, in place in
the batch. What happens to a sample is a pure function of (seed, epoch, sample).
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from swav.data.augment import photometric
from swav.data.augment.spec import CROP_UNIFORMS, LUMA, Box, ViewSpec


class ViewSampler:
    """Draws the parameters of some samples' views.

    A counter-based generator (Philox) keyed by (seed, epoch) starts at each sample's own place, so nothing depends on
    workers, processes, batches, or what was drawn before.

    Args:
        spec: the views.
        epoch: 0-based.
        samples: B indices of images.

    Attributes:
        params: [B, V, 11] photometric parameters.
    """

    params: Float32[np.ndarray, "B V 11"]

    def __init__(self, spec: ViewSpec, epoch: int, samples: Sequence[int]):
        count = CROP_UNIFORMS + photometric.NUM_UNIFORMS
        uniforms = np.stack(
            [generator(spec.seed, epoch, "views", sample).random((spec.num_views, count)) for sample in samples]
        )
        self.params = photometric.parameters(uniforms[..., CROP_UNIFORMS:], spec)
        self._crops = spec.crops
        ends = np.cumsum([crop.count for crop in spec.crops]).tolist()
        self._draws = [
            crop.draws(uniforms[:, end - crop.count : end, :CROP_UNIFORMS])
            for crop, end in zip(spec.crops, ends, strict=True)
        ]

    def boxes(self, place: int, height: int, width: int) -> list[Box]:
        """Return where to cut the views of the sample at this place in the batch, in an image of this size [pixels]."""
        return [
            crop.box(draw, height, width)
            for crop, draws in zip(self._crops, self._draws, strict=True)
            for draw in draws[place]
        ]


def generator(seed: int, epoch: int, purpose: str, sample: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but these four."""
    stream = ("views", "order", "replacement", "lighting", "sample").index(purpose)
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, stream, sample]))


def lighting(seed: int, epoch: int, samples: Sequence[int], std: float) -> Float32[np.ndarray, "B 3"]:
    """What is added to the RGB of each sample's images [of 1]: a draw of its own for each (seed, epoch, sample)."""
    normals = [generator(seed, epoch, "lighting", sample).standard_normal(3) for sample in samples]
    return photometric.light(std * np.array(normals).reshape(-1, 3))


def check_image(image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Refuse what is not an RGB image in bytes, with the colours last.

    Raises:
        ValueError: with what was found.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        shape, kind = list(getattr(image, "shape", ())), getattr(image, "dtype", type(image).__name__)
        raise ValueError(
            f"image: expected a uint8 array [H, W, 3] (RGB), found {kind} {shape}; "
            "give numpy.asarray(PIL.Image.open(PATH).convert('RGB'))"
        )


def planes(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "1 3 H W"]:
    """The same memory in the order that resizing wants.

    Raises:
        ValueError: an image of another shape or type.
    """
    check_image(image)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def cut(image: UInt8[Tensor, "1 3 H W"], box: Box, out: UInt8[Tensor, "1 3 S S"]) -> None:
    """Resize a box, antialiased and bilinear, straight into its place in a batch (both channels last in memory).

    The pixels are those of `torch.nn.functional.interpolate(antialias=True)`, and at most 1 of 255 from Pillow's (0.01 in
    the mean). torch offers the operator behind it, which writes into a given place, under this internal name only.
    """
    top, left, high, wide = box
    if image.shape[:2] != (1, 3) or out.shape[:2] != (1, 3):  # the operator would write elsewhere, with a warning
        raise ValueError(
            f"expected an image [1, 3, H, W] and a place [1, 3, S, S], found {list(image.shape)} and {list(out.shape)}; "
            "use planes(image)"
        )
    source = image[:, :, top : top + high, left : left + wide]
    torch._C._nn._upsample_bilinear2d_aa(source, out.shape[2:], False, out=out)  # type: ignore[call-arg]


def to_input(
    crops: UInt8[Tensor, "N H W 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    in_channels: int = 3,
    lighting: Float32[Tensor, "N 3"] | None = None,
) -> Float32[Tensor, "N C H W"]:
    """Normalise uint8 RGB: (x / 255 - mean) / std; channels last.

    Args:
        in_channels: 3, or 1 for the luma, normalised by the luma of mean and std.
        lighting: is added to x / 255, as `lighting` gives it.

    Raises:
        ValueError: crops or lighting of another shape, or crops that are not bytes.
    """
    if crops.ndim != 4 or crops.shape[3] != 3 or crops.dtype != torch.uint8:
        raise ValueError(
            f"crops: expected uint8 [N, S, S, 3], found {str(crops.dtype).removeprefix('torch.')} {list(crops.shape)}; "
            "one image is image[None], and images with the channels first are images.permute(0, 2, 3, 1)"
        )
    if lighting is not None and lighting.shape != (len(crops), 3):
        raise ValueError(
            f"lighting: expected [{len(crops)}, 3], an RGB of each crop, found {list(lighting.shape)}; use views.lighting"
        )
    x = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    if lighting is not None:
        x += 255 * lighting[:, :, None, None]
    if in_channels == 1:
        luma = LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]
        grey_mean, grey_std = (sum(w * v for w, v in zip(LUMA, values, strict=True)) for values in (mean, std))
        return luma.sub_(255 * grey_mean).div_(255 * grey_std)
    shift, scale = _of_255(mean, x.device), _of_255(std, x.device)
    return x.sub_(shift).div_(scale)


@functools.cache
def _of_255(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """[3, 1, 1] on the device, brought there once: each time the host would wait."""
    return (torch.tensor(values) * 255)[:, None, None].to(device)


def resize_view(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Short side to 256/224 of `size`, then both sides to `size`: all of the image, in another shape (VOC's SVM).

    An image more than eight times as long as high is brought to `size` at once: the first step could take all memory.
    """
    check_image(image)
    height, width = image.shape[:2]
    short = round(size * 256 / 224)
    x = planes(image)
    if max(height, width) <= 8 * min(height, width):
        high, wide = (int(short * side / min(height, width)) for side in (height, width))
        x = torch.nn.functional.interpolate(x, (high, wide), mode="bilinear", antialias=True)
    squeezed = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return squeezed[0].permute(1, 2, 0).contiguous().numpy()


def val_view(image: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Short side to 256/224 of `size`, then the centre: the field's view for evaluation (256 and 224 at full size)."""
    return center_crop_view(image, round(size * 256 / 224), size)


def center_crop_view(image: UInt8[np.ndarray, "H W 3"], short: int, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Short side to `short`, then the centre square of `size` [pixels].

    Raises:
        ValueError: an image of another shape or type (so do all views made of this one).
    """
    check_image(image)
    height, width = image.shape[:2]
    most = 8 * min(height, width)  # of a very long image only the middle, or resizing it would take all memory
    if max(height, width) > most:
        top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
        image = image[top : top + most, left : left + most]
        height, width = image.shape[:2]
    high, wide = (int(short * side / min(height, width)) for side in (height, width))
    resized = torch.nn.functional.interpolate(planes(image), (high, wide), mode="bilinear", antialias=True)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    return resized[0, :, top : top + size, left : left + size].permute(1, 2, 0).contiguous().numpy()
