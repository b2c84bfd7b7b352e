"""Attacks: a dry run that writes something, or a forecast that counts other images than a benchmark will see.

Run: pytest tests/evaluation/test_forecast.py
"""

import numpy as np
import pytest
import torch

from swav.data.sources.catalog import labelled
from swav.evaluation import resources, runner
from swav.evaluation.request import resolve
from swav.evaluation.task import ResourceEstimate, Task
from swav.recipe_files import parse_overrides
from swav.results.results import DryRunRow
from swav.weights import encoder
from tests.evaluation.test_runner import OTHER_DATA, QUICK


def test_a_dry_run_says_what_there_is_and_writes_nothing(colours, tmp_path, capsys):
    rows = runner.bench(
        ["all"], weights=["random:tiny"], data=colours, out=tmp_path / "out", **QUICK, dry_run=True
    ).dry_run
    assert {row.bench for row in rows[:4]} == {"knn", "linear", "linear-stages", "semisup"}
    assert {row.bench for row in rows[4:]} == set(OTHER_DATA)
    assert all(isinstance(row, DryRunRow) and row.hours >= 0 for row in rows[:4])
    assert "24" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_forecast_counts_the_images_that_a_benchmark_will_see(colours, drawn, tmp_path, monkeypatch, capsys):
    seen = dict[str, ResourceEstimate]()

    def remembered(name, task, estimate_resources):
        seen[name] = estimate_resources
        return DryRunRow(
            bench=name, weights="", seed=0, protocol="", data="", images="", hours=0.0, memory_gb=0.0, disk_gb=0.0
        )

    monkeypatch.setattr(runner, "dry_run_row", remembered)

    def estimate_resources(benches, data, words):
        runner.bench(
            benches, weights=["random:tiny"], data=data, out=tmp_path, **parse_overrides(words.split()), dry_run=True
        )
        return dict(seen)

    words = "protocol=published size=32 knn.k=5 linear.epochs=5 linear.batch=8 linear-stages.epochs=25 linear-stages.batch=8 semisup.batch=1"
    found = estimate_resources(["knn", "linear", "linear-stages", "semisup"], colours, words)
    assert found["knn"].forwards == 24 + 12  # bank and queries, once
    assert found["linear"].forwards == 5 * 24 + 12  # scored images once: their features are kept
    assert found["linear-stages"].forwards == 25 * 24 + 3 * 12  # scored after epochs 10, 20 and 25
    assert found["semisup"].trained == 20 * (3 + 3)  # 1 % and 10 % of 8 images a class: one and one
    found = estimate_resources(["svm", "lowshot"], drawn, "size=32 lowshot.k=1 svm.workers=0")
    assert found["svm"].forwards == found["lowshot"].forwards == 80 + 40
    assert found["svm"].disk == found["lowshot"].disk == 4 * (80 + 40) * sum(_values(drawn, tmp_path))


def test_a_forecast_leaves_out_what_only_the_first_image_takes(colours, monkeypatch):
    """A GPU's first forward loads kernels for seconds: over 64 images that would be years of ImageNet."""
    clock, calls = [0.0], []

    def slow_at_first(encoder, views, *_):
        calls.append(len(views))
        clock[0] += 100.0 if len(calls) == 1 else 0.5 * len(views)
        return torch.zeros(len(views), 1)

    monkeypatch.setattr("swav.evaluation.resources.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(resources, "features_of", slow_at_first)
    splits, settings = labelled(colours), resolve(["knn"], parse_overrides(["size=16"]))[1]["knn"]
    task = Task(encoder.load("random:tiny"), *splits, settings, "published", torch.device("cpu"), colours)
    assert resources.dry_run_row("knn", task, ResourceEstimate(3600)).hours == pytest.approx(0.5)


def _values(data, out):
    """Of the stages of random:tiny at 32 pixels, as the cache has them."""
    runner.bench(["svm"], weights=["random:tiny"], data=data, out=out, size=32, workers=0, svm={"costs": [1.0]})
    return [np.load(path, mmap_mode="r").shape[1] for path in next((out / "features").iterdir()).glob("stage*.npy")]
