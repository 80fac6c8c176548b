"""For each word of a sentence its head, another word or the root, and the relation to it: dependency trees, CoNLL-U.

PIXEL's parser scores every pair of words (`models/heads.py`), and there are two ways to read its scores. "greedy", as
published: the best head of each word by itself, words that are not there among them; what comes out need be no tree.
"tree", ours: the best tree over the words that are there (`spanning_tree.py`), whose root alone has the relation
`root`. The relation is that of the largest score at the predicted head.

The scores are those of the CoNLL 2018 shared task for given words: UAS is the share of words with the right head, LAS
that with the right relation too, punctuation included, relations without their subtypes. The original takes the
relation at the true head and counts words where head and relation are right, which is the same number: where the head
is right the two heads are one. Words that did not fit into the row have no head here and are wrong; the original scores
them too, from zeros, and may be right by luck. Their share is a figure.
Sources: specs/pixel.md, section 3.4; Zeman et al., CoNLL 2018 Shared Task, K18-2001.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import conllu, labels, tag_baselines, text_files
from pixelcore.tasks.examples import TreeExample, WordsExample
from pixelcore.tasks.labels import UNSEEN, Labels
from pixelcore.tasks.metrics import ratio
from pixelcore.tasks.spanning_tree import best_tree, is_tree
from pixelcore.tasks.task import Layout

HEAD = "parser"
NEEDS_SPANS = False
ROOT = "root"

# The relations of Universal Dependencies 2 behind "_", in the order of the outputs of published parsers.
_RELATIONS = """
_ acl advcl advmod amod appos aux case cc ccomp clf compound conj cop csubj dep det discourse dislocated expl fixed flat
goeswith iobj list mark nmod nsubj nummod obj obl orphan parataxis punct reparandum root vocative xcomp
"""
UNIVERSAL = tuple(_RELATIONS.split())


@dataclass(frozen=True, kw_only=True)
class ParseOptions:
    """The tree of a sentence. decode: "tree", or "greedy", as published. subtypes: the outputs are the relations of the
    training data, subtypes (`nsubj:pass`) and all; else the universal ones, without."""

    kind: ClassVar[str] = "parse"

    decode: str = "tree"
    subtypes: bool = False

    def __post_init__(self) -> None:
        if self.decode not in ("tree", "greedy"):
            raise ValueError(f'decode = {self.decode!r} must be "tree" or "greedy"')


OPTIONS = ParseOptions


@dataclass(frozen=True, kw_only=True)
class TreePrediction:
    """heads: of each word, as in `TreeExample`; None for a word that has none, and then it has no relation either.
    num_seen: how many words, the first ones, fitted into the row."""

    heads: tuple[int | None, ...]
    relations: tuple[str | None, ...]
    num_seen: int


# ------------------------------------------------------------------ data


def find_splits(folder: Path, options: ParseOptions) -> dict[str, Path]:
    """The CoNLL-U files of a treebank."""
    return text_files.find_by_name(folder, (".conllu",))


def read(path: Path, options: ParseOptions) -> list[TreeExample]:
    """The sentences of a CoNLL-U file. Raises UserError with the line of a head that is no word of its sentence."""
    examples = []
    for sentence in conllu.read_sentences(path):
        heads = sentence.heads()
        relations = sentence.column("deprel")
        if not options.subtypes:
            relations = tuple(map(_universal, relations))
        examples.append(
            TreeExample(
                id=sentence.id,
                words=sentence.column("form"),
                heads=heads,
                relations=None if heads is None else relations,
                lines=sentence.lines,
            )
        )
    return examples


def drawn(example: TreeExample) -> list[str]:
    """The words one by one: each begins on a unit of its own."""
    return list(example.words)


def stride(options: ParseOptions) -> None:
    """A sentence is one row."""
    return None


# ------------------------------------------------------------------ training


def inventory(examples: Sequence[TreeExample], options: ParseOptions) -> Labels:
    """The universal relations, or those of the data. Raises UserError for a sentence without a tree, and for a relation
    that is not universal."""
    found = []
    for example in examples:
        if example.relations is None:
            raise UserError(f"sentence {example.id}: has no heads to train on: give a parsed file, or leave it out")
        found += [(relation, f"sentence {example.id}") for relation in example.relations]
    if options.subtypes:
        return labels.inventory(found)
    known = Labels(UNIVERSAL)
    for relation, where in found:
        if known.index(relation) == UNSEEN:
            raise UserError(
                f"{where}: relation {relation!r} is none of the {len(known) - 1} universal ones: correct the file, or "
                "--set objective.subtypes=true, which takes the relations of the training data as they are"
            )
    return known


def num_outputs(known: Labels, options: ParseOptions) -> int:
    """One for each relation."""
    return len(known)


def targets(example: TreeExample, layout: Layout, known: Labels, options: ParseOptions) -> dict[str, NDArray[Any]]:
    """word_starts: int64 [words + 1]. arc_labels, rel_labels: int64 [words], of the words that are there; both are
    `IGNORED` for a word whose head did not fit, or whose relation training has not seen."""
    assert layout.word_starts is not None
    arcs_W = np.full(layout.num_words, IGNORED, np.int64)
    relations_W = arcs_W.copy()
    tree = zip(example.heads or (), example.relations or ())
    for word, (head, relation) in zip(range(layout.num_words), tree):
        place = known.index(relation)
        if head <= layout.num_words and place != UNSEEN:
            arcs_W[word], relations_W[word] = head, place
    return {"word_starts": layout.word_starts.astype(np.int64), "arc_labels": arcs_W, "rel_labels": relations_W}


def num_targets(found: Mapping[str, NDArray[Any]]) -> int:
    """Words with a head."""
    return int((found["arc_labels"] != IGNORED).sum())


def collate(found: Sequence[Mapping[str, NDArray[Any]]], width: int) -> dict[str, Tensor]:
    """As many words as the longest row has, however many units: the model makes what it needs of them."""
    num_words = max(1, *(len(one["arc_labels"]) for one in found))
    filled = {}
    for name, more in (("word_starts", 1), ("arc_labels", 0), ("rel_labels", 0)):
        filled[name] = torch.full((len(found), num_words + more), IGNORED)
        for row, one in enumerate(found):
            filled[name][row, : len(one[name])] = torch.from_numpy(one[name])
    return filled


# ------------------------------------------------------------------ what a model says


def decode(
    scores: Mapping[str, NDArray[np.float32]],
    examples: Sequence[TreeExample],
    layouts: Sequence[Layout],
    known: Labels,
    options: ParseOptions,
) -> list[TreePrediction]:
    """Heads by `options.decode`, and the relation of the largest score at each."""
    predictions = []
    for row, (example, layout) in enumerate(zip(examples, layouts, strict=True)):
        num_words = layout.num_words
        arcs_WU = scores["arc_logits"][row, :num_words]
        heads_W = best_tree(arcs_WU[:, : num_words + 1]) if options.decode == "tree" else arcs_WU.argmax(1)
        relations_WO = scores["rel_logits"][row, np.arange(num_words), heads_W]
        if options.decode == "tree" and known.index(ROOT) != UNSEEN:
            relations_WO = _root_at_the_root_alone(relations_WO, heads_W, known)
        lost = [None] * (len(example.words) - num_words)
        # greedy may choose a word that is not there
        heads = [head if head <= num_words else None for head in heads_W.tolist()]
        names = [known.names[place] for place in relations_WO.argmax(1).tolist()]
        relations = [None if head is None else name for head, name in zip(heads, names, strict=True)]
        predictions.append(TreePrediction(heads=(*heads, *lost), relations=(*relations, *lost), num_seen=num_words))
    return predictions


def _root_at_the_root_alone(
    relations_WO: NDArray[np.float32], heads_W: NDArray[np.int64], known: Labels
) -> NDArray[np.float32]:
    """Without the scores that Universal Dependencies do not allow: `root` is the relation to the root and no other."""
    is_root_O = np.arange(len(known)) == known.index(ROOT)
    return np.where((heads_W == 0)[:, None] == is_root_O, relations_WO, -np.inf)


def join(example: TreeExample, predictions: Sequence[TreePrediction]) -> TreePrediction:
    """A sentence is one row."""
    (prediction,) = predictions
    return prediction


def record(example: TreeExample, prediction: TreePrediction) -> dict[str, Any]:
    """Words, the tree where there is one, and the predicted one."""
    gold = {}
    if example.heads is not None and example.relations is not None:
        gold = {"heads": list(example.heads), "relations": list(example.relations)}
    predicted = {"heads": list(prediction.heads), "relations": list(prediction.relations)}
    return {"id": example.id, "words": list(example.words), **gold, "predicted": predicted}


def lines(example: TreeExample, prediction: TreePrediction, options: ParseOptions) -> list[str]:
    """The example's own CoNLL-U lines, or new ones, with the predicted heads and relations in them, "_" for a word that
    has none."""
    own = example.lines or tuple(
        "\t".join([str(number), word, *"_" * 8]) for number, word in enumerate(example.words, start=1)
    )
    heads = ["_" if head is None else str(head) for head in prediction.heads]
    return conllu.written(own, {"head": heads, "deprel": [relation or "_" for relation in prediction.relations]})


# ------------------------------------------------------------------ how good it is


def select(options: ParseOptions) -> str:
    """Heads and relations."""
    return "las"


def counts(
    examples: Sequence[TreeExample], predictions: Sequence[TreePrediction], options: ParseOptions
) -> dict[str, NDArray[Any]]:
    """words, those whose head is right, head and relation too, those that were lost; the sentence, and whether what was
    predicted is a tree."""
    found_NK = np.zeros((len(examples), 6))
    for row_K, example, prediction in zip(found_NK, examples, predictions, strict=True):
        if example.heads is None or example.relations is None:
            raise UserError(f"sentence {example.id}: has no heads to compare with: give a parsed file")
        right = [gold == said for gold, said in zip(example.heads, prediction.heads, strict=True)]
        relations = zip(example.relations, prediction.relations, strict=True)
        named = [said is not None and _universal(gold) == _universal(said) for gold, said in relations]
        row_K[:4] = len(right), sum(right), sum(map(all, zip(right, named))), len(right) - prediction.num_seen
        row_K[4:] = 1, is_tree(prediction.heads)
    return dict(zip(("words", "heads_right", "both_right", "lost", "sentences", "trees"), found_NK.T))


def figures(sums: Mapping[str, NDArray[Any]], options: ParseOptions) -> dict[str, NDArray[Any]]:
    """uas, las, the share of words that were lost, and that of sentences whose prediction is a tree with one root."""
    return {
        "uas": ratio(sums["heads_right"], sums["words"]),
        "las": ratio(sums["both_right"], sums["words"]),
        "lost_words": ratio(sums["lost"], sums["words"]),
        "trees": ratio(sums["trees"], sums["sentences"]),
    }


def baselines(
    train: Sequence[TreeExample], test: Sequence[TreeExample], options: ParseOptions
) -> dict[str, dict[str, float]]:
    """The head of each word is the one to its left, or to its right, and the root for the word that has none there; the
    relation is the most frequent one of the word, or of its longest known ending."""
    words = [WordsExample(id=example.id, words=example.words, labels=example.relations) for example in train]
    related = tag_baselines.taggers(words)["most frequent of the word"]
    found = {}
    for name, step in (("left_neighbour", 0), ("right_neighbour", 2)):
        predictions = []
        for example in test:
            size = len(example.words)
            heads = [(word + step) % (size + 1) for word in range(size)]  # behind the last word comes the root
            relations = [related(word) if head else ROOT for head, word in zip(heads, example.words)]
            predictions.append(TreePrediction(heads=tuple(heads), relations=tuple(relations), num_seen=size))
        sums = {key: column.sum() for key, column in counts(test, predictions, options).items()}
        found[name] = {key: float(value) for key, value in figures(sums, options).items()}
    return found


def _universal(relation: str) -> str:
    """A relation without its subtype."""
    return relation.partition(":")[0]
