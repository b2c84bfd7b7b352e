"""How a file's tensors agree with those of a network that it may hold."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from swav.weights.pickle_vm import TensorRef, shown

Shape = tuple[int, ...]
Tensors = Mapping[str, TensorRef]


@dataclasses.dataclass(frozen=True)
class Model:
    """A network that a file may hold.

    Attributes:
        name: of it.
        shapes: of its tensors, by our names.
        settings: of a recipe, that build it.
        backbone: the network itself, where no recipe can build it.
        note: on it, for whoever uses it.
        classifier: names of the tensors of a classifier that it is built without.
    """

    name: str
    shapes: Mapping[str, Shape]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trunk: nn.Module | None = None
    note: str = ""
    classifier: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a file's tensors agree with a model's.

    Attributes:
        model: which.
        prefix: of the backbone's names in the file.
        numbered: its children have numbers for names.
        places: {our name: the file's name}, of those that agree.
        missing, wrong, surplus: names of those that do not.
    """

    model: Model
    prefix: str
    numbered: bool
    places: Mapping[str, str]
    missing: Sequence[str]
    wrong: Sequence[str]
    surplus: Sequence[str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.wrong) + len(self.surplus)


def compared(model: Model, prefix: str, numbered: bool, names: Mapping[str, str], tensors: Tensors) -> Fit:
    """Compare a model's tensors with those of a file whose names begin with a prefix, as far as they are of its modules.

    Args:
        model: which.
        prefix: of the names.
        numbered: the file has numbers for the names of its children.
        names: {name as ours: the file's name}.
        tensors: of the file.
    """
    modules = {_top(key) for key in model.shapes}
    there = {
        name.removeprefix(prefix): given
        for name, given in names.items()
        if name.startswith(prefix) and _top(name.removeprefix(prefix)) in modules
    }
    missing = [key for key in model.shapes if key not in there and not _is_counter(key)]
    wrong = [
        f"{shown(there[key])} {list(tensors[there[key]].shape)} instead of {list(shape)}"
        for key, shape in model.shapes.items()
        if key in there and tensors[there[key]].shape != shape
    ]
    surplus = [shown(given) for key, given in there.items() if key not in model.shapes and key not in model.classifier]
    places = {
        key: there[key] for key, shape in model.shapes.items() if key in there and tensors[there[key]].shape == shape
    }
    return Fit(model, prefix, numbered, places, missing, wrong, surplus)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_counter(name: str) -> bool:
    """BatchNorm's number of batches: torch before 0.4.1 had none, and nothing depends on it here."""
    return name.endswith("num_batches_tracked")
