"""Attacks: words of the command line that become something else, and seeds that make results of nothing drawn.

Run: pytest tests/evaluation/test_settings.py
"""

from collections.abc import Mapping
from typing import Any

import pytest

from swav.evaluation.request import resolve
from swav.evaluation.settings import one_per_seed
from swav.recipe_files import parse_overrides


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("mine", ("mine",)),
        ("2024", ("2024",)),
        ("yes", ("yes",)),
        ("SwAV: ours #2", ("SwAV: ours #2",)),
        ("'[a]'", ("[a]",)),
        ("[a, my run]", ("a", "my run")),
        ("[2024, 1.5]", ("2024", "1.5")),
    ],
)
def test_a_name_is_what_was_typed_and_not_what_yaml_makes_of_it(typed, names):
    assert resolve(["knn"], parse_overrides([f"name={typed}"]))[0].name == names


def test_a_path_is_what_was_typed():
    words = parse_overrides(["lowshot.samples=2024", "semisup.list=a #1: b.txt", "semisup.fraction=0.1"])
    settings: Mapping[str, Any] = resolve(["lowshot", "semisup"], words)[1]
    assert (settings["lowshot"].samples, settings["semisup"].list) == ("2024", "a #1: b.txt")


def test_a_seed_by_which_nothing_is_drawn_makes_no_second_result():
    settings = resolve(["all"], {"seed": 5, "lowshot.samples": "official", "train_images": 100})[1]
    of = {name: [each.seed for each in one_per_seed(chosen, 2, 101, 50)] for name, chosen in settings.items()}
    assert set(map(tuple, of.values())) == {(5, 6)}  # 100 of 101 images are drawn
    of = {name: [each.seed for each in one_per_seed(chosen, 2, 100, 50)] for name, chosen in settings.items()}
    assert {name for name, seeds in of.items() if seeds == [0]} == {"knn", "svm", "lowshot"}
    assert all(seeds == [5, 6] for name, seeds in of.items() if name not in ("knn", "svm", "lowshot"))
