"""The trained backbone for other programs: at the end of a run OUT/export holds files that need nothing of swav.

A ResNet that is torchvision's goes by torchvision's names, a model of timm's by timm's. Of any other ResNet the code goes
beside the weights: it is the text of resnet.py, which needs torch alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from swav import checkpoint
from swav.config import TIMM
from swav.data.sources.pixels import AS_STORED, decoding_of
from swav.errors import CheckpointError, MachineError
from swav.files import CHECKPOINTS, remove_leftovers, replaced_durably, warn, write_text_durably
from swav.network import resnet
from swav.network.backbone import timm_options
from swav.recipe_files import stored
from swav.weights.exported import (
    CARD,
    CODE,
    FOLDER,
    FORMAT,
    WEIGHTS,
    card,
    fits_torchvision,
    is_timms,
    metadata,
    read_description,
)


def export_missing(out: Path, step: int, best: bool = False) -> dict[str, Any] | None:
    """Export the weights of a run's last checkpoint, unless that is done.

    Args:
        out: the run's folder.
        step: that of the checkpoint.
        best: of the best checkpoint instead, as the last one says.

    Returns:
        Their description (see swav.weights.exported); None if nothing was missing.

    Raises:
        CheckpointError: the checkpoint is damaged.
        MachineError: the files cannot be written.
    """
    folder = out / FOLDER
    there = read_description(folder / WEIGHTS)
    if there is not None and there["format"] != FORMAT:
        warn(f"{folder / WEIGHTS}: of format {there['format']}, of a newer swav; left as it is")
        return None
    if (
        there is not None
        and there["step"] == step
        and _is_whole(folder / WEIGHTS)
        and (_needs_no_code(there) or (folder / CODE).is_file())
    ):
        return None
    return export_backbone(out, best)


def export_backbone(out: Path, best: bool = False) -> dict[str, Any]:
    """Export the weights of a run's newest verified checkpoint, or of the best. Files of an earlier export are replaced.

    Only for the holder of the run's lock.

    Returns, Raises: as export_missing.
    """
    path = _source(out, best)
    description = _description(path)
    folder = out / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS, CODE, CARD):
            remove_leftovers(folder / name)
        write_text_durably(folder / CARD, card(description))
        if not _needs_no_code(description):
            write_text_durably(folder / CODE, code(description))
        with replaced_durably(folder / WEIGHTS) as beside:
            _write(_trunk(path, description), description, beside)
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"{folder}: cannot be written ({error})\nthe checkpoint of step {description['step']} is saved: make room, and "
            "rerun the same command to write the files"
        ) from error
    return description


def _source(out: Path, best: bool) -> Path:
    path = checkpoint.newest(out / CHECKPOINTS)
    if path is None:
        raise CheckpointError(f"{out}: the run has saved no checkpoint yet; let it run")
    step = checkpoint.read_state(path).get("best_step") if best else None
    return path if step is None else path.with_name(f"step_{step:08d}")


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):  # compares the file's length with what its header says
            return True
    except (OSError, SafetensorError):
        return False


def code(description: Mapping[str, Any]) -> str:
    """The text of backbone.py: our ResNet, and `load`, which knows what it was built with."""
    block, layers = resnet.DEPTHS[description["backbone"]]
    options = "".join(f", {key}={description[key]!r}" for key in ("width", "stem", "in_channels"))
    return (
        "# From swav, licensed under Apache-2.0.\n"
        + Path(resnet.__file__).read_text(encoding="utf-8")
        + f'''

def load(path: str | Path = Path(__file__).with_name({WEIGHTS!r})) -> ResNet:
    """The trained network in eval mode: normalised images [N, {description["in_channels"]}, H, W] to features [N, F]."""
    return load_resnet(path, {block!r}, {layers!r}{options})
'''
    )


def _needs_no_code(description: Mapping[str, Any]) -> bool:
    return fits_torchvision(description) or is_timms(description)


def _description(path: Path) -> dict[str, Any]:
    """The settings behind a checkpoint's backbone; nothing that differs between runs with the same weights."""
    state = checkpoint.read_state(path)
    recipe = stored(state["recipe"], f"{path.name}/state.json")
    keys = ("backbone", "width", "stem", "in_channels", "mean", "std", "seed", "batch")
    description = {key: getattr(recipe, key) for key in keys} | {
        "size": recipe.resolution,
        "step": state["step"],
        "best_step": state.get("best_step"),
        "epochs": state["step"] // (state["num_images"] // recipe.batch),  # whole ones
    }
    description |= {
        key: value for key, value in decoding_of(recipe)._asdict().items() if value != getattr(AS_STORED, key)
    }
    if is_timms(description):
        description["timm_options"] = timm_options(recipe.backbone.removeprefix(TIMM), recipe.in_channels)
    return description


def _trunk(path: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors, by the names of whoever is to load them."""
    prefix = "trunk.model." if is_timms(description) else "trunk."
    with safe_open(path / "model.safetensors", framework="pt") as content:
        names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118  # it is no mapping
        return {name.removeprefix(prefix): content.get_tensor(name) for name in names}


def _write(tensors: Mapping[str, Tensor], description: Mapping[str, Any], path: Path) -> None:
    """Write a file and read it back. The same weights are the same bytes: there is no time and no path in it."""
    save_file(dict(tensors), path, metadata(description))
    again = load_file(path)
    if again.keys() != tensors.keys() or not all(_same_bits(again[name], tensor) for name, tensor in tensors.items()):
        raise OSError(f"{path.name} was read back with other values")
    if read_description(path) is None:
        raise OSError(f"{path.name} was read back without its description")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same_form = one.dtype == other.dtype and one.shape == other.shape
    return same_form and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
