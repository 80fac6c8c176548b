"""The commands of `python -m infer` for fine-tuned models: predict, and evaluate by the four tasks.

Both take any file of the task, read as in training: what its columns are called, for instance, stands in the model's
checkpoint, and `--set objective.x=v` says otherwise.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infer.arguments import (
    Parser,
    add_strips_model,
    check_out,
    read_lines,
    read_standard_input,
    setting,
    strips_choices,
    write,
)
from infer.evaluate_attacked import evaluate_attacked
from infer.evaluate_task import as_report, as_text, evaluate
from infer.predict import (
    ENDINGS,
    TaskModel,
    about,
    check_ending,
    load_model,
    predict,
    read_files,
    say_losses,
    text_examples,
    write_predictions,
    written,
)
from infer.task_attacks import KINDS, attack_of
from pixelcore.errors import UserError

_log = logging.getLogger(__name__)


def load_task_model(options: argparse.Namespace, kind: str | None = None) -> TaskModel:
    """The model that the flags of `add_strips_model` name, `--set objective.x=v` among them. kind: of the task."""
    objective = [item for item in options.set if item.strip().startswith("objective.")]
    options.set = [item for item in options.set if item not in objective]
    return load_model(
        options.model,
        **strips_choices(options),
        objective=dict(setting(item, "objective") for item in objective),
        kind=kind,
    )


# ------------------------------------------------------------------ predict


def run_predict(argv: Sequence[str]) -> int:
    """What a fine-tuned model says of texts."""
    parser = Parser(
        prog="python -m infer predict",
        description="What a fine-tuned model says of texts: labels, trees, answers. A file is read by its ending, as "
        "in training, with labels or without. Without --out, one JSON record for each example on standard output.",
        epilog=f"""--out by its ending ({", ".join(ENDINGS)}):
  .jsonl    a record for each example, gold labels beside the predicted ones where there are any
  .conllu   parts of speech and trees, in the file's own lines
  .txt      words and labels in columns; identity and label of texts; answers
  .json     answers by the question's id, as SQuAD's official programs take them

examples:
  python -m infer predict --model runs/pos --data new.conllu --out tagged.conllu
  python -m infer predict --model runs/parser --lines sentences.txt --out trees.conllu
  python -m infer predict --model runs/sst2 --text "a gripping story"
  python -m infer predict --model runs/squad --text "Who wrote it?" --second "It was written by her." """,
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", action="append", metavar="FILE", help="a file of the task, with labels or without; may be repeated")
    add("--lines", metavar="FILE", help="bare texts, one in each line; words stand between spaces")
    add("--text", metavar="T", help='one bare text; "-" reads standard input (less one line end)')
    add("--second", metavar="T", help="with --text: the other text of a pair, or what the question is about")
    add("--out", metavar="FILE", help="write the predictions to FILE, in the format of its ending")
    options = parser.parse_args(argv)
    check_out(options.out)
    sources = [flag for flag in ("data", "lines", "text") if getattr(options, flag) is not None]
    if len(sources) != 1:
        said = " and ".join(f"--{flag}" for flag in sources) or "no examples"
        raise UserError(f"{said}: give one of --data FILE, --lines FILE, --text T")
    if options.second is not None and options.text is None:
        raise UserError("--second goes with --text: leave it out")
    loaded = load_task_model(options)
    if options.out is not None:
        check_ending(options.out, loaded)
    examples = _examples(options, loaded)
    found, rows = predict(loaded, examples)
    say_losses(rows)
    if options.out is None:
        write(written(loaded, examples, found.predictions, ".jsonl").removesuffix("\n"), None)
    else:
        write_predictions(loaded, examples, found.predictions, options.out)
    return 0


def _examples(options: argparse.Namespace, loaded: TaskModel) -> list[Any]:
    if options.data is not None:
        return read_files(loaded, options.data)
    if options.text is not None:
        text = read_standard_input() if options.text == "-" else options.text
        return text_examples(loaded, [("the text", text)], options.second)
    lines = read_lines("--lines", Path(options.lines), "text")
    texts = [(f"line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(texts) < len(lines):
        share = 100 * (1 - len(texts) / len(lines))
        _log.warning("--lines %s: left out %d empty lines (%.2f %%)", options.lines, len(lines) - len(texts), share)
    return text_examples(loaded, texts)


# ------------------------------------------------------------------ evaluate


def run_evaluate_task(kind: str, argv: Sequence[str]) -> int:
    """Figures of a fine-tuned model, beside what is trivial and what is published."""
    parser = Parser(
        prog=f"python -m infer evaluate {kind}",
        description=f"How good a model that was fine-tuned for the task {kind} is on a labelled file: its figures with "
        "95 % intervals over the examples, what is trivial (learned from --train), and published figures for this data "
        "where there are some. With --attack the same examples are read again, attacked, and figures are given for all "
        "of them and by what the attack did to their pixels.",
        epilog=f"""{KINDS}
examples:
  python -m infer evaluate {kind} --model runs/a --data test.{_ENDING[kind]} --train train.{_ENDING[kind]}
  python -m infer evaluate {kind} --model runs/a --data test.{_ENDING[kind]} --attack confusables:0.2 --json""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="FILE", help="a labelled file; may be repeated")
    add("--train", action="append", default=[], metavar="FILE", help="what the baselines learn from; may be repeated")
    add("--attack", action="append", default=[], metavar="A:X", help="attack and severity, 0 to 1; may be repeated")
    add("--confusables", metavar="FILE", help="in place of our table, one in the format of Unicode's confusables.txt")
    add("--seed", type=int, default=0, metavar="S", help="of the attacks (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    check_out(options.out)
    if options.confusables is not None and not any(one.startswith("confusables") for one in options.attack):
        raise UserError("--confusables is for --attack confusables: add that, or leave it out")
    loaded = load_task_model(options, kind)
    attacks = [attack_of(given, options.seed, options.confusables, loaded.renderer) for given in options.attack]
    examples = read_files(loaded, options.data)
    train = read_files(loaded, options.train)
    found, clean = evaluate(loaded, examples, train, options.data)
    attacked = [evaluate_attacked(loaded, examples, clean, attack) for attack in attacks]
    if options.json:
        report = about(loaded) | {"data": options.data, "train": options.train} | as_report(found, attacked)
        write(json.dumps(report, ensure_ascii=False, indent=2), options.out)
        return 0
    heading = f"{kind}, {loaded.stored.path}, {', '.join(options.data)}"
    write("\n".join([heading, *as_text(found, attacked)]), options.out)
    return 0


_ENDING = {"classify": "tsv", "tag": "conllu", "parse": "conllu", "answer": "json"}
