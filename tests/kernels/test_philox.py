"""A kernel's mask is the reference's, bit for bit."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.launch import Launch, launch
from kernels.philox import keep_features, threshold
from pixelcore import dropout_bits
from pixelcore.dropout_bits import Drop
from pixelcore.packed import Packed


@triton.jit
def _mask_kernel(
    seed_ptr,
    document_ptr,
    position_ptr,
    keep_ptr,
    num_rows,
    site,
    F: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.arange(0, ROWS)[:, None]
    first = tl.program_id(0) * COLUMNS
    column = first + tl.arange(0, COLUMNS)[None]
    document = tl.load(document_ptr + row, mask=row < num_rows, other=0)
    position = tl.load(position_ptr + row, mask=row < num_rows, other=0)
    keep = keep_features(seed_ptr, document, position, site, first, COLUMNS, THRESHOLD)
    tl.store(keep_ptr + row * F + column, keep, mask=(row < num_rows) & (column < F))


@pytest.mark.parametrize("seed", [[1, 2], [-5, 2**40 + 3], [2**31, 2**32 - 1]], ids=["small", "negative", "edges"])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.9])
def test_the_mask_is_the_references_bit_for_bit(seed, p):
    # of numbers beyond 32 bits the low ones count, as in the reference
    packed = Packed.from_lengths([3, 5, 7], documents=[5, 2**32 + 9, 2**31])
    drop = Drop(torch.tensor(seed), packed, 70_000, p)
    keep = torch.zeros(15, 77, dtype=torch.bool)
    tensors = (drop.seed, packed.documents, packed.positions, keep)
    how = Launch({"ROWS": 16, "COLUMNS": 64})
    launch(_mask_kernel, (2,), how, *tensors, 15, drop.site, F=77, THRESHOLD=threshold(p))
    assert torch.equal(keep, dropout_bits.keep_features(drop, 77))
