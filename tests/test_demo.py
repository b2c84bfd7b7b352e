"""Attacks: a demo that shows no comparison, hides its report, or begins anew what is there.

Run: pytest tests/test_demo.py -m slow
"""

import json

import pytest

from swav import demo as demo_module
from swav.recipe_files import load_recipe


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_ends_with_a_table_and_the_reports_path_and_again_does_nothing_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_module, "TRAIN", 64)
    monkeypatch.setattr(demo_module, "VAL", 32)
    monkeypatch.setattr(demo_module, "VOC_TRAIN", 480)
    monkeypatch.setattr(demo_module, "VOC_TEST", 40)
    monkeypatch.setitem(demo_module.QUICKER, "segment-linear.iterations", 4)
    report = demo_module.demo(tmp_path)
    first = capsys.readouterr().out.splitlines()
    assert first[-1] == str(report) and report.is_file()
    assert first[0] == "random vs SwAV"
    assert f"random:{tmp_path / 'run'}" in first[1] and f" {tmp_path / 'run'} " in first[1]
    results = tmp_path / "run" / "results.json"
    assert {row["bench"] for row in json.loads(results.read_text())["results"]} == demo_module.HEADLINES.keys()
    shown = [[cell.strip() for cell in line.split("|")[1:3]] for line in first[3:] if line.startswith("|")]
    assert shown == [list(pair) for pair in demo_module.HEADLINES.items()]

    written = files(tmp_path)
    assert demo_module.demo(tmp_path) == report
    assert capsys.readouterr().out.splitlines() == first
    now = files(tmp_path)
    changed = {path.name for path in written.keys() | now.keys() if written.get(path) != now.get(path)}
    assert changed <= {"report.html", ".lock"}  # the hour, and who held the folder


def test_the_demo_trains_with_everything_that_the_paper_has():
    recipe = load_recipe("demo")
    assert recipe.num_views > len(recipe.code_views) > 1
    assert recipe.queue_length and recipe.freeze_prototypes_steps and recipe.optimizer == "larc"
