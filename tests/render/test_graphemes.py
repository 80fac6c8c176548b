"""Where a text may be cut: each rule of UAX #29 by hand, and the `regex` package as a witness."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render import graphemes
from render.graphemes import boundaries, clusters

CUT = [
    ("no text", []),
    ("Latin", ["a", "b", "c"]),
    ("GB3 CR LF", ["a", "\r\n", "b"]),
    ("GB3 not LF CR", ["\n", "\r"]),
    ("GB4 after a control", ["\u0007", "\u0301"]),
    ("GB5 before a control", ["a\u0301", "\u200b", "b"]),
    ("GB6 leading jamo", ["ᄀᄀ각"]),
    ("GB7 LV with a vowel", ["가ᅡᆨ"]),
    ("GB8 LVT with a trail", ["각ᆨ"]),
    ("GB8 not a lead after a trail", ["각ᆨ", "ᄀ"]),
    ("GB7 not a vowel after LVT", ["각", "ᅡ"]),
    ("syllables stand alone", ["한", "국", "어"]),
    ("GB9 accents", ["e\u0301\u0323", "e"]),
    ("GB9 marks without a base", ["\u0301\u0302"]),
    ("GB9 joiners", ["a\u200d", "b\u200c", "c"]),
    ("GB9 Arabic marks", ["سَ", "لَ", "ا"]),
    ("GB9 Tamil", ["நி", "ழ"]),
    ("GB9 Bengali length mark", ["ক\u09be"]),
    ("GB9 halfwidth kana", ["ｶﾞ", "ﾊﾟ"]),
    ("GB9a spacing marks", ["का", "मे"]),
    ("GB9a Thai", ["ก\u0e33", "ข"]),
    ("GB9a not every Mc", ["က", "\u102c"]),
    ("GB9b prepended", ["\u0600١", "٢"]),
    ("GB9b before a core with marks", ["\u0d4eക\u0d3e"]),
    ("GB9b not before a control", ["\u0600", "\n"]),
    ("GB9b several", ["\u0600\u06ddا"]),
    ("GB9c Devanagari", ["क्षि"]),
    ("GB9c three consonants", ["स्त्री"]),
    ("GB9c with nukta and joiner", ["क\u093c\u094d\u200dत"]),
    ("GB9c not over a non-joiner", ["क\u094d\u200c", "त"]),
    ("GB9c not over a vowel", ["का\u094d", "त"]),
    ("GB9c not without a linker", ["क\u093c", "त"]),
    ("GB9c not before a letter", ["क्", "a"]),
    ("GB9c Malayalam", ["ക്ത"]),
    ("GB9c Khmer", ["ខ\u17d2ម", "រ"]),
    ("GB9c Myanmar", ["က\u1039ခ"]),
    ("GB9c not in Tamil", ["க்", "ஷ"]),
    ("GB11 family", ["👨\u200d👩\u200d👧\u200d👦"]),
    ("GB11 skin tone", ["👩🏽\u200d🚀"]),
    ("GB11 variation selector", ["❤\ufe0f\u200d🔥"]),
    ("GB11 not after a letter", ["a\u200d", "👩"]),
    ("GB11 not after two joiners", ["👩\u200d\u200d", "👩"]),
    ("keycap", ["1\ufe0f\u20e3", "2"]),
    ("tag flag", ["🏴\U000e0067\U000e0062\U000e007f", "x"]),
    ("GB12 flags", ["🇩🇪", "🇫🇷"]),
    ("GB12 odd flag", ["🇩🇪", "🇫"]),
    ("GB13 after a letter", ["a", "🇩🇪", "🇫\u0301", "🇷"]),
    ("GB999", ["漢", "字", "か", "な", "Я", "1", " "]),
]


@pytest.mark.parametrize("pieces", [pytest.param(pieces, id=name) for name, pieces in CUT])
def test_text_is_cut_by_the_rules(pieces: list[str]) -> None:
    assert clusters("".join(pieces)) == pieces


@given(st.text(st.characters(exclude_categories=[])))  # surrogates too
def test_clusters_are_the_whole_text(text: str) -> None:
    ends = boundaries(text)

    assert ends == sorted(set(ends))
    assert ends[-1:] == ([len(text)] if text else [])
    assert 0 not in ends
    assert "".join(clusters(text)) == text


@given(st.text("aé漢👍🇩ᄀ각क\u094d\u0301\u200d\u0600\r\n", max_size=12), st.text(max_size=5))
def test_a_cut_text_is_cut_no_further(text: str, tail: str) -> None:
    for cluster in clusters(text + tail):
        assert clusters(cluster) == [cluster]


def test_marks_since_unicode_14_do_not_depend_on_python() -> None:
    assert clusters("a\u0897b\u0ece") == ["a\u0897", "b\u0ece"]  # Unicode 16 and 15
    assert clusters("ಕ\u0cf3") == ["ಕ\u0cf3"]


def test_simple_characters_join_nothing() -> None:
    """The fast way out of `boundaries` is for characters which the rules keep apart whatever stands beside them."""
    never_joins = "-.nKEbd"  # needs a linker, a joiner or a jamo, none of which is simple
    simple = graphemes._JOINING.sub("", "".join(map(chr, range(0x110000))))

    assert len(simple) > 100_000
    assert [f"U+{ord(c):04X}" for c in simple if graphemes._CLASSES[c] not in never_joins] == []


@pytest.mark.parametrize(
    "text, count",
    [
        ("a" * 1_000_000, 1_000_000),
        ("a" + "\u0301" * 10_000, 1),
        ("क\u094d" * 100_000, 1),
        ("क" + "\u0301" * 200_000 + "a", 2),
        ("👩" + "\u0301" * 200_000 + "👩", 2),
        ("👩\u200d" * 100_000, 1),
        ("🇩" * 200_000, 100_000),
        ("ᄀ" * 200_000, 1),
        ("\u0600" * 200_000, 1),
    ],
    ids=[
        "one word", "marks", "conjuncts", "marks of a consonant", "marks of an emoji", "emoji", "flags", "jamo",
        "prepended",
    ],
)  # fmt: skip
def test_time_is_linear(text: str, count: int) -> None:
    """No figure is asserted: quadratic time would not come back at all."""
    assert len(boundaries(text)) == count


WITNESS_ABSENT = "the regex package is not installed: nothing to compare with"


def test_regex_cuts_every_character_alike() -> None:
    """U+11A3A, a prefixed letter, was Prepend until Unicode 17; the witness joins it to consonants only."""
    regex = pytest.importorskip("regex", reason=WITNESS_ABSENT)
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    text = "a".join(character for character in known if character != "\U00011a3a" and not "一" <= character <= "\ud7ff")

    assert boundaries(text) == [cluster.end() for cluster in regex.finditer(r"\X", text)]


@pytest.mark.parametrize(
    "alphabet",
    [
        "ab\u0301\u0308\u200d\u200c\u00ad\u0600\r\n\u0e33",
        ["क", "क्", "क\u093c\u094d", "क\u094d\u200d", "त", "त्", "ക", "ക്", "\u093e", "\u0301", "\u200c", "a"],
        "👩👨🚀❤\u200d\u200d\ufe0f🏽🇩🇪a",
        "각가각ᄀ\u0301a",
    ],
    ids=["marks", "conjuncts", "emoji", "Hangul"],
)
def test_regex_cuts_texts_alike(alphabet: str | list[str]) -> None:
    """Linkers only follow consonants here: behind anything else they join the next consonant in the witness, which is
    not what GB9c says."""
    regex = pytest.importorskip("regex", reason=WITNESS_ABSENT)

    @settings(max_examples=200)
    @given(st.lists(st.sampled_from(alphabet), max_size=20).map("".join))
    def compare(text: str) -> None:
        assert clusters(text) == regex.findall(r"\X", text)

    compare()
