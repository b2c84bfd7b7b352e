"""Train a backbone of ours with a method of LightlySSL, for as many images as a run of ours saw.

Run: PYTHON benchmarks/peers/lightly_methods.py METHOD --data DATA --images N --seed S --config RUN/config.yaml
         --out FOLDER [--batch 128] [--points 5] [--threads 1] [--workers 0]

METHOD is SwAV, SimCLR, BYOL, VICReg, BarlowTwins or FastSiam. PYTHON is that of an environment of its own, which holds
LightlySSL beside swav: `uv venv ENV && uv pip install -p ENV lightly==1.5.23 -e .` makes one, ENV/bin/python.

The backbone is the trunk of the recipe in RUN/config.yaml, with the weights that seed S gives ours; views are as large
as the recipe's largest crop, and normalised as the recipe says. All else is LightlySSL's, with the settings that it
publishes for small data, in docs/source/getting_started/benchmarks/: those of imagenette_benchmark.py (results of May
2023), or for crops of less than 48 pixels those of cifar10_benchmark.py (results of March 2023: no blur, two views for
SwAV, smaller heads). Where they leave a choice:

- Input widths of heads follow our backbone; hidden and output widths are the scripts' numbers. SimCLR's hidden layer is
  as wide as the features in the Imagenette script, and 512 wide in the CIFAR-10 script.
- Learning rates follow the batch as in the scripts: in proportion, from 256 (Imagenette) or 128 images (CIFAR-10). In
  both, FastSiam's does not follow it.
- SwAV is the variant without a queue: 3,000 prototypes and six crops of half the side (Imagenette), or 512 prototypes
  (CIFAR-10). They are normalised in each step and never frozen.
- VICReg is in the Imagenette script only; for small crops it is that without blur. LARS is LightlySSL's copy of the one
  that the script takes from Lightning Bolts. The script warms up for 20 of 200 epochs: here it is a tenth of the steps.
- The scripts change the learning rate after each epoch, by a cosine over all of them; here it is each step, over all.
- Arguments that the scripts leave at their defaults are so here; peer.json says what they are in the version used.

Images seen are steps times batch, as near N as whole steps allow. An epoch leaves out what does not fill a batch; of a
set smaller than a batch, the batch is the largest power of two that fits. Training is in float32, on the CPU.

FOLDER gets trunk.safetensors, the backbone's tensors by our names, and last peer.json: settings, seconds of training
without evaluation, mean loss and kNN top-1 (k=20, per cent, the image's centre at the recipe's own size) at `--points`
evenly spaced points, of which the end is the last. An interrupted run starts over; one that is complete in FOLDER, with
the same arguments, is not done again. Exit code 5: a loss or a weight is not finite.
"""

import argparse
import copy
import inspect
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["LIGHTLY_DID_VERSION_CHECK"] = "True"  # or the import asks LightlySSL's server for a newer version

import lightly
import numpy as np
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.models import utils
from lightly.models.modules import heads
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    FastSiamTransform,
    SimCLRTransform,
    SwaVTransform,
    VICRegTransform,
)
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, Dataset

from swav.config import Recipe, settings_hash
from swav.data.images import Images, Unreadable
from swav.data.sources.open import labelled_splits, open_images
from swav.errors import ConfigError, DataError, MachineError, NumericsError, SwavError, did_you_mean
from swav.features import EvaluationView
from swav.files import replaced_durably, write_text_durably
from swav.network.heads import build_network
from swav.progress import Progress
from swav.training.auto import power_of_two
from swav.training.scoring import knn_top1
from swav.training.setup import read_settings
from swav.weights.encoder import Encoder

K = 20
SMALL = 48  # pixels; smaller crops get the settings for CIFAR-10
NUMBERS = ("lr", "momentum", "weight_decay", "betas", "trust_coefficient")  # of an optimiser, for peer.json
TRUNK, RESULT = "trunk.safetensors", "peer.json"


class Case(NamedTuple):
    """What a method is built for: a backbone of F features, the side of large crops [pixels], the images in a step."""

    trunk: nn.Module
    features: int
    size: int
    batch: int
    normalize: dict[str, list[float]]

    @property
    def small(self) -> bool:
        return self.size < SMALL

    @property
    def lr_factor(self) -> float:
        return self.batch / (128 if self.small else 256)

    @property
    def view(self) -> dict[str, Any]:
        """Arguments that all transforms have in common."""
        return {"normalize": self.normalize} | ({"gaussian_blur": 0.0} if self.small else {})


class Method(NamedTuple):
    """A method on a backbone.

    Attributes:
        transform: PIL image to a list of views [3, S, S].
        heads: what is trained on top of the backbone, by name.
        criterion: the loss of embeddings, as LightlySSL has it.
        loss: of the views of a batch, each [B, 3, S, S].
        optimizer: of backbone and heads.
        more: settings that the parts above do not show.
        schedule: makes the schedule of the learning rate from the optimiser and the number of steps.
    """

    transform: Callable[[Image.Image], list[Tensor]]
    heads: dict[str, nn.Module]
    criterion: nn.Module
    loss: Callable[[list[Tensor]], Tensor]
    optimizer: Optimizer
    more: dict[str, Any]
    schedule: Callable[[Optimizer, int], LRScheduler] = CosineAnnealingLR


def swav(case: Case) -> Method:
    crops: dict[str, Any] = {"crop_sizes": (case.size, case.size // 2), "crop_counts": (2, 6)}
    if case.small:  # crop_max_scales is 1 in the script by a default that this version refuses for one kind of crops
        crops = {"crop_sizes": (case.size,), "crop_counts": (2,), "crop_min_scales": (0.14,), "crop_max_scales": (1.0,)}
    head = heads.SwaVProjectionHead(case.features, 512 if case.small else 2048, 128)
    prototypes = heads.SwaVPrototypes(128, 512 if case.small else 3000)
    criterion = _made(SwaVLoss)

    def loss(views: list[Tensor]) -> Tensor:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(head(case.trunk(view)), dim=1)) for view in views]
        return criterion(scores[:2], scores[2:]).squeeze()

    return Method(
        _made(SwaVTransform, **crops, cj_strength=0.5, **case.view),
        {"projection_head": head, "prototypes": prototypes},
        criterion,
        loss,
        Adam(_parameters(case.trunk, head, prototypes), lr=1e-3 * case.lr_factor, weight_decay=1e-6),
        {"queue": 0, "frozen_prototypes_steps": prototypes.n_steps_frozen_prototypes},
    )


def simclr(case: Case) -> Method:
    transform = _made(SimCLRTransform, input_size=case.size, cj_strength=0.5, **case.view)
    head = heads.SimCLRProjectionHead(case.features, 512 if case.small else case.features, 128)
    return _of_pairs(case, transform, head, _made(NTXentLoss))


def byol(case: Case) -> Method:
    trunk, hidden, momentum = case.trunk, 1024 if case.small else 4096, 0.99
    head = heads.BYOLProjectionHead(case.features, hidden, 256)
    predictor = heads.BYOLPredictionHead(256, hidden, 256)
    teacher_trunk, teacher_head = copy.deepcopy(trunk), copy.deepcopy(head)
    utils.deactivate_requires_grad(teacher_trunk)
    utils.deactivate_requires_grad(teacher_head)
    criterion = _made(NegativeCosineSimilarity)

    def loss(views: list[Tensor]) -> Tensor:
        utils.update_momentum(trunk, teacher_trunk, m=momentum)
        utils.update_momentum(head, teacher_head, m=momentum)
        ours = [predictor(head(trunk(view))) for view in views]
        teachers = [teacher_head(teacher_trunk(view)) for view in views]
        return 0.5 * (criterion(ours[0], teachers[1]) + criterion(ours[1], teachers[0]))

    parts = {"projection_head": head, "prediction_head": predictor}
    optimizer = _sgd(case, head, predictor)
    return Method(_byol_views(case), parts, criterion, loss, optimizer, {"teacher_momentum": momentum})


def vicreg(case: Case) -> Method:
    transform = _made(VICRegTransform, input_size=case.size, cj_strength=0.5, **case.view)
    head = heads.BarlowTwinsProjectionHead(case.features, 2048, 2048)
    optimizer = LARS(_parameters(case.trunk, head), lr=0.3 * case.batch / 256, weight_decay=1e-4, momentum=0.9)

    def schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
        return CosineWarmupScheduler(optimizer, warmup_epochs=round(0.1 * steps), max_epochs=steps)

    more = {"script": "imagenette", "schedule": "linear for a tenth of the steps, then cosine to a thousandth"}
    pairs = _of_pairs(case, transform, head, _made(VICRegLoss))
    return pairs._replace(optimizer=optimizer, more=more, schedule=schedule)


def barlow_twins(case: Case) -> Method:
    head: heads.ProjectionHead = heads.BarlowTwinsProjectionHead(case.features, 2048, 2048)
    if case.small:  # two layers
        first = (case.features, 2048, nn.BatchNorm1d(2048), nn.ReLU(inplace=True))
        head = heads.ProjectionHead([first, (2048, 2048, None, None)])
    return _of_pairs(case, _byol_views(case), head, _made(BarlowTwinsLoss))


def fast_siam(case: Case) -> Method:
    head: heads.ProjectionHead = heads.SimSiamProjectionHead(case.features, 2048, 2048)
    if case.small:  # two layers, the last BatchNorm with weights
        first = (case.features, 2048, nn.BatchNorm1d(2048), nn.ReLU(inplace=True))
        head = heads.ProjectionHead([first, (2048, 2048, nn.BatchNorm1d(2048), None)])
    predictor = heads.SimSiamPredictionHead(2048, 512, 2048)
    criterion = _made(NegativeCosineSimilarity)

    def loss(views: list[Tensor]) -> Tensor:
        embeddings = torch.stack([head(case.trunk(view)) for view in views])
        predictions = [predictor(embedding) for embedding in embeddings]
        targets = (embeddings.sum(0) - embeddings).detach() / (len(views) - 1)  # of each view, the mean of the others
        return torch.stack([criterion(*pair) for pair in zip(predictions, targets, strict=True)]).mean()

    return Method(
        _made(FastSiamTransform, input_size=case.size, **case.view),
        {"projection_head": head, "prediction_head": predictor},
        criterion,
        loss,
        SGD(_parameters(case.trunk, head, predictor), lr=0.06, momentum=0.9, weight_decay=5e-4),
        {},
    )


METHODS: dict[str, Callable[[Case], Method]] = {
    "SwAV": swav,
    "SimCLR": simclr,
    "BYOL": byol,
    "VICReg": vicreg,
    "BarlowTwins": barlow_twins,
    "FastSiam": fast_siam,
}


def _of_pairs(case: Case, transform: Callable[..., Any], head: nn.Module, criterion: nn.Module) -> Method:
    """A method that compares the embeddings of two views. Each passes on its own: BatchNorm sees one at a time."""

    def loss(views: list[Tensor]) -> Tensor:
        return criterion(*(head(case.trunk(view)) for view in views))

    return Method(transform, {"projection_head": head}, criterion, loss, _sgd(case, head), {})


def _byol_views(case: Case) -> Any:
    first = _made(BYOLView1Transform, input_size=case.size, **case.view)
    second = _made(BYOLView2Transform, input_size=case.size, **case.view)
    return _made(BYOLTransform, view_1_transform=first, view_2_transform=second)


def _sgd(case: Case, *parts: nn.Module) -> SGD:
    return SGD(_parameters(case.trunk, *parts), lr=0.06 * case.lr_factor, momentum=0.9, weight_decay=5e-4)


def _parameters(*parts: nn.Module) -> list[nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters()]


def _made(kind: Callable[..., Any], **options: Any) -> Any:
    """Make a transform or a loss that knows its options, given or default, as `made_with`."""
    bound = inspect.signature(kind).bind(**options)
    bound.apply_defaults()
    made = kind(**options)
    made.made_with = {"name": kind.__name__} | {
        key: getattr(value, "made_with", value) for key, value in bound.arguments.items()
    }
    return made


def settings_of(method: Method, case: Case) -> dict[str, Any]:
    """What peer.json says of a method: read from its parts, so that it is what was used."""
    defaults = method.optimizer.defaults
    return {
        "script": "cifar10" if case.small else "imagenette",
        "size": case.size,
        "views": method.transform.made_with,  # type: ignore[attr-defined]
        "heads": {name: [_layer(part) for part in _leaves(head)] for name, head in method.heads.items()},
        "loss": method.criterion.made_with,
        "optimizer": {"name": type(method.optimizer).__name__}
        | {key: defaults[key] for key in NUMBERS if key in defaults},
        "schedule": "cosine to 0",
        "precision": "float32",
    } | method.more


def _leaves(head: nn.Module) -> list[nn.Module]:
    return [module for module in head.modules() if not list(module.children())]


def _layer(module: nn.Module) -> str:
    if not isinstance(module, nn.Linear):
        return type(module).__name__
    return f"Linear {module.in_features}-{module.out_features}" + (" without bias" if module.bias is None else "")


class Views(Dataset[list[Tensor]]):
    """The views of each image, by a transform of LightlySSL's."""

    def __init__(self, images: Images, transform: Callable[[Image.Image], list[Tensor]]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.images.read(i)))


def batches(views: Views, batch: int, steps: int, seed: int, workers: int) -> Iterator[list[Tensor]]:
    """Yield the views of `steps` batches, each a list of [B, 3, S, S]; every epoch has an order of its own."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(views, batch, shuffle=True, drop_last=True, num_workers=workers, generator=order)
    for found in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
        yield [view.contiguous(memory_format=torch.channels_last) for view in found]  # as our backbone's weights


class Trained(NamedTuple):
    """Seconds without evaluation; kNN top-1, and mean loss since the point before, each after so many images."""

    seconds: float
    curve: list[tuple[int, float]]
    loss: list[tuple[int, float]]


def train(
    method: Method, views: Views, batch: int, steps: int, score: Callable[[], float], wanted: argparse.Namespace
) -> Trained:
    """Train for some steps, and score at some points and at the end.

    Raises:
        NumericsError: a loss is not finite.
    """
    schedule = method.schedule(method.optimizer, steps)
    due = {round(steps * point / wanted.points) for point in range(1, wanted.points)} | {steps}
    trained = Trained(0.0, [], [])
    losses: list[float] = []
    with Progress(f"{wanted.method}, seed {wanted.seed}", steps * batch) as progress:
        began = time.perf_counter()
        for step, found in enumerate(batches(views, batch, steps, wanted.seed, wanted.workers), 1):
            method.optimizer.zero_grad()
            loss = method.loss(found)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NumericsError(f"{wanted.method}: the loss of step {step}/{steps} is {losses[-1]}")
            loss.backward()
            method.optimizer.step()
            schedule.step()
            images, seconds = step * batch, trained.seconds + time.perf_counter() - began
            progress.update(images, f"loss {losses[-1]:.4f}  {images / seconds:.1f} images/s")
            if step in due:
                top1 = score()
                progress.say(f"{images} images: kNN top-1 {top1:.2f} (k={K})")
                trained.curve.append((images, round(top1, 4)))
                trained.loss.append((images, sum(losses) / len(losses)))
                trained, losses, began = trained._replace(seconds=seconds), [], time.perf_counter()
    return trained


def settled(config: Path, seed: int) -> Recipe:
    """Read a run's settings.

    Raises:
        ConfigError: they are unreadable, still at `auto`, or for grey images, which LightlySSL does not make.
    """
    try:
        recipe = read_settings(config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config}: expected the settings of a run, found none that can be read ({error})") from None
    if recipe.left_at_auto("crops") or recipe.left_at_auto("backbone"):
        raise ConfigError(f"{config}: expected the settings of a run, found crops or backbone at `auto`")
    if recipe.in_channels != 3:
        raise ConfigError(f"{config}: expected in_channels=3, found {recipe.in_channels}; train ours in colour")
    return recipe.model_copy(update={"seed": seed})


def run(wanted: argparse.Namespace) -> str:
    """Train and write FOLDER, unless that is done; return a line on it.

    Raises:
        SwavError: an argument or the data are no good, or a number is not finite.
    """
    if wanted.method not in METHODS:
        hint = did_you_mean(wanted.method, METHODS)
        raise ConfigError(f"{wanted.method}: expected one of the methods {', '.join(METHODS)}{hint}")
    recipe, images = settled(wanted.config, wanted.seed), open_images(wanted.data)
    keys = ("method", "images", "seed", "batch", "points", "threads", "workers")
    arguments = {key: getattr(wanted, key) for key in keys}
    arguments |= {"config": settings_hash(recipe), "data": images.fingerprint}
    result = wanted.out / RESULT
    if result.exists():
        if json.loads(result.read_text(encoding="utf-8")).get("arguments") != arguments:
            raise ConfigError(f"{wanted.out}: holds a run with other arguments; choose another --out, or remove it")
        return "done already"
    if len(images) < 2:
        raise DataError(f"{wanted.data}: expected at least 2 images, found {len(images)}")
    batch = wanted.batch if len(images) >= wanted.batch else power_of_two(len(images))
    steps = max(1, round(wanted.images / batch))
    torch.set_num_threads(wanted.threads)
    splits = labelled_splits(wanted.data)
    wanted.out.mkdir(parents=True, exist_ok=True)

    network = build_network(recipe)
    torch.manual_seed(wanted.seed)  # of heads and of most of the views; blur and solarisation draw from NumPy
    np.random.seed(wanted.seed)
    normalize = {"mean": list(recipe.mean), "std": list(recipe.std)}
    case = Case(network.trunk, network.num_features, max(recipe.view_sizes), batch, normalize)
    method = METHODS[wanted.method](case)
    settings, view = settings_of(method, case), EvaluationView("centre", recipe.resolution)

    def score() -> float:
        encoder = Encoder(network, recipe, wanted.method)  # in eval mode, and the network with it
        top1, _ = knn_top1(encoder, *splits, view, K, torch.device("cpu"), wanted.workers)
        network.train()
        return top1

    trained = train(method, Views(images, method.transform), batch, steps, score, wanted)
    tensors = {name: tensor.contiguous() for name, tensor in network.trunk.state_dict().items()}
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise NumericsError(f"{wanted.method}: not finite after the last step: {', '.join(broken[:3])}")
    with replaced_durably(wanted.out / TRUNK) as beside:
        save_file(tensors, beside)
    content = {"method": wanted.method, "library": f"lightly {lightly.__version__}", "settings": settings}
    content |= {"images": steps * batch, "batch": batch, "steps": steps, "seed": wanted.seed, **trained._asdict()}
    write_text_durably(result, json.dumps(content | {"arguments": arguments}, indent=1) + "\n")
    return (
        f"{steps * batch} images, {steps * batch / trained.seconds:.1f} images/s, kNN top-1 {trained.curve[-1][1]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", help=", ".join(METHODS))
    parser.add_argument("--data", required=True, help="what swav trains on: a folder, a list or CIFAR")
    parser.add_argument("--images", type=_positive, required=True, help="how many are seen, over all epochs")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of a run of ours")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=_positive, default=128)
    parser.add_argument("--points", type=_positive, default=5, help="of the kNN curve; the last is the end")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make views; 0: this one")
    wanted = parser.parse_args()
    try:
        print(f"{wanted.out}: {run(wanted)}")
    except (SwavError, Unreadable, OSError) as error:
        kind = DataError if isinstance(error, Unreadable) else MachineError
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, SwavError) else kind.exit_code)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return number


if __name__ == "__main__":
    main()
