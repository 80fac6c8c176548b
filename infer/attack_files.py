"""`python -m infer attack --data`: a file of a task with its words attacked, in the format that it had.

What is learned from attacked data must be data that a training run can read, so labels, trees, identities and whatever
else stands in the file stay as they are, line by line, and only words, texts and questions change:

    .conllu                      the forms of words; lines of 3-4 and 5.1, which no task reads, stay
    .iob2, .conll, .bio, .txt    the words of columns
    .tsv, .csv, .jsonl           the columns that --field names, or numbers from 1 where there is no header
    .json                        the questions of SQuAD's format; contexts stay, for answers must stand in them

An example is attacked by its number in the file, as `evaluate --attack` does it: to attack a file and evaluate it, or
to evaluate under the attack, is the same. The log says how many words or texts became others.
"""

import csv
import gzip
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from infer.arguments import Parser, check_out
from infer.task_attacks import KINDS, LOOK_ALIKES, TaskAttack, attack_of
from pixelcore.durable import write_file
from pixelcore.errors import UserError
from pixelcore.tasks import columns, conllu
from pixelcore.tasks.squad import read_squad
from pixelcore.tasks.tables import read_table
from pixelcore.tasks.text_files import ending_of, numbered_lines
from render import RenderConfig, Renderer, RenderError

_TABLES = (".tsv", ".csv", ".jsonl")

_log = logging.getLogger(__name__)


def run_attack_file(argv: Sequence[str]) -> int:
    """Attack the words of a file."""
    parser = Parser(
        prog="python -m infer attack --data",
        description="Attack the words of a task's file and write it in the same format, labels and trees as they are: "
        "data to evaluate on, or to train on. Everything is drawn from the seed and the number of the example.",
        epilog=f"""{KINDS}
examples:
  python -m infer attack --data en_ewt-ud-train.conllu --attack confusables:0.2 --out attacked/en_ewt-ud-train.conllu
  python -m infer attack --data dev.tsv --field premise --field hypothesis --attack truncate:0.5 --out cut.tsv""",
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help=f"{', '.join(_WRITERS)} (or .gz behind it)")
    add("--attack", required=True, metavar="A:X", help="attack and severity, 0 to 1")
    add("--field", action="append", default=[], metavar="F", help="of a table: the column of a text; may be repeated")
    add("--confusables", metavar="FILE", help="in place of our table, one in the format of Unicode's confusables.txt")
    add("--font", action="append", default=[], metavar="F", help="by which -unchanged, -drawn, -missing are told apart")
    add("--seed", type=int, default=0, metavar="S", help="of all that is drawn (%(default)s)")
    add("--out", required=True, metavar="FILE", help="the attacked file, with the same ending")
    options = parser.parse_args(argv)
    check_out(options.out)
    path, out = Path(options.data), Path(options.out)
    ending = ending_of(path)
    if ending not in _WRITERS:
        raise UserError(f"--data {path}: a file of a task must end in {', '.join(_WRITERS)}")
    if ending_of(out) != ending:
        raise UserError(f"--out {out}: must end in {ending} like --data: the format stays")
    if out.absolute() == path.absolute():
        raise UserError(f"--out {out}: is the file of --data: name another, it would be lost")
    if bool(options.field) != (ending in _TABLES):
        rule = "names columns of tables: leave it out" if options.field else "is needed: name the columns of the texts"
        raise UserError(f"--field: {rule} ({path.name} ends in {ending})")
    if options.font and not options.attack.startswith(f"{LOOK_ALIKES}-"):
        raise UserError(f"--font: tells look-alikes apart, and --attack {options.attack} takes all alike: leave it out")
    if options.confusables is not None and not options.attack.startswith(LOOK_ALIKES):
        raise UserError("--confusables is for --attack confusables: add that, or leave it out")
    try:
        renderer = Renderer(RenderConfig(fonts=tuple(options.font))) if options.font else None
    except (RenderError, OSError) as cause:
        raise UserError(f"--font: {cause}") from cause
    attack = attack_of(options.attack, options.seed, options.confusables, renderer)
    seen: Counter[str] = Counter()
    text = _WRITERS[ending](path, attack, options.field, seen)
    data = text.encode()
    try:
        write_file(out, gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    except OSError as cause:
        raise UserError(f"--out {out}: cannot be written ({cause.strerror}): choose another place") from cause
    share = 100 * seen["changed"] / max(seen["all"], 1)
    what = "words" if ending not in (*_TABLES, ".json") else "texts"
    counted = f"{seen['changed']} of {seen['all']} {what} changed ({share:.2f} %)"
    _log.info("%s: %s, seed %d: %s", out, attack, attack.seed, counted)
    return 0


# ------------------------------------------------------------------ words


def _conllu(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    lines: list[str] = []
    for number, sentence in enumerate(conllu.read_sentences(path)):
        words = sentence.column("form")
        lines += conllu.written(sentence.lines, {"form": _words(words, attack, number, seen)})
    return "".join(line + "\n" for line in lines)


def _columns(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    """Line by line, so that comments, marks of documents and empty lines stay where they are."""
    examples = columns.read_columns(path)
    hit = iter([word for number, one in enumerate(examples) for word in _words(one.words, attack, number, seen)])
    numbered = ending_of(path) == ".iob2"
    lines, width = [], 0
    for number, line in numbered_lines(path):
        is_comment = numbered and line.startswith("#") and "\t" not in line
        if not line.strip() or line.startswith(columns.DOCUMENT) or is_comment:
            lines.append(line)
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        width = width or len(cells)
        if len(cells) != width and not numbered:
            raise UserError(
                f"{path}:{number}: {len(cells)} columns and {width} before it: give a file of labelled words"
            )
        cells[int(numbered)] = next(hit)
        lines.append(("\t" if "\t" in line else " ").join(cells))
    return "".join(line + "\n" for line in lines)


def _words(words: Sequence[str], attack: TaskAttack, number: int, seen: Counter[str]) -> tuple[str, ...]:
    hit = attack.on_words(words, number)
    seen["all"] += len(words)
    seen["changed"] += sum(before != after for before, after in zip(words, hit, strict=True))
    return hit


# ------------------------------------------------------------------ texts


def _jsonl(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    lines = []
    for row in read_table(path).rows:
        lacking = [name for name in fields if name not in row.fields]
        if lacking:
            raise UserError(f"{path}:{row.line}: no field {lacking[0]!r}; there are {', '.join(row.fields)}")
    rows = ((number, json.loads(line)) for number, line in enumerate(_filled(path)))
    for number, row in rows:
        for part, name in enumerate(fields):
            row[name] = _text(str(row[name]), attack, number, part, seen)
        lines.append(json.dumps(row, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def _tsv(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    rows = _attacked_rows(path, [line.split("\t") for line in _filled(path)], attack, fields, seen)
    return "".join("\t".join(row) + "\n" for row in rows)


def _csv(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    read_table(path)  # what is no CSV is an error with its line
    rows = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    out = io.StringIO()
    filled = [row for row in rows if any(map(str.strip, row))]
    csv.writer(out, lineterminator="\n").writerows(_attacked_rows(path, filled, attack, fields, seen))
    return out.getvalue()


def _attacked_rows(
    path: Path, rows: list[list[str]], attack: TaskAttack, fields: Sequence[str], seen: Counter[str]
) -> list[list[str]]:
    """The header, where columns are named and not numbered, and the rows."""
    headers = 0 if all(map(str.isdecimal, fields)) else 1
    names = [name.strip() for name in rows[0]] if headers else [str(place + 1) for place in range(len(rows[0]))]
    for name in fields:
        if name not in names:
            raise UserError(f"--field {name}: no such column in {path}; there are {', '.join(names)}")
    places = [names.index(name) for name in fields]
    for number, row in enumerate(rows[headers:]):
        if len(row) <= max(places):
            raise UserError(
                f"{path}: row {number + 1} has {len(row)} fields, and column {max(places) + 1} is asked for"
            )
        for part, place in enumerate(places):
            row[place] = _text(row[place], attack, number, part, seen)
    return rows


def _squad(path: Path, attack: TaskAttack, fields: Sequence[str], seen: Counter[str]) -> str:
    read_squad(path, empty_is_impossible=True)  # what is no such file is an error with its place
    content = json.loads("\n".join(line for _, line in numbered_lines(path)))
    asked = [one for article in content["data"] for paragraph in article["paragraphs"] for one in paragraph["qas"]]
    for number, one in enumerate(asked):
        one["question"] = _text(one["question"], attack, number, 0, seen)
    return json.dumps(content, ensure_ascii=False) + "\n"


def _text(text: str, attack: TaskAttack, number: int, part: int, seen: Counter[str]) -> str:
    hit = attack.on_text(text, number, part)
    seen["all"] += 1
    seen["changed"] += hit != text
    return hit


def _filled(path: Path) -> list[str]:
    found = [line for _, line in numbered_lines(path) if line.strip()]
    if not found:
        raise UserError(f"{path}: nothing in it: give a file with examples")
    return found


_WRITERS: dict[str, Callable[[Path, TaskAttack, Sequence[str], Counter[str]], str]] = {
    ".conllu": _conllu,
    ".iob2": _columns,
    ".conll": _columns,
    ".bio": _columns,
    ".txt": _columns,
    ".tsv": _tsv,
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _squad,
}
