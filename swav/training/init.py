"""Where a run starts from: `init=W` puts existing weights in the place of fresh ones, once, before the first step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swav import checkpoint
from swav.config import TIMM, Recipe
from swav.errors import ConfigError
from swav.files import CHECKPOINTS
from swav.network.backbone import TimmTrunk
from swav.network.heads import SwavNetwork, build_network
from swav.training.choices import StartWeights
from swav.weights.encoder import Encoder, load
from swav.weights.sources import is_foreign

_SHAPING = ("backbone", "width", "stem", "in_channels")  # the keys that make a backbone


def load_init_weights(recipe: Recipe, out: Path) -> Encoder | None:
    """Read what `init` names; write nothing.

    Args:
        recipe: settings.
        out: the run's folder.

    Returns:
        The weights; None without `init`, and where the run resumes from a checkpoint of its own. (Then nobody needs the
        file, and `resume` refuses another `init`, as any setting that shapes the weights.)

    Raises:
        ConfigError: there are no such weights.
        CheckpointError: they cannot be read.
    """
    if recipe.init is None or checkpoint.any_exist(out / CHECKPOINTS):
        return None
    if recipe.init.startswith("random:"):
        raise ConfigError(f"init={recipe.init}: expected existing weights; fresh ones come from the seed, without init")
    options: dict[str, object] = {}
    of_timm = not recipe.left_at_auto("backbone") and recipe.backbone.startswith(TIMM)
    if of_timm and is_foreign(recipe.init) and not recipe.init.startswith(TIMM):
        options = {"model": recipe.backbone}  # which network a file of timm's is of, only the recipe says
    return load(recipe.init, **options)


def facts_of(start: Encoder) -> StartWeights:
    """What `auto` is to know of weights that a run starts from."""
    settings = {key: start.settings[key] for key in _SHAPING if key in start.settings}
    if str(settings.get("backbone", "")).startswith(TIMM):
        settings["backbone"] = settings["backbone"].partition(".")[0]  # a tag names weights
        settings |= {key: Recipe.model_fields[key].default for key in ("width", "stem")}
    head = None
    if start.head is not None:
        widths = [layer for layer in start.head.modules() if isinstance(layer, nn.Linear)]
        head = widths[0].out_features, widths[-1].out_features
    return StartWeights(start.name, settings | {"mean": start.mean, "std": start.std}, start.size, head)


def require_fitting(start: Encoder, recipe: Recipe) -> None:
    """Refuse weights of another backbone than the recipe's, which is without `auto` here.

    Raises:
        ConfigError: they are.
    """
    with torch.device("meta"):
        expected = build_network(recipe).trunk
    found, wanted = _trunk_state(start, recipe), expected.state_dict()
    difference = _difference(found, wanted)
    if difference is not None and difference.endswith("pos_embed") and {difference} <= found.keys() & wanted.keys():
        raise ConfigError(
            f"init={recipe.init}: expected {wanted[difference].shape[1]} positions, as {recipe.backbone} has, found "
            f"{found[difference].shape[1]}, as for images of another size; such a file can be scored (--weights), not adapted"
        )
    if (
        difference is None and not start.provenance and start.settings["stem"] != recipe.stem
    ):  # of equal shapes: half, small
        difference = "the stem"
    if difference is not None:
        theirs = ", ".join(f"{key}={start.settings[key]}" for key in _SHAPING)
        ours = ", ".join(f"{key}={getattr(recipe, key)}" for key in _SHAPING)
        raise ConfigError(
            f"init={recipe.init}: expected the backbone of {ours}\n"
            f"found another ({theirs}; first difference at {difference}); set these keys to what the weights are of"
        )


def init_from(network: SwavNetwork, start: Encoder, recipe: Recipe) -> str:
    """Put weights in the place of fresh ones: the backbone, and head and prototypes if they are there and fit.

    Args:
        network: of a run before its first step.
        start: of `load_init_weights`.
        recipe: of the run.

    Returns:
        What came along, what did not, and where this run differs from how the weights were trained.
    """
    network.trunk.load_state_dict(_trunk_state(start, recipe))
    came, stayed = ["backbone"], []
    for name, theirs, ours in (
        ("head", start.head, network.projection_head),
        ("prototypes", start.prototypes, network.prototypes),
    ):
        why = None
        if theirs is None:
            why = "none there"
        elif _difference(theirs.state_dict(), ours.state_dict()):
            why = "of another size"
        elif name == "prototypes" and start.prototype_sets != recipe.prototype_sets:
            why = f"of other sets: {list(start.prototype_sets)}"
        elif name == "prototypes" and "head" not in came:
            why = "of another head"
        if theirs is None or why is not None:
            stayed.append(f"fresh {name} ({why})")
        else:
            ours.load_state_dict(theirs.state_dict())
            came.append(name)
    words = "; ".join([f"{start.name}: {', '.join(came)}", *stayed, *_otherwise(start, recipe)])
    return words + (f"\n{start.provenance}" if start.provenance else "")


def _otherwise(start: Encoder, recipe: Recipe) -> list[str]:
    """What the weights were used to that is otherwise in this run: it fits, and they must learn it anew."""
    here: dict[str, Any] = {"stem": recipe.stem, "mean": recipe.mean, "std": recipe.std, "padding": 1}
    there = start.settings | {"mean": start.mean, "std": start.std}
    differ = [key for key in here if key in there and there[key] != here[key]]
    if recipe.backbone.startswith(TIMM):
        differ = [key for key in differ if key != "stem"]
    return [
        f"note: weights were trained with {key}={_plain(there[key])}; this run uses {key}={_plain(here[key])}"
        for key in differ
    ]


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _trunk_state(start: Encoder, recipe: Recipe) -> dict[str, Tensor]:
    """The backbone's tensors by the names of the recipe's: a model of timm's is a part of ours."""
    bare = recipe.backbone.startswith(TIMM) and not isinstance(start.trunk, TimmTrunk)
    return {f"model.{name}" if bare else name: tensor for name, tensor in start.trunk.state_dict().items()}


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """The first tensor of which two modules' states have different shapes."""
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (one, other)]
    return next((name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)), None)
