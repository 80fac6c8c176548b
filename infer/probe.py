"""What of grammar can be read off a word's vector by a linear map, layer by layer.

A probe is a logistic regression from the vector of a word, the mean of its patches, to a feature of the word: its part
of speech (`upos`), or what a treebank says under a name such as Case or Number. The model is not changed. Words that
have no such feature are left out, as in LINSPECTOR, whose tests PIXEL-M4 was analysed with (specs/pixel.md, section 7);
a word that was cut off is no training word, and in the test it is wrong.

That a feature can be read off says little before it is known what can be read off anyway: beside each layer stand the
same probe on an encoder before any training, and what no model at all knows, the most frequent label, and that of the
same word in the training data.

The loss is the mean cross entropy plus l2 / 2 times the squared weights, over vectors whose columns are scaled to mean
0 and deviation 1. It is convex and all words are seen at once, so a probe has no seed: seeds draw the sentences of the
training data and the weights of the random encoder. The weight of the penalty is chosen on the dev file, for each layer
and each encoder by itself: SentEval's values, 1e-5 to 1e-2, and 1e-1, since few words of many values need a strong one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.layer_vectors import DrawnTexts, PixelModel, draw_texts, random_encoder, word_vectors
from infer.probe_words import Labelled, ProbeWords, choose_words
from pixelcore.errors import UserError
from pixelcore.tasks.bootstrap import Difference, Sums, differences, intervals
from pixelcore.tasks.examples import WordsExample
from pixelcore.tasks.tag_baselines import taggers
from render import Renderer

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # the strongest first: each probe begins where the one before ended
_MOST_STEPS = 200


# ------------------------------------------------------------------ a probe


@dataclass(frozen=True)
class Probe:
    """A linear map from scaled vectors to scores of labels, the last row of weights for a constant 1."""

    weight_EK: Tensor
    mean_D: NDArray[Any]
    scale_D: NDArray[Any]
    l2: float

    def predict(self, vectors_ND: NDArray[Any]) -> NDArray[np.int64]:
        """[N], the number of the label with the highest score."""
        return (_inputs(vectors_ND, self.mean_D, self.scale_D) @ self.weight_EK).argmax(1).numpy()


def train_probe(
    train_ND: NDArray[Any],
    labels_N: NDArray[Any],
    valid_ND: NDArray[Any],
    valid_labels_N: NDArray[Any],
    num_labels: int,
) -> Probe:
    """The probe whose penalty does best on the second set, of equals the strongest; a weaker one than does worse is not
    tried."""
    mean_D = train_ND.mean(0, dtype=np.float64)
    deviation_D = train_ND.std(0, dtype=np.float64)
    scale_D = np.where(deviation_D > 1e-6 * max(float(deviation_D.max()), 1e-12), deviation_D, 1.0)
    x_NE = _inputs(train_ND, mean_D, scale_D)
    y_N = torch.from_numpy(labels_N.astype(np.int64))
    weight_EK = torch.zeros(x_NE.shape[1], num_labels)
    best, best_right = None, -1
    for l2 in PENALTIES:
        weight_EK = _fit(x_NE, y_N, l2, weight_EK)
        probe = Probe(weight_EK, mean_D, scale_D, l2)
        right = int((probe.predict(valid_ND) == valid_labels_N).sum())
        if right < best_right:
            break
        if right > best_right:
            best, best_right = probe, right
    assert best is not None
    return best


def _fit(x_NE: Tensor, y_N: Tensor, l2: float, start_EK: Tensor) -> Tensor:
    """Logistic regression by L-BFGS from a given start; the constant is not penalised."""
    weight_EK = start_EK.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_EK],
        max_iter=_MOST_STEPS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x_NE @ weight_EK, y_N) + l2 / 2 * weight_EK[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_EK.detach()


def _inputs(vectors_ND: NDArray[Any], mean_D: NDArray[Any], scale_D: NDArray[Any]) -> Tensor:
    scaled_ND = ((vectors_ND - mean_D) / scale_D).astype(np.float32)
    return torch.from_numpy(np.concatenate((scaled_ND, np.ones((len(scaled_ND), 1), np.float32)), 1))


# ------------------------------------------------------------------ probes of all layers


@dataclass(frozen=True)
class Accuracy:
    """The mean over the seeds, its 95 % interval over test sentences, and the deviation over the seeds."""

    value: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class ProbedLayer:
    """The model, the random encoder, and how much better the model is, with an interval over sentences and seeds. l2:
    the penalty that was chosen for the model, by seed."""

    model: Accuracy
    random: Accuracy
    gain: Difference
    l2: list[float]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """words: with the feature, in the train, valid and test data, of the first seed; labels: those of the training
    words. unseen: test words with a label that no training word has. lost: the share of test words that were cut off.
    missing_glyphs: the share of test characters that no font has."""

    feature: str
    seeds: int
    words: dict[str, int]
    labels: list[str]
    unseen: int
    lost: float
    missing_glyphs: float
    baselines: dict[str, Accuracy]
    layers: list[ProbedLayer]


@dataclass(frozen=True)
class _Counted:
    """Of each test sentence: words, and those that were labelled rightly."""

    counts: dict[str, NDArray[np.float64]]
    l2: float = 0.0


def probe_layers(
    model: PixelModel,
    renderer: Renderer,
    data: Mapping[str, Sequence[Labelled]],
    feature: str,
    *,
    most: int,
    seeds: int = 1,
) -> Probed:
    """Probes of every layer of a model and of a random encoder. data: as of `read_treebank`. most: words of each file
    that have the feature. Raises UserError where the training words have fewer than two labels."""
    test, valid = choose_words(data["test"], most, 0), choose_words(data["valid"], most, 0)
    for role, words in (("dev", valid), ("test", test)):
        if not words.sentences:
            raise UserError(f"--feature {feature}: no word of the {role} file has it: choose another")
    held_out = [(words, draw_texts(model, renderer, words.sentences)) for words in (valid, test)]
    model_held_out = [word_vectors(model, drawn, words.wanted) for words, drawn in held_out]
    runs: list[tuple[list[_Counted], list[_Counted], dict[str, _Counted]]] = []
    first: tuple[ProbeWords, list[str]] | None = None
    for seed in range(seeds):
        train = choose_words(data["train"], most, seed)
        names = sorted(set(train.flat))
        if len(names) < 2:
            raise UserError(f"--feature {feature}: all training words have the label {names[0]}: choose another")
        first = first or (train, names)
        drawn = draw_texts(model, renderer, train.sentences)
        ours = _layers(word_vectors(model, drawn, train.wanted), model_held_out, train, valid, test, names)
        random = random_encoder(model, seed)
        random_held_out = [word_vectors(random, strips, words.wanted) for words, strips in held_out]
        theirs = _layers(word_vectors(random, drawn, train.wanted), random_held_out, train, valid, test, names)
        runs.append((ours, theirs, _baselines(train, test)))
    assert first is not None
    layers = [
        ProbedLayer(
            model=_accuracy([ours[layer] for ours, _, _ in runs]),
            random=_accuracy([theirs[layer] for _, theirs, _ in runs]),
            gain=differences(
                [ours[layer].counts for ours, _, _ in runs],
                [theirs[layer].counts for _, theirs, _ in runs],
                _figures,
            )["accuracy"],
            l2=[ours[layer].l2 for ours, _, _ in runs],
        )
        for layer in range(model.config.num_layers + 1)
    ]
    train, names = first
    drawn_test: DrawnTexts = held_out[1][1]
    return Probed(
        feature=feature,
        seeds=seeds,
        words={"train": len(train.flat), "valid": len(valid.flat), "test": len(test.flat)},
        labels=names,
        unseen=sum(label not in names for label in test.flat),
        lost=float(1 - model_held_out[1][1].mean()),
        missing_glyphs=drawn_test.missing_glyphs,
        baselines={name: _accuracy([baselines[name] for *_, baselines in runs]) for name in runs[0][2]},
        layers=layers,
    )


_Vectors = tuple[NDArray[np.float32], NDArray[np.bool_]]


def _layers(
    train_vectors: _Vectors,
    held_out: Sequence[_Vectors],
    train: ProbeWords,
    valid: ProbeWords,
    test: ProbeWords,
    names: Sequence[str],
) -> list[_Counted]:
    """A probe of each layer, scored on the test words."""
    number = {name: place for place, name in enumerate(names)}
    gold = [np.array([number.get(label, -1) for label in words.flat]) for words in (train, valid, test)]
    (train_TND, seen_N), (valid_TND, _), (test_TND, test_seen_N) = (train_vectors, *held_out)
    found = []
    for layer in range(len(train_TND)):
        probe = train_probe(train_TND[layer][seen_N], gold[0][seen_N], valid_TND[layer], gold[1], len(names))
        right = (probe.predict(test_TND[layer]) == gold[2]) & test_seen_N
        found.append(_Counted(_by_sentence(right, test), probe.l2))
    return found


def _baselines(train: ProbeWords, test: ProbeWords) -> dict[str, _Counted]:
    examples = [
        WordsExample(id=str(place), words=tuple(words[number] for number in wanted), labels=tuple(labels))
        for place, (words, wanted, labels) in enumerate(zip(train.sentences, train.wanted, train.labels))
    ]
    found = {}
    for name, tagger in taggers(examples).items():
        right = np.array([tagger(form) == label for form, label in zip(test.forms, test.flat)])
        found[name] = _Counted(_by_sentence(right, test))
    return found


def _by_sentence(right_W: NDArray[Any], test: ProbeWords) -> dict[str, NDArray[np.float64]]:
    right_N, words_N = np.zeros(len(test.sentences)), np.zeros(len(test.sentences))
    np.add.at(right_N, test.owner, right_W)
    np.add.at(words_N, test.owner, 1)
    return {"right": right_N, "words": words_N}


def _figures(sums: Sums) -> dict[str, NDArray[Any]]:
    return {"accuracy": sums["right"] / sums["words"]}


def _accuracy(runs: Sequence[_Counted]) -> Accuracy:
    values = [float(run.counts["right"].sum() / run.counts["words"].sum()) for run in runs]
    counts = {name: np.mean([run.counts[name] for run in runs], axis=0) for name in ("right", "words")}
    low, high = intervals(counts, _figures)["accuracy"]
    return Accuracy(float(np.mean(values)), low, high, float(np.std(values)))


def as_text(result: Probed) -> list[str]:
    """A table in per cent, a layer a line."""
    counts = ", ".join(f"{role} {count}" for role, count in result.words.items())
    lines = [
        f"{result.feature}: {len(result.labels)} labels; words {counts}; seeds {result.seeds}; accuracy in per cent",
        f"lost words {100 * result.lost:.2f} %, characters without a glyph {100 * result.missing_glyphs:.2f} %, "
        f"words of unseen labels {result.unseen}",
    ]
    width = max(map(len, result.baselines))
    lines += [f"{name:{width}}  {_in_per_cent(one)}" for name, one in result.baselines.items()]
    lines.append("layer  model                 random encoder        better by")
    for number, layer in enumerate(result.layers):
        gain = layer.gain
        lines.append(
            f"{number:>5}  {_in_per_cent(layer.model)}  {_in_per_cent(layer.random)}  {100 * gain.difference:+5.1f} "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        )
    return lines


def _in_per_cent(one: Accuracy) -> str:
    return f"{100 * one.value:5.1f} [{100 * one.low:5.1f}, {100 * one.high:5.1f}]"
