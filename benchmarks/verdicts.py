"""The verdict on each run of a search beside what its weights are worth by kNN: hits and misses.

Run: python benchmarks/verdicts.py --data FOLDER --work FOLDER --runs RESULTS.jsonl [RESULTS.jsonl ...] > benchmarks/results/verdicts.md

Folders and results are as search.py left them; runs whose folder is gone are left out and counted. The runs were trained without
labels, and the verdict is today's, from each run's lines of metrics. A run failed where the kNN vote of its last weights is less than
a point above that of random weights of the same network; it learned where it is above by more than twice the standard error of the
difference, as of independent images; between the two the images scored are too few to tell. Below the table: Spearman's
rank correlation of view retrieval, which the verdict looks at, with kNN, each as the ratio of trained to random weights.
"""

import argparse
import collections
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accuracy import Row
from scipy.stats import spearmanr
from search import folder_of, key, lines_of

from swav.config import Recipe
from swav.data.sources.open import labelled_splits
from swav.files import CONFIG
from swav.recipe_files import stored
from swav.strict_yaml import read_yaml
from swav.training.verdict import HealthFacts, verdict

GOOD = ("healthy", "data-bound")
FAILED = 1.0  # points
OUTCOMES = ("learned", "too few to tell", "failed")


class Judged(NamedTuple):
    """A run, its verdict, and what was measured.

    Attributes:
        outcome: one of OUTCOMES.
        seen: view retrieval, of trained over that of random weights.
        known: kNN likewise.
    """

    run: Row
    state: str
    outcome: str
    seen: float
    known: float

    @property
    def is_miss(self) -> bool:
        return self.is_clear and (self.state in GOOD) != (self.outcome == "learned")

    @property
    def is_clear(self) -> bool:
        """Whether both the verdict and kNN say something."""
        return self.state != "too early" and self.outcome != "too few to tell"


def judged(run: Row, folder: Path, scored: int) -> Judged:
    """Judge a run by its files, and its kNN of so many images."""
    recipe: Recipe = stored(read_yaml((folder / CONFIG).read_text(encoding="utf-8"), CONFIG), CONFIG)
    with np.load(folder / "images.npz") as kept:
        images = len(kept["rows"])
    steps = images // recipe.batch
    used = recipe.queue_start_epoch * steps + -(-recipe.queue_length // recipe.batch) if recipe.queue_length else 0
    facts = HealthFacts(
        recipe.log_prototypes, images, max(recipe.prototype_sets), unsettled=(used, used + steps) if used else (0, 0)
    )
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    checks = [line["view_retrieval"] for line in history if "view_retrieval" in line]
    before, after = run["random"]["knn"] / 100, run["knn"] / 100
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / scored)
    outcome = (
        "failed" if 100 * (after - before) < FAILED else "learned" if after - before > 2 * error else "too few to tell"
    )
    return Judged(run, verdict(history, facts, ended=True)[0], outcome, checks[-1] / checks[0], after / before)


def report(runs: list[Row], data: Path, work: Path) -> str:
    rows, gone, sizes = list[Judged](), 0, dict[str, int]()
    for run in {key(run): run for run in runs if "knn" in run}.values():
        folder, name = folder_of(run, work), run["set"]
        if not (folder / "metrics.jsonl").exists():
            gone += 1
            continue
        if name not in sizes:
            sizes[name] = len(labelled_splits(data / name)[1])
        rows.append(judged(run, folder, sizes[name]))
    counts = collections.Counter((row.state, row.outcome) for row in rows)
    states = sorted({row.state for row in rows}, key=lambda state: (state not in GOOD, state))
    clear = [row for row in rows if row.is_clear]
    right = sum(not row.is_miss for row in clear)
    of_sets = {name: [row for row in rows if row.run["set"] == name] for name in sizes}
    within = {name: correlation(its) for name, its in of_sets.items() if len(its) > 5}
    out = [
        f"{len(rows)} runs, {sum(row.outcome == 'failed' for row in rows)} of them failed. Where both say something, the verdict is right on "
        f"{right} of {len(clear)}.",
        "",
        f"| verdict | {' | '.join(OUTCOMES)} |",
        "|---|---|---|---|",
        *(f"| {state} | {' | '.join(str(counts[state, outcome]) for outcome in OUTCOMES)} |" for state in states),
        "",
        f"View retrieval with kNN: {correlation(rows):+.2f} over all runs; within "
        + ", ".join(f"{name} {value:+.2f}" for name, value in within.items())
        + f". {gone} runs of which no folder is left are not among them.",
        "",
        "| set | variant | images seen | seed | kNN | random weights | outcome | verdict | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.known):
        run, miss = row.run, "miss" if row.is_miss else ""
        numbers = f"{run['images']:,} | {run['seed']} | {run['knn']:.1f} | {run['random']['knn']:.1f}"
        out.append(f"| {run['set']} | {run['variant']} | {numbers} | {row.outcome} | {row.state} | {miss} |")
    return "\n".join(out)


def correlation(rows: Sequence[Judged]) -> float:
    return float(spearmanr([row.seen for row in rows], [row.known for row in rows]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    wanted = parser.parse_args()
    print(report([line for path in wanted.runs for line in lines_of(path)], wanted.data, wanted.work))


if __name__ == "__main__":
    main()
