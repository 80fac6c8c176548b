"""Which lines of a kernel read or write memory in small pieces?

A thread can move 16 bytes by one instruction. The compiler does so where it can prove that neighbouring values of a
tile lie side by side, begin where 16 divides the address, and are masked together; where it loses one of these facts it
falls back to single values, without a word. The machine code shows the width of an access and not what it is for, and
a row's statistic or a target's index may well be narrow. So two stages of the compilation are read side by side: in
Triton's last own form each access has its tile, in PTX its width, and in both the line of the source.

Where a narrow access cannot be otherwise, a comment above its line begins with `# narrow: ` and says why.
"""

import math
import re
from collections import Counter, defaultdict
from pathlib import Path

_WIDE_BYTES = 16

_TILE = re.compile(
    r"(tt\.load|tt\.store|async_copy_global_to_local) .*?tensor<([\dx]+)x!tt\.ptr<[a-z]+(\d+).*loc\((#\w+)\)"
)
_NAMED_PLACE = re.compile(r"^(#\w+) = loc\((.*)\)$", re.MULTILINE)
_PLACE = re.compile(r'"([^"]+)":(\d+):(\d+)')
_LINE = re.compile(r"\.loc\s.*// (\S+?):(\d+):(\d+)")
_VALUES = re.compile(r"\b(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[a-z]+(\d+)\s")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global.*\], (0x[\da-f]+)")

_Place = tuple[str, int, int]  # file, line, column
_Access = tuple[_Place, str]  # and "loads" or "stores"


def narrow_accesses(ttgir: str, ptx: str) -> list[str]:
    """A phrase for each line that moves most of a main tile in pieces that are smaller than they need be.

    Main tiles are those that hold at least half as many values as the largest. Tiles of one layout have as many values
    a piece as 16 bytes of the widest type hold: beside fp32, bf16 moves in pieces of 8 bytes.
    """
    tiles, widths = _tiles(ttgir), _widths(ptx)
    assert not widths or tiles.keys() & widths.keys(), "no access was found by its line in both forms"
    largest = max((elements for elements, _ in tiles.values()), default=0)
    main = {access: size for access, (elements, size) in tiles.items() if 2 * elements >= largest and access in widths}
    found: list[str] = []
    for access, size in main.items():
        wanted = _WIDE_BYTES // max(main.values()) * size
        (file, line, _), kind = access
        pieces = widths[access]
        narrow = sum(width * count for width, count in pieces.items() if width < wanted)
        if 2 * narrow > sum(width * count for width, count in pieces.items()):
            found.append(f"{file}:{line} {kind} {min(pieces)} bytes at a time, and {wanted} are possible")
    return list(dict.fromkeys(found))


def _tiles(ttgir: str) -> dict[_Access, tuple[int, int]]:
    """Values in the tile of each access, and bytes of a value."""
    named = dict(_NAMED_PLACE.findall(ttgir))
    tiles: dict[_Access, tuple[int, int]] = {}
    for operation, shape, bits, name in _TILE.findall(ttgir):
        place = _source(name, named)
        if place:
            access = (place, "stores" if operation == "tt.store" else "loads")
            tiles[access] = max(tiles.get(access, (0, 0)), (math.prod(map(int, shape.split("x"))), int(bits) // 8 or 1))
    return tiles


def _source(name: str, named: dict[str, str]) -> _Place | None:
    """Where the source has it: of an inlined function the function's own line, which PTX names too."""
    text = named[name]
    place = _PLACE.match(text)
    if place:
        return Path(place[1]).name, int(place[2]), int(place[3])
    further = re.search(r"#\w+", text)
    return _source(further[0], named) if further else None


def _widths(ptx: str) -> dict[_Access, Counter[int]]:
    """How many instructions of each access move so many bytes a thread."""
    widths: defaultdict[_Access, Counter[int]] = defaultdict(Counter)
    place: _Place | None = None
    for text in ptx.splitlines():
        line = _LINE.search(text)
        if line:
            place = line[1], int(line[2]), int(line[3])
        values, copy = _VALUES.search(text), _COPY.search(text)
        if place and values:
            kind = "stores" if values[1] == "st" else "loads"
            widths[place, kind][int(values[2] or 1) * int(values[3]) // 8] += 1
        elif place and copy:
            widths[place, "loads"][int(copy[1], 16)] += 1
    return dict(widths)
