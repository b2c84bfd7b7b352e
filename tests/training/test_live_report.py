"""Attacks: a run without a report until its end, one that costs much of the training, a verdict "so far" that reads as the last.

Run: pytest tests/training/test_live_report.py
"""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swav.errors import Stopped
from swav.training import log as module
from swav.training import loop
from swav.training.log import LiveReport, Log
from swav.training.setup import RunSetup
from swav.training.step import Trainer
from swav.training.verdict import HealthFacts
from tests.training.test_loop import SMALL

LINE = {"step": 1, "loss": 4.0, "loss_gap": 0.6, "embedding_std": 0.5, "prototypes_used": 1.0, "data_wait": 0.0}


class Setup(RunSetup):
    """As much of a run as its report asks for."""

    health_facts = HealthFacts(math.log(100), 1000, 100)
    total_steps = 900

    def __init__(self, out: Path):
        self.out = out


class Lines(Log):
    def __init__(self) -> None:
        self.recent = [LINE] * 9


def state(run: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "report/verdict.json").read_text())
    return found


def test_a_report_is_there_while_the_run_trains_and_where_a_signal_ends_it(shapes, tmp_path, monkeypatch):
    run, step, there = tmp_path / "run", Trainer.step, list[bool]()

    def watched(self: Trainer, micro_batches: Any, number: int, requests: Any) -> Any:
        there.append((run / "report.html").exists())
        if number == 6:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, micro_batches, number, requests)

    monkeypatch.setattr(Trainer, "step", watched)
    with pytest.raises(Stopped, match="checkpoint saved"):
        loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes), "checkpoint_every_steps": 0})
    assert there == [False, *[True] * (len(there) - 1)] and len(there) == 7
    assert state(run)["advice"].startswith("so far, at step 7 of 12: ")
    page = (run / "report.html").read_text()
    assert "so far, at step 7 of 12" in page and "step 7, epoch" in page
    loop.pretrain("tiny", out=run, **SMALL | {"data": str(shapes), "checkpoint_every_steps": 0})
    assert "so far" not in state(run)["advice"] and "step 12, epoch" in (run / "report.html").read_text()


def test_renewing_takes_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    clock, written = SimpleNamespace(now=0.0), list[float]()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow(out: Path) -> Path:
        written.append(clock.now)
        clock.now += 2.0
        return out

    monkeypatch.setattr(module, "report", slow)
    live = LiveReport(Setup(tmp_path), Lines())
    for step in range(100):
        live.renew(step)
        clock.now += 10
    assert 4 <= len(written) <= 6 and written[0] == 0.0
    live.renew(100, at_once=True)
    assert written[-1] == clock.now - 2 and state(tmp_path)["advice"].startswith("so far, at step 100 of 900")


def test_a_report_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    LiveReport(Setup(tmp_path / "gone"), Lines()).renew(1)
    assert "could not be written" in capsys.readouterr().err
