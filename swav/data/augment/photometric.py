"""Colour and blur: one definition of the random parameters, two executions.

In a loader's worker, crop by crop, with OpenCV on uint8 (batched tensors lose on a CPU); on a device, batched, in torch
(there the opposite holds). Both stay close to Pillow: mean |d| of 255 within 1.5 for jitter and 0.5 for blur.

Source: section A.1 (SimCLR's augmentations), with the values of the released code: flip .5; brightness, contrast,
saturation, hue .8/.8/.8/.2 with p .8 in random order; grey .2; blur p .5, sigma U(.1, 2), OpenCV's kernel of 23.
"""

import functools
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from swav.data.augment.spec import LUMA, ViewSpec
from swav.system import has_compiler

# Columns of a parameter vector. An operation that is off has its neutral value: factor 1, shift 0, sigma 0.
FLIP, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA = 0, slice(1, 5), 5, 6, 7, 8, 9, 10
NUM_PARAMS = 11
NUM_UNIFORMS = 13
_CONTRAST_PLACE = 1  # of contrast among the four operations that ORDER permutes: brightness, contrast, saturation, hue


def parameters(uniforms: Float[np.ndarray, "*batch 13"], spec: ViewSpec) -> Float32[np.ndarray, "*batch 11"]:
    """Map uniform draws in [0, 1) to the augmentation parameters of each crop.

    Returns:
        [..., 11] flip (0 or 1), the four operations' numbers in the order in which they are done, factors of
        brightness, contrast and saturation, shift of the hue [1/256 of the circle], grey (0 or 1), sigma [pixels].
    """
    params = np.empty((*uniforms.shape[:-1], NUM_PARAMS), np.float32)
    jitter = uniforms[..., 1] < spec.jitter_probability
    params[..., FLIP] = uniforms[..., 0] < spec.flip
    params[..., ORDER] = uniforms[..., 2:6].argsort(axis=-1)  # every permutation is equally probable
    for column, strength in zip((BRIGHTNESS, CONTRAST, SATURATION), spec.jitter[:3], strict=True):
        factor = _between(max(0.0, 1 - strength), 1 + strength, uniforms[..., column + 1])
        params[..., column] = np.where(jitter, factor, 1)
    shift = _between(-spec.jitter[3], spec.jitter[3], uniforms[..., 9])
    params[..., HUE] = np.where(jitter, np.trunc(shift * 255), 0)  # the steps in which torchvision turns Pillow's hue
    params[..., GREY] = uniforms[..., 10] < spec.grayscale
    sigma = _between(*spec.blur_sigma, uniforms[..., 12])
    params[..., SIGMA] = np.where(uniforms[..., 11] < spec.blur, sigma, 0)
    return params


def _between(low: float, high: float, uniforms: np.ndarray) -> np.ndarray:
    return low + (high - low) * uniforms


# Eigenvalues and, column by column, eigenvectors of the covariance of RGB [of 1] over the pixels of ImageNet.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def light(weights: Float[np.ndarray, "B 3"]) -> Float32[np.ndarray, "B 3"]:
    """The change of RGB [of 1] that has these weights along the principal axes of ImageNet's colours, one for all pixels.

    Source: Krizhevsky et al. 2012 (AlexNet), section 4.1: [p1 p2 p3] [a1 l1, a2 l2, a3 l3], a drawn from N(0, .1).
    """
    change: Float32[np.ndarray, "B 3"] = ((weights * _EIGENVALUES) @ _EIGENVECTORS.T).astype(np.float32)
    return change


# -- in the worker: OpenCV, one crop


def apply_opencv(
    crop: UInt8[np.ndarray, "H W 3"], params: Float32[np.ndarray, " 11"], spec: ViewSpec
) -> UInt8[np.ndarray, "H W 3"]:
    """Flip, jitter, grey and blur of one crop, cut off to uint8 after each operation, as Pillow does.

    Returns:
        A new array, or `crop` itself where there is nothing to do; `crop` is not changed.
    """
    flip, *order, brightness, contrast, saturation, hue, grey, sigma = params.tolist()
    strengths = (brightness, contrast, saturation, hue)
    if flip:
        crop = cv2.flip(crop, 1)
    for operation in map(int, order):
        if strengths[operation] != _NEUTRAL[operation]:
            crop = _OPENCV[operation](crop, strengths[operation])
    if grey:
        crop = _grey_opencv(crop)
    return _blur_opencv(crop, sigma, spec.blur_kernel) if sigma else crop


# OpenCV rounds where Pillow cuts off the decimals. Not quite 0.5, so that whole numbers stay as they are.
_CUT_OFF = -0.4999


def _brightness_opencv(crop: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(crop, factor, crop, 0, _CUT_OFF)


def _contrast_opencv(crop: np.ndarray, factor: float) -> np.ndarray:
    mean_grey = int(cv2.mean(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.addWeighted(crop, factor, crop, 0, mean_grey * (1 - factor) + _CUT_OFF)


def _saturation_opencv(crop: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(crop, factor, _grey_opencv(crop), 1 - factor, _CUT_OFF)


def _hue_opencv(crop: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)
    shifts = np.zeros(crop.shape[1:], np.uint8)  # a whole row: four times as fast as hsv[..., 0]
    shifts[:, 0] = int(shift) % 256
    hsv += shifts  # wraps around, as the hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_THREE_GREYS = np.tile(np.array(LUMA), (3, 1))


def _grey_opencv(crop: np.ndarray) -> np.ndarray:
    return cv2.transform(crop, _THREE_GREYS)


def _blur_opencv(crop: np.ndarray, sigma: float, kernel: int) -> np.ndarray:
    """A Gaussian of at most `kernel` pixels; its tail beyond 3 sigma (0.3 % of the weight) is left out.

    In this form OpenCV needs 160 microseconds where GaussianBlur with all 23 weights needs 720 (a crop of 224 pixels,
    sigma 1.9); the results differ by a mean |d| of 0.05.
    """
    width = min(kernel, 2 * int(np.ceil(3 * sigma)) + 1)
    weights = cv2.getGaussianKernel(width, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(crop, -1, weights, weights)  # the image is mirrored at its border


_NEUTRAL = (1, 1, 1, 0)
_OPENCV: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (
    _brightness_opencv,
    _contrast_opencv,
    _saturation_opencv,
    _hue_opencv,
)


# -- on a device: torch, a batch


def apply_batched(
    crops: UInt8[Tensor, "N S S 3"], params: Float32[Tensor, "N 11"], spec: ViewSpec
) -> UInt8[Tensor, "N S S 3"]:
    """The same for a batch, on its device; the host never waits for it.

    On a GPU it is compiled at the first batch of each size (a minute, cached on disk), where it becomes a few fused
    kernels. Eager it moves a hundred times the bytes.
    """
    run = _compiled() if crops.is_cuda else _batched
    return run(crops, params, spec.blur_kernel, spec.blur > 0)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    if not has_compiler():
        warnings.warn(
            "no C compiler found (cc, gcc or clang): colour and blur run on the GPU without being compiled, "
            "which can double the time of a step; install one, as `apt install gcc`",
            stacklevel=2,
        )
        return _batched
    compiled: Callable[..., Tensor] = torch.compile(_batched, dynamic=False)
    return compiled


def _batched(crops: Tensor, params: Tensor, kernel: int, may_blur: bool) -> Tensor:
    """Every sample has its own order of operations, so each place in it chooses among them, sample by sample.

    Contrast needs the mean of a finished image: what comes before it is one pass over the pixels, what comes after it
    another. Where a place lies on the other side of a sample's contrast, it leaves that sample as it is.
    """
    x = crops.permute(0, 3, 1, 2).float()
    flip, *order, brightness, contrast, saturation, hue, grey, sigma = params[:, :, None, None, None].unbind(dim=1)
    contrast_at = (params[:, ORDER] == _CONTRAST_PLACE).int().argmax(dim=1)[:, None, None, None]

    def pointwise(x: Tensor, operation: Tensor) -> Tensor:
        lit = _blend(x, torch.zeros_like(x), brightness)
        coloured = torch.where(operation == 2, _blend(x, _grey(x), saturation), _turn_hue(x, hue))
        return torch.where(operation == 0, lit, coloured)

    x = torch.where(flip > 0, x.flip(3), x)
    for place in range(3):
        x = torch.where(place < contrast_at, pointwise(x, order[place]), x)
    x = _blend(x, (_grey(x).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor(), contrast)
    for place in range(1, 4):
        x = torch.where(place > contrast_at, pointwise(x, order[place]), x)
    x = torch.where(grey > 0, _grey(x), x)
    if may_blur:
        x = _blur(x, sigma, kernel)
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    of_red, of_green, of_blue = LUMA
    return (red * of_red + green * of_green + blue * of_blue + 0.5).floor()


def _blend(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return torch.where(factor == 1, x, (towards + (x - towards) * factor).clamp(0, 255).floor())


def _turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """To hue, saturation and value and back (as colorsys, in one formula each way)."""
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    value = x.amax(dim=1, keepdim=True)
    chroma = value - x.amin(dim=1, keepdim=True)
    some = chroma.clamp(min=1)  # of whole numbers: only a grey pixel's is below 1, and its hue does not matter
    sextant = torch.where(
        value == red,
        (green - blue) / some,
        torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )
    sextant = sextant + shift * (6 / 256)
    turned = []
    for offset in (5, 3, 1):
        k = (sextant + offset).remainder(6)
        turned.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.where(shift == 0, x, (torch.cat(turned, dim=1) + 0.5).floor())


def _blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """A separable Gaussian, mirrored at the border; with sigma 0 all weight is in the middle."""
    reach, side = kernel // 2, x.shape[-1]
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)) ** 2)  # [N, 1, 1, kernel]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    place = torch.arange(-reach, side + reach, device=x.device).remainder(2 * side - 2)
    mirrored = torch.minimum(place, 2 * side - 2 - place)  # any reach, however small the crop
    for axis in (2, 3):
        padded = x.index_select(axis, mirrored)
        total = torch.zeros_like(x)
        for i in range(kernel):
            total = total + padded.narrow(axis, i, side) * weights[..., i : i + 1]
        x = total
    return (x + 0.5).floor()
