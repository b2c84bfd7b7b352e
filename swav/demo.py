"""`swav demo`: from nothing to a measured backbone in a few minutes, without download or GPU, by the real code path."""

from pathlib import Path

from swav.data.shapes import write_shapes
from swav.evaluation.suite import bench
from swav.reporting.page import write_report
from swav.reporting.results import table
from swav.runtime import Progress
from swav.train import pretrain

TRAIN, VAL = 2000, 500


def demo(out: Path) -> Path:
    """Draws shapes, pre-trains on them, measures random and pre-trained weights side by side, writes the report.

    The table and the report's path are the last that is printed. What is already there is not done again.

    Args:
        out: folder for data and run.

    Returns:
        The report.

    Raises:
        DataError: `out` holds other files where the shapes go.
    """
    data, run = out / "data", out / "run"
    with Progress("drawing shapes", TRAIN + VAL) as progress:
        write_shapes(data, train=TRAIN, val=VAL, progress=lambda done, _: progress.update(done))
    pretrain("demo", run, data=str(data))
    settings = {"protocol": "smoke", "size": 64}
    results = bench(["knn", "linear"], [f"random:{run}", str(run)], data, run, settings)
    report = write_report(run)
    print(table(results))
    print(report)
    return report
