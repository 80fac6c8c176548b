"""Layouts: where text goes on the patches. Each file lays out a text, a pair of texts, and a list of words.

A layout writes lines and separators into a `Draft`, from left to right, and sets where the strip ends. It does not care
whether that fits: renderer.py cuts. To add one: a file, a line in LAYOUTS, its name in config.CHOICES, a test.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from render.layouts import adaptive, bigrams, continuous, sentences, words
from render.strip import Draft
from render.typesetter import Typesetter, Words


class Layout(NamedTuple):
    """What a layout file provides. on_patches: how words get patches of their own; None where they share patches."""

    text: Callable[[Typesetter, Draft, str], None]
    pair: Callable[[Typesetter, Draft, str, str], None]
    words: Callable[[Typesetter, Draft, Sequence[str]], None]
    on_patches: Words | None


LAYOUTS: dict[str, Layout] = {
    "continuous": Layout(continuous.text, continuous.pair, words.words, None),
    "words": Layout(words.text, words.pair, words.words, None),
    "sentences": Layout(sentences.text, sentences.pair, words.words, None),
    "bigrams": Layout(bigrams.text, bigrams.pair, bigrams.words, Words(bigrams.cut, bigrams.unit)),
    "adaptive": Layout(adaptive.text, adaptive.pair, adaptive.words, Words(adaptive.cut, bigrams.unit)),
}
