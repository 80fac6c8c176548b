"""Which letters a font draws by their two neighbours alone: words of those are put together from cached triples.

Kerning looks at two glyphs. What can look further are contextual rules and long ligatures of the OpenType tables GSUB
(substitution) and GPOS (positioning). This reads the rules that are on by default, and for each one that could apply to
a set of glyphs over more than two of them names glyphs without which it cannot: for the l-l of Catalan, the dot
between. It errs towards naming too many, which only costs time.

Table layouts: OpenType specification, chapters GSUB, GPOS and common table formats.
"""

import struct
from collections.abc import Iterator
from typing import Any

# Features that HarfBuzz applies to Latin text unasked
_DEFAULT_ON = frozenset(
    b"rvrn ltra ltrm rlig calt clig liga ccmp locl rclt rand Harf HARF Buzz BUZZ".split()
    + b"kern dist curs mark mkmk abvm blwm".split()
)
_LONGEST_LIGATURE = 3  # the letter and both neighbours
# Lookup types: of GSUB, of GPOS
_CONTEXT = {b"GSUB": (5, 6), b"GPOS": (7, 8)}
_REVERSE_CHAIN, _LIGATURE = 8, 4
_EXTENSION = {b"GSUB": 7, b"GPOS": 9}
_STATE_MACHINES = frozenset(("morx", "mort", "kerx"))  # Apple's tables: rules without a bound


def far_reaching(face: Any, glyphs: frozenset[int]) -> frozenset[int]:
    """Of a HarfBuzz face: glyphs to leave out so that, of the rest, no default rule spans more than two.

    Ligatures of three are let be, as their letters are seen to share a cluster.
    """
    if _STATE_MACHINES.intersection(face.table_tags):
        return glyphs
    found: set[int] = set()
    try:
        for tag in (b"GSUB", b"GPOS"):
            for kind, data, offset in _default_subtables(tag, bytes(face.reference_table(tag.decode()).data)):
                found |= _triggers(tag, kind, data, offset, glyphs - found)
    except struct.error:  # a table that is cut short: HarfBuzz copes in its own way
        return glyphs
    return frozenset(found)


def _numbers(data: bytes, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f">{count}H", data, offset)


def _default_subtables(tag: bytes, data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Lookup type, table and offset of each subtable that a default feature refers to."""
    if not data:
        return
    features, lookups = _numbers(data, 6, 2)
    (count,) = _numbers(data, features, 1)
    wanted: set[int] = set()
    for i in range(count):
        name, offset = struct.unpack_from(">4sH", data, features + 2 + 6 * i)
        if name in _DEFAULT_ON:
            (number,) = _numbers(data, features + offset + 2, 1)
            wanted.update(_numbers(data, features + offset + 4, number))
    (count,) = _numbers(data, lookups, 1)
    for index in sorted(wanted):
        if index >= count:
            continue
        lookup = lookups + _numbers(data, lookups + 2 + 2 * index, 1)[0]
        kind, _, number = _numbers(data, lookup, 3)
        for start in _numbers(data, lookup + 6, number):
            offset = lookup + start
            if kind == _EXTENSION[tag]:
                _, real, distance = struct.unpack_from(">HHI", data, offset)
                yield real, data, offset + distance
            else:
                yield kind, data, offset


def _triggers(tag: bytes, kind: int, data: bytes, offset: int, glyphs: frozenset[int]) -> frozenset[int]:
    """Glyphs without which one subtable cannot apply to more than two of `glyphs`; none if it cannot anyway."""
    if tag == b"GSUB" and kind == _LIGATURE:
        return _firsts_of_long_ligatures(data, offset, glyphs)
    plain, chained = _CONTEXT[tag]
    if kind not in (plain, chained, _REVERSE_CHAIN if tag == b"GSUB" else chained):
        return frozenset()
    (format_,) = _numbers(data, offset, 1)
    if format_ != 3 or kind not in (plain, chained):
        # rules by glyph or by class: what they begin with
        return glyphs & _covered(data, offset + _numbers(data, offset + 2, 1)[0])
    places = [glyphs & covered for covered in _coverages(data, offset, chained=kind == chained)]
    # of l, dot, l it is the dot that words can do without
    return min(places, key=lambda place: (len(place), places.count(place))) if len(places) > 2 else frozenset()


def _coverages(data: bytes, offset: int, chained: bool) -> list[frozenset[int]]:
    """Glyphs that each place of a rule of format 3 takes: before, in and after the sequence."""
    found: list[frozenset[int]] = []
    place = offset + 2
    if not chained:
        (count,) = _numbers(data, place, 1)
        return [_covered(data, offset + start) for start in _numbers(data, place + 4, count)]
    for _ in range(3):
        (count,) = _numbers(data, place, 1)
        found += [_covered(data, offset + start) for start in _numbers(data, place + 2, count)]
        place += 2 + 2 * count
    return found


def _firsts_of_long_ligatures(data: bytes, offset: int, glyphs: frozenset[int]) -> frozenset[int]:
    found: set[int] = set()
    _, coverage, count = _numbers(data, offset, 3)
    firsts = sorted(_covered(data, offset + coverage))
    for first, start in zip(firsts, _numbers(data, offset + 6, count)):
        if first not in glyphs:
            continue
        (number,) = _numbers(data, offset + start, 1)
        for ligature in _numbers(data, offset + start + 2, number):
            (length,) = _numbers(data, offset + start + ligature + 2, 1)
            if length > _LONGEST_LIGATURE and glyphs.issuperset(
                _numbers(data, offset + start + ligature + 4, length - 1)
            ):
                found.add(first)
    return frozenset(found)


def _covered(data: bytes, offset: int) -> frozenset[int]:
    format_, count = _numbers(data, offset, 2)
    if format_ == 1:
        return frozenset(_numbers(data, offset + 4, count))
    ranges = _numbers(data, offset + 4, 3 * count)
    return frozenset(glyph for i in range(count) for glyph in range(ranges[3 * i], ranges[3 * i + 1] + 1))
