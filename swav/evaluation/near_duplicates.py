"""Images that are scored by what has learned from a copy of them: re-encoded, resized, brightened, cropped, or byte for byte.

Two steps. Frozen features, each at mean 0 and standard deviation 1, name for every scored image the nearest ones that it is scored
by. Pixels decide: small grey thumbnails of the two must agree where the middle of the one lies in the other, at the scales that a
crop leaves. Features alone do not do: what is a distance between copies for one network is one between strangers for another.
Measured: benchmarks/results/near_duplicates.md. Mirrored, turned and strongly cropped copies are not found, nor other pictures of
the same thing: these are what groups are for.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from swav.data.images import Images, Unreadable
from swav.signals import stop_if_asked

COSINE = 0.6  # of standardised features: below it no pixel is looked at
NEAREST = 2  # images that are looked at per scored one
CORRELATION = 0.95  # of the middle of one thumbnail with the other, from which on two are copies
SIDE, MIDDLE = 64, 48  # of a thumbnail, and of its middle [pixels]
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)  # side of a crop, of the whole picture's
MOST_PAIRS = 1000  # that are looked at, the nearest first: some 10 s of a core
MOST_PRODUCTS = 4e11  # of features with features, some 10 s of a core; of more a part of the scored images is looked at
ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Copies:
    """What was found.

    Attributes:
        pairs: places of a scored image and of its copy among those to learn from, the nearest first.
        looked_at: scored images that were compared.
        complete: all scored images and all candidates were looked at; else there may be more.
    """

    pairs: list[tuple[int, int]]
    looked_at: int
    complete: bool


def near_duplicates(
    learned: tuple[Images, Int64[np.ndarray, " N"], Float32[np.ndarray, "N F"], Int64[np.ndarray, " N"]],
    scored: tuple[Images, Int64[np.ndarray, " M"], Float32[np.ndarray, "M F"], Int64[np.ndarray, " M"]],
) -> Copies:
    """Find scored images with a copy among those that they are scored by.

    Args:
        learned, scored: images, the places in them that features are of, the features, and the number of each one's fold. Two
            are compared where these numbers differ.
    """
    cosines, rows, columns, looked_at = _candidates(learned[2], learned[3], scored[2], scored[3])
    thumbnails: dict[tuple[bool, int], UInt8[np.ndarray, "S S"] | None] = {}

    def thumbnail_of(which: bool, place: int) -> UInt8[np.ndarray, "S S"] | None:
        if (which, place) not in thumbnails:
            images, places = (scored if which else learned)[:2]
            try:
                thumbnails[which, place] = thumbnail(images.read(places[place]))
            except Unreadable:
                thumbnails[which, place] = None
        return thumbnails[which, place]

    found = dict[int, int]()
    order = np.argsort(-cosines, kind="stable")
    for i in order[:MOST_PAIRS].tolist():
        row, column = int(rows[i]), int(columns[i])
        if row in found:
            continue
        stop_if_asked()
        one, other = thumbnail_of(True, row), thumbnail_of(False, column)
        if one is not None and other is not None and are_copies(one, other):
            found[row] = column
    complete = looked_at == len(scored[2]) and len(order) <= MOST_PAIRS
    return Copies(list(found.items()), looked_at, complete)


def _candidates(
    learned: Float32[np.ndarray, "N F"],
    learned_folds: Int64[np.ndarray, " N"],
    scored: Float32[np.ndarray, "M F"],
    scored_folds: Int64[np.ndarray, " M"],
) -> tuple[Float32[np.ndarray, " K"], Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], int]:
    """Cosines of pairs above COSINE, their places among the scored and the learned, and how many scored ones were looked at."""
    mean, scale = learned.mean(axis=0), learned.std(axis=0)
    scale[scale <= 1e-6 * np.abs(mean) + 1e-30] = 1
    bank = _units((learned - mean) / scale)
    most = max(1, int(MOST_PRODUCTS / max(1, learned.size)))
    chosen = np.arange(len(scored)) if len(scored) <= most else np.linspace(0, len(scored) - 1, most).astype(np.int64)
    cosines, rows, columns = [], [], []
    count = min(NEAREST, len(bank))
    for start in range(0, len(chosen), ROWS):
        stop_if_asked()
        part = chosen[start : start + ROWS]
        products = _units((scored[part] - mean) / scale) @ bank.T
        products[scored_folds[part][:, None] == learned_folds] = -1
        nearest = np.argpartition(-products, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(products, nearest, axis=1)
        at, kept = np.nonzero(values > COSINE)
        cosines.append(values[at, kept])
        rows.append(part[at])
        columns.append(nearest[at, kept])
    return np.concatenate(cosines), np.concatenate(rows), np.concatenate(columns).astype(np.int64), len(chosen)


def _units(features: Float32[np.ndarray, "N F"]) -> Float32[np.ndarray, "N F"]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units: Float32[np.ndarray, "N F"] = (features / np.maximum(lengths, 1e-12)).astype(np.float32)
    return units


def thumbnail(pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S S"]:
    """A picture in grey, squeezed to a square: copies of another size are alike in it."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small: UInt8[np.ndarray, "S S"] = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8)
    return small


def are_copies(one: UInt8[np.ndarray, "S S"], other: UInt8[np.ndarray, "S S"]) -> bool:
    """Whether the middle of the one is found in the other, or the other way round. Two of one grey are copies of each other."""
    if np.array_equal(one, other):
        return True
    return max(_agreement(one, other, SCALES), _agreement(other, one, SCALES[1:])) >= CORRELATION


def _agreement(whole: UInt8[np.ndarray, "S S"], part: UInt8[np.ndarray, "S S"], scales: Sequence[float]) -> float:
    """The best correlation of the middle of `part` with a place of `whole`, of which it may be a crop of these sides."""
    edge = (SIDE - MIDDLE) // 2
    middle = part[edge : edge + MIDDLE, edge : edge + MIDDLE]
    if middle.std() < 2:  # of one grey: a correlation would be of its noise
        return 0.0
    best = 0.0
    for scale in scales:
        side = round(SIDE / scale)
        enlarged = whole if side == SIDE else cv2.resize(whole, (side, side), interpolation=cv2.INTER_LINEAR)
        best = max(best, float(cv2.matchTemplate(enlarged, middle, cv2.TM_CCOEFF_NORMED).max()))
    return best
