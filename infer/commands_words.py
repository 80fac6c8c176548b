"""`python -m infer evaluate lambada | babi | readability`: does a model of strips write the right next word?

All three let the model write a few patches behind prompts, read the first word of them and count. They share their
flags: how patches are decided, who reads, and a picture of what was written, which people should look at.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from infer.arguments import Parser, add_running, check_out, setting, write
from infer.benchmarks import babi as stories
from infer.benchmarks import lambada as passages
from infer.benchmarks import readability as reading
from infer.benchmarks.answers import Answers, ReadsWords, aligned, readers_of
from infer.benchmarks.bits_per_byte import read_texts
from infer.benchmarks.intervals import share_of
from infer.benchmarks.next_word import NEW_PATCHES, WordItem, cut_words, shortened
from infer.benchmarks.ocr_readers import ENGINES
from infer.benchmarks.rank_words import Ranking, check_head, rank
from infer.benchmarks.word_list import WordList, read_word_list
from infer.benchmarks.word_reader import WordReader
from infer.figure import Panel, Row, stack
from infer.pixar import LoadedPixar, load_pixar
from infer.write_strip import DECODINGS, WriteConfig, check_decoding
from pixelcore.errors import UserError
from render import RenderError
from render.picture import write_png

_SHOWN = 40  # strips in a picture
_BEFORE = 24  # patches of the prompt that it shows

_DECODINGS = """decodings:
  threshold  each pixel by what is likelier; of a mixture, of its likeliest component (as published)
  mixture    a component is drawn by its score, its pixels are thresholded
  sample     a component and then each pixel are drawn
"""


# ------------------------------------------------------------------ lambada


def run_lambada(argv: Sequence[str]) -> int:
    """The last words of passages."""
    parser = Parser(
        prog="python -m infer evaluate lambada",
        description="How often a model of strips writes the last word of a passage. `lambada` and `lambada-openai` are "
        "two test sets whose figures do not compare: which one it is follows from the form of --data, and is printed.",
        epilog=f"""{_DECODINGS}
examples:
  python -m infer evaluate lambada --model runs/strips --data lambada_openai.jsonl
  python -m infer evaluate lambada --model runs/strips --data lambada_openai.jsonl --count 500 --rank --words freq.txt
  python -m infer evaluate lambada --data lambada_test_plain_text.txt --fold-gq --reader tesseract --reader rapidocr""",
    )
    _add_common(parser, NEW_PATCHES)
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="a .jsonl of context and continuation, or a passage in each line")
    add("--variant", metavar="V", help=f"{', '.join(passages.VARIANTS)}, where the form of the file says otherwise")
    add("--count", type=int, metavar="N", help="so many of the items, drawn with --seed (all)")
    add("--rank", action="store_true", help="also: is the right word the likeliest content word of its passage?")
    add("--words", metavar="FILE", help="a word, or a word and a count, in each line: which words are readable")
    options = parser.parse_args(argv)
    config = _check(options)
    variant, items = passages.read_items(options.data, options.variant)
    items = passages.chosen(items, options.count, options.seed)
    words = None if options.words is None else read_word_list(options.words)
    loaded, readers = _open(options)
    if options.rank:
        check_head(loaded.model)
    progress = sys.stderr.isatty()
    result = passages.lambada(
        loaded.model, loaded.renderer, variant, items, config, readers, fold_gq=options.fold_gq, progress=progress
    )
    ranking: Ranking | None = None
    if options.rank:
        counts = words.counts if words is not None and words.has_counts else None
        ranking = rank(loaded.model, loaded.renderer, items, counts, progress=progress)
    text, report = _with_readable(
        passages.as_text(result, ranking), passages.as_report(result, ranking), result.answers, words
    )
    return _finish(options, loaded, config, items, result.answers, text, report)


# ------------------------------------------------------------------ babi


def run_babi(argv: Sequence[str]) -> int:
    """Where somebody is."""
    parser = Parser(
        prog="python -m infer evaluate babi",
        description="How often a model of strips answers where somebody is (bAbI task 1), in stories from a generator "
        "of ours, or in those of a file of the published data, of any task whose answers are single words.",
        epilog=f"""{_DECODINGS}
examples:
  python -m infer evaluate babi --model runs/strips
  python -m infer evaluate babi --model runs/strips --count 1000 --decode sample --temperature 0.7 --strips written.png
  python -m infer evaluate babi --model runs/strips --data tasks/en/qa1_single-supporting-fact_test.txt --json""",
    )
    _add_common(parser, stories.NEW_PATCHES)
    add = parser.add_argument
    add("--data", metavar="FILE", help="stories of the published data, each with its last question (our generator)")
    add("--count", type=int, metavar="N", help=f"stories ({stories.COUNT}; of --data all)")
    add("--words", metavar="FILE", help="a word, or a word and a count, in each line: which words are readable")
    options = parser.parse_args(argv)
    config = _check(options)
    if options.data is None:
        source = "task 1 from our generator"
        told = stories.generated(stories.COUNT if options.count is None else options.count, options.seed)
    else:
        source = options.data
        told = passages.chosen(stories.read_stories(options.data), options.count, options.seed)
    words = None if options.words is None else read_word_list(options.words)
    loaded, readers = _open(options)
    result = stories.babi(
        loaded.model,
        loaded.renderer,
        source,
        told,
        config,
        readers,
        fold_gq=options.fold_gq,
        progress=sys.stderr.isatty(),
    )
    text, report = _with_readable(stories.as_text(result), stories.as_report(result), result.answers, words)
    return _finish(options, loaded, config, [one.item for one in told], result.answers, text, report)


# ------------------------------------------------------------------ readability


def run_readability(argv: Sequence[str]) -> int:
    """Words that are words."""
    parser = Parser(
        prog="python -m infer evaluate readability",
        description="How many of the words that a model of strips writes behind texts are words of a list, and how "
        "many are right. Beside it, how often the same reader finds a word of the list in what is no text.",
        epilog=f"""{_DECODINGS}
examples:
  python -m infer evaluate readability --model runs/strips --data books/held_out.txt --words words.txt
  python -m infer evaluate readability --data "held_out/*.txt" --words words.txt --count 200 --strips written.png""",
    )
    _add_common(parser, NEW_PATCHES)
    add = parser.add_argument
    add("--data", action="append", required=True, metavar="PATH", help="file, folder or glob; may be repeated")
    add("--field", default="text", help="the field of .jsonl or column of .parquet with the text (%(default)s)")
    add("--words", required=True, metavar="FILE", help="which words are words: one, or one and a count, in each line")
    add("--count", type=int, default=reading.COUNT, metavar="N", help="cuts, spread over the texts (%(default)s)")
    options = parser.parse_args(argv)
    config = _check(options)
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    words = read_word_list(options.words)
    texts = read_texts(options.data, options.field)
    items = cut_words(texts, options.count, options.seed, reading.SHORTEST, reading.LONGEST)
    loaded, readers = _open(options)
    result = reading.readability(
        loaded.model,
        loaded.renderer,
        items,
        words,
        config,
        readers,
        fold_gq=options.fold_gq,
        progress=sys.stderr.isatty(),
    )
    text, report = reading.as_text(result), reading.as_report(result)
    return _finish(options, loaded, config, items, result.answers, text, report)


# ------------------------------------------------------------------ what they share


def _add_common(parser: argparse.ArgumentParser, patches: int) -> None:
    default = WriteConfig()
    add = parser.add_argument
    add("--model", metavar="PATH", help="run, checkpoint, export or published folder (default: the newest run of one)")
    add("--font", action="append", default=[], metavar="F", help="a font of the model's, where it lies here")
    add("--set", action="append", default=[], metavar="A=V", help="change the renderer, as in render.layout=words")
    add_running(parser)
    add("--patches", type=int, default=patches, metavar="N", help="new patches behind each prompt (%(default)s)")
    add(
        "--context",
        type=int,
        metavar="N",
        help="patches of prompt and new ones, at most (what the model can read; less than the rows it was trained on "
        "is better: where those ended, it expects an end)",
    )
    add("--decode", default=default.decode, metavar="D", help=f"{', '.join(DECODINGS)} (%(default)s)")
    add("--temperature", type=float, default=default.temperature, metavar="X", help="of what is drawn (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of items and of what is drawn (%(default)s)")
    add(
        "--reader",
        action="append",
        default=[],
        metavar="R",
        help=f"{', '.join([WordReader.name, *ENGINES])}; several also give PIXAR's union rule ({WordReader.name})",
    )
    add("--fold-gq", action="store_true", help="g and q count as one letter, as in the published figures")
    add("--strips", metavar="FILE", help=f"a picture of the first {_SHOWN} strips that were written, a PNG")
    add("--json", action="store_true", help="one JSON object on standard output, with every word that was read")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")


def _check(options: argparse.Namespace) -> WriteConfig:
    check_out(options.out)
    if options.strips is not None:
        check_out(options.strips, "--strips")
        if not options.strips.lower().endswith(".png"):
            raise UserError(f"--strips {options.strips}: pictures are written as PNG; let the name end in .png")
    if options.patches < 1:
        raise UserError(f"--patches {options.patches}: must be at least 1")
    if options.context is not None and options.context <= options.patches:
        raise UserError(
            f"--context {options.context}: must be more than the {options.patches} new patches, which are part of it"
        )
    return WriteConfig(
        decode=options.decode,
        temperature=options.temperature,
        seed=options.seed,
        max_patches=options.patches,
        stop=True,
    )


def _open(options: argparse.Namespace) -> tuple[LoadedPixar, list[ReadsWords]]:
    changes = dict(setting(item) for item in options.set)
    accept_changed = changes.pop("accept_changed", False)
    if not isinstance(accept_changed, bool):
        raise UserError(f"--set render.accept_changed={accept_changed}: must be true or false")
    loaded = load_pixar(
        options.model,
        device=options.device,
        dtype=options.dtype,
        ops=options.ops,
        fonts=options.font,
        render=changes,
        accept_changed=accept_changed,
    )
    check_decoding(loaded.model.config, options.decode)
    if options.context is not None:
        loaded.model.config = shortened(loaded.model.config, options.context)
    return loaded, readers_of(options.reader, loaded.renderer.config)


def _with_readable(
    text: str, report: dict[str, object], answers: Answers, words: WordList | None
) -> tuple[str, dict[str, object]]:
    if words is None:
        return text, report
    share = share_of(word.lower() in words.counts for word in next(iter(answers.words.values())))
    lines = aligned({"readable": share}) + [f"  of {words}"]
    table = {"name": words.name, "size": len(words.counts), "sha256": words.sha256}
    return "\n".join([text, *lines]), report | {"readable": dataclasses.asdict(share), "word_list": table}


def _finish(
    options: argparse.Namespace,
    loaded: LoadedPixar,
    config: WriteConfig,
    items: Sequence[WordItem],
    answers: Answers,
    text: str,
    report: dict[str, object],
) -> int:
    if options.strips is not None:
        try:
            write_png(options.strips, Image.fromarray(picture(loaded, items, answers)))
        except RenderError as cause:
            raise UserError(f"--strips {cause}") from cause
    if options.json:
        about: dict[str, Any] = {
            "model": str(loaded.stored.path),
            "name": loaded.stored.name,
            "step": loaded.stored.step,
            "settings": dataclasses.asdict(config)
            | {"context": options.context, "fold_gq": options.fold_gq, "readers": list(answers.words)},
        }
        targets = {"targets": [item.word for item in items]}
        write(json.dumps(about | report | targets, ensure_ascii=False, indent=2), options.out)
    else:
        write(text, options.out)
    return 0


def picture(loaded: LoadedPixar, items: Sequence[WordItem], answers: Answers) -> np.ndarray:
    """The first strips, the end of each prompt and what was written behind it on a tint: uint8 RGB."""
    config = loaded.renderer.config
    shape = (config.height, config.patch_width) + ((3,) if loaded.model.config.num_channels == 3 else ())
    said = next(iter(answers.words.values()))
    panels = []
    for index in range(min(_SHOWN, len(items))):
        prompt, new = answers.prompts[index][-_BEFORE:], answers.patches[index]
        cells = np.concatenate([prompt, new]).reshape(-1, *shape)
        tinted = np.arange(len(cells)) >= len(prompt)
        note = f"wanted {items[index].word!r}, read {said[index]!r}"
        panels.append(Panel([Row(str(index + 1), cells, tinted=tinted)], note))
    return stack(panels)
