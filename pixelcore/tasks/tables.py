"""Tables of texts: TSV, CSV and JSONL come down to rows of named fields, each row with the place it has in its file.

TSV has no standard. Most data sets write a row on a line and mean every quote mark (GLUE, XNLI); what was saved by a
spreadsheet or a data frame puts quotes around some fields and doubles those inside (SIB-200). The second kind is
undone only where a whole field has that form, within its line, so that a stray quote mark can never swallow the rows
behind it. CSV is read as Python's csv module does, where a quoted field may go over several lines.
"""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixelcore.errors import UserError
from pixelcore.tasks.text_files import ending_of, numbered_lines

ENDINGS = (".tsv", ".csv", ".jsonl", ".txt")
_FEW = 40  # characters of a line that an error shows


@dataclass(frozen=True)
class Row:
    """A row of a table. line: where it begins in the file, from 1. fields: as text; null of JSON is empty."""

    line: int
    fields: dict[str, str]


@dataclass(frozen=True)
class Table:
    """columns: their names, of JSONL those of the first record. bad_lines: rows that were left out because they have
    too few or too many fields."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    bad_lines: list[int] = field(default_factory=list)

    def find(self, names: Sequence[str]) -> str | None:
        """The first of these columns that is there."""
        return next((name for name in names if name in self.columns), None)

    def lacks(self, names: Sequence[str]) -> str:
        """The beginning of an error: that none of these columns is there, which ones are, which may have been meant."""
        close = [near for name in names for near in difflib.get_close_matches(name, self.columns, n=1)]
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{self.path}: no column {' or '.join(map(repr, names))}; there are {', '.join(self.columns)}{hint}"


def read_table(
    path: Path, *, header: Sequence[str] = (), quoted: bool = True, leave_out_bad_lines: bool = False
) -> Table:
    """All rows of a file, the format by its ending; .gz may stand behind it.

    header: names for a TSV file without a header; one whose first line has any of these names has one all the same.
    quoted: whether fields of TSV may be in quotes. leave_out_bad_lines: of TSV, those of another number of fields; else
    they are errors. Raises UserError for what cannot be read, with the line, and for a table without rows.
    """
    ending = ending_of(path)
    if ending not in ENDINGS:
        raise UserError(f"{path}: a table must end in {', '.join(ENDINGS)} (or .gz behind it): rename or convert it")
    if ending == ".jsonl":
        table = _read_jsonl(path)
    else:
        lines = _csv_lines(path) if ending == ".csv" else _tsv_lines(path, quoted)
        table = _with_header(path, lines, header, leave_out_bad_lines)
    if not table.rows:
        raise UserError(f"{path}: no row in it{' but the header' if table.columns else ''}: give a file with examples")
    return table


def _with_header(
    path: Path, lines: Iterator[tuple[int, list[str]]], header: Sequence[str], leave_out_bad_lines: bool
) -> Table:
    number, first = next(lines, (0, []))
    columns = [name.strip() for name in first]
    if header and not set(columns) & set(header):
        columns, rows = list(header), [(number, first)] if first else []
    else:
        rows = []
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}:{number}: column {twice!r} stands twice in the header: rename one of them")
    table = Table(path, tuple(columns), [])
    for number, fields in [*rows, *lines]:
        if len(fields) == len(columns):
            table.rows.append(Row(number, dict(zip(columns, fields))))
        elif leave_out_bad_lines:
            table.bad_lines.append(number)
        else:
            raise UserError(
                f"{path}:{number}: {len(fields)} fields, and the header has {len(columns)} ({', '.join(columns)}): "
                f"correct the line, {' '.join(fields)[:_FEW]!r}"
            )
    return table


def _tsv_lines(path: Path, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    for number, line in numbered_lines(path):
        if line.strip():
            fields = line.split("\t")
            yield number, [_unquoted(one) for one in fields] if quoted else fields


def _unquoted(text: str) -> str:
    """A field without the quotes around it, where it has them and all inside are doubled."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    inner = text[1:-1]
    return text if '"' in inner.replace('""', "") else inner.replace('""', '"')


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    begin = 1
    try:
        for fields in reader:
            if any(one.strip() for one in fields):
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as cause:
        raise UserError(f"{path}:{begin}: not CSV ({cause}): correct the quotes of the row that begins here") from cause


def _read_jsonl(path: Path) -> Table:
    rows: list[Row] = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as cause:
            raise UserError(f"{where}: not JSON ({cause}): every line must be one JSON object: correct it") from cause
        if not isinstance(record, dict):
            raise UserError(f"{where}: a {type(record).__name__}, and a row is a JSON object: correct the line")
        rows.append(Row(number, {name: _as_text(value) for name, value in record.items()}))
    columns = tuple(rows[0].fields) if rows else ()
    for row in rows:
        lacking = [name for name in columns if name not in row.fields]
        if lacking:
            raise UserError(
                f"{path}:{row.line}: no field {lacking[0]!r}, which the first record has; there are "
                f"{', '.join(row.fields) or 'none'}: correct the line"
            )
    return Table(path, columns, rows)


def _as_text(value: object) -> str:
    """A number as it is written, nothing for null. Lists and objects are kept as JSON: nobody may ask for them."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
