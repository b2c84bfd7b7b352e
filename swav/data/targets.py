"""What is known about each image: one class, which of several classes it shows, its objects, or the class of every pixel."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64, UInt8
from numpy.typing import NDArray

from swav.errors import DataError, printable


@runtime_checkable
class Targets(Protocol):
    """Targets of a sequence of images, in its order.

    Attributes:
        classes: names of the classes.
    """

    @property
    def classes(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def content(self) -> bytes:
        """Return bytes that differ where the targets do."""
        ...

    def select(self, indices: NDArray[np.int64]) -> "Targets":
        """Return the targets at these indices, in this order."""
        ...


class ClassLabels:
    """One class per image: indices into `classes`."""

    def __init__(self, values: Int64[np.ndarray, " N"], classes: Sequence[str]):
        self.values, self.classes = values, list(classes)

    def __len__(self) -> int:
        return len(self.values)

    def content(self) -> bytes:
        return self.values.tobytes()

    def select(self, indices: NDArray[np.int64]) -> "ClassLabels":
        return ClassLabels(self.values[indices], self.classes)


class MultiLabels:
    """Which classes an image shows: 1 present, 0 ignored (difficult ones only), -1 absent."""

    def __init__(self, values: Int8[np.ndarray, "N C"], classes: Sequence[str]):
        self.values, self.classes = values, list(classes)

    def __len__(self) -> int:
        return len(self.values)

    def content(self) -> bytes:
        return self.values.tobytes()

    def select(self, indices: NDArray[np.int64]) -> "MultiLabels":
        return MultiLabels(self.values[indices], self.classes)


class Objects(NamedTuple):
    """The objects in one image.

    Attributes:
        boxes: left, top, right, bottom [pixels], as the data set counts them: VOC from 1, and the last pixel belongs to the box;
            COCO from 0, in edges of pixels.
        labels: indices into the classes.
        difficult: VOC's mark of what is hard to recognise.
        crowd: COCO's mark of a box around many.
        area: of the object [pixels], as annotated (COCO: of its mask).
        numbers: of the annotations in their file, from 1.
        masks: per object COCO's segmentation (polygons, or a run-length code); empty where the data set has none.
    """

    boxes: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, " n"]
    difficult: Bool[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    area: Float32[np.ndarray, " n"]
    numbers: Int64[np.ndarray, " n"]
    masks: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.labels)


class ObjectSets:
    """The objects of each image. They lie in few flat arrays: loader processes share them without copying.

    Args:
        objects: of each image; all of them with masks, or none.

    Attributes:
        sizes: height and width of each image, as its boxes count them [N, 2].
        ids: number of each image in its data set [N].
        dropped: how many objects of the data set were left out, by reason.
        class_ids: number of each class in its data set (COCO's have gaps); where none are given, from 1.
    """

    def __init__(
        self,
        objects: Iterable[Objects],
        classes: Sequence[str],
        *,
        sizes: Int64[np.ndarray, "N 2"],
        ids: Int64[np.ndarray, " N"],
        dropped: Mapping[str, int] | None = None,
        class_ids: Sequence[int] | None = None,
    ):
        found = [*objects]
        parts = ([getattr(each, name) for each in found] for name in _NONE._fields[:-1])
        fields = [np.concatenate([none, *part]) for none, part in zip(_NONE[:-1], parts, strict=True)]
        texts = [json.dumps(mask).encode() for each in found for mask in each.masks]
        self.classes, self.sizes, self.ids, self.dropped = list(classes), sizes, ids, dict(dropped or {})
        self.class_ids = [*range(1, len(classes) + 1)] if class_ids is None else list(class_ids)
        self._hold(fields, np.array([*map(len, found)], dtype=np.int64), texts)

    @classmethod
    def from_flat(
        cls,
        objects: Objects,
        counts: Int64[np.ndarray, " N"],
        classes: Sequence[str],
        *,
        sizes: Int64[np.ndarray, "N 2"],
        ids: Int64[np.ndarray, " N"],
        dropped: Mapping[str, int] | None = None,
        class_ids: Sequence[int] | None = None,
        mask_texts: Sequence[bytes] = (),
    ) -> "ObjectSets":
        """Return the targets of many images at once.

        Args:
            objects: of all images, one image after the other, without masks.
            counts: how many objects each image has.
            mask_texts: of each object its mask as JSON; empty where the data set has none.
        """
        made = cls((), classes, sizes=sizes, ids=ids, dropped=dropped, class_ids=class_ids)
        made._hold(list(objects[:-1]), counts, mask_texts)
        return made

    def _hold(self, fields: Sequence[np.ndarray], counts: Int64[np.ndarray, " N"], texts: Sequence[bytes]) -> None:
        if len(texts) not in (0, len(fields[0])):
            raise ValueError(f"masks: expected one of each of {len(fields[0])} objects or none, found {len(texts)}")
        self._fields, self._ends = [*fields], np.cumsum([0, *counts.tolist()], dtype=np.int64)
        self._masks = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._mask_ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_masks(self) -> bool:
        """Whether there is a mask of each object, be it an empty one."""
        return len(self._mask_ends) > 1

    def __getitem__(self, i: int) -> Objects:
        first, end = self._ends[i], self._ends[i + 1]
        boxes, labels, difficult, crowd, area, numbers = (field[first:end] for field in self._fields)
        ends = self._mask_ends[first : end + 1].tolist()  # one 0, or nothing, where there are no masks
        masks = [json.loads(self._masks[a:b].tobytes()) for a, b in itertools.pairwise(ends)]
        return Objects(boxes, labels, difficult, crowd, area, numbers, masks)

    def num_counting(self, difficult: bool = False) -> Int64[np.ndarray, " N"]:
        """Return how many objects of each image are no crowds and, unless `difficult` ones count, not hard to recognise."""
        counts = ~self._fields[_NONE._fields.index("crowd")]
        if not difficult:
            counts = counts & ~self._fields[_NONE._fields.index("difficult")]
        ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        found: Int64[np.ndarray, " N"] = ends[self._ends[1:]] - ends[self._ends[:-1]]
        return found

    def content(self) -> bytes:
        class_ids = np.array(self.class_ids, dtype=np.int64)
        arrays = [self.sizes, self.ids, class_ids, self._ends, *self._fields, self._mask_ends, self._masks]
        return b"".join(hashlib.sha256(np.ascontiguousarray(array).data).digest() for array in arrays)

    def select(self, indices: NDArray[np.int64]) -> "ObjectSets":
        firsts, counts = self._ends[indices], np.diff(self._ends)[indices]
        ends = np.cumsum(counts)
        # the places of all chosen objects: those of an image follow one another
        places = np.arange(counts.sum()) + np.repeat(firsts - (ends - counts), counts)
        objects = Objects(*(field[places] for field in self._fields))
        texts: list[bytes] = []
        if len(self._masks):
            starts, stops = self._mask_ends[places].tolist(), self._mask_ends[places + 1].tolist()
            texts = [self._masks[a:b].tobytes() for a, b in zip(starts, stops, strict=True)]
        return ObjectSets.from_flat(
            objects,
            counts,
            self.classes,
            sizes=self.sizes[indices],
            ids=self.ids[indices],
            dropped=self.dropped,
            class_ids=self.class_ids,
            mask_texts=texts,
        )


_NONE = Objects(
    boxes=np.zeros((0, 4), np.float32),
    labels=np.zeros(0, np.int64),
    difficult=np.zeros(0, np.bool_),
    crowd=np.zeros(0, np.bool_),
    area=np.zeros(0, np.float32),
    numbers=np.zeros(0, np.int64),
)

VOID = 255  # class of pixels that do not count


class LabelMaps:
    """The class of every pixel of each image: files, which are read when they are asked for.

    Args:
        paths: of each image's map.
        classes: names of the classes.
        read: a path to the map [H, W], of indices into the classes and VOID.
        stamps: per image bytes that differ where its file does.
        sizes: height and width of each image, as its map should have them [N, 2]; None: not known.

    Raises (when a map is read):
        DataError: it is damaged, of another size, or holds an index that is no class.
    """

    def __init__(
        self,
        paths: Iterable[str],
        classes: Sequence[str],
        read: Callable[[str], UInt8[np.ndarray, "H W"]],
        stamps: Sequence[bytes],
        sizes: Int64[np.ndarray, "N 2"] | None = None,
    ):
        self.paths, self.classes, self.stamps, self._read = list(paths), list(classes), list(stamps), read
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W"]:
        classes = self._read(self.paths[i])
        if self.sizes is not None and classes.shape != (size := tuple(self.sizes[i].tolist())):
            (height, width), (its_height, its_width) = size, classes.shape
            raise DataError(
                f"{printable(self.paths[i])}: expected the class of each of {width}x{height} pixels, as the image has, found "
                f"{its_width}x{its_height}; replace the map"
            )
        return classes

    def content(self) -> bytes:
        names = (
            os.fsencode(path) + b"\0" + stamp.hex().encode()
            for path, stamp in zip(self.paths, self.stamps, strict=True)
        )
        return b"\0".join([*names, b"" if self.sizes is None else self.sizes.tobytes()])

    def select(self, indices: NDArray[np.int64]) -> "LabelMaps":
        paths, stamps = ([values[i] for i in indices.tolist()] for values in (self.paths, self.stamps))
        return LabelMaps(paths, self.classes, self._read, stamps, None if self.sizes is None else self.sizes[indices])


def fingerprint(targets: Targets | None) -> str:
    """Return the SHA-256 of content and classes."""
    digest = hashlib.sha256(b"" if targets is None else targets.content())
    for name in () if targets is None else targets.classes:
        digest.update(b"\0" + os.fsencode(name))
    return digest.hexdigest()
