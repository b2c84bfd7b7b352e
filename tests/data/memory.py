"""How much memory reading an image or a file of labels may take."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def takes_at_most(limit: float) -> Iterator[None]:
    """Fail where Python and NumPy hold more than `limit` bytes at once within the block; stop measuring however it ends."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes at once, expected less than {limit:,.0f}"
