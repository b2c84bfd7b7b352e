"""Attacks: files of networks that no backbone of ours is in: each is named for what it is, with the way to the right file, in a line.

Run: pytest tests/weights/test_other_networks.py
"""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from swav.errors import CheckpointError
from swav.weights import other_networks
from swav.weights.encoder import load
from swav.weights.fits import Model
from swav.weights.key_layouts import find_trunk
from swav.weights.other_networks import found_instead, timms_instead
from swav.weights.pickle_vm import TensorRef

CREATE: Any = timm.create_model


def refs(names: dict[str, tuple[int, ...]]) -> dict[str, TensorRef]:
    return {name: TensorRef(name, shape) for name, shape in names.items()}


def of_module(module: nn.Module, prefix: str = "") -> dict[str, TensorRef]:
    return refs({prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})


def on_meta(make: Any, *arguments: Any, **options: Any) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = make(*arguments, **options)
    return made


def blocks(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, TensorRef]:
    return refs({name.format(i): shape for i in range(4) for name in names})


def of_a_detector(name: str) -> dict[str, TensorRef]:
    return of_module(on_meta(getattr(torchvision.models.detection, name), weights=None, weights_backbone=None))


KINDS: dict[str, tuple[Any, str]] = {
    "LoRA of PEFT": (
        lambda: blocks("base_model.model.blocks.{}.attn.qkv.lora_A.weight", "base_model.model.blocks.{}.attn.qkv.lora_B.weight"),
        "a LoRA, .* merge it into them",
    ),
    "LoRA of images": (lambda: blocks("lora_unet_down_{}.lora_up.weight", shape=(4, 4, 1, 1)), "a LoRA, "),
    "shards": (lambda: blocks("_fsdp.{}._flat_param", shape=(9,)), "a shard of FSDP's .* gather the whole"),
    "BERT": (
        lambda: refs({"bert.embeddings.word_embeddings.weight": (9, 4)}) | blocks("bert.encoder.layer.{}.attention.self.query.weight"),
        "a network for texts .* for images",
    ),
    "Llama": (lambda: refs({"model.embed_tokens.weight": (9, 4)}) | blocks("model.layers.{}.mlp.up_proj.weight"), "a network for texts"),
    "GPT-2": (lambda: refs({"wte.weight": (9, 4)}) | blocks("h.{}.attn.c_attn.weight"), "a network for texts"),
    "CLIP": (
        lambda: refs({"visual.conv1.weight": (8, 3, 16, 16), "token_embedding.weight": (9, 4), "logit_scale": ()})
        | blocks("visual.transformer.resblocks.{}.ln_1.weight", shape=(8,)),
        "images and texts, as CLIP is .* its image part",
    ),
    "CLIP's ResNet": (
        lambda: refs({"visual.conv1.weight": (32, 3, 3, 3), "visual.conv2.weight": (32, 32, 3, 3), "logit_scale": ()})
        | blocks("visual.layer1.{}.conv1.weight", "visual.layer4.{}.conv1.weight", shape=(64, 64, 1, 1)),
        "images and texts, as CLIP is",
    ),
    "diffusion": (
        lambda: blocks("model.diffusion_model.input_blocks.{}.0.weight", shape=(4, 4, 3, 3)), "a network that makes images"
    ),
    "Detectron2": (
        lambda: blocks("backbone.bottom_up.res2.{}.conv1.weight", "roi_heads.box_head.fc{}.weight", shape=(4, 4, 1, 1)),
        "in Detectron2's names .* under torchvision's",
    ),
    "SSD": (lambda: of_a_detector("ssd300_vgg16"), "a detector, .* that its backbone began with"),
    "YOLO": (
        lambda: refs({"model.22.dfl.conv.weight": (1, 16, 1, 1)}) | blocks("model.{}.conv.weight", shape=(8, 3, 3, 3)), "a detector"
    ),
    "Segment Anything": (
        lambda: of_module(on_meta(CREATE, "vit_tiny_patch16_224"), "image_encoder.") | blocks("mask_decoder.{}.weight"),
        "Segment Anything's network .* its image_encoder",
    ),
    "DINOv3": (
        lambda: refs({"storage_tokens": (1, 4, 384), "patch_embed.proj.weight": (384, 3, 16, 16)}) | blocks("blocks.{}.norm1.weight"),
        "a DINOv3 in its own names .* timm's file",
    ),
    "HF's ViT": (
        lambda: refs({"vit.embeddings.cls_token": (1, 1, 4)}) | blocks("vit.encoder.layer.{}.attention.attention.query.weight"),
        "Hugging Face's transformers .* from timm",
    ),
    "HF's ResNet": (
        lambda: blocks("resnet.embedder.embedder.convolution.{}", shape=(4, 3, 7, 7)), "Hugging Face's transformers"
    ),
    "torchvision's ViT": (
        lambda: of_module(on_meta(torchvision.models.vit_b_16)), "in torchvision's names .* timm's file of it"
    ),
    "heads": (lambda: blocks("classifiers.{}.weight", "classifiers.{}.bias"), "8 without a convolution .* heads on features"),
    "prototypes alone": (
        lambda: refs({"prototypes.weight": (30, 8), "projection_head.0.weight": (9, 9), "projection_head.0.bias": (9,),
                      "projection_head.3.weight": (8, 9)}),
        "4 without a convolution",
    ),
    "a MAE": (
        lambda: of_module(on_meta(CREATE, "vit_tiny_patch16_224"))
        | refs({"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 197, 8)}),
        r"12 blocks of 192 channels, .* 224 pixels; model=timm:vit_tiny_patch16_224 reads it",
    ),
    "DeiT, distilled": (
        lambda: of_module(on_meta(CREATE, "deit_tiny_distilled_patch16_224"), "model."),
        "at 'model.': .* model=timm:deit_tiny_distilled_patch16_224 reads it",
    ),
    "BEiT": (lambda: of_module(on_meta(CREATE, "beit_base_patch16_224")), "model=timm:beit_base_patch16_224 reads it"),
    "another transformer": (
        lambda: of_module(on_meta(CREATE, "eva02_tiny_patch14_224")), "model=timm:NAME says which of timm's it is"
    ),
    "a transformer with stages": (
        lambda: of_module(on_meta(CREATE, "swin_tiny_patch4_window7_224")), "at '': 96 channels, patches of 4 pixels; .*NAME says"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_another_network_is_named_with_what_to_do_in_a_line(name):
    make, words = KINDS[name]
    said = found_instead(make())
    assert re.search(words, said) and said.startswith(", found ") and said.isprintable() and len(said) < 420


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_of_a_network_that_its_names_do_not_tell_some_are_shown(name):
    said = found_instead(of_module(on_meta(CREATE, name)))
    assert re.search(
        r"found \d+ others: (stem\.0|conv_stem)\.weight, .* \.\.\.\nmodel=timm:NAME or module:function", said
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", ["resnet101", "wide_resnet50_2", "resnext50_32x4d"])
def test_torchvisions_other_resnets_are_told_apart(name, prefix):
    tensors = of_module(on_meta(getattr(torchvision.models, name)), prefix)
    assert timms_instead(tensors, prefix) == name
    gone = f"{prefix}layer3.4.conv2.weight"
    assert timms_instead({key: stored for key, stored in tensors.items() if key != gone}, prefix) is None


def test_a_resnet_of_another_depth_is_answered_with_the_line_that_reads_it(tmp_path, monkeypatch):
    """Of timm's smallest, under a prefix."""
    monkeypatch.setitem(other_networks._RESNETS, (1, (32, 32)), "test_resnet")
    torch.manual_seed(0)
    made = CREATE("test_resnet", num_classes=0).eval()
    torch.save({f"module.{name}": tensor for name, tensor in made.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"found none; nearest: .*\n.*\nmodel=timm:test_resnet reads it, with prefix=module\.$"
    ):
        load(tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model="timm:test_resnet", prefix="module.")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(images), made(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model_ema."])
def test_a_classifier_in_a_module_that_features_need_is_left_over(tmp_path, prefix):
    """ConvNeXt has `head.norm` beside `head.fc`: its file was refused for the latter, and so was timm:convnext_atto."""
    torch.manual_seed(0)
    whole = CREATE("convnext_atto").eval()
    torch.save({prefix + name: tensor for name, tensor in whole.state_dict().items()}, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model="timm:convnext_atto")
    whole.reset_classifier(0)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), whole(images).detach(), rtol=1e-4, atol=1e-5)
    assert encoder.provenance.splitlines()[0].endswith(f"left over {prefix}head.fc.weight, {prefix}head.fc.bias")


def test_of_a_module_that_features_need_nothing_but_the_classifier_is_left_over(tmp_path):
    state = CREATE("convnext_atto").state_dict() | {"head.fc2.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"too many head\.fc2\.weight\n"):
        load(tmp_path / "w.pth", model="timm:convnext_atto")


def test_a_network_of_timms_that_says_shortcut_itself_is_found():
    """lightly's ResNets say `shortcut` for `downsample`; CLIP's in timm's names keep the word."""
    own = on_meta(CREATE, "resnet50_clip", num_classes=0)
    model = Model("timm:resnet50_clip", {name: tuple(each.shape) for name, each in own.state_dict().items()})
    assert any(".shortcut." in name for name in model.shapes)
    fit = find_trunk(Path("w.pth"), of_module(own, "visual."), lambda _: [model], None, {})
    assert fit.prefix == "visual." and fit.faults == 0


def test_a_backbone_of_ours_in_a_detector_is_read_and_the_rest_said(tmp_path):
    """What a detector is of is no reason to refuse the whole backbone in it."""
    torch.manual_seed(0)
    trunk = torchvision.models.resnet18().eval()
    trunk.fc = nn.Identity()
    state = {f"backbone.0.body.{name}": tensor for name, tensor in trunk.state_dict().items()}
    torch.save({"model": state | {"bbox_embed.layers.0.weight": torch.ones(4, 4)}}, tmp_path / "detr.pth")
    encoder = load(tmp_path / "detr.pth")
    assert encoder.settings["prefix"] == "backbone.0.body." and "left over bbox_embed" in encoder.provenance
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(images), trunk(images).detach(), rtol=1e-4, atol=1e-5)


def test_of_a_detector_with_part_of_a_backbone_the_missing_part_is_said(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(
        {f"backbone.{name}": tensor for name, tensor in state.items()} | {"rpn.conv.weight": torch.ones(1)},
        tmp_path / "w.pth",
    )
    with pytest.raises(CheckpointError, match=r"nearest: resnet18 .*\nmissing layer4\.1\.conv2\.weight"):
        load(tmp_path / "w.pth")


def test_it_ends_with_the_exit_code_of_weights(tmp_path):
    torch.save({"prototypes.weight": torch.ones(30, 8)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="a linear layer alone") as caught:
        load(tmp_path / "w.pth")
    assert caught.value.exit_code == 6
