"""Bytes of an image file -> pixels, uint8 [H, W, 3] RGB; or the reason why not.

A plain JPEG goes through simplejpeg, everything else through Pillow's own reader of that format. The content decides
which one, never the file's name, and only the formats in READERS are ever tried. What is done with odd pixels:

- the rotation that EXIF asks for (1-8) is applied, but for images whose annotation has the size before it (`keep_shape`); a
  damaged EXIF block counts as none, XMP and ICC are not read;
- 16-bit grey is scaled by 255/65535, not clipped; so is 32-bit integer grey that stays within 0..65535 (other ranges
  and floating point are refused: nothing says what white is);
- CMYK and YCCK are converted; with Adobe's marker their values are inverted, as Adobe writes them;
- palettes are looked up, and anything transparent is laid on white;
- of animations and multi-page files, the first picture is taken;
- a file that has lost pixels, cut off or garbled, is unreadable, never filled with grey (`decode_as_pillow` reads what Pillow
  reads, and says which were damaged); one that has lost only its end marker, or a text of a PNG, has them all, and is read;
- above MAX_PIXELS, or with fewer bytes than its pixels take, or far more, an image is refused by its header, before memory is
  taken for it.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from swav import files
from swav.data.sources.damage import (
    MAX_BYTES,
    ROOM,
    check_size,
    false_claim,
    jpeg_damage,
    png_header,
    png_pixels,
    with_end,
)
from swav.errors import DataError
from swav.errors import printable as printable

READERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
JPEG_MODES = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "L"}  # what simplejpeg may decode; CMYK and YCCK are Pillow's
ORIENTATION = 0x0112  # EXIF's tag
EXCHANGES_SIDES = range(5, 9)  # the orientations by which rows become columns
RETRY_SECONDS = (0.1, 0.5)

Result = TypeVar("Result")

# Pillow warns of odd metadata on the user's terminal, once per process. What we can't read, we name ourselves.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Unreadable(Exception):
    """An image that can't be used.

    Attributes:
        name: as Images.name gives it.
        reason: in a few words.
        passing: the fault may be the disk's and not the file's.
    """

    def __init__(self, name: str, reason: str, passing: bool = False):
        super().__init__(name, reason, passing)  # all, so that it survives pickling
        self.name, self.reason, self.passing = name, reason, passing

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


class Header(NamedTuple):
    """What a file's first bytes say. Height and width [pixels] are those of the stored array, before EXIF's rotation."""

    format: str
    mode: str
    height: int
    width: int


def decode(data: bytes, name: str, keep_shape: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image file, writable and contiguous.

    Args:
        keep_shape: leave out a rotation by EXIF that exchanges height and width.

    Raises:
        Unreadable: with this name, whatever is wrong with the bytes.
    """
    if (claim := _false_jpeg(data)) is not None:  # before memory is taken
        raise Unreadable(name, claim)
    pixels, damage = decode_as_pillow(data, name, keep_shape)
    if damage is not None:
        raise Unreadable(name, damage)
    return pixels


def decode_as_pillow(data: bytes, name: str, keep_shape: bool = False) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
    """As `decode`, but reads a damaged file too, as far as Pillow does: what is lost of a JPEG is grey or garbled.

    The published protocols read their images so, and were scored on such files.

    Returns:
        The pixels; and what is wrong with them, or None.

    Raises:
        Unreadable: with this name; also Pillow does not read it.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            pixels, orientation, damage = _decode_jpeg(data)
        else:
            (pixels, orientation), damage = _decode_by_pillow(data, len(data)), None
        if keep_shape and orientation in EXCHANGES_SIDES:
            return pixels, damage
        return _turned(pixels, orientation), damage
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can make a decoder raise anything
        raise Unreadable(name, reason_of(error)) from error


def as_pixels(image: Any) -> Any:
    """Pixels of a file (str or Path) or a PIL image, uint8 [H, W, 3], as `decode` gives them.

    An array is returned as it is, or copied where torch could not use its memory. So is anything else: whoever takes the pixels
    checks them.

    Raises:
        DataError: a file or a PIL image cannot be read.
    """
    if not isinstance(image, str | Path | Image.Image):
        return np.require(image, requirements=["C", "W"]) if isinstance(image, np.ndarray) else image
    name = str(image) if isinstance(image, str | Path) else str(getattr(image, "filename", "")) or "image"
    try:
        if isinstance(image, str | Path):
            return decode(read_file(os.fsencode(Path(image).expanduser()), name), name)
        _check_mode(image.mode)
        return _turned(_rgb(image), _orientation(image))
    except Unreadable as error:
        reason = error.reason
    except Exception as error:  # Pillow reads a file as late as here
        reason = reason_of(error)
    raise DataError(f"{printable(name)}: expected an image, found {reason}")


def orientation_of(data: bytes) -> int:
    """EXIF's orientation of an image file, 1 to 8; 1 where it says none, or the file is damaged."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_orientation(data)
    try:
        with READERS[sniff(data)](io.BytesIO(data)) as image:
            return _orientation(image)
    except MemoryError:
        raise
    except Exception:  # whoever reads the pixels says what is wrong
        return 1


def read_header(file: io.BufferedIOBase, name: str) -> Header:
    """Read format and size from the beginning of a file, without decoding it.

    Raises:
        Unreadable: the header is damaged, the format is not one of READERS, or the image is above a limit (damage.check_size).
        OSError: the file itself can't be read.
    """
    start = file.read(65536)
    size = file.seek(0, os.SEEK_END)
    try:
        if start.startswith(b"\xff\xd8\xff"):
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(start)
                check_size("JPEG", width, height, size)
                return Header("JPEG", JPEG_MODES.get(colours, "CMYK"), height, width)
            except ValueError:
                pass  # metadata above 64 KB, or a rare kind of JPEG: Pillow decides
        kind = sniff(start)
        if kind == "WEBP":
            return _webp_header(start, size)
        file.seek(0)
        with READERS[kind](io.BytesIO(png_header(start)) if kind == "PNG" else file) as image:
            check_size(kind, *image.size, size)
            _check_mode(image.mode)
            return Header(kind, image.mode, image.height, image.width)
    except OSError as error:
        if error.errno is not None:  # without a number it is Pillow's error about the content
            raise
        raise Unreadable(name, reason_of(error)) from error
    except Exception as error:
        raise Unreadable(name, reason_of(error)) from error


def open_regular(path: bytes | str | Path) -> io.BufferedIOBase:
    """Open a regular file. Pipes, sockets and devices are refused without waiting for them.

    Raises:
        OSError: missing, not allowed, or not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def patiently(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, as files.patiently, with the shorter pauses of a file among many."""
    return files.patiently(work, RETRY_SECONDS)


def read_file(path: bytes, name: str, image: bool = True) -> bytes:
    """Return a file's content, patiently.

    Args:
        image: False: of no image, so that its header says nothing about how many bytes it may have.

    Raises:
        Unreadable: with this name, where the system refuses, or the file is above a limit (damage.check_size).
    """

    def read() -> bytes:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise Unreadable(name, f"{size / 1e9:,.1f} GB, above the limit of {MAX_BYTES / 1e9:.1f} GB")
            if image and size > ROOM:  # few are: the others need no look at the header
                read_header(file, name)
                file.seek(0)
            return file.read(size)

    try:
        return patiently(read)
    except OSError as error:
        raise Unreadable(name, reason_of(error), error.errno in files.PASSING) from error


def reason_of(error: BaseException) -> str:
    """An exception in a few words, on one line."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or os.strerror(error.errno)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0])[:200]


def sniff(start: bytes) -> str:
    """Names the format of a file by its first bytes: a key of READERS.

    Raises:
        ValueError: it is none of them; the message says what it is instead, where that is known.
    """
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:1] == b"P" and start[1:2] in tuple(b"%d" % i for i in range(1, 7)) and start[2:3].isspace():
        return "PPM"
    if not start:
        raise ValueError("empty file")
    foreign = _FOREIGN_BRANDS.get(start[8:12]) if start[4:8] == b"ftyp" else None
    foreign = foreign or next((kind for magic, kind in _FOREIGN if start.lstrip().lower().startswith(magic)), None)
    if foreign:
        raise ValueError(f"{foreign}, a format that is not read: convert it to JPEG or PNG")
    raise ValueError(f"not an image: none of {', '.join(READERS)} begins with {start[:8]!r}")


_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_FOREIGN_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_FOREIGN = (  # in lower case
    (b"\0\0\0\x0cjp  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cjxl ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8bps", "Photoshop"),
    (b"%pdf", "PDF"),
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML text"),
    (b"<html", "HTML text"),
    (b"<?xml", "XML text"),
)


def _decode_jpeg(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], int, str | None]:
    """Pixels as stored, their orientation by EXIF, and what is wrong with them."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:  # a rare kind of JPEG, or damaged before its pixels
        return *_decode_by_pillow(with_end(data), len(data)), None
    check_size("JPEG", width, height, len(data))
    if colours in JPEG_MODES:
        try:
            return simplejpeg.decode_jpeg(data, "RGB"), _jpeg_orientation(data), None
        except ValueError:
            pass  # also at what libjpeg merely warns of
    damage = _false_jpeg(data) or jpeg_damage(data, "RGB" if colours in JPEG_MODES else "CMYK")
    try:
        # One that is cut off is not what Pillow reads: no end is put to it.
        return *_decode_by_pillow(data if damage else with_end(data), len(data)), damage
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(damage or reason_of(error)) from error


def _false_jpeg(data: bytes) -> str | None:
    """Why a JPEG has not the pixels that its header claims, as far as its size shows; None of other files."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
        check_size("JPEG", width, height, len(data))
    except Exception:  # decoding says what is wrong
        return None
    return false_claim("JPEG", width, height, len(data))


def _decode_by_pillow(data: bytes, size: int) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Pixels as stored, and their orientation by EXIF."""
    kind = sniff(data)
    try:
        return _loaded(kind, data, size)
    except MemoryError:
        raise
    except Exception:  # of a PNG what is wrong may be no pixel: a text that is long or has another checksum
        if kind != "PNG" or (bare := png_pixels(data)) == data:
            raise
        return _loaded(kind, bare, size)


def _loaded(kind: str, data: bytes, size: int) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    with READERS[kind](io.BytesIO(data)) as image:
        check_size(kind, *image.size, size)
        _check_mode(image.mode)
        image.load()
        return _rgb(image), _jpeg_orientation(data) if kind == "JPEG" else _orientation(image)


def _webp_header(start: bytes, size: int) -> Header:
    """Read the header of a WebP file (container specification, "Extended File Format"): Pillow would read it whole."""
    chunk, bits = start[12:16], int.from_bytes(start[21:25], "little")
    if chunk == b"VP8 ":
        width, height = (int.from_bytes(start[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        alpha = False
    elif chunk == b"VP8L":
        width, height, alpha = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    elif chunk == b"VP8X":
        width, height = (int.from_bytes(start[i : i + 3], "little") + 1 for i in (24, 27))
        alpha = bool(start[20] & 0x10)
    else:
        raise ValueError(f"WebP of an unknown kind {chunk!r}")
    if len(start) < 30:
        raise ValueError("WebP cut off in its header")
    check_size("WEBP", width, height, size)
    return Header("WEBP", "RGBA" if alpha else "RGB", height, width)


def _check_mode(mode: str) -> None:
    if mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined: convert to 8 or 16 bits")


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image))
    converted: Image.Image = image
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode == "CMYK" and "adobe" not in image.info:
        converted = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for an inverted one
    if image.has_transparency_data:
        converted = image.convert("RGBA")
        converted = Image.alpha_composite(Image.new("RGBA", converted.size, "white"), converted)
    return np.array(converted if converted.mode == "RGB" else converted.convert("RGB"))


def _from_16_bits(values: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"32-bit values of {values.min()}..{values.max()}, whose white is not defined: convert to 8 or 16 bits"
        )
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257; rounded
    return np.repeat(grey[..., None], 3, axis=2)


def _jpeg_orientation(data: bytes) -> int:
    """EXIF's orientation of a JPEG, found by walking over its segments up to the pixels (about 1 us)."""
    position = 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4])
        if marker == 0xDA or length < 2:  # the pixels begin
            break
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            exif = Image.Exif()
            try:
                exif.load(data[position + 4 : position + 2 + length])
                return _known_orientation(exif.get(ORIENTATION))
            except Exception:  # the pixels are good, only what is said about them is not
                return 1
        position += 2 + length
    return 1


def _orientation(image: Image.Image) -> int:
    try:
        return _known_orientation(image.getexif().get(ORIENTATION))
    except Exception:  # as above
        return 1


def _known_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    """Turn pixels upright (EXIF 2.3, table "Orientation")."""
    if orientation == 1:
        return pixels
    if orientation in EXCHANGES_SIDES:
        pixels = pixels.transpose(1, 0, 2)
    mirror_columns = orientation in (2, 3, 6, 7)
    mirror_rows = orientation in (3, 4, 7, 8)
    pixels = pixels[:: -1 if mirror_rows else 1, :: -1 if mirror_columns else 1]
    return np.ascontiguousarray(pixels)
