"""Strips as pieces of HTML: pictures inside the page, folded into lines, with labels under their patches.

A line breaks where a word begins, if it can. Labels are boxes as wide as their patches, so what stands under a patch
belongs to it; a label that is too long for its patches is cut, and says the whole when pointed at. Heat colours the
paper and never the ink.
"""

import base64
import html
import io
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.report.cases import Label

_LINE_PX, _PATCH_PX = 1056, 32  # of the page
_HOT = np.array((255, 138, 30), np.float64)


def picture(patches: NDArray[np.uint8], heat_L: NDArray[np.float32] | None = None) -> str:
    """Patches [L, Y, X] or [L, Y, X, 3] side by side as a data URI. heat: from 0 to 1, the colour of the paper."""
    cells = np.repeat(patches[..., None], 3, 3) if patches.ndim == 3 else patches
    if heat_L is not None:
        tint_L13 = 1 - heat_L[:, None, None, None] * (1 - _HOT / 255)
        cells = np.rint(cells * tint_L13).astype(np.uint8)
    image = Image.fromarray(np.concatenate(list(cells), axis=1))
    if heat_L is None and patches.ndim == 3:
        image = image.convert("L")
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def strip(
    patches: NDArray[np.uint8],
    rows: Sequence[tuple[str, Sequence[Label]]],
    starts: Collection[int],
    heat_L: NDArray[np.float32] | None = None,
    alt: str = "",
) -> str:
    """A strip with rows of labels under it. rows: each with the class of its boxes. starts: patches at which a line may
    break."""
    width = patches.shape[2]
    scale = max(1, round(_PATCH_PX / width))
    patch_px = width * scale
    lines = []
    for first, end in _folded(len(patches), starts, max(1, _LINE_PX // patch_px)):
        shown = picture(patches[first:end], None if heat_L is None else heat_L[first:end])
        size = f'width="{(end - first) * patch_px}" height="{patches.shape[1] * scale}"'
        parts = [f'<img src="{shown}" {size} alt="{html.escape(alt)}">']
        for name, labels in rows:
            boxes = "".join(
                _box(label, first, end, patch_px) for label in labels if first < label.end and label.first < end
            )
            parts.append(f'<div class="labels {name}">{boxes}</div>')
        lines.append(f'<div class="line" style="width:{(end - first) * patch_px}px">{"".join(parts)}</div>')
    return "".join(lines)


def _box(label: Label, first: int, end: int, patch_px: int) -> str:
    left, right = max(label.first, first), min(label.end, end)
    place = f"left:{(left - first) * patch_px}px;width:{(right - left) * patch_px - 2}px"
    kind = {None: "", True: " right", False: " wrong"}[label.right]
    said = label.text if label.sure is None else f"{label.text} ({100 * label.sure:.1f} %)"
    return f'<span class="label{kind}" style="{place}" title="{html.escape(said)}">{html.escape(label.text)}</span>'


def _folded(count: int, starts: Collection[int], most: int) -> list[tuple[int, int]]:
    """First and end of each line of at most so many patches."""
    lines, first = [], 0
    while count - first > most:
        fitting = [place for place in range(first + most // 2, first + most + 1) if place in starts]
        end = max(fitting, default=first + most)
        lines.append((first, end))
        first = end
    return [*lines, (first, count)]
