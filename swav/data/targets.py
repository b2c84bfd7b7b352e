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
        objects: of each image.

    Attributes:
        sizes: height and width of each image, as its boxes count them [N, 2].
        ids: number of each image in its data set [N].
        dropped: how many objects of the data set were left out, by reason.
    """

    def __init__(
        self,
        objects: Iterable[Objects],
        classes: Sequence[str],
        *,
        sizes: Int64[np.ndarray, "N 2"],
        ids: Int64[np.ndarray, " N"],
        dropped: Mapping[str, int] | None = None,
    ):
        self.classes, self.sizes, self.ids, self.dropped = list(classes), sizes, ids, dict(dropped or {})
        found = [*objects]
        fields = [[getattr(each, name) for each in found] for name in _NONE._fields[:-1]]
        self._fields = [np.concatenate([none, *parts]) for none, parts in zip(_NONE[:-1], fields, strict=True)]
        texts = [[json.dumps(mask).encode() for mask in each.masks] for each in found]
        self._masks = np.frombuffer(b"".join(itertools.chain(*texts)), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, found)])
        self._mask_ends = np.cumsum([0, *map(len, itertools.chain(*texts))])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Objects:
        first, end = self._ends[i], self._ends[i + 1]
        boxes, labels, difficult, crowd, area, numbers = (field[first:end] for field in self._fields)
        ends = self._mask_ends[first : end + 1].tolist()  # one 0, where there are no masks
        masks = [json.loads(self._masks[a:b].tobytes()) for a, b in itertools.pairwise(ends)]
        return Objects(boxes, labels, difficult, crowd, area, numbers, masks)

    def content(self) -> bytes:
        arrays = [self.sizes, self.ids, self._ends, *self._fields, self._mask_ends, self._masks]
        return b"".join(hashlib.sha256(np.ascontiguousarray(array).data).digest() for array in arrays)

    def select(self, indices: NDArray[np.int64]) -> "ObjectSets":
        sizes, ids = self.sizes[indices], self.ids[indices]
        return ObjectSets((self[int(i)] for i in indices), self.classes, sizes=sizes, ids=ids, dropped=self.dropped)


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

    Raises (of `read`):
        DataError: a map is damaged, or holds an index that is no class.
    """

    def __init__(
        self,
        paths: Iterable[str],
        classes: Sequence[str],
        read: Callable[[str], UInt8[np.ndarray, "H W"]],
        stamps: Sequence[bytes],
    ):
        self.paths, self.classes, self.stamps, self._read = list(paths), list(classes), list(stamps), read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> UInt8[np.ndarray, "H W"]:
        return self._read(self.paths[i])

    def content(self) -> bytes:
        return b"\0".join(
            os.fsencode(path) + b"\0" + stamp for path, stamp in zip(self.paths, self.stamps, strict=True)
        )

    def select(self, indices: NDArray[np.int64]) -> "LabelMaps":
        chosen = indices.tolist()
        return LabelMaps([self.paths[i] for i in chosen], self.classes, self._read, [self.stamps[i] for i in chosen])


def fingerprint(targets: Targets | None) -> str:
    """Return the SHA-256 of content and classes."""
    digest = hashlib.sha256(b"" if targets is None else targets.content())
    for name in () if targets is None else targets.classes:
        digest.update(b"\0" + os.fsencode(name))
    return digest.hexdigest()
