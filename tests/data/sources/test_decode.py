"""Attacked: pixels must be the true ones, whatever odd way a file stores them, and a file that lost some is refused.

The oracle is the array from which the file was made, or Pillow's own EXIF rotation.
"""

import functools
import io
import os
import socket
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from swav.data.sources import decode as decoding
from swav.data.sources.damage import MAX_PIXELS
from swav.data.sources.decode import Unreadable, decode, read_file, read_header
from swav.errors import printable
from tests.data.memory import require_at_most

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "GIF": {},
}
FORMATS: dict[str, dict[str, Any]] = {**LOSSLESS, "JPEG": {"quality": 95}}


def smooth(height=24, width=36):
    """A picture without symmetry whose corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 85 // (width + height)], -1).astype(np.uint8)


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, file_format, **options)
    return buffer.getvalue()


def header(data):
    return read_header(io.BytesIO(data), "x")


@pytest.mark.parametrize("file_format", LOSSLESS)
def test_a_lossless_format_gives_back_the_very_pixels(file_format):
    image = smooth() // 64 * 64  # few colours, so that GIF's palette holds them all
    data = encoded(image, file_format, **LOSSLESS[file_format])
    pixels = decode(data, "x")
    assert np.array_equal(pixels, image)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    assert header(data)[2:] == (24, 36) and header(data).format == file_format


def test_a_jpeg_is_what_simplejpeg_makes_of_it():
    data = encoded(smooth(), "JPEG", quality=90)
    assert np.array_equal(decode(data, "x"), simplejpeg.decode_jpeg(data, "RGB"))
    assert decode(data, "x").flags.writeable


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"icc_profile": b"x" * 70000}]
)
def test_every_common_kind_of_jpeg_is_near_pillow(options):
    data = encoded(smooth(), "JPEG", **options)
    assert np.abs(decode(data, "x").astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1
    assert header(data) == ("JPEG", "RGB", 24, 36)


def test_a_grey_jpeg_has_three_equal_channels():
    data = encoded(Image.fromarray(smooth()).convert("L"), "JPEG")
    pixels = decode(data, "x")
    assert pixels.shape == (24, 36, 3) and np.ptp(pixels, axis=2).max() == 0
    assert header(data).mode == "L"


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(smooth(), "JPEG")
    assert np.array_equal(decode(data + b"junk" * 9, "x"), decode(data, "x"))


# -- rotation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_applied_in_every_format_that_has_one(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(), file_format, exif=exif, **FORMATS[file_format])
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    pixels = decode(data, "x")
    assert pixels.shape == expected.shape == ((24, 36, 3) if orientation < 5 else (36, 24, 3))
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert pixels.flags.c_contiguous


def jpeg_with_segments(*segments):
    data = encoded(smooth(), "JPEG")
    return data[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + data[2:]


def exif_block(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_the_exif_block_is_found_behind_an_xmp_block():
    assert decode(jpeg_with_segments(b"http://ns.adobe.com/xap/1.0/\0<x/>", exif_block(6)), "x").shape == (36, 24, 3)


def test_orientation_of_an_embedded_thumbnail_or_of_text_in_the_pixels_is_not_taken():
    thumbnail = b"JFXX\0" + jpeg_with_segments(exif_block(6))[:200]
    assert decode(jpeg_with_segments(thumbnail), "x").shape == (24, 36, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as the package does outside pytest
@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 60, exif_block(9)]
)
def test_a_damaged_exif_block_counts_as_none(block):
    assert decode(jpeg_with_segments(block), "x").shape == (24, 36, 3)


# -- odd pixels


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(file_format):
    values = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    pixels = decode(encoded(Image.fromarray(values), file_format), "x")
    assert np.array_equal(pixels[..., 0], np.round(values / 257).astype(np.uint8))
    assert np.ptp(pixels, axis=2).max() == 0


def test_thirty_two_bit_integers_are_read_as_sixteen_or_refused():
    inside = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.int32))
    assert decode(encoded(inside, "TIFF"), "x")[0, :, 0].tolist() == [0, 128, 255]
    outside = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(Unreadable, match=r"0\.\.70000.*convert"):
        decode(encoded(outside, "TIFF"), "x")


def test_floating_point_is_refused_already_by_its_header():
    data = encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    for read in (lambda: decode(data, "x"), lambda: header(data)):
        with pytest.raises(Unreadable, match="floating-point"):
            read()


def test_sixteen_bit_colour_png_keeps_its_high_bytes():
    values = (smooth(4, 5).astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    assert np.array_equal(decode(png(chunks), "x"), smooth(4, 5))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_has_the_right_polarity(file_format):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(red, file_format)
    assert header(data).mode == "CMYK"
    assert np.abs(decode(data, "x").astype(int) - (255, 0, 0)).max() <= 3


def test_a_cmyk_jpeg_without_adobes_marker_is_not_inverted():
    data = encoded(ImageOps.invert(Image.new("RGB", (16, 16), "red")).convert("CMYK"), "JPEG")
    start = data.index(b"\xff\xee")
    assert data[start + 4 : start + 9] == b"Adobe"
    plain = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]
    inverted_values = Image.open(io.BytesIO(plain))  # Pillow inverts here, though nothing says so
    expected = np.asarray(Image.eval(inverted_values, lambda v: 255 - v).convert("RGB"))
    assert np.abs(decode(plain, "x").astype(int) - expected).max() <= 1
    assert np.abs(decode(plain, "x").astype(int) - decode(data, "x")).max() > 100


def test_ycck_is_near_the_colours_it_was_made_from():
    data = bytearray(encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0  # transform: none (CMYK)
    data[marker + 11] = 2  # read the same numbers as YCCK: the oracle is Pillow's conversion
    expected = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    assert np.abs(decode(bytes(data), "x").astype(int) - expected).max() <= 1


def half_transparent():
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[:, 0] = (255, 0, 0, 255)  # red stays
    rgba[:, 1] = (255, 0, 0, 0)  # the hidden red must not show
    rgba[:, 2] = (0, 0, 0, 128)
    return Image.fromarray(rgba)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_become_white(file_format):
    options: dict[str, Any] = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = decode(encoded(half_transparent(), file_format, **options), "x")
    assert pixels[0].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]


def test_grey_with_alpha_becomes_white_where_transparent():
    assert decode(encoded(half_transparent().convert("LA")), "x")[0, :, 0].tolist() == [76, 255, 127]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_key_becomes_white(mode):
    key: Any = (1, 1, 1) if mode == "RGB" else 1
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 0), key)
    left, right = decode(encoded(image, transparency=key), "x")[0].tolist()
    assert right == [255, 255, 255]
    assert left == ([9, 9, 9] if mode == "P" else [0, 0, 0])


def test_one_bit_and_palette_are_looked_up():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    for file_format in ("PNG", "TIFF", "BMP", "PPM", "GIF"):
        assert decode(encoded(bits, file_format), "x")[..., 2].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_taken(file_format):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(red, file_format, save_all=True, append_images=[blue], **options)
    assert decode(data, "x")[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_extreme_shapes_survive(file_format, height, width):
    assert decode(encoded(np.zeros((height, width, 3), np.uint8), file_format), "x").shape == (height, width, 3)


# -- broken files


@pytest.mark.parametrize("file_format", FORMATS)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.05)
@example(share=0.5)
@example(share=0.95)
@settings(max_examples=25, deadline=None)
def test_a_cut_file_is_refused_or_has_lost_no_pixel(file_format, share):
    rng = np.random.default_rng(0)  # noise: every byte carries pixels
    data = encoded(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8), file_format, **FORMATS[file_format])
    whole = decode(data, "x")
    cut = data[: int(len(data) * share)]
    try:
        assert np.array_equal(decode(cut, "x"), whole)
    except Unreadable:
        return
    assert share > 0.95


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_cut_jpeg_is_refused(share, progressive):
    data = encoded(
        np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), "JPEG", progressive=progressive
    )
    with pytest.raises(Unreadable):
        decode(data[: int(len(data) * share)], "x")


@given(
    st.binary(max_size=200),
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"II*\0", b"P6 ", b"RIFF\0\0\0\0WEBP"]
    ),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_bytes_give_pixels_or_unreadable_and_nothing_else(tail, magic):
    for read in (decode, lambda data, name: read_header(io.BytesIO(data), name)):
        try:
            read(magic + tail, "name")
        except Unreadable as error:
            assert error.name == "name" and error.reason and "\n" not in error.reason


@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(sorted(FORMATS)))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_byte_gives_pixels_or_unreadable_and_nothing_else(where, value, file_format):
    data = bytearray(encoded(smooth(), file_format, **FORMATS[file_format]))
    data[where % len(data)] = value
    try:
        assert decode(bytes(data), "x").ndim == 3
    except Unreadable as error:
        assert error.reason


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty file"),
        (b"hello, I am no image", "not an image"),
        (b"<!DOCTYPE html><p>404", "HTML"),
        (b"  <svg xmlns=''/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC.*convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC.*convert"),
        (b"\xff\x0a\x00", "JPEG XL.*convert"),
    ],
)
def test_what_is_no_image_is_told_what_it_is(data, reason):
    for read in (lambda: decode(data, "a\nb"), lambda: read_header(io.BytesIO(data), "a\nb")):
        with pytest.raises(Unreadable, match=reason) as caught:
            read()
        assert caught.value.name == "a\nb" and "\n" not in str(caught.value)


def png(chunks):
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_bomb(side=30_000, padding=0):
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png([(b"IHDR", head), (b"IDAT", zlib.compress(bytes(2000)) + bytes(padding)), (b"IEND", b"")])


def jpeg_bomb(side=60_000):
    data = bytearray(encoded(smooth(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def bmp_bomb(side=60_000):
    data = bytearray(encoded(smooth(), "BMP"))
    data[18:26] = struct.pack("<ii", side, side)
    return bytes(data)


@pytest.mark.parametrize("data", [png_bomb(), jpeg_bomb(), bmp_bomb()], ids=["png", "jpeg", "bmp"])
def test_a_bomb_is_refused_without_taking_memory(data):
    def refused(read):
        with pytest.raises(Unreadable, match="megapixels"):
            read()

    for read in (lambda: decode(data, "x"), lambda: header(data)):
        require_at_most(5e6, functools.partial(refused, read))


def test_the_limit_is_above_what_pillow_warns_of_and_no_warning_is_given():
    side = 10_000  # 100 megapixels: Pillow's Image.open would warn, which is an error here
    assert 89_478_485 < side**2 < MAX_PIXELS
    assert header(png_bomb(side, padding=13_000)).height == side


def test_a_broken_checksum_in_a_png_is_found():
    data = bytearray(encoded(smooth()))
    data[data.index(b"IDAT") + 9] ^= 1
    with pytest.raises(Unreadable):
        decode(bytes(data), "x")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif_block(1)}, {"icc_profile": b"x" * 90_000}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_header_of_every_kind_of_webp_is_what_pillow_says(mode, options):
    image = Image.fromarray(smooth()).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    data = encoded(image, "WEBP", **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert header(data) == ("WEBP", opened.mode, 24, 36)
    with pytest.raises(Unreadable):
        header(data[:25])


# -- files


def test_a_pipe_a_socket_and_a_folder_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)  # a socket's address must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        for name in ("pipe.jpg", "folder.jpg", "socket.jpg", "missing.jpg"):
            with pytest.raises(Unreadable) as caught:
                read_file(os.fsencode(tmp_path / name), name)
            assert caught.value.name == name


def test_a_passing_error_of_a_network_file_system_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    failures = [OSError(5, "Input/output error"), OSError(116, "Stale file handle")]
    real, waits = decoding.open_regular, list[float]()

    def flaky(path):
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(decoding, "open_regular", flaky)
    monkeypatch.setattr("time.sleep", waits.append)
    assert read_file(os.fsencode(path), "a.jpg") == b"content"
    assert len(waits) == 2
    failures.extend(OSError(5, "Input/output error") for _ in range(9))
    with pytest.raises(Unreadable, match="Input/output error"):
        read_file(os.fsencode(path), "a.jpg")
    assert len(waits) == 4


def test_a_name_can_not_forge_a_line_of_the_log():
    assert printable("a\nb\x1b[31m\udcff\U0001f600 é") == "a\\nb\\x1b[31m\\udcff\U0001f600 é"
