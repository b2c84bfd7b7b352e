"""Exact nearest neighbours: swav's search against faiss's IndexFlatIP (where faiss is importable; no dependency of ours) and
scikit-learn's brute force, on the same features in one run.

Run: python benchmarks/knn.py [--bank 100000] [--dim 512] [--queries 1024] [--k 200] [--threads 1] [--device cpu]

Features are those of overlapping clusters, on the unit sphere. Each search is timed `--rounds` times, in turns; the
fastest counts, as other work on the machine only ever adds. Both must return the same neighbours.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import sklearn
import torch
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from swav.metrics import knn_vote, nearest
from swav.system import memory_gb


def clusters(rows: int, dim: int, seed: int, classes: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Unit features and their cluster; the clusters are the same for every seed."""
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    features = centres[labels] + 2.0 * rng.normal(size=(rows, dim))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def machine() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time and processor time of one search; the second hardly minds other work on the machine."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def faiss_with(threads: int) -> ModuleType | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(threads)
    module: ModuleType = faiss
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("bank", 100_000),
        ("dim", 512),
        ("queries", 1024),
        ("k", 200),
        ("threads", 1),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)

    bank, labels = clusters(wanted.bank, wanted.dim, seed=1)
    queries, _ = clusters(wanted.queries, wanted.dim, seed=2)
    x, y, q = (torch.from_numpy(array).to(wanted.device) for array in (bank, labels, queries))
    oracle = NearestNeighbors(n_neighbors=wanted.k, algorithm="brute", metric="cosine").fit(bank)
    searches: dict[str, Callable[[], object]] = {
        "swav.metrics.nearest": lambda: nearest(x, q, wanted.k),
        "swav.metrics.knn_vote (search and four votes)": lambda: knn_vote(
            x, y, q, [10, 20, wanted.k // 2, wanted.k], 100
        ),
        "scikit-learn NearestNeighbors(brute, cosine)": lambda: oracle.kneighbors(queries),
    }
    index = None
    if (faiss := faiss_with(wanted.threads)) is not None:
        index = faiss.IndexFlatIP(wanted.dim)
        index.add(bank)
        searches[f"faiss {faiss.__version__} IndexFlatIP"] = lambda: index.search(queries, wanted.k)
    with threadpool_limits(wanted.threads):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
        for _ in range(wanted.rounds):
            for name, search in searches.items():
                times[name].append(seconds(search, wanted.device))
        ours, some = nearest(x, q[:500], wanted.k)[1].cpu().numpy(), queries[:500]
        oracles = {"scikit-learn": oracle.kneighbors(some, return_distance=False)}
        if index is not None:
            oracles["faiss"] = index.search(some, wanted.k)[1]

    shared = {
        name: np.mean([len(np.intersect1d(a, b)) / wanted.k for a, b in zip(ours, theirs, strict=True)])
        for name, theirs in oracles.items()
    }
    print(
        f"{wanted.queries} queries, bank {wanted.bank} x {wanted.dim}, k={wanted.k}, {wanted.threads} thread(s), {wanted.device}"
    )
    print(f"{machine()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}")
    for name, taken in times.items():
        wall, processor = np.min(taken, axis=0)
        print(f"{wall:8.3f} s  (processor {processor:7.3f} s)  {name}")
    told = ", ".join(f"{share:.6f} with {name}" for name, share in shared.items())
    print(f"neighbours in common (500 queries): {told}; peak memory {memory_gb(torch.device('cpu')):.2f} GB")


if __name__ == "__main__":
    main()
