"""LAMBADA: the last word of a passage, which people guess from the whole passage and not from its last sentence.

There are two test sets of that name, made of the same 5,153 passages, and their figures do not compare. `lambada` is
the original: one passage a line, lower case, words and signs parted by spaces. PIXAR was measured on it, detokenised
again by a few rules. `lambada-openai` has the text as it stood in the books, capitals, quotes and line breaks, as
records of `context` and `continuation`. The variant follows from the form of the file, or is said, and every result
carries its name.

The protocol is the published one: the prompt is aligned, the model writes 4 patches, each pixel by a threshold, and the
leading run of letters is the word; it has to be the same, case-sensitive. White space of a context becomes single
spaces. Some targets of `lambada-openai` are no words of letters (41 have a quote, a dash or a line break in them): they
count and cannot be right, and their number is printed.

Beside it stand what the reader would read of the right words as the renderer draws them in as many patches (the
ceiling), and what needs no model: the most frequent content word of the passage, the last name, the last content word,
and the word that is right most often, whatever the passage says.

Source: specs/pixar.md, section 5.2; Paperno et al., arXiv:1606.06031.
"""

import dataclasses
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from infer.benchmarks.answers import WIDTH, Answers, ReadsWords, aligned, answer, as_lines, plain
from infer.benchmarks.content_words import last_content_word, last_name, most_frequent
from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.next_word import NEW_PATCHES, WordItem, same_word
from infer.benchmarks.rank_words import Ranking
from infer.benchmarks.rank_words import as_lines as ranking_lines
from infer.write_strip import WriteConfig
from pixelcore.config import PixarConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import Renderer

VARIANTS = ("lambada-openai", "lambada")
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Lambada:
    """variant: which of the two test sets. not_letters: items whose target is no word of letters. ceiling: share of
    targets that the first reader reads off their own drawings. baselines: shares of the same items."""

    variant: str
    count: int
    not_letters: int
    ceiling: Share
    answers: Answers
    baselines: dict[str, Share]


def read_items(file: str | Path, variant: str | None = None) -> tuple[str, list[WordItem]]:
    """The variant and the items of a file: records of `context` and `continuation`, or a passage in each line.

    variant: which test set it is, where the form would say otherwise: passages of `lambada` are detokenised.
    Raises UserError for a file that cannot be read or holds no item, and for a line of another form.
    """
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"--variant {variant}: unknown; choose {', '.join(VARIANTS)}")
    lines = read_text(file).split("\n")
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UserError(
            f"--data {file}: is empty: give a .jsonl of context and continuation, or a passage in each line"
        )
    records = first.lstrip().startswith("{")
    found = variant or (VARIANTS[0] if records else VARIANTS[1])
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"--data {file}, line {number}"
        item = _record(line, where) if records else _passage(line, where)
        if found == "lambada":
            item = WordItem(detokenised(item.context), item.word)
        items.append(WordItem(" ".join(item.context.split()), item.word))
    return found, items


def read_text(file: str | Path) -> str:
    """A UTF-8 text file named by --data. Raises UserError where it cannot be read."""
    try:
        return Path(file).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as cause:
        raise UserError(f"--data {file}: cannot be read ({cause.strerror}): give the file of the test set") from cause
    except UnicodeDecodeError as cause:
        raise UserError(f"--data {file}: byte {cause.start} is not UTF-8: convert the file to UTF-8") from cause


def _record(line: str, where: str) -> WordItem:
    try:
        record = json.loads(line)
    except ValueError as cause:
        raise UserError(f"{where}: not JSON ({cause}): mend the line") from cause
    texts = [record.get(key) if isinstance(record, dict) else None for key in ("context", "continuation")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f'{where}: needs texts in "context" and "continuation": add them')
    return WordItem(str(texts[0]), str(texts[1]).strip())


def _passage(line: str, where: str) -> WordItem:
    words = line.split()
    if len(words) < 2:
        raise UserError(f"{where}: a passage needs at least two words, the last one is to be guessed: mend the line")
    return WordItem(" ".join(words[:-1]), words[-1])


def detokenised(text: str) -> str:
    """A passage of the original test set as text: paired quotes become ", signs and clitics join what they follow."""
    text = text.replace("``", '"').replace("''", '"')
    text = re.sub(r" +(?=[,.?><{}()])", "", text)
    return re.sub(r" +(?=n't\b|'[a-z])", "", text)


def chosen(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items, drawn from a seed and in their order; all without a count. Raises UserError for none."""
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise UserError(f"--count {count}: must be at least 1")
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


def lambada(
    model: Pixar,
    renderer: Renderer,
    variant: str,
    items: Sequence[WordItem],
    config: WriteConfig,
    readers: Sequence[ReadsWords],
    *,
    fold_gq: bool = False,
    progress: bool = False,
) -> Lambada:
    """Let the model write the last words. config: `max_patches` None is 4.

    Raises UserError for what cannot be drawn, and prompts that do not fit.
    """
    patches = config.max_patches or NEW_PATCHES
    return Lambada(
        variant=variant,
        count=len(items),
        not_letters=sum(not item.word.isalpha() for item in items),
        ceiling=ceiling(renderer, model.config, items, patches, readers[0], fold_gq=fold_gq),
        answers=answer(model, renderer, items, config, readers, fold_gq=fold_gq, progress=progress),
        baselines=baselines(items),
    )


def ceiling(
    renderer: Renderer,
    model: PixarConfig,
    items: Sequence[WordItem],
    patches: int,
    reader: ReadsWords,
    *,
    fold_gq: bool = False,
) -> Share:
    """How many of the right words, drawn behind their contexts, are read as they are."""
    drawn = [drawn_words(renderer, model, item.context, [item.word], patches)[0].patches for item in items]
    read = reader.read(drawn)
    return share_of(same_word(one, item.word, fold_gq) for one, item in zip(read, items, strict=True))


def baselines(items: Sequence[WordItem]) -> dict[str, Share]:
    """Shares that need no model."""
    [(common, _)] = Counter(item.word for item in items).most_common(1)
    return {
        "most frequent content word": share_of(most_frequent(item.context) == item.word for item in items),
        "last name of the passage": share_of(last_name(item.context) == item.word for item in items),
        "last content word": share_of(last_content_word(item.context) == item.word for item in items),
        f"always {common!r}": share_of(item.word == common for item in items),
    }


def as_text(result: Lambada, ranking: Ranking | None = None) -> str:
    """The result for people."""
    lines = [
        f"{'test set':<{WIDTH}}{result.variant}, {result.count:,} items, {result.not_letters} not of letters alone",
        *as_lines(result.answers, result.count),
        *aligned({"ceiling: drawn and read": result.ceiling}),
        "baselines on the same items",
        *aligned(result.baselines, indent="  "),
    ]
    if ranking is not None:
        lines += ["ranking, without a reader", *ranking_lines(ranking)]
    return "\n".join(lines)


def as_report(result: Lambada, ranking: Ranking | None = None) -> dict[str, object]:
    """Plain values, for JSON."""
    table: dict[str, object] = {
        "variant": result.variant,
        "count": result.count,
        "not_letters": result.not_letters,
        "ceiling": dataclasses.asdict(result.ceiling),
        **plain(result.answers),
        "baselines": {name: dataclasses.asdict(share) for name, share in result.baselines.items()},
    }
    return table | ({} if ranking is None else {"ranking": dataclasses.asdict(ranking)})
