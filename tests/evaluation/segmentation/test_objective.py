"""Attacks: a loss with other weights, corners or fill than the protocol's; maps with classes that the image lacks; scores of
another size than the image's, or of logits that are not finite.

Run: pytest tests/evaluation/segmentation/test_objective.py
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swav.data.images import Images, Unreadable
from swav.data.targets import VOID, LabelMaps
from swav.errors import DataError, NumericsError
from swav.evaluation.samples import Sample, SampleBatch, Scale
from swav.evaluation.segmentation.augment import Augmentation, crop_place
from swav.evaluation.segmentation.fcn import resized
from swav.evaluation.segmentation.objective import Inference, Segmentation
from tests.evaluation.dense import encoder_of, in_memory


def label_maps(maps: np.ndarray, classes: int = 3) -> LabelMaps:
    """Maps in memory, of the classes 0, 1 .."""
    names = [f"{i}" for i in range(len(maps))]
    return LabelMaps(names, [f"class {k}" for k in range(classes)], lambda name: maps[int(name)], [b""] * len(maps))


class Fixed(nn.Module):
    """Heads that are functions of the normalised image; it keeps the shapes that it was given."""

    def __init__(self, *heads: Any):
        super().__init__()
        self.weight, self.heads = nn.Parameter(torch.ones(())), heads
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor) -> list[tuple[float, Tensor]]:
        self.seen.append(list(images.shape[2:]))
        return [(weight, head(images) * self.weight) for weight, head in self.heads]


def segmentation(model: nn.Module, val: Images, **how: Any) -> Segmentation:
    inference = Inference(how.pop("scale", Scale(64, 16)), **how)
    return Segmentation("x", encoder_of(), model, torch.optim.SGD(model.parameters(), lr=1.0), val, inference, 0)


NOTHING = in_memory(np.zeros((1, 8, 8, 3), np.uint8), label_maps(np.zeros((1, 8, 8), np.uint8)))


@pytest.mark.parametrize("align", [False, True])
def test_the_loss_is_the_weighted_sum_over_heads_of_the_mean_over_all_pixels(align):
    """By hand in float64, with images that are smaller than the crop."""
    rng = np.random.default_rng(0)
    logits = [torch.from_numpy(rng.normal(size=(2, 3, 4, 4))).float() for _ in range(2)]
    model = Fixed((1.0, lambda _: logits[0]), (0.4, lambda _: logits[1]))
    maps = rng.integers(0, 3, (2, 10, 10)).astype(np.uint8)
    maps[0, 7:], maps[1, :, 9:], maps[1, 2, 2] = VOID, VOID, VOID
    sizes = ((7, 10), (10, 9))
    samples = [
        Sample(rng.integers(0, 255, (*size, 3)).astype(np.uint8), one, i)
        for i, (size, one) in enumerate(zip(sizes, maps, strict=True))
    ]
    objective = segmentation(model, NOTHING, align_corners=align)
    found = objective.loss(model, SampleBatch(0, 0, samples, []))
    expected = 0.0
    for weight, each in zip((1.0, 0.4), logits, strict=True):
        large = nn.functional.interpolate(each.double(), (10, 10), mode="bilinear", align_corners=align)
        chances = large.log_softmax(dim=1).numpy()
        right = np.take_along_axis(chances, np.where(maps == VOID, 0, maps)[:, None].astype(int), axis=1)[:, 0]
        expected -= weight * right[maps != VOID].sum() / maps.size
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6) and model.seen == [[10, 10]]
    assert objective.count(SampleBatch(0, 0, samples, [])) == 2


def test_what_an_image_lacks_of_the_crop_is_the_mean():
    kept: list[Tensor] = []

    def head(images: Tensor) -> Tensor:
        kept.append(images)
        return torch.zeros(len(images), 3, 2, 2)

    model = Fixed((1.0, head))
    sample = Sample(np.full((5, 6, 3), 200, np.uint8), np.zeros((8, 8), np.uint8), 0)
    segmentation(model, NOTHING).loss(model, SampleBatch(0, 0, [sample], []))
    assert (kept[0][0, :, 5:] == 0).all() and (kept[0][0, :, :, 6:] == 0).all() and (kept[0][0, :, :5, :6] != 0).all()


def test_logits_are_resized_between_corners_or_centres():
    """Of 2 to 4: by 3 the middle row is the same either way."""
    logits = torch.arange(4.0).reshape(1, 1, 2, 2)
    torch.testing.assert_close(resized(logits, (4, 4), True)[0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    torch.testing.assert_close(resized(logits, (4, 4), False)[0, 0, 0], torch.tensor([0, 0.25, 0.75, 1]))


def test_a_map_gets_no_class_that_its_image_lacks():
    """Between 0 and 2 lies 1, which a map that is resized bilinearly would hold."""
    rng = np.random.default_rng(0)
    labels = (2 * (rng.random((1, 40, 50)) < 0.5)).astype(np.uint8)
    augment = Augmentation(label_maps(labels), Scale(256, 64), (0.5, 2.0), 48, 1.0, 0.5, colour=False)
    pixels = np.zeros((40, 50, 3), np.uint8)
    for seed in range(5):
        assert set(np.unique(augment(0, pixels, np.random.default_rng(seed)).target)) <= {0, 2, VOID}


class Places(np.random.Generator):
    """Crops whose left side is at the first place first, then at the second for ever."""

    def __init__(self, first: int, second: int):
        super().__init__(np.random.PCG64(0))
        self.left = iter([first, *[second] * 9])

    def integers(self, low: int, *_: Any) -> int:  # type: ignore[override]
        return 0 if low == 1 else next(self.left)


def test_the_share_of_a_class_is_of_the_labelled_pixels():
    labels = np.zeros((9, 100), np.uint8)
    labels[:, 96:97], labels[:, 97:] = 1, VOID
    # five columns of one class, one of another, three void: 5 of 6, not 5 of 9; then half and half
    labels[:, :4] = 1
    assert crop_place(labels, 9, 0.75, Places(91, 0)) == (0, 0)


# -- scoring


def by_colour(images: Tensor) -> Tensor:
    """Class 0 where the image is dark, 1 where it is bright, 2 nowhere; at half the size."""
    small = nn.functional.avg_pool2d(images[:, :1], 2)
    return torch.cat([-small, small, torch.full_like(small, -99)], dim=1)


def halves() -> Images:
    """Two images of 16 pixels a side, bright at the right, or below."""
    maps = np.zeros((2, 16, 16), np.uint8)
    maps[0, :, 8:] = maps[1, 8:] = 1
    return in_memory(np.repeat(255 * maps[..., None], 3, axis=3), label_maps(maps))


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ({}, [[16, 16]] * 2),
        ({"scale": Scale(64, 32)}, [[32, 32]] * 2),
        ({"multiple": 12}, [[24, 24]] * 2),
        ({"scale": Scale(64, 32), "side": 24, "stride": 8}, [[24, 24]] * 8),
    ],
)
def test_images_are_scored_at_their_own_size(how, seen):
    model = Fixed((1.0, by_colour)).eval()
    with torch.no_grad():
        found = segmentation(model, halves(), **how).evaluate()
    metrics = {metric.name: metric.value for metric in found.metrics}
    assert metrics["miou"] > 87 and metrics["miou_low"] <= metrics["miou"] <= metrics["miou_high"]
    assert found.scored == 2 and found.headline == f"mIoU {metrics['miou']:.2f}" and model.seen == seen
    if not how:
        assert metrics["miou"] == 100


def test_logits_that_are_not_finite_and_no_readable_image_are_errors(monkeypatch):
    images = halves()
    with pytest.raises(NumericsError, match="x: expected finite outputs to score by, found others"):
        segmentation(Fixed((1.0, lambda x: by_colour(x) * float("nan"))), images).evaluate()
    broken, real = {0}, Images.read

    def read(self: Images, i: Any) -> Any:
        if i in broken:
            raise Unreadable(str(i), "broken")
        return real(self, i)

    monkeypatch.setattr(Images, "read", read)
    assert segmentation(Fixed((1.0, by_colour)), images).evaluate().scored == 1
    broken.add(1)
    with pytest.raises(DataError, match="x: expected readable images to score, found none"):
        segmentation(Fixed((1.0, by_colour)), images).evaluate()
