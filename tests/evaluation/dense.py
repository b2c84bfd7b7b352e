"""Tasks of detection and segmentation for tests: an encoder around a small ResNet, a task, and drawn images with what is known
about them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from swav.data.images import Images
from swav.evaluation.settings import DenseSettings
from swav.evaluation.task import Task
from swav.network.heads import build_network
from swav.network.resnet import ResNet
from swav.recipe_files import load_recipe
from swav.weights.encoder import Encoder

CPU = torch.device("cpu")


def encoder_of(trunk: ResNet | None = None) -> Encoder:
    """Recipe tiny's network at an eighth of the width; or around another trunk."""
    recipe = load_recipe("tiny", {"width": 0.125, "prototypes": 4})
    encoder = Encoder(build_network(recipe), recipe, "random:tiny")
    if trunk is not None:
        encoder.trunk, encoder.stage_channels = trunk, trunk.stage_channels
        encoder.num_features = trunk.num_features
    return encoder.requires_grad_(False).eval()


def small_bottleneck(seed: int = 0) -> ResNet:
    """A ResNet of eight bottlenecks of 16 to 128 channels: ResNet-50's form at a quarter of its width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet("bottleneck", (2, 2, 2, 2), width=0.25)


def dense_task(settings: DenseSettings, train: Images, val: Images, out: Path, encoder: Encoder | None = None) -> Task[Any]:
    """The task of a benchmark, on the CPU; the folder is made."""
    out.mkdir(exist_ok=True)
    return Task(encoder or encoder_of(), train, val, settings, "smoke", CPU, out)


def changed(task: Task[Any], **settings: Any) -> Task[Any]:
    return dataclasses.replace(task, settings=task.settings.model_copy(update=settings))
