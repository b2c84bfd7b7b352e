"""The classification benchmarks once more, after their sources, with nothing of ours: Pillow, torchvision, PyTorch, NumPy,
scikit-learn. Oracle of test_oracles_frozen.py and test_oracles_trained.py.

Of ours is only `uniforms` and `order`: the random numbers, whose law test_oracles_trained.py checks; and `folds_of`: see test_own.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms import CenterCrop, Compose, Normalize, RandomResizedCrop, Resize, ToTensor
from torchvision.transforms import functional as pillow

from swav.data.augment.crops import generator
from swav.evaluation.own import folds_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))  # 19
SIZE, SHORT = 56, 64  # as 224 and 256
NORMALISE = Compose([ToTensor(), Normalize(MEAN, STD)])


# -- network


def trunk(seed: int = 0) -> ResNet:
    """A ResNet-18, weights at random, statistics as after training, and features of about a trained one's length."""
    torch.manual_seed(seed)
    network = ResNet(BasicBlock, [2, 2, 2, 2])
    network.fc = nn.Identity()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, 3, SIZE, SIZE))
        for norm in norms[-5:]:
            norm.weight.fill_(0.1)
        norms[-1].bias.fill_(-0.15)  # few features are not zero: images differ
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def opened(paths: Sequence[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


# -- views


def centre(image: Image.Image) -> Tensor:
    return NORMALISE(CenterCrop(SIZE)(Resize(SHORT)(image)))  # type: ignore[no-any-return]


def squeezed(image: Image.Image) -> Tensor:
    return NORMALISE(Resize((SIZE, SIZE))(Resize(SHORT)(image)))  # type: ignore[no-any-return]


def uniforms(seed: int, epoch: int, sample: int) -> np.ndarray:
    """35 numbers: area and shape of ten tries, place, flip, whether to jitter, order of four operations, their factors ..."""
    return generator(seed, epoch, "views", sample).random(35)


def crop_and_flip(image: Image.Image, u: np.ndarray, scale: tuple[float, float] = (0.08, 1.0)) -> Image.Image:
    """RandomResizedCrop and RandomHorizontalFlip by these numbers."""
    width, height = image.size
    for area, shape in zip(u[:10], u[10:20], strict=True):
        pixels = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = int(u[20] * (height - high + 1)), int(u[21] * (width - wide + 1))
            break
    else:  # as RandomResizedCrop, whatever its numbers
        top, left, high, wide = RandomResizedCrop.get_params(image, [2.0, 2.0], [3 / 4, 4 / 3])
    cut = pillow.resized_crop(image, top, left, high, wide, [SIZE, SIZE])
    return pillow.hflip(cut) if u[22] < 0.5 else cut  # type: ignore[no-any-return]


def training_view(image: Image.Image, u: np.ndarray, _: np.ndarray) -> Tensor:
    return NORMALISE(crop_and_flip(image, u))  # type: ignore[no-any-return]


def jittered_and_lit_view(image: Image.Image, u: np.ndarray, normals: np.ndarray) -> Tensor:
    """ColorJitter(.4, .4, .4) and AlexNet's lighting with .1."""
    cut = crop_and_flip(image, u)
    operations = (pillow.adjust_brightness, pillow.adjust_contrast, pillow.adjust_saturation)
    for place in u[24:28].argsort():
        if place < 3:
            cut = operations[place](cut, 0.6 + 0.8 * u[28 + place])
    values, vectors = (
        [0.2175, 0.0188, 0.0045],
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    )
    light = np.array(vectors) @ (0.1 * normals * values)
    return Normalize(MEAN, STD)(ToTensor()(cut) + torch.tensor(light, dtype=torch.float32)[:, None, None])  # type: ignore[no-any-return]


def places_view(image: Image.Image, u: np.ndarray, _: np.ndarray) -> Tensor:
    """Resize, CenterCrop, RandomCrop, RandomHorizontalFlip."""
    square = CenterCrop(SHORT)(Resize(SHORT)(image))
    cut = pillow.crop(square, int(u[20] * (SHORT - SIZE + 1)), int(u[21] * (SHORT - SIZE + 1)), SIZE, SIZE)
    return NORMALISE(pillow.hflip(cut) if u[22] < 0.5 else cut)  # type: ignore[no-any-return]


# -- frozen features


@torch.no_grad()
def stages(network: ResNet, images: Tensor) -> list[Tensor]:
    """Five maps, pooled to 12, 6, 4, 3, 2 a side (or to their own side, where that is less)."""
    maps = [network.relu(network.bn1(network.conv1(images)))]
    x = network.maxpool(maps[0])
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps.append(x := layer(x))
    return [
        nn.AdaptiveAvgPool2d(min(side, x.shape[-1]))(x).flatten(1)
        for x, side in zip(maps, (12, 6, 4, 3, 2), strict=True)
    ]


Answer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of features and labels, and of what is asked


def own(
    answer: Answer, bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray, in_folds: bool
) -> tuple[float, float]:
    """Protocol own: share of right answers, and its spread [%]."""
    folds = folds_of(labels, 0)
    if in_folds:
        found = np.array(
            [answer(bank[folds != f], labels[folds != f], row[None])[0] for f, row in zip(folds, bank, strict=True)]
        )
        right = found == labels
        parts = [right[folds == f].mean() for f in range(5)]
        return 100 * float(right.mean()), 100 * float(np.std(parts, ddof=1))
    parts = [(answer(bank[folds != f], labels[folds != f], queries) == truth).mean() for f in range(5)]
    return 100 * float((answer(bank, labels, queries) == truth).mean()), 100 * float(np.std(parts, ddof=1))


def regression(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Logistic regression in float64, its cost by five folds. (Of a part it is chosen anew here: ours keeps that of the whole.)"""
    key = bank.tobytes()
    if key not in _fitted:
        folds, right = folds_of(labels, 0), dict[float, int]()
        for cost in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
            machine = make_pipeline(StandardScaler(), LogisticRegression(C=cost, max_iter=2000, solver="newton-cg"))
            right[cost] = sum(
                int(
                    (
                        machine.fit(bank[folds != f], labels[folds != f]).predict(bank[folds == f])
                        == labels[folds == f]
                    ).sum()
                )
                for f in range(5)
            )
        best = next(cost for cost, count in right.items() if count == max(right.values()))
        machine = make_pipeline(StandardScaler(), LogisticRegression(C=best, max_iter=2000, solver="newton-cg"))
        _fitted[key] = machine.fit(bank.astype(float), labels)
    return np.asarray(_fitted[key].predict(queries.astype(float)))


_fitted: dict[bytes, Any] = {}


def right(ranked: np.ndarray, labels: np.ndarray, k: int) -> float:
    return 100 * float(np.mean([label in list(row[:k]) for row, label in zip(ranked, labels, strict=True)]))


def knn(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, classes: int) -> np.ndarray:
    """Classes of each query, most voted first; -1 for those without a vote."""
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    ranked = []
    for cosines in queries @ bank.T:
        votes = np.zeros(classes)
        for i in np.argsort(-cosines)[:k]:
            votes[labels[i]] += math.exp(cosines[i] / 0.07)
        ranked.append([c if votes[c] else -1 for c in np.argsort(-votes)])
    return np.array(ranked)


# -- VOC's classifiers


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / (np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) + 1e-5)
    return found


def envelope(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of VOC 2010 and later."""
    hits = truth[np.argsort(-scores)]
    recall = np.concatenate([[0.0], np.cumsum(hits) / hits.sum(), [1.0]])
    precision = np.concatenate([[0.0], np.cumsum(hits) / np.arange(1, len(hits) + 1), [0.0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return float(((recall[1:] - recall[:-1]) * precision[1:]).sum())


def machine(x: np.ndarray, signs: np.ndarray, cost: float) -> LinearSVC:
    """The primal problem, which has one optimum, whoever finds it."""
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-7, max_iter=10_000).fit(x, signs)


def turned(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Rows in the space that training rows span: the same machines of fewer numbers."""
    axes = np.linalg.qr(train.T)[0]
    return [rows @ axes for rows in (train, *others)]


def svm(train: np.ndarray, marks: np.ndarray, test: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision over three folds, and on test: [costs, classes] each."""
    x, scored = turned(unit(train), unit(test))
    validated, precision = np.zeros((2, len(COSTS), marks.shape[1]))
    for c, column in enumerate(marks.T):
        signs, kept = np.where(column == 1, 1, -1), truth[:, c] != 0  # difficult ones are negatives, and not scored
        folds = list(StratifiedKFold(3).split(x, signs))
        for i, cost in enumerate(COSTS):
            for fold, held in folds:
                found = machine(x[fold], signs[fold], cost).decision_function(x[held])
                validated[i, c] += average_precision_score(signs[held] == 1, found) / 3
            found = machine(x, signs, cost).decision_function(scored)[kept]
            precision[i, c] = envelope(found, truth[kept, c] == 1)
    return validated, precision


def low_shot(train: np.ndarray, samples: Sequence[np.ndarray], test: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean average precision [costs, samples]; a sample holds 1, 0 (without the class) and -1 (not in it)."""
    x, scored = turned(unit(train), unit(test))
    found = np.zeros((len(COSTS), len(samples)))
    for s, sample in enumerate(samples):
        for c, column in enumerate(sample.T):
            rows, kept = column >= 0, truth[:, c] != 0
            for i, cost in enumerate(COSTS):
                decision = machine(x[rows], np.where(column[rows] == 1, 1, -1), cost).decision_function(scored)
                found[i, s] += envelope(decision[kept], truth[kept, c] == 1) / sample.shape[1]
    return found


# -- layers that are trained


class Heads(nn.Module):
    """BatchNorm without affine and a linear layer on each stage."""

    def __init__(self, channels: Sequence[int], values: Sequence[int], classes: int, seed: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(count, affine=False) for count in channels)
        self.layers = nn.ModuleList(nn.Linear(count, classes) for count in values)
        random = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01, generator=random)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            layer(norm(x.view(len(x), norm.num_features, -1)).flatten(1))  # type: ignore[call-overload]
            for x, norm, layer in zip(maps, self.norms, self.layers, strict=True)
        ]


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Sequence[Image.Image],
    labels: np.ndarray,
    view: Callable[[Image.Image, np.ndarray, np.ndarray], Tensor],
    seen: Callable[[Tensor], Any],
    *,
    batch: int,
    epochs: int,
    rates: Callable[[int], list[float]],
) -> Iterator[float]:
    """Trains a model of one or several outputs; yields the mean over images of the summed losses of each epoch."""
    for epoch in range(epochs):
        order = generator(0, epoch, "order").permutation(len(images))
        for group, rate in zip(optimizer.param_groups, rates(epoch), strict=True):
            group["lr"] = rate
        total = 0.0
        for first in range(0, len(images), batch):
            chosen = order[first : first + batch].tolist()
            views = [
                view(images[i], uniforms(0, epoch, i), generator(0, epoch, "lighting", i).standard_normal(3))
                for i in chosen
            ]
            outputs = model.train()(seen(torch.stack(views)))
            target = torch.from_numpy(labels[chosen])
            loss = sum(nn.functional.cross_entropy(output, target) for output in outputs)
            assert isinstance(loss, Tensor)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        yield total / len(images)


@torch.no_grad()
def ranked(model: nn.Module, seen: Callable[[Tensor], Any], images: Sequence[Image.Image]) -> list[np.ndarray]:
    """Classes of each image by each output, best first."""
    outputs = model.eval()(seen(torch.stack([centre(image) for image in images])))
    return [output.argsort(dim=1, descending=True).numpy() for output in outputs]
