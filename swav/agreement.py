"""What all processes that work together must have in common: settings, code and images.

torchrun starts every process with a command of its own, on machines with code and disks of their own. Processes that
differ would train or score together all the same, and the numbers would be nobody's.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swav import dist
from swav.data.images import Images
from swav.data.sources.walk import path_of
from swav.errors import ConfigError
from swav.system import versions

SAMPLED = 256  # images that every process looks for
_MOST_KEYS = 4  # that are named in the message


def require_agreement(values: Mapping[str, Any]) -> None:
    """Compare values over all processes. Every process calls it, at the same place.

    Args:
        values: by name, as JSON can hold them.

    Raises:
        ConfigError: on every process, if a value differs; with the names, and the ranks that have each value.
    """
    if not dist.is_active():
        return
    views = dist.gather_objects({key: json.dumps(value, sort_keys=True) for key, value in values.items()})
    keys = list(dict.fromkeys(key for view in views for key in view))
    differing = [key for key in keys if len({view.get(key) for view in views}) > 1]
    if differing:
        rows = "; ".join(
            f"{key}: {_by_value([view.get(key, 'none') for view in views])}" for key in differing[:_MOST_KEYS]
        )
        more = f"; and {len(differing) - _MOST_KEYS} more" if len(differing) > _MOST_KEYS else ""
        raise ConfigError(
            f"expected {len(views)} processes with equal settings, code and images, found different ones\n{rows}{more}\n"
            "start all with the same command, the same version, and the same data in the same place"
        )


def _by_value(values: list[str]) -> str:
    """As `16 on rank 0, 1; 32 on rank 2`, the most frequent value first."""
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(str(rank))
    shown = sorted(ranks.items(), key=lambda item: -len(item[1]))
    return ", ".join(f"{value[:60]} on rank {_few(where)}" for value, where in shown[:3])


def _few(ranks: list[str]) -> str:
    return "+".join(ranks[:4]) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")


def code() -> dict[str, str]:
    """Versions, and a hash of the package's source files: two checkouts may have the same version."""
    if not dist.is_active():
        return {}
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return {name: versions()[name] for name in ("swav", "torch")} | {"source of swav": digest.hexdigest()[:12]}


def seen(images: Images, seed: int) -> str:
    """How many of some drawn images this process finds as they are listed, by their size.

    The list is the first process's, from a walk through all folders. To repeat the walk on each of hundreds of processes
    would cost a shared file system more than training does; a disk without the data, or with other data of the same
    names, shows in a sample. (What is unreadable later is listed as such, within `max_unreadable`.)
    """
    if images.in_memory or not dist.is_active():  # in memory every process has the first one's
        return "all images"
    count = min(SAMPLED, len(images))
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    there = sum(_size(images, int(i)) == images.rows["size"][i] for i in chosen)
    return f"{there} of {count} sampled images as listed"


def _size(images: Images, i: int) -> int:
    try:
        return os.stat(path_of(images.root, os.fsencode(images.name(i)))).st_size  # noqa: PTH116  # pathlib knows no bytes
    except OSError:
        return -1
