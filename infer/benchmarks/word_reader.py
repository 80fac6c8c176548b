"""What word do written patches begin with? The reading behind every measure of written words.

A model that goes on from an aligned prompt writes its next word at the left edge of the first new patch, and what comes
after it as far as the patches reach. Of all that, one word is asked for: the leading run of letters, and nothing if a
sign or a speck stands before it. Only the new patches are looked at, between a white patch at either side, so that a
letter at an edge is whole. What a word needs beyond the last patch was never written: it counts as the word that is
left of it (how many right words are too wide for the patches, each benchmark says).

Strips of this kind come by the thousand, most of them flawed, so the quick reader takes them (`Reader.read_windows`,
about half a millisecond each), with letters and common signs as its alphabet. It always answers, also to noise; so the
word is drawn, laid over the pixels it was read from, and believed if no more of their ink stays unexplained than the
reader allows for a line (`render.reader.UNEXPLAINED`). How often noise passes that test, `infer evaluate readability`
measures. Where letters stand in pairs (layouts bigrams and adaptive) spaces leave no trace that it could see, and
the thorough reader is asked, at 10 to 100 ms a strip.

Source of the rule: specs/pixar.md, section 5.2.
"""

import string
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infer.pixar import strip_of
from render import RenderConfig, Renderer
from render.reader import UNEXPLAINED, Reader
from render.reading.windows import Seen

ALPHABET = string.ascii_letters + string.digits + " .,;:!?'\"-|()"
_BLACK = 0.8  # share of ink above which a patch ends a strip, as in infer/write_strip.py
_GAP = 2  # px between two clusters that no kerning makes: a space that was not seen


def leading_letters(text: str) -> str:
    """The run of letters, and of marks on them, that a text begins with."""
    end = 0
    while end < len(text) and (text[end].isalpha() or (end and unicodedata.category(text[end])[0] == "M")):
        end += 1
    return text[:end]


class WordReader:
    """Reads the first word of written patches that continue strips of one renderer configuration.

    alphabet: the characters that may be there.
    """

    name = "own"

    def __init__(self, config: RenderConfig, alphabet: str = ALPHABET) -> None:
        paired = config.layout in ("bigrams", "adaptive")
        self.config = config
        self._reader = Reader(config, alphabet=alphabet)
        self._paired = paired
        plain = RenderConfig.from_dict(
            config.to_dict() | {"layout": "continuous", "pad": 0, "unit": "grapheme", "word_gap": "space"}
        )
        self._draw = Renderer(plain)
        self._drawn: dict[str, NDArray[np.float32]] = {}
        self._advances: dict[str, int] = {}

    def read(self, patches: Sequence[NDArray[np.uint8]]) -> list[str]:
        """The first word of each: patches uint8 [n, A], as `infer.write_strip` gives them. "" where no readable word
        stands at the beginning. What follows a black patch is not looked at."""
        if self._paired:
            return [self._thorough(strip_of(until_end(one), self.config)) for one in patches]
        strips = [strip_of(_between_white(until_end(one)), self.config) for one in patches if len(one)]
        width = self.config.patch_width
        windows = [(index, 1, strip.shape[1] // width) for index, strip in enumerate(strips)]
        seen = iter(zip(strips, self._reader.read_windows(strips, windows), strict=True))
        return [self._word(*next(seen)) if len(one) else "" for one in patches]

    def _thorough(self, strip: NDArray[np.uint8]) -> str:
        if not strip.shape[1] or (strip == 255).all():
            return ""
        reading = self._reader(strip)
        return leading_letters(reading.texts[0]) if reading.readable else ""

    def _word(self, strip: NDArray[np.uint8], clusters: Sequence[Seen]) -> str:
        """The leading letters among the clusters of a window, if the pixels look like them."""
        text, first, end = "", 0, 0
        for cluster in clusters:
            said = cluster.texts[0]
            if not text and said.isspace():
                continue
            if leading_letters(text + said) != text + said or (text and cluster.column - end >= _GAP):
                break
            first = first if text else cluster.column
            text, end = text + said, cluster.column + self._advance(said)
        return text if text and self._unexplained(strip, text, first) <= UNEXPLAINED else ""

    def _unexplained(self, strip: NDArray[np.uint8], word: str, first: int) -> float:
        """What a word drawn at column `first` leaves of the ink there, as a share of it."""
        drawn = self._ink_of(word)
        found = self._shades(strip)[:, first : first + drawn.shape[1]]
        drawn = drawn[:, : found.shape[1]]
        total = float((found**2).sum())
        return float(((found - drawn) ** 2).sum()) / total if total else 1.0

    def _ink_of(self, word: str) -> NDArray[np.float32]:
        """The drawing of a word from its origin to its advance."""
        if word not in self._drawn:
            if len(self._drawn) > 100_000:  # noise is read as ever new words
                self._drawn.clear()
            strip = self._draw(word)
            self._drawn[word] = self._shades(strip.pixels[:, : int(strip.clusters()[:, 4].max())])
        return self._drawn[word]

    def _advance(self, cluster: str) -> int:
        if cluster not in self._advances:
            self._advances[cluster] = int(self._draw(cluster).clusters()[:, 4].max())
        return self._advances[cluster]

    def _shades(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[rows, columns], 1 = ink; of binary strips 0 and 1 alone."""
        grey = pixels if pixels.ndim == 2 else pixels @ np.array([0.299, 0.587, 0.114])
        shades = ((255 - grey) / 255).astype(np.float32)
        return (shades > 0.5).astype(np.float32) if self.config.color == "binary" else shades


def until_end(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The patches [n, A] before the first black one."""
    black = np.flatnonzero((patches < 128).mean(1) > _BLACK)
    return patches[: int(black[0])] if len(black) else patches


def _between_white(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(patches, ((1, 1), (0, 0)), constant_values=255)
