"""Pixels as Pillow reads them -> 8-bit RGB, and what a file leaves open: which value is white, and what alpha means.

A strip of rows at a time, so that nothing but the result and what Pillow holds grows with the image.
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageChops, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from swav.config import AUTO, WHITE_LEVEL, Settings
from swav.data.sources.damage import MAX_MEMORY
from swav.data.sources.formats import check_mode

WHITE = WHITE_LEVEL
DECODING_DEEP = 21  # bytes per pixel that OpenCV takes for 16-bit colours, at its peak
STRIP = 2**20  # pixels that are converted at a time
ORIENTATION = 0x0112  # EXIF's tag
EXCHANGES_SIDES = range(5, 9)  # the orientations by which rows become columns

_BITS_PER_SAMPLE = 258  # TIFF's tag


class Decoding(NamedTuple):
    """How stored values become 8-bit RGB, where the file does not say it.

    Attributes:
        white_level: the value of 16-bit and 32-bit integer data that becomes 255; above it all is white. 65535 is also taken for
            "not given": 32-bit values above it are then refused.
        alpha: lay transparent pixels on white ("blend"), or take their colours as they are stored ("ignore").
    """

    white_level: int = WHITE
    alpha: Literal["blend", "ignore"] = "blend"


AS_STORED = Decoding()  # the default


def decoding_of(settings: Settings) -> Decoding:
    """What a recipe's, a benchmark's or a scan's settings say; the default of what is still `auto`."""
    said = {key: getattr(settings, key) for key in Decoding._fields}
    return Decoding(**{key: value for key, value in said.items() if value != AUTO})


def smallest_white(value: int) -> int:
    """The smallest 2^n - 1 that is not below a value, from 8 bits on: what white most likely is where this is the largest."""
    return int((1 << max(8, int(value).bit_length())) - 1)


def rgb_of(image: Image.Image, data: bytes | None, how: Decoding = AS_STORED) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels of a loaded image, not yet turned as its EXIF says.

    Args:
        image: loaded.
        data: the file that it is from, as far as there is one: Pillow keeps 8 of the 16 bits of a colour.

    Raises:
        ValueError: values that have no 8-bit meaning.
    """
    check_mode(image.mode)
    if image.mode == "I":
        _check_range(image, how)
    inverted = isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "CMYK" and "adobe" not in image.info
    blended = how.alpha == "blend" and image.has_transparency_data
    deep = _deep_colours(image, data) if how.white_level != WHITE else None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    high = max(1, STRIP // image.width)
    for top in range(0, image.height, high):
        end = min(top + high, image.height)
        if deep is not None:
            strip = _eight_bits(deep[top:end], how.white_level)
        else:
            strip = image.crop((0, top, image.width, end)) if end - top < image.height else image
        pixels[top:end] = _strip_rgb(strip, how.white_level, inverted, blended)
    return pixels


def scaled(values: Shaped[np.ndarray, "..."], white_level: int) -> UInt8[np.ndarray, "..."]:
    """Integers of 0..white_level as 0..255, rounded; above it all is white."""
    wide = values.astype(np.int64)
    wide *= 2 * 255
    wide += white_level
    wide //= 2 * white_level
    return np.minimum(wide, 255, out=wide).astype(np.uint8)


def deep_values(image: Image.Image, data: bytes | None) -> Shaped[np.ndarray, "H W C"] | None:
    """Stored values of an image of more than 8 bits, grey [H, W, 1] or BGR, without alpha; None of others."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return np.asarray(image)[..., None]
    deep = _deep_colours(image, data)
    return None if deep is None else deep[..., :3]


def orientation_in(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it says none, or is damaged."""
    try:
        return known_orientation(image.getexif().get(ORIENTATION))
    except Exception:  # the pixels are good, only what is said about them is not
        return 1


def known_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    """Turn pixels upright (EXIF 2.3, table "Orientation")."""
    if orientation == 1:
        return pixels
    if orientation in EXCHANGES_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    mirror_columns = orientation in (2, 3, 6, 7)
    mirror_rows = orientation in (3, 4, 7, 8)
    pixels = pixels[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1]
    return np.ascontiguousarray(pixels)


def _eight_bits(deep: UInt16[np.ndarray, "h W C"], white_level: int) -> Image.Image:
    """Of BGR or BGR and alpha, whose opaque is 65535 whatever white is."""
    bands = [Image.fromarray(scaled(deep[..., band], white_level)) for band in (2, 1, 0)]
    if deep.shape[2] == 3:
        return Image.merge("RGB", bands)
    return Image.merge("RGBA", [*bands, Image.fromarray(scaled(deep[..., 3], WHITE))])


def _strip_rgb(strip: Image.Image, white_level: int, inverted: bool, blended: bool) -> UInt8[np.ndarray, "h W 3"]:
    if strip.mode == "I" or strip.mode.startswith("I;16"):
        return np.broadcast_to(scaled(np.asarray(strip), white_level)[..., None], (strip.height, strip.width, 3))
    if inverted:
        strip = ImageChops.invert(strip)  # Pillow takes every CMYK JPEG for an inverted one
    if blended:
        strip = strip.convert("RGBA")
        strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
    elif "transparency" in strip.info:  # of a palette or one colour
        strip = strip.copy()
        del strip.info["transparency"]
    return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _check_range(image: Image.Image, how: Decoding) -> None:
    low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]  # of one channel: two numbers
    if low < 0:
        raise ValueError(f"32-bit values of {low}..{high}, whose black is not defined: convert to 8 or 16 bits")
    if high > WHITE == how.white_level:
        raise ValueError(
            f"32-bit values of {low}..{high}, whose white is not defined: set white_level={smallest_white(high)}, or convert "
            "to 8 or 16 bits"
        )


def _deep_colours(image: Image.Image, data: bytes | None) -> UInt16[np.ndarray, "H W C"] | None:
    """All 16 bits of a colour image that has them: BGR, or BGR and alpha. None of any other.

    Raises:
        ValueError: OpenCV does not read it.
    """
    if data is None or not isinstance(image, ImageFile.ImageFile) or not _has_deep_colours(image, data):
        return None
    size = (image.height, image.width)
    if size[0] * size[1] * DECODING_DEEP > MAX_MEMORY:
        limit = MAX_MEMORY / DECODING_DEEP / 1e6
        raise ValueError(
            f"{size[1]}x{size[0]} pixels, above the limit of {limit:.0f} megapixels of 16-bit colours: make it smaller"
        )
    image.close()  # gives its memory back: only its size, mode and notes are asked for after this
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[:2] != size:
        raise ValueError(
            "16-bit colours of a kind of which only 8 bits are read: leave white_level out, or convert to 8 bits"
        )
    return found


def _has_deep_colours(image: ImageFile.ImageFile, data: bytes) -> bool:
    if isinstance(image, PngImagePlugin.PngImageFile):
        return data[24:25] == b"\x10" and data[25:26] in (b"\x02", b"\x04", b"\x06")  # IHDR: depth, colour type
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())
        return len(bits) > 1 and set(bits) == {16}
    return False
