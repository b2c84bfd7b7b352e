"""The text of list files, as editors, spreadsheets and other programs leave it: any UTF, any separator, blanks at the ends.

Which of several readings of a line holds is decided by the files that are there, never by a guess alone.
"""

import codecs
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from swav.data.sources.decode import reason_of
from swav.errors import DataError, printable
from swav.files import expand_home

DELIMITERS = (",", ";", "\t")
SAMPLE = 64  # lines by which the reading of a list is chosen, spread evenly over it
_MARKS = (  # the longer ones first: the mark of UTF-16 begins that of UTF-32
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, what: str, names_of_files: bool = True) -> str:
    """Read a list as text.

    Args:
        what: is expected of the file, for the message.
        names_of_files: bytes that are no UTF-8 become surrogates, so that any name of a file survives; else they are refused.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    where = printable(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: expected {what}, found {reason_of(error)}") from None
    try:
        text = _decoded(content)
    except UnicodeDecodeError:
        raise DataError(f"{where}: expected {what}, found damaged {_encoding(content)}; save it as UTF-8") from None
    if "\0" in text or not (names_of_files or _is_utf8(text)):
        raise DataError(f"{where}: expected {what}, found bytes that are no text; save it as text in UTF-8")
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def read_lines(path: Path, what: str, names_of_files: bool = True) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, each with its number. Args, Raises: as read_text."""
    lines = read_text(path, what, names_of_files).split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _encoding(content: bytes) -> str:
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    start = content[:4096]
    # without a mark, as some editors save it: every other byte is 0
    if start and 4 * start[1::2].count(0) > len(start):
        return "utf-16-le"
    return "utf-16-be" if start and 4 * start[::2].count(0) > len(start) else "utf-8"


def _decoded(content: bytes) -> str:
    encoding = _encoding(content)
    return content.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict").removeprefix("\ufeff")


def without_label(line: str) -> tuple[str, str] | None:
    """A line as a path and the label behind it, parted by the last tab, semicolon, comma or blank; None where it is one word.

    Paths may hold blanks and commas; labels blanks behind a tab or a semicolon.
    """
    text = line.strip()
    for separator, excluded in (("\t", "/\\"), (";", "/\\"), (",", "/\\ "), (" ", "/\\")):
        name, found, label = text.rpartition(separator)
        if found and name.strip() and label.strip() and not set(label.strip()) & set(excluded):
            return name.strip().rstrip(";,").strip(), label.strip()
    return None


def as_name(text: str) -> bytes:
    """The name of a file in a list, as the system has it; ~ is the user's home."""
    return os.fsencode(expand_home(text) if text.startswith("~") else text)


def sampled(lines: Sequence[str]) -> list[str]:
    """Some of many lines, spread evenly."""
    step = max(1, len(lines) // SAMPLE)
    return list(lines[::step])


def best_reading(
    lines: Sequence[str], readings: Sequence[Callable[[str], bytes]], is_there: Callable[[bytes], bool]
) -> Callable[[str], bytes]:
    """Choose the reading by which most lines name a file that is there; of equals, and where none is, the first."""
    few = sampled(lines)
    counts = [sum(is_there(reading(line)) for line in few) for reading in readings]
    return readings[counts.index(max(counts))]
