"""The loop: it learns, resumes to the bit, survives what is not finite, and leaves the folder that it promises.

Golden traces of the same step are in test_golden.py, kills in test_resume.py. Run: pytest tests/training/test_loop.py
"""

import contextlib
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from swav import checkpoint
from swav.algorithm import sinkhorn_codes, swapped_loss
from swav.config import Recipe
from swav.data.synthetic.writers import write_shapes
from swav.errors import ConfigError, MachineError, NumericsError
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.training import budget, loop
from swav.training.auto import derive
from swav.training.choices import MachineAndData
from swav.training.monitor import STEP_VALUES
from swav.training.step import Trainer
from swav.weights.encoder import load

SMALL: dict[str, Any] = {
    "crops": [{"count": 2, "size": 24, "scale": [0.3, 1.0]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}],
    "width": 0.125,
    "head_hidden": 16,
    "head_dim": 8,
    "prototypes": 12,
    "batch": 16,
    "queue_length": 32,
    "epochs": 3,
    "workers": 0,
    "precision": "fp32",
    "knn_every_epochs": 0,
    "checkpoint_every_steps": 4,
}


def recipe(**changes: object) -> Recipe:
    """Settings without `auto`, for 4 steps an epoch."""
    wanted = load_recipe("tiny", SMALL | {"data": "unused"} | changes)
    return derive(wanted, MachineAndData(num_images=64))[0]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_folder_that_is_promised(shapes, tmp_path, capsys):
    run = loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes), "knn_every_epochs": 3})
    promised = {"config.yaml", "metrics.jsonl", "checkpoints", "report.html", "export"}
    assert promised <= {path.name for path in run.iterdir()}
    *_, first, last = capsys.readouterr().err.splitlines()
    assert str(run / "export") in first and last.startswith("features = model(")
    assert load(run / "export" / "backbone.safetensors").sha256 == load(run).sha256
    steps = [line["step"] for line in lines(run) if "loss" in line]
    assert steps == list(range(1, 13))
    assert (run / "checkpoints" / "step_00000012" / "manifest.json").exists()
    assert [line["knn_top1"] for line in lines(run) if "knn_top1" in line]
    assert (run / "report" / "views.png").exists()
    features = load(run)(torch.zeros(2, 3, 24, 24))
    assert features.shape == (2, 64)


@pytest.mark.parametrize(
    "changes",
    [{}, {"micro_batch": 4}, pytest.param({"precision": "fp16"}, marks=pytest.mark.slow)],  # float16 is slow on a CPU
    ids=str,
)
def test_stopping_and_going_on_gives_the_same_weights_to_the_bit(shapes, tmp_path, monkeypatch, changes):
    settings = SMALL | {"data": str(shapes)} | changes
    whole = loop.pretrain("tiny", out=tmp_path / "whole", **settings)

    class Interrupted(Exception):
        pass

    def interrupt(name: str) -> None:
        passed.append(name)
        if passed.count("step:middle") == 11:  # after the checkpoint of step 8, which has a full queue
            raise Interrupted

    passed: list[str] = []
    monkeypatch.setattr("swav.training.step.fault_point", interrupt)
    torch.manual_seed(4711)  # torch's generator begins anywhere in a new process
    with pytest.raises(Interrupted):
        loop.pretrain("tiny", out=tmp_path / "parts", **settings)
    monkeypatch.undo()
    parts = loop.pretrain("tiny", out=tmp_path / "parts", **settings)
    for name in ("model.safetensors", "optim.safetensors", "rank_0.safetensors"):
        one, other = (run / "checkpoints" / "step_00000012" / name for run in (whole, parts))
        assert one.read_bytes() == other.read_bytes()
    assert [line["step"] for line in lines(parts)] == [line["step"] for line in lines(whole)]
    assert [line.get("loss") for line in lines(parts)] == [line.get("loss") for line in lines(whole)]


def test_a_timm_trunk_learns_from_grey_images_and_comes_back(shapes, tmp_path):
    settings = SMALL | {"data": str(shapes), "width": 1, "stem": "imagenet", "epochs": 1, "queue_length": 0}
    changes = {"backbone": "timm:vit_tiny_patch16_224", "in_channels": 1, "warmup_epochs": 0}
    crops = [{"count": 2, "size": 32, "scale": [0.3, 1.0]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}]
    run = loop.pretrain("tiny", out=tmp_path / "run", **settings | changes | {"crops": crops})
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 3, 4]
    encoder = load(run)
    assert encoder(torch.zeros(2, 1, 32, 32)).shape == (2, 192) and len(encoder.stages(torch.zeros(2, 1, 32, 32))) == 12


def test_a_finished_run_is_left_alone(shapes, tmp_path):
    run = loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes)})
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


def test_a_failed_export_leaves_checkpoint_and_report_and_the_same_command_makes_up_for_it(shapes, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export").write_text("in the way")
    with pytest.raises(MachineError, match="the checkpoint of step 12 is saved"):
        loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is not None
    assert "backbone" not in (tmp_path / "run" / "report.html").read_text().partition("settings")[0]
    (tmp_path / "run" / "export").unlink()
    capsys.readouterr()
    run = loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    assert "backbone.py')['load']()" in capsys.readouterr().err
    assert "backbone.py')['load']()" in html.unescape((run / "report.html").read_text())


def test_changed_settings_are_refused_with_a_diff_and_harmless_ones_are_not(shapes, tmp_path):
    run = loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    with pytest.raises(ConfigError, match=r"epsilon: 0.05 -> 0.04"):
        loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes), "epsilon": 0.04})
    loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes), "keep_checkpoints": 5})


def test_other_images_are_refused_on_resume(shapes, tmp_path):
    run = loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    write_shapes(tmp_path / "other", "imagenet", train=66, val=32, size=32, seed=1)
    with pytest.raises(ConfigError, match="images"):
        loop.pretrain("tiny", out=run, **SMALL | {"data": str(tmp_path / "other")})


@pytest.mark.parametrize("optimizer", ["larc", "lars", "adam", "adamw"])
def test_a_step_that_is_not_finite_touches_nothing(optimizer):
    settings = recipe(optimizer=optimizer, lr=0.1, queue_start_epoch=0, freeze_prototypes_steps=0)
    trainer = Trainer(settings, build_network(settings), steps_per_epoch=4)
    crops = [torch.randn(32, 3, 24, 24), torch.randn(16, 3, 16, 16)]
    trainer.step([crops], 0)
    assert trainer.queue is not None

    def state() -> list[torch.Tensor]:
        assert trainer.queue is not None
        momentum = [value for values in trainer.optimizer.state.values() for value in values.values()]
        statistics = [buffer for buffer in trainer.network.buffers() if buffer.is_floating_point()]
        changed = (*trainer.network.parameters(), *statistics, *momentum, trainer.queue.embeddings)
        return [tensor.detach().clone() for tensor in changed]

    before = state()
    poisoned = [crops[0].clone(), crops[1]]
    poisoned[0][3, 0, 0, 0] = float("nan")
    values = trainer.step([poisoned], 1)
    assert values[len(STEP_VALUES)] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert trainer.step([crops], 2)[len(STEP_VALUES)] == 0
    assert not all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_a_run_that_turns_not_finite_stops_with_advice_and_keeps_its_checkpoint(shapes, tmp_path, monkeypatch):
    real = swapped_loss
    calls = []

    def poisoned(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 7 else 1.0)

    monkeypatch.setattr("swav.training.step.swapped_loss", poisoned)
    with pytest.raises(NumericsError, match=r"step 6: .*\n.*learning rate.*step 4"):
        loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_00000004"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a")])
def test_want_of_memory_names_a_micro_batch(shapes, tmp_path, monkeypatch, error):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("swav.training.step.swapped_loss", fail)
    with pytest.raises(MachineError, match=r"Tried to allocate 2 GiB\.\)\n16 images .*micro_batch=8") as caught:
        loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    assert caught.value.exit_code == 4


def test_the_other_processes_hear_why_memory_or_disk_ended_one(shapes, tmp_path, monkeypatch):
    """They are told by `process_group`, which must meet the error in its final words, with its exit code."""
    met: list[type[Exception]] = []

    @contextlib.contextmanager
    def group(device: torch.device) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            met.append(type(error))
            raise

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("swav.training.loop.dist.process_group", group)
    monkeypatch.setattr(loop, "build_network", fail)
    with pytest.raises(MachineError, match="not enough memory"):
        loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes)})
    assert met == [MachineError]


def test_a_micro_batched_run_says_whose_statistics_batchnorm_has(shapes, tmp_path, capsys):
    loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes), "micro_batch": 4, "epochs": 2})
    assert (
        "4 images at a time of 16 (codes are of the whole batch, BatchNorm's statistics of the 4)"
        in capsys.readouterr().err
    )
    assert min(line["loss"] for line in lines(tmp_path / "run") if "loss" in line) > 0


def test_frozen_prototypes_keep_their_directions_until_they_are_freed():
    settings = recipe(optimizer="larc", lr=0.5, freeze_prototypes_steps=2, queue_length=0)
    trainer = Trainer(settings, build_network(settings), steps_per_epoch=4)
    crops = [torch.randn(32, 3, 24, 24), torch.randn(16, 3, 16, 16)]
    start = torch.nn.functional.normalize(trainer.prototypes.detach().clone(), dim=1)
    for step in range(2):
        trainer.step([crops], step)
        torch.testing.assert_close(trainer.prototypes.detach(), start)
    trainer.step([crops], 2)
    assert not torch.allclose(trainer.prototypes.detach(), start)


def test_the_queue_joins_only_once_full(monkeypatch):
    settings = recipe(queue_length=32, queue_start_epoch=0)
    trainer = Trainer(settings, build_network(settings), steps_per_epoch=4)
    sizes = []

    def noted(scores, *rest):
        sizes.append(len(scores))
        return sinkhorn_codes(scores, *rest)

    monkeypatch.setattr("swav.training.step.sinkhorn_codes", noted)
    crops = [torch.randn(32, 3, 24, 24), torch.randn(16, 3, 16, 16)]
    for step in range(3):
        trainer.step([crops], step)
    assert sizes == [16, 16, 16, 16, 48, 48]


def test_the_queue_begins_to_fill_at_its_epoch():
    settings = recipe(queue_length=32, queue_start_epoch=1)
    trainer = Trainer(settings, build_network(settings), steps_per_epoch=4)
    crops = [torch.randn(32, 3, 24, 24), torch.randn(16, 3, 16, 16)]
    filled = []
    for step in range(6):
        trainer.step([crops], step)
        assert trainer.queue is not None
        filled.append(trainer.queue.count)
    assert filled == [0, 0, 0, 0, 16, 32]


def test_a_score_on_the_way_leaves_the_network_in_train_mode(shapes, tmp_path, monkeypatch):
    modes = set()
    step = Trainer.step

    def noted(trainer: Trainer, *rest: Any) -> torch.Tensor:
        modes.add(trainer.network.training)
        return step(trainer, *rest)

    monkeypatch.setattr(Trainer, "step", noted)
    loop.pretrain("tiny", out=tmp_path / "run", **SMALL | {"data": str(shapes), "knn_every_epochs": 1, "epochs": 2})
    assert modes == {True} and [line for line in lines(tmp_path / "run") if "knn_top1" in line]


def test_a_timed_checkpoint_is_saved_once(shapes, tmp_path, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.monotonic", lambda: clock["now"])
    monkeypatch.setattr(loop, "fault_point", lambda name: clock.update(now=clock["now"] + 20.0 * (name == "step:end")))
    saved: list[int] = []
    real = checkpoint.save

    def noted(folder: Path, step: int, **rest: Any) -> Path:
        saved.append(step)
        return real(folder, step, **rest)

    monkeypatch.setattr(checkpoint, "save", noted)
    settings = SMALL | {"data": str(shapes), "checkpoint_every_steps": 0, "checkpoint_every_minutes": 1.0}
    loop.pretrain("tiny", out=tmp_path / "run", **settings)  # 12 steps of 20 seconds: due after more than 3 of them
    assert saved == [5, 10, 12]


def test_a_run_without_a_checkpoint_begins_anew_and_keeps_the_old_log(shapes, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").mkdir()
    (run / "config.yaml").write_text("epochs: 99\n")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "bad_files.jsonl").write_text('{"file": "gone.png", "reason": "cut"}\n')
    loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes)})
    assert "begins anew" in capsys.readouterr().err
    assert (run / "metrics.before.jsonl").read_text() == '{"step": 1}\n'
    assert not (run / "bad_files.jsonl").exists() and lines(run)[-1]["step"] == 12


@pytest.mark.parametrize("name", ["config.yaml", "images.npz", "metrics.jsonl", "bad_files.jsonl"])
def test_files_of_a_users_own_are_not_overwritten(shapes, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"found {name} without checkpoints/.*use another --out"):
        loop.pretrain("tiny", out=tmp_path, **SMALL | {"data": str(shapes)})
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "checkpoints").exists()


def test_a_dry_run_prints_every_resolved_setting(shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("swav.training.estimate.SECONDS", 0.1)
    wanted = load_recipe("tiny", SMALL | {"data": str(shapes)})
    loop.run_or_resume(wanted, tmp_path / "run", True, budget.now(), full=True)
    printed = capsys.readouterr().out
    assert not [key for key in Recipe.model_fields if f"\n{key}: " not in printed]
    assert not (tmp_path / "run").exists()
