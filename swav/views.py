"""Views as a recipe asks for them: for the loader, and of one image as a transform, for a training loop of one's own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from swav.config import Recipe
from swav.data.augment.crops import ViewSampler, check_image, cut, planes, to_input
from swav.data.augment.photometric import apply_opencv
from swav.data.augment.spec import RandomResizedCrop, ViewSpec
from swav.data.sources.decode import as_pixels
from swav.recipe_files import validated

Crops = Sequence[tuple[int, int, tuple[float, float]]]


def view_spec(recipe: Recipe) -> ViewSpec:
    """Return the views of a recipe without `auto`."""
    return ViewSpec(
        crops=tuple(RandomResizedCrop(crop.count, crop.size, crop.scale) for crop in recipe.crops),
        seed=recipe.seed,
        flip=recipe.flip,
        jitter=recipe.jitter,
        jitter_probability=recipe.jitter_probability,
        grayscale=recipe.grayscale,
        blur=recipe.blur,
        blur_sigma=recipe.blur_sigma,
        blur_kernel=recipe.blur_kernel,
        mean=recipe.mean,
        std=recipe.std,
        in_channels=recipe.in_channels,
    )


class MultiCrop:
    """Crops of several sizes of an image, each flipped, coloured and blurred at random, and normalised: the views that
    pre-training makes of it, with the same random numbers and the same pixels.

    Nothing is drawn from a global generator: views depend on the seed, the epoch and the sample alone, whoever makes them. The
    defaults are the paper's.

    Args:
        crops: (count, size, scale) of each kind: crops per image, side [pixels], smallest and largest share of the image's area.
        seed: of everything that is drawn.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_probability: of these four together.
        grayscale: probability of grey.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma [pixels].
        blur_kernel: width of its kernel [pixels], odd.
        mean, std: of the normalisation, for RGB in 0..1.
        in_channels: 3, or 1 for the luma.

    Attributes:
        mean, std: as given; who measures the network needs the same.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        crops: Crops = ((2, 224, (0.14, 1.0)), (6, 96, (0.05, 0.14))),
        *,
        seed: int = 0,
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2),
        jitter_probability: float = 0.8,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int = 23,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.228, 0.224, 0.225),
        in_channels: int = 3,
    ):
        self.mean, self.std = mean, std
        recipe = validated(
            Recipe,
            {
                "crops": [{"count": count, "size": size, "scale": scale} for count, size, scale in crops],
                "seed": seed,
                "flip": flip,
                "jitter": jitter,
                "jitter_probability": jitter_probability,
                "grayscale": grayscale,
                "blur": blur,
                "blur_sigma": blur_sigma,
                "blur_kernel": blur_kernel,
                "mean": mean,
                "std": std,
                "in_channels": in_channels,
            },
            "MultiCrop",
        )
        self._spec = view_spec(recipe)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of every view, in order [pixels]."""
        return tuple(crop.size for crop in self._spec.crops for _ in range(crop.count))

    def __call__(
        self, image: str | Path | Image.Image | UInt8[np.ndarray, "H W 3"], epoch: int, sample: int
    ) -> list[Float32[Tensor, "C S S"]]:
        """Make the views of an image, in the order of `crops`.

        Args:
            image: a file, a PIL image of any mode, or RGB values 0..255 of type uint8 [H, W, 3].
            epoch: 0-based; another one gives other views.
            sample: index of the image in its data set; another one has views of its own.

        Raises:
            DataError: a file or a PIL image cannot be read.
            ValueError: an array of another shape or type.
        """
        pixels = as_pixels(image)
        check_image(pixels)
        source, draws, spec = planes(pixels), ViewSampler(self._spec, epoch, [sample]), self._spec
        views = []
        for v, (box, size) in enumerate(zip(draws.boxes(0, *pixels.shape[:2]), self.sizes, strict=True)):
            view = torch.empty(1, size, size, 3, dtype=torch.uint8)
            cut(source, box, view.permute(0, 3, 1, 2))
            coloured = torch.from_numpy(apply_opencv(view[0].numpy(), draws.params[0, v], spec))
            views.append(to_input(coloured[None], self.mean, self.std, spec.in_channels)[0])
        return views
