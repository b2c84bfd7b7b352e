"""Signals that ask the work to end: it saves between two steps and leaves, or leaves at once where there is nothing to save.

SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP mean "save and exit 75"; SIGHUP only where it was not ignored when the work began, as
under nohup. Ctrl-C (SIGINT) means the same with 130, and a second Ctrl-C "at once". Every other repetition means no more
than the first. An exit by which nothing was saved is 128 + the signal's number.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from swav.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, SignalExit, Stopped, counted
from swav.output import say

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
STUCK_SECONDS = 5.0  # within which a signal ends a command before its work: a call of C may be on, or have swallowed it

_active: "StopRequest | None" = None


class StopRequest:
    """The signal that asked for an end, if any came; handlers are in place between __enter__ and __exit__.

    A handler of Python runs only between two bytecodes: not during a backward pass, nor while a process waits for the
    others; and what it raises is dropped where it runs in a destructor or a callback. So a thread reads the signals too,
    acknowledges Ctrl-C at once, ends the process at the second one, and where a signal did not end the command.

    Outside `work` a signal raises SignalExit where the command is (`at_once`); inside, it is only remembered.

    Args:
        at_once: of a command, not of a function that a user's program calls: that program's handlers hold until `work`.

    Attributes:
        signal: the first that came.
        saved: whether this command has saved anything.
        ending: set once the command is on its way out.
        unfinished: what an end means where nothing was saved.
        unsaved: steps that would be lost now, while there are steps; None: finished parts are saved already.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.signal: int | None = None
        self.saved = False
        self.unsaved: Callable[[], int] | None = None
        self.unfinished = (
            "nothing was saved yet, and nothing saved before is lost; rerun the same command to begin again"
        )
        self.at_once = at_once
        self.working = not at_once
        self._quiet = os.environ.get("RANK", "0") != "0"  # of several processes the first speaks
        self._interrupts = 0
        self._remembered = False
        self.ending = False
        self._before: dict[int, Any] = {}
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> "StopRequest":
        global _active
        self._outer, _active = _active, self
        if threading.current_thread() is not threading.main_thread():
            return self
        self._from_signals, to_thread = os.pipe()
        os.set_blocking(to_thread, False)
        self._to_thread = to_thread
        self._watcher = threading.Thread(target=self._watch, name="swav-signals", daemon=True)
        self._watcher.start()
        self._wakeup_before = signal.set_wakeup_fd(to_thread, warn_on_full_buffer=False)
        self._report_before, sys.unraisablehook = sys.unraisablehook, self._report_unraisable
        for number in STOPPING:
            before = signal.getsignal(number)
            if before is None or (number == signal.SIGHUP and before == signal.SIG_IGN):
                continue
            self._before[number] = before
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        _active = self._outer
        if self._watcher is None:
            return
        sys.unraisablehook = self._report_before
        self.ending = True
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._to_thread, b"\0")  # closing would not end the thread: forked children hold the pipe open
        self._watcher.join()
        os.close(self._to_thread)
        os.close(self._from_signals)

    def ignore(self) -> None:
        """Ignore all signals from here on: the exit code is settled, and a launcher signals all that have not ended yet."""
        self.ending = True
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before.clear()

    def _remember(self, number: int, frame: object) -> None:
        if self._remembered:
            return
        self._remembered, self.signal = True, self.signal or number  # the watcher may have been first
        if not self.working:
            raise SignalExit(self.message(), self.final_code)

    def _watch(self) -> None:
        deadline: float | None = None  # of the first signal before the work
        poll = select.poll()  # select() takes no descriptor of 1024 and above
        poll.register(self._from_signals, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not poll.poll(None if left is None else 1000 * left):
                deadline = None
                if not self.working and not self.ending:
                    say(f"swav: {self.message()}")
                    os._exit(self.final_code)
                continue
            number = os.read(self._from_signals, 1)[0]
            if not number:
                return
            if number == signal.SIGINT:
                self._interrupts += 1
                if self._interrupts > 1:
                    if not self._quiet:
                        say(self._last_words())
                    os._exit(EXIT_INTERRUPTED)
                if self.working and not self._quiet:
                    say(self._acknowledgement())
            if number in self._before and not self.working and not self.ending and deadline is None:
                self.signal = self.signal or number
                deadline = time.monotonic() + STUCK_SECONDS

    def _report_unraisable(self, what: Any) -> None:
        """Print no traceback of a SignalExit that was raised in a destructor or a callback."""
        if not isinstance(what.exc_value, SignalExit):
            self._report_before(what)

    def _acknowledgement(self) -> str:
        if self.unsaved is None:
            return (
                "interrupted: ending after this batch; what is finished is kept, and the same command resumes. Press Ctrl-C again "
                "to quit at once"
            )
        return (
            "interrupted: saving after this step; press Ctrl-C again to quit at once and lose the "
            f"{counted(max(1, self.unsaved()), 'step')} since the last checkpoint"
        )

    def _last_words(self) -> str:
        if not self.working or self.unsaved is None:
            return "swav: interrupted"
        return f"swav: interrupted; the {counted(max(1, self.unsaved()), 'step')} since the last checkpoint are lost"

    def message(self) -> str:
        """What happened, for an end at once or at the end of a part."""
        if self.signal is None:
            by = "stopped by a signal to another process"
        else:
            by = "interrupted" if self.signal == signal.SIGINT else f"stopped by {signal.Signals(self.signal).name}"
        if self.saved:
            return f"{by}; what is finished is saved; rerun the same command to resume"
        return f"{by}; {self.unfinished}"

    @property
    def exit_code(self) -> int:
        """The code of an end after a save, 0 while no signal came; of several processes' codes the largest is that of all."""
        if self.signal is None:
            return 0
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_PREEMPTED

    @property
    def final_code(self) -> int:
        """The code of an end now: that of preemption only if something was saved."""
        return self.exit_code if self.saved or self.signal is None else 128 + self.signal


@contextlib.contextmanager
def work() -> Iterator[StopRequest]:
    """Inside, a signal only sets a flag for the loop that runs here: its command's, or one of this call's own."""
    if _active is None:
        with StopRequest() as stop:
            yield stop
        return
    stop = _active
    before, stop.working = stop.working, True
    if not before and stop.signal is not None:  # what was raised then was dropped, as in a destructor
        stop.working = False
        raise SignalExit(stop.message(), stop.final_code)
    try:
        yield stop
    finally:
        stop.working, stop.unsaved = before, None


def note_saved() -> None:
    """Record that something is saved, so that an end from here on is "preempted" and not "killed"."""
    if _active is not None:
        _active.saved = True


def note_nothing_to_save(what_to_do: str) -> None:
    """Record that the command saves nothing, and what its end on the way means."""
    if _active is not None:
        _active.unfinished = what_to_do


def note_ending() -> None:
    """Record that the command is on its way out, however long that takes: no watcher needs to end it."""
    if _active is not None:
        _active.ending = True


def end_asked_for() -> tuple[int, str]:
    """The exit code of an end now and its message, where a signal asks for one; else (0, "")."""
    if _active is None or _active.signal is None:
        return 0, ""
    return _active.final_code, _active.message()


def stop_if_asked() -> None:
    """End the work here if a signal asks for it: between two parts, of which the finished ones are saved.

    Raises:
        Stopped: it does.
    """
    code, message = end_asked_for()
    if code:
        raise Stopped(message, code)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Processes started here never get the signals that ask the work to end (schedulers signal every process of a job):
    they inherit the mask. This process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_all() -> None:
    """Ignore the signals that ask the work to end, in a worker: its parent finishes the step and saves."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
