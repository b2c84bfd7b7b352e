"""How much memory reading an image or a file of labels may take."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def takes_at_most(limit: float) -> Iterator[None]:
    """Fail where Python and NumPy take more than `limit` bytes at once within the block.

    Blocks may be nested: to start and stop the tracing takes longer than what is measured in many small ones.
    """
    outermost = not tracemalloc.is_tracing()
    if outermost:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield
        taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        if outermost:
            tracemalloc.stop()
    assert taken < limit, f"{taken:,} bytes at once, expected less than {limit:,.0f}"
