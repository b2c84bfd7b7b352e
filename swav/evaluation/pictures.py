"""Predictions drawn beside the truth: boxes, masks and maps of classes, and sheets of the most telling images.

Pictures are drawn at the size they are shown at, so that names can be read on small images too. Of a class the colour is
the same on all pictures of a data set.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from swav.data.targets import VOID
from swav.files import replaced_durably

Picture = UInt8[np.ndarray, "_ _ 3"]  # each of its own size
Colour = tuple[int, int, int]

SIDE = 360  # of a drawn picture, the longer one [pixels]
GAP = 8  # between pictures of a sheet, and around it [pixels]
TEXT = 13  # height of letters [pixels]
TINT = 0.55  # how much of a mask's colour lies over the image
INK, PAPER, VOID_COLOUR = (25, 25, 25), (255, 255, 255), (224, 224, 224)
UNPAINTED = "background"  # a class of this name leaves the image as it is


# --- which images to show ---------------------------------------------------------------------------------------------


def telling(scores: Float[np.ndarray, " N"], count: int = 3) -> list[int]:
    """Return images from the best to the worst, evenly between them in rank: of 3 the best, the median and the worst.

    Args:
        scores: one per image; nan: there is nothing to see in it.
        count: images; fewer where there are fewer.
    """
    known = np.flatnonzero(~np.isnan(scores))
    ranked = known[np.argsort(-scores[known], kind="stable")]
    if len(ranked) <= count:
        return [int(i) for i in ranked]
    places = np.round(np.linspace(0, len(ranked) - 1, count)).astype(np.int64)
    return [int(i) for i in ranked[places]]


def boxes_score(
    truth: Float[np.ndarray, "n 4"],
    truth_labels: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "m 4"],
    labels: Int[np.ndarray, " m"],
    scores: Float[np.ndarray, " m"],
    *,
    min_score: float = 0.5,
    min_iou: float = 0.5,
) -> float:
    """F1 of the detections in one image, 0..1; nan where there is neither an object nor a detection.

    From the surest detection on, each takes the free object of its class that it overlaps most.

    Args:
        truth, truth_labels: the objects.
        boxes, labels, scores: the detections, boxes in the same convention.
        min_score: of a detection that counts.
        min_iou: with the object that it takes.
    """
    sure = np.flatnonzero(scores >= min_score)
    if not len(truth) + len(sure):
        return float("nan")
    free, hits = np.ones(len(truth), np.bool_), 0
    for i in sure[np.argsort(-scores[sure], kind="stable")]:
        iou = np.where(free & (truth_labels == labels[i]), _iou(boxes[i], truth), -1.0)
        if len(iou) and iou.max() >= min_iou:
            free[iou.argmax()] = False
            hits += 1
    return 2 * hits / (len(truth) + len(sure))


def _iou(box: Float[np.ndarray, " 4"], others: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1).astype(np.float64)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    iou: Float64[np.ndarray, " n"] = shared / np.maximum(union, 1e-9)
    return iou


def map_score(predicted: UInt8[np.ndarray, "H W"], truth: UInt8[np.ndarray, "H W"]) -> float:
    """Mean IoU of one image over the classes that are in it or predicted, 0..1; nan where all of it is VOID."""
    counted = truth != VOID
    predicted, truth = predicted[counted], truth[counted]
    ious = [
        float(((predicted == k) & (truth == k)).sum() / ((predicted == k) | (truth == k)).sum())
        for k in np.union1d(predicted, truth)
    ]
    return float(np.mean(ious)) if ious else float("nan")


# --- colours ----------------------------------------------------------------------------------------------------------


@functools.cache
def colours(count: int) -> tuple[Colour, ...]:
    """Colours that are far from each other to the eye, and none near white, grey or black; the first ones farthest.

    Each is the one of a grid that is farthest, in CIELAB, from all before it. The first k of them are the same whatever
    the count.
    """
    steps = np.linspace(0, 255, 9).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
    lab = cv2.cvtColor(grid[None] / 255, cv2.COLOR_RGB2LAB)[0]
    vivid = (np.hypot(lab[:, 1], lab[:, 2]) > 35) & (lab[:, 0] > 42) & (lab[:, 0] < 92)
    grid, lab = grid[vivid], lab[vivid]
    chosen = [int(np.abs(grid - [223, 32, 32]).sum(axis=1).argmin())]  # red
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[chosen[:count]])


def _colour(label: int, classes: Sequence[str]) -> Colour:
    return colours(len(classes))[label]


def _ink_on(colour: Colour) -> Colour:
    """Black or white letters, whichever can be read on a colour."""
    return INK if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else PAPER


# --- one picture ------------------------------------------------------------------------------------------------------


def shown(image: Picture) -> tuple[Picture, float]:
    """Return an image at the size that it is drawn at, and by what its coordinates are multiplied."""
    height, width = image.shape[:2]
    factor = SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized: Picture = cv2.resize(image, size, interpolation=interpolation)
    return resized, factor


def draw_boxes(
    image: Picture,
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"] | None,
    classes: Sequence[str],
    *,
    min_score: float = 0.5,
) -> Picture:
    """Draw boxes with class and score, the surest ones on top.

    Args:
        image: at its own size.
        boxes: left, top, right, bottom [pixels of the image], edges from 0.
        labels: indices into the classes.
        scores: 0..1; None: the truth.
        classes: names.
        min_score: detections below it are left out.

    Returns:
        The picture, at the size of `shown`.
    """
    picture, factor = shown(image)
    return _with_boxes(picture, factor * boxes, labels, _order(labels, scores, min_score), scores, classes)


def draw_masks(
    image: Picture,
    masks: UInt8[np.ndarray, "n H W"] | Bool[np.ndarray, "n H W"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"] | None,
    classes: Sequence[str],
    *,
    min_score: float = 0.5,
) -> Picture:
    """Tint masks and outline them, with boxes, class and score, the surest ones on top. Arguments as of draw_boxes."""
    picture, factor = shown(image)
    order = _order(labels, scores, min_score)
    for i in order:
        large = cv2.resize(masks[i].astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        _tint(picture, large > 0, _colour(int(labels[i]), classes))
        outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, PAPER, 1)
    return _with_boxes(picture, factor * boxes, labels, order, scores, classes)


def draw_map(image: Picture, labels: UInt8[np.ndarray, "H W"], classes: Sequence[str]) -> Picture:
    """Tint each pixel by its class, with a legend below. A class named `background` stays as it is; VOID is grey.

    Args:
        image: at its own size.
        labels: index into the classes of each of its pixels, or VOID.
        classes: names.

    Returns:
        The picture, at the width of `shown`, with a legend of the classes that are in it.
    """
    picture, _ = shown(image)
    large = cv2.resize(labels, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    rows: list[tuple[str, Colour]] = []
    for k in np.unique(labels):
        name, colour = ("not counted", VOID_COLOUR) if k == VOID else (classes[k], _colour(int(k), classes))
        if name != UNPAINTED:
            _tint(picture, large == k, colour)
            rows.append((name, colour))
    return _stacked([picture, _legend(rows, picture.shape[1])])


def _order(labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, " n"] | None, min_score: float) -> list[int]:
    """What is drawn, the least sure first; of the truth the last object first."""
    if scores is None:
        return list(range(len(labels)))[::-1]
    return [int(i) for i in np.argsort(scores, kind="stable") if scores[i] >= min_score]


def _tint(picture: Picture, where: Bool[np.ndarray, "H W"], colour: Colour) -> None:
    picture[where] = ((1 - TINT) * picture[where] + TINT * np.array(colour)).round().astype(np.uint8)


def _with_boxes(
    picture: Picture,
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, " n"],
    order: Sequence[int],
    scores: Float[np.ndarray, " n"] | None,
    classes: Sequence[str],
) -> Picture:
    height, width = picture.shape[:2]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    corners = np.round(boxes - [0, 0, 1, 1]).clip(0, [width - 1, height - 1, width - 1, height - 1]).astype(int)
    for i in order:
        left, top, right, bottom = corners[i].tolist()
        ends = (left, top, max(left, right), max(top, bottom))
        draw.rectangle(ends, outline=_colour(int(labels[i]), classes), width=2)
    taken: list[_Place] = []
    for i in reversed(order):  # the surest one has the first choice of a place
        name = classes[labels[i]]
        text = _fitted(name if scores is None else f"{name} {scores[i]:.2f}", width - 2 * _PADDING)
        place = _free_place(corners[i].tolist(), text, width, height, taken)
        if place is None:
            continue
        taken.append(place)
        colour = _colour(int(labels[i]), classes)
        draw.rectangle((place.left, place.top, place.right - 1, place.bottom - 1), fill=colour)
        _write(draw, place.left + _PADDING, place.top, text, _ink_on(colour))
    return np.array(canvas)


# --- text -------------------------------------------------------------------------------------------------------------

_PADDING = 3  # of a label, at its left and right [pixels]
_LINE = TEXT + 5  # height of a line of text [pixels]
_MAY_HIDE = 0.2  # of other labels, in areas of its own: beyond, a label is left out


class _Place(NamedTuple):
    """A rectangle in a picture; right and bottom are just outside [pixels]."""

    left: int
    top: int
    right: int
    bottom: int


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(TEXT)  # comes with Pillow
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _fitted(text: str, width: int) -> str:
    """Cut a text that is too wide."""
    if _width(text) <= width:
        return text
    while text and _width(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, colour: Colour) -> None:
    draw.text((left, top + _LINE // 2), text, fill=colour, font=_font(), anchor="lm")


def _free_place(box: Sequence[int], text: str, width: int, height: int, taken: Sequence[_Place]) -> _Place | None:
    """Where a label hides least of the others: above the box, in its corners or below it, always within the picture.

    None where it would hide too much: the box is drawn without a name then, and its colour shows the class.
    """
    left, top, right, bottom = box
    wide = min(width, _width(text) + 2 * _PADDING)
    wanted = [(left, top - _LINE), (left, top), (left, bottom - _LINE), (left, bottom), (right - wide, top - _LINE)]
    wanted += [(right - wide, top), (right - wide, bottom - _LINE), (right - wide, bottom)]
    places = []
    for x, y in wanted:
        x, y = min(max(0, x), width - wide), min(max(0, y), max(0, height - _LINE))
        places.append(_Place(x, y, x + wide, y + _LINE))
    hidden = [sum(_shared(place, other) for other in taken) for place in places]
    least = hidden.index(min(hidden))
    return places[least] if hidden[least] <= _MAY_HIDE * wide * _LINE else None


def _shared(a: _Place, b: _Place) -> int:
    """Area that two rectangles have in common [pixels]."""
    return max(0, min(a.right, b.right) - max(a.left, b.left)) * max(0, min(a.bottom, b.bottom) - max(a.top, b.top))


def _legend(rows: Sequence[tuple[str, Colour]], width: int) -> Picture:
    """Names beside their colours, in as many lines as it takes."""
    swatch, lines, x = TEXT, 1, 0
    places = []
    for name, colour in rows:
        text = _fitted(name, width - swatch - 2 * _PADDING)
        wide = swatch + 2 * _PADDING + _width(text)
        if x and x + wide > width:
            lines, x = lines + 1, 0
        places.append((x, (lines - 1) * _LINE, text, colour))
        x += wide + 2 * _PADDING
    canvas = Image.new("RGB", (width, lines * _LINE if rows else 0), PAPER)
    draw = ImageDraw.Draw(canvas)
    for x, y, text, colour in places:
        mixed = tuple(round((1 - TINT) * 160 + TINT * value) for value in colour)  # as on an image of a middle grey
        draw.rectangle((x, y + 2, x + swatch - 1, y + 1 + swatch), fill=mixed, outline=INK)
        _write(draw, x + swatch + _PADDING, y, text, INK)
    return np.array(canvas).reshape(-1, width, 3)


# --- sheets -----------------------------------------------------------------------------------------------------------

Row = tuple[str, Picture, Picture, Picture]  # title, image, picture of the truth, picture of the prediction


def sheet(rows: Sequence[Row], columns: Sequence[str] = ("image", "truth", "prediction")) -> Picture:
    """Set images, truths and predictions side by side, a row per image with its title above.

    Args:
        rows: title, image (at its own size), the truth's picture and the prediction's.
        columns: what stands above the pictures.
    """
    parts = [[shown(image)[0], truth, predicted] for _, image, truth, predicted in rows]
    widths = [max(row[column].shape[1] for row in parts) for column in range(len(columns))]
    full = sum(widths) + GAP * (len(widths) - 1)
    bands = [_side_by_side([_title(name, width) for name, width in zip(columns, widths, strict=True)], widths)]
    for (title, *_), row in zip(rows, parts, strict=True):
        bands.append(_stacked([_title(title, full), _side_by_side(row, widths)]))
    inner = _stacked(bands, GAP)
    return np.pad(inner, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture, whole or not at all, as its path's ending says: .png, or .webp, which takes a tenth.

    Raises:
        OSError: the disk is full, or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": 85, "method": 4} if path.suffix == ".webp" else {}
    with replaced_durably(path) as beside:
        Image.fromarray(picture).save(beside, format=path.suffix.removeprefix("."), **options)


def _title(text: str, width: int) -> Picture:
    canvas = Image.new("RGB", (width, _LINE), PAPER)
    _write(ImageDraw.Draw(canvas), 0, 0, _fitted(text, width), INK)
    return np.array(canvas)


def _side_by_side(pictures: Sequence[Picture], widths: Sequence[int]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    band = np.full((height, sum(widths) + GAP * (len(widths) - 1), 3), 255, np.uint8)
    left = 0
    for picture, width in zip(pictures, widths, strict=True):
        band[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += width + GAP
    return band


def _stacked(pictures: Sequence[Picture], gap: int = 2) -> Picture:
    """One above the other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    bands = []
    for picture in pictures:
        bands.append(np.pad(picture, ((0, gap), (0, width - picture.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(bands)[:-gap]
