"""The pen: text of one direction in, a piece out. Nothing is remembered but glyphs; who wants to keep pieces does.

A text is cut into runs of one script and font, each run is shaped (what glyphs, where), and the glyphs are drawn on the
line that its fonts ask for.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from render.config import RenderConfig
from render.face import Face, Glyph
from render.fonts import FontFile, open_chain
from render.graphemes import boundaries
from render.ink import Ink, Placed
from render.itemize import SPACES, Run, itemize
from render.pieces import METRICS_SHIFT, MISSING, OVERHANG, RTL, Piece, if_inked, packed_spans
from render.scripts import script_of
from render.tokens import ALONE, only

# Latin letters and punctuation; not the fraction slash, which HarfBuzz takes as a wish for a fraction
_SIMPLE = ((0x20, 0x7F), (0xA1, 0xAD), (0xAE, 0x180), (0x2010, 0x2028), (0x2030, 0x2044), (0x20A0, 0x20C0))
_MOST_COMPARED = 4000  # letters of a font that are shaped to see whether it looks over spaces

# (glyph, cluster, advance, right, up), see face.Glyph: font files leave the names out, for there are many
PlainGlyph = tuple[int, int, int, int, int]


class Pen:
    """Draws texts under one configuration.

    chain: the fonts; reaching: indices of those that draw a word otherwise beside a space; simple: characters that are
    one Latin run in the first font, whatever stands around them; is_simple: a test for text of those alone.
    """

    def __init__(self, config: RenderConfig):
        self._config = config
        self.chain = open_chain(config.fonts, config.size, config.hinting, config.height, boxes=config.missing == "box")
        self.ink = Ink(self.chain, config)
        self.column_bytes = config.height * config.channels
        first = self.chain.faces[0]
        # heights of lines that were met, the first font's to begin with: (ascent, descent)
        self._metrics: list[tuple[int, int]] = [(first.ascent, first.descent)]
        self.reaching = {i for i, face in enumerate(self.chain.faces) if _reaches_over_spaces(face)}
        self.simple = [] if 0 in self.reaching else _simple_characters(first)
        self.is_simple = only(self.simple)

    def draw(self, text: str, rtl: int, baseline: int | None) -> Piece:
        """Shape and draw a text of one direction. baseline: a row, or None = as its fonts have it."""
        length = len(text)
        if self.is_simple(text):
            runs, metrics = (Run(0, length, "Latn", 0, rtl),), 0
        else:
            if not text.isprintable():
                text = SPACES.sub(" ", text)
            runs = itemize(text, self.chain)
            metrics = self._metrics_index({run.face for run in runs})
        if baseline is None:
            baseline = self.baseline(*self._metrics[metrics])
        missing = tuple([(i, text[i]) for run in runs if run.face < 0 for i in range(run.start, run.end)])
        placed, width, spans = self._place(text, runs, rtl)
        strip, first, end = self.ink.draw(placed, width, baseline)
        before = after = b""
        if first or end != width:
            box = -first * self.column_bytes, (width - first) * self.column_bytes
            before, strip, after = if_inked(strip[: box[0]]), strip[box[0] : box[1]], if_inked(strip[box[1] :])
        flags = (MISSING if missing else 0) | (OVERHANG if before or after else 0) | (RTL if rtl else 0)
        return Piece(strip, metrics << METRICS_SHIFT | flags, length, spans, missing, before, after)

    def _place(self, text: str, runs: Sequence[Run], rtl: int) -> tuple[list[Placed], int, bytes]:
        """Glyphs of a text, the width of its box, and the spans of its clusters."""
        placed: list[Placed] = []
        starts: list[int] = []  # of clusters, from left to right
        widths: list[int] = []
        x = 0
        for run in reversed(runs) if rtl else runs:
            face = run.face if run.face >= 0 else self.chain.missing
            current = -1
            for glyph, cluster, advance, right, up in self.glyphs(text[run.start : run.end], run, bool(rtl)):
                if cluster != current:
                    current = cluster
                    starts.append(run.start + cluster)
                    widths.append(advance)
                else:
                    widths[-1] += advance
                placed.append((face, glyph, x + right, up))
                x += advance
        # clusters are whole and in order, so each ends where the next one in the text begins
        ends = [len(text), *starts[:-1]] if rtl else [*starts[1:], len(text)]
        return placed, x, packed_spans([end - start for start, end in zip(starts, ends)], widths)

    def glyphs(self, part: str, run: Run, rtl: bool) -> Sequence[PlainGlyph]:
        """Glyphs of the text of one run, from left to right."""
        font = self.chain.faces[run.face if run.face >= 0 else self.chain.missing]
        if not isinstance(font, FontFile):
            return font.shape(part, run.script, rtl)
        if run.face >= 0:
            return font.place(part, run.script, rtl)
        # glyph 0 for each cluster, also for characters that the font maps to something invisible
        ends = boundaries(part)
        advance = font.shape("\uffff", None, False)[0].advance
        glyphs = [Glyph(0, start, advance, 0, 0) for start in [0, *ends[:-1]]]
        return glyphs[::-1] if rtl else glyphs

    # ---- where a line stands -----------------------------------------------------------------------------------------

    def baseline(self, ascent: int, descent: int) -> int:
        """Row on which the letters of a line stand: its middle `lift` rows above the strip's (specs, PIXEL 1.1)."""
        height = self._config.height
        if ascent + descent == height:
            return ascent  # drawn for these rows, such as the font of this project
        return int(np.floor(height / 2 - (ascent + descent) / 2 - self._config.lift + ascent + 0.5))

    @property
    def first_baseline(self) -> int:
        """Row on which a line of the first font stands."""
        return self.baseline(*self._metrics[0])

    def common_baseline(self, kinds: Iterable[int]) -> int | None:
        """Row for pieces of these kinds on one line; None if they were drawn on the same."""
        metrics = {kind >> METRICS_SHIFT for kind in kinds}
        if len(metrics) < 2:
            return None
        ascents, descents = zip(*(self._metrics[index] for index in metrics))
        return self.baseline(max(ascents), max(descents))

    def _metrics_index(self, faces: set[int]) -> int:
        """Of the height of a line with these fonts, in the list of those that were met."""
        if self._config.baseline == "fixed":
            return 0
        used = [self.chain.faces[face if face >= 0 else self.chain.missing] for face in faces] or self.chain.faces[:1]
        metrics = (max(face.ascent for face in used), max(face.descent for face in used))
        if metrics not in self._metrics:
            self._metrics.append(metrics)
        return self._metrics.index(metrics)


def _simple_characters(face: Face) -> list[str]:
    """What is one Latin run in one font, without looking."""
    return [chr(code) for first, end in _SIMPLE for code in range(first, end) if face.covers(chr(code))]


def _reaches_over_spaces(face: Face) -> bool:
    """Whether a font kerns a letter with a space, or draws it otherwise beside one: then words cannot stand alone.

    All its letters, each between two spaces, are shaped at once and compared with what each is by itself.
    """
    if not isinstance(face, FontFile):
        return False
    letters = [c for c in map(chr, sorted(face.characters)) if c.isalpha() and not ALONE.match(c)][:_MOST_COMPARED]
    space = face.shape(" ", None, False)
    if not letters or not space:
        return False
    by_script: dict[str | None, list[str]] = {}
    for letter in letters:
        by_script.setdefault(script_of(letter), []).append(letter)
    for script, members in by_script.items():
        row = face.shape(" ".join(members) + " ", script, False)
        alone = [glyph for letter in members for glyph in [*face.shape(letter, script, False), *space]]
        if [(glyph.id, glyph.advance) for glyph in row] != [(glyph.id, glyph.advance) for glyph in alone]:
            return True
    return False
