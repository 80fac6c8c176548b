"""The grammar of running text: any text of an alphabet, in the column where the renderer would go on.

A prompt was moved so that its last patch ends behind it (render/prompt.py). Where the box of the next word begins is
then a matter of its last letter and of the space: a few columns right of the edge.
"""

import math

import numpy as np
from numpy.typing import NDArray

from infer.legal_font import MARGIN, column_numbers, draw_letters, draw_line
from infer.legal_grammar import Option, Story
from infer.legal_lattice import Lattice, Way
from infer.legal_letters import LetterAutomaton
from infer.legal_said import Said
from pixelcore.errors import UserError
from render import Renderer


class RunningGrammar:
    """Running text of an alphabet. stop: whether it may end.

    Raises UserError for a layout other than `continuous`, and an alphabet whose letters do not stand side by side.
    """

    def __init__(self, renderer: Renderer, alphabet: str | None, stop: bool) -> None:
        config = renderer.config
        if config.layout != "continuous":
            raise UserError(
                f"legal decoding by letters needs the layout continuous, not {config.layout}: use another decoding, "
                "or, in Python, LegalConfig(pieces=...)"
            )
        self._renderer, self._height, self._width, self._pad = renderer, config.height, config.patch_width, config.pad
        letters = draw_letters(renderer, alphabet)
        self._automaton = LetterAutomaton(letters, config.height, config.patch_width, config.pad, stop)
        self._last = [letter.text for letter in letters.letters if letter.picture and len(letter.text) == 1]
        self._gaps: list[int] | None = None

    # ---- where a text goes on ----------------------------------------------------------------------------------------

    def start(self, prompt_PA: NDArray[np.uint8], text: str | None) -> int:
        origins = self._origins(prompt_PA, text)
        return self._automaton.start(origins, clips=not len(prompt_PA), may_end=len(prompt_PA) > 0)

    def _origins(self, prompt_PA: NDArray[np.uint8], text: str | None) -> list[int]:
        """Columns right of the edge where the next word may begin."""
        if not len(prompt_PA):
            return [self._pad]
        cells = prompt_PA.reshape(len(prompt_PA), self._height, self._width) == 0
        inked = np.flatnonzero(cells.any(1))
        if not len(inked):
            return [0]
        white = len(prompt_PA) * self._width - 1 - int(inked[-1])
        if text is not None:
            return [self._gap(text) - white]
        if self._gaps is None:
            self._gaps = sorted({self._gap(letter) for letter in self._last})
        return [gap - white for gap in self._gaps]

    def _gap(self, text: str) -> int:
        """Columns from the last ink of a text to the box of a word behind it."""
        columns_XY, advance = draw_line(self._renderer, _with_space(text))
        return MARGIN + advance - 1 - int(np.flatnonzero(columns_XY.any(1))[-1])

    # ---- what may stand next -----------------------------------------------------------------------------------------

    def options(self, state: int, said: Said) -> "RunningOptions":
        ends, state_on = self._automaton.at_edge(state)
        lattice = None if state_on is None else Lattice(self._automaton, state_on, said, self._width)
        return RunningOptions(lattice, self._automaton, said, ends)

    # ---- what was written --------------------------------------------------------------------------------------------

    def story(
        self, prompt_PA: NDArray[np.uint8], text: str | None, patches_LA: NDArray[np.uint8], ended: bool
    ) -> Story | None:
        if ended and not len(patches_LA) and len(prompt_PA):
            return Story("", False)
        origins = self._origins(prompt_PA, text)
        ink_XY = patches_LA.reshape(-1, self._height, self._width).transpose(0, 2, 1).reshape(-1, self._height) == 0
        columns = column_numbers(ink_XY)
        right: list[tuple[str, str]] = []
        for origin in origins:
            state = self._automaton.start([origin], clips=not len(prompt_PA), may_end=False)
            before = _with_space(text) if text is not None and len(prompt_PA) else ""
            for whole_and_cut in self._automaton.readings(state, columns, ended):
                if self._draws(before, whole_and_cut[0], origin, ink_XY, ended):
                    right.append(whole_and_cut)
        return Story(right[0][0], len({cut.rstrip(" ") for _, cut in right}) > 1) if right else None

    def _draws(self, before: str, text: str, origin: int, ink_XY: NDArray[np.bool_], ended: bool) -> bool:
        """Whether the renderer draws a text behind another as these columns, and ends it where they end."""
        if not before + text:
            return not ink_XY.any()
        drawn_XY, advance = draw_line(self._renderer, before + text)
        gone = draw_line(self._renderer, before)[1] if before else 0
        first = MARGIN + gone - origin
        drawn_XY = drawn_XY[max(0, first) :]
        count = min(len(ink_XY), len(drawn_XY))
        if not np.array_equal(drawn_XY[:count], ink_XY[:count]) or ink_XY[count:].any():
            return False
        end = origin + advance - gone + self._pad
        return not ended or -(-end // self._width) * self._width == len(ink_XY)


def _with_space(text: str) -> str:
    return text.rstrip(" ") + " "


class RunningOptions:
    """The patches of a lattice, and the end patch where it may stand."""

    def __init__(self, lattice: Lattice | None, automaton: LetterAutomaton, said: Said, ends: bool) -> None:
        self._lattice, self._automaton = lattice, automaton
        self._end: Option | None = None
        if ends:
            black_A = np.zeros(said.ink.shape[1], np.uint8)
            self._end = Option(black_A, float(said.log_probability(black_A[None])[0]), None)

    @property
    def log_mass(self) -> float:
        drawn = -math.inf if self._lattice is None else self._lattice.log_mass
        return drawn if self._end is None else float(np.logaddexp(drawn, self._end.log_probability))

    def best(self, count: int) -> list[Option]:
        found = [] if self._lattice is None else [self._option(way) for way in self._lattice.best(count)]
        if self._end is not None:
            found.append(self._end)
        return sorted(found, key=lambda option: -option.log_probability)[:count]

    def draw(self, random: np.random.Generator) -> Option:
        if self._end is not None and random.random() < np.exp(self._end.log_probability - self.log_mass):
            return self._end
        assert self._lattice is not None
        return self._option(self._lattice.draw(random))

    def _option(self, way: Way) -> Option:
        ink_XY = self._automaton.symbols[way.symbols]
        patch_A = np.where(ink_XY.T, 0, 255).astype(np.uint8).ravel()
        return Option(patch_A, way.log_probability, way.state)
