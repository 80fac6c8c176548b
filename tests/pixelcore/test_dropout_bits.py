"""Dropout masks are a published generator's bits, and depend on nothing but where they are used."""

import math

import pytest
import torch

from pixelcore.dropout_bits import Drop, _philox, attention_p, keep_attention, keep_features
from pixelcore.packed import Packed

SEED = torch.tensor([42, 7])

# Random123's known answers for philox4x32: rounds, counter, key, result
ALL_ONES = 0xFFFFFFFF
PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
KNOWN_ANSWERS = [
    (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, (ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, *PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, (ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, *PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_generator_gives_the_published_answers(rounds, counter, key, expected):
    assert tuple(_philox(torch.tensor(key), *counter, rounds=rounds).tolist()) == expected


def test_a_mask_is_the_words_of_its_counters():
    packed = Packed.from_lengths([2, 3], documents=[10, 11])
    keep = keep_features(Drop(SEED, packed, 5, 0.5), 6)
    for row, document, position in ((0, 10, 0), (3, 11, 1)):
        for feature in range(6):
            word = _philox(SEED, document, position, feature // 4, 5)[feature % 4]
            assert keep[row, feature] == (word >= 2**31)


def philox_slowly(key: list[int], counter: list[int], rounds: int) -> list[int]:
    """The paper's formula with Python's whole numbers, one counter."""
    k, c = list(key), list(counter)
    for _ in range(rounds):
        product, other = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [other >> 32 ^ c[1] ^ k[0], other % 2**32, product >> 32 ^ c[3] ^ k[1], product % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_a_mask_of_attention_is_the_bytes_of_its_counters():
    packed = Packed.from_lengths([2, 37], documents=[10, 2**32 + 11])
    keep = keep_attention(Drop(SEED, packed, 70_000, 0.3), 2, 37, 3)
    assert keep.shape == (3, 37, 37)
    for head, position in ((0, 0), (2, 36), (1, 5)):
        for key in range(37):
            words = philox_slowly([42, 7], [11, position, key // 16, 70_000 + head * 2**16], 7)
            byte = words[key % 16 // 4] >> 8 * (key % 4) & 255
            assert keep[head, position, key] == (byte >= 77)  # 0.3 of 256 is 76.8


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (1e-6, 1), (0.1, 26), (0.5, 128), (0.9999, 255)])
def test_attention_drops_with_a_multiple_of_one_in_256(p, threshold):
    assert attention_p(p) == threshold / 256


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.9])
def test_the_rate_is_p(p):
    packed = Packed.from_lengths([200, 300])
    count = keep_features(Drop(SEED, packed, 0, p), 100).sum().item()
    assert abs(count - 50_000 * (1 - p)) < 5 * math.sqrt(50_000 * p * (1 - p))
    keep = keep_attention(Drop(SEED, packed, 0, p), 200, 300, 2)
    p = attention_p(p)
    assert abs(keep.sum().item() - 180_000 * (1 - p)) < 5 * math.sqrt(180_000 * p * (1 - p))
    for by_place in (keep[..., :288].unflatten(-1, (18, 16)).sum((0, 1, 2)), keep.sum((0, 2)), keep.sum((0, 1))):
        count = 172_800 // 16 if len(by_place) == 16 else 600  # each byte of a counter, each row, each key
        assert (by_place - count * (1 - p)).abs().max() < 5 * math.sqrt(count * p * (1 - p))


def test_weights_of_attention_are_dropped_independently_of_their_neighbours():
    keep = keep_attention(Drop(SEED, Packed.from_lengths([256]), 0, 0.5), 0, 256, 4).float() - 0.5
    for dim, apart in ((0, 1), (1, 1), (1, 16), (2, 1), (2, 4), (2, 16), (2, 17)):
        one, other = keep.narrow(dim, 0, keep.shape[dim] - apart), keep.narrow(dim, apart, keep.shape[dim] - apart)
        product = 4 * one * other  # 1 or -1, of mean zero
        assert product.sum().abs() < 5 * math.sqrt(product.numel())


def test_a_document_has_one_mask_packed_or_alone_and_in_any_order():
    lengths, names = [3, 5, 1], [0, 3, 8]
    together = Packed.from_lengths(lengths, names)
    features = keep_features(Drop(SEED, together, 4, 0.5), 7).split(lengths)
    shuffled = Packed.from_lengths([1, 3, 5], [8, 0, 3])
    for index, place, first, first_shuffled in ((0, 1, 0, 1), (1, 2, 3, 4), (2, 0, 8, 0)):
        alone = Drop(SEED, Packed.from_lengths([lengths[index]], [names[index]]), 4, 0.5)
        moved = Drop(SEED, shuffled, 4, 0.5)
        assert torch.equal(features[index], keep_features(alone, 7))
        assert torch.equal(features[index], keep_features(moved, 7).split([1, 3, 5])[place])
        attention = keep_attention(Drop(SEED, together, 4, 0.5), first, lengths[index], 3)
        assert torch.equal(attention, keep_attention(alone, 0, lengths[index], 3))
        assert torch.equal(attention, keep_attention(moved, first_shuffled, lengths[index], 3))


def test_without_names_a_document_is_named_by_its_first_row():
    whole = Packed.from_lengths([4, 6])
    second = Packed.from_lengths([6], documents=[4])
    one, other = (keep_features(Drop(SEED, packed, 0, 0.5), 8) for packed in (whole, second))
    assert torch.equal(one[4:], other)


def test_masks_differ_by_seed_step_site_document_and_head():
    packed = Packed.from_lengths([8])
    masks = [
        keep_features(Drop(torch.tensor(seed), Packed.from_lengths([8], [document]), site, 0.5), 64)
        for seed, document, site in (([1, 1], 0, 0), ([2, 1], 0, 0), ([1, 2], 0, 0), ([1, 1], 1, 0), ([1, 1], 0, 1))
    ]
    masks += list(keep_attention(Drop(SEED, packed, 0, 0.5), 0, 8, 3))
    for index, mask in enumerate(masks):
        assert all(mask.shape != other.shape or not torch.equal(mask, other) for other in masks[:index])
    # neighbouring rows and features are not copies of each other either
    assert len({tuple(row) for row in masks[0].tolist()}) == 8
    assert len({tuple(column) for column in masks[0].T.tolist()}) > 40


def test_any_number_of_features_or_keys_is_the_beginning_of_more():
    packed = Packed.from_lengths([50])
    square = keep_attention(Drop(SEED, packed, 0, 0.5), 0, 50, 2)
    for num_keys in (0, 1, 15, 16, 17, 49):
        assert torch.equal(keep_attention(Drop(SEED, packed, 0, 0.5), 0, 50, 2, num_keys), square[..., :num_keys])
    wide = keep_features(Drop(SEED, packed, 0, 0.5), 12)
    for num_features in (1, 3, 4, 5, 11):
        assert torch.equal(keep_features(Drop(SEED, packed, 0, 0.5), num_features), wide[:, :num_features])


def test_nothing_is_dropped_at_zero():
    assert keep_features(Drop(SEED, Packed.from_lengths([5]), 0, 0.0), 9).all()
    assert keep_attention(Drop(SEED, Packed.from_lengths([70]), 0, 0.0), 0, 70, 3).all()
