"""Which block is read when: a pure function of the seed and the position.

A shuffled list of block numbers would take memory and would have to be saved to resume. Instead the order is computed:
a Feistel network (Luby and Rackoff, 1988) is a keyed permutation of 2^(2h) numbers whatever its round function is, and
"cycle walking" (Black and Rogaway, 2002: apply it again while the result is too large) restricts it to the numbers
below n. So any position of any epoch is found without the ones before it, a run resumes by its position alone, and
every rank of a distributed run asks for its own positions.

Sources with weights are interleaved by a repeating cycle of `CYCLE` slots. How many slots a source has follows its
weight, where they lie is permuted in each cycle, and each source goes through its own epochs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError

CYCLE = 1024
NUM_ROUNDS = 6


class BlockOrder:
    """`order[k] == (source, block)` for every position k >= 0, without end.

    seed: any integer. num_blocks: the number of blocks of each source. weights: without them the sources are one
    concatenation, and an epoch visits each block once. With them, the share of the positions that each source gets;
    only their ratios count, 0 leaves a source out, and any positive weight gets at least one position in `CYCLE`.
    Raises UserError for weights that cannot be met.
    """

    def __init__(self, seed: int, num_blocks: Sequence[int], weights: Sequence[float] | None = None) -> None:
        assert num_blocks and min(num_blocks) >= 0 and sum(num_blocks) > 0, (
            f"num_blocks = {num_blocks}: nothing to order"
        )
        self.num_blocks = list(num_blocks)
        self._key = mix(np.array([seed % 2**64], dtype=np.uint64))
        self._first_block = np.concatenate([[0], np.cumsum(num_blocks)]).astype(np.int64)
        self._slots = None if weights is None else _slot_counts(list(weights), self.num_blocks)

    def __getitem__(self, position: int) -> tuple[int, int]:
        sources, blocks = self.take(position, 1)
        return int(sources[0]), int(blocks[0])

    def take(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sources and blocks, int64 [count] each, of the positions start, start + 1, ..."""
        positions = np.arange(start, start + count, dtype=np.int64)
        if self._slots is None:
            total = int(self._first_block[-1])
            numbers = self._shuffle(positions // total, positions % total, total, stream=0)
            sources = np.searchsorted(self._first_block, numbers, side="right") - 1
            return sources, numbers - self._first_block[sources]
        sources, draws = self._draws(start, count)
        blocks = np.empty_like(draws)
        for source, size in enumerate(self.num_blocks):
            drawn = draws[sources == source]
            if len(drawn):
                blocks[sources == source] = self._shuffle(drawn // size, drawn % size, size, stream=2 + source)
        return sources, blocks

    def _draws(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each position its source, and how many blocks that source gave before it."""
        assert self._slots is not None
        cycles = np.arange(start // CYCLE, (start + max(count, 1) - 1) // CYCLE + 1)
        slots = np.tile(np.arange(CYCLE), len(cycles))
        slots = self._shuffle(np.repeat(cycles, CYCLE), slots, CYCLE, stream=1)
        sources = np.searchsorted(np.cumsum(self._slots), slots, side="right")
        draws = np.empty_like(sources)
        for source, slots_per_cycle in enumerate(self._slots):
            mine = sources == source
            draws[mine] = cycles[0] * slots_per_cycle + np.arange(np.count_nonzero(mine))
        window = slice(start % CYCLE, start % CYCLE + count)
        return sources[window], draws[window]

    def _shuffle(
        self, epochs: NDArray[np.int64], numbers: NDArray[np.int64], size: int, stream: int
    ) -> NDArray[np.int64]:
        """Each number below `size`, permuted by the key of its epoch; streams are unrelated permutations."""
        keys = mix(epochs.astype(np.uint64) ^ mix(self._key ^ mix(np.array([stream], dtype=np.uint64))))
        return permute(keys, numbers, size)


def permute(keys: NDArray[np.uint64], numbers: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Where the permutation of 0 .. size - 1 that belongs to a key sends a number. keys, numbers, result: [N]."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = numbers.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        left, right = result[walking] >> half, result[walking] & mask
        for step in range(NUM_ROUNDS):
            left, right = right, left ^ (mix(mix(keys[walking] ^ np.uint64(step)) ^ right) & mask)
        result[walking] = (left << half) | right
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)


def mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the result depends on every bit given."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _slot_counts(weights: list[float], num_blocks: list[int]) -> list[int]:
    """Largest remainder: the slots of each source in a cycle, CYCLE in all, at least one for a positive weight."""
    if len(weights) != len(num_blocks):
        raise UserError(
            f"data.weights = {weights} has {len(weights)} numbers for {len(num_blocks)} sources: give one for each"
        )
    if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
        raise UserError(f"data.weights = {weights}: weights are finite, not negative, and at least one is positive")
    empty = [source for source, weight in enumerate(weights) if weight > 0 and num_blocks[source] == 0]
    if empty:
        raise UserError(f"data.weights = {weights}: source {empty[0] + 1} has no block to draw; set its weight to 0")
    used = [source for source, weight in enumerate(weights) if weight > 0]
    if len(used) > CYCLE:
        raise UserError(f"data.weights has {len(used)} sources; at most {CYCLE} can be interleaved: join some of them")
    shares = [weight / sum(weights) * CYCLE for weight in weights]
    counts = [max(1, int(share)) if share > 0 else 0 for share in shares]
    while sum(counts) < CYCLE:
        counts[max(used, key=lambda source: shares[source] - counts[source])] += 1
    while sum(counts) > CYCLE:
        counts[min((s for s in used if counts[s] > 1), key=lambda source: shares[source] - counts[source])] -= 1
    return counts
