"""Attacks: state dicts wrapped by projects, launchers and compilers; copies averaged over the training beside them; networks for
grey images. What is in them must be read whole, or named.

Run: pytest tests/weights/test_wrapped.py
"""

import functools
import re

import pytest
import timm
import torch
from torch import Tensor, nn

from swav.errors import CheckpointError, ConfigError
from swav.network.backbone import BACKBONES
from swav.weights.encoder import load
from tests.network import foreign


@functools.cache
def trunk(channels: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(channels)
    return dict(BACKBONES["resnet18"](width=0.125, stem="imagenet", in_channels=channels).state_dict())


def put(prefix: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in (state or trunk()).items()}


def copies() -> dict[str, Tensor]:
    """Another network's."""
    return {name: tensor + 1 for name, tensor in trunk().items()}


READ = {
    "model, state_dict": (lambda: {"epoch": 1, "model": {"state_dict": trunk()}}, ""),
    "state_dict, model": (lambda: {"state_dict": {"model": trunk(), "note": "x"}}, ""),
    "checkpoint, model_state": (lambda: {"checkpoint": {"model_state": put("module.")}}, "module."),
    "names of nobody": (lambda: {"mine": {"deep": {"deeper": trunk()}}}, "mine.deep.deeper."),
    "a list": (lambda: [trunk(), 3], "0."),
    "nested modules": (
        lambda: {"model": {"backbone": trunk(), "head": {"weight": torch.ones(2, 8)}}},
        "model.backbone.",
    ),
    "compiled": (lambda: put("_orig_mod."), ""),
    "compiled in DDP": (lambda: put("module._orig_mod."), "module."),
    "DDP in compiled": (lambda: {"state_dict": put("_orig_mod.module.")}, "module."),
    "FSDP, inside": (lambda: {k.replace("layer1.", "layer1._fsdp_wrapped_module."): v for k, v in trunk().items()}, ""),
    "Lightning": (lambda: {"state_dict": put("model.backbone."), "optimizer_states": []}, "model.backbone."),
    "Lightning, compiled": (lambda: {"state_dict": put("net.encoder._orig_mod.")}, "net.encoder."),
    "DeepSpeed": (lambda: {"module": trunk(), "ds_config": {}}, "module."),
    "EMA alone": (lambda: {"ema": {"module": trunk()}, "step": 3}, "ema.module."),
    "EMA beside": (lambda: {"state_dict": trunk(), "state_dict_ema": copies()}, ""),
    "a queue beside": (lambda: {"queue": torch.ones(2, 8), "networks": {"online": trunk()}}, "networks.online."),
    "weight averaging": (lambda: {"n_averaged": torch.tensor(3)} | put("module."), "module."),
}


@pytest.mark.parametrize("name", READ)
def test_a_wrapped_state_dict_is_read_whole(name, tmp_path):
    made, prefix = READ[name]
    torch.save(made(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth")
    assert all(torch.equal(encoder.trunk.state_dict()[key], tensor) for key, tensor in trunk().items())
    assert encoder.settings["prefix"] == prefix and f"at '{prefix}'" in encoder.provenance


def test_a_copy_that_is_averaged_is_named_and_can_be_asked_for(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": trunk(), "model_ema": copies()}, path)
    encoder = load(path)
    assert "prefix=model_ema. takes it" in encoder.provenance
    asked = load(path, prefix="model_ema.")
    assert torch.equal(asked.trunk.state_dict()["conv1.weight"], trunk()["conv1.weight"] + 1)
    assert "a copy averaged" not in asked.provenance
    torch.save({"state_dict": trunk(), "ema_decay": 0.99, "ema": {}, "semantic_head": {"weight": torch.ones(2)}}, path)
    assert "a copy averaged" not in load(path).provenance


@pytest.mark.parametrize(
    "made",
    [
        lambda: {"model": trunk(), "model_ema": {"state_dict": {f"module.{k}": v for k, v in copies().items()}}},
        lambda: {"state_dict": put("model."), "callbacks": {"EMA": {"weights": copies()}}},
        lambda: {
            "model": trunk(),
            "ema": {"w": copies() | {"bn1.num_batches_tracked": trunk()["bn1.num_batches_tracked"]}},
        },
    ],
)
def test_the_prefix_that_is_named_takes_the_copy_however_deep_it_is(made, tmp_path):
    """The first names of the places were shown, which is no backbone's prefix where there are dicts in them."""
    path = tmp_path / "w.pth"
    torch.save(made(), path)
    (prefix,) = re.findall(
        r"a copy averaged over the training is there too: prefix=(\S+) takes it", load(path).provenance
    )
    for asked in (prefix, prefix.removesuffix(".")):
        assert torch.equal(load(path, prefix=asked).trunk.state_dict()["conv1.weight"], trunk()["conv1.weight"] + 1)


@pytest.mark.parametrize(
    ("student", "teacher", "layout"),
    [
        ("student.module.backbone.", "teacher.module.backbone.", "DINO"),  # a ResNet's BatchNorm is why it is in DDP
        ("state_dict.student_backbone.", "state_dict.teacher_backbone.", "DINO of lightly"),
        ("state_dict.model.student.backbone.", "state_dict.model.teacher.backbone.", "DINO"),
    ],
)
def test_of_dino_the_teacher_is_taken_however_it_is_wrapped(student, teacher, layout, tmp_path):
    tree: dict[str, dict[str, Tensor]] = {}
    for place, state in ((student, copies()), (teacher, trunk())):
        outer, _, inner = place.partition(".")
        tree[outer] = tree.get(outer, {}) | put(inner, state)
    torch.save(tree | {"epoch": 3}, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth")
    assert all(torch.equal(encoder.trunk.state_dict()[key], tensor) for key, tensor in trunk().items())
    assert encoder.settings["layout"] == layout and "the teacher's weights, as DINO scores them" in encoder.provenance
    asked = student.removeprefix("state_dict.")
    assert f"prefix={asked} takes the student's" in encoder.provenance
    other = load(tmp_path / "w.pth", prefix=asked)
    assert torch.equal(other.trunk.state_dict()["conv1.weight"], trunk()["conv1.weight"] + 1)


def test_of_two_networks_in_a_state_dict_one_must_be_named(tmp_path):
    torch.save({"state_dict": put("model.") | put("ema_model.module.", copies())}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"found 2, at 'model\.', 'ema_model\.module\.'; say which: prefix=model\."
    ):
        load(tmp_path / "w.pth")
    chosen = load(tmp_path / "w.pth", prefix="ema_model.module.")
    assert torch.equal(chosen.trunk.state_dict()["conv1.weight"], trunk()["conv1.weight"] + 1)


def test_a_prefix_with_a_compilers_name_in_it_still_means_its_place(tmp_path):
    torch.save(put("_orig_mod.a.") | put("_orig_mod.b.", copies()), tmp_path / "w.pth")
    chosen = load(tmp_path / "w.pth", prefix="_orig_mod.b.")
    assert torch.equal(chosen.trunk.state_dict()["conv1.weight"], trunk()["conv1.weight"] + 1)


@pytest.mark.parametrize("outer", ["module.", "model.", "model._orig_mod.", "module.net."])
def test_a_project_is_known_in_modules_that_wrap_its_network_too(outer, tmp_path):
    """Its head and its normalisation belong to it: SwAV's own std is .228."""
    state = foreign.swav_flat(foreign.network("basic", (2, 2, 2, 2)), prefix="")
    encoder = load(foreign.write(tmp_path / "w.pth", {"state_dict": put(outer, state)}))
    assert encoder.settings["layout"] == "facebookresearch/swav" and encoder.std[0] == 0.228
    assert encoder.head is not None and encoder.prototypes is not None


# -- grey images, and others


def test_a_network_for_grey_images_sees_the_luma(tmp_path):
    torch.save({"state_dict": put("module.backbone.", trunk(1))}, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth")
    assert encoder.in_channels == encoder.settings["in_channels"] == 1 and "on grey images" in encoder.provenance
    assert all(torch.equal(encoder.trunk.state_dict()[key], tensor) for key, tensor in trunk(1).items())
    image = encoder.preprocess(torch.randint(0, 255, (80, 90, 3), dtype=torch.uint8).numpy(), 64)
    assert image.shape == (1, 64, 64) and encoder(image[None]).shape == (1, 64)
    with pytest.raises(ConfigError, match=r"channels=bgr: expected a network for colour images"):
        load(tmp_path / "w.pth", channels="bgr")


def test_a_network_for_other_images_is_named(tmp_path):
    torch.save(put("encoder.", trunk(5)), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"found one for 5 channels \(encoder\.conv1\.weight \[8, 5, 7, 7\]\)"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timms_networks_for_grey_images_are_made_for_them(name, tmp_path):
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=0, in_chans=1).eval()
    torch.save({"model": made.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model=f"timm:{name}")
    assert encoder.in_channels == 1 and "on grey images" in encoder.provenance
    images = torch.randn(2, 1, encoder.size, encoder.size)
    torch.testing.assert_close(encoder(images), made(images).detach())
    colour = timm.create_model(name, num_classes=0).eval()
    torch.save(colour.state_dict(), tmp_path / "w.pth")
    assert load(tmp_path / "w.pth", model=f"timm:{name}").in_channels == 3


def grey_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_function_of_the_users_may_make_a_network_for_grey_images(tmp_path):
    made = grey_cnn()
    torch.save(made.state_dict(), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model=f"{__name__}:grey_cnn")
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(encoder(images), made(images).detach())
    assert encoder.in_channels == 1


# -- what is not a backbone


@pytest.mark.parametrize("norm", [False, True])
def test_a_linear_layer_is_named_with_its_classes(norm, tmp_path):
    """As the original's eval_linear saves it, also with its BatchNorm before the layer."""
    layer = {"module.linear.weight": torch.zeros(10, 64), "module.linear.bias": torch.zeros(10)}
    if norm:
        layer |= {f"module.bn.{key}": torch.zeros(64) for key in ("weight", "bias", "running_mean", "running_var")}
        layer |= {"module.bn.num_batches_tracked": torch.tensor(3)}
    torch.save({"epoch": 100, "state_dict": layer}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"a linear layer alone .*from 64 features to 10 classes") as caught:
        load(tmp_path / "w.pth")
    assert len(str(caught.value).splitlines()) == 1


def test_features_are_named(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"features": torch.ones(100, 512), "labels": torch.ones(100)}, path)
    with pytest.raises(CheckpointError, match=r"found features \[100, 512\], labels \[100\]: features or part"):
        load(path)
