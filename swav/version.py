"""The version of swav: of the checkout that it runs from, else of the installed package."""

import functools
import tomllib
from pathlib import Path


@functools.cache
def swav_version() -> str:
    """Return the version, as `0.1.0`.

    A checkout's pyproject.toml comes first: on PYTHONPATH it runs in the place of whatever version is installed.
    """
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "swav":
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass
    import importlib.metadata  # some milliseconds

    try:
        return importlib.metadata.version("swav")
    except importlib.metadata.PackageNotFoundError:  # files alone, copied from elsewhere
        return "unknown"
