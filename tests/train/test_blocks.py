"""Blocks: every target of every selected document once, in context, and nothing else."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pixelcore.errors import UserError
from pixelcore.tokenizer import train_tokenizer
from train.data.blocks import IGNORED_TARGET, Blocks
from train.data.split import split_store
from train.data.token_store import TokenStore, prepare


def make_store(folder: Path, lengths: list[int]) -> TokenStore:
    """Documents of about `lengths` characters, each of other letters than its neighbours."""
    generator = np.random.default_rng(len(lengths))
    texts = ["".join(map(chr, generator.integers(97, 123, length))) for length in lengths]
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("\n\n".join(texts[: len(texts) // 2]))
    (folder / "b.txt").write_text("\n\n".join(texts[len(texts) // 2 :]))
    return prepare([folder / "a.txt", folder / "b.txt"], train_tokenizer(["some text"], 280), folder / "cache")


def expected_pairs(store: TokenStore, documents: list[int]) -> list[tuple[int, int]]:
    pairs = []
    for document in documents:
        tokens = store.tokens[store.starts[document] : store.starts[document + 1]].tolist()
        pairs += pairwise(tokens)
    return sorted(pairs)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_every_target_is_in_exactly_one_block(tmp_path: Path, seed: int, size: int):
    generator = np.random.default_rng(seed)
    lengths = np.maximum(1, generator.exponential([5, 20, 100][seed % 3], generator.integers(2, 40)).astype(int))
    store = make_store(tmp_path, lengths.tolist())
    split = split_store(store, "by-document", 0.3)
    for role in ("train", "valid"):
        selection = split.select(store, role)
        documents = [int(document) for chunk in selection.chunks() for document in chunk]
        blocks = Blocks(store, selection, size, allow_short=True)
        assert blocks.num_documents == len(documents)
        assert blocks.num_text_bytes == sum(int(store.text_bytes[document]) for document in documents)
        pairs, positions = [], []
        for number in range(len(blocks)):
            block = blocks.read(number)
            real = block.targets != IGNORED_TARGET
            count = int(real.sum())
            assert block.ids.shape == block.targets.shape == (size,)
            assert block.ids.dtype == block.targets.dtype == np.int64
            assert sum(block.lengths) == size
            assert min(block.lengths) > 0
            assert real[:count].all()
            assert count == size or (number == len(blocks) - 1 and block.lengths[-1] == size - count)
            assert (block.ids[count:] == store.pad_id).all()
            assert blocks.num_targets(number) == count
            pairs += zip(block.ids[:count].tolist(), block.targets[:count].tolist())
            starts = np.cumsum([0, *block.lengths])
            for start, stop in pairwise(starts):
                if start < count:  # within a piece, a target is the next id
                    assert block.ids[start + 1 : stop].tolist() == block.targets[start : stop - 1].tolist()
                    positions.append(start)
        assert sorted(pairs) == expected_pairs(store, documents)
        assert blocks.num_targets_of(np.arange(len(blocks))).sum() == blocks.num_targets_total == len(pairs)
        with pytest.raises(IndexError):
            blocks.read(len(blocks))


def test_full_windows_come_first_and_rests_are_cut_into_pieces(tmp_path: Path):
    store = make_store(tmp_path, [9, 3, 21, 5])
    num_targets = (store.starts[1:] - store.starts[:-1] - 1).tolist()
    blocks = Blocks(store, split_store(store, ()).select(store, "train"), 8)
    windows, rests = [n // 8 for n in num_targets], [n % 8 for n in num_targets]
    assert blocks.num_windows == sum(windows)
    assert [blocks.read(number).lengths for number in range(sum(windows))] == [[8]] * sum(windows)
    tokens = store.tokens.astype(np.int64)
    assert blocks.read(0).ids.tolist() == tokens[:8].tolist()
    assert blocks.read(0).targets.tolist() == tokens[1:9].tolist()
    pieces = [length for number in range(sum(windows), len(blocks)) for length in blocks.read(number).lengths]
    assert sum(pieces) == -(-sum(rests) // 8) * 8
    assert blocks.read(sum(windows)).lengths[0] == rests[0]


def test_the_index_is_built_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = make_store(tmp_path, [30] * 10)
    selection = split_store(store, "by-document", 0.2).select(store, "train")
    first = Blocks(store, selection, 8)
    monkeypatch.setattr("train.data.blocks._write_index", None)
    again = Blocks(store, selection, 8)
    assert [again.read(n).ids.tolist() for n in range(len(again))] == [
        first.read(n).ids.tolist() for n in range(len(first))
    ]
    assert sorted(path.name for path in store.folder.glob("blocks_*")) == [f"blocks_{selection.key}_8"]


def test_text_shorter_than_a_window_is_refused(tmp_path: Path):
    store = make_store(tmp_path, [5, 5])
    split = split_store(store, ("b.txt",))
    with pytest.raises(UserError, match=r"the train text has \d+ targets.*one window of 100"):
        Blocks(store, split.select(store, "train"), 100)
    with pytest.raises(UserError, match="the test text has 0 targets"):
        Blocks(store, split.select(store, "test"), 100, allow_short=True)
    short = Blocks(store, split.select(store, "valid"), 100, allow_short=True)
    assert len(short) == 1
    assert short.num_targets(0) == short.num_targets_total < 100
