"""Attacked: crops follow torchvision's RandomResizedCrop, in law and in pixels, for images of any shape; and what
happens to a sample depends on (seed, epoch, sample, view) and on nothing else.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import CenterCrop, Normalize, RandomResizedCrop, Resize
from torchvision.transforms.functional import resize, resized_crop, to_tensor

from swav.config import Crop, Recipe
from swav.data.augment.crops import ViewSampler, cut, planes, resize_view, to_input, val_view
from swav.data.augment.spec import RandomWindowCrop
from swav.views import view_spec
from tests.data.pictures import cut_alone, photos, picture

SPEC = view_spec(Recipe(crops=(Crop(count=2, size=224, scale=(0.14, 1.0)), Crop(count=2, size=96, scale=(0.05, 0.14)))))
SHAPES = [(375, 500), (100, 400), (32, 32), (3, 2)]
LONG = [(1, 1), (1, 5000), (5000, 1), (2, 90), (1, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [0, 1])
def test_boxes_follow_the_law_of_torchvision(shape, kind):
    count = 1500
    image, scale = torch.empty(3, *shape), SPEC.crops[kind].scale
    theirs = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    draws = ViewSampler(SPEC, 0, range(count // 2))
    ours = [box for b in range(count // 2) for box in draws.boxes(b, *shape)[2 * kind : 2 * kind + 2]]
    features = {
        "area": lambda top, left, high, wide: high * wide,
        "shape": lambda top, left, high, wide: wide / high,
        "top": lambda top, left, high, wide: top / max(1, shape[0] - high),
        "left": lambda top, left, high, wide: left / max(1, shape[1] - wide),
    }
    for name, feature in features.items():
        p = ks_2samp([feature(*box) for box in ours], [feature(*box) for box in theirs]).pvalue
        assert p > 1e-3, name


@pytest.mark.parametrize("shape", LONG)
def test_boxes_of_long_and_tiny_images_are_torchvisions_and_lie_inside(shape):
    theirs = {RandomResizedCrop.get_params(torch.empty(3, *shape), [0.14, 1.0], [3 / 4, 4 / 3]) for _ in range(200)}
    draws = ViewSampler(SPEC, 0, range(100))
    ours = {box for b in range(100) for box in draws.boxes(b, *shape)[:2]}
    assert ours == theirs
    for top, left, high, wide in ours:
        assert 0 <= top <= top + high <= shape[0] and 0 <= left <= left + wide <= shape[1] and high > 0 < wide


@pytest.mark.parametrize("shape", [*SHAPES, *LONG])
@pytest.mark.parametrize("size", [8, 32, 224])
def test_a_crop_has_the_pixels_of_antialiased_resizing(shape, size):
    image = picture(*shape)
    draws = ViewSampler(SPEC, 0, range(2))
    for box in {(0, 0, *shape), *(box for b in range(2) for box in draws.boxes(b, *shape))}:
        top, left, high, wide = box
        crop = torch.from_numpy(image[top : top + high, left : left + wide].copy()).permute(2, 0, 1)
        ours = cut_alone(image, box, size)
        exact = torch.nn.functional.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]
        np.testing.assert_array_equal(ours, exact.permute(1, 2, 0))
        torchvisions = resize(crop, [size, size], antialias=True).permute(1, 2, 0).numpy()  # by way of float32
        assert np.abs(ours.astype(int) - torchvisions).max() <= 1
        pillows = np.asarray(resized_crop(Image.fromarray(image), *box, [size, size]))
        assert np.abs(ours.astype(int) - pillows).max() <= 1


def test_a_crop_is_written_into_its_place_and_nowhere_else():
    batch = torch.full((3, 16, 16, 3), 7, dtype=torch.uint8)
    image = np.full((40, 50, 3), 200, np.uint8)
    cut(planes(image), (3, 4, 20, 30), batch.permute(0, 3, 1, 2)[1:2])
    assert (batch[1] == 200).all() and (batch[[0, 2]] == 7).all()


@pytest.mark.parametrize("kind", [0, 1])
def test_crops_of_photographs_are_pillows_within_the_stated_fidelity(data_root, kind):
    size, differences = SPEC.crops[kind].size, []
    for b, image in enumerate(photos(data_root)):
        box = ViewSampler(SPEC, 0, [b]).boxes(0, *image.shape[:2])[2 * kind]
        theirs = np.asarray(resized_crop(Image.fromarray(image), *box, [size, size]))
        differences.append(np.abs(cut_alone(image, box, size).astype(int) - theirs))
    assert np.mean(differences) < 0.05 and np.max(differences) <= 1


def test_what_is_drawn_for_a_sample_does_not_depend_on_its_companions():
    together = ViewSampler(SPEC, 3, [5, 1_000_000_007, 0])
    for b, sample in enumerate([5, 1_000_000_007, 0]):
        alone = ViewSampler(SPEC, 3, [sample])
        np.testing.assert_array_equal(together.params[b], alone.params[0])
        assert together.boxes(b, 300, 400) == alone.boxes(0, 300, 400)


def test_seed_epoch_sample_and_view_each_change_what_is_drawn():
    def boxes(seed, epoch, sample):
        return tuple(ViewSampler(dataclasses.replace(SPEC, seed=seed), epoch, [sample]).boxes(0, 300, 400))

    assert len({boxes(seed, epoch, sample) for seed in (0, 1) for epoch in (0, 1) for sample in (0, 1)}) == 8
    assert len(set(boxes(0, 0, 0))) == 4
    assert boxes(0, 1, 2) == boxes(0, 1, 2)


def test_neighbouring_samples_epochs_and_views_are_not_correlated():
    params = np.stack(
        [ViewSampler(SPEC, epoch, range(1500)).params[..., 5] for epoch in (0, 1)]
    )  # [epoch, sample, view]
    for first, second in [(params[0], params[1]), (params[:, :-1], params[:, 1:]), (params[..., 0], params[..., 1])]:
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.06


def test_input_is_normalised_as_torchvision_does_and_channels_last():
    crops = torch.from_numpy(np.stack([picture(24, 24, seed) for seed in range(2)]))
    ours = to_input(crops, SPEC.mean, SPEC.std)
    normalise = Normalize(SPEC.mean, SPEC.std)
    theirs = torch.stack([normalise(to_tensor(Image.fromarray(crop.numpy()))) for crop in crops])
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert ours.data_ptr() != to_input(crops, SPEC.mean, SPEC.std).data_ptr()


def test_input_of_one_channel_is_the_luma_normalised_as_a_grey_pixel_in_rgb_would_be():
    crops = torch.from_numpy(np.stack([picture(24, 24, seed) for seed in range(2)]))
    luma = np.stack([np.asarray(Image.fromarray(crop.numpy()).convert("L"), np.float32) for crop in crops])
    ours = to_input(crops, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), in_channels=1)
    assert ours.shape == (2, 1, 24, 24)
    theirs = (torch.from_numpy(luma)[:, None] / 255 - 0.4) / 0.2
    torch.testing.assert_close(ours, theirs, atol=1.01 / 255 / 0.2, rtol=0)  # Pillow rounds to whole numbers
    grey = crops[..., :1].expand(-1, -1, -1, 3)
    one, three = (to_input(grey, SPEC.mean, SPEC.std, in_channels) for in_channels in (1, 3))
    weights = torch.tensor([0.299, 0.587, 0.114]) * torch.tensor(SPEC.std)
    torch.testing.assert_close(one[:, 0], (three * weights[:, None, None]).sum(dim=1) / weights.sum())


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 64), (37, 41), (5, 3)])
@pytest.mark.parametrize("size", [224, 96, 32])
def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop(shape, size):
    image = picture(*shape)
    theirs = CenterCrop(size)(Resize(round(size * 256 / 224))(Image.fromarray(image)))
    difference = np.abs(val_view(image, size).astype(int) - np.asarray(theirs))
    assert difference.mean() < 0.05 and difference.max() <= 1


@pytest.mark.parametrize("shape", LONG)
def test_the_evaluation_view_of_a_long_or_tiny_image_is_its_middle(shape):
    image = np.full((*shape, 3), 10, np.uint8)
    image[(shape[0] - 1) // 2 : shape[0] // 2 + 1, (shape[1] - 1) // 2 : shape[1] // 2 + 1] = 250
    view = val_view(image, 32)
    assert view.shape == (32, 32, 3) and view.flags.c_contiguous
    assert (view[15:17, 15:17] > 200).all()


@pytest.mark.parametrize(
    ("shape", "size", "mean"), [((375, 500), 224, 0.01), ((100, 400), 112, 0.01), ((500, 333), 224, 0.25)]
)
def test_the_squeezed_view_is_torchvisions_two_resizes(shape, size, mean):
    """An upright image is shrunk down the columns first, and across them first by Pillow: both round in between."""
    image = picture(*shape)
    theirs = Resize((size, size))(Resize(round(size * 256 / 224))(Image.fromarray(image)))
    difference = np.abs(resize_view(image, size).astype(int) - np.asarray(theirs))
    assert difference.mean() < mean and difference.max() <= 1


@pytest.mark.parametrize("shape", LONG)
def test_the_squeezed_view_shows_both_ends_of_an_image_of_any_shape(shape):
    image = np.full((*shape, 3), 10, np.uint8)
    image[-max(1, shape[0] // 2) :, -max(1, shape[1] // 2) :] = 250
    view = resize_view(image, 32)
    assert view.shape == (32, 32, 3) and view.flags.c_contiguous and view[-2, -2, 0] > 200
    assert max(shape) == 1 or view[0, 0, 0] < 60


def test_a_window_that_an_image_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="at least 64 pixels a side, found 40 x 50"):
        RandomWindowCrop(1, 64).box((0.5, 0.5), 40, 50)
