"""The bits of `pixelcore.dropout_bits` inside a kernel: a mask is made where it is used and never stored.

Philox-4x32-10 (Salmon et al., SC'11) turns a key and a counter of 128 bits into four words of 32 bits, by ten rounds of
two products and a few exclusive ors: about 60 instructions for four elements, which hide behind the memory's time of a
kernel that streams bf16. Here key = (run seed, step) and counter = (document, position, feature // 4, site); word
`feature % 4` decides the feature. A backward pass makes the same mask again from the same numbers.

A tile of [rows, features] needs a quarter as many counters as it has elements:

    counters  [rows, features / 4]   c0            c1            ...
    words                            w0 w1 w2 w3   w0 w1 w2 w3   ...
    mask      [rows, features]       .  .  .  .    .  .  .  .    ...

Rows and groups stay a column and a row of numbers until a round mixes them, so that the first rounds cost less.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check, check_together, rows
from pixelcore.dropout_bits import Drop

INTEGERS = (torch.int64, torch.int32)


@triton.jit
def philox_words(seed_ptr, c0, c1, c2, c3):
    """The four words uint32 of each counter, of tensors or numbers that broadcast; of wider ones the low 32 bits.

    seed_ptr: int64 [2], run seed and step.
    """
    return tl.philox(load_key(seed_ptr), c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), tl.cast(c3, tl.uint32))


@triton.jit
def load_key(seed_ptr):
    """The key uint64 of a seed int64 [2]: of each number the low 32 bits."""
    return (tl.load(seed_ptr).to(tl.uint64) & 0xFFFFFFFF) | (tl.load(seed_ptr + 1).to(tl.uint64) << 32)


@triton.jit
def uniform_words(seed, step, group):
    """The words of group number j // 4 of a draw's uniform numbers, see `pixelcore.uniform`: four of uint32."""
    zero = tl.zeros((), tl.uint32)
    return tl.philox(seed.to(tl.uint64), step.to(tl.uint32), group.to(tl.uint32), zero, zero)


@triton.jit
def uniform(word):
    """The number of a word, rounded to fp32."""
    return word.to(tl.float32) * 2.0**-32 + 2.0**-33


@triton.jit
def side_by_side(w0, w1, w2, w3):
    """[R, G, 4 words] as [R, 4 G]: the words of a group are neighbours."""
    R: tl.constexpr = w0.shape[0]
    G: tl.constexpr = w0.shape[1]
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (R, 4 * G))


@triton.jit
def keep_features(seed_ptr, document, position, site, first, FEATURES: tl.constexpr, THRESHOLD: tl.constexpr):
    """Bool [R, FEATURES], True where the features first, first + 1, ... of these rows stay; first divides by 4.

    document, position: integers [R, 1]. site: an integer. THRESHOLD: `threshold(p)`.
    """
    group = first // 4 + tl.arange(0, FEATURES // 4)[None]
    words = philox_words(seed_ptr, document, position, group, site)
    limit = tl.full((1, 1), THRESHOLD, tl.uint32)
    return side_by_side(words[0] >= limit, words[1] >= limit, words[2] >= limit, words[3] >= limit)


def threshold(p: float) -> int:
    """A word below it drops its element."""
    return int(p * 2**32)


def parts(drop: Drop | None, num_rows: int) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, float]:
    """What an operation takes of a use of dropout: seed, documents, positions, site, p; nothing of None.

    Raises ValueError unless it names so many rows and a probability in [0, 1).
    """
    if drop is None:
        return None, None, None, 0, 0.0
    if not 0 <= drop.p < 1:
        raise ValueError(f"drop.p is {drop.p}: it must be at least 0 and below 1")
    packed = drop.packed
    check("drop.seed", drop.seed, "two", (torch.int64,), two=2)
    check("drop.packed.documents", packed.documents, "N", INTEGERS, N=num_rows)
    check("drop.packed.positions", packed.positions, "N", INTEGERS, N=num_rows)
    check_together(seed=drop.seed, documents=packed.documents, positions=packed.positions)
    return rows(drop.seed), rows(packed.documents), rows(packed.positions), drop.site, drop.p
