"""Attacks: a signal that ends the work without a save, an exit code 75 behind which nothing is saved, a second signal that
cuts a save short, a Ctrl-C that is not acknowledged, and a run that ends with other weights because of it.

Run: pytest tests/test_signals.py [-m slow]
"""

import ctypes
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from swav import checkpoint, cli, dist, files, signals
from swav.data.sources.open import labelled_splits
from swav.data.synthetic.writers import write_shapes
from swav.errors import SignalExit, Stopped
from swav.evaluation import supervised, svm_solver
from swav.evaluation.protocols import linear
from swav.evaluation.settings import LinearSettings
from swav.evaluation.task import Task
from swav.signals import STOPPING, StopRequest
from swav.weights.exported import read_description
from tests.evaluation.conftest import made, write_set
from tests.evaluation.protocols.test_linear import FAST, fresh, saved_head

ROOT = Path(__file__).parents[1]
PREEMPTING = [number for number in STOPPING if number != signal.SIGINT]


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    after = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("number", STOPPING)
def test_work_only_remembers_a_signal_and_its_code_says_whether_something_was_saved(number):
    with signals.work() as stop:
        assert signals.end_asked_for() == (0, "")
        signals.stop_if_asked()
        send(number)
        code, message = signals.end_asked_for()
        assert code == 128 + number and message.endswith(
            "nothing was saved yet, and nothing saved before is lost; rerun the same command to begin again"
        )
        signals.note_saved()
        assert signals.end_asked_for()[0] == stop.exit_code == (130 if number == signal.SIGINT else 75)
        with pytest.raises(Stopped, match="is saved"):
            signals.stop_if_asked()
    assert signals.end_asked_for() == (0, "")


@pytest.mark.parametrize(("first", "second"), [(n, n) for n in PREEMPTING] + list(pairwise(PREEMPTING)))
def test_the_same_signal_again_or_another_one_is_no_more_than_the_first(first, second):
    with signals.work() as stop:
        send(first, second, second, first)
        assert stop.signal == first and stop.exit_code == 75


@pytest.mark.parametrize("number", STOPPING)
def test_before_the_work_a_signal_ends_the_command_where_it_is(number):
    with StopRequest(at_once=True) as stop:
        with pytest.raises(SignalExit) as end:
            send(number)
        assert end.value.exit_code == 128 + number
        send(*PREEMPTING)  # while it cleans up: no second exception
        assert stop.signal == number
    with StopRequest(at_once=True):
        with signals.work():
            signals.note_saved()
        with pytest.raises(SignalExit) as end:
            send(signal.SIGTERM)
        assert end.value.exit_code == 75


def test_a_signal_that_the_watcher_reads_first_ends_the_command_all_the_same():
    with StopRequest(at_once=True) as stop:
        os.write(stop._to_thread, bytes([signal.SIGUSR2]))
        wait_until(lambda: stop.signal is not None)
        with pytest.raises(SignalExit) as end:
            send(signal.SIGUSR2)
    assert end.value.exit_code == 128 + signal.SIGUSR2


def test_no_work_begins_after_a_signal_that_was_swallowed_before_it():
    with StopRequest(at_once=True) as stop:
        os.write(stop._to_thread, bytes([signal.SIGTERM]))
        wait_until(lambda: stop.signal is not None)
        with pytest.raises(SignalExit), signals.work():
            pytest.fail("it began")
        assert not stop.working


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("not within 5 s")


def test_the_work_of_a_command_takes_its_handlers_and_a_programs_call_gives_them_back():
    with StopRequest(at_once=True) as stop:
        with signals.work() as inner:
            states = [inner is stop, stop.working]
        assert [*states, stop.working] == [True, True, False]
    with signals.work() as first:
        pass
    with signals.work() as second:
        assert first is not second


def test_a_hang_up_that_was_ignored_when_the_command_began_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.work() as stop:
            send(signal.SIGHUP)
            assert stop.signal is None
            send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupted_scan_says_that_it_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("swav.data.scan.scan", lambda path, how: send(signal.SIGINT))
    with StopRequest(at_once=True):
        assert cli._run(lambda: cli.scan_data(str(tmp_path)), debug=False) == 130
    said = "interrupted; a scan changes nothing; run the same command again for all of it"
    assert capsys.readouterr().err == f"swav: {said}\n"


def test_an_interrupted_benchmark_says_that_the_same_command_resumes(capsys):
    with signals.work() as stop:
        send(signal.SIGINT)
        while "\n" not in (said := capsys.readouterr().err):  # a thread says it
            time.sleep(0.01)
    assert stop.signal == signal.SIGINT and "the same command resumes" in said


def test_an_import_that_is_cut_short_is_one_line_and_the_code_of_the_signal(capsys):
    def command() -> None:
        try:
            send(signal.SIGUSR2)
        except BaseException as error:  # as a C++ extension does while it is imported
            raise ImportError("initialization failed") from error

    with StopRequest(at_once=True):
        assert cli._run(command, debug=False) == 128 + signal.SIGUSR2
    assert (
        capsys.readouterr().err
        == "swav: stopped by SIGUSR2; nothing was saved yet, and nothing saved before is lost; rerun the same command to begin again\n"
    )


def test_an_end_keeps_its_code_on_the_way_to_other_processes():
    for error in (Stopped("why", 143), Stopped("why", 75)):
        assert pickle.loads(pickle.dumps(error)).exit_code == error.exit_code


# A process whose main thread is in a call of C that no signal interrupts: no handler of Python can run.
IN_C = """
import ctypes, sys, threading
from swav import signals
signals.STUCK_SECONDS = 0.1
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(128)
with signals.StopRequest(at_once=True) as stop:
    stop.working = sys.argv[1] == "working"
    stop.unsaved = lambda: 12
    libc.pthread_mutex_lock(mutex)
    go = threading.Lock()
    go.acquire()
    threading.Thread(target=lambda: (go.acquire(), print("ready", flush=True)), daemon=True).start()
    sys.setswitchinterval(1000)  # so the thread runs only once the call of C has let go of the interpreter
    go.release()
    libc.pthread_mutex_lock(mutex)
"""


@pytest.fixture
def in_c() -> Iterator[dict[str, subprocess.Popen[str]]]:
    started = {
        how: subprocess.Popen(
            [sys.executable, "-c", IN_C, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for how in ("working", "importing")
    }
    for process in started.values():
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "pthread_mutex_lock"), reason="no POSIX threads in the C library")
def test_a_process_that_is_busy_in_c_acknowledges_ctrl_c_and_ends_at_the_second_or_before_its_work(in_c):
    working, importing = in_c["working"], in_c["importing"]
    working.send_signal(signal.SIGINT)
    assert working.stderr.readline() == (
        "interrupted: saving after this step; press Ctrl-C again to quit at once and lose the 12 steps since the last checkpoint\n"
    )
    for number in PREEMPTING:
        working.send_signal(number)
    assert working.poll() is None
    working.send_signal(signal.SIGINT)
    assert working.stderr.read() == "swav: interrupted; the 12 steps since the last checkpoint are lost\n"
    assert working.wait() == 130
    importing.send_signal(signal.SIGTERM)
    assert (
        importing.stderr.read()
        == "swav: stopped by SIGTERM; nothing was saved yet, and nothing saved before is lost; rerun the same command to begin again\n"
    )
    assert importing.wait() == 143


# A signal whose exception is dropped, as that of a destructor or a weakref's callback is; then much is left to do.
DROPPED = """
import os, signal, sys, time
from swav import signals
signals.STUCK_SECONDS = 0.1
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10**6):
            pass
with signals.StopRequest(at_once=True) as stop:
    Dying()
    if sys.argv[1] == "ending":
        signals.note_ending()
        time.sleep(0.5)
        sys.exit(7)
    for _ in range(600):
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (
            "lost",
            143,
            "swav: stopped by SIGTERM; nothing was saved yet, and nothing saved before is lost; rerun the same command to begin again\n",
        ),
        ("ending", 7, ""),
    ],
)
def test_a_signal_that_a_destructor_swallowed_ends_the_command_all_the_same(how, code, said):
    done = subprocess.run([sys.executable, "-c", DROPPED, how], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.fixture
def task(tmp_path) -> Task[LinearSettings]:
    splits = labelled_splits(write_set(tmp_path / "colours"))
    return Task(fresh(), *splits, LinearSettings(**FAST), "published", torch.device("cpu"), made(tmp_path / "out"))


@pytest.mark.parametrize(("point", "code", "steps"), [("_resumed", 143, 0), ("_step", 75, 1), ("_save", 75, 3)])
def test_a_benchmark_saves_its_step_at_a_signal_and_ends_with_75_only_if_there_is_one(
    task, monkeypatch, point, code, steps
):
    original = getattr(supervised, point)

    def then_signal(*arguments):
        send(signal.SIGTERM, signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(supervised, point, then_signal)
    with signals.work(), pytest.raises(Stopped) as end:
        linear.run(task)
    assert end.value.exit_code == code
    if steps:
        assert saved_head(task).step == steps
    monkeypatch.setattr(supervised, point, original)
    linear.run(task)
    assert saved_head(task).step == 3 * FAST["epochs"]


def test_solvers_and_who_waits_for_a_lock_end_at_a_signal(tmp_path, monkeypatch):
    x = svm_solver.principal_axes(svm_solver.unit_rows(torch.randn(20, 4).numpy()))
    signs = 2.0 * (torch.arange(20, dtype=torch.float64)[:, None] % 2) - 1
    monkeypatch.setattr(files.FileLock, "_try", lambda *_: False)
    with signals.work():
        send(signal.SIGUSR1)
        with pytest.raises(Stopped):
            list(svm_solver.solve_svms(x, signs, torch.ones_like(signs), [1.0]))
        with pytest.raises(Stopped):
            files.FileLock(tmp_path / "lock", "the results").__enter__()
        with pytest.raises(Stopped):
            dist.stop_together()


def _stopped_together() -> tuple[int, str]:
    with signals.work():
        signals.note_saved()
        dist.stop_together()
        if dist.rank() == 1:
            send(signal.SIGUSR2)
        try:
            dist.stop_together()
        except Stopped as stopped:
            return stopped.exit_code, str(stopped)
    return 0, ""


def test_a_signal_to_one_process_ends_all_with_its_code(two_processes):
    message = "stopped by SIGUSR2; what is finished is saved; rerun the same command to resume"
    assert two_processes(_stopped_together) == [(75, message)] * 2


# -- whole processes

# Sends signals to itself the first time, or with #N the N-th, that it comes to a place: `where` is MODULE:NAME of a function, or
# a module that is imported. Then runs the command.
RUNNER = """
import importlib, os, signal, sys
numbers, where, words = eval(sys.argv[1]), sys.argv[2], sys.argv[3:]
where, _, count = where.partition("#")
todo, left = list(numbers), [int(count or 1)]
def send():
    left[0] -= 1
    while todo and left[0] <= 0:
        os.kill(os.getpid(), todo.pop(0))
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == where:
            send()
sys.meta_path.insert(0, Hook())
if ":" in where:
    module, name = where.split(":")
    home = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        home = getattr(home, part)
    name = name.split(".")[-1]
    original = getattr(home, name)
    def then(*arguments, **named):
        send()
        return original(*arguments, **named)
    setattr(home, name, then)
from swav import cli
sys.argv = ["swav", *words]
cli.main()
"""
SETTINGS = ("batch=16", "width=0.125", "prototypes=12", "queue_length=32", "checkpoint_every_steps=3", "workers=1")
MOMENTS = {
    "import": ("torch", None),
    "header check": ("swav.data.sources.header_index:_header", None),
    "step": ("swav.training.step:Trainer.step", "saved"),
    "save": ("swav.checkpoint:_publish", "saved"),
    "start": ("swav.features:features_of", None),
    "kNN": ("swav.training.scoring:score_by_knn#2", "saved"),
}
MATRIX = [
    ("import", (signal.SIGTERM,)),
    ("header check", (signal.SIGUSR2,)),
    ("step", (signal.SIGHUP, signal.SIGTERM)),
    ("step", (signal.SIGINT,)),
    ("save", (signal.SIGTERM, signal.SIGTERM)),
    ("start", (signal.SIGUSR2,)),
    ("kNN", (signal.SIGUSR1,)),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=80, val=32, size=48, seed=0)
    return folder


def pretrain(
    shapes: Path, out: Path, numbers: tuple[int, ...] = (), where: str = "none", **more
) -> subprocess.CompletedProcess[str]:
    words = ["pretrain", "tiny", f"data={shapes}", *SETTINGS, "knn_every_epochs=1", "epochs=2", "--out", str(out)]
    command = [sys.executable, "-c", RUNNER, repr(tuple(map(int, numbers))), where, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **more)


def outcome(out: Path) -> tuple[dict[str, str], list[float], dict[str, object]]:
    """SHA-256 of every tensor file at the end, the kNN scores of the log, and what is said of the best of them."""
    last = out / "checkpoints" / "step_00000010"
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("*.safetensors")}
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    state, exported = checkpoint.read_state(last), read_description(out / "export" / "backbone.safetensors")
    assert not state.get("unscored") and exported is not None
    best = {"step": state["best_step"], "top1": state["best_knn"], "exported": exported["best_step"]}
    return hashes, [line["knn_top1"] for line in lines if "knn_top1" in line], best


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory) -> tuple[dict[str, str], list[float], dict[str, object]]:
    out = tmp_path_factory.mktemp("whole") / "run"
    done = pretrain(shapes, out)
    assert done.returncode == 0, done.stderr
    return outcome(out)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("moment", "numbers"), MATRIX)
def test_a_signal_at_any_moment_loses_nothing_and_says_by_its_code_whether_something_was_saved(
    shapes, whole, tmp_path, moment, numbers
):
    out, (where, saved) = tmp_path / "run", MOMENTS[moment]
    stopped = pretrain(shapes, out, numbers, where)
    of_signal = 128 + numbers[0]
    assert stopped.returncode == (of_signal if saved is None or numbers[0] == signal.SIGINT else 75), stopped.stderr
    assert "Traceback" not in stopped.stderr
    complaints = [line for line in stopped.stderr.splitlines() if line.startswith("swav: ")]
    assert len(complaints) == 1, stopped.stderr
    assert (checkpoint.any_exist(out / "checkpoints")) == (saved is not None)
    if saved is not None:
        done = pretrain(shapes, out)
        assert done.returncode == 0, done.stderr
        assert outcome(out) == whole


@pytest.mark.slow
def test_under_nohup_a_hang_up_is_nothing(shapes, whole, tmp_path):
    done = pretrain(
        shapes,
        tmp_path / "run",
        (signal.SIGHUP,),
        MOMENTS["step"][0],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "run") == whole
