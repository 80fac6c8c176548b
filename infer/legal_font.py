"""The letters of an alphabet as the renderer draws them: pictures, widths, and how two of them stand side by side.

The renderer is asked, and nothing is assumed of fonts: each letter is drawn, and each pair of letters. Where the
drawing of a pair is that of the first and, somewhere further right, that of the second, the two go together with that
distance (kerning). Where it is not, they melt: a ligature, or two light greys that are ink only together. Such a pair
becomes a letter of its own, and so do three that melt in a row; runs of four are left out. A text is then letters side
by side, and what these do not tell (a font that looks at four of them) shows when the text is drawn for comparison.
"""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError
from render import Renderer
from render.bidi import needs_bidi
from render.strip import Draft, Geometry

MARGIN = 16  # px left and right of a drawing, for ink that reaches there
_LONGEST = 3  # characters of a letter that several make together
_MOST_MELTED = 2000  # letters that several make together; more are no alphabet of letters that stand side by side


class Letter(NamedTuple):
    """What stands for some characters, nearly always for one.

    picture: its ink as one number, a bit for each row of each column from `MARGIN` px left of its origin on, the first
    row of the first column the lowest. advance: px to the next origin.
    """

    text: str
    picture: int
    advance: int


@dataclass(frozen=True)
class Letters:
    """Letters, and after[i].get(j): px by which letter i moves letter j that follows it, nothing if j cannot."""

    letters: tuple[Letter, ...]
    after: tuple[dict[int, int], ...]


def draw_letters(renderer: Renderer, alphabet: str | None) -> Letters:
    """The letters of some characters, of the printable ASCII of the first font if None is given.

    Raises UserError for characters that cannot be written one beside another.
    """
    characters = _characters(renderer, alphabet)
    single = [draw_letter(renderer, character) for character in characters]
    for letter in single:
        if letter.advance < 1:
            raise UserError(f"alphabet: U+{ord(letter.text):04X} has no width of its own: leave it out")
    melted: set[str] = set()
    known: dict[tuple[str, str], int | None] = {}
    for one, two in product(single, single):
        distance = known[one.text, two.text] = _distance(renderer, one, two)
        if distance is None:
            melted.add(one.text + two.text)
    every, newest = list(single), sorted(melted)
    for _ in range(_LONGEST - 1):
        every += [draw_letter(renderer, text) for text in newest]
        if len(every) > _MOST_MELTED:
            raise UserError(
                f"alphabet: its letters change each other ({len(every)} forms): give pieces, or an alphabet of letters "
                "that stand side by side"
            )
        newest = [text + other for text in newest for other in characters if text[-1] + other in melted]
    after: list[dict[int, int]] = []
    for one in every:
        row: dict[int, int] = {}
        for j, two in enumerate(every):
            if one.text[-1] + two.text[0] not in melted:
                pair = one.text, two.text
                distance = known[pair] if pair in known else _distance(renderer, one, two)
                if distance is not None:
                    row[j] = distance
        after.append(row)
    return Letters(tuple(every), tuple(after))


def _characters(renderer: Renderer, alphabet: str | None) -> list[str]:
    chain = renderer.setter.chain
    if alphabet is None:
        return [character for character in map(chr, range(0x20, 0x7F)) if chain.faces[0].covers(character)]
    characters = sorted(set(alphabet))
    if not characters:
        raise UserError("alphabet is empty: give the characters that may be written")
    faces = {character: chain.choose(character) for character in characters}
    lacking = [f"U+{ord(character):04X}" for character, face in faces.items() if face < 0]
    if lacking:
        raise UserError(f"alphabet: no font of the model has {', '.join(lacking[:8])}: leave them out")
    if renderer.config.baseline == "line" and len(set(faces.values())) > 1:
        raise UserError(
            'alphabet: its characters are of several fonts, and with render.baseline = "line" each font moves the '
            "whole line: give characters of one font, or pieces"
        )
    if needs_bidi(alphabet):
        raise UserError("alphabet: it has letters that run from right to left: give pieces")
    return characters


def draw_letter(renderer: Renderer, text: str) -> Letter:
    """A text as one letter."""
    columns_XY, advance = draw_line(renderer, text)
    return Letter(text, int.from_bytes(np.packbits(columns_XY, bitorder="little"), "little"), advance)


def _distance(renderer: Renderer, one: Letter, two: Letter) -> int | None:
    """px by which the first moves the second; None if they melt."""
    both = draw_letter(renderer, one.text + two.text)
    distance = both.advance - one.advance - two.advance
    step = one.advance + distance
    if step < 1 or both.picture != one.picture | two.picture << step * renderer.config.height:
        return None
    return distance


def draw_line(renderer: Renderer, text: str) -> tuple[NDArray[np.bool_], int]:
    """[columns, rows], True = ink, of a text from `MARGIN` px left of its origin to as many right of its end; and px
    from there to there."""
    config = renderer.config
    draft = Draft(Geometry(config.height, config.patch_width, config.channels), limit=1 << 30, clips=False)
    draft.end = draft.add(renderer.setter.line(text), MARGIN) + MARGIN
    return draft.finish((len(text),)).columns[: draft.end] == 0, draft.end - 2 * MARGIN


def column_numbers(ink_XY: NDArray[np.bool_]) -> list[int]:
    """Each column as the number that it is in a picture."""
    packed = np.packbits(ink_XY, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]
