"""YAML without its traps: data only, no key twice, `1e-6` a number, and `yes`, `12:30:00` and `0777` plain text."""

import re
from typing import Any

import yaml

from swav.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-6 as a number (plain PyYAML reads it as text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # types-pyyaml says nothing of it
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used in recipes", event.start_mark)
        return super().compose_node(parent, index)


_StrictLoader.yaml_implicit_resolvers = {
    # only null, true/false and numbers are special: no `yes`, no base-60 numbers, no dates, no octal
    first: [(tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null",)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse a mapping of settings.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, or an alias.
    """
    try:
        value = yaml.load(text, _StrictLoader)  # a SafeLoader, made stricter
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{name}{where}: {getattr(error, 'problem', error)}; expected YAML of `key: value` lines"
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected YAML of `key: value` lines, found {type(value).__name__}")
    return value
