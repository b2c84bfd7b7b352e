"""Attacks: a benchmark that is known in one place and not in another.

Run: pytest tests/evaluation/test_catalog.py
"""

from typing import Any

import pytest
from typer.testing import CliRunner

from swav.cli import app
from swav.data.sources.catalog import DATASETS
from swav.errors import ConfigError
from swav.evaluation import runner
from swav.evaluation.catalog import CATALOG, Benchmark
from swav.evaluation.request import resolve
from swav.results.units import METRICS, Metric
from tests.evaluation.dummy import DummySettings


def test_every_benchmark_has_a_data_set_and_a_smoke_protocol():
    assert {entry.settings.data for entry in CATALOG.values()} == DATASETS.keys()
    for name in CATALOG:
        assert resolve([name], {"protocol": "smoke"})[1][name] != resolve([name], {})[1][name]


def test_one_module_and_one_entry_make_a_benchmark(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "EPE", Metric("px", 3, higher_is_better=False))
    entry = Benchmark("tests.evaluation.dummy", DummySettings, {"size": 16}, distributed=False)
    monkeypatch.setitem(CATALOG, "dummy", entry)
    overrides: dict[str, Any] = {"protocol": "smoke", "dummy.offset": 1000.0, "workers": 0, "device": "cpu"}
    (row,) = runner.bench(["dummy"], weights=["random:tiny"], data=colours, out=tmp_path, **overrides).results
    assert (row.bench, row.metric, row.unit, row.n) == ("dummy", "EPE", "px", 12)
    assert row.value is not None and row.value > 900 and "protocol smoke" in row.difference
    assert (
        r"EPE \[px\]" in (tmp_path / "tables.md").read_text()
        and f"{row.value:.3f}" in (tmp_path / "tables.tex").read_text()
    )
    assert "dummy" in resolve(["all"], {})[1]
    with pytest.raises(ConfigError, match="did you mean 'dummy'"):
        resolve(["dumy"], {})
    with pytest.raises(ConfigError, match=r"did you mean 'dummy.offset'"):
        resolve(["dummy"], {"dummy.ofset": 1})
    assert runner.bench(
        ["dummy"], weights=["random:tiny"], data=colours, out=tmp_path, **overrides, dry_run=True
    ).dry_run
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="unknown benchmark 'dummy'"):
        resolve(["dummy"], {})


def test_the_help_names_every_benchmark_of_the_catalogue():
    shown = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"}).output
    # lines may break within a name, at its hyphen
    assert f"Benchmarks({','.join(CATALOG)};all)" in "".join(shown.split())
