"""Attacks: crops of another scale than the protocol's; rates of another schedule; a layout that the bench cannot read.

Run: pytest tests/evaluation/protocols/test_places205.py, with -m slow for the whole way
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from swav.data.augment.crops import center_crop_view
from swav.data.loader import Loader
from swav.data.sources.lists import places205_splits
from swav.data.synthetic.writers import write_shapes
from swav.evaluation import stage_heads
from swav.evaluation.protocols import places205
from swav.evaluation.runner import bench
from swav.evaluation.settings import Inat18Settings, Places205Settings
from swav.evaluation.task import Task
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder


def test_schedules_are_the_published_ones():
    for settings, steps in ((Places205Settings(), (7, 14, 21)), (Inat18Settings(), (24, 48, 72))):
        assert (settings.steps, settings.lr, settings.momentum, settings.weight_decay) == (steps, 0.01, 0.9, 1e-4)
        rates = [stage_heads.learning_rate(settings, epoch) for epoch in (steps[0] - 1, *steps, settings.epochs - 1)]
        assert rates == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-5])
    assert (Places205Settings().epochs, Inat18Settings().epochs) == (28, 84)


def test_training_crops_are_windows_of_the_resized_centre_square(tmp_path):
    write_shapes(tmp_path / "p", "places205", train=20, val=10, size=50)
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    encoder = Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)
    settings = Places205Settings(size=28, epochs=2, batch=10, workers=0, flip=0.0, steps=(1,))
    splits = places205_splits(tmp_path / "p")
    task = Task(encoder, *splits, settings, "published", torch.device("cpu"), tmp_path)
    where = set()
    options: dict[str, Any] = {
        "batch": 10,
        "workers": 0,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "total_steps": 4,
        "steps_per_epoch": 2,
        "on_device": False,
    }
    for batch in Loader(task.train, places205.views_of(settings), **options):
        for i, view in zip(batch.indices.tolist(), batch.views[0].numpy(), strict=True):
            square = center_crop_view(task.train.read(i), 32, 32)  # 256 to 224 as 32 to 28
            windows = np.lib.stride_tricks.sliding_window_view(square, (28, 28, 3))[:, :, 0]
            same = np.argwhere((windows == view).all(axis=(2, 3, 4)))
            assert len(same) == 1
            where.add(tuple(same[0]))
    assert len(where) > 15 and {y for y, _ in where} | {x for _, x in where} == set(range(5))
    assert len(places205.run(dataclasses.replace(task, protocol="smoke"))) == 12


@pytest.mark.slow
@pytest.mark.parametrize(("name", "home"), [("places205", "Places205"), ("inat18", "iNaturalist2018")])
def test_the_whole_way_on_shapes(name, home, tmp_path):
    root = tmp_path / "data"
    write_shapes(root / home, name, train=60, val=30, size=32)
    overrides: dict[str, Any] = {"protocol": "smoke", f"{name}.size": 32, f"{name}.batch": 20, "workers": 0}
    results = bench([name], weights=["random:tiny"], data=root, out=tmp_path / "out", **overrides).results
    assert len(results) == 12 and all(row.n == 30 and not row.comparable for row in results)
    again = bench([name], weights=["random:tiny"], data=root, out=tmp_path / "out", **overrides).results
    assert [row.value for row in again] == [row.value for row in results]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-stages", "semisup"])
def test_killed_and_resumed_gives_the_same_numbers(name, tmp_path):
    """A real kill -9 after the second epoch, in a process of its own."""
    write_shapes(tmp_path / "imagenet", "imagenet", train=60, val=30, size=32)

    def run(out, fault=None):
        words = [name, "--weights", "random:tiny", "--data", str(tmp_path / "imagenet"), "--out", str(out)]
        words += ["protocol=smoke", "size=32", f"{name}.epochs=3", f"{name}.steps=[2]", f"{name}.batch=6", "workers=1"]
        environment = os.environ | ({"SWAV_FAULT": fault} if fault else {})
        return subprocess.run([sys.executable, "-m", "swav", "bench", *words], env=environment, capture_output=True)

    assert run(tmp_path / "whole").returncode == 0
    assert run(tmp_path / "torn", f"{name}:epoch:2").returncode == -9
    assert run(tmp_path / "torn").returncode == 0
    whole, torn = (json.loads((tmp_path / out / "results.json").read_text())["results"] for out in ("whole", "torn"))
    assert [row["value"] for row in whole] == [row["value"] for row in torn]
    logs = [sorted(path.read_text() for path in (tmp_path / out).rglob("log.jsonl")) for out in ("whole", "torn")]
    assert logs[0] == logs[1] and logs[0]
