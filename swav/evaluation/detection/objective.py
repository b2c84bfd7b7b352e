"""Training a detector: the objective that detect-voc and detect-coco share."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from swav import dist, signals
from swav.data.images import Images, Unreadable
from swav.data.targets import Objects, ObjectSets
from swav.errors import NumericsError
from swav.evaluation.dense import DRAWN_OF, gathered
from swav.evaluation.dense_settings import DetectRules
from swav.evaluation.detection.augment import Learned, resize_as_pillow, scaled_boxes
from swav.evaluation.detection.coco_eval import decode_masks, encode_mask
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.masks import paste_masks
from swav.evaluation.detection.models import Detector
from swav.evaluation.detection.structures import ImageDetections, Term
from swav.evaluation.pictures import Picture, boxes_score, draw_boxes, draw_masks, sheet, shown, telling
from swav.evaluation.samples import Pixels, SampleBatch, Scale, answers, padded_input, resize
from swav.evaluation.supervised import Evaluation, Metric
from swav.system import autocast
from swav.weights.encoder import Encoder

B = TypeVar("B")
Batches = Callable[[], Iterator[SampleBatch[Learned]]]


@dataclasses.dataclass(frozen=True)
class Detection:
    """A detector, trained by the sum of its losses: an `Objective`.

    Attributes:
        label: for messages.
        encoder: says how images are normalised.
        model: the detector.
        optimizer: of the model.
        val: to score, with ObjectSets.
        scale: what images to score are resized to.
        rules: whose resizing.
        shift: what is added to left, top, right, bottom of a box, to be compared with the data set's.
        score: objects and detections of the same images to {metric: value}.
        headline: the metric of the progress line.
        precision: of the network.
        seed: of what is sampled.
        workers: processes that read images to score.
        precise: batches by which BatchNorm's statistics are computed anew before an evaluation; none: they stay the running ones.
    """

    label: str
    encoder: Encoder
    model: nn.Module
    optimizer: torch.optim.Optimizer
    val: Images
    scale: Scale
    rules: DetectRules
    shift: tuple[int, int, int, int]
    score: Callable[[ObjectSets, Detections], Mapping[str, float]]
    headline: str
    precision: str
    seed: int
    workers: int
    precise: Batches | None = None

    def count(self, batch: SampleBatch[Learned]) -> int:
        """Return how many images of a batch there are."""
        return len(batch.samples)

    def loss(self, model: nn.Module, batch: SampleBatch[Learned]) -> Tensor:
        """Return the sum of the losses, each over what was sampled in the images of all processes."""
        terms = self._terms(model, batch)
        counts = torch.stack([term.count.detach().float() for term in terms.values()])
        images = torch.tensor([float(len(batch.samples))], device=counts.device)
        *of_all, images_of_all = dist.all_reduce_sum(torch.cat([counts, images])).unbind()
        # the loop weighs each process by its share of the images
        weight = images_of_all / images[0]
        parts = [term.total / count.clamp(min=1) for term, count in zip(terms.values(), of_all, strict=True)]
        return weight * sum(parts[1:], parts[0])

    def _terms(self, model: nn.Module, batch: SampleBatch[Learned]) -> dict[str, Term]:
        device = next(self.model.parameters()).device
        pixels = [sample.pixels for sample in batch.samples]
        x = padded_input(pixels, self.encoder, device, self._detector.padding)
        sizes = [(one.shape[0], one.shape[1]) for one in pixels]
        truths = [sample.target.truth(sample.pixels.shape[1], device) for sample in batch.samples]
        draws = [sampling_seed(self.seed, batch.step, batch.first + i) for i in range(len(pixels))]
        with autocast(device, self.precision):
            terms: dict[str, Term] = model(x, sizes, truths, draws)
        return terms

    @property
    def _detector(self) -> Detector:
        assert isinstance(self.model, Detector)
        return self.model

    def evaluate(self) -> Evaluation:
        """Return the metrics over all readable images.

        Raises:
            DataError: no image can be read.
            NumericsError: a score is not finite, on any process.
        """
        if self.precise is not None:
            compute_statistics(self.model, self.precise(), lambda batch: self._terms(self.model, batch))
        of_all = gathered(self.label, len(self.val), self.detections)
        assert isinstance(self.val.targets, ObjectSets)
        truth, found = self.val.targets.select(np.array(list(of_all))), joined(list(of_all.values()))
        values = dist.on_rank0(lambda: dict(self.score(truth, found)))
        metrics = [Metric(name, value) for name, value in values.items()]
        return Evaluation(len(of_all), metrics, f"{self.headline} {values.get(self.headline, float('nan')):.2f}")

    def detections(self, places: range) -> Iterator[tuple[int, Detections]]:
        """Yield the index of each image to score, and what is found in it, at its own size; what cannot be read is left out.

        Raises:
            NumericsError: a score is not finite.
        """
        device = next(self.model.parameters()).device
        read = _Scored(self.val, self.scale, self.rules)
        for i, pixels, size, damaged in answers(read, places, self.workers):
            if not dist.is_active():  # the others would wait for this process
                signals.stop_if_asked()
            self.val.damaged |= damaged
            if pixels is None:
                continue
            with torch.no_grad(), autocast(device, self.precision):
                x = padded_input([pixels], self.encoder, device, self._detector.padding)
                (found,) = self.model(x, [(pixels.shape[0], pixels.shape[1])])
            if not bool(found.scores.isfinite().all() & found.boxes.isfinite().all()):
                raise NumericsError(f"{self.label}: a score is not finite")
            yield i, in_image(found, (pixels.shape[0], pixels.shape[1]), size, self.shift)

    def picture(self, count: int) -> Picture | None:
        """Draw boxes, and masks where there are, beside the truth: see DrawnObjective."""
        objects, edges = self.val.targets, np.array([1, 1, 0, 0] if any(self.shift) else [0] * 4, np.float32)
        assert isinstance(objects, ObjectSets)
        found = list(self.detections(range(min(DRAWN_OF, len(self.val)))))
        agreement = np.array([self._agreement(part, objects[i]) for i, part in found])
        classes, rows = self.val.classes or [], []
        for place in telling(agreement, count):
            i, part = found[place]
            pixels, truth = self.val.read(i), objects[i]
            there, here = (
                _drawn(pixels, boxes - edges, labels, scores, masks, classes)
                for boxes, labels, scores, masks in (
                    (truth.boxes, truth.labels, None, truth.masks),
                    (part.boxes, part.labels, part.scores, part.masks),
                )
            )
            rows.append((f"{self.val.name(i)}: F1 {100 * agreement[place]:.0f} %", shown(pixels)[0], there, here))
        return sheet(rows) if rows else None

    def _agreement(self, part: Detections, truth: Objects) -> float:
        return boxes_score(truth.boxes, truth.labels, part.boxes, part.labels, part.scores)


def _drawn(
    pixels: Pixels,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: Sequence[object],
    classes: Sequence[str],
) -> Picture:
    if not masks:
        return draw_boxes(pixels, boxes, labels, scores, classes)
    decoded = decode_masks(masks, pixels.shape[0], pixels.shape[1])
    return draw_masks(pixels, decoded, boxes, labels, scores, classes)


def in_image(
    found: ImageDetections, before: tuple[int, int], size: tuple[int, int], shift: tuple[int, int, int, int]
) -> Detections:
    """Return detections of a resized image in the pixels of the image as it is, in the convention of its data set, as those of
    image 0.

    Args:
        before: height and width at which the network saw it.
        size: its own.
        shift: see Detection.
    """
    boxes = scaled_boxes(found.boxes.float().cpu().numpy(), before, size)
    masks = []
    if found.masks is not None:
        pasted = paste_masks(found.masks.float().cpu(), torch.from_numpy(boxes), size[0], size[1])
        masks = [encode_mask(mask.numpy()) for mask in pasted]
    labels = found.labels.cpu().numpy().astype(np.int64)
    scores = found.scores.float().cpu().numpy()
    return Detections(np.zeros_like(labels), labels, scores, boxes + np.array(shift, np.float32), masks)


def joined(parts: list[Detections]) -> Detections:
    """Return the detections of several images as one: those of the first are of image 0."""
    none = Detections(
        np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), []
    )
    labels, scores, boxes = (
        np.concatenate([getattr(part, name) for part in (none, *parts)]) for name in ("labels", "scores", "boxes")
    )
    images = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Detections(images, labels, scores, boxes, [mask for part in parts for mask in part.masks])


def sampling_seed(seed: int, step: int, place: int) -> int:
    """Return the seed of what is sampled of an image: one of its own for each (seed, step, place in the batch)."""
    return int(np.random.SeedSequence([seed, step, place]).generate_state(1, np.uint64)[0] >> 1)


def compute_statistics(model: nn.Module, batches: Iterable[B], forward: Callable[[B], object]) -> None:
    """Compute BatchNorm's statistics anew, as the plain mean over some batches ("precise BN").

    Args:
        forward: runs the model on a batch.

    Source: Wu & Johnson 2021 (arXiv 2105.07576), section 3; detectron2's TEST.PRECISE_BN.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches so far
    try:
        model.train()
        with torch.no_grad():
            for batch in batches:
                forward(batch)
    finally:
        model.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class _Scored:
    """Reads an image to score, in a worker: its place, its pixels at the network's size, its own height and width; and the names of
    images that are damaged."""

    def __init__(self, images: Images, scale: Scale, rules: DetectRules):
        self.images, self.scale, self.rules = images, scale, rules

    def __call__(self, i: int) -> tuple[int, Pixels | None, tuple[int, int], set[str]]:
        try:
            pixels = self.images.read(i)
        except Unreadable:
            return i, None, (0, 0), set()
        size = (pixels.shape[0], pixels.shape[1])
        change = resize if self.rules == "mmdet" else resize_as_pillow
        return i, change(pixels, self.scale.of(*size)), size, self.images.damaged
