"""Attacked: views of the transform that differ from the loader's, that depend on more than seed, epoch and sample, or on how an image
is given; images that are taken for others.

Run: pytest tests/test_views.py
"""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swav.config import Recipe
from swav.data.augment.crops import to_input
from swav.data.loader import Loader
from swav.data.sources.open import open_images
from swav.errors import ConfigError, DataError
from swav.views import MultiCrop, view_spec
from tests.data.pictures import picture

CROPS = [(2, 24, (0.14, 1.0)), (3, 16, (0.05, 0.14))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for i in range(6):
        Image.fromarray(picture(40 + i, 56, seed=i)).save(path / f"{i}.png")
    return path


def loaded(folder, epoch, seed):
    """Every view of an epoch as pre-training has it, normalised: {sample: [V tensors]}."""
    crops = [{"count": count, "size": size, "scale": scale} for count, size, scale in CROPS]
    recipe = Recipe.model_validate({"crops": crops, "batch": 3, "workers": 0, "seed": seed})
    images = open_images(folder, "train")
    whole: dict[str, Any] = {"rank": 0, "world_size": 1, "steps_per_epoch": 2, "on_device": False}
    found: dict[int, list[torch.Tensor]] = {}
    for batch in Loader(
        images, view_spec(recipe), batch=3, workers=0, start_step=2 * epoch, total_steps=2 * epoch + 2, **whole
    ):
        kinds = [to_input(kind, recipe.mean, recipe.std) for kind in batch.views]
        for b, sample in enumerate(batch.indices.tolist()):
            found[sample] = [view for kind in kinds for view in kind[b :: len(batch.indices)]]
    return images, found


@pytest.mark.parametrize(("epoch", "seed"), [(0, 0), (3, 7)])
def test_views_are_those_of_pretraining_to_the_bit(folder, epoch, seed):
    views = MultiCrop(CROPS, seed=seed)
    images, found = loaded(folder, epoch, seed)
    assert sorted(found) == list(range(6))
    for sample, expected in found.items():
        made = views(folder / images.name(sample), epoch, sample)
        assert [view.shape[-1] for view in made] == list(views.sizes) == [24, 24, 16, 16, 16]
        assert all(torch.equal(own, its) for own, its in zip(made, expected, strict=True))


def test_views_depend_on_seed_epoch_and_sample_and_on_no_generator(folder):
    image = folder / "0.png"
    views = MultiCrop(CROPS)
    first = views(image, 0, 0)
    torch.rand(3), np.random.random()
    again = MultiCrop(CROPS)(image, 0, 0)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (views(image, 1, 0), views(image, 0, 1), MultiCrop(CROPS, seed=1)(image, 0, 0)):
        assert not any(torch.equal(one, its) for one, its in zip(first, other, strict=True))


def test_a_file_a_pil_image_and_an_array_give_the_same_views(folder):
    views = MultiCrop(CROPS)
    with Image.open(folder / "1.png") as opened:
        given = [
            folder / "1.png",
            str(folder / "1.png"),
            opened,
            np.asarray(opened),
            np.array(opened)[:, ::-1][:, ::-1],
        ]
        made = [views(image, 2, 1) for image in given]
    for other in made[1:]:
        assert all(torch.equal(one, its) for one, its in zip(made[0], other, strict=True))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_a_pil_image_of_any_mode_is_taken(mode):
    grey = Image.fromarray(picture(30, 40)).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    assert image.mode == mode
    views = MultiCrop(CROPS, in_channels=1)(image, 0, 0)
    assert all(view.shape[0] == 1 and torch.isfinite(view).all() for view in views)


def test_an_array_is_left_as_it_is():
    image = picture(30, 40)
    before = image.copy()
    for epoch in range(20):
        MultiCrop(CROPS, blur=1.0)(image, epoch, 0)
    assert np.array_equal(image, before)


def test_the_defaults_are_the_recipes():
    views, recipe = MultiCrop(), Recipe()
    assert [(crop.count, crop.size, crop.scale) for crop in recipe.crops] == list(
        inspect.signature(MultiCrop).parameters["crops"].default
    )
    for name, parameter in inspect.signature(MultiCrop).parameters.items():
        assert name == "crops" or parameter.default == getattr(recipe, name), name
    assert views.sizes == recipe.view_sizes and views.mean == recipe.mean and views.std == recipe.std


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crops": [(2, 24, (0.5, 0.1))]}, "scale: expected 0 < min <= max <= 1"),
        ({"crops": [(1, 24, (0.1, 0.5))]}, "expected at least 2 crops"),
        ({"flip": 1.5}, "flip"),
        ({"blur_kernel": 4}, "blur_kernel: expected an odd number, found 4"),
        ({"in_channels": 2}, "in_channels"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changes, words):
    with pytest.raises(ConfigError, match=rf"MultiCrop: .*{words}") as caught:
        MultiCrop(**{"crops": CROPS} | changes)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no pixels")
    views = MultiCrop(CROPS)
    with pytest.raises(DataError, match=r"text\.png: expected an image, found not an image"):
        views(tmp_path / "text.png", 0, 0)
    with pytest.raises(DataError, match=r"nowhere\.png: expected an image, found No such file"):
        views(tmp_path / "nowhere.png", 0, 0)
    with pytest.raises(DataError, match="white is not defined"):
        views(Image.new("F", (30, 30)), 0, 0)
