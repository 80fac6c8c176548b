"""Legal patches where it is known which strings may be written: a tree of their patches.

Each piece is drawn as the renderer draws it between two others, from the patch edge on which it begins to the one on
which the next would begin; and as it draws the last one of a strip, which may take a patch less. What can stand next is
then a walk down the tree, back to its root where a piece is complete, and the end patch behind a last one. Pieces that
begin alike share patches, so a state is the set of all nodes to which the same patches lead.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infer.legal_grammar import ListedOptions, Story
from infer.legal_said import Said
from pixelcore.errors import UserError
from render import Renderer

_ANCHOR = "."  # what stands beside a piece to see how it is drawn between others: a word, and a sentence
_ROOM = 1 << 14  # patches, so that nothing is cut
_MOST_READ = 8  # ways to read a strip that are kept side by side


class _Node:
    """A place in the tree. through: pieces that pass it; follows: pieces that are complete here, with more behind them;
    ends: pieces that are complete here, and the end patch is next."""

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.through: list[str] = []
        self.follows: list[str] = []
        self.ends: list[str] = []

    def grow(self, piece: str, patches_LA: NDArray[np.uint8]) -> "_Node":
        """The node behind the patches of a piece."""
        node = self
        for patch_A in patches_LA:
            node = node.children.setdefault(patch_A.tobytes(), _Node())
            node.through.append(piece)
        return node


class PieceGrammar:
    """Strips of some pieces, one after another. stop: whether they may end.

    Raises UserError for no pieces, white space around one, and one that the layout does not put on a patch edge.
    """

    def __init__(self, renderer: Renderer, pieces: Sequence[str], stop: bool) -> None:
        if not pieces:
            raise UserError("pieces: there are none; give the strings that may be written")
        self._renderer, self._stop = renderer, stop
        self._end_A = np.zeros(renderer.config.height * renderer.config.patch_width, np.uint8)
        self._first, self._later, self._nothing = _Node(), _Node(), _Node()
        self._nothing.ends.append("")
        for piece in dict.fromkeys(pieces):
            if not piece or piece != piece.strip():
                raise UserError(f"piece {piece!r}: a piece has text, and no white space around it: take that away")
            for root, before in ((self._first, []), (self._later, [_ANCHOR])):
                middle_LA, last_LA = self._drawn(piece, before)
                if middle_LA is not None:
                    root.grow(piece, middle_LA).follows.append(piece)
                root.grow(piece, last_LA).ends.append(piece)
        self._states: list[list[_Node]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._followers: dict[int, tuple[NDArray[np.uint8], list[int | None]]] = {}

    def _drawn(self, piece: str, before: list[str]) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8]]:
        """Patches of a piece with more behind it, None where the layout would not part them; and of a last one."""
        words = len(self._strip([piece])[1]) - 1
        first, end = len(before), len(before) + words
        last_LA, starts = self._strip([*before, piece])
        if len(starts) != end + 1:
            raise UserError(
                f"piece {piece!r} does not begin on a patch edge in the layout {self._renderer.config.layout}: give "
                "pieces that do"
            )
        middle_LA, middle_starts = self._strip([*before, piece, _ANCHOR])
        is_parted = len(middle_starts) == end + 2
        return middle_LA[middle_starts[first] : middle_starts[end]] if is_parted else None, last_LA[starts[first] :]

    def _strip(self, pieces: list[str]) -> tuple[NDArray[np.uint8], list[int]]:
        """Patches without the end patch; the first patch of each word of the layout, and the patch after the last."""
        on_edges = self._renderer.config.layout == "continuous"  # where only what is listed stands on patch edges
        strip = self._renderer(pieces if on_edges else " ".join(pieces), max_patches=_ROOM)
        assert strip.word_starts is not None, "a layout without words on patches"
        return strip.patches[:-1].reshape(-1, len(self._end_A)), strip.word_starts.tolist()

    # ---- what may stand next -----------------------------------------------------------------------------------------

    def start(self, prompt_PA: NDArray[np.uint8], text: str | None) -> int:
        return self._number([self._later, self._nothing] if len(prompt_PA) else [self._first])

    def options(self, state: int, said: Said) -> ListedOptions:
        if state not in self._followers:
            self._followers[state] = self._following(self._states[state])
        return ListedOptions(*self._followers[state], said)

    def _following(self, nodes: list[_Node]) -> tuple[NDArray[np.uint8], list[int | None]]:
        found: dict[bytes, list[_Node]] = {}
        for node in nodes:
            for patch, child in node.children.items():
                found.setdefault(patch, []).append(child)
        if any(node.follows for node in nodes):
            for patch, child in self._later.children.items():
                if child not in found.setdefault(patch, []):
                    found[patch].append(child)
        if not self._stop:  # nothing leads on from where only the end patch can follow
            found = {patch: [node for node in nodes if node.children or node.follows] for patch, nodes in found.items()}
        states: list[int | None] = [self._number(nodes) for nodes in found.values() if nodes]
        patches = [np.frombuffer(patch, np.uint8) for patch, nodes in found.items() if nodes]
        if self._stop and any(node.ends for node in nodes):
            patches.append(self._end_A)
            states.append(None)
        return np.array(patches, np.uint8).reshape(-1, len(self._end_A)), states

    def _number(self, nodes: list[_Node]) -> int:
        key = tuple(sorted(map(id, nodes)))
        if key not in self._numbers:
            self._numbers[key] = len(self._states)
            self._states.append(nodes)
        return self._numbers[key]

    # ---- what was written --------------------------------------------------------------------------------------------

    def story(
        self, prompt_PA: NDArray[np.uint8], text: str | None, patches_LA: NDArray[np.uint8], ended: bool
    ) -> Story | None:
        before = [_ANCHOR] if len(prompt_PA) else []
        start = self._states[self.start(prompt_PA, text)]
        ways: list[tuple[_Node, tuple[str, ...]]] = [(node, ()) for node in start]
        for patch in map(bytes, patches_LA):
            stepped = [(node.children.get(patch), said) for node, said in ways]
            again = [(self._later.children.get(patch), (*said, one)) for node, said in ways for one in node.follows]
            ways = [(node, said) for node, said in stepped + again if node is not None][:_MOST_READ]
        found: dict[tuple[str, ...], None] = {}
        for node, said in ways:
            for one in node.ends if ended else node.through or [""]:
                found[(*said, one) if one else said] = None
        right = [said for said in found if self._draws(before, said, patches_LA, ended)]
        return Story(" ".join(right[0]), len(right) > 1) if right else None

    def _draws(self, before: list[str], pieces: tuple[str, ...], patches_LA: NDArray[np.uint8], ended: bool) -> bool:
        """Whether the renderer draws pieces behind others as these patches."""
        for after in ([],) if ended else ([_ANCHOR], []):
            if not [*before, *pieces, *after]:
                return not len(patches_LA)
            drawn_LA, starts = self._strip([*before, *pieces, *after])
            drawn_LA = drawn_LA[starts[len(before)] :]
            if np.array_equal(drawn_LA if ended else drawn_LA[: len(patches_LA)], patches_LA):
                return True
        return False
