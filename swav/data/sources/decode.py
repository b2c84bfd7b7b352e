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
from typing import Any, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from swav import files
from swav.data.sources.damage import MAX_BYTES, ROOM, check_size, jpeg_damage, png_pixels, with_end
from swav.data.sources.formats import JPEG_MODES, READERS, Header, header_of, opened, sniff
from swav.data.sources.pixels import (
    AS_STORED,
    EXCHANGES_SIDES,
    ORIENTATION,
    Decoding,
    known_orientation,
    orientation_in,
    rgb_of,
    turned,
)
from swav.errors import DataError, printable

__all__ = [
    "EXCHANGES_SIDES",
    "READERS",
    "Decoding",
    "Header",
    "Unreadable",
    "decode",
    "decode_as_pillow",
    "read_file",
    "read_header",
]

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


def decode(data: bytes, name: str, keep_shape: bool = False, how: Decoding = AS_STORED) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of an image file, writable and contiguous.

    Args:
        keep_shape: leave out a rotation by EXIF that exchanges height and width.
        how: what the file does not say.

    Raises:
        Unreadable: with this name, whatever is wrong with the bytes.
    """
    pixels, damage = decode_as_pillow(data, name, keep_shape, how)
    if damage is not None:
        raise Unreadable(name, damage)
    return pixels


def decode_as_pillow(
    data: bytes, name: str, keep_shape: bool = False, how: Decoding = AS_STORED
) -> tuple[UInt8[np.ndarray, "H W 3"], str | None]:
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
            (pixels, orientation), damage = _decode_by_pillow(data, how), None
        if keep_shape and orientation in EXCHANGES_SIDES:
            return pixels, damage
        return turned(pixels, orientation), damage
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can make a decoder raise anything
        raise Unreadable(name, reason_of(error)) from error


def as_pixels(image: Any, how: Decoding = AS_STORED) -> Any:
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
            return decode(read_file(os.fsencode(Path(image).expanduser()), name), name, how=how)
        image.load()
        return turned(rgb_of(image, None, how), orientation_in(image))
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
            return orientation_in(image)
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
    try:
        return header_of(file)
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


def _decode_jpeg(data: bytes) -> tuple[UInt8[np.ndarray, "H W 3"], int, str | None]:
    """Pixels as stored, their orientation by EXIF, and what is wrong with them."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:  # a rare kind of JPEG, or damaged before its pixels
        return *_decode_by_pillow(with_end(data)), None
    check_size("JPEG", width, height, len(data))
    if colours in JPEG_MODES:
        try:
            return simplejpeg.decode_jpeg(data, "RGB"), _jpeg_orientation(data), None
        except ValueError:
            pass  # also at what libjpeg merely warns of
    damage = jpeg_damage(data, "RGB" if colours in JPEG_MODES else "CMYK")
    try:
        # One that is cut off is not what Pillow reads: no end is put to it.
        return *_decode_by_pillow(data if damage else with_end(data)), damage
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(damage or reason_of(error)) from error


def _decode_by_pillow(data: bytes, how: Decoding = AS_STORED) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    """Pixels as stored, and their orientation by EXIF."""
    kind = sniff(data)
    try:
        return _loaded(kind, data, how)
    except MemoryError:
        raise
    except Exception:  # of a PNG what is wrong may be no pixel: a text that is long or has another checksum
        if kind != "PNG" or (bare := png_pixels(data)) == data:
            raise
        return _loaded(kind, bare, how)


def _loaded(kind: str, data: bytes, how: Decoding) -> tuple[UInt8[np.ndarray, "H W 3"], int]:
    with opened(kind, data) as image:
        orientation = _jpeg_orientation(data) if kind == "JPEG" else orientation_in(image)
        return rgb_of(image, data, how), orientation


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
                return known_orientation(exif.get(ORIENTATION))
            except Exception:  # the pixels are good, only what is said about them is not
                return 1
        position += 2 + length
    return 1
