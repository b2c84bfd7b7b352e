"""NumPy's .npy files of numbers, from whoever: their header is held against the file's size before memory is taken."""

import math
import os
from pathlib import Path

import numpy as np

from swav.data.sources.damage import MAX_BYTES
from swav.data.sources.decode import open_regular


def read_numbers(path: Path, kinds: str = "iuf") -> np.ndarray:
    """Read an array of numbers. Nothing is unpickled.

    Args:
        kinds: of numbers that may be there, by NumPy's letters: i, u whole, f floating-point.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such array, its header and size do not agree, or it is above MAX_BYTES.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, above the limit of {MAX_BYTES:,}")
        if (version := np.lib.format.read_magic(file)) != (1, 0):  # later ones are of structured types only
            raise ValueError(f"version {version} of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind not in kinds:
            raise ValueError(f"values of type {dtype}")
        claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
        if claimed != there or any(side < 0 for side in shape):
            raise ValueError(f"{there:,} bytes of values where the header says {claimed:,} (of type {dtype}, {shape})")
        file.seek(0)
        array: np.ndarray = np.load(file, allow_pickle=False)
        return array
