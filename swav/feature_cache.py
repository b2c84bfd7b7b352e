"""Frozen features on disk: computed once per weights, images and view, read by every benchmark that augments nothing.

OUT/features/KEY/ holds an array per kind (`stage1.npy` ... `stage5.npy`, `pooled.npy`; float32, a row per readable image)
and `cache.json`: what they are of, how far they are, and which images could not be read. KEY and cache.json name the
weights' SHA-256, the network's architecture, the images' fingerprint and times of change, the view, its size, normalisation
and precision; a folder that says another thing than is asked for is not used. An interrupted pass goes on from the last note
in cache.json.

Arrays are memory-mapped: the page cache holds them once for all that read them, and gives way when memory is short.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from swav.data.images import Images
from swav.errors import DataError, NumericsError
from swav.features import Precision, View, features_of, read_views, stage_features_of, stage_grids
from swav.files import write_text_durably
from swav.network.encoder import Encoder
from swav.runtime import Progress, environment_errors, fault_point
from swav.signals import end_asked_for, note_saved, stop_if_asked

VERSION = 2  # of the arrays' meaning: another one is computed again
BATCH = {"cpu": 64, "cuda": 256}
NOTED_IMAGES = 2048  # after so many, what was computed is made durable
NOTE = "cache.json"
ADVICE = "check the weights and their normalisation, or use precision=fp32"


class Cached(NamedTuple):
    """Features of the readable images of a data set, in their order.

    Attributes:
        stages: pooled maps of each stage [N, D], where asked for.
        pooled: the trunk's features [N, F], where asked for.
        kept: places of the readable images in the sequence.
    """

    stages: list[Float32[np.ndarray, "N D"]]
    pooled: Float32[Tensor, "N F"] | None
    kept: np.ndarray


def cached_features(
    encoder: Encoder,
    images: Images,
    size: int,
    *,
    out: Path,
    stages: bool,
    pooled: bool,
    view: View = "centre",
    workers: int,
    device: torch.device,
    progress: Progress,
    precision: Precision = "fp32",
) -> Cached:
    """Reads features from OUT/features, and computes first what is not there yet: all kinds asked for in one pass.

    Args:
        encoder: on `device`, in eval mode.
        size: side of the view [pixels].
        out: folder of the results.
        stages, pooled: kinds that are asked for.
        progress: is told how many images are done.

    Raises:
        ConfigError: stages are asked for, and the trunk has none.
        DataError: no image can be read.
        NumericsError: a feature is not finite.
        EnvironmentError_: a loader process died, or the disk is full.
        Stopped: a signal asked for an end; what was computed is saved.
    """
    identity = {
        "version": VERSION,
        "weights_sha256": encoder.sha256,
        "network": encoder.architecture,
        "images": images.fingerprint,
        "changed": hashlib.sha256(images.rows["time"].tobytes()).hexdigest(),  # in place, at the same size
        "view": [view, size],
        "normalisation": [list(encoder.mean), list(encoder.std)],
        "precision": precision,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = out / "features" / key
    kinds = [f"stage{i + 1}" for i in range(len(encoder.stage_channels))] if stages else []
    if stages and not kinds:
        encoder.stages(torch.empty(0, encoder.in_channels, 1, 1))  # has the words for it
    kinds += ["pooled"] if pooled else []
    note = _note(folder, identity, len(images), progress)
    base, total = progress.done, progress.total
    for _ in range(2):
        missing = [kind for kind in kinds if note["done"].get(kind, 0) < len(images)]
        if missing:
            with environment_errors():
                _compute(encoder, images, size, view, folder, note, missing, workers, device, progress, precision)
        left_out = [note["unreadable"].get(kind, []) for kind in kinds]
        if all(its == left_out[0] for its in left_out):
            break
        note |= {"done": {}, "unreadable": {}}  # at another time other images could be read: all kinds in one pass
        progress.update(base)
    progress.update(min(base + len(images), total))
    kept = np.delete(np.arange(len(images)), left_out[0])
    if not len(kept):
        raise DataError(f"{images.root}: expected readable images, found none among {len(images)}; check the files")
    arrays = {kind: np.load(folder / f"{kind}.npy", mmap_mode="c")[: len(kept)] for kind in kinds}
    vectors = torch.from_numpy(arrays.pop("pooled")) if pooled else None
    return Cached(list(arrays.values()), vectors, kept)


def _note(folder: Path, identity: dict[str, Any], count: int, progress: Progress) -> dict[str, Any]:
    """What is there already; a fresh note where that is nothing, or of something else, or damaged, which is said."""
    fresh: dict[str, Any] = {"of": identity, "done": {}, "unreadable": {}}
    if not folder.is_dir():
        for other in sorted(folder.parent.glob(f"*/{NOTE}")):
            its = _read(other).get("of", {})
            same = {key for key in identity if its.get(key) == identity[key]}
            if same == set(identity) - {"weights_sha256"}:
                progress.say(
                    f"{other.parent}: features of other weights ({str(its.get('weights_sha256'))[:12]}) are left alone"
                )
        return fresh
    note = _read(folder / NOTE)
    if note.get("of") != identity:
        progress.say(f"{folder}: expected features of these weights and images, found others; computed again")
        return fresh
    for kind in list(note["done"]):
        try:
            damaged = len(np.load(folder / f"{kind}.npy", mmap_mode="r")) != count
        except (OSError, ValueError):
            damaged = True
        if damaged:
            progress.say(
                f"{folder}/{kind}.npy: expected features of {count} images, found a damaged file; computed again"
            )
            del note["done"][kind]
    return note


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and {"of", "done", "unreadable"} <= set(content)
    return content if whole else {}


def _compute(
    encoder: Encoder,
    images: Images,
    size: int,
    view: View,
    folder: Path,
    note: dict[str, Any],
    kinds: list[str],
    workers: int,
    device: torch.device,
    progress: Progress,
    precision: Precision,
) -> None:
    """Fills the arrays of these kinds in one pass, from the place that all of them have reached."""
    folder.mkdir(parents=True, exist_ok=True)
    done = min(note["done"].get(kind, 0) for kind in kinds)
    known = [[i for i in note["unreadable"].get(kind, []) if i < done] for kind in kinds]
    if any(its != known[0] for its in known):
        done, known = 0, [[]]
    row = done - len(known[0])
    unreadable = set(known[0])
    arrays: dict[str, np.memmap[Any, Any]] = {}
    if any(note["done"].get(kind, 0) > done for kind in kinds):  # is about to be overwritten
        note["done"] |= dict.fromkeys(kinds, done)
        note["unreadable"] |= dict.fromkeys(kinds, known[0])
        write_text_durably(folder / NOTE, json.dumps(note) + "\n")
    batch, base = BATCH.get(device.type, BATCH["cpu"]), progress.done
    progress.update(base + done)
    last = done
    for number, (views, places) in enumerate(read_views(images, size, batch, workers, view, done)):
        here = done + number * batch
        end = min(here + batch, len(images))
        unreadable |= set(range(here, end)) - set(places)
        if places:
            found = _kinds_of(encoder, torch.from_numpy(views), device, precision, kinds)
            for kind, part in found.items():
                if not torch.isfinite(part).all():
                    raise NumericsError(f"{encoder.name}: expected finite features, found others in {kind}; {ADVICE}")
                if kind not in arrays:
                    arrays[kind] = _array(folder / f"{kind}.npy", (len(images), part.shape[1]), keep=done > 0)
                arrays[kind][row : row + len(places)] = part.cpu().numpy()
            row += len(places)
        if end - last >= NOTED_IMAGES or end == len(images) or end_asked_for()[0]:
            for array in arrays.values():
                array.flush()
            if arrays:
                note["done"] |= dict.fromkeys(kinds, end)
            note["unreadable"] |= dict.fromkeys(kinds, sorted(unreadable))
            write_text_durably(folder / NOTE, json.dumps(note) + "\n")
            last = end
            fault_point("features:noted")
            note_saved()
            stop_if_asked()
        progress.update(min(base + end, progress.total))


def _kinds_of(
    encoder: Encoder, views: Tensor, device: torch.device, precision: Precision, kinds: list[str]
) -> dict[str, Tensor]:
    if kinds == ["pooled"]:
        return {"pooled": features_of(encoder, views, device, precision)}
    names = [f"stage{i + 1}" for i in range(len(stage_grids(encoder.stage_channels)))]
    pooled = "pooled" in kinds
    found = stage_features_of(encoder, views, device, precision, pooled=pooled)
    named = dict(zip([*names, "pooled"], found, strict=False))
    return {kind: named[kind] for kind in kinds}


def _array(path: Path, shape: tuple[int, int], keep: bool) -> "np.memmap[Any, Any]":
    """The file to fill: that of an earlier sitting, where there is one of this shape, or a new one."""
    if keep:
        array: np.memmap[Any, Any] = np.load(path, mmap_mode="r+")
        return array
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without a word
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
