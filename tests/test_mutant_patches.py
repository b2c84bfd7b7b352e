"""Attacks: a table of wrong variants that has gone stale, and a variant of published numbers that no fast test notices.

Run: pytest tests/test_mutant_patches.py, with -m long for every variant; or make mutants
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutant_runs import ROOT, Mutant, table

MUTANTS = table()
QUICK = "merged without the seed"


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def run(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.mutant_runs", name]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_are_sixty_and_more_each_of_its_own_name_and_every_part_has_some():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    parts = {mutant.file.partition("/")[0] for mutant in MUTANTS}
    assert {"algorithm.py", "data", "evaluation", "metrics.py", "network", "results", "training"} <= parts


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_variant_changes_the_source_at_one_place_and_is_still_a_program(mutant: Mutant):
    source = mutant.source
    assert source != (ROOT / "swav" / mutant.file).read_text()
    if mutant.file.endswith(".py"):
        ast.parse(source)


@pytest.mark.parametrize("name", sorted({mutant.test for mutant in MUTANTS}))
def test_the_test_that_a_variant_names_is_there_and_a_fast_one_without_real_data(name: str):
    file, _, function = name.partition("::")
    path = ROOT / "tests" / file
    found = functions(path)[function.partition("[")[0]]
    marks = {ast.unparse(mark) for mark in found.decorator_list}
    assert not [mark for mark in marks if mark.startswith(("pytest.mark.slow", "pytest.mark.long", "pytest.mark.gpu"))]
    assert "data_root" not in {argument.arg for argument in found.args.args}  # skipped where there is none
    assert "\npytestmark" not in path.read_text()


def test_a_variant_fails_its_test_and_the_right_source_passes_it():
    done = run(QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 mutants, 1 fail" in done.stdout


def test_a_variant_that_survives_is_named_and_the_exit_code_is_1(monkeypatch, capsys):
    monkeypatch.setattr("tests.mutant_runs.outcomes", lambda mutants, say: {mutant.name: False for mutant in mutants})
    from tests.mutant_runs import main

    assert main([QUICK]) == 1 and QUICK in capsys.readouterr().err
    assert main(["no such variant"]) == 2


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_every_variant_fails_its_test(name: str):
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
