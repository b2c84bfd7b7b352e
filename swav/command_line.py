"""The commands as typer knows them: with words in any of the forms of command_words, messages of one line, and completion.

No torch here.
"""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from swav.command_words import KEYS, PLACES, Words, as_they_are, example, exists, place_with_data, sort_words
from swav.errors import ConfigError, did_you_mean, printable

# What people type who come from other programs, and the command here.
USUAL_COMMANDS = {
    **dict.fromkeys(("train", "fit", "run", "resume"), "swav pretrain auto data=photos/ --out run"),
    **dict.fromkeys(("eval", "evaluate", "test", "score"), "swav bench knn --weights run --data labelled/ --out run"),
    "scan": "swav data scan photos/",
    "shapes": "swav data shapes FOLDER",
    "version": "swav --version",
}


class Command(TyperCommand):
    """A command that takes its words in any of these forms, and says in one line what is missing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # completion, of a line that is not whole yet
            return super().parse_args(ctx, args)
        where = _where(ctx)
        options = {name: _kind(param) for param in self.get_params(ctx) for name in param.opts if name.startswith("-")}
        several = [name for param in self.params if getattr(param, "multiple", False) for name in param.opts]
        keys = KEYS.get(where, dict)()
        words = sort_words(where, args, options, keys, several)
        if {"--help", "-h"} & words.given:
            return super().parse_args(ctx, ["--help"])
        place = PLACES.get(where, place_with_data if "--data" in options else as_they_are)
        placed = place(where, words, keys)
        self._require(where, words, placed)
        try:
            return super().parse_args(ctx, list(placed))  # which it empties
        except TyperException as error:
            raise _bad_value(where, error, placed) from None

    def _require(self, where: str, words: Words, placed: Sequence[str]) -> None:
        """Refuse a command line without what must be there, or with more than the command takes.

        Raises:
            ConfigError: so.
        """
        arguments = [param for param in self.params if isinstance(param, TyperArgument)]
        lacking = [
            f"{param.opts[0]} {_kind(param)}"
            for param in self.params
            if isinstance(param, TyperOption) and param.required and param.opts[0] not in placed
        ]
        needed = [_name(param) for param in arguments if param.required]
        lacking = needed[len(words.names) :] + lacking if where not in PLACES else lacking
        if lacking:
            raise ConfigError(f"{where}: expected {' and '.join(lacking)}, found none; as `{example(where)}`")
        most = sum(param.nargs for param in arguments)
        if all(param.nargs > 0 for param in arguments) and len(words.names) > most:
            names = " ".join(map(_name, arguments)) or "no names"
            raise ConfigError(f"{where}: expected {names}, found '{printable(words.names[most])}' too")
        if not any(param.nargs < 0 for param in arguments) and words.settings:
            raise ConfigError(
                f"{where}: takes no settings, found '{printable(words.settings[0])}'; as `{example(where)}`"
            )

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Options and values as declared, and settings as `--key`."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("--") and (keys := KEYS.get(_where(ctx))) is not None:
            item = type(found[0]) if found else _completion_item()
            found += [item(f"--{key}") for key in keys() if f"--{key}".startswith(incomplete) and "." not in key]
        return found

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Names and options, without Python's names of their types."""
        params = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        for title, kind in (("Arguments", TyperArgument), ("Options", TyperOption)):
            records = [param.get_help_record(ctx) for param in params if isinstance(param, kind)]
            rows = [(re.sub(r" <[^>]*>|\[(?=K)|\]", "", head), text) for head, text in filter(None, records)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Settings by topic and examples, under the options."""
        from swav.help_pages import page

        formatter.write(page(_where(ctx)))


def _bad_value(where: str, error: TyperException, placed: Sequence[str]) -> ConfigError:
    """The error of an option's value of another type, or out of range."""
    param = getattr(error, "param", None)
    if not isinstance(param, TyperOption) or param.opts[0] not in placed:
        return ConfigError(f"{where}: {printable(error.format_message().rstrip('.'))}; as `{example(where)}`")
    value = placed[placed.index(param.opts[0]) + 1]
    kind = {"int": "a whole number", "float": "a number"}.get(param.bare_type(), _kind(param))
    bounds = param._get_number_range_help_str()  # as x>=1
    least = f" of at least {bounds.partition('>=')[2]}" if bounds else ""
    return ConfigError(f"{where}: {param.opts[0]}: expected {kind}{least}, found '{printable(value)}'")


class Group(TyperGroup):
    """Commands by name; `help` before a name is `--help` behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            if args[:1] == ["help"]:
                args = [*args[1:], "--help"]
            options = [name for param in self.get_params(ctx) for name in param.opts]
            name = args[0].partition("=")[0] if args else ""
            if name.startswith("-") and name not in options:
                raise ConfigError(
                    f"unknown option '{printable(name)}'{did_you_mean(name, options)}; `swav --help` lists options and commands"
                )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise ConfigError(_unknown_command(_where(ctx), args, list(self.commands)))
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples, under the commands."""
        from swav.help_pages import page

        formatter.write(page(_where(ctx)))


def _unknown_command(where: str, words: Sequence[str], known: Sequence[str]) -> str:
    """The message of a command that there is not, with the one that was meant."""
    word, rest = words[0], words[1:]
    what = f"unknown command '{printable(word)}'"
    if where:  # in `swav data`
        meant = f"write {_command('swav', where, 'scan', word)}" if exists(word) else f"known: {', '.join(known)}"
        return f"{where}: {what}{did_you_mean(word, known)}; {meant}"
    from swav.evaluation.catalog import CATALOG
    from swav.recipe_files import recipe_names

    out = () if any(each.partition("=")[0] == "--out" for each in rest) else ("--out", "run")
    if word in recipe_names():
        data = () if any(each.startswith(("data=", "--data")) or exists(each) for each in rest) else ("data=FOLDER",)
        return f"{what}, it is a recipe; write {_command('swav', 'pretrain', word, *data, *rest, *out)}"
    if word in CATALOG:
        return f"{what}, it is a benchmark; write {_command('swav', 'bench', *words)}"
    if "=" in word or exists(word):
        first = word if "=" in word else f"data={word}"
        return f"{what}; write {_command('swav', 'pretrain', 'auto', first, *rest, *out)}"
    if word in USUAL_COMMANDS:
        return f"{what}; as `{USUAL_COMMANDS[word]}`"
    return f"{what}{did_you_mean(word, known)}; `swav --help` lists the commands"


def _command(*words: str) -> str:
    return printable(shlex.join(words))


def _where(ctx: Any) -> str:
    """The command's name below `swav`, as `data scan`."""
    names: list[str] = []
    while ctx is not None and not (ctx.parent is None and isinstance(ctx.command, Group)):
        names.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    return " ".join(names)


def _kind(param: Any) -> str:
    """What an option's value is called; "" of a switch."""
    if getattr(param, "is_flag", False) or param.opts[0] in ("--help", "-h"):
        return ""
    return str(param.metavar or {"int": "N", "float": "X"}.get(param.bare_type(), param.name.upper()))


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


# -- completion


def complete_recipes(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Names of recipes."""
    from swav.recipe_files import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_settings(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Keys of settings; nothing behind a `=`, where the shell completes paths."""
    keys = KEYS.get(_where(ctx), dict)()
    return [f"{key}=" for key in keys if key.startswith(incomplete) and incomplete and "." not in key]


def complete_bench(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Names of benchmarks, then keys of settings."""
    from swav.evaluation.catalog import CATALOG

    names = [name for name in (*CATALOG, "all") if name.startswith(incomplete)]
    return names or complete_settings(ctx, args, incomplete)


def _completion_item() -> Any:
    from typer._click.shell_completion import CompletionItem  # typer has no other name for it

    return CompletionItem
