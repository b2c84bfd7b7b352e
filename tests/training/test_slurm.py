"""Attacks: a batch script that loses an argument, forgets to ask for another turn, or asks for one when all is done.

SLURM's and torch's commands are played by stand-ins on PATH; the shell is real. With the real torchrun: test_stop.py.
Run: pytest tests/training/test_slurm.py
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swav.training.slurm import batch_script

WORDS = [
    "pretrain",
    "auto",
    "data=my photos/it's here",
    "crops=[{count: 2, size: 32, scale: [0.2, 1]}]",
    "--out",
    "run $1",
]
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": '[ "$1" = requeue ] && echo "$2" > requeued || printf "node7\\nnode8\\n"',
}
VARIABLES = {"SLURM_JOB_ID": "123", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "node[7-8]"}


def started(folder: Path, torchrun: str) -> subprocess.Popen[bytes]:
    """The script at work, with a torchrun that does what is given."""
    places = folder / "bin"
    places.mkdir()
    for name, text in {**STAND_INS, "torchrun": torchrun}.items():
        (places / name).write_text(f"#!/bin/bash\n{text}\n")
        (places / name).chmod(0o755)
    (folder / "script").write_text(batch_script(WORDS))
    environment = os.environ | VARIABLES | {"PATH": f"{places}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", "script"], cwd=folder, env=environment)


def requeued(folder: Path) -> bool:
    return (folder / "requeued").exists() and (folder / "requeued").read_text() == "123\n"


def test_every_word_arrives_as_it_was_typed_and_machines_find_each_other(tmp_path):
    assert started(tmp_path, r'printf "%s\0" "$@" > words').wait(20) == 0
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words[words.index("-m") + 1 :] == ["swav", *WORDS]
    options = dict(zip(words[0::2], words[1::2], strict=False))
    assert options["--rdzv-endpoint"] == "node7:20123"
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("2", "4")


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (4, False), (75, True)])
def test_it_ends_with_the_code_of_the_run_and_asks_for_another_turn_on_75_only(tmp_path, code, again):
    assert started(tmp_path, f"exit {code}").wait(20) == code
    assert requeued(tmp_path) is again


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(("code", "again"), [(1, True), (0, False)])
def test_a_signal_reaches_the_run_as_sigterm_and_what_is_not_finished_gets_another_turn(tmp_path, number, code, again):
    """torchrun exits 1 whatever its processes exit with."""
    waits = f"trap 'sleep 0.2; touch saved; exit {code}' TERM; touch ready; while true; do sleep 0.05; done"
    script = started(tmp_path, waits)
    try:
        while not (tmp_path / "ready").exists():
            assert script.poll() is None
            time.sleep(0.01)
        script.send_signal(number)
        assert script.wait(20) == code
        assert (tmp_path / "saved").exists() and requeued(tmp_path) is again
    finally:
        script.kill()


def test_the_time_before_the_end_is_enough_for_what_is_asked_of_torchrun():
    script = batch_script(WORDS)
    assert "#SBATCH --signal=B:USR1@120" in script and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110" in script
    assert "#SBATCH --requeue" in script and "#SBATCH --open-mode=append" in script
