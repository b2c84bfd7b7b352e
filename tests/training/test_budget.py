"""Attacks: a run that outlasts its hours, or leaves them unused, because the machine was busy when it began or became busy on
the way; a plan that a resume does not repeat; processes that plan apart.

The clock is a fake one, so nothing here waits. Kills are in tests/test_resume.py. Run: pytest tests/training/test_budget.py
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from swav import dist, jsonl
from swav.errors import ConfigError
from swav.recipe_files import load_recipe
from swav.strict_yaml import read_yaml
from swav.training import budget, estimate, loop
from swav.training.auto import MOST_EPOCHS
from swav.training.budget import Budget, Costs, plan_steps
from tests.training.test_loop import SMALL

STEPS = 10  # per epoch
HOURS = 1.0
SECONDS = 3600 * HOURS


@dataclasses.dataclass
class Simulation:
    """A run of 10 steps an epoch on a machine whose pace changes.

    Attributes:
        paces: [(share of the budget from which on it holds, seconds of an epoch)].
        guess: seconds of an epoch as measured before the first step.
        every, evaluation: epochs between evaluations, and an evaluation's time in that of an epoch.
        start: seconds before the first step.
        ending: seconds after the last one.
    """

    paces: list[tuple[float, float]]
    guess: float
    every: int = 0
    evaluation: float = 0.0
    start: float = 20.0
    ending: float = 2.0
    clock: float = 0.0

    def epoch(self) -> float:
        return next(epoch for since, epoch in reversed(self.paces) if self.clock >= since * SECONDS)

    def run(self) -> Budget:
        """Play the loop's part; the clock then shows when the run ended."""
        with mock.patch.object(budget, "now", lambda: self.clock):
            self.clock = 0.0
            epochs = min(MOST_EPOCHS, max(1, round((SECONDS - self.start) / self.guess)))
            plan = Budget(HOURS, epochs, STEPS, began=0.0, every=self.every, evaluation=2 * self.evaluation)
            self.clock = self.start
            done = 0
            while done < plan.total_steps:
                self.clock += self.epoch() / STEPS
                done += 1
                plan.made(done)
                if done % STEPS == 0 or done == plan.total_steps:
                    plan.epoch_made(done)
                    if self.every and (done // STEPS % self.every == 0 or done == plan.total_steps):
                        self.clock += self.evaluation * self.epoch()
                    if done < plan.total_steps:
                        plan.plan(done)
            self.clock += self.ending
            return plan


changing = st.lists(st.tuples(st.floats(0, 0.66), st.floats(0.01, 0.1)), max_size=4)


@settings(max_examples=30)
@given(
    first=st.floats(0.01, 0.1),
    changes=changing,
    wrong=st.floats(0.2, 5),
    every=st.sampled_from([0, 1, 3, 10]),
    evaluation=st.floats(0, 0.5),
    start=st.floats(0, 0.1),
)
def test_a_run_ends_within_a_tenth_of_its_hours_if_the_pace_last_changes_before_two_thirds(
    first, changes, wrong, every, evaluation, start
):
    paces = [(0.0, first * SECONDS), *((since, epoch * SECONDS) for since, epoch in sorted(changes))]
    run = Simulation(paces, first * SECONDS * wrong, every, evaluation, start=start * SECONDS)
    run.run()
    assert abs(run.clock - SECONDS) <= 0.1 * SECONDS


@settings(max_examples=30)
@given(epoch=st.floats(0.1, 1), wrong=st.floats(0.5, 2))
def test_long_epochs_end_within_half_of_one(epoch, wrong):
    assume(1.5 * wrong * epoch * SECONDS <= SECONDS - 20)  # two at first: else there is no end of one to plan at
    run = Simulation([(0.0, epoch * SECONDS)], wrong * epoch * SECONDS)
    run.run()
    assert abs(run.clock - SECONDS) <= (0.5 * epoch + 0.01) * SECONDS


@settings(max_examples=30)
@given(first=st.floats(0.01, 1.0), changes=st.lists(st.tuples(st.floats(0, 1.5), st.floats(0.005, 1.0)), max_size=6))
def test_whatever_the_pace_does_plans_hold_what_they_must(first, changes):
    paces = [(0.0, first * SECONDS), *((since, epoch * SECONDS) for since, epoch in sorted(changes))]
    made = Simulation(paces, first * SECONDS).run()
    for start, end in made.changes:
        assert start % STEPS == 0 and start < end <= STEPS * MOST_EPOCHS
        assert end % STEPS == 0 or STEPS / 10 <= end - start < STEPS  # in which the rate comes down
    assert [start for start, _ in made.changes] == sorted({start for start, _ in made.changes})


def test_a_machine_that_is_busy_at_the_start_makes_as_many_epochs_as_one_that_is_not():
    idle = Simulation([(0.0, 60.0)], guess=60.0).run()
    busy = Simulation([(0.0, 60.0)], guess=180.0).run()
    assert busy.total_steps == idle.total_steps == 60 * STEPS


def test_a_steady_pace_keeps_its_plan():
    assert not Simulation([(0.0, 60.0)], guess=60.0, every=10, evaluation=0.01).run().changes


def test_few_images_make_at_most_the_most_epochs():
    assert Simulation([(0.0, 0.5)], guess=1.0).run().total_steps == MOST_EPOCHS * STEPS


# -- one plan


def planned(left: float, total: int, done: int = 200, **costs: Any) -> int:
    return plan_steps(left, SECONDS, done, total, STEPS, Costs(**{"epoch": 100.0} | costs))


def test_a_plan_is_the_nearest_number_of_whole_epochs():
    assert planned(540, total=400) == 200 + 5 * STEPS
    assert planned(560, total=400) == 200 + 6 * STEPS


def test_a_plan_leaves_time_for_evaluations_and_the_end():
    assert planned(600, total=400, ending=100) == 200 + 5 * STEPS
    assert planned(600, total=400, evaluation=50, every=1) == 200 + 4 * STEPS
    assert planned(600, total=400, evaluation=100, every=5) == 200 + 5 * STEPS  # after epoch 15, which is the last
    assert planned(700, total=400, evaluation=100, every=5) == 200 + 5 * STEPS  # a sixth would need another after it


def test_a_plan_that_ends_within_a_hundredth_of_the_hours_stays():
    assert planned(1000, total=200 + 97 * STEPS, epoch=10.0) == 200 + 97 * STEPS
    assert planned(1000, total=200 + 96 * STEPS, epoch=10.0) == 200 + 100 * STEPS


def test_the_rate_comes_down_in_a_part_of_an_epoch_where_the_time_is_out():
    assert planned(30, total=400) == 200 + 3  # three tenths of an epoch
    assert planned(-500, total=400) == planned(1, total=400) == 200 + 1
    assert planned(51, total=400) == 200 + STEPS


# -- on disk


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """[now], in place of the machine's clock."""
    time = [0.0]
    with mock.patch.object(budget, "now", lambda: time[0]):
        yield time


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "plan.jsonl").read_text().splitlines()]


def plans_of(out: Path) -> list[tuple[int, int]]:
    return [(line["step"], line["total_steps"]) for line in lines_of(out) if "total_steps" in line]


def epochs(plan: Budget, clock: list[float], count: int, first: int = 1, step_seconds: float = 12.0) -> None:
    for done in range((first - 1) * STEPS + 1, (first + count - 1) * STEPS + 1):
        clock[0] += step_seconds
        plan.made(done)
        if done % STEPS == 0 and done < plan.total_steps:
            plan.epoch_made(done)
            plan.plan(done)


def test_every_plan_is_on_disk_before_it_takes_effect_and_none_that_could_not_be_written_does(clock, tmp_path):
    plan = Budget(HOURS, 10, STEPS, began=0.0, out=tmp_path)
    plan.begin()
    assert plans_of(tmp_path) == [(0, 10 * STEPS)]
    epochs(plan, clock, 1)
    assert plans_of(tmp_path)[1:] == plan.changes == [(STEPS, plan.total_steps)] and plan.total_steps == 30 * STEPS
    with mock.patch.object(jsonl, "append", lambda *_, **__: False):
        epochs(plan, clock, 1, first=2, step_seconds=60.0)
    assert plan.total_steps == 30 * STEPS and len(plan.changes) == 1


def test_a_resume_repeats_the_plans_it_finds_whatever_the_clock_says(clock, tmp_path):
    whole = Budget(HOURS, 10, STEPS, began=0.0, out=tmp_path)
    whole.begin()
    epochs(whole, clock, 2)
    state = whole.state()["plan"] | {"seconds": whole.spent()}
    epochs(whole, clock, 1, first=3, step_seconds=40.0)
    assert len(whole.changes) == 2
    before = plans_of(tmp_path)
    spent, clock[0] = clock[0], 10_000.0
    again = Budget(HOURS, 10, STEPS, began=10_000.0, out=tmp_path, lines=budget.read_plans(tmp_path))
    again.resume(2 * STEPS, json.loads(json.dumps(state)))
    assert again.total_steps == 30 * STEPS and again.changes == whole.changes[:1]
    assert spent - 48 <= again.spent() <= spent  # but for what was not noted yet
    epochs(again, clock, 1, first=3, step_seconds=1.0)
    assert again.changes == whole.changes and plans_of(tmp_path) == before
    epochs(again, clock, 1, first=4, step_seconds=1.0)
    assert len(again.changes) == 3 and len(plans_of(tmp_path)) == len(before) + 1


def test_a_plan_file_that_is_lost_is_replaced_by_the_checkpoints_plans(clock, tmp_path, capsys):
    whole = Budget(HOURS, 10, STEPS, began=0.0, out=tmp_path)
    whole.begin()
    epochs(whole, clock, 2)
    (tmp_path / "plan.jsonl").unlink()
    again = Budget(HOURS, 10, STEPS, began=clock[0], out=tmp_path)
    again.resume(2 * STEPS, whole.state()["plan"])
    assert (again.changes, again.total_steps) == (whole.changes, whole.total_steps) and again.spent() == whole.spent()
    assert "was lost or damaged" in capsys.readouterr().err
    third = Budget(HOURS, 10, STEPS, began=clock[0], out=tmp_path, lines=budget.read_plans(tmp_path))
    assert budget.first_plan(budget.read_plans(tmp_path)) and third.spent() == whole.spent()


def test_time_is_noted_often_enough_that_a_kill_hides_little_of_it(clock, tmp_path):
    plan = Budget(0.1, 10, STEPS, began=0.0, out=tmp_path)  # 360 s
    plan.begin()
    epochs(plan, clock, 1, step_seconds=4.0)
    killed = Budget(0.1, 10, STEPS, began=clock[0], out=tmp_path, lines=budget.read_plans(tmp_path))
    assert clock[0] - 3.6 - 4.0 <= killed.spent() <= clock[0]


def planned_apart() -> tuple[int, list[tuple[int, int]]]:
    clock = [0.0]
    with mock.patch.object(budget, "now", lambda: clock[0]):
        plan = Budget(HOURS, 10, STEPS, began=0.0)
        epochs(plan, clock, 2, step_seconds=6.0 + 18 * dist.rank())
    return plan.total_steps, plan.changes


def test_the_first_process_plans_for_all(two_processes):
    one, two = two_processes(planned_apart)
    assert one == two == (60 * STEPS, [(STEPS, 60 * STEPS)])


# -- a run


@pytest.fixture(scope="module")
def timed(shapes) -> dict[str, Any]:
    """Settings of a run of 4 steps an epoch, for which 36 s of a fake clock are given."""
    return SMALL | {"data": str(shapes), "epochs": "auto", "hours": 0.01, "queue_length": 0, "check_every_epochs": 0}


@pytest.fixture(autouse=True)
def _slow_at_first(monkeypatch):
    """Two epochs are planned at first."""
    monkeypatch.setattr(estimate, "throughput", lambda *_: 3.2)


def tick(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], interrupted: int = 0, at: str = "step:middle"
) -> None:
    """Let each step take so many seconds; break off the command at the n-th passing of a place."""
    now, passed = [0.0], list[str]()
    monkeypatch.setattr(budget, "now", lambda: now[0])

    def pass_by(name: str) -> None:
        passed.append(name)
        if name == "step:middle":
            now[0] += seconds(passed.count(name))
        if name == at and passed.count(name) == interrupted:
            raise InterruptedError

    for module in ("step", "loop", "budget"):
        monkeypatch.setattr(f"swav.training.{module}.fault_point", pass_by)


def end_of(run: Path) -> dict[str, bytes]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return {f"{newest.name}/{path.name}": path.read_bytes() for path in newest.glob("*.safetensors")}


PLANS = [(0, 8), (4, 24), (8, 20), (12, 16)]


def slower(step: int) -> float:
    return 1.5 if step < 8 else 2.5


@pytest.fixture(scope="module")
def whole(timed, tmp_path_factory) -> Iterator[Path]:
    """A run of two epochs as first planned, then six, then five, then four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "throughput", lambda *_: 3.2)
        tick(patch, slower)
        run = loop.pretrain("tiny", out=tmp_path_factory.mktemp("whole") / "run", **timed)
    yield run


def test_a_run_follows_its_plans_to_the_end(whole, timed, monkeypatch, capsys):
    assert plans_of(whole) == PLANS
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert [line["step"] for line in lines] == list(range(1, 17)) and next(iter(end_of(whole))).startswith(
        "step_00000016"
    )
    rates = [line["lr"] for line in lines]
    assert rates[-1] < 0.1 * max(rates) and all(a > b for a, b in itertools.pairwise(rates[4:]))
    capsys.readouterr()
    tick(monkeypatch, lambda _: 1.0)
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    loop.pretrain("tiny", out=whole, **timed)
    assert "finished at step 16; nothing to do" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_checks_without_labels_are_planned_with(timed, tmp_path, monkeypatch):
    tick(monkeypatch, slower)
    run = loop.pretrain("tiny", out=tmp_path / "run", **timed | {"check_every_epochs": 2})
    first, second = plans_of(run)[:2]
    assert first == PLANS[0] and 8 < second[1] < PLANS[1][1]


def test_its_settings_keep_the_hours_and_may_be_used_as_a_recipe(whole, timed):
    kept = read_yaml((whole / "config.yaml").read_text(), "config.yaml")
    assert kept["hours"] == 0.01 and kept["epochs"] == "auto"
    assert load_recipe(str(whole / "config.yaml")).hours == 0.01
    with pytest.raises(ConfigError, match="epochs: auto -> 3"):
        loop.pretrain("tiny", out=whole, **timed | {"epochs": 3, "hours": None})


@pytest.mark.parametrize(("place", "count"), [("step:middle", 3), ("step:middle", 11), ("epoch:end", 3)])
def test_an_interrupted_run_that_makes_the_same_plans_ends_with_the_same_bytes(
    whole, timed, tmp_path, monkeypatch, place, count
):
    out = tmp_path / "parts"
    out.mkdir()
    (out / "plan.jsonl").write_bytes((whole / "plan.jsonl").read_bytes())  # as if killed before its first checkpoint
    tick(monkeypatch, lambda _: 0.3, interrupted=count, at=place)
    with pytest.raises(InterruptedError):
        loop.pretrain("tiny", out=out, **timed)
    monkeypatch.setattr(estimate, "throughput", lambda *_: pytest.fail("measured again"))
    tick(monkeypatch, lambda _: 7.0)
    loop.pretrain("tiny", out=out, **timed)
    assert plans_of(out) == plans_of(whole) and end_of(out) == end_of(whole)


def test_a_plan_that_was_written_and_never_followed_is_followed_by_the_resume(timed, tmp_path, monkeypatch):
    tick(monkeypatch, slower, interrupted=2, at="plan:written")
    with pytest.raises(InterruptedError):
        loop.pretrain("tiny", out=tmp_path / "run", **timed)
    assert plans_of(tmp_path / "run") == PLANS[:3]
    tick(monkeypatch, lambda _: 2.0)
    loop.pretrain("tiny", out=tmp_path / "run", **timed)
    steps = [step for step, _ in plans_of(tmp_path / "run")]
    assert plans_of(tmp_path / "run")[:3] == PLANS[:3] and steps == sorted(set(steps)) and len(steps) > 3


def test_a_plan_of_other_settings_is_not_repeated(whole, timed, tmp_path, monkeypatch):
    out = tmp_path / "other"
    out.mkdir()
    (out / "plan.jsonl").write_bytes((whole / "plan.jsonl").read_bytes())
    tick(monkeypatch, lambda _: 4.5)
    loop.pretrain("tiny", out=out, **timed | {"lr": 1e-4})
    assert plans_of(out) == [(0, 8), (4, 8)]


def test_a_run_of_a_version_that_fixed_the_epochs_resumes_as_it_was(shapes, timed, tmp_path, monkeypatch, capsys):
    fixed = SMALL | {"data": str(shapes), "queue_length": 0}
    whole = loop.pretrain("tiny", out=tmp_path / "whole", **fixed)
    tick(monkeypatch, lambda _: 1.0, interrupted=6)
    with pytest.raises(InterruptedError):
        loop.pretrain("tiny", out=tmp_path / "parts", **fixed)
    tick(monkeypatch, lambda _: 1.0)
    loop.pretrain("tiny", out=tmp_path / "parts", **timed)
    assert "hours: left out" in capsys.readouterr().err
    assert end_of(tmp_path / "parts") == end_of(whole) and not (whole / "plan.jsonl").exists()
