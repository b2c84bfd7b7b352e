"""Attacks: labels of more images than the fraction; rates of the wrong part; a backbone that stays frozen or leaks; a resume
that differs.

Run: pytest tests/evaluation/protocols/test_semisup.py
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from swav import checkpoint
from swav.data.sources.open import labelled_splits
from swav.errors import ConfigError, DataError
from swav.evaluation import supervised
from swav.evaluation.protocols import semisup
from swav.evaluation.request import resolve
from swav.evaluation.settings import SemisupSettings
from swav.evaluation.task import Task
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder, weights_sha256
from tests.evaluation.conftest import made

CPU = torch.device("cpu")


def fresh() -> Encoder:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture
def task(colours, tmp_path) -> Task[SemisupSettings]:
    settings = SemisupSettings(size=32, epochs=3, batch=4, workers=0, steps=(1, 2), fraction=(0.25, 0.5))
    return Task(fresh(), *labelled_splits(colours), settings, "published", CPU, made(tmp_path / "out"))


def with_settings(task, **changed):
    return dataclasses.replace(task, settings=task.settings.model_copy(update=changed))


def saved(task):
    found = {}
    for folder in (task.out / "semisup").iterdir():
        newest = checkpoint.newest(folder / "checkpoints")
        assert newest is not None
        found[folder.name] = checkpoint.read(newest)
    return found


@pytest.mark.parametrize(("fraction", "trunk", "layer"), [(0.01, 0.02, 5.0), (0.1, 0.01, 0.2), (1.0, 0.01, 0.2)])
def test_learning_rates_are_the_published_ones(fraction, trunk, layer):
    page = SemisupSettings()
    for epoch, factor in ((0, 1), (11, 1), (12, 0.2), (15, 0.2), (16, 0.04), (19, 0.04)):
        assert semisup._learning_rates(page, fraction, epoch) == pytest.approx([factor * trunk, factor * layer])


def test_at_another_batch_the_rates_are_in_proportion_unless_they_are_set():
    smaller = SemisupSettings(batch=32)
    assert semisup._learning_rates(smaller, 0.1, 0) == pytest.approx([0.01 / 8, 0.2 / 8])
    assert semisup._learning_rates(smaller.model_copy(update={"lr_head": 3.0}), 0.1, 0) == pytest.approx(
        [0.01 / 8, 3.0]
    )


def test_settings_are_the_published_ones(task):
    page = SemisupSettings()
    assert (page.epochs, page.batch, page.momentum, page.weight_decay, page.fraction) == (20, 256, 0.9, 0, (0.01, 0.1))
    model = semisup._start(task)
    trunk, layer = semisup._optimizer(model, page, 0.01).param_groups
    assert (trunk["lr"], layer["lr"]) == (0.02, 5.0) and not trunk["nesterov"] and not trunk["weight_decay"]
    assert len(trunk["params"]) + len(layer["params"]) == len(list(model.parameters()))
    assert len(layer["params"]) == 2


def test_the_layer_starts_as_torchs_own_does_by_the_seed(task):
    state = torch.get_rng_state()
    layer = semisup._start(task).layer
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(task.settings.seed)
    plain = nn.Linear(task.encoder.num_features, 3)
    assert torch.equal(layer.weight, plain.weight) and torch.equal(layer.bias, plain.bias)
    assert not torch.equal(semisup._start(with_settings(task, seed=1)).layer.weight, layer.weight)


def test_a_list_wants_one_fraction():
    with pytest.raises(ConfigError, match="one fraction"):
        resolve(["semisup"], {"semisup.list": "x.txt"})
    assert resolve(["semisup"], {"semisup.list": "x.txt", "semisup.fraction": 0.01})


def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(task, monkeypatch):
    before = weights_sha256(task.encoder.trunk)
    scores = semisup.run(task)
    assert [score.metric for score in scores] == ["top-1 25%", "top-5 25%", "top-1 50%", "top-5 50%"]
    assert weights_sha256(task.encoder.trunk) == before and not task.encoder.trunk.training
    torn, passed = dataclasses.replace(task, out=made(task.out.with_name("torn"))), []

    def die_in_the_second_fraction(_):
        passed.append(1)
        if len(passed) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "fault_point", die_in_the_second_fraction)
    with pytest.raises(KeyboardInterrupt):
        semisup.run(torn)
    assert semisup.run(torn) == scores and len(passed) == 6
    whole, parts = saved(task), saved(torn)
    assert whole.keys() == parts.keys() and len(whole) == 2
    for name, state in whole.items():
        assert state.state["log"] == parts[name].state["log"]
        for kind in ("model", "optim"):
            theirs = getattr(parts[name], kind)
            assert getattr(state, kind).keys() == theirs.keys()
            assert all(torch.equal(x, theirs[key]) for key, x in getattr(state, kind).items())
        start = semisup._start(task).state_dict()
        assert not torch.equal(state.model["trunk.conv1.weight"], start["trunk.conv1.weight"])  # the backbone learns
        assert not torch.equal(state.model["trunk.bn1.running_mean"], start["trunk.bn1.running_mean"])


def test_a_fraction_is_drawn_of_every_class_by_the_seed(task):
    chosen = semisup.share_of_each_class(task.train, 0.25, seed=0)
    assert np.bincount(task.train.labels[chosen]).tolist() == [2, 2, 2]
    assert (chosen == semisup.share_of_each_class(task.train, 0.25, seed=0)).all()
    assert (chosen != semisup.share_of_each_class(task.train, 0.25, seed=1)).any()
    assert len(semisup.share_of_each_class(task.train, 0.01, seed=0)) == 3  # at least one of each
    assert len(semisup.share_of_each_class(task.train, 1.0, seed=0)) == len(task.train)


def test_only_the_fraction_is_learned_from(task, monkeypatch):
    seen = []
    step = supervised._step

    def spy(objective, model, batch):
        seen.append(len(batch.indices))
        return step(objective, model, batch)

    monkeypatch.setattr(supervised, "_step", spy)
    semisup.run(with_settings(task, fraction=(0.25,), epochs=2, batch=6))
    assert seen == [6, 6]
    seen.clear()
    semisup.run(with_settings(task, fraction=(0.5,), epochs=2, batch=5))
    assert seen == 2 * [5, 5, 2]  # the rest of 12, too


def test_a_list_names_the_images_and_a_missing_one_is_named(task, tmp_path):
    names = [task.train.name(i) for i in (0, 9, 20)]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    assert [*map(str, np.flatnonzero([task.train.name(i) in names for i in range(len(task.train))]))] == [
        "0",
        "9",
        "20",
    ]
    chosen = semisup.listed(task.train, tmp_path / "list.txt", "published")
    assert [chosen.name(i) for i in range(len(chosen))] == names
    (tmp_path / "list.txt").write_text("\n".join([*names, "n01_none.JPEG"]))
    with pytest.raises(DataError, match=r"n01_none\.JPEG"):
        semisup.listed(task.train, tmp_path / "list.txt", "published")
    assert "1 of them missing" in semisup.listed(task.train, tmp_path / "list.txt", "smoke").note


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["{} \r\n", "{}\t3\n", "{},n01\n"])
def test_a_list_may_have_been_saved_by_any_editor_and_name_images_below_the_split(task, tmp_path, encoding, line):
    names = [task.train.name(i) for i in (0, 9, 20)]
    for start in (0, 1):  # train/CLASS/NAME, CLASS/NAME
        short = ["/".join(name.split("/")[start:]) for name in names]
        (tmp_path / "list.txt").write_text("".join(line.format(name) for name in short), encoding=encoding, newline="")
        chosen = semisup.listed(task.train, tmp_path / "list.txt", "published")
        assert [chosen.name(i) for i in range(len(chosen))] == names


def test_a_name_that_several_images_have_is_refused(task, tmp_path):
    name = task.train.name(0).rpartition("/")[2]
    (tmp_path / "list.txt").write_text(f"{name}\n")
    with pytest.raises(DataError, match=rf"found {name}, which several have"):
        semisup.listed(task.train, tmp_path / "list.txt", "smoke")


def test_all_labels_are_marked_as_ours(task):
    scores = semisup.run(with_settings(task, fraction=(1.0,), epochs=1))
    assert all("a recipe of ours" in score.deviations for score in scores)


def test_a_last_batch_that_cannot_be_normalised_is_refused_before_any_work(task):
    with pytest.raises(ConfigError, match=r"one image \(of 6, by 5\) .* use semisup\.batch=6"):
        semisup.check(with_settings(task, batch=5, fraction=(0.25,), size=8))
    semisup.check(with_settings(task, batch=7, fraction=(0.25,), size=8))  # less than a batch is a batch
    semisup.check(with_settings(task, batch=5, fraction=(0.25,), size=40))


def test_results_of_several_seeds_differ_by_nothing_but_the_seed(task):
    """Else tables, which average what differs by the seed alone, would show a row per seed."""
    outcome = supervised.TrainingResult({}, 12_811, 50_000, "log")
    told = [semisup._deviations(with_settings(task, seed=seed), 0.01, True, outcome) for seed in (0, 1)]
    assert told[0] == told[1] and "drawn by the seed" in told[0]
