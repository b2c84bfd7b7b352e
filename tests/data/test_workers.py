"""Attacks: loader processes that hang at their start, die, fail, or outlive the process that they work for.

Run: pytest tests/data/test_workers.py
"""

import multiprocessing
import os
import time

import pytest

from swav.data import workers as workers_module
from swav.data.workers import FORKS, Workers
from swav.errors import DataError, MachineError
from tests.processes import alive, loader_processes

ADVICE = "use fewer workers=N"
only_where_workers_are_forked = pytest.mark.skipif(not FORKS, reason="workers are not forked on this system")


def double(number):
    if number == 13:
        raise DataError("13 is unreadable")
    return 2 * number


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("questions", [0, 1, 20])
def test_answers_come_in_the_order_of_the_questions(count, questions):
    asked = [n for n in range(questions + 1) if n != 13]
    with Workers(double, count, ADVICE) as workers:
        assert list(workers.map(asked)) == [2 * n for n in asked]
    assert not loader_processes()


def test_an_error_of_the_data_arrives_as_it_is():
    with Workers(double, 2, ADVICE) as workers, pytest.raises(DataError, match="13 is unreadable"):
        list(workers.map(range(20)))


def first_ones_hang(monkeypatch, number):
    """Let the first workers wait before they run anything, as a fork may that meets a lock of another thread."""
    work, started = workers_module._work, multiprocessing.get_context("fork").Value("i", 0)

    def hang(*arguments):
        with started.get_lock():
            started.value += 1
            waits = started.value <= number
        if waits:
            time.sleep(3600)
        work(*arguments)

    monkeypatch.setattr(workers_module, "_work", hang)
    monkeypatch.setattr(workers_module, "START_SECONDS", 1.0)
    return started


@only_where_workers_are_forked
def test_a_worker_that_hangs_at_its_start_is_replaced(monkeypatch):
    started = first_ones_hang(monkeypatch, 1)
    with Workers(double, 2, ADVICE) as workers:
        assert list(workers.map(range(5))) == [0, 2, 4, 6, 8]
        assert len(loader_processes()) == 2 and started.value == 3
    assert not loader_processes()


@only_where_workers_are_forked
def test_where_none_starts_the_error_says_so_and_no_process_is_left(monkeypatch):
    first_ones_hang(monkeypatch, 100)
    monkeypatch.setattr(workers_module, "START_SECONDS", 0.1)
    with pytest.raises(MachineError, match=r"did not start within .* 3 times; use fewer workers=N"):
        Workers(double, 1, ADVICE)
    assert not loader_processes()


@only_where_workers_are_forked
def test_a_fork_that_the_system_refuses_leaves_no_worker(monkeypatch):
    fork, calls = os.fork, []

    def refuse_the_third():
        calls.append(1)
        if len(calls) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", refuse_the_third)
    with pytest.raises(MachineError, match=r"cannot be started \(.*unavailable\); use fewer workers=N"):
        Workers(double, 4, ADVICE)
    assert len(calls) == 3 and not loader_processes()


def test_no_memory_in_a_worker_is_an_error_of_the_machine():
    def hungry(_):
        raise MemoryError

    with Workers(hungry, 1, ADVICE) as workers, pytest.raises(MachineError, match="not enough memory in a loader"):
        list(workers.map([1]))


@only_where_workers_are_forked
def test_a_worker_that_nobody_listens_to_any_more_ends_with_its_parent():
    """It waits in a pipe that is full: nothing of the parent's death reaches it there."""

    def parent(report):
        workers = Workers(bytes, 1, ADVICE)
        workers.ask(0, 10**8)
        assert workers._workers[0].connection.poll(30)  # the answer has begun, and does not fit into the pipe
        report.send([process.pid for process in loader_processes()])
        time.sleep(3600)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=parent, args=(theirs,))
    process.start()
    (pid,) = ours.recv()
    assert alive(pid)
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
