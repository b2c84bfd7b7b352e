"""Progress of long work: a live line on a terminal, plain lines elsewhere."""

import resource
import sys
import time

import rich.console
import rich.progress
import torch

from swav.errors import printable, printable_lines
from swav.output import say, tolerant


def memory_gb(device: torch.device) -> float:
    """Peak memory so far: of the GPU's allocator, or resident in this process [GB]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6


class Progress:
    """Progress of long work: a bar with ETA on a terminal, a plain line every few seconds elsewhere.

    Args:
        label: what is being done.
        total: units of work.
        done: units already done (by an earlier command).
        quiet: show nothing (all processes but the first).
        every_seconds: between plain lines.
    """

    def __init__(self, label: str, total: int, done: int = 0, *, quiet: bool = False, every_seconds: float = 10.0):
        label = printable(label)
        self.label, self.total, self.start, self.done = label, total, done, done
        self.every_seconds = every_seconds
        self.began = self.printed = time.monotonic()
        self._ends: float | None = None  # as planned, by the monotonic clock
        self._bar: rich.progress.Progress | None = None
        self.quiet = quiet
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("ETA {task.fields[eta]}"),
                rich.progress.TextColumn("{task.fields[text]}"),
                console=rich.console.Console(file=tolerant(sys.stderr)),
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, completed=done, eta="-", text="")

    def plan(self, total: int, seconds_left: float) -> None:
        """Change how much work there is; the time left is from then on that of this plan."""
        self.total, self._ends = total, time.monotonic() + seconds_left
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def update(self, done: int, text: str = "") -> None:
        """Say how far the work is."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, eta=self.eta(), text=text)
        elif not self.quiet and (time.monotonic() - self.printed >= self.every_seconds or done == self.total):
            self.printed = time.monotonic()
            say(f"{self.label} {done}/{self.total}  ETA {self.eta()}  {text}".rstrip())

    def eta(self) -> str:
        """Time left as planned, or else by the monotonic clock and the throughput since the start of this command."""
        if self.done <= self.start:
            return "-"
        if self._ends is not None:
            seconds = max(0.0, self._ends - time.monotonic()) if self.done < self.total else 0.0
        else:
            seconds = (time.monotonic() - self.began) / (self.done - self.start) * (self.total - self.done)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable_lines(line), markup=False, highlight=False)
        else:
            say(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
