"""Sentences that a model writes in a world: which they are, whether they are right, and how many different ones.

A sentence is written behind a past that ends on a patch edge, with room for the longest one, and recognised by its
pixels: it is legible if the patches begin with those of a sentence of the world, as they stand at that place of a text.
What is not is compared with all sentences; the nearest is counted apart if hardly a pixel is wrong.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from infer.benchmarks.intervals import wilson
from infer.benchmarks.testbed_drawing import Drawing
from infer.benchmarks.testbed_worlds import World
from infer.legal import LegalConfig, write_legal
from infer.write_strip import DECODINGS as FREE
from infer.write_strip import WriteConfig, write
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar

DECODINGS = (*FREE, "legal")
NEARLY = 0.02  # share of the pixels of a sentence that may be wrong
_AT_ONCE = 64  # sentences
_PASTS, _TIMES = 4, 64  # of variety behind one past

Patches = NDArray[np.uint8]
Writer = Callable[[Sequence[Patches], int, int], list[Patches]]  # prompts, new patches, seed


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How sentences are written: as in WriteConfig, or "legal", sentences of the world alone (infer/legal.py).
    temperature: None is that decoding's own; of legal 0, the likeliest sentence that a beam finds."""

    decode: str = "threshold"
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.decode not in DECODINGS:
            raise UserError(f"--decode {self.decode}: unknown; choose {', '.join(DECODINGS)}")

    @property
    def draws(self) -> bool:
        """Whether the same past can give different sentences."""
        return bool(self.temperature) if self.decode == "legal" else self.decode != "threshold"


@dataclass(frozen=True)
class Share:
    """A share of independent trials, with its 95 % interval."""

    share: float
    low: float
    high: float
    successes: int
    count: int

    @staticmethod
    def of(found: Collection[bool]) -> "Share":
        successes, count = sum(map(bool, found)), len(found)
        return Share(successes / count if count else 0.0, *wilson(successes, count), successes, count)


@dataclass(frozen=True)
class Writing:
    """What sentences were written like. right: legible, and one that may stand there; of answers there is only one."""

    right: Share
    nearly_right: Share
    legible: Share
    nearly_legible: Share


@dataclass(frozen=True)
class Variety:
    """Of a feature of open sentences: bits of entropy of what was written, beside the truth. Over many pasts, one
    sentence each; and the mean over a few pasts, many sentences each. What counts is nearly a sentence that may stand
    where it was written; None where nothing is. count: what counts over many pasts."""

    over_pasts: float | None
    over_pasts_truth: float
    one_past: float | None
    one_past_truth: float
    most_common: str
    most_common_share: float
    count: int


@dataclass(frozen=True)
class Attempt:
    """A past, and what was written behind it: a sentence of the world or None, the nearest sentence, and whether that
    is near. allowed: what may stand there."""

    before: Sequence[str]
    allowed: Mapping[str, float]
    sentence: str | None = None
    nearest: str = ""
    is_near: bool = False


def past_of(world: World, sentences: Sequence[str], places: Sequence[int]) -> Attempt:
    """The past of one of these places of a text; the text itself decides which."""
    place = random.Random(" ".join(sentences)).choice(places)
    return Attempt(sentences[:place], world.next(sentences[:place]))


def writer_of(model: Pixar, drawing: Drawing, decoding: Decoding) -> Writer:
    """What writes behind prompts: prompt i draws from seed + i."""

    def free(prompts: Sequence[Patches], patches: int, seed: int) -> list[Patches]:
        temperature = 1.0 if decoding.temperature is None else decoding.temperature
        config = WriteConfig(decode=decoding.decode, temperature=temperature, seed=seed, max_patches=patches)
        return [written.patches for written in write(model, prompts, config)]

    def legal(prompts: Sequence[Patches], patches: int, seed: int) -> list[Patches]:
        temperature, pieces = decoding.temperature or 0.0, drawing.world.sentences
        config = LegalConfig(max_patches=patches, temperature=temperature, seed=seed, pieces=pieces)
        return [written.patches for written in write_legal(model, drawing.renderer, prompts, config)]

    return legal if decoding.decode == "legal" else free


def write_behind(
    drawing: Drawing, writer: Writer, pasts: Sequence[Attempt], seed: int, what: str, progress: bool = False
) -> list[Attempt]:
    """Let a sentence be written behind each past. Those of one length limit go together."""
    groups: dict[int, list[int]] = {}
    for i, past in enumerate(pasts):
        groups.setdefault(_room(drawing, len(past.before)), []).append(i)
    found: dict[int, Attempt] = {}
    with tqdm(total=len(pasts), desc=what, unit="sentence", disable=not progress) as bar:
        for room, members in groups.items():
            for start in range(0, len(members), _AT_ONCE):
                some = members[start : start + _AT_ONCE]
                prompts = [drawing.text(pasts[i].before) for i in some]
                for i, patches in zip(some, writer(prompts, room, seed + len(found)), strict=True):
                    found[i] = recognised(drawing, pasts[i], patches)
                bar.update(len(some))
    return [found[i] for i in range(len(pasts))]


def _room(drawing: Drawing, place: int) -> int:
    """Patches of the longest sentence that may stand at a place."""
    return max(map(len, drawing.tree(place).paths))


def recognised(drawing: Drawing, past: Attempt, patches: Patches) -> Attempt:
    """Which sentence written patches begin with, and which they come nearest to."""
    tree = drawing.tree(len(past.before))
    way, sentence = b"", None
    for patch in patches:
        way += patch.tobytes()
        if way in tree.ends:
            sentence = tree.ends[way]
            break
    if sentence is not None:
        return replace(past, sentence=sentence, nearest=sentence, is_near=True)
    ink = np.ones((_room(drawing, len(past.before)), drawing.patch_values), bool)
    ink[: len(patches)] = patches < 128
    paths = [path[: len(path) - tree.closing] for path in tree.paths]
    wrong = [(tree.ink_EA[path] != ink[: len(path)]).mean() for path in paths]
    nearest = int(np.argmin(wrong))
    return replace(past, nearest=list(tree.sentences)[nearest], is_near=bool(wrong[nearest] <= NEARLY))


def scored(said: Sequence[Attempt]) -> Writing:
    """How many are legible and right."""
    return Writing(
        right=Share.of([one.sentence in one.allowed for one in said]),
        nearly_right=Share.of([one.is_near and one.nearest in one.allowed for one in said]),
        legible=Share.of([one.sentence is not None for one in said]),
        nearly_legible=Share.of([one.is_near for one in said]),
    )


def guesses(world: World, asked: Sequence[Attempt]) -> dict[str, Share]:
    """How often trivial ways to answer are right on these questions."""
    source = random.Random(0)
    ways = {"a sentence of the world at random": lambda said: source.choice(world.sentences), **world.guesses}
    return {name: Share.of([guess(one.before) in one.allowed for one in asked]) for name, guess in ways.items()}


# ------------------------------------------------------------------ variety


def variety(
    drawing: Drawing, writer: Writer, said: Sequence[Attempt], decoding: Decoding, seed: int
) -> dict[str, Variety]:
    """Of each feature of the world. said: what was written behind many pasts; behind the first of them more is."""
    pasts = said[:_PASTS]
    times = _TIMES if decoding.draws else 1  # what is not drawn is the same each time
    again = [write_behind(drawing, writer, [past] * times, seed + i * times, "variety") for i, past in enumerate(pasts)]
    found = {}
    for name, feature in drawing.world.features.items():
        counts = _counts(said, feature)
        behind = [_counts(group, feature) for group in again]
        bits = [entropy for entropy in map(entropy_of_counts, behind) if entropy is not None]
        top, times_top = counts.most_common(1)[0] if counts else ("", 0)
        found[name] = Variety(
            over_pasts=entropy_of_counts(counts),
            over_pasts_truth=_true_entropy(said, feature),
            one_past=float(np.mean(bits)) if bits else None,
            one_past_truth=float(np.mean([_true_entropy([past], feature) for past in pasts])),
            most_common=top,
            most_common_share=times_top / counts.total() if counts else 0.0,
            count=counts.total(),
        )
    return found


def _counts(said: Sequence[Attempt], feature: Callable[[str], str]) -> Counter[str]:
    return Counter(feature(one.nearest) for one in said if one.is_near and one.nearest in one.allowed)


def entropy_of_counts(counts: Mapping[str, int]) -> float | None:
    """Bits, with Miller's correction; None of nothing."""
    total = sum(counts.values())
    if not total:
        return None
    share = np.array(list(counts.values())) / total
    return float(-(share * np.log2(share)).sum() + (len(share) - 1) / (2 * total * math.log(2)))


def _true_entropy(said: Sequence[Attempt], feature: Callable[[str], str]) -> float:
    """Bits of the feature under the truth, the pasts mixed."""
    chances: dict[str, float] = {}
    for one in said:
        for sentence, chance in one.allowed.items():
            chances[feature(sentence)] = chances.get(feature(sentence), 0.0) + chance / len(said)
    share = np.array(list(chances.values()))
    return float(-(share * np.log2(share)).sum())
