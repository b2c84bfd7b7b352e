"""Attacks: results that are compared though they are of other images or labels; a difference of the wrong sign; rows of protocol own
among published ones, or without their uncertainty.

Run: pytest tests/results/test_paired.py
"""

import json

import numpy as np
import pytest

from swav.errors import DataError
from swav.results.console import format_differences, format_results
from swav.results.intervals import PairedDifference
from swav.results.paired import answers, paired_difference
from swav.results.published import read_published
from swav.results.render import write_tables
from swav.results.results import Result, read_results, write_results
from swav.results.tables import page_tables
from tests.results.example import row

OF = {"train": "a", "score": "b", "labels": "c"}


def own(folder, metric, right, weights="runs/a", of=OF, images=None, bench="knn", groups=None, **changed):
    """A row of protocol own, and its log."""
    right = np.array(right, bool)
    log = f"{bench}/{weights.replace('/', '-')}-{metric}.json"
    (folder / bench).mkdir(exist_ok=True)
    images = [f"{i}.png" for i in range(len(right))] if images is None else images
    (folder / log).write_text(json.dumps(answers(of, images, {metric: right}, groups)))
    fields = {"protocol": "own", "comparable": False, "difference": "protocol own; 3 classes", "n": len(right)}
    fields |= {"log": log, "spread": 1.25, "interval": (20.5, 60.25)}
    return Result(**row(bench, metric, 100 * float(right.mean()), weights, **fields | changed))


FIRST, SECOND = [1] * 50 + [0] * 50, [1] * 45 + [0] * 5 + [1] * 30 + [0] * 20


def test_a_difference_is_the_second_minus_the_first_over_the_same_images(tmp_path):
    rows = own(tmp_path, "top-1 k=20", FIRST), own(tmp_path, "top-1 k=20", SECOND, "random:runs/a")
    found = paired_difference(*rows, tmp_path)
    assert (found.only_first, found.only_second, found.n, found.difference) == (5, 30, 100, 0.25)


def test_a_difference_of_groups_has_their_interval_and_a_log_whose_groups_do_not_fit_is_refused(tmp_path):
    groups = np.arange(100) // 5
    one, other = (own(tmp_path, "top-1", right, name, groups=groups) for right, name in ((FIRST, "a"), (SECOND, "b")))
    found = paired_difference(one, other, tmp_path)
    assert found == PairedDifference.of(np.array(FIRST, bool), np.array(SECOND, bool), groups)
    assert found.effect > 2 and found.difference == 0.25 and found.is_none  # images alone: 13.5 to 36.0
    assert not PairedDifference(5, 30, 100).is_none
    log = tmp_path / one.log
    log.write_text(log.read_text().replace('"groups": [0, ', '"groups": ['))
    with pytest.raises(DataError, match="images and groups do not agree"):
        paired_difference(one, other, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"of": OF | {"labels": "x"}}, "same images and labels"),
        ({"of": OF | {"train": "x"}}, "same images and labels"),
        ({"images": [f"{i + 1}.png" for i in range(100)]}, "same images and labels"),
        ({"images": ["0.png"]}, "which images are right"),
        ({"seed": 1}, "of one seed"),
        ({"protocol": "smoke"}, "of one protocol"),
        ({"log": None}, "expected a log"),
        ({"log": "knn/gone.json"}, "which images are right"),
    ],
)
def test_results_that_cannot_be_paired_are_refused_and_the_console_says_why(tmp_path, changed, message):
    rows = own(tmp_path, "top-1 k=20", FIRST), own(tmp_path, "top-1 k=20", SECOND, "random:runs/a", **changed)
    with pytest.raises(DataError, match=message):
        paired_difference(*rows, tmp_path)
    if rows[1].protocol == "own" and rows[1].seed == 0:
        shown = format_differences(rows, ["runs/a", "random:runs/a"], tmp_path)
        assert "unknown: " in shown and message in shown


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"answers": {}}', '{"answers": {"images": [], "right": {"top-1 k=20": ""}}}']
)
def test_a_damaged_log_is_named(tmp_path, text):
    rows = own(tmp_path, "top-1 k=20", FIRST), own(tmp_path, "top-1 k=20", SECOND, "random:runs/a")
    (tmp_path / str(rows[1].log)).write_text(text)
    with pytest.raises(DataError, match=r"random-runs|random:runs"):
        paired_difference(*rows, tmp_path)


def test_the_console_compares_with_the_first_weights_at_k_20_or_the_nearest(tmp_path):
    rows = [
        own(tmp_path, f"top-1 k={k}", right, weights, name=weights)
        for k in (1, 10, 100)
        for weights, right in (("runs/a", FIRST), ("runs/b", SECOND if k == 10 else FIRST))
    ]
    same = [own(tmp_path, "top-1", FIRST, weights, bench="linear", name=weights) for weights in ("runs/a", "runs/b")]
    lines = format_differences([*rows, *same], ["runs/a", "runs/b"], tmp_path).splitlines()
    low, high = (100 * end for end in paired_difference(rows[2], rows[3], tmp_path).interval)
    assert lines[0] == f"knn top-1 k=10, runs/b: difference to runs/a: +25.0 ({low:.1f} to {high:.1f})"
    assert (
        lines[1]
        == "linear top-1, runs/b: difference to runs/a: none (-3.7 to 3.7): no difference that 100 images can show"
    )
    assert (
        format_differences(same, ["runs/a", "runs/b"], tmp_path, measured={same[0].key}) == ""
    )  # b is an earlier one's
    assert "linear" in format_differences(same, ["runs/a", "runs/b"], tmp_path, measured={row.key for row in same})
    back = format_differences(rows, ["runs/b", "runs/a"], tmp_path)
    assert f"difference to runs/b: -25.0 ({-high:.1f} to {-low:.1f})" in back
    assert format_differences(rows, ["runs/a"], tmp_path) == ""
    assert format_differences(rows, ["runs/a", "elsewhere"], tmp_path) == ""


def test_the_console_shows_the_gain_over_random_weights_wherever_they_stand(tmp_path):
    rows = [own(tmp_path, "top-1", right, weights, name="") for weights, right in (("a", SECOND), ("random:a", FIRST))]
    for weights in (["a", "random:a"], ["random:a", "a"]):
        assert format_differences(rows, weights, tmp_path).startswith("knn top-1, a: difference to random:a: +25.0 (")


def test_rows_of_protocol_own_show_their_uncertainty_and_stand_apart_from_published_numbers(tmp_path):
    rows = [own(tmp_path, "top-1 k=20", FIRST), own(tmp_path, "top-1", SECOND, bench="linear")]
    published = Result(**row("knn", "top-1 k=20", 60.61))
    content = write_results(tmp_path, [*rows, published])
    stored = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(each.get("spread"), each.get("interval")) for each in stored] == [(1.25, [20.5, 60.25])] * 2 + [
        (None, None)
    ]
    assert "spread" not in stored[2] and "interval" not in stored[2]
    assert read_results(tmp_path).results[0].interval == (20.5, 60.25)
    text = format_results(content.results)
    assert "50.00 (20.50 to 60.25; 1.25)" in text and "in brackets: 95 %" in text and "60.61 |" in text
    tables = page_tables(content, read_published())
    of_own = [
        table for table in tables if any("own" in each.cells[0].text for each in table.rows if each.kind == "ours")
    ]
    (table,) = of_own
    assert table is tables[-1] and not table.comparable and len(table.rows) == 1
    assert table.headings[1:] == ("knn top-1 k=20", "linear top-1")
    assert [cell.text for cell in table.rows[0].cells[1:]] == ["50.0 (20.5 to 60.2)", "75.0 (20.5 to 60.2)"]
    assert any("knn top-1 k=20 1.25, linear top-1 1.25" in note for note in table.notes)
    write_tables(tmp_path)
    for name in ("tables.md", "tables.html", "tables.tex"):
        assert "20.5 to 60.2" in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "changed", [{"interval": [1.0, None]}, {"interval": "wide"}, {"spread": float("nan")}, {"spread": "1"}]
)
def test_an_uncertainty_of_another_type_counts_as_unknown_and_is_kept(tmp_path, changed):
    old = row("knn", "top-1 k=20", 1.0, protocol="own", comparable=False) | changed
    (tmp_path / "results.json").write_text(json.dumps({"results": [old], "not_run": []}))
    (found,) = read_results(tmp_path).results
    assert all(getattr(found, key) is None for key in changed)
    assert "1.00 |" in format_results([found])
