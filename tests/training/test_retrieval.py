"""Attacks: a check without labels that says learned where nothing was, changes with what is no change, or disturbs the run.

Run: pytest tests/training/test_retrieval.py
"""

import json
from typing import Any

import pytest
import torch
from torch import nn

from swav.data.sources.decode import Unreadable
from swav.data.sources.open import open_images
from swav.training import loop, retrieval
from swav.training.retrieval import PAIRS, RetrievalCheck
from swav.weights.encoder import load, of_module
from tests.training.test_loop import SMALL

CPU = torch.device("cpu")


class Noise(nn.Module):
    """Features that know nothing of the image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return torch.frac(flat[:, :16] * 1e6)


class Thumbnail(nn.Module):
    """Features that tell images apart well."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def encoder(module: nn.Module):
    return of_module(module, "mine", 32, {})


def test_more_than_at_the_start_is_told_from_less_with_a_margin(shapes):
    check = RetrievalCheck(open_images(shapes, split="train"), 32, seed=0)
    start = check.begin(encoder(Noise()), CPU)
    assert start is not None and (start.gain, start.margin) == (0, 0) and start.value < 10
    same, better = check.score(encoder(Noise()), CPU), check.score(encoder(Thumbnail()), CPU)
    assert same is not None and (same.value, same.gain, same.margin) == (start.value, 0, 0)
    assert better is not None and better.gain == pytest.approx(better.value - start.value)
    assert better.gain > 2 * better.margin > 0

    other = RetrievalCheck(open_images(shapes, split="train"), 32, seed=0)
    other.begin(encoder(Thumbnail()), CPU)
    worse = other.score(encoder(Noise()), CPU)
    assert (
        worse is not None and worse.gain == pytest.approx(-better.gain) and worse.margin == pytest.approx(better.margin)
    )


def test_a_later_command_compares_with_the_same_start(shapes):
    images = open_images(shapes, split="train")
    one = RetrievalCheck(images, 32, seed=3)
    one.begin(encoder(Noise()), CPU)
    other = RetrievalCheck(images, 32, seed=3, saved=json.loads(json.dumps(one.state())))
    assert other.has_start and other.score(encoder(Thumbnail()), CPU) == one.score(encoder(Thumbnail()), CPU)
    assert RetrievalCheck(images, 32, seed=3).score(encoder(Thumbnail()), CPU) is None  # no start is known


def test_images_that_cannot_be_read_are_left_out_of_both(shapes, tmp_path, monkeypatch):
    images = open_images(shapes, split="train")
    check = RetrievalCheck(images, 32, seed=0)
    check.begin(encoder(Noise()), CPU)
    gone = RetrievalCheck(images, 32, seed=0, saved=check.state())

    def read(i: Any):
        if int(i) % 2:
            raise Unreadable("x.png", "gone")
        return whole(i)

    whole = images.read
    monkeypatch.setattr(images, "read", read)
    found = gone.score(encoder(Noise()), CPU)
    assert found is not None and found.gain == pytest.approx(found.value - _of_half(check), abs=1e-9)
    monkeypatch.setattr(images, "read", lambda i: read(1))
    assert RetrievalCheck(images, 32, seed=0).begin(encoder(Noise()), CPU) is None


def _of_half(check: RetrievalCheck) -> float:
    state = check.state()
    hits = [hit for place, hit in zip(state["images"], state["hits"], strict=True) if place % 2 == 0]
    return 100.0 * float(sum(hits)) / len(hits) / PAIRS


def test_views_of_large_images_take_bounded_memory(shapes, monkeypatch):
    monkeypatch.setattr(retrieval, "MOST_BYTES", 10 * 4 * 3 * 32**2)
    check = RetrievalCheck(open_images(shapes, split="train"), 32, seed=0)
    check.begin(encoder(Noise()), CPU)
    assert len(check.state()["images"]) == 10


def test_a_check_changes_no_weight(shapes, tmp_path):
    settings: dict[str, Any] = SMALL | {"data": str(shapes), "epochs": 2}
    checked, unchecked = (
        loop.pretrain("tiny", out=tmp_path / f"run{every}", check_every_epochs=every, **settings) for every in (1, 0)
    )
    assert load(checked).sha256 == load(unchecked).sha256


def test_a_run_says_what_it_learned_beside_its_start_and_keeps_its_best(shapes, tmp_path):
    run = loop.pretrain("tiny", out=tmp_path / "run", check_every_epochs=1, **SMALL | {"data": str(shapes)})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["view_retrieval"] for line in lines if "view_retrieval" in line}
    assert list(values) == [0, 4, 8, 12]
    best = max((4, 8, 12), key=lambda step: values[step])
    assert load(f"{run}@best").settings["epochs"] == best // 4
