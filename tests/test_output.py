"""Attacks: a run that ends, or a command that fails, because nobody reads what it prints.

Run: pytest tests/test_output.py
"""

import contextlib
import errno
import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from swav import checkpoint, dist, files, output
from swav.data.synthetic.writers import write_shapes
from swav.errors import MachineError
from swav.progress import Progress

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
COMMAND = [sys.executable, "-m", "swav"]


class Lost(io.StringIO):
    """A stream of a terminal that is gone."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


PRINTS: dict[str, Callable[[], None]] = {
    "say": lambda: output.say("a line"),
    "a run's line": lambda: dist.say("a line"),
    "a warning": lambda: files.warn("a line"),
    "progress": lambda: Progress("work", 2).update(2),
    "a line beside progress": lambda: Progress("work", 2).say("a line"),
}


def test_a_reader_that_has_stopped_reading_does_not_stop_the_work(monkeypatch):
    monkeypatch.setattr(output, "PATIENCE_SECONDS", 0.05)
    reader, writer = os.pipe()
    stream = output.TolerantFile(writer, messages=True)
    line = b"x" * 4096
    for _ in range(100):  # a pipe holds 64 KB
        assert stream.write(line) == len(line)
    held = 0
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 1 << 20):
            held += len(part)
    assert 0 < held < 100 * len(line)
    assert stream.write(b"again") == 5 and os.read(reader, 10) == b"again"
    os.close(reader)
    os.close(writer)


def test_a_slow_reader_gets_all_of_what_the_command_was_asked_for(monkeypatch):
    monkeypatch.setattr(output, "PATIENCE_SECONDS", 0.0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as another program may leave a pipe that it shares
    written = threading.Thread(target=lambda: output.TolerantFile(writer, messages=False).write(b"x" * 300_000))
    written.start()
    select.select([reader], [], [])
    written.join(timeout=0.2)
    assert written.is_alive()  # it waits: a pipe holds 64 KB
    read = 0
    while read < 300_000:
        read += len(os.read(reader, 1 << 20))
    written.join()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("name", PRINTS)
def test_called_from_a_program_whose_terminal_is_gone_nothing_that_we_print_raises(monkeypatch, name):
    monkeypatch.setattr(sys, "stderr", Lost())
    PRINTS[name]()


def test_the_bar_of_a_terminal_that_goes_away_raises_nothing(monkeypatch):
    terminal, ours = pty.openpty()
    with os.fdopen(ours, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress("work", 3)
        progress.update(1)
        os.close(terminal)
        progress.update(2, "more")
        progress.say("a line")
        progress.close()


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_tolerant_stream_prints_the_same_and_drops_what_it_cannot_print(tmp_path, unbuffered):
    code = "from swav.output import protect_output; protect_output(); print('Zürich', flush=True); print('last')"
    command = [sys.executable, *(["-u"] if unbuffered else []), "-c", code]
    assert subprocess.run(command, capture_output=True, check=True).stdout.decode() == "Zürich\nlast\n"
    for closed in ("1>&-", "2>&-", "0>&- 1>&- 2>&-", *(["> /dev/full"] if FULL.exists() else [])):
        done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), closed


def test_a_closed_descriptor_is_not_given_to_the_next_file(tmp_path):
    code = f"""
import os
from swav.output import protect_output
protect_output()
print(open({str(tmp_path / "next")!r}, "w").fileno(), file=open({str(tmp_path / "answer")!r}, "w"))
"""
    subprocess.run(["sh", "-c", '"$@" 0>&- 1>&- 2>&-', "sh", sys.executable, "-c", code], check=True)
    assert int((tmp_path / "answer").read_text()) > 2


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "tiny"], ["--help"]])
def test_a_reader_that_leaves_is_exit_0_without_a_word(words):
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@needs_full
@pytest.mark.parametrize(("words", "code"), [(["recipes", "tyny"], 2), (["--help"], 0)])
def test_a_full_device_does_not_change_the_exit_code(words, code):
    with FULL.open("w") as full:
        assert subprocess.run([*COMMAND, *words], stdout=full, stderr=full).returncode == code


@needs_full
@pytest.mark.parametrize(
    "words",
    [
        ["recipes"],
        ["recipes", "tiny"],
        ["pretrain", "tiny", "data=DATA", "--out", "OUT", "--print-slurm"],
        ["data", "scan", "DATA", "--json"],
    ],
    ids=" ".join,
)
def test_what_was_asked_for_and_cannot_be_written_is_exit_4_and_said(tmp_path, words):
    write_shapes(tmp_path / "data", "imagenet", train=8, val=4, size=16)
    places = {"data=DATA": f"data={tmp_path / 'data'}", "DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out")}
    with FULL.open("w") as full:
        command = [*COMMAND, *(places.get(word, word) for word in words)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 4, done.stderr
    assert "swav: the output could not be written (No space left on device)" in done.stderr


ODD = "a\x1b[31mred\x07 \x9b2J \u202egpj.exe bad\udcff tab\t é\nnext\rover"
SHOWN = "a\\x1b[31mred\\x07 \\x9b2J \\u202egpj.exe bad\\udcff tab\t é\nnext\\rover\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize(("encoding", "e"), [("utf-8", "é"), ("ascii", "\\xe9"), ("latin-1", "é")])
def test_names_neither_steer_a_terminal_nor_fail_on_one_that_lacks_their_letters(name, encoding, e, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding))
    (output.deliver if name == "stdout" else output.say)(ODD)
    getattr(sys, name).flush()
    assert raw.getvalue() == SHOWN.replace("é", e).encode(encoding)


@needs_full
def test_an_answer_that_cannot_be_written_is_an_error_and_the_path_of_finished_work_is_none(monkeypatch):
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", output.tolerant(full, messages=False))
        output.print_path(Path("run"))
        with pytest.raises(MachineError, match="the output could not be written"):
            output.deliver("an answer")


def test_a_progress_bar_shows_names_by_their_codes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("knn of \x1b[31mrun", 2) as progress:
        progress.say("a \x1b[31mline")
        progress.update(1)
    shown = terminal.getvalue()
    assert "\\x1b[31mrun" in shown and "a \\x1b[31mline" in shown and "\x1b[31m" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("where", ["full device", "closed terminal"])
def test_a_run_whose_output_nobody_reads_trains_to_its_end(tmp_path, where):
    write_shapes(tmp_path / "shapes", "imagenet", train=32, val=16, size=48, seed=0)
    out = tmp_path / "run"
    words = ["batch=16", "width=0.125", "prototypes=12", "queue_length=32", "workers=1", "knn_every_epochs=1"]
    command = [*COMMAND, "pretrain", "tiny", f"data={tmp_path / 'shapes'}", *words, "--out", str(out)]
    if where == "full device":
        with FULL.open("w") as full:
            code = subprocess.run(command, stdout=full, stderr=full).returncode
    else:
        reading, writing = pty.openpty()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as under nohup
        ) as process:
            os.close(writing)
            os.read(reading, 1)  # it has begun
            os.close(reading)
            code = process.wait()
    assert code == 0
    assert (out / "report.html").exists()
    newest = checkpoint.newest(out / "checkpoints")
    assert newest is not None and newest.name == "step_00000006"
