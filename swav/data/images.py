"""A data set as a sequence of images: their names, how one is read, and the labels, if any. sources/open.py makes them."""

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int8, Int64, UInt8, UInt64
from numpy.typing import NDArray

from swav.data.sources.decode import Unreadable, decode, decode_as_pillow, read_file
from swav.data.sources.walk import Names, path_of

__all__ = ["Images", "Unreadable"]


class Images:
    """A sequence of images, in a fixed order (of a tree: by the bytes of the path; of a list: its own).

    Attributes:
        root: what names are relative to.
        rows: per image what is known without decoding it (walk.ROW).
        labels: indices into `classes` [N]; of images that may show several (VOC) marks [N, C]: 1 present, 0 ignored, -1
            absent; or None.
        classes: names of the classes, or None.
        bad: (name, reason) of what was found unreadable when opened; it is not in the sequence.
        gone: (name, reason) of images of a run that were there when it began and cannot be read now; they are in the sequence.
        others: how many files were passed over, by extension.
        note: what was chosen, in words.
        left_out: which folders of runs were passed over, as the end of a sentence; empty if none.
        inodes: device and inode of each image's file [N, 2], or None where that is not known.
        as_pillow: read damaged images as far as Pillow does, and note their names in `damaged`; else they are unreadable.
    """

    def __init__(
        self,
        root: Path,
        names: Iterable[bytes],
        rows: np.ndarray,
        *,
        labels: Int64[np.ndarray, " N"] | Int8[np.ndarray, "N C"] | None = None,
        classes: list[str] | None = None,
        bad: Sequence[tuple[str, str]] = (),
        others: Mapping[str, int] | None = None,
        note: str = "",
        pixels: UInt8[np.ndarray, "N S S 3"] | None = None,
        inodes: UInt64[np.ndarray, "N 2"] | None = None,
        left_out: str = "",
        as_pillow: bool = False,
        damaged: set[str] | None = None,
    ):
        self.root, self.rows, self.labels, self.classes = root, rows, labels, classes
        self.inodes, self.as_pillow, self.damaged = inodes, as_pillow, set[str]() if damaged is None else damaged
        self.bad, self.others, self.note = list(bad), dict(others or {}), note
        self.left_out = left_out
        self.gone: list[tuple[str, str]] = []
        self._names, self._pixels = Names(names), pixels

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: SupportsIndex) -> str:
        """The path relative to `root`, or FILE#NUMBER. Bytes that are no UTF-8 are kept as surrogates."""
        return os.fsdecode(self._names[i])

    def read(self, i: SupportsIndex) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the pixels of image i, RGB, upright, contiguous.

        Raises:
            Unreadable: the file is damaged, or it changed or went away since it was found.
        """
        if self._pixels is not None:
            return np.array(self._pixels[i])
        if not self.as_pillow:
            return decode(self.content(i), self.name(i))
        pixels, damage = decode_as_pillow(self.content(i), self.name(i))
        if damage is not None:
            self.damaged.add(self.name(i))
        return pixels

    def content(self, i: SupportsIndex) -> bytes:
        """Returns the bytes of image i as stored (of a packed one: its pixels)."""
        if self._pixels is not None:
            return bytes(self._pixels[i])
        return read_file(path_of(self.root, self._names[i]), self.name(i))

    @property
    def packed(self) -> bool:
        """True where the images lie in memory, decoded (CIFAR)."""
        return self._pixels is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and sizes, in order: it tells whether this is the data that a run began with."""
        digest = hashlib.sha256()
        for name, size in zip(self._names, self.rows["size"].tolist(), strict=True):
            digest.update(name + b"\0%d\0" % size)
        return digest.hexdigest()

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """SHA-256 of names, sizes, and times of change or, in memory, pixels: what is computed from images is kept under it."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self.rows["time"].tobytes() if self._pixels is None else np.ascontiguousarray(self._pixels).data)
        return digest.hexdigest()

    @functools.cached_property
    def labels_fingerprint(self) -> str:
        """SHA-256 over labels and classes, which the fingerprint leaves out: the data of who learns from labels."""
        digest = hashlib.sha256(b"" if self.labels is None else self.labels.tobytes())
        for name in self.classes or ():
            digest.update(b"\0" + os.fsencode(name))
        return digest.hexdigest()

    def select(self, indices: Sequence[int] | NDArray[np.integer], note: str | None = None) -> "Images":
        """Returns the images at these indices, in this order; `bad` and `others` stay with the whole, `damaged` is shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Images(
            self.root,
            (self._names[i] for i in chosen),
            self.rows[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            classes=self.classes,
            note=self.note if note is None else note,
            pixels=None if self._pixels is None else self._pixels[chosen],
            inodes=None if self.inodes is None else self.inodes[chosen],
            left_out=self.left_out,
            as_pillow=self.as_pillow,
            damaged=self.damaged,
        )
