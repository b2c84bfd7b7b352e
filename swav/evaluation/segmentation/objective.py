"""Training segmentation: the objective that segment-voc, segment-cityscapes and segment-linear share."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from swav import dist, signals
from swav.data.images import Images, Unreadable
from swav.data.targets import LabelMaps
from swav.errors import NumericsError
from swav.evaluation.dense import DRAWN_OF, gathered
from swav.evaluation.pictures import Picture, draw_map, map_score, sheet, shown, telling
from swav.evaluation.samples import Pixels, SampleBatch, Scale, answers, padded_input, resize
from swav.evaluation.segmentation.augment import Map
from swav.evaluation.segmentation.fcn import pixel_loss, resized
from swav.evaluation.segmentation.inference import classes_of
from swav.evaluation.segmentation.miou import Areas, areas, confusion, interval, mean_iou
from swav.evaluation.supervised import Evaluation, Metric
from swav.weights.encoder import Encoder

Predicted = tuple[int, Map, Map]  # an image's index, its truth, what was predicted


@dataclasses.dataclass(frozen=True)
class Inference:
    """How an image is scored.

    Attributes:
        scale: what it is resized to, keeping its shape.
        multiple: both sides are padded to a multiple of it with zeros [pixels]: what a transformer's patches ask for.
        side, stride: of windows [pixels]; 0: the whole image at once.
        align_corners: of the resizing of logits, in training too.
    """

    scale: Scale
    multiple: int = 1
    side: int = 0
    stride: int = 0
    align_corners: bool = False


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A network that gives logits to every pixel, trained by cross-entropy: an `Objective`.

    Attributes:
        label: for messages.
        encoder: says how images are normalised.
        model: takes images, returns (weight in the loss, logits of its map) of each head; in eval mode of the first one.
        optimizer: of the model.
        val: to score, with LabelMaps.
        inference: how.
        workers: processes that read images to score.
    """

    label: str
    encoder: Encoder
    model: nn.Module
    optimizer: torch.optim.Optimizer
    val: Images
    inference: Inference
    workers: int

    def count(self, batch: SampleBatch[Map]) -> int:
        """Return how many images of a batch there are: all have as many pixels."""
        return len(batch.samples)

    def loss(self, model: nn.Module, batch: SampleBatch[Map]) -> Tensor:
        """Return the sum over heads of the weighted mean over pixels."""
        device = next(self.model.parameters()).device
        truth = torch.from_numpy(np.stack([sample.target for sample in batch.samples])).to(device)
        high, wide = truth.shape[1:]
        x = padded_input([sample.pixels for sample in batch.samples], self.encoder, device)
        x = nn.functional.pad(x, (0, wide - x.shape[3], 0, high - x.shape[2]))
        loss = torch.zeros((), device=device)
        for weight, logits in model(x):
            loss = loss + weight * pixel_loss(resized(logits, (high, wide), self.inference.align_corners), truth)
        return loss

    def evaluate(self) -> Evaluation:
        """Return the mean intersection over union [%] over all readable images together, as `miou`, and the ends of its 95 %
        interval over images drawn with replacement.

        Raises:
            DataError: no image can be read.
            NumericsError: a logit is not finite, on any process.
        """
        classes = self.val.classes or []

        def counted(places: range) -> Iterator[tuple[int, Areas]]:
            for i, truth, predicted in self.predictions(places):
                yield i, areas(confusion(predicted, truth, len(classes)))

        per_image = np.stack(list(gathered(self.label, len(self.val), counted).values()))
        miou = float(mean_iou(per_image.sum(axis=0)))
        low, high = interval(per_image)
        metrics = [Metric("miou", miou), Metric("miou_low", low), Metric("miou_high", high)]
        return Evaluation(len(per_image), metrics, f"mIoU {miou:.2f}")

    def predictions(self, places: range) -> Iterator[Predicted]:
        """Yield truth and prediction of images to score, at their own size; what cannot be read is left out.

        Raises:
            NumericsError: a logit is not finite.
        """
        device = next(self.model.parameters()).device
        how, read = self.inference, _Scored(self.val, self.inference.scale)

        def logits(part: Tensor) -> Tensor:
            ((_, found),) = self.model(part)
            if not bool(found.isfinite().all()):
                raise NumericsError(f"{self.label}: a logit is not finite")
            return resized(found, (part.shape[2], part.shape[3]), how.align_corners)

        def unpadded(part: Tensor) -> Tensor:
            """Logits of an image whose sides are no multiples of what the network takes."""
            high, wide = part.shape[2:]
            more = [-side % how.multiple for side in (wide, high)]
            return logits(nn.functional.pad(part, (0, more[0], 0, more[1])))[:, :, :high, :wide]

        for i, pixels, truth, damaged in answers(read, places, self.workers):
            self.val.damaged |= damaged
            if not dist.is_active():  # the others would wait for this process
                signals.stop_if_asked()
            if pixels is None or truth is None:
                continue
            with torch.no_grad():
                image = padded_input([pixels], self.encoder, device)
                size = (truth.shape[0], truth.shape[1])
                predicted = classes_of(
                    unpadded if how.multiple > 1 else logits,
                    image,
                    size,
                    align_corners=how.align_corners,
                    side=how.side,
                    stride=how.stride,
                )
            yield i, truth, predicted.to(torch.uint8).cpu().numpy()

    def picture(self, count: int) -> Picture | None:
        """Draw maps beside the truth: see DrawnObjective."""
        found = list(self.predictions(range(min(DRAWN_OF, len(self.val)))))
        agreement = np.array([map_score(predicted, truth) for _, truth, predicted in found])
        classes, rows = self.val.classes or [], []
        for place in telling(agreement, count):
            i, truth, predicted = found[place]
            pixels = self.val.read(i)
            there, here = (draw_map(pixels, one, classes) for one in (truth, predicted))
            rows.append((f"{self.val.name(i)}: IoU {100 * agreement[place]:.0f} %", shown(pixels)[0], there, here))
        return sheet(rows) if rows else None


class _Scored:
    """Reads an image to score, in a worker: its place, its pixels at the size of the network, and its map as it is; and the names
    of images that are damaged."""

    def __init__(self, images: Images, scale: Scale):
        self.images, self.scale = images, scale

    def __call__(self, i: int) -> tuple[int, Pixels | None, Map | None, set[str]]:
        assert isinstance(self.images.targets, LabelMaps)
        try:
            pixels = self.images.read(i)
        except Unreadable:
            return i, None, None, set()
        return i, resize(pixels, self.scale.of(*pixels.shape[:2])), self.images.targets[i], self.images.damaged
