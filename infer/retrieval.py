"""Does the encoder put a sentence near its translation? Retrieval across languages, layer by layer.

Of two languages with the same N sentences, each sentence of one is compared with all N of the other, and Recall@K is
the share whose translation is among the K most similar. Similarity is the cosine after the mean over all sentences of
all languages was taken away, because vectors of one encoder mostly point the same way. The analysis is that of
PIXEL-M4 (specs/pixel.md, section 7); what keeps it honest is added here:

    chance            K / N
    shared strings    what a program without any model finds by numbers and Latin words that stand in both sentences as
                      they are: 1994, GPS, a name. An encoder of pixels sees these too, as equal pictures
    random encoder    the same architecture before any training: what is in shapes, amounts of ink and lengths

Where several candidates are equally similar, a sentence counts as found with the probability that it has in a random
order of these; so neither the order of the file nor a constant vector can gain anything.

Intervals are over the sentences that are looked for, a sentence being drawn in all pairs of languages at once; the
candidates stay the same.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError
from pixelcore.tasks import text_files
from pixelcore.tasks.bootstrap import intervals
from pixelcore.tasks.classify import ClassifyOptions, read
from pixelcore.tasks.examples import TextExample

SPLITS = ("train", "valid", "test")
MEAN = "mean"  # over all pairs

_SHARED = re.compile(r"[0-9]+|[A-Za-z]+")

Hits = dict[str, NDArray[np.float64]]  # by pair, "eng_Latn>hin_Deva": [N], how surely each sentence is found


# ------------------------------------------------------------------ sentences of several languages


def read_languages(folder: Path, languages: Sequence[str], split: str = "train") -> dict[str, list[TextExample]]:
    """The sentences of each language from FOLDER/LANGUAGE/, in the form of SIB-200. Raises UserError for a language
    that is not there."""
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not there:
        raise UserError(f"--data {folder}: no folders of languages in it: give one with eng_Latn and so on")
    found = {}
    for language in languages:
        if language not in there:
            raise UserError(f"--languages {language}: not in {folder}; there are {', '.join(there)}")
        files = text_files.find_by_name(folder / language, (".tsv",))
        if split not in files:
            raise UserError(f"{folder / language}: no {split} file: give another --split, {', '.join(SPLITS)}")
        found[language] = read(files[split], ClassifyOptions(layout="sib200"))
    return found


def check_alignment(found: Mapping[str, Sequence[TextExample]]) -> None:
    """Raises UserError unless row i is the same sentence in all languages, by the index that SIB-200 gives each."""
    names = list(found)
    own = [_index(example) for example in found[names[0]]]
    for language in names[1:]:
        others = [_index(example) for example in found[language]]
        for row, (mine, other) in enumerate(zip(own, others), 1):
            if mine != other:
                raise UserError(
                    f"sentence {row} has the index {mine} in {names[0]} and {other} in {language}: rows must be the "
                    "same sentences in the same order: sort the files by index_id"
                )
        if len(own) != len(others):
            raise UserError(
                f"{len(own)} sentences in {names[0]} and {len(others)} in {language}: rows must be the same sentences: "
                "leave out what one of them lacks"
            )


def _index(example: TextExample) -> str:
    return example.id.removeprefix(f"{example.group}:")


def evenly(examples: Sequence[TextExample], most: int | None) -> list[TextExample]:
    """At most so many of them, evenly taken; of aligned lists the same rows."""
    if most is None or most >= len(examples):
        return list(examples)
    return [examples[place * len(examples) // most] for place in range(most)]


# ------------------------------------------------------------------ who finds whom


def hits_of_vectors(vectors: Mapping[str, NDArray[np.float32]], k: int) -> Hits:
    """Of sentence vectors [N, D] by language: whether the translation is among the k nearest."""
    mean_D = np.concatenate(list(vectors.values())).mean(0, dtype=np.float64)
    unit = {}
    for language, vectors_ND in vectors.items():
        centred_ND = vectors_ND - mean_D
        unit[language] = centred_ND / np.maximum(np.linalg.norm(centred_ND, axis=1, keepdims=True), 1e-12)
    return {pair_name(a, b): found(unit[a] @ unit[b].T, k) for a, b in pairs(list(vectors))}


def hits_of_shared_strings(texts: Mapping[str, Sequence[str]], k: int) -> Hits:
    """The same by cosines of counts of shared strings, the rare ones weighing more; case does not count."""
    bags = {language: [Counter(_SHARED.findall(text.lower())) for text in of] for language, of in texts.items()}
    hits = {}
    for a, b in pairs(list(texts)):
        occurs = Counter(string for bag in [*bags[a], *bags[b]] for string in bag)
        number = {string: place for place, string in enumerate(occurs)}
        weight_V = np.log((len(bags[a]) + len(bags[b])) / np.array(list(occurs.values()), np.float64))
        sides = []
        for bag_of in (bags[a], bags[b]):
            side_NV = np.zeros((len(bag_of), len(number)))
            for row, bag in enumerate(bag_of):
                for string, count in bag.items():
                    side_NV[row, number[string]] = count * weight_V[number[string]]
            sides.append(side_NV / np.maximum(np.linalg.norm(side_NV, axis=1, keepdims=True), 1e-12))
        hits[pair_name(a, b)] = found(sides[0] @ sides[1].T, k)
    return hits


def found(similarity_NN: NDArray[Any], k: int) -> NDArray[np.float64]:
    """[N]: the probability that candidate i is among the k most similar to query i, equal ones in random order."""
    own_N1 = similarity_NN.diagonal()[:, None]
    # what differs by rounding alone is equal
    same_NN = np.abs(similarity_NN - own_N1) <= 1e-9
    nearer_N = ((similarity_NN > own_N1) & ~same_NN).sum(1)
    return np.clip((k - nearer_N) / same_NN.sum(1), 0.0, 1.0)


def pairs(languages: Sequence[str]) -> list[tuple[str, str]]:
    """All ordered pairs: the language of what is looked for, and that of the candidates."""
    return [(a, b) for a in languages for b in languages if a != b]


def pair_name(a: str, b: str) -> str:
    """How reports call a pair."""
    return f"{a}>{b}"


# ------------------------------------------------------------------ figures


@dataclass(frozen=True)
class Recall:
    """Recall@K, 0 to 1, and its 95 % interval over the sentences."""

    value: float
    low: float
    high: float


def recalls(hits: Hits) -> dict[str, Recall]:
    """Of each pair, and of all pairs together under `MEAN`."""
    hits = {**hits, MEAN: np.mean(list(hits.values()), axis=0)}
    ranges = intervals(
        {**hits, "sentences": np.ones(len(hits[MEAN]))},
        lambda sums: {name: sums[name] / sums["sentences"] for name in hits},
    )
    return {name: Recall(float(hit_N.mean()), *ranges[name]) for name, hit_N in hits.items()}


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """k, and how many sentences there are in each language. layers, random: by layer, then by pair. shared: by pair."""

    k: int
    sentences: int
    chance: float
    shared: dict[str, Recall]
    layers: list[dict[str, Recall]]
    random: list[dict[str, Recall]]


def as_text(result: Retrieval) -> list[str]:
    """A table in per cent: pairs down, layers across; below it the mean over all pairs with its interval."""
    names = [name for name in result.shared if name != MEAN]
    width = max(map(len, [*names, "random encoder"]))
    numbers = "".join(f"{layer:>6}" for layer in range(len(result.layers)))
    lines = [
        f"Recall@{result.k} in per cent of {result.sentences} sentences; chance {100 * result.chance:.1f}",
        f"{'':{width}} {'shared':>8}  layer",
        f"{'':{width}} {'strings':>8}{numbers}",
    ]

    def line(label: str, shared: float | None, values: Sequence[float]) -> str:
        first = f"{'':>8}" if shared is None else f"{100 * shared:8.1f}"
        return f"{label:{width}} {first}" + "".join(f"{100 * value:6.1f}" for value in values)

    for name in names:
        lines.append(line(name, result.shared[name].value, [of[name].value for of in result.layers]))
    shared, layers = result.shared[MEAN], [of[MEAN] for of in result.layers]
    lines.append(line("all pairs", shared.value, [one.value for one in layers]))
    lines.append(line("  from", shared.low, [one.low for one in layers]))
    lines.append(line("  to", shared.high, [one.high for one in layers]))
    lines.append(line("random encoder", None, [of[MEAN].value for of in result.random]))
    return lines
