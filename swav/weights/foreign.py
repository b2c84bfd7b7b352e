"""Other projects' weights in a network of ours: the whole backbone or none; head and prototypes where they are there and fit.

What a file holds is found by key_layouts.py; this file says what it found, fills the network, and lets the user say what
the file does not (config.WeightOptions).
"""

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from swav.config import TIMM, Recipe, WeightOptions
from swav.errors import CheckpointError, ConfigError, did_you_mean
from swav.network.backbone import BACKBONES, in_channels_last
from swav.network.heads import SwavNetwork
from swav.recipe_files import load_recipe
from swav.tensors import require_sound, some
from swav.weights.containers import WeightFile, open_weights
from swav.weights.fits import Fit, Model, Shape, Tensors
from swav.weights.key_layouts import (
    STD,
    KeyLayout,
    Triple,
    find_trunk,
    head_places,
    layout_of,
    prototype_places,
)
from swav.weights.pickle_vm import shown
from swav.weights.state_dicts import averages_beside, tensors_by_name, unwrapped_name
from swav.weights.transformers import (
    Transformer,
    channels_of_images,
    classifier_names,
    converted,
    file_shapes,
    image_size,
    takes_any_size,
    timm_model,
    transformers,
    with_timms_names,
)

MEAN: Triple = (0.485, 0.456, 0.406)


@dataclasses.dataclass
class ForeignWeights:
    """Another project's weights.

    Attributes:
        network: with the file's trunk. What the file has no head or prototypes for is fresh, and not to be used.
        recipe: settings that describe it: backbone, width, stem, normalisation of RGB.
        has_head, has_prototypes: whether they came from the file.
        settings: what was found, for results.
        provenance: what was found, as text.
    """

    network: SwavNetwork
    recipe: Recipe
    has_head: bool
    has_prototypes: bool
    settings: dict[str, Any]
    provenance: str


def load_foreign(path: Path, options: WeightOptions, pretrained: str | None = None) -> ForeignWeights:
    """Read another project's weights into a network of ours. Nothing in the file is run.

    Args:
        path: of the file.
        options: what the file doesn't say, or says wrongly.
        pretrained: the name of timm's pre-trained weights that the file holds, which says how images are normalised.

    Raises:
        ConfigError: `model` is unknown or cannot be made.
        CheckpointError: the file is damaged, or the whole backbone of one known network is not in it.
    """
    file = open_weights(path)
    prefix = None if options.prefix is None else unwrapped_name(options.prefix)
    taken = tensors_by_name(file, prefix)
    if prefix and not prefix.endswith(".") and any(name.startswith(f"{prefix}.") for name in taken):
        prefix += "."  # messages may end with it, and a person takes it for the full stop
    tensors = with_timms_names(taken)
    known = _known_transformer(tensors, prefix, file.tree) if options.model is None else None
    if known is not None:
        options = options.model_copy(update={"model": f"{TIMM}{known.timm_name}"})
        prefix = known.prefix
    fit = find_trunk(path, tensors, _models(options, tensors, prefix), prefix, file.tree)
    layout = layout_of(fit.prefix, tensors, file.tree)
    mean, std, source = _normalisation(path, layout, options, pretrained)
    settings = fit.model.settings
    recipe = load_recipe("default").model_copy(update={**settings, "mean": mean, "std": std})
    if recipe.stem == "small":
        recipe = recipe.model_copy(update={"eval_size": 32})
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn on the way, and written over
        trunk = fit.model.trunk or BACKBONES[recipe.backbone](
            width=recipe.width, stem=recipe.stem, in_channels=recipe.in_channels
        )
        parts = _parts(tensors, layout, int(trunk.num_features))  # type: ignore[arg-type]
        network = SwavNetwork(trunk, parts.hidden, parts.dim, parts.count)
    lengths = _fill(network, file, tensors, fit, parts)
    network = cast(SwavNetwork, in_channels_last(network))
    padding = layout.padding if recipe.stem == "small" else 0
    if padding:
        trunk.get_submodule("conv1").padding = (padding, padding)  # type: ignore[assignment]
    channels = options.channels or "rgb"
    if channels == "bgr" and recipe.in_channels != 3:
        raise ConfigError(f"channels=bgr: expected a network for colour images, found one for grey ones in {path}")
    if channels == "bgr":
        recipe = recipe.model_copy(update={"mean": mean[::-1], "std": std[::-1]})
        _take_rgb(network.trunk)
    found = {
        "backbone": fit.model.name,
        "layout": layout.name,
        "prefix": fit.prefix,
        "channels": channels,
        "normalisation": source,
    } | ({"padding": padding} if padding else {})
    provenance = _story(path, tensors, fit, layout, parts, lengths)
    if known is not None:
        provenance += f"\n{path}: taken for {fit.model.name} by its shapes ({known}), as {layout.name} builds it; model= says otherwise"
    if beside := averages_beside(file, taken, [name.removeprefix(fit.prefix) for name in fit.places.values()]):
        provenance += f"\n{path}: a copy averaged over the training is there too: prefix={shown(beside)} takes it"
    seen = f"channels {channels}" if recipe.in_channels == 3 else "of which the network sees the luma"
    provenance += f"\n{path}: images normalised by mean {list(mean)}, std {list(std)}, {seen} ({source})"
    return ForeignWeights(network, recipe, bool(parts.head), bool(parts.prototypes), found, provenance)


# -- what it may be


def _known_transformer(tensors: Tensors, prefix: str | None, tree: Any) -> Transformer | None:
    """Return the only transformer of a file whose layout tells which project built it, else None: no tensor shows the number of heads."""
    found = [one for one in transformers(tensors) if prefix is None or one.prefix == prefix]
    students = {"student.backbone.", "student.module.backbone."}  # of DINO, where they are asked for
    known = [
        one
        for one in found
        if one.timm_name and (layout_of(one.prefix, tensors, tree).name in ("DINO", "DINOv2") or prefix in students)
    ]
    return known[0] if len(known) == 1 else None


def _models(options: WeightOptions, tensors: Tensors, prefix: str | None) -> Callable[[Shape | None], Sequence[Model]]:
    if options.model is not None and ":" in options.model:
        model = _made(options.model, tensors, prefix)
        return lambda _: [model]
    if options.model is not None and options.model not in BACKBONES:
        raise ConfigError(
            f"model={options.model}: expected {', '.join(BACKBONES)}, module:function or timm:NAME"
            f"{did_you_mean(options.model, BACKBONES)}"
        )
    names = [options.model] if options.model else list(BACKBONES)

    def models(first: Shape | None) -> list[Model]:
        usual = first is None or len(first) != 4 or not 0 < first[0] <= 64 * 64
        base, channels, kernel = (64, 3, 7) if usual else (first[0], first[1], first[-1])  # type: ignore[index]
        # 3x3 is what everyone has on small images, with stride 1 and no max-pool.
        stem = options.stem or ("imagenet" if kernel == 7 else "small")
        return [_backbone(name, base, stem, 1 if channels == 1 else 3) for name in names]

    return models


@functools.cache
def _backbone(name: str, base: int, stem: str, in_channels: int) -> Model:
    """One of ours, with `base` channels in its first convolution."""
    with torch.device("meta"):
        trunk = BACKBONES[name](width=base / 64, stem=stem, in_channels=in_channels)
    settings = {"backbone": name, "width": base / 64, "stem": stem, "in_channels": in_channels}
    return Model(name, _shapes(trunk), settings)


def _made(name: str, tensors: Tensors, prefix: str | None) -> Model:
    """What the user's module:function returns: images [N, C, H, W] to features [N, F]."""
    module, _, function = name.partition(":")
    classifier = frozenset[str]()
    try:
        if module == "timm":
            trunk, size = timm_model(function, tensors, prefix)
            classifier = classifier_names(function)
        else:
            trunk = getattr(importlib.import_module(module), function)()
            size = getattr(trunk, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]  # timm's models say it
        channels = channels_of_images(trunk)
        with torch.no_grad():
            features = trunk.eval()(torch.zeros(1, channels, size, size))
    except Exception as error:  # it is not our code
        raise ConfigError(f"model={name}: cannot be made ({type(error).__name__}: {error})") from None
    if not isinstance(trunk, nn.Module) or not isinstance(features, Tensor) or features.ndim != 2:
        raise ConfigError(f"model={name}: expected a module whose output is features [N, F]; found another")
    setattr(trunk, "num_features", features.shape[1])  # noqa: B010  # a module takes any attribute, whatever its stubs say
    note = ""
    if takes_any_size(trunk):
        note = f"positions for {size} pixels, interpolated at other sizes"
        size = image_size(size, trunk.patch_embed.patch_size[0])  # type: ignore[union-attr, index, arg-type]
    settings = {"eval_size": size, "in_channels": channels}
    return Model(name, file_shapes(trunk, tensors), settings, trunk, note, classifier)


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def cached_timm_file(name: str) -> Path:
    """The file of a timm model's pre-trained weights on this machine. Nothing is fetched.

    Raises:
        ConfigError: timm knows no such model.
        CheckpointError: its weights are not here, or there are none.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not timm.is_model(name):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise ConfigError(f"timm:{name}: timm {timm.__version__} has no such model{near}")
    config = timm.get_pretrained_cfg(name)
    places = []
    if config is not None and config.hf_hub_id:
        for file in ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(config.hf_hub_id, config.hf_hub_filename or file)
            if isinstance(found, str):
                return Path(found)
        places.append(f"{config.hf_hub_id} in the Hugging Face cache")
    if config is not None and isinstance(config.url, str) and config.url:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name
        if path.is_file():
            return path
        places.append(str(path))
    raise CheckpointError(
        f"timm:{name}: expected its weights on this machine, found none ({' or '.join(places) or 'none are published'}); "
        "nothing is fetched here: get the file, or use random:NAME"
    )


# -- how its images were made


def _normalisation(
    path: Path, layout: KeyLayout, options: WeightOptions, pretrained: str | None
) -> tuple[Triple, Triple, str]:
    """Mean and std in the file's order of channels, and where they come from."""
    mean, std = MEAN, layout.std or STD
    source = f"as {layout.name} does" if layout.std else "assumed: the file does not say; mean=, std= and channels= do"
    if pretrained is not None:
        import timm

        config = timm.get_pretrained_cfg(pretrained)
        if config is not None:
            given = WeightOptions.model_validate({"mean": config.mean, "std": config.std})
            mean, std, source = given.mean or mean, given.std or std, f"as timm says of {pretrained}"
    beside = path.with_name("config.json")  # timm's, in the cache and in exports
    if path.suffix == ".safetensors" and beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))["pretrained_cfg"]
            given = WeightOptions.model_validate({"mean": config["mean"], "std": config["std"]})
            assert given.mean is not None and given.std is not None
            mean, std, source = given.mean, given.std, "as its config.json says"
        except (OSError, ValueError, KeyError, TypeError):
            pass  # another config.json: it says nothing of this
    if layout.name == "MMSelfSup 0.x":
        source += "; files made before its version 0.7 saw BGR: channels=bgr"
    if options.mean or options.std or options.channels:
        source = "as asked for"
    return options.mean or mean, options.std or std, source


def _take_rgb(trunk: nn.Module) -> None:
    """Turn a network for BGR into the same one for RGB: the first convolution's weights change places."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            with torch.no_grad():
                module.weight.copy_(module.weight.flip(1))
            return


# -- what is taken


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Names in the file, of the head by ours, and of the prototypes; and the head's sizes."""

    head: dict[str, str]
    prototypes: tuple[str, ...]
    hidden: int
    dim: int
    count: int


def _parts(tensors: Tensors, layout: KeyLayout, features: int) -> _Parts:
    head = head_places(tensors, layout, features)
    if not head:
        return _Parts({}, (), 1, 1, 1)
    hidden, dim = tensors[head["0.weight"]].shape[0], tensors[head["3.weight"]].shape[0]
    prototypes = prototype_places(tensors, layout, dim)
    return _Parts(head, prototypes, hidden, dim, tensors[prototypes[-1]].shape[0] if prototypes else 1)


def _fill(network: SwavNetwork, file: WeightFile, tensors: Tensors, fit: Fit, parts: _Parts) -> tuple[float, float]:
    """Put the file's tensors in place; return the lengths of the shortest and longest prototype in the file."""
    places = {f"trunk.{key}": name for key, name in fit.places.items()}
    places |= {f"projection_head.{key}": name for key, name in parts.head.items()}
    read = file.tensors({key: tensors[name] for key, name in places.items()})
    if parts.head:
        read.setdefault("projection_head.0.bias", torch.zeros(parts.hidden))  # lightly has none before a BatchNorm
    if parts.prototypes:
        *magnitude, weight = file.tensors({name: tensors[name] for name in parts.prototypes}).values()
        if magnitude:  # weight-normalised
            weight = magnitude[0].reshape(-1, 1) * nn.functional.normalize(weight, dim=1)
        read["prototypes.weight"] = weight.float()
    read = converted(network.trunk, read, "trunk.")
    own = network.state_dict()
    if whole := [key for key, value in read.items() if own[key].is_floating_point() and not value.is_floating_point()]:
        raise CheckpointError(
            f"{file.path}: expected floating-point weights, found {str(read[whole[0]].dtype).removeprefix('torch.')} in "
            f"{some(whole)}; quantised weights are not read: save them as float32"
        )
    for key, value in read.items():
        own[key].copy_(value)
    # After the copy: float32 has no place for a 1e300 of float64.
    require_sound(f"{file.path}, as float32", {key: own[key] for key in read})
    lengths = network.prototypes.weight.detach().norm(dim=1)
    require_sound(f"{file.path}, as float32", {"lengths of the prototypes": lengths})
    own["prototypes.weight"].copy_(nn.functional.normalize(own["prototypes.weight"], dim=1))
    return float(lengths.min()), float(lengths.max())


def _story(
    path: Path, tensors: Tensors, fit: Fit, layout: KeyLayout, parts: _Parts, lengths: tuple[float, float]
) -> str:
    settings = fit.model.settings
    kind = fit.model.name
    if settings.get("width", 1) != 1:
        kind += f" width {settings['width']:g}"
    if settings.get("in_channels", 3) == 1:
        kind += " on grey images"
    if settings.get("stem", "imagenet") != "imagenet":
        kind += f" stem {settings['stem']}" + (f" padded by {layout.padding}" if layout.padding != 1 else "")
    numbered = ", children by number" if fit.numbered else ""
    words = [f"{path}: {layout.name}: {kind}, all {len(fit.places)} backbone keys at '{shown(fit.prefix)}'{numbered}"]
    words.append(f"head to {parts.hidden} to {parts.dim}" if parts.head else "no head that fits")
    words.append(f"{parts.count} prototypes" if parts.prototypes else "no prototypes that fit")
    words += [fit.model.note] if fit.model.note else []
    if parts.prototypes and f"{layout.prototypes}bias" in tensors:
        words[-1] += " (their biases left out: SwAV's have none)"
    if parts.prototypes and max(abs(length - 1) for length in lengths) > 0.01:
        words[-1] += f" (their lengths, {lengths[0]:.2g} to {lengths[1]:.2g}, left out: SwAV's are 1)"
    if "teacher" in layout.trunk and layout.name.startswith("DINO"):
        key = next(iter(fit.places.values())).removeprefix(fit.prefix)
        students = [start for name in tensors if (start := name.removesuffix(key)) != name and "student" in start]
        words.append(
            "the teacher's weights, as DINO scores them"
            + (f" (prefix={shown(students[0])} takes the student's)" if students else "")
        )
    used = {*fit.places.values(), *parts.head.values(), *parts.prototypes}
    rest = [shown(name) for name in tensors if name not in used]
    if rest:
        words.append(f"left over {', '.join(rest[:3])}{f' and {len(rest) - 3} more' if len(rest) > 3 else ''}")
    return "; ".join(words)
