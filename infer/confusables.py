"""Characters that look like others, and texts in which some are replaced by such characters.

A reader of pixels and a reader of code points are hurt by this in different ways. "a" and its Cyrillic look-alike are
different tokens, and for most fonts the same picture; a mathematical a is another token again, and a picture that few
fonts have. What an attack does to a model of strips therefore depends on the font, and each replacement falls into one
of three strata, which are found by drawing both characters:

    unchanged   drawn with exactly the same pixels: there is nothing to notice
    drawn       drawn, and not the same
    missing     no font of the model has it: what stands there is an empty or numbered box

Two tables say what looks alike. Ours holds the basic letters, A-Z and a-z. It is made by rule from the Unicode
character database that Python carries: full-width letters, mathematical letters and letter-like symbols, Roman
numerals, and signs that are a letter by definition, such as the one of kelvin; and letters of other scripts by hand,
for the database does not say how letters look. A file in the format of Unicode's confusables.txt (UTS #39) takes its
place where one is named; it says much more, also of digits and signs.

Each character that has look-alikes is replaced with the same chance, independently, by one of them, all equally likely.
What is drawn for a character does not depend on the chance or the table, so a higher ratio replaces what a lower one
did, and more. Source: specs/pixar.md, section 6, whose table was never published with a licence and is not used here.
"""

import functools
import hashlib
import random
import string
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pixelcore.errors import UserError
from render import Renderer

UNCHANGED, DRAWN, MISSING = STRATA = ("unchanged", "drawn", "missing")
_LETTERS = frozenset(string.ascii_letters)
_TWO_PLANES = 0x20000  # code points with a compatibility form of a letter are below

# Letters of other scripts, and other Latin letters, that fonts draw like a basic letter or nearly so, as code points.
_BY_HAND = {
    "a": "0430 03B1 0251",
    "b": "044C 0185",
    "c": "0441 03F2 1D04",
    "d": "0501",
    "e": "0435 04BD",
    "f": "0192",
    "g": "0261 0581",
    "h": "04BB 0570",
    "i": "0456 03B9 0131",
    "j": "0458 03F3",
    "k": "043A 03BA 0138",
    "l": "04CF 01C0",
    "m": "043C",
    "n": "0578 03B7 043F",
    "o": "043E 03BF 0585 1D0F",
    "p": "0440 03C1",
    "q": "051B",
    "r": "0433 1D26",
    "s": "0455 A731",
    "t": "0442 03C4",
    "u": "03C5 057D 1D1C",
    "v": "03BD 0475 1D20",
    "w": "051D 0461 03C9 1D21",
    "x": "0445 03C7",
    "y": "0443 04AF 03B3",
    "z": "1D22",
    "A": "0410 0391",
    "B": "0412 0392",
    "C": "0421 03F9",
    "D": "13A0",
    "E": "0415 0395",
    "F": "03DC",
    "G": "050C",
    "H": "041D 0397",
    "I": "0406 0399 04C0",
    "J": "0408 037F",
    "K": "041A 039A",
    "L": "13DE",
    "M": "041C 039C",
    "N": "039D",
    "O": "041E 039F",
    "P": "0420 03A1",
    "Q": "051A",
    "R": "13A1",
    "S": "0405",
    "T": "0422 03A4",
    "U": "054D",
    "V": "0474",
    "W": "051C",
    "X": "0425 03A7",
    "Y": "03A5 04AE",
    "Z": "0396",
}


@dataclass(frozen=True)
class Confusables:
    """look_alikes: of each character, what may stand in its place. name: of the table, with what identifies it."""

    name: str
    look_alikes: Mapping[str, tuple[str, ...]]


@functools.cache
def built_in() -> Confusables:
    """Our table, as the head of this file says."""
    found: dict[str, set[str]] = {
        letter: {chr(int(code, 16)) for code in codes.split()} for letter, codes in _BY_HAND.items()
    }
    for code in range(0x80, min(_TWO_PLANES, sys.maxunicode + 1)):
        letter = _basic_letter(chr(code))
        if letter is not None:
            found[letter].add(chr(code))
    look_alikes = {letter: tuple(sorted(found[letter])) for letter in sorted(found)}
    count = sum(map(len, look_alikes.values()))
    return Confusables(
        f"built in: {count} look-alikes of {len(look_alikes)} letters, Unicode {unicodedata.unidata_version}",
        look_alikes,
    )


def _basic_letter(character: str) -> str | None:
    """The basic letter that a character of the database is a form of; superscripts and the like are other signs."""
    kind, _, rest = unicodedata.decomposition(character).rpartition(" ")
    form = unicodedata.normalize("NFKC", character)
    if not rest or form not in _LETTERS:
        return None
    numeral = kind == "<compat>" and unicodedata.category(character) == "Nl"
    return form if kind in ("", "<font>", "<wide>") or numeral else None


def read_confusables(file: str | Path) -> Confusables:
    """The table of a file in the format of Unicode's confusables.txt: a character, what it looks like, a kind, and a
    comment in each line. Characters that look like the same thing look like each other.

    White space is not replaced, nor put in place of anything. Raises UserError for a file that cannot be read, a line
    of another form, and a file without entries.
    """
    try:
        data = Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as cause:
        raise UserError(f"--confusables {file}: cannot be read ({cause.strerror}): give a confusables.txt") from cause
    except UnicodeDecodeError as cause:
        raise UserError(f"--confusables {file}: byte {cause.start} is not UTF-8: convert the file to UTF-8") from cause
    alike: dict[str, set[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        fields = [field.strip() for field in line.split(";")]
        try:
            character, looks = ("".join(chr(int(code, 16)) for code in field.split()) for field in fields[:2])
        except (ValueError, OverflowError) as cause:
            raise UserError(
                f"--confusables {file}, line {number}: is not of the form `code ; codes ; kind`: mend the line"
            ) from cause
        if character and looks:
            alike.setdefault(looks, {looks}).add(character)
    found: dict[str, tuple[str, ...]] = {}
    for group in alike.values():
        shown = sorted(one for one in group if all(unicodedata.category(sign)[0] not in "CZ" for sign in one))
        found |= {one: tuple(other for other in shown if other != one) for one in shown if len(one) == 1}
    found = {character: others for character, others in found.items() if others}
    if not found:
        raise UserError(f"--confusables {file}: has no characters that look alike: give a confusables.txt")
    count = sum(map(len, found.values()))
    digest = hashlib.sha256(data).hexdigest()[:12]
    return Confusables(f"{Path(file).name}: {count} look-alikes of {len(found)} characters, SHA-256 {digest}", found)


# ------------------------------------------------------------------ strata


class Strata:
    """Which stratum a replacement is in, under one renderer; each character is drawn once, alone."""

    def __init__(self, renderer: Renderer, table: Confusables) -> None:
        self.table = table
        self._renderer = renderer
        self._drawn: dict[str, tuple[bytes, bool]] = {}

    def of(self, character: str, replacement: str) -> str:
        """The stratum of a replacement."""
        pixels, missing = self._draw(replacement)
        return MISSING if missing else UNCHANGED if pixels == self._draw(character)[0] else DRAWN

    def _draw(self, character: str) -> tuple[bytes, bool]:
        """Its strip, column by column, and whether no font has it."""
        if character not in self._drawn:
            strip = self._renderer(character)
            self._drawn[character] = strip.columns.tobytes(), bool(strip.missing_glyphs)
        return self._drawn[character]

    def choices(self, character: str, stratum: str | None) -> tuple[str, ...]:
        """The look-alikes of a character, or those of one stratum."""
        found = self.table.look_alikes.get(character, ())
        return found if stratum is None else tuple(one for one in found if self.of(character, one) == stratum)


# ------------------------------------------------------------------ the attack


class Replacement(NamedTuple):
    """index: of the character in the text before the attack."""

    index: int
    character: str
    by: str
    stratum: str


class Confused(NamedTuple):
    """A text after the attack. eligible: characters that could have been replaced."""

    text: str
    replacements: tuple[Replacement, ...]
    eligible: int


def confuse(text: str, ratio: float, draw: random.Random, strata: Strata, stratum: str | None = None) -> Confused:
    """Replace each character that has look-alikes with chance `ratio`. stratum: take only look-alikes of this one."""
    pieces: list[str] = []
    replaced: list[Replacement] = []
    eligible = 0
    for index, character in enumerate(text):
        chance, which = draw.random(), draw.random()  # of every character, so that none depends on another
        choices = strata.choices(character, stratum)
        eligible += bool(choices)
        if choices and chance < ratio:
            by = choices[int(which * len(choices))]
            replaced.append(Replacement(index, character, by, strata.of(character, by)))
            character = by
        pieces.append(character)
    return Confused("".join(pieces), tuple(replaced), eligible)
