"""Documents, tokenized once and read ever after from a memory map.

Tokenizing is slow beside training on a small model and its result never changes, so it is done once for each source (a
list of files) and kept in the cache under a key made of what it depends on: the content of every file, the tokenizer,
the field and the version of this format. Training then maps the tokens into memory: the operating system reads the
pages that are touched and drops them when memory is short, so a corpus may be larger than the memory.

A store is a folder: `tokens.bin` (all documents end to end, each as <s> ids </s>), `starts.bin` (where each document
starts, and the end), `text_bytes.bin` (UTF-8 bytes of each document's text, for bits per byte), `store.json`.

It is built by threads, not processes: SentencePiece releases the interpreter lock while it encodes, so threads use all
cores, start at once, die with the program and share one tokenizer. The calling thread reads and writes, in order, so
the bytes do not depend on the number of threads; a bounded queue keeps the memory small. One process builds under a
lock in a temporary folder, which is renamed when it is complete: a store is there as a whole or not at all.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pixelcore.documents import read_documents
from pixelcore.errors import UserError
from pixelcore.tokenizer import Tokenizer

FORMAT_VERSION = 1
BATCH_BYTES = 1 << 18
QUIET_BYTES = 8 << 20  # less text than this is prepared before a progress bar could be read


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a source: its name (relative to the folder that all files share) and the SHA-256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredFile(SourceFile):
    """A file within a store: its documents are first_document .. first_document + num_documents - 1."""

    first_document: int
    num_documents: int


class TokenStore:
    """A prepared source, opened read-only. Documents are numbered through all files, in the order of the files.

    tokens [num_tokens] uint16 or uint32, starts int64 [num_documents + 1] (document d is tokens[starts[d] : starts[d +
    1]]), text_bytes uint32 [num_documents]: memory-mapped. files, key, tokenizer_sha256, bos_id, eos_id, pad_id. Raises
    UserError when the folder is damaged. Pickles as the folder's path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = json.loads((folder / "store.json").read_text())
        self.key: str = content["key"]
        self.tokenizer_sha256: str = content["tokenizer_sha256"]
        self.bos_id, self.eos_id, self.pad_id = (int(content[name]) for name in ("bos_id", "eos_id", "pad_id"))
        self.num_documents: int = content["num_documents"]
        self.num_tokens: int = content["num_tokens"]
        self.files = tuple(StoredFile(**file) for file in content["files"])
        self.tokens = open_array(folder / "tokens.bin", content["dtype"], self.num_tokens)
        self.starts = open_array(folder / "starts.bin", "int64", self.num_documents + 1)
        self.text_bytes = open_array(folder / "text_bytes.bin", "uint32", self.num_documents)

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.folder,)


def open_array(path: Path, dtype: str, length: int) -> NDArray:
    """A read-only memory map [length]. Raises UserError when the file is missing or has another length."""
    expected = length * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise UserError(
            f"{path}: damaged, {size} bytes instead of {expected}: delete the folder, it will be made again"
        )
    if length == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,)).view(np.ndarray)  # slicing a memmap itself is slow


def prepare(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    cache: Path,
    field: str = "text",
    workers: int | None = None,
    label: str = "",
) -> TokenStore:
    """Open the store of these files, building it first where the cache has none.

    workers: encoding threads, by default one per core. label: names the source in the progress bar.
    Raises UserError at the first bad line or record, and when there is no document; nothing is left behind then.
    """
    sources = describe_files(files)
    identity = [FORMAT_VERSION, [asdict(source) for source in sources], tokenizer.sha256, field]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache / "tokens" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not folder.exists():
                with new_folder(folder) as temporary:
                    _build(temporary, key, files, sources, tokenizer, field, workers or os.cpu_count() or 1, label)
    return TokenStore(folder)


def describe_files(files: Sequence[Path]) -> list[SourceFile]:
    """Name and hash of each file; a file is read again only after it changed."""
    root = os.path.commonpath([file.absolute().parent for file in files])
    names = [file.absolute().relative_to(root).as_posix() for file in files]
    return [SourceFile(name=name, sha256=_sha256(*_signature(file))) for name, file in zip(names, files)]


def _signature(file: Path) -> tuple[Path, int, int, int]:
    try:
        status = file.stat()
    except OSError as cause:
        raise UserError(f"{file}: cannot be read ({cause.strerror}): check the path and its permissions") from cause
    return file.absolute(), status.st_size, status.st_mtime_ns, status.st_ino


@functools.cache
def _sha256(file: Path, size: int, mtime_ns: int, inode: int) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as cause:
        raise UserError(f"{file}: cannot be read ({cause.strerror}): check the path and its permissions") from cause


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which exists only while someone does; others wait. A killed holder lets go of it."""
    while True:
        with open(path, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had the lock before may have removed the file we waited for; then the lock on it excludes nobody.
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                fcntl.flock(file, fcntl.LOCK_UN)  # closing would not do if a fork meanwhile has the file open too
            return


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, on disk and complete, when the block ends; on an error it is removed.

    The caller holds the lock of `folder`, so what an earlier, killed attempt left is removed first.
    """
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            _flush_to_disk(path)
        temporary.rename(folder)
        _flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _build(
    folder: Path,
    key: str,
    files: Sequence[Path],
    sources: Sequence[SourceFile],
    tokenizer: Tokenizer,
    field: str,
    workers: int,
    label: str,
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    stored: list[StoredFile] = []
    num_documents = 0
    with (
        open(folder / "tokens.bin", "wb") as tokens,
        open(folder / "starts.bin", "wb") as starts,
        open(folder / "text_bytes.bin", "wb") as text_bytes,
        ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool,
        byte_progress(sum(map(text_size, files)), f"tokenizing {label}".strip(), QUIET_BYTES) as bar,
    ):
        writer = _Writer(tokens, starts, text_bytes)
        pending: deque[Future[_Encoded]] = deque()
        try:
            for file, source in zip(files, sources):
                first_document = num_documents
                for texts in _batches(read_documents(file, field)):
                    num_documents += len(texts)
                    pending.append(pool.submit(_encode, tokenizer, texts, dtype))
                    if len(pending) > 2 * workers:
                        bar.update(writer.write(pending.popleft().result()))
                count = num_documents - first_document
                stored.append(StoredFile(**asdict(source), first_document=first_document, num_documents=count))
            while pending:
                bar.update(writer.write(pending.popleft().result()))
            bar.update(max(0, bar.total - bar.n))  # the total counts blank lines and the syntax of records as well
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if num_documents == 0:
        raise UserError(f"{listed(files)}: no text in it; a source needs at least one document that is not empty")
    if list(sources) != describe_files(files):
        raise UserError(f"{listed(files)}: changed while being read: start again when the files are complete")
    content = {
        "format": "pixelcore tokens",
        "version": FORMAT_VERSION,
        "key": key,
        "tokenizer_sha256": tokenizer.sha256,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "dtype": dtype.name,
        "num_documents": num_documents,
        "num_tokens": writer.num_tokens,
        "field": field,
        "files": [asdict(file) for file in stored],
    }
    (folder / "store.json").write_text(json.dumps(content, indent=1))


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= BATCH_BYTES:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _Encoded:
    tokens: NDArray
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.uint32]


def _encode(tokenizer: Tokenizer, texts: list[str], dtype: np.dtype) -> _Encoded:
    ids = tokenizer.encode_batch(texts)
    lengths = np.array([len(document) + 2 for document in ids], dtype=np.int64)
    tokens = np.empty(int(lengths.sum()), dtype)
    start = 0
    for document in ids:
        stop = start + len(document) + 2
        tokens[start] = tokenizer.bos_id
        tokens[start + 1 : stop - 1] = document
        tokens[stop - 1] = tokenizer.eos_id
        start = stop
    return _Encoded(tokens, lengths, np.array([len(text.encode()) for text in texts], dtype=np.uint32))


class _Writer:
    """Appends encoded documents to the three files of a store."""

    def __init__(self, tokens: BinaryIO, starts: BinaryIO, text_bytes: BinaryIO) -> None:
        self.num_tokens = 0
        self._files = (tokens, starts, text_bytes)
        starts.write(np.zeros(1, np.int64).tobytes())

    def write(self, encoded: _Encoded) -> int:
        """Returns the number of text bytes written, for the progress bar."""
        stops = self.num_tokens + np.cumsum(encoded.lengths)
        for file, array in zip(self._files, (encoded.tokens, stops, encoded.text_bytes)):
            file.write(array.tobytes())
        self.num_tokens = int(stops[-1])
        return int(encoded.text_bytes.sum())


def byte_progress(total: int, description: str, quiet_below: int) -> tqdm:
    """A bar on standard error that counts bytes of text; none for so little that it would be gone at once."""
    interval = 0.2 if sys.stderr.isatty() else 30  # a log file gets a line for each refresh
    return tqdm(
        total=total,
        desc=description,
        unit="B",
        unit_scale=True,
        mininterval=interval,
        maxinterval=interval,
        disable=total < quiet_below,
        file=sys.stderr,
    )


def text_size(file: Path) -> int:
    """Bytes of text in a file, about: gzip says so in its last four bytes, modulo 4 GiB."""
    size = file.stat().st_size
    if file.suffix == ".gz" and size >= 4:
        with open(file, "rb") as stream:
            stream.seek(-4, os.SEEK_END)
            return int.from_bytes(stream.read(4), "little")
    return size


def listed(files: Sequence[Path]) -> str:
    """The files in few words, for errors."""
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
