"""Files of JSON lines that a run appends to: its metrics, and the list of files that it could not read.

Such a file is a record, not the run: whatever a full disk, a power cut or an editor did to it, its good lines are used and
the others are counted. No torch here.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swav.errors import counted
from swav.files import warn, warn_once, write_text_durably


class Lines(NamedTuple):
    """What a file holds.

    Attributes:
        texts, values: its good lines in order, as written and as read: each is one JSON object.
        damaged: how many whole lines are none.
        torn: whether the end, a line without its newline, is none.
    """

    texts: list[str]
    values: list[dict[str, Any]]
    damaged: int = 0
    torn: bool = False


Sound = Callable[[dict[str, Any]], bool]  # whether an object is what this file's lines are


def is_metrics(line: dict[str, Any]) -> bool:
    """Whether a line is of metrics.jsonl: a step, and numbers (None where a value was not finite)."""
    numbers = all(value is None or type(value) in (int, float) for value in line.values())
    return numbers and type(line.get("step")) is int


def is_bad_file(line: dict[str, Any]) -> bool:
    """Whether a line is of bad_files.jsonl."""
    return isinstance(line.get("file"), str)


def read_lines(path: Path, sound: Sound = lambda _: True) -> Lines:
    """Read the good lines of a file; a missing one has none. Bytes that are no UTF-8 are kept as surrogates.

    Args:
        sound: others are damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Lines([], [])
    *whole, end = content.decode("utf-8", errors="surrogateescape").split("\n")
    texts: list[str] = []
    values: list[dict[str, Any]] = []
    damaged, torn = 0, False
    for i, text in enumerate([*whole, end]):
        if not text.strip():
            continue
        value = _object(text)
        if value is not None and sound(value):
            texts.append(text)
            values.append(value)
        elif i < len(whole):
            damaged += 1
        else:
            torn = True
    return Lines(texts, values, damaged, torn)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_if_possible(path: Path, sound: Sound = lambda _: True) -> list[dict[str, Any]]:
    """Read the good lines of a file, or none, with a warning, where the system refuses it."""
    try:
        return read_lines(path, sound).values
    except OSError as error:
        warn_once(f"{path}: cannot be read ({_reason(error)}); training continues without what it holds")
        return []


def repair(path: Path, sound: Sound = lambda _: True, keep: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """Drop damaged lines, a torn end and good lines that `keep` refuses. Say what was damaged; write only if some goes.

    Only while no other process appends to the file. A file system that refuses is warned of and changes nothing.
    """
    try:
        lines = read_lines(path, sound)
        kept = [text for text, value in zip(lines.texts, lines.values, strict=True) if keep(value)]
        after = "".join(text + "\n" for text in kept).encode("utf-8", errors="surrogateescape")
        found = [counted(lines.damaged, "damaged line")] * (lines.damaged > 0) + ["a torn end"] * lines.torn
        if found:
            warn(f"{path}: {' and '.join(found)} dropped; {counted(len(lines.texts), 'good line')} kept")
        if path.exists() and after != path.read_bytes():
            write_text_durably(path, after.decode("utf-8", errors="surrogateescape"))
    except OSError as error:
        warn_once(f"{path}: cannot be repaired ({_reason(error)}); training continues")


def append(path: Path, values: Mapping[str, Any], *, durable: bool = False) -> bool:
    """Append a line, in one write; after a torn end, on a line of its own.

    The file is opened anew each time: a handle that a network file system has given up is no reason to lose all that
    follows.

    Args:
        durable: return only when the line would survive a power cut. (Of a new file only its folder's sync makes that true.)

    Returns:
        Whether the line was written whole. Otherwise a warning says once why.
    """
    line = json.dumps(values).encode("ascii") + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            content = b"\n" * torn + line
            whole = os.write(descriptor, content) == len(content)
            if durable:
                os.fsync(descriptor)
            reason = "the disk is full or a limit is reached"
        finally:
            os.close(descriptor)
    except OSError as error:
        whole, reason = False, _reason(error)
    if not whole:
        warn_once(
            f"{path}: a line could not be written ({reason}); training continues, and later lines are tried again"
        )
    return whole


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
