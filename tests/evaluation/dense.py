"""Tasks of detection and segmentation for tests: an encoder around a small ResNet, a task, and drawn images with what is known
about them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from swav.data.images import Images
from swav.data.sources.walk import ROW
from swav.data.storage import InMemory
from swav.data.targets import Objects, ObjectSets, Targets
from swav.evaluation.settings import BenchSettings
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


def dense_task(
    settings: BenchSettings, train: Images, val: Images, out: Path, encoder: Encoder | None = None
) -> Task[Any]:
    """The task of a benchmark, on the CPU; the folder is made."""
    out.mkdir(exist_ok=True)
    return Task(encoder or encoder_of(), train, val, settings, "smoke", CPU, out)


def changed(task: Task[Any], **settings: Any) -> Task[Any]:
    return dataclasses.replace(task, settings=task.settings.model_copy(update=settings))


def in_memory(pixels: UInt8[np.ndarray, "N S S 3"], targets: Targets | None = None) -> Images:
    """Square images without files."""
    names = [f"{i}".encode() for i in range(len(pixels))]
    return Images(InMemory(Path("memory"), names, np.zeros(len(pixels), ROW), pixels), targets)


def object_sets(*objects: Objects, size: tuple[int, int] = (8, 8), classes: int = 3) -> ObjectSets:
    """The objects of one image each, all of one height and width."""
    sizes = np.array([size] * len(objects), dtype=np.int64)
    names = [f"class {k}" for k in range(classes)]
    return ObjectSets(objects, names, sizes=sizes, ids=np.arange(1, len(objects) + 1))


def objects_of(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    difficult: Sequence[bool] = (),
    crowd: Sequence[bool] = (),
    masks: Sequence[Any] = (),
) -> Objects:
    """Objects by their boxes and classes."""
    of_them, no = np.array(boxes, np.float32).reshape(-1, 4), [False] * len(boxes)
    return Objects(
        boxes=of_them,
        labels=np.array(labels, np.int64),
        difficult=np.array(difficult or no, np.bool_),
        crowd=np.array(crowd or no, np.bool_),
        area=(of_them[:, 2:] - of_them[:, :2]).prod(axis=1),
        numbers=np.arange(1, len(boxes) + 1),
        masks=masks,
    )
