"""The words of a command line, as people type them, become the options and `key=value` settings that commands take.

`--key value`, `--key=value` and `key=value` are one thing; so are `--out run` and `out=run`. A bare path is the data, several
words after `--weights` are several weights. What cannot be meant is refused with the line to type instead. No torch here.
"""

import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav.errors import ConfigError, did_you_mean, printable


class Words(NamedTuple):
    """A command line, sorted.

    Attributes:
        names: words that are neither options nor settings: names and paths, in order.
        settings: `key=value`.
        options: the command's own, each value behind its option.
        given: the options that are there.
    """

    names: list[str]
    settings: list[str]
    options: list[str]
    given: set[str]


def sort_words(
    where: str, words: Sequence[str], options: Mapping[str, str], keys: Mapping[str, bool], several: Iterable[str] = ()
) -> Words:
    """Sort a command's words into names, settings and options.

    Args:
        where: the command, for messages.
        options: {option: what its value is called, or "" of a switch}.
        keys: {key of a setting: whether it is a switch}.
        several: options that may be given more than once.

    Raises:
        ConfigError: an option is unknown, given twice, or lacks its value; or there are blanks around a `=`.
    """
    found, rest = Words([], [], [], set()), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            found.names.extend(rest)
            break
        if not name or (equals and not value and rest and _is_plain(rest[0])):
            raise _blanks(where, found.names[-1:] if not name else [], word, rest)
        if _is_plain(word) and rest and rest[0].startswith("="):
            raise _blanks(where, [], word, rest)
        option = name if name.startswith("-") else f"--{name.replace('_', '-')}"
        key = name.lstrip("-") if name in keys else _key_of(name.lstrip("-"), keys)
        if option in options and (name.startswith("-") or (equals and options[option])):
            _take_option(where, option, value if equals else None, rest, options, several, found)
        elif name.startswith("-") and not _is_number(word):
            if key is None:
                raise ConfigError(_unknown_option(where, name, options, keys))
            found.settings.append(f"{key}={value if equals else _value_of(where, name, rest, keys[key])}")
        elif equals:
            found.settings.append(word)
        else:
            found.names.append(word)
    return found


def _take_option(
    where: str,
    option: str,
    value: str | None,
    rest: list[str],
    options: Mapping[str, str],
    several: Iterable[str],
    found: Words,
) -> None:
    kind = options[option]
    if option in found.given and option not in several:
        raise ConfigError(f"{where}: {option} is given twice; give it once")
    found.given.add(option)
    if not kind:
        found.options.append(option)
        return
    if value is None:
        if not rest or rest[0].startswith("--"):
            raise ConfigError(f"{where}: {option}: expected {kind} behind it, found nothing")
        value = rest.pop(0)
    found.options.extend([option, value])
    while option == "--weights" and rest and _is_plain(rest[0]) and _names_weights(rest[0]):
        found.options.extend([option, rest.pop(0)])


def _value_of(where: str, name: str, rest: list[str], switch: bool) -> str:
    """The value behind `--key`; of a switch it may be left out."""
    if rest and not rest[0].startswith("--") and (not switch or rest[0] in ("true", "false", "auto")):
        return rest.pop(0)
    if switch:
        return "true"
    raise ConfigError(f"{where}: {name}: expected a value behind it, found nothing; write {name} VALUE")


def _key_of(name: str, keys: Mapping[str, bool]) -> str | None:
    """The setting of this name, in which hyphens may stand for underscores, but for those in the name of a benchmark."""
    bench, dot, key = name.rpartition(".")
    wanted = f"{bench}{dot}{key.replace('-', '_')}"
    return wanted if wanted in keys else None


def _is_plain(word: str) -> bool:
    return "=" not in word and not word.startswith("-")


def _is_number(word: str) -> bool:
    return word[1:2].isdecimal() or word[1:2] == "."


def _blanks(where: str, before: Sequence[str], word: str, rest: Sequence[str]) -> ConfigError:
    """The error of `epochs = 3`, `epochs= 3` and `epochs =3`."""
    parts = [*before, word]
    for each in rest[:2]:
        if parts[-1].endswith("=") or each.startswith("="):
            parts.append(each)
    typed, meant = " ".join(parts), "".join(parts)
    key, _, value = meant.partition("=")
    meant = meant if key and value else f"{key or 'KEY'}={value or 'VALUE'}"
    return ConfigError(
        f"{where}: expected key=value without blanks, found '{printable(typed)}'; write {printable(shlex.quote(meant))}"
    )


def _unknown_option(where: str, name: str, options: Iterable[str], keys: Iterable[str]) -> str:
    from swav.config import USUAL_NAMES

    usual = USUAL_NAMES.get(name.lstrip("-").replace("-", "_"))
    known = [*options, *(f"--{key}" for key in keys)]
    meant = f" (did you mean '--{usual}'?)" if f"--{usual}" in known else did_you_mean(name, known)
    return f"{where}: unknown option '{printable(name)}'{meant}; `swav {where} --help` lists options and settings"


def _names_weights(word: str) -> bool:
    """Whether a word behind `--weights` is another source of weights: it names some, or a path that is not there."""
    from swav.config import RANDOM, TIMM

    return (
        word.startswith((RANDOM, TIMM)) or _holds_weights(word) or (not exists(word) and ("/" in word or "." in word))
    )


def _holds_weights(path: str) -> bool:
    if not exists(path):
        return False
    from swav.weights.sources import is_weights  # takes a while to import

    return is_weights(path)


# -- which name is what


def place_for_pretrain(where: str, words: Words, keys: Mapping[str, bool]) -> list[str]:
    """Find the recipe among the names, wherever it stands; a path is the data.

    Raises:
        ConfigError: there is no recipe, or a name is neither a recipe nor a path.
    """
    from swav.recipe_files import recipe_names

    known = recipe_names()
    names, settings = list(words.names), list(words.settings)
    recipe = next((name for name in names if name in known or name.endswith((".yaml", ".yml"))), None)
    if recipe is None and names and not exists(names[0]) and not _key_typed(names[0], keys):
        recipe = names[0]  # the error is that of an unknown recipe
    if recipe is not None:
        names.remove(recipe)
    for name in list(names):
        if exists(name):
            settings.insert(0, f"data={name}")
            names.remove(name)
    if names:
        raise _not_a_setting(where, names, keys)
    if recipe is None:
        raise _no_recipe(where, settings, words)
    return [recipe, *settings, *words.options]


def _no_recipe(where: str, settings: Sequence[str], words: Words) -> ConfigError:
    settings = list(settings)
    if not any(setting.startswith("data=") for setting in settings):
        settings.insert(0, "data=FOLDER")
    out = [] if "--out" in words.given else ["--out", "run"]
    command = shlex.join(["swav", where, "auto", *settings, *words.options, *out])
    return ConfigError(
        f"{where}: expected a recipe, found none (`swav recipes` lists them); write {printable(command)}"
    )


def _not_a_setting(where: str, names: Sequence[str], keys: Mapping[str, bool]) -> ConfigError:
    name = names[0]
    if (key := _key_typed(name, keys)) is not None:
        value = name[len(key) + 1 :] or (names[1] if len(names) > 1 else "VALUE")
        typed = name if name != key or len(names) < 2 else f"{name} {names[1]}"
        return ConfigError(
            f"{where}: expected key=value, found '{printable(typed)}'; write {printable(f'{key}={value}')}"
        )
    return ConfigError(
        f"{where}: expected key=value or a path that exists, found '{printable(name)}'{did_you_mean(name, keys)}"
    )


def _key_typed(word: str, keys: Mapping[str, bool]) -> str | None:
    """The key of a setting that lacks its `=`, as `epochs` or `epochs:3`."""
    name = word.partition(":")[0]
    return name if name in keys else None


def place_for_bench(where: str, words: Words, keys: Mapping[str, bool]) -> list[str]:
    """Names of benchmarks stay, a path is `--data`.

    Raises:
        ConfigError: two data sets, weights without `--weights`, or no benchmark.
    """
    from swav.config import RANDOM, TIMM
    from swav.evaluation.catalog import CATALOG, require_known

    names, options = list(words.names), list(words.options)
    for name in words.names:
        if name in (*CATALOG, "all"):
            continue
        if "--weights" not in words.given and (name.startswith((RANDOM, TIMM)) or _holds_weights(name)):
            raise ConfigError(f"{where}: expected --weights before weights, found '{printable(name)}' alone")
        if exists(name):
            names.remove(name)
            options += _data(where, name, options)
    if not names:
        raise ConfigError(
            f"{where}: expected the name of a benchmark (as knn, linear, svm, or all), found none; as `{example(where)}`"
        )
    if any(_key_typed(name, keys) for name in names if name not in CATALOG):
        raise _not_a_setting(where, [name for name in names if name not in CATALOG], keys)
    require_known(names)  # here as well as in the request: that takes longer to import
    return [*names, *words.settings, *options]


def place_with_data(where: str, words: Words, keys: Mapping[str, bool]) -> list[str]:
    """A path is `--data`; other names stay, for the command to refuse."""
    options, names = list(words.options), []
    for name in words.names:
        if exists(name):
            options += _data(where, name, options)
        else:
            names.append(name)
    if names:
        raise _not_a_setting(where, names, keys)
    return [*words.settings, *options]


def as_they_are(where: str, words: Words, keys: Mapping[str, bool]) -> list[str]:
    return [*words.names, *words.settings, *words.options]


def _data(where: str, path: str, options: Sequence[str]) -> list[str]:
    if "--data" in options:
        other = options[options.index("--data") + 1]
        raise ConfigError(f"{where}: expected one data set, found '{printable(other)}' and '{printable(path)}'")
    return ["--data", path]


def exists(word: str) -> bool:
    try:
        return bool(word) and Path(word).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long, or no such user's home
        return False


def example(where: str) -> str:
    """A command line that works, given such folders."""
    from swav.help_pages import EXAMPLES

    return EXAMPLES.get(where, (f"swav {where} --help",))[0]


# -- the settings that a command takes, each with whether it is a switch


def recipe_keys() -> dict[str, bool]:
    from swav.config import RENAMED, Recipe

    return _switches(Recipe.model_fields) | dict.fromkeys(RENAMED, False)


def bench_keys() -> dict[str, bool]:
    from swav.config import RENAMED, WeightOptions
    from swav.evaluation.catalog import CATALOG
    from swav.evaluation.settings import PROTOCOLS, SuiteSettings

    keys = _switches(SuiteSettings.model_fields) | _switches(WeightOptions.model_fields) | dict.fromkeys(RENAMED, False)
    for name, entry in CATALOG.items():
        for protocol in filter(entry.has, PROTOCOLS):
            its = _switches(entry.settings_of(protocol).model_fields)
            keys |= its | {f"{name}.{key}": switch for key, switch in its.items()}
    return keys


def classify_keys() -> dict[str, bool]:
    from swav.config import WeightOptions
    from swav.evaluation.settings import LinearOwnSettings

    own = _switches(LinearOwnSettings.model_fields)
    return _switches(WeightOptions.model_fields) | own | {f"linear.{key}": switch for key, switch in own.items()}


def _switches(fields: Mapping[str, Any]) -> dict[str, bool]:
    return {key: bool in (it.annotation, *typing.get_args(it.annotation)) for key, it in fields.items()}


KEYS: Mapping[str, Callable[[], Mapping[str, bool]]] = {
    "pretrain": recipe_keys,
    "compare": recipe_keys,
    "bench": bench_keys,
    "classify": classify_keys,
}
PLACES: Mapping[str, Callable[[str, Words, Mapping[str, bool]], list[str]]] = {
    "pretrain": place_for_pretrain,
    "bench": place_for_bench,
}
