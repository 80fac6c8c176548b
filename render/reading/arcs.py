"""The pictures of clusters, in arrays: what the search lays over a strip.

An arc is a picture with an advance. Clusters that look the same share one: which text it stands for is decided later,
by what stands beside it. A picture covers the columns of its own box, origin to advance, and the ink that leaves the
box on either side; inks of neighbours add up, as they do in a strip.
"""

import unicodedata
from collections.abc import Sequence
from copy import copy

import numpy as np

from render.face import Bitmap
from render.fonts import Chain
from render.graphemes import boundaries
from render.layouts.sentences import STOPS
from render.reading.clusters import Drawn, rarity

PROBE = 5  # columns by which candidates are picked, before whole pictures are compared
_WIDEST_OVERHANG = 24
_PLAIN = 2.0  # nats


class Arcs:
    """Pictures of clusters. baselines: the row on which the letters of each font of the chain stand.

    Ink is float32, 0 = paper, 1 = full. `flat` holds the columns of all pictures one after another [columns, rows];
    picture a has the columns start[a] to start[a] + size[a], and its origin is before[a] columns in.
    """

    def __init__(self, drawn: Sequence[Drawn], chain: Chain, baselines: Sequence[int], height: int, binary: bool):
        self.binary = binary
        inks: dict[tuple[int, int], Bitmap] = {}
        found: dict[tuple, int] = {}
        pictures: list[np.ndarray] = []
        shapes: list[tuple[int, int]] = []
        self.members: list[list[Drawn]] = []
        for cluster in drawn:
            picture = _picture(cluster, chain, inks, baselines[cluster.face], height, 128 if binary else 1)
            if picture is None:
                continue
            ink, before, advance = picture
            is_space = cluster.text == " "
            key = (ink.tobytes(), before, advance, cluster.face if is_space else -1)
            at = found.get(key)
            if at is None:
                found[key] = len(pictures)
                pictures.append(ink)
                shapes.append((before, advance))
                self.members.append([cluster])
            elif all(member.text != cluster.text for member in self.members[at]):
                self.members[at].append(cluster)
        for members in self.members:
            members.sort(key=lambda cluster: (rarity(cluster.text), cluster.text))
        self.size = np.array([len(ink) for ink in pictures], np.int32)
        self.start = np.cumsum(self.size, dtype=np.int32) - self.size
        self.before = np.array([before for before, _ in shapes], np.int32)
        self.advance = np.array([advance for _, advance in shapes], np.int32)
        self.after = self.size - self.before - self.advance
        self.flat = (np.concatenate(pictures) if pictures else np.zeros((0, height), np.uint8)) * np.float32(1 / 255)
        self.rarity = np.array([rarity(members[0].text) for members in self.members], np.float32)
        self.is_space = np.array([members[0].text == " " for members in self.members], bool)
        self.is_stop = np.array([any(c.text[-1] in STOPS for c in members) for members in self.members], bool)
        self.face = np.array([members[0].face for members in self.members], np.int32)
        self.weight = np.array([_graphemes(members[0].text) for members in self.members], np.int32)
        self.rtl = np.array([members[0].rtl for members in self.members], bool)
        self._probe()
        self.reach_before = int(self.before.max(initial=0))
        self.reach_after = int(self.after.max(initial=0))
        self.widest = int(self.advance.max(initial=1))

    def _probe(self) -> None:
        """The first columns inside each box, as the search compares them."""
        columns = np.arange(PROBE)
        inside = columns < self.advance[:, None]
        at = np.where(inside, (self.start + self.before)[:, None] + columns, 0)
        probes = self.flat[at] * inside[:, :, None] if len(self) else np.zeros((0, PROBE, 1), np.float32)
        if self.binary:
            probes = (probes > 0.5).astype(np.float32)
        self.probe = np.ascontiguousarray(probes.reshape(len(self), -1))
        self.probe_inside = inside.astype(np.float32)
        self.probe_energy = (self.probe**2).sum(1)

    def cut(self, first: int, height: int) -> "Arcs":
        """The same pictures on fewer rows, from row `first` on: on another baseline."""
        if first == 0 and height == self.flat.shape[1]:
            return self
        arcs = copy(self)
        arcs.flat = np.ascontiguousarray(self.flat[:, first : first + height])
        arcs._probe()
        return arcs

    def __len__(self) -> int:
        return len(self.members)

    def texts(self, arc: int) -> list[str]:
        return [member.text for member in self.members[arc]]


def _picture(
    cluster: Drawn, chain: Chain, inks: dict[tuple[int, int], Bitmap], baseline: int, height: int, visible: int
) -> tuple[np.ndarray, int, int] | None:
    """Ink uint8 [columns, rows], columns before the origin, and advance; None if it takes no room or far too much.

    visible: the least ink that shows.
    """
    advance = sum(glyph.advance for glyph in cluster.glyphs)
    if advance <= 0:
        return None
    left, right, x = 0, advance, 0
    parts = []
    for glyph in cluster.glyphs:
        ink = inks.get((cluster.face, glyph.id))
        if ink is None:
            ink = inks[cluster.face, glyph.id] = chain.faces[cluster.face].bitmap(glyph.id)
        if ink.coverage.size:
            at = x + glyph.x + ink.left
            parts.append((ink.coverage, at, baseline - glyph.y - ink.top))
            left, right = min(left, at), max(right, at + ink.coverage.shape[1])
        x += glyph.advance
    if -left > _WIDEST_OVERHANG or right - advance > _WIDEST_OVERHANG:
        return None
    canvas = np.zeros((right - left, height), np.uint16)
    for coverage, at, top in parts:
        first, last = max(0, -top), min(len(coverage), height - top)
        if first < last:
            canvas[at - left : at - left + coverage.shape[1], top + first : top + last] += coverage[first:last].T
    if not canvas.any() and rarity(cluster.text) > _PLAIN:
        return None  # cut off altogether; only what is common is worth reading from a gap
    ink = np.minimum(canvas, 255).astype(np.uint8)
    # what leaves the box and cannot be seen (rows cut off, grey too light for a binary strip) is no overhang
    if left < 0 and not (ink[:-left] >= visible).any():
        ink, left = ink[-left:], 0
    if right > advance and not (ink[advance - left :] >= visible).any():
        ink = ink[: advance - left]
    return ink, -left, advance


def _graphemes(text: str) -> int:
    """Grapheme clusters that a cluster adds: a ligature several, half a syllable that joins what is beside it none."""
    count = len(boundaries(text))
    follows = unicodedata.category(text[0])[0] == "M"
    joins = len(text) > 1 and len(boundaries(text + text[0])) == count
    return max(0, count - follows - joins)


def melts(one: Drawn, two: Drawn, kerned: int, chain: Chain, binary: bool) -> bool:
    """Whether two clusters, the second moved by kerning, draw something else than each by itself: inks that add up to
    more than full, or two light greys to what a binary strip shows. The search takes such a pair as one cluster.
    """
    inks: dict[tuple[int, int], Bitmap] = {}
    height = baseline = 64  # room enough for both, whatever the strip
    first = _picture(one, chain, inks, baseline - 16, height, 1)
    second = _picture(two, chain, inks, baseline - 16, height, 1)
    if first is None or second is None:
        return False
    (a, before_a, advance), (b, before_b, _) = first, second
    start = before_a + advance + kerned - before_b  # of the second picture, in that of the first
    if start < 0 or start >= len(a):
        return False
    shared = a[start : start + len(b)].astype(np.int32), b[: len(a) - start].astype(np.int32)
    total = shared[0] + shared[1]
    if binary:
        return bool(((total > 127) & (shared[0] <= 127) & (shared[1] <= 127)).any())
    return bool((total > 255).any())
