"""The character n-gram model: proper distributions, and the likeliest filling of a hole."""

import itertools

import numpy as np
import pytest

from infer.infilling import BOUNDARY, UNSEEN, CharacterNGrams

TEXTS = ["abracadabra", "barbara", "a cab", "dab a crab"]


@pytest.mark.parametrize("context", ["", "a", "ab", "abra", "zzzz", "dabx", BOUNDARY, "barbara" + BOUNDARY])
def test_what_follows_any_context_adds_up_to_one(context):
    found = CharacterNGrams(TEXTS)(context)
    assert found.shape == (len(CharacterNGrams(TEXTS).characters),)
    assert (found > 0).all()
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_the_smoothing_is_that_of_witten_and_bell():
    model = CharacterNGrams(["aab", "ab"])
    # in all, with the boundaries: a 3, b 2, boundary 3; three different ones; four characters with the unseen one
    uniform = 1 / 4
    order_0 = {"a": (3 + 3 * uniform) / 11, "b": (2 + 3 * uniform) / 11}
    # after a: a once, b twice
    assert model("a")[model.index["b"]] == pytest.approx((2 + 2 * order_0["b"]) / 5)
    # after aa: b once; after aa of an unseen longer context the same
    after_a = (2 + 2 * order_0["b"]) / 5
    assert model("aa")[model.index["b"]] == pytest.approx((1 + 1 * after_a) / 2)
    assert model("baa")[model.index["b"]] == pytest.approx(model("aa")[model.index["b"]])


def test_a_context_at_the_end_of_all_texts_backs_off():
    model = CharacterNGrams(["ab", "abq"])
    assert np.array_equal(model("bq" + BOUNDARY), model("q" + BOUNDARY))
    assert np.isfinite(model("bq" + BOUNDARY)).all()


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize(("left", "length", "right"), [("b", 3, "ra"), ("", 2, "cab"), ("a c", 4, ""), ("xq", 3, "b")])
def test_a_wide_beam_finds_what_trying_everything_finds(order, left, length, right):
    model = CharacterNGrams(TEXTS, order=order)
    reach = order - 1
    letters = [c for c in model.characters if c not in (BOUNDARY, UNSEEN)]
    fillings = ["".join(letters_of) for letters_of in itertools.product(letters, repeat=length)]
    scores = [model.log_probability(filling + right[:reach], left[-reach:]) for filling in fillings]
    filled = model.fill(left, length, right, beam=len(letters) ** 4)
    assert len(filled) == length
    assert scores[fillings.index(filled)] == pytest.approx(max(scores), abs=1e-9)


def test_what_stands_behind_a_hole_decides_too():
    model = CharacterNGrams(["the cat sat. the dog ran. the cat sat. the dog ran."])
    assert model.fill("the ", 3, " sat") == "cat"
    assert model.fill("the ", 3, " ran") == "dog"


def test_the_text_is_read_no_further_than_asked():
    def texts():
        yield "abc" * 10
        yield "def" * 10
        raise AssertionError("read too far")

    model = CharacterNGrams(texts(), most=40)
    assert "d" in model.index


def test_no_hole_is_filled_with_a_text_boundary():
    model = CharacterNGrams(["a", "b", "a", "b", "a"])
    assert BOUNDARY not in model.fill("", 6, "")
