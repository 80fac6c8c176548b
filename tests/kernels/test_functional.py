"""The kernels as plain functions: the arguments of the models' record, spelled out in tensors and numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import functional
from pixelcore import ops, step_ops
from pixelcore.dropout_bits import Drop
from pixelcore.kv_cache import Chunk, LayerCache
from pixelcore.packed import Packed


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


PIXELS = torch.randint(0, 256, (4, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
TARGETS = torch.tensor([2, 0, 3])
LOSSES: dict[str, tuple[list[Tensor], list[Any]]] = {
    "cross_entropy": ([draw(3, 7)], [torch.tensor([4, -100, 0])]),
    "pixel_mse": ([draw(3, 8)], [PIXELS, TARGETS, True]),
    "pixel_bce": ([draw(3, 8)], [PIXELS, TARGETS]),
    "mixture_bce": ([draw(3, 2, 8), draw(3, 2, seed=1)], [PIXELS, TARGETS]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_means_and_may_be_multiplied(name: str):
    inputs, others = LOSSES[name]
    count = 2 if name == "cross_entropy" else 3
    wanted, _ = getattr(ops, name)(*inputs, *others, torch.tensor(1 / count))
    loss, counted = getattr(functional, name)(*inputs, *others)
    assert counted.item() == count
    torch.testing.assert_close(loss, wanted)
    gradients = (torch.autograd.grad(3 * x + 1, inputs) for x in (loss, wanted))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_dropout_names_rows_by_plain_tensors():
    x, seed = draw(6, 12), torch.tensor([5, 9])
    wanted = ops.dropout(x, Drop(seed, Packed.from_lengths([6], [0]), 3, 0.25))
    torch.testing.assert_close(functional.dropout(x, 0.25, seed, site=3), wanted)
    packed = Packed.from_lengths([4, 2], [70, 80])
    wanted = ops.dropout(x, Drop(seed, packed, 0, 0.25))
    torch.testing.assert_close(functional.dropout(x, 0.25, seed, packed.documents, packed.positions), wanted)
    assert torch.equal(functional.dropout(x, 0.0, seed), x)


def test_add_norm_takes_dropout_as_numbers_and_asks_for_its_seed():
    x, delta, weight = draw(6, 12), draw(6, 12, seed=1), draw(12, seed=2)
    seed = torch.tensor([5, 9])
    drop = Drop(seed, Packed.from_lengths([6], [0]), 0, 0.25)
    for ours, wanted in zip(
        functional.add_norm(x, delta, weight, p=0.25, seed=seed), ops.add_norm(x, delta, weight, None, 1e-6, drop)
    ):
        torch.testing.assert_close(ours, wanted)
    with pytest.raises(ValueError, match=r"p = 0.25 and seed is None: dropout needs a seed"):
        functional.add_norm(x, delta, weight, p=0.25)


def test_a_layout_is_three_numbers():
    qkv, positions, table = draw(5, 4 * 8), torch.arange(5), ops.rope_table(8, 100.0, 5)
    for rotation in ("interleaved", "half"):
        ours = functional.split_rope(qkv, positions, table, 2, 1, 8, rotation)
        wanted = ops.split_rope(qkv, positions, table, ops.HeadLayout(2, 1, 8, rotation))
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_every_operation_of_the_record_that_has_a_kernel_is_a_plain_function():
    models = set(ops.Ops.__dataclass_fields__)
    steps = set(step_ops.StepOps.__dataclass_fields__) - {"sample_token", "next_patch"}
    assert set(functional.__all__) == models | steps


def test_a_cache_may_be_two_plain_tensors():
    q, k, v = draw(3, 4, 8).detach(), draw(3, 2, 8).detach(), draw(3, 2, 8, seed=1).detach()
    ours_k, ours_v, wanted_k, wanted_v = torch.zeros(4, 2, 2, 6, 8).unbind()
    cache = LayerCache(wanted_k, wanted_v)
    for rows, held, new in ((slice(0, 3), [0, 0], [2, 1]), (slice(0, 2), [2, 1], [1, 1])):
        more = None if max(new) == 1 else new
        out = functional.decode_attention(q[rows], k[rows], v[rows], ours_k, ours_v, held, more)
        cache.chunk = Chunk.of(held, new, "cpu")
        expected = ops.decode_attention(q[rows], k[rows], v[rows], cache, 8**-0.5)
        torch.testing.assert_close(out, expected)
    assert torch.equal(ours_k, wanted_k)
    assert torch.equal(ours_v, wanted_v)
