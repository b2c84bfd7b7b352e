"""Files of the feature cache: arrays whose parts have checksums, and the note that says what they are of."""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from swav.errors import MachineError
from swav.files import patiently, write_text_durably
from swav.system import available_cpus

THREADS = 4  # that hash: SHA-256 takes 1 to 2 GB/s in each, together more than most disks give


class Part(NamedTuple):
    """Rows of an array that were made durable together.

    Attributes:
        images: place behind the last image that they are of; the part begins where the one before ends.
        rows: how many.
        sha256: of their bytes, taken before they went to the disk.
    """

    images: int
    rows: int
    sha256: str


@dataclasses.dataclass
class Noted:
    """What cache.json says of one array.

    Attributes:
        columns: of the array.
        parts: in order, without gap.
        unreadable, damaged: places of the images that could not be read, and of those read though damaged.
    """

    columns: int = 0
    parts: list[Part] = dataclasses.field(default_factory=list)
    unreadable: list[int] = dataclasses.field(default_factory=list)
    damaged: list[int] = dataclasses.field(default_factory=list)

    @property
    def done(self) -> int:
        """How many images have been through."""
        return self.parts[-1].images if self.parts else 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def up_to(self, images: int) -> "Noted":
        """What was known when so many images had been through, at the end of a part."""
        return Noted(
            self.columns,
            [part for part in self.parts if part.images <= images],
            [i for i in self.unreadable if i < images],
            [i for i in self.damaged if i < images],
        )


Notes = dict[str, Noted]  # by kind


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is none.

    Raises:
        MachineError: the file is there and cannot be read, also not a little later: that is no reason to lose it.
    """
    try:
        content = json.loads(patiently(lambda: path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read just now ({error.strerror}); rerun the same command to resume"
        ) from None
    return content if isinstance(content, dict) else {}


def read_notes(path: Path, identity: dict[str, Any]) -> Notes | None:
    """What a note says of each kind; None where it is no note, of something else, or not as its own checksum says."""
    content = read_object(path)
    if content.get("of") != identity or content.get("sha256") != _sha256_of_json(content.get("arrays")):
        return None
    try:
        return {
            kind: Noted(
                int(noted["columns"]),
                [Part(int(images), int(rows), str(sha)) for images, rows, sha in noted["parts"]],
                [int(i) for i in noted["unreadable"]],
                [int(i) for i in noted["damaged"]],
            )
            for kind, noted in content["arrays"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def write_notes(path: Path, identity: dict[str, Any], notes: Notes) -> None:
    """Replace a note in one durable step."""
    arrays = {kind: dataclasses.asdict(noted) for kind, noted in notes.items()}
    write_text_durably(path, json.dumps({"of": identity, "arrays": arrays, "sha256": _sha256_of_json(arrays)}) + "\n")


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def verified(path: Path, noted: Noted, images: int) -> Float32[np.ndarray, "N D"] | None:
    """The rows that are noted, mapped; None where they are missing, of another shape, or not as their checksums say."""
    if not noted.rows:
        return np.empty((0, noted.columns), np.float32)
    array = mapped(path, (images, noted.columns), "c")
    if array is None or noted.rows > images:
        return None
    ends = np.cumsum([part.rows for part in noted.parts])
    rows = [array[end - part.rows : end] for end, part in zip(ends, noted.parts, strict=True)]
    with ThreadPoolExecutor(max(1, min(THREADS, available_cpus()))) as pool:
        same = pool.map(lambda one, part: _sha256(one) == part.sha256, rows, noted.parts)
        return array[: noted.rows] if all(same) else None


def _sha256(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.tobytes() if not len(rows) else rows.data).hexdigest()


def mapped(path: Path, shape: tuple[int, int], mode: Any) -> "np.memmap[Any, Any] | None":
    """An array of float32 on disk, if it is one of this shape.

    Raises:
        MachineError: as read_object.
    """
    try:
        array = patiently(lambda: np.load(path, mmap_mode=mode))
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise MachineError(
            f"{path}: cannot be read just now ({error.strerror}); rerun the same command to resume"
        ) from None
    except Exception:  # a damaged header can make NumPy raise anything
        return None
    fits = array.shape == shape and array.dtype == np.dtype("<f4") and array.flags.c_contiguous
    return array if fits else None


def array_to_fill(path: Path, shape: tuple[int, int], keep: bool) -> "np.memmap[Any, Any]":
    """Return the array to fill: that of an interrupted pass, or a new one."""
    if keep and (array := mapped(path, shape, "r+")) is not None:
        return array
    path.unlink(missing_ok=True)  # a new file beside an old one, not in it
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without a word
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
