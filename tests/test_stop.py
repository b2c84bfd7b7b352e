"""Attacks: processes that do not end together. A signal to one of them, the death of one, and an error on one only.

Each is started as a launcher would, without one, so that every exit code is seen. Run: pytest tests/test_stop.py -m slow
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from swav import checkpoint
from swav.data.synthetic.writers import write_shapes
from tests.processes import LAUNCHER_VARIABLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
# A run that no test waits out; without a signal it saves nothing.
SETTINGS = (
    "batch=16",
    "width=0.125",
    "prototypes=12",
    "queue_length=32",
    "epochs=2000",
    "checkpoint_every_steps=0",
    "workers=1",
)
SECONDS = 30.0  # within which all must have ended, on a busy machine

Start = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=80, val=32, size=48, seed=0)
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(2, command...)`: a group of so many processes, or some ranks of it. What is left is killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def started(count: int, *command: str, ranks: Sequence[int] | None = None) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        plain = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
        plain |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        plain["TORCH_CPP_LOG_LEVEL"] = "FATAL"  # as the command line has it
        if sys.platform == "linux":
            plain.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for rank in range(count) if ranks is None else ranks:
            running.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env=plain | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    cwd=ROOT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return running

    yield started
    for process in running:
        process.kill()
        process.wait()


def steps(out: Path) -> int:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def training(start: Start, count: int, data: Path, out: Path) -> list[subprocess.Popen[str]]:
    """Processes that have trained for some steps."""
    processes = start(count, "-m", "swav", "pretrain", "tiny", f"data={data}", *SETTINGS, "--out", str(out))
    while steps(out) < 4:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        time.sleep(0.02)
    return processes


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes, and the lines that all together wrote to standard error after the run had begun."""
    deadline = time.monotonic() + SECONDS
    said = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in processes]
    return [process.returncode for process in processes], [line for text in said for line in text.splitlines()]


def complaints(lines: list[str]) -> list[str]:
    assert not [line for line in lines if "Traceback" in line or "frame #" in line], lines
    return [line for line in lines if line.startswith("swav: ")]


@pytest.mark.parametrize(
    ("number", "rank", "code"),
    [("SIGTERM", 1, 75), ("SIGUSR1", 0, 75), ("SIGUSR2", 1, 75), ("SIGHUP", 0, 75), ("SIGINT", 1, 130)],
)
def test_a_signal_to_one_process_is_a_checkpoint_and_the_same_exit_code_for_all_within_a_step(
    start, shapes, tmp_path, number, rank, code
):
    processes = training(start, 2, shapes, tmp_path / "run")
    for process in processes if number == "SIGTERM" else [processes[rank]]:  # as torchrun hands it on, twice to one
        process.send_signal(getattr(signal, number))
    processes[rank].send_signal(signal.SIGTERM)
    done = steps(tmp_path / "run")
    codes, lines = ended(processes)
    assert codes == [code, code], lines
    (complaint,) = complaints(lines)
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    saved = checkpoint.read(newest)
    assert complaint.startswith(f"swav: stopped by a signal after step {saved.step}/10000; checkpoint saved")
    assert len(saved.locals) == 2
    assert saved.step <= done + 2  # the step that was on its way when its line was not yet written, and one more


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_process_ends_the_others_soon_with_one_message(start, shapes, tmp_path, rank):
    processes = training(start, 2, shapes, tmp_path / "run")
    processes[rank].kill()
    began = time.monotonic()
    codes, lines = ended(processes)
    print(f"rank {rank} killed: the other ended after {time.monotonic() - began:.1f} s with {codes[1 - rank]}")
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 4
    (complaint,) = complaints(lines)
    assert complaint.startswith(f"swav: rank {1 - rank} of 2: another process exited or stopped responding (")


ALONE = """
import sys, torch
from swav import cli, dist
from swav.errors import DataError
def work():
    with dist.process_group(torch.device("cpu")):
        dist.barrier()
        if dist.rank() == 1:
            raise DataError("the disk of process 1 is broken")
        for _ in range(1000):
            dist.all_reduce_sum(torch.zeros(1))
        dist.broadcast_object(None)
        while True:
            dist.all_reduce_sum(torch.zeros(1))
sys.exit(cli._run(work, False))
"""


def test_an_error_on_one_process_is_the_message_and_the_exit_code_of_all(start):
    codes, lines = ended(start(2, "-c", ALONE))
    assert codes == [3, 3]
    assert complaints(lines) == ["swav: the disk of process 1 is broken"]


def test_a_process_that_finds_no_other_says_so(start):
    impatient = ALONE.replace('torch.device("cpu")', 'torch.device("cpu"), timeout_minutes=0.05')
    codes, lines = ended(start(2, "-c", impatient, ranks=[1]))
    assert codes == [4]
    (complaint,) = complaints(lines)
    assert complaint.startswith("swav: the 2 processes could not meet (")
