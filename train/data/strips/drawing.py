"""Rows of text become pixels, some time before they are needed.

Training on strips needs hundreds of rows a step, and drawing one takes about half a millisecond: little, but not beside
a fast device. What is drawn next follows from the step alone, so worker processes draw ahead, in order, while the
device computes. The pixels of a row do not depend on who draws it, so neither does the run.

Rows travel as bytes, one for each value of a pixel: a patch is a run of `A = height * patch_width * channels` of them,
in the order row, column, channel, as models read it. Nothing here imports torch: a worker starts in a fraction of the
time that importing it takes.
"""

import hashlib
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from render import Renderer, Strip
from render.pool import RenderPool

QUEUE = 4  # messages per worker that are under way
MOST_PER_MESSAGE = 64  # rows: about 10 MB


def pixels_of(strip: Strip) -> NDArray[np.uint8]:
    """The patches of a strip, uint8 [num_patches, A]; 0 = ink, 255 = paper."""
    return np.ascontiguousarray(strip.patches).reshape(strip.num_patches, -1)


def hash_of(strip: Strip) -> int:
    """64 bits that differ between any two strips one will ever see: of the SHA-256 of the pixels."""
    return int.from_bytes(hashlib.sha256(strip.columns.data).digest()[:8], "little")


def draw_pixels(renderer: Renderer, row: tuple[str, int]) -> NDArray[np.uint8]:
    """`pixels_of` a text in a strip of at most so many patches. What a worker does."""
    return pixels_of(renderer(*row))


def draw_hash(renderer: Renderer, row: tuple[str, int]) -> tuple[int, int]:
    """Patches and hash of a text in a strip of at most so many patches. What a worker does to verify."""
    strip = renderer(*row)
    return strip.num_patches, hash_of(strip)


class DrawnAhead:
    """Draws a sequence of rows in order, ahead of whoever takes them.

    workers: processes, started when they are first needed; 0: a row is drawn when it is taken. num_ahead: rows that
    should be under way, about.
    """

    def __init__(self, renderer: Renderer, workers: int, num_ahead: int) -> None:
        self._renderer, self._workers = renderer, workers
        self._per_message = min(MOST_PER_MESSAGE, -(-num_ahead // (QUEUE * max(1, workers))))
        self._pool: RenderPool | None = None
        self._drawn: Iterator[NDArray[np.uint8]] = iter(())

    def start(self, rows: Iterator[tuple[str, int]]) -> None:
        """Draw these rows from now on: (text, most patches) each. What was under way is forgotten."""
        self._forget()
        if self._pool is None:
            self._pool = RenderPool(
                self._renderer, self._workers, function=draw_pixels, queue=QUEUE, batch=self._per_message
            )
        self._drawn = self._pool.map(rows)

    def take(self) -> NDArray[np.uint8]:
        """The pixels of the next row, [num_patches, A]. Raises RenderError where it cannot be drawn."""
        return next(self._drawn)

    def close(self) -> None:
        """End the processes. `start` starts them again."""
        self._forget()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _forget(self) -> None:
        drawn, self._drawn = self._drawn, iter(())
        if isinstance(drawn, Generator):
            drawn.close()  # a pool serves one map at a time
