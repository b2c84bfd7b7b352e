"""Open what a user names: a folder tree, a flat folder, a list or CIFAR, as images with labels and splits.

- A folder with train/ beside val/, valid/, validation/, dev/ or test/ (the first of these that is there; also training/, testing/;
  in any case; they may lie up to three levels below) is one data set: pre-training reads train/, the other is scored. So is a CSV
  with a column `split` that holds these words, and so are CIFAR's two splits.
- PASCAL VOC, COCO and Cityscapes are read as what they are: photographs, without those that their benchmarks score.
- Any other folder tree or list is trained on whole. Where labels are needed, they are the class folders (every image
  as CLASS/FILE) or the list's labels, and a fifth of each class, drawn by a fixed seed, is scored.

Nothing is ever written among the data.
"""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from swav.data.folds import group_folds
from swav.data.images import Images
from swav.data.overlap import refuse_doubled, refuse_same_folder, refuse_shared
from swav.data.sources import cifar
from swav.data.sources.header_index import check_headers
from swav.data.sources.layouts import (
    NAMES,
    DataLayout,
    find_layout,
    some_folders,
    unused_splits,
    voc_scored,
)
from swav.data.sources.lists import HOW_IMAGENET, imagenet_rows, imagenet_splits, likely_cause, sorted_classes
from swav.data.sources.twins import mask_twins
from swav.data.sources.walk import (
    NOT_READ,
    TRAIN_SPLITS,
    Found,
    any_there,
    look_up,
    may_hold_images,
    nothing_readable,
    subfolders,
    walk,
    warn_of_foreign,
)
from swav.data.storage import Files, InMemory, joined
from swav.data.targets import ClassLabels
from swav.errors import DataError, counted, printable
from swav.files import warn_once

__all__ = ["DataLayout", "find_layout", "open_images"]

Split = Literal["train", "val", "all"]
VAL_SHARE = 0.2  # of each class, where the data set has no split of its own for scoring
SPLIT_SEED = 0
_UNREADABLE_SHOWN = 3  # classes without a readable image in a message


def open_images(
    path: str | Path | DataLayout,
    split: Split = "train",
    cache: Path | None = None,
) -> Images:
    """Find the images under a path and read their headers.

    Args:
        path: or what find_layout found it to be.
        split: "train": what pre-training reads. "val": what is scored. "all": both.
        cache: folder for the index of headers; None: the user's cache folder.

    Raises:
        DataError: there is no path, no image, no readable image, or (of "val") no label to split by.
    """
    layout = path if isinstance(path, DataLayout) else find_layout(path)
    if split == "val" and not layout.val:
        return labelled_splits(layout, cache)[1]
    images = _open(layout, split, cache)
    images.warnings += layout.warnings
    if not len(images):
        cause = "" if layout.listing is None else likely_cause(layout.root.parent, [name for name, _ in images.bad])
        raise DataError(nothing_readable(_home(layout, split), images.bad, images.others, images.left_out) + cause)
    return images


def open_any(path: str | Path, cache: Path | None = None) -> Images:
    """Find images that need no label: all those of a folder or a list, or one image file.

    Raises:
        DataError: as open_images.
    """
    place = Path(path).expanduser()
    if not place.is_file() or place.suffix.lower() in (".txt", ".csv"):
        return open_images(path, "all", cache)
    found, _ = look_up(place.parent, [os.fsencode(place.name)])
    images = _checked(place.parent, found, None, printable(str(path)), cache, "")
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
    folders = layout.folders or (layout.train if layout.val else "",)
    if layout.kind.startswith("cifar"):
        found = True
    elif layout.listing is not None:
        found = any_there(layout.root.parent, layout.listing.names)
    else:
        found = any(may_hold_images(layout.root / folder) for folder in folders)
    if not found:
        open_images(layout)  # says what is there instead


def labelled_splits(
    path: str | Path | DataLayout,
    cache: Path | None = None,
    divide: bool = True,
    allow_missing: bool = False,
) -> tuple[Images, Images]:
    """Return (bank to learn labels from, images to score), with the same classes.

    Args:
        path: or what find_layout found it to be.
        divide: a set that has no split for scoring into 80 % and 20 % of each class, by a fixed seed; else all its images are
            returned as one object in both places, to be scored in folds.
        allow_missing: of ImageNet's lists, see lists.imagenet_splits.

    Raises:
        DataError: as open_images; there are no labels, or the splits hold different classes.
        SharedImages: an image is in both splits, or twice in a set that is not divided.
    """
    layout = path if isinstance(path, DataLayout) else find_layout(path)
    if layout.kind in NAMES:
        raise DataError(
            f"{printable(str(layout.root))}: expected one class of each image, found {NAMES[layout.kind]}, which has boxes, masks or "
            "several classes an image; score by its own benchmarks"
        )
    if not layout.val:
        images = _labelled(open_images(layout, "all", cache), layout)
        if not divide:
            refuse_doubled(images)
            return images, images
        train, val = _drawn_splits(images)
        refuse_shared(train, val)
        return train, val
    if layout.kind in ("splits", "flat-imagenet"):
        refuse_same_folder(layout.root / layout.train, layout.root / layout.val)
    if layout.kind == "flat-imagenet":
        train, val = imagenet_splits((layout.root / layout.train).parent, cache, allow_missing)
    else:
        train, val = (_labelled(open_images(layout, split, cache), layout) for split in ("train", "val"))
    refuse_shared(train, val)
    _warn_of_shared_groups(train, val)
    only_train, only_val = _present(train) - _present(val), _present(val) - _present(train)
    if (only_train or only_val) and not (train.in_memory or layout.kind == "flat-imagenet"):  # whose classes are given
        sides = [
            f"only in {printable(side)}: {_some(names, other.lost_classes)}"
            for side, names, other in ((layout.train, only_train, val), (layout.val, only_val, train))
            if names
        ]
        raise DataError(
            f"{printable(str(layout.root))}: expected the same classes in both splits, found {'; '.join(sides)}; fix the folders or "
            "the list"
        )
    return train, val


def _open(layout: DataLayout, split: Split, cache: Path | None) -> Images:
    """Open a split ("val" only where the layout has one)."""
    if layout.kind == "list":
        return _open_list(layout, split, cache)
    if layout.kind == "voc":
        return _open_voc(layout, split, cache)
    if layout.kind == "tree":
        note = f"{printable(str(layout.root))} (the whole of it)"
        found = walk(layout.root, maps=layout.maps)
        labels = _folder_labels([name.split(b"/") for name in found.names], nested=False)
        images = _checked(layout.root, found, labels, note + found.left_out, cache, "")
        _note_lost_folders(images, "")
        if not layout.maps and (splits := unused_splits(found.names)):
            images.warnings.append(
                f"{some_folders(splits)} of {printable(str(layout.root))} are trained on too, though by name they are to score by; give the "
                "folder to train on as data=, or have one pair of train/ and val/ (or test/) in it"
            )
        return images
    folders = {"train": [layout.train], "val": [layout.val], "all": [layout.train, layout.val]}[split]
    return _joined([_open_split(layout, folder, cache) for folder in folders])


def _open_split(layout: DataLayout, folder: str, cache: Path | None) -> Images:
    note = f"{printable(folder)}/ of {printable(str(layout.root))}"
    if folder == layout.train:
        note += f" ({printable(layout.val)}/ is left for scoring)"
    if not layout.kind.startswith("cifar"):
        found = walk(layout.root, folder, layout.maps)
        images = _checked(
            layout.root,
            found,
            _split_labels(layout, folder, found.names),
            note + found.left_out,
            cache,
            folder,
        )
        if layout.kind == "splits":
            _note_lost_folders(images, folder)
        return images
    split: cifar.Split = "train" if folder == layout.train else "test"
    if layout.kind == "cifar-binary":
        packed = cifar.load_binary(layout.root, layout.version, split)
        note = note.replace("/", "'s files", 1)
    else:
        packed = cifar.load_strips(layout.root, split)
    storage = InMemory(layout.root, packed.names, packed.rows, packed.pixels, packed.inodes)
    return Images(storage, ClassLabels(packed.labels, packed.classes), bad=packed.bad, note=note)


def _split_labels(layout: DataLayout, folder: str, names: list[bytes]) -> list[str] | None:
    """The classes of the images of a split's folder: their folders in it, or as the lists of ImageNet have them."""
    if layout.kind == "splits":
        depth = folder.count("/") + 1
        return _folder_labels([name.split(b"/")[depth:] for name in names], nested=True)
    if layout.kind != "flat-imagenet":
        return None
    home = (layout.root / folder).parent
    listed = dict(zip(*imagenet_rows(home, os.path.basename(folder)), strict=True))  # noqa: PTH119
    labels = [listed.get(name[len(os.fsencode(folder)) + 1 :]) for name in names]
    return None if None in labels else [label for label in labels if label is not None]


def _open_voc(layout: DataLayout, split: Split, cache: Path | None) -> Images:
    """Photographs of PASCAL VOC; of "train" without those that its lists keep for scoring."""
    scored, parts = voc_scored(layout), []
    where = f"photographs of {NAMES[layout.kind]} in {printable(str(layout.root))}"
    notes = {
        "train": f"{where} ({layout.val} is left for scoring)",
        "val": f"{where}, those of {layout.val}",
        "all": where,
    }
    note = notes[split] if layout.val else where
    for folder in layout.folders:
        found = walk(layout.root, folder)
        stems = [os.path.splitext(name)[0] for name in found.names]  # noqa: PTH122
        kept = [i for i, stem in enumerate(stems) if split == "all" or (stem in scored) is (split == "val")]
        names, rows, inodes = [found.names[i] for i in kept], found.rows[kept], found.inodes[kept]
        chosen = found._replace(names=names, rows=rows, inodes=inodes)
        parts.append(_checked(layout.root, chosen, None, note, cache, f"{folder} {split}"))
    images = _joined(parts)
    images.note = note
    return images


def _open_list(layout: DataLayout, split: Split, cache: Path | None) -> Images:
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
    images = _checked(layout.root.parent, found, texts, note, cache, layout.root.name, kept_groups)
    if labels is not None:
        reasons, present = dict(images.bad), set(images.classes or [])
        for name, label in zip(map(os.fsdecode, names), labels, strict=True):
            if label not in present:
                images.lost_classes.setdefault(label, f"{name}: {reasons.get(name, 'unreadable')}")
        _warn_of_lost(images)
    return images


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
    groups: Int64[np.ndarray, " N"] | None = None,
) -> Images:
    """Read the headers and leave out what is unreadable."""
    rows, reasons = check_headers(root, found.names, found.rows, cache, part)
    good = [i for i in range(len(rows)) if i not in reasons]
    bad = sorted(found.bad + [(os.fsdecode(found.names[i]), reason) for i, reason in reasons.items()])
    labels = None
    if label_texts is not None:
        texts = [label_texts[i] for i in good]
        classes = sorted_classes(texts)
        number = {name: k for k, name in enumerate(classes)}
        labels = ClassLabels(np.array([number[text] for text in texts], dtype=np.int64), classes)
    storage = Files(root, (found.names[i] for i in good), rows[good], found.inodes[good])
    kept = None if groups is None else groups[good]
    images = Images(storage, labels, bad=bad, others=found.others, note=note, left_out=found.left_out, groups=kept)
    images.warnings += filter(None, [mask_twins([found.names[i] for i in good], rows[good])])
    images.warnings += warn_of_foreign(found.others)
    return images


def _note_lost_folders(images: Images, folder: str) -> None:
    """Note the class folders below root/folder of which no image can be read, with the reason, and warn of those that hold images."""
    start = f"{folder}/" if folder else ""
    present = set(images.classes or [])
    if not present and not images.bad and not NOT_READ.keys() & images.others.keys():
        return
    for name in subfolders(images.root / folder):
        if name in present:
            continue
        bad = [f"{its}: {reason}" for its, reason in images.bad if its.startswith(f"{start}{name}/")]
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        if bad:
            images.lost_classes[name] = bad[0] + more
        elif present:
            others = walk(images.root, f"{start}{name}").others
            images.lost_classes[name] = (
                ", ".join(f"{count} {ext or 'without extension'}" for ext, count in others.most_common(2))
                + "".join(
                    f", which are not read: {NOT_READ[ext]}" for ext, _ in others.most_common(1) if ext in NOT_READ
                )
                if others
                else "the folder is empty"
            )
    if present:
        _warn_of_lost(images)


def _warn_of_lost(images: Images) -> None:
    told = {
        name: why for name, why in images.lost_classes.items() if ": " in why
    }  # an empty folder need not be a class
    if told:
        images.warnings.append(f"no readable image in {counted(len(told), 'class')}: {_some(set(told), told)}")


def _joined(parts: list[Images]) -> Images:
    """Several splits as one sequence; labels only where all have them, over the union of their classes."""
    if len(parts) == 1:
        return parts[0]
    targets = [part.targets for part in parts if isinstance(part.targets, ClassLabels)]
    labels = None
    if len(targets) == len(parts):
        classes = sorted_classes(name for part in targets for name in part.classes)
        if all(part.classes == targets[0].classes for part in targets):
            classes = targets[0].classes  # CIFAR's own order
        where = [np.array([classes.index(name) for name in part.classes], dtype=np.int64) for part in targets]
        values = np.concatenate([new[part.values] for new, part in zip(where, targets, strict=True)])
        labels = ClassLabels(values, classes)
    images = Images(
        joined([part.storage for part in parts]),
        labels,
        bad=[entry for part in parts for entry in part.bad],
        others=sum((Counter(part.others) for part in parts), Counter()),
        note=" and ".join(part.note.partition(" (")[0] for part in parts) + parts[0].left_out,
        left_out=parts[0].left_out,
    )
    images.warnings = list(dict.fromkeys(warning for part in parts for warning in part.warnings))
    return images


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
    if images.labels is not None:
        return images
    where = printable(str(layout.root))
    if layout.kind == "splits" and subfolders(layout.root / layout.train) and not subfolders(layout.root / layout.val):
        val, first = printable(layout.val), os.path.basename(images.name(0))  # noqa: PTH119
        what = "move each image there into a folder of its class"
        if first.startswith("ILSVRC"):
            what = f"it is ImageNet's as its archive unpacks, and there is no meta/train.txt and meta/val.txt beside it; {HOW_IMAGENET}"
        raise DataError(
            f"{where}: expected a folder of each class in {val}/, as in {printable(layout.train)}/, found {len(images)} images without; {what}"
        )
    missing = (
        "a column label" if layout.kind == "list" else "every image in a folder of its class, at least two classes"
    )
    lost = (
        f", and no readable image in {_some(set(images.lost_classes), images.lost_classes)}"
        if images.lost_classes
        else ""
    )
    raise DataError(f"{where}: expected labels ({missing}), found none{lost}")


def _present(images: Images) -> set[str]:
    assert images.labels is not None and images.classes is not None
    return {images.classes[k] for k in np.unique(images.labels)}


def _some(names: set[str], reasons: Mapping[str, str] | None = None) -> str:
    few = sorted(names, key=os.fsencode)[: 5 if not reasons else _UNREADABLE_SHOWN]
    shown = ", ".join(
        printable(name) + (f" ({printable(reasons[name])})" if reasons and name in reasons else "") for name in few
    )
    return shown + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _home(layout: DataLayout, split: Split) -> str:
    """The folder or list that a split is read from, as it may be shown."""
    if not layout.val or layout.kind in ("list", "voc") or layout.kind.startswith("cifar") or split == "all":
        return printable(str(layout.root))
    return printable(str(layout.root / (layout.train if split == "train" else layout.val)))
