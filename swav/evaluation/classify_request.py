"""What is asked of `swav classify`, and whether it can be had, as far as it can be known without torch."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swav.data.sources.catalog import LABELLED_HOMES
from swav.data.sources.layouts import NAMES, find_layout
from swav.data.sources.open import check_images
from swav.errors import ConfigError, DataError, printable
from swav.evaluation.places import check_places
from swav.evaluation.request import Request, read_request
from swav.files import refuse_inside

BENCH = "linear"  # whose protocol own is what classify does; its settings are those of this benchmark
CHOSEN = ("protocol", "seeds", "name")  # settings of a bench that make no sense here


def read_classify_request(weights: str, overrides: Mapping[str, Any]) -> Request:
    """Resolve settings; looks at no file.

    Raises:
        ConfigError: a setting is unknown, out of range, or not for the user to set here; or several processes were started.
    """
    if given := [key for key in CHOSEN if key in overrides]:
        raise ConfigError(f"{given[0]}: is set by classify itself; leave it out")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("classify: expected one process, found several; start it without torchrun")
    return read_request([BENCH], [weights], dict(overrides) | {"protocol": "own"})


def check_classify_places(request: Request, data: Path, out: Path, predict: str | Path | None, dry_run: bool) -> None:
    """Refuse weights, data, images to predict or a folder that are not there. Reads no weight and, of a folder, no image.

    Raises:
        ConfigError: the weights name nothing, or `out` is inside of images.
        DataError: there is no image, or the data set is known to show several classes in each.
        MachineError: `out` cannot be written.
    """
    kind = find_layout(data).kind
    if kind in NAMES and not any((data / name).is_dir() for name in LABELLED_HOMES):
        raise DataError(
            f"{printable(str(data))}: expected one class per image, found {NAMES[kind]}, whose images show several; give class folders "
            "or a CSV path,label, or score by its own benchmarks"
        )
    check_places(request, data, out, dry_run)
    if predict is None:
        return
    refuse_inside(out, predict, resumes=False)  # its pictures would be predicted the next time
    if not Path(predict).expanduser().is_file():
        check_images(predict)


def refuse_joined_labels(data: Path, classes: list[str]) -> None:
    """Refuse class names that are several in one cell, as `cat;dog` beside `dog`. (A comma joins no classes: ImageNet has
    `maillot` and `maillot, tank suit`.)

    Raises:
        DataError: there is one.
    """
    parts = {name: [part.strip() for part in re.split(r"[;|]", name)] for name in classes}
    often = Counter(part for its in parts.values() for part in set(its))
    for name, its in parts.items():
        if len(its) > 1 and any(often[part] > 1 for part in its):
            raise DataError(
                f"{printable(str(data))}: expected one class per image, found '{printable(name)}', which is several; "
                "classify knows one class per image only"
            )
