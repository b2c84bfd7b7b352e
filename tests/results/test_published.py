"""Attacks: published numbers that are mistyped, nameless, without a source, or not where a table looks for them.

Run: pytest tests/results/test_published.py
"""

import importlib.resources
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from swav.errors import DataError
from swav.evaluation.catalog import CATALOG
from swav.results.published import FILE, SCORE_NAMES, Published, parse_published, read_published
from swav.results.units import metric_of

ROOT = Path(__file__).parents[2]

# The page, typed a second time, table by table.
PAGE = {
    "svm": {"mAP best layer": 87.00, "mAP feature5": 87.00},  # column Best Layer: feature5
    "lowshot": dict(
        zip(
            [f"mAP k={k}" for k in (1, 2, 4, 8, 16, 32, 64, 96)],
            [44.68, 55.41, 67.64, 73.67, 78.14, 81.58, 83.98, 85.15],
            strict=True,
        )
    ),
    "linear-stages": {f"top-1 feature{i}": x for i, x in enumerate([16.98, 34.96, 49.26, 65.98, 70.74], start=1)},
    "linear": {"top-1": 70.5},
    "places205": {f"top-1 feature{i}": x for i, x in enumerate([23.33, 35.45, 43.13, 51.98, 55.09], start=1)},
    "knn": {"top-1 k=10": 60.5, "top-1 k=20": 60.6, "top-1 k=100": 59.0, "top-1 k=200": 57.6},
    "detect-voc": {"AP50": 77.64},
    "detect-coco": {
        "box AP": 40.2, "box AP50": 60.5, "box AP75": 43.9, "mask AP": 36.3, "mask AP50": 57.5, "mask AP75": 38.8,
    },
    "segment-voc": {"mIoU": 63.73},
}  # fmt: skip

ROW = """
[[row]]
label = "A"
method = "SwAV"
backbone = "resnet50"
page = true
source = "a table"
[row.values]
linear = { "top-1" = 70.5 }
"""
SECOND = ROW.replace("page = true", "").replace('"A"', '"B"')


def numbers(rows):
    """(label, benchmark, metric, value) of rows."""
    return [(row.label, bench, metric, x) for row in rows for bench, m in row.values.items() for metric, x in m.items()]


def one(method, where):
    """The only row of a method whose label ends so."""
    (row,) = [row for row in read_published() if row.method == method and row.label.endswith(where)]
    return row


def test_the_pages_row_is_the_page():
    row = read_published()[0]
    assert {bench: dict(metrics) for bench, metrics in row.values.items()} == PAGE
    assert (row.method, row.backbone, row.epochs, row.batch) == ("SwAV", "resnet50", 200, 256)
    assert row.page and read_published()[0] is row


def test_every_row_says_in_which_document_and_where_in_it_its_numbers_stand():
    document = (
        r"README\.md|MODEL_ZOO\.md|model_zoo(_ssl)?\.md|arXiv \d{4}\.\d{5}|documentation|benchmarks|pull request \d+"
    )
    rows = read_published()
    assert not [row.source for row in rows if not re.search(rf"({document})[^,;]*, \w", row.source)]
    assert not [row.url for row in rows if row.url and not row.url.startswith("https://")]


def test_no_label_stands_twice_and_no_number_of_one_network_of_one_source_does():
    labels = [row.label for row in read_published()]
    assert len(labels) == len(set(labels)) and len(labels) > 50
    networks = [(row.source, row.method, row.backbone, row.epochs, row.batch, row.note) for row in read_published()]
    assert len(networks) == len(set(networks))


def test_values_are_percent_and_no_fraction():
    values = [value for *_, value in numbers(read_published())]
    assert len(values) > 400 and all(isinstance(value, float) for value in values)
    assert min(values) > 10 and max(values) < 95  # the worst number is a kNN of 11.0; a fraction would be below 1


def test_benchmarks_are_those_of_the_suite():
    assert set(SCORE_NAMES) == {name for name, entry in CATALOG.items() if entry.published}


@pytest.mark.parametrize(
    ("bench", "metrics"),
    {
        "knn": ["top-1 k=10", "top-5 k=200"],
        "linear": ["top-1", "top-5"],
        "linear-stages": ["top-1 feature1", "top-5 best layer", "top-1 feature3 (blocks.7)"],
        "places205": ["top-1 feature5"],
        "inat18": ["top-1 best layer"],
        "semisup": ["top-1 1%", "top-5 10%", "top-1 100%"],
        "svm": ["mAP feature5", "mAP best layer"],
        "lowshot": ["mAP k=96", "mAP k=1 feature5"],
        "detect-voc": ["AP", "AP50", "AP75"],
        "detect-coco": ["box AP", "mask AP75"],
        "segment-voc": ["mIoU"],
        "segment-cityscapes": ["mIoU"],
    }.items(),
)
def test_metrics_have_the_names_that_the_suite_writes(bench, metrics):
    assert all(re.fullmatch(SCORE_NAMES[bench], metric) for metric in metrics)
    assert {metric_of(metric).unit for metric in metrics} == {"%"}


def test_rows_whose_linear_layer_follows_another_recipe_say_so():
    silent = [row.label for row in read_published() if "linear" in row.values and not row.note]
    assert not silent
    assert "MoCo's recipe" in one("MoCo v2", "200 epochs, batch 256 (MMSelfSup)").note


def test_stages_of_a_row_are_five_and_the_best_svm_is_one_of_them():
    for row in read_published():
        if "(MMSelfSup)" in row.label and "linear-stages" in row.values:
            assert list(row.values["linear-stages"]) == [f"top-1 feature{i}" for i in range(1, 6)]
        svm = row.values.get("svm", {})
        assert len(set(svm.values())) <= 1 and (not svm or "mAP best layer" in svm)


def test_more_examples_and_neighbours_agree_with_their_columns():
    """A number in the wrong column breaks what must hold: more examples help, AP50 is above AP, AP above AP75 minus a little."""
    for row in read_published():
        lowshot = list(row.values.get("lowshot", {}).values())
        assert lowshot == sorted(lowshot)
        assert not lowshot or lowshot[-1] < row.values["svm"]["mAP best layer"]
        of_another = [metric for metric in row.values.get("lowshot", {}) if not metric.split("=")[1].isdigit()]
        best = next((metric for metric in row.values.get("svm", {}) if metric != "mAP best layer"), "mAP feature5")
        assert bool(of_another) == (bool(lowshot) and best != "mAP feature5")
        assert all(metric.endswith(best.removeprefix("mAP")) for metric in of_another)
        assert ("low-shot on feature4" in row.note) == bool(of_another)
        coco = row.values.get("detect-coco", {})
        for kind in ("box", "mask"):
            assert coco.get(f"{kind} AP50", 100) > coco.get(f"{kind} AP75", coco.get(f"{kind} AP", 0)) > 0 or not coco
        assert coco.get("box AP", 1) > coco.get("mask AP", 0)
        for bench in ("linear", "semisup", "knn"):
            metrics = row.values.get(bench, {})
            assert all(x < metrics[m.replace("top-1", "top-5")] for m, x in metrics.items()
                       if m.startswith("top-1") and m.replace("top-1", "top-5") in metrics)  # fmt: skip


def test_numbers_of_the_references_stand_in_their_rows():
    """Typed a second time from the sources, a few of each kind."""
    paper = one("SwAV", "800 epochs, batch 4096 (paper)").values
    assert paper["linear"]["top-1"] == 75.3 and paper["knn"]["top-1 k=20"] == 65.7
    assert paper["semisup"] == {"top-1 1%": 53.9, "top-5 1%": 78.5, "top-1 10%": 70.2, "top-5 10%": 89.9}
    assert (paper["svm"]["mAP best layer"], paper["inat18"]["top-1 feature5"]) == (88.9, 48.6)
    assert paper["detect-coco"] == {"box AP": 41.6, "mask AP": 37.8}
    byol = one("BYOL", "200 epochs, batch 4096 by accumulation (MMSelfSup)").values
    assert list(byol["lowshot"].values()) == [45.37, 56.83, 68.47, 74.12, 78.30, 81.53, 83.56, 84.73]
    assert list(byol["linear-stages"].values()) == [15.16, 35.26, 47.77, 63.10, 71.21]
    assert (byol["linear"]["top-1"], byol["detect-voc"]["AP50"]) == (71.72, 80.35)
    vissl = {(row.epochs, row.batch): row.values["linear"]["top-1"] for row in read_published()
             if row.label.endswith("(VISSL)") and row.method == "SwAV" and row.backbone == "resnet50" and "6x96" in row.note}  # fmt: skip
    assert vissl == {(100, 4096): 71.99, (200, 4096): 73.85, (400, 4096): 74.81, (800, 4096): 74.92,
                     (200, 256): 73.07, (400, 256): 74.3}  # fmt: skip
    assert one("Supervised", "(MoCo)").values["detect-voc"] == {"AP50": 81.3, "AP": 53.5, "AP75": 58.8}


def test_the_file_is_part_of_the_package():
    """The wheel takes the package's folder whole, but for what git ignores."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    path = importlib.resources.files("swav.results").joinpath(FILE)
    assert path.is_file() and wheel == {"packages": ["swav"]}
    ignored = subprocess.run(["git", "check-ignore", f"swav/{FILE}"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode != 0


def test_a_right_file_is_read_and_cannot_be_changed():
    first, second = parse_published(ROW + SECOND)
    assert first == Published("A", "SwAV", "resnet50", "a table", {"linear": {"top-1": 70.5}}, page=True)
    assert second.label == "B" and second.epochs is None and not second.page
    with pytest.raises(TypeError):
        first.values["linear"]["top-1"] = 99.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "right", "says"),
    [
        ("linear =", "lineer =", "row 1 .A.: unknown benchmark 'lineer' .did you mean 'linear'"),
        ("linear =", "knn =", "knn: expected a metric like .*found 'top-1'"),
        ('"top-1" =', '"top1" =', "found 'top1'"),
        ("70.5", "nan", "linear top-1: .*found nan"),
        ("70.5", "inf", "found inf"),
        ("70.5", "100.5", "found 100.5"),
        ("70.5", "-1", "found -1"),
        ("70.5", "true", "found True"),
        ("70.5", '"70.5"', "found '70.5'"),
        ('{ "top-1" = 70.5 }', "{ }", "values linear: .*at least 1 item"),
        ('{ "top-1" = 70.5 }', "70.5", "values linear: .*valid dictionary, found 70.5"),
        ('label = "A"', "", "row 1 .without label.: label: (Missing|Field required)"),
        ('"a table"', '""', "source: .*at least 1 character, found ''"),
        ("page = true", "page = true\nepoch = 200", "epoch: .*did you mean 'epochs'"),
        ("page = true", "page = true\nepochs = 0", "epochs: .*greater than or equal to 1, found 0"),
        ("page = true", "page = true\nbatch = true", "batch: .*valid integer, found True"),
        ("page = true", "", "first row only, found it in none"),
        ("[[row]]", "[[rows]]", "expected tables .* found rows"),
        ("[[row]]", "[row]", "expected tables"),
        ("label =", "label", "expected TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(wrong, right, says):
    assert wrong in ROW
    with pytest.raises(DataError, match=says):
        parse_published(ROW.replace(wrong, right))


@pytest.mark.parametrize("text", ["", "row = []", "row = [1]"])
def test_a_file_without_rows_is_refused(text):
    with pytest.raises(DataError, match="expected tables"):
        parse_published(text)


@pytest.mark.parametrize(
    ("second", "says"),
    [(ROW.replace('"A"', '"B"'), "found it in 1, 2"), (ROW.replace("page = true", ""), "'A' twice")],
)
def test_rows_that_contradict_each_other_are_refused(second, says):
    with pytest.raises(DataError, match=says):
        parse_published(ROW + second)
