"""View retrieval: whether a run has learned anything, measured without labels against the weights that it began with.

Some training images are cut and coloured in four ways, the same ones all along. A backbone that has learned what images show
finds an image by another view of it among all the others; how much more often than at the start is the measure. Of ten that
were compared over many runs it agreed best with the kNN vote, and it fell below the start's where nothing was learned
(benchmarks/label_free.py, docs/log.md).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from swav.data.augment.crops import ViewSampler, cut, planes
from swav.data.augment.photometric import apply_opencv
from swav.data.augment.spec import RandomResizedCrop, ViewSpec
from swav.data.images import Images, Unreadable
from swav.features import features_of
from swav.label_free import view_retrieval
from swav.progress import Progress
from swav.results.intervals import Z
from swav.signals import stop_if_asked
from swav.training.auto import CHECKED_IMAGES, CHECKED_VIEWS
from swav.weights.encoder import Encoder

PAIRS = CHECKED_VIEWS * (CHECKED_VIEWS - 1)
_AT_A_TIME = 64  # images
MOST_BYTES = 400e6  # of views that are kept; of larger ones there are fewer images


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A score, and how it compares with the start's on the same views.

    Attributes:
        value: share of the pairs of views in which an image's own view is the nearest [%].
        gain: value minus that of the start [points].
        margin: half of the gain's 95 % interval over images [points]; 0 at the start.
    """

    value: float
    gain: float
    margin: float

    def line(self) -> dict[str, float]:
        """As a line of metrics.jsonl has it."""
        return {
            "view_retrieval": self.value,
            "view_retrieval_gain": self.gain,
            "view_retrieval_margin": self.margin,
        }


class RetrievalCheck:
    """Scores encoders of a run by view retrieval.

    Args:
        images: that are trained on.
        size: side of the views [pixels].
        seed: which images are drawn, and their views.
        count: images that are looked at.
        saved: what a checkpoint says (`state`), or None.
    """

    def __init__(
        self, images: Images, size: int, seed: int, count: int = CHECKED_IMAGES, saved: Mapping[str, Any] | None = None
    ):
        self._images, self._size, self._seed, self._count = images, size, seed, count
        self._views: UInt8[Tensor, "N Q S S 3"] | None = None
        self._places: list[int] = []
        self._start: dict[int, int] = {} if saved is None else dict(zip(saved["images"], saved["hits"], strict=True))

    @property
    def has_start(self) -> bool:
        return bool(self._start)

    def state(self) -> dict[str, Any]:
        """What later commands compare with: the images that were looked at before the first step, and their hits."""
        return {"images": list(self._start), "hits": list(self._start.values())}

    def begin(self, encoder: Encoder, device: torch.device) -> Retrieval | None:
        """Score the weights that the run begins with; None where fewer than two images can be read."""
        hits = self._hits(encoder, device)
        if hits is None:
            return None
        self._start = dict(zip(self._places, hits.tolist(), strict=True))
        return Retrieval(_percent(hits), 0.0, 0.0)

    def score(self, encoder: Encoder, device: torch.device) -> Retrieval | None:
        """Score weights and compare them with the start's; None where the start is not known or hardly an image is readable."""
        hits = self._hits(encoder, device) if self._start else None
        if hits is None:
            return None
        now = dict(zip(self._places, hits.tolist(), strict=True))
        both = [place for place in now if place in self._start]
        if len(both) < 2:
            return None
        gains = torch.tensor([100 * (now[place] - self._start[place]) / PAIRS for place in both], dtype=torch.float64)
        return Retrieval(_percent(hits), float(gains.mean()), Z * float(gains.std()) / math.sqrt(len(gains)))

    def _hits(self, encoder: Encoder, device: torch.device) -> Int64[Tensor, " N"] | None:
        if self._views is None:
            self._views = self._make_views(encoder.mean, encoder.std)
        if len(self._places) < 2:
            return None
        features = []
        for first in range(0, len(self._views), _AT_A_TIME):
            stop_if_asked()
            features.append(features_of(encoder, self._views[first : first + _AT_A_TIME].flatten(0, 1), device))
        return view_retrieval(torch.unflatten(torch.cat(features), 0, (-1, CHECKED_VIEWS))).cpu()

    def _make_views(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
        """Cut and colour the views, and note the places of the images that could be read."""
        spec = ViewSpec(
            (RandomResizedCrop(CHECKED_VIEWS, self._size, (0.2, 1.0)),),
            seed=self._seed,
            flip=0.5,
            jitter=(0.4, 0.4, 0.4, 0.1),
            jitter_probability=0.8,
            grayscale=0.2,
            mean=mean,
            std=std,
        )
        count = min(len(self._images), self._count, int(MOST_BYTES / (3 * CHECKED_VIEWS * self._size**2)))
        drawn = sorted(np.random.default_rng(self._seed).permutation(len(self._images))[: max(2, count)].tolist())
        views = torch.empty(len(drawn), CHECKED_VIEWS, self._size, self._size, 3, dtype=torch.uint8)
        self._places = []
        with Progress("looking at views", len(drawn)) as progress:
            for looked_at, place in enumerate(drawn):
                try:
                    stop_if_asked()
                    pixels = self._images.read(place)
                except Unreadable:
                    continue
                draws = ViewSampler(spec, 0, [place])
                of_image = views[len(self._places)]
                for v, box in enumerate(draws.boxes(0, *pixels.shape[:2])):
                    cut(planes(pixels), box, of_image[v][None].permute(0, 3, 1, 2))
                    of_image[v] = torch.from_numpy(apply_opencv(of_image[v].numpy(), draws.params[0, v], spec))
                self._places.append(place)
                if looked_at + 1 < len(drawn):  # its end is no news
                    progress.update(looked_at + 1)
        return views[: len(self._places)]


def _percent(hits: Int64[Tensor, " N"]) -> float:
    return 100 * float(hits.double().mean()) / PAIRS
