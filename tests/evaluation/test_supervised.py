"""Attacks: a loss that is not finite and goes on; stand-ins that are learned from; a state that other settings go on from.

Run: pytest tests/evaluation/test_supervised.py
"""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swav.data.sources.open import labelled_halves
from swav.errors import CheckpointError, EnvironmentError_, NumericsError
from swav.evaluation import supervised
from swav.evaluation.protocols import linear_stages
from swav.evaluation.settings import StagesSettings
from swav.evaluation.task import Task
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder
from tests.evaluation.conftest import made
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
        encoder_of(), *labelled_halves(colours), settings, "published", torch.device("cpu"), made(tmp_path / "out")
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
    its, theirs = (supervised.state_folder(each, "linear-stages", each.train) for each in (one, other))
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
    x, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 1, supervised.IGNORED, supervised.IGNORED])
    moved = []
    for inputs, its_labels in ((x, labels), (x[:4], labels[:4])):
        torch.manual_seed(1)
        model = TwoHeads()
        loss, count = supervised._step(model, torch.optim.SGD(model.parameters(), lr=1.0), inputs, its_labels)
        moved.append([*model.state_dict().values(), loss])
        assert count == 4
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*moved, strict=True))
    before = [p.clone() for p in model.parameters()]
    loss, count = supervised._step(model, torch.optim.SGD(model.parameters(), lr=1.0), x, torch.full((6,), -100))
    assert count == 0 and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_state_belongs_to_settings_weights_and_images_and_not_to_workers(task):
    def folder(**changed):
        chosen = dataclasses.replace(task, settings=task.settings.model_copy(update=changed))
        return supervised.state_folder(chosen, "x", chosen.train)

    assert folder() == folder(workers=2, device="cuda", score_every_epochs=1)
    assert len({folder(), folder(lr=0.02), folder(seed=1), folder(jitter=0.0)}) == 4
    assert folder() != supervised.state_folder(task, "x", task.train.select([0, 1]))
    assert supervised.state_folder(task, "x", task.train, 0.01) != supervised.state_folder(task, "x", task.train, 0.1)


def test_images_changed_in_place_begin_a_state_of_their_own(task):
    before = supervised.state_folder(task, "x", task.train)
    changed = task.train.select(range(len(task.train)))
    changed.rows["time"][0] += 1
    assert supervised.state_folder(dataclasses.replace(task, train=changed), "x", task.train) != before


def test_a_state_of_the_loop_that_dropped_partial_batches_is_not_gone_on_from(task, monkeypatch):
    now = supervised.state_folder(task, "x", task.train)
    assert now.name != task.identity(task.train.fingerprint)[1]  # its name until then
    monkeypatch.setattr(supervised, "LOOP_VERSION", supervised.LOOP_VERSION + 1)
    assert supervised.state_folder(task, "x", task.train) != now


def test_corrected_labels_and_other_strides_begin_a_state_of_their_own(task):
    before = supervised.state_folder(task, "x", task.train)
    for half in ("train", "score"):
        corrected = getattr(task, half).select(range(len(getattr(task, half))))
        corrected.labels[0] = 2 - corrected.labels[0]
        assert corrected.fingerprint == getattr(task, half).fingerprint
        assert supervised.state_folder(dataclasses.replace(task, **{half: corrected}), "x", task.train) != before
    other = encoder_of(stem="half" if task.encoder.settings["stem"] != "half" else "small")
    assert other.sha256 == task.encoder.sha256
    assert supervised.state_folder(dataclasses.replace(task, encoder=other), "x", task.train) != before


def test_what_a_run_takes_is_found_out_where_the_network_is(task):
    elsewhere = dataclasses.replace(
        task, device=torch.device("meta")
    )  # as a GPU, before a dry run has moved anything there
    assert elsewhere.stage_values() == task.stage_values()


def test_steps_lie_behind_the_epoch_they_name():
    assert [supervised.steps_passed((2, 4), epoch) for epoch in range(6)] == [0, 0, 1, 1, 2, 2]


def test_a_second_command_waits_for_the_first_that_trains_the_same_and_takes_over_its_state(task, monkeypatch, capsys):
    folder = supervised.state_folder(task, "linear-stages", task.train)
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
    with pytest.raises(EnvironmentError_, match="was removed or moved during the run"):
        linear_stages.run(task)
    assert not task.out.exists()
