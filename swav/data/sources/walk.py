"""Where the images are: walks folders and reads list files. Names are bytes throughout, as the system gives them.

A million files are meant to pass through here: one `scandir` per folder, one `stat` per file, nothing opened.
"""

# pathlib knows no bytes:
# ruff: noqa: PTH114, PTH118, PTH122

import contextlib
import csv
import functools
import io
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from swav.data.sources.decode import patiently, reason_of
from swav.data.sources.list_text import DELIMITERS, as_name, best_reading, read_lines, read_text, without_label
from swav.errors import DataError, counted, did_you_mean, printable
from swav.files import CHECKPOINTS, CONFIG, METRICS, REPORT, is_run
from swav.progress import FIRST_SECONDS, Progress

IMAGE_EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .webp .avif .avifs .jp2 .j2k .j2c .jpc .jpf .jpx .bmp .dib .gif .tif .tiff .ppm .pgm .pbm "
    b".pnm".split()
)
UNPACK = "unpack"
NOT_READ = {  # extensions of images that are not read, for the advice
    **dict.fromkeys((".heic", ".heif", ".jxl", ".psd", ".svg"), "convert to JPEG or PNG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"), "develop to JPEG or PNG"),
    **dict.fromkeys((".tar", ".zip", ".tgz", ".gz"), UNPACK),
}
NOT_DATA = {
    b"__MACOSX",
    b"Thumbs.db",
    b"@eaDir",
    b"$RECYCLE.BIN",
    b"System Volume Information",
}  # beside all that begins with a dot
OURS = {name.encode() for name in (CONFIG, METRICS, REPORT, "results.json", "classify.json")}  # of runs and results
A_RUN_OF_OURS = {CONFIG.encode(), CHECKPOINTS.encode()}  # --out inside of the data: its report's pictures are not data
# Folders, or values of a list's column `split`, in any case. Of several the first is taken.
TRAIN_SPLITS = ("train", "training")
VAL_SPLITS = ("val", "valid", "validation", "dev", "test", "testing")
MAPS_LOOKED_AT = 8  # files, to tell whether a folder holds the maps of the images beside it

# What is known of a file: size [bytes] and time of change [ns] by the system, the rest by its header.
ROW = np.dtype(
    [("size", "<i8"), ("time", "<i8"), ("format", "S8"), ("mode", "S8"), ("height", "<i4"), ("width", "<i4")]
)


class Found(NamedTuple):
    """Files that may be images.

    Attributes:
        names: paths relative to the root, in order.
        rows: one ROW per name, its header fields still empty.
        bad: (name, reason) of what can't be an image or can't be looked into.
        others: how many other files were passed over, by extension.
        inodes: device and inode per name, by which a link is the file that it leads to.
        runs: folders of runs, which were not looked into.
        maps: folders of what is annotated on the images beside them, which were not looked into either.
    """

    names: list[bytes]
    rows: np.ndarray
    bad: list[tuple[str, str]]
    others: Counter[str]
    inodes: NDArray[np.uint64]
    runs: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()

    @property
    def left_out(self) -> str:
        """The folders of runs and of maps, as text; empty where there are none."""
        text = ""
        if self.runs:
            text += f"; without {counted(len(self.runs), 'folder')} of runs, which hold {CONFIG} and {CHECKPOINTS}/: {_some(self.runs)}"
        if self.maps:
            text += f"; without masks and annotations of the images: {_some(self.maps)}"
        return text


class Names:
    """Many names in two arrays. As a list they would be copied into every forked worker, touch by touch."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        self.text = b"".join(names)
        self.ends = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: SupportsIndex) -> bytes:
        start, end = self.ends[int(i) : int(i) + 2]
        return self.text[start:end]

    def __iter__(self) -> Iterator[bytes]:
        return (self.text[start:end] for start, end in itertools.pairwise(self.ends.tolist()))


class Listing(NamedTuple):
    """A list file's rows: paths as written, and the CSV's columns `label`, `split` and `group`, where it has them."""

    names: list[bytes]
    labels: list[str] | None
    splits: list[str] | None
    groups: list[str] | None = None


def path_of(root: Path, name: bytes) -> bytes:
    """A name's full path; an absolute name stands for itself."""
    return os.path.join(os.fsencode(root), name)


def first_of(words: Sequence[str], names: Iterable[str]) -> str:
    """The first of the words that is among the names, in any case, as it is written there; empty where none is."""
    written = {name.lower(): name for name in sorted(names)}  # of several the one in small letters
    return next((written[word] for word in words if word in written), "")


def walk(root: Path, folder: str = "", maps: bool = False) -> Found:
    """Find every file with an image's extension under root/folder, sorted by the bytes of its path.

    Links are followed. Each folder is read once, by its device and inode, so loops end; a folder that is reached
    both directly and by a link goes by its own name.

    Args:
        maps: look into folders of masks beside their images too, see maps_beside.
    """
    with Progress("looking for images", 0, delay=FIRST_SECONDS) as progress:
        return _walked(root, folder, progress, maps)


def _walked(root: Path, folder: str, progress: Progress, maps: bool) -> Found:
    names: list[bytes] = []
    known: list[tuple[int, int]] = []
    inodes: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    runs: list[str] = []
    left: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting, linked = [os.fsencode(folder + "/" if folder else "")], list[bytes]()
    while waiting or linked:
        inside = waiting.pop() if waiting else linked.pop(0)
        try:
            about = patiently(functools.partial(os.stat, path_of(root, inside)))
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = patiently(functools.partial(_entries, path_of(root, inside)))
        except OSError as error:
            bad.append((os.fsdecode(inside), f"folder: {reason_of(error)}"))
            continue
        if inside and {entry.name for entry in entries} >= A_RUN_OF_OURS:
            runs.append(os.fsdecode(inside))
            continue
        passed = set() if maps else maps_beside(path_of(root, inside), [entry.name for entry in entries])
        left += [os.fsdecode(inside + name) for name in passed]
        for entry in entries:
            if entry.name.startswith(b".") or entry.name in NOT_DATA or entry.name in passed:
                continue
            if not len(names) % 1000:
                progress.update(len(names))
            name = inside + entry.name
            extension = os.path.splitext(entry.name)[1].lower()
            try:
                about = patiently(entry.stat)
            except OSError as error:  # a dangling link, or one to itself; without extension perhaps to a folder
                if extension in IMAGE_EXTENSIONS or not extension:
                    bad.append((os.fsdecode(name), reason_of(error)))
                continue
            if stat.S_ISDIR(about.st_mode):
                (linked if entry.is_symlink() else waiting).append(name + b"/")
            elif extension not in IMAGE_EXTENSIONS:
                others[os.fsdecode(extension)] += 1
            elif not stat.S_ISREG(about.st_mode):
                bad.append((os.fsdecode(name), "not a regular file"))
            else:
                names.append(name)
                known.append((about.st_size, about.st_mtime_ns))
                inodes.append((about.st_dev, about.st_ino))
    order = sorted(range(len(names)), key=names.__getitem__)
    rows, files = _rows([known[i] for i in order]), _inodes([inodes[i] for i in order])
    return Found([names[i] for i in order], rows, sorted(bad), others, files, tuple(sorted(runs)), tuple(sorted(left)))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder in which images are sought, sorted: no leavings of a system, no maps beside their images, no
    runs. None of a folder that cannot be read: whoever walks it says so.
    """
    names = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # a link to itself
                if entry.is_dir() and not entry.name.startswith("."):
                    names.append(entry.name)
    inside = os.fsencode(folder)
    passed = maps_beside(inside, [os.fsencode(name) for name in names]) | NOT_DATA
    return sorted(name for name in names if os.fsencode(name) not in passed and not is_run(folder / name))


def maps_beside(folder: bytes, names: Sequence[bytes]) -> set[bytes]:
    """Which entries of a folder hold what is annotated on the images beside them: PASCAL VOC's Segmentation*/, Cityscapes' gt*/,
    and masks/ or annotations/ beside images/ where their files have the names of images, as the trimaps of Oxford's pets.
    """
    there = set(names)
    found = set[bytes]()
    if b"JPEGImages" in there:
        found |= {name for name in there if name.startswith(b"Segmentation")}
    if b"leftImg8bit" in there:
        found |= {name for name in there if name.startswith(b"gt") or name == b"disparity"}
    if b"images" in there:
        found |= {name for name in (b"masks", b"annotations") if name in there and _maps_images(folder, name)}
    return found


def _maps_images(folder: bytes, name: bytes) -> bool:
    """Whether most of the first PNGs below folder/name have the name of a file below folder/images."""
    maps = os.path.join(folder, name)
    few: list[bytes] = []
    for inside, folders, files in os.walk(maps):
        folders[:] = sorted(each for each in folders if not each.startswith(b"."))
        pngs = (each for each in sorted(files) if each.lower().endswith(b".png") and not each.startswith(b"."))
        few += [os.path.relpath(os.path.join(inside, each), maps) for each in pngs]
        if len(few) >= MAPS_LOOKED_AT:
            break
    few = few[:MAPS_LOOKED_AT]
    return bool(few) and 2 * sum(_has_image(os.path.join(folder, b"images"), each) for each in few) > len(few)


def _has_image(images: bytes, name: bytes) -> bool:
    """Whether an image has the name of a map, below the same folder or one fewer (as annotations/trimaps/x.png has images/x.jpg)."""
    stem = os.path.splitext(name)[0]
    return any(
        os.path.exists(os.path.join(images, one + extension))  # noqa: PTH110
        for one in {stem, stem.partition(b"/")[2] or stem}
        for extension in (b".jpg", b".jpeg", b".JPG", b".JPEG", b".png", b".tif", b".bmp")
    )


def may_hold_images(path: Path) -> bool:
    """Whether a path is a file, or a folder with something that `walk` may take for an image; stops at the first.

    Linked folders are not looked into: there may be something. Without an image `walk` is as quick, and says what is there.
    """
    if not path.is_dir():
        return path.is_file()
    for folder, folders, files in os.walk(os.fsencode(path)):
        folders[:] = [name for name in folders if not name.startswith(b".") and name not in NOT_DATA]
        if any(os.path.islink(os.path.join(folder, name)) for name in folders):
            return True
        if any(os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS for name in files if not name.startswith(b".")):
            return True
    return False


def image_among(folder: bytes, depth: int = 3) -> bytes:
    """Return an image that lies in a folder or at most `depth` - 1 below it, as in class folders and those of a split; or nothing.

    Folders in which something of ours lies are passed over, as their pictures are a report's, and so are those that cannot be read.
    """
    try:
        entries = [
            entry for entry in _entries(folder) if not entry.name.startswith(b".") and entry.name not in NOT_DATA
        ]
    except OSError:
        return b""
    if {entry.name for entry in entries} & OURS:
        return b""
    for entry in entries:
        if os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and entry.is_file():
            return entry.path
    below = (entry.path for entry in entries if depth > 1 and entry.is_dir(follow_symlinks=False))
    return next(filter(None, (image_among(path, depth - 1) for path in below)), b"")


def any_there(root: Path, names: list[bytes]) -> bool:
    """Whether any file of a list is there; stops at the first."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            os.stat(path_of(root, name))  # noqa: PTH116
            return True
    return False


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(folder) as scanned:
        return sorted(scanned, key=lambda entry: entry.name)


def look_up(root: Path, names: list[bytes]) -> tuple[Found, NDArray[np.int64]]:
    """Look for the files of a list, in its order; any extension will do. Also returns which of `names` were found."""
    kept: list[int] = []
    known: list[tuple[int, int]] = []
    inodes: list[tuple[int, int]] = []
    bad: list[tuple[str, str]] = []
    for i, name in enumerate(names):
        try:
            about = patiently(functools.partial(os.stat, path_of(root, name)))
        except (OSError, ValueError) as error:
            bad.append((os.fsdecode(name), reason_of(error)))
            continue
        if stat.S_ISREG(about.st_mode):
            kept.append(i)
            known.append((about.st_size, about.st_mtime_ns))
            inodes.append((about.st_dev, about.st_ino))
        else:
            bad.append((os.fsdecode(name), "not a regular file"))
    found = Found([names[i] for i in kept], _rows(known), bad, Counter(), _inodes(inodes))
    return found, np.asarray(kept, dtype=np.int64)


def read_list(path: Path) -> Listing:
    """Read a .txt (one path a line, a label behind it if wanted) or a .csv (`path`, and if wanted `label`, `split` and `group`;
    further columns don't matter; parted by commas, semicolons or tabs).

    Paths are relative to the file's folder, or absolute, or below ~. Blanks at their ends count only where a file has them.

    Raises:
        DataError: no text, no header, no column `path`, an empty cell, an unknown split, no label in some line.
    """
    if path.suffix.lower() == ".txt":
        return _read_plain(path)
    where = printable(str(path))
    text = read_text(path, "a list of images")
    header, delimiter = _header_of(text)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(table.line_num, row) for row in table if row]
    except csv.Error as error:
        raise DataError(f"{where}: expected a CSV, found {error} in line {table.line_num}") from error
    if "path" not in header:
        raise DataError(
            f"{where}: expected a header path[,label][,split][,group], found '{printable(delimiter.join(header))[:80]}'"
            f"{did_you_mean('path', header)}; write it as the first line"
        )
    columns = {name: header.index(name) for name in ("path", "label", "split", "group") if name in header}
    cells: dict[str, list[str]] = {name: [] for name in columns}
    for line, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        for name, column in columns.items():
            cell = row[column] if column < len(row) else ""
            if not cell.strip() and name != "group":
                raise DataError(f"{where}: expected a {name} in line {line}, found none; fill it, or drop the column")
            if name == "split" and cell.strip().lower() not in (*TRAIN_SPLITS, *VAL_SPLITS):
                raise DataError(
                    f"{where}: expected split train, val or test in line {line}, found '{printable(cell)}'; of the words "
                    f"{', '.join((*TRAIN_SPLITS, *VAL_SPLITS))} one is needed"
                )
            cells[name].append(cell if name == "path" else cell.strip())
    splits = cells.get("split")
    names = [_stripped(path.parent, name) for name in cells["path"]]
    return Listing(names, cells.get("label"), splits and [split.lower() for split in splits], cells.get("group"))


def _header_of(text: str) -> tuple[list[str], str]:
    """The cells of a CSV's first line, in small letters, and what parts them: that by which one is `path`, or makes most cells."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    split = {mark: [cell.strip().strip('"').lower() for cell in first.split(mark)] for mark in DELIMITERS}
    delimiter = max(DELIMITERS, key=lambda mark: ("path" in split[mark], len(split[mark])))
    return split[delimiter] if first else [], delimiter


def _read_plain(path: Path) -> Listing:
    """A list without columns. Whether there is a label behind the paths is found out by which files are there."""
    lines = read_lines(path, "a list of images")

    def is_there(name: bytes) -> bool:
        return bool(name) and any_there(path.parent, [name])

    def whole(line: str) -> bytes:
        return _stripped(path.parent, line)

    def before_label(line: str) -> bytes:
        parts = without_label(line)
        return b"" if parts is None else as_name(parts[0])

    texts = [line for _, line in lines]
    if not texts or best_reading(texts, (whole, before_label), is_there) is whole:
        return Listing([whole(line) for line in texts], None, None)
    names, labels = [], []
    for number, line in lines:
        parts = without_label(line)
        if parts is None:
            raise DataError(
                f"{printable(str(path))}: expected a path and a label in line {number}, as in the others, found "
                f"'{printable(line)[:60]}'; add it"
            )
        names.append(as_name(parts[0]))
        labels.append(parts[1])
    return Listing(names, labels, None)


def _stripped(root: Path, text: str) -> bytes:
    """A path without blanks at its ends, unless there is a file whose name has them."""
    bare = text.strip()
    if bare == text or any_there(root, [as_name(text)]):
        return as_name(text)
    return as_name(bare)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name.rstrip("/")) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _rows(known: list[tuple[int, int]]) -> np.ndarray:
    rows = np.zeros(len(known), dtype=ROW)
    if known:
        rows["size"], rows["time"] = np.array(known, dtype=np.int64).T
    return rows


def _inodes(known: list[tuple[int, int]]) -> NDArray[np.uint64]:
    return np.array(known, dtype=np.uint64).reshape(-1, 2)


def warn_of_foreign(others: Mapping[str, int]) -> list[str]:
    """A warning for each format of pictures that is not read: else a phone's HEIC would be missed without a word. Archives may
    lie beside what was unpacked from them."""
    return [
        f"{ext} is not read, {counted(others[ext], 'file')} left out: {advice}"
        for ext, advice in NOT_READ.items()
        if ext in others and advice != UNPACK
    ]


def nothing_readable(where: str, bad: Sequence[tuple[str, str]], others: Mapping[str, int], left_out: str) -> str:
    """The error of a folder or list `where` without a readable image: what was found there instead."""
    if bad:
        name, reason = bad[0]
        return (
            f"{where}: expected images, found {len(bad)} files of which none is readable; {printable(name)}: {reason}"
        )
    if left_out:
        return f"{where}: expected images, found none{left_out}; name a folder of images"
    if not others:
        return f"{where}: expected images, found no file; check the path"
    most = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    seen = ", ".join(f"{count} {printable(extension) or 'without extension'}" for extension, count in most[:5])
    advice = "; ".join(dict.fromkeys(f"{NOT_READ[ext]} {ext}" for ext, _ in most if ext in NOT_READ))
    known = " ".join(sorted(extension.decode() for extension in IMAGE_EXTENSIONS))
    return f"{where}: expected images ({known}), found only {seen}" + (f"; {advice}" if advice else "")
