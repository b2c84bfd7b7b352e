"""Attacks: benchmarks of detection and segmentation that a signal or a kill -9 changes; that fail on what shapes has in their
layouts; bf16 that ends in nan.

Run: pytest tests/evaluation/test_dense.py, with -m slow for whole commands
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from swav import checkpoint, signals
from swav.data.sources.catalog import DATASETS
from swav.data.synthetic.writers import write_shapes
from swav.errors import Stopped
from swav.evaluation import runner, supervised
from swav.evaluation.catalog import CATALOG
from swav.evaluation.detection import objective
from swav.evaluation.detection.models import fpn_detector
from swav.evaluation.protocols import detect_coco, detect_voc
from swav.evaluation.samples import Sample, endless_order, sample_batches
from swav.evaluation.task import Score, Task
from swav.results.results import read_results
from tests.evaluation.dense import dense_task, in_memory, object_sets, objects_of
from tests.processes import LAUNCHER_VARIABLES

ROOT = Path(__file__).parents[2]
FEW: dict[str, Any] = {"batch": 3, "iterations": 3, "workers": 0, "pictures": 0}
DETECT: dict[str, Any] = FEW | {
    "size": 64,
    "sides": (48, 64),
    "long": 96,
    "rois": 8,
    "proposals": (30, 10),
    "warmup": 2,
}
SEGMENT: dict[str, Any] = FEW | {"size": 48, "scale": (96, 64), "channels": 8}
SETTINGS = {
    "detect-voc": DETECT | {"precise_norms": 2},
    "detect-coco": DETECT,
    "segment-voc": SEGMENT,
    "segment-cityscapes": SEGMENT,
    "segment-linear": FEW | {"size": 48},
}
METRICS = {
    "detect-voc": ["AP50", "AP", "AP75"],
    "detect-coco": [f"{kind} {name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")],
    "segment-voc": ["mIoU"],
    "segment-cityscapes": ["mIoU"],
    "segment-linear": ["mIoU"],
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A root of eight and four images in the layouts of VOC 2007 and 2012, COCO and Cityscapes."""
    root: Path = tmp_path_factory.mktemp("shapes")
    for layout, home in (("voc0712", "VOCdevkit"), ("coco", "coco"), ("cityscapes", "cityscapes")):
        write_shapes(root / home, layout, train=8, val=4, size=64)
    return root


class Done(NamedTuple):
    """Scores by metric, the last checkpoint's tensors and its step."""

    scores: dict[str, float]
    tensors: dict[str, torch.Tensor]
    step: int


def run(name: str, task: Task[Any]) -> Done:
    scores = runner.protocol_of(name).run(task)
    assert [score.metric for score in scores] == METRICS[name]
    (folder,) = (task.out / name).glob("*/checkpoints")
    newest = checkpoint.newest(folder)
    assert newest is not None
    saved = checkpoint.read(newest)
    return Done({score.metric: score.value for score in scores}, saved.model | saved.optim, saved.step)  # type: ignore[union-attr]


@pytest.fixture
def task_of(shapes, tmp_path, monkeypatch):
    narrow = functools.partial(fpn_detector, channels=8, features=16)
    monkeypatch.setattr(detect_coco, "fpn_detector", narrow)

    def make(name: str, out: str, **changed: Any) -> Task[Any]:
        settings = CATALOG[name].settings(**(SETTINGS[name] | changed))
        train, val = DATASETS[settings.data].find(shapes, None, True)
        return dense_task(settings, train, val, tmp_path / out)

    return make


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_that_a_signal_interrupts_ends_with_the_same_bits(task_of, monkeypatch, name):
    """Saved between two lines of the log, in the second step of three."""
    whole = run(name, task_of(name, "whole", score_every=3))
    assert whole.step == 3 and all(0 <= value <= 100 for value in whole.scores.values())
    real, steps = supervised._step, list[int]()

    def then_signal(trained, model, batch):
        found = real(trained, model, batch)
        steps.append(batch.step)
        if batch.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    torn = task_of(name, "torn", score_every=3)
    monkeypatch.setattr(supervised, "_step", then_signal)
    with signals.work(), pytest.raises(Stopped) as end:
        runner.protocol_of(name).run(torn)
    assert end.value.exit_code == 75 and steps == [0, 1]
    torch.rand(7)  # others draw in between
    again = run(name, task_of(name, "torn", score_every=3))
    assert steps == [0, 1, 2] and again.scores == whole.scores and again.step == 3
    assert whole.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(value, again.tensors[key]) for key, value in whole.tensors.items())


def test_a_signal_between_precise_statistics_and_the_score_changes_nothing(task_of, monkeypatch):
    """What is saved then has statistics that training did not make; they are computed anew at the resume."""
    whole = run("detect-voc", task_of("detect-voc", "whole", score_every=2, iterations=4))
    real, calls = objective.compute_statistics, list[int]()

    def then_signal(*arguments: Any) -> None:
        real(*arguments)
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(objective, "compute_statistics", then_signal)
    torn = task_of("detect-voc", "torn", score_every=2, iterations=4)
    with signals.work(), pytest.raises(Stopped):
        detect_voc.run(torn)
    again = run("detect-voc", task_of("detect-voc", "torn", score_every=2, iterations=4))
    assert (
        len(calls) == 3 and again.scores == whole.scores
    )  # of the step it was stopped at once more, and of the last one
    assert all(torch.equal(value, again.tensors[key]) for key, value in whole.tensors.items())


@pytest.mark.parametrize("name", ["detect-voc", "segment-voc"])
def test_scores_on_the_way_do_not_change_what_is_trained(task_of, name):
    """Precise statistics of BatchNorm are computed before each, from batches that training sees too; weights stay."""
    once, often = (run(name, task_of(name, out, score_every=every)) for out, every in (("once", 3), ("often", 1)))
    for key, value in once.tensors.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, often.tensors[key]), key


@pytest.mark.parametrize("name", SETTINGS)
def test_the_network_that_is_trained_is_a_copy(task_of, name):
    task = task_of(name, "out", iterations=1)
    before = {key: value.clone() for key, value in task.encoder.state_dict().items()}
    run(name, task)
    assert all(torch.equal(value, before[key]) for key, value in task.encoder.state_dict().items())
    assert not task.encoder.training and not any(p.requires_grad for p in task.encoder.parameters())


def test_images_without_objects_are_no_training_images_of_the_result(tmp_path):
    """Of COCO's 118,287 the published 117,266 are trained on: all of them there, the result is comparable."""
    box, pixels = objects_of([[4, 4, 30, 30]], [0]), np.zeros((4, 40, 40, 3), np.uint8)
    targets = object_sets(box, objects_of([], []), box, objects_of([[0, 0, 9, 9]], [0], crowd=[True]), size=(40, 40))
    images = in_memory(pixels, targets)
    settings = CATALOG["detect-voc"].settings(**DETECT | {"iterations": 1, "batch": 2})
    score, *_ = detect_voc.run(dense_task(settings, images, images, tmp_path / "out"))
    assert isinstance(score, Score)
    assert "; 2 training images instead of 16,551; 4 scored images instead of" in score.deviations


def test_samples_of_a_step_and_of_two_steps_are_drawn_independently():
    images = in_memory(np.zeros((1, 8, 8, 3), np.uint8))

    def augment(index: int, pixels: Any, draw: np.random.Generator) -> Sample[float]:
        return Sample(pixels, float(draw.random()), index)

    def numbers(seed: int) -> list[float]:
        order = endless_order(0, 1, 4)
        made = sample_batches(images, augment, order, batch=4, steps=range(3), seed=seed, workers=0)
        return [sample.target for batch in made for sample in batch.samples]

    assert len({*numbers(0), *numbers(1)}) == 24 and numbers(0) == numbers(0)


# -- whole commands

CLI_SETTINGS = {
    "detect-voc": "size=64 sides=[48,64] long=96 rois=8 proposals=[30,10] warmup=2",
    "detect-coco": "size=64 sides=[48,64] long=96 rois=8 proposals=[30,10] warmup=2",
    "segment-voc": "size=48 scale=[96,64] channels=8",
    "segment-cityscapes": "size=48 scale=[96,64] channels=8",
    "segment-linear": "size=48",
}


def words_of(*names: str, more: str = "") -> list[str]:
    common = f"batch=3 iterations=6 {more}".split()
    return [f"{name}.{word}" for name in names for word in [*CLI_SETTINGS[name].split(), *common]]


def command(root: Path, out: Path, *names: str) -> list[str]:
    options = ["--weights", "random:tiny", "--data", str(root), "--out", str(out), "protocol=smoke", "workers=1"]
    return [sys.executable, "-m", "swav", "bench", *names, *options, *words_of(*names, more="pictures=0 score_every=2")]


def environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES} | more


def outcome(out: Path) -> tuple[dict[tuple[str, str], float | None], dict[str, bytes]]:
    """The numbers, and the bytes of each training's last weights."""
    weights = {
        path.parts[-5]: path.read_bytes() for path in out.glob("*/*/checkpoints/step_00000006/model.safetensors")
    }
    return {(row.bench, row.metric): row.value for row in read_results(out).results}, weights


BOTH = ("detect-voc", "segment-voc")


@pytest.fixture(scope="module")
def undisturbed(shapes, tmp_path_factory) -> tuple[dict[tuple[str, str], float | None], dict[str, bytes]]:
    out = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(command(shapes, out, *BOTH), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = outcome(out)
    assert set(found[1]) == set(BOTH) and len(found[0]) == 4
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_trainings_end_with_the_same_numbers_and_bytes(undisturbed, shapes, tmp_path):
    """Detection after its first score and while it saves, segmentation after its second one."""
    out = tmp_path / "out"
    for fault in ("detect-voc:epoch:1", "save:written:1", "segment-voc:epoch:2"):
        killed = subprocess.run(
            command(shapes, out, *BOTH), env=environment(SWAV_FAULT=fault), cwd=ROOT, capture_output=True, text=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = subprocess.run(command(shapes, out, *BOTH), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == undisturbed
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_command_that_sigterm_ends_has_saved_and_goes_on_to_the_same_bytes(undisturbed, shapes, tmp_path):
    out = tmp_path / "out"
    with subprocess.Popen(command(shapes, out, *BOTH), env=environment(), cwd=ROOT, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not list(out.glob("detect-voc/*/checkpoints/step_00000002/manifest.json")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.terminate()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said.decode()
    assert not list(out.glob("segment-voc/*/checkpoints/*"))
    done = subprocess.run(command(shapes, out, *BOTH), env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outcome(out) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_benchmark_gives_its_rows(shapes, tmp_path):
    words: dict[str, Any] = {f"{name}.{key}": value for name, its in SETTINGS.items() for key, value in its.items()}
    content = runner.bench([*SETTINGS], weights=["random:tiny"], data=shapes, out=tmp_path, protocol="smoke", **words)
    rows = {(row.bench, row.metric): row for row in content.results}
    assert [*rows] == [(name, metric) for name in SETTINGS for metric in METRICS[name]] and content.not_run == ()
    for (name, metric), row in rows.items():
        assert row.unit == "%" and row.value is not None and 0 <= row.value <= 100 and np.isfinite(row.value)
        assert row.protocol == "smoke" and not row.comparable and "protocol smoke" in row.difference
        images = 2 if name in ("segment-voc", "segment-linear") else 4
        assert row.n == images, (name, metric)
        assert row.log is not None
        lines = [json.loads(line) for line in (tmp_path / row.log).read_text().splitlines()]
        assert len(lines) == 3 and all(np.isfinite(line["loss"]) for line in lines)
    linear = rows["segment-linear", "mIoU"]
    assert linear.interval is not None and linear.interval[0] <= linear.interval[1]
    again = runner.bench([*SETTINGS], weights=["random:tiny"], data=shapes, out=tmp_path, protocol="smoke", **words)
    assert again == content


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_bf16_gives_numbers_near_those_of_fp32(shapes, tmp_path):
    words: dict[str, Any] = {f"{name}.{key}": value for name in BOTH for key, value in SETTINGS[name].items()}
    losses = []
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        rows = runner.bench(
            BOTH, weights=["random:tiny"], data=shapes, out=out, protocol="smoke", precision=precision, **words
        ).results
        assert len(rows) == 4 and all(row.value is not None and np.isfinite(row.value) for row in rows)
        logs = {row.bench: (out / str(row.log)).read_text().splitlines() for row in rows}
        losses.append({name: [json.loads(line)["loss"] for line in lines] for name, lines in logs.items()})
    for name in BOTH:
        assert losses[0][name] != losses[1][name]
        np.testing.assert_allclose(losses[1][name][0], losses[0][name][0], rtol=0.05)
