"""Attacks: an ETA that the first slow steps spoil, a bar that loses what counts on a narrow terminal, silence, a line said twice.

Run: pytest tests/test_progress.py
"""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from swav import progress as module
from swav.progress import Progress


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def seconds(eta: str) -> int:
    hours, minutes, rest = map(int, eta.split(":"))
    return 3600 * hours + 60 * minutes + rest


@pytest.mark.parametrize(
    ("before", "first", "resumed"), [(12, 1, 0), (60, 30, 0), (200, 100, 0), (60, 5, 5000)], ids=str
)
def test_after_20_steps_the_time_left_is_right_within_a_factor_of_one_and_a_half(clock, before, first, resumed):
    """Before the first step views are looked at and processes start; the first three are slow. Measured: 12 s before the first
    step of .5 s, which made the mean over all 20 wrong by a factor of two."""
    total, step = 10_000, 0.5
    shown = Progress("pre-training", total, resumed, quiet=True)
    clock.now += before
    for i in range(20):
        clock.now += first if i < 3 else step
        shown.update(resumed + i + 1)
    truth = step * (total - resumed - 20)
    assert truth / 1.5 < seconds(shown.eta()) < truth * 1.5


def test_the_time_left_follows_a_change_of_speed(clock):
    shown = Progress("pre-training", 10_000, quiet=True)
    for i in range(4000):
        clock.now += 1.0 if i < 1000 else 3.0
        shown.update(i + 1)
    assert seconds(shown.eta()) == pytest.approx(3 * 6000, rel=0.05)
    assert len(shown._marks) <= module._MARKS


def test_no_time_is_told_by_one_step_alone_and_none_is_left_at_the_end(clock):
    shown = Progress("work", 4, quiet=True)
    clock.now += 60
    shown.update(1)
    assert shown.eta() == "-"
    clock.now += 1
    shown.update(2)
    assert shown.eta() == "0:00:02"
    shown.update(4)
    assert shown.eta() == "0:00:00"


def test_plain_lines_come_early_then_every_ten_seconds_and_the_last_once(clock, capsys):
    shown = Progress("pre-training", 100)
    for i in range(100):
        clock.now += 0.3
        shown.update(i + 1, f"loss {i}", "epoch 1/2")
    shown.update(100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/100", "36/100", "70/100", "100/100"]
    assert lines[1].split("  ") == ["pre-training 36/100", "epoch 1/2", "ETA 0:00:19", "loss 35"]


@pytest.mark.parametrize(("takes", "said"), [(0.4, 0), (3.0, 2)])
def test_work_that_is_over_at_once_is_not_mentioned_and_other_is(clock, capsys, takes, said):
    with Progress("checking headers", 10, delay=0.5) as shown:
        for i in range(10):
            clock.now += takes / 10
            shown.update(i + 1)
    assert len(capsys.readouterr().err.splitlines()) == said


def test_of_work_without_a_known_end_the_count_is_told(clock, capsys):
    shown = Progress("looking for images", 0)
    shown.update(0)
    clock.now += 5
    shown.update(12_000)
    assert capsys.readouterr().err == "looking for images 12000\n"


def drawn(width: int, monkeypatch) -> list[str]:
    """What a terminal of this width shows, without its escape codes."""
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    read: list[bytes] = []

    def reading() -> None:
        while True:
            try:
                read.append(os.read(terminal, 65536))
            except OSError:
                return
            if not read[-1]:
                return

    reader = threading.Thread(target=reading)
    reader.start()
    with os.fdopen(ours, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", str(width))  # of the terminal that the tests run in, else
        shown = Progress("pre-training", 62_400)
        for step in (11_000, 11_300, 11_700):
            shown.update(step, "loss 3.217  172 images/s  waiting 3%  1.2 GB", "epoch 39/200")
        shown.close()
    reader.join(timeout=5)
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(read).decode())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_step_epoch_and_time_left_stay_however_narrow_the_terminal_is(monkeypatch, width):
    last = drawn(width, monkeypatch)[-1]
    assert len(last) <= width and "…" not in last
    assert "11700/62400" in last and "epoch 39/200" in last and re.search(r"ETA (-|\d+:\d\d:\d\d)", last)
    assert ("pre-training" in last) == (width >= 60)
    assert ("loss 3.217" in last) == (width >= 80) and ("1.2 GB" in last) == (width >= 120)
