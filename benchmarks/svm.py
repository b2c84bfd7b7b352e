"""The SVM benchmark at the size of VOC 2007: swav's solver, and scikit-learn called as the published protocol calls it.

Run: python benchmarks/svm.py [--features 9216] [--classes 20] [--threads 2] [--naive-classes 3]

One stage: 5,011 + 4,952 images, 20 classes, 19 costs, 3 folds and a refit, 1,520 machines. Ours runs whole, first, so that the
peak of memory is its own. scikit-learn's LinearSVC runs on some classes and costs and on all training rows only, in
float64 and one process; the whole is estimated from that: a fold has two thirds of the rows, so three folds and a refit
take as long as three fits on all; costs below 1 take the mean of those that ran.

The features are made up: not negative, with a common direction and a falling spectrum, and half telling of the classes.
"""

import argparse
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from swav.evaluation.protocols.voc_svm import score_stage
from swav.evaluation.settings import SvmSettings
from swav.evaluation.svm_solver import principal_axes, solve_svms, unit_rows
from swav.progress import Progress
from swav.system import memory_gb

NAIVE_COSTS = (0.5**16, 0.5**8, 0.5**4, 1.0, 10.0)


def made_up(rows: int, features: int, classes: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    told = shared.normal(size=(classes, features)).astype(np.float32)
    marks = np.where(rng.random((rows, classes)) < 0.08, 1, -1).astype(np.int8)
    x = rng.standard_normal((rows, features), dtype=np.float32)
    x /= np.sqrt(1 + np.arange(features, dtype=np.float32) / 10)
    x += 0.06 * (marks == 1).astype(np.float32) @ told + 0.3
    return unit_rows(np.maximum(x, 0)), marks


def machine() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("features", 9216),
        ("train", 5011),
        ("test", 4952),
        ("classes", 20),
        ("naive-classes", 3),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    settings = SvmSettings()
    (x, labels), (scored, truth) = (
        made_up(rows, wanted.features, wanted.classes, seed) for rows, seed in ((wanted.train, 1), (wanted.test, 2))
    )
    print(f"{wanted.train} + {wanted.test} images, {wanted.features} features, {wanted.classes} classes")
    print(f"{machine()}, {wanted.threads} thread(s), torch {torch.__version__}, scikit-learn {sklearn.__version__}")
    print(f"features in memory: {memory_gb(torch.device('cpu')):.2f} GB at most so far")

    with threadpool_limits(wanted.threads), Progress("svm", len(settings.costs)) as progress:
        began = time.perf_counter()
        layer = score_stage(x, labels, scored, truth, settings, progress)
        ours = time.perf_counter() - began
    total = wanted.classes * len(settings.costs) * (settings.folds + 1)
    print(f"swav, all {total} machines and their scores: {ours:.1f} s, peak {memory_gb(torch.device('cpu')):.2f} GB")
    print(f"  mAP {100 * layer.precision.mean():.2f}, machines that did not converge: {layer.unfinished}", flush=True)

    rows, signs = x.double().numpy(), torch.from_numpy(labels.astype(np.float64))
    solved = solve_svms(principal_axes(x), signs, torch.where(signs > 0, 2.0, 1.0).double(), NAIVE_COSTS)
    decisions = {NAIVE_COSTS[place]: found.decision for place, found in solved}
    seconds: dict[float, list[float]] = {cost: [] for cost in NAIVE_COSTS}
    unfinished = 0
    for cost in NAIVE_COSTS:
        require_disjoint = []
        for k in range(wanted.naive_classes):
            naive = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-4, dual=True, max_iter=2000, random_state=0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                began = time.perf_counter()
                naive.fit(rows, labels[:, k])
                seconds[cost].append(time.perf_counter() - began)
            unfinished += bool(caught)
            require_disjoint.append(float(np.abs(naive.decision_function(rows) - decisions[cost][:, k].numpy()).max()))
        print(
            f"scikit-learn, C = {cost:.2e}: {np.mean(seconds[cost]):.2f} s per fit; decisions differ by at most {max(require_disjoint):.1e}",
            flush=True,
        )
    small = float(np.mean([np.mean(seconds[cost]) for cost in NAIVE_COSTS if cost < 1]))
    large = float(np.mean(seconds[1.0]) + 2 * np.mean(seconds[10.0]))  # C = 100 taken for 10
    estimate = wanted.classes * 3 * (16 * small + large)
    print(
        f"scikit-learn, all, estimated from {wanted.naive_classes} classes and {len(NAIVE_COSTS)} costs: {estimate / 60:.0f} min"
    )
    print(f"  fits that did not converge: {unfinished}; ratio to swav {estimate / ours:.0f}")


if __name__ == "__main__":
    main()
