"""How well near-duplicates are found: copies that were made of real images, and strangers that are nearest to each other.

Run: python benchmarks/near_duplicates.py --weights W --size S --data LABELLED [--images 1000] [--copies 80]

Per kind of copy the share that is found by features (cosine), by pixels (correlation), and by both, as swav/evaluation/near_duplicates.py
decides. Of strangers (every image with its two nearest of the others) how many pass for copies, with their names: to be looked at.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from swav.data.augment.crops import val_view
from swav.data.sources.open import open_images
from swav.evaluation.near_duplicates import COSINE, NEAREST, are_copies, thumbnail
from swav.features import features_of
from swav.weights.encoder import load


def jpeg(image: Image.Image, quality: int = 85) -> Image.Image:
    """The image, written and read."""
    written = io.BytesIO()
    image.save(written, "JPEG", quality=quality)
    return Image.open(io.BytesIO(written.getvalue())).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """A part of both sides, off the middle."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = (image.width - width) // 3, (image.height - height) // 3
    return jpeg(image.crop((left, top, left + width, top + height)))


COPIES = {
    "JPEG 90": lambda image: jpeg(image, 90),
    "JPEG 40": lambda image: jpeg(image, 40),
    "half the size": lambda image: jpeg(image.resize((image.width // 2, image.height // 2))),
    "cropped by 5 %": lambda image: cropped(image, 0.95),
    "cropped by 10 %": lambda image: cropped(image, 0.9),
    "cropped by 20 %": lambda image: cropped(image, 0.8),
    "brighter by 20 %": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)),
    "grey": lambda image: jpeg(ImageOps.grayscale(image).convert("RGB")),
    "mirrored": lambda image: jpeg(ImageOps.mirror(image)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=80)
    asked = parser.parse_args()
    encoder, images, rng = load(asked.weights), open_images(asked.data, "train"), np.random.default_rng(0)
    images = images.select(rng.permutation(len(images))[: asked.images])
    pictures = [Image.fromarray(images.read(i)) for i in range(len(images))]

    def features(some: list[Image.Image]) -> np.ndarray:
        views = torch.from_numpy(np.stack([val_view(np.asarray(one), asked.size) for one in some]))
        return features_of(encoder, views, torch.device("cpu")).numpy()

    found = np.concatenate([features(pictures[i : i + 64]) for i in range(0, len(pictures), 64)])
    mean, scale = found.mean(axis=0), found.std(axis=0)
    scale[scale <= 1e-6 * np.abs(mean) + 1e-30] = 1

    def units(some: np.ndarray) -> np.ndarray:
        some = (some - mean) / scale
        return some / np.linalg.norm(some, axis=1, keepdims=True)

    small = [thumbnail(np.asarray(one)) for one in pictures]
    originals = rng.permutation(len(pictures))[: asked.copies]
    print(f"{asked.weights}, {asked.data}, {len(pictures)} images, copies of {len(originals)}\n")
    print(f"| copy | cosine above {COSINE} | pixels agree | both |\n|---|---:|---:|---:|")
    for kind, made in COPIES.items():
        copies = [made(pictures[i]) for i in originals]
        near = (units(features(copies)) * units(found[originals])).sum(axis=1) > COSINE
        alike = np.array(
            [are_copies(small[i], thumbnail(np.asarray(copy))) for i, copy in zip(originals, copies, strict=True)]
        )
        print(f"| {kind} | {near.mean():.2f} | {alike.mean():.2f} | {(near & alike).mean():.2f} |")
    cosines = units(found) @ units(found).T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1)[:, :NEAREST]
    passed = {
        frozenset((i, int(j)))
        for i in range(len(small))
        for j in nearest[i]
        if cosines[i, j] > COSINE and are_copies(small[i], small[j])
    }
    print(f"\nstrangers that pass for copies: {len(passed)} pairs of {nearest.size}")
    for pair in passed:
        print("  " + " = ".join(images.name(i) for i in pair))


if __name__ == "__main__":
    main()
