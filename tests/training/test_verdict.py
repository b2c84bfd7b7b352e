"""Attacks: a verdict that calls a broken run healthy or a healthy one broken, gives advice for another fault, or repeats itself.

Run: pytest tests/training/test_verdict.py
"""

import math
import random
from collections.abc import Sequence

import pytest

from swav.training.verdict import HealthCheck, HealthFacts, verdict

K = 100
GOOD = {"loss": 3.9, "loss_gap": 0.7, "embedding_std": 0.3, "prototypes_used": 0.9, "data_wait": 0.0}
FACTS = HealthFacts(math.log(K), 1000, K)
COLLAPSED = GOOD | {"loss": math.log(K), "loss_gap": 0.0, "prototypes_used": 0.01}


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([GOOD] * 4, "too early"),
        ([GOOD] * 5, "healthy"),
        ([COLLAPSED] * 49, "too early"),
        ([COLLAPSED] * 50, "collapsing"),
        ([GOOD] * 60 + [GOOD | {"embedding_std": 0.01}] * 6, "collapsing"),
        ([GOOD | {"prototypes_used": 0.1}] * 60, "prototypes dying"),
        ([GOOD | {"data_wait": 0.5}] * 60, "data-bound"),
        ([GOOD | {"data_wait": None}] * 60, "healthy"),
        ([{"step": 1, "knn_top1": 50.0}] * 60, "too early"),
    ],
)
def test_the_verdict_of_a_history(lines, state):
    assert verdict(lines, FACTS)[0] == state


def check(gain: float, step: int = 90, value: float = 30.0) -> dict[str, float]:
    return {"step": step, "view_retrieval": value, "view_retrieval_gain": gain, "view_retrieval_margin": 1.0}


def vote(top1: float, step: int = 90) -> dict[str, float]:
    return {"step": step, "knn_top1": top1, "knn_top1_margin": 3.0}


@pytest.mark.parametrize(
    ("scores", "state", "words"),
    [
        ([check(0, 0), check(20.0)], "healthy", "in 30.0 % of cases, 10.0 % with random weights (+20.0 +- 1.0)"),
        ([check(0, 0), check(0.9)], "not learning", "init=W"),
        (
            [check(0, 0), check(5.0)],
            "not learning",
            "+5.0 +- 1.0",
        ),  # a fifth more than random weights' 25 is too little
        ([check(0, 0), check(-5.0, 50), check(-2.0)], "too early", "it rises"),
        ([check(0, 0), check(-2.5, 50), check(-2.0)], "not learning", "-2.0"),  # a rise that may be chance
        ([check(0, 0), check(0.0, value=99.5)], "healthy", "99.5"),  # more cannot be told
        (
            [vote(12.0, 0), vote(11.0), check(0, 0), check(20.0)],
            "healthy",
            "kNN 11.0 (+- 3.0), 12.0 with random weights",
        ),
        ([vote(12.0, 0), vote(8.0), check(0, 0), check(20.0)], "not learning", "kNN 8.0"),
        ([vote(12.0, 0), vote(30.0), check(0, 0), check(-3.0)], "healthy", "kNN 30.0"),
        ([vote(12.0, 0)], "healthy", "below ln K"),
    ],
)
def test_the_verdict_at_the_end_is_of_what_was_learned_however_low_the_loss(scores, state, words):
    told, advice = verdict([*[GOOD] * 60, *scores], FACTS, ended=True)
    assert told == state and words in advice
    live = verdict([*[GOOD] * 60, *scores], FACTS)[0]
    assert live == "healthy"  # on the way nothing is said of what may still be learned


@pytest.mark.parametrize("line", [GOOD, COLLAPSED])
def test_images_of_one_colour_are_named_unless_something_was_learned_from_them(line):
    facts = FACTS._replace(flat="24 of 24 images are nearly one colour; set white_level=4095")
    for ended in (True, False):
        told, advice = verdict([line] * 60, facts, ended)
        assert told == "images of one colour" and advice.startswith(facts.flat) and "epsilon" not in advice
    assert verdict([*[GOOD] * 60, check(0, 0), check(30.0)], facts, ended=True)[0] == "healthy"


def test_harm_to_given_weights_is_a_verdict_of_its_own_and_short_runs_are_told_what_was_measured():
    told, advice = verdict([GOOD] * 60, FACTS._replace(start="w.pth"), ended=True, harm="kNN is below")
    assert told == "did harm" and "keep w.pth" in advice
    at_ln_k = [*[COLLAPSED] * 30, check(0, 0), check(-2.0)]
    assert [verdict(at_ln_k, FACTS, ended=ended)[0] for ended in (True, False)] == ["not learning", "too early"]
    short = [GOOD, vote(50.0, 0), vote(30.0)]
    assert verdict(short, FACTS, ended=True)[0] == "not learning"


def test_what_changes_is_said_once_while_the_run_goes_on():
    watch, history, said = HealthCheck(FACTS), [], []
    for line in [GOOD] * 60 + [GOOD | {"loss_gap": 0.0}] * 30 + [GOOD] * 30:
        history.append(line)
        said.append(watch.news(history))
    told = [news.partition(":")[0] for news in said if news]
    assert told == ["diverging", "collapsing", "healthy"]


@pytest.mark.parametrize("begun_again_after", [5, 7, 30, 49, 50, 61, 75, 119])
def test_a_resumed_run_says_neither_more_nor_less_than_one_that_was_not_stopped(begun_again_after):
    slow, scored = GOOD | {"data_wait": 0.5}, {"step": 9, "knn_top1": 50.0}
    lines = [slow] * 8 + [COLLAPSED] * 30 + [GOOD] * 22 + [scored] + [COLLAPSED] * 30 + [GOOD] * 30
    said = []
    for stop in (0, begun_again_after):
        watch, news = HealthCheck(FACTS), list[str | None]()
        for length in range(1, len(lines) + 1):
            if length - 1 == stop:
                watch = HealthCheck(FACTS)
                watch.catch_up(lines[: length - 1])
            if "loss" in lines[length - 1]:
                news.append(watch.news(lines[:length]))
        said.append(news)
    assert said[0] == said[1] and len([one for one in said[0] if one]) > 3


@pytest.mark.parametrize(
    ("line", "images", "state"),
    [
        (GOOD, K, "healthy"),
        (GOOD, K - 1, "too few images"),
        (GOOD | {"prototypes_used": 0.1}, 12, "too few images"),  # the advice on dying prototypes would not help
        (COLLAPSED, 12, "collapsing"),
    ],
)
def test_a_run_on_fewer_images_than_prototypes_is_not_called_healthy(line, images, state):
    told, advice = verdict([line] * 60, FACTS._replace(images=images))
    assert told == state
    if state == "too few images":
        assert f"{images} images cannot fill {K} prototypes" in advice and "init=W" in advice and "benchmark" in advice


LN_K = math.log(K)


def run(losses: Sequence[float], noise: float = 0.1, seed: int = 0, **values: float) -> list[dict[str, float]]:
    """Lines of a run with these losses, a little off by chance."""
    draw = random.Random(seed)
    found = []
    for step, loss in enumerate(losses, start=1):
        loss += draw.gauss(0, noise)
        found.append(GOOD | {"step": step, "loss": loss, "loss_gap": LN_K - loss, "lr": 0.1} | values)
    return found


def line(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * i / (count - 1) for i in range(count)]


FALLS = line(5.5, 3.0, 100)


@pytest.mark.parametrize(
    ("losses", "state", "words"),
    [
        (FALLS + [3.0] * 100, "healthy", "below ln K"),
        (
            FALLS + line(3.0, 3.6, 100),
            "diverging",
            "rose from 3.0",
        ),  # for half of the run, though it is below ln K still
        (FALLS + line(3.0, 3.2, 150), "diverging", "lower the learning rate"),  # slowly, for more than half of the run
        (FALLS + line(3.0, 3.04, 150), "healthy", "below ln K"),  # 1 % of ln K: runs that learn do this
        (FALLS + [3.4] * 30, "diverging", "step 10"),
        (FALLS + [9.0] * 20 + line(9.0, 4.7, 80), "diverging", "clip_gradient"),  # it broke, and nothing of it is left
        (FALLS + [4.4] * 10 + [3.0] * 40, "healthy", "on the way the loss rose from 3"),  # it came back
        (FALLS + line(3.0, LN_K, 20) + [LN_K] * 80, "collapsing", "stays at ln K"),
        (line(5.5, 5.3, 60), "not learning", "above ln K = 4.61"),  # too low a rate: it has not even come down
        ([5.4] * 60, "not learning", "a higher learning rate"),
    ],
)
def test_the_loss_is_judged_against_the_best_so_far_and_ln_k(losses, state, words):
    told, advice = verdict(run(losses), FACTS, ended=True)
    assert told == state and words in advice, (told, advice)


def test_chance_is_no_rise():
    """The lowest of many means is low by chance: at a noise of 10 % of ln K, a steady loss is no divergence."""
    for seed in range(60):
        for count in (60, 200):
            assert verdict(run([3.0] * count, noise=0.45, seed=seed), FACTS)[0] == "healthy", (seed, count)


def test_a_loss_above_ln_k_that_falls_is_given_time_but_not_when_the_run_is_over():
    assert verdict(run(line(6.5, 5.0, 80)), FACTS)[0] == "too early"
    assert verdict(run(line(6.5, 5.0, 80)), FACTS, ended=True)[0] == "not learning"
    assert verdict(run([5.5] * 80), FACTS)[0] == "not learning"
    warming = [each | {"lr": 1e-5 * each["step"]} for each in run([5.5] * 80)]
    assert verdict(warming, FACTS)[0] == "too early"  # nothing is learned at a rate of nothing


def test_the_queue_may_lift_the_loss_once():
    """As measured: 2.8 before, 4.4 twenty steps after, 2.7 at the end of the run (ln K 3.4)."""
    losses = [*line(5.5, 3.0, 100), *line(3.0, 5.4, 15), *line(5.4, 3.0, 85)]
    judged = FACTS._replace(unsettled=(98, 116))
    for length in range(101, 201):
        assert verdict(run(losses[:length]), judged)[0] in ("healthy", "too early"), length
    assert verdict(run(losses[:130]), FACTS)[0] == "diverging"
    later = losses + line(3.0, 5.4, 30)
    assert verdict(run(later), judged)[0] == "diverging"


def test_codes_that_are_all_equal_get_epsilons_advice_and_few_directions_another():
    at_ln_k = run([LN_K] * 80, noise=0.01)
    equal = [each | {"code_entropy": 0.999 * LN_K, "rankme": 9.0} for each in at_ln_k]
    told, advice = verdict(equal, FACTS)
    assert told == "collapsing" and "lower epsilon" in advice and "koleo" not in advice
    narrow = [each | {"code_entropy": 0.95 * LN_K, "rankme": 30.0 if each["step"] < 9 else 4.0} for each in at_ln_k]
    told, advice = verdict(narrow, FACTS)
    assert told == "collapsing" and "effective rank 4, 30 before" in advice
    assert "koleo" in advice and "epsilon" not in advice


def test_a_rank_that_falls_is_a_statement_and_view_retrieval_decides():
    """In runs that learned it fell from 53 to 13 and from 99 to 33; in one that did not from 28 to 6."""
    lines = [each | {"rankme": 96.0 - 83 * each["step"] / 200} for each in run(FALLS + [3.0] * 100)]
    told, advice = verdict([*lines, check(0, 0), check(20.0, 200)], FACTS, ended=True)
    assert told == "healthy" and "96 before, which says little by itself" in advice
    assert verdict([*lines, check(0, 0), check(-3.0, 200)], FACTS, ended=True)[0] == "not learning"
    unmeasured = verdict(lines, FACTS, ended=True)[1]
    assert "what was learned was not measured" in unmeasured and "96 before" in unmeasured


def test_a_loss_at_ln_k_is_no_failure_where_more_is_known_than_at_the_start():
    lines = run([LN_K] * 80, noise=0.01)
    assert verdict([*lines, check(0, 0), check(20.0, 80)], FACTS, ended=True)[0] == "healthy"
    assert verdict([*lines, check(0, 0), check(-1.0, 80)], FACTS, ended=True)[0] == "collapsing"


def test_the_best_check_on_the_way_is_named_where_the_last_is_worse():
    scores = [check(0, 0, 10.0), check(20.0, 50, 30.0), check(12.0, 90, 22.0)]
    assert "and 30.0 % at step 50" in verdict([*[GOOD] * 60, *scores], FACTS, ended=True)[1]
    scores[1] = check(13.0, 50, 23.0)  # by chance
    assert "step 50" not in verdict([*[GOOD] * 60, *scores], FACTS, ended=True)[1]


def test_a_run_that_resumes_while_it_is_too_early_to_tell_does_not_repeat_what_was_said():
    lines = run(FALLS + line(3.0, LN_K, 20) + [LN_K] * 40, noise=0.01)
    lines += run(line(LN_K, LN_K, 12), noise=0.01, lr=0.1)
    for i, each in enumerate(lines):
        each["step"], each["lr"] = i + 1, 0.1 if i < 160 else 0.1 + 0.001 * i
    whole, again, said = HealthCheck(FACTS), HealthCheck(FACTS), []
    for length in range(1, len(lines) + 1):
        said.append(whole.news(lines[:length]))
    assert verdict(lines, FACTS)[0] == "too early" and whole.state == "collapsing"
    again.catch_up(lines)
    assert again.state == whole.state
