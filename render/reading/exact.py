"""The quick way for clean strips: a string of clusters that draws exactly these pixels, or nothing.

Clean means equal, and equality needs no arithmetic on arrays. Columns are lanes of one large integer: laying a picture
over a strip is a shift and an addition (for binary strips an "or"), comparing is one comparison, and pictures that can
stand at a column are found in a table by its first columns. The search goes deep first, whole matches before those
whose last columns a neighbour must still explain, and never looks twice at the same cluster at the same place. It gives
up after a number of comparisons; then reading/search.py takes over, which also knows what is nearly right.
"""

from collections.abc import Callable

import numpy as np

from render.reading.arcs import Arcs
from render.reading.search import Node, Rules
from render.scripts import script_of

_PREFIXES = (8, 6, 4, 3, 2, 1)  # columns
_BUDGET = 15_000  # pictures compared, before the search takes over
KERN_REACH = 4  # px
_USUAL_REACH = 3  # px of a box that a neighbour changes; more is left to the search


class Lanes:
    """Pictures as integers, and the tables to find them by."""

    def __init__(self, arcs: Arcs, kerns: bool, drawn_apart: bool):
        self.arcs, self.kerns = arcs, kerns
        height = arcs.flat.shape[1]
        self.column_bytes = (height + 7) // 8 if arcs.binary else height
        self.lane = 8 * self.column_bytes
        self.weight = [1] * len(arcs) if drawn_apart else arcs.weight.tolist()
        scripts = [{script_of(member.text[0]) for member in members} for members in arcs.members]
        scripts = [set() if None in own else {script or "" for script in own} for own in scripts]
        packed = self.pack(arcs.flat)
        size = self.column_bytes
        self.pictures, prefixes = [], {k: {} for k in _PREFIXES}
        boxes: dict[int, dict[int, list[int]]] = {}
        self.before, self.advance = arcs.before.tolist(), arcs.advance.tolist()
        self.after, self.rarity = arcs.after.tolist(), arcs.rarity.tolist()
        self.merit = [-(3 + rarity) / advance for advance, rarity in zip(self.advance, self.rarity, strict=True)]
        self.is_space, self.face = arcs.is_space.tolist(), arcs.face.tolist()
        self.is_stop = arcs.is_stop.tolist()
        # columns before an advance that the next cluster may still change
        self.reach = arcs.reach_before + (KERN_REACH if kerns else 0)
        # first whole boxes, then those that kerning moves; then both for boxes whose last columns a neighbour changes
        self.last_stage = 3 if kerns else 1
        for arc, (start, length) in enumerate(zip(arcs.start.tolist(), arcs.size.tolist(), strict=True)):
            columns = packed[start * size : (start + length) * size]
            self.pictures.append(int.from_bytes(columns, "little"))
            sure = max(1, self.advance[arc] - min(self.reach, _USUAL_REACH))
            k = next(k for k in _PREFIXES if k <= sure)
            box = columns[self.before[arc] * size :]
            box = columns[self.before[arc] * size :]
            prefixes[k].setdefault(int.from_bytes(box[: k * size], "little"), []).append(arc)
            width = self.advance[arc]
            boxes.setdefault(width, {}).setdefault(int.from_bytes(box[: width * size], "little"), []).append(arc)
        # pictures by the columns of their box, and by as many of its first columns as no neighbour can change
        self.boxes, self.prefixes = (
            [((1 << columns * self.lane) - 1, table) for columns, table in tables.items() if table]
            for tables in (boxes, prefixes)
        )
        apart = {script: 1 << i for i, script in enumerate(sorted({s for own in scripts for s in own}))}
        # bits of the scripts in which a picture can be written; all of them for digits and signs
        self.scripts = [sum(map(apart.__getitem__, own)) if own else -1 for own in scripts]
        self.widest = max(self.advance, default=1)
        self._boxes, self._inner = boxes, {}
        ones = int.from_bytes(b"\x01" * (self.column_bytes * (self.widest + 64)), "little")
        self._low, self._high = ones * 0x7F, ones * 0x80
        self.shifts = sorted(range(-KERN_REACH, 3), key=abs) if kerns else [0]
        self.starts = sorted(set(self.before))

    def inner(self, skipped: int) -> list[tuple[int, dict[int, list[int]]]]:
        """Pictures by the columns of their box but the first ones, on which another ink lies."""
        if skipped not in self._inner:
            self._inner[skipped] = []
            for columns, table in self._boxes.items():
                if columns > skipped:
                    found: dict[int, list[int]] = {}
                    for key, arcs in table.items():
                        found.setdefault(key >> skipped * self.lane, []).extend(arcs)
                    self._inner[skipped].append(((1 << (columns - skipped) * self.lane) - 1, found))
        return self._inner[skipped]

    def added(self, one: int, two: int) -> int:
        """Both inks, lane by lane: either of them, or of grey the sum, which stops at full."""
        if self.arcs.binary:
            return one | two
        total = (one & self._low) + (two & self._low)
        total ^= (one ^ two) & self._high
        over = (one & two | (one | two) & ~total) & self._high
        return total | (over >> 7) * 255 if over else total

    def pack(self, ink: np.ndarray) -> bytes:
        """Columns of ink, float32 [columns, rows], as bytes."""
        if self.arcs.binary:
            return np.packbits(ink > 0.5, axis=1, bitorder="little").tobytes()
        return np.rint(ink * 255).astype(np.uint8).tobytes()


def find_exact(
    lanes: Lanes,
    ink: np.ndarray,
    first: int,
    last: int,
    rules: Rules,
    moves_by: Callable[[int, int], frozenset[int]],
    kinds: list[int],
    fits_end: Callable[[int], bool],
) -> list[Node] | None:
    """Arcs that draw exactly this ink from column `first` to `last`, or None if none are found.

    moves_by: px by which one arc may move another that follows it; none if they never stand so.
    The other parameters are those of search.search.
    """
    size, lane, binary, arcs = lanes.column_bytes, lanes.lane, lanes.arcs.binary, lanes.arcs
    shown = lanes.pack(ink) + bytes(size * (arcs.widest + 64))
    reach, edges = lanes.reach, rules.edges

    def window(start: int, end: int) -> int:
        if start < 0:
            return int.from_bytes(shown[: max(0, end) * size], "little") << -start * lane
        return int.from_bytes(shown[start * size : end * size], "little")

    def unit_end(end: int, arc: int) -> int:
        after = 0 if rules.drawn_apart or arc < 0 else lanes.after[arc]
        return first + -(-(end + after - first) // edges) * edges

    # a state: end, arc, origin, parent, place in its unit, after a lone letter, base column, ink from there on, scripts
    root = (first, -1, first, None, 0, False, first - reach, 0, -1)
    stack: list[tuple] = [(root, 0)]
    seen: set[tuple] = set()
    budget = _BUDGET
    while stack:
        state, stage = stack.pop()
        end, arc, _, _, _, _, base, drawn, known = state
        budget -= 10
        if budget < 0:
            return None
        is_space = arc >= 0 and lanes.is_space[arc]
        ends = rules.sentences and arc >= 0 and lanes.is_stop[arc]  # the space after it is the second of its place
        if stage == 0:
            closes = unit_end(end, arc) if rules.unit else end
            if fits_end(closes) and end <= last and drawn == window(base, last):
                return _path(state)
            if end >= last:
                continue
        if stage < lanes.last_stage:
            stack.append((state, stage + 1))
        is_partial = stage == lanes.last_stage or stage == 2
        found = []
        for column, shift, place_before, lone, before in _moves(
            lanes, rules, kinds, state, is_space, stage, unit_end, edges
        ):
            if column >= last:
                continue
            pending = drawn >> (column - base) * lane if column > base else drawn << (base - column) * lane
            key = window(column, column + lanes.widest)
            keyed = [(key, lanes.prefixes if is_partial else lanes.boxes)]
            if pending:
                keyed[0] = (key & ~pending if binary else key - pending, keyed[0][1])
                if is_partial:
                    skipped = -(-pending.bit_length() // lane)
                    keyed.append((key >> skipped * lane, lanes.inner(skipped)))
            for key, mask, table in ((key, mask, table) for key, tables in keyed for mask, table in tables):
                for other in table.get(key & mask, ()):
                    budget -= 1
                    if before is not None and lanes.before[other] != before:
                        continue
                    new_place = (
                        place_before + lanes.weight[other] if rules.unit else 1 + (ends and lanes.is_space[other])
                    )
                    if new_place > rules.unit > 0 and lanes.weight[other] > 1 and place_before:
                        continue
                    finish = column + lanes.advance[other]
                    name = (finish, other, new_place, lone)
                    if name in seen or finish > last + 64:
                        continue
                    offset = column - lanes.before[other] - base
                    if offset < 0:
                        continue
                    ink_now = lanes.pictures[other] << offset * lane
                    ink_now = lanes.added(drawn, ink_now) if drawn else ink_now
                    differs = ink_now ^ window(base, max(finish, finish + lanes.after[other]))
                    new_base = max(base, finish - reach)
                    if differs & ((1 << (new_base - base) * lane) - 1):
                        continue
                    if rules.unit and place_before and not _may_follow(lanes, rules, kinds, arc, other, is_space):
                        continue
                    if lone and kinds[other] == 0:
                        continue
                    if shift is not None and arc >= 0 and shift not in moves_by(arc, other):
                        continue
                    open_end = bool(differs & ((1 << (finish - base) * lane) - 1))
                    if open_end and (not is_partial or differs & ((1 << max(0, column - base) * lane) - 1)):
                        continue
                    scripts = known & lanes.scripts[other] or lanes.scripts[other]
                    rest = ink_now >> (new_base - base) * lane
                    child = (finish, other, column, state, new_place, lone, new_base, rest, scripts)
                    found.append((name, child))
        if len(found) > 1:  # the script of the line first, wide clusters before narrow ones, common before rare
            found.sort(key=lambda item: (known & lanes.scripts[item[1][1]] != 0, lanes.merit[item[1][1]], -item[1][1]))
        stack += [(child, 0) for _, child in found]
        if not is_partial:
            seen.update(name for name, _ in found)
    return None


def _may_follow(lanes: Lanes, rules: Rules, kinds: list[int], arc: int, other: int, is_space: bool) -> bool:
    if rules.adaptive:
        alike = kinds[other] == kinds[arc] or (kinds[arc] == 2 and lanes.is_space[other]) or (rules.loose and is_space)
        return alike
    return True


def _moves(lanes, rules, kinds, state, is_space, stage, unit_end, edges) -> list[tuple]:
    """Where the next cluster may stand: column, kerning or None, clusters before it in its unit, whether a lone letter
    came before, its overhang.

    Kerned places are tried in the second and fourth stage.
    """
    end, arc, _, _, place = state[:5]
    if arc < 0:
        if rules.unit and not rules.drawn_apart:
            return [(end + shift, None, 0, False, shift) for shift in lanes.starts]
        return [(end, None, 0, False, None)]
    goes_on, jumps = True, False
    if rules.unit:
        kind = kinds[arc] if rules.adaptive else 0
        full = place >= rules.unit
        if kind == 1:
            goes_on, jumps = False, True
        elif kind == 2:
            goes_on, jumps = True, True
        elif rules.adaptive and place > 2:
            goes_on, jumps = rules.loose, True
        elif is_space:
            goes_on, jumps = rules.loose and not full, True
        else:
            goes_on, jumps = not full, full or rules.adaptive or rules.drawn_apart or rules.loose
    elif edges:
        ends = is_space and (place == 2 or not rules.sentences)
        jumps = ends or rules.loose
        goes_on = not ends or rules.loose
    moves: list[tuple] = []
    if goes_on:
        if rules.drawn_apart or not lanes.kerns:
            shifts = [0]
        else:
            shifts = ([0], lanes.shifts[1:], [0], lanes.shifts[1:])[stage]
        moves += [(end + shift, None if rules.drawn_apart else shift, place, False, None) for shift in shifts]
    if jumps and (stage == 0 or stage == (2 if lanes.kerns else 1)):
        if rules.unit:
            edge = unit_end(end, arc)
            lone = rules.adaptive and place < rules.unit and not is_space and not rules.loose and kinds[arc] == 0
            starts = [0] if rules.drawn_apart else lanes.starts
            moves += [(edge + s, None, 0, lone, None if rules.drawn_apart else s) for s in starts]
        else:
            edge = -(-end // edges) * edges
            if edge > end or not goes_on:
                moves.append((edge, None, 0, False, None))
    return moves


def _path(state: tuple) -> list[Node]:
    path = []
    while state[3] is not None:
        path.append(Node(0.0, state[0], state[1], state[2], None, state[4], state[5]))
        state = state[3]
    return path[::-1]
