"""Attacks: a monitor whose numbers depend on where it was resumed, or on where a window begins.

Run: pytest tests/training/test_monitor.py
"""

import math

import pytest
import torch

from swav.training.monitor import Monitor, code_statistics


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
