"""Recipes: ready-made settings as YAML files; found, read, overridden by `key=value`, checked and printed.

Precedence: defaults, recipe, `key=value`. No torch here: `swav recipes` and every error about settings answer at once.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from swav.config import RENAMED, AnySettings, Recipe, Settings
from swav.errors import ConfigError, did_you_mean
from swav.files import visible
from swav.setting_errors import explain
from swav.strict_yaml import read_yaml

CHECKSUM = "# sha256 of all above: "
RECIPES_FOLDER = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    return [path.stem for path in visible(RECIPES_FOLDER, "*.yaml")]


def recipe_text(name: str) -> str:
    """Return a recipe's YAML, from its name or from a file.

    Raises:
        ConfigError: no such recipe.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{name}.yaml"
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if path.suffix == Path(name).suffix and not isinstance(error, FileNotFoundError):
            raise ConfigError(f"recipe {name}: cannot be read ({error})") from None
        raise ConfigError(
            f"unknown recipe '{name}'{did_you_mean(name, recipe_names())}; known: {', '.join(recipe_names())}, or a .yaml file"
        ) from None


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
            raise ConfigError(f"expected key=value, found '{word}'{did_you_mean(word, Recipe.model_fields)}")
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
            raise ConfigError(
                f"{where}: unknown key '{key}'{did_you_mean(str(key), kind.model_fields)}; `swav recipes NAME` prints every key"
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
