"""Items are answered by a model and read: the part that LAMBADA, bAbI and readability have in common.

Each item is a text and the word that follows. What comes back says how often the word was written, for each reader that
was asked, and for several readers also by the rule of the published figures, which take a word as right if any of them
reads it. A model that has collapsed, and writes one word whatever it is asked, shows in the most common word.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.next_word import NEW_PATCHES, Prompts, WordItem, fitting_prompts, same_word, write_patches
from infer.benchmarks.ocr_readers import ENGINES, UNION, OcrReader
from infer.benchmarks.word_reader import WordReader
from infer.write_strip import WriteConfig
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from render import RenderConfig, Renderer

_CHUNK = 64  # strips between two reports of progress


class ReadsWords(Protocol):
    """Reads the first word of written patches."""

    name: str

    def read(self, patches: Sequence[NDArray[np.uint8]]) -> list[str]:
        """uint8 [n, A] each; "" where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answers:
    """by_reader: share of right words. union: of words that any reader took for the right one; None of one reader.
    nothing, most_common: by the first reader, the share without a readable word, and the word that was written most
    often with its share. num_cut: prompts that lost words on the left. words, prompts, patches: what was read, shown
    and written of each item."""

    by_reader: dict[str, Share]
    union: Share | None
    nothing: Share
    most_common: str
    most_common_share: float
    num_cut: int
    words: dict[str, list[str]] = field(repr=False)
    prompts: list[NDArray[np.uint8]] = field(repr=False)
    patches: list[NDArray[np.uint8]] = field(repr=False)


def readers_of(names: Sequence[str], config: RenderConfig) -> list[ReadsWords]:
    """Readers by name, `own` where none is named. Raises UserError for one that is unknown or not installed."""
    found: list[ReadsWords] = []
    for name in names or [WordReader.name]:
        if name in [reader.name for reader in found]:
            raise UserError(f"--reader {name}: is given twice: leave one out")
        if name != WordReader.name and name not in ENGINES:
            raise UserError(f"--reader {name}: unknown; choose {', '.join([WordReader.name, *ENGINES])}")
        found.append(WordReader(config) if name == WordReader.name else OcrReader(name, config))
    return found


def answer(
    model: Pixar,
    renderer: Renderer,
    items: Sequence[WordItem],
    config: WriteConfig,
    readers: Sequence[ReadsWords],
    *,
    fold_gq: bool = False,
    progress: bool = False,
) -> Answers:
    """Let the model write the next word of each item and read it. config: `max_patches` None is 4."""
    config = dataclasses.replace(config, max_patches=config.max_patches or NEW_PATCHES)
    prompts = fitting_prompts(renderer, model.config, [item.context for item in items], config.max_patches or 1)
    with tqdm(total=len(items), desc="write", unit="word", disable=not progress, file=sys.stderr) as bar:
        patches = write_patches(model, prompts.patches, config, bar.update)
    return judge(items, prompts, patches, readers, fold_gq=fold_gq, progress=progress)


def judge(
    items: Sequence[WordItem],
    prompts: Prompts,
    patches: Sequence[NDArray[np.uint8]],
    readers: Sequence[ReadsWords],
    *,
    fold_gq: bool = False,
    progress: bool = False,
) -> Answers:
    """Read written patches and compare the words."""
    words: dict[str, list[str]] = {}
    right: dict[str, list[bool]] = {}
    for reader in readers:
        found: list[str] = []
        with tqdm(total=len(items), desc=f"read ({reader.name})", disable=not progress, file=sys.stderr) as bar:
            for first in range(0, len(patches), _CHUNK):
                found += reader.read(patches[first : first + _CHUNK])
                bar.update(len(found) - bar.n)
        words[reader.name] = found
        right[reader.name] = [same_word(one, item.word, fold_gq) for one, item in zip(found, items, strict=True)]
    [(most_common, times)] = Counter(words[readers[0].name]).most_common(1)
    return Answers(
        by_reader={name: share_of(flags) for name, flags in right.items()},
        union=share_of(map(any, zip(*right.values(), strict=True))) if len(readers) > 1 else None,
        nothing=share_of(not word for word in words[readers[0].name]),
        most_common=most_common,
        most_common_share=times / len(items),
        num_cut=prompts.num_cut,
        words=words,
        prompts=prompts.patches,
        patches=list(patches),
    )


def as_lines(answers: Answers, count: int) -> list[str]:
    """The result for people, without its heading."""
    shares = {f"right, reader {name}": share for name, share in answers.by_reader.items()}
    if answers.union is not None:
        shares[f"right, {UNION}"] = answers.union
    shares["no readable word"] = answers.nothing
    often = f"{answers.most_common!r}, {answers.most_common_share:.4f} of all" if answers.most_common else "nothing"
    return [
        *aligned(shares),
        f"{'written most often':<{WIDTH}}{often}",
        f"{'prompts cut':<{WIDTH}}{answers.num_cut:,} of {count:,} lost words on the left to fit the context",
    ]


WIDTH = 38  # columns of the names in a table


def aligned(shares: dict[str, Share], indent: str = "") -> list[str]:
    """Rows of a table."""
    return [f"{indent + name:<{WIDTH}}{share}" for name, share in shares.items()]


def plain(answers: Answers) -> dict[str, object]:
    """For JSON: without pixels, and the words alone of what was read."""
    table = {
        name: getattr(answers, name) for name in ("nothing", "most_common", "most_common_share", "num_cut", "words")
    }
    table["nothing"] = dataclasses.asdict(answers.nothing)
    table["by_reader"] = {name: dataclasses.asdict(share) for name, share in answers.by_reader.items()}
    table["union"] = None if answers.union is None else dataclasses.asdict(answers.union)
    return table
