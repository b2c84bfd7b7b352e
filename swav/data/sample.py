"""What a data set looks like from a few of its images: how large, whether there is colour in it, and whether they show anything."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from swav.data.contrast import Finding, findings, look_at
from swav.data.images import Images, Unreadable
from swav.data.sources.damage import DECODING, MAX_MEMORY

SAMPLE = 32  # images that are decoded, spread evenly over the data set
_THREADS = 4
# Grey pictures that were stored as colour JPEGs differ a little between channels. Of a coloured picture, more pixels do.
_TINT = 12  # of 255
_TINTED_SHARE = 0.005

_GREY_MODES = (b"1", b"L", b"LA", b"I", b"I;16", b"I;16B", b"I;16L")


def short_side(images: Images) -> int:
    """Median of the images' short sides [pixels], by their headers."""
    return int(np.median(np.minimum(images.rows["height"], images.rows["width"])))


def is_grey(images: Images) -> bool:
    """Whether the images hold no colour: by their headers, or else by the pixels of SAMPLE of them.

    Images that are stored in colour and show none count as grey. Unreadable ones are passed over.
    """
    if np.isin(images.rows["mode"], _GREY_MODES).all():
        return True
    seen = [_has_colour(images, i) for i in sampled(len(images))]
    return False in seen and True not in seen


def sampled(count: int) -> list[int]:
    """Places of the images that are looked at, of so many."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, SAMPLE).astype(int)).tolist()
    return chosen


def threads_for(rows: np.ndarray, most: int) -> int:
    """How many of these images may be decoded at a time, for at most twice the memory that one may take (damage.MAX_MEMORY).

    Args:
        rows: of the images, as walk.ROW.
        most: if memory did not matter.
    """
    pixels = int((rows["height"].astype(np.int64) * rows["width"]).max(initial=1))
    return max(1, min(most, 2 * MAX_MEMORY // (max(DECODING.values()) * pixels)))


def faults(images: Images) -> list[Finding]:
    """What is wrong with a good part of SAMPLE of the images: they are nearly one colour, or cannot be decoded."""
    chosen = sampled(len(images))
    with ThreadPoolExecutor(threads_for(images.rows[chosen], _THREADS)) as pool:
        looks = list(pool.map(lambda i: look_at(images, i), chosen))
    return [finding for finding in findings(looks, images.how) if finding.is_common]


def _has_colour(images: Images, i: int) -> bool | None:
    try:
        pixels = images.read(i)
    except Unreadable:
        return None
    step = max(1, min(pixels.shape[:2]) // 256)
    pixels = pixels[::step, ::step].astype(np.int16)
    return bool((np.ptp(pixels, axis=2) > _TINT).mean() > _TINTED_SHARE)
