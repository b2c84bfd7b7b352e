"""Frozen features: computed once per weights, images and view, from memory or from a folder that all benchmarks share.

OUT/features/KEY/ holds an array per kind (`stage1.npy` ... `stage5.npy`, `pooled.npy`; float32, a row per readable image)
and `cache.json`: what they are of, how far they are, the SHA-256 of their parts, and which images could not be read or are
damaged. KEY and cache.json name the weights' SHA-256, the network's architecture, the images' fingerprint and times of change,
the view, its size, normalisation and precision; a folder that says another thing than is asked for is not used.

Any number of processes may share OUT. One of them writes to KEY, by its lock; others that want the same features wait and then
read them. An array that is being filled has a name of its own (`.part`) and is renamed when it is whole; what is damaged is
replaced, not rewritten: so what a process has mapped never changes under it. An interrupted pass resumes from the last note in
cache.json whose parts are as their checksums say.

Arrays are memory-mapped: the page cache holds them once for all that read them, and gives way when memory is short.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from swav.data.images import Images
from swav.errors import DataError, MachineError, NumericsError
from swav.feature_files import Noted, Notes, Part, array_to_fill, read_notes, read_object, verified, write_notes
from swav.features import EvaluationView, Precision, features_of, read_views, stage_features_of
from swav.files import FileLock, remove_leftovers, sync_folder, visible
from swav.progress import Progress
from swav.signals import end_asked_for, note_saved, stop_if_asked
from swav.system import environment_errors, fault_point
from swav.weights.encoder import Encoder

VERSION = 3  # of the arrays' meaning and their note: another one is computed again. (2: without checksums.)
BATCH = {"cpu": 64, "cuda": 256}
NOTED_IMAGES = 2048  # after so many, what was computed is made durable
NOTE = "cache.json"
PART = ".part"
_given: set[Path] = set()  # folders whose features this process has read or written: no news to who asked for them
ADVICE = "check the weights and their normalisation, or use precision=fp32"


class FrozenFeatures(NamedTuple):
    """Features of the readable images of a data set, in their order.

    Attributes:
        stages: pooled maps of each stage [N, D], where asked for.
        pooled: the backbone's features [N, F], where asked for; on the CPU.
        kept: places of the readable images in the sequence.
    """

    stages: list[Float32[np.ndarray, "N D"]]
    pooled: Float32[Tensor, "N F"] | None
    kept: np.ndarray


class FeatureStore:
    """Frozen features of one network on one view of some images.

    Args:
        encoder: on `device`, in eval mode.
        images: labelled or not. If they are read as Pillow reads them, damaged ones are noted in `images.damaged`.
        view: of each image.
        out: folder of the results, whose features/ keeps them; None: they are computed anew and kept in memory only.
        device: to compute on.
        workers: loader processes; 0: decode here.
        precision: bf16 computes under autocast.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        view: EvaluationView,
        *,
        out: Path | None,
        device: torch.device,
        workers: int,
        precision: Precision = "fp32",
    ):
        self.encoder, self.images, self.view, self.out = encoder, images, view, out
        self.device, self.workers, self.precision = device, workers, precision

    def get(self, *, stages: bool = False, pooled: bool = True, progress: Progress | None = None) -> FrozenFeatures:
        """Return features, all kinds asked for in one pass over what is not there yet. Wait while another process computes
        the same.

        Args:
            stages, pooled: kinds that are asked for.
            progress: is updated with the number of images done.

        Raises:
            ValueError: no kind is asked for.
            ConfigError: stages are asked for, and the backbone has none.
            DataError: no image can be read.
            NumericsError: a feature is not finite (where they are kept in a folder).
            MachineError: a loader process died, or the disk is full or does not give back what was written.
            Stopped: a signal asked for an end; what was computed is saved.
        """
        if not stages and not pooled:
            raise ValueError("expected stages=True or pooled=True, found neither")
        kinds = stage_kinds(self.encoder) if stages else []
        kinds += ["pooled"] if pooled else []
        progress = Progress("features", len(self.images), quiet=True) if progress is None else progress
        if self.out is None:
            arrays, kept = _in_memory(self, kinds, progress)
        else:
            arrays, kept = _from_folder(self, self.out, kinds, progress)
        vectors = torch.from_numpy(arrays.pop("pooled")) if pooled else None
        return FrozenFeatures(list(arrays.values()), vectors, kept)


def stage_kinds(encoder: Encoder) -> list[str]:
    """Return the names of the arrays of a network's stages.

    Raises:
        ConfigError: it has none.
    """
    if not encoder.stage_channels:
        encoder.stages(torch.empty(0, encoder.in_channels, 1, 1))  # raises the error
    return [f"stage{i + 1}" for i in range(len(encoder.stage_channels))]


def _nothing_readable(images: Images) -> DataError:
    return DataError(f"{images.root}: expected readable images, found none among {len(images)}; check the files")


# -- in memory


def _in_memory(store: FeatureStore, kinds: list[str], progress: Progress) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images, batch = store.images, BATCH.get(store.device.type, BATCH["cpu"])
    arrays: dict[str, np.ndarray] = {}
    kept: list[int] = []
    for views, places in read_views(images, store.view, batch, store.workers):
        stop_if_asked()
        found = _kinds_of(store, torch.from_numpy(views), kinds) if places else {}
        for kind, part in found.items():
            if kind not in arrays:  # filled in place: at ImageNet's size a second copy would be 10 GB
                arrays[kind] = np.empty((len(images), part.shape[1]), np.float32)
            arrays[kind][len(kept) : len(kept) + len(part)] = part.cpu().numpy()
        kept += places
        progress.update(min(progress.done + batch, progress.total))
    if not kept:
        raise _nothing_readable(images)
    return {kind: arrays[kind][: len(kept)] for kind in kinds}, np.array(kept)


# -- in a folder


@dataclasses.dataclass(frozen=True)
class _Work:
    """A pass over the images of a store, and the folder that it fills."""

    store: FeatureStore
    folder: Path
    identity: dict[str, Any]
    progress: Progress

    @property
    def images(self) -> Images:
        return self.store.images

    @property
    def encoder(self) -> Encoder:
        return self.store.encoder


def _from_folder(
    store: FeatureStore, out: Path, kinds: list[str], progress: Progress
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    encoder, images = store.encoder, store.images
    identity = {
        "version": VERSION,
        "weights_sha256": encoder.sha256,
        "network": encoder.architecture,
        "images": images.content_fingerprint,
        "damaged": "as Pillow reads them" if images.as_pillow else "left out",
        "view": list(store.view),
        "normalisation": [list(encoder.mean), list(encoder.std)],
        "precision": store.precision,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    work = _Work(store, out / "features" / key, identity, progress)
    base, total = progress.done, progress.total
    found = _there(work, kinds)
    if found is None:
        owner = f"the features of {encoder.name} in {work.folder}"
        with environment_errors(), FileLock(work.folder / ".lock", owner, progress.say, base=out):
            found = _there(work, kinds) or _computed(work, kinds)
    arrays, noted = found
    _given.add(work.folder)
    progress.update(min(base + len(images), total))
    kept = np.delete(np.arange(len(images)), noted.unreadable)
    if not len(kept):
        raise _nothing_readable(images)
    images.damaged.update(images.name(i) for i in noted.damaged)
    return arrays, kept


Found = tuple[dict[str, np.ndarray], Noted]  # arrays by kind, and what is noted of all of them alike


def _there(work: _Work, kinds: Sequence[str]) -> Found | None:
    """The arrays, where all of these kinds are whole and as their checksums say; needs no lock, as whole ones never change."""
    notes = read_notes(work.folder / NOTE, work.identity)
    if notes is None or not all(kind in notes and notes[kind].done == len(work.images) for kind in kinds):
        return None
    if any(_omitted(notes[kind]) != _omitted(notes[kinds[0]]) for kind in kinds):
        return None
    arrays = {}
    for kind in kinds:
        array = verified(_place(work, kind), notes[kind], len(work.images))
        if array is None:
            return None
        arrays[kind] = array
    return arrays, notes[kinds[0]]


def _omitted(noted: Noted) -> tuple[list[int], list[int]]:
    return noted.unreadable, noted.damaged


def _computed(work: _Work, kinds: Sequence[str]) -> Found:
    """Compute what is missing or damaged, under the lock."""
    remove_leftovers(work.folder / NOTE)
    notes, base = _sound(work), work.progress.done
    for _ in range(2):
        missing = [kind for kind in kinds if kind not in notes or notes[kind].done < len(work.images)]
        if missing:
            _compute(work, notes, missing)
        if all(_omitted(notes[kind]) == _omitted(notes[kinds[0]]) for kind in kinds):
            break
        for kind in kinds:  # at another time other images could be read: all kinds in one pass
            del notes[kind]
        work.progress.update(base)
    found = _there(work, kinds)
    if found is None:
        raise MachineError(f"{work.folder}: expected what was written, found other bytes; check the disk and memory")
    return found


def _sound(work: _Work) -> Notes:
    """What is there already and verifies; nothing where that is of something else or damaged, which is said."""
    folder, say = work.folder, work.progress.say
    if not (folder / NOTE).exists():
        _say_what_else_there_is(work)
        return {}
    notes = read_notes(folder / NOTE, work.identity)
    if notes is None:
        say(f"{folder}: expected features of these weights and images, found others; computed again")
        return {}
    count = len(work.images)
    for kind, noted in list(notes.items()):
        path, part = _place(work, kind), _place(work, kind, PART)
        whole = noted.done == count
        if whole and verified(path, noted, count) is None and verified(part, noted, count) is not None:
            _publish(work, [kind])  # a process was killed between its note and this
        if verified(path if whole else part, noted, count) is None:
            say(f"{path if whole else part}: expected features of {count} images, found a damaged file; computed again")
            del notes[kind]
    return notes


def _say_what_else_there_is(work: _Work) -> None:
    """Features that differ in one thing only from those asked for, as after a change of weights. One command that scores
    several weights says nothing of its own."""
    for path in (folder / NOTE for folder in visible(work.folder.parent)):
        its = read_object(path).get("of")
        if not isinstance(its, dict):
            continue
        other = {key for key in work.identity if its.get(key) != work.identity[key]}
        if other == {"weights_sha256"} and path.parent not in _given:
            sha = str(its.get("weights_sha256"))[:12]
            work.progress.say(f"{path.parent}: features of other weights ({sha}) are left alone")
        elif other <= {"version", "damaged"} and its.get("version", VERSION) < VERSION:
            work.progress.say(f"{path.parent}: features without checksums are not used; it may be deleted")


def _compute(work: _Work, notes: Notes, kinds: list[str]) -> None:
    """Fill the arrays of these kinds in one pass, from the last note that all of them have alike."""
    images, progress = work.images, work.progress
    start = _start(notes, kinds)
    notes |= {kind: notes.get(kind, Noted()).up_to(start) for kind in kinds}
    write_notes(work.folder / NOTE, work.identity, notes)  # first: what is behind is about to be overwritten
    unreadable, damaged = map(set, _omitted(notes[kinds[0]]))
    row = notes[kinds[0]].rows
    arrays: dict[str, np.memmap[Any, Any]] = {}
    digests = {kind: hashlib.sha256() for kind in kinds}
    batch, base = BATCH.get(work.store.device.type, BATCH["cpu"]), progress.done
    progress.update(base + start)
    last, last_row = start, row
    for number, (views, places) in enumerate(
        read_views(images, work.store.view, batch, work.store.workers, start, True)
    ):
        here = start + number * batch
        end = min(here + batch, len(images))
        unreadable |= set(range(here, end)) - set(places)
        damaged |= {i for i in places if images.name(i) in images.damaged} if images.damaged else set()
        found = _kinds_of(work.store, torch.from_numpy(views), kinds) if places else {}
        for kind, part in found.items():
            if not torch.isfinite(part).all():
                raise NumericsError(f"{work.encoder.name}: expected finite features, found others in {kind}; {ADVICE}")
            values = part.cpu().numpy()
            if kind not in arrays:
                arrays[kind] = array_to_fill(_place(work, kind, PART), (len(images), values.shape[1]), keep=row > 0)
            arrays[kind][row : row + len(places)] = values
            digests[kind].update(values.tobytes())
        row += len(places)
        if end - last >= NOTED_IMAGES or end == len(images) or end_asked_for()[0]:
            for kind in kinds:
                part_of_it = Part(end, row - last_row, digests[kind].hexdigest())
                columns = notes[kind].columns
                if kind in arrays:
                    arrays[kind].flush()
                    columns = arrays[kind].shape[1]
                notes[kind] = Noted(columns, [*notes[kind].parts, part_of_it], sorted(unreadable), sorted(damaged))
            write_notes(work.folder / NOTE, work.identity, notes)
            last, last_row, digests = end, row, {kind: hashlib.sha256() for kind in kinds}
            if end < len(images):
                fault_point("features:noted")
            note_saved()
            stop_if_asked()
        progress.update(min(base + end, progress.total))
    fault_point("features:whole")
    if row:
        _publish(work, kinds)
    fault_point("features:noted")


def _start(notes: Notes, kinds: list[str]) -> int:
    """How many images all of these kinds have been through, at the end of a part, with the same ones left out."""
    if not all(kind in notes for kind in kinds):
        return 0
    ends = set.intersection(*({part.images for part in notes[kind].parts} for kind in kinds))
    for end in sorted(ends, reverse=True):
        known = [_omitted(notes[kind].up_to(end)) for kind in kinds]
        if all(its == known[0] for its in known):
            return end
    return 0


def _publish(work: _Work, kinds: Sequence[str]) -> None:
    """Give whole arrays their name. One that is there already is damaged, and stays what it is for those that have mapped it."""
    for kind in kinds:
        _place(work, kind, PART).replace(_place(work, kind))
    sync_folder(work.folder)


def _place(work: _Work, kind: str, ending: str = "") -> Path:
    return work.folder / f"{kind}.npy{ending}"


def _kinds_of(store: FeatureStore, views: Tensor, kinds: list[str]) -> dict[str, Tensor]:
    encoder = store.encoder
    if kinds == ["pooled"]:
        return {"pooled": features_of(encoder, views, store.device, store.precision)}
    found = stage_features_of(encoder, views, store.device, store.precision, pooled="pooled" in kinds)
    named = dict(zip([*stage_kinds(encoder), "pooled"], found, strict=False))
    return {kind: named[kind] for kind in kinds}
