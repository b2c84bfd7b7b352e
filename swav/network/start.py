"""Where a run starts from: `init=W` puts existing weights in the place of fresh ones, once, before the first step."""

from pathlib import Path

import torch
from torch import nn

from swav.config import Recipe
from swav.errors import ConfigError
from swav.network.encoder import Encoder, load
from swav.network.heads import SwavNetwork, build_network


def weights_to_start_from(recipe: Recipe, out: Path) -> Encoder | None:
    """Reads what `init` names, and finds out whether it fits; writes nothing.

    Args:
        recipe: settings; `auto` is not needed here.
        out: the run's folder.

    Returns:
        The weights; None without `init`, and where the run goes on from a checkpoint of its own. (Then nobody needs the
        file, and `resume` refuses another `init`, as any setting that shapes the weights.)

    Raises:
        ConfigError: there are no such weights, or they are of another trunk than the recipe's.
        CheckpointError: they cannot be read.
    """
    if recipe.init is None or any((out / "checkpoints").glob("step_*")):
        return None
    if recipe.init.startswith("random:"):
        raise ConfigError(f"init={recipe.init}: expected existing weights; fresh ones come from the seed, without init")
    start = load(recipe.init)
    with torch.device("meta"):
        expected = build_network(recipe).trunk
    if difference := _difference(start.trunk, expected):
        found = ", ".join(f"{key}={start.settings[key]}" for key in ("backbone", "width", "stem"))
        raise ConfigError(
            f"init={recipe.init}: expected the trunk of backbone={recipe.backbone}, width={recipe.width:g}, "
            f"found another ({found}; first difference at {difference}); set these keys to what the weights are of"
        )
    return start


def take_over(network: SwavNetwork, start: Encoder) -> str:
    """Puts weights in the place of fresh ones: the trunk, and head and prototypes if they are there and fit.

    Args:
        network: of a run before its first step.
        start: of `weights_to_start_from`.

    Returns:
        What came along, in words.
    """
    network.trunk.load_state_dict(start.trunk.state_dict())
    came, stayed = ["trunk"], []
    for name, theirs, ours in (
        ("head", start.head, network.projection_head),
        ("prototypes", start.prototypes, network.prototypes),
    ):
        if theirs is None or _difference(theirs, ours) or (name == "prototypes" and "head" not in came):
            why = (
                "none there"
                if theirs is None
                else "of another size"
                if _difference(theirs, ours)
                else "of another head"
            )
            stayed.append(f"fresh {name} ({why})")
        else:
            ours.load_state_dict(theirs.state_dict())
            came.append(name)
    return "; ".join([f"{start.name}: {', '.join(came)}", *stayed]) + (f"\n{start.story}" if start.story else "")


def _difference(one: nn.Module, other: nn.Module) -> str | None:
    """The first tensor of which two modules have different shapes."""
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in (one, other)]
    return next((name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)), None)
