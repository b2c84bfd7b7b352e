"""Colour and blur: one definition of the random parameters, two executions.

In a loader's worker, crop by crop, with OpenCV on uint8 (where batched tensors lose); on a device, batched, in torch
(where the opposite holds). Both stay close to Pillow: mean |d| of 255 within 1.5 for jitter and 0.5 for blur.

Source: section A.1 (SimCLR's augmentations), with the values of the released code: flip .5; jitter .8/.8/.8/.2 with
p .8 in random order; grey .2; blur p .5, sigma U(.1, 2), kernel 23 as OpenCV made it for the released weights.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from swav.config import Recipe

# Columns of a parameter vector. Factors are 1 and shifts 0 where an operation is off; sigma 0: no blur.
FLIP, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA = 0, slice(1, 5), 5, 6, 7, 8, 9, 10
NUM_PARAMS = 11
NUM_UNIFORMS = 13


def parameters(uniforms: Float[np.ndarray, "V 13"], recipe: Recipe) -> Float32[np.ndarray, "V 11"]:
    """Turns uniform numbers into what is done to each crop.

    Args:
        uniforms: [V, 13] in [0, 1).
        recipe: probabilities and strengths.
    """
    params = np.zeros((len(uniforms), NUM_PARAMS), np.float32)
    jitter = uniforms[:, 1] < recipe.jitter_probability
    params[:, FLIP] = uniforms[:, 0] < recipe.flip
    params[:, ORDER] = uniforms[:, 2:6].argsort(axis=1)  # a random permutation of the four operations
    for column, strength in zip((BRIGHTNESS, CONTRAST, SATURATION), recipe.jitter[:3], strict=True):
        low, high = max(0.0, 1 - strength), 1 + strength
        params[:, column] = np.where(jitter, low + (high - low) * uniforms[:, column + 1], 1.0)
    params[:, HUE] = np.where(jitter, recipe.jitter[3] * (2 * uniforms[:, 9] - 1), 0.0)
    params[:, GREY] = uniforms[:, 10] < recipe.grayscale
    low, high = recipe.blur_sigma
    params[:, SIGMA] = np.where(uniforms[:, 11] < recipe.blur, low + (high - low) * uniforms[:, 12], 0.0)
    return params


_LEVELS = np.arange(256, dtype=np.float32)


def apply_opencv(
    crop: UInt8[np.ndarray, "H W 3"], params: Float32[np.ndarray, " 11"], recipe: Recipe
) -> UInt8[np.ndarray, "H W 3"]:
    """Flip, jitter, grey and blur of one crop, rounded to uint8 after each operation, as Pillow does."""
    if params[FLIP]:
        crop = cv2.flip(crop, 1)
    for operation in params[ORDER]:
        crop = _OPENCV[int(operation)](crop, params)
    if params[GREY]:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if params[SIGMA] > 0:
        sigma = float(params[SIGMA])
        crop = cv2.GaussianBlur(crop, (recipe.blur_kernel, recipe.blur_kernel), sigma, borderType=cv2.BORDER_REFLECT_101)
    return crop


def _brightness(crop: np.ndarray, params: np.ndarray) -> np.ndarray:
    factor = params[BRIGHTNESS]
    return crop if factor == 1 else cv2.LUT(crop, np.clip(_LEVELS * factor, 0, 255).astype(np.uint8))


def _contrast(crop: np.ndarray, params: np.ndarray) -> np.ndarray:
    factor = params[CONTRAST]
    if factor == 1:
        return crop
    grey = int(cv2.mean(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(crop, np.clip(grey + (_LEVELS - grey) * factor, 0, 255).astype(np.uint8))


def _saturation(crop: np.ndarray, params: np.ndarray) -> np.ndarray:
    factor = float(params[SATURATION])
    if factor == 1:
        return crop
    grey = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(crop, factor, grey, 1 - factor, -0.499)  # Pillow cuts off, OpenCV rounds


def _hue(crop: np.ndarray, params: np.ndarray) -> np.ndarray:
    shift = int(params[HUE] * 255)
    if shift == 0:
        return crop
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(shift % 256)  # wraps around, as the hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_OPENCV = (_brightness, _contrast, _saturation, _hue)


def apply_batched(
    crops: UInt8[Tensor, "N S S 3"], params: Float32[Tensor, "N 11"], recipe: Recipe
) -> UInt8[Tensor, "N S S 3"]:
    """The same for a batch, on its device. Compiled on a GPU, where it becomes a few fused kernels; no host waits."""
    run = _compiled() if crops.is_cuda else _batched
    return run(crops, params, recipe.blur_kernel, recipe.blur > 0)  # type: ignore[no-any-return]


def _compiled():  # type: ignore[no-untyped-def]
    global _COMPILED
    if _COMPILED is None:
        _COMPILED = torch.compile(_batched, dynamic=False)
    return _COMPILED


_COMPILED = None


def _batched(crops: Tensor, params: Tensor, kernel: int, may_blur: bool) -> Tensor:
    x = crops.permute(0, 3, 1, 2).float()
    column = params[:, :, None, None, None].unbind(dim=1)  # each [N, 1, 1, 1]
    x = torch.where(column[FLIP] > 0, x.flip(3), x)
    for position in range(ORDER.start, ORDER.stop):  # every sample has its own order
        operation = column[position]
        x = torch.where(
            operation < 2,
            torch.where(operation < 1, _scaled(x, torch.zeros_like(x), column[BRIGHTNESS]), _scaled(x, _mean_grey(x), column[CONTRAST])),
            torch.where(operation < 3, _scaled(x, _grey(x), column[SATURATION]), _shifted_hue(x, column[HUE])),
        )
    x = torch.where(column[GREY] > 0, _grey(x), x)
    if may_blur:
        x = _blurred(x, params[:, SIGMA], kernel)
    return x.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _grey(x: Tensor) -> Tensor:
    return (x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114 + 0.5).floor()


def _mean_grey(x: Tensor) -> Tensor:
    return (_grey(x).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()


def _scaled(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return torch.where(factor == 1, x, (towards + (x - towards) * factor).clamp(0, 255).floor())


def _shifted_hue(x: Tensor, shift: Tensor) -> Tensor:
    red, green, blue = x.unbind(dim=1)
    high, low = x.amax(dim=1), x.amin(dim=1)
    chroma = high - low
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(high == red, (green - blue) / safe, torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    hue = sector / 6 + shift[:, 0]
    k = torch.stack([hue * 6 + offset for offset in (5.0, 3.0, 1.0)], dim=1).remainder(6)
    rgb = high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
    return torch.where(shift == 0, x, (rgb + 0.5).floor())


def _blurred(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    reach, side = kernel // 2, x.shape[-1]
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)  # sigma 0: all weight on the middle
    place = torch.arange(-reach, side + reach, device=x.device).remainder(2 * side - 2)
    mirrored = torch.minimum(place, 2 * side - 2 - place)  # reflection without the edge, of any length
    for axis in (2, 3):
        padded = x.index_select(axis, mirrored)
        x = sum(  # type: ignore[assignment]
            padded.narrow(axis, i, side) * weights[:, i, None, None, None] for i in range(kernel)
        )
    return (x + 0.5 * (sigma > 0)[:, None, None, None]).floor()
