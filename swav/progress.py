"""Progress of long work: a live line on a terminal, plain lines elsewhere. No torch here."""

import sys
import time
from typing import Any

from swav.errors import printable, printable_lines
from swav.output import say, tolerant

FIRST_SECONDS = 0.5  # until something is said of work that takes longer
_MARKS = 64  # points in time that are kept for the speed


class Progress:
    """Progress of long work: a bar with ETA on a terminal, a plain line every few seconds elsewhere.

    Args:
        label: what is being done.
        total: units of work; 0: not known.
        done: units already done (by an earlier command).
        quiet: show nothing (all processes but the first).
        every_seconds: between plain lines; the first comes earlier.
        delay: seconds before anything is shown, of work that is most often over by then.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        *,
        quiet: bool = False,
        every_seconds: float = 10.0,
        delay: float = 0.0,
    ):
        label = printable(label)
        self.label, self.total, self.start, self.done = label, total, done, done
        self.every_seconds = every_seconds
        self._begun = time.monotonic()
        self._next_line = self._begun + max(delay, FIRST_SECONDS)
        self._show_from = self._begun + delay
        self._latest = done, self._begun
        self._marks, self._spacing = [self._latest], 1  # when how much was done, at even distances
        self._ends: float | None = None  # as planned, by the monotonic clock
        self._place = self._text = ""
        self._said = -1  # units of work in the last plain line
        self._bar: Any = None  # rich's, which takes a third of a second to import
        self.quiet = quiet
        if delay <= 0:
            self._show()

    def _show(self) -> None:
        if self._bar is not None or self.quiet or sys.stderr is None or not sys.stderr.isatty():
            return
        import rich.console
        import rich.progress

        self._graph = rich.progress.BarColumn(bar_width=10)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            self._graph,
            rich.progress.TextColumn("{task.fields[text]}", markup=False),
            console=rich.console.Console(file=tolerant(sys.stderr)),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self.total or None, completed=self.done, text="")
        self._draw()

    def _draw(self) -> None:
        """Lay the line out for the width that the terminal has now: what is being done, how far, where and how long come first,
        then the bar, then the rest."""
        head = f"{self.label} {self._count()}"
        words = [word for word in (self._place, self._eta_text()) if word]
        room = self._bar.console.width - 2 - len(head) - len("  ".join(words))  # a blank on each side of the bar
        if room < 0:  # how far and how long count for more than what
            head = self._count()
        self._graph.bar_width = min(10, room) if room >= 4 else 0
        room -= self._graph.bar_width
        for part in self._text.split("  ") if self._text else ():
            room -= 2 + len(part)
            if room < 0:
                break
            words.append(part)
        text, total = "  ".join(words), self.total or None
        self._bar.update(self._task, description=head, completed=self.done, total=total, text=text)

    def _count(self) -> str:
        return f"{self.done}/{self.total}" if self.total else f"{self.done}"

    def _eta_text(self) -> str:
        return f"ETA {self.eta()}" if self.total else ""

    def plan(self, total: int, seconds_left: float) -> None:
        """Change how much work there is; the time left is from then on that of this plan."""
        self.total, self._ends = total, time.monotonic() + seconds_left
        if self._bar is not None:
            self._draw()

    def update(self, done: int, text: str | None = None, place: str | None = None) -> None:
        """Say how far the work is.

        Args:
            text: how it goes, in parts with two blanks between, the most important first; None: as before.
            place: where it is, as an epoch, in a few letters; None: as before.
        """
        now = time.monotonic()
        self.done = done
        self._text, self._place = self._text if text is None else text, self._place if place is None else place
        self._mark(done, now)
        if self._bar is None and now >= self._show_from:
            self._show()
        if self._bar is not None:
            self._draw()
        elif not self.quiet and now >= self._show_from and (now >= self._next_line or self._is_end(text)):
            self._next_line, self._said = now + self.every_seconds, done
            parts = [f"{self.label} {self._count()}", self._place, self._eta_text(), self._text]
            say("  ".join(filter(None, parts)))

    def _is_end(self, text: str | None) -> bool:
        """Whether all is done, and that is not said yet."""
        return 0 < self.total == self.done and (self._said < self.done or bool(text))

    def _mark(self, done: int, now: float) -> None:
        if done <= self._latest[0]:
            return
        self._latest = done, now
        if done - self._marks[-1][0] >= self._spacing:
            self._marks.append(self._latest)
        if len(self._marks) > _MARKS:
            self._marks, self._spacing = self._marks[::2], 2 * self._spacing

    def eta(self) -> str:
        """Time left as planned, or else by the monotonic clock and the speed of the later half of this command's work: what
        begins slowly (processes that start, a network that is compiled) does not count for long."""
        if self.done <= self.start or not self.total:
            return "-"
        if self.done >= self.total:
            seconds = 0.0
        elif self._ends is not None:
            seconds = max(0.0, self._ends - time.monotonic())
        elif self._latest in self._marks[:2]:  # the first news, whose time is mostly that of beginning
            return "-"
        else:
            done, now = self._latest
            half = self.start + (done - self.start) / 2
            since, began = next(mark for mark in reversed(self._marks) if mark[0] <= half)
            seconds = (now - began) / (done - since) * (self.total - self.done)
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


def per_second(throughput: float) -> str:
    """Format a throughput: whole images per second, or two digits of a slow one."""
    return f"{throughput:.0f} images/s" if throughput >= 10 else f"{throughput:.2g} images/s"
