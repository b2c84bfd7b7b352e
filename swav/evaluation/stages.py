"""What the benchmarks of stages share: their names and how they are pooled; and, on VOC 2007, its labels and a log."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int8

from swav.data.targets import MultiLabels
from swav.errors import DataError
from swav.evaluation.task import Task
from swav.features import PAGE_GRIDS, page_windows, stage_grids
from swav.files import FileLock, remove_leftovers, write_text_durably
from swav.network.backbone import ResNet
from swav.weights.encoder import Encoder


class MultiLabelSplits(NamedTuple):
    """Labels of both splits: 1 present, 0 ignored (difficult), -1 absent."""

    train: Int8[np.ndarray, "N C"]
    val: Int8[np.ndarray, "M C"]
    classes: list[str]

    @classmethod
    def of(cls, task: Task[Any]) -> "MultiLabelSplits":
        """Check that the task has what the benchmarks on VOC need.

        Raises:
            ConfigError: the backbone has no stages.
            DataError: images have one label instead of several.
        """
        if not task.encoder.stage_channels:
            task.encoder.stages(torch.empty(0, task.encoder.in_channels, 1, 1))  # has the words for it
        train, val = task.train.targets, task.val.targets
        if not isinstance(train, MultiLabels) or not isinstance(val, MultiLabels):
            raise DataError(
                f"{task.train.root}: expected several labels per image (PASCAL VOC 2007), found one or none"
            )
        return cls(train.values, val.values, train.classes)


def stage_name(encoder: Encoder, place: int) -> str:
    """feature1 ... feature5, as the page has it; of backbones that are not ResNets with the stage's own name."""
    own = "" if isinstance(encoder.trunk, ResNet) else f" ({encoder.stage_names[place]})"
    return f"feature{place + 1}{own}"


def pooling(task: Task[Any]) -> str:
    """How the stages are pooled, where that is not the published way; empty where it is."""
    grids = stage_grids(task.encoder.stage_channels)
    windows = [page_windows(one, grid) for one, grid in zip(task.stage_maps(), grids, strict=True)]
    if grids == PAGE_GRIDS and all(windows):
        return ""
    return f"stages pooled {'' if all(windows) else 'adaptively '}to {'/'.join(map(str, grids))}"


def write_log(task: Task[Any], bench: str, content: dict[str, Any]) -> str:
    """Write what the scores were made of; return its path below the results' folder."""
    of, place = task.identity()
    path = Path(bench) / place / "log.json"
    owner = f"the log of {bench} in {task.out / path.parent}"
    with FileLock((task.out / path).with_name(".lock"), waiting_for=owner, base=task.out):
        remove_leftovers(task.out / path)
        write_text_durably(task.out / path, json.dumps({"of": of} | content, indent=1) + "\n")
    return str(path)
