"""The work list of packed attention: which tiles of rows there are, the longest documents first.

Documents differ in length, and what there is to do in a tile grows with its document, under the causal rule also with
its place in it. Handed out in order of the buffer, a long document that comes last would keep a few processors busy
while the others have nothing left. In the order of falling work the last pieces are the small ones (Graham's rule for
machines: longest first is never more than a third above the best).

    offsets    0      5  7          16                      BLOCK = 4
    documents  0      1  2
    length     5      2  9                                  rank: 2, 0, 1
    tiles      (2, 2) (2, 1) (2, 0)  (0, 1) (0, 0)  (1, 0)  the last tile of a document first: causal, it sees most

Where a document's tiles begin in the list is the number of tiles of all documents before it in that order, and this is
found by counting, not by sorting: each document looks at all others, 32 at a time. 128 of them share a program, so a
thousand documents are eight programs of 32 steps. Nothing is read back by the host and nothing is kept: a replayed CUDA
graph makes the list again from the offsets that it finds. The host knows how long the list can get, N / BLOCK + M.

A document without rows has no tile. Main kernels take items p, p + programs, p + 2 programs, ...; an item is a tile and
a head, and the heads of a tile are neighbours, so that they find its keys and values in the cache.
"""

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import Launch, cdiv, choose, launch

DEFAULT = Launch({"DOCUMENTS": 128, "OTHERS": 32}, num_warps=4)
INTERPRETED = Launch({"DOCUMENTS": 64, "OTHERS": 64})


@triton.jit(do_not_specialize=["num_documents", "capacity"])
def _schedule_kernel(
    offsets_ptr,
    tiles_ptr,
    count_ptr,
    num_documents,
    capacity,
    BLOCK: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    own = tl.program_id(0) * DOCUMENTS + tl.arange(0, DOCUMENTS)
    own_length = _lengths(offsets_ptr, own, num_documents)
    start = tl.zeros((DOCUMENTS,), tl.int32)
    total = tl.zeros((OTHERS,), tl.int32)
    for first in range(0, num_documents, OTHERS):
        other = first + tl.arange(0, OTHERS)
        length = _lengths(offsets_ptr, other, num_documents)
        num_tiles = tl.cdiv(length, BLOCK)
        longer = length[None] > own_length[:, None]
        before = longer | ((length[None] == own_length[:, None]) & (other[None] < own[:, None]))
        start += tl.sum(tl.where(before, num_tiles[None], 0), axis=1)
        total += num_tiles
    if tl.program_id(0) == 0:
        tl.store(count_ptr, tl.sum(total))
    num_tiles = tl.cdiv(own_length, BLOCK)
    for index in range(0, tl.max(num_tiles)):
        at = start + index
        here = (index < num_tiles) & (at < capacity)
        # narrow: the entries of neighbours stand apart, as many as a document has tiles
        tl.store(tiles_ptr + at.to(tl.int64) * 2, own, mask=here)
        # narrow: as above
        tl.store(tiles_ptr + at.to(tl.int64) * 2 + 1, num_tiles - 1 - index, mask=here)


@triton.jit
def _lengths(offsets_ptr, document, num_documents):
    """Rows of these documents; 0 of those that do not exist, and where offsets fall."""
    # narrow: a thread needs the length of its document and no other
    first = tl.load(offsets_ptr + document, mask=document < num_documents, other=0)
    # narrow: as above
    end = tl.load(offsets_ptr + document + 1, mask=document < num_documents, other=0)
    return tl.maximum(end - first, 0)


@triton.jit
def find_tile(tiles_ptr, offsets_ptr, index, num_rows):
    """(document, tile in it, first row of the document in the buffer, rows of the document) of an entry of the list.

    A document ends with the buffer, whatever its offsets say: what they say wrong then stays inside of it."""
    document = tl.load(tiles_ptr + index * 2)
    tile = tl.load(tiles_ptr + index * 2 + 1)
    first = tl.maximum(tl.load(offsets_ptr + document), 0)
    end = tl.minimum(tl.load(offsets_ptr + document + 1), num_rows)
    return document, tile, first, end - first


def schedule(offsets: Tensor, block: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """The list int32 [capacity, 2] of (document, tile of `block` rows in it), and how many entries it has, int32 [1],
    both on the device. offsets: int32 [M + 1]. num_rows: of the buffer, N."""
    num_documents = offsets.shape[0] - 1
    capacity = num_rows // block + num_documents
    tiles, count = offsets.new_empty(capacity, 2), offsets.new_empty(1)
    how = choose("attention_schedule", offsets, DEFAULT, INTERPRETED, documents=num_documents)
    grid = (cdiv(num_documents, how.tiles["DOCUMENTS"]),)
    launch(_schedule_kernel, grid, how, offsets, tiles, count, num_documents, capacity, BLOCK=block)
    return tiles, count
