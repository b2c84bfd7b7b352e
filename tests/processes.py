"""Two or four processes with a gloo group between them, started once per session and handed one function after another."""

import contextlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver, get_context
from pathlib import Path
from typing import Any

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PRELOADED = ["tests.golden_files"]  # and with it torch and all of swav: imported once, for both processes
LIMIT_SECONDS = 100.0  # below pytest's own limit of 120, so that the children are ended by us


class ProcessError(Exception):
    """A function raised on a rank, or a rank was silent or dead."""


def _serve(rank: int, count: int, store: str, pipe: connection.Connection) -> None:
    """One process: joins the group, then calls what comes through the pipe until it closes."""
    for name in LAUNCHER_VARIABLES:  # what a launcher around pytest may have left
        os.environ.pop(name, None)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # works where the machine's own name cannot be looked up
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        while True:
            function, arguments = pickle.loads(pipe.recv_bytes())
            torch.manual_seed(0)
            pipe.send_bytes(_called(function, arguments))
    except EOFError:  # the parent has closed its end
        pass
    finally:
        torch.distributed.destroy_process_group()


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((True, function(*arguments)))
    except Exception:
        return pickle.dumps((False, traceback.format_exc()))


def warm_up() -> None:
    """Begins the imports in the background; the first call then need not wait for all of them."""
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class Processes:
    """Calls a function on every rank of a group of `count` and returns all results.

    The function is found by its name in its module, arguments and results travel as pickles. A failure or a silence
    ends all processes, and the next call starts fresh ones: no test can hang on, or poison, another.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._folder = tempfile.TemporaryDirectory(prefix="swav-group-")
        self._children: list[tuple[Any, connection.Connection]] = []
        self._starts = 0

    def __call__(self, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT_SECONDS) -> list[Any]:
        """Returns [result of rank 0, result of rank 1, ...].

        Raises:
            ProcessError: the function raised on a rank (its traceback is the message), or took longer than `limit`
                seconds.
        """
        try:
            if not self._children:
                self._start()
            request = pickle.dumps((function, arguments))
            for _, pipe in self._children:
                pipe.send_bytes(request)
            return self._results(time.monotonic() + limit)
        except BaseException:
            self.close(kill=True)
            raise

    def _start(self) -> None:
        self._starts += 1
        warm_up()
        context = get_context("forkserver")
        store = Path(self._folder.name) / f"store{self._starts}"
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            arguments = (rank, self.count, str(store), theirs)
            child = context.Process(target=_serve, args=arguments, name=f"rank{rank}", daemon=True)
            child.start()
            theirs.close()
            self._children.append((child, ours))

    def _results(self, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        ranks = {pipe: rank for rank, (_, pipe) in enumerate(self._children)}
        while ranks:
            ready = connection.wait(list(ranks), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ProcessError(f"no answer in time from rank {sorted(ranks.values())}")
            for pipe in ready:
                assert isinstance(pipe, connection.Connection)
                rank = ranks.pop(pipe)
                try:
                    fine, result = pickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionError):
                    raise ProcessError(f"rank {rank} died") from None
                if not fine:
                    raise ProcessError(f"rank {rank} raised:\n{result}")
                results[rank] = result
        return [results[rank] for rank in range(self.count)]

    def close(self, kill: bool = False) -> None:
        """Ends all processes: with a word if they are idle, with SIGKILL if one may hang."""
        for child, pipe in self._children:
            if kill:
                child.kill()
            pipe.close()
        for child, _ in self._children:
            child.join(timeout=20)
            if child.is_alive():
                child.kill()
                child.join()
            child.close()
        self._children.clear()


@contextlib.contextmanager
def processes(count: int) -> Iterator[Processes]:
    """A pool that is ended on every way out."""
    pool = Processes(count)
    try:
        yield pool
    finally:
        pool.close()
        pool._folder.cleanup()


def loader_processes():
    """Children of this process that read images."""
    return [process for process in multiprocessing.active_children() if process.name.startswith("swav-loader")]


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
