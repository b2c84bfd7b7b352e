"""CIFAR, whose images are packed: into the binary version's .bin files, or into strips.

Strips: `{train,test}/NNN.webp`, each a column of square images, with `labels_{train,test}.npy` (in order of the
strips) and `classes.txt` beside them. Both are decoded whole when opened (CIFAR-10: 184 MB), so that the loader's
workers share them. CIFAR's Python version is pickle, which is never opened.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from swav.data.sources.decode import Unreadable, decode, open_regular, read_file, read_header, reason_of
from swav.data.sources.npy import read_numbers
from swav.data.sources.walk import ROW
from swav.errors import DataError, printable
from swav.files import visible

SIDE = 32  # pixels
PIXEL_BYTES = 3 * SIDE * SIDE  # red, green and blue planes

Split = Literal["train", "test"]
BINARY = {  # of a version: its files by split, bytes before the pixels (the last is the label), file of class names
    "CIFAR-10": ({"train": "data_batch_?.bin", "test": "test_batch.bin"}, 1, "batches.meta.txt"),
    "CIFAR-100": ({"train": "train.bin", "test": "test.bin"}, 2, "fine_label_names.txt"),
}
USUAL_FOLDERS = ("", "cifar-10-batches-bin", "cifar-100-binary")


class Packed(NamedTuple):
    """Images held in memory; a name is `FILE#NUMBER`; a row's size, device and inode are those of its whole file."""

    names: list[bytes]
    rows: np.ndarray
    pixels: UInt8[np.ndarray, "N S S 3"]
    labels: Int64[np.ndarray, " N"]
    classes: list[str]
    bad: list[tuple[str, str]]
    inodes: UInt64[np.ndarray, "N 2"]


def find_binary(root: Path) -> tuple[Path, str] | None:
    """Return the folder of the .bin files and which version they are; None where there are none.

    Raises:
        DataError: the folder holds CIFAR's Python version.
    """
    for folder in (root / usual for usual in USUAL_FOLDERS):
        for version, (files, _, _) in BINARY.items():
            if any(folder.glob(files["train"])) and (folder / files["test"]).is_file():
                return folder, version
    if (root / "data_batch_1").is_file() or ((root / "meta").is_file() and (root / "train").is_file()):
        raise DataError(
            f"{printable(str(root))}: expected CIFAR's binary version, found its Python version, which is pickle and "
            "never opened; download the binary version"
        )
    return None


def has_strips(root: Path) -> bool:
    return all((root / f"labels_{split}.npy").is_file() and (root / split).is_dir() for split in ("train", "test"))


def load_binary(folder: Path, version: str, split: Split) -> Packed:
    """Read one split of the binary version.

    Raises:
        DataError: a file is not a whole number of images, or a label has no class.
    """
    patterns, label_bytes, names_file = BINARY[version]
    record = label_bytes + PIXEL_BYTES
    names: list[bytes] = []
    sizes: list[int] = []
    parts, inodes = [], list[tuple[int, int]]()
    for path in _files(folder, patterns[split]):
        content = np.frombuffer(_content(path), dtype=np.uint8)
        if len(content) == 0 or len(content) % record:
            raise DataError(
                f"{printable(str(path))}: expected a multiple of {record} bytes, found {len(content)}; download it again"
            )
        parts.append(content.reshape(-1, record))
        names += [f"{path.name}#{i}".encode() for i in range(len(parts[-1]))]
        sizes += [len(content)] * len(parts[-1])
        inodes += [_inode(path)] * len(parts[-1])
    records = np.concatenate(parts)
    planes = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    labels = records[:, label_bytes - 1].astype(np.int64)
    classes = _class_names(folder / names_file, labels, int(version.removeprefix("CIFAR-")))
    rows = _rows(sizes, "BIN", SIDE)
    pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Packed(names, rows, pixels, labels, classes, [], np.array(inodes, dtype=np.uint64))


def load_strips(root: Path, split: Split) -> Packed:
    """Decode the strips of one split. One that is broken behind its header is left out, with its labels.

    Raises:
        DataError: strips and labels don't agree in number, a strip's header is damaged, or a label has no class.
    """
    strips = _files(root / split, "*.webp")
    counts = [_strip_length(path) for path in strips]
    labels = _labels(root / f"labels_{split}.npy")
    if not 0 < sum(counts) == len(labels):
        raise DataError(
            f"{printable(str(root))}: expected one label per image of {split}/, found {len(labels)} labels and "
            f"{sum(counts)} images; get the folder again"
        )
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(_strip, strips))
    names, sizes, parts, kept, bad = list[bytes](), list[int](), [], [], list[tuple[str, str]]()
    inodes: list[tuple[int, int]] = []
    for path, strip, its_labels in zip(strips, decoded, np.split(labels, np.cumsum(counts)[:-1]), strict=True):
        if isinstance(strip, str):
            bad.append((f"{split}/{path.name}", f"{strip} ({len(its_labels)} images)"))
            continue
        parts.append(strip.reshape(len(its_labels), strip.shape[1], strip.shape[1], 3))
        names += [f"{split}/{path.name}#{i}".encode() for i in range(len(its_labels))]
        sizes += [path.stat().st_size] * len(its_labels)
        inodes += [_inode(path)] * len(its_labels)
        kept.append(its_labels)
    if not parts:
        raise DataError(f"{printable(str(root / split))}: expected strips of images, found none readable: {bad[0][1]}")
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError(f"{printable(str(root / split))}: expected strips of one width, found several")
    pixels, labels = np.concatenate(parts), np.concatenate(kept)
    classes = _class_names(root / "classes.txt", labels, _class_count(root))
    rows = _rows(sizes, "WEBP", pixels.shape[1])
    return Packed(names, rows, pixels, labels, classes, bad, np.array(inodes, dtype=np.uint64))


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return visible(folder, pattern)
    except OSError as error:
        raise DataError(f"{printable(str(folder))}: expected images, found {reason_of(error)}") from None


def _strip_length(path: Path) -> int:
    """How many images a strip holds, by its header. Without it, the labels behind could not be distinguished."""
    try:
        with open_regular(path) as file:
            header = read_header(file, path.name)
        if header.height % header.width:
            raise Unreadable(path.name, f"{header.width}x{header.height} pixels are not a column of squares")
    except (Unreadable, OSError) as error:
        reason = error.reason if isinstance(error, Unreadable) else reason_of(error)
        raise DataError(f"{printable(str(path))}: expected a strip of images, found: {reason}") from error
    return header.height // header.width


def _strip(path: Path) -> UInt8[np.ndarray, "H W 3"] | str:
    try:
        return decode(read_file(bytes(path), path.name), path.name)
    except Unreadable as error:
        return error.reason


def _inode(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _rows(sizes: list[int], kind: str, side: int) -> np.ndarray:
    rows = np.zeros(len(sizes), dtype=ROW)
    rows["size"], rows["format"], rows["mode"] = sizes, kind, "RGB"
    rows["height"] = rows["width"] = side
    return rows


def _content(path: Path) -> bytes:
    try:
        return read_file(bytes(path), path.name, image=False)
    except Unreadable as error:
        raise DataError(f"{printable(str(path))}: expected images, found: {error.reason}") from error


def _labels(path: Path) -> Int64[np.ndarray, " N"]:
    try:
        labels = read_numbers(path, kinds="iu")
        return np.asarray(labels.astype(np.int64, casting="safe").reshape(-1))
    except Exception as error:  # a damaged header can make NumPy raise anything
        raise DataError(f"{printable(str(path))}: expected whole numbers, found {reason_of(error)}") from error


def _class_count(root: Path) -> int:
    """How many classes the labels of both splits name. One that is out of their row, as of a flipped bit, is not counted."""
    if (root / "classes.txt").is_file():
        return 0
    used = np.union1d(*(_labels(root / f"labels_{split}.npy") for split in ("train", "test")))
    gaps = np.flatnonzero(used != np.arange(len(used)))
    return int(gaps[0]) if len(gaps) else len(used)


def _class_names(path: Path, labels: Int64[np.ndarray, " N"], count: int) -> list[str]:
    if path.is_file():
        names = re.findall(r"[^\r\n]+", _content(path).decode("utf-8", "replace"))
    else:
        names = [str(i) for i in range(count)]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{printable(str(path))}: expected labels 0..{len(names) - 1}, found {labels.min()}..{labels.max()}; get the "
            "folder again, or name every class in classes.txt"
        )
    return names
