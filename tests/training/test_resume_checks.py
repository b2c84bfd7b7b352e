"""Attacks: a run that goes on from what is not its own: another run's checkpoint, tensors that only fit by broadcasting,
weights that are no numbers, a monitor that starts afresh.

Kills are in test_resume.py, damage in test_checkpoint.py. Run: pytest tests/training/test_resume_checks.py
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from swav import checkpoint
from swav.errors import CheckpointError, ConfigError, DataError, NumericsError
from swav.files import is_run
from swav.training import loop, resume
from swav.training.step import Trainer
from tests.training.test_loop import SMALL, lines

MONITORED = ("prototypes_used", "rankme", "embedding_std")
BRIEF = SMALL | {"epochs": 2, "queue_start_epoch": 1, "teacher_momentum": 0.9, "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> Path:
    """A finished run, with checkpoints of steps 4 and 8."""
    torch.set_num_threads(1)  # a fixture of a module comes before the one that does this for every test
    return go_on(shapes, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def split(whole, tmp_path) -> Path:
    """The same at step 4: as a kill before the second save leaves it."""
    copy: Path = tmp_path / "run"
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000008")
    return copy


def go_on(shapes: Path, out: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = BRIEF | {"data": str(shapes)} | changes
    folder: Path = loop.pretrain("tiny", out=out, **settings)
    return folder


def vouched(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a file of a checkpoint, and its manifest with it."""
    file = path / name
    if name.endswith(".json"):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        save_file(change(load_file(file)), file)
    manifest = json.loads((path / "manifest.json").read_text())
    content = file.read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.damage(path) is None


def last_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoints" / "step_00000008").glob("*.safetensors")}


# Each fits by broadcasting, or as a number of another type: `copy_` would say nothing.
CHANGES: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "a row for all of a layer": ("model.safetensors", "projection_head.0.weight", lambda t: t[:1].contiguous()),
    "prototypes in float64": ("model.safetensors", "prototypes.weight", lambda t: t.double()),
    "one momentum for all": ("optim.safetensors", "prototypes.weight/exp_avg", lambda t: t.mean()),
    "a teacher's column": ("optim.safetensors", "teacher/prototypes.weight", lambda t: t[:, :1].contiguous()),
    "one embedding for a queue": ("rank_0.safetensors", "queue/embeddings", lambda t: t[:, :1].contiguous()),
    "a count that is a float": ("rank_0.safetensors", "queue/count", lambda t: t.float()),
    "a random state of another size": ("rank_0.safetensors", "rng/torch", lambda t: t[:8].contiguous()),
    "one use for all prototypes": ("rank_0.safetensors", "monitor/usage", lambda t: t[:1].contiguous()),
    "too long a window": ("rank_0.safetensors", "monitor/recent", lambda t: t[:1].expand(2000, -1).contiguous()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_of_another_form_is_refused_by_name_and_changes_nothing(shapes, split, change):
    file, name, make = CHANGES[change]
    vouched(split / "checkpoints" / "step_00000004", file, lambda content: content | {name: make(content[name])})
    with pytest.raises(CheckpointError, match=rf"step_00000004/{file}: .*wrong {name} \w+ \[") as caught:
        go_on(shapes, split)
    assert caught.value.exit_code == 6 and len(str(caught.value).splitlines()) == 2
    assert [path.name for path in (split / "checkpoints").iterdir()] == ["step_00000004"]


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "rank_0.safetensors"])
def test_a_tensor_too_many_or_too_few_is_refused_by_name(shapes, split, file):
    def changed(content: dict[str, Tensor]) -> dict[str, Tensor]:
        missing.append(next(name for name in sorted(content) if not name.startswith(("monitor/", "rng/"))))
        return {name: value for name, value in content.items() if name != missing[0]} | {"extra": torch.ones(1)}

    missing: list[str] = []
    vouched(split / "checkpoints" / "step_00000004", file, changed)
    with pytest.raises(CheckpointError) as caught:
        go_on(shapes, split)
    assert f"{file}: its tensors do not fit: missing {missing[0]}; unexpected extra" in str(caught.value)


def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(shapes, split, tmp_path):
    other = go_on(shapes, tmp_path / "other", lr=0.02, temperature=0.2, epochs=1, queue_length=0)
    shutil.rmtree(split / "checkpoints" / "step_00000004")
    shutil.copytree(other / "checkpoints" / "step_00000004", split / "checkpoints" / "step_00000004")
    with pytest.raises(ConfigError, match=r"expected a checkpoint with the settings of config.yaml") as caught:
        go_on(shapes, split)
    assert "\n  temperature: 0.1 -> 0.2" in str(caught.value) and "\n  lr: " in str(caught.value)


def test_a_checkpoint_of_other_versions_is_used_with_one_warning(shapes, whole, split, capsys):
    def older(state: dict[str, Any]) -> dict[str, Any]:
        return state | {"versions": state["versions"] | {"torch": "1.13.1"}, "settings_hash": "of fewer settings"}

    vouched(split / "checkpoints" / "step_00000004", "state.json", older)
    go_on(shapes, split)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1 and "written by torch 1.13.1 instead of " in said[0]
    assert last_files(split) == last_files(whole)


def test_a_checkpoint_from_before_the_monitor_was_saved_goes_on_to_the_same_weights(shapes, whole, split):
    def older(content: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in content.items() if not name.startswith("monitor/")}

    vouched(split / "checkpoints" / "step_00000004", "rank_0.safetensors", older)
    vouched(
        split / "checkpoints" / "step_00000004", "state.json", lambda s: {k: v for k, v in s.items() if k != "versions"}
    )
    go_on(shapes, split)
    for name in ("model.safetensors", "optim.safetensors"):
        assert last_files(split)[name] == last_files(whole)[name]


def test_a_resumed_run_logs_the_same_health_to_the_bit(shapes, whole, split):
    go_on(shapes, split)
    expected, found = ([[line.get(key) for key in MONITORED] for line in lines(each)] for each in (whole, split))
    assert len(expected) == 10 and found == expected  # eight steps, and a check before and after them
    assert last_files(split) == last_files(whole)


def test_weights_that_a_step_makes_infinite_are_never_saved(shapes, tmp_path):
    huge = {"optimizer": "adam", "lr": 1e38, "warmup_epochs": 0, "freeze_prototypes_steps": 0}
    with pytest.raises(NumericsError, match=r"there is no checkpoint yet") as caught:
        go_on(shapes, tmp_path / "run", weight_decay=1.0, checkpoint_every_steps=1, **huge)
    assert caught.value.exit_code == 5 and len(str(caught.value).splitlines()) <= 3
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_weights_that_turn_infinite_are_found_before_they_are_scored(shapes, tmp_path, monkeypatch):
    def overflow(trainer: Any, step: int, skip: Tensor) -> None:
        update(trainer, step, skip)
        if step == 7:
            trainer.prototypes.data[0, 0] = float("inf")

    update = Trainer._update
    monkeypatch.setattr(Trainer, "_update", overflow)
    with pytest.raises(NumericsError, match=r"step 8: .*prototypes.weight; .*\n.*the last checkpoint is step 4"):
        go_on(shapes, tmp_path / "run", knn_every_epochs=1)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000004"]
    assert [line["step"] for line in lines(tmp_path / "run") if "knn_top1" in line] == [0, 4]


def test_a_folder_is_a_runs_before_its_first_step(shapes, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr("swav.training.step.swapped_loss", stop)
    with pytest.raises(Stopped):
        go_on(shapes, tmp_path / "run")
    assert is_run(tmp_path / "run")


def test_queues_of_processes_that_do_not_fit_together_are_refused():
    parts = [{"queue/embeddings": torch.zeros(2, 8, 3), "queue/count": torch.tensor(8)} for _ in range(2)]
    parts[1]["queue/embeddings"] = torch.zeros(2, 1, 3)
    saved = checkpoint.Checkpoint(3, {}, {}, parts, {"recipe": {"batch": 8}}, Path("step_3"))
    with pytest.raises(CheckpointError, match=r"step_3/rank_1.safetensors: .*wrong queue/embeddings"):
        resume.local_shard(saved)


def test_a_last_score_that_was_interrupted_is_made_once_labels_are_back(shapes, tmp_path, monkeypatch):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, data)
    go_on(data, run, knn_every_epochs=2)
    last = checkpoint.newest(run / "checkpoints")
    assert last is not None
    unscored = {"unscored": True, "best_step": None, "best_knn": None}
    checkpoint.amend_state(last, unscored)  # as a signal in the last evaluation leaves it
    kept = [line for line in lines(run) if "knn_top1" not in line or line["step"] == 0]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    (data / "val").rename(tmp_path / "away")
    monkeypatch.setattr("swav.training.setup.labelled_splits", no_labels)
    go_on(data, run, knn_every_epochs=1)
    assert checkpoint.read_state(last)["unscored"] and checkpoint.read_state(last)["best_knn"] is None
    (tmp_path / "away").rename(data / "val")
    monkeypatch.undo()
    go_on(data, run, knn_every_epochs=1)
    state = checkpoint.read_state(last)
    assert not state["unscored"] and state["best_step"] == state["step"] and state["best_knn"] > 0


def no_labels(*_: object, **__: object) -> None:
    raise DataError("no labels just now")


def test_a_run_whose_labels_are_gone_goes_on_and_says_that_it_is_no_longer_scored(shapes, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    out = go_on(data, tmp_path / "run", knn_every_epochs=1)
    shutil.rmtree(out / "checkpoints" / "step_00000008")
    shutil.rmtree(next((data / "val").iterdir()))
    go_on(data, out, knn_every_epochs=1)
    said = capfd.readouterr().err
    assert "was scored by kNN before, and is not from here on: " in said and "expected the same classes" in said
