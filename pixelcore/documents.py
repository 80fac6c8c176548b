"""Text sources become documents.

A document is the unit that the rest of the project respects: attention and rendering never cross its edges, and
held-out text is chosen by whole documents or files. Three kinds of file are read, each as a stream, so a file may be
larger than the memory: plain text, where a line is a paragraph and a blank line or the end of the file ends the
document; JSON lines and Parquet, where a record is a document. A very long document would be one unbreakable unit for
all that follows, so it is cut at paragraph ends into documents of at most `MAX_DOCUMENT_BYTES`. Text is never guessed
at or repaired: the first byte that is not UTF-8 and the first record without text stop the reading with the file and
the number of the line.
"""

import codecs
import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pixelcore.errors import UserError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
MAX_DOCUMENT_BYTES = 16 * 1024


def find_files(path: str | Path) -> list[Path]:
    """The text files that `path` names: one file, a folder (searched to the bottom) or a glob; sorted.

    Files of other kinds in a folder or glob are passed over. Raises UserError when the path does not exist, the file
    has an unsupported suffix, or nothing suitable is found (the message lists the suffixes that are there).
    """
    path = Path(path)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: a text file must end in one of {', '.join(SUFFIXES)}: rename or convert it")
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file()]
    elif glob.has_magic(str(path)):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    else:
        raise UserError(f"{path}: no such file or folder: give a file, a folder or a quoted glob of text files")
    files = sorted(file for file in found if file.name.endswith(SUFFIXES))
    if not files:
        kinds = Counter("".join(file.suffixes[-2 if file.suffix == ".gz" else -1 :]) for file in sorted(found))
        there = (
            ", ".join(f"{count} x {kind or 'no suffix'}" for kind, count in kinds.most_common(5)) or "no file at all"
        )
        raise UserError(f"{path}: no text file here ({there}); files must end in one of {', '.join(SUFFIXES)}")
    return files


def read_documents(file: Path, field: str = "text") -> Iterator[str]:
    r"""Yield the documents of `file`, none of them empty, in the order of the file.

    field: the key (JSONL) or column (Parquet) that holds the text. "\r\n" becomes "\n", a byte order mark is dropped.
    Raises UserError with the file and the line or record number at the first bad one.
    """
    if file.name.endswith(".parquet"):
        return _read_parquet(file, field)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        return _read_jsonl(file, field)
    if file.name.endswith((".txt", ".txt.gz")):
        return _read_text(file)
    raise UserError(f"{file}: a text file must end in one of {', '.join(SUFFIXES)}: rename or convert it")


def _read_text(file: Path) -> Iterator[str]:
    packer = _Packer()
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = ""
    number = 1
    for part in _line_parts(file):
        complete = part.endswith(b"\n")
        try:
            line += decoder.decode(part, final=complete)
        except UnicodeDecodeError as cause:
            raise _not_utf8(file, f"line {number}", cause) from cause
        if not complete:
            # A text without line ends may be one line of gigabytes: what is sure to be cut is handed on at once.
            *pieces, line = _cut_paragraph(line)
            for piece in pieces:
                yield from packer.add(piece)
            continue
        paragraph = line.removesuffix("\n").removesuffix("\r")
        if paragraph.strip():
            for piece in _cut_paragraph(paragraph):
                yield from packer.add(piece)
        else:
            yield from packer.end()
        line = ""
        number += 1
    try:
        line += decoder.decode(b"", final=True)
    except UnicodeDecodeError as cause:
        raise _not_utf8(file, f"line {number}", cause) from cause
    if line.strip():
        yield from packer.add(line)
    yield from packer.end()


def _read_jsonl(file: Path, field: str) -> Iterator[str]:
    number = 1
    parts: list[bytes] = []
    for part in _line_parts(file):
        parts.append(part)
        if part.endswith(b"\n"):
            yield from _json_documents(b"".join(parts), file, number, field)
            parts.clear()
            number += 1
    yield from _json_documents(b"".join(parts), file, number, field)


def _json_documents(line: bytes, file: Path, number: int, field: str) -> Iterator[str]:
    if not line.strip():
        return
    where = f"{file}, line {number}"
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as cause:
        raise _not_utf8(file, f"line {number}", cause) from cause
    except (json.JSONDecodeError, RecursionError) as cause:
        raise UserError(f"{where}: not JSON ({cause}); every line must be one JSON object: mend the line") from cause
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise UserError(f"{where}: the record is a {kind}; it must be a JSON object with a text field '{field}'")
    if field not in record:
        raise UserError(
            f"{where}: no field '{field}', there are {_names(record)}; set data.field to the one with the text"
        )
    yield from _record_documents(record[field], where, field)


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise UserError(f"{file}: reading Parquet needs pyarrow: pip install 'pixelcore[data]'") from cause
    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if field not in names:
            raise UserError(
                f"{file}: no column '{field}', there are {_names(names)}; set data.field to the one with the text"
            )
        number = 1
        for batch in table.iter_batches(batch_size=256, columns=[field], use_threads=False):
            # The column's bytes are decoded here, not by pyarrow, so that a bad record can be named.
            column = batch.column(0)
            if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                column = column.view(
                    pyarrow.binary() if pyarrow.types.is_string(column.type) else pyarrow.large_binary()
                )
            for value in column:
                yield from _record_documents(value.as_py(), f"{file}, record {number}", field)
                number += 1
    except OSError as cause:
        raise UserError(f"{file}: cannot be read ({cause}): check the permissions, or fetch it again") from cause
    except pyarrow.ArrowException as cause:
        raise UserError(f"{file}: damaged or not Parquet ({_first_line(cause)}): fetch or write it again") from cause


def _record_documents(text: object, where: str, field: str) -> Iterator[str]:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as cause:
            raise _not_utf8(where, f"field '{field}'", cause) from cause
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise UserError(f"{where}: field '{field}' is {kind}; it must be a string: remove or mend the record")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"{where}: field '{field}' has half a surrogate pair, which no UTF-8 can hold: mend the record")
    packer = _Packer()
    for paragraph in text.replace("\r\n", "\n").split("\n"):
        for piece in _cut_paragraph(paragraph):
            yield from packer.add(piece)
    yield from packer.end()


class _Packer:
    """Gathers paragraphs into documents of at most MAX_DOCUMENT_BYTES."""

    def __init__(self) -> None:
        self._paragraphs: list[str] = []
        self._num_bytes = 0

    def add(self, paragraph: str) -> Iterator[str]:
        num_bytes = 1 + (len(paragraph) if paragraph.isascii() else len(paragraph.encode()))
        if self._num_bytes + num_bytes > MAX_DOCUMENT_BYTES + 1:
            yield from self.end()
        self._paragraphs.append(paragraph)
        self._num_bytes += num_bytes

    def end(self) -> Iterator[str]:
        document = "\n".join(self._paragraphs)
        self._paragraphs = []
        self._num_bytes = 0
        if document.strip():
            yield document


def _cut_paragraph(text: str) -> list[str]:
    """Pieces of at most MAX_DOCUMENT_BYTES: cut at the last whitespace that fits, which is dropped, else in a word."""
    if len(text) * 4 <= MAX_DOCUMENT_BYTES:
        return [text]
    pieces = []
    start = 0
    while True:
        window = text[start : start + MAX_DOCUMENT_BYTES + 1]
        fits = len(window.encode()[:MAX_DOCUMENT_BYTES].decode(errors="ignore"))
        if fits == len(window):
            return [*pieces, window]
        cut = next((index for index in range(fits, 0, -1) if window[index].isspace()), None)
        pieces.append(window[: cut or fits])
        start += cut + 1 if cut else fits


def _line_parts(file: Path, part_bytes: int = 1 << 18) -> Iterator[bytes]:
    """The lines of a plain or gzipped file, byte order mark dropped; a line over `part_bytes` comes in parts."""
    try:
        with cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else open(file, "rb") as stream:
            part = stream.readline(part_bytes).removeprefix(codecs.BOM_UTF8)
            while part:
                yield part
                part = stream.readline(part_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as cause:
        raise UserError(f"{file}: damaged or cut short gzip file ({cause}): fetch or write it again") from cause
    except OSError as cause:
        raise UserError(f"{file}: cannot be read ({cause.strerror}): check the path and its permissions") from cause


def _not_utf8(file: Path | str, where: str, cause: UnicodeDecodeError) -> UserError:
    return UserError(f"{file}, {where}: byte 0x{cause.object[cause.start]:02x} is not UTF-8: convert the text to UTF-8")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _first_line(cause: Exception) -> str:
    return (str(cause).splitlines() or [type(cause).__name__])[0]
