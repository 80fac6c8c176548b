"""Running text: one line, words wherever they fall, as in PIXEL and in PIXAR's strips.

A text starts `pad` columns in; the end patch stands on the first patch edge after the text and another `pad` columns.
A pair is text, black patch, text, black patch. Words given one by one each start on a patch edge instead
(layouts/words.py), because their labels need patches of their own. Source: specs, PIXEL 1.3 and PIXAR 1.2, 1.3.
"""

from render.bidi import mostly_rtl
from render.strip import Draft
from render.typesetter import Typesetter


def text(setter: Typesetter, draft: Draft, text: str) -> None:
    """One text."""
    pad = setter.config.pad
    draft.end = draft.edge(draft.add(setter.line(text), pad) + pad)


def pair(setter: Typesetter, draft: Draft, first: str, second: str) -> None:
    """Two texts with a black patch between them; the first stands left whatever the direction."""
    pad = setter.config.pad
    base = "rtl" if mostly_rtl(first) and mostly_rtl(second) else None
    edge = draft.edge(draft.add(setter.line(first, base), pad) + pad)
    start = draft.separator(edge) + pad
    draft.end = draft.edge(draft.add(setter.line(second, base), start, text=1) + pad)
