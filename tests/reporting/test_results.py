"""Attacks: results that overwrite each other, vanish, are no numbers, or claim to be comparable.

Run: pytest tests/reporting/test_results.py
"""

import dataclasses
import json

import pytest

from swav.errors import DataError, EnvironmentError_, NumericsError
from swav.reporting.results import NotRun, Result, read_results, table, write_results


def result(**changed):
    row = Result(
        bench="knn",
        metric="top-1 k=20",
        value=61.5,
        unit="%",
        n=1000,
        protocol="page",
        comparable=False,
        difference="10 classes instead of 1,000",
        seed=0,
        weights="run",
        weights_sha256="ab" * 32,
        versions={"swav": "0.1.0"},
        config={"size": 96},
        log=None,
        name="run",
    )
    return dataclasses.replace(row, **changed)


def test_the_file_has_the_promised_fields(tmp_path):
    write_results(tmp_path, [result()], [NotRun("svm", "no such folder", "VOCdevkit")])
    content = json.loads((tmp_path / "results.json").read_text())
    promised = (
        "bench metric value unit n protocol comparable difference seed weights weights_sha256 versions config log name"
    )
    assert list(content["results"][0]) == promised.split()
    assert content["not_run"] == [{"bench": "svm", "reason": "no such folder", "expected": "VOCdevkit"}]
    assert content == read_results(tmp_path)


def test_weights_keep_the_last_name_that_they_were_given(tmp_path):
    write_results(tmp_path, [result(name="first"), result(weights="b", name="b")])
    write_results(tmp_path, [result(bench="svm", name="second")])
    rows = write_results(tmp_path, [result(bench="linear")])["results"]  # by a command without name=
    assert [(row["bench"], row["weights"], row["name"]) for row in rows] == [
        ("knn", "run", "second"),
        ("knn", "b", "b"),
        ("svm", "run", "second"),
        ("linear", "run", "second"),
    ]


@pytest.mark.parametrize(
    "other", [{"bench": "linear"}, {"metric": "top-5 k=20"}, {"weights": "b"}, {"protocol": "smoke"}, {"seed": 1}]
)
def test_results_are_merged_by_their_key(tmp_path, other):
    write_results(tmp_path, [result(), result(**other)])
    content = write_results(tmp_path, [result(value=70.0, n=5)])
    assert [(row["value"], row["n"]) for row in content["results"]] == [(70.0, 5), (61.5, 1000)]


def test_a_benchmark_that_was_run_is_no_longer_listed_as_missing(tmp_path):
    write_results(tmp_path, [], [NotRun("knn", "missing", "labels"), NotRun("svm", "missing", "VOC")])
    content = write_results(tmp_path, [result()], [NotRun("svm", "still missing", "VOC")])
    assert [(row["bench"], row["reason"]) for row in content["not_run"]] == [("svm", "still missing")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(NumericsError, match="knn top-1 k=20"):
        result(value=value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"results": 3, "not_run": []}', '{"results": [{}], "not_run": []}'])
def test_another_file_of_that_name_is_neither_read_nor_overwritten(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="another --out"):
        write_results(tmp_path, [result()])
    assert (tmp_path / "results.json").read_text() == text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_results(tmp_path, [result()])
    before = (tmp_path / "results.json").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentError_, match="No space left"):
        write_results(tmp_path, [result(value=1.0)])
    assert (tmp_path / "results.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_the_table_sets_weights_side_by_side_and_says_what_is_not_comparable(tmp_path):
    rows = [
        result(weights="random:run", name="random:run", value=31.25),
        result(),
        result(metric="top-1 k=200", comparable=True),
    ]
    text = table(write_results(tmp_path, rows, [NotRun("svm", "no folder", "VOC")]))
    head, rule, first, second, remark, missing = text.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][-2:] == ["random:run", "run"]
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "knn",
        "top-1 k=20",
        "page",
        "1,000",
        "31.25",
        "61.50",
    ]
    assert [cell.strip() for cell in second.strip("|").split("|")][-2:] == ["-", "61.50"]
    assert len({len(line) for line in (head, rule, first, second)}) == 1
    assert "10 classes instead of 1,000" in remark and "no folder" in missing
