"""Layouts: which patches a text takes and what stands on them, counted by hand.

All in the font of this project at scale 1, 8 rows, and patches of 8 columns: a, b, c, d, e take 5 columns, f 4, i 2, a
space 3, and what the font does not have is a box of 12.
"""

from typing import Any

import numpy as np
import pytest

from render import RenderConfig, Renderer, RenderError, Strip
from render.config import CHOICES
from render.font import PixelFont
from render.layouts import LAYOUTS

ORIGINAL = {"layout": "bigrams", "unit": "code-point", "word_gap": "none"}
PAIRS = {"layout": "bigrams"}
NO_GAP = {"layout": "bigrams", "word_gap": "none"}
PADDED = {"layout": "continuous", "pad": 2}
SENTENCES = {"layout": "sentences"}
END = [-1, -1, -1]


def renderer(**changes: Any) -> Renderer:
    return Renderer(RenderConfig.from_dict({"height": 8, "patch_width": 8, **changes}))


def picture(num_patches: int, black: tuple[int, ...], **texts: str) -> np.ndarray:
    """Pixels by hand: black patches, and letters of the font from column x on, given as x12="ab"."""
    font = PixelFont(1)
    pixels = np.full((8, 8 * num_patches), 255, np.uint8)
    for place, text in texts.items():
        x = int(place[1:])
        for character in text:
            (glyph,) = font.shape(character, None, False)
            ink = font.bitmap(glyph.id)
            rows, columns = ink.coverage.shape
            if rows:
                top, left = font.ascent - ink.top, x + ink.left
                pixels[top : top + rows, left : left + columns] = 255 - ink.coverage
            x += glyph.advance
    for patch in black:
        pixels[:, 8 * patch : 8 * patch + 8] = 0
    return pixels


def starts(strip: Strip) -> list[int] | None:
    return None if strip.word_starts is None else strip.word_starts.tolist()


# configuration, input, patches, black patches, letters by column, first patches of words
DRAWN: dict[str, tuple[dict[str, Any], Any, int, tuple[int, ...], dict[str, str], list[int] | None]] = {
    # pad 2, text 10, pad 2: 14 columns are 2 patches
    "continuous": (PADDED, "ab", 3, (2,), {"x2": "ab"}, None),
    "continuous: exactly full": (PADDED, "abcd", 4, (3,), {"x2": "abcd"}, None),
    "continuous: a column too many": ({**PADDED, "pad": 3}, "abcdi", 5, (4,), {"x3": "abcdi"}, None),
    "continuous without pad": ({"layout": "continuous"}, "abci", 4, (3,), {"x0": "abci"}, None),
    "continuous: spaces": (PADDED, "a b  c", 5, (4,), {"x2": "a b  c"}, None),
    "continuous: tab and newline": (PADDED, "a\nb\tc", 5, (4,), {"x2": "a b c"}, None),
    "continuous: pair": (PADDED, ("ab", "c"), 6, (2, 5), {"x2": "ab", "x26": "c"}, None),
    "continuous: words": (PADDED, ["ab", "c"], 4, (3,), {"x2": "ab", "x16": "c"}, [0, 2, 3]),
    "continuous: empty": (PADDED, "", 2, (1,), {}, None),
    "continuous: empty pair": (PADDED, ("", ""), 4, (1, 3), {}, None),
    "words": ({"layout": "words"}, "ab c", 4, (3,), {"x0": "ab", "x16": "c"}, [0, 2, 3]),
    # a word of 5 columns and its space fill a patch: the next word may follow at once
    "words: a space between": ({"layout": "words"}, "a abc", 4, (3,), {"x0": "a", "x8": "abc"}, [0, 1, 3]),
    # without the space of 3 after it, the word of 15 would leave room for the next one in its own last patch
    "words: the space takes a patch": ({"layout": "words"}, "abc d", 5, (4,), {"x0": "abc", "x24": "d"}, [0, 3, 4]),
    "words: pair": ({"layout": "words"}, ("ab", "c d"), 6, (2, 5), {"x0": "ab", "x24": "c", "x32": "d"}, None),
    "words: white space": ({"layout": "words"}, " a\n\tb ", 3, (2,), {"x0": "a", "x8": "b"}, [0, 1, 2]),
    "words: pad": ({"layout": "words", "pad": 2}, "ab", 3, (2,), {"x2": "ab"}, [0, 2]),
    "words: empty": ({"layout": "words"}, "", 1, (0,), {}, [0]),
    "sentences: none ends": (SENTENCES, "ab c", 4, (3,), {"x0": "ab c"}, [0, 3]),
    # 5 columns, a stop of 2 and a space of 3
    "sentences: stops before white space": (
        SENTENCES,
        "a. b.c\n| d",
        7,
        (6,),
        {"x0": "a.", "x16": "b.c |", "x40": "d"},
        [0, 2, 5, 6],
    ),
    "sentences: white space": (SENTENCES, " a.\t b ", 4, (3,), {"x0": "a.", "x16": "b"}, [0, 2, 3]),
    "sentences: pair": (SENTENCES, ("a. b", "c"), 6, (3, 5), {"x0": "a.", "x16": "b", "x32": "c"}, None),
    "sentences: pad": ({**SENTENCES, "pad": 2}, "a. b", 4, (3,), {"x2": "a.", "x16": "b"}, [0, 2, 3]),
    "sentences: words": (SENTENCES, ["ab", "c"], 4, (3,), {"x0": "ab", "x16": "c"}, [0, 2, 3]),
    "sentences: empty": (SENTENCES, "", 1, (0,), {}, [0]),
    # i takes 2 columns: two of them are one patch; ab takes 10, two patches
    "pairs": (PAIRS, "iiab", 4, (3,), {"x0": "ii", "x8": "ab"}, [0, 3]),
    "pairs: odd word": (PAIRS, "iii", 3, (2,), {"x0": "ii", "x8": "i"}, [0, 2]),
    # the space is a cluster of the word before it
    "pairs: space in an odd word": (PAIRS, "i ii", 3, (2,), {"x0": "i ", "x8": "ii"}, [0, 1, 2]),
    "pairs: space after an even word": (PAIRS, "ii ii", 4, (3,), {"x0": "ii", "x16": "ii"}, [0, 2, 3]),
    "pairs: two spaces": (PAIRS, "i  i", 4, (3,), {"x0": "i", "x16": "i"}, [0, 2, 3]),
    "pairs: pair": (PAIRS, ("ii", "i"), 4, (1, 3), {"x0": "ii", "x16": "i"}, None),
    "pairs: words": (PAIRS, ["ii", "i"], 4, (3,), {"x0": "ii", "x16": "i"}, [0, 2, 3]),
    "pairs: empty": (PAIRS, "", 1, (0,), {}, [0]),
    "pairs without gap": (NO_GAP, "ii  i", 3, (2,), {"x0": "ii", "x8": "i"}, [0, 1, 2]),
    "pairs without gap: words": (NO_GAP, ["ii", "i"], 3, (2,), {"x0": "ii", "x8": "i"}, [0, 1, 2]),
    "original": (ORIGINAL, "iii i", 4, (3,), {"x0": "ii", "x8": "i", "x16": "i"}, [0, 2, 3]),
    "original: wide pair": (ORIGINAL, "ab i", 4, (3,), {"x0": "ab", "x16": "i"}, [0, 2, 3]),
    "original: any white space": (
        ORIGINAL,
        " i\n\ti\u00a0i ",
        4,
        (3,),
        {"x0": "i", "x8": "i", "x16": "i"},
        [0, 1, 2, 3],
    ),
    "original: pair": (ORIGINAL, ("ii", "i"), 4, (1, 3), {"x0": "ii", "x16": "i"}, None),
    "original: words": (ORIGINAL, ["ii", "i"], 3, (2,), {"x0": "ii", "x8": "i"}, [0, 1, 2]),
    "original: empty": (ORIGINAL, "", 1, (0,), {}, [0]),
    "adaptive: Latin": ({}, "iiab i", 6, (5,), {"x0": "ii", "x8": "ab", "x32": "i"}, [0, 4, 5]),
    # a box of 12 columns takes two patches; one character each
    "adaptive: Han": ({}, "\u6211\u559c", 5, (4,), {"x0": "\u6211", "x16": "\u559c"}, [0, 4]),
    "adaptive: Hangul": ({}, "\ud55c\uad6d", 5, (4,), {"x0": "\ud55c", "x16": "\uad6d"}, [0, 4]),
    "adaptive: kana": ({}, "\u304b\u306a", 5, (4,), {"x0": "\u304b", "x16": "\u306a"}, [0, 4]),
    "adaptive: Han after a pair": ({}, "iii\u6211", 5, (4,), {"x0": "ii", "x8": "i", "x16": "\u6211"}, [0, 4]),
    # a word of three joined letters stays whole: 36 columns are 5 patches; in order from the right
    "adaptive: Arabic": ({}, "\u0633\u0644\u0645", 6, (5,), {"x0": "\u0645\u0644\u0633"}, [0, 5]),
    "adaptive: pair": ({}, ("ii", "i"), 4, (1, 3), {"x0": "ii", "x16": "i"}, None),
    "adaptive: words": ({}, ["ii", "i"], 4, (3,), {"x0": "ii", "x16": "i"}, [0, 2, 3]),
    "adaptive: empty": ({}, "", 1, (0,), {}, [0]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_patches_separators_and_words_stand_where_they_were_counted(name: str):
    changes, text, num_patches, black, texts, word_starts = DRAWN[name]
    strip = renderer(**changes)(text)
    assert (strip.num_patches, strip.separators, starts(strip)) == (num_patches, black, word_starts)
    assert np.array_equal(strip.pixels, picture(num_patches, black, **texts))


@pytest.mark.parametrize("changes", [PADDED, {"layout": "words"}, SENTENCES, PAIRS, NO_GAP, ORIGINAL, {}], ids=str)
@pytest.mark.parametrize(
    "text", ["", "a", "ab cd", ("", ""), ("ab", "c"), ("", "ab"), [], ["ab"], ["ab", "", "c"]], ids=repr
)
def test_a_strip_ends_in_a_black_patch(changes: dict[str, Any], text: Any):
    strip = renderer(**changes)(text)
    assert strip.separators[-1] == strip.num_patches - 1
    assert (strip.patches[list(strip.separators)] == 0).all()
    assert len(strip.separators) == (2 if isinstance(text, tuple) else 1)


# ---- which characters stand on a patch -------------------------------------------------------------------------------

HEBREW = "\u05d0\u05d1 \u05d2"  # boxes of 12: the third letter, the space, the second, the first

SPANS: dict[str, tuple[dict[str, Any], Any, list[list[int]]]] = {
    # a: columns 2 to 7, b: 7 to 12
    "continuous": (PADDED, "ab", [[0, 0, 2], [0, 1, 2], END]),
    "continuous: blank patch before the end": (PADDED, "abci", [[0, 0, 2], [0, 1, 3], [0, 2, 4], END]),
    "continuous: tab and newline": (PADDED, "a\nb\tc", [[0, 0, 2], [0, 1, 4], [0, 3, 5], [0, 5, 5], END]),
    "continuous: two spaces": (PADDED, "a  b", [[0, 0, 2], [0, 1, 4], [0, 3, 4], END]),
    # boxes at 0, 15 (after the space), 27; logical indices although they stand from right to left
    "continuous: right to left": (
        {"layout": "continuous"},
        HEBREW,
        [[0, 3, 4], [0, 1, 4], [0, 1, 2], [0, 0, 2], [0, 0, 1], END],
    ),
    "continuous: pair": (PADDED, ("ab", "c"), [[0, 0, 2], [0, 1, 2], END, [1, 0, 1], [1, 1, 1], END]),
    "continuous: words are joined by spaces": (PADDED, ["ab", "c"], [[0, 0, 2], [0, 1, 3], [0, 3, 4], END]),
    "continuous: empty": (PADDED, "", [[0, 0, 0], END]),
    "words": ({"layout": "words"}, "ab  c", [[0, 0, 2], [0, 1, 3], [0, 4, 5], END]),
    "words: right to left": (
        {"layout": "words"},
        HEBREW,
        [[0, 1, 3], [0, 0, 2], [0, 0, 1], [0, 0, 1], [0, 3, 4], [0, 3, 4], END],
    ),
    "pairs": (PAIRS, "iii ii", [[0, 0, 2], [0, 2, 4], [0, 4, 6], END]),
    "pairs: right to left": (
        PAIRS,
        HEBREW,
        [[0, 3, 4], [0, 3, 4], [0, 2, 3], [0, 1, 2], [0, 0, 2], [0, 0, 1], END],
    ),
    "pairs: pair": (PAIRS, ("ii", "iii"), [[0, 0, 2], END, [1, 0, 2], [1, 2, 3], END]),
    "pairs without gap": (NO_GAP, "ii  i", [[0, 0, 2], [0, 4, 5], END]),
    "original": (ORIGINAL, "iii i", [[0, 0, 2], [0, 2, 3], [0, 4, 5], END]),
    # words from the right, and in them the letters
    "original: right to left": (
        ORIGINAL,
        HEBREW,
        [[0, 3, 4], [0, 3, 4], [0, 1, 2], [0, 0, 2], [0, 0, 1], END],
    ),
    "original: words right to left keep their order": (
        ORIGINAL,
        HEBREW.split(),
        [[0, 1, 2], [0, 0, 2], [0, 0, 1], [0, 3, 4], [0, 3, 4], END],
    ),
    "adaptive": ({}, "ii \u6211i", [[0, 0, 2], [0, 2, 3], [0, 3, 4], [0, 3, 4], [0, 4, 5], END]),
    "adaptive: mixed directions": (
        {},
        "ii \u0633\u0644",
        [[0, 0, 2], [0, 2, 3], [0, 4, 5], [0, 3, 5], [0, 3, 4], END],
    ),
}


@pytest.mark.parametrize("name", SPANS)
def test_char_spans_are_in_logical_order(name: str):
    changes, text, spans = SPANS[name]
    assert renderer(**changes)(text).char_spans.tolist() == spans


@pytest.mark.parametrize("changes", [PADDED, {"layout": "words"}, SENTENCES, PAIRS, ORIGINAL, {}], ids=str)
def test_spans_of_words_count_as_in_the_words_joined_by_spaces(changes: dict[str, Any]):
    words = ["ab", "c", "iii"]
    spans = renderer(**changes)(words).char_spans
    drawn = {i for _, start, end in spans.tolist() for i in range(start, end)}
    assert {i for i, character in enumerate(" ".join(words)) if character != " "} <= drawn


# ---- directions ------------------------------------------------------------------------------------------------------


def first_of_each_patch(strip: Strip) -> list[int]:
    return strip.char_spans[:-1, 1].tolist()


@pytest.mark.parametrize("changes", [{"layout": "continuous"}, PAIRS, {}], ids=str)
def test_a_latin_word_in_a_text_from_right_to_left_keeps_its_order(changes: dict[str, Any]):
    strip = renderer(**changes)("\u05d0 ii \u05d1")
    clusters = strip.clusters()
    assert clusters[:, 1].tolist() == [5, 4, 2, 3, 1, 0]


@pytest.mark.parametrize(
    "direction, order", [("auto", [0, 1, 2, 4, 3]), ("ltr", [0, 1, 2, 4, 3]), ("rtl", [4, 3, 2, 0, 1])]
)
@pytest.mark.parametrize("changes", [{"layout": "continuous"}, PAIRS, {}], ids=str)
def test_the_direction_may_be_given(direction: str, order: list[int], changes: dict[str, Any]):
    strip = renderer(**changes, direction=direction)("ii \u05d0\u05d1")
    assert strip.clusters()[:, 1].tolist() == order


def test_words_given_one_by_one_stand_from_left_to_right_whatever_their_direction():
    for changes in (PADDED, {"layout": "words"}, SENTENCES, PAIRS, ORIGINAL, {}):
        strip = renderer(**changes)(["\u05d0\u05d1", "\u05d2"])
        assert strip.char_spans[0].tolist()[1:] != [3, 4]
        assert strip.char_spans[-2].tolist() == [0, 3, 4]


def test_a_few_letters_from_right_to_left_do_not_turn_an_original_text_round():
    spans = renderer(**ORIGINAL)("\u05d0\u05d1 iiiiii").char_spans[:-1]
    assert spans[0, 1] == 0 and spans[-1].tolist() == [0, 7, 9]


# ---- pieces of a word ------------------------------------------------------------------------------------------------


def test_a_pair_of_graphemes_is_not_a_pair_of_code_points():
    text = "i\u0308i\u0308ii"  # two clusters of two code points each
    by_cluster, by_code_point = renderer(**PAIRS)(text), renderer(**{**PAIRS, "unit": "code-point"})(text)
    assert by_cluster.char_spans[:-1, 1:].tolist() == [[0, 4], [4, 6]]
    assert by_code_point.char_spans[:-1, 1:].tolist() == [[0, 2], [2, 4], [4, 6]]


def test_equal_words_have_equal_patches_wherever_they_stand():
    for changes in (PAIRS, NO_GAP, ORIGINAL, {}):
        strip = renderer(**changes)("abc d abc ii abc d")
        word_starts = strip.word_starts
        assert word_starts is not None
        first, second, third = (strip.patches[start : start + 3].tobytes() for start in word_starts[[0, 2, 4]])
        assert first == second == third


@pytest.mark.parametrize("changes", [PAIRS, {}], ids=str)
@pytest.mark.parametrize("space", ["\n", "\t", "\r", "\u2028"])
def test_any_white_space_ends_a_word_on_patches_of_its_own(space: str, changes: dict[str, Any]):
    render = renderer(**changes)
    strip, spaced = render(f"ii{space}iii"), render("ii iii")
    assert np.array_equal(strip.pixels, spaced.pixels) and starts(strip) == starts(spaced)


# ---- what does not fit, as the originals have it ---------------------------------------------------------------------

CLIP = {"overflow": "clip"}


def test_the_end_patch_covers_what_runs_over_it():
    strip = renderer(**PADDED, **CLIP)("abcdef", 3)
    assert np.array_equal(strip.pixels, picture(3, (2,), x2="abc"))


def test_the_separator_and_the_end_patch_of_a_pair_may_coincide():
    strip = renderer(**PADDED, **CLIP)(("abcdef", "abc"), 3)
    assert (strip.num_patches, strip.separators) == (3, (2,))


@pytest.mark.parametrize("max_patches, kept", [(9, 4), (8, 4), (7, 3), (6, 3), (5, 2), (4, 2), (3, 1)])
def test_words_that_would_start_on_the_last_patch_are_dropped(max_patches: int, kept: int):
    strip = renderer(**PADDED, **CLIP)(["ab", "cd", "ef", "ab"], max_patches)
    expected = [0, 2, 4, 6, 8][: kept + 1]
    assert starts(strip) == [min(start, max_patches - 1) for start in expected]
    assert (strip.drawn, strip.num_patches) == ((kept,), min(expected[-1] + 1, max_patches))


# each word two patches: where the last one alone is too long, one word more than necessary goes
@pytest.mark.parametrize("max_patches, kept", [(7, 3), (6, 3), (5, 1), (4, 1), (3, 1), (2, 1)])
def test_bigrams_drop_one_word_more_than_needed_but_never_the_first(max_patches: int, kept: int):
    strip = renderer(**ORIGINAL, **CLIP)("ab cd ab", max_patches)
    word_starts = starts(strip)
    assert word_starts is not None
    assert len(word_starts) == kept + 1
    assert strip.num_patches == min(2 * kept + 1, max_patches)


def test_bigrams_that_fill_the_strip_lose_their_last_patch_to_the_end_patch():
    strip = renderer(**ORIGINAL, **CLIP)("ab cd", 4)
    assert np.array_equal(strip.pixels, picture(4, (3,), x0="ab", x16="cd"))


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_layout_that_can_be_chosen_is_there():
    assert tuple(LAYOUTS) == CHOICES["layout"]


def test_an_unknown_layout_is_answered_with_those_there_are():
    with pytest.raises(RenderError, match="it must be one of continuous, words, sentences, bigrams, adaptive"):
        renderer(layout="grid")


@pytest.mark.parametrize("max_patches", [3, 40, 41])
def test_strip_of_pairs_that_is_cut_keeps_the_ink_of_what_fits(max_patches: int):
    renderer = Renderer(RenderConfig.named("pixel-m4"))
    text = "the quick brown fox jumps over it. " * 30
    whole, cut = renderer(text, 2000), renderer(text, max_patches)
    assert cut.word_starts is not None
    kept = int(cut.word_starts[-1])
    assert 0 < kept < cut.num_patches <= max_patches
    assert np.array_equal(cut.patches[:kept], whole.patches[:kept])
    assert (whole.patches[:kept] < 255).any()
