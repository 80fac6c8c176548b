"""Which shaped clusters a reader knows: the alphabet, and the forms that its characters take beside one another.

A font draws clusters, not characters: an Arabic letter has up to four forms, f and i may melt into one glyph, and a
Devanagari syllable is drawn as a whole. Rather than imitate the rules of every script, this file writes lines in which
each form occurs (a letter between two joining strokes, consonants in pairs), has the renderer's own shaper set them,
and keeps every cluster that comes out. A sample of real text is one more such line: whatever occurs there is known.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from render.bidi import levels as bidi_levels
from render.errors import RenderError
from render.face import Face, Glyph
from render.fonts import Chain, FontFile, is_ignorable
from render.itemize import SPACES, itemize
from render.scripts import script_of

CJK = ("Hani", "Hira", "Kana", "Bopo", "Hang")
_COMMON_BLOCKS = [(0x20, 0xFF), (0x2010, 0x2027), (0x2030, 0x205E), (0x20A0, 0x20C0), (0x2100, 0x22FF)]
_COMMON_BLOCKS += [(0x60C, 0x60C), (0x61B, 0x61F), (0x640, 0x640), (0x660, 0x669), (0x964, 0x965), (0x387, 0x387)]
_CJK_BLOCKS = [(0x3000, 0x303F), (0x30A0, 0x30A0), (0x30FB, 0x30FC), (0xFF00, 0xFFEF)]
_HAN_BLOCKS = [(0x3005, 0x3007), (0x4E00, 0x9FFF)]
_LAST_OF_BUILTIN = 0x3000  # the font of this project draws nothing beyond
_TATWEEL = "\u0640"
JOINING = {"Arab", "Syrc", "Nkoo", "Mand", "Adlm", "Rohg"}


class Drawn(NamedTuple):
    """A shaped cluster. glyphs: from left to right, counted from its first character; rtl: drawn right to left."""

    text: str
    face: int
    script: str | None
    rtl: bool
    glyphs: tuple[Glyph, ...]
    at: int = 0  # in the line that it was shaped in


def default_scripts(chain: Chain) -> list[str]:
    """Latin, Greek, Cyrillic, and what each font is for; Han, kana and Hangul too if the first font has Han."""
    scripts = ["Latn", "Grek", "Cyrl"]
    for face in chain.faces:
        if not isinstance(face, FontFile):
            continue
        counts: dict[str, int] = {}
        for code in face.characters:
            if 0x370 <= code < 0x2000 and (script := script_of(chr(code))):
                counts[script] = counts.get(script, 0) + 1
        for usual in ("Latn", "Grek", "Cyrl", "Hang"):
            counts.pop(usual, None)
        main = max(counts, key=lambda script: counts[script], default=None)
        if main and counts[main] >= 20 and main not in scripts:
            scripts.append(main)
    if chain.faces[0].covers("一"):
        scripts += ["Hani", "Hira", "Kana", "Hang"]
    return scripts


def characters_of(chain: Chain, scripts: Sequence[str]) -> list[str]:
    """The characters of some scripts, and the signs and digits of all, that the chain has; by code point.

    Left out: marks alone, spaces but the usual one, private use, forms that only compatibility keeps, and what lies
    beyond the basic plane. Raises RenderError for a script of which no font has anything.
    """
    blocks = _COMMON_BLOCKS + (_CJK_BLOCKS if set(scripts) & set(CJK) else [])
    wanted = {chr(code) for first, last in blocks for code in range(first, last + 1)}
    found = [c for c in wanted if (script_of(c) is None or script_of(c) in scripts) and _is_letter_or_sign(c)]
    if "Hani" in scripts:
        found += [chr(code) for first, last in _HAN_BLOCKS for code in range(first, last + 1)]
    others = set(scripts) - {"Hani"}
    codes = set()
    for face in chain.faces:
        codes |= face.characters if isinstance(face, FontFile) else set(range(0x20, _LAST_OF_BUILTIN))
    for code in codes:
        character = chr(code)
        if code < 0x10000 and not 0x4E00 <= code <= 0x9FFF and not 0xF900 <= code <= 0xFEFF and character not in wanted:
            if script_of(character) in others and _is_letter_or_sign(character):
                found.append(character)
    found = sorted({c for c in found if chain.choose(c) >= 0})
    have = {script_of(c) for c in found}
    if missing := [script for script in scripts if script not in have]:
        raise RenderError(
            f"scripts {', '.join(missing)}: no font here has letters of them; give codes of ISO 15924, as Latn"
        )
    return found


def _is_letter_or_sign(character: str) -> bool:
    category = unicodedata.category(character)
    return character == " " or (category[0] in "LNPS" and not is_ignorable(character))


def lines_of(characters: Sequence[str], chain: Chain, all_marks: bool = True) -> Iterator[tuple[str, bool]]:
    """Lines in which every form of the characters occurs, and whether each is set right to left.

    all_marks: whether the letters take all marks that the chain has for their script, else those among the characters.
    """
    given = [c for c in characters if unicodedata.category(c)[0] == "M"]
    characters = [c for c in characters if unicodedata.category(c)[0] != "M"]
    by_script: dict[str | None, list[str]] = {}
    for character in characters:
        by_script.setdefault(script_of(character), []).append(character)
    for script, members in by_script.items():
        rtl = bidi_levels(members[-1], "auto")[0] == 1
        marks = [m for m in _marks(script, chain) if all_marks or m in given] if script else []
        yield from _rows(members, rtl)
        if script in JOINING:
            yield from _rows(_joined(members, marks), rtl)
        elif script == "Latn":
            letters = [c for c in members if c.isascii()]
            pairs = [a + b for a, b in product(letters, letters)]
            yield from _rows([f for f in pairs if f[0] == "f"] + ["f" + f for f in pairs if f[0] == "f"], rtl)
        elif any("VOWEL SIGN" in unicodedata.name(m, "") for m in marks):
            yield from _rows(_syllables(members, marks), rtl)
        elif marks and script not in ("Grek", "Cyrl", *CJK):
            letters = [c for c in members if c.isalpha()]
            upper = [m for m in marks if unicodedata.category(m) == "Mn"]
            yield from _rows([c + m for c in letters for m in upper], rtl)
            if len(letters) * len(upper) ** 2 <= 20_000:
                yield from _rows([c + m + n for c in letters for m, n in product(upper, upper) if m != n], rtl)


def _rows(parts: Iterable[str], rtl: bool) -> Iterator[tuple[str, bool]]:
    parts = list(parts)
    for start in range(0, len(parts), 2000):
        yield " ".join(parts[start : start + 2000]), rtl


def _marks(script: str, chain: Chain) -> list[str]:
    """Combining marks of a script that the chain has."""
    found = []
    if script == "Arab":
        codes = [*range(0x64B, 0x653), 0x670]
    else:
        codes = range(0x590, 0x2000)
    for code in codes:
        character = chr(code)
        if unicodedata.category(character) in ("Mn", "Mc") and chain.choose(character) >= 0:
            if script == "Arab" or script_of(character) == script:
                found.append(character)
    return found


def _joined(letters: Sequence[str], marks: Sequence[str]) -> list[str]:
    """Each letter, with each mark, alone and with a joining stroke on either side; lam and alef, which melt."""
    letters = [c for c in letters if unicodedata.category(c) in ("Lo", "Lm")]
    vowels = [m for m in marks if unicodedata.name(m, "") != "ARABIC SHADDA"]
    stacks = ["", *marks, *("\u0651" + vowel for vowel in vowels if "\u0651" in marks)]
    melting = ["\u0644" + alef for alef in "\u0622\u0623\u0625\u0627" if alef in letters]
    t = _TATWEEL
    parts = [form for c in letters for m in stacks for form in (c + m, c + m + t, t + c + m, t + c + m + t)]
    parts += [form for c in melting for m in stacks for form in (c + m, t + c + m)]
    parts += [form for m in stacks for form in ("\u0644" + m + "\u0627", t + "\u0644" + m + "\u0627")]
    basic = [c for c in letters if "\u0620" <= c <= "\u064a" and c != t]
    pairs = [a + b for a, b in product(basic, basic)]
    parts += [form for pair in pairs for form in (pair, t + pair, pair + t, t + pair + t)]  # some forms know neighbours
    if "\u0647" in letters:
        parts += ["\u0627\u0644\u0644\u0647", "\u0644\u0644\u0647", t + "\u0644\u0644\u0647"]
    return parts


def _syllables(letters: Sequence[str], marks: Sequence[str]) -> list[str]:
    """Consonants with vowel signs and nasal marks, pairs of consonants, half forms, r before and after a consonant.

    Longer conjuncts are read as half forms followed by a syllable.
    """
    name = unicodedata.name
    signs = [m for m in marks if "VOWEL SIGN" in name(m) and ("VOCALIC" not in name(m) or name(m).endswith(" R"))]
    virama = next((m for m in marks if "VIRAMA" in name(m)), "")
    nasals = [m for m in marks if name(m).endswith(("ANUSVARA", "CANDRABINDU", "VISARGA"))]
    nukta = next((m for m in marks if name(m).endswith("NUKTA")), "")
    letters = [c for c in letters if unicodedata.category(c) == "Lo"]
    consonants = [c for c in letters if not _VOWEL.search(name(c))]
    common = consonants[:40]
    tails = [sign + end for sign in ["", *signs] for end in ["", *nasals]]
    parts = [c + end for c in letters for end in ["", *nasals]]
    parts += [c + tail for c in consonants for tail in tails]
    if nukta:
        parts += [c + nukta + tail for c in common for tail in tails]
    if not virama:
        return parts
    parts += [c + virama for c in consonants]
    # a joiner shows the half form that a consonant takes before another one
    parts += [c + virama + "\u200d" for c in consonants]
    parts += [c + nukta + virama + "\u200d" for c in common if nukta]
    before_or_over = [s for s in signs if unicodedata.category(s) == "Mn" or name(s).endswith("SIGN I")]
    parts += [a + virama + b + s for a, b in product(common, common) for s in ["", *before_or_over]]
    r = [c for c in consonants if name(c).endswith("LETTER RA")]
    parts += [a + virama + b + tail for a, b in [*product(common, r), *product(r, common)] for tail in tails]
    return parts


_VOWEL = re.compile("LETTER (CANDRA |SHORT )?(A|AA|I|II|U|UU|E|EE|AI|O|OO|AU|VOCALIC .*)$")


def shape(face: Face, text: str, script: str | None, rtl: bool) -> list[Glyph]:
    """The glyphs of a run, by name: faces may give plain tuples."""
    return [Glyph(*glyph) for glyph in face.shape(text, script, rtl)]


def shape_line(line: str, chain: Chain, base: str) -> Iterator[Drawn]:
    """The clusters of a line, shaped as the renderer shapes its words, in no order. base: as of bidi.levels."""
    line = SPACES.sub(" ", line)
    _, levels = bidi_levels(line, base)
    runs = itemize(line, chain, levels if any(levels) else None)
    for run in runs:
        if run.face < 0:
            continue
        part, rtl = line[run.start : run.end], bool(run.level & 1)
        glyphs = shape(chain.faces[run.face], part, run.script, rtl)
        starts = sorted({glyph.cluster for glyph in glyphs})
        ends = dict(zip(starts, [*starts[1:], len(part)], strict=True))
        groups: dict[int, list[Glyph]] = {}
        for glyph in glyphs:
            groups.setdefault(glyph.cluster, []).append(glyph)
        for start, group in groups.items():
            text = part[start : ends[start]]
            yield Drawn(
                text, run.face, run.script, rtl, tuple(glyph._replace(cluster=0) for glyph in group), run.start + start
            )


def rarity(text: str) -> float:
    """How surprising a cluster is, in nats, roughly: it settles what pixels and noise leave open, nothing else."""
    return sum(_rarity(character) for character in text) / max(1, len(text)) + 0.5 * (len(text) - 1)


def _rarity(character: str) -> float:
    code = ord(character)
    if character.isascii():
        if character.isalpha():
            return 0.06 * _LETTERS.index(character.lower()) + (0.5 if character.isupper() else 0.0)
        return 0.5 if character.isdigit() or character in " .,'\"" else 1.0 if character in "-!?;:()" else 3.0
    if unicodedata.category(character)[0] == "M":
        return 4.0 if _RARE_MARK.search(unicodedata.name(character, "")) else 2.0
    extra = 2.0 if unicodedata.normalize("NFKC", character) != character else 0.0
    for first, last, nats in _RARITY:
        if first <= code <= last:
            return nats + extra
    return 8.0 + extra


_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # the commonest first
_RARE_MARK = re.compile(r"CANDRA |SHORT |VOCALIC RR|VOCALIC L")
# everyday letters of each script before its historic ones; punctuation that typesetters put in
_RARITY = [
    (0x2018, 0x201D, 1.0), (0x2013, 0x2014, 1.5), (0x2026, 0x2026, 6.0), (0xC0, 0xFF, 5.0), (0x131, 0x131, 5.5),
    (0x100, 0x17F, 6.0), (0x391, 0x3C9, 2.5), (0x386, 0x3CE, 4.0), (0x410, 0x44F, 2.0), (0x401, 0x45F, 3.5),
    (0x490, 0x491, 3.5), (0x5D0, 0x5EA, 2.0), (0x621, 0x64A, 2.0), (0x900, 0xFFF, 2.0), (0x3041, 0x30FC, 2.0),
    (0x60C, 0x61F, 1.0), (0x660, 0x669, 3.0), (0x3001, 0x3002, 1.0), (0x4E00, 0x9FFF, 3.0), (0xAC00, 0xD7A3, 3.0),
    (0xFF01, 0xFF5E, 2.0), (0xA0, 0xBF, 5.0),
]  # fmt: skip
