"""`python -m infer report`: what a fine-tuned model does on a file, as one page to look at in a browser."""

import logging
from collections.abc import Sequence
from pathlib import Path

from infer.arguments import Parser, add_strips_model, check_out, write
from infer.commands_tasks import load_task_model
from infer.evaluate_task import figures_of
from infer.predict import read_files, say_losses
from infer.report.cases import cases_of
from infer.report.curves import metrics_of
from infer.report.page import Page, as_html
from pixelcore.errors import UserError
from pixelcore.tasks.examples import is_labelled

_SHOWN, _HEATED = 40, 6

_log = logging.getLogger(__name__)


def run_report(argv: Sequence[str]) -> int:
    """A page about a fine-tuned model."""
    parser = Parser(
        prog="python -m infer report",
        description="One HTML page about a fine-tuned model on a file: figures, the curves of its run, which label was "
        "taken for which, and the strip of each example with what is right and what was said under its patches, errors "
        "first. The page needs no network and no other file.",
        epilog="""examples:
  python -m infer report --model runs/pos --data en_ewt-ud-dev.conllu --out report.html
  python -m infer report --model runs/sst2 --data dev.tsv --count 200 --heat 20 --out report.html""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="FILE", help="a file of the task; may be repeated")
    add("--count", type=int, default=_SHOWN, metavar="N", help="examples to show, of all that are read (%(default)s)")
    add("--heat", type=int, default=_HEATED, metavar="N", help="of these, with heat maps of patches (%(default)s)")
    add("--out", required=True, metavar="FILE", help="the page, an .html file")
    options = parser.parse_args(argv)
    check_out(options.out)
    if Path(options.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {options.out}: a report is a page; let the name end in .html")
    for flag in ("count", "heat"):
        if getattr(options, flag) < (flag == "count"):
            raise UserError(f"--{flag} {getattr(options, flag)}: must be at least {int(flag == 'count')}")
    loaded = load_task_model(options)
    if loaded.renderer is None:
        raise UserError(f"{loaded.stored.path}: reads tokens, and a report shows strips: use evaluate or predict")
    examples = read_files(loaded, options.data)
    cases, predictions, rows = cases_of(loaded, examples)
    say_losses(rows)
    labelled = all(map(is_labelled, examples))
    metrics = metrics_of(loaded.stored.path)
    if not metrics:
        _log.info("%s: no metrics.jsonl of its run, so there are no curves", loaded.stored.path)
    page = Page(
        loaded=loaded,
        data=", ".join(options.data),
        cases=cases,
        rows=rows,
        figures=figures_of(loaded, loaded.task.counts(examples, predictions, loaded.options)) if labelled else {},
        metrics=metrics,
        shown=options.count,
        heated=min(options.heat, options.count),
    )
    write(as_html(page).removesuffix("\n"), options.out)
    return 0
