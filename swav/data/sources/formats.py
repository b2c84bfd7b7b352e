"""The formats that are read: how a file is recognised, and what its first bytes say of format and size."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from swav.data.sources.damage import check_size, png_header

READERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
JPEG_MODES = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "L"}  # what simplejpeg may decode; CMYK and YCCK are Pillow's
START = 65536  # bytes that most headers lie within

# Pillow would start a thread per core for each AVIF. The loader has as many processes already.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

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
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
_FOREIGN = (  # in lower case
    (b"\0\0\0\x0cjxl ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8bps", "Photoshop"),
    (b"%pdf", "PDF"),
    (b"<svg", "SVG"),
    (b"<!doctype html", "HTML text"),
    (b"<html", "HTML text"),
    (b"<?xml", "XML text"),
)


class Header(NamedTuple):
    """What a file's first bytes say. Height and width [pixels] are those of the stored array, before EXIF's rotation."""

    format: str
    mode: str
    height: int
    width: int


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
    brands = _brands(start)
    if any(brand in _AVIF for brand in brands):
        return "AVIF"
    foreign = "HEIC" if brands and brands[0] in _HEIC else None
    foreign = foreign or next((kind for magic, kind in _FOREIGN if start.lstrip().lower().startswith(magic)), None)
    if foreign:
        raise ValueError(f"{foreign}, a format that is not read: convert it to JPEG or PNG")
    raise ValueError(f"not an image: none of {', '.join(READERS)} begins with {start[:8]!r}")


def header_of(file: io.BufferedIOBase) -> Header:
    """Read format and size from the beginning of a file, and refuse what is above a limit before memory is taken for it.

    Raises:
        ValueError, OSError and whatever Pillow raises: the header is damaged, or the format is none that is read.
    """
    start = file.read(START)
    size = file.seek(0, os.SEEK_END)
    kind = sniff(start)
    if kind == "JPEG":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(start)
        except ValueError:
            pass  # metadata above 64 KB, or a rare kind of JPEG: Pillow decides
        else:
            check_size("JPEG", width, height, size)
            return Header("JPEG", JPEG_MODES.get(colours, "CMYK"), height, width)
    if kind in ("WEBP", "AVIF"):  # Pillow would read the whole file
        found = _webp_header(start) if kind == "WEBP" else _avif_header(start)
        check_size(kind, found.width, found.height, size)
        return found
    file.seek(0)
    with READERS[kind](io.BytesIO(png_header(start)) if kind == "PNG" else file) as image:
        check_size(kind, *image.size, size)
        check_mode(image.mode)
        return Header(kind, image.mode, image.height, image.width)


@contextlib.contextmanager
def opened(kind: str, data: bytes) -> Iterator[ImageFile.ImageFile]:
    """A file's first picture, loaded by Pillow.

    Args:
        kind: key of READERS.

    Raises:
        ValueError, OSError and whatever Pillow raises: it is damaged or above a limit.
    """
    with READERS[kind](io.BytesIO(data)) as image:
        check_size(kind, *image.size, len(data))
        check_mode(image.mode)
        image.load()
        yield image


def check_mode(mode: str) -> None:
    """Refuse pixels of a kind that has no 8-bit meaning.

    Raises:
        ValueError: with the reason.
    """
    if mode == "F":
        raise ValueError("floating-point pixels, whose white is not defined: convert to 8 or 16 bits")


def _webp_header(start: bytes) -> Header:
    """Container specification, "Extended File Format"."""
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
    return Header("WEBP", "RGBA" if alpha else "RGB", height, width)


def _avif_header(start: bytes) -> Header:
    """The largest size among an AVIF's items (its tiles and thumbnails have sizes too), and whether one of them is alpha.

    Sources: ISO/IEC 14496-12, boxes; 23008-12, properties `ispe` and `auxC`.
    """
    sizes, alpha = list[tuple[int, int]](), False
    for kind, body in _boxes(_only(_only(_only(start, b"meta", skip=4), b"iprp"), b"ipco")):
        if kind == b"ispe" and len(body) >= 12:
            sizes.append((int.from_bytes(body[4:8]), int.from_bytes(body[8:12])))
        alpha = alpha or (kind == b"auxC" and b"alpha" in body)
    if not sizes:
        raise ValueError("AVIF without a size in its header")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header("AVIF", "RGBA" if alpha else "RGB", height, width)


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4])
        if length < 8:  # to the end, 64 bits, or damaged: none of the boxes that are looked for is
            return
        yield content[position + 4 : position + 8], content[position + 8 : position + length]
        position += length


def _only(content: bytes, wanted: bytes, skip: int = 0) -> bytes:
    """The content of the first box of this kind, behind version and flags where it has them; empty where there is none."""
    return next((body[skip:] for kind, body in _boxes(content) if kind == wanted), b"")


def _brands(start: bytes) -> list[bytes]:
    """The major and the compatible brands of a file of boxes; empty of any other."""
    if start[4:8] != b"ftyp":
        return []
    body = start[8 : min(int.from_bytes(start[:4]), 512)]
    return [body[:4], *(body[i : i + 4] for i in range(8, len(body), 4))]
