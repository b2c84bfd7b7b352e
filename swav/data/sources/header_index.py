"""The header of every image is read once, before the first step; what it said is kept in a cache.

An entry of the cache counts only while size and time of change of its file agree. A cache that is damaged, foreign or
can't be written is as good as none: the headers are read again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from swav.data.sources.decode import Header, Unreadable, open_regular, patiently, read_header, reason_of
from swav.data.sources.walk import ROW, path_of
from swav.progress import FIRST_SECONDS, Progress

VERSION = 3  # of the cache's content; another one is ignored
WORTH_CACHING = 1000  # files; fewer are read again in a tenth of a second
CHUNK = 64  # files per task of the pool
THREADS = 16  # reading a header is waiting for a disk or a network, not work
PASSING = -1  # in place of the time of change: this file's trouble may pass, ask again next time


def check_headers(
    root: Path,
    names: list[bytes],
    rows: np.ndarray,
    cache: Path | None,
    part: str = "",
) -> tuple[np.ndarray, dict[int, str]]:
    """Read the headers of the files `names` under `root`.

    Args:
        rows: one ROW per name, with size and time.
        cache: folder for the index; None: the user's cache folder.
        part: which part of the root is indexed: a split's folder, a list's file.

    Returns:
        The rows with every field, and the reason per row that is unreadable.
    """
    place = _place(root, part, cache) if len(names) >= WORTH_CACHING else None
    known, reasons = _reused(place, names, rows)
    wanted = np.flatnonzero(known["time"] != rows["time"])
    chunks = [wanted[i : i + CHUNK] for i in range(0, len(wanted), CHUNK)]
    with (
        Progress("checking headers", len(wanted), delay=FIRST_SECONDS) as progress,
        ThreadPoolExecutor(min(THREADS, len(chunks) or 1)) as pool,
        _cancelled_on_error(pool),
    ):
        for n, headers in enumerate(pool.map(lambda chunk: [_header(root, names[i]) for i in chunk], chunks)):
            for i, header in zip(chunks[n].tolist(), headers, strict=True):
                known[i] = rows[i]
                if isinstance(header, Header):
                    known[i] = (rows[i]["size"], rows[i]["time"], *header)
                else:
                    reasons[i], passing = header
                    known[i]["time"] = PASSING if passing else rows[i]["time"]
            progress.update(min((n + 1) * CHUNK, len(wanted)))
    if place is not None and len(wanted):
        _write(place, names, known, reasons)
    return known, reasons


@contextlib.contextmanager
def _cancelled_on_error(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Drop what waits in a pool when an exception (Ctrl-C, a signal) ends its use: leaving it would work all of it off."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def user_cache() -> Path:
    """The user's cache folder for swav, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swav"


def _header(root: Path, name: bytes) -> Header | tuple[str, bool]:
    """A file's header; or the reason why not, and whether it lies in the system instead of the content."""

    def read() -> Header:
        with open_regular(path_of(root, name)) as file:
            return read_header(file, os.fsdecode(name))

    try:
        return patiently(read)
    except Unreadable as error:
        return error.reason, False
    except OSError as error:
        return reason_of(error), True


def _place(root: Path, part: str, cache: Path | None) -> Path:
    key = hashlib.sha256(os.fsencode(root.resolve()) + b"\0" + os.fsencode(part)).hexdigest()[:16]
    return (cache or user_cache()) / f"index-{key}.npz"


def _reused(place: Path | None, names: list[bytes], rows: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """What the cache knows of these files; rows it doesn't know have another time than asked for."""
    known = np.zeros(len(names), dtype=ROW)
    known["time"] = PASSING
    before = _read(place) if place is not None else None
    if before is None:
        return known, {}
    old_names, old_rows, old_reasons = before
    where = {name: i for i, name in enumerate(old_names)}
    found = np.array([where.get(name, -1) for name in names], dtype=np.int64)
    same = found >= 0
    for field in ("size", "time"):
        same &= old_rows[field][found] == rows[field]
    known[same] = old_rows[found[same]]
    kept = np.flatnonzero(same)
    return known, {int(i): old_reasons[int(found[i])] for i in kept if int(found[i]) in old_reasons}


def _read(place: Path) -> tuple[list[bytes], np.ndarray, dict[int, str]] | None:
    try:
        with place.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if int(file["version"]) != VERSION:
                return None
            names = file["names"].tobytes().split(b"\0")
            rows = file["rows"]
            reasons = {int(i): str(reason) for i, reason in json.loads(file["reasons"].tobytes()).items()}
    except Exception:  # a zip file can be broken in many ways; none of them matters here
        return None
    return (names, rows, reasons) if rows.dtype == ROW and rows.shape == (len(names),) else None


def _write(place: Path, names: list[bytes], rows: np.ndarray, reasons: dict[int, str]) -> None:
    beside = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".index-", delete=False) as file:
            beside = Path(file.name)
            np.savez(
                file,
                version=VERSION,
                names=np.frombuffer(b"\0".join(names), dtype=np.uint8),
                rows=rows,
                reasons=np.frombuffer(json.dumps(reasons).encode(), dtype=np.uint8),
            )
        beside.replace(place)
    except OSError:  # a full disk, a folder that may not be written to: only time is lost
        if beside is not None:
            beside.unlink(missing_ok=True)
