"""What a wrong setting's message says: what was expected, by the setting's own type, what was found, and what to write."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from swav.errors import did_you_mean

MAX_SHOWN = 80  # characters of a value that is repeated

# What people write who come from other programs, and what to write here.
MEANT: Mapping[str, Mapping[str, str]] = {
    "device": {
        **dict.fromkeys(("gpu", "nvidia", "0"), "use device=cuda"),
        "mps": "Apple's GPUs are not supported, use device=cpu",
    },
    "precision": {
        **dict.fromkeys(("16", "half", "float16", "fp16-mixed", "16-mixed", "mixed", "amp"), "use precision=fp16"),
        **dict.fromkeys(("bfloat16", "bf16-mixed"), "use precision=bf16"),
        **dict.fromkeys(("32", "float32", "full"), "use precision=fp32"),
    },
    "optimizer": {"sgd": "use optimizer=larc, which is SGD with a rate for each layer"},
}


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """Say what is wrong with settings, without the words of the library that found it.

    Args:
        kind: the settings that were to be built.

    Returns:
        As `lr: expected a number above 0, found 'fast'`.
    """
    problem = _most_helpful(error.errors())
    path = [part for part in problem["loc"] if not _is_branch(part)]
    own = str(problem.get("ctx", {}).get("error", "")) if problem["type"] == "value_error" else ""
    if not path:  # settings that do not fit together
        return own or "expected settings that fit together"
    place, field, found = ".".join(map(str, path)), kind.model_fields[str(path[0])], problem["input"]
    *outer, key = [part for part in path if isinstance(part, str)]
    inner = _model_in(field.annotation)
    if outer and inner is not None:  # inside of a mapping, as `crops` holds some
        if key not in inner.model_fields:
            known = ", ".join(inner.model_fields)
            return f"{place}: unknown key, expected {known}{did_you_mean(key, inner.model_fields)}"
        if problem["type"] == "missing" and path[-1] == key:
            return f"{place}: expected a value, found none{_as(outer[0], field)}"
        field = inner.model_fields[key]
    if problem["type"] == "missing" and len(path) > 1:  # a list that is too short, of which the library names a place
        place, path = str(path[0]), path[:1]
    kinds = _kinds(field.annotation, field.metadata)
    if isinstance(path[-1], int):  # one of a list
        kinds = _kinds_in(field.annotation, path[-1])
    elif len(path) == 1 and _may_be_auto(kind, key):
        kinds.append("auto")
    expected = own or f"expected {_either(kinds)}"
    shown = "" if ", found " in own else f", found {_shown(found)}"
    return f"{place}: {expected}{shown}{_advice(key, field, found, own)}"


def _most_helpful(errors: Sequence[Any]) -> Any:
    """A setting that may be a number or several gives an error for each kind: choose that of the kind that was meant."""
    same_key = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    own = [error for error in same_key if error["type"] == "value_error"]
    of_several = [error for error in same_key if any(str(part).startswith("tuple[") for part in error["loc"])]
    if of_several and isinstance(errors[0]["input"], list | tuple):
        return of_several[0]
    return own[0] if own else errors[0]


def _is_branch(part: Any) -> bool:
    """Whether a part of an error's place is a name of the library's for a kind of value."""
    return str(part).startswith(("function-", "literal", "constrained-", "tuple[", "int", "float", "bool", "str"))


def _may_be_auto(kind: type[BaseModel], key: str) -> bool:
    """Whether `auto` is a value beside those of the type (as of every key of a recipe but its data)."""
    return bool(getattr(kind, "takes_auto", lambda _: False)(key))


def _either(kinds: Iterable[str]) -> str:
    *some, last = dict.fromkeys(kinds)
    return f"{', '.join(some)} or {last}" if some else last


def _kinds_in(annotation: Any, index: int) -> list[str]:
    """The kinds of values that a list takes at a place."""
    if typing.get_origin(annotation) is not tuple:
        return next(filter(None, (_kinds_in(argument, index) for argument in typing.get_args(annotation))), [])
    arguments = typing.get_args(annotation)
    return _kinds(arguments[0] if arguments[1:] == (Ellipsis,) else arguments[index])


def _kinds(annotation: Any, metadata: Iterable[Any] = ()) -> list[str]:
    """The kinds of values that a type allows, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        of_field = [one for each in arguments[1:] for one in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return _kinds(arguments[0], [*metadata, *of_field])
    if origin is Literal:
        return [str(value) for value in arguments]
    if origin in (typing.Union, types.UnionType):
        return [kind for argument in arguments for kind in _kinds(argument, metadata)]
    if origin is tuple:
        if arguments[1:] == (Ellipsis,):
            return [f"a list of {_plural(_kinds(arguments[0])[0])}"]
        return [f"a list of {len(arguments)} {_plural(_kinds(arguments[0])[0]).partition(' of at')[0]}"]
    if annotation is bool:
        return ["true", "false"]
    if annotation in (int, float):
        return [("a whole number" if annotation is int else "a number") + _bounds(metadata)]
    return [{str: "text", type(None): "null"}.get(annotation) or f"a {annotation.__name__.lower()}"]


def _plural(kind: str) -> str:
    noun, of, bounds = kind.removeprefix("a ").partition(" of at")
    noun, above, rest = noun.partition(" above")
    return f"{noun}s{above}{rest}{of}{bounds}"


def _bounds(metadata: Iterable[Any]) -> str:
    """The range that a number must be in, as ` of at least 1`; of several bounds on one side the last one holds."""
    low = high = ""
    for each in metadata:
        low = f"at least {each.ge:g}" if hasattr(each, "ge") else f"above {each.gt:g}" if hasattr(each, "gt") else low
        high = f"at most {each.le:g}" if hasattr(each, "le") else f"below {each.lt:g}" if hasattr(each, "lt") else high
    found = " and ".join(filter(None, [low, high]))
    return found and (f" {found}" if found.startswith(("above", "below")) else f" of {found}")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings that a list holds, where it holds such."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)


def _advice(key: str, field: FieldInfo, found: Any, own: str) -> str:
    """What to write instead, where that can be known."""
    meant = MEANT.get(key, {}).get(str(found).lower())
    if meant is None and key == "device" and str(found).startswith("cuda:"):
        meant = f"use device=cuda, and CUDA_VISIBLE_DEVICES={str(found).removeprefix('cuda:')} before the command"
    if meant is not None:
        return f"; {meant}"
    names = [kind for kind in _kinds(field.annotation, field.metadata) if " " not in kind]
    if isinstance(found, str) and not own and difflib.get_close_matches(found, names, n=1, cutoff=0.5):
        return did_you_mean(found, names)
    return "" if own else _as(key, field, found)


def _as(key: str, field: FieldInfo, found: Any = None) -> str:
    """An example of a list: its default, or of crops two of the size that was given."""
    if _model_in(field.annotation) is not None:
        size = found if isinstance(found, int) and not isinstance(found, bool) and found >= 8 else 224
        return f"; as {key}='[{{count: 2, size: {size}, scale: [0.14, 1]}}]'"
    if isinstance(field.default, tuple) and field.default:
        return f"; as {key}='{list(field.default)}'"
    return ""


def _shown(value: Any) -> str:
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."
