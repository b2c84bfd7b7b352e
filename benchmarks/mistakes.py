"""Thirty plausible mistakes on the command line, as processes: what was typed, the exit code, the seconds and the message.

Run: PYTHONPATH=. python benchmarks/mistakes.py > benchmarks/results/mistakes.md

The lines are those of tests/test_thirty_mistakes.py, which checks them in one process. Seconds are of the whole command.
"""

import datetime
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from swav.version import swav_version
from tests.test_thirty_mistakes import MISTAKES, draw


def main() -> None:
    """Make every mistake once, in a folder of a few images, and print a table."""
    print("# Thirty plausible mistakes\n")
    print(
        f"`{' '.join(['PYTHONPATH=.', 'python', *sys.argv])}`, swav {swav_version()}, {datetime.date.today()}, ", end=""
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    print("| typed | exit code | seconds | message |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            draw(Path(folder) / "photos" / f"{i}.png", i)
        for i in range(8):
            draw(Path(folder) / "labelled" / ("train", "val")[i // 4] / f"class{i % 2}" / f"{i}.png", 10 + i)
        command = [str(Path(sys.executable).with_name("swav"))]
        subprocess.run([*command, "--version"], check=True, capture_output=True)  # the first start reads from the disk
        for line, expected, words in MISTAKES:
            began = time.monotonic()
            done = subprocess.run([*command, *shlex.split(line)], cwd=folder, capture_output=True, text=True)
            seconds = time.monotonic() - began
            assert done.returncode == expected and words in done.stderr, (line, done)
            message = done.stderr.strip().removeprefix("swav: ").replace("|", "\\|").replace("\n", "<br>")
            print(f"| `swav {line}` | {done.returncode} | {seconds:.1f} | {message} |", flush=True)


if __name__ == "__main__":
    main()
