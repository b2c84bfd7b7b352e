"""A data set as a sequence of images: a storage, perhaps targets, and how they are to be read. sources/open.py makes them."""

import copy
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int64, UInt64

from swav.data.sources.decode import Unreadable
from swav.data.sources.pixels import Decoding
from swav.data.storage import Indices, Pixels, Storage
from swav.data.targets import ClassLabels, Targets, fingerprint

__all__ = ["Images", "Unreadable"]


class Images:
    """A sequence of images, in a fixed order (of a tree: by the bytes of the path; of a list: its own).

    Attributes:
        storage: where they lie.
        targets: what is known about each, or None.
        bad: (name, reason) of what was found unreadable when opened; it is not in the sequence.
        gone: (name, reason) of images of a run that were there when it began and cannot be read now; they are in the sequence.
        others: how many files were passed over, by extension.
        groups: per image the number of its group (a patient, a video, a camera), the same in both splits; None: there are none.
        note: which images they are, for people.
        left_out: which folders of runs were passed over, as the end of a sentence; empty if none.
        damaged: names of the images that are damaged and were read as far as Pillow does.
        warnings: what a user should know before training on them.
        lost_classes: the reason by class of which no image can be read.
    """

    def __init__(
        self,
        storage: Storage,
        targets: Targets | None = None,
        *,
        bad: Sequence[tuple[str, str]] = (),
        others: Mapping[str, int] | None = None,
        note: str = "",
        left_out: str = "",
        groups: Int64[np.ndarray, " N"] | None = None,
    ):
        self.storage, self.targets, self.groups = storage, targets, groups
        self.bad, self.others, self.note, self.left_out = list(bad), dict(others or {}), note, left_out
        self.gone: list[tuple[str, str]] = []
        self.damaged: set[str] = set()
        self.warnings: list[str] = []
        self.lost_classes: dict[str, str] = {}
        self._as_pillow = False

    def __len__(self) -> int:
        return len(self.storage)

    def name(self, i: SupportsIndex) -> str:
        """Return the path relative to `root`, or FILE#NUMBER. Bytes that are no UTF-8 are kept as surrogates."""
        return self.storage.name(i)

    def read(self, i: SupportsIndex) -> Pixels:
        """Return the pixels of image i: RGB, upright (or of the size that its annotation has), contiguous.

        Raises:
            Unreadable: the file is damaged, or it changed or went away since it was found.
        """
        if not self._as_pillow:
            return self.storage.read(i)
        pixels, damage = self.storage.read_as_pillow(i)
        if damage is not None:
            self.damaged.add(self.name(i))
        return pixels

    def read_bytes(self, i: SupportsIndex) -> bytes:
        """Return image i as stored (of one in memory: its pixels)."""
        return self.storage.read_bytes(i)

    @property
    def root(self) -> Path:
        """What names are relative to."""
        return self.storage.root

    @property
    def rows(self) -> np.ndarray:
        """Per image what is known without decoding it (walk.ROW)."""
        return self.storage.rows

    @property
    def inodes(self) -> UInt64[np.ndarray, "N 2"] | None:
        """Device and inode of each image's file, or None where that is not known."""
        return self.storage.inodes

    @property
    def in_memory(self) -> bool:
        """True where the images lie in memory, decoded (CIFAR)."""
        return self.storage.in_memory

    @property
    def how(self) -> Decoding:
        """How stored values become RGB."""
        return self.storage.how

    @property
    def labels(self) -> Int64[np.ndarray, " N"] | None:
        """The class of each image; None where there is none, or more than one."""
        return self.targets.values if isinstance(self.targets, ClassLabels) else None

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, where there are targets."""
        return None if self.targets is None else self.targets.classes

    @property
    def as_pillow(self) -> bool:
        """Whether damaged images are read as far as Pillow does, and noted in `damaged`; else they are unreadable."""
        return self._as_pillow

    def reading_as_pillow(self) -> "Images":
        """Return the same images, of which damaged ones are read as far as Pillow does; the notes are its own."""
        images = copy.copy(self)
        images._as_pillow, images.damaged = True, set()
        return images

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and sizes, in order, to recognise the data that a run began with."""
        digest = hashlib.sha256()
        for name, size in zip(self.storage.names, self.rows["size"].tolist(), strict=True):
            digest.update(name + b"\0%d\0" % size)
        return digest.hexdigest()

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """SHA-256 of names, sizes, and times of change or, in memory, pixels: what is computed from images is kept under it."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self.storage.content())
        return digest.hexdigest()

    @functools.cached_property
    def labels_fingerprint(self) -> str:
        """SHA-256 over targets and classes, which the fingerprint leaves out: the data of who learns from labels."""
        return fingerprint(self.targets)

    @property
    def groups_fingerprint(self) -> str:
        """SHA-256 over the groups; empty where there are none."""
        return "" if self.groups is None else hashlib.sha256(self.groups.tobytes()).hexdigest()

    def decoded(self, how: Decoding) -> "Images":
        """Return the same images, whose stored values become RGB in this way."""
        if how == self.how:
            return self  # with its fingerprints
        images = copy.copy(self)
        images.storage = self.storage.decoded(how)
        images.__dict__.pop("content_fingerprint", None)  # is of the pixels
        return images

    def select(self, indices: Indices, note: str | None = None) -> "Images":
        """Return the images at these indices, in this order; `bad` and `others` stay with the whole, `damaged` is shared."""
        chosen = np.asarray(indices, dtype=np.int64)
        images = Images(
            self.storage.select(chosen),
            None if self.targets is None else self.targets.select(chosen),
            note=self.note if note is None else note,
            left_out=self.left_out,
            groups=None if self.groups is None else self.groups[chosen],
        )
        images._as_pillow, images.damaged = self._as_pillow, self.damaged
        images.warnings = self.warnings
        return images
