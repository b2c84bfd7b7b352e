"""Objectives and batches for tests of the supervised loop."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from swav.evaluation.classification import IGNORED, cross_entropy
from swav.evaluation.supervised import Evaluation, Metric


@dataclasses.dataclass
class Given:
    """A batch that is given as it is."""

    inputs: Any
    labels: Tensor
    step: int = 0
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class GivenObjective:
    """Cross-entropy of a model with heads on given batches."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def count(self, batch: Given) -> int:
        return int((batch.labels != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Given) -> Tensor:
        return cross_entropy(model(batch.inputs), batch.labels)

    def evaluate(self) -> Evaluation:
        raise NotImplementedError("these tests do not evaluate")


@dataclasses.dataclass
class RaggedBatch:
    """Images, each with boxes of its own number."""

    step: int
    images: Tensor
    boxes: list[Tensor]
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def ragged_batches(start: int, steps: int) -> Iterator[RaggedBatch]:
    """Batches that are a function of the step; in every third there is no box."""
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(3, 4, generator=generator)
        counts = [0, 0, 0] if step % 3 == 2 else [step % 3, 2, 1]
        yield RaggedBatch(step, images, [torch.randn(n, 2, generator=generator) for n in counts])


class RaggedObjective:
    """Regression of the boxes of an image from its four numbers, with dropout and AdamW: the loss is a mean over boxes."""

    def __init__(self, seed: int = 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, amsgrad=True)

    def count(self, batch: RaggedBatch) -> int:
        return sum(map(len, batch.boxes))

    def loss(self, model: nn.Module, batch: RaggedBatch) -> Tensor:
        found = model(batch.images).repeat_interleave(torch.tensor([len(boxes) for boxes in batch.boxes]), dim=0)
        loss: Tensor = (found - torch.cat(batch.boxes)).square().sum(1).mean()
        return loss

    def evaluate(self) -> Evaluation:
        error = float(self.model(torch.eye(4)).square().sum())
        return Evaluation(4, [Metric("error", error, "px")], f"error {error:.2f}")
