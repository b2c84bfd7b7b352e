"""Attacks: a probe that finds room where there is none, forgets what a step keeps, times the wrong thing, leaves workers
or files behind; and a forecast that is far from what a run then does.

On a GPU the same functions measure for real; here `peak` is a model of one. Run: pytest tests/test_probe.py
"""

import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swav import probe
from swav.config import Recipe, load_recipe
from swav.data.images import open_images
from swav.data.layouts import write_shapes
from swav.derive import Facts, derive
from swav.errors import EnvironmentError_
from swav.network.heads import build_network
from swav.network.trunk import count_parameters

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "crops": [{"count": 2, "size": 24, "scale": [0.3, 1.0]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}],
    "width": 0.125,
    "head_hidden": 16,
    "head_dim": 8,
    "prototypes": 12,
    "batch": 16,
    "queue_length": 0,
    "epochs": 3,
    "precision": "fp32",
}


def recipe(**changes: object) -> Recipe:
    return derive(load_recipe("tiny", SMALL | {"data": "unused", "workers": 0} | changes), Facts(num_images=64))[0]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=64, val=32, size=32, seed=0)
    return folder


# -- memory


@given(
    fixed=st.integers(0, 10**10),
    per_image=st.integers(1, 10**9),
    budget=st.integers(1, 10**11),
    most=st.sampled_from([1, 2, 8, 21, 64, 96, 256, 4096]),
    bend=st.floats(0.7, 1.5),
)
def test_what_is_found_fits_and_twice_as_much_would_not(
    fixed: int, per_image: int, budget: int, most: int, bend: float
) -> None:
    def takes(batch: int) -> int:
        return fixed + round(per_image * math.pow(batch, bend))  # not in proportion: kernels change with the batch

    def peak(batch: int) -> int | None:
        tried.append(batch)
        return takes(batch) if takes(batch) <= 1.1 * budget else None  # memory runs out above the budget

    tried: list[int] = []
    found = probe.largest_that_fits(peak, most, budget)
    assert found == 0 or (found <= most and takes(found) <= budget and found in tried)
    assert max(tried) <= most and len(tried) <= 15
    if bend == 1:
        sizes = {most, *(2**i for i in range(13) if 2**i <= most)}
        assert found == max([0, *(size for size in sizes if takes(size) <= budget)])


@pytest.mark.parametrize(
    ("fixed", "budget", "found"),
    [(0, 10_000, 64), (0, 6_399, 32), (5_000, 6_000, 8), (5_000, 5_099, 0), (0, 10**9, 256)],
)
def test_the_largest_batch_is_found_in_a_few_steps(fixed: int, budget: int, found: int) -> None:
    tried: list[int] = []

    def peak(batch: int) -> int | None:
        tried.append(batch)
        return fixed + 100 * batch

    assert probe.largest_that_fits(peak, 256, budget) == found
    assert found == 0 or len(tried) <= 5


def test_a_step_on_a_cpu_keeps_so_much_per_image_and_so_much_anyway():
    fixed, per_image = probe.cpu_bytes(recipe())
    assert probe.cpu_bytes(recipe(batch=32)) == (fixed, per_image)  # it is per image
    small, large = (
        recipe(
            crops=[
                {"count": 2, "size": size, "scale": [0.3, 1.0]},
                {"count": 1, "size": size // 2, "scale": [0.1, 0.3]},
            ]
        )
        for size in (64, 128)
    )
    assert probe.cpu_bytes(large)[1] == pytest.approx(4 * probe.cpu_bytes(small)[1], rel=0.1)
    assert probe.cpu_bytes(recipe(width=0.25))[1] == pytest.approx(2 * per_image, rel=0.1)
    weights = 4 * count_parameters(build_network(recipe()))
    assert fixed == 4 * weights  # weights, gradients, and Adam's two
    assert probe.cpu_bytes(recipe(optimizer="larc", lr=1.0))[0] == 3 * weights
    assert probe.cpu_bytes(recipe(teacher_momentum=0.9))[0] == 5 * weights


def test_on_a_cpu_half_of_the_available_memory_is_the_bound(monkeypatch):
    fixed, per_image = probe.cpu_bytes(recipe())
    monkeypatch.setattr(probe, "available_memory", lambda _: 2 * (fixed + 5 * per_image) + 2)
    count, how = probe.fits(recipe(), CPU, most=16)
    assert count == 5 and "half of the" in how
    monkeypatch.setattr(probe, "available_memory", lambda _: 10**12)
    assert probe.fits(recipe(), CPU, most=16)[0] == 16
    monkeypatch.setattr(probe, "available_memory", lambda _: fixed)
    with pytest.raises(EnvironmentError_, match="at least one image"):
        probe.fits(recipe(), CPU, most=16)


# -- speed


class Clock:
    """Every look at it is a tenth of a second later; steps that are to last longer let it run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: Callable[[int], float]) -> list[int]:
    """Replaces the step by the passing of time; returns the list of batches that it is given."""
    batches: list[int] = []

    def step(network: object, optimizer: object, crops: object, batch: int, recipe: Recipe) -> None:
        batches.append(batch)
        clock.now += seconds(len(batches))

    monkeypatch.setattr(probe, "_step", step)
    monkeypatch.setattr(probe, "_with_short_steps", lambda recipe, *_: recipe)
    monkeypatch.setattr("swav.probe.time.monotonic", clock)
    return batches


def test_the_pace_is_that_of_the_steps_after_the_first_ones(shapes, monkeypatch):
    batches = timed(monkeypatch, Clock(), lambda n: 30.0 if n == 1 else 0.9)
    pace = probe.pace(open_images(shapes), recipe(), CPU)
    assert pace == pytest.approx(16 / 1.0)
    assert set(batches) == {16} and len(batches) <= 3 + probe.SECONDS / 1.0 + 1


def test_a_batch_in_micro_batches_is_timed_by_these_each_twice_through_the_network(shapes, monkeypatch):
    batches = timed(monkeypatch, Clock(), lambda n: 0.9)
    forwards: list[int] = []

    def loss(network: object, crops: object, batch: int, recipe: Recipe) -> None:
        assert not torch.is_grad_enabled()
        forwards.append(batch)

    monkeypatch.setattr(probe, "_loss", loss)
    assert probe.pace(open_images(shapes), recipe(micro_batch=4), CPU) == pytest.approx(4 / 1.0)
    assert set(batches) == {4} and forwards == batches


def test_slow_steps_are_not_waited_for_longer_than_the_limit(shapes, monkeypatch):
    clock = Clock()
    batches = timed(monkeypatch, clock, lambda n: 49.9)
    assert probe.pace(open_images(shapes), recipe(workers=0), CPU) == pytest.approx(16 / 50)
    assert len(batches) == 3


def test_the_real_pace_is_a_number_and_leaves_nothing_behind(shapes, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.2)
    before = sorted(path.name for path in shapes.rglob("*"))
    assert probe.pace(open_images(shapes), recipe(workers=1), CPU) > 0
    assert not [child.name for child in multiprocessing.active_children() if "loader" in child.name]
    assert sorted(path.name for path in shapes.rglob("*")) == before


def test_long_steps_are_probed_with_fewer_images(monkeypatch):
    clock, batches = Clock(), list[int]()

    def step(network: object, optimizer: object, crops: list[torch.Tensor], batch: int, recipe: Recipe) -> None:
        assert len(crops[0]) == 2 * batch
        batches.append(batch)
        clock.now += 0.05 * batch

    monkeypatch.setattr(probe, "_step", step)
    monkeypatch.setattr("swav.probe.time.monotonic", clock)
    network, optimizer = probe._learner(recipe(batch=64), CPU)
    assert probe._with_short_steps(recipe(batch=64), network, optimizer).batch == 8
    assert batches == [4, 8]


# -- forecast


def test_the_forecast_speaks_of_time_memory_disk_and_how_far_off_it_is(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "pace", lambda *_: 8.0)
    run = tmp_path / "some" / "run"
    lines = dict(
        line.split(maxsplit=1)
        for line in probe.forecast(open_images(shapes), 0, recipe(epochs=900), CPU, run).splitlines()
    )
    assert lines["time"] == "2.0 hours at 8 images/s"  # 900 epochs of 64 images
    assert "available" in lines["memory"] and "TOO MUCH" not in lines["memory"]
    assert "may be off by" in lines["measured"]
    weights = 4 * count_parameters(build_network(recipe()))
    assert lines["disk"].startswith(f"{5 * 3 * weights / 1e6:.1f} MB of checkpoints")
    assert not run.parent.exists()


def test_what_does_not_fit_is_called_so(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "pace", lambda *_: 8.0)
    monkeypatch.setattr(probe, "available_memory", lambda _: 1000)
    assert "TOO MUCH" in probe.forecast(open_images(shapes), 0, recipe(), CPU, tmp_path)


def test_a_checkpoint_takes_what_was_forecast(shapes, tmp_path):
    from swav import train

    run = train.pretrain(
        "tiny", tmp_path / "run", **SMALL | {"data": str(shapes), "workers": 0, "epochs": 2, "knn_epochs": 0}
    )
    checkpoint = max((run / "checkpoints").glob("step_*"))
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    network = build_network(recipe())
    assert size == pytest.approx(
        probe._checkpoint_bytes(recipe(), network), abs=150_000
    )  # headers and BatchNorm's buffers
