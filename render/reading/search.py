"""The search: which string of clusters, laid over a strip from left to right, leaves the least unexplained.

What a hypothesis leaves unexplained is its cost: the sum, over all pixels so far, of the squared difference between
the strip and its own drawing (for binary strips: the pixels that differ). It is Viterbi's algorithm over columns, with
three twists. Inks of neighbours overlap, so a hypothesis remembers what its last cluster draws beyond its box, and its
last few columns are charged again when the next cluster is known. Kerning moves the next cluster, by an amount that the
font is asked for when it is first needed. And nearly all clusters are ruled out by their first columns, which bound the
cost from below: a hypothesis is dropped as soon as it leaves `margin` more unexplained than another that reaches
further.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from render.reading.arcs import PROBE, Arcs

_KERN_REACH = 4  # px by which a pair may move closer


class Rules(NamedTuple):
    """Of a layout, as far as it decides where a cluster may stand.

    unit: clusters that a patch may begin with; 0 = text runs on over patch edges.
    edges: px between edges at which a word (or unit) begins; 0 = none.
    """

    edges: int
    unit: int
    pad: int
    drawn_apart: bool  # clusters are drawn one by one: no kerning, and ink may leave a unit
    adaptive: bool
    loose: bool  # words may begin and end in any way, as those that run right to left do
    sentences: bool  # what begins at edges are sentences: after a stop and a space


class Settings(NamedTuple):
    """How hard to look. margin: cost; keep: hypotheses of a column; most: candidates of one; price: cost of a nat."""

    margin: float
    keep: int
    most: int
    price: float


@dataclass(slots=True)
class Node:
    """A hypothesis: the clusters up to an arc that ends at column `end`."""

    cost: float
    end: int
    arc: int
    start: int  # column of the arc's origin
    parent: "Node | None"
    place: int  # clusters of its unit so far
    lone: bool  # whether it had to be something else than a letter, behind a unit of one letter
    canvas: np.ndarray | None = None  # ink from `reach` columns before `end` on


class Found(NamedTuple):
    """The best path: arcs with the columns of their origins; its cost without prices; where it ends."""

    path: list[Node]
    energy: float


def search(
    arcs: Arcs,
    ink: np.ndarray,
    first: int,
    last: int,
    rules: Rules,
    settings: Settings,
    kerning: Callable[[int], list[tuple[int, np.ndarray | None]]],
    kinds: np.ndarray,
    fits_end: Callable[[int], bool],
    prior: np.ndarray,
) -> Found:
    """The best string of arcs for ink float32 [columns, rows] from column `first` to column `last`.

    kerning: of an arc, the px by which it moves the next one, and which arcs (bool [arcs]) it moves so.
    kinds: of each arc for the layout `adaptive`: 0 = letter, 1 = alone on its patch, 2 = joins its neighbours.
    prior: how surprising each arc is, in nats.
    fits_end: whether a text that ends at a column would have its end patch where the strip has it.
    """
    return _Search(arcs, ink, first, last, rules, settings, kerning, kinds, fits_end, prior).run()


class _Search:
    def __init__(self, arcs, ink, first, last, rules, settings, kerning, kinds, fits_end, prior):
        self.arcs, self.rules, self.settings = arcs, rules, settings
        self.kerning, self.kinds, self.fits_end = kerning, kinds, fits_end
        self.first, self.last = first, last
        self.reach = arcs.reach_before + (0 if rules.drawn_apart else _KERN_REACH)
        self.room = arcs.reach_after + PROBE + 2 * _KERN_REACH + rules.edges
        self.height = ink.shape[1]
        # columns beyond both ends are paper
        right = max(arcs.widest, int(arcs.size.max(initial=1))) + self.room + PROBE
        self.ink = np.zeros((self.reach + len(ink) + right, self.height), np.float32)
        self.ink[self.reach : self.reach + len(ink)] = ink
        self.ink[self.reach + last :] = 0
        self.shares_future = self.reach == 0 and arcs.reach_after == 0
        self.prices = (prior + 1.0) * settings.price
        self.starts = self._unit_starts()
        self.no_limit = [(0, None)]

    def _unit_starts(self) -> list[tuple[int, np.ndarray | None]]:
        """At the start of a unit each arc stands as far in as its ink reaches to the left."""
        before = self.arcs.before
        if self.rules.drawn_apart or not before.any():
            return [(0, None)]
        return [(int(shift), before == shift) for shift in np.unique(before)]

    def run(self) -> Found:
        arcs, last = self.arcs, self.last
        root = Node(
            0.0, self.first, -1, self.first, None, 0, False, np.zeros((self.reach + self.room, self.height), np.float32)
        )
        buckets: dict[int, dict] = {self.first: {0: root}}
        columns = [self.first]
        width = last + 2 * arcs.widest + 64
        best_beyond = np.full(width + self.rules.edges, np.inf, np.float32)
        best: Node | None = None
        best_cost, furthest, least = np.inf, root, np.inf
        while columns:
            x = heappop(columns)
            nodes = sorted(buckets.pop(x).values(), key=lambda node: node.cost)
            bound = float(best_beyond[x:].min()) + self.settings.margin if x + 1 < len(best_beyond) else np.inf
            bound = min(bound, best_cost + self.settings.margin)
            for rank, node in enumerate(nodes[: self.settings.keep]):
                if node.cost > bound and (rank or columns or best is not None):
                    break
                canvas = self._canvas(node)
                if self._may_end(node):
                    total = node.cost + self._rest(node, canvas)
                    if total < best_cost:
                        best, best_cost = node, total
                if x >= last:
                    continue
                if node.end >= furthest.end and node.cost <= least + self.settings.margin:
                    furthest, least = node, node.cost
                for arc, cost, start, place, lone in self._following(node, canvas, bound):
                    end = start + int(arcs.advance[arc])
                    if end > last + arcs.widest:
                        continue
                    if cost < best_beyond[end]:
                        best_beyond[end] = cost
                    bucket = buckets.get(end)
                    if bucket is None:
                        bucket = buckets[end] = {}
                        heappush(columns, end)
                    key = (place, lone, -1 if self.shares_future and not arcs.is_space[arc] else arc)
                    rival = bucket.get(key)
                    if rival is None or cost < rival.cost:
                        bucket[key] = Node(cost, end, arc, start, node, place, lone)
        node = best or furthest
        path: list[Node] = []
        while node.parent is not None:
            path.append(node)
            node = node.parent
        path.reverse()
        # columns are counted once here: prices and what was dropped on the way are left out
        return Found(path, self._energy(path))

    # ---- what a hypothesis has drawn ---------------------------------------------------------------------------------

    def _canvas(self, node: Node) -> np.ndarray:
        """Ink of the last columns of a node and of those after it: float32 [reach + room, rows], not yet saturated."""
        if node.canvas is None:
            parent, arcs, reach = node.parent, self.arcs, self.reach
            assert parent is not None
            canvas = np.zeros((reach + self.room, self.height), np.float32)
            moved = node.end - parent.end
            old = self._canvas(parent)
            if moved < len(old):
                canvas[: len(old) - moved] = old[moved:] if moved >= 0 else 0
            begin, size, before = int(arcs.start[node.arc]), int(arcs.size[node.arc]), int(arcs.before[node.arc])
            at = node.start - before - (node.end - reach)
            skip = max(0, -at)
            part = arcs.flat[begin + skip : begin + size]
            part = part[: len(canvas) - max(0, at)]
            canvas[max(0, at) : max(0, at) + len(part)] += part
            node.canvas = canvas
        return node.canvas

    def _drawn(self, ink: np.ndarray) -> np.ndarray:
        """What a strip shows of added inks."""
        return (ink > 0.5).astype(np.float32) if self.arcs.binary else np.minimum(ink, 1.0)

    def _charges(self, canvas: np.ndarray, end: int) -> np.ndarray:
        """Cost of each of the columns that a canvas covers [reach + room]."""
        seen = self.ink[end : end + len(canvas)]
        difference = self._drawn(canvas[: len(seen)]) - seen
        return np.einsum("cr,cr->c", difference, difference)

    def _rest(self, node: Node, canvas: np.ndarray) -> float:
        """What is left unexplained behind a text that ends here."""
        end = node.end
        charges = self._charges(canvas, end)[self.reach :]
        stop = self.last - end
        if stop <= 0:
            return 0.0
        total = float(charges[:stop].sum())
        if stop > len(charges):
            beyond = self.ink[self.reach + end + len(charges) : self.reach + self.last]
            total += float((beyond**2).sum())
        return total

    def _may_end(self, node: Node) -> bool:
        if node.end > self.last and not self.fits_end(self.last):
            return False
        return self.fits_end(self._unit_end(node) if self.rules.unit else node.end)

    def _unit_end(self, node: Node) -> int:
        """The patch edge behind the ink of a unit."""
        if node.arc < 0:
            return node.end
        after = 0 if self.rules.drawn_apart else max(0, int(self.arcs.after[node.arc]))
        edge = self.rules.edges
        return self.first + -(-(node.end + after - self.first) // edge) * edge

    def _energy(self, path: list[Node]) -> float:
        drawn = np.zeros((len(self.ink), self.height), np.float32)
        arcs = self.arcs
        for node in path:
            begin, size = int(arcs.start[node.arc]), int(arcs.size[node.arc])
            at = self.reach + node.start - int(arcs.before[node.arc])
            part = arcs.flat[begin + max(0, -at) : begin + size]
            drawn[max(0, at) : max(0, at) + len(part)] += part[: len(drawn) - max(0, at)]
        span = slice(self.reach, self.reach + self.last)
        return float(((self._drawn(drawn[span]) - self.ink[span]) ** 2).sum())

    # ---- what may follow ---------------------------------------------------------------------------------------------

    def _following(self, node: Node, canvas: np.ndarray, bound: float):
        """Arcs that may come next: (arc, cost, column of its origin, place in its unit, after a lone letter)."""
        rules, arcs = self.rules, self.arcs
        moves: list[tuple[int, int, np.ndarray | None, int, bool]] = []  # column, shift, allowed, place, lone
        is_space = node.arc >= 0 and bool(arcs.is_space[node.arc])
        goes_on, jumps = True, False
        if node.arc < 0:
            groups = self.starts if rules.unit else self.no_limit
            moves = [(node.end + shift, shift, allowed, 1, False) for shift, allowed in groups]
            goes_on = False
        elif rules.unit:
            goes_on, jumps = self._unit_goes_on(node, is_space)
        elif rules.edges:
            ends = is_space and (not rules.sentences or self._is_stop(node.parent))
            jumps = ends or rules.loose
            goes_on = not ends or rules.loose
        if goes_on:
            groups = self.no_limit if rules.drawn_apart else self.kerning(node.arc)
            for shift, allowed in groups:
                if rules.adaptive:
                    alike = self.kinds == self.kinds[node.arc]
                    alike |= (self.kinds[node.arc] == 2) & arcs.is_space
                    if rules.loose and is_space:
                        alike[:] = True
                    allowed = alike if allowed is None else allowed & alike
                moves.append((node.end + shift, shift, allowed, node.place + 1, False))
        if jumps:
            if rules.unit:
                edge = self._unit_end(node)
                lone = node.place < rules.unit and not is_space and not rules.loose and self.kinds[node.arc] == 0
                for shift, allowed in self.starts:
                    if lone and rules.adaptive:
                        others = self.kinds > 0
                        allowed = others if allowed is None else allowed & others
                    moves.append((edge + shift, edge + shift - node.end, allowed, 1, lone))
            else:
                edge = -(-node.end // rules.edges) * rules.edges
                if edge > node.end or not goes_on:
                    moves.append((edge, edge - node.end, None, 1, False))
        charges = self._charges(canvas, node.end)
        for column, shift, allowed, place, lone in moves:
            if column >= self.last:
                continue
            yield from self._candidates(node, canvas, charges, column, shift, allowed, place, lone, bound)

    def _is_stop(self, node: Node | None) -> bool:
        return node is not None and node.arc >= 0 and bool(self.arcs.is_stop[node.arc])

    def _unit_goes_on(self, node: Node, is_space: bool) -> tuple[bool, bool]:
        """Whether another cluster may join the unit, and whether another unit may begin."""
        rules = self.rules
        kind = int(self.kinds[node.arc]) if rules.adaptive else 0
        if kind == 1:
            return False, True
        if kind == 2:
            return True, True
        if rules.adaptive and node.place > 2:
            return rules.loose, True  # the space that ends a joined word
        if is_space:
            return rules.loose and node.place < rules.unit, True
        full = node.place >= rules.unit
        return not full, full or rules.adaptive or rules.drawn_apart or rules.loose

    def _candidates(self, node, canvas, charges, column, shift, allowed, place, lone, bound):
        arcs, reach = self.arcs, self.reach
        origin = reach + shift  # of the new arc, in the canvas
        if origin + PROBE > len(canvas):  # behind a wide gap: what was drawn is out of sight
            grown = np.zeros((origin + PROBE + arcs.reach_after, self.height), np.float32)
            grown[: len(canvas)] = canvas
            canvas = grown
            charges = self._charges(canvas, node.end)
        # the first columns of all arcs, against what is left when the ink of the last arc is taken away
        below = canvas[origin : origin + PROBE]
        seen = self.ink[node.end + origin : node.end + origin + PROBE]
        left = seen - self._drawn(below)
        energy = arcs.probe @ left.ravel()
        energy *= -2.0
        energy += arcs.probe_energy
        energy += arcs.probe_inside @ np.einsum("cr,cr->c", left, left)
        settled = node.cost + float(charges[reach:origin].sum() if shift >= 0 else -charges[origin:reach].sum())
        # before the bound, what ink of the new arc could still explain in the columns before it is taken off
        recharged = float(charges[max(0, origin - arcs.reach_before) : origin].sum()) if arcs.reach_before else 0.0
        limit = bound - settled + recharged
        chosen = energy <= max(limit, 0.0)
        if allowed is not None:
            chosen &= allowed
        candidates = chosen.nonzero()[0]
        most = self.settings.most
        if len(candidates) == 0:
            if columns_left := self.last - column:
                usable = energy if allowed is None else np.where(allowed, energy, np.inf)
                candidates = np.argsort(usable)[:4] if columns_left > 0 else candidates
                candidates = candidates[np.isfinite(usable[candidates])]
            if len(candidates) == 0:
                return
        elif len(candidates) > most:
            score = energy[candidates] + self.prices[candidates]
            candidates = candidates[np.argpartition(score, most)[:most]]
        costs = self._whole(node, canvas, charges, candidates, origin) + settled + self.prices[candidates]
        good = costs <= max(bound, float(costs.min()))
        weights = arcs.weight[candidates[good]].tolist() if self.rules.unit and not self.rules.drawn_apart else None
        for i, (arc, cost) in enumerate(zip(candidates[good].tolist(), costs[good].tolist(), strict=True)):
            yield arc, cost, column, place + (weights[i] - 1 if weights else 0), lone

    def _whole(self, node, canvas, charges, candidates, origin) -> np.ndarray:
        """Cost of whole pictures over the columns up to their advance, less what those before the origin had cost."""
        arcs = self.arcs
        before = int(arcs.before[candidates].max())
        advances = arcs.advance[candidates]
        width = before + int(advances.max())
        first = origin - before
        columns = np.arange(width)
        offset = arcs.before[candidates] - before  # the first column of the window, in the picture
        at = columns + offset[:, None]
        inside = (at >= 0) & (at < arcs.size[candidates][:, None])
        ink = arcs.flat[np.where(inside, at + arcs.start[candidates][:, None], 0)]
        ink *= inside[:, :, None]
        below = canvas[max(0, first) : first + width]
        if len(below):
            ink[:, max(0, -first) : max(0, -first) + len(below)] += below
        seen = self.ink[node.end + first : node.end + first + width]
        difference = self._drawn(ink) - seen
        each = np.einsum("ncr,ncr->nc", difference, difference)
        each *= columns < (advances + before)[:, None]
        return each.sum(1) - float(charges[first:origin].sum())


def posteriors(arcs: Arcs, ink: np.ndarray, path: list[Node], weight: float) -> list[float]:
    """Of each arc of a path, its probability among all arcs of its advance, everything around it being as found.

    ink: float32 [columns, rows]; weight: nats of a unit of energy. Arcs with the same text do not compete.
    """
    left, right = arcs.reach_before, arcs.reach_after + arcs.widest
    shown = np.zeros((left + len(ink) + right, ink.shape[1]), np.float32)
    shown[left : left + len(ink)] = ink
    drawn = np.zeros_like(shown)
    spans = []
    for node in path:
        at = left + node.start - int(arcs.before[node.arc])
        part = arcs.flat[arcs.start[node.arc] : arcs.start[node.arc] + arcs.size[node.arc]][: max(0, len(drawn) - at)]
        drawn[at : at + len(part)] += part
        spans.append((at, part))
    found = []
    for node, (at, part) in zip(path, spans, strict=True):
        drawn[at : at + len(part)] -= part
        rivals = np.flatnonzero(arcs.advance == arcs.advance[node.arc])
        before, width = int(arcs.before[rivals].max()), int((arcs.size - arcs.before)[rivals].max())
        first = left + node.start - before
        columns = np.arange(before + width) + (arcs.before[rivals] - before)[:, None]
        inside = (columns >= 0) & (columns < arcs.size[rivals][:, None])
        pictures = arcs.flat[np.where(inside, columns + arcs.start[rivals][:, None], 0)] * inside[:, :, None]
        window = shown[first : first + before + width]
        pictures = pictures[:, : len(window)] + drawn[first : first + len(window)]
        pictures = (pictures > 0.5) if arcs.binary else np.minimum(pictures, 1.0)
        nats = weight * ((pictures - window) ** 2).sum((1, 2)) + arcs.rarity[rivals]
        own = float(nats[rivals == node.arc][0])
        found.append(float(1 / np.exp(np.clip(own - nats, -60, 60)).sum()))
        drawn[at : at + len(part)] += part
    return found
