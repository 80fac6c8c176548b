"""Prompts for models that continue a strip patch by patch: text that ends where the next word will begin.

A model that was trained on running text has seen words begin anywhere on a patch. What it writes after a prompt begins
at a patch edge. So that this is also where the next letter would stand, the prompt is moved sideways until three white
columns, about a space, are left between its last ink and the edge. Source: specs, PIXAR 2.5.
"""

import numpy as np

from render.errors import RenderError
from render.strip import Strip

_PAPER = 255


def align_prompt(strip: Strip | np.ndarray, trailing: int = 3) -> np.ndarray:
    """The pixels of a prompt without its end patch, its last ink `trailing` white columns before the edge.

    strip: one text; or uint8 [height, width] (or [..., 3]) of whole patches without an end patch. The width stays as it
    is: what is free on the left fills with white, and where the text has to go left, as much of its left is cut. White
    alone comes back as it is. Returns new pixels. Raises RenderError for a pair of texts, whose separator would leave
    its patch, and for a `trailing` that no patch can hold.
    """
    if isinstance(strip, Strip):
        patch_width = strip.patches.shape[2]
        if len(strip.separators) > 1:
            raise RenderError("a pair of texts cannot be a prompt: its separator would leave its patch; join the texts")
        pixels = strip.pixels[:, :-patch_width]
    else:
        pixels, patch_width = strip, strip.shape[1]
    if not 0 <= trailing < max(1, patch_width):
        raise RenderError(f"trailing = {trailing}; it must be a number of columns of a patch, 0 to {patch_width - 1}")
    width = pixels.shape[1]
    ink = pixels != _PAPER
    inked = np.flatnonzero((ink.any(2) if ink.ndim == 3 else ink).any(0))
    aligned = np.full_like(pixels, _PAPER)
    shift = width - trailing - 1 - int(inked[-1]) if len(inked) else 0
    aligned[:, max(0, shift) : width + min(0, shift)] = pixels[:, max(0, -shift) : width - max(0, shift)]
    return aligned
