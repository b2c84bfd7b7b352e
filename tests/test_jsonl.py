"""Attacks: logs with a torn end, a bad byte, lines that are no JSON; a disk that refuses a line, or takes half of one.

Run: pytest tests/test_jsonl.py
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from swav import files, jsonl


@pytest.fixture(autouse=True)
def _nothing_warned_of_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_good_lines_are_read_whatever_lies_between_them(log):
    lines = [b'{"a": 1}', b"\xff\xfe\x00", b"", b'["no object"]', b"[" * 100_000, b'{"file": "\xe9.png"}\r', b'{"a": ']
    log.write_bytes(b"\n".join(lines))
    found = jsonl.read_lines(log)
    assert found.values == [{"a": 1}, {"file": os.fsdecode(b"\xe9.png")}]
    assert (found.damaged, found.torn) == (3, True)


def test_a_missing_log_has_no_lines_and_one_that_cannot_be_read_is_warned_of(log, monkeypatch, capsys):
    assert jsonl.read_lines(log) == ([], [], 0, False)
    log.write_text("{}\n")
    monkeypatch.setattr(Path, "read_bytes", refusing(errno.EIO))
    assert jsonl.read_if_possible(log) == []
    jsonl.repair(log)
    monkeypatch.undo()
    assert log.read_text() == "{}\n" and capsys.readouterr().err.count("Input/output error") == 2


def test_a_repair_says_what_it_drops_once_and_keeps_good_lines_as_they_are(log, capsys):
    good = b'{"a":1,  "b": "\xe9"}\n'
    log.write_bytes(b"x\n" + good + b'{"a": 2}\n' + b'{"to')
    jsonl.repair(log, keep=lambda line: line["a"] == 1)
    assert log.read_bytes() == good
    assert "1 damaged line and a torn end dropped; 2 good lines kept" in capsys.readouterr().err
    before = log.stat()
    jsonl.repair(log)
    assert log.stat() == before and not capsys.readouterr().err


def test_a_whole_last_line_that_lacks_only_its_newline_is_kept(log, capsys):
    log.write_text('{"a": 1}')
    assert jsonl.append(log, {"a": 2}) and log.read_text() == '{"a": 1}\n{"a": 2}\n'
    log.write_text('{"a": 1}')
    jsonl.repair(log)
    assert log.read_text() == '{"a": 1}\n' and not capsys.readouterr().err


def test_a_line_after_a_torn_end_stands_on_its_own(log):
    log.write_text('{"a": 1}\n{"a": 2, "lo')
    assert jsonl.append(log, {"a": 3})
    assert jsonl.read_lines(log).values == [{"a": 1}, {"a": 3}]


def test_a_line_that_the_disk_takes_half_of_is_lost_alone(log, monkeypatch, capsys):
    jsonl.append(log, {"a": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:4]))
    assert not jsonl.append(log, {"a": 2}) and not jsonl.append(log, {"a": 3})
    monkeypatch.setattr(os, "write", real)
    assert jsonl.append(log, {"a": 4})
    assert jsonl.read_lines(log).values == [{"a": 1}, {"a": 4}]
    assert capsys.readouterr().err.count("disk is full") == 1


def refusing(number: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.ENOSPC])
def test_a_file_system_that_refuses_costs_one_warning_and_the_lines_of_that_time(log, monkeypatch, capsys, number):
    monkeypatch.setattr(os, "open", refusing(number))
    assert not jsonl.append(log, {"a": 1}) and not jsonl.append(log, {"a": 2})
    monkeypatch.undo()
    assert jsonl.append(log, {"a": 3})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"a": 3}]
    said = capsys.readouterr().err
    assert said.count("swav: warning: ") == 1 and os.strerror(number) in said and str(log) in said
