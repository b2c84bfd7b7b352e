"""The views that a recipe asks for, as the data layer takes them."""

from swav.config import Recipe
from swav.data.augment.spec import RandomResizedCrop, ViewSpec


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
