"""Text into runs that can be shaped: one script, one font and one level of direction each.

Fonts are chosen for whole grapheme clusters, so that a mark never parts from its base. Spaces and invisible characters
follow the run before them (the one after, at the start), as Pango does: a space in Hindi has the width of the Hindi
font's space.
"""

import re
from typing import NamedTuple

from render.fonts import Chain, is_ignorable
from render.graphemes import boundaries
from render.scripts import script_runs

# What is drawn as a space: tabs, ends of lines, and the other separators that fonts rarely have
SPACES = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]")
# Characters that are never looked up in a font, whatever it says: controls and halves of surrogate pairs
_NEVER = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Run(NamedTuple):
    """Characters start to end of the text. face is an index into the chain, -1 where no font has the cluster."""

    start: int
    end: int
    script: str | None
    face: int
    level: int  # of UAX #9; odd = right to left


def itemize(text: str, chain: Chain, levels: bytes | None = None) -> list[Run]:
    """Runs in logical order. levels: one per character; None = all left to right."""
    ends = boundaries(text)
    faces = _faces(text, ends, chain)
    scripts = iter(script_runs(text))
    _, script_end, script = next(scripts, (0, len(text), None))
    runs: list[Run] = []
    start = 0
    for end, face in zip(ends, faces, strict=True):
        while start >= script_end:
            _, script_end, script = next(scripts)
        level = levels[start] if levels else 0
        last = runs[-1] if runs else None
        if last and (last.script, last.face, last.level) == (script, face, level):
            runs[-1] = last._replace(end=end)
        else:
            runs.append(Run(start, end, script, face, level))
        start = end
    return runs


def _faces(text: str, ends: list[int], chain: Chain) -> list[int]:
    faces: list[int | None] = []
    start = 0
    for end in ends:
        cluster = text[start:end]
        if _NEVER.search(cluster):
            faces.append(-1)
        elif cluster == " " or all(map(is_ignorable, cluster)):
            before = faces[-1] if faces else None
            faces.append(max(0, chain.choose(" ")) if before == -1 else before)
        else:
            faces.append(chain.choose(cluster))
        start = end
    first = next((face for face in faces if face is not None and face >= 0), max(0, chain.choose(" ")))
    return [first if face is None else face for face in faces]
