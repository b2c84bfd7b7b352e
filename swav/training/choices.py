"""What the rules of `auto` work with: what is known of images, machine and given weights, and the settings settled so far."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from swav.config import Recipe


@dataclasses.dataclass(frozen=True)
class StartWeights:
    """What is known of weights that a run starts from.

    Attributes:
        name: the weight source.
        settings: of a recipe, that make the same backbone and normalisation.
        size: side of images that they were made for [pixels].
        head: widths of the projection head's hidden layer and of its embeddings; None without a head.
    """

    name: str
    settings: Mapping[str, Any]
    size: int
    head: tuple[int, int] | None = None


def _not_measured(*_: Any) -> Any:
    raise AssertionError("a setting was to be measured, and nothing to measure it with was given")


@dataclasses.dataclass(frozen=True)
class MachineAndData:
    """What settings follow from.

    Attributes:
        num_images: readable images that are trained on.
        side: median of their short sides [pixels].
        world_size: processes.
        device: "cpu" or "cuda", what is there.
        cpus: processor cores that this machine lends us.
        has_bf16: whether the device computes in bfloat16.
        is_grey: looks at some of the images: whether they hold no colour.
        batch_fits: batch_fits(recipe, most): how many images at a time a process has memory for, up to `most`, and how that was found.
            Of the settings those of machine, views and network are settled.
        throughput: images per second of all processes together, for settings that are settled but for the length of the run.
        spent: seconds that the command has taken so far, asked for after the throughput.
        start: the weights that are adapted (`init`), or None.
    """

    num_images: int
    side: int = 224
    world_size: int = 1
    device: str = "cpu"
    cpus: int = 1
    has_bf16: bool = False
    is_grey: Callable[[], bool] = lambda: False
    batch_fits: Callable[[Recipe, int], tuple[int, str]] = _not_measured
    throughput: Callable[[Recipe], float] = _not_measured
    spent: Callable[[], float] = lambda: 0.0
    start: StartWeights | None = None


class Choices:
    """Settings of which more and more are settled.

    Attributes:
        recipe: as far as it is settled.
        reasons: {key: reason} of what was chosen here.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.reasons: dict[str, str] = {}

    def choose(self, key: str, value: Any, reason: str) -> None:
        """Settle a key that was left at `auto`; what was given stays."""
        if self.recipe.left_at_auto(key):
            self.recipe = self.recipe.model_copy(update={key: value})
            self.reasons[key] = reason


def between(value: int, low: int, high: int) -> int:
    """Return the value, or the limit that it is beyond."""
    return max(low, min(high, value))
