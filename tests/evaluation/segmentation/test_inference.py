"""Attacks: windows that leave pixels out or pass the border; logits that are summed, not averaged; classes at the wrong size.

Run: pytest tests/evaluation/segmentation/test_inference.py
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from swav.evaluation.segmentation.inference import classes_of, sliding_logits, windows
from swav.evaluation.segmentation.miou import areas, confusion, interval, iou, mean_iou
from swav.evaluation.segmentation.training import poly


def test_the_published_windows_by_hand():
    found = [(a.start, a.stop, b.start, b.stop) for a, b in windows(1025, 2049, 769, 513)]
    tops, lefts = [0, 256], [0, 513, 1026, 1280]
    assert found == [(top, top + 769, left, left + 769) for top in tops for left in lefts]


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (9, 30), (3, 20)])
def test_windows_cover_every_pixel_and_stay_inside(size):
    seen = np.zeros(size, int)
    for box in windows(size[0], size[1], side=8, stride=5):
        assert all(0 <= part.start < part.stop <= side for part, side in zip(box, size, strict=True))
        seen[box] += 1
    assert seen.min() >= 1


def test_logits_of_windows_are_averaged():
    image = torch.randn(1, 2, 9, 13)
    marks = iter(range(1, 100))

    def logits(part: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 1, *part.shape[2:]), float(next(marks)))

    total, seen = np.zeros((9, 13)), np.zeros((9, 13))
    for mark, box in enumerate(windows(9, 13, 8, 5), start=1):
        total[box] += mark
        seen[box] += 1
    np.testing.assert_allclose(sliding_logits(logits, image, 8, 5)[0, 0].numpy(), total / seen, rtol=1e-6)


def test_the_class_of_every_pixel_is_told_at_the_images_own_size():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 2:] = 1.0
    found = classes_of(lambda part: torch.cat([0.5 - part, part - 0.5], dim=1), image, (8, 12), align_corners=False)
    assert found.shape == (8, 12) and (found[:, :6] == 0).all() and (found[:, 6:] == 1).all()


def maps(seed: int, classes: int = 5, images: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    truth = [rng.integers(0, classes, (7, 9)).astype(np.uint8) for _ in range(images)]
    found = [
        np.where(rng.random((7, 9)) < 0.6, one, rng.integers(0, classes, (7, 9))).astype(np.uint8) for one in truth
    ]
    for one in truth:
        one[rng.random((7, 9)) < 0.2] = 255
    return truth, found


def test_counts_and_means_are_scikit_learns():
    truth, found = maps(0)
    counts = np.sum([confusion(b, a, 5) for a, b in zip(truth, found, strict=True)], axis=0)
    a, b = np.concatenate([one.ravel() for one in truth]), np.concatenate([one.ravel() for one in found])
    assert (counts == confusion_matrix(a[a != 255], b[a != 255])).all()
    expected = jaccard_score(a[a != 255], b[a != 255], average=None)
    np.testing.assert_allclose(iou(areas(counts)), 100 * expected, rtol=1e-12)
    assert float(mean_iou(areas(counts))) == pytest.approx(100 * expected.mean(), abs=1e-10)


def test_pixels_are_summed_over_images_before_they_are_divided():
    a = areas(confusion(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8), 2))
    b = areas(confusion(np.array([[1, 1, 1, 1]], np.uint8), np.array([[1, 1, 1, 1]], np.uint8), 2))
    assert float(mean_iou(a + b)) == pytest.approx(100 * (1 / 2 + 4 / 5) / 2)


def test_a_class_that_is_nowhere_does_not_count_and_one_that_is_only_predicted_does():
    truth, found = np.zeros((1, 4), np.uint8), np.array([[0, 0, 0, 2]], np.uint8)
    total = areas(confusion(found, truth, 4))
    assert np.isnan(iou(total)[[1, 3]]).all() and iou(total)[2] == 0
    assert float(mean_iou(total)) == pytest.approx(100 * (3 / 4 + 0) / 2)


def test_a_class_that_there_is_not_is_an_error_and_void_is_not():
    with pytest.raises(ValueError, match="below 3, found 3"):
        confusion(np.zeros((1, 2), np.uint8), np.array([[3, 0]], np.uint8), 3)
    with pytest.raises(ValueError, match="one shape"):
        confusion(np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.uint8), 3)
    assert confusion(np.array([[9]], np.uint8), np.array([[255]], np.uint8), 3).sum() == 0


def test_counts_are_whole_numbers_of_64_bits():
    assert areas(confusion(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), 2)).dtype == np.int64


def test_the_interval_holds_the_mean_and_narrows_with_more_images():
    def found(images: int) -> tuple[float, float, float]:
        truth, predicted = maps(1, images=images)
        each = np.stack([areas(confusion(b, a, 5)) for a, b in zip(truth, predicted, strict=True)])
        return (*interval(each), float(mean_iou(each.sum(axis=0))))

    few, many = found(32), found(512)
    assert few[0] < few[2] < few[1] and many[0] < many[2] < many[1]
    assert (many[1] - many[0]) < (few[1] - few[0]) / 2
    assert found(32) == few


def test_the_rate_falls_by_the_power_to_a_hundredth():
    rates = poly(0.01, 20_000)
    assert rates(0) == [pytest.approx(0.01)]
    assert rates(10_000) == [pytest.approx((0.01 - 1e-4) * 0.5**0.9 + 1e-4)]
    assert rates(20_000) == [pytest.approx(1e-4)]
