"""Attacks: a bench that leaves its reader without a word of what it does, or an end by a signal without a report.

Run: pytest tests/evaluation/test_runner_words.py
"""

import os
import signal
from typing import Any

import pytest

from swav.errors import Stopped
from swav.evaluation import runner
from swav.results.results import read_results
from tests.evaluation.test_runner import QUICK, QUICK_KNN


def test_which_of_how_many_is_measured_is_said_and_a_report_is_left(colours, tmp_path, capsys):
    both = ["random:tiny", "random:cifar10"]
    runner.bench(["knn"], weights=both, data=colours, out=tmp_path, name=["first", "second"], **QUICK_KNN)
    said = [line for line in capsys.readouterr().err.splitlines() if " of 2: " in line]
    assert said == ["1 of 2: knn of first, protocol published", "2 of 2: knn of second, protocol published"]
    page = (tmp_path / "report.html").read_text()
    assert "second" in page and (tmp_path / "tables.html").exists()


def test_a_signal_between_two_benchmarks_leaves_the_report_of_what_is_done(colours, tmp_path, monkeypatch):
    run = runner._run

    def once(*arguments: Any) -> Any:
        found = run(*arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(runner, "_run", once)
    with pytest.raises(Stopped, match="what is finished is saved; rerun the same command to resume"):
        runner.bench(["knn", "linear"], weights=["random:tiny"], data=colours, out=tmp_path, **QUICK)
    assert {row.bench for row in read_results(tmp_path).results} == {"knn"}
    assert "knn" in (tmp_path / "report.html").read_text() and (tmp_path / "tables.html").exists()
