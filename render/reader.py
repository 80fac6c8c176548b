"""The reader: pixels in, text out. The way back from a strip to the text that it shows.

    reader = Reader(config)
    reading = reader(strip.pixels)
    reading.text, reading.confidence, reading.readable

Reading our own strips is not recognition: every pixel comes from fonts that are at hand. So the reader looks for the
string whose drawing leaves the least of a strip unexplained (reading/search.py), draws what it found with the renderer,
and compares. On clean strips the two are equal, and then the answer is not likely but certain: no other text could be
told from it. What noise leaves open is settled by how common a character is, and by nothing else: no dictionary, no
model of a language hides the mistakes of whoever made the pixels.

A strip that shows no text is recognised by what stays unexplained, as a share of its ink.
"""

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from render.config import PADDED, RenderConfig
from render.errors import RenderError
from render.reading.arcs import Arcs
from render.reading.clusters import Drawn, characters_of, default_scripts
from render.reading.exact import find_exact
from render.reading.inventory import Inventory
from render.reading.order import logical_orders, text_in_order
from render.reading.search import Found, Node, Rules, Settings, posteriors, search
from render.reading.windows import Seen, Windows
from render.renderer import Renderer
from render.scripts import script_of

# Share of the ink that may stay unexplained in what counts as readable: `python -m benchmarks.reading --calibrate`
UNEXPLAINED = 0.36
# of what is no text, at that threshold: how much of it passes for readable. None of 600 strips of each kind did
# (`python -m benchmarks.reading --noise --noise-lines 100`), so that the rates are below 0.7 % with 95 % confidence
FALSE_READABLE = {"uniform noise": 0.0, "columns shuffled": 0.0}
_BLACK = 0.8  # mean ink of a separator; noise lightens it, no letter is that dark


@dataclass(frozen=True)
class Character:
    """One cluster that was read."""

    text: str
    column: int  # px from the left edge of the strip to its origin
    confidence: float  # 0 to 1


@dataclass(frozen=True)
class Reading:
    """What a strip says. Two texts for a pair, else one."""

    texts: tuple[str, ...]
    unexplained: float  # energy that the drawing of the text leaves, as a share of that of the ink
    exact: bool  # the renderer draws this text as exactly these pixels
    readable: bool  # whether this is text at all
    _confidences: "functools.partial[tuple[Character, ...]]" = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The text; of a pair, both with a line break between them."""
        return "\n".join(self.texts)

    @property
    def confidence(self) -> float:
        """Of the line, 0 to 1: the share of the ink that the text explains."""
        return max(0.0, 1.0 - self.unexplained)

    @functools.cached_property
    def characters(self) -> tuple[Character, ...]:
        """The clusters from left to right, each with its posterior among all that would fit its place."""
        return self._confidences()


class Reader:
    """Reads strips of one configuration, in any layout. Raises RenderError for what no strip of it can be.

    alphabet: characters that may occur; scripts: ISO 15924 codes, whose characters the fonts are asked for; neither:
    Latin, Greek, Cyrillic and the script that each font is for (Han, kana and Hangul if the first font has Han).
    sample: texts whose clusters are known besides, such as rare conjuncts.
    """

    def __init__(
        self,
        config: RenderConfig,
        alphabet: str | None = None,
        scripts: Sequence[str] | None = None,
        sample: Sequence[str] = (),
    ):
        if alphabet is not None and scripts is not None:
            raise RenderError("alphabet and scripts: give one of them")
        self.config, self._given = config, (config, alphabet, scripts, tuple(sample))
        self._renderer = Renderer(config)
        setter = self._renderer.setter
        if alphabet is not None:
            characters = sorted({*unicodedata.normalize("NFC", alphabet), *alphabet, " "})
        else:
            characters = characters_of(setter.chain, scripts or default_scripts(setter.chain))
        self._known = Inventory(config, setter, characters, sample, all_marks=alphabet is None)
        self._window_readers: dict[int | None, Windows] = {}

    def __reduce__(self):
        return (Reader, self._given)

    def __call__(self, pixels: np.ndarray) -> Reading:
        """Read a strip: uint8 [height, width] or [height, width, 3], 0 = ink, 255 = paper, with its end patch or not.

        Raises RenderError if it is no such array.
        """
        ink = self._ink(pixels)
        ends, has_end = self._separators(ink)
        texts, unexplained, total, exact = [], 0.0, 0.0, True
        parts: list[tuple[Arcs, np.ndarray, Found]] = []
        first = 0
        for end, is_black in zip(ends, [*[True] * (len(ends) - 1), has_end], strict=True):
            text, found, arcs = self._read(ink, first, end, is_black)
            texts.append(text)
            parts.append((arcs, ink[:end], found))
            unexplained += found.energy
            total += float((ink[first:end] ** 2).sum())
            first = end + self.config.patch_width
        share = unexplained / total if total else 0.0
        exact = total > 0 and self._is_exact(texts, ink, ends[-1])
        readable = exact or (total > 0 and any(texts) and share <= UNEXPLAINED)
        return Reading(tuple(texts), share, exact, readable, functools.partial(self._characters, parts))

    def read_windows(
        self, strips: Sequence[np.ndarray], windows: Sequence[tuple[int, int, int]]
    ) -> list[tuple[Seen, ...]]:
        """Read parts of strips of one text each, in spite of blur, with the clusters of the parts from left to right.

        strips: as for a call. windows: (which strip, first patch, patch after the last), looked at beyond their edges
        where letters reach over them. Black patches count as paper. It is fast, and never exact: a strip of the
        renderer is better read by a call. Spaces that move nothing, such as one that ends a patch, may be left out
        (reading/windows.py).
        """
        config, known = self.config, self._known
        patch = config.patch_width
        inks = [np.ascontiguousarray(self._shades(pixels)) for pixels in strips]
        for ink in inks:
            count = len(ink) // patch
            black = ink[: count * patch].reshape(count, -1).mean(1) > _BLACK
            ink[: count * patch].reshape(count, -1)[black] = 0
        columns = [(strip, first * patch, last * patch) for strip, first, last in windows]
        pad = config.pad if config.layout in PADDED else 0
        best: list[tuple[Seen, ...]] = [()] * len(windows)
        totals = np.full(len(strips), -np.inf)
        which = np.array([strip for strip, _, _ in windows], np.int64)
        for baseline in known.pictures():
            found, gains = self._windows(baseline, pad).read(inks, columns, patch, pad)
            sums = np.bincount(which, gains, len(strips))
            for i in np.flatnonzero(sums[which] > totals[which]).tolist():
                best[i] = tuple(found[i])
            totals = np.maximum(totals, sums)
        return best

    def _windows(self, baseline: int | None, pad: int) -> Windows:
        if baseline not in self._window_readers:
            known, arcs = self._known, self._known.pictures()[baseline]
            kerning = functools.partial(known.kerning, baseline, arcs)
            self._window_readers[baseline] = Windows(arcs, self._rules(pad), kerning, known.kinds(baseline, arcs))
        return self._window_readers[baseline]

    def prepare(self) -> None:
        """Draw the pictures of all clusters now; otherwise the first strip waits for them."""
        self._known.pictures()

    # ---- what is given -----------------------------------------------------------------------------------------------

    def _ink(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [columns, rows], 1 = full ink; of binary strips 0 and 1 only."""
        shades = self._shades(pixels)
        return (shades > 0.5).astype(np.float32) if self.config.color == "binary" else shades

    def _shades(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [columns, rows], 1 = full ink."""
        pixels = np.asarray(pixels)
        height = self.config.height
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise RenderError(f"cannot read {pixels.dtype} {list(pixels.shape)}; give uint8 [height, width] or [.., 3]")
        if pixels.shape[0] != height:
            raise RenderError(
                f"strip of {pixels.shape[0]} rows, render.height = {height}: give the settings it was drawn with"
            )
        if pixels.shape[1] == 0:
            raise RenderError("strip of 0 columns: nothing to read")
        if pixels.ndim == 3:  # the brightness that the renderer gives to colours, ITU-R BT.601
            pixels = (pixels.astype(np.int32) @ np.array([299, 587, 114]) // 1000).astype(np.uint8)
        return (255 - pixels.T) * np.float32(1 / 255)

    def _separators(self, ink: np.ndarray) -> tuple[list[int], bool]:
        """Columns at which the texts end, and whether the last of them is that of an end patch."""
        patch = self.config.patch_width
        count = len(ink) // patch
        darkness = ink[: count * patch].reshape(count, -1).mean(1) if count else np.zeros(0)
        black = np.flatnonzero(darkness > _BLACK)
        if patch * self.config.height < 64:  # a patch of few pixels can be dark by chance, or a part of a letter
            black = np.flatnonzero(darkness > 0.99)
        if len(black) == 0:
            rest = ink[count * patch :]  # of an end patch that was cut
            cut = len(rest) > 1 and float(rest.mean()) > _BLACK
            return [count * patch if cut else len(ink)], cut
        first = int(black[0])
        if first + 1 in black or not ink[(first + 1) * patch :].any():
            return [first * patch], True
        second = int(black[1]) * patch if len(black) > 1 else len(ink)
        if not ink[(first + 1) * patch : second].any():
            return [first * patch], True
        return [first * patch, second], len(black) > 1

    # ---- one text ----------------------------------------------------------------------------------------------------

    def _read(self, ink: np.ndarray, first: int, last: int, has_end: bool) -> tuple[str, Found, Arcs]:
        config, known = self.config, self._known
        patch = config.patch_width
        ink, pixels = ink[first:last], (last - first) * config.height
        pad = config.pad if config.layout == "continuous" or (config.layout in PADDED and first == 0) else 0
        tail = config.pad if config.layout in PADDED else 0
        last -= first

        def fits_end(x: int) -> bool:
            return (
                not has_end
                or -(-(x + tail) // patch) * patch == last
                or (x > last - tail and config.overflow == "clip")
            )

        rules = self._rules(pad)
        if not ink.any():
            return "", Found([], 0.0), next(iter(self._known.pictures().values()))
        for baseline, arcs in known.pictures().items():
            lanes, kinds = known.lanes(baseline, arcs), known.kinds(baseline, arcs).tolist()
            moves_by = functools.partial(known.moves_by, arcs)
            exact = find_exact(lanes, ink, pad, last, rules, moves_by, kinds, fits_end)
            if exact is not None:
                found = Found(exact, 0.0)
                text = self._text(arcs, found, ink, fits_end)
                return text, Found([_shifted(node, first) for node in exact], 0.0), arcs
        clean = Settings(margin=3.0, keep=8, most=32, price=1e-4)
        best: tuple[float, int | None, Arcs, Found] | None = None
        for baseline, arcs in known.pictures().items():
            found = self._search(baseline, ink, pad, last, rules, clean, fits_end)
            if best is None or found.energy < best[0] - 1e-6:
                best = (found.energy, baseline, arcs, found)
            if found.energy < 1e-3:
                break
        assert best is not None
        energy, baseline, arcs, found = best
        if energy > 1e-3:
            price = 1 / self._weight(energy / pixels)
            noisy = Settings(margin=4 + 12 * price, keep=6, most=32, price=price)
            prior = self._prior(arcs, found)
            found = self._search(baseline, ink, pad, last, rules, noisy, fits_end, prior)
        text = self._text(arcs, found, ink, fits_end)
        moved = [_shifted(node, first) for node in found.path]
        return text, Found(moved, found.energy), arcs

    def _rules(self, pad: int) -> Rules:
        config, known = self.config, self._known
        unit = {"bigrams": 2, "adaptive": 2}.get(config.layout, 0)
        edges = 0 if config.layout == "continuous" else config.patch_width
        adaptive, sentences = config.layout == "adaptive", config.layout == "sentences"
        return Rules(edges, unit, pad, known.apart, adaptive, known.loose, sentences)

    def _weight(self, energy: float) -> float:
        """Nats of a unit of energy, at a mean energy of a pixel. Binary: flips; grey: normal noise of that variance."""
        if self.config.color == "binary":
            share = min(0.3, max(0.003, energy))
            return math.log((1 - share) / share)
        return 1 / (2 * max(3e-4, energy))

    def _search(self, baseline, ink, pad, last, rules, settings, fits_end, prior=None) -> Found:
        arcs = self._known.pictures()[baseline]
        kinds = self._known.kinds(baseline, arcs)
        return search(
            arcs,
            ink,
            pad,
            last,
            rules,
            settings,
            functools.partial(self._known.kerning, baseline, arcs),
            kinds,
            fits_end,
            arcs.rarity if prior is None else prior,
        )

    def _prior(self, arcs: Arcs, found: Found) -> np.ndarray:
        """How surprising each arc is in a line, in nats: other scripts than that of most of its letters are so."""
        counts: dict[str, float] = {}
        for node in found.path:
            for script in {script_of(member.text[0]) for member in arcs.members[node.arc]} - {None}:
                counts[script] = counts.get(script, 0) + 1 / (1 + arcs.rarity[node.arc])  # type: ignore[index]
        if not counts:
            return arcs.rarity
        main = max(counts, key=lambda script: counts[script])
        kin = _WRITTEN_TOGETHER.get(main, (main,))
        other = [all(script_of(m.text[0]) not in (None, *kin) for m in members) for members in arcs.members]
        return arcs.rarity + np.float32(_OTHER_SCRIPT) * np.array(other, np.float32)

    def _is_exact(self, texts: Sequence[str], ink: np.ndarray, last: int) -> bool:
        patches = max(2, last // self.config.patch_width + 2)
        strip = self._renderer(texts[0] if len(texts) == 1 else (texts[0], texts[1]), patches)
        drawn = self._ink(strip.pixels)
        if self.config.overflow == "clip" and len(drawn) > last:
            drawn = drawn[:last]
        end = min(last, len(drawn))
        return (
            len(drawn) - self.config.patch_width <= last
            and bool((drawn[:end] == ink[:end]).all())
            and not ink[end:last].any()
        )

    # ---- from arcs to a text -----------------------------------------------------------------------------------------

    def _text(self, arcs: Arcs, found: Found, ink: np.ndarray, fits_end) -> str:
        chosen = _in_one_script([arcs.members[node.arc] for node in found.path])
        clusters: list[Drawn | None] = []
        words_end = self.config.layout in ("words", "sentences")
        for i, node in enumerate(found.path):
            if self._known.apart and i and node.place == 1 and found.path[i - 1].place == 1:
                clusters.append(None)
            clusters.append(chosen[i])
        texts = [" " if cluster is None else cluster.text for cluster in clusters]
        rtl = [bool(cluster and cluster.rtl) for cluster in clusters]
        if not any(rtl):
            return _composed("".join(texts))
        best, least = "", np.inf
        for order in logical_orders(list(zip(texts, rtl, strict=True)), self.config.direction):
            text = _composed(text_in_order(texts, rtl, order))
            if words_end:
                text = " ".join(text.split())
            differs = self._difference(text, ink)
            if differs < least:
                best, least = text, differs
            if differs < 1e-3:
                break
        return best

    def _difference(self, text: str, ink: np.ndarray) -> float:
        drawn = self._ink(self._renderer(text, max(2, len(ink) // self.config.patch_width + 8)).pixels)
        drawn = drawn[: -self.config.patch_width]
        common = min(len(drawn), len(ink))
        rest = float((drawn[common:] ** 2).sum()) + float((ink[common:] ** 2).sum())
        return rest + float(((drawn[:common] - ink[:common]) ** 2).sum())

    def _characters(self, parts: Sequence[tuple[Arcs, np.ndarray, Found]]) -> tuple[Character, ...]:
        characters = []
        for arcs, ink, found in parts:
            weight = self._weight(found.energy / max(1, ink.size))
            chosen = _in_one_script([arcs.members[node.arc] for node in found.path])
            values = posteriors(arcs, ink, found.path, weight)
            for node, cluster, value in zip(found.path, chosen, values, strict=True):
                characters.append(Character(cluster.text, node.start, value))
        return tuple(characters)


# scripts that one text uses side by side, by the one that it uses most
_WRITTEN_TOGETHER: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("Hani", "Hira", "Kana", "Hang"), ("Hani", "Hira", "Kana", "Hang", "Bopo")
)
_OTHER_SCRIPT = 8.0  # nats


def _shifted(node: Node, by: int) -> Node:
    """An arc of a second text, by its columns in the whole strip."""
    if by:
        node.start += by
        node.end += by
    return node


def _in_one_script(members: Sequence[Sequence[Drawn]]) -> list[Drawn]:
    """One cluster of each place: in each word those of the script in which most of it can be written."""
    chosen = [choices[0] for choices in members]
    line: dict[str, int] = {}
    for choices in members:
        for script in {script_of(cluster.text[0]) for cluster in choices} - {None}:
            line[script] = line.get(script, 0) + (3 if len(choices) == 1 else 1)  # type: ignore[index]
    start = 0
    for i in range(len(members) + 1):
        if i < len(members) and chosen[i].text != " ":
            continue
        word = range(start, i)
        start = i + 1
        counts: dict[str, int] = {}
        for at in word:
            for script in {script_of(cluster.text[0]) for cluster in members[at]} - {None}:
                counts[script] = counts.get(script, 0) + 1  # type: ignore[index]
        if not counts:
            continue
        script = max(counts, key=lambda name: (counts[name], line[name], name == "Latn"))
        for at in word:
            if script_of(chosen[at].text[0]) not in (script, None):
                chosen[at] = next((c for c in members[at] if script_of(c.text[0]) == script), chosen[at])
    return chosen


def _composed(text: str) -> str:
    """The text without the joiners and strokes that were only there to draw its forms."""
    return unicodedata.normalize("NFC", text)
