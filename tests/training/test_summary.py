"""Attacks: a dry run that scrolls away, that hides a choice, or that prints a path which it didn't make.

Run: pytest tests/training/test_summary.py
"""

import pytest

from swav.config import Recipe
from swav.training.summary import HEIGHT, WIDTH, screen

PLAN = "\n".join(
    [
        "images     5000 from photos (the whole of it); 3 unreadable left out",
        "steps      62400 = 800 epochs x 78, batch 64 over 1 process",
        "time       2 hours, from the start of this command to its report",
        "views      2x64 + 4x32, codes from [0, 1]",
        "network    resnet18, width 0.5, stem half, 110 prototypes",
        "forward    bf16, 64 images at a time",
        "optimiser  adam, learning rate 0.003 to 3e-06",
        "labels     none used (photos: expected labels, found none)",
        *(f"auto       {key} = [1, 2, 3]: a reason of {key} that is long{' and longer' * i}" for i, key in enumerate(Recipe.model_fields)),
        "auto       crops, batch: as the run in r has them",
        f"warning    few images{' and fewer' * 20}",
        "init       all of weights.pth",
    ]
)  # fmt: skip
FORECAST = (
    "time       3 hours at 33 images/s\nmemory     1.3 GB a process\ndisk       0.2 GB\nmeasured   in 6 s"
    + " of steps" * 15
)


def choices(count: int) -> str:
    """The plan with so many choices."""
    lines = PLAN.splitlines()
    kept = [line for line in lines if line.startswith("auto")][:count]
    return "\n".join(line for line in lines if not line.startswith("auto") or line in kept)


@pytest.mark.parametrize("count", [0, 1, 10, 25, 40])
def test_a_dry_run_is_one_screen_and_names_every_choice(count):
    shown = screen(choices(count), FORECAST)
    lines = shown.splitlines()
    assert len(lines) <= HEIGHT == 40 and max(map(len, lines)) <= WIDTH == 100
    chosen = [line[11:].partition(" = ")[0] for line in choices(count).splitlines() if line.startswith("auto")]
    assert all(f"{key} = " in shown or f"{key}=" in shown or key.startswith("crops, ") for key in chosen)
    assert lines[0] == "Images" and ("Chosen by auto" in lines) == (count > 0) and "Warnings" in lines


def test_with_few_choices_each_has_its_reason():
    assert " also " not in screen(choices(10), FORECAST) and " also " in screen(choices(40), FORECAST)


def test_a_screen_is_filled_before_reasons_are_left_out():
    assert len(screen(choices(40), FORECAST).splitlines()) >= HEIGHT - 1


def test_full_gives_every_reason_whole():
    words = " ".join(screen(PLAN, FORECAST, full=True).split())
    for line in PLAN.splitlines() + FORECAST.splitlines():
        assert " ".join(line[11:].split()) in words
    assert "--full" not in words


def test_the_budget_and_the_forecast_of_time_stay_apart():
    shown = screen(PLAN, FORECAST)
    assert shown.index("time       2 hours") < shown.index("What it will take") < shown.index("time       3 hours")
