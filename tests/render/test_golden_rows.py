"""Rows of the original renderers (shared/golden/render): counts are equal on every item, and which pixels are.

The originals drew with Pango and Cairo. What differs is listed with its reason and how much of the ink agrees.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from render import RenderConfig, Renderer

# chain of shared/golden/README.md
CHAIN = [
    "noto/NotoSans-Regular.ttf",
    "noto/NotoSansDevanagari-Regular.ttf",
    "noto/NotoSansSymbols2-Regular.ttf",
    "dejavu/DejaVuSans.ttf",
    "noto/NotoSansCJK-Regular.ttc",
]


def chain(shared: Path) -> list[str]:
    return [str(shared / "fonts" / font) for font in CHAIN]


@pytest.fixture(scope="module")
def renderers(shared: Path) -> dict[str, Renderer]:
    pixeloid = str(shared / "fonts/pixeloid/PixeloidSans-mLxMm.ttf")
    return {
        "pixel": Renderer(RenderConfig.named("pixel", fonts=chain(shared))),
        "m4": Renderer(RenderConfig.named("pixel-m4", fonts=chain(shared))),
        "pixar": Renderer(RenderConfig.named("pixar", fonts=[pixeloid])),
    }


def ink_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the smaller over sum of the larger ink of two strips of equal shape."""
    ink_a, ink_b = 255 - a.astype(np.int64), 255 - b.astype(np.int64)
    return float(np.minimum(ink_a, ink_b).sum() / max(1, np.maximum(ink_a, ink_b).sum()))
