"""What the demo's weights are worth on drawn shapes that they never saw: every benchmark, against random weights of the same
network.

Run: python benchmarks/shapes.py [--seeds 0 1 2] [--keep FOLDER] [--out benchmarks/results/shapes.md]

For each seed the recipe `demo` is trained on shapes of seed 0 (a seed changes initial weights, order and views), then scored
beside random weights by protocol smoke at 64 pixels, the benchmarks' own seed being that seed too. They read shapes of
seed 1000 in the layouts of ImageNet, VOC 2007, Places205 and iNaturalist, 2,000 + 500 images each. Pixels: the vote of the kNN
on the raw images. About 10 minutes a seed on 2 cores; what is in --keep is not done again.
"""

import argparse
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from swav import demo
from swav.data.images import Images
from swav.data.sources.open import labelled_splits
from swav.data.synthetic.writers import write_shapes
from swav.evaluation.runner import bench
from swav.metrics import knn_vote, top_k_accuracy
from swav.training.loop import pretrain

TRAINED_ON, SCORED_ON, K = 0, 1000, 20
HOMES = {"imagenet": "imagenet", "voc": "VOCdevkit", "places205": "Places205", "inat18": "iNaturalist2018"}
HEADLINES = demo.HEADLINES | {"places205": "top-1 best layer", "inat18": "top-1 best layer"}


def scores(run: Path, data: Path, seed: int) -> dict[str, tuple[float, float]]:
    """Of random and trained weights [%], per benchmark."""
    weights = [f"random:{run}", str(run)]
    content = bench(list(HEADLINES), weights=weights, data=data, out=run, **demo.SETTINGS | {"seed": seed})
    found = {(row.bench, row.metric, row.weights): row.value for row in content.results}
    return {
        name: (found[name, metric, weights[0]], found[name, metric, weights[1]]) for name, metric in HEADLINES.items()
    }


def pixels_top1(data: Path) -> float:
    """kNN top-1 of the raw pixels, as unit vectors [%]."""

    def flat(images: Images) -> torch.Tensor:
        pixels: NDArray[np.float32] = np.stack([images.read(i).ravel() for i in range(len(images))]).astype(np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(pixels), dim=1)

    bank, queries = labelled_splits(data)
    assert bank.labels is not None and queries.labels is not None
    labels, truth = torch.from_numpy(bank.labels), torch.from_numpy(queries.labels)
    ranked = knn_vote(flat(bank), labels, flat(queries), [K], 10, 0.07)
    return top_k_accuracy(ranked[K], truth, 1)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def line(name: str, pairs: list[tuple[float, float]]) -> str:
    random, trained = [before for before, _ in pairs], [after for _, after in pairs]
    gains = [after - before for before, after in pairs]
    widest = max(statistics.stdev(values) if len(values) > 1 else 0.0 for values in (random, trained, gains))
    verdict = "yes" if statistics.mean(gains) > 2 * widest else "no"
    each = ", ".join(f"{before:.1f} {after:.1f}" for before, after in pairs)
    return (
        f"| {name} | {HEADLINES[name]} | {spread(random)} | {spread(trained)} | {spread(gains)} | {verdict} | {each} |"
    )


@contextmanager
def folder_for_all(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="folder for data and runs; none: a temporary one")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    arguments = parser.parse_args()
    with folder_for_all(arguments.keep) as folder:
        write_shapes(folder / "trained", seed=TRAINED_ON)
        for layout, home in HOMES.items():
            write_shapes(folder / "scored" / home, layout, seed=SCORED_ON)
        found = []
        for seed in arguments.seeds:
            run = pretrain("demo", out=folder / f"run{seed}", data=str(folder / "trained"), seed=seed)
            found.append(scores(run, folder / "scored", seed))
        text = "\n".join(
            [
                f"Recipe demo, trained on shapes of seed {TRAINED_ON}, scored on shapes of seed {SCORED_ON}, protocol smoke at 64 pixels; "
                f"seeds {arguments.seeds}; mean ± standard deviation [%]. kNN top-1 of raw pixels: "
                f"{pixels_top1(folder / 'scored' / 'imagenet'):.1f}.",
                "",
                "| benchmark | metric | random weights | SwAV | gain | gain above twice the widest spread | each seed: random, SwAV |",
                "|---|---|---|---|---|---|---|",
                *(line(name, [pairs[name] for pairs in found]) for name in HEADLINES),
                "",
                f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "",
            ]
        )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
