"""Attacks: foreign weights that load in part, in the wrong order, normalised wrongly, or under a wrong name; and weights that are none.

Files are made by foreign.py as their projects make them. Run: pytest tests/weights/test_foreign.py
"""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import swav
from swav.errors import CheckpointError, ConfigError
from swav.network.backbone import BACKBONES
from swav.network.heads import SwavNetwork
from swav.weights.encoder import Encoder, load, of_module
from tests.network import foreign


def outputs(net: SwavNetwork, images: torch.Tensor) -> list[torch.Tensor]:
    """Features, embeddings and scores. In float64: the order of sums is another in another memory format."""
    net, images = net.double(), images.double()
    with torch.no_grad():
        features = net.trunk(images)
        embeddings = nn.functional.normalize(net.projection_head(features), dim=1)
        return [features, embeddings, net.prototypes(embeddings)]


def outputs_of(encoder: Encoder, images: torch.Tensor) -> list[torch.Tensor]:
    encoder, images = encoder.double(), images.double()
    features = encoder(images)
    if encoder.head is None or encoder.prototypes is None:
        return [features]
    embeddings = nn.functional.normalize(encoder.head(features), dim=1)
    return [features, embeddings, encoder.prototypes(embeddings)]


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", foreign.LAYOUTS)
def test_every_layout_gives_the_network_back(name, form, tmp_path):
    written, layout, has_head = foreign.LAYOUTS[name]
    net = foreign.network()
    path = foreign.write(tmp_path / "weights.pth", written(net), form)
    encoder = load(path)
    images = torch.randn(2, 3, 64, 64)
    expected = outputs(net, images)[: 3 if has_head else 1]
    found = outputs_of(encoder, images)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)  # prototypes went through float32
    assert (encoder.settings["layout"], encoder.settings["backbone"]) == (layout, "resnet50")
    assert encoder.settings["width"] == 0.125 and encoder.settings["stem"] == "imagenet"
    assert "all 318 backbone keys" in encoder.provenance and layout in encoder.provenance
    assert encoder.std[0] == (0.228 if layout == "facebookresearch/swav" else 0.229)
    assert not encoder.training and len(encoder.stages(images.double())) == 5


def test_safetensors_are_read_too_and_a_config_beside_them_is_heeded(tmp_path):
    net = foreign.network("basic", (2, 2, 2, 2))
    path = foreign.write(tmp_path / "model.safetensors", foreign.swav_flat(net, ""), "safetensors")
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load(path)(images), net.trunk(images).detach())
    timms = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (tmp_path / "config.json").write_text(json.dumps(timms))
    encoder = load(path)
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.25,) * 3) and "config.json" in encoder.provenance
    (tmp_path / "config.json").write_text("{}")
    assert load(path).std == (0.228, 0.224, 0.225)


@pytest.mark.parametrize(
    ("block", "layers", "stem", "width", "name"),
    [
        ("basic", (2, 2, 2, 2), "small", 0.125, "resnet18"),
        ("basic", (3, 4, 6, 3), "imagenet", 0.25, "resnet34"),
        ("bottleneck", (3, 4, 6, 3), "imagenet", 0.0625, "resnet50"),
    ],
)
def test_depth_width_and_stem_follow_from_the_tensors(block, layers, stem, width, name, tmp_path):
    net = foreign.network(block, layers, stem, width)
    encoder = load(foreign.write(tmp_path / "w.pth", foreign.torchvision(net)))
    assert [encoder.settings[key] for key in ("backbone", "stem", "width")] == [name, stem, width]
    assert encoder.size == (32 if stem == "small" else 224)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(outputs_of(encoder, images)[0], outputs(net, images)[0])


def test_lightlys_own_resnet_is_read_by_name(tmp_path):
    net = foreign.network("basic", (2, 2, 2, 2), "small")
    encoder = load(foreign.write(tmp_path / "w.pth", foreign.lightly_small(net)))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(encoder(images), net.trunk(images).detach())
    assert encoder.settings["stem"] == "small" and encoder.head is None


def test_solo_learns_small_stem_pads_by_two_as_no_tensor_tells(tmp_path):
    net = foreign.network("basic", (2, 2, 2, 2), "small")
    first = net.trunk.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    first.padding = (2, 2)
    encoder = load(foreign.write(tmp_path / "w.ckpt", foreign.solo_learn(net)))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(outputs_of(encoder, images)[0], outputs(net, images)[0])
    assert "padded by 2" in encoder.provenance


def numbered(net: SwavNetwork, children: list[str]) -> foreign.State:
    """A Sequential of some of a backbone's children, as people make one."""
    return foreign.put("net.backbone.", nn.Sequential(*(net.trunk.get_submodule(name) for name in children)))


LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def test_numbered_children_need_room_for_what_has_no_weights(tmp_path):
    """Without an activation between bn1 and layer1 it is another network, though every tensor fits."""
    small, large = foreign.network("basic", (2, 2, 2, 2), "small"), foreign.network("basic", (2, 2, 2, 2))
    path = tmp_path / "w.pth"
    whole = ["conv1", "bn1", "relu", "maxpool", *LAYERS]
    for net, children in ((large, whole), (small, whole), (small, ["conv1", "bn1", "relu", *LAYERS])):
        encoder = load(foreign.write(path, numbered(net, children)))
        assert "children by number" in encoder.provenance and encoder.settings["prefix"] == "net.backbone."
    for net, children in ((small, ["conv1", "bn1", *LAYERS]), (large, ["conv1", "bn1", "relu", *LAYERS])):
        with pytest.raises(CheckpointError, match="room for activation"):
            load(foreign.write(path, numbered(net, children)))


def test_any_one_prefix_is_accepted_and_named(tmp_path):
    net = foreign.network("basic", (2, 2, 2, 2))
    encoder = load(foreign.write(tmp_path / "w.pth", {"net": foreign.put("my.own_name.", net.trunk)}))
    assert encoder.settings["prefix"] == "my.own_name." and "'my.own_name.'" in encoder.provenance
    assert "assumed" in encoder.provenance and encoder.head is None and encoder.prototypes is None


def test_two_trunks_are_refused_until_one_is_named(tmp_path):
    first, second = foreign.network("basic", (2, 2, 2, 2)), foreign.network("basic", (2, 2, 2, 2))
    both = foreign.put("module.encoder_q.", first.trunk) | foreign.put("module.encoder_k.", second.trunk)
    path = foreign.write(tmp_path / "moco.pth", {"state_dict": both})
    with pytest.raises(CheckpointError, match=r"found 2.*prefix=module\.encoder_q"):
        load(path)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(load(path, prefix="module.encoder_k.")(images), second.trunk(images).detach())


def test_a_projects_own_trunk_goes_before_its_momentum_copy(tmp_path):
    net, copy = foreign.network("basic", (2, 2, 2, 2)), foreign.network("basic", (2, 2, 2, 2))
    tree = foreign.solo_learn(net)
    tree["state_dict"] |= foreign.put("momentum_backbone.", copy.trunk)
    encoder = load(foreign.write(tmp_path / "byol.ckpt", tree))
    assert encoder.settings["prefix"] == "backbone."


def test_counters_of_batches_may_be_absent_as_in_old_files(tmp_path):
    net = foreign.network("basic", (2, 2, 2, 2))
    old = {name: tensor for name, tensor in foreign.swav_flat(net).items() if "num_batches" not in name}
    images = torch.randn(1, 3, 32, 32)
    for one, other in zip(
        outputs_of(load(foreign.write(tmp_path / "w.pth", old, "legacy")), images), outputs(net, images), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_half_precision_becomes_float32(tmp_path):
    split = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in foreign.swav_flat(foreign.network()).items()
    }
    encoder = load(foreign.write(tmp_path / "w.pth", split))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


# -- what is not whole


@pytest.mark.parametrize(
    "gone", ["module.conv1.weight", "module.layer4.2.bn3.running_var", "module.layer1.0.conv1.weight"]
)
def test_one_missing_tensor_is_named_with_the_nearest_layout(gone, tmp_path):
    state = foreign.swav_flat(foreign.network())
    del state[gone]
    with pytest.raises(CheckpointError) as caught:
        load(foreign.write(tmp_path / "w.pth", state))
    message = str(caught.value)
    assert gone.removeprefix("module.") in message and "facebookresearch/swav" in message and "resnet50" in message
    assert caught.value.exit_code == 6 and len(message.splitlines()) <= 3


def test_a_tensor_of_another_shape_is_named(tmp_path):
    state = foreign.swav_flat(foreign.network())
    state["module.layer2.0.conv1.weight"] = torch.zeros(5, 5, 1, 1)
    with pytest.raises(
        CheckpointError, match=r"wrong shape module\.layer2\.0\.conv1\.weight \[5, 5, 1, 1\] instead of"
    ):
        load(foreign.write(tmp_path / "w.pth", state))


@pytest.mark.parametrize("layers", [(3, 4, 23, 3), (1, 1, 1, 1)])
def test_weights_of_another_depth_are_refused_though_much_of_them_fits(layers, tmp_path):
    """All of ResNet-50's tensors are in a ResNet-101's file."""
    path = foreign.write(tmp_path / "w.pth", foreign.torchvision(foreign.network("bottleneck", layers, width=0.0625)))
    with pytest.raises(CheckpointError, match="nearest: resnet") as caught:
        load(path)
    assert ("too many layer3.6" in str(caught.value)) == (layers[2] == 23)


def test_a_model_that_is_asked_for_must_be_the_one(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.torchvision(foreign.network("basic", (2, 2, 2, 2))))
    assert load(path, model="resnet18").num_features == 64
    with pytest.raises(CheckpointError, match="nearest: resnet34"):
        load(path, model="resnet34")
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        load(path, model="resnet81")


def test_a_deep_stem_or_blocks_with_more_in_them_are_another_network(tmp_path):
    state = foreign.torchvision(foreign.network("basic", (2, 2, 2, 2)))
    for extra in ("layer1.0.se.fc1.weight", "conv1.0.weight"):
        with pytest.raises(CheckpointError, match=rf"too many {extra}"):
            load(foreign.write(tmp_path / "w.pth", state | {extra: torch.ones(1)}))


def test_a_head_that_is_not_ours_is_left_out_and_the_trunk_is_taken(tmp_path):
    state = foreign.swav_flat(foreign.network()) | {"module.projection_head.6.weight": torch.ones(8, 8)}
    encoder = load(foreign.write(tmp_path / "w.pth", state))
    assert encoder.head is None and encoder.prototypes is None and "no head that fits" in encoder.provenance
    other = foreign.swav_flat(foreign.network()) | {"module.prototypes.weight": torch.ones(12, 9)}
    encoder = load(foreign.write(tmp_path / "w.pth", other))
    assert encoder.head is not None and encoder.prototypes is None and "no prototypes that fit" in encoder.provenance


def test_what_is_left_over_is_said(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.LAYOUTS["lightly, named"][0](foreign.network()))
    assert "biases left out" in load(path).provenance
    path = foreign.write(tmp_path / "w.pth", foreign.mmselfsup_0(foreign.network()))
    assert "left over neck.bn.weight, neck.bn.bias, neck.bn.running_mean and 2 more" in load(path).provenance


def test_prototypes_become_unit_vectors_and_what_that_drops_is_said(tmp_path):
    tree = foreign.solo_learn(foreign.network())
    weight = load(foreign.write(tmp_path / "w.ckpt", tree)).get_parameter("prototypes.weight")
    tree["state_dict"]["prototypes.weight_g"] = torch.linspace(0.5, 2, 12)[:, None]
    encoder = load(foreign.write(tmp_path / "w.ckpt", tree))
    torch.testing.assert_close(encoder.get_parameter("prototypes.weight"), weight)
    assert "(their lengths, 0.5 to 2, left out: SwAV's are 1)" in encoder.provenance


@pytest.mark.parametrize(
    ("name", "dtype", "value", "words"),
    [
        ("layer3.1.bn2.bias", torch.float32, float("nan"), "infinite or no number in trunk.layer3.1.bn2.bias;"),
        ("layer3.1.bn2.bias", torch.float64, 1e300, "infinite or no number in trunk.layer3.1.bn2.bias;"),
        ("layer3.1.bn2.running_var", torch.float32, -1e-6, "negative ones in trunk.layer3.1.bn2.running_var;"),
        ("projection_head.1.running_var", torch.float64, -1.0, "negative ones in projection_head.1.running_var;"),
        ("prototypes.weight", torch.float32, 1e30, "lengths of the prototypes"),  # its square is infinite
        ("layer1.0.conv1.weight", torch.int8, 3, "expected floating-point weights, found int8 in trunk.layer1.0.conv1"),
    ],
)
def test_weights_that_float32_cannot_hold_or_training_cannot_make_are_refused(tmp_path, name, dtype, value, words):
    state = foreign.swav_flat(foreign.network())
    state[f"module.{name}"] = state[f"module.{name}"].to(dtype)
    state[f"module.{name}"].view(-1)[2] = value
    with pytest.raises(CheckpointError, match=words) as caught:
        load(foreign.write(tmp_path / "w.pth", state))
    assert caught.value.exit_code == 6 and len(str(caught.value).splitlines()) == 1


def test_float64_weights_that_float32_can_hold_are_read(tmp_path):
    net = foreign.network()
    encoder = load(foreign.write(tmp_path / "w.pth", foreign.swav_flat(copy.deepcopy(net).double())))
    assert encoder.sha256 == load(foreign.write(tmp_path / "v.pth", foreign.swav_flat(net))).sha256


def test_of_a_student_and_a_teacher_the_teacher_is_taken(tmp_path):
    student, teacher = (foreign.network().trunk.state_dict() for _ in range(2))
    tree = {
        "student": {f"module.backbone.{name}": tensor for name, tensor in student.items()},
        "teacher": {f"backbone.{name}": tensor for name, tensor in teacher.items()},
        "epoch": 3,
    }
    encoder = load(foreign.write(tmp_path / "w.pth", tree))
    assert all(torch.equal(encoder.trunk.state_dict()[name], tensor) for name, tensor in teacher.items())
    assert ": DINO: " in encoder.provenance and "at 'teacher.backbone.'" in encoder.provenance
    chosen = load(tmp_path / "w.pth", prefix="student.module.backbone.")
    assert all(torch.equal(chosen.trunk.state_dict()[name], tensor) for name, tensor in student.items())


def test_a_classifier_without_its_trunk_is_said_to_be_one(tmp_path):
    """As the original's eval_linear saves it."""
    layer = {"module.linear.weight": torch.zeros(10, 64), "module.linear.bias": torch.zeros(10)}
    with pytest.raises(CheckpointError, match=r"found a linear layer alone \(module.linear.weight \[10, 64\]"):
        load(foreign.write(tmp_path / "w.pth", {"epoch": 100, "state_dict": layer}))
    more = {f"other.{i}": torch.zeros(2) for i in range(3)}
    with pytest.raises(CheckpointError, match=r"found 5 without a convolution among them .* heads on features"):
        load(foreign.write(tmp_path / "w.pth", layer | more))


@pytest.mark.parametrize("tree", [{"epoch": 3}, {"state_dict": {}}, [1, 2], {"a": {1: {"c": torch.ones(1)}}}])
def test_a_file_without_a_state_dict_is_refused(tree, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected tensors by name"):
        load(foreign.write(tmp_path / "w.pth", tree))


# -- what the file does not say


def test_normalisation_can_be_given_and_is_said(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.torchvision(foreign.network("basic", (2, 2, 2, 2))))
    encoder = load(path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert "mean [0.1, 0.2, 0.3], std [0.4, 0.5, 0.6], channels rgb (as asked for)" in encoder.provenance


def test_a_network_for_bgr_becomes_the_same_for_rgb(tmp_path):
    """Its images are normalised in its own order; what comes out must be the same."""
    net = foreign.network("basic", (2, 2, 2, 2))
    path = foreign.write(tmp_path / "w.pth", foreign.mmselfsup_0(net))
    assert "channels=bgr" in load(path).provenance
    encoder = load(path, channels="bgr")
    rgb = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = net.trunk((rgb.flip(1) - mean) / std)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    torch.testing.assert_close(encoder((rgb - mean) / std), expected.detach(), rtol=0, atol=1e-5)
    assert encoder.settings["channels"] == "bgr"


def test_the_length_of_the_pre_training_is_for_tables_only(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.torchvision(foreign.network("basic", (2, 2, 2, 2))))
    plain, said = load(path), load(path, pretrain_epochs=200, pretrain_batch=256)
    assert said.settings == plain.settings | {"epochs": 200, "batch": 256}
    assert said.architecture == plain.architecture and said.sha256 == plain.sha256
    module = of_module(foreign.plain_cnn(), "mine", 32, {"pretrain_epochs": 3})
    assert module.settings["epochs"] == 3 and "batch" not in module.settings
    with pytest.raises(ConfigError, match="pretrain_epochs: is for other projects' weight files"):
        load("random:resnet18", pretrain_epochs=1)


def test_a_module_and_function_name_a_network_that_is_not_ours(tmp_path):
    net = foreign.plain_cnn().eval()
    path = foreign.write(tmp_path / "w.pth", {"state_dict": foreign.put("net.", net)})
    with pytest.raises(CheckpointError, match="model=timm:NAME or module:function"):
        load(path)
    encoder = load(path, model="tests.network.foreign:plain_cnn")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), net(images).detach())
    assert encoder.num_features == 8 and encoder.settings["prefix"] == "net."
    with pytest.raises(ConfigError, match="stages"):
        encoder.stages(images)
    for wrong in ("tests.network.foreign:nothing", "no_such_module:f", "tests.network.foreign:no_features"):
        with pytest.raises(ConfigError, match="model="):
            load(path, model=wrong)


def test_options_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="says itself what it is"):
        load("random:resnet18", channels="bgr")
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        load(tmp_path, chanels="bgr")
    with pytest.raises(ConfigError, match="channels"):
        load(tmp_path, channels="gbr")


def test_a_checkpoint_of_ours_is_never_taken_for_a_foreign_file(tmp_path):
    """Its normalisation and its head are in the settings beside it."""
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be verified"):
        load(tmp_path / "model.safetensors")


# -- timm


def test_timms_names_are_looked_for_on_this_machine_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(CheckpointError, match="nothing is fetched"):
        load("timm:resnet18.a1_in1k")
    with pytest.raises(ConfigError, match="no such model"):
        load("timm:resnet181")


def test_timms_resnets_become_ours_and_others_stay_timms(tmp_path, monkeypatch):
    import timm

    model: Any = timm.create_model("test_vit", num_classes=3).eval()
    ours = BACKBONES["resnet18"](width=0.125)
    for name, state in (("test_vit.r160_in1k", model.state_dict()), ("resnet18.a1_in1k", ours.state_dict())):
        path = foreign.write(tmp_path / f"{name}.safetensors", state, "safetensors")
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, path=path: str(path))
        encoder = load(f"timm:{name}")
        assert encoder.name == f"timm:{name}"
        images = torch.randn(1, 3, encoder.size, encoder.size)
        assert f"(as timm says of {name})" in encoder.provenance
        if name.startswith("test_vit"):
            assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)  # its weights', not ImageNet's usual ones
            assert load(f"timm:{name}", mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)
            model.reset_classifier(0)
            assert encoder.size == 160
            torch.testing.assert_close(encoder(images), model(images).detach())
        else:
            assert len(encoder.stages(images)) == 5


def test_the_package_hands_it_out(tmp_path):
    path = foreign.write(tmp_path / "w.pth", foreign.swav_flat(foreign.network()))
    assert swav.load(path, model="resnet50").num_features == 256
