"""Attacks: `init=W` that takes weights in part, writes before it knows them to be right, or changes a run under way.

Run: pytest tests/training/test_init.py
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from swav.config import settings_hash
from swav.data.synthetic.writers import write_shapes
from swav.errors import CheckpointError, ConfigError
from swav.network.heads import build_network
from swav.recipe_files import load_recipe, parse_overrides
from swav.training import loop
from swav.training.init import init_from, load_init_weights, require_fitting
from swav.weights.encoder import load
from tests.network import foreign

# The backbone and head of foreign.network, for a run of two steps.
NETWORK: dict[str, Any] = {"backbone": "resnet18", "width": 0.125, "stem": "imagenet"}
NETWORK |= {"head_hidden": 16, "head_dim": 8, "prototypes": 12}
RUN: dict[str, Any] = NETWORK | {
    "crops": [{"count": 2, "size": 16, "scale": [0.3, 1.0]}],
    "batch": 8,
    "queue_length": 0,
    "epochs": 1,
    "warmup_epochs": 0,
    "workers": 0,
    "precision": "fp32",
    "knn_every_epochs": 0,
    "checkpoint_every_steps": 1,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=16, val=8, size=24, seed=0)
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    """As the original saves them, of the network in RUN."""
    return foreign.write(tmp_path / "w.pth.tar", foreign.swav_flat(foreign.network("basic", (2, 2, 2, 2))))


def start(weights: object, out: Path, **changes: object):
    """A fresh network of RUN's, what is to start it, and what came along."""
    recipe = load_recipe("tiny", RUN | {"init": str(weights)} | changes)
    found = load_init_weights(recipe, out)
    assert found is not None
    require_fitting(found, recipe)
    network = build_network(recipe)
    return network, found, init_from(network, found, recipe)


def test_trunk_head_and_prototypes_come_along(weights, tmp_path):
    network, found, words = start(weights, tmp_path / "run")
    for ours, theirs in (
        (network.trunk, found.trunk),
        (network.projection_head, found.head),
        (network.prototypes, found.prototypes),
    ):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name])
    assert "backbone, head, prototypes" in words and "fresh" not in words and "facebookresearch/swav" in words
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prototypes": 13}, ["backbone, head;", "fresh prototypes (of another size)"]),
        ({"head_dim": 6}, [": backbone;", "fresh head (of another size)", "fresh prototypes (of another size)"]),
        ({"head_hidden": 20}, [": backbone;", "fresh head (of another size)", "fresh prototypes (of another head)"]),
    ],
)
def test_what_does_not_fit_stays_fresh_and_is_said(changes, said, weights, tmp_path):
    network, found, words = start(weights, tmp_path / "run", **changes)
    assert all(part in words for part in said)
    assert torch.equal(network.trunk.state_dict()["conv1.weight"], found.trunk.state_dict()["conv1.weight"])
    fresh = build_network(load_recipe("tiny", RUN | changes))
    assert torch.equal(network.prototypes.weight, fresh.prototypes.weight)


def test_sets_of_prototypes_come_along_as_sets_only(shapes, tmp_path):
    """[8, 4] and [4, 8] are both 12 prototypes, and none of the one is one of the other."""
    quick: dict[str, Any] = {"data": str(shapes), "prototypes": [8, 4]}
    first = loop.pretrain("tiny", out=tmp_path / "first", **RUN | quick)
    for sets, came in (([8, 4], True), ([4, 8], False), (12, False)):
        network, found, words = start(first, tmp_path / "run", prototypes=sets)
        assert ("fresh prototypes (of other sets: [8, 4])" in words) != came
        assert torch.equal(network.prototypes.weight, found.prototypes.weight) == came


def test_another_stem_of_the_same_shapes_is_refused_where_it_is_known(shapes, tmp_path):
    first = loop.pretrain("tiny", out=tmp_path / "first", **RUN | {"data": str(shapes), "stem": "small"})
    with pytest.raises(ConfigError, match="stem=half") as caught:
        start(first, tmp_path / "run", stem="half")
    assert "stem=small" in str(caught.value) and len(str(caught.value).splitlines()) <= 3
    with pytest.raises(ConfigError, match="in_channels=1"):
        start(first, tmp_path / "run", stem="small", in_channels=1)


def test_what_weights_are_used_to_and_find_otherwise_is_said(weights, tmp_path):
    words = start(weights, tmp_path / "run")[2]  # the original's .228, tiny's .229
    assert "note: weights were trained with std=[0.228, 0.224, 0.225]; this run uses std=[0.229, 0.224, 0.225]" in words
    assert "used to" not in start(weights, tmp_path / "run", std=[0.228, 0.224, 0.225])[2]
    small = foreign.write(
        tmp_path / "small.pth", foreign.swav_flat(foreign.network("basic", (2, 2, 2, 2), stem="small"))
    )
    assert (
        "weights were trained with stem=small; this run uses stem=half"
        in start(small, tmp_path / "run", stem="half")[2]
    )


def test_a_trunk_without_a_head_is_enough(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.torchvision(foreign.network("basic", (2, 2, 2, 2))))
    words = start(path, tmp_path / "run")[2]
    assert "fresh head (none there); fresh prototypes (none there)" in words


def test_weights_of_another_network_are_refused_with_the_keys_to_set(weights, tmp_path):
    for changes in ({"backbone": "resnet34"}, {"width": 0.25}, {"stem": "half"}):
        with pytest.raises(ConfigError, match="set these keys") as caught:
            start(weights, tmp_path / "run", **changes)
        assert "backbone=resnet18, width=0.125, stem=imagenet" in str(caught.value)
    with pytest.raises(ConfigError, match="fresh ones come from the seed"):
        start("random:resnet18", tmp_path / "run")


def test_a_transformer_with_positions_for_another_size_is_refused_for_them(tmp_path):
    """All keys agree: the message must not ask to set them."""
    made = timm.create_model("test_vit", num_classes=0, img_size=64)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"expected 101 positions, as timm:test_vit has, found 17, .* not adapted"):
        vit = {"backbone": "timm:test_vit", "width": 1.0, "crops": [{"count": 2, "size": 64, "scale": [0.2, 1.0]}]}
        start(tmp_path / "w.pth", tmp_path / "run", **vit)


def test_it_is_a_path_on_the_command_line_and_shapes_the_weights():
    assert parse_overrides(["init=12:30 #1"]) == {"init": "12:30 #1"}
    one, other = (load_recipe("tiny", {"init": init}) for init in (None, "w.pth"))
    assert settings_hash(one) != settings_hash(other)


def test_a_run_starts_there_goes_on_without_the_file_and_refuses_another(weights, shapes, tmp_path, capsys):
    settings = RUN | {"data": str(shapes), "init": str(weights), "lr": 1e-9, "final_lr": 1e-9, "warmup_start_lr": 0}
    run = loop.pretrain("tiny", out=tmp_path / "run", **settings)
    told = capsys.readouterr().err
    assert f"init       {weights}: backbone, head, prototypes" in told and "all 120 backbone keys" in told
    begun = load(weights)
    for name, parameter in load(run).trunk.named_parameters():
        torch.testing.assert_close(parameter, begun.trunk.get_parameter(name), rtol=0, atol=1e-6)
    before = (run / "checkpoints/step_00000002/model.safetensors").read_bytes()

    weights.unlink()
    loop.pretrain("tiny", out=run, **settings)
    assert "nothing to do" in capsys.readouterr().err
    for other in ("another.pth", None):
        with pytest.raises(ConfigError, match="init: ") as caught:
            loop.pretrain("tiny", out=run, **settings | {"init": other})
        assert caught.value.exit_code == 2
    assert (run / "checkpoints/step_00000002/model.safetensors").read_bytes() == before


def test_a_run_starts_from_another_run(shapes, tmp_path):
    first = loop.pretrain("tiny", out=tmp_path / "first", **RUN | {"data": str(shapes)})
    found = load_init_weights(load_recipe("tiny", RUN | {"init": str(first)}), tmp_path / "second")
    assert found is not None and found.sha256 == load(first).sha256


def test_what_only_looks_like_a_checkpoint_does_not_make_a_run_forget_where_to_start(weights, tmp_path):
    """No checkpoint is in it, so the run begins: from these weights, not silently from fresh ones."""
    (tmp_path / "run/checkpoints/step_00000002.old").mkdir(parents=True)
    recipe = load_recipe("tiny", RUN | {"init": str(weights)})
    assert load_init_weights(recipe, tmp_path / "run") is not None
    (tmp_path / "run/checkpoints/step_00000002").mkdir()  # damaged, but one: `resume` refuses it
    assert load_init_weights(recipe, tmp_path / "run") is None


def test_bad_weights_are_refused_before_anything_is_written(weights, shapes, tmp_path):
    whole = weights.read_bytes()
    other = foreign.write(tmp_path / "deep.pth", foreign.torchvision(foreign.network("basic", (3, 4, 6, 3))))
    weights.write_bytes(whole[: len(whole) // 2])
    for init, kind, code in (
        (weights, CheckpointError, 6),
        (other, ConfigError, 2),
        (tmp_path / "none", ConfigError, 2),
    ):
        with pytest.raises(kind) as caught:
            loop.pretrain("tiny", out=tmp_path / "run", **RUN | {"data": str(shapes), "init": str(init)})
        assert caught.value.exit_code == code and len(str(caught.value).splitlines()) <= 3
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_would_come_along(weights, shapes, tmp_path, capsys):
    loop.pretrain("tiny", out=tmp_path / "run", dry_run=True, **RUN | {"data": str(shapes), "init": str(weights)})
    assert f"init {weights}: backbone, head, prototypes" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()
