"""Attacks: a loss that is not finite and goes on; stand-ins that are learned from; a state that other settings go on from;
objectives that the loop has never seen, with ragged targets, dropout and another optimiser, interrupted at any step.

Run: pytest tests/evaluation/test_supervised.py
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swav import checkpoint, signals, system
from swav.data.sources.open import labelled_splits
from swav.errors import CheckpointError, MachineError, NumericsError, Stopped
from swav.evaluation import classification, supervised
from swav.evaluation.protocols import linear_stages
from swav.evaluation.settings import StagesSettings
from swav.evaluation.task import Task
from swav.network.heads import build_network
from swav.progress import Progress
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder
from tests.evaluation.conftest import made
from tests.evaluation.toy import Given, GivenObjective, RaggedObjective, ragged_batches
from tests.test_files import holder_of


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.a(x), self.b(x)


def encoder_of(**changed) -> Encoder:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4} | changed)
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture
def task(colours, tmp_path) -> Task[StagesSettings]:
    settings = StagesSettings(size=16, epochs=2, batch=8, workers=0)
    return Task(
        encoder_of(), *labelled_splits(colours), settings, "published", torch.device("cpu"), made(tmp_path / "out")
    )


def test_a_loss_that_is_not_finite_ends_it_and_saves_nothing(task):
    with pytest.raises(NumericsError, match="linear-stages, epoch 1"):
        linear_stages.run(dataclasses.replace(task, settings=task.settings.model_copy(update={"lr": 1e30})))
    assert not list((task.out / "linear-stages").glob("*/checkpoints/step_*"))


def with_settings(task, **changes):
    return dataclasses.replace(task, settings=task.settings.model_copy(update=changes))


def test_what_overflows_after_a_finite_loss_ends_it_and_saves_nothing(task):
    """One step an epoch: the loss is that before the update, which leaves weights of 1e38 that no logit can hold."""
    with pytest.raises(NumericsError, match="expected finite logits to score by"):
        linear_stages.run(with_settings(task, lr=3e38, epochs=1, batch=24))
    assert not list((task.out / "linear-stages").glob("*/checkpoints/step_*"))


def test_the_state_of_another_training_or_of_another_form_is_refused(task):
    one, other = (with_settings(task, lr=lr, epochs=1, batch=24) for lr in (0.01, 0.02))
    linear_stages.run(one)
    its, theirs = (classification.state_folder(each, "linear-stages", each.train) for each in (one, other))
    shutil.copytree(its, theirs)
    with pytest.raises(CheckpointError, match=f"expected the state of {theirs.name}, found that of {its.name}"):
        linear_stages.run(other)
    (path,) = (its / "checkpoints").iterdir()
    momentum = load_file(path / "optim.safetensors")
    name = max(momentum, key=lambda key: momentum[key].dim())
    save_file(momentum | {name: momentum[name][:1].contiguous()}, path / "optim.safetensors")
    content = (path / "optim.safetensors").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["optim.safetensors"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"optim.safetensors: .*wrong {name} "):
        linear_stages.run(one)


def test_stand_ins_change_no_gradient():
    torch.manual_seed(0)
    x, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 1, classification.IGNORED, classification.IGNORED])
    moved = []
    for inputs, its_labels in ((x, labels), (x[:4], labels[:4])):
        torch.manual_seed(1)
        model = TwoHeads()
        objective = GivenObjective(model, torch.optim.SGD(model.parameters(), lr=1.0))
        loss, count = supervised._step(objective, model, Given(inputs, its_labels))
        moved.append([*model.state_dict().values(), loss])
        assert count == 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*moved, strict=True))
    before = [p.clone() for p in model.parameters()]
    loss, count = supervised._step(objective, model, Given(x, torch.full((6,), -100)))
    assert count == 0 and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_state_belongs_to_settings_weights_and_images_and_not_to_workers(task):
    def folder(**changed):
        chosen = dataclasses.replace(task, settings=task.settings.model_copy(update=changed))
        return classification.state_folder(chosen, "x", chosen.train)

    assert folder() == folder(workers=2, device="cuda", score_every_epochs=1)
    assert len({folder(), folder(lr=0.02), folder(seed=1), folder(jitter=0.0)}) == 4
    assert folder() != classification.state_folder(task, "x", task.train.select([0, 1]))
    assert classification.state_folder(task, "x", task.train, 0.01) != classification.state_folder(
        task, "x", task.train, 0.1
    )


def test_images_changed_in_place_begin_a_state_of_their_own(task):
    before = classification.state_folder(task, "x", task.train)
    changed = task.train.select(range(len(task.train)))
    changed.rows["time"][0] += 1
    assert classification.state_folder(dataclasses.replace(task, train=changed), "x", task.train) != before


def test_a_state_of_the_loop_that_dropped_partial_batches_is_not_gone_on_from(task, monkeypatch):
    now = classification.state_folder(task, "x", task.train)
    assert now.name != task.identity(task.train.fingerprint)[1]  # its name until then
    monkeypatch.setattr(classification, "VERSION", classification.VERSION + 1)
    assert classification.state_folder(task, "x", task.train) != now


def test_corrected_labels_and_other_strides_begin_a_state_of_their_own(task):
    before = classification.state_folder(task, "x", task.train)
    for split in ("train", "val"):
        corrected = getattr(task, split).select(range(len(getattr(task, split))))
        corrected.labels[0] = 2 - corrected.labels[0]
        assert corrected.fingerprint == getattr(task, split).fingerprint
        assert classification.state_folder(dataclasses.replace(task, **{split: corrected}), "x", task.train) != before
    other = encoder_of(stem="half" if task.encoder.settings["stem"] != "half" else "small")
    assert other.sha256 == task.encoder.sha256
    assert classification.state_folder(dataclasses.replace(task, encoder=other), "x", task.train) != before


def test_what_a_run_takes_is_found_out_where_the_network_is(task):
    elsewhere = dataclasses.replace(
        task, device=torch.device("meta")
    )  # as a GPU, before a dry run has moved anything there
    assert elsewhere.stage_values() == task.stage_values()


def test_steps_lie_behind_the_epoch_they_name():
    assert [classification.lr_drops_before((2, 4), epoch) for epoch in range(6)] == [0, 0, 1, 1, 2, 2]


def test_a_second_command_waits_for_the_first_that_trains_the_same_and_takes_over_its_state(task, monkeypatch, capsys):
    folder = classification.state_folder(task, "linear-stages", task.train)
    once = linear_stages.run(task)
    with holder_of(folder / ".lock") as first:
        monkeypatch.setattr("time.sleep", lambda _: first.kill())  # it waits: the first ends, however
        monkeypatch.setattr(supervised, "_step", lambda *_: pytest.fail("trains again"))
        again = linear_stages.run(task)
    assert again == once
    assert f"waiting for process {first.pid} on " in (said := capsys.readouterr().err)
    assert f"which holds the training of linear-stages in {folder}" in said


def test_a_folder_that_goes_away_is_found_after_the_epoch_and_not_made_again(task, monkeypatch):
    real = supervised._line

    def line(*arguments):
        shutil.rmtree(task.out)
        return real(*arguments)

    monkeypatch.setattr(supervised, "_line", line)
    with pytest.raises(MachineError, match="was removed or moved during the run"):
        linear_stages.run(task)
    assert not task.out.exists()


def trained(out, images, seed=0, steps=8, score=None):
    """A toy training: 8 steps, an epoch of 3, so that the last one is shorter."""
    objective = RaggedObjective(seed)
    plan = supervised.TrainingPlan("toy", "toy", out / "toy", steps, 3, 1, lambda step: [0.01 / (1 + step)], seed)
    result = supervised.fit(
        objective,
        plan,
        lambda start: ragged_batches(start, steps),
        train=images,
        val=images,
        device=torch.device("cpu"),
        out=out,
    )
    newest = checkpoint.newest(out / "toy" / "checkpoints")
    assert newest is not None
    return result, checkpoint.read(newest)


def test_the_loop_trains_whatever_the_objective_says_by_any_optimiser_and_step(task):
    result, saved = trained(task.out, task.train)
    lines = [json.loads(line) for line in (task.out / result.log).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3] and saved.step == 8
    assert [line["lr"] for line in lines] == [0.01 / 3, 0.01 / 6, 0.01 / 8]  # of the last step before each
    assert all(line["error"] > 0 and line["scored"] == 4 for line in lines) and result.last == lines[-1]
    model, optimizer = (alone := RaggedObjective()).model.train(), alone.optimizer
    system.seed_process(0, 0)
    losses = []
    for batch in ragged_batches(0, 8):
        if not alone.count(batch):
            continue
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + batch.step)
        optimizer.zero_grad()
        loss = alone.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append((float(loss.detach()), alone.count(batch)))
    boxes = sum(count for _, count in losses[:2])
    assert lines[0]["loss"] == pytest.approx(sum(loss * count for loss, count in losses[:2]) / boxes)
    assert all(torch.equal(value, saved.model[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("at", range(1, 8))
def test_a_training_goes_on_from_any_step_to_the_same_bits(task, monkeypatch, at):
    whole, saved = trained(task.out, task.train)
    real, passed = supervised._step, []

    def then_signal(*arguments):
        found = real(*arguments)
        passed.append(1)
        if len(passed) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(supervised, "_step", then_signal)
    torn = made(task.out.with_name("torn"))
    with signals.work(), pytest.raises(Stopped):
        trained(torn, task.train)
    assert sorted(path.name for path in (torn / "toy" / "checkpoints").iterdir())[-1] == f"step_{at:08d}"
    torch.rand(3)  # others draw in between
    again, continued = trained(torn, task.train)
    assert len(passed) == 8 and again == whole and continued.state["log"] == saved.state["log"]
    for kind in ("model", "optim"):
        theirs = getattr(continued, kind)
        assert getattr(saved, kind).keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(saved, kind).items())


def test_a_training_saves_on_the_way_when_enough_time_has_passed(task, monkeypatch):
    kept, real = [], supervised._save

    def save(*arguments):
        kept.append(arguments[2].step)
        real(*arguments)

    monkeypatch.setattr(supervised, "_save", save)
    monkeypatch.setattr(supervised, "SAVE_SECONDS", -1.0)
    trained(task.out, task.train)
    assert kept == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_state_that_an_earlier_version_saved_by_epochs_is_continued(task, monkeypatch):
    whole = linear_stages.run(task)
    (folder,) = (path.parent for path in task.out.glob("linear-stages/*/checkpoints"))
    first = checkpoint.read(folder / "checkpoints" / "step_00000003")
    shutil.rmtree(folder / "checkpoints")
    checkpoint.save(
        folder / "checkpoints",
        1,
        model=first.model,
        optim={name.removesuffix("/momentum_buffer"): value for name, value in first.optim.items()},
        local={},
        state={key: first.state[key] for key in ("of", "log", "unreadable", "damaged")},
        keep=2,
    )
    steps, real = [], supervised._step

    def step(*arguments):
        steps.append(arguments[2].step)
        return real(*arguments)

    monkeypatch.setattr(supervised, "_step", step)
    assert linear_stages.run(task) == whole and steps == [3, 4, 5]


@pytest.mark.parametrize("at", [3, 8])
def test_a_signal_in_an_evaluation_loses_no_step_and_the_evaluation_is_made_after_the_resume(task, monkeypatch, at):
    whole, saved = trained(task.out, task.train)
    real, steps = supervised._step, []

    def step(*arguments):
        steps.append(arguments[2].step)
        return real(*arguments)

    evaluate = RaggedObjective.evaluate

    def interrupted(self):
        if steps[-1] + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
            signals.stop_if_asked()
        return evaluate(self)

    torn = made(task.out.with_name("torn"))
    with monkeypatch.context() as patch, signals.work():
        patch.setattr(supervised, "_step", step)
        patch.setattr(RaggedObjective, "evaluate", interrupted)
        with pytest.raises(Stopped) as end:
            trained(torn, task.train)
    assert end.value.exit_code == 75 and steps == list(range(at))
    again, resumed = trained(torn, task.train)
    assert again == whole and resumed.state["log"] == saved.state["log"]
    assert all(torch.equal(value, resumed.model[name]) for name, value in saved.model.items())
    assert trained(torn, task.train)[0] == whole  # and its line is kept, though the step was saved before


def test_an_optimiser_whose_state_could_not_be_resumed_is_refused_before_the_first_step(task, monkeypatch):
    monkeypatch.setattr("tests.evaluation.toy.torch.optim.AdamW", lambda parameters, **_: torch.optim.NAdam(parameters))
    with pytest.raises(TypeError, match="expected SGD, Adam or AdamW, found NAdam"):
        trained(task.out, task.train)


def test_progress_says_how_fast_the_steps_are_without_evaluations_and_the_memory(task, monkeypatch):
    clock, shown = SimpleNamespace(now=0.0), []

    def takes(seconds, function):
        def slower(*arguments):
            clock.now += seconds
            return function(*arguments)

        return slower

    def update(self, done, text=None, place=None):
        shown.append(text)

    monkeypatch.setattr(supervised, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(supervised, "_step", takes(0.25, supervised._step))
    monkeypatch.setattr(supervised, "_line", takes(1000.0, supervised._line))
    monkeypatch.setattr(supervised, "memory_gb", lambda device: 1.26)
    monkeypatch.setattr(Progress, "update", update)
    linear_stages.run(task)
    assert len(shown) == 6 and all(text.endswith("32 images/s  1.3 GB") for text in shown)
    assert "loss" not in shown[0] and shown[-1].startswith("loss ")
