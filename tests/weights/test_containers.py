"""Attacks: files that are cut short, damaged, hostile or of another kind; and tensors that come out changed.

Run: pytest tests/weights/test_containers.py
"""

import gc
import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from swav.errors import CheckpointError
from swav.network.backbone import BACKBONES
from swav.weights.containers import open_weights
from swav.weights.encoder import load

FORMS = ("zip", "legacy", "safetensors")


def some_tensors() -> dict[str, torch.Tensor]:
    """Of many types and layouts: transposed, a part of another, empty, a scalar, expanded from one column."""
    base = torch.randn(6, 5)
    return {
        "plain": base,
        "transposed": base.T,
        "part": base[1:4, ::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        **{
            str(dtype): torch.arange(5).to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.uint8)
        },
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


def write(path: Path, form: str, tensors: Any, **torch_options: Any) -> Path:
    if form == "safetensors":
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip", **torch_options)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_those_that_torch_reads(form, tmp_path):
    tensors = some_tensors()
    file = open_weights(write(tmp_path / "w", form, tensors))
    read = file.tensors(file.tree)
    assert list(file.tree) == list(tensors) if form != "safetensors" else set(file.tree) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and file.tree[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_a_safetensors_file_that_begins_as_a_pickle_is_not_taken_for_one(tmp_path):
    """Its first byte is the lowest of the header's length."""
    for extra in range(0, 512, 8):  # the header is padded to a multiple of 8
        path = tmp_path / "w.safetensors"
        save_file({"a": torch.ones(2)}, path, {"note": "x" * extra})
        if path.read_bytes()[0] == 0x80:
            assert open_weights(path).tree.keys() == {"a"}
            return
    raise AssertionError("no header of that length was made")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_newer_pickle_protocols_are_read_too(protocol, tmp_path):
    tensors = {"a": torch.randn(4)}
    file = open_weights(write(tmp_path / "w", "zip", tensors, pickle_protocol=protocol))
    assert torch.equal(file.tensors(file.tree)["a"], tensors["a"])


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_short_anywhere_is_refused(form, tmp_path):
    path = write(tmp_path / "w", form, {"a": torch.randn(40), "b": torch.arange(9)})
    whole = path.read_bytes()
    for length in [*range(0, 16), *range(16, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            open_weights(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_flipped_byte_is_refused_or_changes_a_value_but_never_more(form, tmp_path):
    """Zip files have checksums, the others have none: there a value may change. Nothing else may happen."""
    path = write(tmp_path / "w", form, {"a": torch.randn(4)})
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (300,), generator=generator).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        try:
            file = open_weights(path)
            file.tensors({name: tensor for name, tensor in file.tree.items() if hasattr(tensor, "shape")})
        except CheckpointError:
            continue
        except AttributeError:
            assert not isinstance(file.tree, dict)


def test_a_damaged_tensor_in_a_zip_is_found_by_its_checksum(tmp_path):
    path = write(tmp_path / "w", "zip", {"a": torch.full((100,), 3.0)})
    whole = path.read_bytes()
    place = whole.index(torch.full((100,), 3.0).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    file = open_weights(path)
    with pytest.raises(CheckpointError, match="damaged"):
        file.tensors(file.tree)


class Runs:
    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "alone"])
def test_a_file_that_would_run_a_command_is_refused_and_does_not(form, place, tmp_path):
    trap = tmp_path / "sprung"
    tree = Runs(trap) if place == "alone" else {"a": torch.ones(3), "hook": Runs(trap)}
    path = write(tmp_path / "w", form, tree)
    with pytest.raises(CheckpointError, match="attack"):
        open_weights(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap does work


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (pickle.dumps({"a": 1}), "torch.save did not write"),
        (b"GIF89a" + bytes(500), "another file"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
    ],
)
def test_another_kind_of_file_is_named(content, message, tmp_path):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path / "w")


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_another_kind_of_zip_is_named(tmp_path):
    path = tmp_path / "w"
    with pytest.raises(CheckpointError, match=r"a zip file that holds readme\.txt; unpack it"):
        open_weights(zipped(path, {"readme.txt": b"hello"}))
    with pytest.raises(CheckpointError, match="TorchScript"):
        open_weights(zipped(path, {"a/data.pkl": b"N.", "a/constants.pkl": b"N."}))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_weights(zipped(path, {"a/data.pkl": b"N.", "a/byteorder": b"big"}))
    with pytest.raises(CheckpointError, match="compressed"):
        open_weights(zipped(path, {"a/data.pkl": bytes(100_000)}, zipfile.ZIP_DEFLATED))


def test_a_storage_that_is_not_in_the_archive_is_found_at_once(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.randn(40)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    lacking = {name: content for name, content in entries.items() if "/data/" not in name}
    with pytest.raises(CheckpointError, match="storage 0 cut short or missing"):
        open_weights(zipped(tmp_path / "w", lacking))
    shorter = {name: content[:80] if "/data/" in name else content for name, content in entries.items()}
    with pytest.raises(CheckpointError, match="storage 0 cut short or missing"):
        open_weights(zipped(tmp_path / "w", shorter))


def test_a_file_that_went_away_is_said_to_be_damaged(tmp_path):
    file = open_weights(write(tmp_path / "w", "zip", {"a": torch.ones(3)}))
    file.path.unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        file.tensors(file.tree)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_weights(tmp_path / "w")


@given(content=st.binary(max_size=200), start=st.sampled_from([b"PK\x03\x04", b"\x80\x02", b"\x10" + bytes(7) + b"{"]))
def test_any_bytes_are_refused(content, start, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any_bytes"
    path.write_bytes(start + content)
    with pytest.raises(CheckpointError):
        open_weights(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_storage_that_many_tensors_share_is_read_once(form, tmp_path):
    flat = torch.randn(1000)
    views = {str(i): flat[10 * i : 10 * i + 10] for i in range(100)}
    file = open_weights(write(tmp_path / "w", form, views))
    read = file.tensors(file.tree)
    assert len({tensor.untyped_storage().data_ptr() for tensor in read.values()}) == 1
    assert all(torch.equal(read[name], view) for name, view in views.items())


def peak_of(read: Callable[[], object]) -> tuple[Any, int]:
    """What a call returns, and the bytes that Python held at its peak beyond those of before."""
    tracemalloc.start()
    try:
        result = read()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_of_a_storage_only_what_is_wanted_is_held(form, tmp_path):
    """A network of 1 MB among 32 MB of what an optimiser or other networks flattened into the same storage."""
    flat = torch.randn(8_000_000)
    views = {str(i): flat[100_000 * i : 100_000 * (i + 1)].view(100, 1000) for i in range(80)}
    file = open_weights(
        write(tmp_path / "w", form, views | {"a column": flat.view(8000, 1000)[:40, 3], "twice": views["7"].T})
    )
    expected = views | {"a column": flat[3 : 3 + 40_000 : 1000], "twice": views["7"].T}
    for names in (["7", "twice"], ["3", "79"], ["a column"], ["0", "1"]):
        wanted = {name: file.tree[name] for name in names}
        read, peak = peak_of(partial(file.tensors, wanted))
        assert all(torch.equal(read[name], expected[name]) for name in names)
        assert peak < 800_000 + 3_000_000  # and a chunk of a megabyte, twice
    everything, peak = peak_of(lambda: file.tensors(file.tree))
    assert peak < flat.nbytes + 3_000_000 and torch.equal(everything["40"], views["40"])


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_parts_of_a_storage_of_any_type_and_place_are_read(form, tmp_path):
    """They begin at any number, overlap, and touch."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 255, (4096,), dtype=torch.uint8, generator=generator)
    made = {}
    for dtype in (torch.uint8, torch.float16, torch.int32, torch.int64):
        flat = raw.clone().view(dtype)
        for place in torch.randint(len(flat) - 30, (25,), generator=generator).tolist():
            made[f"{dtype} {place}"] = flat[place : place + 29 : 3]
    file = open_weights(write(tmp_path / "w", form, made))
    for names in (list(made), list(made)[::7], list(made)[40:43]):
        read = file.tensors({name: file.tree[name] for name in names})
        assert all(
            torch.equal(read[name].contiguous().view(torch.uint8), made[name].contiguous().view(torch.uint8))
            for name in names
        )


def test_damage_in_a_part_that_is_not_wanted_is_found_by_the_checksum(tmp_path):
    flat = torch.full((1_000_000,), 3.0)
    path = write(tmp_path / "w", "zip", {"first": flat[:10], "last": flat[-10:]})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    file = open_weights(path)
    with pytest.raises(CheckpointError, match="damaged"):
        file.tensors({"first": file.tree["first"]})


def memory_of(what: str) -> int:
    """Bytes of this process's memory, as Linux counts them: VmRSS, now, or VmHWM, at the most since it was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is reset by Linux's /proc"
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_loading_a_network_from_a_shared_storage_takes_memory_for_the_network(form, tmp_path):
    """From the file to the encoder: 120 tensors are views of 96 MB, of which they need less than one."""
    state = BACKBONES["resnet18"](width=0.125).state_dict()
    flat, views, start = torch.randn(24_000_000), {}, 0
    for name, tensor in state.items():
        if tensor.is_floating_point():
            views[name] = flat[start : start + tensor.numel()].copy_(tensor.flatten()).view(tensor.shape)
            start += tensor.numel() + 1000
    path = write(tmp_path / "w", form, state | views)
    del flat, views
    small = write(tmp_path / "small", form, state)
    expected = load(small).sha256  # once before, so that what is imported and cached is there
    gc.collect()
    before = memory_of("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    encoder = load(path)
    assert memory_of("VmHWM") - before < 40_000_000 and encoder.sha256 == expected
