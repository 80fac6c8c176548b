"""Masks are those of the published rules, drawn as a loop would draw them, and each row's is its own."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.masking import PythonDraws, mask_by_loop
from pixelcore import masking
from pixelcore.errors import UserError
from pixelcore.masking import MASK_RULES, check_mask, draw_masks, mix_seed, parse_patches

SPAN_RULES = ("span", "span-m4")
BITS_64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalise(bits: int) -> int:
    """splitmix64's finaliser in plain integers."""
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & BITS_64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & BITS_64
    return bits ^ bits >> 31


class HashedDraws:
    """The draws that a seed stands for, for the loop."""

    def __init__(self, seed: int) -> None:
        self.spans, self.noises = (finalise(finalise(seed & BITS_64) + stream) for stream in (1, 2))
        self.num_attempts = 0

    def span(self) -> int:
        self.bits = finalise(self.spans + self.num_attempts * GOLDEN & BITS_64)
        self.num_attempts += 1
        return (1, 1, 2, 2, 3, 3, 4, 4, 5, 6)[(self.bits >> 32) * 10 >> 32]

    def left(self, last: int) -> int:
        return (self.bits & 2**32 - 1) * (last + 1) >> 32

    def noise(self, size: int) -> Sequence[float]:
        places = range(1, size + 1)
        return [finalise(self.noises + place * GOLDEN & BITS_64) >> 17 << 16 | place for place in places]


def seeds(count: int, run: int = 0) -> np.ndarray:
    return mix_seed(run, np.arange(count))


def runs(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last patch of each hidden run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
    return edges[::2], edges[1::2]


# What is drawn


@settings(max_examples=100)
@given(
    rule=st.sampled_from(MASK_RULES),
    length=st.integers(2, 600),
    padding=st.sampled_from([None, 0, 1, 40, 400]),
    ratio=st.floats(0.05, 0.75),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_a_mask_is_the_loops_mask_of_the_same_draws(rule, length, padding, ratio, seed):
    size = length + (padding or 0)
    mask = draw_masks(rule, [length], [seed], ratio, None if padding is None else size)[0]
    expected = np.array(mask_by_loop(rule, length, ratio, size, HashedDraws(seed)))
    assert mask.shape == (size,)
    assert 0 < mask[:length].sum() < length
    if 0 < expected[:length].sum() < length:
        assert mask.tolist() == expected.tolist()
    elif not expected.all():  # of the text none is hidden, or all: one patch changed places with one of the padding
        assert (mask[:length] != expected[:length]).sum() == (mask[length:] != expected[length:]).sum() == 1


@pytest.mark.parametrize("rule", MASK_RULES)
@pytest.mark.parametrize(("length", "count"), [(529, 133), (511, 128), (256, 64), (2, 1), (3, 1), (4, 1), (5, 2)])
def test_exactly_the_patches_are_hidden_that_the_model_hides(rule, length, count):
    packed = draw_masks(rule, [length] * 200, seeds(200), 0.25)
    padded = draw_masks(rule, np.arange(200) % (length - 1) + 2, seeds(200), 0.25, length)
    assert packed.shape == padded.shape == (200, length)
    assert (packed.sum(axis=1) == count).all() and (padded.sum(axis=1) == count).all()


@pytest.mark.parametrize("rule", MASK_RULES)
def test_packed_rows_hide_a_share_of_their_own_and_never_padding(rule):
    lengths = np.arange(2, 602)
    masks = draw_masks(rule, lengths, seeds(600), 0.25)
    assert masks.shape == (600, 601)
    assert not masks[np.arange(601) >= lengths[:, None]].any()
    assert masks.sum(axis=1).tolist() == [n - int(n * 0.75) for n in lengths]


@pytest.mark.parametrize("rule", SPAN_RULES)
def test_spans_are_at_most_six_long_and_keep_their_distance(rule):
    for row in draw_masks(rule, [300] * 200, seeds(200), 0.25, 529):
        first, end = runs(row)
        size = end - first
        assert size.max() <= 6
        gap = first[1:] - end[:-1]
        assert (gap >= np.minimum(size[1:], size[:-1])).all()  # the later span of the two kept its own length away


@pytest.mark.parametrize("padded_length", [None, 529])
@pytest.mark.parametrize("rule", SPAN_RULES)
def test_runs_are_as_long_as_the_loops(rule, padded_length):
    ours: Counter[int] = Counter()
    for row in draw_masks(rule, [529] * 500, seeds(500), 0.25, padded_length):
        first, end = runs(row)
        ours.update((end - first).tolist())
    loop: Counter[int] = Counter()
    for seed in range(150):
        first, end = runs(np.array(mask_by_loop(rule, 529, 0.25, 529, PythonDraws(seed))))
        loop.update((end - first).tolist())
    assert 2.7 < sum(size * count for size, count in ours.items()) / ours.total() < 2.9  # specs/pixel.md: 2.8
    for size in range(1, 7):
        p, q = ours[size] / ours.total(), loop[size] / loop.total()
        assert abs(p - q) < 4 * (q * (1 - q) * (1 / ours.total() + 1 / loop.total())) ** 0.5, f"runs of {size}"


@pytest.mark.parametrize(("length", "share"), [(300, 0.30), (100, 0.40), (30, 0.51)])
def test_m4_hides_more_of_the_text_the_more_padding_there_is(length, share):
    def share_hidden(rule: str) -> float:
        return float(draw_masks(rule, [length] * 1000, seeds(1000), 0.25, 529)[:, :length].mean())

    assert share_hidden("span-m4") == pytest.approx(share, abs=0.01)
    loop = [mask_by_loop("span-m4", length, 0.25, 529, PythonDraws(seed))[:length] for seed in range(150)]
    assert share_hidden("span-m4") == pytest.approx(np.mean(loop), abs=0.015)
    assert share_hidden("random") == pytest.approx(133 / 529, abs=0.01)
    first_span = 3 / length  # PIXEL's only span that is bound to the text
    assert 0.24 < share_hidden("span") < 0.26 + first_span


@pytest.mark.parametrize("padded_length", [None, 64])
def test_random_masks_hide_every_patch_equally_often(padded_length):
    often = draw_masks("random", [64] * 8000, seeds(8000), 0.25, padded_length).mean(axis=0)
    assert abs(often - 0.25).max() < 4.5 * (0.25 * 0.75 / 8000) ** 0.5


@pytest.mark.parametrize("rule", MASK_RULES)
def test_padded_rows_always_hide_some_text_and_leave_some(rule):
    lengths = np.arange(3000) % 60 + 2
    masks = draw_masks(rule, lengths, seeds(3000), 0.25, 529)
    text = np.arange(529) < lengths[:, None]
    hidden = (masks & text).sum(axis=1)
    assert (hidden > 0).all() and (hidden < lengths).all()


def test_without_padding_the_two_span_rules_are_one():
    lengths = [5, 40, 529]
    assert (draw_masks("span", lengths, seeds(3), 0.25) == draw_masks("span-m4", lengths, seeds(3), 0.25)).all()


# What a mask depends on


@pytest.mark.parametrize("padded_length", [None, 600])
@pytest.mark.parametrize("rule", MASK_RULES)
@pytest.mark.parametrize("ratio", [0.25, 0.6])
def test_a_row_alone_is_the_row_in_any_batch(rule, padded_length, ratio):
    lengths, chosen = np.arange(2, 602, 20), seeds(30)
    together = draw_masks(rule, lengths, chosen, ratio, padded_length)
    order = np.random.default_rng(0).permutation(30)
    mixed = draw_masks(rule, lengths[order], chosen[order], ratio, padded_length)
    assert (mixed == together[order]).all()
    for row in range(0, 30, 5):
        alone = draw_masks(rule, lengths[row : row + 1], chosen[row : row + 1], ratio, padded_length)[0]
        assert (alone == together[row, : len(alone)]).all()


@pytest.mark.parametrize("window", [1, 3, 32])
def test_how_many_attempts_are_tested_at_once_changes_nothing(window, monkeypatch):
    lengths = np.arange(20, 520, 10)
    expected = draw_masks("span-m4", lengths, seeds(50), 0.4, 529)
    monkeypatch.setattr(masking, "_next_window", lambda *_: window)
    assert (draw_masks("span-m4", lengths, seeds(50), 0.4, 529) == expected).all()


@pytest.mark.parametrize("rule", MASK_RULES)
def test_other_seeds_give_other_masks(rule):
    masks = draw_masks(rule, [529] * 2000, np.concatenate([seeds(1000), seeds(1000, run=1)]), 0.25)
    assert len({row.tobytes() for row in masks}) == 2000
    overlap = (masks[:1000] & masks[1000:]).sum(axis=1).mean()
    assert overlap == pytest.approx(133 * 133 / 529, rel=0.03)


@pytest.mark.parametrize(
    ("rule", "padded_length", "digest"),
    [
        ("random", None, "4e2e4a6d05cc155f"),
        ("random", 529, "1ed993412ce08147"),
        ("span", None, "fa5afcc184bd2caa"),
        ("span", 529, "17d2b3faaa8caf63"),
        ("span-m4", 529, "b551fe391af5e213"),
    ],
)
def test_masks_stay_what_they_are(rule, padded_length, digest):
    """A changed mask changes every training run: resumed runs would not be what they were."""
    masks = draw_masks(rule, [2, 7, 30, 100, 300, 529], [0, 1, -1, 2**63 - 1, -(2**63), 12345], 0.25, padded_length)
    assert hashlib.sha256(np.packbits(masks).tobytes()).hexdigest()[:16] == digest


def test_seeds_are_one_number_for_each_position():
    run = seeds(10_000)
    assert run.dtype == np.int64 and len(np.unique(np.concatenate([run, seeds(10_000, run=1)]))) == 20_000
    assert mix_seed(0, 7) == run[7] and mix_seed(0, 7).shape == ()
    assert mix_seed(-1, [[3, 2**40]]).shape == (1, 2)
    expected = finalise(finalise(5) + 9 * GOLDEN & BITS_64)
    assert int(mix_seed(5, 9)) & BITS_64 == expected


def test_no_rows_have_no_masks():
    assert draw_masks("span", [], [], 0.25, 529).shape == (0, 529)
    assert draw_masks("span", [], [], 0.25).shape == (0, 0)


# Masks made by hand


def test_patches_are_named_by_numbers_and_ranges():
    assert np.flatnonzero(parse_patches("3-8,12", 20)).tolist() == [3, 4, 5, 6, 7, 8, 12]
    assert np.flatnonzero(parse_patches(" 0 , 5 - 6,6,19", 20)).tolist() == [0, 5, 6, 19]


def test_a_mask_may_be_longer_than_the_strip_where_it_hides_nothing():
    assert check_mask([0, 1, 0, 0, 0], 3).tolist() == [False, True, False]
    assert check_mask(np.array([True, False]), 2).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a patch or a range"),
        ("3,", "'' is not a patch or a range"),
        ("3-", "'3-' is not a patch"),
        ("-3", "'-3' is not a patch"),
        ("1.5", "'1.5' is not a patch"),
        ("２", "'２' is not a patch"),
        ("4,8-3", "the range 8-3 ends before it begins: write 3-8"),
        ("7-20", "patch 20 is beyond the strip: it has 20 patches, 0 to 19"),
        ("1-999999999", "patch 999999999 is beyond the strip"),
        ("0-9,10-19", "hides all 20 patches of the strip: leave at least one visible"),
    ],
)
def test_patches_that_make_no_mask_are_refused(text, message):
    with pytest.raises(UserError) as failed:
        parse_patches(text, 20)
    assert message in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([0, 0, 0, 0], "hides none of the strip's 4 patches: hide at least one"),
        ([1, 1, 1, 1, 0], "hides all 4 patches"),
        ([1, 0, 0, 0, 0, 1], "patch 5 is beyond the strip: it has 4 patches, 0 to 3"),
        ([1, 0, 0], "3 values for a strip of 4 patches"),
        ([0, 1, 2, 0], "must be one row of 0 and 1"),
        ([[0, 1, 0, 0]], "a mask of shape [1, 4]: it must be one row"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(mask, message):
    with pytest.raises(UserError) as failed:
        check_mask(mask, 4)
    assert message in str(failed.value)


@pytest.mark.parametrize(
    ("rule", "lengths", "ratio", "padded_length", "message"),
    [
        ("spans", [9], 0.25, None, "mask rule = 'spans' is unknown: use one of random, span, span-m4"),
        ("span", [9], 0.0, None, "mask ratio = 0.0 must lie between 0 and 1"),
        ("span", [9], 1.0, 529, "mask ratio = 1.0 must lie"),
        ("span", [9], float("nan"), 529, "mask ratio = nan must lie"),
        ("random", [9, 1], 0.25, None, "row 1 has length 1: a mask hides one patch and leaves one visible"),
        ("random", [9, 1], 0.25, 529, "row 1 has length 1"),
        ("span", [9, 530], 0.25, 529, "row 1 has length 530 and the padded length is 529: cut the row or pad to more"),
        ("span", [9, 65536], 0.25, None, "a length of 65536 patches: masks are drawn up to 65535"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(rule, lengths, ratio, padded_length, message):
    with pytest.raises(UserError) as failed:
        draw_masks(rule, lengths, [0] * len(lengths), ratio, padded_length)
    assert message in str(failed.value)
