"""Attacks: any departure from the original implementation, in any digit that float64 holds.

One test per file of tests/golden, or of the folder that SWAV_GOLDEN names; every number of a file is compared.
Run: pytest tests/test_golden.py -rP   (prints each file's largest difference)
"""

import pytest

from tests import golden_files


@pytest.mark.parametrize("path", golden_files.found(), ids=lambda path: path.name)
def test_every_number_of_the_golden_file_is_ours_too(path, two_processes):
    difference = golden_files.largest_difference(path, two_processes)
    print(f"golden {path.name}: largest difference {difference:.1e}")
    assert difference < golden_files.TOLERANCE


def test_the_golden_folder_holds_files():
    assert golden_files.found(), f"{golden_files.FOLDER}: expected golden files, found none; see SWAV_GOLDEN"
