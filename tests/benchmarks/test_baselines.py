"""The baselines that our models are compared with must themselves be right: probabilities that sum to one, entropies of
sources that are known, counts that a plain loop confirms."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from benchmarks.text_baselines import MAX_ORDER, count_orders, next_byte, ngrams, order_bits, read_text, xz_size
from benchmarks.written_overlap import grams, longest_run, passages_of_lengths, shares_found, words

TEXT = ("the cat sat on the mat; the rat sat on the cat. a höher bär? " * 20).encode()


def witten_bell(training: bytes, context: bytes, symbol: int, order: int) -> float:
    """The formula, counted by a loop."""
    if order < 0:
        return 1 / 256
    lower = witten_bell(training, context, symbol, order - 1)
    if order > len(context):
        return lower
    after: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    for end in range(order, len(training)):
        after[training[end - order : end]][training[end]] += 1
    counts = after[context[len(context) - order :]]
    if not counts:
        return lower
    return (counts[symbol] + len(counts) * lower) / (counts.total() + len(counts))


@pytest.mark.parametrize("context", [b"", b"t", b"the c", b"on the", b"t\xc3", b"never seen", bytes(9)])
@pytest.mark.parametrize("order", [0, 1, 5, MAX_ORDER])
def test_next_byte_probabilities_sum_to_one_and_are_positive(context: bytes, order: int):
    probability_S = next_byte(count_orders(TEXT, order), context)
    assert probability_S.sum() == pytest.approx(1, abs=1e-12)
    assert probability_S.min() > 0


@pytest.mark.parametrize("order", [0, 2, 5])
def test_order_bits_are_those_of_the_formula(order: int):
    held_out = "the rät sat ☃".encode()
    expected = sum(
        -math.log2(witten_bell(TEXT, held_out[max(0, n - order) : n], symbol, order))
        for n, symbol in enumerate(held_out)
    )
    assert order_bits(count_orders(TEXT, order), held_out)[order] == pytest.approx(expected, rel=1e-12)


def test_next_byte_is_what_order_bits_charges():
    held_out = b"the cab"
    orders = count_orders(TEXT, 3)
    charged = [-math.log2(next_byte(orders, held_out[:n])[symbol]) for n, symbol in enumerate(held_out)]
    assert order_bits(orders, held_out)[3] == pytest.approx(sum(charged), rel=1e-12)


def test_bits_of_a_known_source_reach_its_entropy():
    generator = np.random.default_rng(0)
    chances = [0.5, 0.25, 0.125, 0.125]
    draw = generator.choice(np.frombuffer(b"abcd", np.uint8), size=(2, 200_000), p=chances).astype(np.uint8)
    bits = order_bits(count_orders(draw[0].tobytes(), 2), draw[1].tobytes())
    assert bits[0] / draw.shape[1] == pytest.approx(1.75, abs=0.01)
    assert bits[2] / draw.shape[1] == pytest.approx(1.75, abs=0.01)  # nothing to learn from contexts, little to lose


def test_a_source_with_memory_is_only_seen_with_its_context():
    generator = np.random.default_rng(0)
    sequence = [0, 0, 0, 1, 0, 1, 1, 1] * 2500  # no four bits come twice, so four decide the next
    mixed = bytes(b"ab"[bit] for bit in sequence)
    orders = count_orders(mixed, 5)
    bits = order_bits(orders, mixed[:5000])
    assert bits[0] / 5000 == pytest.approx(1, abs=0.02)
    assert bits[5] / 5000 < 0.05
    noise = generator.integers(0, 256, 5000, dtype=np.uint8).tobytes()
    assert order_bits(orders, noise)[5] / 5000 > 8  # never-seen bytes cost more than uniform, but are not infinite


def test_more_context_than_64_bits_hold_is_refused():
    with pytest.raises(ValueError, match="order = 8 must be at most 7"):
        ngrams(np.zeros(20, np.uint8), 8)


def test_highest_order_does_not_mix_up_contexts():
    grams_N = ngrams(np.frombuffer(b"\xff" * 9, np.uint8), MAX_ORDER)
    assert grams_N.tolist() == [2**64 - 1] * 2


def test_xz_after_the_same_text_adds_next_to_nothing():
    text = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    alone = xz_size(text, 2 * len(text))
    assert alone >= len(text)
    assert xz_size(text + text, 2 * len(text)) - alone < 0.01 * len(text)


def test_bytes_counted_are_those_of_the_documents(tmp_path):
    (tmp_path / "a.txt").write_text("één\ntwee\n\ndrie\n", encoding="utf-8")
    text = read_text([str(tmp_path)])
    assert text.joined.decode() == "één\ntwee\ndrie"
    assert (text.num_documents, text.num_bytes) == (2, len("één\ntwee".encode()) + len("drie"))


def test_words_forget_case_and_punctuation():
    assert words("“Don’t,” said O'Neil; 3 times -- no_more!") == ["don't", "said", "o'neil", "3", "times", "no_more"]


def test_shares_count_every_occurrence_and_do_not_cross_documents():
    training = [list("abcdef"), list("ghij")]
    groups = {"recited": [list("abcdef")], "half": [list("abcdxyz")], "across": [list("efgh")], "short": [list("ab")]}
    shares = shares_found(groups, training, size=3)
    assert {name: (share.num_grams, share.num_found, share.longest) for name, share in shares.items()} == {
        "recited": (4, 4, 6),
        "half": (5, 2, 4),
        "across": (2, 0, 0),
        "short": (0, 0, 0),
    }
    assert shares["half"].share == 0.4
    assert shares["short"].share == 0


def test_grams_and_runs():
    assert list(grams(list("abcd"), 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert longest_run([True, True, False, True]) == 2
    assert longest_run([]) == 0


def test_passages_have_the_lengths_asked_for_and_follow_the_seed():
    texts = [list("abcdefgh"), list("ijklmnop")]
    passages = passages_of_lengths(texts, [3, 16, 0, 5], seed=1)
    assert [len(passage) for passage in passages] == [3, 16, 0, 5]
    assert all("".join(passage) in "abcdefghijklmnop" for passage in passages)
    assert passages == passages_of_lengths(texts, [3, 16, 0, 5], seed=1)
    with pytest.raises(ValueError, match="17 words and the held-out text 16"):
        passages_of_lengths(texts, [17], seed=0)
