"""Look-alikes: what the tables hold, how many characters are replaced, and what a font makes of the replacements."""

import random
import string
import unicodedata
from collections import Counter

import pytest

from infer.confusables import DRAWN, MISSING, STRATA, UNCHANGED, Strata, built_in, confuse, read_confusables
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.infer.tiny_pixar import RENDER

CYRILLIC_A, GREEK_ALPHA, WIDE_A, LATIN_ALPHA = "\u0430", "\u03b1", "\uff41", "\u0251"
TEXT = "The quick brown fox jumps over 13 lazy dogs."


@pytest.fixture(scope="module")
def strata() -> Strata:
    """Of our table and our font."""
    return Strata(Renderer(RENDER), built_in())


# ------------------------------------------------------------------ tables


def test_our_table_holds_forms_of_the_basic_letters_and_nothing_that_is_one():
    table = built_in().look_alikes
    assert sorted(table) == sorted(string.ascii_letters)
    assert {CYRILLIC_A, GREEK_ALPHA, WIDE_A, "\U0001d41a"} <= set(table["a"])
    assert "\u212a" in table["K"] and "\u2170" in table["i"]  # the sign of kelvin, a small Roman one
    everything = [one for others in table.values() for one in others]
    assert all(len(one) == 1 and not one.isascii() for one in everything)
    assert not {"\u00aa", "\u017f", "\u24d0", "\u1d43"} & set(everything)  # raised, long, circled: other signs
    forms = [(letter, unicodedata.normalize("NFKC", one)) for letter, others in table.items() for one in others]
    assert all(form == letter for letter, form in forms if form.isascii())


def test_characters_of_a_file_look_alike_where_they_look_like_the_same(tmp_path):
    file = tmp_path / "confusables.txt"
    file.write_text(
        "\ufeff# a comment\n0430 ;\t0061 ;\tMA\t# ( a -> a )\nFF41 ; 0061 ; MA\n\n006D ; 0072 006E ; MA\n"
        "2028 ; 0020 ; MA\n00A0 ; 0020 ; MA\n"
    )
    table = read_confusables(file)
    assert table.look_alikes == {
        "a": (CYRILLIC_A, WIDE_A),
        CYRILLIC_A: ("a", WIDE_A),
        WIDE_A: ("a", CYRILLIC_A),
        "m": ("rn",),
    }
    assert "7 look-alikes of 4 characters" in table.name


@pytest.mark.parametrize(
    "content, message",
    [
        ("0430 0061\n", "line 1: is not of the form"),
        ("# only a comment\n\nxyz ; 0061 ; MA\n", "line 3: is not of the form"),
        ("0430 ; FFFFFFFF ; MA\n", "line 1: is not of the form"),
        ("# nothing\n", "has no characters that look alike"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    file = tmp_path / "table.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_confusables(file)


def test_the_file_of_unicode_is_read_whole(shared):
    table = read_confusables(shared / "data" / "unicode" / "confusables_uts39.txt").look_alikes
    assert set(string.ascii_letters) - set(table) == set()
    assert CYRILLIC_A in table["a"] and "a" in table[CYRILLIC_A]
    assert "rn" in table["m"] and "0" in table["O"]
    assert " " not in table


# ------------------------------------------------------------------ strata


def test_our_font_has_all_three_strata(strata):
    assert strata.of("a", CYRILLIC_A) == UNCHANGED
    assert strata.of("a", GREEK_ALPHA) == DRAWN
    assert strata.of("a", WIDE_A) == MISSING
    assert set(strata.choices("a", UNCHANGED)) == {CYRILLIC_A}
    assert sorted(one for stratum in STRATA for one in strata.choices("a", stratum)) == sorted(
        strata.choices("a", None)
    )


def test_strata_are_those_of_the_font(shared):
    fonts = shared / "fonts"
    pixeloid = str(fonts / "pixeloid" / "PixeloidSans-mLxMm.ttf")

    def of(*files: str, character: str) -> str:
        return Strata(Renderer(RenderConfig.named("pixar", fonts=files, size=9)), built_in()).of("a", character)

    assert of(pixeloid, character=CYRILLIC_A) == UNCHANGED
    assert of(pixeloid, character=LATIN_ALPHA) == MISSING
    # another font in the chain has it, and draws it in its own way
    assert of(pixeloid, str(fonts / "noto" / "NotoSans-Regular.ttf"), character=LATIN_ALPHA) == DRAWN


# ------------------------------------------------------------------ the attack


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6])
def test_the_ratio_is_the_share_that_is_replaced(strata, ratio):
    count = 4000
    found = confuse("a" * count, ratio, random.Random("7"), strata)
    assert found.eligible == count
    assert abs(len(found.replacements) - ratio * count) < 4.5 * (count * ratio * (1 - ratio)) ** 0.5


def test_each_look_alike_is_equally_likely(strata):
    found = confuse("a" * 4000, 1, random.Random("7"), strata)
    counted = Counter(one.by for one in found.replacements)
    choices = strata.choices("a", None)
    expected = 4000 / len(choices)
    assert set(counted) == set(choices)
    assert sum((counted[one] - expected) ** 2 / expected for one in choices) < 3 * len(choices)  # chi-squared


def test_a_text_is_attacked_in_the_same_way_each_time_and_a_higher_ratio_goes_on(strata):
    some, more = (confuse(TEXT, ratio, random.Random("1"), strata) for ratio in (0.2, 0.6))
    assert some == confuse(TEXT, 0.2, random.Random("1"), strata)
    assert some != confuse(TEXT, 0.2, random.Random("2"), strata)
    assert 0 < len(some.replacements) < len(more.replacements)
    assert set(some.replacements) < set(more.replacements)


def test_what_was_replaced_is_told_and_the_rest_stays(strata):
    found = confuse(TEXT, 0.5, random.Random("3"), strata)
    places = {one.index: one for one in found.replacements}
    assert len(found.text) == len(TEXT)
    for index, (before, after) in enumerate(zip(TEXT, found.text, strict=True)):
        assert (before == after) == (index not in places)
        if index in places:
            assert places[index].character == before and places[index].by == after
            assert places[index].stratum == strata.of(before, after)
    assert found.eligible == sum(character.isalpha() for character in TEXT)


@pytest.mark.parametrize("ratio, stratum", [(0, None), (1, UNCHANGED), (1, DRAWN), (1, MISSING)])
def test_a_stratum_is_taken_alone(strata, ratio, stratum):
    found = confuse(TEXT, ratio, random.Random("3"), strata, stratum)
    assert {one.stratum for one in found.replacements} == ({stratum} if ratio else set())
    assert len(found.replacements) == (found.eligible if ratio else 0)
    assert all(strata.choices(one.character, stratum) for one in found.replacements)
