"""What pre-training is worth on a set of images, at a budget of images seen: ours beside random weights and other libraries.

Run: python benchmarks/accuracy.py DATA --images 100000 [--settings koleo=0.1 ...] [--recipe auto] [--seeds 0 1 2]
     [--peer lightly:SwAV --peer lightly:VICReg ...] [--points 5] --work FOLDER --out benchmarks/results/accuracy/NAME.json

DATA is labelled: its training images are trained on without labels, its others scored (benchmarks/scoring.py: kNN with k=20 and a
linear layer on each stage, at the network's own size). Budgets are images seen, so that a busy machine does not decide; seconds
stand beside. Every method starts from the same random weights of the same network, which are scored too. Differences are paired by
seed; `spread` is the sample standard deviation of the paired differences.

Peers are installed from PyPI into an environment of their own below --work, and run with the settings that their documentation
gives for small data (benchmarks/peers/). One thread, so that two methods can be compared beside each other on two cores
(--threads). What is in --out is not run again, and a run that was ended continues: the same command is given again.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from scoring import Scores, score

from swav.data.images import Images
from swav.data.sources.open import labelled_splits, open_images
from swav.files import METRICS, write_text_durably
from swav.recipe_files import parse_overrides
from swav.training.loop import pretrain
from swav.training.setup import read_settings
from swav.weights.encoder import Encoder, load

PEERS = {"lightly": ("lightly==1.5.23", "lightly_methods.py")}
HERE = Path(__file__).parent
Row = dict[str, Any]


def train(recipe: str, data: Path, images: int, seed: int, settings: Row, folder: Path, points: int = 0) -> Row:
    """Pre-train for a number of images seen, or continue; return what is to be known of the run beside its scores.

    The CPU seconds are those of this command: of a run that was continued, of its last part.

    Args:
        points: of the curve: kNN evaluations on the way.
    """
    available = len(open_images(data))
    epochs = max(1, round(images / available))
    fixed = {"data": str(data), "seed": seed, "epochs": epochs, "workers": 0, "checkpoint_every_minutes": 2.0}
    fixed["knn_every_epochs"] = max(1, epochs // points) if points else 0
    started = time.process_time()
    pretrain(recipe, out=folder, **fixed | settings)
    seconds = time.process_time() - started
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    batch = read_settings(folder / "config.yaml").batch
    return {
        "seen": available // batch * batch * epochs,
        "cpu_seconds": round(seconds),
        "curve": [[line["step"] * batch, line["knn_top1"]] for line in lines if "knn_top1" in line],
        **{key: last[key] for key in ("loss_gap", "rankme", "prototypes_used", "embedding_std")},
    }


def scored(scores: Scores) -> Row:
    """Scores as they are written down [%]."""
    return {"knn": round(scores.knn, 2), "linear": [round(value, 2) for value in scores.linear]}


def random_scores(folder: Path, splits: tuple[Images, Images], all_stages: bool = True) -> Row:
    """Scores of the network that a run began with."""
    return scored(score(load(f"random:{folder}"), *splits, all_stages=all_stages))


def peer_python(library: str, work: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        SystemExit: it cannot be made.
    """
    folder = work.absolute() / library
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "made").exists():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        same = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
        subprocess.run([uv, "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [uv, "pip", "install", "-p", str(folder), PEERS[library][0], *same, "-e", str(HERE.parent)], check=True
        )
        (folder / "made").touch()
    return python


def train_peer(peer: str, data: Path, config: Path, wanted: argparse.Namespace, seed: int, folder: Path) -> Row:
    """Train a peer's method from the same random weights; return what is to be known of it beside its scores."""
    library, _, method = peer.partition(":")
    command = [str(peer_python(library, wanted.work)), str(HERE / "peers" / PEERS[library][1]), method]
    command += ["--data", str(data), "--images", str(wanted.images), "--seed", str(seed), "--config", str(config)]
    command += ["--out", str(folder), "--points", str(wanted.points), "--threads", str(wanted.threads)]
    subprocess.run(command, check=True)
    content: Row = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
    return content


def peer_encoder(config_of: Path, weights: Path) -> Encoder:
    """The network of a run with a peer's weights."""
    encoder = load(f"random:{config_of}")
    encoder.trunk.load_state_dict(load_file(weights))
    return encoder


def compared(rows: Sequence[Row]) -> list[Row]:
    """Each method beside random weights: paired differences, their mean and spread."""
    by_seed: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_seed.setdefault(row["method"], {})[row["seed"]] = row
    found = []
    for method, its in by_seed.items():
        line: Row = {"method": method, "seeds": sorted(its)}
        for name, value in (("knn", _knn), ("last", _last), ("best", _best)):
            pairs = [(value(row), value(row["random"])) for row in its.values()]
            gains = [trained - before for trained, before in pairs]
            line |= {
                name: _mean([trained for trained, _ in pairs]),
                f"random_{name}": _mean([before for _, before in pairs]),
                f"gain_{name}": _mean(gains),
                f"spread_{name}": round(statistics.stdev(gains), 2) if len(gains) > 1 else None,
            }
        found.append(line)
    return found


def _knn(row: Row) -> float:
    return float(row["knn"])


def _last(row: Row) -> float:
    return float(row["linear"][-1])


def _best(row: Row) -> float:
    return float(max(row["linear"]))


def _mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 2)


def table(summary: Sequence[Row]) -> str:
    """The comparison as Markdown."""
    lines = ["| method | seeds | kNN | over random | linear, last stage | over random | linear, best stage |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in summary:
        gains = [
            f"{row[f'gain_{name}']:+.1f}"
            + (f" ± {row[f'spread_{name}']:.1f}" if row[f"spread_{name}"] is not None else "")
            for name in ("knn", "last")
        ]
        lines.append(
            f"| {row['method']} | {len(row['seeds'])} | {row['knn']:.1f} | {gains[0]} | {row['last']:.1f} | {gains[1]} "
            f"| {row['best']:.1f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw kNN over images seen, a line per method: the mean over its seeds, with every seed as a point."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for method in dict.fromkeys(row["method"] for row in rows):
        its = [row for row in rows if row["method"] == method]
        curves = [[[0, row["random"]["knn"]], *row["curve"]] for row in its]
        length = min(map(len, curves))
        seen = [curves[0][i][0] for i in range(length)]
        means = [statistics.mean(curve[i][1] for curve in curves) for i in range(length)]
        (line,) = axes.plot(seen, means, label=method)
        for curve in curves:
            axes.plot([x for x, _ in curve], [y for _, y in curve], ".", color=line.get_color(), markersize=3)
    axes.set(xlabel="images seen", ylabel="kNN top-1, k=20 [%]", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def machine() -> Row:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, required=True, help="budget: images seen")
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="of our run")
    parser.add_argument("--peer", action="append", default=[], metavar="LIBRARY:METHOD", help="as lightly:SwAV")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", type=int, default=5, help="of the curves")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and environments")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every run; the same command continues it")
    parser.add_argument("--plot", type=Path, help="SVG of the curves")
    wanted = parser.parse_args()
    for peer in wanted.peer:
        if peer.partition(":")[0] not in PEERS:
            parser.error(f"--peer: expected LIBRARY:METHOD with a library of {', '.join(PEERS)}, found {peer}")
    torch.set_num_threads(wanted.threads)
    splits = labelled_splits(wanted.data)
    rows: list[Row] = json.loads(wanted.out.read_text(encoding="utf-8"))["runs"] if wanted.out.exists() else []

    def finish(row: Row) -> None:
        rows.append(row | {"data": wanted.data.name, "budget": wanted.images} | machine())
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"runs": rows, "comparison": compared(rows)}
        write_text_durably(wanted.out, json.dumps(content, indent=1) + "\n")
        print(f"\n{table(content['comparison'])}\n", flush=True)

    def is_there(method: str, seed: int) -> bool:
        return any((row["method"], row["seed"], row["budget"]) == (method, seed, wanted.images) for row in rows)

    ours = " ".join(["swav", wanted.recipe, *wanted.settings])
    for seed in wanted.seeds:
        folder = wanted.work / f"{wanted.data.name}-{wanted.images}-{seed}" / ours.replace(" ", "-").replace("/", "_")
        known = train(
            wanted.recipe, wanted.data, wanted.images, seed, parse_overrides(wanted.settings), folder, wanted.points
        )
        if not is_there(ours, seed):
            found = scored(score(load(folder), *splits))
            finish({"method": ours, "seed": seed, **found, "random": random_scores(folder, splits), **known})
        before = next(row["random"] for row in rows if row["seed"] == seed)
        for peer in wanted.peer:
            if not is_there(peer, seed):
                place = folder.parent / peer.replace(":", "-")
                known = train_peer(peer, wanted.data, folder / "config.yaml", wanted, seed, place)
                encoder = peer_encoder(folder, place / "trunk.safetensors")
                finish(known | {"method": peer, "seed": seed, **scored(score(encoder, *splits)), "random": before})
    print(table(compared(rows)))
    if wanted.plot:
        plot(rows, wanted.plot, f"{wanted.data.name}, {wanted.images:,} images seen")


if __name__ == "__main__":
    main()
