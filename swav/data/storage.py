"""Where images lie and how one is read: files, or an array in memory. Shards of files will be a third.

No torch here: what a path holds is found out without it.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16, UInt64
from numpy.typing import NDArray

from swav.data.sources.decode import decode, decode_as_pillow, read_file
from swav.data.sources.pixels import AS_STORED, Decoding
from swav.data.sources.walk import Names, path_of

# Upright (but see Files.keep_shape) and contiguous; 1 to 16 channels. What trains or scores today wants RGB of 8 bits, and says so.
Pixels = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"] | Float32[np.ndarray, "H W C"]
Indices = Sequence[int] | NDArray[np.integer]


@runtime_checkable
class Storage(Protocol):
    """A sequence of images, in a fixed order.

    Attributes:
        root: what names are relative to.
        names: as bytes, which need not be UTF-8.
        rows: per image what is known without decoding it (walk.ROW).
        inodes: device and inode of each image's file [N, 2]; None where that is not known.
        in_memory: the images lie there decoded, and their names and sizes say nothing about their pixels.
        how: stored values become RGB.
    """

    @property
    def root(self) -> Path: ...
    @property
    def names(self) -> Names: ...
    @property
    def rows(self) -> np.ndarray: ...
    @property
    def inodes(self) -> UInt64[np.ndarray, "N 2"] | None: ...
    @property
    def in_memory(self) -> bool: ...
    @property
    def how(self) -> Decoding: ...

    def __len__(self) -> int: ...

    def name(self, i: SupportsIndex) -> str:
        """Return the path relative to `root`, or FILE#NUMBER. Bytes that are no UTF-8 are kept as surrogates."""
        ...

    def read_bytes(self, i: SupportsIndex) -> bytes:
        """Return image i as stored.

        Raises:
            Unreadable: it changed or went away since it was found.
        """
        ...

    def read(self, i: SupportsIndex) -> Pixels:
        """Return the pixels of image i, which may be written to.

        Raises:
            Unreadable: it is damaged, or as read_bytes.
        """
        ...

    def read_as_pillow(self, i: SupportsIndex) -> tuple[Pixels, str | None]:
        """Return the pixels of image i as far as Pillow reads them, and what is damaged.

        Raises:
            Unreadable: Pillow cannot read it either.
        """
        ...

    def select(self, indices: NDArray[np.int64]) -> "Storage":
        """Return the images at these indices, in this order."""
        ...

    def decoded(self, how: Decoding) -> "Storage":
        """Return the same images, whose stored values become RGB in this way."""
        ...

    def content(self) -> memoryview | bytes:
        """Return bytes that differ where pixels do: times of change, or the pixels themselves."""
        ...


class Files:
    """Images in files below a folder: a `Storage`.

    Attributes:
        keep_shape: of which images a rotation by EXIF that exchanges height and width is left out, as what is annotated on them
            has the size before it; None: of none.
        how: stored values become RGB.
    """

    in_memory = False

    def __init__(
        self,
        root: Path,
        names: Iterable[bytes],
        rows: np.ndarray,
        inodes: UInt64[np.ndarray, "N 2"] | None = None,
        keep_shape: Bool[np.ndarray, " N"] | None = None,
        how: Decoding = AS_STORED,
    ):
        self.root, self.rows, self.inodes, self.names = root, rows, inodes, Names(names)
        self.keep_shape, self.how = keep_shape, how

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: SupportsIndex) -> str:
        return os.fsdecode(self.names[i])

    def read_bytes(self, i: SupportsIndex) -> bytes:
        return read_file(path_of(self.root, self.names[i]), self.name(i))

    def read(self, i: SupportsIndex) -> Pixels:
        return decode(self.read_bytes(i), self.name(i), self._keeps_shape(i), self.how)

    def read_as_pillow(self, i: SupportsIndex) -> tuple[Pixels, str | None]:
        return decode_as_pillow(self.read_bytes(i), self.name(i), self._keeps_shape(i), self.how)

    def select(self, indices: NDArray[np.int64]) -> "Files":
        inodes = None if self.inodes is None else self.inodes[indices]
        keep_shape = None if self.keep_shape is None else self.keep_shape[indices]
        return Files(self.root, (self.names[i] for i in indices), self.rows[indices], inodes, keep_shape, self.how)

    def decoded(self, how: Decoding) -> "Files":
        files = copy.copy(self)
        files.how = how
        return files

    def content(self) -> bytes:
        kept = b"" if self.keep_shape is None or not self.keep_shape.any() else self.keep_shape.tobytes()
        told = b"" if self.how == AS_STORED else repr(tuple(self.how)).encode()
        return bytes(self.rows["time"].tobytes()) + kept + told

    def _keeps_shape(self, i: SupportsIndex) -> bool:
        return self.keep_shape is not None and bool(self.keep_shape[i])


class InMemory:
    """Images of one size in an array (CIFAR): a `Storage`."""

    in_memory, how = True, AS_STORED

    def __init__(
        self,
        root: Path,
        names: Iterable[bytes],
        rows: np.ndarray,
        pixels: UInt8[np.ndarray, "N S S 3"],
        inodes: UInt64[np.ndarray, "N 2"] | None = None,
    ):
        self.root, self.rows, self.inodes, self.names, self.pixels = root, rows, inodes, Names(names), pixels

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: SupportsIndex) -> str:
        return os.fsdecode(self.names[i])

    def read_bytes(self, i: SupportsIndex) -> bytes:
        return bytes(self.pixels[i])

    def read(self, i: SupportsIndex) -> Pixels:
        return np.array(self.pixels[i])

    def read_as_pillow(self, i: SupportsIndex) -> tuple[Pixels, str | None]:
        return self.read(i), None

    def select(self, indices: NDArray[np.int64]) -> "InMemory":
        inodes = None if self.inodes is None else self.inodes[indices]
        names = (self.names[i] for i in indices)
        return InMemory(self.root, names, self.rows[indices], self.pixels[indices], inodes)

    def decoded(self, how: Decoding) -> "InMemory":
        return self  # decoded already, and of 8 bits without alpha

    def content(self) -> memoryview:
        return np.ascontiguousarray(self.pixels).data


def joined(parts: Sequence[Storage]) -> Storage:
    """Return storages of one kind and root as one. Inodes are dropped: they distinguish splits.

    Raises:
        TypeError: storages of several kinds, or of one that cannot be joined.
    """
    names = [name for part in parts for name in part.names]
    rows: np.ndarray[Any, Any] = np.concatenate([part.rows for part in parts])
    arrays = [part.pixels for part in parts if isinstance(part, InMemory)]
    if len(arrays) == len(parts):
        return InMemory(parts[0].root, names, rows, np.concatenate(arrays))
    files = [part for part in parts if isinstance(part, Files)]
    if len(files) == len(parts):
        none = all(part.keep_shape is None for part in files)
        flags = [np.zeros(len(part), np.bool_) if part.keep_shape is None else part.keep_shape for part in files]
        return Files(parts[0].root, names, rows, keep_shape=None if none else np.concatenate(flags), how=files[0].how)
    kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
    raise TypeError(f"expected storages of one kind, Files or InMemory, found {kinds}")
