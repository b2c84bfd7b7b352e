"""The images that a run began with, in a file of its folder: their order stays, whatever becomes of the files.

    images.npz   version, names (separated by NUL), rows (walk.ROW without times), bad (JSON), fingerprint

The order of a run is a permutation of as many images as it began with. So an image that is deleted or damaged later keeps
its place, where the loader puts another one; and one that is added later is none of the run's.
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swav.data.images import Images
from swav.data.sources.walk import ROW
from swav.data.storage import Files
from swav.errors import ConfigError, counted, printable
from swav.files import IMAGE_LIST, warn, write_durably

FILE = IMAGE_LIST
VERSION = 1
_SHOWN = 3  # names in the message of a refusal
_LISTED = 10  # names in a warning


def write_roster(path: Path, images: Images) -> None:
    """Write the list of images durably; equal images give equal bytes. Packed ones (CIFAR) have none: their order is fixed.

    Raises:
        OSError: the file cannot be written.
    """
    if images.in_memory:
        return
    rows = images.rows.copy()
    rows["time"] = 0
    names = b"\0".join(os.fsencode(images.name(i)) for i in range(len(images)))
    members = {
        "version": np.array(VERSION),
        "names": np.frombuffer(names, dtype=np.uint8),
        "rows": rows,
        "bad": np.frombuffer(json.dumps(images.bad).encode("ascii"), dtype=np.uint8),
        "fingerprint": np.frombuffer(images.fingerprint.encode("ascii"), dtype=np.uint8),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in members.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # numpy's own has the time of day
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
    write_durably(path, content.getvalue())


def read_roster(path: Path, root: Path, note: str = "") -> Images:
    """Read the list of images that a run began with.

    Args:
        root: what their names are relative to now.
        note: of the images.

    Raises:
        FileNotFoundError: there is none (runs of earlier versions, CIFAR).
        ValueError: it is damaged, or of a newer version.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {}
            for name in ("version", "names", "rows", "bad", "fingerprint"):
                # Read before it is parsed: a checksum stands between a flipped bit and the memory that a header asks for.
                member = io.BytesIO(archive.read(f"{name}.npy"))
                members[name] = np.lib.format.read_array(member, allow_pickle=False)
        if int(members["version"]) > VERSION:
            raise ValueError(f"it is of version {int(members['version'])}, and this swav reads {VERSION}")
        if members["rows"].dtype != ROW:
            raise ValueError("its rows have other fields")
        images = Images(
            Files(root, members["names"].tobytes().split(b"\0"), members["rows"]),
            bad=[(str(name), str(reason)) for name, reason in json.loads(members["bad"].tobytes())],
            note=note,
        )
        if images.fingerprint.encode() != members["fingerprint"].tobytes():
            raise ValueError("its names or sizes are not those that were written")
    except Exception as error:  # a zip file can be broken in many ways
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return images


def keep_roster(path: Path, images: Images) -> None:
    """Write the list of a run's images where there is none, or another.

    Raises:
        OSError: it cannot be written.
    """
    try:
        known = read_roster(path, images.root).fingerprint
    except (OSError, ValueError):
        known = ""
    if known != images.fingerprint:
        write_roster(path, images)


def count_missing(path: Path, now: Images) -> int:
    """How many images of a run's list are not among those that are there now, readable or not; 0 where there is no such list."""
    try:
        began = read_roster(path, now.root)
    except (OSError, ValueError):
        return 0
    there = {now.name(i) for i in range(len(now))} | {name for name, _ in now.bad}
    return sum(began.name(i) not in there for i in range(len(began)))


def as_begun(path: Path, now: Images, max_unreadable: float) -> Images:
    """The images that a run began with, in their order, out of those that are there now.

    Images that are gone or damaged keep their place and are in `gone`; files added since are left out; both are said. So are
    files of another size, which are used as they are.

    Args:
        path: of the run's list. Without it, or where it is damaged (a warning), the result is `now`.
        now: what a path holds now.
        max_unreadable: share of images that may be unreadable.

    Raises:
        ConfigError: it is another data set: most images are missing or of another size, or more than `max_unreadable` of them are of
            another size.
    """
    if now.in_memory:
        return now
    try:
        began = read_roster(path, now.root, now.note)
    except FileNotFoundError:
        return now
    except (OSError, ValueError) as error:
        warn(f"{path}: cannot be used ({error}); so the images must be exactly those that the run began with")
        return now
    _compare(path.parent, began, now, max_unreadable)
    return began


def allowed_bad(images: Images, max_unreadable: float) -> int:
    """How many images of a run may be unreadable, those left out at its start included; 10 are always allowed."""
    return max(10, int(max_unreadable * (len(images) + len(images.bad))))


def _compare(out: Path, began: Images, now: Images, max_unreadable: float) -> None:
    """Fill in `began.gone`, and say what is gone, changed or added."""
    if began.fingerprint == now.fingerprint:
        return
    where = {now.name(i): i for i in range(len(now))}
    reasons = dict(now.bad)
    changed: list[str] = []
    missing: list[str] = []
    for i, size in enumerate(began.rows["size"].tolist()):
        name = began.name(i)
        place = where.get(name)
        if place is not None:
            if now.rows["size"][place] != size:
                changed.append(name)
            continue
        reason = _reason(name, reasons)
        if reason is None:
            missing.append(name)
        began.gone.append((name, reason or "no such file"))
    if 2 * len(missing + changed) > len(began) or len(changed) > allowed_bad(began, max_unreadable):
        raise ConfigError(
            f"{printable(str(now.root))}: expected the {len(began)} images that the run in {out} began with, found "
            f"{len(missing)} of them missing and {len(changed)} of another size, as {_some([*missing, *changed], _SHOWN)}\n"
            "put them back, or use another --out"
        )
    if began.gone:
        names = _some([f"{name} ({reason})" for name, reason in began.gone], _SHOWN)
        warn(
            f"{out}: {counted(len(began.gone), 'image')} of this run cannot be read any more: {names}\n"
            "another image takes the place of each, and bad_files.jsonl lists them"
        )
    if changed:
        warn(
            f"{out}: {counted(len(changed), 'image')} of this run changed in size since it began, and will be used as found: "
            f"{_some(changed, _LISTED)}"
        )
    added = len(where.keys() - {began.name(i) for i in range(len(began))} - {name for name, _ in began.bad})
    if added:
        warn(f"{out}: images added after the run began are not part of it: {counted(added, 'file')} left out")


def _reason(name: str, reasons: dict[str, str]) -> str | None:
    """Why an image cannot be read: it, or a folder that it lies in, was found unreadable. None: it was not found."""
    folders = [name[: i + 1] for i, character in enumerate(name) if character == "/"]
    return next((reasons[place] for place in (name, *folders) if place in reasons), None)


def _some(names: Sequence[str], shown: int) -> str:
    text = ", ".join(printable(name) for name in names[:shown])
    return text + (f" and {len(names) - shown} more" if len(names) > shown else "")
