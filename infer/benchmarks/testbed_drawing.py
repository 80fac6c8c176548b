"""Texts of a world as strings of patches, and what may follow a string of patches as a tree.

Sentences stand on patch edges (render/layouts/sentences.py), so a sentence is the same patches wherever it stands, and
a text is its sentences one after another. That is what makes the next patch of a text exactly known: it is checked on
every text that is measured, and a font that breaks it is refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from infer.benchmarks.testbed_worlds import Chances, World
from pixelcore.errors import UserError
from render import Renderer, Strip

_ANY_WIDTH = 1 << 16  # patches that no sentence has


class Drawing:
    """The sentences of a world as patches: uint8 [patches, A], 0 ink, 255 paper, values by row and column.

    A sentence looks alike wherever it stands, but for the first of a text, which has the renderer's pad before it, and
    the last, which has no space behind it and the end patch. Raises UserError for a renderer in which that is not so,
    and for one that draws two sentences of a world alike.
    """

    def __init__(self, renderer: Renderer, world: World) -> None:
        config = renderer.config
        if config.layout != "sentences" or config.color != "binary":
            raise UserError(
                f"the test bed needs sentences on patch edges in ink and paper, not render.layout = {config.layout!r} "
                f"and render.color = {config.color!r}: use layout sentences and color binary"
            )
        self.renderer, self.world = renderer, world
        missing = renderer(" ".join(world.sentences), _ANY_WIDTH).missing_glyphs
        if missing:
            raise UserError(
                f"world {world.name}: the fonts have no {' '.join(missing)}: name a font that has, with --font FILE"
            )
        self._cut: dict[tuple[str, bool, bool], NDArray[np.uint8]] = {}
        self._trees: dict[tuple[bool, bool], Tree] = {}

    def sentence(self, text: str, first: bool = False, last: bool = False) -> NDArray[np.uint8]:
        """One sentence, with the end patch if it is the last."""
        key = text, first, last
        if key not in self._cut:
            before, after = int(not first), int(not last)
            strip = self.renderer(" ".join([text] * (before + 1 + after)), _ANY_WIDTH)
            starts = strip.word_starts
            assert starts is not None and len(starts) == before + after + 2, f"{text!r} is not one sentence"
            self._cut[key] = patches_of(strip)[starts[before] : starts[before + 1] + int(last)]
        return self._cut[key]

    def text(self, sentences: Sequence[str]) -> NDArray[np.uint8]:
        """A whole text, or the beginning of one: its sentences one after another."""
        end = len(self.world.kinds) - 1
        parts = [self.sentence(sentence, i == 0, i == end) for i, sentence in enumerate(sentences)]
        return np.concatenate(parts) if parts else np.zeros((0, self.patch_values), np.uint8)

    def check(self, sentences: Sequence[str]) -> None:
        """That the renderer draws a text as its sentences one after another."""
        drawn = patches_of(self.renderer(" ".join(sentences), _ANY_WIDTH))
        if not np.array_equal(drawn, self.text(sentences)):
            raise UserError(
                f"world {self.world.name}: with these fonts a sentence looks different beside another one, as in "
                f"{' '.join(sentences)!r}: choose a font whose letters keep to themselves"
            )

    def tree(self, place: int) -> "Tree":
        """Of the sentences that may stand at this place of a text, by number."""
        key = place == 0, place == len(self.world.kinds) - 1
        if key not in self._trees:
            drawn = {text: self.sentence(text, *key) for text in self.world.sentences}
            self._trees[key] = Tree(drawn, closing=int(key[1]))
        return self._trees[key]

    @property
    def patch_values(self) -> int:
        """Values of a patch."""
        return self.renderer.config.height * self.renderer.config.patch_width


def patches_of(strip: Strip) -> NDArray[np.uint8]:
    """All patches of a strip, end patch included: [patches, A]."""
    return np.ascontiguousarray(strip.patches).reshape(strip.num_patches, -1)


class Tree:
    """Sentences as paths of patches. Below, an edge is a patch at its place behind those before it, a node the place.

    drawn: the patches of each sentence; closing: how many of its last ones, the end patch, are not the sentence itself.
    Raises UserError where the patches of one begin with all those of another.
    """

    def __init__(self, drawn: Mapping[str, NDArray[np.uint8]], closing: int = 0) -> None:
        self.sentences = {text: number for number, text in enumerate(drawn)}
        nodes: dict[bytes, int] = {}  # by the patches on the way
        edges: dict[bytes, int] = {}
        parents: list[int] = []
        patches: list[NDArray[np.uint8]] = []
        self.paths: list[list[int]] = []
        wholes: dict[bytes, str] = {}
        self.ends: dict[bytes, str] = {}  # sentences by their own patches
        for text, patches_PA in drawn.items():
            way, path = b"", []
            for patch_A in patches_PA:
                node = nodes.setdefault(way, len(nodes))
                way += patch_A.tobytes()
                if way not in edges:
                    edges[way] = len(edges)
                    parents.append(node)
                    patches.append(patch_A)
                path.append(edges[way])
            self.paths.append(path)
            if way in wholes:
                raise UserError(f"{wholes[way]!r} and {text!r} look alike in these fonts: choose another font")
            wholes[way] = text
            self.ends[patches_PA[: len(patches_PA) - closing].tobytes()] = text
        for way, text in wholes.items():
            if way in nodes:
                raise UserError(f"another sentence begins with all patches of {text!r}: choose another font")
        self.closing = closing
        self.parent_E = np.array(parents)
        self.ink_EA = np.stack(patches) < 128
        self.num_nodes = len(nodes)
        self._sentence_of_step = np.repeat(np.arange(len(drawn)), [len(path) for path in self.paths])
        self._edge_of_step = np.concatenate(self.paths)

    def masses(self, chances: Chances) -> NDArray[np.float64]:
        """How likely each patch comes at its place: [edges]."""
        chance_S = np.zeros(len(self.sentences))
        chance_S[[self.sentences[text] for text in chances]] = list(chances.values())
        return np.bincount(self._edge_of_step, chance_S[self._sentence_of_step], len(self.parent_E)).astype(np.float64)

    def nodes(self, mass_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """How likely each place is reached: [nodes]."""
        return np.bincount(self.parent_E, mass_E, self.num_nodes).astype(np.float64)
