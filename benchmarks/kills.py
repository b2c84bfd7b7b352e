"""Kills and signals at random moments of a run, and whether its weights are those of an undisturbed one.

Run: python benchmarks/kills.py --kills 100 --out FOLDER [--processes 2] [--signals KILL,TERM,USR1,USR2,HUP,INT] [--seed 0]

Each run trains on drawn shapes for some seconds, with saves and kNN evaluations on the way. It is ended by one of the
signals at a random moment: while it starts, or some time after a step drawn at random, so that a busy machine changes little.
The same command is given again until it finishes: then every tensor file of its last checkpoint must have the bytes of the
undisturbed run's. A signal, SIGKILL too, goes to one process, drawn at random, and the others of a group must then end by
themselves. What is left of a run after its end is counted: its processes carry a mark in their environment.

FOLDER/kills.jsonl has a line per kill; the same command continues after the last one.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from swav.data.synthetic.writers import write_shapes

SETTINGS = (
    "batch=16",
    "width=0.125",
    "prototypes=12",
    "queue_length=32",
    "workers=1",
    "log_every_steps=1",
    "keep_checkpoints=2",
)
MARK = "SWAV_KILLS_MARK"
PATIENCE_SECONDS = 600.0  # within which a run must end on a busy machine
LAUNCHER_SECONDS = 30.0  # after one process failed, a launcher signals those that are left
ORPHAN_SECONDS = 20.0  # within which all that belongs to a run that ended must be gone


class Harness:
    """Starts runs of one command and ends them.

    Args:
        wanted: the command line.
    """

    def __init__(self, wanted: argparse.Namespace):
        self.wanted, self.folder, self.data = wanted, wanted.out.absolute(), wanted.out.absolute() / "shapes"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "drawn").exists():
            write_shapes(self.data, "imagenet", train=80, val=32, size=48, seed=0)
            (self.folder / "drawn").touch()

    def start(self, out: Path) -> list[subprocess.Popen[bytes]]:
        """The processes of a run, as a launcher would start them."""
        words = [
            f"data={self.data}",
            *SETTINGS,
            f"epochs={self.wanted.epochs}",
            f"checkpoint_every_steps={self.wanted.saves}",
        ]
        words += ["knn_every_epochs=1", "queue_start_epoch=1", "--out", str(out)]
        count = self.wanted.processes
        environment = dict(os.environ) | {MARK: str(out), "TORCH_CPP_LOG_LEVEL": "FATAL"}
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
            if sys.platform == "linux":
                environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with (out.parent / f"{out.name}.log").open("ab") as log:
            return [
                subprocess.Popen(
                    [sys.executable, "-m", "swav", "pretrain", "tiny", *words],
                    env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
                for rank in range(count)
            ]

    def end(self, processes: list[subprocess.Popen[bytes]]) -> list[int]:
        """Exit codes. A process that waits for one that ended before they met gets SIGTERM, as from a launcher."""
        deadline, patience = time.monotonic() + PATIENCE_SECONDS, None
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in (None, 0) for process in processes)
            if failed and patience is None:
                patience = time.monotonic() + LAUNCHER_SECONDS
            if patience is not None and time.monotonic() > patience:
                for process in processes:
                    process.terminate()
                patience = deadline
            if time.monotonic() > deadline:
                raise TimeoutError(f"a run did not end within {PATIENCE_SECONDS:.0f} s")
            time.sleep(0.05)
        return [process.wait() for process in processes]

    def outcome(self, out: Path) -> dict[str, str]:
        """SHA-256 of the tensor files of the last checkpoint; empty while the run is unfinished."""
        places = sorted((out / "checkpoints").glob("step_*"))
        if not places or not (out / "report.html").exists():
            return {}
        files = sorted(places[-1].glob("*.safetensors"))
        return {f"{places[-1].name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def orphans(self, out: Path) -> list[int]:
        """Processes of a run that are there though all that were started have ended; waits for those that are ending."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := _marked(f"{MARK}={out}".encode())) and time.monotonic() < deadline:
            time.sleep(0.1)
        for number in left:
            os.kill(number, signal.SIGKILL)
        return left

    def undisturbed(self) -> dict[str, Any]:
        """What the run makes of itself alone: its files' hashes, its duration, and its time to the first step [s]."""
        known = self.folder / "undisturbed.json"
        if not known.exists():
            out = self.folder / "undisturbed"
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            processes = self.start(out)
            self.wait_for_step(1, out, processes)
            first = time.monotonic() - began
            codes = self.end(processes)
            if any(codes):
                sys.exit(f"the undisturbed run ended with {codes}; see {out}.log")
            known.write_text(
                json.dumps({"seconds": time.monotonic() - began, "first": first, "files": self.outcome(out)})
            )
        found: dict[str, Any] = json.loads(known.read_text())
        return found

    def wait_for_step(self, step: int, out: Path, processes: list[subprocess.Popen[bytes]]) -> None:
        """Until a step is in the log, or a process has ended."""
        log = out / "metrics.jsonl"
        while all(process.poll() is None for process in processes):
            if log.exists() and any(f'"step": {step},' in line for line in log.read_text().splitlines()):
                return
            time.sleep(0.01)

    def disturbed(self, number: int, whole: dict[str, Any]) -> dict[str, Any]:
        """One kill, the runs that follow until the work is done, and what came of it."""
        rng = random.Random(f"{self.wanted.seed} {number}")
        steps = 5 * self.wanted.epochs
        name, step = rng.choice(self.wanted.signals), rng.randrange(-steps // 4, steps)  # a fifth of them below 1
        pause = (whole["seconds"] - whole["first"]) / steps
        after = rng.uniform(0, whole["first"] if step < 1 else 2 * pause)  # a kNN evaluation is longer than a step
        victim = rng.randrange(self.wanted.processes)
        out = self.folder / "disturbed"
        shutil.rmtree(out, ignore_errors=True)
        out.with_name("disturbed.log").unlink(missing_ok=True)
        processes = self.start(out)
        if step > 0:
            self.wait_for_step(step, out, processes)
        time.sleep(after)
        hit = processes[victim].poll() is None
        processes[victim].send_signal(signal.Signals[f"SIG{name}"])
        codes = self.end(processes)
        left = self.orphans(out)
        saved = sorted(path.name for path in (out / "checkpoints").glob("step_*"))
        sittings, done = 0, codes == [0] * len(codes)
        while not done and sittings < 5:
            sittings += 1
            again = self.end(self.start(out))
            left += self.orphans(out)
            done = not any(again)
        return {
            "kill": number,
            "signal": name,
            "step": max(0, step),
            "after": round(after, 2),
            "process": victim,
            "hit": hit,
            "codes": codes,
            "saved": saved[-1] if saved else None,
            "lost by 75": 75 in codes and not saved,
            "resumed": sittings,
            "finished": done,
            "identical": done and self.outcome(out) == whole["files"],
            "leftovers": [path.name for path in out.rglob("*") if ".tmp" in path.name],
            "orphans": left,
            "traceback": b"Traceback" in out.with_name("disturbed.log").read_bytes(),
        }


def _marked(mark: bytes) -> list[int]:
    """Living processes of this user whose environment has the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            if alive and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended, or another user's
            continue
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line per signal, and one for all."""
    head = f"{'signal':<8}{'kills':>7}{'hit':>6}{'resumed':>9}{'identical':>11}{'orphans':>9}{'leftovers':>11}{'tracebacks':>12}"
    lines = [head]
    for name in [*sorted({row["signal"] for row in rows}), "all"]:
        some = [row for row in rows if name in (row["signal"], "all")]
        counts = [len(some), sum(row["hit"] for row in some), sum(row["resumed"] > 0 for row in some)]
        counts += [sum(row["identical"] for row in some), sum(len(row["orphans"]) for row in some)]
        counts += [sum(len(row["leftovers"]) for row in some), sum(row["traceback"] for row in some)]
        widths = (7, 6, 9, 11, 9, 11, 12)
        lines.append(f"{name:<8}" + "".join(f"{count:>{width}}" for count, width in zip(counts, widths, strict=True)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and kills.jsonl")
    parser.add_argument("--kills", type=int, default=10, help="in all, those of earlier commands included")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--signals", type=lambda text: text.split(","), default=["KILL"], help="drawn from, as KILL,TERM"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--saves", type=int, default=3, help="steps between saves")
    parser.add_argument("--seed", type=int, default=0)
    harness = Harness(parser.parse_args())
    whole = harness.undisturbed()
    print(f"undisturbed: {whole['seconds']:.1f} s, {len(whole['files'])} files", flush=True)
    log = harness.folder / "kills.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for number in range(len(rows), harness.wanted.kills):
        row = harness.disturbed(number, whole)
        rows.append(row)
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(table(rows))
    good = all(row["identical"] and not row["orphans"] and not row["lost by 75"] for row in rows)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
