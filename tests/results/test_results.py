"""Attacks: results that overwrite each other, vanish, are no numbers, or claim to be comparable.

Run: pytest tests/results/test_results.py
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swav.errors import DataError, MachineError, NumericsError
from swav.results.console import format_results
from swav.results.render import write_tables
from swav.results.results import NotRun, Result, now, read_results, write_results

ROOT = Path(__file__).parents[2]


def result(**changed):
    row = {
        "bench": "knn",
        "metric": "top-1 k=20",
        "value": 61.5,
        "unit": "%",
        "n": 1000,
        "protocol": "published",
        "comparable": False,
        "difference": "10 classes instead of 1,000",
        "seed": 0,
        "weights": "run",
        "weights_sha256": "ab" * 32,
        "versions": {"swav": "0.1.0"},
        "config": {"size": 96},
        "log": None,
        "name": "run",
    }
    return Result(**row | changed)


def not_run(bench, reason, expected):
    return NotRun(bench=bench, reason=reason, expected=expected)


def test_the_file_has_the_promised_fields(tmp_path):
    write_results(tmp_path, [result()], [not_run("svm", "no such folder", "VOCdevkit")])
    content = json.loads((tmp_path / "results.json").read_text())
    promised = (
        "bench metric value unit n protocol comparable difference seed weights weights_sha256 versions config log name"
    )
    assert list(content) == ["format", "results", "not_run"] and content["format"] == 1
    assert list(content["results"][0]) == promised.split()
    assert content["not_run"] == [{"bench": "svm", "reason": "no such folder", "expected": "VOCdevkit"}]
    assert content == read_results(tmp_path).model_dump()


def test_a_row_says_when_it_was_measured_and_a_repetition_leaves_the_file_as_it_is(tmp_path):
    first = result(measured="2026-10-02T14:05:33Z", interval=(1.0, 2.0))
    write_results(tmp_path, [first])
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text)["results"][0]["measured"] == "2026-10-02T14:05:33Z"
    write_results(tmp_path, [first.changed(measured="2026-10-03T00:00:00Z")])
    assert (tmp_path / "results.json").read_text() == text
    later = write_results(tmp_path, [first.changed(measured="2026-10-03T00:00:00Z", value=70.0)]).results
    assert [(row.value, row.measured) for row in later] == [(70.0, "2026-10-03T00:00:00Z")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


def test_numbers_of_earlier_commands_are_marked_with_their_date():
    old = result(measured="2026-10-02T14:05:33Z", weights="random:a", name="")
    rows = [old, result(bench="linear"), result(weights="b", name="b")]
    lines = format_results(rows, measured={rows[2].key}).splitlines()
    assert re.search(r"61\.50 † \| +- \| +61\.50 \|", lines[2]) and "61.50 † |" in lines[3]
    assert [line for line in lines if line.startswith("†")] == [
        "† from an earlier command, not measured now (2026-10-02 14:05 UTC): knn of random:a",
        "† from an earlier command, not measured now (date unknown): linear of run",
    ]
    assert "†" not in format_results(rows, measured={row.key for row in rows}) + format_results(rows)


def test_weights_keep_the_last_name_that_they_were_given(tmp_path):
    write_results(tmp_path, [result(name="first"), result(weights="b", name="b")])
    write_results(tmp_path, [result(bench="svm", name="second")])
    rows = write_results(tmp_path, [result(bench="linear")]).results  # by a command without name=
    assert [(row.bench, row.weights, row.name) for row in rows] == [
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
    assert [(row.value, row.n) for row in content.results] == [(70.0, 5), (61.5, 1000)]


def test_a_benchmark_that_was_run_is_no_longer_listed_as_missing(tmp_path):
    write_results(tmp_path, [], [not_run("knn", "missing", "labels"), not_run("svm", "missing", "VOC")])
    content = write_results(tmp_path, [result()], [not_run("svm", "still missing", "VOC")])
    assert [(row.bench, row.reason) for row in content.not_run] == [("svm", "still missing")]


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
    with pytest.raises(MachineError, match="No space left"):
        write_results(tmp_path, [result(value=1.0)])
    assert (tmp_path / "results.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", ".results.lock"}


def test_the_table_sets_weights_side_by_side_and_says_what_is_not_comparable(tmp_path):
    rows = [
        result(weights="random:run", name="random:run", value=31.25),
        result(),
        result(metric="top-1 k=200", comparable=True),
    ]
    content = write_results(tmp_path, rows, [not_run("svm", "no folder", "VOC")])
    text = format_results(content.results, content.not_run)
    head, rule, first, second, remark, missing = text.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][-2:] == ["random:run", "run"]
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        "knn",
        "top-1 k=20",
        "published",
        "1,000",
        "31.25",
        "61.50",
    ]
    assert [cell.strip() for cell in second.strip("|").split("|")][-2:] == ["-", "61.50"]
    assert len({len(line) for line in (head, rule, first, second)}) == 1
    assert "10 classes instead of 1,000" in remark and "no folder" in missing


MERGE = """
import sys
from pathlib import Path
from tests.results.test_results import result
from swav.results.results import write_results
number = int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for seed in range(8):
    write_results(Path(sys.argv[1]), [result(weights=f"w{number}", name=f"w{number}", seed=seed)])
"""


def test_rows_of_weights_that_changed_under_their_name_are_replaced_and_never_averaged(tmp_path, capsys):
    write_results(tmp_path, [result(seed=seed, weights_sha256="old") for seed in (0, 1, 2)])
    write_results(tmp_path, [result(seed=0, weights_sha256="new")])
    rows = read_results(tmp_path).results
    assert [(row.seed, row.weights_sha256) for row in rows] == [(0, "new")]
    assert "3 rows of earlier weights of the same name replaced" in capsys.readouterr().err


@pytest.mark.slow
def test_five_processes_that_merge_at_once_lose_no_row(tmp_path):
    command = [sys.executable, "-c", MERGE, str(tmp_path)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    processes = [subprocess.Popen([*command, str(i)], cwd=ROOT, **pipes) for i in range(5)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, errors
    rows = read_results(tmp_path).results
    assert {(row.weights, row.seed) for row in rows} == {(f"w{i}", seed) for i in range(5) for seed in range(8)}
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", ".results.lock"}


def test_the_temporary_file_of_a_killed_writer_is_removed_and_tables_are_of_the_newest_results(tmp_path):
    (tmp_path / ".results.json.1.tmp").write_text("half")
    write_results(tmp_path, [result()])
    (tmp_path / ".tables.md.1.tmp").write_text("half")

    def read_late(folder):
        with pytest.raises(RuntimeError, match="already holds"):  # nobody may write between this and the tables
            write_results(folder, [result(seed=1)])
        return read_results(folder)

    write_tables(tmp_path, read_late)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
