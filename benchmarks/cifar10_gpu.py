"""CIFAR-10 in six minutes of one GPU: pre-train a ResNet-18, then kNN and a linear layer beside random weights.

Run: python benchmarks/cifar10_gpu.py CIFAR10 --out FOLDER [--minutes 6] [--settings key=value ...]

CIFAR10: the binary version, class folders, or strips. The recipe is `cifar10` (ResNet-18 with a 3x3 stem, batch 512) with KoLeo, for as many
epochs as fit into the minutes: `hours=H` plans them, and the learning rate ends low whatever the card. Two large crops and two smaller
ones; codes come from the large ones. Scored by protocol `own`: every image once through the frozen network, at 32 pixels.
FOLDER/cifar10.json has the scores, the card, the commit and every setting. The same command continues a run that was ended.

Not measured yet: no GPU has run this. To reach: kNN 91, linear 92.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from accuracy import machine

from swav.evaluation.runner import bench
from swav.files import write_text_durably
from swav.recipe_files import parse_overrides
from swav.training.loop import pretrain
from swav.training.setup import read_settings

SCORING_SECONDS = 45.0  # kept for two networks' features and layers
SETTINGS: dict[str, Any] = {
    "epochs": "auto",
    "koleo": 0.1,
    "crops": [{"count": 2, "size": 32, "scale": [0.2, 1.0]}, {"count": 2, "size": 24, "scale": [0.1, 0.4]}],
    "lr": 2e-3,
    "warmup_epochs": 2,
    "lr_schedule": "step",
    "knn_every_epochs": 20,
    "knn_k": 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0, help="of the whole command")
    parser.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="other settings of the run")
    wanted = parser.parse_args()
    began = time.monotonic()
    seconds = wanted.minutes * 60 - SCORING_SECONDS
    if seconds <= 0:
        parser.error(f"--minutes: expected more than {SCORING_SECONDS / 60:g}, found {wanted.minutes:g}")
    run = wanted.out / "run"
    settings = SETTINGS | {"data": str(wanted.data), "hours": seconds / 3600} | parse_overrides(wanted.settings)
    pretrain("cifar10", out=run, **settings)
    trained = time.monotonic() - began
    weights = [f"random:{run}", str(run)]
    results = bench(["knn", "linear"], weights=weights, data=wanted.data, out=wanted.out, protocol="own")
    scores = [
        {"bench": row.bench, "metric": row.metric, "weights": row.weights, "value": row.value, "n": row.n}
        for row in results.results
    ]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    content = {
        "card": card,
        "seconds": {"training": round(trained), "all": round(time.monotonic() - began)},
        "scores": scores,
        "settings": read_settings(run / "config.yaml").model_dump(mode="json"),
        **machine(),
    }
    write_text_durably(wanted.out / "cifar10.json", json.dumps(content, indent=1) + "\n")
    print(json.dumps({key: content[key] for key in ("card", "seconds")}))


if __name__ == "__main__":
    main()
