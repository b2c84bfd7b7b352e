"""Attacks: an image that lost pixels and is used, half of it grey; one that lost none and is refused; a header that takes memory
for what is not there.

The oracle is the undamaged image, and Pillow for what the published protocols see of a damaged one.

Run: pytest tests/data/sources/test_damage.py
"""

import io
import os
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from swav.data.sources.decode import Unreadable, decode, decode_as_pillow, read_file, read_header
from tests.data.memory import require_at_most
from tests.data.sources.test_decode import encoded, header, smooth

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)  # every byte carries pixels


def noisy_jpeg(image=None, **options):
    return encoded(NOISE if image is None else image, "JPEG", quality=90, **options)


def in_cmyk():
    return Image.fromarray(NOISE).convert("CMYK")


def zeroed(data):
    middle = len(data) // 2
    return data[:middle] + bytes(1024) + data[middle + 1024 :]


JPEGS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"image": in_cmyk()}]
KINDS = ["sequential", "progressive", "with restarts", "CMYK"]


@pytest.mark.parametrize("options", JPEGS, ids=KINDS)
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2] + b"\xff\xd9", zeroed], ids=["cut", "zeroed"])
def test_a_jpeg_that_lost_pixels_is_refused_though_it_has_an_end(options, damage):
    data = damage(noisy_jpeg(**options))
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (96, 64)  # Pillow says nothing
    with pytest.raises(Unreadable, match="Corrupt JPEG data"):
        decode(data, "x")
    with pytest.raises(
        Unreadable, match="Corrupt JPEG data"
    ):  # a harmless warning, of which libjpeg gives the first only
        decode(data.replace(b"JFIF\0\x01", b"JFIF\0\x09").replace(b"\xff\xdb", b"\0\0\xff\xdb", 1), "x")


@pytest.mark.parametrize("options", JPEGS, ids=KINDS)
def test_of_a_damaged_jpeg_the_published_protocols_get_the_pixels_of_pillow_and_the_reason(options):
    data = zeroed(noisy_jpeg(**options))
    pixels, damage = decode_as_pillow(data, "x")
    assert damage is not None and "Corrupt JPEG data" in damage
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    whole = noisy_jpeg(**options)
    assert decode_as_pillow(whole, "x")[1] is None
    assert np.array_equal(decode_as_pillow(whole, "x")[0], decode(whole, "x"))
    with pytest.raises(Unreadable, match="Corrupt JPEG data"):  # without an end Pillow refuses it
        decode_as_pillow(whole[: len(whole) // 2], "x")


@pytest.mark.parametrize("options", JPEGS, ids=KINDS)
def test_a_jpeg_that_lost_only_its_end_marker_has_all_its_pixels(options):
    data = noisy_jpeg(**options)
    for cut in (1, 2):
        assert np.array_equal(decode(data[:-cut], "x"), decode(data, "x"))


def test_bytes_that_an_encoder_left_behind_the_pixels_are_no_damage_and_hundreds_are():
    data = noisy_jpeg()
    assert np.array_equal(decode(data[:-2] + bytes(3) + data[-2:], "x"), decode(data, "x"))
    with pytest.raises(Unreadable, match="extraneous bytes"):
        decode(data[:-2] + bytes(300) + data[-2:], "x")


def test_odd_parameters_of_a_scan_and_an_unknown_revision_are_no_damage():
    data = bytearray(noisy_jpeg())
    scan = data.index(b"\xff\xda")
    data[scan + 2 + int.from_bytes(data[scan + 2 : scan + 4]) - 2] = (
        7  # where the spectrum ends: 63 in a sequential JPEG
    )
    data[data.index(b"JFIF\0") + 5] = 9
    assert np.array_equal(decode(bytes(data), "x"), decode(noisy_jpeg(), "x"))


@pytest.mark.parametrize(
    "read", [decode, decode_as_pillow, lambda data, _: header(data)], ids=["decode", "as Pillow", "header"]
)
def test_a_jpeg_that_claims_more_pixels_than_its_bytes_can_hold_is_refused_before_memory_is_taken(read):
    data = bytearray(noisy_jpeg()[:700] + b"\xff\xd9")
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 11585, 11585)

    def refused():
        with pytest.raises(Unreadable, match="702 bytes cannot hold the 11585x11585 pixels"):
            read(bytes(data), "x")

    require_at_most(5e6, refused)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "PPM"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_the_most_compressible_image_is_above_the_least_bytes_per_pixel(file_format, mode):
    options: dict[str, Any] = {
        "JPEG": {"progressive": True, "optimize": True, "quality": 1},
        "PNG": {"compress_level": 9},
    }
    if (mode, file_format) != ("1", "JPEG"):
        data = encoded(Image.new(mode, (4000, 4000)), file_format, **options.get(file_format, {}))
        assert header(data)[2:] == decode(data, "x").shape[:2] == (4000, 4000)


def with_chunk(kind, body, checksum=None):
    data = encoded(NOISE)
    chunk = kind + body
    chunk = (
        struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk) if checksum is None else checksum)
    )
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * (2 << 20))),
        with_chunk(b"tEXt", b"workflow\0" + b"x" * (2 << 20)),
        with_chunk(b"tEXt", b"Comment\0hello", checksum=1),
        with_chunk(b"eXIf", b"MM\0*", checksum=1),
        with_chunk(b"iCCP", b"icc\0\0" + b"no deflate"),
    ],
    ids=["long text, packed", "long text", "text of wrong checksum", "EXIF of wrong checksum", "damaged profile"],
)
def test_a_png_whose_damage_is_in_no_pixel_is_read(data):
    assert np.array_equal(decode(data, "x"), NOISE)
    assert header(data) == ("PNG", "RGB", 64, 96)


def test_a_png_whose_transparency_is_damaged_is_refused():
    with pytest.raises(Unreadable, match="tRNS"):
        decode(with_chunk(b"tRNS", bytes(6), checksum=1), "x")


@pytest.mark.parametrize("size", [100 << 20, 100 << 30])
def test_a_sparse_file_is_refused_by_name_before_memory_is_taken(tmp_path, size):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as file:
        file.write(encoded(smooth(), "JPEG"))
        file.truncate(size)
    with (
        path.open("rb") as file,
        pytest.raises(Unreadable, match=r"sparse\.jpg: .* MB for 36x24 pixels, above the limit"),
    ):
        read_header(file, path.name)
    with pytest.raises(Unreadable, match=r"sparse\.jpg: .*above the limit"):
        read_file(os.fsencode(path), path.name)
