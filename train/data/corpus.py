"""From paths to training data: which text, which tokenizer, which tokens, in which blocks.

Everything that can be wrong with data is found here, before a run folder exists. What takes long is done once and kept
in the cache under the hash of what it depends on: the tokenizer, the tokens, the index of the blocks, the overlap of
held-out and training text.
"""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pixelcore.documents import find_files
from pixelcore.durable import write_file, write_json
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from train.config import DataConfig, TextConfig, TokenizerConfig
from train.data.blocks import Blocks
from train.data.split import Role, Selection, Split, overlap_share, split_files
from train.data.standard_library import standard_library_corpus
from train.data.token_store import QUIET_BYTES, TokenStore, prepare
from train.distributed import Ranks
from train.objective import Belongings

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where prepared data lives: $PIXELCORE_CACHE, else a folder in the user's cache."""
    if os.environ.get("PIXELCORE_CACHE"):
        return Path(os.environ["PIXELCORE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixelcore"


@dataclass(frozen=True)
class Source:
    """The files of one path and which of their documents are trained on."""

    files: list[Path]
    split: Split


@dataclass(frozen=True)
class Corpus:
    """Training blocks of every source, held-out blocks (about eval.max_tokens), and what identifies them. overlap:
    share of the held-out 50-character windows that occur in the training text."""

    sources: list[Source]
    tokenizer: Tokenizer
    training: list[Blocks]
    held_out: list[Blocks]
    overlap: float

    @property
    def fingerprint(self) -> str:
        """Differs when the tokens or their order could differ."""
        parts = [(blocks.store.key, blocks.num_targets_total, blocks.size) for blocks in self.training + self.held_out]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def splits(self) -> list[Split]:
        """Who is held out, for each source."""
        return [source.split for source in self.sources]

    @property
    def summary(self) -> dict[str, Any]:
        """What was prepared."""
        return {
            "training_tokens": sum(blocks.num_targets_total for blocks in self.training),
            "held_out_tokens": sum(blocks.num_targets_total for blocks in self.held_out),
            "overlap": self.overlap,
            "stores": [str(blocks.store.folder) for blocks in self.training],
        }

    @property
    def belongings(self) -> Belongings:
        """What a checkpoint must keep: the tokenizer."""
        return Belongings(tokenizer=self.tokenizer)


def find_sources(data: TextConfig, standard_library: Path | None = None) -> tuple[list[Source], list[Source]]:
    """The training sources and, where the configuration names separate paths, the held-out ones.

    standard_library: the run's own copy of the default corpus, where it has one. Raises UserError for paths and splits
    that cannot be.
    """
    if data.paths:
        groups = [find_files(path) for path in data.paths]
    else:
        corpus = standard_library or standard_library_corpus(cache_folder())
        _log.info("no --data: training on the documentation of Python's standard library (%s)", corpus)
        groups = [[corpus]]
    split = () if data.valid else data.split
    sources = []
    for files in groups:
        sources.append(Source(files, split_files(files, split, data.valid_share, data.test, data.field)))
    held_out = [find_files(path) for path in data.valid]
    return sources, [Source(files, split_files(files, (), field=data.field)) for files in held_out]


def find_corpus(
    data: DataConfig,
    config: TokenizerConfig,
    vocab_size: int,
    max_eval_tokens: int,
    ranks: Ranks,
    stored: Stored | None,
    own_text: Path | None,
) -> Corpus:
    """Everything of a run that learns from tokens, with the tokenizer of the model that it goes on from, whose ids
    would be other words of another one. The first rank prepares; the others find everything in the cache."""
    tokenizer = None if stored is None else stored.tokenizer
    if not ranks.is_first:
        ranks.wait()
    sources, held_out = find_sources(data, own_text)
    if tokenizer is None:
        tokenizer = find_tokenizer(sources, data, config, vocab_size)
    corpus = build_corpus(sources, held_out, tokenizer, data, max_eval_tokens)
    if ranks.is_first:
        ranks.wait()
        _log.info(
            "%s tokens to train on, %s held out; of the held-out 50-character windows %.2f %% occur in training text",
            f"{sum(blocks.num_targets_total for blocks in corpus.training):,}",
            f"{sum(blocks.num_targets_total for blocks in corpus.held_out):,}",
            100 * corpus.overlap,
        )
    return corpus


def find_tokenizer(sources: Sequence[Source], data: DataConfig, config: TokenizerConfig, vocab_size: int) -> Tokenizer:
    """The tokenizer that is named, or that of bytes, else one trained on the training documents, once."""
    if config.path:
        return Tokenizer.load(config.path)
    if config.kind == "bytes":
        return byte_tokenizer()
    identity = [vocab_size, config.training_megabytes, data.field]
    identity += [[repr(source.split), [str(file.name) for file in source.files]] for source in sources]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    path = cache_folder() / "tokenizers" / f"{key}.model"
    if not path.exists():
        _log.info("training a tokenizer of %d pieces on the training text", vocab_size)
        max_bytes = int(config.training_megabytes * 2**20)
        size = sum(file.stat().st_size for source in sources for file in source.files)
        # compressed files hold more text than they have bytes, so the bar counts and promises no end
        with tqdm(unit="B", unit_scale=True, desc="reading", disable=size < QUIET_BYTES, file=sys.stderr) as bar:
            texts = training_texts(sources, data.field)
            trained = train_tokenizer(texts, vocab_size, progress=bar.update, max_bytes=max_bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, trained.model_bytes)
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size != vocab_size:
        _log.info("the text holds %d pieces, not the %d asked for", tokenizer.vocab_size, vocab_size)
    return tokenizer


def training_texts(sources: Sequence[Source], field: str) -> Iterator[str]:
    """Every document that may be learned from."""
    for source in sources:
        yield from source.split.texts(source.files, "train", field)


def build_corpus(
    sources: Sequence[Source], held_out: Sequence[Source], tokenizer: Tokenizer, data: DataConfig, max_eval_tokens: int
) -> Corpus:
    """Tokenize what is not tokenized yet, lay out the blocks, and measure how much held-out text was trained on."""
    cache = cache_folder()
    training, evaluation, overlaps = [], [], []
    stores = [prepare(source.files, tokenizer, cache, data.field, label=_label(source)) for source in sources]
    for source, store in zip(sources, stores, strict=True):
        training.append(Blocks(store, source.split.select(store, "train"), data.block_size))
    chosen: list[tuple[Source, TokenStore, Role]]
    if held_out:
        chosen = [(source, prepare(source.files, tokenizer, cache, data.field), "train") for source in held_out]
    else:
        chosen = [(source, store, "valid") for source, store in zip(sources, stores, strict=True)]
    for source, store, role in chosen:
        selection = _thin(source.split.select(store, role), store, max_eval_tokens // len(chosen))
        evaluation.append(Blocks(store, selection, data.block_size, allow_short=True))
        overlaps.append(source.split.texts(source.files, role, data.field))
    key = hashlib.sha256(json.dumps([b.store.key + repr(b.num_targets_total) for b in training + evaluation]).encode())
    record = cache / "overlaps" / f"{key.hexdigest()[:32]}.json"
    if not record.exists():
        _log.info("measuring how much of the held-out text occurs in the training text")
        texts = (text for source_texts in overlaps for text in source_texts)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"share": overlap_share(training_texts(sources, data.field), texts)})
    return Corpus(list(sources), tokenizer, training, evaluation, json.loads(record.read_text())["share"])


def within_context(data: DataConfig, longest: int) -> DataConfig:
    """Blocks no longer than a model's context, and about as many tokens in a step."""
    if data.block_size <= longest:
        return data
    blocks = max(1, data.tokens_per_step // longest)
    _log.info("data.block_size = %d: the context of the model that --init names", longest)
    return replace(data, block_size=longest, tokens_per_step=blocks * longest)


def check_own_tokenizer(config: TokenizerConfig, stored: Stored, init: Path) -> None:
    """Raise UserError where a model to start from has no tokenizer and none is named, or another one is."""
    if stored.tokenizer is None and not config.path:
        raise UserError(f"--init {init}: has no tokenizer; name its own with --set tokenizer.path=FILE")
    if stored.tokenizer is not None and config.path:
        check_tokenizer(Tokenizer.load(config.path), stored.tokenizer.sha256, str(init))


def check_tokenizer(tokenizer: Tokenizer, sha256: str, where: str) -> None:
    """Raise UserError unless this is the tokenizer a model was trained with: other ids would be other words."""
    if tokenizer.sha256 != sha256:
        raise UserError(
            f"{where}: the model was trained with tokenizer {sha256[:12]}, this one is {tokenizer.sha256[:12]}: drop "
            "tokenizer.path to use the model's own, or start a new model without --init"
        )


def _label(source: Source) -> str:
    return source.files[0].name + (f" and {len(source.files) - 1} more" if len(source.files) > 1 else "")


@dataclass(frozen=True)
class _Thinned(Selection):
    """Every n-th document of a selection: whole documents, so that their bytes are known, from all over the text."""

    stride: int

    @property
    def key(self) -> str:
        return f"{super().key}-{self.stride}"

    def chunks(self, size: int = 1 << 20) -> Iterator[NDArray[np.int64]]:
        skipped = 0
        for documents in super().chunks(size):
            yield documents[-skipped % self.stride :: self.stride]
            skipped += len(documents)


def _thin(selection: Selection, store: TokenStore, max_tokens: int) -> Selection:
    total = sum(int((store.starts[chunk + 1] - store.starts[chunk]).sum()) for chunk in selection.chunks())
    if total <= max_tokens:
        return selection
    return _Thinned(selection.split, selection.store, selection.role, stride=-(-total // max_tokens))
