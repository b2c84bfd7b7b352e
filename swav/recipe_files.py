"""Recipes: ready-made settings as YAML files; found, read, overridden by `key=value`, checked and printed.

Precedence: defaults, recipe, `key=value`. No torch here: `swav recipes` and every error about settings answer at once.
"""

import hashlib
import json
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swav.config import RENAMED, TOPICS, USUAL_NAMES, AnySettings, Recipe, Settings
from swav.errors import ConfigError, did_you_mean, printable
from swav.files import expand_home, visible
from swav.setting_errors import explain
from swav.strict_yaml import read_yaml

CHECKSUM = "# sha256 of all above: "
RECIPES_FOLDER = Path(__file__).parent / "recipes"

# What each recipe is for.
GROUPS = {
    "Your own images": ("auto",),
    "First looks, in seconds or minutes on a CPU": ("demo", "tiny", "tiny_vit", "imagenette"),
    "The original's, on ImageNet": (
        *("swav_100ep", "swav_200ep", "swav_400ep", "swav_800ep", "swav_400ep_2x224"),
        *("swav_200ep_bs256", "swav_400ep_bs256", "swav_RN50w2_400ep", "swav_RN50w4_400ep", "swav_RN50w5_400ep"),
    ),
    "Of other code bases and benchmarks": (
        *("resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96", "cifar10", "cifar100", "imagenet100"),
        *("imagenette_r18", "vit_small"),
    ),
    "Every default as it stands, to begin a file of your own": ("default",),
}


def recipe_names() -> list[str]:
    return [path.stem for path in visible(RECIPES_FOLDER, "*.yaml")]


def recipe_text(name: str) -> str:
    """Return a recipe's YAML, from its name or from a file.

    Raises:
        ConfigError: no such recipe.
    """
    path = Path(expand_home(name)) if name.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{name}.yaml"
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if path.suffix == Path(name).suffix and not isinstance(error, FileNotFoundError):
            raise ConfigError(f"recipe '{printable(name)}': cannot be read ({printable(str(error))})") from None
        if path.suffix == Path(name).suffix and path.suffix:
            raise ConfigError(f"recipe '{printable(name)}': no such file") from None
        raise ConfigError(
            f"unknown recipe '{printable(name)}'{did_you_mean(name, recipe_names())}; `swav recipes` lists them, and a .yaml file is one"
        ) from None


def list_recipes(width: int = 100) -> str:
    """All recipes, grouped by what they are for, each with the first line of its file."""
    lines: list[str] = []
    for purpose, names in GROUPS.items():
        lines += ["", f"{purpose}:"] if lines else [f"{purpose}:"]
        for name in names:
            summary = recipe_text(name).splitlines()[0].removeprefix("# ")
            head = f"  {name:<20}  "
            if len(head) > 24:
                lines, head = [*lines, head.rstrip()], " " * 24
            lines += textwrap.wrap(summary, width, initial_indent=head, subsequent_indent=" " * 24)
    return "\n".join([*lines, "", "`swav recipes NAME` prints one with every setting and its meaning"])


def describe_recipe(name: str) -> str:
    """A recipe with every setting, by topic: YAML that can be edited and given in the recipe's place."""
    values = load_recipe(name).model_dump(mode="json")
    lines = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    for topic, keys in TOPICS.items():
        lines += ["", f"# -- {topic}"]
        lines += [f"{key}: {json.dumps(values[key]):<40} # {Recipe.model_fields[key].description}" for key in keys]
    return "\n".join(lines)


AS_TYPED = ("data", "init", "samples", "list")  # a path is a path, whatever YAML would make of it; so is a name a name


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` words; values are YAML (`epochs=5`, `crops=[{count: 2, size: 32, scale: [0.2, 1]}]`).

    Raises:
        ConfigError: a word without `=`, a key twice, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, found '{printable(word)}'{did_you_mean(word, Recipe.model_fields)}")
        if key in values:
            raise ConfigError(f"{key}: given twice on the command line")
        if key.rpartition(".")[2] in AS_TYPED or (key == "name" and not text.startswith(("[", '"', "'"))):
            values[key] = text
            continue
        values[key] = read_yaml(f"value: {text}", f"{key}={text}").get("value")
    return values


def validated(kind: type[AnySettings], values: Mapping[str, Any], where: str) -> AnySettings:
    """Build settings, with an error that names the key, what was expected and what was found. A Path is taken for its text.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, or settings that do not fit together.
    """
    for key in values:
        if key not in kind.model_fields:
            if RENAMED.get(key) in kind.model_fields:
                raise ConfigError(f"{where}: {key} is called {RENAMED[key]} now")
            usual = USUAL_NAMES.get(str(key))
            hint = (
                f" (did you mean '{usual}'?)"
                if usual in kind.model_fields
                else did_you_mean(str(key), kind.model_fields)
            )
            raise ConfigError(
                f"{where}: unknown key '{printable(str(key))}'{hint}; `swav recipes NAME` prints every key"
            )
    try:
        return kind.model_validate(
            {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in values.items()}
        )
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, kind)}") from None


def stored(values: Mapping[str, Any], where: str) -> Recipe:
    """Settings that a run wrote, perhaps with names that they had before (config.RENAMED).

    Raises:
        ConfigError: as `validated`.
    """
    return validated(Recipe, {RENAMED.get(key, key): value for key, value in values.items()}, where)


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Defaults, then the recipe (a name or a YAML file), then the overrides."""
    values = read_yaml(recipe_text(name), f"recipe {name}")
    validated(Recipe, values, f"recipe {name}")
    return validated(Recipe, values | dict(overrides or {}), "settings")


def to_yaml(recipe: Settings) -> str:
    """Every setting, one a line; `read_yaml` gives the same settings back."""
    return "".join(f"{key}: {_yaml_value(value)}\n" for key, value in recipe.model_dump(mode="json").items())


def checked_yaml(recipe: Settings) -> str:
    """As to_yaml, with a last line by which `verified_yaml` finds out that all is as it was written."""
    text = to_yaml(recipe)
    return f"{text}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n"


def verified_yaml(text: str) -> str:
    """The settings in a file that `checked_yaml` wrote, or `to_yaml` in versions before it.

    Raises:
        ValueError: it is cut off, damaged or edited.
    """
    if not text.endswith("\n"):
        raise ValueError("it ends in the middle of a line" if text else "it is empty")
    settings, found, checksum = text.rpartition(CHECKSUM)
    if not found and "\neval_size:" not in text:  # the last setting of the versions that wrote no checksum
        raise ValueError("its end is missing")
    if found and checksum != hashlib.sha256(settings.encode()).hexdigest() + "\n":
        raise ValueError("its checksum differs: it was damaged or edited")
    return settings if found else text


def _yaml_value(value: Any) -> str:
    """JSON in ASCII, but for characters beyond 16 bits: JSON writes them as a pair, which YAML takes for two."""
    return re.sub(
        r"\\ud[89ab]..\\ud[c-f]..",
        lambda pair: "\\U{:08x}".format(ord(json.loads('"' + pair[0] + '"'))),
        json.dumps(value),
    )
