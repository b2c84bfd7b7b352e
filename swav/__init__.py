"""SwAV: pre-train vision backbones on images without labels, and measure what they learned.

The commands, as functions:

    pretrain(recipe, *, out, ...)              pre-train a network, or resume the run in `out`
    bench(names, *, weights, data, out, ...)   run benchmarks on weights of any origin, or on a module
    classify(data, *, weights, out, ...)       a classifier on frozen features, and what it says of new images
    load(weights)                              an Encoder: normalised images [N, C, H, W] to features [N, F]
    report(folder)                             write the report of a run or of results

The parts, for a training loop of your own (docs/own_loop.md is a complete one):

    MultiCrop                                  the augmented views of an image
    ProjectionHead, Prototypes                 features to unit embeddings, and these to scores
    sinkhorn_codes, swapped_loss, Queue        codes, loss, and embeddings of earlier batches
    normalize_prototypes_                      at the start of each step

Types and errors: Encoder, Recipe; SwavError is the base of ConfigError, DataError, MachineError, NumericsError,
CheckpointError and Stopped.

Details: help(swav.bench) and so on. Every name is imported when it is first used: `import swav` is free of torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swav.algorithm import Queue, normalize_prototypes_, sinkhorn_codes, swapped_loss
    from swav.config import Recipe
    from swav.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MachineError,
        NumericsError,
        Stopped,
        SwavError,
    )
    from swav.evaluation.classify import classify
    from swav.evaluation.runner import bench
    from swav.network.heads import ProjectionHead, Prototypes
    from swav.reporting.page import report
    from swav.training.loop import pretrain
    from swav.views import MultiCrop
    from swav.weights.encoder import Encoder, load

    __version__: str

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Encoder",
    "MachineError",
    "MultiCrop",
    "NumericsError",
    "ProjectionHead",
    "Prototypes",
    "Queue",
    "Recipe",
    "Stopped",
    "SwavError",
    "__version__",
    "bench",
    "classify",
    "load",
    "normalize_prototypes_",
    "pretrain",
    "report",
    "sinkhorn_codes",
    "swapped_loss",
]

# What the block above says to type checkers, said to Python.
_HOMES = {
    "swav.algorithm": ("Queue", "normalize_prototypes_", "sinkhorn_codes", "swapped_loss"),
    "swav.config": ("Recipe",),
    "swav.views": ("MultiCrop",),
    "swav.errors": (
        "CheckpointError",
        "ConfigError",
        "DataError",
        "MachineError",
        "NumericsError",
        "Stopped",
        "SwavError",
    ),
    "swav.evaluation.classify": ("classify",),
    "swav.evaluation.runner": ("bench",),
    "swav.network.heads": ("ProjectionHead", "Prototypes"),
    "swav.reporting.page": ("report",),
    "swav.training.loop": ("pretrain",),
    "swav.weights.encoder": ("Encoder", "load"),
}

if not TYPE_CHECKING:  # a type checker that saw this function would take every misspelt name for an attribute

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from swav.version import swav_version

            return swav_version()
        for module, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module 'swav' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__"})
