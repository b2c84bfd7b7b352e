"""`shapes`: drawn scenes with everything that the benchmarks ask for. As folders of images they are written by writers.py.

Ten classes of objects that differ by form alone. Colour, contrast, filling, position, size, rotation, stretch and
background are drawn at random, the same for all classes: neither colour nor raw pixels tell them apart. An image holds
1 to 4 objects; its label is the largest one. A scene is a pure function of (seed, split, index), planned in units of
the image, so that it is the same picture at every size; boxes, instance masks and the semantic mask come with it.

A scene is drawn 4 times as large and averaged: edges are smooth at every size.
"""

import dataclasses
import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from swav.data.augment.spec import LUMA
from swav.errors import ConfigError

SPLITS = ("train", "val")
SUPERSAMPLING = 4  # drawn pixels per pixel, along a side
PLAN_SIZE = 96  # side of the raster on which a plan is checked [pixels]; one for all sizes, or plans would differ
SATURATION = 0.35  # of colours, 0..1: those of a picture must not be all there is to know it by

Polygon = Float[np.ndarray, "_ 2"]
Part = tuple[Polygon, bool]  # painted in order: True adds the polygon to the object, False cuts it out
Mask = Bool[np.ndarray, "H W"]


# --- the ten forms: polygons within the unit circle, with proportions of their own -----------------------------------


def _disc(radius: float, x: float = 0.0, y: float = 0.0) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Polygon:
    """A thick line."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return np.stack([start + across, end + across, end - across, start - across])


def _regular(corners: int, radius: float, turn: float = 0.0) -> Polygon:
    angle = turn + 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _around(count: int, radius: float) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in _regular(count, radius)]


def _target(rng: np.random.Generator) -> list[Part]:
    """Rings in each other around a disc."""
    edges = np.linspace(1, 0.08, 2 * rng.integers(3, 5))[:-1]
    return [(_disc(radius), i % 2 == 0) for i, radius in enumerate(edges)]


def _wheel(rng: np.random.Generator) -> list[Part]:
    """A rim, a hub, and spokes between them."""
    rim = rng.uniform(0.72, 0.82)
    spokes = [(_bar(0, 0, x, y, 0.13), True) for x, y in _around(int(rng.integers(5, 9)), 0.9)]
    return [(_disc(1), True), (_disc(rim), False), *spokes, (_disc(0.22), True)]


def _star(rng: np.random.Generator) -> list[Part]:
    """A solid star with long points."""
    points = int(rng.integers(5, 8))
    corners = _regular(2 * points, 1)
    corners[1::2] *= rng.uniform(0.32, 0.45)
    return [(corners, True)]


def _cross(rng: np.random.Generator) -> list[Part]:
    """Two thick bars at right angles."""
    width = rng.uniform(0.42, 0.6)
    return [(_bar(-0.95, 0, 0.95, 0, width), True), (_bar(0, -0.95, 0, 0.95, width), True)]


def _crescent(rng: np.random.Generator) -> list[Part]:
    """A disc with a bite."""
    return [(_disc(1), True), (_disc(rng.uniform(0.72, 0.85), rng.uniform(0.38, 0.5)), False)]


def _lattice(rng: np.random.Generator) -> list[Part]:
    """A square grid of thin bars."""
    side, lines = 0.72, int(rng.integers(4, 6))
    width = 0.66 * side / lines
    places = np.linspace(-side, side, lines)
    rows = [(_bar(-side - width / 2, y, side + width / 2, y, width), True) for y in places]
    columns = [(_bar(x, -side - width / 2, x, side + width / 2, width), True) for x in places]
    return rows + columns


def _triangle(rng: np.random.Generator) -> list[Part]:
    """Triangular frames in each other."""
    edges = np.linspace(1, 0.12, 2 * rng.integers(2, 4))[:-1]
    return [(_regular(3, radius), i % 2 == 0) for i, radius in enumerate(edges)]


def _spiral(rng: np.random.Generator) -> list[Part]:
    """A thick curve that winds outwards, either way round."""
    turns, sense = rng.uniform(2.2, 3.0), rng.choice([-1, 1])
    t = np.linspace(0.02, 1, 90)
    angle, radius = sense * 2 * np.pi * turns * t, 0.93 * t
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    width = 0.48 / turns
    return [(_bar(x[i], y[i], x[i + 1], y[i + 1], width), True) for i in range(len(t) - 1)]


def _flower(rng: np.random.Generator) -> list[Part]:
    """Round petals around a hole."""
    petals = int(rng.integers(6, 9))
    distance = 0.68
    leaves = [(_disc(0.78 * distance * math.sin(math.pi / petals), x, y), True) for x, y in _around(petals, distance)]
    return [*leaves, (_disc(0.36), True), (_disc(0.18), False)]


def _zigzag(rng: np.random.Generator) -> list[Part]:
    """Parallel broken lines with sharp turns."""
    teeth, rows = int(rng.integers(5, 8)), int(rng.integers(3, 5))
    x = np.linspace(-0.8, 0.8, teeth)
    swing = 0.32 / rows * np.where(np.arange(teeth) % 2, 1, -1)
    width = 0.58 / rows
    lines = [y + swing for y in np.linspace(-0.6, 0.6, rows)]
    return [(_bar(x[i], y[i], x[i + 1], y[i + 1], width), True) for y in lines for i in range(teeth - 1)]


FORMS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "crescent": _crescent,
    "cross": _cross,
    "flower": _flower,
    "lattice": _lattice,
    "spiral": _spiral,
    "star": _star,
    "target": _target,
    "triangle": _triangle,
    "wheel": _wheel,
    "zigzag": _zigzag,
}
CLASSES = tuple(FORMS)


# --- a plan: which objects, where, how large, what hides what --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Object:
    """One object of a plan: its class, its parts in units of the image, and a seed of its looks."""

    class_index: int
    parts: list[Part]
    looks: int


def _placed(class_index: int, radius: float, centre: Float[np.ndarray, " 2"], rng: np.random.Generator) -> _Object:
    """An object, rotated at random and stretched up to 1.3 : 1; `radius` is that of its unit circle."""
    turn, lean, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi), rng.uniform(1, 1.3) ** 0.5
    axes = _rotation(lean) @ np.diag([stretch, 1 / stretch]) @ _rotation(-lean)
    matrix = radius * axes @ _rotation(turn)
    parts = [(polygon @ matrix.T + centre, adds) for polygon, adds in FORMS[CLASSES[class_index]](rng)]
    return _Object(class_index, parts, int(rng.integers(2**32)))


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _coverage(parts: list[Part], side: int) -> Mask:
    """Raster an object's parts on a square of `side` pixels."""
    mask = np.zeros((side, side), np.uint8)
    for polygon, adds in parts:  # 16ths of a pixel; -0.5: OpenCV's pixel centres are whole numbers
        corners = np.round((polygon * side - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(mask, [corners], int(adds), lineType=cv2.LINE_8, shift=4)
    return mask.astype(bool)


def _visible(masks: list[Mask]) -> list[Mask]:
    """What is seen of each object where later ones hide earlier ones."""
    seen, hidden = [], np.zeros_like(masks[0])
    for mask in reversed(masks):
        seen.append(mask & ~hidden)
        hidden |= mask
    return seen[::-1]


def _plan(class_index: int, rng: np.random.Generator) -> list[_Object]:
    """Objects from back to front. The labelled one shows at least twice the area of any other, and most of itself."""
    objects = [_placed(class_index, rng.uniform(0.28, 0.46), rng.uniform(0.32, 0.68, 2), rng)]
    masks = [_coverage(objects[0].parts, PLAN_SIZE)]
    main = objects[0]
    for _ in range(int(rng.integers(0, 4))):
        for _ in range(8):  # a place that does not suit is drawn again; after eight the scene has one object less
            other = int(rng.choice([i for i in range(len(CLASSES)) if i != class_index]))
            extra = _placed(other, rng.uniform(0.11, 0.2), rng.uniform(0.08, 0.92, 2), rng)
            place = int(rng.integers(len(objects) + 1))
            tried = [*objects[:place], extra, *objects[place:]]
            tried_masks = [*masks[:place], _coverage(extra.parts, PLAN_SIZE), *masks[place:]]
            if _suits(tried_masks, tried.index(main)):
                objects, masks = tried, tried_masks
                break
    return objects


def _suits(masks: list[Mask], main: int) -> bool:
    whole = np.array([np.count_nonzero(mask) for mask in masks])
    shown = np.array([np.count_nonzero(mask) for mask in _visible(masks)])
    others = np.arange(len(masks)) != main
    return bool(
        shown[main] >= 2 * shown[others].max()
        and shown[main] >= 0.8 * whole[main]
        and (shown[others] >= 0.6 * whole[others]).all()
        and shown.min() >= 0.008 * PLAN_SIZE**2
    )


# --- paint: colours and fillings, drawn alike for every class ---------------------------------------------------------


def _colour(rng: np.random.Generator, brightness: tuple[float, float]) -> Float[np.ndarray, " 3"]:
    """An RGB colour of any hue whose luma lies in a range [0..255]."""
    colour = SATURATION * rng.uniform(0, 255, 3)
    luma = colour @ LUMA
    return np.clip(colour + rng.uniform(*brightness) - luma, 0, 255)


def _filling(
    base: Float[np.ndarray, " 3"], side: int, strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side 3"]:
    """A surface around a colour: a slope of light that changes it by `strength`, and blotches, stripes or nothing."""
    vertical, horizontal = np.mgrid[0:1:32j, 0:1:32j]
    turn = rng.uniform(0, 2 * np.pi)
    along = math.cos(turn) * horizontal + math.sin(turn) * vertical
    tint = rng.normal(0, 0.5, 3) + 1
    surface = (along - along.mean())[..., None] * strength * tint
    kind = rng.integers(3)
    if kind == 1:
        cells = int(rng.integers(3, 9))
        blotches = rng.normal(0, 0.5 * strength, (cells, cells, 1)) * tint
        surface = surface + cv2.resize(blotches, (32, 32), interpolation=cv2.INTER_CUBIC)
    elif kind == 2:
        waves = np.sin(2 * np.pi * rng.uniform(1, 5) * along + rng.uniform(0, 2 * np.pi))
        surface = surface + (0.5 * strength * waves)[..., None] * tint
    surface = np.clip(surface + base, 0, 255).astype(np.uint8)
    large: UInt8[np.ndarray, "side side 3"] = cv2.resize(surface, (side, side), interpolation=cv2.INTER_LINEAR)
    return large


@dataclasses.dataclass(frozen=True)
class Scene:
    """A drawn image and all that is known about it. Objects go from back to front.

    Attributes:
        image: RGB.
        label: class of the object with the largest visible area, 0..9.
        classes: of each object, 0..9.
        boxes: x0, y0, x1, y1 of what is seen of each object [pixels]; x1 and y1 are just outside.
        instances: what is seen of each object; they never overlap.
        semantic: 0 background, class + 1 on objects.
    """

    image: UInt8[np.ndarray, "size size 3"]
    label: int
    classes: Int[np.ndarray, " objects"]
    boxes: Int[np.ndarray, "objects 4"]
    instances: Bool[np.ndarray, "objects size size"]
    semantic: UInt8[np.ndarray, "size size"]


def scene(seed: int, split: str, index: int, size: int = 64) -> Scene:
    """Draw scene `index` of a split; its label is index modulo 10.

    Args:
        seed: of the whole data set.
        split: train or val.
        index: from 0.
        size: side of the image [pixels].

    Raises:
        ConfigError: an unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: expected {' or '.join(SPLITS)}, found '{split}'")
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS.index(split), index])))
    label = index % len(CLASSES)
    objects = _plan(label, rng)
    side = SUPERSAMPLING * size
    dark = rng.random() < 0.5  # objects on a dark ground are bright, and the reverse: forms are seen without colour
    ground, figure = ((15, 95), (140, 240)) if dark else ((160, 240), (15, 115))
    canvas = _filling(_colour(rng, ground), side, 20, rng)
    masks = [_coverage(item.parts, side) for item in objects]
    for item, mask in zip(objects, masks, strict=True):
        looks = np.random.Generator(np.random.Philox(item.looks))
        cv2.copyTo(_filling(_colour(looks, figure), side, 20, looks), mask.view(np.uint8), canvas)
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    middle = SUPERSAMPLING // 2
    instances = np.stack(_visible([mask[middle::SUPERSAMPLING, middle::SUPERSAMPLING] for mask in masks]))
    large_enough = instances.any(axis=(1, 2))  # at a few pixels a side, a thin object may fall between them
    instances, classes = instances[large_enough], np.array([item.class_index for item in objects])[large_enough]
    semantic = (instances * (classes + 1)[:, None, None]).sum(axis=0).astype(np.uint8)
    return Scene(image, label, classes, np.stack([_box(mask) for mask in instances]), instances, semantic)


def _box(mask: Mask) -> Int[np.ndarray, " 4"]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
