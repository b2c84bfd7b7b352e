"""Linear: one linear layer, trained on the features of a frozen trunk.

Data        ImageNet-1k, labelled: train (1,281,167) to learn from, val (50,000) to score. Any labelled set will do.
Transform   training: random resized crop of the size (224; area .08-1, aspect 3/4-4/3), flip p .5. Scoring: short side to
            256/224 of the size, centre crop of the size.
Layer       trunk in eval mode, frozen; global average of the last stage; Linear, weights N(0, .01), bias 0.
Optimiser   SGD, learning rate .3, momentum .9, no Nesterov, weight decay 1e-6, batch 256.
Schedule    100 epochs, cosine to 0, constant within an epoch: lr(e) = .3 (1 + cos(pi e / 100)) / 2. No warm-up.
Metric      top-1 and top-5 [%] at the last epoch, not the best.
Seeds       one, for initial weights, order and crops: they are a pure function of (seed, epoch, sample).
Source      target page: 70.5 top-1 (SwAV ResNet-50, 200 epochs, batch 256). MMSelfSup 0.x
            resnet50_linear-8xb32-coslr-100e_in1k ("SwAV linear evaluation setting"); the paper, section A.4.
Where we differ: one process, so one batch of 256 instead of 8 of 32: the same sums, as the trunk's BatchNorm is frozen. The
            last partial batch of an epoch is dropped (of ImageNet 143 images, others in every epoch); what the source
            does with it is not written down.
Smoke       size 64, 8 epochs, at most 5,000 + 1,000 images, and fewer than a batch will do. The crops are drawn anew in
            every epoch there, too.

The trunk sees every crop once per epoch and its features are never kept: they are of other crops in every epoch. The
state after each epoch is a verified checkpoint, so an interrupted benchmark goes on and ends with the same bits.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swav import checkpoint
from swav.config import Crop, Recipe
from swav.data.loader import Batch, Loader
from swav.errors import DataError, NumericsError
from swav.evaluation.settings import LinearSettings
from swav.evaluation.task import Score, Task
from swav.features import Features, features_of, pooled_features
from swav.metrics import top_k_accuracy
from swav.runtime import Progress, fault_point, write_text_durably

_HARMLESS = {"workers", "device"}  # leave every bit of the state as it is, or nearly (another device rounds otherwise)


def check(task: Task[LinearSettings]) -> None:
    """Complains of what can be known without any work.

    Raises:
        DataError: there are fewer images than a batch.
    """
    _recipe(task)


def run(task: Task[LinearSettings]) -> list[Score]:
    """Trains and scores one layer, going on from the last finished epoch of an earlier sitting.

    Raises:
        DataError: no image of a half can be read, or there are fewer than a batch.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings, epochs, recipe = task.settings, task.settings.epochs, _recipe(task)
    folder = task.out / "linear" / _identity(task)
    head, optimizer, log, unreadable = _start(task, folder)
    with Progress("linear: features", len(task.score)) as progress:
        scored = pooled_features(
            task.encoder,
            task.score,
            settings.size,
            workers=task.workers,
            device=task.device,
            progress=progress,
            precision=settings.precision,
        )
    per_epoch = len(task.train) // recipe.batch
    loader = Loader(
        task.train,
        recipe,
        rank=0,
        world_size=1,
        start_step=len(log) * per_epoch,
        total_steps=epochs * per_epoch,
        steps_per_epoch=per_epoch,
        on_device=False,  # a crop and a flip: nothing is left for the device
    )
    loss_sum, count = torch.zeros((), device=task.device), 0
    try:
        with Progress("linear", epochs * per_epoch, len(log) * per_epoch) as progress:
            for batch in loader if len(log) < epochs else ():
                epoch = batch.step // per_epoch
                rate = _learning_rate(settings, epoch)
                features, labels = _example(task, batch)
                unreadable |= {name for name, _ in batch.unreadable}
                loss_sum += _step(head, optimizer, features, labels, rate) * len(labels)
                count += len(labels)
                progress.update(batch.step + 1, log[-1]["text"] if log else "")
                if (batch.step + 1) % per_epoch == 0:
                    log.append(_line(epoch, rate, float(loss_sum) / max(1, count), head, scored, task.device))
                    _save(folder, head, optimizer, log, unreadable)
                    fault_point("linear:epoch")
                    loss_sum, count = torch.zeros_like(loss_sum), 0
    finally:
        loader.close()
    lost = sum(task.train.name(i) in unreadable for i in range(len(task.train))) if unreadable else 0
    difference = task.difference(len(task.train) - lost, len(scored.labels))
    path = str((folder / "log.jsonl").relative_to(task.out))
    return [Score(f"top-{k}", log[-1][f"top{k}"], len(scored.labels), difference, path) for k in (1, 5)]


def _identity(task: Task[LinearSettings]) -> str:
    """Names the state: other weights, images or settings never go on from it."""
    key = {
        "state": ["log", "unreadable"],  # what it must hold
        "weights": task.encoder.sha256,
        "normalisation": [task.encoder.mean, task.encoder.std],
        "train": task.train.fingerprint,
        "score": task.score.fingerprint,
        "settings": task.settings.model_dump(mode="json", exclude=_HARMLESS),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def _start(
    task: Task[LinearSettings], folder: Path
) -> tuple[nn.Linear, torch.optim.SGD, list[dict[str, Any]], set[str]]:
    """A fresh layer, or the one that an earlier sitting left, with its optimiser, a line per finished epoch, and the
    names of the images that could not be decoded in them.
    """
    settings = task.settings
    head = nn.Linear(task.encoder.num_features, task.num_classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(settings.seed))
    nn.init.zeros_(head.bias)
    path = checkpoint.newest(folder / "checkpoints")
    saved = None if path is None else checkpoint.read(path)
    if saved is not None:
        head.load_state_dict(saved.model)
    head.to(task.device)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    if saved is None:
        return head, optimizer, [], set()
    for name, parameter in head.named_parameters():
        if name in saved.optim:  # without momentum there is no buffer
            optimizer.state[parameter]["momentum_buffer"] = saved.optim[name].to(task.device)
    return head, optimizer, list(saved.state["log"]), set(saved.state["unreadable"])


def _recipe(task: Task[LinearSettings]) -> Recipe:
    """The loader's settings: one random resized crop and a flip. (As a pre-training recipe, one crop would be refused.)

    An epoch leaves out its last partial batch, as pre-training does; which images these are changes with the epoch.
    """
    settings = task.settings
    batch = min(settings.batch, len(task.train)) if task.protocol == "smoke" else settings.batch
    if batch > len(task.train):
        raise DataError(
            f"{task.train.root}: expected at least one batch of {batch} training images, found {len(task.train)}; "
            f"use linear.batch={len(task.train)} or more images"
        )
    crop = Crop(count=1, size=settings.size, scale=settings.crop_scale)
    return Recipe().model_copy(
        update={
            "crops": (crop,),
            "flip": settings.flip,
            "jitter_probability": 0.0,
            "grayscale": 0.0,
            "blur": 0.0,
            "batch": batch,
            "seed": settings.seed,
            "workers": task.workers,
        }
    )


def _example(task: Task[LinearSettings], batch: Batch) -> tuple[Tensor, Tensor]:
    """Features and labels of a batch, without the places where another image stands in for one that cannot be read."""
    assert task.train.labels is not None
    labels = torch.from_numpy(task.train.labels)[batch.indices]
    features = features_of(task.encoder, batch.views[0], task.device, task.settings.precision)
    if batch.unreadable:
        missing = {name for name, _ in batch.unreadable}
        kept = torch.tensor([task.train.name(i) not in missing for i in batch.indices.tolist()])
        features, labels = features[kept.to(task.device)], labels[kept]
    return features, labels.to(task.device)


def _learning_rate(settings: LinearSettings, epoch: int) -> float:
    return 0.5 * settings.lr * (1 + math.cos(math.pi * epoch / settings.epochs))


def _step(head: nn.Linear, optimizer: torch.optim.SGD, features: Tensor, labels: Tensor, rate: float) -> Tensor:
    """One step; returns the mean loss before it."""
    if not len(labels):
        return torch.zeros((), device=features.device)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = nn.functional.cross_entropy(head(features), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _line(
    epoch: int, rate: float, loss: float, head: nn.Linear, scored: Features, device: torch.device
) -> dict[str, Any]:
    """A line of the log: how the epoch went, and the score after it."""
    if not math.isfinite(loss):
        raise NumericsError(
            f"linear, epoch {epoch + 1}: the loss is not finite; use a smaller linear.lr=X, and look at the features' size"
        )
    with torch.no_grad():
        logits = [head(part.to(device)) for part in scored.features.split(4096)]  # type: ignore[no-untyped-call]
        ranked = torch.cat([part.topk(min(5, part.shape[1]), dim=1).indices.cpu() for part in logits])
    top1, top5 = (top_k_accuracy(ranked, scored.labels, k) for k in (1, 5))
    text = f"loss {loss:.3f}  top-1 {top1:.2f}"
    return {"epoch": epoch + 1, "lr": rate, "loss": loss, "top1": top1, "top5": top5, "text": text}


def _save(
    folder: Path, head: nn.Linear, optimizer: torch.optim.SGD, log: list[dict[str, Any]], unreadable: set[str]
) -> None:
    buffers = {
        name: optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in head.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    checkpoint.save(
        folder / "checkpoints",
        len(log),
        model=head.state_dict(),
        optim=buffers,
        local={},
        state={"log": log, "unreadable": sorted(unreadable)},
        keep=2,
    )
    write_text_durably(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
