"""From the examples of a task to rows that a model reads: drawn when they are needed, kept while there is room.

`Inputs` is all that a task model wants to know of how text becomes units: `Strips` draws it, and what reads tokens has
a class of its own with the same methods. Nothing is silent: how many examples were cut, and how many characters no font
has, is counted for all rows that were drawn.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.task import Layout, Task, Windows
from render import Renderer, RenderError, Strip

Drawn = str | tuple[str, str] | list[str]


@dataclass(frozen=True)
class Row:
    """units: what `Inputs.collate` takes, the first axis in proportion to the units. missing: characters that could not
    be drawn."""

    units: NDArray[Any]
    layout: Layout
    missing: int = 0


class Inputs(Protocol):
    """How text becomes units."""

    def rows(self, drawn: Drawn, windows: Windows | None, spans: bool) -> list[Row]:
        """One row, cut where it is too long; with windows as many as it takes. spans: whether layouts must say what
        stands where."""
        ...

    def collate(self, rows: Sequence[Row], width: int) -> dict[str, Tensor]:
        """Keyword arguments of the model, padded to `width` units."""
        ...


class Strips:
    """Strips of at most max_patches patches."""

    def __init__(self, renderer: Renderer, max_patches: int) -> None:
        self.renderer, self.max_patches = renderer, max_patches

    def rows(self, drawn: Drawn, windows: Windows | None, spans: bool) -> list[Row]:
        """As of `Inputs`. Raises UserError for what cannot be drawn, and for words that share patches."""
        try:
            if windows is None or isinstance(drawn, list):
                strip = self.renderer(drawn, self.max_patches)
                return [self._row(drawn, strip, spans, _is_cut(drawn, strip, self.max_patches))]
            shown = drawn if isinstance(drawn, str) else (self._beginning(drawn[0], windows.first_max), drawn[1])
            strips = self.renderer.windows(shown, windows.stride, self.max_patches)
        except RenderError as cause:
            raise UserError(f"cannot be drawn: {cause}") from cause
        # windows show all of the text that they are of
        return [self._row(drawn, strip, spans, shown != drawn) for strip in strips]

    def _beginning(self, text: str, patches: int) -> str:
        """As much of a text as so many patches hold, by whole clusters."""
        if not text:
            return text
        strip = self.renderer.windows(text, 0, patches + 1)[0]  # an end patch comes on top
        return text[: strip.drawn[0]]

    def _row(self, drawn: Drawn, strip: Strip, spans: bool, cut: bool) -> Row:
        starts = strip.word_starts if isinstance(drawn, list) else None
        layout = Layout(
            num_units=strip.num_patches,
            word_starts=starts,
            char_spans=strip.char_spans if spans else None,
            cut=cut,
        )
        return Row(np.ascontiguousarray(strip.columns), layout, len(strip.missing))

    def collate(self, rows: Sequence[Row], width: int) -> dict[str, Tensor]:
        """pixel_values uint8 [B, C, Y, X], white where there is nothing; attention_mask bool [B, L]."""
        patch = self.renderer.config.patch_width
        columns = np.full((len(rows), width * patch, *rows[0].units.shape[1:]), 255, np.uint8)
        real_BL = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            columns[place, : len(row.units)] = row.units
            real_BL[place, : row.layout.num_units] = True
        pixels = torch.from_numpy(columns)  # [B, X, Y], or [B, X, Y, C]
        if pixels.dim() == 3:
            pixels = pixels[..., None]
        return {"pixel_values": pixels.permute(0, 3, 2, 1), "attention_mask": real_BL}


def _is_cut(drawn: Drawn, strip: Strip, max_patches: int) -> bool:
    """Whether something is missing at the end."""
    if isinstance(drawn, list):
        return strip.drawn[0] < len(drawn)
    texts = (drawn,) if isinstance(drawn, str) else drawn
    if any(count < len(text) for count, text in zip(strip.drawn, texts, strict=True)):
        return True
    if strip.num_patches < max_patches:
        return False
    # where the end patch covers what does not fit, only the spans say how far the strip goes
    ends = [int(strip.char_spans[strip.char_spans[:, 0] == place, 2].max(initial=0)) for place in range(len(texts))]
    return any(end < len(text.rstrip()) for end, text in zip(ends, texts, strict=True))


class TaskRows:
    """The rows of a list of examples, numbered from 0; without windows row i is that of example i.

    cache_bytes: of drawn rows that are kept. Rows over that are drawn again whenever they are needed: their order is a
    permutation that comes round, for which keeping the newest would be of no use.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[Any],
        inputs: Inputs,
        known: Labels,
        options: Any,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.task, self.examples, self.inputs = task, examples, inputs
        self.known, self.options = known, options
        self._windows = task.stride(options)
        self._kept: dict[int, list[Row]] = {}
        self._room = cache_bytes
        # by example, once it was drawn: rows, cut ones, characters without a glyph, characters
        self._seen: dict[int, tuple[int, int, int, int]] = {}
        self.places = [(example, 0) for example in range(len(examples))]
        if self._windows is not None:
            self.places = [(i, window) for i in range(len(examples)) for window in range(len(self._draw(i)))]

    def __len__(self) -> int:
        return len(self.places)

    def row(self, number: int) -> Row:
        """A row, drawn or remembered."""
        example, window = self.places[number]
        return (self._kept.get(example) or self._draw(example))[window]

    def example(self, number: int) -> Any:
        """The example that a row is of."""
        return self.examples[self.places[number][0]]

    def targets(self, number: int) -> dict[str, NDArray[Any]]:
        """What is to be learned from a row."""
        return self.task.targets(self.example(number), self.row(number).layout, self.known, self.options)

    def batch(
        self,
        numbers: Sequence[int],
        targets: Sequence[Mapping[str, NDArray[Any]]],
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """The model's keyword arguments for these rows, padded to the longest of them. names: of targets, to be given
        alone."""
        rows = [self.row(number) for number in numbers]
        width = max(row.layout.num_units for row in rows)
        wanted = self.task.collate(targets, width)
        if names is not None:
            wanted = {name: wanted[name] for name in names}
        return self.inputs.collate(rows, width) | wanted

    def shares(self) -> dict[str, float]:
        """Of the examples that were drawn: the share that was cut, and that of characters that no font has."""
        rows, cut, missing, characters = np.array(list(self._seen.values()) or [(0,) * 4], np.int64).sum(0).tolist()
        return {"truncated": cut / max(rows, 1), "missing_glyphs": missing / max(characters, 1)}

    def _draw(self, example: int) -> list[Row]:
        given = self.task.drawn(self.examples[example])
        try:
            rows = self.inputs.rows(given, self._windows, self.task.NEEDS_SPANS)
        except UserError as cause:
            raise UserError(f"example {self.examples[example].id}: {cause}") from cause
        size = sum(row.units.nbytes for row in rows)
        if size <= self._room:
            self._room -= size
            self._kept[example] = rows
        characters = len(given) if isinstance(given, str) else sum(map(len, given))
        self._seen[example] = (
            len(rows),
            sum(row.layout.cut for row in rows),
            max(row.missing for row in rows),
            characters,
        )
        return rows
