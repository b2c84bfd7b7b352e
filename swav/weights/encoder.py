"""The one seam between a model and a benchmark: images in, features out, and what is needed to feed it.

A weight source W is `random:NAME` (a backbone, timm:NAME, a recipe or a run folder: that network with fresh weights), a run
folder (its newest verified checkpoint; `RUN@best` for the best), one checkpoint's folder, a file that a run exported, another
project's file (foreign.py), or `timm:NAME` (the pre-trained weights of that name that timm finds on this machine).
"""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from swav import checkpoint, dist
from swav.config import Recipe, WeightOptions
from swav.data.augment.crops import to_input, val_view
from swav.data.sources.decode import as_pixels, reason_of
from swav.data.sources.pixels import decoding_of
from swav.errors import CheckpointError, ConfigError
from swav.files import CHECKPOINTS
from swav.network.backbone import BACKBONES, check_backbone, in_channels_last
from swav.network.heads import SwavNetwork, build_network
from swav.recipe_files import load_recipe, stored, validated
from swav.tensors import require_same_form, require_sound
from swav.weights.containers import open_weights
from swav.weights.exported import DECODING, FORMAT, is_timms, read_description
from swav.weights.foreign import MEAN, ForeignWeights, cached_timm_file, load_foreign
from swav.weights.key_layouts import STD
from swav.weights.sources import (
    RANDOM,
    expanded,
    is_checkpoint,
    is_export,
    is_foreign,
    random_recipe,
    run_or_checkpoint,
)


class Encoder(nn.Module):
    """A backbone in eval mode. `forward` takes normalised images [N, C, H, W] and returns features [N, F].

    Attributes:
        trunk, head, prototypes: backbone, projection head and prototypes, as pre-trained; the last two are None where a file
            has none.
        name: the weight source, as the user gave it.
        prototype_sets: number of prototypes in each set.
        sha256: of the backbone's tensors, names and bytes.
        mean, std: of the normalisation, for RGB in 0..1.
        in_channels: C, 3 or 1.
        size: side of images that the network was made for [pixels].
        decoding: how the stored values of the images became RGB that it was trained on.
        settings: what built the network, for results; of a run's weights also the epochs behind them and the batch, of
            others where the user says them.
        provenance: what was found in another project's file, as text; empty for our own.
        num_features: F.
        stage_names, stage_channels: of the maps that `stages` gives; empty where the backbone has no stages.
    """

    def __init__(self, network: SwavNetwork, recipe: Recipe, name: str, foreign: ForeignWeights | None = None):
        super().__init__()
        self.trunk = network.trunk
        self.head = network.projection_head if foreign is None or foreign.has_head else None
        self.prototypes = network.prototypes if foreign is None or foreign.has_prototypes else None
        sets = foreign is None and not recipe.left_at_auto("prototypes")
        self.prototype_sets = recipe.prototype_sets if sets else (len(network.prototypes.weight),)
        self.provenance = foreign.provenance if foreign is not None else ""
        self.name, self.sha256 = name, weights_sha256(network.trunk)
        self.mean, self.std, self.size = recipe.mean, recipe.std, recipe.resolution
        self.in_channels, self.decoding = recipe.in_channels, decoding_of(recipe)
        self.settings: dict[str, Any] = {
            key: getattr(recipe, key) for key in ("backbone", "width", "stem", "in_channels", "mean", "std", "seed")
        } | (foreign.settings if foreign is not None else {})
        self.num_features: int = network.num_features
        self.stage_names: list[str] = list(getattr(network.trunk, "stage_names", ()))
        self.stage_channels: list[int] = list(getattr(network.trunk, "stage_channels", ()))
        self.eval()

    @property
    def architecture(self) -> dict[str, Any]:
        """Settings that change features but not tensor shapes (stems may differ only in stride)."""
        relevant = ("backbone", "width", "stem", "in_channels", "padding", "response")
        return {key: self.settings[key] for key in relevant if key in self.settings}

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        """Features of normalised images.

        Raises:
            ValueError: images of another shape or type.
        """
        self._check(images)
        return self.trunk(images)  # type: ignore[no-any-return]

    def stages(self, images: Float[Tensor, "N C H W"]) -> list[Tensor]:
        """Feature maps: of a ResNet feature1 (after the stem, before max-pool) and feature2..5 (layer1..4); of a timm model
        those of its own stages or blocks.

        Raises:
            ValueError: images of another shape or type.
            ConfigError: the backbone has none.
        """
        self._check(images)
        if not self.stage_channels:
            raise ConfigError(
                f"{self.name}: expected a backbone with stages, found {self.settings['backbone']}, which has none"
            )
        return self.trunk.stages(images)  # type: ignore[operator, no-any-return]

    def preprocess(
        self, image: str | Path | Image.Image | UInt8[np.ndarray, "H W 3"], size: int | None = None
    ) -> Float[Tensor, "C S S"]:
        """Make an image ready for the network: the view that benchmarks compute features of, normalised.

        The short side is resized to 256/224 of `size`, the central square is cut, and the values are normalised. Values of more
        than 8 bits and alpha are read as for the images that the network was trained on (`decoding`).

        Args:
            image: a file, a PIL image of any mode (turned as its EXIF says), or RGB values 0..255 of type uint8 [H, W, 3].
            size: side of the view [pixels]; None: the network's own.

        Raises:
            DataError: a file or a PIL image cannot be read.
            ValueError: an array of another shape or type.
        """
        view = torch.from_numpy(val_view(as_pixels(image, self.decoding), size or self.size))
        return to_input(view[None], self.mean, self.std, self.in_channels)[0]

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_channels or not images.is_floating_point():
            raise ValueError(
                f"images: expected normalised floats [N, {self.in_channels}, H, W], found "
                f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}; "
                "make them with torch.stack([encoder.preprocess(image) for image in images])"
            )


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over a module's tensors: sorted names, shapes, and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load(weights: str | Path, **options: object) -> Encoder:
    """Build the encoder that a weight source names.

    Args:
        weights: the source.
        options: what another project's file does not say, as `model="resnet50"`; see config.WeightOptions.

    Raises:
        ConfigError: the source is none of the known kinds, or an option is unknown or has no use for it.
        CheckpointError: no checkpoint in it verifies, or its tensors do not fit the network.
    """
    source = expanded(str(weights))
    wanted = validated(WeightOptions, options, "weights")
    if is_foreign(source):
        return _of_another_project(source, wanted)
    if given := [key for key, value in wanted if value is not None]:
        raise ConfigError(f"{given[0]}: is for other projects' weight files; {source} says itself what it is")
    if source.startswith(RANDOM):
        recipe = random_recipe(source.removeprefix(RANDOM))
        check_backbone(recipe.backbone, [])
        return _frozen(Encoder(build_network(recipe), recipe, source))
    if is_export(source):
        return _frozen(_exported(source))
    path = _checkpoint_folder(source)
    saved = checkpoint.read(path)
    checkpoint.require_of_pretraining(saved)
    recipe = stored(saved.state["recipe"], f"{path.name}/state.json")
    network = build_network(recipe)
    require_same_form(f"{path}/model.safetensors", saved.model, network.state_dict())
    require_sound(f"{path}/model.safetensors", saved.model)
    network.load_state_dict(saved.model)
    with torch.no_grad():  # saved a step away from unit norm, see algorithm.normalize_prototypes_
        network.prototypes.weight.copy_(nn.functional.normalize(network.prototypes.weight, dim=1))
    encoder = Encoder(network, recipe, source)
    seen = saved.state["step"] // (saved.state["num_images"] // recipe.batch)  # whole epochs so far
    encoder.settings |= {"epochs": seen, "batch": recipe.batch}
    return _frozen(encoder)


def of_module(module: nn.Module, name: str, size: int, options: Mapping[str, Any]) -> Encoder:
    """Build the encoder of a module in memory, or of an Encoder that has been changed since it was loaded, from a copy of it.

    Args:
        module: from normalised images [N, 3, S, S] to features [N, F]. With `stages(images)` beside it, `stage_names` and
            `stage_channels`, it has stages.
        name: the weight source, in results.
        size: S [pixels].
        options: `mean` and `std`, where they are not ImageNet's usual ones; `pretrain_epochs` and `pretrain_batch`, for tables.

    Raises:
        ConfigError: an option that it has no use for, or a module that cannot be copied or gives something else.
    """
    wanted = validated(WeightOptions, options, "weights")
    takes = () if isinstance(module, Encoder) else ("mean", "std", "pretrain_epochs", "pretrain_batch")
    if idle := [key for key, value in wanted if value is not None and key not in takes]:
        kind = (
            "an Encoder, which says itself what it is"
            if isinstance(module, Encoder)
            else "a module; give mean= or std="
        )
        raise ConfigError(f"{idle[0]}: is for other projects' weight files; {name} is {kind}")
    try:
        own = copy.deepcopy(module).cpu().requires_grad_(False).eval()
    except Exception as error:  # a module may hold anything
        raise ConfigError(f"{name}: expected a module that can be copied, found {reason_of(error)}") from error
    if isinstance(own, Encoder):
        own.name, own.sha256 = name, weights_sha256(own.trunk)
        return own
    own = in_channels_last(own)
    num_features, response = dist.on_rank0(lambda: _response(own, name, size))
    mean, std = wanted.mean or MEAN, wanted.std or STD
    recipe = load_recipe("default", {"mean": mean, "std": std, "eval_size": size})
    network = SwavNetwork(own, hidden=1, dim=1, prototypes=1, num_features=num_features)
    encoder = Encoder(network, recipe, name, ForeignWeights(network, recipe, False, False, {}, provenance=""))
    encoder.settings = {"backbone": type(module).__qualname__, "response": response} | {
        key: encoder.settings[key] for key in ("in_channels", "mean", "std")
    }
    encoder.settings |= _pretraining(wanted)
    return _frozen(encoder)


def _pretraining(options: WeightOptions) -> dict[str, int]:
    """Length and batch of the pre-training, as far as the user says them, by their names in results."""
    said = {"epochs": options.pretrain_epochs, "batch": options.pretrain_batch}
    return {key: value for key, value in said.items() if value is not None}


def _response(module: nn.Module, name: str, size: int) -> tuple[int, list[str]]:
    """F, and a few digits of what a module makes of noise: two that share their tensors may differ in what they compute.

    The digits are few, so that another number of threads changes none of them.
    """
    expected = f"{name}: expected a module that maps images [N, 3, {size}, {size}] to features [N, F]"
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    try:
        with torch.no_grad():
            features = module(images)
    except Exception as error:
        raise ConfigError(f"{expected}, it fails ({reason_of(error)}); check it, or use another size") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2 or features.dtype != torch.float32:
        found = type(features).__name__
        if isinstance(features, Tensor):
            found = f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)} of two images"
        raise ConfigError(
            f"{expected}, found {found}; wrap it, as Sequential(module, AdaptiveAvgPool2d(1), Flatten()) does maps"
        )
    directions = torch.randn(features.shape[1], 4, generator=generator, dtype=torch.float64)
    return features.shape[1], [f"{value:.2e}" for value in (features.double() @ directions).flatten().tolist()]


def _exported(source: str) -> Encoder:
    """A backbone that a run exported (export.py); the file describes it."""
    found = read_description(Path(source)) or {}
    if found["format"] != FORMAT:
        raise CheckpointError(
            f"{source}: expected an export of format {FORMAT}, found {found['format']}, of a newer swav; use that one"
        )
    keys = ("backbone", "width", "stem", "in_channels", "mean", "std", "seed")
    said = {key: found[key] for key in keys} | {key: found[key] for key in DECODING if key in found}
    recipe = load_recipe("default", said | {"eval_size": found["size"]})
    trunk = build_network(recipe, prototypes=1).trunk
    file = open_weights(Path(source))
    model = trunk.get_submodule("model") if is_timms(found) else trunk
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shapes != {name: stored.shape for name, stored in file.tree.items()}:
        raise CheckpointError(
            f"{source}: its tensors do not fit the {recipe.backbone} that it describes; export it again"
        )
    tensors = file.tensors(file.tree)
    require_same_form(source, tensors, model.state_dict())
    require_sound(source, tensors)
    model.load_state_dict(tensors)
    network = SwavNetwork(trunk, hidden=1, dim=1, prototypes=1)
    seen = {"epochs": found["epochs"], "batch": found["batch"]}
    return Encoder(network, recipe, source, ForeignWeights(network, recipe, False, False, seen, provenance=""))


def _of_another_project(source: str, options: WeightOptions) -> Encoder:
    path, name = Path(source), None
    if source.startswith("timm:"):
        name = source.removeprefix("timm:")
        path = cached_timm_file(name)
        architecture = name.partition(".")[0]
        options = options.model_copy(update={"model": architecture if architecture in BACKBONES else source})
    foreign = load_foreign(path, options, pretrained=name)
    encoder = Encoder(foreign.network, foreign.recipe, source, foreign)
    encoder.settings |= _pretraining(options)
    return _frozen(encoder)


def _frozen(encoder: Encoder) -> Encoder:
    return encoder.requires_grad_(False)


def _checkpoint_folder(source: str) -> Path:
    folder, best = run_or_checkpoint(source)
    if is_checkpoint(folder, best):
        return folder
    newest = checkpoint.newest(folder / CHECKPOINTS)
    if newest is None:
        raise CheckpointError(f"{folder}: the run has saved no checkpoint yet; let it run, or use random:{folder}")
    if not best:
        return newest
    step = checkpoint.read_state(newest).get("best_step")
    if step is None:
        raise ConfigError(f"{folder}@best: expected a run that was scored while training, found no score; use {folder}")
    return newest.with_name(f"step_{step:08d}")
