"""Attacks: a run that a kill -9 changes. At five points, on one process and on two, the same command must then end
with the same bytes: weights, optimiser, queue and random state, and with the same losses in the log.

Run: pytest tests/test_resume.py -m slow
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swav.data.shapes import write_shapes
from tests.processes import LAUNCHER_VARIABLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[1]
# 80 images: 5 steps an epoch, 15 in all, saves after 4, 8, 12 and 15. The queue is in use from the second epoch on.
SETTINGS = ("batch=16", "width=0.125", "prototypes=12", "queue_length=32", "checkpoint_steps=4", "workers=1")
LAST = 15
KILLS = {
    "inside a step": ["step:middle:7"],
    "while saving": ["save:written:2"],
    "between saves": ["step:end:7"],
    "at an epoch's end": ["epoch:end:2"],
    "in the first step after resume": ["step:middle:7", "step:middle:1"],
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=80, val=32, size=48, seed=0)
    return folder


def pretrain(processes: int, data: Path, out: Path, fault: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, killed at `fault` (name:count) if one is given."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "swav", "pretrain", "tiny"]
    environment = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with subprocess.Popen(
        [*command, f"data={data}", *SETTINGS, "--out", str(out)],
        env=environment | ({"SWAV_FAULT": fault} if fault else {}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # torchrun and what it started: no orphan trains on
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def outcome(out: Path) -> tuple[dict[str, str], list[tuple[int, float]]]:
    """SHA-256 of every tensor file at the end, and every step's loss."""
    last = out / "checkpoints" / f"step_{LAST:08d}"
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("*.safetensors")}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return hashes, [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def whole(request, shapes, tmp_path_factory) -> tuple[int, tuple[dict[str, str], list[tuple[int, float]]]]:
    """The number of processes, and what they make of a run that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = pretrain(request.param, shapes, out)
    assert done.returncode == 0, done.stderr
    return request.param, outcome(out)


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_ends_with_the_same_bytes(whole, shapes, tmp_path, kill):
    processes, expected = whole
    assert set(expected[0]) == {f"rank_{rank}.safetensors" for rank in range(processes)} | {
        "model.safetensors",
        "optim.safetensors",
    }
    assert [step for step, _ in expected[1]] == list(range(1, LAST + 1))
    out = tmp_path / "run"
    for fault in KILLS[kill]:
        killed = pretrain(processes, shapes, out, fault)
        assert killed.returncode == (-signal.SIGKILL if processes == 1 else 1), killed.stderr
        assert not (out / "checkpoints" / f"step_{LAST:08d}").exists()
    resumed = pretrain(processes, shapes, out)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on from step " in resumed.stderr
    assert outcome(out) == expected
    assert not [path.name for path in out.rglob("*") if ".tmp" in path.name]
