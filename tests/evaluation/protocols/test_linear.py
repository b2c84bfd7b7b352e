"""Attacks: a linear score of another optimiser, layer or epoch than the protocol's; crops that are kept; a resume that differs.

Oracle: scikit-learn's logistic regression on the same features. Run: pytest tests/evaluation/protocols/test_linear.py
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from swav import checkpoint
from swav.data.loader import Loader
from swav.data.sources.open import labelled_splits
from swav.evaluation import classification, supervised
from swav.evaluation.protocols import linear
from swav.evaluation.settings import LinearSettings
from swav.evaluation.task import Task
from swav.features import features_of
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder, weights_sha256
from tests.evaluation.conftest import made
from tests.frozen import pooled_features

CPU = torch.device("cpu")
FAST = {"size": 16, "epochs": 4, "batch": 8, "workers": 0}


class MeanColour(nn.Module):
    """Stands in for a backbone: the mean of each channel, so that a crop of one colour gives that colour."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def mean_colour(encoder: Encoder) -> Encoder:
    encoder.trunk = MeanColour()
    encoder.num_features = 3
    return encoder


def fresh() -> Encoder:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture
def task(colours, tmp_path) -> Task[LinearSettings]:
    return Task(fresh(), *labelled_splits(colours), LinearSettings(**FAST), "published", CPU, made(tmp_path / "out"))


def with_settings(task, **changed):
    return dataclasses.replace(task, settings=task.settings.model_copy(update=changed))


def saved_head(task):
    (folder,) = (task.out / "linear").iterdir()
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest)


def flat_colours(folder, count, seed=0):
    """Images of one colour each, of three classes that overlap."""
    rng = np.random.default_rng(seed)
    for split, images in (("train", count), ("val", 60)):
        for k, name in enumerate("abc"):
            (folder / split / name).mkdir(parents=True)
            for i in range(images // 3):
                colour = rng.normal(128, 35, 3) + 30 * np.eye(3)[k]
                pixels = np.broadcast_to(colour.clip(0, 255).astype(np.uint8), (12, 12, 3))
                Image.fromarray(np.ascontiguousarray(pixels)).save(folder / split / name / f"{i}.png")
    return folder


def test_the_layer_becomes_scikit_learns_logistic_regression(tmp_path):
    train, score = labelled_splits(flat_colours(tmp_path / "flat", 120))
    settings = LinearSettings(size=8, epochs=16, batch=12, workers=0)
    task = Task(mean_colour(fresh()), train, score, settings, "published", CPU, made(tmp_path / "out"))
    scores = linear.run(task)
    known, asked = (pooled_features(task.encoder, split, 8, workers=0) for split in (train, score))
    oracle = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(known.features.numpy(), known.labels.numpy())
    head = saved_head(task).model
    logits = known.features @ head["weight"].T + head["bias"]
    ours = float(nn.functional.cross_entropy(logits, known.labels))
    best = log_loss(known.labels.numpy(), oracle.predict_proba(known.features.numpy()))
    assert best <= ours < 1.005 * best and best > 0.2  # the minimum, of a problem that is not trivial
    expected = 100 * oracle.score(asked.features.numpy(), asked.labels.numpy())
    assert scores[0].metric == "top-1" and abs(scores[0].value - expected) <= 100 * 2 / 60


def test_labels_at_random_are_not_learned(tmp_path):
    train, score = labelled_splits(flat_colours(tmp_path / "flat", 120))
    assert train.labels is not None
    np.random.default_rng(0).shuffle(train.labels)
    settings = LinearSettings(size=8, epochs=5, batch=12, workers=0)
    task = Task(mean_colour(fresh()), train, score, settings, "published", CPU, tmp_path)
    assert abs(linear.run(task)[0].value - 100 / 3) < 18  # three standard deviations of 60 guesses


def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(task, monkeypatch):
    scores = linear.run(task)
    torn = dataclasses.replace(task, out=made(task.out.with_name("torn")))
    passed = []

    def die_after_two_epochs(_):
        passed.append(1)
        if len(passed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "fault_point", die_after_two_epochs)
    with pytest.raises(KeyboardInterrupt):
        linear.run(torn)
    assert saved_head(torn).step == 6  # of 3 an epoch
    assert linear.run(torn) == scores
    assert len(passed) == 4  # two epochs before, two after
    whole, parts = saved_head(task), saved_head(torn)
    assert whole.state["log"] == parts.state["log"]
    for kind in ("model", "optim"):
        for key, tensor in getattr(whole, kind).items():
            assert torch.equal(tensor, getattr(parts, kind)[key])


def test_a_finished_benchmark_is_not_trained_again_and_other_settings_start_afresh(task, monkeypatch):
    scores = linear.run(task)
    steps: list[int] = []

    def count(*_):
        steps.append(1)
        return torch.zeros(()), 1

    monkeypatch.setattr(supervised, "_step", count)
    assert linear.run(task) == scores and not steps
    linear.run(with_settings(task, seed=1))
    assert len(steps) == 4 * 3  # 24 images, batches of 8


def test_workers_change_no_bit(task):
    here = linear.run(task)
    there = linear.run(dataclasses.replace(with_settings(task, workers=2), out=made(task.out.with_name("workers"))))
    assert [score.value for score in here] == [score.value for score in there]
    other = dataclasses.replace(task, out=task.out.with_name("workers"))
    assert torch.equal(saved_head(task).model["weight"], saved_head(other).model["weight"])


def test_the_trunk_is_frozen_and_sees_every_image_once_an_epoch(task):
    before, seen = weights_sha256(task.encoder.trunk), []
    task.encoder.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    linear.run(task)
    assert sum(seen) == 4 * len(task.train) + len(task.val)
    assert weights_sha256(task.encoder.trunk) == before and not task.encoder.trunk.training


def test_fewer_images_than_a_batch_are_one_partial_batch(task):
    linear.run(with_settings(task, batch=24))
    elsewhere = dataclasses.replace(with_settings(task, batch=256), out=made(task.out.with_name("larger")))
    linear.run(elsewhere)
    assert all(torch.equal(saved_head(task).model[key], x) for key, x in saved_head(elsewhere).model.items())


def test_crops_are_drawn_anew_in_every_epoch_by_seed_epoch_and_sample(task):
    def views(**changed):
        chosen = with_settings(task, **changed)
        loader = Loader(
            chosen.train,
            classification.training_views(chosen),
            batch=chosen.settings.batch,
            workers=0,
            rank=0,
            world_size=1,
            start_step=0,
            total_steps=6,
            steps_per_epoch=3,
            on_device=False,
        )
        return {
            (batch.step // 3, i): view
            for batch in loader
            for i, view in zip(batch.indices.tolist(), batch.views[0], strict=True)
        }

    first, again, other = views(), views(), views(seed=1)
    assert len(first) == 2 * len(task.train)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for different in (other, {(epoch, i): first[1 - epoch, i] for epoch, i in first}):
        assert sum(torch.equal(first[key], different[key]) for key in first) < len(first) / 10


def test_only_crop_and_flip_touch_the_training_images(task, tmp_path):
    train, score = labelled_splits(flat_colours(tmp_path / "flat", 24))
    flat = dataclasses.replace(task, train=train, val=score)
    loader = Loader(
        train,
        classification.training_views(flat),
        batch=flat.settings.batch,
        workers=0,
        rank=0,
        world_size=1,
        start_step=0,
        total_steps=3,
        steps_per_epoch=3,
        on_device=False,
    )
    for batch in loader:
        for i, view in zip(batch.indices.tolist(), batch.views[0], strict=True):
            assert (view.numpy() == train.read(i)[0, 0]).all()


def test_layer_optimiser_and_schedule_are_the_published_ones(task):
    settings = LinearSettings()
    assert settings.model_dump(include={"epochs", "batch", "lr", "momentum", "weight_decay", "crop_scale", "size"}) == {
        "epochs": 100,
        "batch": 256,
        "lr": 0.3,
        "momentum": 0.9,
        "weight_decay": 1e-6,
        "crop_scale": (0.08, 1.0),
        "size": 224,
    }
    assert linear._learning_rate(settings, 0) == 0.3
    assert linear._learning_rate(settings, 50) == pytest.approx(0.15)
    assert linear._learning_rate(settings, 99) == pytest.approx(0.15 * (1 + math.cos(math.pi * 0.99)))
    page = dataclasses.replace(task, settings=settings)
    head, optimizer = linear._start(page)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.15) and not head.bias.any()
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 1e-6, False, 0)


def test_the_score_is_the_last_epochs_and_the_log_has_them_all(task):
    scores = linear.run(task)
    lines = [json.loads(line) for line in (task.out / scores[0].log).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["lr"] == pytest.approx(0.15 * (1 + math.cos(0.75 * math.pi)))
    assert [score.value for score in scores] == [lines[-1]["top1"], lines[-1]["top5"]]
    head = saved_head(task).model
    asked = pooled_features(task.encoder, task.val, 16, workers=0)
    right = (asked.features @ head["weight"].T + head["bias"]).argmax(dim=1) == asked.labels
    assert scores[0].value == pytest.approx(100 * float(right.float().mean()))


def test_what_stands_in_for_an_unreadable_image_is_not_learned_under_its_label(task, tmp_path, monkeypatch):
    train, score = labelled_splits(flat_colours(tmp_path / "flat", 30))
    for i in np.flatnonzero(train.labels == 0):
        (train.root / train.name(i)).write_bytes(b"gone bad")
    seen: list[int] = []
    step = supervised._step

    def spy(objective, head, batch):
        seen.extend(label for label in objective.labels(batch).tolist() if label != classification.IGNORED)
        return step(objective, head, batch)

    monkeypatch.setattr(supervised, "_step", spy)
    linear.run(dataclasses.replace(with_settings(task, batch=10), train=train, val=score))
    assert len(seen) == 4 * 20 and 0 not in seen


def test_images_that_cannot_be_decoded_do_not_count_as_training_images_nor_after_a_resume(task, tmp_path, monkeypatch):
    train, score = labelled_splits(flat_colours(tmp_path / "flat", 30))
    for i in (0, 7, 21):
        (train.root / train.name(i)).write_bytes(b"gone bad")  # after its header was read
    broken = dataclasses.replace(with_settings(task, batch=10), train=train, val=score)
    assert all("27 training images" in score.deviations for score in linear.run(broken))
    monkeypatch.setattr(supervised, "_step", lambda *_: pytest.fail("trains a finished benchmark again"))
    assert all("27 training images" in score.deviations for score in linear.run(broken))
    monkeypatch.undo()
    exactly = {"training images": 30, "scored images": len(score), "classes": 3}
    monkeypatch.setattr("swav.evaluation.settings.LinearSettings.published", exactly)
    monkeypatch.setattr("swav.evaluation.task.deviations_of", lambda _: [])
    assert linear.run(broken)[0].deviations == "27 training images instead of 30"


def test_an_epochs_loss_is_the_mean_over_its_images_not_over_its_batches(task):
    losses = []
    for batch in (24, 9, 23):  # a rest of none, 6 and 1: at rest, so that the loss of all is the same number
        scores = linear.run(with_settings(task, batch=batch, lr=1e-30, epochs=1))
        losses.append(json.loads((task.out / scores[0].log).read_text())["loss"])
    assert losses[1:] == pytest.approx(2 * losses[:1], rel=1e-6)  # sums in another order


def test_the_last_partial_batch_of_an_epoch_is_trained_on(task, monkeypatch):
    seen = []

    def count(*rest):
        seen.append(len(rest[2].indices))
        return torch.zeros(()), 1

    monkeypatch.setattr(supervised, "_step", count)
    linear.run(with_settings(task, batch=9, epochs=2))
    assert seen == 2 * [9, 9, 6]  # of 24 images


def test_a_rest_takes_a_step_of_its_own_mean_at_the_rate_of_its_epoch(task):
    """Against torch alone: batches of 10, 10 and 4 images of an epoch's order."""
    settings = {"batch": 10, "epochs": 2, "lr": 0.5}
    linear.run(with_settings(task, **settings))
    chosen = with_settings(task, **settings)
    layer = torch.nn.Linear(task.encoder.num_features, 3)
    layer.load_state_dict(linear._start(chosen)[0].state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-6)
    options: dict[str, Any] = {
        "batch": 10,
        "workers": 0,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "total_steps": 6,
        "steps_per_epoch": 3,
    }
    for batch in Loader(chosen.train, classification.training_views(chosen), on_device=False, **options):
        optimizer.param_groups[0]["lr"] = 0.5 if batch.step < 3 else 0.25  # half a cosine of two epochs
        x = features_of(task.encoder, batch.views[0], CPU)
        assert len(x) == (10, 10, 4)[batch.step % 3]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), torch.from_numpy(chosen.train.labels)[batch.indices]).backward()
        optimizer.step()
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(saved_head(task).model[name], value, rtol=1e-6, atol=1e-7)  # rounding of float32
