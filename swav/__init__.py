"""SwAV: self-supervised pre-training by swapping cluster assignments, and the benchmarks by which it is judged.

The names below are fetched when first used, so that `import swav` costs nothing.
"""

import importlib
from typing import Any

_HOMES = {
    "pretrain": "swav.training.loop",
    "bench": "swav.evaluation.runner",
    "load": "swav.weights.encoder",
    "report": "swav.reporting.page",
    "sinkhorn_codes": "swav.algorithm",
    "swapped_loss": "swav.algorithm",
    "Queue": "swav.algorithm",
}
__all__ = ["Queue", "bench", "load", "pretrain", "report", "sinkhorn_codes", "swapped_loss"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'swav' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
