"""Attacks: a white level or an alpha that reaches some of a run's images and not others, or is lost on the way from a run to its
weights, its export and its benchmarks.

Run: pytest tests/training/test_decoding.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swav import comparison
from swav.config import Recipe
from swav.errors import ConfigError
from swav.evaluation import runner
from swav.recipe_files import load_recipe, to_yaml
from swav.training import setup, summary
from swav.weights.encoder import load
from swav.weights.export import export_backbone
from swav.weights.exported import WEIGHTS, read_description, usage
from tests.weights.test_export import run_of

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"size": 16, "workers": 0, "knn.k": [1], "protocol": "own"}


@pytest.fixture(scope="module")
def dark(tmp_path_factory) -> Path:
    """Two classes of pictures of 12 bits in 16."""
    root: Path = tmp_path_factory.mktemp("dark")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 4096, (40, 40), dtype=np.uint16)).save(root / name / f"{i}.png")
    return root


def recipe(dark: Path, **changes: object) -> Recipe:
    base = {"data": str(dark), "queue_length": 0, "queue_start_epoch": 0, "batch": 8, "workers": 0}
    return load_recipe("tiny", base | changes)


def test_a_run_says_what_is_wrong_before_its_first_step_and_nothing_with_the_setting(dark, tmp_path):
    run = setup.prepare(recipe(dark), tmp_path, CPU, dry_run=True)
    assert "\nwarning    24 of 24 images looked at are nearly one colour" in summary.describe(run)
    assert "set white_level=4095" in summary.describe(run)
    assert run.images.read(0).max() == 16
    assert "set white_level=4095" in run.health_facts.flat
    run = setup.prepare(recipe(dark, white_level=4095), tmp_path, CPU, dry_run=True)
    assert run.warnings == [] and run.health_facts.flat == "" and "nearly one colour" not in summary.describe(run)
    assert run.labelled is not None
    for images in (run.images, *run.labelled):
        assert images.read(0).max() > 250


def test_a_level_left_at_auto_is_the_default_and_what_to_set_is_said(dark, tmp_path):
    run = setup.prepare(recipe(dark, white_level="auto", alpha="auto"), tmp_path, CPU, dry_run=True)
    assert (run.recipe.white_level, run.recipe.alpha) == (65535, "blend") and len(run.warnings) == 1


def test_a_run_keeps_its_level(dark, tmp_path):
    before = setup.prepare(recipe(dark, white_level=4095), tmp_path, CPU, dry_run=False)
    (tmp_path / "config.yaml").write_text(to_yaml(before.recipe))
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="white_level: 4095 -> 65535"):
        setup.prepare(recipe(dark), tmp_path, CPU, dry_run=False)
    again = setup.prepare(recipe(dark, white_level=4095), tmp_path, CPU, dry_run=False)
    assert again.images.read(0).max() > 250 and again.warnings == []


def test_settings_of_before_there_was_one_are_read_as_the_default(dark, tmp_path):
    before = setup.prepare(recipe(dark), tmp_path, CPU, dry_run=False)
    lines = [line for line in to_yaml(before.recipe).splitlines() if not line.startswith(("white_level:", "alpha:"))]
    (tmp_path / "config.yaml").write_text("\n".join(lines) + "\n")
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    assert setup.prepare(recipe(dark), tmp_path, CPU, dry_run=False).recipe == before.recipe


def test_a_benchmark_reads_by_its_own_level_and_says_where_the_weights_run_had_another(dark, tmp_path, capsys):
    weights = str(run_of(tmp_path / "run", white_level=4095))
    found = {}
    for level in (65535, 4095):
        rows = runner.bench("knn", weights=weights, data=dark, out=tmp_path / "out", white_level=level, **QUICK).results
        found[level] = rows[0].config.model_dump()["white_level"]
        said = capsys.readouterr().err
        assert ("was trained on images read with white_level=4095, and here it is 65535" in said) == (level == 65535)
        assert ("white_level 4095 instead of 65535" in rows[0].difference) == (level == 4095)
    assert found == {65535: 65535, 4095: 4095}
    notes = [json.loads(path.read_text()) for path in (tmp_path / "out" / "features").glob("*/cache.json")]
    assert len({note["of"]["images"] for note in notes}) == 2


@pytest.mark.parametrize("changes", [{}, {"white_level": 4095}, {"alpha": "ignore"}])
def test_weights_and_their_export_read_pictures_as_the_run_did(changes, dark, tmp_path):
    run = run_of(tmp_path / "run", **changes)
    export_backbone(run)
    file = run / "export" / WEIGHTS
    description = read_description(file)
    assert description is not None
    said = {key: description[key] for key in ("white_level", "alpha") if key in description}
    assert said == changes
    (line,) = (line for line in usage(description, run / "export") if line.startswith("images = "))
    assert all(
        (f"{key}={value}" in line) == (key in changes)
        for key, value in {"white_level": 4095, "alpha": "ignore"}.items()
    )
    for weights in (load(run), load(file)):
        assert {key: getattr(weights.decoding, key) for key in changes} == changes
        assert (float(weights.preprocess(dark / "a" / "0.png").max()) > 0) == ("white_level" in changes)


def test_a_comparison_scores_by_what_it_trains_by(dark, tmp_path, monkeypatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(comparison, "pretrain", lambda *_, **settings: given.update(trained=settings))
    monkeypatch.setattr(comparison, "_arm", lambda name, folder: comparison.Arm(name, "x"))

    def bench(*_, **settings):
        given["scored"] = settings
        raise ConfigError("enough")

    monkeypatch.setattr(comparison, "bench", bench)
    with pytest.raises(ConfigError, match="enough"):
        comparison.compare(dark, out=tmp_path, white_level=4095, alpha="ignore", batch=8)
    for part in given.values():
        assert (part["white_level"], part["alpha"]) == (4095, "ignore")
    assert "batch" not in given["scored"]
