"""What is known about each image: one class, or which of several classes it shows. Boxes and masks will join them."""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int8, Int64
from numpy.typing import NDArray


@runtime_checkable
class Targets(Protocol):
    """Targets of a sequence of images, in its order.

    Attributes:
        classes: names of the classes.
        values: per image.
    """

    @property
    def classes(self) -> list[str]: ...
    @property
    def values(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def select(self, indices: NDArray[np.int64]) -> "Targets":
        """Return the targets at these indices, in this order."""
        ...


class ClassLabels:
    """One class per image: indices into `classes`."""

    def __init__(self, values: Int64[np.ndarray, " N"], classes: Sequence[str]):
        self.values, self.classes = values, list(classes)

    def __len__(self) -> int:
        return len(self.values)

    def select(self, indices: NDArray[np.int64]) -> "ClassLabels":
        return ClassLabels(self.values[indices], self.classes)


class MultiLabels:
    """Which classes an image shows: 1 present, 0 ignored (difficult ones only), -1 absent."""

    def __init__(self, values: Int8[np.ndarray, "N C"], classes: Sequence[str]):
        self.values, self.classes = values, list(classes)

    def __len__(self) -> int:
        return len(self.values)

    def select(self, indices: NDArray[np.int64]) -> "MultiLabels":
        return MultiLabels(self.values[indices], self.classes)


def fingerprint(targets: Targets | None) -> str:
    """Return the SHA-256 of values and classes."""
    digest = hashlib.sha256(b"" if targets is None else targets.values.tobytes())
    for name in () if targets is None else targets.classes:
        digest.update(b"\0" + os.fsencode(name))
    return digest.hexdigest()
