"""Images that decode to nearly one colour: how many, why, and which setting helps.

Files leave open which value is white (12 bits stored as 16), and whether a fourth band is transparency. Read in the usual way,
such images are nearly black or white, and a network learns nothing from them. A cause is not guessed from what a file is, but
tried: only a setting under which the image does show something is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from swav.data.images import Images, Unreadable
from swav.data.sources.decode import decode
from swav.data.sources.formats import opened, sniff
from swav.data.sources.pixels import AS_STORED, Decoding, deep_values, smallest_white
from swav.errors import printable

FLAT = 16  # of 255: between the outermost hundredths of every channel
DARK = 64  # of 255: what all but a thousandth of the pixels are below; of more than 8 bits a quarter of white, and two bits unused
WARNED_SHARE = 0.1  # of the images
_SIDE = 64  # pixels of the short side that are looked at
_WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")

Cause = Literal["white_level", "alpha", "alpha_values", "unreadable", "unknown"]


class Look(NamedTuple):
    """What an image looks like.

    Attributes:
        name: of the image.
        mean: of its pixels, 0..255.
        flat: whether it is nearly one colour.
        cause: why it is flat or dark, or that its alpha channel holds a picture; None: nothing is wrong with it.
        largest: the value to take for white, of the cause "white_level".
        reason: of one that is unreadable.
    """

    name: str
    mean: float = 0.0
    flat: bool = False
    cause: Cause | None = None
    largest: int = 0
    reason: str = ""


class Seen(NamedTuple):
    """What some pixels of an image are like, 0..255.

    Attributes:
        mean: of them.
        spread: their range in the widest channel, but for the outermost hundredths.
        bright: what all but a thousandth of them are not above.
    """

    mean: float
    spread: int
    bright: int


class Finding(NamedTuple):
    """What is wrong with some of the images.

    Attributes:
        cause: as of Look.
        images, of: how many, of how many that were looked at.
        text: for people, with what to do.
        setting: that helps, as {"white_level": 4095}; empty where none does.
        example: name of one of them.
        flat: how many of them are nearly one colour.
    """

    cause: Cause
    images: int
    of: int
    text: str
    setting: Mapping[str, Any]
    example: str
    flat: int = 0

    @property
    def is_common(self) -> bool:
        return self.images >= WARNED_SHARE * self.of

    @property
    def is_of_most(self) -> bool:
        """Whether most of the images show next to nothing, as they are read."""
        return 2 * self.flat > self.of


def look_at(images: Images, i: int) -> Look:
    """Read an image and look at it, at its alpha channel too."""
    name = images.name(i)
    try:
        if images.in_memory:
            return look(name, seen(images.read(i)), None)  # in memory they are of 8 bits
        data = images.read_bytes(i)
        return look(name, seen(decode(data, name, how=images.how)), data, images.how, with_alpha=True)
    except Unreadable as error:
        return Look(name, cause="unreadable", reason=error.reason)


def look(
    name: str,
    its: Seen,
    data: bytes | None,
    how: Decoding = AS_STORED,
    with_alpha: bool = False,
) -> Look:
    """Look at an image that was decoded.

    Args:
        its: what was seen of its pixels, which are none of this function's: it decodes the image again, as large as it is.
        data: its file; None: there is none.
        how: it was decoded.
        with_alpha: look at the alpha channel of one with enough contrast, too: this reads the file again.
    """
    found = Look(name, its.mean, its.spread <= FLAT)
    if data is None or data.startswith(b"\xff\xd8\xff"):  # has 8 bits and no alpha
        return found._replace(cause="unknown" if found.flat else None)
    try:
        if found.flat or its.bright <= DARK:
            largest = _white_of(data, how)
            if largest and (not found.flat or _shows(data, name, how._replace(white_level=smallest_white(largest)))):
                return found._replace(cause="white_level", largest=largest)
        if found.flat:
            hidden = how.alpha == "blend" and _shows(data, name, how._replace(alpha="ignore"))
            return found._replace(cause="alpha" if hidden else "unknown")
        if with_alpha and how.alpha == "blend" and _alpha_is_a_picture(data):
            return found._replace(cause="alpha_values")
    except MemoryError:
        raise
    except Exception:  # it was read; that it cannot be read in another way too is no fault of it
        return found._replace(cause="unknown" if found.flat else None)
    return found


def findings(looks: Sequence[Look], how: Decoding, looked_at: str = " looked at") -> list[Finding]:
    """What is wrong with images, the most frequent first.

    Args:
        how: they were decoded.
        looked_at: said behind their number.
    """
    found = []
    for cause in dict.fromkeys(look.cause for look in looks if look.cause is not None):
        its = [look for look in looks if look.cause == cause]
        subject = f"{len(its)} of {len(looks)} images{looked_at}"
        setting, text = _told(cause, its, how)
        others = sum(look.cause is None for look in looks)
        if cause == "white_level" and others >= WARNED_SHARE * len(looks):
            text += f" (it holds for all: if the {others} others have more than 8 bits too, convert these)"
        found.append(
            Finding(
                cause, len(its), len(looks), f"{subject} {text}", setting, its[0].name, sum(look.flat for look in its)
            )
        )
    return sorted(found, key=lambda finding: -finding.images)


def _told(cause: Cause, looks: Sequence[Look], how: Decoding) -> tuple[dict[str, Any], str]:
    """The setting that helps, and the finding behind its subject."""
    first = looks[0]
    mean = np.mean([look.mean for look in looks])
    shade = "nearly one colour" if any(look.flat for look in looks) else "dark"
    state = f"are {shade} (mean {mean:.0f} of 255)"
    if cause == "white_level":
        largest = max(look.largest for look in looks)
        level = smallest_white(largest)
        return {
            "white_level": level
        }, f"{state}: values reach {largest}, and {how.white_level} is white; set white_level={level}"
    if cause == "alpha":
        return {"alpha": "ignore"}, f"{state}: alpha makes them transparent, and is laid on white; set alpha=ignore"
    if cause == "alpha_values":
        return {"alpha": "ignore"}, (
            "fade to white by an alpha channel whose values are a picture's, as of an infrared band; set alpha=ignore if it is none of "
            "transparency"
        )
    if cause == "unreadable":
        return {}, f"cannot be decoded, as {printable(first.name)}: {first.reason}"
    return {}, f"{state}, as {printable(first.name)}; look at them, and leave them out if they show nothing"


def seen(pixels: UInt8[np.ndarray, "H W 3"]) -> Seen:
    """Look at some of the pixels of an image."""
    step = max(1, min(pixels.shape[:2]) // _SIDE)
    some = pixels[::step, ::step].reshape(-1, 3)
    counts = np.stack([np.bincount(some[:, channel], minlength=256) for channel in range(3)]).cumsum(axis=1)
    total = len(some)
    low, high, bright = ((counts < share * total).sum(axis=1) for share in (0.01, 0.99, 0.999))
    return Seen(float(some.mean()), int((high - low).max()), int(bright.max()))


def _shows(data: bytes, name: str, how: Decoding) -> bool:
    return seen(decode(data, name, how=how)).spread > FLAT


def _white_of(data: bytes, how: Decoding) -> int | None:
    """The largest value of an image of more than 8 bits, if white could be another than it is; a few outliers aside where they
    alone reach it."""
    with opened(sniff(data), data) as image:
        values = deep_values(image, data)
    if values is None:
        return None
    for largest in (int(values.max()), int(np.quantile(values, 0.999))):
        if smallest_white(largest) != how.white_level and (largest > how.white_level or 4 * largest <= how.white_level):
            return largest
    return None


def _alpha_is_a_picture(data: bytes) -> bool:
    """Whether most of the alpha channel's values are neither opaque nor transparent."""
    with opened(sniff(data), data) as image:
        if image.mode not in _WITH_ALPHA:
            return False
        alpha = np.asarray(image.getchannel(image.getbands()[-1]))
    return float(((alpha > 0) & (alpha < 255)).mean()) > 0.5
