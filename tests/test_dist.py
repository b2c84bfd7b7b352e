"""Attacks: collectives that differ between one process and several, and variables of a launcher that make no sense.

Run: pytest tests/test_dist.py
"""

from typing import Any

import pytest
import torch

from swav import dist
from swav.errors import ConfigError, DataError, MachineError


def everything() -> dict[str, Any]:
    """What each function gives on this process, whose own value is rank + 1."""
    own = torch.tensor([float(dist.rank() + 1)])
    total, largest = own.clone(), own.clone()
    dist.barrier()
    return {
        "active": dist.is_active(),
        "rank": dist.rank(),
        "world_size": dist.world_size(),
        "sum": dist.all_reduce_sum(total).item(),
        "sum in place": total.item(),
        "max": dist.all_reduce_max(largest).item(),
        "gathered": dist.gather_objects({"rank": dist.rank()}),
        "broadcast": dist.broadcast_object(f"from {dist.rank()}"),
    }


def test_alone_every_collective_gives_back_what_it_got():
    assert everything() == {
        "active": False,
        "rank": 0,
        "world_size": 1,
        "sum": 1.0,
        "sum in place": 1.0,
        "max": 1.0,
        "gathered": [{"rank": 0}],
        "broadcast": "from 0",
    }


def test_two_processes_share_sums_maxima_and_objects_in_order_of_rank(two_processes):
    for rank, values in enumerate(two_processes(everything)):
        assert values == {
            "active": True,
            "rank": rank,
            "world_size": 2,
            "sum": 3.0,
            "sum in place": 3.0,
            "max": 2.0,
            "gathered": [{"rank": 0}, {"rank": 1}],
            "broadcast": "from 0",
        }


def alone_then_together() -> tuple[float, int, float]:
    own = torch.tensor([float(dist.rank() + 1)])
    with dist.single_process():
        by_itself, size = dist.all_reduce_sum(own.clone()).item(), dist.world_size()
    return by_itself, size, dist.all_reduce_sum(own).item()


def test_alone_in_a_group_a_process_keeps_to_itself_until_it_returns(two_processes):
    assert two_processes(alone_then_together) == [(1.0, 1, 3.0), (2.0, 1, 3.0)]


def failing_on_the_second() -> str:
    def work() -> int:
        if dist.rank() == 1:
            raise DataError("only here")
        return 7

    try:
        return f"got {dist.on_all_ranks(work)}"
    except DataError as error:
        return str(error)


def test_an_error_on_one_process_is_raised_on_every_process(two_processes):
    assert two_processes(failing_on_the_second) == ["only here", "only here"]
    assert dist.on_all_ranks(lambda: 5) == [5]


def test_without_a_launcher_no_group_is_made():
    with dist.process_group(torch.device("cpu")):
        assert not dist.is_active()


@pytest.mark.parametrize("also", [{}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "127.0.0.1"}])
def test_a_rank_of_0_alone_is_one_process(monkeypatch, also):
    for name, value in ({"RANK": "0"} | also).items():
        monkeypatch.setenv(name, value)
    with dist.process_group(torch.device("cpu")):
        assert not dist.is_active()


def test_a_rank_above_0_without_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MachineError, match="could not meet"), dist.process_group(torch.device("cpu")):
        pass


def test_a_group_of_one_is_joined_and_left_even_when_the_work_fails(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), dist.process_group(torch.device("cpu")):
        assert dist.is_active() and dist.world_size() == 1
        raise ZeroDivisionError
    assert not dist.is_active()


@pytest.mark.parametrize(("name", "text"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", ""), ("RANK", "-1")])
def test_malformed_variables_of_a_launcher_are_refused_by_name(monkeypatch, name, text):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, text)
    with (
        pytest.raises(ConfigError, match=f"variable {name}: expected a whole number, found '{text}'"),
        dist.process_group(torch.device("cpu")),
    ):
        pass
