"""A queue of short pre-training runs, one factor at a time: what helps, on several sets of images at once.

Run: python benchmarks/search.py benchmarks/search.toml --data FOLDER --work FOLDER --out benchmarks/results/search.jsonl
     (FOLDER of small_sets.py; `--table` prints what is known instead)

The queue names variants (settings of `swav pretrain auto`; those of `base` are part of each unless it says `base = false`) and stages: a
budget in images seen, seeds, sets and variants. A finished run is a line of --out: kNN and the linear layer of the last stage beside
random weights of the same network. A line that is there is not made again, a run that was ended continues, and the file may grow
while it is worked through. Several commands may share a queue, each on a core: they take different runs. One thread each.
"""

import argparse
import itertools
import json
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accuracy import Row, machine, random_scores, scored, train
from scoring import score

from swav.data.images import Images
from swav.data.sources.open import labelled_splits
from swav.errors import ConfigError, NumericsError, Stopped
from swav.files import FileLock
from swav.weights.encoder import load


def runs(queue: Row) -> Iterator[Row]:
    """Every run of a queue, in its order: all variants and sets of one seed come before the next seed."""
    for stage in queue["stages"]:
        for seed, variant, name in itertools.product(stage["seeds"], stage["variants"], stage["sets"]):
            chosen = dict(queue["variants"][variant])
            of_sets = chosen.pop("sets", {})
            base = queue.get("base", {}) if chosen.pop("base", True) else {}
            settings = base | chosen | of_sets.get(name, {})
            yield {"set": name, "variant": variant, "images": stage["images"], "seed": seed, "settings": settings}


def key(run: Row) -> tuple[Any, ...]:
    return run["set"], run["variant"], run["images"], run["seed"]


def folder_of(run: Row, work: Path) -> Path:
    return work / "-".join(map(str, key(run)))


def finished(run: Row, data: Path, work: Path) -> Row:
    """Pre-train and score one run; a run that fails is a result too."""
    folder, splits = folder_of(run, work), labelled_splits(data / run["set"])
    try:
        known = train("auto", data / run["set"], run["images"], run["seed"], run["settings"], folder)
    except (ConfigError, NumericsError) as error:
        return run | {"error": str(error)} | machine()
    known.pop("curve")
    found = scored(score(load(folder), *splits, all_stages=False))
    return run | known | found | {"random": baseline(run, folder, splits, work)} | machine()


def baseline(run: Row, folder: Path, splits: tuple[Images, Images], work: Path) -> Row:
    """Scores of random weights, computed once for each set, seed and network."""
    encoder = load(f"random:{folder}")
    path = work / "random" / f"{run['set']}-{encoder.size}-{encoder.sha256}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(random_scores(folder, splits, all_stages=False)), encoding="utf-8")
    content: Row = json.loads(path.read_text(encoding="utf-8"))
    return content


def lines_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def work_through(wanted: argparse.Namespace) -> None:
    """Make one waiting run after the other, those that no other command is at."""
    while True:
        done = {key(line) for line in lines_of(wanted.out)}
        waiting = [run for run in runs(tomllib.loads(wanted.queue.read_text(encoding="utf-8"))) if key(run) not in done]
        for run in waiting:
            try:
                with FileLock(folder_of(run, wanted.work).with_suffix(".lock")):
                    line = finished(run, wanted.data, wanted.work)
                    with wanted.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            except BlockingIOError:  # another command is at it
                continue
            except Stopped as stopped:
                raise SystemExit(stopped.exit_code) from stopped
            print(f"{len(waiting) - 1} left  {json.dumps(line)}", flush=True)
            break
        else:
            return


def table(lines: list[Row]) -> str:
    """Gain over random weights [%], kNN / linear, per variant and set: the mean over seeds."""
    rows = []
    for images in sorted({line["images"] for line in lines}):
        its = [line for line in lines if line["images"] == images]
        sets = sorted({line["set"] for line in its})
        rows += [f"| {images:,} images | " + " | ".join(sets) + " | all |", "|---" * (len(sets) + 2) + "|"]
        for variant in dict.fromkeys(line["variant"] for line in its):
            cells, all_gains = [], []
            for name in sets:
                here = [line for line in its if (line["variant"], line["set"]) == (variant, name)]
                gains = [gain(line) for line in here if "error" not in line]
                all_gains += gains[:]
                failed = f" ({len(here) - len(gains)} failed)" if len(gains) < len(here) else ""
                cells.append(pair(gains) + failed if gains else "failed" if failed else "")
            complete = all(cell and cell != "failed" for cell in cells)
            rows.append(f"| {variant} | " + " | ".join(cells) + f" | {pair(all_gains) if complete else ''} |")
        rows.append("")
    return "\n".join(rows)


def gain(line: Row) -> tuple[float, float]:
    return line["knn"] - line["random"]["knn"], line["linear"][-1] - line["random"]["linear"][-1]


def pair(gains: list[tuple[float, float]]) -> str:
    knn, linear = (statistics.mean(values) for values in zip(*gains, strict=True))
    return f"{knn:+.1f} / {linear:+.1f}" + (f" ({len(gains)})" if len(gains) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path)
    parser.add_argument("--data", type=Path, help="folder of sets")
    parser.add_argument("--work", type=Path, help="folder for runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print what is known, and run nothing")
    wanted = parser.parse_args()
    if wanted.table:
        print(table(lines_of(wanted.out)))
        return
    if wanted.data is None or wanted.work is None:
        parser.error("expected --data and --work")
    torch.set_num_threads(1)
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    wanted.work.mkdir(parents=True, exist_ok=True)
    work_through(wanted)


if __name__ == "__main__":
    main()
