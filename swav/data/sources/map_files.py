"""Files that hold the class of every pixel: PNGs of one index per pixel, and SBD's MATLAB files."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

from swav.data.images import Images
from swav.data.sources.annotated import fitted
from swav.data.sources.damage import check_size
from swav.data.sources.decode import READERS, Unreadable, read_file, reason_of
from swav.data.sources.header_index import check_headers
from swav.data.sources.lists import listed_split
from swav.data.sources.walk import look_up, path_of
from swav.data.targets import VOID, LabelMaps
from swav.errors import DataError, counted, printable

Pair = tuple[str, str]  # names of an image and of its map
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class MapReader:
    """Reads maps by their names.

    Attributes:
        root: what names are relative to.
        table: of each index the class, VOID or UNKNOWN.
        label_ids: the same for files of Cityscapes' ids.
        sbd: what names of MATLAB files are relative to.
    """

    root: Path
    table: Int16[np.ndarray, "256"]
    label_ids: Int16[np.ndarray, "256"] | None = None
    sbd: Path | None = None

    def path(self, name: str) -> bytes:
        root = self.sbd if self.sbd is not None and name.endswith(".mat") else self.root
        return path_of(root, os.fsencode(name))

    def __call__(self, name: str) -> UInt8[np.ndarray, "H W"]:
        try:
            data = read_file(self.path(name), name, image=not name.endswith(".mat"))
            indices = _matlab_indices(data) if name.endswith(".mat") else _indices(data)
        except MemoryError:
            raise
        except Exception as error:  # hostile bytes can make a decoder raise anything
            reason = error.reason if isinstance(error, Unreadable) else reason_of(error)
            raise DataError(f"{printable(name)}: expected a map of classes, found {reason}; replace it") from error
        table = self.label_ids if self.label_ids is not None and name.endswith("_labelIds.png") else self.table
        classes = table[indices]
        if (classes == UNKNOWN).any():
            y, x = np.argwhere(classes == UNKNOWN)[0].tolist()
            raise DataError(
                f"{printable(name)}: expected indices from 0 to {np.flatnonzero(table[:VOID] != UNKNOWN)[-1]}, or {VOID} where no "
                f"class counts, found {indices[y, x]} in column {x} of row {y}; replace the map"
            )
        checked: UInt8[np.ndarray, "H W"] = classes.astype(np.uint8)
        return checked


def index_table(classes: int) -> Int16[np.ndarray, "256"]:
    """Of each index the class: itself."""
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[:classes], table[VOID] = np.arange(classes), VOID
    return table


def map_split(
    split: str,
    pairs: Sequence[Pair],
    classes: Sequence[str],
    reader: MapReader,
    cache: Path | None,
    allow_missing: bool,
) -> Images:
    """Return a split of images and maps. Of maps only the headers are read.

    Args:
        split: its name, for messages.
        pairs: names of images and maps, below the reader's root.
        classes: their names.
        cache: folder for the index of headers.
        allow_missing: leave out images that are not there or have no map, and say so in the note.

    Raises:
        DataError: an image or a map is missing, or a map has another size than its image, or colours.
    """
    root = reader.root
    # SBD's maps lie beside the root, so they go by whole paths; relative ones would be taken from the root
    found, kept = look_up(root, [os.path.abspath(reader.path(name)) for _, name in pairs])  # noqa: PTH100
    if found.bad and (not allow_missing or not len(kept)):
        more = f" and {len(found.bad) - 1} more" if len(found.bad) > 1 else ""
        raise DataError(
            f"{printable(str(root))}: expected a map of every image of {split}, found none at {printable(found.bad[0][0])}{more}; "
            "unpack the archives again, or use protocol=smoke"
        )
    names = [pairs[i] for i in kept.tolist()]
    rows = _map_rows(root, [name for _, name in names], found.names, found.rows, cache, split)
    stamps = [b"%d %d" % stamp for stamp in zip(rows["size"].tolist(), rows["time"].tolist(), strict=True)]
    sizes = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)
    maps = LabelMaps([name for _, name in names], classes, reader, stamps, sizes)
    images = listed_split(
        root, [os.fsencode(name) for name, _ in names], maps, split=split, cache=cache, allow_missing=allow_missing
    )
    assert isinstance(images.targets, LabelMaps) and images.targets.sizes is not None
    unknown = images.targets.sizes[:, 0] == 0  # of MATLAB files: these were made of images as stored
    images.targets.sizes[unknown, 0] = images.rows["height"][unknown]
    images.targets.sizes[unknown, 1] = images.rows["width"][unknown]
    note = f" ({counted(len(found.bad), 'image')} without a map left out)" if found.bad else ""
    return fitted(images, images.targets.sizes, note)


def _map_rows(
    root: Path, names: Sequence[str], paths: list[bytes], rows: np.ndarray, cache: Path | None, split: str
) -> np.ndarray:
    """The maps' rows, with the headers of PNGs."""
    rows = rows.copy()
    drawn = [i for i, name in enumerate(names) if not name.endswith(".mat")]
    headers, reasons = check_headers(root, [paths[i] for i in drawn], rows[drawn], cache, f"maps of {split}")
    for place, i in enumerate(drawn):
        header = headers[place]
        reason = reasons.get(place) or _no_indices(header["mode"].decode())
        if not reason and header["format"] != b"PNG":
            reason = f"a {header['format'].decode()}, which is no PNG"
        if reason:
            raise DataError(
                f"{printable(names[i])}: expected an index per pixel (a PNG of 8 bits, by a palette or grey), found {reason}; "
                "replace the map"
            )
    rows[drawn] = headers
    return rows


def _indices(png: bytes) -> UInt8[np.ndarray, "H W"]:
    """The indices of a PNG.

    Raises:
        Exception: of any kind, if it is damaged or of another kind.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("another file than a PNG")
    with READERS["PNG"](io.BytesIO(png)) as image:
        check_size("PNG", *image.size, len(png))
        if reason := _no_indices(image.mode):
            raise ValueError(reason)
        depth = png[24]  # bits, by the header (PNG specification, "IHDR"). Pillow scales grey of 2 and 4 to 255
        if image.mode == "L" and depth < 8:
            raise ValueError(f"grey of {depth} bits, which readers take differently: save it with 8")
        return np.array(image).astype(np.uint8)  # of two colours: 0 and 1


def _no_indices(mode: str) -> str | None:
    """Why a PNG of a mode that Pillow gives holds no indices."""
    if mode in ("P", "L", "1"):
        return None
    return "16 bits per pixel" if mode.startswith("I") else f"colours ({mode}) instead of an index per pixel"


def _matlab_indices(content: bytes) -> UInt8[np.ndarray, "H W"]:
    """SBD's map in a MATLAB file.

    Raises:
        Exception: of any kind, if it is damaged or another file.
    """
    from scipy.io import loadmat  # takes half a second

    values = loadmat(io.BytesIO(content), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.min(initial=0) < 0 or values.max(initial=0) > VOID:
        raise ValueError(f"GTcls.Segmentation of {values.dtype} {values.shape}")
    return np.asarray(values, dtype=np.uint8)
