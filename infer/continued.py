"""What `infer continue` shows of a strip that was written on: a line, a table, a picture, or rows of a terminal."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.figure import Panel, Row, stack
from infer.legal import LegalWritten
from infer.pixar import as_strip
from infer.write_strip import Written
from render import RenderConfig
from render.preview import mode_of, patches_per_row, preview

_PICTURE_PX = 2048  # of a strip in a line of the picture
_LINE_PX = 32  # height of such a line


@dataclass(frozen=True)
class Continued:
    """A strip and what is told of it. text: what its new patches say, None where nobody asked."""

    prompt: str
    before: NDArray[np.uint8]
    written: Written | LegalWritten
    text: str | None

    @property
    def whole(self) -> NDArray[np.uint8]:
        return np.concatenate([self.before, self.written.patches])

    @property
    def bits_per_patch(self) -> float | None:
        """None for a regression, which gives no probabilities."""
        bits = -self.written.log_probability / math.log(2) / len(self.written.patches)
        return None if math.isnan(bits) else bits

    @property
    def summary(self) -> str:
        """One line."""
        bits = "" if self.bits_per_patch is None else f", {self.bits_per_patch:.2f} bits a patch"
        mass = ""
        if isinstance(self.written, LegalWritten):
            mass = f", {self.written.non_text_mass:.1%} of the probability on what is no text"
        end = "ended by the end patch" if self.written.ended else "without an end"
        return f"{len(self.before)} + {len(self.written.patches)} patches{bits}{mass}, {end}"

    def report(self) -> dict[str, Any]:
        """The same for --json; the values of a patch are hexadecimal bytes, row by row."""
        written = self.written
        found: dict[str, Any] = {
            "prompt": self.prompt,
            "num_prompt_patches": len(self.before),
            "num_patches": len(written.patches),
            "patches": [patch.tobytes().hex() for patch in written.patches],
            "ended": written.ended,
            "log_probability": None if math.isnan(written.log_probability) else written.log_probability,
            "bits_per_patch": self.bits_per_patch,
        }
        if self.text is not None:
            found["text"] = self.text
        if isinstance(written, LegalWritten):
            found |= {"ambiguous": written.ambiguous, "legal_mass": written.legal_mass}
        return found

    def panel(self, config: RenderConfig) -> Panel:
        """The strip for a picture, what is new on a tint."""
        patches = as_strip(self.whole, config).patches
        new = np.arange(len(patches)) >= len(self.before)
        note = self.summary if self.text is None else f"{self.summary}; read: {self.text}"
        return Panel([Row("strip", patches, tinted=new)], note)


def picture(strips: Sequence[Continued], config: RenderConfig) -> NDArray[np.uint8]:
    """Strips one under another, folded into lines: uint8 RGB [height, width, 3]."""
    scale = max(1, _LINE_PX // config.height)
    columns = max(1, _PICTURE_PX // (config.patch_width * scale))
    return stack([strip.panel(config) for strip in strips], columns=columns, scale=scale)


class GrowingStrip:
    """Shows a strip while it grows, on standard output: a row of the terminal whenever one is full."""

    def __init__(self, config: RenderConfig, prompt: NDArray[np.uint8]) -> None:
        self._config = config
        self._patches = list(prompt)
        self._shown = 0

    def add(self, index: int, patch: NDArray[np.uint8]) -> None:
        """One more patch."""
        self._patches.append(patch)
        columns = patches_per_row(as_strip(patch[None], self._config))
        while len(self._patches) - self._shown >= columns:
            self._show(columns)

    def finish(self) -> None:
        """What is left."""
        if len(self._patches) > self._shown:
            self._show(len(self._patches) - self._shown)

    def _show(self, count: int) -> None:
        row = np.stack(self._patches[self._shown : self._shown + count])
        self._shown += count
        sys.stdout.write(preview(as_strip(row, self._config), mode_of(sys.stdout), count) + "\n")
        sys.stdout.flush()
