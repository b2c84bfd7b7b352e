"""Attacks: durable writes that leave a part or a temporary file behind, locks that let two in or wait for each other, and
file systems that lack folder syncing or locks.

Run: pytest tests/test_files.py
"""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swav import files
from swav.errors import MachineError, Stopped
from swav.files import is_run, patiently, visible

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from swav.files import FileLock
with FileLock(Path(sys.argv[1]), waiting_for="the test"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    with holder_of(tmp_path / ".lock") as process:
        yield process


@contextlib.contextmanager
def holder_of(lock):
    """Another process that holds a lock until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_is_held_is_refused_by_name_where_nobody_waits(holder, tmp_path):
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "), files.FileLock(tmp_path / ".lock"):
        pass


def test_who_waits_says_for_whom_and_goes_in_when_the_owner_is_gone(holder, tmp_path):
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        holder.kill()

    with files.FileLock(tmp_path / ".lock", waiting_for="the features", say=say):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert len(said) == 1 and f"process {holder.pid} on " in said[0] and "the features" in said[0]


def test_no_process_waits_for_a_lock_while_others_may_wait_for_one_of_its_own(tmp_path):
    one, two = (files.FileLock(tmp_path / name, waiting_for=name) for name in ("one", "two"))
    with one, pytest.raises(RuntimeError, match="already holds"), two:
        pass
    with files.FileLock(tmp_path / "two", waiting_for="two"):
        pass


def raising(number: int) -> Any:
    def fail(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_warned_of_and_used(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, "lockf", raising(number))
    monkeypatch.setattr(files, "_warned", set())
    for _ in range(2):
        with files.FileLock(tmp_path / ".lock"):
            pass
    assert capsys.readouterr().err.count("has no locks") == 1


def test_a_file_system_that_cannot_sync_a_folder_is_warned_of_and_used(tmp_path, monkeypatch, capsys):
    real = os.fsync

    def only_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    monkeypatch.setattr(files, "_warned", set())
    files.write_text_durably(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text" and "cannot sync a folder" in capsys.readouterr().err


def test_a_disk_that_fails_is_no_file_system_that_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.sync_folder(tmp_path)


def test_a_write_that_fails_leaves_the_old_text_and_nothing_beside_it(tmp_path, monkeypatch):
    files.write_text_durably(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", raising(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        files.write_text_durably(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_is_not_essential_may_fail_and_a_request_to_stop_is_no_failure(capsys):
    def write(error: Exception) -> None:
        raise error

    with files.not_essential("a picture"):
        write(OSError("full"))
    assert "a picture could not be written (OSError: full)" in capsys.readouterr().err
    with pytest.raises(Stopped), files.not_essential("a picture"):
        write(Stopped("asked to"))


def test_only_the_leftovers_of_one_file_are_removed(tmp_path):
    for name in (".config.yaml.1.tmp", ".results.json.2.tmp", "config.yaml"):
        (tmp_path / name).write_text("")
    files.remove_leftovers(tmp_path / "config.yaml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".results.json.2.tmp", "config.yaml"]


def test_hidden_names_are_not_seen_and_a_folder_that_cannot_be_read_is_not_empty(tmp_path):
    for name in ("b.txt", "a.txt", "._a.txt", ".b.txt", "c.TXT", "a.txt.bak"):
        (tmp_path / name).write_text("")
    assert [path.name for path in visible(tmp_path, "*.txt")] == ["a.txt", "b.txt"]
    assert len(visible(tmp_path)) == 4
    for place in (tmp_path / "nowhere", tmp_path / "a.txt"):
        with pytest.raises(OSError, match=place.name):
            visible(place)


def test_only_both_marks_make_a_runs_folder(tmp_path):
    assert not is_run(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert not is_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert is_run(tmp_path)


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 4), (errno.ESTALE, 4), (errno.EACCES, 1), (errno.ENOENT, 1)])
def test_only_errors_that_pass_are_tried_again(monkeypatch, number, tries):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    tried: list[int] = []

    def read() -> str:
        tried.append(number)
        if len(tried) < 9:
            raise OSError(number, "it fails")
        return "content"

    with pytest.raises(OSError, match="it fails"):
        patiently(read)
    assert len(tried) == tries
    tried.extend([number] * 9)
    assert patiently(read) == "content"


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def made_anew(folder: Path) -> None:
    gone(folder)
    folder.mkdir()  # most file systems give the inode number that has just become free


def a_file_now(folder: Path) -> None:
    gone(folder)
    folder.write_text("")


@pytest.mark.parametrize("befall", [gone, moved, made_anew, a_file_now])
def test_a_folder_that_is_no_longer_the_same_is_noticed_and_not_made_again(tmp_path, befall):
    (tmp_path / "out").mkdir()
    guard = files.FolderGuard(tmp_path / "out")
    guard.check()
    (tmp_path / "out" / "file").write_text("")
    guard.check()
    befall(tmp_path / "out")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MachineError, match=r"out: was removed or moved during the run.*\nput it back") as caught:
        guard.check()
    assert caught.value.exit_code == 4 and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_file_system_that_does_not_answer_is_no_folder_that_is_gone(tmp_path, monkeypatch, number):
    guard = files.FolderGuard(tmp_path)
    guard.check()
    monkeypatch.setattr(Path, "stat", raising(number))
    guard.check()


def test_a_folder_below_that_is_removed_just_now_is_not_the_one_that_is_gone(tmp_path, monkeypatch):
    with pytest.raises(MachineError, match="away: was removed or moved"):
        files.make_below(tmp_path / "away", tmp_path / "away" / "features" / "key")
    (tmp_path / "features").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="features"):
        files.make_below(tmp_path, tmp_path / "features" / "key")
    lock = tmp_path / "dangling"
    lock.symlink_to(tmp_path / "nothing" / "lock")
    with pytest.raises(MachineError, match="dangling: cannot be written"):
        files.FileLock(lock, "the features", base=tmp_path).__enter__()
