"""Attacks: samples that depend on workers, processes or where a training resumed; images left out or doubled; wide beside high.

Run: pytest tests/evaluation/test_samples.py
"""

import numpy as np
import pytest
import torch
from PIL import Image

from swav import dist
from swav.data.sources.open import open_images
from swav.evaluation.samples import GroupedOrder, Sample, endless_order, padded_input, sample_batches
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (9 + i, 12, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


def augment(index: int, pixels: np.ndarray, draw: np.random.Generator) -> Sample[float]:
    return Sample(pixels[: 2 + int(draw.integers(5))], float(draw.random()), index)


def taken(images, steps: range, workers: int = 0, batch: int = 4):
    order = endless_order(3, len(images), batch)
    made = sample_batches(images, augment, order, batch=batch, steps=steps, seed=3, workers=workers)
    return [
        [(sample.image, sample.target, sample.pixels.tobytes()) for sample in found.samples] + [found.step]
        for found in made
    ]


def test_workers_and_where_it_resumed_change_nothing(folder):
    images = open_images(folder)
    alone = taken(images, range(6))
    assert taken(images, range(6), workers=3) == alone
    assert taken(images, range(4, 6)) == alone[4:]
    assert alone != taken(images, range(1, 7))


def test_processes_share_a_batch(folder, monkeypatch):
    images = open_images(folder)
    alone = taken(images, range(3), batch=5)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        parts.append(taken(images, range(3), batch=5))
    assert [a[:-1] + b for a, b in zip(*parts, strict=True)] == alone


def test_every_image_comes_once_before_any_comes_again():
    order = endless_order(0, 7, 3)
    stream = np.concatenate([order(step) for step in range(14)])
    for i in range(0, 42, 7):
        assert sorted(stream[i : i + 7]) == list(range(7))
    assert (stream[:7] != stream[7:14]).any()
    assert (endless_order(1, 7, 3)(0) != order(0)).any() or (endless_order(1, 7, 3)(1) != order(1)).any()
    assert len(endless_order(0, 2, 5)(0)) == 5  # more than there are


def test_batches_are_all_wide_or_all_high_and_hold_every_image():
    sizes = np.array([[10, 20]] * 5 + [[20, 10]] * 4 + [[10, 10]])
    order = GroupedOrder(0, sizes, 3)
    assert order.steps_per_epoch == 2 + 2  # six wide ones (square ones too), four high ones, filled up
    for epoch in range(3):
        batches = [order(4 * epoch + i) for i in range(4)]
        wide = sizes[:, 1] >= sizes[:, 0]
        assert all(len(set(wide[batch])) == 1 for batch in batches)
        assert set(np.concatenate(batches)) == set(range(10))
    firsts = [wide[order(4 * epoch)[0]] for epoch in range(12)]
    assert len(set(firsts)) == 2  # batches are shuffled
    again = GroupedOrder(0, sizes, 3)
    assert (again(9) == order(9)).all() and (again(2) == order(2)).all()


def test_an_unreadable_image_gets_another_with_its_own_target(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    images = open_images(tmp_path)
    (tmp_path / "3.png").write_bytes(b"")
    order = endless_order(3, len(images), 7)
    (found,) = sample_batches(images, augment, order, batch=7, steps=range(1), seed=3, workers=0)
    assert [name for name, _ in found.unreadable] == ["3.png"]
    assert 3 not in [sample.image for sample in found.samples] and len(found.samples) == 7


def test_what_an_image_lacks_of_the_batch_is_zero_after_normalising():
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    encoder = Encoder(build_network(recipe), recipe, "random:tiny")
    first, second = np.full((3, 5, 3), 200, np.uint8), np.full((6, 2, 3), 0, np.uint8)
    x = padded_input([first, second], encoder, torch.device("cpu"), multiple=4)
    assert list(x.shape) == [2, 3, 8, 8]
    value = (200 / 255 - torch.tensor(encoder.mean)) / torch.tensor(encoder.std)
    torch.testing.assert_close(x[0, :, :3, :5], value[:, None, None].expand(3, 3, 5))
    assert (x[0, :, 3:] == 0).all() and (x[0, :, :, 5:] == 0).all()
    assert (x[1, :, 6:] == 0).all() and (x[1, :, :, 2:] == 0).all() and (x[1, :, :6, :2] != 0).all()
