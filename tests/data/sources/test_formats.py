"""Attacks: AVIF and JPEG 2000 read as something else than Pillow reads, or taken for whole where they are cut; a header that costs
the whole file; memory beyond the stated bound.

Run: pytest tests/data/sources/test_formats.py
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from swav.data.sources import damage
from swav.data.sources.damage import DECODING, DECODING_ELSE, MAX_MEMORY, MAX_PIXELS, check_size
from swav.data.sources.decode import Unreadable, decode, read_header
from swav.data.sources.formats import READERS
from swav.data.sources.open import open_images
from tests.data.memory import require_at_most
from tests.data.sources.test_decode import encoded, exif_block, header, smooth

JPEG2000 = [{}, {"no_jp2": True}, {"tile_size": (16, 16)}]


@pytest.mark.parametrize("options", JPEG2000)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_jpeg_2000_gives_back_the_very_pixels(mode, options):
    image = Image.fromarray(smooth()).convert(mode)
    data = encoded(image, "JPEG2000", **options)
    assert np.array_equal(decode(data, "x"), np.asarray(image.convert("RGB")))
    assert header(data) == ("JPEG2000", mode, 24, 36)


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"exif": exif_block(6)}, {"icc_profile": b"x" * 90_000}]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_avif_is_what_pillow_makes_of_it_and_its_header_is_found_without_it(mode, options):
    image = Image.fromarray(smooth()).convert(mode)
    data = encoded(image, "AVIF", quality=95, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
        assert header(data) == ("AVIF", opened.mode, opened.height, opened.width)
    expected = np.rot90(expected, -1) if "exif" in options else expected
    assert np.array_equal(decode(data, "x"), expected)


def test_the_size_of_an_avif_of_tiles_is_that_of_the_whole():
    data = bytearray(encoded(smooth(), "AVIF", quality=95))
    box = data.index(b"ispe")
    tile = bytes(data[box - 4 : box + 16])
    small = tile[:8] + tile[8:12] + (8).to_bytes(4) + (8).to_bytes(4)
    for name, inside in (
        (b"ipco", True),
        (b"iprp", True),
        (b"meta", True),
    ):  # a tile's size before it, and longer boxes
        place = data.index(name) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4]) + 20 * inside).to_bytes(4)
    box = data.index(b"ispe") - 4
    data[box:box] = small
    assert header(bytes(data))[2:] == (24, 36)


@pytest.mark.parametrize("file_format", ["AVIF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_one_that_is_cut_off_is_refused(file_format, share):
    data = encoded(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), file_format)
    with pytest.raises(Unreadable):
        decode(data[: int(share * len(data))], "x")


def test_files_of_the_new_extensions_are_found_in_a_folder(tmp_path):
    for name, kind in {"a.avif": "AVIF", "b.jp2": "JPEG2000", "c.J2K": "JPEG2000"}.items():
        (tmp_path / name).write_bytes(encoded(smooth(), kind))
    images = open_images(tmp_path)
    assert [images.name(i) for i in range(len(images))] == ["a.avif", "b.jp2", "c.J2K"] and not images.bad
    assert images.read(1).shape == (24, 36, 3)


@pytest.mark.parametrize("kind", READERS)
def test_decoding_within_the_limits_takes_at_most_what_is_stated(kind):
    a_pixel = DECODING.get(kind, DECODING_ELSE)
    side = int(min(MAX_PIXELS, MAX_MEMORY // a_pixel) ** 0.5)
    check_size(kind, side, side, side * side)
    with pytest.raises(ValueError, match=r"megapixels of a"):
        check_size(kind, side + 1, side + 1, side * side)
    assert side * side * a_pixel <= MAX_MEMORY <= 1.7e9


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_the_memory_of_arrays_and_bytes_grows_by_the_pixels_themselves_only(mode):
    image = Image.new(mode if mode != "I;16" else "L", (2500, 2000))  # Pillow's own memory is not seen here
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    data = encoded(image, "PNG", **({"transparency": 0} if mode == "P" else {}))
    strips = 20e6 if mode == "I;16" else 12e6  # of 2**20 pixels: 64-bit integers; copies of Pillow's
    require_at_most(3 * 5e6 + strips, lambda: decode(data, "x"))


def test_a_header_of_an_avif_is_read_without_the_rest(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(encoded(smooth(), "AVIF"))
    with path.open("r+b") as file:
        file.truncate(500 << 20)
    with path.open("rb") as file:
        require_at_most(1e6, lambda: read_header(file, os.fsdecode(path.name)))


def test_a_sparse_file_of_any_new_format_is_refused(tmp_path):
    for kind in ("AVIF", "JPEG2000"):
        path = tmp_path / kind
        path.write_bytes(encoded(smooth(), kind))
        with path.open("r+b") as file:
            file.truncate(100 << 30)
        with path.open("rb") as file, pytest.raises(Unreadable, match="above the limit"):
            read_header(file, kind)
    assert damage.MAX_BYTES == 1 << 30
