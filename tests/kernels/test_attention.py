"""What the shared check of kernels does not ask of attention."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import attention_forward, functional
from kernels.attention import fused, reference
from kernels.attention_schedule import schedule
from kernels.launch import Launch
from pixelcore.dropout_bits import Drop, attention_p, keep_attention
from pixelcore.packed import Packed

SEED = torch.tensor([42, 7])


def draw(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


# ------------------------------------------------------------------ the work list


@pytest.mark.parametrize("lengths", [[5, 2, 9], [0, 3, 0, 3, 8], [0], [], [index * 7 % 11 for index in range(70)]])
def test_the_work_list_has_every_tile_once_and_the_longest_documents_first(lengths: list[int]):
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    tiles, count = schedule(offsets, 4, sum(lengths))
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    wanted = [[document, tile] for document in order for tile in reversed(range(math.ceil(lengths[document] / 4)))]
    assert len(wanted) <= len(tiles)
    if lengths:  # without documents nothing is launched
        assert tiles[: count.item()].tolist() == wanted


# ------------------------------------------------------------------ dropout


def dropped(packed: Packed, num_keys: int, p: float) -> Tensor:
    """Bool [N, num_keys], which weights of one head and documents of so many rows are dropped: all are equal, and each
    key's value is a feature of its own."""
    q, k = torch.zeros(2, len(packed.positions), 1, num_keys)
    v = torch.eye(num_keys).repeat(len(packed.lengths), 1)[:, None]
    out, _ = fused(q, k, v, packed, "full", 1.0, Drop(SEED, packed, 3, p))
    return out[:, 0] == 0


def test_weights_are_dropped_where_the_reference_drops_them_packed_or_alone():
    packed = Packed.from_lengths([40, 40], documents=[5, 2**32 + 9])
    mask = dropped(packed, 40, 0.3)
    wanted = [~keep_attention(Drop(SEED, packed, 3, 0.3), first, 40, 1)[0] for first in (0, 40)]
    assert torch.equal(mask, torch.cat(wanted))
    assert torch.equal(mask[40:], dropped(Packed.from_lengths([40], documents=[9]), 40, 0.3))


@pytest.mark.parametrize("rows, keys", [(16, 16), (64, 128)])
def test_tiles_of_any_size_drop_the_same(monkeypatch: pytest.MonkeyPatch, rows: int, keys: int):
    packed = Packed.from_lengths([20])
    q, k, v = (draw(20, 1, 16, seed=seed) for seed in range(3))
    arguments = (q, k, v, packed, "causal", 0.25, Drop(SEED, packed, 0, 0.5))
    wanted = fused(*arguments)
    tiles = Launch({"ROWS": rows, "KEYS": keys, "PROGRAMS": 1})
    monkeypatch.setattr(attention_forward, "INTERPRETED", tiles)
    for ours, theirs in zip(fused(*arguments), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_keeps_the_mean():
    packed, p = Packed.from_lengths([96]), attention_p(0.2)
    q, k = draw(96, 2, 16), draw(96, 2, 16, seed=1)
    out, _ = fused(q, k, torch.ones(96, 2, 16), packed, "full", 0.1, Drop(SEED, packed, 0, 0.2))
    # the sum of 96 weights, each about 1 / 96, of which each is kept with probability 1 - p, over 1 - p
    deviation = math.sqrt(p / (1 - p) / 96)
    assert abs(out[:, :, 0].mean().item() - 1) < 5 * deviation / math.sqrt(96 * 2)
    assert 0.8 * deviation < out[:, :, 0].std().item() < 1.3 * deviation


# ------------------------------------------------------------------ gradients, structure


def test_the_output_alone_is_differentiated_without_a_gradient_of_the_log_sum_exp():
    packed = Packed.from_lengths([3, 4])
    results = []
    for function in (fused, reference):
        inputs = [draw(7, heads, 16, seed=seed, grad=True) for seed, heads in enumerate((2, 1, 1))]
        q, k, v = inputs
        out, _ = function(q, k, v, packed, "causal", 0.25)
        results.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_plain_function_takes_offsets_and_finds_the_names_of_rows():
    q, k, v = draw(7, 2, 16), draw(7, 1, 16, seed=1), draw(7, 1, 16, seed=2)
    packed = Packed.from_lengths([3, 4])
    out, lse = functional.attention(q, k, v, packed.offsets, "causal", p=0.5, seed=SEED, site=2)
    wanted, wanted_lse = reference(q, k, v, packed, "causal", 0.25, Drop(SEED, packed, 2, 0.5))
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, wanted_lse)
    out, _ = functional.attention(q, k, v, packed.offsets, "full", 0.5, visible=(2, 4))
    torch.testing.assert_close(out, reference(q, k, v, replace(packed, visible=(2, 4)), "full", 0.5)[0])


# ------------------------------------------------------------------ what does not fit


Q, K, V = draw(5, 4, 16), draw(5, 2, 16), draw(5, 2, 16)
PACKED = Packed.from_lengths([2, 3])
FITS: dict[str, Any] = {"q_NHK": Q, "k_NGK": K, "v_NGK": V, "packed": PACKED, "rule": "full", "scale": 0.25}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k_NGK": K[:4]}, r"k has the shape \[4, 2, 16\]"),
        ({"v_NGK": V.half()}, "v is float16: it must be one of float32"),
        ({"q_NHK": draw(5, 3, 16)}, "q has 3 heads and k has 2"),
        ({"q_NHK": Q[..., :9], "k_NGK": K[..., :9], "v_NGK": V[..., :9]}, "q has the head size 9: it must be even"),
        ({name: draw(5, 2, 130) for name in ("q_NHK", "k_NGK", "v_NGK")}, "head size = 130: this kernel goes to 128"),
        ({"rule": "windowed"}, "rule = 'windowed': it must be one of 'full', 'causal', 'real_fake'"),
        ({"rule": "real_fake"}, "packed.reach = None: the rule 'real_fake' needs a reach for each row"),
        ({"scale": 0.0}, "scale = 0.0: it must be above zero"),
        ({"packed": replace(PACKED, lengths=(2, 4))}, "packed.lengths are 2 numbers, the smallest 2, of sum 6"),
        ({"packed": replace(PACKED, lengths=(6, -1))}, "packed.lengths are 2 numbers, the smallest -1, of sum 5"),
        ({"packed": replace(PACKED, visible=(1,))}, r"packed.visible = \(1,\): it must be 2 numbers"),
        ({"packed": replace(PACKED, offsets=PACKED.offsets.long())}, "packed.offsets is int64"),
        ({"packed": replace(PACKED, offsets=PACKED.offsets[:0])}, "packed.offsets is empty"),
        ({"drop": Drop(SEED, PACKED, 0, 1.0)}, "drop.p is 1.0"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fused(**FITS | change)


def test_offsets_beyond_the_buffer_read_nothing_of_it():
    # without lengths nobody on the host knows them
    packed = replace(PACKED, offsets=torch.tensor([0, 2, 9], dtype=torch.int32), lengths=())
    assert torch.equal(fused(Q, K, V, packed, "full", 0.25)[0], fused(**FITS)[0])
