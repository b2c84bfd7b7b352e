"""Attacks: a white level that clips, wraps or is not applied; colours of 16 bits of which 8 are lost; an alpha that is blended
though it is to be ignored; results that change where nothing is set.

Run: pytest tests/data/sources/test_pixels.py
"""

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from swav.data.sources import pixels as converting
from swav.data.sources.decode import Unreadable, as_pixels, decode
from swav.data.sources.open import open_images
from swav.data.sources.pixels import AS_STORED, Decoding, scaled, smallest_white
from tests.data.sources.test_decode import encoded, smooth

RAMP = np.linspace(0, 4095, 24 * 36).astype(np.uint16).reshape(24, 36)
DEEP = np.stack([RAMP, RAMP.T.reshape(24, 36), 4095 - RAMP], -1)  # RGB


def deep_file(kind, alpha=None):
    values = DEEP[..., ::-1] if alpha is None else np.concatenate([DEEP[..., ::-1], alpha], -1)
    return cv2.imencode(kind, values)[1].tobytes()


def bmp_with_alpha(image, alpha):
    """A BMP of 32 bits whose header declares a mask for alpha."""
    rgba = np.concatenate([image[::-1, :, ::-1], np.full((*image.shape[:2], 1), alpha, np.uint8)], -1)
    height, width = image.shape[:2]
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    info = b"".join(n.to_bytes(4, "little") for n in (108, width, height)) + b"\1\0\x20\0" + (3).to_bytes(4, "little")
    info += bytes(20) + masks + bytes(108 - len(info) - 20 - 16)
    return (
        b"BM"
        + (14 + 108 + rgba.size).to_bytes(4, "little")
        + bytes(4)
        + (122).to_bytes(4, "little")
        + info
        + rgba.tobytes()
    )


@pytest.mark.parametrize("level", [255, 4095, 65535, 2**31 - 1])
def test_values_are_scaled_and_rounded_and_above_white_all_is_white(level):
    values = np.unique(np.linspace(0, min(2 * level, 2**31 - 1), 5000).astype(np.int64))
    assert np.array_equal(scaled(values, level), np.minimum(np.floor(values / level * 255 + 0.5), 255).astype(np.uint8))


def test_the_default_is_a_scale_of_257():
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(scaled(values, AS_STORED.white_level), ((values.astype(int) + 128) // 257).astype(np.uint8))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_a_white_level_makes_twelve_bits_whole(file_format):
    data = encoded(Image.fromarray(RAMP), file_format)
    assert decode(data, "x").max() == 16
    grey = decode(data, "x", how=Decoding(4095))
    assert np.array_equal(grey[..., 1], scaled(RAMP, 4095)) and grey.max() == 255


@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("alpha", [None, 0, 65535])
def test_colours_of_sixteen_bits_keep_all_of_them_under_a_white_level(kind, alpha):
    band = None if alpha is None else np.full((24, 36, 1), alpha, np.uint16)
    data = deep_file(kind, band)
    assert np.array_equal(decode(data, "x", how=Decoding(4095, "ignore")), scaled(DEEP, 4095))
    blended = decode(data, "x", how=Decoding(4095))
    assert np.array_equal(blended, scaled(DEEP, 4095)) or (alpha == 0 and blended.min() == 255)
    assert decode(data, "x", how=Decoding(alpha="ignore")).max() <= 16  # as Pillow: their high bytes


def test_a_white_level_leaves_eight_bits_as_they_are():
    for file_format in ("PNG", "JPEG", "BMP", "GIF"):
        data = encoded(smooth(), file_format)
        assert np.array_equal(decode(data, "x", how=Decoding(9, "ignore")), decode(data, "x"))


@pytest.mark.parametrize("height", [1, 7, 24])
def test_strips_give_what_the_whole_gives(monkeypatch, height):
    rgba = Image.fromarray(np.concatenate([smooth(), smooth()[..., :1]], -1))
    files = [
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(rgba, "PNG"),
        encoded(rgba.convert("LA"), "PNG"),
        encoded(Image.fromarray(smooth()).convert("P"), "PNG", transparency=3),
        encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(smooth()), "PNG", transparency=(0, 0, 0)),
        deep_file(".png"),
    ]
    hows = [Decoding(4095), Decoding(65535, "ignore"), AS_STORED]
    before = [decode(data, "x", how=how) for data in files for how in hows]
    monkeypatch.setattr(converting, "STRIP", height * 36)
    for one, other in zip(before, [decode(data, "x", how=how) for data in files for how in hows], strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "key", "BMP", "WEBP"])
def test_an_alpha_that_is_ignored_leaves_the_stored_colours(mode):
    image = Image.fromarray(smooth())
    rgba = image.convert("RGBA")
    rgba.putalpha(0)
    expected, options = smooth(), dict[str, Any]()
    if mode == "LA":
        rgba, expected = rgba.convert("LA"), np.asarray(image.convert("L").convert("RGB"))
    if mode == "P":
        rgba = image.convert("P")
        expected, options = np.asarray(rgba.convert("RGB")), {"transparency": bytes(256)}
    if mode == "key":
        rgba, options = image, {"transparency": tuple(smooth()[3, 5].tolist())}
    data = encoded(rgba, "WEBP", lossless=True, exact=True) if mode == "WEBP" else encoded(rgba, "PNG", **options)
    data = bmp_with_alpha(smooth(), 0) if mode == "BMP" else data
    assert np.array_equal(decode(data, "x", how=Decoding(alpha="ignore")), expected)
    blended = decode(data, "x")
    assert blended[3, 5].tolist() == [255, 255, 255] and (mode == "key" or blended.min() == 255)


def test_integers_beyond_sixteen_bits_are_refused_with_the_level_to_set_and_read_with_it():
    data = encoded(Image.fromarray(np.array([[0, 50_000, 100_000]], np.int32)), "TIFF")
    with pytest.raises(Unreadable, match=r"0\.\.100000.*set white_level=131071"):
        decode(data, "x")
    assert decode(data, "x", how=Decoding(100_000))[0, :, 0].tolist() == [0, 128, 255]
    below = encoded(Image.fromarray(np.array([[-1, 5]], np.int32)), "TIFF")
    with pytest.raises(Unreadable, match="black is not defined"):
        decode(below, "x", how=Decoding(4095))


@pytest.mark.parametrize(
    "largest, white", [(0, 255), (255, 255), (256, 511), (4080, 4095), (4096, 8191), (65535, 65535)]
)
def test_the_smallest_white(largest, white):
    assert smallest_white(largest) == white


def test_images_carry_it_through_select_and_their_fingerprint_is_another(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(Image.fromarray(RAMP)))
    images = open_images(tmp_path)
    plain = images.content_fingerprint
    bright = images.decoded(Decoding(4095))
    assert bright.select([2, 1]).read(0).max() == 255 and images.read(0).max() == 16
    assert bright.content_fingerprint != plain == images.content_fingerprint
    assert bright.decoded(AS_STORED).content_fingerprint == plain and bright.fingerprint == images.fingerprint


def test_a_file_or_a_picture_in_memory_is_read_in_the_same_way(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP)))
    assert np.array_equal(as_pixels(path, Decoding(4095)), scaled(np.repeat(RAMP[..., None], 3, 2), 4095))
    assert np.array_equal(
        as_pixels(Image.open(io.BytesIO(path.read_bytes())), Decoding(4095)), as_pixels(path, Decoding(4095))
    )
