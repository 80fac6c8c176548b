"""Robustness: how much worse a model foretells the next word when its prompt, and nothing else, was attacked.

Items come from a task: the last words of LAMBADA's passages, the answers of bAbI's stories, or the words at which texts
are cut. Each is measured with its clean prompt and once with each attack (infer/attacks.py) at each strength. What the
model should write is never touched, and it is the same for all, so every difference is one between pairs: its interval
comes from the items whose result changed, and is much narrower than the two intervals beside each other suggest.

Two measures. The share of words that are written and read as they should be is the published one, and says nothing of a
model that writes no right word anyway, as small ones do. The other needs no reader: the chance of the true word's own
pixels, up to the end of the space behind it (`rank_words`), as bits per patch of that word. They rise where an attack
costs the model what it knew. A prompt of paper alone (`blank`) shows how much that was at all: a loss is judged beside
it. Per character of the word, its space counted, they compare with a decoder of tokens that gets the same attacked
texts (`token_words`); of attacks on pixels a decoder notices nothing.

Confusables are measured for the whole table, and apart for each stratum of look-alikes (infer/confusables.py): drawn
with the same pixels, drawn otherwise, not drawable. A prompt belongs to the worst of its replacements; `unchanged` are
those whose pixels are all the same, which is looked up and not assumed: a font may space two equal letters in different
ways, and a layout that looks for the ends of sentences does not find one in a full stop's look-alike. Where the pixels
are the same, so is what the model does, and it is not run again.

Source: specs/pixar.md, section 6. The interval of a paired difference of shares has half a pair added to each of its
four cells (Agresti and Min, Statistics in Medicine 24 (2005), 729-740): it does not collapse where nothing changed.
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from infer.attacks import Attack, AttackedPrompt, attacked_prompt
from infer.benchmarks.bits_per_character import ratio_interval
from infer.benchmarks.drawn_words import DrawnWord, drawn_words
from infer.benchmarks.intervals import Share, share_of
from infer.benchmarks.next_word import NEW_PATCHES, WordItem, fitting_prompts, same_word, write_patches
from infer.benchmarks.rank_words import log_probabilities
from infer.benchmarks.token_words import bits_of_words
from infer.benchmarks.word_reader import WordReader
from infer.confusables import DRAWN, MISSING, STRATA, UNCHANGED, Confused
from infer.load import Loaded
from infer.write_strip import WriteConfig
from pixelcore.models.pixar import Pixar
from render import Renderer

SHOWN = 4  # items whose strips are kept
_CLEAN = Attack(name="clean", strength="")
_Z = 1.959964  # of the normal distribution, 95 % between -z and z

Patches = NDArray[np.uint8]  # [patches, A]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Against the clean prompts of the same items, with a 95 % interval; no interval of a single item."""

    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Bits:
    """-log2 of the chance of the true words, per patch and per character of them, and the change per patch, or per
    character of a decoder of tokens, which has no patches. The change is absent for the clean prompts."""

    per_patch: float | None
    per_character: float
    change: Change | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack at one strength. right, right_change: shares of words; bits: absent for a regression; tokens: those of
    the decoder beside it, for attacks on texts. same_pixels: of prompts, those the attack left as they were. num_cut:
    prompts that lost patches on the left for growing. Of attacks on texts: the share of characters with look-alikes
    that were replaced; by stratum, how many replacements there are, and the share of prompts."""

    attack: str
    strength: str
    right: Share
    right_change: Change | None
    bits: Bits | None
    tokens: Bits | None
    same_pixels: Share
    num_cut: int
    replaced: float | None
    replacements: dict[str, int] | None
    prompts: dict[str, Share] | None


class Strips(NamedTuple):
    """Of the first items, for a picture: prompts and what was written behind them, and what was read there."""

    prompts: list[Patches]
    written: list[Patches]
    words: list[str]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """rows: the clean prompts first. num_cut: clean prompts that lost words on the left. strips: of each row."""

    count: int
    num_cut: int
    rows: list[Row]
    strips: list[Strips] = field(repr=False)


def robustness(
    model: Pixar,
    renderer: Renderer,
    items: Sequence[WordItem],
    attacks: Sequence[Attack],
    config: WriteConfig,
    partner: Loaded | None = None,
    *,
    progress: bool = False,
) -> Robustness:
    """Measure the items with clean prompts and with each attack. config: `max_patches` None is 4.

    Raises UserError for prompts and words that cannot be drawn, and where not even a word of a prompt fits.
    """
    config = dataclasses.replace(config, max_patches=config.max_patches or NEW_PATCHES)
    targets = [drawn_words(renderer, model.config, item.context, [item.word])[0] for item in items]
    room = max(config.max_patches or 1, *(len(one.patches) for one in targets))
    prompts = fitting_prompts(renderer, model.config, [item.context for item in items], room)
    task = _Task(
        model=model,
        renderer=renderer,
        reader=WordReader(renderer.config),
        items=items,
        contexts=prompts.contexts,
        targets=targets,
        config=config,
        most=model.config.max_patches - room,
        partner=partner,
    )
    clean = task.run(_CLEAN, [AttackedPrompt(one, None, False) for one in prompts.patches], None)
    rows, strips = [task.row(_CLEAN, clean, None)], [clean.strips]
    for attack in tqdm(attacks, desc="attack", disable=not progress, file=sys.stderr):
        found = task.run(attack, task.attacked(attack), clean)
        rows.append(task.row(attack, found, clean))
        strips.append(found.strips)
    return Robustness(count=len(items), num_cut=prompts.num_cut, rows=rows, strips=strips)


# ------------------------------------------------------------------ one attack


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What came of the items under one attack; the arrays are by item."""

    prompts: list[Patches]
    words: list[str]
    right: NDArray[np.bool_]
    bits: NDArray[np.float64] | None
    tokens: NDArray[np.float64] | None
    same: NDArray[np.bool_]
    num_cut: int
    confused: list[Confused] | None
    strips: Strips


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What stays the same under all attacks. contexts: those that fit. most: patches of a prompt."""

    model: Pixar
    renderer: Renderer
    reader: WordReader
    items: Sequence[WordItem]
    contexts: Sequence[str]
    targets: Sequence[DrawnWord]
    config: WriteConfig
    most: int
    partner: Loaded | None

    def attacked(self, attack: Attack) -> list[AttackedPrompt]:
        return [
            attacked_prompt(attack, self.renderer, context, index, self.model.config.num_channels, self.most)
            for index, context in enumerate(self.contexts)
        ]

    def run(self, attack: Attack, attacked: Sequence[AttackedPrompt], clean: _Found | None) -> _Found:
        prompts = [one.patches for one in attacked]
        same = np.ones(len(prompts), bool)
        if clean is not None:
            same = np.array([np.array_equal(one, other) for one, other in zip(prompts, clean.prompts, strict=True)])
        # what is drawn at random belongs to the place of a prompt in its list, so then the list stays whole
        again = clean is None or (self.config.decode != "threshold" and not same.all())
        runs = list(range(len(prompts))) if again else np.flatnonzero(~same).tolist()
        written = write_patches(self.model, [prompts[index] for index in runs], self.config) if runs else []
        read = dict(zip(runs, self.reader.read(written), strict=True))
        words = [read[index] if index in read or clean is None else clean.words[index] for index in range(len(prompts))]
        shown = dict(zip(runs, written, strict=True))
        ends = [
            shown[i] if i in shown or clean is None else clean.strips.written[i] for i in range(len(prompts[:SHOWN]))
        ]
        confused = [one.confused for one in attacked if one.confused is not None]
        return _Found(
            prompts=prompts,
            words=words,
            right=np.array([same_word(one, item.word) for one, item in zip(words, self.items, strict=True)]),
            bits=self._bits(prompts, runs, None if clean is None else clean.bits),
            tokens=self._tokens(attack, confused),
            same=same,
            num_cut=sum(one.was_cut for one in attacked),
            confused=confused or None,
            strips=Strips(prompts[:SHOWN], ends, words[:SHOWN]),
        )

    def _bits(
        self, prompts: Sequence[Patches], runs: Sequence[int], clean: NDArray[np.float64] | None
    ) -> NDArray[np.float64] | None:
        if self.model.config.head == "regression":
            return None
        bits = np.zeros(len(prompts)) if clean is None else clean.copy()
        for index in runs:
            [nats] = -log_probabilities(self.model, prompts[index], [self.targets[index]])
            bits[index] = nats / math.log(2)
        return bits

    def _tokens(self, attack: Attack, confused: Sequence[Confused]) -> NDArray[np.float64] | None:
        if self.partner is None or not (attack is _CLEAN or confused):
            return None
        texts = [one.text for one in confused] or self.contexts
        return bits_of_words(self.partner, texts, [item.word for item in self.items])

    def row(self, attack: Attack, found: _Found, clean: _Found | None) -> Row:
        characters = np.array([len(item.word) + 1 for item in self.items])
        patches = np.array([len(one.patches) for one in self.targets])
        return Row(
            attack=attack.name,
            strength=attack.strength,
            right=share_of(found.right),
            right_change=None if clean is None else change_of_shares(found.right, clean.right),
            bits=_bits_of(found.bits, clean and clean.bits, characters, patches),
            tokens=_bits_of(found.tokens, clean and clean.tokens, characters, None),
            same_pixels=share_of(found.same),
            num_cut=found.num_cut,
            **_strata_of(found),
        )


def _bits_of(
    bits: NDArray[np.float64] | None,
    clean: NDArray[np.float64] | None,
    characters: NDArray[np.int64],
    patches: NDArray[np.int64] | None,
) -> Bits | None:
    if bits is None:
        return None
    units = characters if patches is None else patches
    change = None
    if clean is not None:
        ratio, half = ratio_interval(bits - clean, units)
        change = Change(
            difference=ratio,
            low=None if half is None else ratio - half,
            high=None if half is None else ratio + half,
        )
    per_patch = None if patches is None else float(bits.sum() / patches.sum())
    return Bits(per_patch=per_patch, per_character=float(bits.sum() / characters.sum()), change=change)


def _strata_of(found: _Found) -> dict:
    if found.confused is None:
        return {"replaced": None, "replacements": None, "prompts": None}
    counted = Counter(one.stratum for text in found.confused for one in text.replacements)
    worst = [
        UNCHANGED if same else MISSING if MISSING in {one.stratum for one in text.replacements} else DRAWN
        for text, same in zip(found.confused, found.same, strict=True)
    ]
    eligible = sum(text.eligible for text in found.confused)
    return {
        "replaced": counted.total() / eligible if eligible else 0.0,
        "replacements": {stratum: counted[stratum] for stratum in STRATA},
        "prompts": {stratum: share_of(one == stratum for one in worst) for stratum in STRATA},
    }


def change_of_shares(after: NDArray[np.bool_], before: NDArray[np.bool_]) -> Change:
    """The difference of two shares of the same items, and its 95 % interval."""
    count = len(after)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    won, less, pairs = gained + 0.5, lost + 0.5, count + 2
    middle = (won - less) / pairs
    half = _Z * math.sqrt(won + less - (won - less) ** 2 / pairs) / pairs
    return Change(difference=(gained - lost) / count, low=max(-1.0, middle - half), high=min(1.0, middle + half))


def as_report(result: Robustness) -> dict[str, object]:
    """Plain values, for JSON."""
    return {
        "count": result.count,
        "num_cut": result.num_cut,
        "rows": [dataclasses.asdict(row) for row in result.rows],
    }
