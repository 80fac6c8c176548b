"""Does a model write the right next word? What the benchmarks of written words, and evaluation in training, share.

Texts are cut before a word, the model writes on, the reader says which word stands there, and two shares come out:
words that are right, and words that are words at all. The second alone is worth little: always the same word is legible
too, so the word that was written most often stands beside it, with its share.

The prompt is aligned so that the next word begins at a patch edge, and decided by `WriteConfig` (a threshold, unless
said otherwise), as specs/pixar.md has it in section 5.2. A prompt that does not fit the context beside the new patches
loses whole words on the left.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.benchmarks.intervals import share_of
from infer.benchmarks.word_reader import WordReader
from infer.pixar import prompt_patches
from infer.write_strip import WriteConfig, write
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import Renderer

NEW_PATCHES = 4  # after each prompt, as published for LAMBADA
_TRIES = 20  # places of a text that are tried for one item
_CHUNK = 256  # prompts between two reports of progress
_DENSEST = 64  # characters in a patch: no script comes near


@dataclass(frozen=True)
class WordItem:
    """A text up to a word, and the word that follows."""

    context: str
    word: str


@dataclass(frozen=True, kw_only=True)
class WordScore:
    """Shares of `count` words, 0 to 1, with 95 % intervals. right: written as they should be. legible: those that are
    in a vocabulary; None without one. most_common: the word that was written most often, "" for no readable word, and
    its share."""

    count: int
    right: float
    right_low: float
    right_high: float
    legible: float | None
    legible_low: float | None
    legible_high: float | None
    most_common: str
    most_common_share: float


def cut_words(
    texts: Sequence[str], count: int, seed: int, shortest: int = 20, longest: int = 120, letters: bool = True
) -> list[WordItem]:
    """Cut texts before random words: the same items for the same arguments.

    Items go round the texts, so that they are spread over all of them evenly. A context is the beginning of a text, or
    in a long one begins where a sentence seems to, and has `shortest` to `longest` words; white space becomes single
    spaces. letters: take only words that are letters alone, without a sign after them.
    Raises UserError where no text is long enough.
    """
    if not 1 <= shortest <= longest:
        raise UserError(f"contexts of {shortest} to {longest} words: the first number must be from 1 to the second")
    draw = random.Random(seed)
    split = [words for words in (text.split() for text in texts) if len(words) > shortest]
    if not split:
        raise UserError(f"no text has more than {shortest} words: give longer texts, or ask for shorter contexts")
    order = list(range(len(split)))
    draw.shuffle(order)
    items: list[WordItem] = []
    for index in range(count + len(split) * _TRIES):
        if len(items) == count:
            break
        words = split[order[index % len(order)]]
        item = _cut(words, draw, shortest, longest, letters)
        if item is not None:
            items.append(item)
    if not items:
        raise UserError(f"no text has a word of letters after {shortest} others: give texts with words between spaces")
    return items


def _cut(words: Sequence[str], draw: random.Random, shortest: int, longest: int, letters: bool) -> WordItem | None:
    for _ in range(_TRIES):
        start = draw.randrange(len(words)) if len(words) > longest + 1 else 0
        while start and start < len(words) and words[start - 1][-1] not in ".!?":
            start += 1
        place = start + draw.randint(shortest, min(longest, max(shortest, len(words) - 1 - start)))
        if place < len(words) and (words[place].isalpha() or not letters):
            return WordItem(" ".join(words[start:place]), words[place])
    return None


# ------------------------------------------------------------------ from texts to written words


class Prompts(NamedTuple):
    """patches: uint8 [P, A] of each text. contexts: what of each text they show; num_cut: texts that lost words."""

    patches: list[NDArray[np.uint8]]
    contexts: list[str]
    num_cut: int


def shortened(model: PixarConfig, room: int) -> PixarConfig:
    """The model with a context of at most so many patches. A model that has learned from rows of one length expects
    the end where those ended, whatever it can read."""
    return dataclasses.replace(model, max_patches=min(model.max_patches, room))


def fitting_prompts(renderer: Renderer, model: PixarConfig, contexts: Sequence[str], new_patches: int) -> Prompts:
    """Draw prompts so that `new_patches` fit behind them; what is too long loses words on the left.

    Raises UserError where not even the last word of a text fits, and for what cannot be drawn.
    """
    most = model.max_patches - new_patches
    if most < 1:
        raise UserError(f"{new_patches} new patches leave no room in a context of {model.max_patches}: ask for fewer")
    patches, shown = [], []
    for number, context in enumerate(contexts, 1):
        kept = _fitting(renderer, context, most)
        shown.append(kept)
        patches.append(prompt_patches(renderer, kept, model, f"text {number}"))
    num_cut = sum(kept != context for kept, context in zip(shown, contexts, strict=True))
    return Prompts(patches, shown, num_cut)


def _fitting(renderer: Renderer, context: str, most: int) -> str:
    def needed(text: str) -> int:
        return renderer(text, max(2, len(text) + 8, _DENSEST * most)).num_patches - 1  # the end patch is no prompt

    if not context.strip() or needed(context) <= most:
        return context
    words = context.split()
    low, high = 1, len(words) - 1  # words to drop: fewest that let the rest fit
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(" ".join(words[middle:])) <= most else (middle + 1, high)
    return " ".join(words[low:])


def write_patches(
    model: Pixar,
    prompts: Sequence[NDArray[np.uint8]],
    config: WriteConfig,
    on_done: Callable[[int], object] | None = None,
) -> list[NDArray[np.uint8]]:
    """New patches [n, A] behind each prompt. on_done: told now and then how many more prompts are done."""
    found: list[NDArray[np.uint8]] = []
    for first in range(0, len(prompts), _CHUNK):
        chunk = prompts[first : first + _CHUNK]
        written = write(model, chunk, dataclasses.replace(config, seed=config.seed + first))
        found += [one.patches for one in written]
        if on_done is not None:
            on_done(len(chunk))
    return found


def write_words(
    model: Pixar,
    renderer: Renderer,
    contexts: Sequence[str],
    config: WriteConfig,
    reader: WordReader,
    room: int | None = None,
) -> list[str]:
    """The word that the model writes behind each text, "" where it is not readable. `config.max_patches` patches are
    written, 4 where it is None. room: patches of prompt and new ones, at most; None is all that the model can read.
    Raises UserError for a text that cannot be drawn."""
    config = dataclasses.replace(config, max_patches=config.max_patches or NEW_PATCHES)
    seen = model.config if room is None else shortened(model.config, room)
    prompts = fitting_prompts(renderer, seen, contexts, config.max_patches or NEW_PATCHES)
    return reader.read(write_patches(model, prompts.patches, config))


# ------------------------------------------------------------------ scores


def same_word(written: str, word: str, fold_gq: bool = False) -> bool:
    """Whether it is this word, case-sensitive. fold_gq: g and q count as one letter, since Pixeloid draws them alike
    at 8 pixels; the published figures do so."""
    if fold_gq:
        written, word = written.replace("g", "q"), word.replace("g", "q")
    return written == word


def score_words(
    written: Sequence[str], words: Sequence[str], vocabulary: Collection[str] | None = None, fold_gq: bool = False
) -> WordScore:
    """Compare what was written with what should have been. vocabulary: lower-case words that count as legible.

    Raises ValueError where the two differ in length or are empty.
    """
    if len(written) != len(words) or not words:
        raise ValueError(f"{len(written)} written words for {len(words)}")
    right = share_of(same_word(one, word, fold_gq) for one, word in zip(written, words, strict=True))
    legible = None if vocabulary is None else share_of(one.lower() in vocabulary for one in written)
    [(most_common, times)] = Counter(written).most_common(1)
    return WordScore(
        count=len(words),
        right=right.share,
        right_low=right.low,
        right_high=right.high,
        legible=None if legible is None else legible.share,
        legible_low=None if legible is None else legible.low,
        legible_high=None if legible is None else legible.high,
        most_common=most_common,
        most_common_share=times / len(words),
    )
