"""Attacks: vision transformers in files of DINO and DINOv2, made for other sizes than they are scored at, of networks that no
tensor tells apart, or under other names than timm's.

Made with timm's networks and random weights, in the projects' public naming. Run: pytest tests/weights/test_transformers.py
"""

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from swav.errors import CheckpointError
from swav.weights import transformers
from swav.weights.encoder import load

CREATE: Any = timm.create_model
SIZES = dict(transformers._SIZES)
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 192, "num_heads": 3}  # of 64 channels each, as all of them


def model(name: str, size: int | None = None) -> Any:
    """A network of timm's, but shallow and narrow."""
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL if "dinov2" in name or name == "vit_tiny_patch16_224" else {}
    made = CREATE(name, num_classes=0, pretrained=False, **options, **({"img_size": size} if size else {})).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.05)
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What swav makes of timm is as shallow and narrow."""
    create = timm.create_model

    def create_small(name: str, **options: Any) -> nn.Module:
        changed = SMALL if "dinov2" in name or name == "vit_tiny_patch16_224" else {}
        return create(name, **changed | options)

    monkeypatch.setattr(timm, "create_model", create_small)
    monkeypatch.setitem(transformers._SIZES, (192, 2), "tiny")


def dinov2(made: nn.Module, chunk: int = 0, gated: bool = False) -> dict[str, Tensor]:
    """As facebookresearch/dinov2 names its tensors; in training in chunks of blocks."""
    state = dict(made.state_dict())
    if gated:
        state = {
            name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in state.items()
        }
    channels = state["cls_token"].shape[-1]
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_class = torch.randn(1, 1, channels)
        state["cls_token"] = state["cls_token"] - of_class
        state["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    if chunk:
        state = {
            f"blocks.{int(name.split('.')[1]) // chunk}.{name.removeprefix('blocks.')}" if name.startswith("blocks.") else name: value
            for name, value in state.items()
        }  # fmt: skip
    return state | {"mask_token": torch.zeros(1, channels)}


def same_features(encoder: Any, made: nn.Module, size: int) -> None:
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(encoder(images), made(images).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("native", [518, 224])
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_a_dinov2_is_scored_at_224_whatever_it_was_made_for(name, native, tmp_path):
    made = model(name, native)
    torch.save(dinov2(made), tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model=f"timm:{name}")
    assert encoder.size == 224 and encoder.settings["layout"] == "DINOv2"
    same_features(encoder, made, native)
    made.set_input_size(img_size=224)  # timm's own interpolation, once
    same_features(encoder, made, 224)
    assert torch.isfinite(encoder(torch.randn(1, 3, 98, 98))).all()
    assert f"positions for {native} pixels" in encoder.provenance


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "vit_base_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"]
)
def test_a_dinov2_is_read_as_timms_own_conversion_reads_it(name, tmp_path):
    """An oracle: which tensor goes where, also of the giant's gated layers, which timm packs."""
    published = dinov2(model(name), gated="giant" in name)
    torch.save(published, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth", model=f"timm:{name}")
    reference = model(name)
    reference.load_state_dict(checkpoint_filter_fn(dict(published), reference))
    reference.set_input_size(img_size=70)
    same_features(encoder, reference, 70)
    assert not torch.equal(encoder(torch.zeros(1, 3, 70, 70)), encoder(torch.ones(1, 3, 70, 70)))


def test_a_dinov2_is_recognised_by_its_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.Transformer, "timm_name", "vit_small_patch14_dinov2")
    made = model("vit_small_patch14_dinov2", 224)
    for wrapped, prefix in (
        (dinov2(made), ""),
        ({"model": dinov2(made, chunk=1)}, ""),
        (
            {"teacher": {f"backbone.{name}": value for name, value in dinov2(made, chunk=1).items()}},
            "teacher.backbone.",
        ),
    ):
        torch.save(wrapped, tmp_path / "w.pth")
        encoder = load(tmp_path / "w.pth")
        assert encoder.settings["prefix"] == prefix and "by its shapes" in encoder.provenance
        same_features(encoder, made, 224)


@pytest.mark.parametrize(("channels", "blocks"), SIZES, ids=SIZES.values())
def test_the_usual_transformers_are_timms_of_these_shapes(channels, blocks):
    """Those that are named exist there, with so many channels and heads."""
    named = [
        name
        for patch, of_dinov2, registers in ((8, False, 0), (16, False, 0), (14, False, 0), (14, True, 0), (14, True, 4))
        if (name := transformers.Transformer("", channels, blocks, patch, 197, registers, of_dinov2).timm_name) is not None
    ]  # fmt: skip
    assert named and all(timm.is_model(name) for name in named)
    with torch.device("meta"):
        made: Any = CREATE(named[-1], num_classes=0)
    assert made.embed_dim == channels and len(made.blocks) == blocks
    assert channels // made.blocks[0].attn.num_heads == (80 if "huge" in named[0] else 64)


def test_a_transformers_name_says_patches_registers_and_whose_it_is():
    known = [transformers.Transformer("", 384, 12, 14, 1370, n, True).timm_name for n in (0, 4)]
    assert known == ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"]
    assert transformers.Transformer("", 768, 12, 8, 785, 0, False).timm_name == "vit_base_patch8_224"
    assert transformers.Transformer("", 384, 7, 14, 1370, 0, True).timm_name is None
    assert transformers.Transformer("", 1536, 40, 14, 257, 0, False).timm_name is None  # timm's other giant is narrower


def test_of_dinos_whole_checkpoint_the_teacher_is_scored_and_said(tmp_path):
    """As hub files of ViTs: `student` and `teacher`, with heads."""
    student, teacher = model("vit_tiny_patch16_224"), model("vit_tiny_patch16_224")
    for parameter in student.parameters():
        parameter.data.add_(0.01)
    tree = {
        "student": {f"module.backbone.{name}": value for name, value in student.state_dict().items()},
        "teacher": {f"backbone.{name}": value for name, value in teacher.state_dict().items()} | {"head.mlp.0.weight": torch.ones(2, 2)},
        "epoch": 3,
    }  # fmt: skip
    torch.save(tree, tmp_path / "w.pth")
    encoder = load(tmp_path / "w.pth")
    assert "the teacher's weights, as DINO scores them (prefix=student.module.backbone." in encoder.provenance
    assert encoder.settings["backbone"] == "timm:vit_tiny_patch16_224" and encoder.size == 224
    same_features(encoder, teacher, 224)
    asked = load(tmp_path / "w.pth", prefix="student.module.backbone.")
    same_features(asked, student, 224)
    assert "the teacher's" not in asked.provenance


def test_a_transformer_whose_heads_nobody_tells_is_named_with_the_model_that_reads_it(tmp_path):
    """MoCo v3's ViT-S has 12 heads, and everyone else's 6: the tensors are the same."""
    made = model("vit_tiny_patch16_224")
    state = made.state_dict()
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"found a vision transformer at '': 2 blocks of 192 channels, patches of 16 pixels"
    ) as caught:
        load(tmp_path / "w.pth")
    assert "model=timm:vit_tiny_patch16_224 reads it" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    same_features(load(tmp_path / "w.pth", model="timm:vit_tiny_patch16_224"), made, 224)
    both = {
        f"module.{which}.{name}": value
        for which in ("base_encoder", "momentum_encoder")
        for name, value in state.items()
    }
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"'module\.base_encoder\.' and 1 more \(prefix=TEXT says which\)"):
        load(tmp_path / "w.pth")


def test_a_network_that_takes_one_size_only_is_scored_at_it(tmp_path):
    """An MLP-Mixer has a matrix over all patches."""
    path = tmp_path / "w.pth"
    torch.save(CREATE("mixer_s32_224", num_classes=0).state_dict(), path)
    encoder = load(path, model="timm:mixer_s32_224")
    assert encoder.size == 224 and encoder(torch.randn(1, 3, 224, 224)).shape == (1, 512)
