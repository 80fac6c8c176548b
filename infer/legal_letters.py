"""Legal patches of running text: whatever letters of an alphabet draw when they stand side by side.

Texts without end have too many drawings to list, so they are read column by column. What matters of a text at a column
is little: which letter came last, how far away the end of its box is, and what ink stands from there on (`_Node`). One
column further the next node is known. A new letter is chosen before any of its ink can be needed, and instead of a
letter the text may end. Several nodes can draw the same column: an l and an I, a word and the beginning of another. So
the states of the automaton are sets of nodes, one for each drawing (the subset construction). They are made when they
are first needed, and kept.

At a patch edge it is settled whether a text ends there: the end patch stands on the first edge `pad` columns behind it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.legal_font import MARGIN, Letters
from render.reading.clusters import rarity

ENDED = -1
_MOST_READ = 8  # texts of one drawing that are kept side by side


class _Node(NamedTuple):
    """A text at a column, as far as it matters.

    last: how its last letter moves the next one, an index of rows; or `ENDED`. x: px from the column to the end of its
    last box. ink: of this column and those behind it, as in `Letter.picture`. clips: whether ink left of the column is
    lost, as at the beginning of a strip, instead of impossible.
    """

    last: int
    x: int
    ink: int
    clips: bool = False


class _Move(NamedTuple):
    """One column further: the letters that were chosen before it, and the node behind it."""

    letters: tuple[int, ...]
    node: int


class _Reading(NamedTuple):
    """A text that draws what was read so far: how unusual it is, and its letters."""

    cost: float
    letters: tuple[int, ...]


class LetterAutomaton:
    """Reads the columns of texts, with one way for each drawing.

    height: rows of a column; patch_width, pad: columns of a patch, and between a text and its end patch; stop: whether
    texts may end.
    """

    def __init__(self, letters: Letters, height: int, patch_width: int, pad: int, stop: bool) -> None:
        self._letters, self._height, self._patch_width, self._pad, self._stop = letters, height, patch_width, pad, stop
        self._column = (1 << height) - 1
        self._costs = [1 + rarity(letter.text) * len(letter.text) for letter in letters.letters]
        # letters that move the next one alike are one and the same to it
        rows = [tuple(row.items()) for row in letters.after]
        unmoved = tuple((letter, 0) for letter in range(len(letters.letters)))
        space = [row for row, letter in zip(rows, letters.letters, strict=True) if letter.text == " "]
        self._rows = list(dict.fromkeys([*(space or [unmoved]), *rows]))
        places = {row: place for place, row in enumerate(self._rows)}
        self._row_of = [places[row] for row in rows]
        self._reach = self._farthest()
        self._nodes: list[_Node] = []
        self._node_numbers: dict[_Node, int] = {}
        self._moves: dict[int, dict[int, list[_Move]]] = {}  # by node, then by column
        self._states: list[tuple[int, ...]] = []
        self._state_numbers: dict[tuple[int, ...], int] = {}
        # arcs of all states that were asked for, end to end; of each state its first one and how many, -1 = not yet
        self._arc_symbols = self._arc_states = np.zeros(0, np.int64)
        self._first_arc = self._num_arcs = np.zeros(0, np.int64)
        self._edges: dict[int, tuple[bool, int | None]] = {}
        self._symbols: dict[int, int] = {}
        self._drawn_symbols = np.zeros((0, height), np.bool_)

    def _farthest(self) -> int:
        """How many px before the end of a box the next letter has to be chosen, so that none of its ink is late."""
        reach = back = 0
        for row in self._rows:
            for other, moved in row:
                letter = self._letters.letters[other]
                back = max(back, -moved - letter.advance)
                if letter.picture:
                    lowest = (letter.picture & -letter.picture).bit_length() - 1
                    reach = max(reach, MARGIN - lowest // self._height - moved)
        return reach + back

    # ---- states ------------------------------------------------------------------------------------------------------

    def start(self, origins: list[int], clips: bool, may_end: bool) -> int:
        """The state before a text that begins `origin` px right of the edge, any of these. clips: whether a strip
        begins there; may_end: whether the end patch may come at once."""
        nodes = [self._node(_Node(0, origin, 0, clips)) for origin in origins]
        if may_end and self._stop:
            nodes.append(self._node(_Node(ENDED, -self._pad, 0)))
        return self._state(nodes)

    def at_edge(self, state: int) -> tuple[bool, int | None]:
        """Whether the end patch may stand on a patch edge, and the state of what goes on there."""
        if state not in self._edges:
            nodes = [(number, self._nodes[number]) for number in self._states[state]]
            behind = [number for number, node in nodes if not (node.last == ENDED and self._is_end(node))]
            self._edges[state] = len(behind) < len(nodes), self._state(behind) if behind else None
        return self._edges[state]

    def _is_end(self, node: _Node) -> bool:
        assert node.x + self._pad > -self._patch_width, "a text that ended on an edge before"
        return node.x + self._pad <= 0

    @property
    def symbols(self) -> NDArray[np.bool_]:
        """[S, Y], True = ink, of the symbols so far."""
        if len(self._drawn_symbols) < len(self._symbols):
            rows = [[column >> row & 1 for row in range(self._height)] for column in self._symbols]
            self._drawn_symbols = np.array(rows, np.bool_)
        return self._drawn_symbols

    def arcs(self, states_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """[E] each: place in `states`, symbol and next state of all ways on; those of a state differ in symbol."""
        missing = len(self._states) - len(self._num_arcs)
        self._num_arcs = np.pad(self._num_arcs, (0, missing), constant_values=-1)
        self._first_arc = np.pad(self._first_arc, (0, missing))
        unknown = states_N[self._num_arcs[states_N] < 0]
        if len(unknown):
            self._find_arcs(unknown.tolist())
        counts_N = self._num_arcs[states_N]
        source_E = np.repeat(np.arange(len(states_N)), counts_N)
        arc_E = np.arange(len(source_E)) + (self._first_arc[states_N] - counts_N.cumsum() + counts_N)[source_E]
        return source_E, self._arc_symbols[arc_E], self._arc_states[arc_E]

    def _find_arcs(self, states: list[int]) -> None:
        symbols, behind = self._arc_symbols.tolist(), self._arc_states.tolist()
        for state in states:
            found: dict[int, set[int]] = {}
            for node in self._states[state]:
                for column, moves in self._moves_of(node).items():
                    found.setdefault(column, set()).update(move.node for move in moves)
            self._first_arc[state], self._num_arcs[state] = len(symbols), len(found)
            symbols += [self._symbols.setdefault(column, len(self._symbols)) for column in found]
            behind += [self._state(nodes) for nodes in found.values()]
        self._arc_symbols, self._arc_states = np.array(symbols, np.int64), np.array(behind, np.int64)

    def _state(self, nodes: list[int] | set[int]) -> int:
        key = tuple(sorted(nodes))
        number = self._state_numbers.setdefault(key, len(self._states))
        if number == len(self._states):
            self._states.append(key)
        return number

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _node(self, node: _Node) -> int:
        number = self._node_numbers.setdefault(node, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
        return number

    def _moves_of(self, number: int) -> dict[int, list[_Move]]:
        """How the text of a node goes on by one column, by that column."""
        if number not in self._moves:
            moves: dict[int, list[_Move]] = {}
            for letters, node in self._chosen(self._nodes[number]):
                behind = _Node(node.last, node.x - 1, node.ink >> self._height)
                moves.setdefault(node.ink & self._column, []).append(_Move(letters, self._node(behind)))
            self._moves[number] = moves
        return self._moves[number]

    def _chosen(self, node: _Node) -> Iterator[tuple[tuple[int, ...], _Node]]:
        """The node once all letters are chosen whose ink could stand in its column."""
        if node.last == ENDED or node.x > self._reach:
            yield (), node
            return
        if self._stop:
            yield (), node._replace(last=ENDED)
        for other, moved in self._rows[node.last]:
            letter = self._letters.letters[other]
            origin = node.x + moved
            shift = (origin - MARGIN) * self._height
            if shift < 0 and not node.clips and letter.picture & ((1 << -shift) - 1):
                continue  # its ink would stand where something else is written
            ink = node.ink | (letter.picture << shift if shift >= 0 else letter.picture >> -shift)
            behind = _Node(self._row_of[other], origin + letter.advance, ink, node.clips)
            for more, last in self._chosen(behind):
                yield (other, *more), last

    # ---- texts -------------------------------------------------------------------------------------------------------

    def readings(self, state: int, columns: list[int], ended: bool) -> list[tuple[str, str]]:
        """Texts that draw these columns from a start state on, the most usual first: as a whole, and what of them is
        drawn to the end."""
        found: dict[int, list[_Reading]] = {node: [_Reading(0.0, ())] for node in self._states[state]}
        for place, column in enumerate(columns):
            behind: dict[int, list[_Reading]] = {}
            for node, readings in found.items():
                if place and not place % self._patch_width and self._ends_here(node):
                    continue
                for move in self._moves_of(node).get(column, ()):
                    cost = sum(self._costs[letter] for letter in move.letters)
                    behind.setdefault(move.node, []).extend(
                        _Reading(reading.cost + cost, reading.letters + move.letters) for reading in readings
                    )
            found = {node: sorted(readings)[:_MOST_READ] for node, readings in behind.items()}
        texts: list[tuple[float, str, str]] = []
        for node, readings in found.items():
            if ended and not self._ends_here(node):
                continue
            is_cut = self._nodes[node].last != ENDED and self._nodes[node].x > 0
            for reading in readings:
                parts = [self._letters.letters[letter].text for letter in reading.letters]
                texts.append((reading.cost, "".join(parts), "".join(parts[:-1] if is_cut else parts)))
        return [(text, whole) for _, text, whole in sorted(texts)]

    def _ends_here(self, number: int) -> bool:
        node = self._nodes[number]
        return node.last == ENDED and self._is_end(node)
