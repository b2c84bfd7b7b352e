"""Attacks: a verdict that calls a collapsed run healthy, that a value which was not finite breaks, or that repeats itself.

Run: pytest tests/training/test_monitor.py
"""

import math

import pytest
import torch

from swav.training.monitor import HealthCheck, Monitor, code_statistics, verdict

K = 100
GOOD = {"loss": 3.9, "loss_gap": 0.7, "embedding_std": 0.3, "prototypes_used": 0.9, "data_wait": 0.0}
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
    assert verdict(lines, math.log(K), 1000, K)[0] == state


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
    told, advice = verdict([*[GOOD] * 60, *scores], math.log(K), 1000, K, ended=True)
    assert told == state and words in advice
    live = verdict([*[GOOD] * 60, *scores], math.log(K), 1000, K)[0]
    assert live == "healthy"  # on the way nothing is said of what may still be learned


def test_harm_to_given_weights_is_a_verdict_of_its_own_and_short_runs_are_told_what_was_measured():
    told, advice = verdict([GOOD] * 60, math.log(K), 1000, K, "w.pth", ended=True, harm="kNN is below")
    assert told == "did harm" and "keep w.pth" in advice
    short = [GOOD, vote(50.0, 0), vote(30.0)]
    assert verdict(short, math.log(K), 1000, K, ended=True)[0] == "not learning"


def test_what_changes_is_said_once_while_the_run_goes_on():
    watch, history, said = HealthCheck(math.log(K), 1000, K), [], []
    for line in [GOOD] * 60 + [GOOD | {"loss_gap": 0.0}] * 30 + [GOOD] * 30:
        history.append(line)
        said.append(watch.news(history))
    told = [news.partition(":")[0] for news in said if news]
    assert told == ["collapsing", "healthy"]


@pytest.mark.parametrize("begun_again_after", [5, 7, 30, 49, 50, 61, 75, 119])
def test_a_resumed_run_says_neither_more_nor_less_than_one_that_was_not_stopped(begun_again_after):
    slow, scored = GOOD | {"data_wait": 0.5}, {"step": 9, "knn_top1": 50.0}
    lines = [slow] * 8 + [COLLAPSED] * 30 + [GOOD] * 22 + [scored] + [COLLAPSED] * 30 + [GOOD] * 30
    said = []
    for stop in (0, begun_again_after):
        watch, news = HealthCheck(math.log(K), 1000, K), list[str | None]()
        for length in range(1, len(lines) + 1):
            if length - 1 == stop:
                watch = HealthCheck(math.log(K), 1000, K)
                watch.catch_up(lines[: length - 1])
            if "loss" in lines[length - 1]:
                news.append(watch.news(lines[:length]))
        said.append(news)
    assert said[0] == said[1] and len([one for one in said[0] if one]) > 3


def test_a_monitor_goes_on_from_its_state_to_the_bit():
    def watch(monitor: Monitor, step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(step)
        embeddings = torch.nn.functional.normalize(torch.randn(2, 6, 8, generator=generator), dim=2)
        monitor.watch(embeddings, [torch.rand(2, 6, 5, generator=generator).softmax(dim=2)])
        return monitor.summary()

    one = Monitor(5, 8, torch.device("cpu"), recent=40)
    for step in range(30):  # the window of 50 samples turns at steps 9, 18, 27; embeddings fill up at step 6
        other = Monitor(5, 8, torch.device("cpu"), recent=40)
        other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()}, "rank_0")
        assert watch(one, step) == watch(other, step)
        assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


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
    told, advice = verdict([line] * 60, math.log(K), images, K)
    assert told == state
    if state == "too few images":
        assert f"{images} images cannot fill {K} prototypes" in advice and "init=W" in advice and "benchmark" in advice


def test_prototypes_in_use_are_told_alike_whenever_they_are_asked_for():
    """All are used equally often: no line of the log may say otherwise, wherever a window of counting begins."""
    monitor, told = Monitor(40, 3, torch.device("cpu")), []
    for step in range(400):
        codes = torch.eye(40)[[(8 * step + i) % 40 for i in range(8)]].expand(1, 8, 40)
        monitor.watch(torch.nn.functional.normalize(torch.randn(1, 8, 3), dim=2), [codes])
        told.append(monitor.summary()["prototypes_used"])
    assert told[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1]) and min(told[5:]) == 1


def test_a_prototype_that_dies_is_noticed_within_twenty_samples_per_prototype():
    monitor = Monitor(4, 3, torch.device("cpu"))
    for step in range(200):
        codes = torch.eye(4)[[0, 1, 2, 3 if step < 100 else 0]].expand(1, 4, 4)
        monitor.watch(torch.nn.functional.normalize(torch.randn(1, 4, 3), dim=2), [codes])
        if step == 100 + 25:
            assert monitor.summary()["prototypes_used"] == 0.75


def test_prototypes_in_use_are_those_that_some_sample_chose():
    monitor = Monitor(4, 3, torch.device("cpu"))
    codes = torch.eye(4)[[0, 0, 2]].expand(2, 3, 4)
    monitor.watch(torch.nn.functional.normalize(torch.randn(2, 3, 3), dim=2), [codes])
    assert monitor.summary()["prototypes_used"] == 0.5


def test_prototypes_of_several_sets_are_told_apart():
    monitor = Monitor(7, 3, torch.device("cpu"))
    codes = [torch.eye(4)[[0, 0, 2]].expand(2, 3, 4), torch.eye(3)[[0, 1, 1]].expand(2, 3, 3)]
    monitor.watch(torch.nn.functional.normalize(torch.randn(2, 3, 3), dim=2), codes)
    assert monitor.usage.tolist() == [2, 0, 1, 0, 1, 2, 0]


def test_code_statistics_are_means_over_sets():
    even, sure = torch.full((2, 3, 4), 0.25), torch.eye(2)[[0, 1, 1]].expand(2, 3, 2)
    entropy, confidence = code_statistics([even, sure])
    assert float(entropy) == pytest.approx(math.log(4) / 2) and float(confidence) == pytest.approx((0.25 + 1) / 2)
