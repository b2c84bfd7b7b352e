"""Masks among images: files of indices that have the name and the size of a photograph beside them."""

import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from swav.errors import printable

_MAP_FORMATS = (b"PNG", b"GIF", b"BMP", b"TIFF")
_MAP_MODES = (b"P", b"1", b"L", b"I", b"I;16", b"I;16B")
_ENDING = re.compile(
    rb"[-_. ](mask|masks|seg|segm|segmentation|label|labels|labelids|labeltrainids|instanceids|gt|trimap|annotation)$",
    re.IGNORECASE,
)
_FEWEST = 2  # masks in a folder, before anything is said
_SHARE = 0.8  # of a folder's files of indices that must be twins: a grey picture has another's name now and then


def mask_twins(names: Sequence[bytes], rows: np.ndarray) -> str:
    """Say which folders hold files of a palette or in grey that have the name and size of a photograph, as masks have.

    Args:
        names: paths of images.
        rows: their walk.ROW.

    Returns:
        A warning; empty where there are none.
    """
    maps = np.isin(rows["format"], _MAP_FORMATS) & np.isin(rows["mode"], _MAP_MODES)
    if not maps.any() or maps.all():
        return ""
    photographs: dict[Hashable, list[bytes]] = {}
    for i in np.flatnonzero(~maps).tolist():
        for key in _keys(names[i], _stem(names[i]), rows[i]):
            known = photographs.setdefault(key, [])
            if len(known) < 2:  # more than one is none: in 1000 folders of numbered pictures each has the name of many
                known.append(names[i])
    of_folder, twins = Counter[bytes](), Counter[bytes]()
    example: dict[bytes, tuple[bytes, bytes]] = {}
    for i in np.flatnonzero(maps).tolist():
        folder, stem = os.path.dirname(names[i]), _stem(names[i])  # noqa: PTH120
        of_folder[folder] += 1
        keys = [key for each in {stem: 0, _ENDING.sub(b"", stem): 0} for key in _keys(names[i], each, rows[i])]
        other = next((known[0] for key in keys if len(known := photographs.get(key, [])) == 1), None)
        if other is not None:
            twins[folder] += 1
            example.setdefault(folder, (names[i], other))
    found = sorted(folder for folder, n in twins.items() if n >= max(_FEWEST, _SHARE * of_folder[folder]))
    if not found:
        return ""
    mask, photograph = (printable(os.fsdecode(name)) for name in example[found[0]])
    count = sum(twins[folder] for folder in found)
    return (
        f"{count} of the images seem to be masks: {mask} has the name and size of {photograph}, and the colours of an index; they are "
        "trained on as images: move them away, or give the folder of the photographs as data="
    )


def _stem(name: bytes) -> bytes:
    return os.path.splitext(os.path.basename(name))[0].lower()  # noqa: PTH119, PTH122


def _keys(name: bytes, stem: bytes, row: np.void) -> list[Hashable]:
    """What a mask and its photograph have in common: the stem and the size, and where these are not of one photograph alone, the folder
    above theirs (a/photos and a/masks) or the name of theirs (photos/a and masks/a)."""
    folder = os.path.dirname(name)  # noqa: PTH120
    common = (stem, *_sides(row))
    return [common, (*common, "above", os.path.dirname(folder)), (*common, "own", os.path.basename(folder))]  # noqa: PTH119, PTH120


def _sides(row: np.void) -> tuple[int, int]:
    """Both sides, in order of size: a photograph may be turned by EXIF, its mask is not."""
    height, width = int(row["height"]), int(row["width"])
    return min(height, width), max(height, width)
