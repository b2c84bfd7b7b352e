"""Attacks: a ResNet that is nearly torchvision's. Names, their order, random draws, outputs and gradients must be the same bits,
and the file must need torch alone; and start-up must not import torch's compiler.

Run: pytest tests/network/test_resnet.py
"""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet as reference

from swav.network import resnet
from swav.network.backbone import BACKBONES, ResNet

IMAGES = torch.linspace(-2, 2, 2 * 3 * 40 * 40).reshape(2, 3, 40, 40).sin()


def bits(tensors: dict[str, Tensor]) -> list[tuple[str, bytes]]:
    """In the order of the dict."""
    return [(name, tensor.detach().numpy().tobytes()) for name, tensor in tensors.items()]


def trained(network: nn.Module) -> tuple[bytes, list[bytes], list[tuple[str, bytes]]]:
    """Features in train mode, gradients in the order of parameters, and running statistics."""
    features = network(IMAGES)
    features.square().sum().backward()
    gradients = [p.grad.numpy().tobytes() for p in network.parameters() if p.grad is not None]
    return features.detach().numpy().tobytes(), gradients, bits(dict(network.named_buffers()))


@pytest.fixture
def torchvisions(monkeypatch):
    """Makes torchvision's models without a classifier, which would draw from the same generator."""
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: None)

    def make(name: str, seed: int, **options: bool) -> nn.Module:
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(name, **options)
        model.fc = nn.Identity()
        return model

    return make


@pytest.mark.parametrize("zero_init_residual", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_from_one_seed_names_draws_features_and_gradients_are_torchvisions_bits(name, zero_init_residual, torchvisions):
    theirs = torchvisions(name, 3, zero_init_residual=zero_init_residual)
    torch.manual_seed(3)
    ours = BACKBONES[name](zero_init_residual=zero_init_residual)
    drawn = torch.random.get_rng_state()
    assert bits(ours.state_dict()) == bits(theirs.state_dict())
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    torchvisions(name, 3)
    assert torch.equal(drawn, torch.random.get_rng_state())  # what is drawn next is the same, too
    assert trained(ours) == trained(theirs)
    assert torch.equal(ours.eval()(IMAGES), theirs.eval()(IMAGES))


def assembled(kind: str, layers: Sequence[int], width: float, stem: str) -> nn.Module:
    """Of torchvision's blocks, with other channels and another first convolution than its own models have."""
    block: type[nn.Module] = {"basic": reference.BasicBlock, "bottleneck": reference.Bottleneck}[kind]
    expansion, channels = {"basic": 1, "bottleneck": 4}[kind], int(64 * width)
    network = nn.Module()
    network.conv1 = first = (
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        if stem == "imagenet"
        else nn.Conv2d(3, channels, 3, stride={"half": 2, "small": 1}[stem], padding=1, bias=False)
    )
    network.bn1 = stem_norm = nn.BatchNorm2d(channels)
    stages = []
    before = channels
    for i, count in enumerate(layers):
        planes, stride, blocks = channels * 2**i, 1 if i == 0 else 2, []
        for j in range(count):
            shortcut = None
            if j == 0 and (stride != 1 or before != planes * expansion):
                convolution = nn.Conv2d(before, planes * expansion, 1, stride=stride, bias=False)
                shortcut = nn.Sequential(convolution, nn.BatchNorm2d(planes * expansion))
            blocks.append(block(before, planes, stride if j == 0 else 1, shortcut))
            before = planes * expansion
        stages.append(nn.Sequential(*blocks))
        setattr(network, f"layer{i + 1}", stages[-1])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    pool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, 2, 1)

    def forward(x: Tensor) -> Tensor:
        x = pool(stem_norm(first(x)).relu())
        for layer in stages:
            x = layer(x)
        return x.mean(dim=(2, 3))

    network.forward = forward
    return network


@pytest.mark.parametrize("stem", ["imagenet", "half", "small"])
@pytest.mark.parametrize(
    ("kind", "layers", "width"), [("basic", (2, 1, 1, 1), 0.25), ("bottleneck", (1, 2, 1, 1), 1.5)]
)
def test_at_other_widths_and_stems_too(kind, layers, width, stem):
    torch.manual_seed(5)
    theirs = assembled(kind, layers, width, stem)
    torch.manual_seed(5)
    ours = ResNet(kind, layers, width=width, stem=stem)
    assert bits(ours.state_dict()) == bits(theirs.state_dict())
    assert trained(ours) == trained(theirs)


def test_the_file_needs_torch_alone():
    code = ast.parse(Path(resnet.__file__).read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(code) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(code) if isinstance(node, ast.Import) for alias in node.names]
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"torch"}


@pytest.mark.slow
def test_a_step_needs_no_compiler_and_no_package_that_imports_it():
    """They take seconds of CPU: torch._dynamo, which torchvision and the classes of torch.optim import, and timm."""
    code = """
import sys, torch, swav.training.loop
from swav.recipe_files import load_recipe
from swav.training.step import Trainer
from swav.network.heads import build_network
for optimizer in ("larc", "adam"):
    recipe = load_recipe("tiny", {"optimizer": optimizer, "batch": 4, "queue_length": 0, "precision": "fp32"})
    recipe = recipe.model_copy(update={"freeze_prototypes_steps": 0, "final_lr": 0.0})
    learner = Trainer(recipe, build_network(recipe), 10)
    crops = [torch.randn(crop.count * 4, 3, crop.size, crop.size) for crop in recipe.crops]
    learner.step([crops], 0)
print(sorted({"torch._dynamo", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "sympy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"
