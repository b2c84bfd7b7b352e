"""What a detector found in a set of images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64


@dataclasses.dataclass(frozen=True)
class Detections:
    """Detections in a set of images, in any order.

    Attributes:
        images: the image of each, as an index into the set.
        labels: indices into the classes.
        scores: the higher, the surer.
        boxes: left, top, right, bottom [pixels of the original image], in the convention of the set's own boxes.
        masks: per detection a run-length code of the image's size; empty where there are none.
    """

    images: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    scores: Float32[np.ndarray, " n"]
    boxes: Float32[np.ndarray, "n 4"]
    masks: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.labels)


def require_known(found: Detections, images: int, classes: int) -> None:
    """Refuse detections in images, or of classes, that the set doesn't have.

    Raises:
        ValueError: an index is out of range.
    """
    for name, indices, count in (("images", found.images, images), ("labels", found.labels, classes)):
        if len(indices) and not (indices.min() >= 0 and indices.max() < count):
            raise ValueError(
                f"detections: expected {name} from 0 to {count - 1}, found {indices.min()} to {indices.max()}; "
                "give indices into the set's images and classes"
            )
