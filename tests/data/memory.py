"""How much memory reading an image or a file of labels may take."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def tracing() -> Iterator[None]:
    """Trace what Python and NumPy allocate. Blocks may be nested: to start takes longer than one small measurement."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def require_at_most(limit: float, call: Callable[[], object]) -> None:
    """Fail where a call takes more than `limit` bytes at once, and a second one does too.

    A first call may pay for what is not its own: a module that is imported when it is first needed, another thread's work.
    """
    with tracing():
        taken = _taken(call)
        if taken >= limit:
            taken = _taken(call)
    assert taken < limit, f"{taken:,} bytes at once, expected less than {limit:,.0f}"


def _taken(call: Callable[[], object]) -> int:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    call()
    return tracemalloc.get_traced_memory()[1] - before
