"""`swav demo`: from nothing to a measured backbone in a few minutes, without download or GPU, by the real code path."""

from pathlib import Path
from typing import Any

from swav.data.synthetic.writers import write_shapes
from swav.evaluation.runner import bench
from swav.output import deliver
from swav.progress import Progress
from swav.reporting.page import report
from swav.results.console import format_results
from swav.results.results import read_results
from swav.training.loop import pretrain

TRAIN, VAL = 2000, 500
VOC_TRAIN, VOC_TEST = 480, 200  # 16 positives of each class, and 304 negatives
# What is shown of each benchmark, of all that it measures.
HEADLINES = {
    "knn": "top-1 k=20",
    "linear": "top-1",
    "linear-stages": "top-1 best layer",
    "semisup": "top-1 10%",
    "svm": "mAP best layer",
    "lowshot": "mAP k=16",
    "segment-linear": "mIoU",
}
# Protocol smoke at the size of the drawn images. On 2,000 images the published batch and rate of the linear layer would
# be 40 steps that end in divergence.
SETTINGS: dict[str, Any] = {"protocol": "smoke", "size": 64, "knn.k": [20], "linear.batch": 32, "linear.lr": 3e-3}
QUICKER: dict[str, Any] = {
    "linear.epochs": 4,
    "linear-stages.epochs": 3,
    "linear-stages.steps": [2],
    "semisup.fraction": 0.1,
    "segment-linear.iterations": 80,
}


def demo(out: str | Path) -> Path:
    """Draw shapes, pre-train on them, measure random and pre-trained weights side by side, write the report.

    The last that is printed: the table "random vs SwAV", then the report's path. What is there already is not done
    again; what was cut off is resumed.

    Args:
        out: folder for data and run.

    Returns:
        The report.

    Raises:
        DataError: `out` holds other files where the shapes go.
        ConfigError: `out` holds a run with other settings.
        MachineError: the disk is full.
    """
    data, run = Path(out) / "data", Path(out) / "run"
    with Progress("drawing shapes", TRAIN + VAL) as progress:
        write_shapes(data / "imagenet", train=TRAIN, val=VAL, progress=progress)
    with Progress(
        "drawing more, labelled as VOC's", 2 * VOC_TRAIN + VOC_TEST
    ) as progress:  # of 2007, and of 2012 with masks
        write_shapes(data / "VOCdevkit", "voc0712", train=VOC_TRAIN, val=VOC_TEST, progress=progress)
    pretrain("demo", out=run, data=data / "imagenet")
    weights = [f"random:{run}", str(run)]
    if not _measured(run, weights):
        bench(list(HEADLINES), weights=weights, data=data, out=run, **SETTINGS | QUICKER)
    page = report(run)
    found = read_results(run).results
    rows = [row for row in found if row.weights in weights and row.metric == HEADLINES.get(row.bench)]
    deliver("\n".join(["random vs SwAV", format_results(rows), str(page)]))
    return page


def _measured(run: Path, weights: list[str]) -> bool:
    """Whether every benchmark of every weights is in results.json. (Weights of a finished run do not change.)"""
    done = {(row.bench, row.weights) for row in read_results(run).results}
    return all((name, source) in done for name in HEADLINES for source in weights)
