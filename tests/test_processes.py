"""Attacks: a pair of processes that hangs, hides an error, or hands one test's trouble to the next.

Run: pytest tests/test_processes.py -m "slow or not slow"
"""

import os
import time
from typing import Any

import pytest

from swav import dist
from tests import processes


def twice(value: Any) -> tuple[int, Any]:
    return dist.rank(), [value, value]


def rank_1_fails() -> None:
    if dist.rank() == 1:
        raise ValueError("no, not this")
    dist.barrier()  # would wait for rank 1 for minutes


def rank_0_dies() -> None:
    if dist.rank() == 0:
        os._exit(3)
    dist.barrier()


def rank_1_is_silent() -> None:
    if dist.rank() == 1:
        time.sleep(60)


def launcher_variables() -> set[str]:
    return set(processes.LAUNCHER_VARIABLES) & set(os.environ)


def test_both_results_come_back_in_order_of_rank(two_processes):
    assert two_processes(twice, "a") == [(0, ["a", "a"]), (1, ["a", "a"])]


def test_no_variable_of_a_launcher_reaches_a_test_or_its_processes(two_processes):
    assert launcher_variables() == set()
    assert two_processes(launcher_variables) == [set(), set()]


@pytest.mark.slow  # every case ends both processes and starts new ones
@pytest.mark.parametrize(
    ("function", "limit", "complaint"),
    [
        (rank_1_fails, 60.0, "rank 1 raised:(.|\n)*no, not this"),
        (rank_0_dies, 60.0, "rank 0 died|rank 1 raised"),  # whichever is heard of first
        (rank_1_is_silent, 2.0, r"no answer in time from rank .*1\]"),
    ],
)
def test_trouble_on_one_rank_is_told_at_once_and_does_not_outlive_the_test(two_processes, function, limit, complaint):
    two_processes(twice, 0)  # so that the limit is the call's alone
    with pytest.raises(processes.ProcessError, match=complaint):
        two_processes(function, limit=limit)
    assert two_processes(twice, 1) == [(0, [1, 1]), (1, [1, 1])]
