"""Attacks: a results.json, or tables, that change under a new version; rows of older and newer versions that are lost, damaged or
misread; a metric whose unit is not percent.

The results.json of tests/results/stored/ were written before results were typed, and before the file had a format: `first` of the
results in example.py, `second` by merging more of them into older.json, whose rows are those of earlier and later versions. Tables
and the terminal's lines beside them are of today's layout.

Run: pytest tests/results/test_stored.py
"""

import json
import re
import shutil
from pathlib import Path

import pytest

from swav.errors import DataError
from swav.evaluation.task import Score
from swav.reporting.page import report
from swav.results import layout, render, tables, units
from swav.results.console import format_results
from swav.results.published import read_published
from swav.results.render import write_tables
from swav.results.results import NotRun, Result, Results, read_results, write_results
from tests.results.example import FIRST, NOT_RUN, SECOND, row

STORED = Path(__file__).parent / "stored"


@pytest.fixture(autouse=True)
def two_published_rows(monkeypatch):
    monkeypatch.setattr(render, "read_published", lambda: read_published()[:2])


def results_of(fields):
    return [Result(**each) for each in fields]


def lacks_of(fields):
    return [NotRun(**each) for each in fields]


def with_format(text):
    return text.replace("{\n", '{\n "format": 1,\n', 1)


def written(folder):
    """The files of a folder of results, as those in stored/ were taken; the style of the page is no concern of this test."""
    (folder / "svm").mkdir()
    (folder / "svm" / "log.json").write_text("{}")
    write_tables(folder)
    content = read_results(folder)
    found = {
        path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".html", ".tex")
    }
    found["tables.html"] = re.sub(r"<style>.*</style>", "<style></style>", found["tables.html"], flags=re.DOTALL)
    return found | {"console.txt": format_results(content.results, content.not_run) + "\n"}


def stored(name):
    found = {path.name: path.read_text() for path in (STORED / name).iterdir()}
    return found | {"results.json": with_format(found["results.json"])}


def test_the_same_results_give_the_same_bytes_as_before_they_were_typed(tmp_path):
    write_results(tmp_path, results_of(FIRST), lacks_of(NOT_RUN))
    assert written(tmp_path) == stored("first")


def test_a_file_of_other_versions_is_merged_as_before_and_keeps_what_is_unknown(tmp_path):
    shutil.copy(STORED / "older.json", tmp_path / "results.json")
    write_results(tmp_path, results_of(SECOND), [NotRun(bench="inat18", reason="no data", expected="iNaturalist2018")])
    assert written(tmp_path) == stored("second")
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert any("interval" in each and "later" in each["config"] for each in rows)


def test_a_file_without_a_format_shows_the_same_tables(tmp_path):
    shutil.copy(STORED / "first" / "results.json", tmp_path)
    assert written(tmp_path) == stored("first") | {"results.json": (STORED / "first" / "results.json").read_text()}


def test_protocol_page_is_read_and_merged_as_published(tmp_path):
    old = {"results": [row("knn", "top-1 k=10", 1.0, protocol="page")], "not_run": []}
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert [each.protocol for each in read_results(tmp_path).results] == ["published"]
    report(tmp_path)
    assert (
        "1.0" in (tmp_path / "tables.md").read_text() and "Not comparable" not in (tmp_path / "tables.md").read_text()
    )
    content = write_results(tmp_path, [Result(**row("knn", "top-1 k=10", 2.0))])
    assert [(each.value, each.protocol) for each in content.results] == [(2.0, "published")]
    assert '"page"' not in (tmp_path / "results.json").read_text()


# -- the format


@pytest.mark.parametrize("number", [2, 17])
def test_a_newer_format_is_refused_in_one_line_and_never_overwritten(tmp_path, number):
    text = json.dumps({"format": number, "results": {"by": "another layout"}})
    (tmp_path / "results.json").write_text(text)
    for work in (read_results, write_tables, lambda folder: write_results(folder, [Result(**FIRST[0])])):
        with pytest.raises(DataError, match=f"found format {number}, which a newer swav wrote; update swav") as caught:
            work(tmp_path)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert f"results.json: expected format 1 or older, found format {number}" in report(tmp_path).read_text()
    assert (tmp_path / "results.json").read_text() == text
    assert not (tmp_path / "tables.md").exists()


@pytest.mark.parametrize("number", ["1", 0, None, True, 1.0])
def test_a_format_that_is_none_is_refused(tmp_path, number):
    (tmp_path / "results.json").write_text(json.dumps({"format": number, "results": [], "not_run": []}))
    with pytest.raises(DataError, match=r"expected format 1, found .*another --out"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "changed", [{"seed": None}, {"metric": None}, {"weights": ["a"]}, {"seed": "first"}, {"bench": {}}]
)
def test_a_row_whose_key_is_of_another_type_is_neither_read_nor_overwritten(tmp_path, changed):
    text = json.dumps({"results": [row("knn", "top-1 k=10", 1.0) | changed], "not_run": []})
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="expected lists 'results' and 'not_run'"):
        write_results(tmp_path, [Result(**FIRST[0])])
    assert (tmp_path / "results.json").read_text() == text


@pytest.mark.parametrize(
    "changed",
    [
        {"value": "70"},
        {"value": None},
        {"n": "many"},
        {"config": [1]},
        {"versions": 3},
        {"log": {}},
        {"comparable": "yes"},
    ],
)
def test_a_field_of_another_type_counts_as_unknown_and_is_kept(tmp_path, changed):
    text = json.dumps({"results": [row("knn", "top-1 k=10", 1.0) | changed], "not_run": [], "later": {"a": 1}})
    (tmp_path / "results.json").write_text(text)
    write_tables(tmp_path)
    report(tmp_path)
    content = read_results(tmp_path)
    assert format_results(content.results)
    write_results(tmp_path, [Result(**FIRST[-1])])
    found = json.loads((tmp_path / "results.json").read_text())
    assert changed.items() <= found["results"][0].items() and found["later"] == {"a": 1}


# -- units


@pytest.fixture
def pixels(monkeypatch):
    """A metric in pixels, less of which is better, and a table of the page that has it."""
    monkeypatch.setitem(units.METRICS, "EPE", units.Metric("px", decimals=1, higher_is_better=False))
    flow = layout.TableLayout(("Flow", "Of two frames."), "Optical flow", "", (layout.Column("EPE", "flow", "EPE"),))
    monkeypatch.setattr(tables, "PAGE", (flow,))


def in_pixels(value, weights="runs/a", **changed):
    score = Score("EPE", value, 100, "")
    return Result(**row("flow", score.metric, score.value, weights, unit=score.unit, n=score.n, **changed))


def test_a_metric_in_another_unit_needs_no_other_code(tmp_path, pixels):
    found = [in_pixels(5.25, "random:runs/a"), in_pixels(3.0), in_pixels(4.0, seed=1)]
    content = write_results(tmp_path, [*found, Result(**row("knn", "top-1 k=10", 60.0))])
    assert {each["unit"] for each in json.loads((tmp_path / "results.json").read_text())["results"]} == {"px", "%"}
    text = format_results(content.results)
    assert re.search(r"\| EPE \[px\] +\|.*\| 3\.5 ± 0\.7 \(n=2\) \|", text) and "top-1 k=10 [%]" in text
    assert "| metric [px] |" in format_results(found)
    page = report(tmp_path).read_text()
    assert ">px</td>" in page and "+1.8" in page  # 5.25 to 3.5: less is better
    for name in ("tables.md", "tables.html", "tables.tex"):
        shown = (tmp_path / name).read_text()
        assert "EPE" in shown and "px" in shown and "3.5" in shown
    (table,) = tables.page_tables(Results(results=tuple(found)), ())
    assert table.headings[1] == "EPE [px]"


def test_a_score_names_its_metric_and_so_its_unit():
    assert [Score(name, 1.0, 1, "").unit for name in ("top-1 k=20", "mAP best layer", "box AP50", "mIoU")] == ["%"] * 4
    with pytest.raises(ValueError, match=r"accuracy: expected a score named by one of top-1, .*METRICS"):
        _ = Score("accuracy", 1.0, 1, "").unit


def test_a_benchmark_and_a_metric_of_another_version_stand_in_a_table_of_their_own(tmp_path):
    other = row("depth-nyu", "rmse", 0.61) | {"unit": "m"}
    (tmp_path / "results.json").write_text(json.dumps({"results": [other], "not_run": []}))
    report(tmp_path)
    assert r"rmse \[m\]" in (tmp_path / "tables.md").read_text() and "0.61" in (tmp_path / "tables.tex").read_text()
