"""Documents of all lengths become blocks of one size, and no target is lost.

A document of n tokens asks n - 1 questions: given these tokens, which is next? Its windows start at 0, S, 2S, ...;
every full window is a block by itself. The rests, shorter than a window, of all documents are laid end to end and cut
into further blocks, so almost no row of a block is filler. Where the cut falls within a rest, the next block goes on
with a new piece. `lengths` tells the pieces of a block apart: attention and positions begin anew in each.

Which document a block comes from is found by binary search in two running counts (full windows, targets in the rests),
which lie as memory-mapped files beside the tokens: tens of millions of documents cost disk, not memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError
from train.data.split import Selection
from train.data.token_store import TokenStore, locked, new_folder, open_array

IGNORED_TARGET = -100


@dataclass(frozen=True)
class Block:
    """ids, targets: int64 [S], IGNORED_TARGET on filler rows. lengths: of the pieces, filler last; they sum to S."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: list[int]


class Blocks:
    """The blocks of `size` tokens of the selected documents: first all full windows, then the rests, in document order.

    Every target of every selected document is in exactly one block. num_documents, num_targets_total (their sum),
    num_text_bytes (UTF-8, of the documents' text). Raises UserError when there are fewer targets than one window, or,
    with `allow_short` (a held-out text may be small), none at all.
    """

    def __init__(self, store: TokenStore, selection: Selection, size: int, allow_short: bool = False) -> None:
        assert selection.store is store, "the selection was made from another store"
        self.store = store
        self.size = size
        folder = store.folder / f"blocks_{selection.key}_{size}"
        if not folder.exists():
            with locked(folder.with_suffix(".lock")):
                if not folder.exists():
                    with new_folder(folder) as temporary:
                        _write_index(selection, size, temporary)
        self.num_documents = (folder / "documents.bin").stat().st_size // 8
        self._documents = open_array(folder / "documents.bin", "int64", self.num_documents)
        self._windows_before = open_array(folder / "windows_before.bin", "int64", self.num_documents + 1)
        self._rest_before = open_array(folder / "rest_before.bin", "int64", self.num_documents + 1)
        self.num_windows = int(self._windows_before[-1])
        self.num_rest = int(self._rest_before[-1])
        self.num_targets_total = self.num_windows * size + self.num_rest
        if self.num_targets_total < (1 if allow_short else size):
            raise UserError(
                f"the {selection.role} text has {self.num_targets_total} targets, fewer than one window of {size}: "
                "give more text or set a shorter context"
            )

    def __len__(self) -> int:
        return self.num_windows + -(-self.num_rest // self.size)

    @property
    def num_text_bytes(self) -> int:
        return sum(
            int(self.store.text_bytes[self._documents[start : start + (1 << 20)]].sum(dtype=np.int64))
            for start in range(0, self.num_documents, 1 << 20)
        )

    def num_targets(self, block: int) -> int:
        return int(self.num_targets_of(np.array([block]))[0])

    def num_targets_of(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The targets in each of `blocks`, known without reading a token: only the last block may be part-filled."""
        rest_start = (blocks - self.num_windows) * self.size
        return np.minimum(self.size, np.where(rest_start < 0, self.size, self.num_rest - rest_start))

    def read(self, block: int) -> Block:
        """Raises IndexError beyond the last block."""
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} of {len(self)}")
        if block < self.num_windows:
            index = int(np.searchsorted(self._windows_before, block, side="right")) - 1
            window = block - int(self._windows_before[index])
            first = int(self.store.starts[self._documents[index]]) + window * self.size
            row = self.store.tokens[first : first + self.size + 1].astype(np.int64)
            return Block(row[:-1], row[1:], [self.size])
        return self._read_rest((block - self.num_windows) * self.size)

    def _read_rest(self, rest_start: int) -> Block:
        rest_stop = min(rest_start + self.size, self.num_rest)
        begin = int(np.searchsorted(self._rest_before, rest_start, side="right")) - 1
        end = int(np.searchsorted(self._rest_before, rest_stop, side="left"))
        edges = np.clip(self._rest_before[begin : end + 1], rest_start, rest_stop)
        lengths = np.diff(edges)
        # A rest ends with the last target of its document, so its tokens are found from the document's end.
        last_target = self.store.starts[self._documents[begin:end] + 1] - 1
        first = last_target - (self._rest_before[begin + 1 : end + 1] - edges[:-1])
        within = np.arange(rest_stop - rest_start) - np.repeat(edges[:-1] - rest_start, lengths)
        rows = np.repeat(first, lengths) + within
        ids = np.full(self.size, max(self.store.pad_id, 0), dtype=np.int64)
        targets = np.full(self.size, IGNORED_TARGET, dtype=np.int64)
        ids[: len(rows)] = self.store.tokens[rows]
        targets[: len(rows)] = self.store.tokens[rows + 1]
        pieces = [int(length) for length in lengths if length]
        filler = self.size - len(rows)
        return Block(ids, targets, pieces + [filler] * (filler > 0))


def _write_index(selection: Selection, size: int, folder: Path) -> None:
    """Write the numbers of the selected documents [M], and the two running counts before each of them [M + 1]."""
    starts = selection.store.starts
    totals = [0, 0]
    with (
        open(folder / "documents.bin", "wb") as documents_file,
        open(folder / "windows_before.bin", "wb") as windows_file,
        open(folder / "rest_before.bin", "wb") as rest_file,
    ):
        for file in (windows_file, rest_file):
            file.write(np.zeros(1, np.int64).tobytes())
        for documents in selection.chunks():
            documents_file.write(documents.tobytes())
            num_targets = starts[documents + 1] - starts[documents] - 1
            for number, (file, counts) in enumerate(zip((windows_file, rest_file), np.divmod(num_targets, size))):
                file.write((totals[number] + np.cumsum(counts)).tobytes())
                totals[number] += int(counts.sum())
