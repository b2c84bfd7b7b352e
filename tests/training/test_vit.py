"""Attacks: a ViT that trains and cannot be scored by stage, resumed, exported or started from as a ResNet can.

Run: pytest tests/training/test_vit.py
"""

from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from swav.evaluation.runner import bench
from swav.training import loop
from swav.weights.encoder import load

QUICK: dict[str, Any] = {
    "epochs": 1,
    "warmup_epochs": 0,
    "workers": 0,
    "precision": "fp32",
    "batch": 16,
    "prototypes": 12,
}


@pytest.mark.slow
def test_a_vit_is_trained_scored_exported_and_started_from(shapes, tmp_path, capsys):
    run = loop.pretrain("tiny_vit", out=tmp_path / "run", data=shapes, **QUICK)
    encoder = load(run)
    images = torch.randn(2, 3, 64, 64)
    assert [stage.shape for stage in encoder.stages(images)] == [(2, 64, 4, 4)] * 6
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(load_file(run / "export/backbone.safetensors"))
    assert torch.allclose(model.eval()(images), encoder(images), atol=1e-6)

    found = bench(
        "linear-stages",
        weights=run,
        data=shapes,
        out=tmp_path / "bench",
        protocol="smoke",
        size=64,
        linear_stages={"epochs": 1},
    )
    metrics = {row.metric for row in found.results if row.metric.startswith("top-1")}
    assert len(metrics) == 7, metrics  # six blocks and the best

    capsys.readouterr()
    adapted = loop.pretrain("auto", out=tmp_path / "adapted", data=shapes, init=run, **QUICK | {"prototypes": 30})
    said = capsys.readouterr().err
    assert "backbone = timm:test_vit: that of" in said and "optimizer = adamw" in said
    assert load(adapted).settings["backbone"] == "timm:test_vit"


@pytest.mark.slow
def test_a_file_of_timms_weights_is_adapted_where_the_recipe_says_whose_it_is(shapes, tmp_path, capsys):
    model = timm.create_model("test_vit", num_classes=0)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "vit.safetensors")
    run = loop.pretrain(
        "auto",
        out=tmp_path / "run",
        data=shapes,
        init=tmp_path / "vit.safetensors",
        **QUICK | {"backbone": "timm:test_vit", "lr": 1e-9},
    )
    assert "vit.safetensors: backbone; fresh head" in capsys.readouterr().err
    trained = load(run).trunk.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[f"model.{name}"], value, rtol=0, atol=1e-6)
