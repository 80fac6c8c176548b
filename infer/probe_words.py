"""Which words a probe is trained and tested on: those of a treebank that have a feature, with what it is.

A feature is the part of speech, `upos`, or a name of the column FEATS of CoNLL-U, such as Case or Number. Most words
have no Case; they are no example of its absence but none at all, as in LINSPECTOR. Whole sentences are taken, because a
word is drawn among its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelcore.errors import UserError
from pixelcore.tasks import text_files
from pixelcore.tasks.conllu import Sentence, read_sentences

UPOS = "upos"

Labelled = tuple[list[str], list[str | None]]  # the words of a sentence and their labels, None for those without


@dataclass(frozen=True)
class ProbeWords:
    """Sentences, and of each the numbers of its words that have the feature, with their labels."""

    sentences: list[list[str]]
    wanted: list[list[int]]
    labels: list[list[str]]

    @property
    def flat(self) -> list[str]:
        """The labels, end to end."""
        return [label for of_sentence in self.labels for label in of_sentence]

    @property
    def owner(self) -> NDArray[np.int64]:
        """The sentence of each word that has the feature."""
        return np.repeat(np.arange(len(self.labels)), [len(of_sentence) for of_sentence in self.labels])

    @property
    def forms(self) -> list[str]:
        """These words themselves."""
        return [words[place] for words, places in zip(self.sentences, self.wanted) for place in places]


def read_treebank(folder: Path, feature: str) -> dict[str, list[Labelled]]:
    """Of "train", "valid" and "test": each sentence as words and labels, None for a word without the feature. Raises
    UserError where one of the files is missing, and for a feature that the training file does not have."""
    files = text_files.find_by_name(folder, (".conllu",))
    for role in ("train", "valid", "test"):
        if role not in files:
            raise UserError(
                f"{folder}: no {role} file; probes learn from train, choose their penalty on dev and are "
                "scored on test: give a treebank with all three"
            )
    found = {}
    for role, file in files.items():
        sentences = read_sentences(file)
        found[role] = [(list(one.column("form")), _labels(one, feature)) for one in sentences]
        if role == "train" and not any(label for _, labels in found[role] for label in labels):
            names = sorted({name for one in sentences for feats in one.column("feats") for name in _feats(feats)})
            raise UserError(
                f"--feature {feature}: no word of {file} has it; there are {', '.join([UPOS, *names])}: choose one"
            )
    return found


def _labels(sentence: Sentence, feature: str) -> list[str | None]:
    if feature == UPOS:
        return [None if label == "_" else label for label in sentence.column("upos")]
    return [_feats(feats).get(feature) for feats in sentence.column("feats")]


def _feats(column: str) -> dict[str, str]:
    """Case=Nom|Number=Sing as a table; a word may have no feature, "_"."""
    return {name: value for name, equals, value in (one.partition("=") for one in column.split("|")) if equals}


def choose_words(sentences: Sequence[Labelled], most: int, seed: int) -> ProbeWords:
    """Whole sentences in an order drawn from the seed, until there are `most` words that have the feature."""
    words, wanted, labels, total = [], [], [], 0
    for place in np.random.default_rng(seed).permutation(len(sentences)).tolist():
        forms, given = sentences[place]
        numbers = [number for number, label in enumerate(given) if label is not None][: most - total]
        if numbers:
            words.append(forms)
            wanted.append(numbers)
            labels.append([str(given[number]) for number in numbers])
            total += len(numbers)
    return ProbeWords(words, wanted, labels)
