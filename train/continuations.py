"""What a model that writes strips makes of held-out text: a picture of it, and how many next words are right.

The loss says how well each patch is foretold when all before it are true. Whether the model can write is another
question, because it reads what it wrote, so it is asked for its own: the second half of a few rows as a picture, and at
many places the next word, which a reader reads off the strip (`infer/benchmarks/next_word.py`). For words the likeliest
patch is taken each time. For pictures too, but of a mixture a component is drawn, as `infer continue` does: its
likeliest one alone repeats itself. The seeds never change, so two evaluations of the same weights say the same.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.benchmarks.next_word import NEW_PATCHES, cut_words, score_words, write_words
from infer.benchmarks.word_reader import WordReader
from infer.figure import Panel, Row, stack
from infer.write_strip import WriteConfig, write
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import Renderer
from train.data.strips.drawing import pixels_of

_PLACES_SEED = 20240106  # of the places that are read, the same in all runs
_WORDS_OF_VOCABULARY = 1_000_000  # running words of the training text that the vocabulary is taken from
_LEAST_TIMES = 3  # a word that is legible occurs among them


def picture_of(model: Pixar, renderer: Renderer, texts: Sequence[str]) -> Image.Image:
    """Rows as they are, and under each the row whose second half the model has written; what it wrote is tinted. Where
    it ended earlier, the ground is left."""
    truths = [pixels_of(renderer(text)) for text in texts]
    cuts = [len(truth) // 2 for truth in truths]
    channels = model.config.num_channels // renderer.config.channels  # a model of three reads grey as equal ones
    decode = "mixture" if model.config.head == "mixture" else "threshold"
    panels = []
    for truth, cut in zip(truths, cuts, strict=True):
        prompt = np.repeat(truth[:cut], channels, axis=1)
        [written] = write(model, [prompt], WriteConfig(decode=decode, max_patches=len(truth) - cut))
        whole = np.full((len(truth), prompt.shape[1]), 255, np.uint8)
        stop = cut + len(written.patches)
        whole[:cut], whole[cut:stop] = prompt, written.patches
        place = np.arange(len(truth))
        rows = [
            Row("held out", _cells(truth, renderer)),
            Row("written", _cells(whole, renderer), tinted=(place >= cut) & (place < stop), absent=place >= stop),
        ]
        panels.append(Panel(rows))
    return Image.fromarray(stack(panels))


def _cells(patches: NDArray[np.uint8], renderer: Renderer) -> NDArray[np.uint8]:
    """Patches [P, A] as [P, height, width], or with three channels at the end."""
    cells = patches.reshape(len(patches), renderer.config.height, renderer.config.patch_width, -1)
    return cells[..., 0] if cells.shape[3] == 1 else cells


class NextWords:
    """Places in held-out text at which the model writes the next word, the same at every evaluation.

    texts: held-out. known: documents of the training text; words that occur in its beginning count as legible.
    Raises UserError where no text is long enough for a place.
    """

    def __init__(self, renderer: Renderer, texts: Sequence[str], known: Iterable[str], count: int) -> None:
        try:
            self._items = cut_words(texts, count, _PLACES_SEED)
        except UserError as cause:
            raise UserError(f"eval.words = {count}: {cause}; 0 reads none") from cause
        self._renderer = renderer
        self._reader = WordReader(renderer.config)
        self._vocabulary = frequent_words(known)

    def score(self, model: Pixar) -> dict[str, float]:
        """words_right: share of the places at which the word is the true one. words_legible: at which it is a word of
        the training text. words_most_common: share of the word that is written most often, which a model that always
        writes the same word has high. Two of them with 95 % intervals; and their number."""
        contexts, words = [item.context for item in self._items], [item.word for item in self._items]
        # in the midst of a row: near the length of the longest ones a model that has learned them ends the text
        room = max(self._renderer.config.max_patches // 2, 2 * NEW_PATCHES)
        written = write_words(model, self._renderer, contexts, WriteConfig(), self._reader, room)
        found = score_words(written, words, self._vocabulary)
        assert found.legible is not None and found.legible_low is not None and found.legible_high is not None
        return {
            "words_right": found.right,
            "words_right_low": found.right_low,
            "words_right_high": found.right_high,
            "words_legible": found.legible,
            "words_legible_low": found.legible_low,
            "words_legible_high": found.legible_high,
            "words_most_common": found.most_common_share,
            "words_count": found.count,
        }


def frequent_words(texts: Iterable[str]) -> frozenset[str]:
    """Lower-case words of letters that occur at least 3 times in the first million words of the texts."""
    counts, seen = Counter[str](), 0
    for text in texts:
        words = text.split()
        seen += len(words)
        counts.update(word.strip(".,;:!?\"'“”‘’()—-").lower() for word in words)
        if seen >= _WORDS_OF_VOCABULARY:
            break
    return frozenset(word for word, count in counts.items() if count >= _LEAST_TIMES and word.isalpha())
