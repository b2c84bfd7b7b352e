"""The one seam between a model and a benchmark: images in, features out, and what is needed to feed it.

A weight source W is `random:NAME` (a backbone, timm:NAME, a recipe or a run folder: that network with fresh weights), a run
folder (its newest verified checkpoint; `RUN@best` for the best), one checkpoint's folder, another project's file
(weights.py), or `timm:NAME` (the pre-trained weights of that name that timm finds on this machine).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from swav import checkpoint
from swav.config import TIMM, Recipe, WeightOptions, load_recipe, recipe_names, validated
from swav.data.views import evaluation_view, to_input
from swav.errors import CheckpointError, ConfigError, did_you_mean
from swav.network.heads import SwavNetwork, build_network
from swav.network.trunk import BACKBONES, check_backbone
from swav.network.weights import Foreign, cached_timm_file, load_foreign
from swav.strict_yaml import read_yaml


class Encoder(nn.Module):
    """A trunk in eval mode. `forward` takes normalised images [N, C, H, W] and returns features [N, F].

    Attributes:
        trunk, head, prototypes: the parts, as pre-trained; head and prototypes are None where a file has none.
        name: the weight source, as the user gave it.
        prototype_heads: number of prototypes in each set.
        sha256: of the trunk's tensors, names and bytes.
        mean, std: of the normalisation, for RGB in 0..1.
        in_channels: C, 3 or 1.
        size: side of images that the network was made for [pixels].
        settings: what built the network, for results; of a run's weights also the epochs behind them and the batch.
        story: what was found in another project's file, in words; empty for our own.
        num_features: F.
        stage_names, stage_channels: of the maps that `stages` gives; empty where the trunk has no stages.
    """

    def __init__(self, network: SwavNetwork, recipe: Recipe, name: str, foreign: Foreign | None = None):
        super().__init__()
        self.trunk = network.trunk
        self.head = network.projection_head if foreign is None or foreign.has_head else None
        self.prototypes = network.prototypes if foreign is None or foreign.has_prototypes else None
        sets = foreign is None and not recipe.left_at_auto("prototypes")
        self.prototype_heads = recipe.prototype_heads if sets else (len(network.prototypes.weight),)
        self.story = foreign.story if foreign is not None else ""
        self.name, self.sha256 = name, weights_sha256(network.trunk)
        self.mean, self.std, self.size = recipe.mean, recipe.std, recipe.resolution
        self.in_channels = recipe.in_channels
        self.settings: dict[str, Any] = {
            key: getattr(recipe, key) for key in ("backbone", "width", "stem", "in_channels", "mean", "std", "seed")
        } | (foreign.settings if foreign is not None else {})
        self.num_features: int = int(network.trunk.num_features)  # type: ignore[arg-type]
        self.stage_names: list[str] = list(getattr(network.trunk, "stage_names", ()))
        self.stage_channels: list[int] = list(getattr(network.trunk, "stage_channels", ()))
        self.eval()

    @property
    def architecture(self) -> dict[str, Any]:
        """What the trunk's tensors do not tell, and features depend on: as stems of one shape differ in their strides."""
        told = ("backbone", "width", "stem", "in_channels", "padding")
        return {key: self.settings[key] for key in told if key in self.settings}

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        return self.trunk(images)  # type: ignore[no-any-return]

    def stages(self, images: Float[Tensor, "N C H W"]) -> list[Tensor]:
        """Feature maps: of a ResNet feature1 (after the stem, before max-pool) and feature2..5 (layer1..4); of a timm model
        those of its own stages or blocks.

        Raises:
            ConfigError: the trunk has none.
        """
        if not self.stage_channels:
            raise ConfigError(
                f"{self.name}: expected a trunk with stages, found {self.settings['backbone']}, which has none"
            )
        return self.trunk.stages(images)  # type: ignore[operator, no-any-return]

    def preprocess(self, image: UInt8[np.ndarray, "H W 3"], size: int | None = None) -> Float[Tensor, "C S S"]:
        """Short side to 256/224 of `size`, centre crop, normalise. `size` defaults to the network's own."""
        view = torch.from_numpy(evaluation_view(image, size or self.size))
        return to_input(view[None], self.mean, self.std, self.in_channels)[0]


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over a module's tensors: sorted names, shapes, and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(weights: str | Path, **options: Any) -> Encoder:
    """Builds the encoder that a weight source names.

    Args:
        weights: the source.
        options: what another project's file does not say, as `model="resnet50"`; see config.WeightOptions.

    Raises:
        ConfigError: the source is none of the known kinds, or an option is unknown or has no use for it.
        CheckpointError: no checkpoint in it verifies, or its tensors do not fit the network.
    """
    source = str(weights)
    wanted = validated(WeightOptions, options, "weights")
    if is_foreign(source):
        return _of_another_project(source, wanted)
    if given := [key for key, value in wanted if value is not None]:
        raise ConfigError(f"{given[0]}: is for other projects' weight files; {source} says itself what it is")
    if source.startswith("random:"):
        recipe = _recipe_of(source.removeprefix("random:"))
        return _frozen(Encoder(build_network(recipe), recipe, source))
    path = _checkpoint_folder(source)
    saved = checkpoint.read(path)
    recipe = validated(Recipe, saved.state["recipe"], f"{path.name}/state.json")
    network = build_network(recipe)
    try:
        network.load_state_dict(saved.model)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            f"{path}: its tensors do not fit the {recipe.backbone} of its settings ({detail})"
        ) from None
    with torch.no_grad():  # saved a step away from unit norm, see algorithm.normalize_prototypes_
        network.prototypes.weight.copy_(nn.functional.normalize(network.prototypes.weight, dim=1))
    encoder = Encoder(network, recipe, source)
    seen = saved.state["step"] // (saved.state["num_images"] // recipe.batch)  # whole epochs so far
    encoder.settings |= {"epochs": seen, "batch": recipe.batch}
    return _frozen(encoder)


def is_foreign(source: str) -> bool:
    """Whether a source is not ours: a file (but for those of our checkpoints), or timm's."""
    return source.startswith("timm:") or (Path(source).is_file() and not _of_a_checkpoint(source))


def _of_a_checkpoint(source: str) -> bool:
    return Path(source).with_name("manifest.json").is_file()


def _of_another_project(source: str, options: WeightOptions) -> Encoder:
    path = Path(source)
    if source.startswith("timm:"):
        name = source.removeprefix("timm:")
        path = cached_timm_file(name)
        architecture = name.partition(".")[0]
        options = options.model_copy(update={"model": architecture if architecture in BACKBONES else source})
    foreign = load_foreign(path, options)
    return _frozen(Encoder(foreign.network, foreign.recipe, source, foreign))


def _frozen(encoder: Encoder) -> Encoder:
    return encoder.requires_grad_(False)


def _recipe_of(name: str) -> Recipe:
    """The settings behind random weights: of a backbone, a recipe, or a run folder."""
    if name in BACKBONES or name.startswith(TIMM):
        check_backbone(name, [])
        return load_recipe("default", {"backbone": name})
    if (Path(name) / "config.yaml").is_file():
        text = (Path(name) / "config.yaml").read_text(encoding="utf-8", errors="surrogateescape")
        return validated(Recipe, read_yaml(text, f"{name}/config.yaml"), f"{name}/config.yaml")
    if name in recipe_names():
        recipe = load_recipe(name)
        if recipe.left_at_auto("backbone", "width", "stem", "in_channels", "head_hidden", "head_dim", "crops"):
            raise ConfigError(
                f"random:{name}: its network follows from images; name a backbone, another recipe or a run"
            )
        return recipe
    raise ConfigError(
        f"random:{name}: expected a backbone ({', '.join(BACKBONES)}, {TIMM}NAME), a recipe or a run folder"
        f"{did_you_mean(name, [*BACKBONES, *recipe_names()])}"
    )


def _checkpoint_folder(source: str) -> Path:
    name = source.removesuffix("@best")  # any other @ belongs to the path
    best = name != source
    folder = Path(source).parent if _of_a_checkpoint(source) and Path(source).is_file() else Path(name)
    if (folder / "manifest.json").is_file() and not best:
        return folder
    if not (folder / "checkpoints").is_dir():
        wanted = (
            "a run folder"
            if best
            else "a run folder (RUN@best: its best), a checkpoint's folder, a weight file, random:NAME or timm:NAME"
        )
        raise ConfigError(f"weights '{source}': expected {wanted}, found none")
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None:
        raise CheckpointError(f"{folder}: the run has saved no checkpoint yet; let it run, or use random:{folder}")
    if not best:
        return newest
    step = json.loads((newest / "state.json").read_text()).get("best_step")
    if step is None:
        raise ConfigError(
            f"{folder}@best: expected a run that was scored by kNN while training, found no score; use {folder}"
        )
    return newest.with_name(f"step_{step:08d}")
