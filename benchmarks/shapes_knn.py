"""What the demo's weights are worth on drawn shapes that they never saw: kNN against random weights of the same network.

Run: python benchmarks/shapes_knn.py [--seeds 0 1 2] [--out benchmarks/results/shapes_knn.md]

For each seed the recipe `demo` is trained on shapes of seed 0 (a seed changes initial weights, order and views). Bank
(2,000) and queries (500) of the kNN (k = 20, T = .07, 64 pixels) are shapes of seed 1000. Pixels: the same vote on the
raw images. About 2 minutes a seed on 2 cores.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from swav.data.images import Images, labelled_halves
from swav.data.layouts import write_shapes
from swav.evaluation.suite import bench
from swav.metrics import knn_vote, top_k_accuracy
from swav.train import pretrain

TRAINED_ON, SCORED_ON, K = 0, 1000, 20


def top1(weights: str, data: Path, out: Path) -> float:
    """kNN top-1 of one set of weights [%]."""
    content = bench(["knn"], [weights], data, out, {"size": 64, "knn.k": [K]})
    return float(next(row["value"] for row in content["results"] if row["metric"] == f"top-1 k={K}"))


def pixels_top1(data: Path) -> float:
    """kNN top-1 of the raw pixels, as unit vectors [%]."""

    def flat(images: Images) -> torch.Tensor:
        pixels: NDArray[np.float32] = np.stack([images.read(i).ravel() for i in range(len(images))]).astype(np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(pixels), dim=1)

    bank, queries = labelled_halves(data)
    assert bank.labels is not None and queries.labels is not None
    labels, truth = torch.from_numpy(bank.labels), torch.from_numpy(queries.labels)
    ranked = knn_vote(flat(bank), labels, flat(queries), [K], 10, 0.07)
    return top_k_accuracy(ranked[K], truth, 1)


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for seed in (TRAINED_ON, SCORED_ON):
            write_shapes(folder / f"shapes{seed}", seed=seed)
        fresh = folder / f"shapes{SCORED_ON}"
        random, trained = [], []
        for seed in arguments.seeds:
            run = pretrain("demo", folder / f"run{seed}", data=str(folder / f"shapes{TRAINED_ON}"), seed=seed)
            random.append(top1(f"random:{run}", fresh, folder / f"random{seed}"))
            trained.append(top1(str(run), fresh, folder / f"trained{seed}"))
        gains = [after - before for after, before in zip(trained, random, strict=True)]
        text = "\n".join(
            [
                f"kNN top-1 [%] on shapes of seed {SCORED_ON}, k={K}; recipe demo, trained on shapes of seed {TRAINED_ON}, seeds {arguments.seeds}",
                "",
                "| | mean ± standard deviation (each) |",
                "|---|---|",
                f"| raw pixels | {pixels_top1(fresh):.1f} |",
                f"| random weights | {spread(random)} |",
                f"| SwAV | {spread(trained)} |",
                f"| gain | {spread(gains)} |",
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
