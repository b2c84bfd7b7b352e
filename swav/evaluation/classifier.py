"""The classifier that `swav classify` keeps: a logistic layer on frozen features, in two files that need no swav.

OUT/classifier.safetensors: `mean` and `scale` [F] of the features, `weight` [C, F] and `bias` [C] of the layer, `classes` [C], places
in the list of names. Scores of an image's features f are (f - mean) / scale @ weight.T + bias; their softmax is the confidence.
OUT/classifier.json: format, names of the classes, weights and view that the features are of, cost, and the other file's SHA-256.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from swav.evaluation.logistic import LogisticLayer
from swav.files import remove_leftovers, warn, write_durably, write_text_durably

TENSORS, DESCRIPTION = "classifier.safetensors", "classifier.json"
FORMAT = 1
ARRAYS = ("mean", "scale", "weight", "bias", "classes")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A layer, and what it is for.

    Attributes:
        layer: as fitted.
        classes: names.
        of: weights, images, labels and settings that it was made of; a classifier of others is another one.
        view: of images, that it takes features of, for people and other programs.
    """

    layer: LogisticLayer
    classes: list[str]
    of: dict[str, Any]
    view: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write both files, each in one step, the description last. Only for the holder of the folder's lock."""
        arrays = {name: np.ascontiguousarray(getattr(self.layer, name)) for name in ARRAYS}
        content = safetensors.numpy.save(arrays)
        description = {
            "format": FORMAT,
            "classes": self.classes,
            "view": self.view,
            "cost": self.layer.cost,
            "iterations": self.layer.iterations,
            "converged": self.layer.converged,
            "tensors_sha256": hashlib.sha256(content).hexdigest(),
            "of": self.of,
        }
        for name in (TENSORS, DESCRIPTION):
            remove_leftovers(folder / name)
        write_durably(folder / TENSORS, content)
        write_text_durably(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def read_classifier(folder: Path, of: dict[str, Any]) -> Classifier | None:
    """Read the classifier of a folder; None where there is none of these weights, images, labels and settings.

    Args:
        of: what it must have been made of.
    """
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["of"] != json.loads(json.dumps(of)):
            return None
        content = (folder / TENSORS).read_bytes()
        if hashlib.sha256(content).hexdigest() != found["tensors_sha256"]:
            raise ValueError("the tensors are not those that it describes")
        arrays = safetensors.numpy.load(content)
        parts = {name: arrays[name] for name in ARRAYS}
        layer = LogisticLayer(**parts, cost=found["cost"], iterations=found["iterations"], converged=found["converged"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        warn(f"{folder / DESCRIPTION}: expected a classifier, found {type(error).__name__} ({error}); it is made again")
        return None
    return Classifier(layer, found["classes"], found["of"], found["view"])
