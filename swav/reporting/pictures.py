"""Pictures of a report, drawn from arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_views(path: Path, rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> None:
    """Write a contact sheet: a row per image, its views side by side as the network saw them.

    Args:
        path: of the PNG; its folder is made.
        rows: uint8 [S, S, 3] views of each image; sizes may differ within a row.
        gap: pixels between views.
    """
    height = max(view.shape[0] for view in rows[0]) + gap
    width = sum(view.shape[1] + gap for view in rows[0])
    sheet = np.full((height * len(rows) + gap, width + gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        left = gap
        for view in row:
            side_y, side_x = view.shape[:2]
            sheet[gap + i * height :, left:][:side_y, :side_x] = view
            left += side_x + gap
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet).save(path)
