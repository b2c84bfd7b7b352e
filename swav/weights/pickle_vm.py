"""Pickles as plain data: whatever a pickle says, nothing in it is ever run.

A pickle is a program: it names functions and classes, and calls them. Here it runs on a machine that looks no name up
and calls nothing. A call of one of torch's few tensor builders becomes a `Stored`, one of a mapping a dict, and every
other call, object or class an `Inert` that only knows its name. So files with objects of packages that are not there
(mmengine's history buffers, argparse's namespaces) can be read, and hostile ones too.
"""

import dataclasses
import pickletools
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch

MAX_RANK = 64  # dimensions of a tensor

# Names of torch's storages, after the module's.
DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}  # (storage, offset, shape, strides, ...)
_WRAPPED = {"_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter"}  # (tensor, ...)
_MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}

# Nobody needs these to describe weights. All names are inert here; a file with one of these is refused to warn its owner.
_HOSTILE = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|shutil|socket|runpy|importlib|ctypes|code|commands|webbrowser)\..*"
    r"|builtins\.(eval|exec|execfile|compile|open|__import__|breakpoint|input)"
)


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A tensor that lies in the file: part of a storage.

    Attributes:
        key: of the storage; in safetensors the tensor's name.
        shape: of the tensor.
        dtype, strides, offset: how it lies in the storage, in elements. Safetensors know that themselves.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8
    strides: tuple[int, ...] = ()
    offset: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Opaque:
    """What stands for an object that is not looked into."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(frozen=True)
class Storage:
    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


class FormatError(Exception):
    """Not the file that was expected; says what it is instead."""


class PickleVM:
    """Runs a pickle's opcodes on values that do nothing.

    Attributes:
        storages: that tensors of the pickle lie in, by key.
        inert: names of what was called or made and is not looked into.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.inert: set[str] = set()
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        """Read one pickle, and leave the stream behind it.

        Raises:
            Malformed: the bytes are no pickle, or no sound one.
        """
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self._step(opcode.name, argument)
            return self._stack.pop()
        # A list of what broken bytes lead to: nothing else is expected, and nothing here has a side effect.
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
            MemoryError,
            EOFError,
        ) as error:
            detail = shown(str(error)) or type(error).__name__
            raise FormatError(f"a pickle that is cut short or damaged ({detail}); fetch it again") from None

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "FROZENSET":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._set_items(items)
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._since_mark())
            case "SETITEM":
                self._set_items([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "POP":
                if self._marks and self._marks[-1] == len(stack):
                    self._marks.pop()
                else:
                    stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[int(argument)])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                function, module = stack.pop(), stack.pop()
                stack.append(_named(module, function))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._called(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._called(function, arguments))
            case "OBJ":
                items = self._since_mark()
                stack.append(self._called(items[0], tuple(items[1:])))
            case "INST":
                stack.append(self._called(_named(*argument.split(" ", 1)), tuple(self._since_mark())))
            case "BUILD":
                stack.pop()  # the state of an object that is not looked into, or the notes beside a state_dict
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise ValueError(f"it uses {name}, which torch.save does not")
            case _:  # all others push a number or a text
                stack.append(argument)

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _extend(self, items: Sequence[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _set_items(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def _called(self, function: Any, arguments: Any) -> Any:
        """What stands for a call. Nothing is called."""
        name = str(function) if isinstance(function, _Name) else "an object"
        last = name.rpartition(".")[2]
        if name.startswith(("torch._utils.", "torch._tensor.", "torch.nn.parameter.")) and isinstance(arguments, tuple):
            if last in _TENSORS:
                return self._stored(arguments)
            if last in _WRAPPED:
                return arguments[0]
            if last == "_rebuild_from_type_v2":  # (builder, class, arguments, state)
                return self._called(arguments[0], arguments[2])
        if name in _MAPPINGS:
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            return {_key(pair[0]): pair[1] for pair in pairs}
        if name == "torch.Size":
            return arguments[0]
        self.inert.add(name)
        return Opaque(name)

    def _storage(self, identity: Any) -> Any:
        """What stands for ("storage", class, key, place, count[, view])."""
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            return Opaque("an object outside the pickle")
        kind, key, count, views = identity[1], identity[2], identity[4], identity[5:]
        dtype = DTYPES.get(kind.name.rpartition(".")[2]) if isinstance(kind, _Name) else None
        if dtype is None or any(view is not None for view in views):
            raise ValueError("a storage of a kind that is not read here")
        if not _is_count(count) or not isinstance(key, str | int):
            raise ValueError("a storage that is none")
        return self.storages.setdefault(str(key), Storage(str(key), dtype, count))

    def _stored(self, arguments: tuple[Any, ...]) -> Any:
        storage, offset, shape, strides, *rest = arguments
        if not isinstance(storage, Storage):
            return Opaque("a tensor without storage")
        dtype = storage.dtype
        if names := [value for value in rest if isinstance(value, _Name) and value.module == "torch"]:  # v3 has a dtype
            if names[0].name not in _BY_NAME:
                return Opaque(str(names[0]))
            dtype = _BY_NAME[names[0].name]
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or len(shape) > MAX_RANK or not all(map(_is_count, numbers)):
            raise ValueError("a tensor of no shape")
        count, last = 1, offset
        for size, stride in zip(shape, strides, strict=True):
            count *= size
            last += max(0, size - 1) * stride
        held = storage.nbytes // dtype.itemsize
        if count and max(last, count - 1) >= held:  # a small storage could claim to be a tensor that fills the memory
            raise ValueError("a tensor larger than its storage")
        return TensorRef(storage.key, tuple(shape), dtype, tuple(strides), offset)


def _named(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a name that is no text")
    found = _Name("builtins" if module == "__builtin__" else module, name)
    if _HOSTILE.fullmatch(str(found)):
        raise FormatError(
            f"a call of {shown(str(found))}, as in an attack; nothing in it was run, do not open it elsewhere"
        )
    return found


def shown(text: str) -> str:
    """A text of a file as it may be printed: short, and without control characters."""
    return text.encode("unicode_escape").decode()[:80]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= sys.maxsize


def _key(value: Any) -> Any:
    """A key of a dict. (A tuple may be nested so deep that its hash overflows the interpreter's own stack.)"""
    return value if isinstance(value, str | int | float | bytes | bool | None) else Opaque("a key")
