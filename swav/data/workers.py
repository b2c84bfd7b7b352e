"""Loader processes: started, asked in turn, and ended with the process that they work for.

Why not torch's DataLoader: its batches go through /dev/shm, which containers keep at 64 MB; the death of a worker interrupts
the main process anywhere; a signal meant for the main process ends its workers; and workers of a process that was killed
may wait forever in a pipe that nobody reads.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import cv2
import torch

from swav import signals
from swav.errors import MachineError, SwavError

FORKS = sys.platform == "linux"  # elsewhere forking is not safe, and workers are started afresh
START_SECONDS = 20.0  # within which a forked worker must answer: some milliseconds suffice
START_ATTEMPTS = 3
PAUSE_SECONDS = 0.02
_READY = "ready"


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


class Workers:
    """Processes that answer questions, each in the order in which it was asked.

    A fork may hang before it runs a line of ours: CPython 3.11 waits in the child for a lock that another thread may have held,
    and threads of torch.distributed take it for a moment after a collective. So they get a pause first, each worker says
    that it is there, and one that does not is replaced.

    Args:
        answer: called in a worker with what was asked; its return value is sent back.
        count: number of processes.
        advice: what to do if one dies, for the message.

    Raises:
        MachineError: a worker cannot be started.
    """

    def __init__(self, answer: Callable[..., Any], count: int, advice: str):
        self._answer, self._advice = answer, advice
        self._workers: list[_Worker] = []
        atexit.register(self.close)
        time.sleep(PAUSE_SECONDS)
        try:
            with signals.blocked():
                for number in range(count):
                    self._workers.append(self._start(number))
                for number in range(count):
                    self._wait_until_ready(number)
        except BaseException:
            self.close()
            raise

    def _start(self, number: int) -> _Worker:
        context: Any = multiprocessing.get_context("fork" if FORKS else "spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(self._answer, theirs, os.getpid()), name=f"swav-loader-{number}", daemon=True
        )
        try:
            process.start()
        except OSError as error:
            ours.close()
            theirs.close()
            raise MachineError(f"a loader process cannot be started ({error}); {self._advice}") from None
        theirs.close()  # so that a worker's death ends the pipe
        return _Worker(process, ours)

    def _wait_until_ready(self, number: int) -> None:
        for attempt in range(START_ATTEMPTS):
            if attempt:
                _end(self._workers[number])
                self._workers[number] = self._start(number)
            if not FORKS or self._workers[number].connection.poll(START_SECONDS):
                self.receive(number)
                return
        raise MachineError(
            f"a loader process did not start within {START_SECONDS:.0f} s, {START_ATTEMPTS} times; {self._advice}"
        )

    def ask(self, number: int, *question: Any) -> None:
        """Send a question to a worker.

        Raises:
            MachineError: it died.
        """
        try:
            self._workers[number].connection.send(question)
        except OSError:
            self._raise_died(number)

    def receive(self, number: int) -> Any:
        """Wait for a worker's next answer.

        Raises:
            SwavError: raised by `answer`.
            RuntimeError: another exception in `answer`, with its traceback.
            MachineError: the worker died.
        """
        try:
            answer = self._workers[number].connection.recv()
        except (EOFError, OSError):
            self._raise_died(number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def map(self, questions: Sequence[Any], ahead: int = 2) -> Iterator[Any]:
        """Yield the answers to all questions in order; each worker is at most `ahead` questions ahead."""
        count = len(self._workers)
        for i in range(min(ahead * count, len(questions))):
            self.ask(i % count, questions[i])
        for i in range(len(questions)):
            answer = self.receive(i % count)
            if i + ahead * count < len(questions):
                self.ask(i % count, questions[i + ahead * count])
            yield answer

    def close(self) -> None:
        """End the workers at once (they hold nothing that could be lost)."""
        atexit.unregister(self.close)
        while self._workers:
            _end(self._workers.pop())

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _raise_died(self, number: int) -> None:
        process = self._workers[number].process
        process.join(timeout=5)
        code = process.exitcode or 0
        how = f"was killed (signal {-code})" if code < 0 else f"ended (exit code {code})"
        raise MachineError(f"a loader process {how}, most often for lack of memory; {self._advice}")


def _end(worker: _Worker) -> None:
    worker.connection.close()
    try:
        worker.process.kill()
    except ValueError:  # it was ended before
        return
    worker.process.join()
    worker.process.close()


def _work(answer: Callable[..., Any], connection: Connection, parent: int) -> None:
    """Answer questions until killed."""
    signals.ignore_all()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a run that is killed leaves no process behind
        if os.getppid() != parent:  # the parent died before this call
            os._exit(1)
    try:
        connection.send(_READY)
        while True:
            connection.send(_tried(answer, connection.recv()))
    except (EOFError, OSError):  # the main process is gone
        return


def _tried(answer: Callable[..., Any], question: tuple[Any, ...]) -> Any:
    try:
        return answer(*question)
    except SwavError as error:
        return error
    except MemoryError as error:
        return MachineError(f"not enough memory in a loader process ({error}); use fewer workers=N")
    except Exception:
        return RuntimeError(f"in a loader process:\n{traceback.format_exc()}")
