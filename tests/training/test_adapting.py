"""Attacks: `auto init=W` that trains another network than W's, makes good weights worse, or goes on where it does harm.

Run: pytest tests/training/test_adapting.py
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from swav import checkpoint
from swav.data.synthetic.writers import write_shapes
from swav.errors import ConfigError, Stopped
from swav.recipe_files import load_recipe
from swav.training import loop, scoring
from swav.training.auto import derive
from swav.training.choices import MachineAndData, StartWeights
from swav.training.retrieval import Retrieval, RetrievalCheck
from swav.training.scoring import Vote
from swav.weights.encoder import load
from tests.training.test_loop import SMALL

START = StartWeights(
    "w.pth",
    {
        "backbone": "resnet34",
        "width": 2.0,
        "stem": "small",
        "in_channels": 1,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
    },
    size=96,
    head=(512, 64),
)


def derived(images: int, start: StartWeights | None, **given: Any):
    facts = MachineAndData(images, 300, batch_fits=lambda recipe, most: (most, "tried"), start=start)
    return derive(load_recipe("auto", {"data": "photos"} | given), facts)


def test_the_network_is_that_of_the_weights_and_its_crops_have_their_size():
    chosen, reasons = derived(5000, START)
    assert (chosen.backbone, chosen.width, chosen.stem, chosen.in_channels) == ("resnet34", 2.0, "small", 1)
    assert (chosen.mean, chosen.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (chosen.head_hidden, chosen.head_dim) == (512, 64)
    assert max(chosen.view_sizes) == chosen.resolution == 96
    assert "w.pth" in reasons["backbone"] and "made for 96" in reasons["crops"]
    headless = StartWeights("w.pth", START.settings, START.size)
    assert derived(5000, headless)[0].head_dim == 128


def test_the_schedule_spares_the_backbone_and_only_where_there_are_weights():
    adapted, reasons = derived(5000, START)
    steps = adapted.epochs * (5000 // 64)
    assert adapted.backbone_lr_factor < 1 and adapted.stop_when_worse
    assert adapted.freeze_prototypes_steps == 0 and adapted.freeze_backbone_steps == steps // 10
    assert "adapting" in reasons["epochs"]
    assert adapted.check_every_epochs <= adapted.epochs / 10 and adapted.knn_every_epochs <= adapted.epochs / 10
    fresh = derived(5000, None)[0]
    assert (fresh.backbone_lr_factor, fresh.stop_when_worse, fresh.freeze_backbone_steps) == (1, False, 0)


@pytest.mark.parametrize("images", [20, 300, 5000, 900_000, 2_000_000])
def test_the_backbone_learns_in_the_most_part_of_any_length(images):
    chosen = derived(images, START)[0]
    steps = chosen.epochs * max(1, images // chosen.batch)
    assert 0 <= chosen.freeze_backbone_steps <= steps / 10 and chosen.freeze_prototypes_steps == 0
    assert chosen.epochs <= derived(images, None)[0].epochs


@pytest.mark.parametrize(("images", "epochs"), [(20, 800), (300, 427), (5000, 50), (40_000, 32), (10**6, 1)])
def test_its_length_is_bounded(images, epochs):
    assert derived(images, START)[0].epochs == epochs


def test_smaller_images_are_enlarged_to_the_size_that_the_weights_were_made_for():
    facts = MachineAndData(5000, 32, batch_fits=lambda recipe, most: (most, "tried"), start=START)
    assert max(derive(load_recipe("auto", {"data": "photos"}), facts)[0].view_sizes) == START.size


def test_what_is_given_stays():
    chosen = derived(5000, START, backbone_lr_factor=1.0, stop_when_worse=False, epochs=3)[0]
    assert (chosen.backbone_lr_factor, chosen.stop_when_worse, chosen.epochs) == (1.0, False, 3)


# -- harm

RUN: dict[str, Any] = SMALL | {"epochs": 10, "check_every_epochs": 1, "queue_length": 0, "stop_when_worse": True}


@pytest.fixture(scope="module")
def given(shapes, tmp_path_factory) -> Path:
    """A run to start from."""
    return loop.pretrain(
        "tiny",
        out=tmp_path_factory.mktemp("given") / "run",
        **SMALL | {"data": str(shapes), "epochs": 1, "queue_length": 0},
    )


@pytest.fixture
def gains_to_come(monkeypatch):
    """What the check will say after each epoch: gains over the start."""
    gains: list[float] = []

    def score(check: RetrievalCheck, *_: object) -> Retrieval:
        gain = gains.pop(0)
        return Retrieval(50 + gain, gain, 0.5)

    monkeypatch.setattr(RetrievalCheck, "score", score)
    monkeypatch.setattr(RetrievalCheck, "begin", lambda *_: Retrieval(50.0, 0.0, 0.0))
    monkeypatch.setattr(RetrievalCheck, "has_start", True)
    return gains


def test_a_run_that_does_harm_ends_and_hands_on_what_it_was_given(shapes, given, gains_to_come, tmp_path, capsys):
    gains_to_come += [-1.0, 2.0, -3.0, -3.0, -3.0, -3.0]
    settings = RUN | {"data": str(shapes), "init": str(given)}
    run = loop.pretrain("tiny", out=tmp_path / "run", **settings)
    said = capsys.readouterr().err
    assert (
        "step 20: stops here: view retrieval has been below that of the weights at the start since step 12; RUN@best is step 8"
        in said
    )
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and newest.name == "step_00000020" and gains_to_come == [-3.0]
    assert load(f"{run}@best").settings["epochs"] == 2
    assert load(run / "export/backbone.safetensors").sha256 == load(f"{run}@best").sha256 != load(run).sha256
    files = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}

    loop.pretrain("tiny", out=run, **settings)
    assert "finished at step 20, where it stopped by itself" in capsys.readouterr().err
    assert files == {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}


def test_the_given_weights_stay_the_best_where_nothing_is_better(shapes, given, gains_to_come, tmp_path):
    gains_to_come += [-1.0] * 10
    run = loop.pretrain("tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given)})
    assert load(f"{run}@best").sha256 == load(given).sha256 == load(run / "export/backbone.safetensors").sha256


@pytest.mark.parametrize(
    ("gains", "changes"),
    [
        ([-1.0, 1.0] * 5, {}),  # never for a fifth of the run
        ([-1.0] * 10, {"stop_when_worse": False}),
        ([0.0] * 10, {}),  # equal is no harm
        ([-0.4] * 10, {}),  # nor is what may be chance: the margin is .5
        ([1.0] * 8 + [-1.0] * 2, {}),  # too late to end before its end
    ],
)
def test_it_goes_on_where_no_lasting_harm_is_seen(gains, changes, shapes, given, gains_to_come, tmp_path):
    gains_to_come += gains
    run = loop.pretrain("tiny", out=tmp_path / "run", **RUN | changes | {"data": str(shapes), "init": str(given)})
    assert load(run).settings["epochs"] == 10


def test_a_run_that_was_interrupted_before_it_ended_ends_there_too(shapes, given, gains_to_come, tmp_path, monkeypatch):
    gains_to_come += [-1.0] * 3
    settings = RUN | {"data": str(shapes), "init": str(given), "checkpoint_every_steps": 4}
    whole = loop.pretrain("tiny", out=tmp_path / "whole", **settings)

    class Interrupted(Exception):
        pass

    def interrupt(name: str) -> None:
        passed.append(name)
        if passed.count("step:middle") == 7:
            raise Interrupted

    passed: list[str] = []
    gains_to_come += [-1.0] * 3
    monkeypatch.setattr("swav.training.step.fault_point", interrupt)
    with pytest.raises(Interrupted):
        loop.pretrain("tiny", out=tmp_path / "parts", **settings)
    monkeypatch.setattr("swav.training.step.fault_point", lambda name: None)
    parts = loop.pretrain("tiny", out=tmp_path / "parts", **settings)
    one, other = (checkpoint.newest(run / "checkpoints") for run in (whole, parts))
    assert one is not None and other is not None and one.name == other.name == "step_00000012"
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_harm_at_the_end_is_not_handed_on_either(shapes, given, gains_to_come, tmp_path):
    gains_to_come += [1.0] * 8 + [-1.0] * 2
    run = loop.pretrain("tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given)})
    assert load(run / "export/backbone.safetensors").sha256 == load(f"{run}@best").sha256 != load(run).sha256
    assert json.loads((run / "report/verdict.json").read_text())["state"] == "did harm"


def test_an_evaluation_that_a_signal_put_off_ends_the_run_where_it_would_have_ended(
    shapes, given, gains_to_come, tmp_path, monkeypatch
):
    """The third evaluation is the one that ends the run; a signal comes in it."""
    gains_to_come += [-1.0] * 2
    settings = RUN | {"data": str(shapes), "init": str(given)}
    score = RetrievalCheck.score

    def interrupted(check: RetrievalCheck, *rest: Any) -> Retrieval | None:
        if gains_to_come:
            return score(check, *rest)
        os.kill(os.getpid(), signal.SIGTERM)
        raise Stopped("stopped by SIGTERM", 75)

    monkeypatch.setattr(RetrievalCheck, "score", interrupted)
    with pytest.raises(Stopped):
        loop.pretrain("tiny", out=tmp_path / "run", **settings)
    monkeypatch.setattr(RetrievalCheck, "score", score)
    gains_to_come += [-1.0]
    run = loop.pretrain("tiny", out=tmp_path / "run", **settings)
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and newest.name == "step_00000012" and "ended" in checkpoint.read_state(newest)
    assert load(run / "export/backbone.safetensors").sha256 == load(given).sha256


def test_a_signal_before_the_start_is_scored_begins_no_step(shapes, given, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise Stopped("stopped by SIGTERM", 75)

    with monkeypatch.context() as patch:
        patch.setattr("swav.training.retrieval.stop_if_asked", interrupt)
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            loop.pretrain("tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given)})
    assert caught.value.exit_code == 75 and not list((tmp_path / "run/checkpoints").iterdir())
    run = loop.pretrain("tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given), "epochs": 1})
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and checkpoint.read_state(newest)["retrieval"]["hits"]


def test_a_size_that_changes_at_a_resume_is_compared_with_nothing(shapes, given, tmp_path, monkeypatch, capsys):
    settings = RUN | {"data": str(shapes), "init": str(given), "checkpoint_every_steps": 4, "epochs": 3}

    class Interrupted(Exception):
        pass

    def interrupt(name: str) -> None:
        if name == "epoch:end" and len(list((tmp_path / "run/checkpoints").iterdir())) > 1:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fault_point", interrupt)
        with pytest.raises(Interrupted):
            loop.pretrain("tiny", out=tmp_path / "run", **settings)
    run = loop.pretrain("tiny", out=tmp_path / "run", **settings | {"eval_size": 32})
    assert "are of another view" in capsys.readouterr().err
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and "retrieval" not in checkpoint.read_state(newest)


def test_harm_that_nothing_could_find_is_asked_for_in_vain(shapes, given, tmp_path):
    with pytest.raises(ConfigError, match="stop_when_worse: expected kNN or view retrieval"):
        loop.pretrain(
            "tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given), "check_every_epochs": 0}
        )


def test_with_labels_the_vote_of_the_neighbours_decides(shapes, given, gains_to_come, tmp_path, monkeypatch):
    gains_to_come += [9.0] * 10
    votes = iter([50.0] + [40.0] * 10)
    monkeypatch.setattr(scoring, "score_by_knn", lambda *_: Vote(next(votes), 20, 3.0))
    run = loop.pretrain(
        "tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(given), "knn_every_epochs": 1}
    )
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and newest.name == "step_00000012"
    state = checkpoint.read_state(newest)
    assert (state["best_step"], state["best_knn"]) == (0, 50.0) and "kNN has been below" in state["ended"]
    verdict = json.loads((run / "report/verdict.json").read_text())
    assert verdict["state"] == "did harm" and "kNN 40.0" in verdict["advice"] and "exported" in verdict["advice"]


def test_weights_of_any_size_are_adapted_by_auto(given, tmp_path, capsys):
    data = tmp_path / "data"
    write_shapes(data, "imagenet", train=40, val=20, size=40, seed=5)
    run = loop.pretrain("auto", out=tmp_path / "run", data=data, init=given, epochs=2, workers=0)
    said = capsys.readouterr().err
    assert f"that of {given}" in said and load(run).settings["width"] == 0.125
    assert f"init       {given}: backbone, head; fresh prototypes" in said
