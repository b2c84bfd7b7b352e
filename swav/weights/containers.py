"""Files of weights: torch's zip files (since 1.6), the pickles one after another that it wrote before, and safetensors.

Nothing in them is ever run, see pickle_vm.py. Tensors are read when asked for, so that optimisers and queues cost
nothing; the structure is checked whole, so that a file that is cut short is found at once.
"""

import dataclasses
import io
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swav.errors import CheckpointError
from swav.weights.file_kinds import what_zip_it_is
from swav.weights.pickle_vm import FormatError, PickleVM, TensorRef, shown
from swav.weights.sources import format_of

# What reading damaged bytes leads to, in zipfile, in safetensors and in torch.
BROKEN = (
    zipfile.BadZipFile,
    SafetensorError,
    struct.error,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    OverflowError,
    OSError,
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles that torch wrote before 1.6


@dataclasses.dataclass
class WeightFile:
    """A file of weights.

    Attributes:
        path: of the file.
        tree: what it holds: dicts, lists, tuples, numbers, texts, `Stored` tensors and `Inert` objects.
        inert: names of the objects that were not looked into.
    """

    path: Path
    tree: Any
    inert: frozenset[str]
    _read: Callable[[Sequence[TensorRef]], Iterable[Tensor]]

    def tensors(self, wanted: Mapping[str, TensorRef]) -> dict[str, Tensor]:
        """Read tensors, with their checksums where the format has some.

        Raises:
            CheckpointError: the file is damaged, or went away.
        """
        try:
            return dict(zip(wanted, self._read(list(wanted.values())), strict=True))
        except BROKEN as error:
            raise CheckpointError(f"{self.path}: damaged ({shown(str(error))}); fetch it again") from None


def open_weights(path: Path) -> WeightFile:
    """Read a file's structure. No code in it is run, and no tensor is read yet.

    Raises:
        CheckpointError: the file is of no known format, is cut short, is damaged, or names what only an attack would.
    """
    try:
        opened = {"zip": _open_zip, "safetensors": _open_safetensors, "pickle": _open_legacy}
        found = opened[format_of(path)](path)
    except FormatError as error:
        raise CheckpointError(
            f"{path}: expected weights (a file of torch.save, or safetensors), found {error}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return found


# -- torch's zip: NAME/data.pkl, and a storage each in NAME/data/KEY


def _open_zip(path: Path) -> WeightFile:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and "/data.pkl" in name]
            if len(roots) != 1:
                raise FormatError(what_zip_it_is(archive.infolist()))
            root = roots[0]
            if f"{root}constants.pkl" in entries:
                raise FormatError("a TorchScript program; save its state_dict()")
            if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
                raise FormatError("a compressed archive, which torch.save does not write")
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise FormatError("big-endian numbers; save it again on a little-endian machine")
            machine = PickleVM()
            tree = machine.run(io.BytesIO(archive.read(f"{root}data.pkl")))
    except BROKEN as error:
        raise FormatError(f"a zip file that is cut short or damaged ({shown(str(error))}); fetch it again") from None
    for storage in machine.storages.values():
        info = entries.get(f"{root}data/{storage.key}")
        if info is None or info.file_size < storage.nbytes:
            raise FormatError(f"storage {storage.key} cut short or missing; fetch it again")

    def read(wanted: Sequence[TensorRef]) -> Iterable[Tensor]:
        with zipfile.ZipFile(path) as archive:

            def content(key: str) -> tuple[io.BufferedIOBase, int]:  # read to its end, which checks the CRC
                name = f"{root}data/{key}"
                return cast(io.BufferedIOBase, archive.open(name)), entries[name].file_size

            yield from _tensors(wanted, content)

    return WeightFile(path, tree, frozenset(machine.inert), read)


# -- before torch 1.6: pickles of a magic number, a version, the system, the object and the storages' keys; then each
#    storage as its length and its bytes


def _open_legacy(path: Path) -> WeightFile:
    machine = PickleVM()
    places: dict[str, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        first = PickleVM()
        if first.run(content) != LEGACY_MAGIC:
            if any(name.startswith("numpy.") for name in first.inert):
                raise FormatError(
                    "a pickle of NumPy arrays, as Detectron2 writes; save them as tensors, with torch.save"
                )
            raise FormatError("a pickle that torch.save did not write")
        PickleVM().run(content)
        system = PickleVM().run(content)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise FormatError("big-endian numbers; save it again on a little-endian machine")
        tree = machine.run(content)
        keys = PickleVM().run(content)
        place, end = content.tell(), len(content)
        for key in keys if isinstance(keys, list) else []:
            storage = machine.storages.get(str(key) if isinstance(key, str | int) else "")
            if storage is None:
                raise FormatError("a storage that nothing uses")
            count = int.from_bytes(content[place : place + 8], "little")
            if count != storage.count or place + 8 + storage.nbytes > end:
                raise FormatError(f"storage {key} cut short; fetch it again")
            places[storage.key] = place + 8
            place += 8 + storage.nbytes
    if missing := sorted(set(machine.storages) - set(places)):
        raise FormatError(f"storage {missing[0]} missing; fetch it again")

    def read(wanted: Sequence[TensorRef]) -> Iterable[Tensor]:
        def content(key: str) -> tuple[io.BufferedIOBase, int]:
            file = path.open("rb")
            file.seek(places[key])
            return file, machine.storages[key].nbytes

        yield from _tensors(wanted, content)

    return WeightFile(path, tree, frozenset(machine.inert), read)


# -- safetensors: its own library checks lengths and overlaps


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt") as content:
            tree = {}
            for name in content.keys():  # noqa: SIM118  # it is no mapping
                shape = tuple(content.get_slice(name).get_shape())
                tree[name] = TensorRef(name, shape)
    except BROKEN as error:
        raise FormatError(
            f"safetensors that are cut short or damaged ({shown(str(error))}); fetch them again"
        ) from None

    def read(wanted: Sequence[TensorRef]) -> Iterable[Tensor]:
        with safe_open(path, framework="pt") as content:
            for stored in wanted:
                yield content.get_tensor(stored.key)

    return WeightFile(path, tree, frozenset(), read)


def _tensors(wanted: Sequence[TensorRef], content: Callable[[str], tuple[io.BufferedIOBase, int]]) -> Iterable[Tensor]:
    """Tensors as views of the parts of storages that they lie in; each storage is read once, piece by piece.

    Many tensors of a file may share one storage (flattened parameters), and what is wanted may be little of it.

    Args:
        wanted: which.
        content: a storage by its key, as a stream at its beginning, and its bytes.
    """
    of_storage: dict[str, list[TensorRef]] = {}
    for stored in wanted:
        of_storage.setdefault(stored.key, []).append(stored)
    parts = {key: _read_parts(*content(key), _parts(refs)) for key, refs in of_storage.items()}
    for stored in wanted:
        yield _tensor(stored, parts[stored.key])


_Part = tuple[int, int]  # [bytes], from where and up to where


def _extent(stored: TensorRef) -> _Part:
    """Where a tensor lies in its storage."""
    last = stored.offset + sum((size - 1) * stride for size, stride in zip(stored.shape, stored.strides, strict=True))
    return stored.offset * stored.dtype.itemsize, (last + 1) * stored.dtype.itemsize


def _parts(refs: Sequence[TensorRef]) -> list[_Part]:
    """What tensors of one storage need of it, in order. They begin where a number of any type may, and do not touch."""
    parts: list[_Part] = []
    for start, end in sorted(_extent(stored) for stored in refs if 0 not in stored.shape):
        start -= start % _ALIGNED
        if parts and start <= parts[-1][1]:
            start, end = parts[-1][0], max(end, parts[-1][1])
            parts.pop()
        parts.append((start, end))
    return parts


_ALIGNED = 16  # bytes
_CHUNK = 1 << 20  # bytes that are read at a time


def _read_parts(stream: io.BufferedIOBase, size: int, parts: Sequence[_Part]) -> dict[_Part, bytearray]:
    """Parts of a stream, which is read through; the rest is passed over. (Torch warns of bytes, which it may not write to.)"""
    read = {part: bytearray(part[1] - part[0]) for part in parts}
    place = 0
    with stream:
        while chunk := stream.read(min(_CHUNK, size - place)):
            for (start, end), kept in read.items():
                first, last = max(start, place), min(end, place + len(chunk))
                if first < last:
                    kept[first - start : last - start] = chunk[first - place : last - place]
            place += len(chunk)
    if place < size:
        raise EOFError("a storage is cut short")
    return read


def _tensor(stored: TensorRef, parts: Mapping[_Part, bytearray]) -> Tensor:
    if 0 in stored.shape:
        return torch.empty(stored.shape, dtype=stored.dtype)
    begin, _ = _extent(stored)
    (start, _), content = next((part, content) for part, content in parts.items() if part[0] <= begin < part[1])
    count = len(content) // stored.dtype.itemsize
    flat = torch.frombuffer(content, dtype=stored.dtype, count=count)
    return flat.as_strided(stored.shape, stored.strides, (begin - start) // stored.dtype.itemsize)
