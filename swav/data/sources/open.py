"""Open what a user names: a folder tree, a flat folder, a list or CIFAR, as images with labels and splits.

- A folder with train/ beside val/, valid/, validation/ or test/ (the first of these that is there) is one data set:
  pre-training reads train/, the other is scored; so is a CSV with a column `split` that holds these words, and so are
  CIFAR's two splits.
- Any other folder tree or list is trained on whole. Where labels are needed, they are the class folders (every image
  as CLASS/FILE) or the CSV's column `label`, and a fifth of each class, drawn by a fixed seed, is scored.

Nothing is ever written among the data.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from swav.data.folds import group_folds
from swav.data.images import Images
from swav.data.overlap import refuse_doubled, refuse_same_folder, refuse_shared
from swav.data.sources import cifar
from swav.data.sources.decode import printable
from swav.data.sources.header_index import ProgressCallback, check_headers
from swav.data.sources.walk import (
    TRAIN_SPLITS,
    VAL_SPLITS,
    Found,
    Listing,
    any_there,
    look_up,
    may_hold_images,
    nothing_readable,
    read_list,
    walk,
)
from swav.data.storage import Files, InMemory, joined
from swav.data.targets import ClassLabels, Targets
from swav.errors import DataError, counted
from swav.files import warn_once

Split = Literal["train", "val", "all"]
VAL_SHARE = 0.2  # of each class, where the data set has no split of its own for scoring
SPLIT_SEED = 0


class DataLayout(NamedTuple):
    """What a path turned out to be. `val` names its split for scoring; empty: it has none of its own."""

    kind: Literal["cifar-binary", "cifar-strips", "splits", "list", "tree"]
    root: Path
    val: str = ""
    version: str = ""
    listing: Listing | None = None


def open_images(
    path: str | Path, split: Split = "train", cache: Path | None = None, progress: ProgressCallback | None = None
) -> Images:
    """Find the images under a path and read their headers.

    Args:
        split: "train": what pre-training reads. "val": what is scored. "all": both.
        cache: folder for the index of headers; None: the user's cache folder.
        progress: is called as progress(done, total) while headers are read.

    Raises:
        DataError: there is no path, no image, no readable image, or (of "val") no label to split by.
    """
    layout = find_layout(path)
    if split == "val" and not layout.val:
        return labelled_splits(path, cache, progress)[1]
    images = _open(layout, split, cache, progress)
    if not len(images):
        raise DataError(nothing_readable(_home(layout, split), images.bad, images.others, images.left_out))
    return images


def open_any(path: str | Path, cache: Path | None = None, progress: ProgressCallback | None = None) -> Images:
    """Find images that need no label: all those of a folder or a list, or one image file.

    Raises:
        DataError: as open_images.
    """
    place = Path(path).expanduser()
    if not place.is_file() or place.suffix.lower() in (".txt", ".csv"):
        return open_images(path, "all", cache, progress)
    found, _ = look_up(place.parent, [os.fsencode(place.name)])
    images = _checked(place.parent, found, None, printable(str(path)), cache, "", progress)
    if not len(images):
        raise DataError(
            f"{printable(str(path))}: expected an image, a folder or a list (.txt, .csv), found {images.bad[0][1]}; check the path"
        )
    return images


def check_images(path: str | Path) -> None:
    """Refuse a path with nothing to train on, and read no image.

    Raises:
        DataError: there is no path, or no image.
    """
    layout = find_layout(path)
    folder = layout.root / "train" if layout.kind == "splits" else layout.root
    listed = layout.listing
    found = may_hold_images(folder) if listed is None else any_there(layout.root.parent, listed.names)
    if layout.kind in ("splits", "tree", "list") and not found:
        open_images(path)  # says what is there instead


def labelled_splits(
    path: str | Path, cache: Path | None = None, progress: ProgressCallback | None = None, divide: bool = True
) -> tuple[Images, Images]:
    """Return (bank to learn labels from, images to score), with the same classes.

    Args:
        divide: a set that has no split for scoring into 80 % and 20 % of each class, by a fixed seed; else all its images are
            returned as one object in both places, to be scored in folds.

    Raises:
        DataError: as open_images; there are no labels, or the splits hold different classes.
        SharedImages: an image is in both splits, or twice in a set that is not divided.
    """
    layout = find_layout(path)
    if not layout.val:
        images = _labelled(open_images(path, "all", cache, progress), layout)
        if not divide:
            refuse_doubled(images)
            return images, images
        train, val = _drawn_splits(images)
        refuse_shared(train, val)
        return train, val
    if layout.kind == "splits":
        refuse_same_folder(layout.root / "train", layout.root / layout.val)
    train, val = (_labelled(open_images(path, split, cache, progress), layout) for split in ("train", "val"))
    refuse_shared(train, val)
    _warn_of_shared_groups(train, val)
    only_train, only_val = _present(train) - _present(val), _present(val) - _present(train)
    if (only_train or only_val) and not train.in_memory:  # CIFAR's classes are given, whichever occur
        sides = [
            f"only in {side}: {_some(names)}"
            for side, names in (("train", only_train), (layout.val, only_val))
            if names
        ]
        raise DataError(
            f"{printable(str(path))}: expected the same classes in both splits, found {'; '.join(sides)}; fix the folders or the list"
        )
    return train, val


def find_layout(path: str | Path) -> DataLayout:
    """Tell what a path is.

    Raises:
        DataError: nothing is there, or it is a file that is not a list.
    """
    where = printable(str(path))
    try:
        root = Path(path).expanduser()
        if root.is_file():
            if root.suffix.lower() not in (".txt", ".csv"):
                raise DataError(
                    f"{where}: expected a folder or a list (.txt, .csv), found another file; give its folder"
                )
            listing = read_list(root)
            val = ""
            if listing.splits is not None:  # of rows for training only, `val` is found to be empty
                val = next((name for name in VAL_SPLITS if name in listing.splits), "val")
            return DataLayout("list", root, val, listing=listing)
        if not root.is_dir():
            found = "no such path" if not os.path.lexists(root) else "neither"
            raise DataError(f"{where}: expected a folder of images or a list (.txt, .csv), found {found}; check data=")
        if binary := cifar.find_binary(root):
            return DataLayout("cifar-binary", binary[0], "test", version=binary[1])
        if cifar.has_strips(root):
            return DataLayout("cifar-strips", root, "test")
        val = next((name for name in VAL_SPLITS if (root / name).is_dir()), "")
        if val and (root / "train").is_dir():
            return DataLayout("splits", root, val)
        return DataLayout("tree", root)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path; ~NOBODY
        raise DataError(f"{where}: expected a folder of images, found: {error}") from error


def _open(layout: DataLayout, split: Split, cache: Path | None, progress: ProgressCallback | None) -> Images:
    """Open a split ("val" only where the layout has one)."""
    if layout.kind == "list":
        return _open_list(layout, split, cache, progress)
    if layout.kind == "tree":
        note = f"{printable(str(layout.root))} (the whole of it)"
        found = walk(layout.root)
        labels = _folder_labels([name.split(b"/") for name in found.names], nested=False)
        return _checked(layout.root, found, labels, note + found.left_out, cache, "", progress)
    folders = {"train": ["train"], "val": [layout.val], "all": ["train", layout.val]}[split]
    return _joined([_open_split(layout, folder, cache, progress) for folder in folders])


def _open_split(layout: DataLayout, folder: str, cache: Path | None, progress: ProgressCallback | None) -> Images:
    if folder == "train":
        note = f"train/ of {printable(str(layout.root))} ({layout.val}/ is left for scoring)"
    else:
        note = f"{folder}/ of {printable(str(layout.root))}"
    if layout.kind == "splits":
        found = walk(layout.root, folder)
        labels = _folder_labels([name.split(b"/")[1:] for name in found.names], nested=True)
        return _checked(layout.root, found, labels, note + found.left_out, cache, folder, progress)
    split: cifar.Split = "train" if folder == "train" else "test"
    if layout.kind == "cifar-binary":
        packed = cifar.load_binary(layout.root, layout.version, split)
        note = note.replace("/", "'s files", 1)
    else:
        packed = cifar.load_strips(layout.root, split)
    storage = InMemory(layout.root, packed.names, packed.rows, packed.pixels, packed.inodes)
    return Images(storage, ClassLabels(packed.labels, packed.classes), bad=packed.bad, note=note)


def _open_list(layout: DataLayout, split: Split, cache: Path | None, progress: ProgressCallback | None) -> Images:
    assert layout.listing is not None
    names, labels, splits, group_names = layout.listing
    groups = None if group_names is None else _numbered(group_names)
    note = f"{printable(str(layout.root))} (the whole of it)"
    if splits is not None:
        values = {"train": TRAIN_SPLITS, "val": {layout.val}, "all": {*TRAIN_SPLITS, layout.val}}[split]
        rows = [i for i, its in enumerate(splits) if its in values]
        names, labels = [names[i] for i in rows], None if labels is None else [labels[i] for i in rows]
        groups = None if groups is None else groups[rows]
        chosen = {"train": "train", "val": layout.val, "all": f"train or {layout.val}"}[split]
        note = f"{printable(str(layout.root))}, the rows whose split is {chosen}"
        if split == "train":
            note += f" ({layout.val} is left for scoring)"
    found, kept = look_up(layout.root.parent, names)
    texts = None if labels is None else [labels[i] for i in kept]
    kept_groups = None if groups is None else groups[kept]
    return _checked(layout.root.parent, found, texts, note, cache, layout.root.name, progress, kept_groups)


def _numbered(groups: list[str]) -> Int64[np.ndarray, " N"]:
    """The number of each row's group. An empty cell is a group of its own."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(name or row, len(numbers)) for row, name in enumerate(groups)], np.int64)


def _warn_of_shared_groups(train: Images, val: Images) -> None:
    if train.groups is None or val.groups is None:
        return
    shared = len(np.intersect1d(train.groups, val.groups))
    if shared:
        warn_once(
            f"{printable(str(train.root))}: {counted(shared, 'group')} of the column group on both sides of the column split: "
            "what is scored has learned from its own group; put each group on one side"
        )


def _folder_labels(parts: list[list[bytes]], nested: bool) -> list[str] | None:
    """The first folder of each path; None where some image has none, or where there is one folder only.

    A tree that is not declared a data set by its splits must be strictly CLASS/FILE: deeper ones are more often sorted
    by something else than class.
    """
    if not all(len(part) == 2 or (nested and len(part) > 2) for part in parts) or len({part[0] for part in parts}) < 2:
        return None
    return [os.fsdecode(part[0]) for part in parts]


def _checked(
    root: Path,
    found: Found,
    label_texts: list[str] | None,
    note: str,
    cache: Path | None,
    part: str,
    progress: ProgressCallback | None,
    groups: Int64[np.ndarray, " N"] | None = None,
) -> Images:
    """Read the headers and leave out what is unreadable."""
    rows, reasons = check_headers(root, found.names, found.rows, cache, part, progress)
    good = [i for i in range(len(rows)) if i not in reasons]
    bad = sorted(found.bad + [(os.fsdecode(found.names[i]), reason) for i, reason in reasons.items()])
    labels = None
    if label_texts is not None:
        texts = [label_texts[i] for i in good]
        classes = _sorted_classes(texts)
        number = {name: k for k, name in enumerate(classes)}
        labels = ClassLabels(np.array([number[text] for text in texts], dtype=np.int64), classes)
    storage = Files(root, (found.names[i] for i in good), rows[good], found.inodes[good])
    kept = None if groups is None else groups[good]
    return Images(storage, labels, bad=bad, others=found.others, note=note, left_out=found.left_out, groups=kept)


def listed_split(
    root: Path,
    names: list[bytes],
    targets: Targets,
    *,
    split: str,
    cache: Path | None,
    allow_missing: bool,
) -> Images:
    """A split of a data set whose lists say what belongs to it, as those of VOC, Places205 and iNaturalist do.

    Args:
        root: what `names` are relative to.
        targets: of each name.
        split: its name, for messages.
        allow_missing: leave out listed images that are not there, and say so in the note.

    Raises:
        DataError: a listed image is missing, or none can be read.
    """
    where = printable(str(root))
    found, kept = look_up(root, names)
    if found.bad and (not allow_missing or not len(kept)):
        more = f" and {len(found.bad) - 1} more" if len(found.bad) > 1 else ""
        raise DataError(
            f"{where}: expected every image of the list of {split}, found none at {printable(found.bad[0][0])}{more}; "
            "unpack the archives again, or use protocol=smoke"
        )
    rows, reasons = check_headers(root, found.names, found.rows, cache, split)
    good = [i for i in range(len(rows)) if i not in reasons]
    if not good:
        raise DataError(f"{where}: expected readable images of {split}, found none; check the files")
    missing = f" ({len(found.bad)} listed images are not there)" if found.bad else ""
    return Images(
        Files(root, (found.names[i] for i in good), rows[good], found.inodes[good]),
        targets.select(np.asarray(kept[good])),
        bad=sorted(found.bad + [(os.fsdecode(found.names[i]), reason) for i, reason in reasons.items()]),
        note=f"{split} of {where}{missing}",
    )


def _sorted_classes(texts: Iterable[str]) -> list[str]:
    """Class names by their bytes, as folders are sorted; numbers (in a CSV) by their value."""
    names = set(texts)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names, key=os.fsencode)


def _joined(parts: list[Images]) -> Images:
    """Several splits as one sequence; labels only where all have them, over the union of their classes."""
    if len(parts) == 1:
        return parts[0]
    targets = [part.targets for part in parts if isinstance(part.targets, ClassLabels)]
    labels = None
    if len(targets) == len(parts):
        classes = _sorted_classes(name for part in targets for name in part.classes)
        if all(part.classes == targets[0].classes for part in targets):
            classes = targets[0].classes  # CIFAR's own order
        where = [np.array([classes.index(name) for name in part.classes], dtype=np.int64) for part in targets]
        values = np.concatenate([new[part.values] for new, part in zip(where, targets, strict=True)])
        labels = ClassLabels(values, classes)
    return Images(
        joined([part.storage for part in parts]),
        labels,
        bad=[entry for part in parts for entry in part.bad],
        others=sum((Counter(part.others) for part in parts), Counter()),
        note=" and ".join(part.note.partition(" (")[0] for part in parts) + parts[0].left_out,
        left_out=parts[0].left_out,
    )


def _drawn_splits(images: Images) -> tuple[Images, Images]:
    assert images.labels is not None
    rng = np.random.default_rng(SPLIT_SEED)
    scored = np.zeros(len(images), dtype=bool)
    if images.groups is not None:
        scored = group_folds(images.labels, images.groups, round(1 / VAL_SHARE), SPLIT_SEED) == 0
        if scored.all():
            raise DataError(
                f"{printable(str(images.root))}: expected at least two groups, to score one, found one; drop the column group"
            )
    else:
        for k in range(len(images.classes or [])):
            members = rng.permutation(np.flatnonzero(images.labels == k))
            scored[members[: round(VAL_SHARE * len(members))]] = True
    if not scored.any():
        raise DataError(
            f"{printable(str(images.root))}: expected at least 3 images in some class, to score a fifth of them, found fewer"
        )
    where = printable(str(images.root))
    drawn = f"(drawn per class{'' if images.groups is None else ', groups whole'}, seed {SPLIT_SEED}){images.left_out}"
    return (
        images.select(np.flatnonzero(~scored), f"80 % of {where} {drawn}"),
        images.select(np.flatnonzero(scored), f"20 % of {where} {drawn}"),
    )


def _labelled(images: Images, layout: DataLayout) -> Images:
    if images.labels is None:
        missing = (
            "a column label" if layout.kind == "list" else "every image in a folder of its class, at least two classes"
        )
        raise DataError(f"{printable(str(layout.root))}: expected labels ({missing}), found none")
    return images


def _present(images: Images) -> set[str]:
    assert images.labels is not None and images.classes is not None
    return {images.classes[k] for k in np.unique(images.labels)}


def _some(names: set[str]) -> str:
    shown = ", ".join(printable(name) for name in sorted(names, key=os.fsencode)[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _home(layout: DataLayout, split: Split) -> str:
    """The folder or list that a split is read from, as it may be shown."""
    if layout.kind != "splits" or split == "all":
        return printable(str(layout.root))
    return printable(str(layout.root / ("train" if split == "train" else layout.val)))
