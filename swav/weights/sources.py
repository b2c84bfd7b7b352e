"""What a weight source names, found without torch and without reading a weight; see encoder.py for the kinds.

A source that names nothing is refused here, before seconds go into the import of torch.
"""

import contextlib
from pathlib import Path
from typing import Literal

from swav.config import RANDOM as RANDOM
from swav.config import RESNETS, TIMM, Recipe
from swav.errors import CheckpointError, ConfigError, did_you_mean, printable
from swav.files import CHECKPOINTS, CONFIG, expand_home, is_run
from swav.recipe_files import load_recipe, recipe_names, stored
from swav.strict_yaml import read_yaml
from swav.weights.exported import read_description
from swav.weights.file_kinds import what_it_is


def expanded(source: str) -> str:
    """A source whose path may begin with ~, the user's home."""
    if source.startswith(f"{RANDOM}~"):
        return RANDOM + expand_home(source.removeprefix(RANDOM))
    return expand_home(source) if source.startswith("~") else source


def check_source(source: str) -> None:
    """Refuse a source that names nothing. (Whether timm has a model is not asked: timm imports torch.)

    Raises:
        ConfigError: it is none of the known kinds, or nothing is there.
        CheckpointError: it is a file of no known format.
    """
    source = expanded(source)
    if is_foreign(source) and not source.startswith("timm:"):
        format_of(Path(source))
        return
    if is_foreign(source) or is_export(source):
        return
    if source.startswith(RANDOM):
        random_recipe(source.removeprefix(RANDOM))
    else:
        run_or_checkpoint(source)


def format_of(path: Path) -> Literal["zip", "safetensors", "pickle"]:
    """The format of a weight file, by how it begins: torch's zip, safetensors, or torch's pickles of versions before 1.6.

    Raises:
        CheckpointError: it is of none of them, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if start[:4] == b"PK\x03\x04":
        return "zip"
    if start[8:9] == b"{":  # before pickles: the length of a header may begin as they do
        return "safetensors"
    if start[:1] == b"\x80":
        return "pickle"
    raise CheckpointError(
        f"{path}: expected weights (a file of torch.save, or safetensors), found {what_it_is(path, start)}"
    )


def is_foreign(source: str) -> bool:
    """Whether a source is not ours: a file (but for those of our checkpoints and exports), or timm's."""
    source = expanded(source)
    if source.startswith("timm:"):
        return True
    return Path(source).is_file() and not _of_a_checkpoint(source) and not is_export(source)


def is_weights(source: str) -> bool:
    """Whether a path holds weights, by what is there: a run, a checkpoint, or a file of a known format."""
    path = Path(source)
    if path.is_file():
        with contextlib.suppress(CheckpointError):
            return bool(format_of(path))
        return False
    return is_run(path) or is_checkpoint(path, best=False)


def is_export(source: str) -> bool:
    """Whether a source is a file that a run exported, which holds its own description."""
    return read_description(Path(expanded(source))) is not None


def random_recipe(name: str) -> Recipe:
    """The settings behind random weights: of a backbone, a recipe, or a run folder.

    Raises:
        ConfigError: there is no such name.
    """
    if name in RESNETS or name.startswith(TIMM):
        return load_recipe("default", {"backbone": name})
    if is_run(Path(name)):
        text = (Path(name) / CONFIG).read_text(encoding="utf-8", errors="surrogateescape")
        return stored(read_yaml(text, f"{name}/{CONFIG}"), f"{name}/{CONFIG}")
    if name in recipe_names():
        recipe = load_recipe(name)
        if recipe.left_at_auto("backbone", "width", "stem", "in_channels", "head_hidden", "head_dim", "crops"):
            raise ConfigError(
                f"random:{name}: its network follows from images; name a backbone, another recipe or a run"
            )
        return recipe
    raise ConfigError(
        f"random:{name}: expected a backbone ({', '.join(RESNETS)}, {TIMM}NAME), a recipe or a run folder"
        f"{did_you_mean(name, [*RESNETS, *recipe_names()])}"
    )


def run_or_checkpoint(source: str) -> tuple[Path, bool]:
    """The folder of a run or of one checkpoint, and whether the run's best checkpoint is meant.

    Raises:
        ConfigError: there is neither.
    """
    name = source.removesuffix("@best")  # any other @ belongs to the path
    best = name != source
    folder = Path(source).parent if _of_a_checkpoint(source) and Path(source).is_file() else Path(name)
    if not is_checkpoint(folder, best) and not (folder / CHECKPOINTS).is_dir():
        wanted = (
            "a run folder"
            if best
            else "a run folder (RUN@best: its best), a checkpoint's folder, a weight file, random:NAME or timm:NAME"
        )
        raise ConfigError(f"weights '{printable(source)}': expected {wanted}, found {_what_is_there(source, folder)}")
    return folder, best


def _what_is_there(source: str, folder: Path) -> str:
    """What a source that is no weights' is instead, and which one was perhaps meant."""
    if folder.is_dir():
        return "a folder without checkpoints"
    if source in RESNETS or source in recipe_names():
        return f"no such file or folder; {RANDOM}{source} is this network with random weights"
    return "no such file or folder"


def is_checkpoint(folder: Path, best: bool) -> bool:
    """Whether a folder is one checkpoint's. (The best is one of a run's.)"""
    return (folder / "manifest.json").is_file() and not best


def _of_a_checkpoint(source: str) -> bool:
    return Path(source).with_name("manifest.json").is_file()
