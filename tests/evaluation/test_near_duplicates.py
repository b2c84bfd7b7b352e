"""Attacks: copies among what is learned from that nobody counts, strangers that are taken for copies, and a comparison within a fold.

Run: pytest tests/evaluation/test_near_duplicates.py
"""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from swav.data.images import Images
from swav.data.sources.open import open_images
from swav.evaluation import near_duplicates as near
from swav.evaluation.near_duplicates import are_copies, near_duplicates, thumbnail


def scene(seed: int, size: int = 120) -> Image.Image:
    """Blurred noise: large shapes, as photographs have."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return Image.open(io.BytesIO(written.getvalue())).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    side = round(image.width * share)
    rest = (image.width - side) // 3
    return image.crop((rest, rest, rest + side, rest + side))


COPIES = {
    "quality 40": lambda image: jpeg(image, 40),
    "a third of the size": lambda image: image.resize((40, 40)),
    "cropped by 5 %": lambda image: cropped(image, 0.95),
    "cropped by 10 %": lambda image: cropped(image, 0.9),
    "cropped by 20 %": lambda image: cropped(image, 0.8),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
}


def small(image: Image.Image) -> np.ndarray:
    return thumbnail(np.asarray(image))


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_known_from_either_side_and_a_stranger_is_not(kind):
    for seed in range(4):
        one, other = small(scene(seed)), small(COPIES[kind](scene(seed)))
        assert are_copies(one, other) and are_copies(other, one)
        assert not are_copies(small(scene(seed + 10)), other)


def test_pictures_of_one_grey_are_copies_only_where_they_are_the_same():
    noise = np.random.default_rng(0).integers(-1, 2, (64, 64))
    plain = np.full((64, 64), 90, np.uint8)
    assert are_copies(plain, plain.copy())
    assert not are_copies(plain, (plain + noise).astype(np.uint8))


@pytest.fixture
def tree(tmp_path) -> Images:
    """Twelve scenes; of the first three a copy each: in the other half, in the same half, and cropped in the other half."""
    for i in range(12):
        scene(i).save(tmp_path / f"{i:02}.png")
    jpeg(scene(0), 60).save(tmp_path / "12.png")
    jpeg(scene(1), 60).save(tmp_path / "13.png")
    cropped(scene(2), 0.9).save(tmp_path / "14.png")
    return open_images(tmp_path, "all", tmp_path / "cache")


FOLDS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1])  # 0 and 12 differ, 1 and 13 do not, 2 and 14 do


def featured(images: Images):
    """Features that a crop changes little: pixels, coarsely."""
    found = [np.asarray(Image.fromarray(images.read(i)).resize((12, 12))).ravel() / 255 for i in range(len(images))]
    return images, np.arange(len(images)), np.stack(found).astype(np.float32)


def test_copies_count_only_where_one_is_scored_by_what_has_learned_from_the_other(tree):
    images, kept, features = featured(tree)
    found = near_duplicates((images, kept, features, FOLDS), (images, kept, features, FOLDS))
    assert {frozenset(pair) for pair in found.pairs} == {frozenset((0, 12)), frozenset((2, 14))}
    assert len(found.pairs) == 4 and found.complete and found.looked_at == 15  # each of them is scored, and flattered
    for apart in (0, 1):
        folds = np.full(15, apart)
        assert not near_duplicates((images, kept, features, folds), (images, kept, features, folds)).pairs
    val = images.select([12, 13, 14])
    its = (val, np.arange(3), features[[12, 13, 14]], np.ones(3, np.int64))
    train = (images.select([*range(12)]), np.arange(12), features[:12], np.zeros(12, np.int64))
    assert sorted(near_duplicates(train, its).pairs) == [(0, 0), (1, 1), (2, 2)]


def test_places_are_those_of_the_readable_images(tree):
    images, _, features = featured(tree)
    chosen = np.delete(np.arange(15), [1, 5])
    part = (images, chosen, features[chosen], FOLDS[chosen])
    assert sorted(near_duplicates(part, part).pairs) == [(0, 10), (1, 12), (10, 0), (12, 1)]


def test_what_was_not_looked_at_is_said(tree, monkeypatch):
    images, kept, features = featured(tree)
    monkeypatch.setattr(near, "MOST_PAIRS", 1)
    found = near_duplicates((images, kept, features, FOLDS), (images, kept, features, FOLDS))
    assert len(found.pairs) == 1 and not found.complete and set(found.pairs[0]) == {0, 12}  # the nearest first
    monkeypatch.undo()
    monkeypatch.setattr(near, "MOST_PRODUCTS", 5 * features.size)
    found = near_duplicates((images, kept, features, FOLDS), (images, kept, features, FOLDS))
    assert found.looked_at == 5 and not found.complete


def test_an_image_that_cannot_be_read_any_more_is_no_copy(tree):
    images, kept, features = featured(tree)
    (images.root / "00.png").unlink()
    found = near_duplicates((images, kept, features, FOLDS), (images, kept, features, FOLDS))
    assert {frozenset(pair) for pair in found.pairs} == {frozenset((2, 14))}
