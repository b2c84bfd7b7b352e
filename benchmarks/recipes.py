"""What each published recipe comes to: size of its network beside the published one, steps and learning rates on the data
set that it is for, and one step of training made on this machine at a small batch.

Run: python benchmarks/recipes.py [--batch 4] [--out benchmarks/results/recipes.md]

The step is the whole path: drawn images, views, codes, loss, optimiser, checkpoint. Networks above 200 million parameters
are built without memory (torch's meta device), and make no step.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch

from swav.config import Recipe
from swav.data.synthetic.writers import write_shapes
from swav.network.backbone import count_parameters
from swav.network.heads import SwavNetwork, build_network
from swav.recipe_files import load_recipe
from swav.training.auto import derive
from swav.training.choices import MachineAndData
from swav.training.loop import pretrain
from swav.training.optim import learning_rate

IMAGENET, CIFAR, IMAGENET100, IMAGENETTE = 1_281_167, 50_000, 126_689, 9_469
PAGE = "resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96"
IMAGES = {
    **dict.fromkeys(("swav_100ep", "swav_200ep", "swav_400ep", "swav_800ep", "swav_400ep_2x224"), IMAGENET),
    **dict.fromkeys(("swav_200ep_bs256", "swav_400ep_bs256", PAGE), IMAGENET),
    **dict.fromkeys(("swav_RN50w2_400ep", "swav_RN50w4_400ep", "swav_RN50w5_400ep"), IMAGENET),
    **dict.fromkeys(("cifar10", "cifar100"), CIFAR),
    "imagenet100": IMAGENET100,
    "imagenette_r18": IMAGENETTE,
}
# By width, in millions, as the original's README and the paper give them: of width 1 with head and prototypes, else the trunk.
PUBLISHED = {1: 28.4, 2: 94, 4: 375, 5: 586}
TOO_LARGE = 200e6

HEAD = """# What each published recipe comes to

Command: `python benchmarks/recipes.py --batch {batch}`, torch {torch}. "all" is backbone, head and prototypes; published counts are of
all for the ResNet-50, of the backbone for wide ones (the original's README and the paper); the others have none. Steps and
learning rates (of the first and the last step) are those on ImageNet ({imagenet:,} images), CIFAR ({cifar:,}), ImageNet-100 ({imagenet100:,})
or Imagenette ({imagenette:,}). "one step": the loss of one step at batch {batch} on drawn images, by the whole path on a CPU; before
anything is learned it is a little above ln K, where K is the number of prototypes.

| recipe | backbone [M] | all [M] | published [M] | images | steps an epoch | steps | first rate | last rate | one step | ln K |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def network_of(recipe: Recipe) -> SwavNetwork:
    with torch.device("meta"):
        return build_network(recipe)


def one_step(name: str, recipe: Recipe, data: Path, batch: int) -> float:
    """Loss of one step of the recipe at a small batch, its queue as long as that."""
    with tempfile.TemporaryDirectory() as out:
        run = pretrain(
            name,
            out=Path(out) / "run",
            data=str(data),
            batch=batch,
            epochs=1,
            warmup_epochs=0,
            queue_length=batch if recipe.queue_length else 0,
            queue_start_epoch=0,
            knn_every_epochs=0,
            workers=0,
            log_every_steps=1,
        )
        loss: float = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        return loss


def row(name: str, data: Path, batch: int) -> str:
    images = IMAGES[name]
    recipe, _ = derive(load_recipe(name, {"data": "-"}), MachineAndData(images))
    network = network_of(recipe)
    trunk, whole = count_parameters(network.trunk), count_parameters(network)
    published = str(PUBLISHED[round(recipe.width)]) if recipe.backbone == "resnet50" else "-"
    steps = images // recipe.batch
    total = steps * recipe.epochs
    rates = [f"{learning_rate(recipe, step, steps):.4g}" for step in (0, total - 1)]
    loss = "built only" if trunk > TOO_LARGE else f"{one_step(name, recipe, data, batch):.3f}"
    cells = (name, f"{trunk / 1e6:.1f}", f"{whole / 1e6:.1f}", published, f"{images:,}", f"{steps:,}", f"{total:,}")
    return f"| {' | '.join((*cells, *rates, loss, f'{math.log(recipe.prototypes):.3f}'))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "recipes.md")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shapes"
        write_shapes(data, "imagenet", train=max(10, wanted.batch), val=10, size=64, seed=0)
        few = data / "few"
        few.mkdir()
        for i, picture in enumerate(sorted((data / "train").rglob("*.png"))[: wanted.batch]):
            picture.rename(few / f"{i}.png")
        rows = [row(name, few, wanted.batch) for name in IMAGES]
    head = HEAD.format(
        batch=wanted.batch,
        torch=torch.__version__,
        imagenet=IMAGENET,
        cifar=CIFAR,
        imagenet100=IMAGENET100,
        imagenette=IMAGENETTE,
    )
    wanted.out.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    print(wanted.out)


if __name__ == "__main__":
    main()
