"""Readability: of the words that a model writes behind held-out texts, how many are words at all?

Each text is cut at a random word between the 50th and the 120th, and the next word is written and read. It is readable
if it stands, lower-cased, in the word list that was named; a list of many entries calls much readable, so its name, its
size and the beginning of its SHA-256 belong to the figure. A readable word need not fit, and a model that writes one
word always is readable: the share of right words and the word written most often stand beside it.

A reader finds words where there are none. So the same reader and the same list are asked about strips without text, as
many of each kind:

    noise             each pixel is ink as often as in the words of these items, independently
    half noise        each pixel is ink in one of two cases
    columns shuffled  the words of these items, drawn, with their columns in random order
    random letters    as many letters as those words have, each drawn with the same chance: text, but no words

What they score is what the measure gives for nothing. Source: specs/pixar.md, section 5.4, where neither the list nor
these shares were known.
"""

import dataclasses
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.benchmarks.answers import WIDTH, Answers, ReadsWords, aligned, answer, as_lines, plain
from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.next_word import NEW_PATCHES, WordItem
from infer.benchmarks.word_list import WordList
from infer.write_strip import WriteConfig
from pixelcore.config import PixarConfig
from pixelcore.models.pixar import Pixar
from render import Renderer

COUNT = 1000
SHORTEST, LONGEST = 50, 120  # words before the cut


@dataclass(frozen=True, kw_only=True)
class Readability:
    """readable: share of written words in the list, by the first reader. not_text: the same of strips that show no
    words, by kind. truth: share of the right words that are in the list."""

    words: WordList
    count: int
    readable: Share
    truth: Share
    answers: Answers
    not_text: dict[str, Share]


def readability(
    model: Pixar,
    renderer: Renderer,
    items: Sequence[WordItem],
    words: WordList,
    config: WriteConfig,
    readers: Sequence[ReadsWords],
    *,
    fold_gq: bool = False,
    progress: bool = False,
) -> Readability:
    """Let the model write the next words. items: of `next_word.cut_words`. config: `max_patches` None is 4.

    Raises UserError for prompts that cannot be drawn.
    """
    patches = config.max_patches or NEW_PATCHES
    answers = answer(model, renderer, items, config, readers, fold_gq=fold_gq, progress=progress)
    kinds = without_text(renderer, model.config, items, patches, config.seed)
    return Readability(
        words=words,
        count=len(items),
        readable=share_of(word.lower() in words.counts for word in answers.words[readers[0].name]),
        truth=share_of(item.word.lower() in words.counts for item in items),
        answers=answers,
        not_text={
            kind: share_of(word.lower() in words.counts for word in readers[0].read(strips))
            for kind, strips in kinds.items()
        },
    )


def without_text(
    renderer: Renderer, model: PixarConfig, items: Sequence[WordItem], patches: int, seed: int
) -> dict[str, list[NDArray[np.uint8]]]:
    """Strips uint8 [patches, A] of each kind that the head of this file names, as many of each as there are items."""
    draw, letters = np.random.default_rng(seed), random.Random(seed)

    def word_of(item: WordItem, word: str) -> NDArray[np.uint8]:
        # how a word looks depends on the end of its context alone
        return drawn_words(renderer, model, item.context.split()[-1], [word], patches)[0].patches

    drawn = [word_of(item, item.word) for item in items]
    ink = float(np.mean([(one < 128).mean() for one in drawn]))
    rows, width = model.patch_height, model.patch_width

    def noise(share: float) -> NDArray[np.uint8]:
        pixels = np.where(draw.random((patches, rows * width, 1)) < share, 0, 255).astype(np.uint8)
        return np.repeat(pixels, model.num_channels, 2).reshape(patches, -1)

    def shuffled(one: NDArray[np.uint8]) -> NDArray[np.uint8]:
        columns = one.reshape(patches, rows, width, -1).swapaxes(1, 2).reshape(patches * width, rows, -1)
        mixed = columns[draw.permutation(len(columns))].reshape(patches, width, rows, -1)
        return np.ascontiguousarray(mixed.swapaxes(1, 2)).reshape(patches, -1)

    def nonsense(item: WordItem) -> NDArray[np.uint8]:
        return word_of(item, "".join(letters.choice(string.ascii_lowercase) for _ in item.word))

    return {
        "noise": [noise(ink) for _ in items],
        "half noise": [noise(0.5) for _ in items],
        "columns shuffled": [shuffled(one) for one in drawn],
        "random letters": [nonsense(item) for item in items],
    }


def as_text(result: Readability) -> str:
    """The result for people."""
    return "\n".join(
        [
            f"{'word list':<{WIDTH}}{result.words}",
            f"{'texts':<{WIDTH}}{result.count:,}",
            *aligned({"readable": result.readable, "  of the right words": result.truth}),
            *as_lines(result.answers, result.count),
            "readable, of what is no text",
            *aligned(result.not_text, indent="  "),
        ]
    )


def as_report(result: Readability) -> dict[str, object]:
    """Plain values, for JSON."""
    words = result.words
    return {
        "word_list": {"name": words.name, "size": len(words.counts), "sha256": words.sha256},
        "count": result.count,
        "readable": dataclasses.asdict(result.readable),
        "truth": dataclasses.asdict(result.truth),
        **plain(result.answers),
        "not_text": {kind: dataclasses.asdict(share) for kind, share in result.not_text.items()},
    }
