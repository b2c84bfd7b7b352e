"""Views per second and core: ours, beside the published definition (Pillow, crop by crop, by torchvision's transforms).

    python benchmarks/views.py FOLDER                             2x224 + 6x96, the paper's
    python benchmarks/views.py FOLDER --crops 2x64 4x32           others, with the same scales
    python benchmarks/views.py FOLDER --no-blur

FOLDER holds images in any tree; 64 of them are used. Every way starts from the files (in the system's cache), runs in
one thread, and is measured in processor time, so that a busy machine disturbs little; the ways take turns, medians are
shown. Results with their machine: benchmarks/results/views.md.

    published    decode, then per crop: RandomResizedCrop, flip, ColorJitter, grey, blur, ToTensor, Normalize
    cpu          ours where a CPU trains: all of that, normalised
    device       ours where a GPU trains: crops only, as uint8 (flip, colour, blur and the rest happen there)
    decode       what no way can avoid
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from swav.config import Crop, Recipe
from swav.data.augment.crops import to_input
from swav.data.images import Images
from swav.data.loader import Loader
from swav.data.sources.open import open_images
from swav.views import view_spec

SCALES = ((0.14, 1.0), (0.05, 0.14))


def published(images: Images, recipe: Recipe) -> Callable[[], object]:
    low, high = recipe.blur_sigma

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(low, high))))

    pipelines = [
        transforms.Compose(
            [
                transforms.RandomResizedCrop(crop.size, scale=crop.scale),
                transforms.RandomHorizontalFlip(recipe.flip),
                transforms.RandomApply([transforms.ColorJitter(*recipe.jitter)], p=recipe.jitter_probability),
                transforms.RandomGrayscale(recipe.grayscale),
                transforms.RandomApply([blur], p=recipe.blur),
                transforms.ToTensor(),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )
        for crop in recipe.crops
        for _ in range(crop.count)
    ]

    def run() -> None:
        views = []
        for i in range(len(images)):
            image = Image.open(images.root / images.name(i)).convert("RGB")
            views.append([pipeline(image) for pipeline in pipelines])
        for same in zip(*views, strict=True):
            torch.stack(same)

    return run


def ours(images: Images, recipe: Recipe, on_device: bool) -> Callable[[], object]:
    epoch = 0
    steps = len(images) // recipe.batch

    def run() -> None:
        nonlocal epoch
        first, epoch = epoch * steps, epoch + 1
        loader = Loader(
            images,
            view_spec(recipe),
            batch=recipe.batch,
            workers=0,
            rank=0,
            world_size=1,
            start_step=first,
            total_steps=first + steps,
            steps_per_epoch=steps,
            on_device=on_device,
        )
        for batch in loader:
            if not on_device:
                for views in batch.views:
                    to_input(views, recipe.mean, recipe.std)

    return run


def decode(images: Images) -> Callable[[], object]:
    def run() -> None:
        for i in range(len(images)):
            images.read(i)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", nargs="+", default=["2x224", "6x96"], help="COUNTxSIZE, the large ones first")
    parser.add_argument("--no-blur", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    torch.manual_seed(0)
    sizes = [word.split("x") for word in arguments.crops]
    crops = tuple(
        Crop(count=int(count), size=int(size), scale=scale) for (count, size), scale in zip(sizes, SCALES, strict=False)
    )
    images = open_images(arguments.folder)
    every = max(1, len(images) // arguments.images)
    images = images.select(range(0, len(images), every)[: arguments.images])
    recipe = Recipe(crops=crops, workers=0, batch=min(32, len(images)), blur=0 if arguments.no_blur else 0.5)
    images = images.select(range(len(images) // recipe.batch * recipe.batch))

    ways = {
        "published": published(images, recipe),
        "cpu": ours(images, recipe, on_device=False),
        "device": ours(images, recipe, on_device=True),
        "decode": decode(images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if round_number:  # the first one warms up
                seconds[name].append(time.process_time() - began)

    print(f"{' + '.join(arguments.crops)}{', no blur' if arguments.no_blur else ''}; {len(images)} images")
    print("way         ms/image   images/s/core   times the published")
    for name, times in seconds.items():
        per_image = statistics.median(times) / len(images)
        ratio = statistics.median(a / b for a, b in zip(seconds["published"], times, strict=True))
        print(f"{name:<10} {1e3 * per_image:9.3f} {1 / per_image:15.0f} {ratio:21.2f}")


if __name__ == "__main__":
    main()
