"""What data sets with boxes or masks have in common: where they lie, lists of ids, and images that must have the size of what
is annotated on them.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from swav.data.images import Images
from swav.data.sources.decode import EXCHANGES_SIDES, Unreadable, orientation_of, read_file, read_header
from swav.data.sources.list_text import read_lines
from swav.data.sources.walk import path_of
from swav.data.storage import Files
from swav.errors import DataError, counted, printable


def find_one(root: Path, below: Sequence[str], is_home: Callable[[Path], bool], what: str, how: str) -> Path:
    """Return the folder of a data set at a path or below; looks at no image.

    Args:
        below: where it may lie, the first that is there counts: "" for the path itself, or a pattern.
        is_home: whether a folder is it.
        what: its name and where it is expected, for the message.
        how: to get it.

    Raises:
        DataError: there is none, or more than one at the same depth.
    """
    where = printable(str(root))
    for pattern in below:
        there = sorted(root.glob(pattern)) if pattern else [root]
        visible = [path for path in there if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        homes = [path for path in visible if is_home(path)]
        if len(homes) > 1:
            one, other = (printable(str(path)) for path in homes[:2])
            raise DataError(f"{where}: expected one {what}, found {one} and {other}; name one as --data")
        if homes:
            return homes[0]
    raise DataError(f"{where}: expected {what}, found none\n{how}")


def read_ids(path: Path, how: str) -> list[str]:
    """Read a list of images, an id a line.

    Raises:
        DataError: it cannot be read, is empty, or names an image twice.
    """
    where = printable(str(path))
    try:
        ids = [line.strip() for _, line in read_lines(path, "a list of images", names_of_files=False)]
    except DataError as error:
        raise DataError(f"{error}\n{how}") from None
    if not ids:
        raise DataError(f"{where}: expected an id of an image in each line, found none; get the list again")
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise DataError(f"{where}: expected each image once, found {printable(twice[0])} twice; get the list again")
    return ids


def upright_size(root: Path, name: bytes) -> tuple[int, int]:
    """Return height and width of an image, turned as its EXIF asks; (0, 0) where it is missing or cannot be read."""
    try:
        data = read_file(path_of(root, name), os.fsdecode(name))
        header = read_header(io.BytesIO(data), os.fsdecode(name))
    except Unreadable:
        return 0, 0
    turned = orientation_of(data) in EXCHANGES_SIDES
    return (header.width, header.height) if turned else (header.height, header.width)


def fitted(images: Images, sizes: Int64[np.ndarray, "N 2"], note: str = "") -> Images:
    """Return the images as they agree with what is annotated: turned upright by EXIF, or not.

    An image that agrees either way is turned, as the field's readers do.

    Args:
        sizes: height and width of each image as annotated [N, 2].
        note: is appended to that of the images.

    Raises:
        DataError: an image has the annotated size neither upright nor as stored.
    """
    stored = np.stack([images.rows["height"], images.rows["width"]], axis=1).astype(np.int64)
    as_stored = (sizes == stored).all(axis=1)
    exchanged = (sizes == stored[:, ::-1]).all(axis=1)
    for i in np.flatnonzero(~as_stored).tolist():  # few: only these are opened
        if not exchanged[i] or upright_size(images.root, images.storage.names[i]) != tuple(sizes[i].tolist()):
            (height, width), (its_height, its_width) = sizes[i].tolist(), stored[i].tolist()
            raise DataError(
                f"{printable(images.name(i))}: expected {width}x{height} pixels, as annotated, found {its_width}x{its_height}; "
                "replace the image or its annotation"
            )
    storage = Files(images.root, images.storage.names, images.rows, images.inodes, as_stored & ~exchanged)
    return Images(storage, images.targets, bad=images.bad, others=images.others, note=images.note + note)


def dropped_note(dropped: Mapping[str, int]) -> str:
    """Format what was left out, as the end of a note; empty where nothing was."""
    if not sum(dropped.values()):
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count)
    return f"; {counted(sum(dropped.values()), 'object')} left out: {reasons}"
