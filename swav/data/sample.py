"""What a data set looks like from a few of its images: how large, and whether there is colour in it."""

import numpy as np

from swav.data.images import Images, Unreadable

SAMPLE = 32  # images decoded to look for colour, spread evenly over the data set
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
    chosen = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))
    seen = [_has_colour(images, i) for i in chosen.tolist()]
    return False in seen and True not in seen


def _has_colour(images: Images, i: int) -> bool | None:
    try:
        pixels = images.read(i)
    except Unreadable:
        return None
    step = max(1, min(pixels.shape[:2]) // 256)
    pixels = pixels[::step, ::step].astype(np.int16)
    return bool((np.ptp(pixels, axis=2) > _TINT).mean() > _TINTED_SHARE)
