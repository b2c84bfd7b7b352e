"""Attacks: a machine that lacks something of which nothing is said; a fault that hides the others; a healthy one that is warned of.

Run: pytest tests/test_doctor.py
"""

import collections
import resource
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from swav import doctor as doctor_module
from swav.doctor import doctor
from swav.errors import DataError, MachineError

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two processes that meet take seconds: the slow test below lets them."""
    monkeypatch.setattr(doctor_module, "_MEETING", "pass")
    monkeypatch.setattr(doctor_module, "LOADER_SECONDS", 0.1)


def found(**places):
    return {finding.name: finding for finding in doctor(**places)}


def test_a_healthy_machine_has_no_fault(capsys, tmp_path):
    its = found(out=tmp_path / "runs")
    assert {finding.state for name, finding in its.items() if name != "GPU"} == {"ok"}
    assert {"python", "torch", "CPU", "memory", "open files", "two processes", "out"} <= set(its)
    printed = capsys.readouterr().out
    assert all(finding.text in printed for finding in its.values()) and printed.rstrip().endswith("1 warning")
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_something_is_said_before_torch_is_loaded(monkeypatch, capsys, tmp_path):
    said: list[str] = []
    torch_check = doctor_module._torch

    def noted():
        said.append(capsys.readouterr().err)
        return torch_check()

    monkeypatch.setattr(doctor_module, "_torch", noted)
    found(out=tmp_path)
    assert (
        said[0].startswith("looking at this machine, in some seconds: python, torch,")
        and "two processes, out" in said[0]
    )


def test_a_broken_torch_is_said_and_ends_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MachineError, match="faults: torch"):
        doctor(out=tmp_path)
    printed = capsys.readouterr().out
    assert "fails    torch" in printed and "install it again" in printed and "Traceback" not in printed
    assert "ok       python" in printed and "memory" not in printed


def test_a_fault_does_not_hide_what_else_was_found(capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"faults: out$"):
        doctor(out=tmp_path / "file" / "runs")
    printed = capsys.readouterr().out
    assert "fails    out" in printed and "choose an --out that can" in printed and "ok       memory" in printed


@pytest.mark.parametrize(("free", "state"), [(64e6, "warning"), (8e9, "ok")])
def test_little_room_is_warned_of_with_what_to_do(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, free))
    its = found(out=tmp_path)
    assert its["out"].state == state and ("make room" in its["out"].text) == (state == "warning")
    assert its["shared memory"].state == state and ("--shm-size" in its["shared memory"].text) == (state == "warning")


@pytest.mark.parametrize(
    ("limits", "state", "words"),
    [
        ((256, 512), "warning", "ulimit -n 512"),
        ((1023, 2**20), "warning", "ulimit -n 4096"),
        ((1024, 4096), "ok", "1,024 at a time"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", "no limit"),
    ],
)
def test_few_open_files_are_warned_of(monkeypatch, limits, state, words):
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    its = found()["open files"]
    assert its.state == state and words in its.text


def test_little_memory_is_warned_of(monkeypatch):
    monkeypatch.setattr("swav.system.available_memory", lambda device: 2_000_000_000)
    its = found()["memory"]
    assert its.state == "warning" and its.text.startswith("2.0 GB") and "micro_batch" in its.text


def test_processes_that_cannot_meet_are_told_with_their_reason(monkeypatch):
    monkeypatch.setattr(doctor_module, "_MEETING", "raise SystemExit('no route to host')")
    its = found()["two processes"]
    assert its.state == "warning" and "(no route to host)" in its.text and "GLOO_SOCKET_IFNAME" in its.text


def test_processes_that_fall_silent_are_ended(monkeypatch):
    monkeypatch.setattr(doctor_module, "_MEETING", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor_module, "MEET_SECONDS", 0.2)
    its = found()["two processes"]
    assert its.state == "warning" and "no answer within 0.2 s" in its.text


@pytest.mark.slow
def test_two_processes_meet(monkeypatch):
    monkeypatch.undo()
    assert found()["two processes"].state == "ok"


def test_data_are_measured_and_what_is_wrong_with_them_is_said(tmp_path):
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 4096, (40, 40), dtype=np.uint16)  # of 12 bits: dark
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    findings = [finding for finding in doctor(data=tmp_path) if finding.name == "data"]
    assert findings[0].state == "ok" and "12 images; the loader makes" in findings[0].text
    assert [finding.state for finding in findings[1:]] and "white_level=4095" in findings[1].text


def test_data_that_are_not_there_are_no_fault_of_the_machine(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        doctor(data=tmp_path / "nowhere")
