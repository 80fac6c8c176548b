"""A given word, as the renderer would draw it where a model goes on from its prompt.

It serves two ends. Reading it says how many right words the reader could find at all in so many patches: the ceiling of
a measure. And its likelihood under the model needs no reader (`rank_words`).

In running text the prompt was moved sideways so that its last ink ends three columns before a patch edge
(render/prompt.py); moved by as much, the text with the word has the word's first letter behind that edge. In the other
layouts the word stands on patches of its own.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.pixar import patches_of
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from render import Renderer

TRAILING = 3  # white columns of an aligned prompt
_DENSEST = 64  # characters in a patch: no script comes near


@dataclass(frozen=True)
class DrawnWord:
    """patches: uint8 [n, A] from the edge where the prompt ends. columns: of them from there to the end of the space
    behind the word; what comes after, the word does not say."""

    patches: NDArray[np.uint8]
    columns: int


def drawn_words(
    renderer: Renderer, model: PixarConfig, context: str, words: list[str], patches: int | None = None
) -> list[DrawnWord]:
    """Each of these words behind the context. patches: draw so many, white where the word has ended; None = as many as
    word and space need. Raises UserError for a context without ink, and a word that draws nothing."""
    config = renderer.config
    width = config.patch_width
    running = config.layout == "continuous"
    edge = _edge(renderer, context) if running else 0
    space = _space(renderer) if running else 0
    found = []
    for word in words:
        strip = renderer(f"{context} {word}", 8 + _DENSEST * (len(context) + len(word)))
        clusters = strip.clusters()
        own = clusters[clusters[:, 1] > len(context)]
        if not len(own):
            raise UserError(f"the word {word!r} draws nothing: leave it out")
        begin = edge if running else int(own[:, 3].min()) // width * width
        columns = int(own[:, 4].max()) + space - begin
        count = -(-columns // width)
        if not running:  # the next word starts on a patch of its own
            columns = count * width
        shown = count if patches is None else patches
        pixels = strip.pixels[:, begin : min(strip.pixels.shape[1] - width, begin + shown * width)]
        missing = shown * width - pixels.shape[1]
        padding = [(0, 0), (0, missing), *[(0, 0)] * (pixels.ndim - 2)]
        whole = np.pad(pixels, padding, constant_values=255)
        found.append(DrawnWord(patches_of(whole, width, model.num_channels), min(columns, shown * width)))
    return found


def _edge(renderer: Renderer, context: str) -> int:
    """The column, of the text as it is drawn, at which an aligned prompt ends."""
    width = renderer.config.patch_width
    pixels = renderer(context, 8 + _DENSEST * len(context)).pixels[:, :-width]
    ink = pixels < 255
    inked = np.flatnonzero((ink.any(2) if ink.ndim == 3 else ink).any(0))
    if not len(inked):
        raise UserError("a context without ink has no place for a word: give at least one character that can be seen")
    return int(inked[-1]) + 1 + TRAILING


def _space(renderer: Renderer) -> int:
    """Columns that a space takes."""
    between = renderer("n n").clusters()
    return int(between[2, 3] - between[1, 3])
