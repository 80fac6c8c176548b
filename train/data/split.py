"""Which documents are trained on, which are held out.

Loss on text that was trained on says nothing, so some text is held out, and it is chosen by source: whole files (a
novel, not pages from the midst of every novel) where there are several, else whole documents. The choice uses neither a
seed nor the order of the files: it is a hash of content, so the same text is held out in every run and on every
machine, and a test file named once is never trained on. The choice needs no tokens: it is made on the raw files, so
that the tokenizer learns from training documents alone, and again, with the same result, on the prepared store.

What a split cannot see is text that occurs twice. `overlap_share` measures that: the share of held-out text that the
training text contains word for word.
"""

import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelcore.documents import read_documents
from pixelcore.errors import UserError
from train.data.order import mix
from train.data.token_store import SourceFile, TokenStore, describe_files

Role = Literal["train", "valid", "test"]
SplitRule = str | tuple[str, ...]  # "by-file", "by-document", or the names of the held-out files; () holds out nothing
CHUNK = 1 << 20


@dataclass(frozen=True)
class Split:
    """The decision: a role for each file; None where the documents of the file are divided one by one.

    held_out_below: a document of a divided file is held out when its hash is below this; the one document `forced`
    (file, number in the file) goes the other way, so that neither side is empty.
    """

    files: tuple[SourceFile, ...]
    roles: tuple[Role | None, ...]
    held_out_below: int = 0
    forced: tuple[int, int] | None = None

    def chosen(self, role: Role, file: int, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `documents`, numbers within the file numbered `file`, have the role."""
        if self.roles[file] is not None:
            return np.full(len(documents), self.roles[file] == role)
        held_out = _document_hashes(self.files[file], documents) < np.uint64(self.held_out_below)
        if self.forced is not None and self.forced[0] == file:
            held_out ^= documents == self.forced[1]
        return held_out if role == "valid" else ~held_out if role == "train" else np.zeros(len(documents), np.bool_)

    def select(self, store: TokenStore, role: Role) -> "Selection":
        """The documents of `store`, which was made from the same files, that have the role."""
        assert [(f.name, f.sha256) for f in store.files] == [(f.name, f.sha256) for f in self.files]
        return Selection(self, store, role)

    def texts(self, files: Sequence[Path], role: Role, field: str = "text") -> Iterator[str]:
        """The documents of the role, read from the raw files the split was made for."""
        for number, file in enumerate(files):
            if self.roles[number] not in (None, role):
                continue
            for text, chosen in zip(read_documents(file, field), self._each_chosen(role, number)):
                if chosen:
                    yield text

    def _each_chosen(self, role: Role, file: int) -> Iterator[bool]:
        for start in itertools.count(0, 1 << 16):
            yield from self.chosen(role, file, np.arange(start, start + (1 << 16))).tolist()


@dataclass(frozen=True)
class Selection:
    """The documents of a store that have a role, worked out piece by piece, so that no list of them is held."""

    split: Split
    store: TokenStore
    role: Role

    @property
    def key(self) -> str:
        """Differs between any two selections from one store."""
        split = self.split
        content = [split.roles, str(split.held_out_below), split.forced, self.role]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def chunks(self, size: int = CHUNK) -> Iterator[NDArray[np.int64]]:
        """The numbers of the documents in the store, ascending, as int64 arrays of at most `size`."""
        for number, file in enumerate(self.store.files):
            if self.split.roles[number] not in (None, self.role):
                continue
            for start in range(0, file.num_documents, size):
                documents = np.arange(start, min(start + size, file.num_documents))
                yield file.first_document + documents[self.split.chosen(self.role, number, documents)]


def split_files(
    files: Sequence[Path], split: SplitRule, share: float = 0.01, test: Sequence[str] = (), field: str = "text"
) -> Split:
    """Decide before anything is tokenized. Documents are read only as far as "by-document" needs to see both sides.

    split: "by-file" holds out the least number of files that is >= `share` of them, "by-document" about `share` of the
    documents, a tuple the files it names (names, relative paths or globs; the empty tuple holds out nothing).
    test: files that are neither trained on nor used to choose anything. Raises UserError where this is impossible.
    """

    def documents(file: int) -> Iterator[NDArray[np.int64]]:
        return (np.array([number]) for number, _ in enumerate(read_documents(files[file], field)))

    return _decide(describe_files(files), split, share, test, documents)


def split_store(store: TokenStore, split: SplitRule, share: float = 0.01, test: Sequence[str] = ()) -> Split:
    """`split_files` for the files of a store, with the same result."""

    def documents(file: int) -> Iterator[NDArray[np.int64]]:
        count = store.files[file].num_documents
        return (np.arange(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))

    files = [SourceFile(name=file.name, sha256=file.sha256) for file in store.files]
    return _decide(files, split, share, test, documents)


def training_documents(
    files: Sequence[Path], split: SplitRule, share: float = 0.01, test: Sequence[str] = (), field: str = "text"
) -> Iterator[str]:
    """The text that may be learned from, document by document; what a tokenizer is trained on."""
    return split_files(files, split, share, test, field).texts(files, "train", field)


def _decide(
    files: Sequence[SourceFile],
    split: SplitRule,
    share: float,
    test: Sequence[str],
    documents: Callable[[int], Iterator[NDArray[np.int64]]],
) -> Split:
    if not 0 < share < 1:
        raise UserError(
            f"data.share = {share} must be above 0 and below 1: the part of the text to hold out, such as 0.01"
        )
    tested = _named(files, test, "data.test")
    rest = [number for number in range(len(files)) if number not in tested]
    if split == "by-document":
        return _by_document(files, tested, rest, share, documents)
    if split == "by-file":
        if len(rest) < 2:
            raise UserError(
                f'data.split = "by-file" needs at least 2 files besides the test files, there is {len(rest)}: '
                'give more files, or set data.split = "by-document"'
            )
        count = min(max(1, math.ceil(share * len(rest))), len(rest) - 1)
        held_out = set(sorted(rest, key=lambda number: (files[number].sha256, files[number].name))[:count])
    elif isinstance(split, str):
        raise UserError(
            f'data.split = "{split}": must be "by-file", "by-document" or a list of names of held-out files'
        )
    else:
        held_out = _named(files, split, "data.split")
        if held_out & tested:
            name = files[min(held_out & tested)].name
            raise UserError(f"{name} is named by data.split and by data.test: a file has one role, take it out of one")
    if not set(rest) - held_out:
        raise UserError(
            f"all {len(files)} files are held out or for testing, none is left to train on: name fewer of them"
        )
    roles: list[Role] = ["test" if n in tested else "valid" if n in held_out else "train" for n in range(len(files))]
    return Split(tuple(files), tuple(roles))


def _named(files: Sequence[SourceFile], patterns: Sequence[str], option: str) -> set[int]:
    found: set[int] = set()
    for pattern in patterns:
        matches = {
            number
            for number, file in enumerate(files)
            if pattern in (file.name, PurePosixPath(file.name).name)
            or fnmatchcase(file.name, pattern)
            or fnmatchcase(PurePosixPath(file.name).name, pattern)
        }
        if not matches:
            names = [file.name for file in files]
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:3]
            raise UserError(f"{option}: no file is called '{pattern}'; near names: {', '.join(near)}")
        found |= matches
    return found


def _by_document(
    files: Sequence[SourceFile],
    tested: set[int],
    rest: list[int],
    share: float,
    documents: Callable[[int], Iterator[NDArray[np.int64]]],
) -> Split:
    roles: tuple[Role | None, ...] = tuple("test" if number in tested else None for number in range(len(files)))
    split = Split(tuple(files), roles, held_out_below=int(share * 2**64))
    lowest, highest = (2**64, (-1, -1)), (-1, (-1, -1))
    for file in rest:
        for chunk in documents(file):
            hashes = _document_hashes(files[file], chunk)
            low, high = int(np.argmin(hashes)), int(np.argmax(hashes))
            lowest = min(lowest, (int(hashes[low]), (file, int(chunk[low]))))
            highest = max(highest, (int(hashes[high]), (file, int(chunk[high]))))
            if lowest[0] < split.held_out_below <= highest[0]:
                return split
    if lowest[1] == highest[1]:
        names = ", ".join(files[file].name for file in rest[:3])
        raise UserError(
            f'{names}: data.split = "by-document" needs at least 2 documents and there are fewer: give more text, '
            "separate the documents by blank lines, or name validation text with --valid"
        )
    forced = lowest[1] if lowest[0] >= split.held_out_below else highest[1]
    return Split(split.files, roles, split.held_out_below, forced)


def _document_hashes(file: SourceFile, documents: NDArray[np.int64]) -> NDArray[np.uint64]:
    # By content, not by name or place: the choice stays when files are added, and a copy of a file has the same.
    key = np.array([int(file.sha256[:16], 16)], dtype=np.uint64)
    return mix(mix(key) ^ documents.astype(np.uint64))


def overlap_share(
    train_texts: Iterable[str], held_out_texts: Iterable[str], window: int = 50, max_windows: int = 200_000
) -> float:
    """The share of held-out windows of `window` characters that occur, character for character, in a training text.

    A window lies within one document and starts at any character. All training windows are looked at. Of the held-out
    windows, numbered through all documents, every n-th is looked at, n the least power of two that leaves at most
    `max_windows` of them; 0.0 when no held-out document has a window. Texts are read once and not kept. Windows are
    compared by a 64-bit hash: an accidental match has a chance of about max_windows * training characters / 2^64.
    """
    samples: list[NDArray[np.uint64]] = []
    num_sampled = 0
    stride = 1
    position = 0
    for characters in _joined(held_out_texts):
        hashes, inside = _window_hashes(characters, window)
        hashes = hashes[inside]
        samples.append(hashes[-position % stride :: stride])
        num_sampled += len(samples[-1])
        position += len(hashes)
        while num_sampled > max_windows:
            stride *= 2
            samples = [np.concatenate(samples)[::2]]
            num_sampled = len(samples[0])
    if not num_sampled:
        return 0.0
    sought, counts = np.unique(np.concatenate(samples), return_counts=True)
    # Nearly every training window is sorted out by one look into a table, the few others by binary search.
    table = np.zeros(1 << 22, np.bool_)
    table[sought >> np.uint64(42)] = True
    found = np.zeros(len(sought), np.bool_)
    for characters in _joined(train_texts):
        hashes, _ = _window_hashes(characters, window)
        hashes = hashes[table[hashes >> np.uint64(42)]]
        places = np.searchsorted(sought, hashes)
        places[places == len(sought)] = 0
        found[places[sought[places] == hashes]] = True
    return float(counts[found].sum() / num_sampled)


BETWEEN_DOCUMENTS = 0x110000  # one more than the last character there can be


def _joined(texts: Iterable[str], num_characters: int = 1 << 18) -> Iterator[NDArray[np.uint32]]:
    """Code points of whole documents, end to end with BETWEEN_DOCUMENTS after each, some `num_characters` at a time."""
    parts: list[NDArray[np.uint32]] = []
    size = 0
    for text in texts:
        parts += [np.frombuffer(text.encode("utf-32-le"), np.uint32), np.array([BETWEEN_DOCUMENTS], np.uint32)]
        size += len(text) + 1
        if size >= num_characters:
            yield np.concatenate(parts)
            parts, size = [], 0
    if parts:
        yield np.concatenate(parts)


BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64


def _window_hashes(characters: NDArray[np.uint32], window: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The hash of every window, [N - window + 1], and whether it lies within one document.

    With m_i a mixed character, the prefix sums P_i = sum over k < i of m_k B^k (modulo 2^64) give the polynomial of the
    window at i as (P_(i+w) - P_i) B^-i: the same for equal windows wherever they are, and computed without a loop.
    """
    if len(characters) < window:
        return np.empty(0, np.uint64), np.empty(0, np.bool_)
    powers = _powers(BASE, len(characters))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mix(characters.astype(np.uint64)) * powers)])
    inverse = _powers(pow(BASE, -1, 2**64), len(characters))
    edges = np.concatenate([[0], np.cumsum(characters == BETWEEN_DOCUMENTS)])
    hashes = mix((sums[window:] - sums[:-window]) * inverse[: len(characters) - window + 1])
    return hashes, edges[window:] == edges[:-window]


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0 .. base^(count - 1) modulo 2^64."""
    return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(count - 1, base, np.uint64)]), dtype=np.uint64)
