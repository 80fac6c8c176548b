"""What a reader knows of its fonts: the clusters of an alphabet, their pictures on each baseline, and the kerning.

Everything is made when it is first needed and kept: pictures when the first strip comes, kerning of a pair when the two
are first seen side by side.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from render.config import RenderConfig
from render.fonts import FontFile
from render.layouts.adaptive import HANGUL, JOINING
from render.reading.arcs import Arcs, melts
from render.reading.clusters import Drawn, lines_of, rarity, shape, shape_line
from render.reading.exact import KERN_REACH, Lanes
from render.scripts import script_of
from render.tokens import ALONE
from render.typesetter import Typesetter

# scripts that kern letter by letter
_KERNED = {"Latn", "Grek", "Cyrl", "Armn", "Geor", "Hira", "Kana"}
_KERNED_RARITY = 5.0  # nats; clusters rarer than this are taken to be unkerned when a strip is noisy

_SMALL_SHIFTS = {-2, -1, 0, 1, 2}  # px by which kerning that is not asked for may move a cluster


class Inventory:
    """Clusters of some characters under one configuration.

    sample: texts whose clusters are known besides. all_marks: whether letters take all marks of their script, else
    those among the characters.
    """

    def __init__(
        self,
        config: RenderConfig,
        setter: Typesetter,
        characters: Sequence[str],
        sample: Sequence[str],
        all_marks: bool,
    ):
        self.config, self._setter, self._chain = config, setter, setter.chain
        # each code point is drawn by itself, as PIXEL-M4 did
        self.apart = config.layout == "bigrams" and config.unit == "code-point"
        self._kerns: dict[int, bool] = {}
        self._moved: dict[tuple[int, int, int], frozenset[int]] = {}
        self._pairs: dict[tuple[str, int, str, int], int | None] = {}
        self._partner_lists: dict[tuple, dict[str | None, tuple[np.ndarray, list[str]]]] = {}
        self._arcs: dict[int | None, Arcs] = {}
        self._lanes: dict[int | None, Lanes] = {}
        self._kinds: dict[int | None, np.ndarray] = {}
        self._kerning: dict[tuple[int | None, int], list[tuple[int, np.ndarray | None]]] = {}
        self._drawn: list[Drawn] = []
        self._drawn = self._collect(characters, sample, all_marks)
        self.loose = any(cluster.rtl for cluster in self._drawn)

    def _collect(self, characters: Sequence[str], sample: Sequence[str], all_marks: bool) -> list[Drawn]:
        chain = self._chain
        found: dict[tuple, Drawn] = {}
        if self.apart:
            lines = [(c, "ltr") for c in [*characters, *sorted(set("".join(sample)))]]
        else:
            lines = [(line, "rtl" if rtl else "ltr") for line, rtl in lines_of(characters, chain, all_marks)]
            lines += [(line, "auto") for text in sample for line in text.splitlines()]
        for line, base in lines:
            for cluster in shape_line(line, chain, base):
                # advances differ by kerning, which the search knows by itself, except where scripts join or stack
                ids = [glyph[:1] + glyph[3:] for glyph in cluster.glyphs]
                if cluster.rtl or (script_of(cluster.text[0]) or "Latn") not in _KERNED:
                    ids = cluster.glyphs
                if len(cluster.text) > 1 and cluster.text[-1] in "\u200c\u200d":
                    cluster = cluster._replace(text=cluster.text[:-1])  # a joiner that was there to show a half form
                found.setdefault((cluster.text, cluster.face, cluster.rtl, *ids), cluster)
        if not self.apart:
            for cluster in [part for whole in found.values() for part in _endings(whole, found)]:
                found.setdefault((cluster.text, cluster.face, cluster.rtl, *cluster.glyphs), cluster)
        self._drawn = list(found.values())
        return self._drawn + ([] if self.apart else self._melting())

    def _melting(self) -> list[Drawn]:
        """Pairs of common clusters whose inks do not simply add up."""
        binary = self.config.color == "binary"
        found = []
        for face, script in {(c.face, c.script) for c in self._drawn}:
            if not self._face_kerns(face) or script not in ("Latn", "Grek", "Cyrl"):
                continue
            common = [c for c in self._drawn if c.face == face and c.script == script and _is_common(c)]
            own = {c.text: sum(glyph.advance for glyph in c.glyphs) for c in common}
            by_text = {c.text: c for c in common}
            pairs = " ".join(a + b for a, b in product(own, own))
            for pair in shape_line(pairs, self._chain, "ltr"):
                if pair.text in own and pair.at % 3 == 0:
                    kerned = sum(glyph.advance for glyph in pair.glyphs) - own[pair.text]
                    other = pairs[pair.at + 1]
                    if kerned < 0 and melts(by_text[pair.text], by_text[other], kerned, self._chain, binary):
                        moved = pair.glyphs + by_text[other].glyphs
                        found.append(by_text[other]._replace(text=pair.text + other, glyphs=moved))
        return found

    def pictures(self) -> dict[int | None, Arcs]:
        """Arcs by baseline; the baseline that most lines have comes first. None: of each font on its own."""
        if not self._arcs:
            faces, setter, config = self._chain.faces, self._setter, self.config
            binary = config.color == "binary"
            if self.apart and config.baseline == "line":
                rows = [setter.baseline(face.ascent, face.descent) for face in faces]
                self._arcs[None] = Arcs(self._drawn, self._chain, rows, config.height, binary)
            else:
                counts = Counter(cluster.face for cluster in self._drawn)
                used = [face for face, _ in counts.most_common()]
                pairs = [(0, 0)] if config.baseline == "fixed" else [*zip(used, used), *product(used, used)]
                found = dict.fromkeys(
                    setter.baseline(max(faces[i].ascent, faces[j].ascent), max(faces[i].descent, faces[j].descent))
                    for i, j in pairs
                )
                lowest = max(found)
                rows = [lowest] * len(faces)
                tall = Arcs(self._drawn, self._chain, rows, config.height + lowest - min(found), binary)
                for row in found:
                    self._arcs[row] = tall.cut(lowest - row, config.height)
        return self._arcs

    def kinds(self, baseline: int | None, arcs: Arcs) -> np.ndarray:
        """Of each arc, what the layout `adaptive` takes it for: 0 = letter, 1 = alone on its patch, 2 = joined."""
        if baseline not in self._kinds:
            self._kinds[baseline] = np.array([_kind(members[0].text) for members in arcs.members], np.int8)
        return self._kinds[baseline]

    def lanes(self, baseline: int | None, arcs: Arcs) -> Lanes:
        """The pictures of a baseline for the exact search."""
        if baseline not in self._lanes:
            kerns = not self.apart and any(self._face_kerns(face) for face in set(arcs.face.tolist()))
            self._lanes[baseline] = Lanes(arcs, kerns, self.apart)
        return self._lanes[baseline]

    def _face_kerns(self, face: int) -> bool:
        """Whether a font moves some common pair closer or apart."""
        if face not in self._kerns:
            font = self._chain.faces[face]
            kerned = False
            if isinstance(font, FontFile):
                drawn = [c for c in self._drawn if c.face == face and len(c.text) == 1 and not c.rtl]
                drawn.sort(key=lambda cluster: rarity(cluster.text))
                own = {cluster.text: sum(glyph.advance for glyph in cluster.glyphs) for cluster in drawn[:100]}
                by_script: dict[str, list[str]] = {}
                for text in own:
                    by_script.setdefault(script_of(text) or "Latn", []).append(text)
                for script, letters in by_script.items():
                    pairs = [a + b for a, b in product(letters, letters) if " " not in (a, b)]
                    expected = sum(own[pair[0]] + own[pair[1]] for pair in pairs)
                    glyphs = shape(font, "".join(pair + "\n" for pair in pairs), script, False)
                    spacing = sum(glyph.advance for glyph in shape(font, "\n", script, False)) * len(pairs)
                    kerned |= sum(glyph.advance for glyph in glyphs) != expected + spacing
            self._kerns[face] = kerned
        return self._kerns[face]

    def moves_by(self, arcs: Arcs, arc: int, other: int) -> frozenset[int]:
        """By how many px an arc may move another that follows it; empty if they melt into something else."""
        key = (id(arcs), arc, other)
        if key not in self._moved:
            found: set[int] = set()
            for member, partner in product(arcs.members[arc], arcs.members[other]):
                if member.text != " " and member.face == partner.face and self._kerns_in_context(member):
                    found |= _SMALL_SHIFTS
                elif (moved := self._pair(member, partner)) is not None:
                    found.add(moved)
            self._moved[key] = frozenset(found)
        return self._moved[key]

    def _kerns_in_context(self, member: Drawn) -> bool:
        """Whether kerning depends on more than two neighbours: of what joins and stacks, parts alone do not tell."""
        unlike = member.rtl or (script_of(member.text[0]) or "Latn") not in _KERNED
        return unlike and self._face_kerns(member.face)

    def _pair(self, member: Drawn, partner: Drawn) -> int | None:
        key = (member.text, member.face, partner.text, partner.face)
        if key not in self._pairs:
            self._pairs[key] = self._ask_pair(member, partner)
        return self._pairs[key]

    def _ask_pair(self, member: Drawn, partner: Drawn) -> int | None:
        if member.rtl or partner.rtl or member.text == " " or not self._face_kerns(member.face):
            return 0
        if partner.text == " ":
            return 0 if partner.face == member.face else None
        one, other = script_of(member.text[0]), script_of(partner.text[0])
        if member.face != partner.face or (one and other and one != other):
            return 0
        glyphs = shape(self._chain.faces[member.face], member.text + partner.text, one or other, False)
        if all(glyph.cluster != len(member.text) for glyph in glyphs):
            return None if (one or other or "Latn") in _KERNED else 0  # a half form is read apart from what it joins
        moved = sum(glyph.advance for glyph in glyphs if glyph.cluster < len(member.text))
        return moved - sum(glyph.advance for glyph in member.glyphs)

    def kerning(self, baseline: int | None, arcs: Arcs, arc: int) -> list[tuple[int, np.ndarray | None]]:
        """By how many px an arc moves the next one, and which arcs it moves so."""
        key = (baseline, arc)
        if key not in self._kerning:
            self._kerning[key] = self._ask_kerning(arcs, arc)
        return self._kerning[key]

    def _ask_kerning(self, arcs: Arcs, arc: int) -> list[tuple[int, np.ndarray | None]]:
        member = next((m for m in arcs.members[arc] if not m.rtl and m.text != " " and self._face_kerns(m.face)), None)
        if member is None or arcs.rarity[arc] > _KERNED_RARITY or (script_of(member.text[0]) or "Latn") not in _KERNED:
            return [(0, None)]
        shifts = {0: np.ones(len(arcs), bool)}
        shifts[0][arcs.is_space & (arcs.face != member.face)] = False
        for member in arcs.members[arc]:
            script = script_of(member.text[0])
            for shared, (which, texts) in self._partners(arcs, member.face, script).items():
                text = " ".join(member.text + other for other in texts)
                glyphs = shape(self._chain.faces[member.face], text, shared, False)
                advances = np.zeros(len(text) + 1, np.int32)
                begins = np.zeros(len(text) + 1, bool)
                places = np.fromiter((glyph.cluster for glyph in glyphs), np.int32, len(glyphs))
                np.add.at(advances, places, np.fromiter((glyph.advance for glyph in glyphs), np.int32, len(glyphs)))
                begins[places] = True
                total = np.concatenate([[0], np.cumsum(advances)])
                lengths = np.array([len(member.text) + len(other) + 1 for other in texts])
                at = np.cumsum(lengths) - lengths
                middle = at + len(member.text)
                moved = total[middle] - total[at] - int(arcs.advance[arc])
                for shift in np.unique(moved[begins[middle]]).tolist():
                    if -KERN_REACH <= shift <= KERN_REACH:
                        chosen = which[begins[middle] & (moved == shift)]
                        shifts.setdefault(shift, np.zeros(len(arcs), bool))[chosen] = True
                unmoved = which[begins[middle] & (moved == 0)]
                shifts[0][np.setdiff1d(which, unmoved)] = False
        return list(shifts.items())

    def _partners(self, arcs: Arcs, face: int, script: str | None) -> dict[str | None, tuple[np.ndarray, list[str]]]:
        """By the script that both are shaped in: arcs that a font may kern with a cluster, and their texts."""
        key = (id(arcs), face, script)
        if key not in self._partner_lists:
            found: dict[str | None, tuple[list[int], list[str]]] = {}
            for other, members in enumerate(arcs.members):
                if arcs.rarity[other] > _KERNED_RARITY:
                    continue
                for partner in members:
                    own = script_of(partner.text[0])
                    if partner.face == face and partner.text != " " and (not own or not script or own == script):
                        which, texts = found.setdefault(script or own or "Latn", ([], []))
                        which.append(other)
                        texts.append(partner.text)
            self._partner_lists[key] = {shared: (np.array(which), texts) for shared, (which, texts) in found.items()}
        return self._partner_lists[key]


def _endings(cluster: Drawn, known: dict[tuple, Drawn]) -> Iterator[Drawn]:
    """The signs that end a syllable, where they are glyphs of their own: they are read apart behind longer ones."""
    if cluster.rtl or len(cluster.text) < 2 or (script_of(cluster.text[0]) or "Latn") in _KERNED:
        return
    for length in range(max(1, len(cluster.text) - 3), len(cluster.text)):
        for count in range(1, len(cluster.glyphs)):
            start, rest = cluster.glyphs[:count], cluster.glyphs[count:]
            if (cluster.text[:length], cluster.face, False, *start) in known and sum(
                glyph.advance for glyph in rest
            ) > 0:
                yield cluster._replace(text=cluster.text[length:], glyphs=rest)


def _is_common(cluster: Drawn) -> bool:
    return len(cluster.text) == 1 and cluster.text.isalnum() and rarity(cluster.text) <= 3.5


def _kind(text: str) -> int:
    if script_of(text[0]) in JOINING:
        return 2
    return 1 if ALONE.match(text) or HANGUL.match(text) else 0
