"""Which pixels of an image file are there: sizes that its bytes cannot hold, JPEG data that its decoder had to guess, and what
of a PNG is no pixel.

libjpeg fills what is missing or garbled with grey and warns of it; Pillow drops these warnings. simplejpeg gives the first.
"""

import re
import zlib
from collections.abc import Iterator

import simplejpeg

MAX_PIXELS = 2**27  # 134 megapixels, 0.4 GB decoded. (Pillow's own limit warns at 89 and refuses at 179.)

# What decoding takes at its peak, beside the file and up to three copies of it [bytes per pixel], by format and in whole. Measured
# (benchmarks/decoding.py): progressive JPEG keeps all coefficients, Pillow's WebP two canvases, OpenJPEG 32 bits a value.
DECODING = {"JPEG": 12, "WEBP": 20, "AVIF": 16, "JPEG2000": 25}
DECODING_ELSE = 8
MAX_MEMORY = 12 * MAX_PIXELS  # 1.6 GB

# A file that claims more than so many pixels per byte is cut off, or a bomb, and is refused before memory is taken:
# - JPEG: of each 8 x 8 pixels at least the mean (DC coefficient) has a Huffman code, of at least one bit;
# - PNG: deflate makes at most 1032 bytes of one, and a byte holds at most 8 pixels;
# - PPM: is not compressed.
# Other formats need no bytes for what is all alike.
PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032, "PPM": 8}

# A file with more bytes is refused, too: it would be read whole, and nothing that is known of it accounts for them. Room is
# for metadata and for what cameras append (thumbnails, a short film); of the formats that hold several pictures only the
# flat limit is known from the header.
BYTES_PER_PIXEL = 16
ROOM = 2**26  # bytes
MAX_BYTES = 2**30
SINGLE = ("JPEG", "PNG", "BMP", "PPM")

# What libjpeg's warnings say when pixels were lost; its others are about metadata or odd but harmless headers.
_LOST = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker")
_PADDING = 8  # bytes: some encoders leave a few behind the pixels; behind damaged ones there are hundreds

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_AFTER_PIXELS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SEQUENTIAL = (0xC0, 0xC1)
_NOT_PIXELS = (*range(0xE0, 0xF0), 0xFE)  # APP0..APP15, COM

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # ancillary, but pixels or where they are: damage in them counts


def check_size(kind: str, width: int, height: int, size: int) -> None:
    """Refuse an image that is above the limits, or whose header cannot be true.

    Args:
        kind: of the file, as "JPEG".
        width, height: that its header claims [pixels].
        size: of the file [bytes].

    Raises:
        ValueError: with the reason.
    """
    pixels = width * height
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if pixels > (limit := min(MAX_PIXELS, MAX_MEMORY // DECODING.get(kind, DECODING_ELSE))):
        raise ValueError(
            f"{width}x{height} pixels, above the limit of {limit / 1e6:.0f} megapixels of a {kind}: make it smaller"
        )
    if pixels > PIXELS_PER_BYTE.get(kind, pixels) * size:
        raise ValueError(f"{size:,} bytes cannot hold the {width}x{height} pixels that its header claims: damaged")
    most = min(MAX_BYTES, ROOM + BYTES_PER_PIXEL * pixels) if kind in SINGLE else MAX_BYTES
    if size > most:
        raise ValueError(
            f"{size / 1e6:,.0f} MB for {width}x{height} pixels, above the limit of {most / 1e6:,.0f} MB: save it again"
        )


def with_end(jpeg: bytes) -> bytes:
    """A JPEG with an end marker; behind one that it has already, another does no harm."""
    return jpeg + _END


def jpeg_damage(jpeg: bytes, space: str) -> str | None:
    """Why some pixels of a JPEG are not the ones that were saved, in libjpeg's words; None where all are.

    A missing end marker, odd metadata or unknown revision is no damage: only what the pixels are made of is decoded. So these
    cannot hide another warning either, of which libjpeg gives the first only.

    Args:
        space: a colour space that simplejpeg makes of it: "RGB" or "CMYK".
    """
    try:
        simplejpeg.decode_jpeg(with_end(b"\xff\xd8" + b"".join(_pixel_segments(jpeg))), space)
    except ValueError as error:
        reason = str(error)
        if not reason.startswith(_LOST):
            return None  # of a kind that simplejpeg does not decode
        found = _EXTRANEOUS.match(reason)
        return None if found and int(found[1]) <= _PADDING else reason
    return None


def _pixel_segments(jpeg: bytes) -> Iterator[bytes]:
    """Tables, frame and scans of a JPEG (ITU-T T.81, annex B), without metadata and what lies between segments."""
    position, sequential = 2, False
    while marker := _MARKER.search(jpeg, position):
        kind, start = marker[1][0], marker.end()
        if kind == 0xD9:
            return
        position = start
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # stand alone
            continue
        position = start + max(2, int.from_bytes(jpeg[start : start + 2]))
        body = jpeg[start:position]
        sequential = sequential or kind in _SEQUENTIAL
        if kind in _NOT_PIXELS:
            continue
        if kind == 0xDA:
            if sequential and len(body) > 6:  # has no choice here; what some cameras write is odd, and read by none
                body = body[:-3] + b"\x00\x3f\x00"
            end = _AFTER_PIXELS.search(jpeg, position)
            start, position = position, end.start() if end else len(jpeg)
            body += jpeg[start:position]
        yield b"\xff" + bytes([kind]) + body


def png_header(start: bytes) -> bytes:
    """A PNG that ends behind its header: what precedes the pixels, as a long text, cannot be in the way."""
    return start[: len(_PNG_START) + 25] + _png_chunk(b"IEND", b"")


def png_pixels(png: bytes) -> bytes:
    """A PNG without texts, colour profiles and other chunks that are no pixels (of EXIF what is whole stays)."""
    kept, position = [_PNG_START], len(_PNG_START)
    while position + 12 <= len(png):
        length, kind = int.from_bytes(png[position : position + 4]), png[position + 4 : position + 8]
        chunk = png[position : position + 12 + length]
        whole = int.from_bytes(chunk[-4:]) == zlib.crc32(chunk[4:-4])
        ancillary = bool(kind[0] & 0x20)
        if not ancillary or kind in _PNG_KEPT or (kind == b"eXIf" and whole):
            kept.append(chunk)
        position += 12 + length
    return b"".join(kept) + png[position:]


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)
