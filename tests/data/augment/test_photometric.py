"""Attacked: colour and blur follow the published definition, in law and in pixels, and the two executions agree.

The published definition is torchvision's own operations on Pillow images (the original: ColorJitter(.8, .8, .8, .2) with
p .8, RandomGrayscale .2, a blur with p .5 and sigma U(.1, 2), a flip).
"""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import correlate1d
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as pillow

from swav.config import Crop, Recipe
from swav.data.augment.crops import ViewSampler
from swav.data.augment.photometric import (
    BRIGHTNESS,
    CONTRAST,
    FLIP,
    GREY,
    HUE,
    NUM_UNIFORMS,
    ORDER,
    SATURATION,
    SIGMA,
    apply_batched,
    apply_opencv,
    parameters,
)
from swav.views import view_spec
from tests.data.pictures import cut_alone, photos, picture

SPEC = view_spec(Recipe(crops=(Crop(count=1, size=224, scale=(0.14, 1.0)), Crop(count=1, size=96, scale=(0.05, 0.14)))))
OPERATIONS = (pillow.adjust_brightness, pillow.adjust_contrast, pillow.adjust_saturation, pillow.adjust_hue)
FACTORS = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
OFF = (1, 1, 1, 0)


def draw(count, recipe=SPEC, seed=0):
    return parameters(np.random.default_rng(seed).random((count, NUM_UNIFORMS)), recipe)


def neutral(count=1):
    params = np.zeros((count, 11), np.float32)
    params[:, ORDER] = range(4)
    params[:, BRIGHTNESS : SATURATION + 1] = 1
    return params


def published(crop, params):
    """Torchvision's own operations, on Pillow."""
    image = Image.fromarray(crop)
    if params[FLIP]:
        image = pillow.hflip(image)
    for operation in params[ORDER].astype(int):
        factor = float(params[FACTORS[operation]])
        if factor == OFF[operation]:
            continue
        if operation == 3:
            factor = (factor + np.sign(factor) * 0.5) / 255  # torchvision cuts off to whole steps again
        image = OPERATIONS[operation](image, factor)
    if params[GREY]:
        image = pillow.rgb_to_grayscale(image, 3)
    if params[SIGMA]:
        image = image.filter(ImageFilter.GaussianBlur(float(params[SIGMA])))
    return np.asarray(image)


def opencv(crops, params):
    return np.stack([apply_opencv(crop, p, SPEC) for crop, p in zip(crops, params, strict=True)])


def batched(crops, params):
    return apply_batched(torch.from_numpy(np.stack(crops)), torch.from_numpy(params), SPEC).numpy()


EXECUTIONS = [opencv, batched]


def difference(left, right):
    return np.abs(np.asarray(left).astype(int) - np.asarray(right))


@pytest.fixture(scope="module")
def crops(data_root):
    """Crops of photographs as they are trained on: [8, 224, 224, 3] and [8, 96, 96, 3]."""
    found: dict[int, list[np.ndarray]] = {224: [], 96: []}
    for sample, image in enumerate(photos(data_root)):
        boxes = ViewSampler(SPEC, 0, [sample]).boxes(0, *image.shape[:2])
        for box, size in zip(boxes, found, strict=True):
            found[size].append(cut_alone(image, box, size))
    return {size: np.stack(found[size]) for size in found}


# -- the law


def test_strengths_follow_torchvisions_colour_jitter():
    params = draw(4000)
    params = params[params[:, BRIGHTNESS] != 1]
    theirs = [ColorJitter.get_params([0.2, 1.8], [0.2, 1.8], [0.2, 1.8], [-0.2, 0.2]) for _ in range(3000)]
    for place, column in enumerate((BRIGHTNESS, CONTRAST, SATURATION)):
        assert ks_2samp(params[:, column], [draw[place + 1] for draw in theirs]).pvalue > 1e-3
    assert ks_2samp(params[:, HUE], [int(draw[4] * 255) for draw in theirs]).pvalue > 1e-3


def test_sigma_is_uniform():
    sigma = draw(4000)[:, SIGMA]
    assert ks_2samp(sigma[sigma > 0], np.random.default_rng(1).uniform(0.1, 2.0, 4000)).pvalue > 1e-3


@pytest.mark.parametrize("strength", [0.4, 1.0, 1.5])
def test_a_factor_is_never_below_zero_and_fills_its_range(strength):
    factor = draw(4000, dataclasses.replace(SPEC, jitter=(strength,) * 3 + (0.5,)))[:, BRIGHTNESS]
    low, high = max(0.0, 1 - strength), 1 + strength
    assert low <= factor.min() < low + 0.01 and high - 0.01 < factor.max() <= high


@pytest.mark.parametrize(
    ("column", "off", "probability"), [(FLIP, 0, 0.5), (BRIGHTNESS, 1, 0.8), (GREY, 0, 0.2), (SIGMA, 0, 0.5)]
)
def test_an_operation_is_on_with_its_probability(column, off, probability):
    on = (draw(10_000)[:, column] != off).mean()
    assert abs(on - probability) < 4 * np.sqrt(probability * (1 - probability) / 10_000)


def test_jitter_is_on_or_off_as_a_whole():
    params = draw(1000)
    on = params[:, (BRIGHTNESS, CONTRAST, SATURATION)] != 1
    assert (on.all(axis=1) | ~on.any(axis=1)).all()
    assert (params[~on[:, 0], HUE] == 0).all()


def test_every_order_of_operations_is_equally_probable():
    orders = collections.Counter(map(tuple, draw(4800)[:, ORDER].astype(int)))
    assert set(orders) == set(itertools.permutations(range(4)))
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_parameters_do_not_depend_on_each_other():
    params = draw(8000)
    params = params[params[:, BRIGHTNESS] != 1]
    correlation = np.corrcoef(params[:, [FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, SIGMA]].T)
    assert np.abs(correlation - np.eye(7)).max() < 0.05


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_zero_and_one_mean_never_and_always(probability):
    keys = ("flip", "jitter_probability", "grayscale", "blur")
    params = draw(500, dataclasses.replace(SPEC, **dict.fromkeys(keys, probability)))
    for column, off in [(FLIP, 0), (BRIGHTNESS, 1), (GREY, 0), (SIGMA, 0)]:
        assert ((params[:, column] != off) == bool(probability)).all()


# -- the pixels


@pytest.mark.parametrize("execute", EXECUTIONS)
def test_nothing_on_changes_nothing(execute):
    image = picture(40, 40)
    np.testing.assert_array_equal(execute([image], neutral())[0], image)


@pytest.mark.parametrize("execute", EXECUTIONS)
@pytest.mark.parametrize(("operation", "allowed"), [(0, 0.001), (1, 0.001), (2, 0.01), (3, 0.5)])
def test_each_operation_is_pillows(crops, execute, operation, allowed):
    for size in crops:
        params = neutral(8)
        low, high = (-51, 51) if operation == 3 else (0.2, 1.8)
        params[:, FACTORS[operation]] = np.linspace(low, high, 8).astype(int if operation == 3 else float)
        theirs = [published(crop, p) for crop, p in zip(crops[size], params, strict=True)]
        d = difference(execute(crops[size], params), theirs)
        assert d.mean() < allowed
        assert operation == 3 or d.max() <= 1


@pytest.mark.parametrize("execute", EXECUTIONS)
def test_flip_and_grey_are_pillows(crops, execute):
    params = neutral(8)
    params[:, FLIP] = 1
    np.testing.assert_array_equal(execute(crops[96], params), crops[96][:, :, ::-1])
    params[:, GREY] = 1
    theirs = [published(crop, p) for crop, p in zip(crops[96], params, strict=True)]
    d = difference(execute(crops[96], params), theirs)
    assert d.mean() < 0.02 and d.max() <= 1


@pytest.mark.parametrize("execute", EXECUTIONS)
@pytest.mark.parametrize(("size", "times"), [(224, 1), (96, 4)])
def test_the_whole_jitter_is_the_published_one_within_the_stated_fidelity(crops, execute, size, times):
    params = draw(8 * times, dataclasses.replace(SPEC, jitter_probability=1.0, blur=0.0))
    many = np.tile(crops[size], (times, 1, 1, 1))
    theirs = [published(crop, p) for crop, p in zip(many, params, strict=True)]
    assert difference(execute(many, params), theirs).mean() < 1.5


@pytest.mark.parametrize("execute", EXECUTIONS)
def test_jitter_of_strong_colours_stays_within_the_stated_fidelity(execute):
    """Pure and nearly grey colours, black and white: where hue and saturation are ill-defined."""
    levels = np.array([0, 1, 127, 254, 255], np.uint8)
    colours = np.array(list(itertools.product(levels, repeat=3)), np.uint8)  # 125
    crop = np.resize(colours, (12, 12, 3))
    params = draw(100, dataclasses.replace(SPEC, jitter_probability=1.0, blur=0.0))
    theirs = [published(crop, p) for p in params]
    assert difference(execute([crop] * 100, params), theirs).mean() < 1.5


@pytest.mark.parametrize("execute", EXECUTIONS)
@pytest.mark.parametrize(("size", "times"), [(224, 1), (96, 4)])
def test_blur_is_pillows_within_the_stated_fidelity(crops, execute, size, times):
    params = neutral(8 * times)
    params[:, SIGMA] = np.random.default_rng(0).uniform(0.1, 2.0, len(params))
    many = np.tile(crops[size], (times, 1, 1, 1))
    theirs = [published(crop, p) for crop, p in zip(many, params, strict=True)]
    assert difference(execute(many, params), theirs).mean() < 0.5


@pytest.mark.parametrize("execute", EXECUTIONS)
@pytest.mark.parametrize("side", [8, 9, 32])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_of_kernel_23_mirrored_at_the_border_of_crops_of_any_size(execute, side, sigma):
    image = picture(side, side)
    params = neutral()
    params[:, SIGMA] = sigma
    weights = np.exp(-0.5 * (np.arange(-11, 12) / np.float32(sigma)) ** 2)
    weights /= weights.sum()
    exact = correlate1d(correlate1d(image.astype(float), weights, 0, mode="mirror"), weights, 1, mode="mirror")
    d = np.abs(execute([image], params)[0] - exact)
    assert d.mean() < 0.5 and d.max() < 1.5


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_both_executions_agree_in_every_order_and_order_matters(order):
    image = picture(32, 32)
    params = neutral()
    params[:, ORDER] = order
    params[:, [BRIGHTNESS, CONTRAST, SATURATION, HUE]] = [1.5, 0.5, 1.7, 30]
    ours, theirs = opencv([image], params), batched([image], params)
    assert difference(ours, theirs).mean() < 1
    params[:, ORDER] = order[::-1]
    assert difference(ours, opencv([image], params)).mean() > 2


def test_a_batch_is_what_each_of_its_crops_gives_alone():
    images, params = [picture(24, 24, seed) for seed in range(16)], draw(16)
    together = batched(images, params)
    for i in range(16):
        np.testing.assert_array_equal(together[i], batched(images[i : i + 1], params[i : i + 1])[0])


def test_the_crop_given_to_opencv_stays_as_it_is():
    image = picture(24, 24)
    before = image.copy()
    for params in draw(20):
        apply_opencv(image, params, SPEC)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("execute", [opencv, batched])
def test_a_flip_comes_first_or_last_to_the_same_pixels(execute):
    """The benchmark page's code base flips last, ours and the original's first. No setting: it would set nothing."""
    crops = [picture(48, 48, seed) for seed in range(40)]
    first = draw(len(crops), seed=3)
    first[:, FLIP] = 1
    last = first.copy()
    last[:, FLIP] = 0
    d = difference(execute(crops, first), execute(crops, last)[:, :, ::-1])
    assert d.max() <= 1 and (d > 0).mean() < 1e-4  # a tie that is rounded the other way


@pytest.mark.gpu
def test_compiled_on_a_gpu_it_gives_the_same_and_never_waits():
    images, params = (
        torch.from_numpy(np.stack([picture(64, 64, seed) for seed in range(32)])),
        torch.from_numpy(draw(32)),
    )
    on_gpu = images.cuda(), params.cuda()
    apply_batched(*on_gpu, SPEC)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = apply_batched(*on_gpu, SPEC)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    d = difference(ours.cpu(), apply_batched(images, params, SPEC))
    assert d.mean() < 0.01 and d.max() <= 2
