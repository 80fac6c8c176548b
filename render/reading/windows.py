"""Parts of strips read in spite of blur: what a model has painted over hidden patches, between patches that are known.

search.py looks for the drawing that explains every pixel, and the less of them can be explained the wider it looks:
on painted patches, soft and half wrong, that takes seconds. Here the question is narrower, and so is the answer: the
string of clusters that lies closest to a window of a strip, found at a price that does not depend on how blurred it is.

The squared distance between a strip I and a drawing of pictures P, added up, is

    |I - P1 - P2 - ...|^2  =  |I|^2  -  sum over k of (2 <I, Pk> - |Pk|^2)  +  2 <P1, P2> + ...

and the products of different pictures are next to nothing if each is cut to its box, from origin to advance: boxes
stand side by side. What leaves the box, the tail of a j, then goes unexplained, whichever letter it is. So each picture
at each column has a gain of its own, 2 <I, P> - |P|^2, all of them come out of one product of matrices, and the best
string is the chain with the greatest sum: Viterbi's algorithm over columns, many windows at once. A chain obeys what
the font and the layout ask: advances, kerning between the clusters that a column is most likely to end with, units
that begin at patch edges. How common a cluster is counts as it does in search.py: in nats, at the price that the noise
of the window sets, which a first round measures.

A window begins and ends anywhere in a text, so a chain may begin and end within `slack` columns of its edges, and sees
the ink there. Columns that nothing fits may be skipped, at a price.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from render.reading.arcs import Arcs
from render.reading.exact import KERN_REACH
from render.reading.search import Rules

_NONE = np.float32(-1e9)
_SKIP = 6.0  # nats for a column that is left to nothing
_LEAST_NOISE = 3e-4  # squared error of a pixel below which nothing is called noise, as in search.py
_ENDS = 4  # clusters with which a column may end, of those that kern
_ELEMENTS = 6_000_000  # of one array: windows are taken so many at a time
_WIDTHS = (4, 6, 8, 10, 12, 16, 24, 32, 64, 128, 1 << 30)  # pictures of like width go through one product


@dataclass(frozen=True)
class Seen:
    """One cluster in a window. texts: all that look like this, the likeliest first."""

    texts: tuple[str, ...]
    column: int  # px from the left edge of the strip to its origin


class Windows:
    """Reads windows with the pictures of one baseline.

    kerning: of an arc, px by which it moves the next one and which arcs (bool [arcs]) it moves so, as search.py has it.
    """

    def __init__(
        self,
        arcs: Arcs,
        rules: Rules,
        kerning: Callable[[int], list[tuple[int, np.ndarray | None]]],
        kinds: np.ndarray,
    ):
        self.arcs, self.rules, self.height = arcs, rules, arcs.flat.shape[1]
        # two clusters as one picture are for inks that do not add up; here they would only stand for their parts
        pairs = [w > 1 and len(m[0].glyphs) > 1 for w, m in zip(arcs.weight.tolist(), arcs.members, strict=True)]
        self.chosen = np.flatnonzero(~np.array(pairs, bool))
        count = len(self.chosen)
        # the last arc is one blank column
        self.advance = np.append(arcs.advance[self.chosen], 1).astype(np.int64)
        self.nats = np.append(arcs.rarity[self.chosen] + 1.0, _SKIP).astype(np.float32)
        self.groups = self._pictures()
        self.shift = np.zeros((count + 1, count + 1), np.int64)
        for row, arc in enumerate(self.chosen.tolist() if not rules.drawn_apart else []):
            for moved, which in kerning(arc):
                if which is not None and moved:
                    self.shift[row, :-1][which[self.chosen]] = moved
        self.unmoved = self.shift == 0
        self.kerns = not self.unmoved.all()
        self.before = np.append(arcs.before[self.chosen] * (not rules.drawn_apart), 0)
        self.starts = np.unique(self.before).tolist()
        kind = np.append(kinds[self.chosen], 0)
        space = np.append(arcs.is_space[self.chosen], False)
        # which arcs may be followed on their own patch, as the first of it and as a later one
        self.goes_on = np.ones((1, count + 1), bool)
        if rules.unit:
            first = (~space | rules.loose) & (kind != 1)
            self.goes_on = np.stack([first, first & (kind == 2)])

    def _pictures(self) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Of boxes of like width: the widest, which they are, twice their pictures as a matrix, and their |P|^2."""
        arcs = self.arcs
        found: dict[int, list[tuple[int, int]]] = {}
        for row, arc in enumerate(self.chosen.tolist()):
            found.setdefault(next(w for w in _WIDTHS if arcs.advance[arc] <= w), []).append((row, arc))
        groups = []
        for members in found.values():
            width = max(int(arcs.advance[arc]) for _, arc in members)
            pictures = np.zeros((len(members), width, self.height), np.float32)
            for place, (_, arc) in enumerate(members):
                begin = int(arcs.start[arc] + arcs.before[arc])
                pictures[place, : int(arcs.advance[arc])] = arcs.flat[begin : begin + int(arcs.advance[arc])]
            if arcs.binary:
                pictures = (pictures > 0.5).astype(np.float32)
            flat = pictures.reshape(len(members), -1)
            rows = np.array([row for row, _ in members])
            groups.append((width, rows, np.ascontiguousarray(2 * flat.T), (flat**2).sum(1)))
        return groups

    def read(
        self, inks: Sequence[np.ndarray], windows: Sequence[tuple[int, int, int]], patch: int, pad: int
    ) -> tuple[list[list[Seen]], np.ndarray]:
        """Clusters of each window from left to right, and the gain of each window.

        inks: float32 [columns, rows], 1 = ink, of strips. windows: strip, first column, last column + 1, at patch
        edges. patch: px; pad: px before a text.
        """
        found: list[list[Seen]] = [[] for _ in windows]
        gains = np.zeros(len(windows))
        order = sorted(range(len(windows)), key=lambda i: windows[i][2] - windows[i][1])
        states = len(self.advance) * len(self.goes_on)
        while order:
            length = windows[order[-1]][2] - windows[order[-1]][1]
            number = max(1, _ELEMENTS // ((length + 4 * self.slack) * states))
            batch = [i for i in order[-number:] if windows[i][2] - windows[i][1] > 0.7 * length - self.slack]
            order = order[: -len(batch)]
            run = _Run(self, inks, [windows[i] for i in batch], patch, pad)
            noise = np.full(len(batch), _LEAST_NOISE)
            for _ in range(2):
                run.go(2 * noise)
                noise = np.maximum(_LEAST_NOISE, run.noise())
            for i, place in enumerate(batch):
                found[place] = [self._seen(arc, column) for arc, column in run.path(i) if arc < len(self.chosen)]
                gains[place] = run.gain[i]
        return found, gains

    @property
    def slack(self) -> int:
        """Columns around the edges of a window within which a chain may begin and end."""
        return self.height // 2

    def _seen(self, row: int, column: int) -> Seen:
        return Seen(tuple(self.arcs.texts(int(self.chosen[row]))), column)


class _Run:
    """Some windows of like length. Arrays [columns, windows, arcs]; column 0 is `slack` before a window begins."""

    def __init__(self, reader: Windows, inks: Sequence[np.ndarray], windows: list, patch: int, pad: int):
        self.reader, self.patch = reader, patch
        slack, rules = reader.slack, reader.rules
        self.windows = windows
        self.origins = [first - slack for _, first, _ in windows]
        self.lengths = np.array([last - first for _, first, last in windows])
        self.columns = int(self.lengths.max()) + 2 * slack
        right = max((group[0] for group in reader.groups), default=0)
        # columns before all others, where nothing begins, so that what ends at a column can be looked up without asking
        self.margin = int(reader.advance.max()) + KERN_REACH
        self.ink = np.zeros((len(windows), self.columns + right, reader.height), np.float32)
        for i, (strip, _, _) in enumerate(windows):
            ink, begin = inks[strip], self.origins[i]
            part = ink[max(0, begin) : begin + self.ink.shape[1]]
            self.ink[i, max(0, -begin) : max(0, -begin) + len(part)] = part
        self.gains = self._gains()
        inside = np.arange(self.ink.shape[1])[None] - slack
        inside = (inside >= 0) & (inside < self.lengths[:, None])
        self.energy = (self.ink**2).sum(2)
        self.energy = (self.energy * inside).sum(1)
        # where chains begin: bool [columns, windows]
        self.roots = np.zeros((self.columns, len(windows)), bool)
        for i, (_, first, _) in enumerate(windows):
            if first == 0:
                self.roots[slack + pad, i] = True
            elif rules.unit or rules.edges:
                self.roots[slack, i] = True
            else:
                self.roots[: 2 * slack + 1, i] = True

    def _gains(self) -> np.ndarray:
        reader, count = self.reader, len(self.windows)
        gains = np.zeros((self.margin + self.columns, count, len(reader.advance)), np.float32)
        for width, rows, doubled, energy in reader.groups:
            step = self.ink.strides
            views = np.lib.stride_tricks.as_strided(
                self.ink,
                (self.columns, count, width * reader.height),
                (step[1], step[0], step[2]),
            )
            products = views.reshape(-1, width * reader.height) @ doubled
            gains[self.margin :, :, rows] = products.reshape(self.columns, count, -1) - energy
        return gains

    def go(self, price: np.ndarray) -> None:
        """Find the best chains. price: float [windows], gain that a nat costs."""
        reader, rules, slack = self.reader, self.reader.rules, self.reader.slack
        count, arcs = len(self.windows), len(reader.advance)
        cost = (price[:, None] * reader.nats).astype(np.float32)
        # of a chain to which an arc is to be added at a column: its gain, and the state that it comes from
        shape = (len(reader.goes_on), self.margin + self.columns + KERN_REACH, count, arcs)
        self.came, self.back = np.full(shape, _NONE, np.float32), np.full(shape, -1, np.int32)
        final, self.last = np.full(count, _NONE, np.float32), np.full(count, -1, np.int64)
        which = np.arange(count)
        cell = which[:, None] * arcs + np.arange(arcs)
        begun = cell - reader.advance * cell.size  # of the arcs that end at a column: where they begin
        rows, gains = self.came.reshape(len(self.came), -1), self.gains.reshape(-1)
        for x in range(self.columns):
            at = begun + (self.margin + x) * cell.size
            ended = rows.take(at, axis=1) + (gains.take(at) - cost)  # [places, windows, arcs]
            flat = ended.swapaxes(0, 1).reshape(count, -1)
            best = flat.argmax(1)
            value, state = flat[which, best], x * flat.shape[1] + best
            open_ends = (abs(x - slack - self.lengths) <= slack) & (value > final)
            final[open_ends], self.last[open_ends] = value[open_ends], state[open_ends]
            if self.roots[x].any():
                self._push_unit(x, np.where(self.roots[x], np.float32(0), _NONE), np.full(count, -1))
            if rules.edges:
                self._push_unit(-(-(x - slack) // self.patch) * self.patch + slack, value, state)
            for place, allowed in enumerate(reader.goes_on):
                ends = np.where(allowed, ended[place], _NONE)
                self._go_on(x, x * flat.shape[1] + place * arcs, ends, cell)
        self.gain = final
        reached = final > _NONE / 2
        self.last[~reached], self.gain[~reached] = -1, 0

    def _go_on(self, x: int, state: int, ends: np.ndarray, cell: np.ndarray) -> None:
        """Let chains that end at column x go on beside their last arc. ends: float32 [windows, arcs], their gains."""
        reader, which = self.reader, np.arange(len(ends))
        place = min(1, len(reader.goes_on) - 1)
        if not reader.kerns or ends.shape[1] <= _ENDS:
            best = ends.argmax(1)
            self._push(x, place, None, ends[which, best], state + best)
            return
        likeliest = np.argpartition(ends, -_ENDS, axis=1)[:, -_ENDS:]
        came, back = self.came[place].reshape(-1), self.back[place].reshape(-1)
        here = cell + (self.margin + x) * cell.size
        for arc in likeliest.T:
            value, source = ends[which, arc], (state + arc).astype(np.int32)
            self._push(x, place, reader.unmoved[arc], value, source)
            windows, others = np.nonzero(~reader.unmoved[arc])
            at = here[windows, others] + reader.shift[arc[windows], others] * cell.size
            better = came[at] < value[windows]
            at, windows = at[better], windows[better]
            came[at], back[at] = value[windows], source[windows]

    def _push_unit(self, column: int, value: np.ndarray, state: np.ndarray) -> None:
        """Let chains go on where a unit begins: each arc as far in as its ink reaches to the left."""
        reader = self.reader
        if len(reader.starts) == 1 or not reader.rules.unit:
            self._push(column, 0, None, value, state)
            return
        for before in reader.starts:
            self._push(column + before, 0, reader.before == before, value, state)

    def _push(self, column: int, place: int, arcs: np.ndarray | None, value: np.ndarray, state: np.ndarray) -> None:
        if 0 <= column < self.columns:
            old, back = self.came[place, self.margin + column], self.back[place, self.margin + column]
            better = old < value[:, None]
            if arcs is not None:
                better &= arcs
            np.copyto(old, value[:, None], where=better)
            np.copyto(back, state[:, None].astype(np.int32), where=better)

    def path(self, window: int) -> list[tuple[int, int]]:
        """Arcs of the best chain, and the columns of the strip where their origins stand."""
        reader, path = self.reader, []
        places, arcs = len(reader.goes_on), len(reader.advance)
        state = int(self.last[window])
        while state >= 0:
            end, rest = divmod(state, places * arcs)
            place, arc = divmod(rest, arcs)
            start = end - int(reader.advance[arc])
            path.append((arc, start + self.origins[window]))
            state = int(self.back[place, self.margin + start, window, arc])
        return path[::-1]

    def noise(self) -> np.ndarray:
        """Of each window, the mean squared error that its chain leaves in a pixel."""
        reader, left = self.reader, np.zeros(len(self.windows))
        for i, (_, first, last) in enumerate(self.windows):
            gain = sum(
                float(self.gains[self.margin + column - self.origins[i], i, arc])
                for arc, column in self.path(i)
                if first <= column < last
            )
            left[i] = max(0.0, float(self.energy[i]) - gain) / (reader.height * (last - first))
        return left
