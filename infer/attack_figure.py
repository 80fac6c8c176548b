"""Attacked strips one under another, for people to look at: the end of every prompt stands at the same edge."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infer.figure import Row
from render import RenderConfig


def rows_of(named: Sequence[tuple[str, NDArray[np.uint8], int]], config: RenderConfig) -> list[Row]:
    """Strips of different lengths as rows of one panel: label, patches [n, A], and how many of them are no tinted ones.
    What a strip lacks is left empty on its left where it has tinted patches, so that all prompts end at one edge."""
    before = max(own for _, _, own in named)
    behind = max(len(patches) - own for _, patches, own in named)
    rows = []
    for label, patches, own in named:
        left = before - own if behind else 0
        right = before + behind - left - len(patches)
        cells = np.pad(patches, ((left, right), (0, 0)), constant_values=255)
        place = np.arange(len(cells))
        shape = (len(cells), config.height, config.patch_width) + ((3,) if config.channels == 3 else ())
        absent = (place < left) | (place >= left + len(patches))
        tinted = (place >= before) & ~absent if behind else np.zeros(len(cells), bool)
        rows.append(Row(label, cells.reshape(shape), tinted=tinted, absent=absent))
    return rows
