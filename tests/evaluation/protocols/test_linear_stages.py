"""Attacks: a head that is not its stage's, or not trained as the protocol says; a backbone that runs twice; a resume that differs.

Oracle: scikit-learn's logistic regression on the same, normalised features. Run: pytest tests/evaluation/protocols/test_linear_stages.py
"""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from swav import checkpoint
from swav.data.augment.crops import lighting, to_input
from swav.data.augment.photometric import parameters
from swav.data.sources.open import labelled_splits
from swav.data.sources.voc import classification_splits
from swav.errors import ConfigError
from swav.evaluation import stage_heads, supervised
from swav.evaluation.protocols import linear_stages, voc_svm
from swav.evaluation.settings import StagesSettings, SvmSettings
from swav.evaluation.stages import pooling
from swav.evaluation.task import Task
from swav.features import stage_features_of
from swav.network.heads import build_network
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder, load, weights_sha256
from tests.evaluation.conftest import made
from tests.evaluation.toy import Given, GivenObjective

CPU = torch.device("cpu")


def fresh(**changed) -> Encoder:
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4} | changed)
    return Encoder(build_network(recipe), recipe, "random:tiny").requires_grad_(False)


@pytest.fixture
def task(colours, tmp_path) -> Task[StagesSettings]:
    settings = StagesSettings(size=32, epochs=3, batch=8, workers=0, steps=(1, 2))
    return Task(fresh(), *labelled_splits(colours), settings, "published", CPU, made(tmp_path / "out"))


def saved(task):
    (folder,) = (task.out / "linear-stages").iterdir()
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest)


def test_settings_are_the_published_ones(task):
    page = StagesSettings()
    assert (page.epochs, page.batch, page.lr, page.momentum, page.weight_decay) == (90, 256, 0.01, 0.9, 1e-4)
    assert (page.size, page.crop_scale, page.flip, page.jitter, page.lighting) == (224, (0.08, 1.0), 0.5, 0.4, 0.1)
    rates = [stage_heads.learning_rate(page, epoch) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    (group,) = stage_heads.optimizer_of(nn.Linear(2, 2), page).param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, True)
    heads = stage_heads.fresh_heads(dataclasses.replace(task, settings=page.model_copy(update={"size": 32})))
    assert all(not norm.affine and norm.momentum == 0.1 for norm in heads.norms)
    state = heads.state_dict()
    assert not any(value.any() for key, value in state.items() if key.endswith("bias"))
    assert float(state["layers.4.weight"].std()) == pytest.approx(0.01, rel=0.2)


def test_a_resnet50_at_224_pixels_gives_the_published_dimensions():
    channels, values = [64, 256, 512, 1024, 2048], [9216, 9216, 8192, 9216, 8192]
    recipe = load_recipe("default", {"backbone": "resnet50"})
    encoder = Encoder(build_network(recipe), recipe, "random:resnet50").requires_grad_(False)
    found = stage_features_of(encoder, torch.zeros(1, 224, 224, 3, dtype=torch.uint8), CPU)
    assert encoder.stage_channels == channels and [x.shape[1] for x in found] == values
    logits = stage_heads.StageHeads(channels, values, 7, seed=0).eval()(found)
    assert [list(x.shape) for x in logits] == [[1, 7]] * 5


def test_heads_normalise_each_channel_over_images_and_places():
    torch.manual_seed(0)
    x = torch.randn(6, 3 * 4) * 5 + 2
    heads = stage_heads.StageHeads([3], [12], 2, seed=0).train()
    (logits,) = heads([x])
    maps = x.view(6, 3, 4)
    normal = (maps - maps.mean((0, 2), keepdim=True)) / (maps.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(logits, heads.layers[0](normal.flatten(1)), atol=1e-5)


def test_heads_together_become_scikit_learns_logistic_regressions():
    """With a fixed normalisation: summed losses share nothing, so each head is a regression of its own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    stages = [torch.tensor(rng.normal(0, 1, (120, d)) + np.eye(3, d)[labels], dtype=torch.float32) for d in (4, 6)]
    heads = stage_heads.StageHeads([4, 6], [4, 6], 3, seed=0)
    settings = StagesSettings(lr=0.3, weight_decay=0)
    optimizer = stage_heads.optimizer_of(heads, settings)
    for _ in range(600):  # all images are the batch: its statistics are those of the set
        supervised._step(GivenObjective(heads, optimizer), heads.train(), Given(stages, torch.from_numpy(labels)))
    with torch.no_grad():
        logits = heads(stages)
    for x, ours in zip(stages, logits, strict=True):
        normal = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()).numpy()
        oracle = LogisticRegression(C=1e8, tol=1e-8, max_iter=2000).fit(normal, labels)
        assert np.allclose(torch.softmax(ours, 1).numpy(), oracle.predict_proba(normal), atol=2e-3)


def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(task, monkeypatch):
    scores = linear_stages.run(task)
    assert [score.metric for score in scores[::2]] == [f"top-1 feature{i}" for i in range(1, 6)] + ["top-1 best layer"]
    assert scores[-2].value == max(score.value for score in scores[:-2:2])
    torn, passed = dataclasses.replace(task, out=made(task.out.with_name("torn"))), []

    def die_after_the_first_epoch(_):
        passed.append(1)
        if len(passed) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(supervised, "fault_point", die_after_the_first_epoch)
    with pytest.raises(KeyboardInterrupt):
        linear_stages.run(torn)
    assert saved(torn).step == 3  # an epoch
    assert linear_stages.run(torn) == scores and len(passed) == 3
    whole, parts = saved(task), saved(torn)
    assert whole.state["log"] == parts.state["log"]
    for kind in ("model", "optim"):
        assert getattr(whole, kind).keys() == getattr(parts, kind).keys()
        assert all(torch.equal(x, getattr(parts, kind)[key]) for key, x in getattr(whole, kind).items())


def test_the_trunk_is_frozen_and_sees_every_augmented_image_once_for_all_heads(task):
    before, seen = weights_sha256(task.encoder.trunk), []
    trunk = task.encoder.trunk
    trunk.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    linear_stages.run(task)
    asked_for_sizes = 2  # of the heads, and of the maps that the page pools otherwise
    assert sum(seen) == asked_for_sizes + 3 * len(task.train) + len(task.val)  # scored after the last epoch only
    assert weights_sha256(trunk) == before and not trunk.training


@pytest.mark.parametrize(
    ("stem", "size", "told"), [("imagenet", 224, ""), ("small", 224, "adaptively"), ("imagenet", 192, "adaptively")]
)
def test_pools_that_are_not_the_pages_are_told(task, stem, size, told):
    """A small stem's maps are four times as large; at 224 pixels, too, no window of the page's fits them."""
    settings = task.settings.model_copy(update={"size": size})
    words = pooling(dataclasses.replace(task, encoder=fresh(stem=stem), settings=settings))
    assert words == (f"stages pooled {told} to 12/6/4/3/2" if told else "")


def test_scores_of_other_pools_are_not_comparable(task):
    assert all("stages pooled adaptively to" in score.deviations for score in linear_stages.run(task))


@pytest.mark.parametrize(("name", "stages"), [("test_vit", 6), ("test_resnet", 5)])
def test_a_model_of_timms_is_scored_by_its_own_stages(task, drawn, name, stages):
    encoder = load(f"random:timm:{name}")
    assert len(encoder.stage_names) == stages
    found = linear_stages.run(dataclasses.replace(task, encoder=encoder))
    names = [f"feature{i + 1} ({own})" for i, own in enumerate(encoder.stage_names)]
    assert [score.metric for score in found[::2]] == [f"top-1 {own}" for own in [*names, "best layer"]]
    of_voc = SvmSettings(size=32, workers=0, device="cpu", costs=(1.0,))
    rows = voc_svm.run(Task(encoder, *classification_splits(drawn), of_voc, "smoke", CPU, task.out))
    assert [row.metric for row in rows] == [f"mAP {own}" for own in [*names, "best layer"]]


def test_colours_are_jittered_always_by_the_published_factors_and_nothing_else(task):
    drawn = parameters(np.random.default_rng(0).random((4000, 13)), linear_stages.views_of(task))
    factors = drawn[:, 5:8]
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    assert np.abs(factors.mean(0) - 1).max() < 0.02 and np.abs(factors.std(0) - 0.8 / 12**0.5).max() < 0.01
    assert not drawn[:, 8:].any()  # hue, grey, blur


def test_lighting_depends_on_seed_epoch_and_sample_and_has_the_covariance_of_its_axes():
    drawn = lighting(3, 1, range(4000), 0.1)
    assert (lighting(3, 1, [17, 5], 0.1) == drawn[[17, 5]]).all()
    assert not np.isclose(lighting(3, 2, [17], 0.1), drawn[17]).any()
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = axes @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ axes.T
    assert np.abs(np.cov(drawn.T) - expected).max() < 0.06 * expected.max()
    grey = torch.full((2, 4, 4, 3), 128, dtype=torch.uint8)
    lit = to_input(grey, (0, 0, 0), (1, 1, 1), lighting=torch.from_numpy(drawn[:2]))
    assert torch.allclose(lit[:, :, 1, 2], 128 / 255 + torch.from_numpy(drawn[:2]), atol=1e-6)


def test_a_trunk_without_stages_and_a_last_batch_that_cannot_be_normalised_are_refused(task):
    bare = fresh()
    bare.stage_channels = []
    with pytest.raises(ConfigError, match="with stages"):
        linear_stages.check(dataclasses.replace(task, encoder=bare))

    def sized(size: int, batch: int) -> Task[StagesSettings]:
        return dataclasses.replace(task, settings=task.settings.model_copy(update={"size": size, "batch": batch}))

    with pytest.raises(ConfigError, match=r"one image \(of 24, by 23\) .* use linear-stages\.batch=24"):
        linear_stages.check(sized(8, 23))
    for size, batch in ((8, 22), (8, 24), (8, 25), (40, 23)):
        linear_stages.check(sized(size, batch))
    assert linear_stages.run(sized(40, 23))  # one image, of more than one pixel
