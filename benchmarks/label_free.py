"""Which numbers without labels agree with the kNN vote: all of them, of every run that a search made.

Run: python benchmarks/label_free.py --data FOLDER --work FOLDER --runs benchmarks/results/search.jsonl
         --out benchmarks/results/label_free.jsonl [--table]

FOLDER, --work and --runs as search.py left them. Of each run's last weights, and of random weights of the same network, 512 training
images are looked at in four strong views and four quarter turns: the same images and views for every run of a set. A line that is
there is not computed again. The table: Spearman's rank correlation of each number (of trained over random weights, where it says
`gain`) with the gain of kNN over random weights, within each set and over all of them, and how well its sign finds the failed runs.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from accuracy import Row
from scipy.stats import spearmanr
from search import folder_of, key, lines_of

from swav.data.augment.crops import to_input, val_view
from swav.data.images import Images
from swav.data.sources.open import labelled_splits
from swav.label_free import (
    cluster_agreement,
    effective_rank,
    lidar,
    neighbour_overlap,
    neighbour_survival,
    rotation_accuracy,
    view_retrieval,
)
from swav.views import MultiCrop
from swav.weights.encoder import Encoder, load

IMAGES, VIEWS, THUMBNAIL = 512, 4, 8
FAILED = 1.0  # a gain of kNN over random weights below it [points]


def seen(encoder: Encoder, images: Images) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of strong views [N, Q, F] and of quarter turns [4, N, F], and thumbnails [N, G], of drawn images."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:IMAGES])
    views = MultiCrop(
        ((VIEWS, encoder.size, (0.2, 1.0)),),
        jitter=(0.4, 0.4, 0.4, 0.1),
        blur=0.0,
        mean=encoder.mean,
        std=encoder.std,
        in_channels=encoder.in_channels,
    )
    of_views, of_turns, thumbnails = [], [], []
    for i in chosen:
        pixels = images.read(int(i))
        whole = val_view(pixels, encoder.size)
        turned = torch.from_numpy(np.stack([np.rot90(whole, turn) for turn in range(4)]))
        of_views.append(_features(encoder, torch.stack(views(pixels, 0, int(i)))))
        of_turns.append(_features(encoder, to_input(turned, encoder.mean, encoder.std, encoder.in_channels)))
        small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(whole).permute(2, 0, 1).float(), THUMBNAIL)
        thumbnails.append(small.flatten())
    flat = torch.stack(thumbnails)
    return torch.stack(of_views), torch.stack(of_turns, dim=1), flat - flat.mean(0)


@torch.no_grad()
def _features(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return encoder(images)


def numbers(encoder: Encoder, images: Images) -> dict[str, float]:
    """Every number of a set of weights."""
    views, turns, thumbnails = seen(encoder, images)
    first, second = views[:, 0], views[:, 1]
    flat = views.flatten(0, 1)
    return {
        "view_retrieval": 100 * float(view_retrieval(views).double().mean()) / (VIEWS * (VIEWS - 1)),
        "neighbour_survival": 100 * neighbour_survival(first, second),
        "lidar": lidar(views),
        "rotation": rotation_accuracy(turns),
        "cluster_agreement": 100 * cluster_agreement(first, second, max(2, round(len(views) ** 0.5))),
        "colour_overlap": 100 * neighbour_overlap(turns[0], thumbnails),
        "effective_rank": effective_rank(turns[0]),
        "effective_rank_views": effective_rank(flat),
        "uniformity": float((-2 * torch.pdist(torch.nn.functional.normalize(turns[0], dim=1)) ** 2).exp().mean().log()),
    }


def table(lines: list[Row], runs: list[Row]) -> str:
    """Rank correlations with the gain of kNN."""
    by_key = {key(run): run for run in runs}
    rows = [
        line | {"gain": run["knn"] - run["random"]["knn"]}
        for line in lines
        if (run := by_key.get(key(line))) is not None and "knn" in run
    ]
    sets = sorted({row["set"] for row in rows})
    failed = [row["gain"] < FAILED for row in rows]
    out = [f"{len(rows)} runs, {sum(failed)} of them failed (kNN less than {FAILED:g} above random weights)", ""]
    out += ["| number | " + " | ".join(sets) + " | mean of sets | all | failed below, others above |"]
    out += ["|---" * (len(sets) + 4) + "|"]
    for name in rows[0]["trained"]:
        for kind in ("value", "gain", "ratio"):
            values = [number(row, name, kind) for row in rows]
            cells = []
            for each in sets:
                here = [i for i, row in enumerate(rows) if row["set"] == each]
                cells.append(correlation([values[i] for i in here], [rows[i]["gain"] for i in here]))
            overall = correlation(values, [row["gain"] for row in rows])
            known = [cell for cell in cells if cell is not None]
            label = name if kind == "value" else f"{name}, {kind}"
            mean = statistics.mean(known) if known else None
            out.append(
                "| " + " | ".join([label, *map(_text, [*cells, mean, overall]), separation(values, failed)]) + " |"
            )
    return "\n".join(out)


def number(row: Row, name: str, kind: str) -> float:
    trained, before = row["trained"][name], row["random"][name]
    return {"value": trained, "gain": trained - before, "ratio": trained / before if before else float("nan")}[kind]


def correlation(values: list[float], gains: list[float]) -> float | None:
    if len(values) < 4:
        return None
    return float(spearmanr(values, gains).statistic)


def separation(values: list[float], failed: list[bool]) -> str:
    """Share of pairs of a failed and another run in which the number has the right order."""
    bad = [value for value, is_bad in zip(values, failed, strict=True) if is_bad]
    good = [value for value, is_bad in zip(values, failed, strict=True) if not is_bad]
    if not bad or not good:
        return ""
    return f"{statistics.mean(float(b < g) + 0.5 * float(b == g) for b in bad for g in good):.2f}"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print what is known, and compute nothing")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    runs = lines_of(wanted.runs)
    if not wanted.table:
        done = {key(line) for line in lines_of(wanted.out)}
        before: dict[str, dict[str, float]] = {}
        for run in runs:
            folder = folder_of(run, wanted.work)
            if key(run) in done or "knn" not in run or not folder.exists():
                continue
            images = labelled_splits(wanted.data / run["set"])[0]
            random = load(f"random:{folder}")
            name = f"{run['set']}-{random.sha256}-{random.size}"
            if name not in before:
                before[name] = numbers(random, images)
            identity = {part: run[part] for part in ("set", "variant", "images", "seed")}
            line = identity | {"trained": numbers(load(folder), images), "random": before[name]}
            with wanted.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print(table(lines_of(wanted.out), runs))


if __name__ == "__main__":
    main()
