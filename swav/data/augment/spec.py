"""What is cut from each image and what is done to its colours: a frozen description without torch.

The loader, the micro-batches on a device and every protocol take a `ViewSpec`; they know nothing of recipes. A view is a crop
after its augmentation.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float

Box = tuple[int, int, int, int]  # top, left, height, width [pixels]

LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue in a grey value: ITU-R 601, as Pillow's "L"
TRIES = 10  # of torchvision's RandomResizedCrop
CROP_UNIFORMS = 2 * TRIES + 2  # uniform numbers behind a crop: area and shape of each try, then the place
RATIO = (3 / 4, 4 / 3)  # smallest and largest width / height of a crop


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Crops by the distribution of torchvision's RandomResizedCrop: area uniform, width / height log-uniform in 3/4..4/3.

    Attributes:
        count: crops of each image.
        size: side of the square that each is resized to [pixels].
        scale: smallest and largest area, as a share of the image's.
    """

    count: int
    size: int
    scale: tuple[float, float]

    def draws(self, uniforms: Float[np.ndarray, "B K 22"]) -> list[Any]:
        """Map uniform numbers of [0, 1) to what `box` takes: per image and crop the sides of each try, and the place."""
        low, high = self.scale
        area = low + (high - low) * uniforms[..., :TRIES]
        least, most = np.log(RATIO)
        ratio = np.exp(least + (most - least) * uniforms[..., TRIES : 2 * TRIES])
        sides = np.sqrt(np.stack([area / ratio, area * ratio], axis=-1)).tolist()  # over the root of the image's area
        places = uniforms[..., 2 * TRIES :].tolist()
        return [list(zip(*image, strict=True)) for image in zip(sides, places, strict=True)]

    def box(self, draw: Any, height: int, width: int) -> Box:
        """Return where to cut: the first try that fits into the image; else the largest central crop of an allowed shape."""
        sides, (down, right) = draw
        scale = math.sqrt(height * width)
        for relative_high, relative_wide in sides:
            high, wide = round(relative_high * scale), round(relative_wide * scale)
            if 0 < high <= height and 0 < wide <= width:
                return int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide
        high, wide = height, width
        if width / height < RATIO[0]:
            high = round(width / RATIO[0])
        elif width / height > RATIO[1]:
            wide = round(height * RATIO[1])
        return (height - high) // 2, (width - wide) // 2, high, wide


@dataclasses.dataclass(frozen=True)
class RandomWindowCrop:
    """Windows of `size` pixels anywhere in the image, at its own scale (torchvision's RandomCrop)."""

    count: int
    size: int

    def draws(self, uniforms: Float[np.ndarray, "B K 22"]) -> list[Any]:
        """Map uniform numbers of [0, 1) to what `box` takes: per image and crop the place."""
        places: list[Any] = uniforms[..., 2 * TRIES :].tolist()
        return places

    def box(self, draw: Any, height: int, width: int) -> Box:
        """Return where to cut.

        Raises:
            ValueError: the image is smaller than the window.
        """
        if min(height, width) < self.size:
            raise ValueError(
                f"expected an image of at least {self.size} pixels a side, found {height} x {width}; use square="
            )
        down, right = draw
        return int(down * (height - self.size + 1)), int(right * (width - self.size + 1)), self.size, self.size


AnyCrop = RandomResizedCrop | RandomWindowCrop


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """The views of an image: crops, flip, colour and blur, and the seed behind them. By default nothing but the crops.

    Attributes:
        crops: in the order of the batch; those of one size and law are one entry.
        seed: of everything that is drawn.
        square: before the crops the short side is resized to so many pixels, and the central square is cut; None: no.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast, saturation and hue; with `jitter_probability`.
        grayscale: probability of a grey view.
        blur: probability of a Gaussian blur of `blur_sigma` [pixels], of at most `blur_kernel` pixels.
        mean, std: of RGB [of 1], by which views are normalised.
        in_channels: 3, or 1 for the luma.
        lighting: standard deviation of the weights of AlexNet's colour noise (crops.lighting); 0: none.
    """

    crops: tuple[AnyCrop, ...]
    seed: int = 0
    square: int | None = None
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 23
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)
    in_channels: int = 3
    lighting: float = 0.0

    @property
    def num_views(self) -> int:
        return sum(crop.count for crop in self.crops)
