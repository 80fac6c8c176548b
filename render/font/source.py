"""How the built-in font is kept: as drawings that one reads and edits with a text editor.

The files beside this one hold it. In all of them a line that opens with a semicolon is a comment, and a character is
written as itself or as U+XXXX (always so for `;`, `#`, `.`, `+`, `=`, combining marks and what cannot be seen).

- Sheets: blocks of glyphs side by side. The first line of a block names them, eight lines of `#` (ink) and `.` (paper)
  follow, a blank line ends the block. Rows 1 to 6 are above the baseline (capitals fill them, small letters without an
  ascender fill rows 3 to 6), rows 7 and 8 below it. The reader adds one column of paper at the right.
  `A=U+0391=U+0410` draws three characters at once: those that look alike by nature. `A:short` is the form that makes
  room for a mark above: a low capital, an i without its dot.
- `marks.txt`: sheets of combining marks, at their height over (under) a small letter. A mark may be drawn in several
  widths; `U+0308+U+0301` draws two marks together.
- `hex.txt`: a sheet of the sixteen digits of the boxes, three rows high.
- `spaces.txt`: lines like `3 U+0020 U+00A0`, the advance and then the characters without ink that have it;
  `U+FE00..U+FE0F` is a range.
- `compositions.txt`: lines like `ķ k U+0326`, for a letter that looks otherwise than its Unicode decomposition says.

The reader is strict: what it does not understand is an error that names file and line, so that a slip of the pen never
becomes a glyph.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from render.errors import RenderError

ROWS = 8
DIGIT_ROWS = 3
SHEETS = ("latin.txt", "greek.txt", "cyrillic.txt", "punctuation.txt")
FILES = (*SHEETS, "marks.txt", "hex.txt", "spaces.txt", "compositions.txt")
SHORT = ":short"
CODE_POINT = re.compile(r"U\+([0-9A-F]{4,6})")
RESERVED = frozenset(";#.+=")


class Cell(NamedTuple):
    """A drawing and the room it takes."""

    ink: np.ndarray  # bool [rows, columns], without the column of paper at the right
    advance: int  # px

    @property
    def width(self) -> int:
        return self.ink.shape[1]


class Source(NamedTuple):
    """All drawings of the font, before anything is composed."""

    glyphs: dict[str, Cell]
    shorts: dict[str, Cell]  # by character: the form under a mark above
    marks: dict[str, list[Cell]]  # by combining character, or by two of them together; narrowest first
    digits: list[Cell]  # 0 to F
    compositions: dict[str, str]  # character -> base and marks
    model: dict[str, str]  # character -> the one whose drawing it shares, itself where there is no other
    sha256: str  # hex, of the names and texts of all files


@functools.cache
def load_source() -> Source:
    """Read the files beside this module, once per process; nobody changes the drawings."""
    folder = Path(__file__).parent
    return parse_source({name: (folder / name).read_text(encoding="utf-8") for name in FILES})


def parse_source(texts: dict[str, str]) -> Source:
    """Read the font from the text of each of `FILES`. Raises RenderError naming file and line."""
    glyphs: dict[str, Cell] = {}
    shorts: dict[str, Cell] = {}
    model: dict[str, str] = {}
    low: list[tuple[str, str, str]] = []
    for file in SHEETS:
        for where, names, ink in parse_sheet(file, texts[file], ROWS):
            cell = Cell(ink, ink.shape[1] + 1)
            first = ""
            for name in names:
                forms = shorts if name.endswith(SHORT) else glyphs
                character = _character(where, name.removesuffix(SHORT))
                if character in forms:
                    raise RenderError(f"{where}: {name} is drawn a second time; delete one of the two")
                forms[character] = cell
                if forms is shorts:
                    low.append((where, name, character))
                else:
                    first = first or character
                    model[character] = first
    for where, name, character in low:
        if character not in glyphs:
            raise RenderError(f"{where}: {name} is the low form of a character that is not drawn; draw that too")
    for where, advance, characters in parse_spaces("spaces.txt", texts["spaces.txt"]):
        for character in characters:
            if character in glyphs:
                raise RenderError(f"{where}: {_code_point(character)} is there a second time; delete one of the two")
            glyphs[character] = Cell(np.zeros((ROWS, 0), bool), advance)
            model[character] = characters[0]
    shorts = {character: shorts[first] for character, first in model.items() if first in shorts} | shorts
    marks: dict[str, list[Cell]] = {}
    for where, names, ink in parse_sheet("marks.txt", texts["marks.txt"], ROWS):
        for name in names:
            cells = marks.setdefault(_mark(where, name), [])
            if any(cell.width == ink.shape[1] for cell in cells):
                raise RenderError(f"{where}: {name} is drawn twice {ink.shape[1]} px wide; delete one of the two")
            cells.append(Cell(ink, ink.shape[1] + 1))
            cells.sort(key=lambda cell: cell.width)
    compositions: dict[str, str] = {}
    for where, character, parts in parse_compositions("compositions.txt", texts["compositions.txt"]):
        if character in compositions or character in glyphs:
            raise RenderError(f"{where}: {character} is there a second time; delete one of the two")
        if parts[0] not in glyphs or not marks.keys() >= set(parts[1:]):
            raise RenderError(f"{where}: {character} is composed of what is not drawn; draw its base and its marks")
        compositions[character] = parts
    return Source(
        glyphs=glyphs,
        shorts=shorts,
        marks=marks,
        digits=parse_digits("hex.txt", texts["hex.txt"]),
        compositions=compositions,
        model=model,
        sha256=hashlib.sha256("".join(f"{file}\0{texts[file]}\0" for file in FILES).encode()).hexdigest(),
    )


def parse_sheet(file: str, text: str, num_rows: int) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Yield file and line of the block's names, the names of one drawing, and its ink, bool [num_rows, columns]."""
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.startswith(";"):
            continue
        if line.strip():
            block.append((number, line.split()))
        elif block:
            yield from _parse_block(file, block, num_rows)
            block = []


def _parse_block(
    file: str, block: list[tuple[int, list[str]]], num_rows: int
) -> Iterator[tuple[str, list[str], np.ndarray]]:
    (first_line, header), rows = block[0], block[1:]
    where = f"{file} line {first_line}"
    if len(rows) != num_rows:
        raise RenderError(f"{where}: {len(rows)} rows follow the names; a glyph has {num_rows}, then a blank line")
    for number, row in rows:
        if len(row) != len(header):
            raise RenderError(f"{file} line {number}: {len(row)} pieces of glyphs under {len(header)} names")
        for name, piece, top in zip(header, row, rows[0][1], strict=True):
            if piece.strip("#."):
                raise RenderError(f"{file} line {number}: {name}: {piece!r} may hold only # (ink) and . (paper)")
            if len(piece) != len(top):
                raise RenderError(
                    f"{file} line {number}: {name}: {piece!r} is {len(piece)} px wide, its first row {len(top)}"
                )
    for column, name in enumerate(header):
        pixels = "".join(row[column] for _, row in rows)
        ink = np.frombuffer(pixels.encode("ascii"), np.uint8).reshape(num_rows, -1) == ord("#")
        if not ink.any():
            raise RenderError(f"{where}: {name} has no ink; what has none belongs into spaces.txt")
        yield where, name.split("="), ink


def parse_spaces(file: str, text: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield file and line, an advance in px, and the characters that have it and no ink."""
    for where, words in _lines(file, text):
        if not re.fullmatch(r"[0-9]{1,2}", words[0]) or len(words) < 2:
            raise RenderError(f"{where}: expected an advance in px and characters, as in `3 U+0020 U+00A0`")
        characters = []
        for word in words[1:]:
            first, dots, last = word.partition("..")
            start = ord(_character(where, first))
            end = ord(_character(where, last)) if dots else start
            if end < start:
                raise RenderError(f"{where}: the range {word} ends before it starts")
            characters += [chr(code) for code in range(start, end + 1)]
        yield where, int(words[0]), characters


def parse_compositions(file: str, text: str) -> Iterator[tuple[str, str, str]]:
    """Yield file and line, a character, and its base followed by its marks."""
    for where, words in _lines(file, text):
        if len(words) < 3:
            raise RenderError(f"{where}: expected a character, its base and its marks, as in `ķ k U+0326`")
        character, *parts = (_character(where, word) for word in words)
        yield where, character, "".join(parts)


def parse_digits(file: str, text: str) -> list[Cell]:
    """The sixteen digits in their order, one width."""
    drawn = [(names, Cell(ink, ink.shape[1] + 1)) for _, names, ink in parse_sheet(file, text, DIGIT_ROWS)]
    if [names for names, _ in drawn] != [[digit] for digit in "0123456789ABCDEF"]:
        raise RenderError(f"{file}: expected the digits 0 to F, each once, in their order")
    if len({cell.width for _, cell in drawn}) != 1:
        raise RenderError(f"{file}: expected digits of one width")
    return [cell for _, cell in drawn]


def _lines(file: str, text: str) -> Iterable[tuple[str, list[str]]]:
    """File and line, and the words of each line that says something."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.startswith(";"):
            yield f"{file} line {number}", line.split()


def _mark(where: str, name: str) -> str:
    """One or two combining characters from `U+0308` or `U+0308+U+0301`."""
    if not re.fullmatch(rf"{CODE_POINT.pattern}(\+{CODE_POINT.pattern})?", name):
        raise RenderError(f"{where}: {name!r} is not U+XXXX or U+XXXX+U+XXXX, which names a mark or two together")
    return "".join(chr(int(digits, 16)) for digits in CODE_POINT.findall(name))


def _character(where: str, name: str) -> str:
    """A character from itself or from U+XXXX."""
    if match := CODE_POINT.fullmatch(name):
        code = int(match[1], 16)
        if code <= 0x10FFFF:
            return chr(code)
    elif len(name) == 1 and name not in RESERVED:
        return name
    raise RenderError(f"{where}: {name!r} is not a character; write it as itself or as U+XXXX")


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
