"""What a beam over legal patches has to know of the patches that may stand next, whatever decides that they may.

A grammar gives states: numbers that stand for everything that was written so far and still matters. Equal patches lead
to equal states, so that a state has one probability, and each patch that may follow it is counted once, however many
texts draw it. Two grammars are at hand: strings that are known (`infer.legal_pieces`), and all texts of an alphabet
(`infer.legal_running`).
"""

import math
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infer.legal_said import Said


class Option(NamedTuple):
    """A patch that may stand next: uint8 [A], its log-probability in nats, and the state that it leads to, None of the
    end patch."""

    patch: NDArray[np.uint8]
    log_probability: float
    state: int | None


class Options(Protocol):
    """All patches that may stand next, and what a head says of them."""

    @property
    def log_mass(self) -> float:
        """Nats: the sum of the probabilities of all of them; minus infinity where there are none."""
        ...

    def best(self, count: int) -> list[Option]:
        """The likeliest ones, the very likeliest first; fewer where there are no more."""
        ...

    def draw(self, random: np.random.Generator) -> Option:
        """One of them, each as often as the head has it among them. Not where there are none."""
        ...


class Story(NamedTuple):
    """The text that patches show. ambiguous: some other text that the grammar allows shows the same."""

    text: str
    ambiguous: bool


class Grammar(Protocol):
    """What may be written."""

    def start(self, prompt_PA: NDArray[np.uint8], text: str | None) -> int:
        """The state behind a prompt, which may have no patch. text: what it says, where that is known."""
        ...

    def options(self, state: int, said: Said) -> Options:
        """What may stand next."""
        ...

    def story(
        self, prompt_PA: NDArray[np.uint8], text: str | None, patches_LA: NDArray[np.uint8], ended: bool
    ) -> Story | None:
        """What patches say that were written behind a prompt, the end patch left out; None if the renderer does not
        draw exactly these patches for it."""
        ...


class ListedOptions:
    """Patches that are few enough to be listed. patches: uint8 [N, A]; states: what each leads to."""

    def __init__(self, patches_NA: NDArray[np.uint8], states: list[int | None], said: Said) -> None:
        self._patches, self._states = patches_NA, states
        self._log_N = said.log_probability(patches_NA)

    @property
    def log_mass(self) -> float:
        return float(np.logaddexp.reduce(self._log_N)) if len(self._log_N) else -math.inf

    def best(self, count: int) -> list[Option]:
        return [self._option(i) for i in np.argsort(-self._log_N, kind="stable")[:count].tolist()]

    def draw(self, random: np.random.Generator) -> Option:
        share_N = np.exp(self._log_N - self._log_N.max())
        return self._option(int(np.searchsorted(share_N.cumsum(), random.random() * share_N.sum(), side="right")))

    def _option(self, index: int) -> Option:
        return Option(self._patches[index], float(self._log_N[index]), self._states[index])
