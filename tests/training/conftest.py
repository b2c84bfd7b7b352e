"""What several tests of training share."""

from pathlib import Path

import pytest

from swav.data.synthetic.writers import write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A drawn data set of 64 + 32 images."""
    folder: Path = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, "imagenet", train=64, val=32, size=32, seed=0)
    return folder
