"""Labels and numbers of texts: what is learned, what is predicted, and figures that are those of others."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import bootstrap, classify, classify_baselines
from pixelcore.tasks.bootstrap import Sums
from pixelcore.tasks.classify import ClassifyOptions, TextPrediction
from pixelcore.tasks.examples import TextExample
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.task import Layout, score

ALL = ClassifyOptions(metrics=("accuracy", "f1", "macro_f1", "matthews"), positive="b")
NUMBERS = ClassifyOptions(regression=True)


def examples(labels, groups=None) -> list[TextExample]:
    groups = groups or [""] * len(labels)
    return [
        TextExample(id=str(place), text="x", label=label, group=group)
        for place, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]


def predicted(labels) -> list[TextPrediction]:
    return [TextPrediction(label=label) for label in labels]


def scored(gold, said, options: ClassifyOptions, groups=None) -> dict[str, float]:
    return score(classify, examples(gold, groups), predicted(said), options)


# ------------------------------------------------------------------ training


def test_targets_are_places_in_the_inventory_or_numbers():
    found = examples(["b", "a", "b"])
    known = classify.inventory(found, ALL)
    assert known.names == ("a", "b") and classify.num_outputs(known, ALL) == 2
    targets = [classify.targets(one, Layout(3), known, ALL) for one in examples(["b", "unseen"])]
    assert [int(one["labels"]) for one in targets] == [1, IGNORED]
    assert [classify.num_targets(one) for one in targets] == [1, 0]
    batch = classify.collate(targets, 9)["labels"]
    assert batch.tolist() == [1, IGNORED] and batch.shape == (2,)
    numbers = [classify.targets(one, Layout(3), Labels(()), NUMBERS) for one in examples([2.5, 0.0])]
    assert classify.collate(numbers, 9)["labels"].tolist() == [2.5, 0.0]
    assert classify.num_outputs(Labels(()), NUMBERS) == 1 and classify.num_targets(numbers[0]) == 1


def test_what_cannot_be_learned_is_said():
    with pytest.raises(UserError, match="example 0: has no label to train on; labels stand in column 'label'"):
        classify.inventory(examples([None]), ALL)
    with pytest.raises(UserError, match="all training examples have the label 'a'"):
        classify.inventory(examples(["a", "a"]), ALL)
    with pytest.raises(UserError, match="has no label to compare with"):
        scored([None], ["a"], ALL)


def test_sets_of_a_known_form_have_their_labels_in_order():
    known = classify.inventory(examples(["neutral", "entailment"]), ClassifyOptions(layout="snli"))
    assert known.names == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layout": "glue:sst"}, "layout = 'glue:sst' must be one of columns, glue:cola"),
        ({"layout": "snli", "text": "premise"}, "text = 'premise' goes with layout = \"columns\" alone"),
        ({"metrics": ("spearman",)}, "metrics = ['spearman'] may hold accuracy, f1, macro_f1, matthews"),
        ({"regression": True, "metrics": ("f1",)}, "may hold pearson, spearman"),
        ({"metrics": ("f1",)}, "need positive"),
        ({"regression": True, "labels": ("a",)}, "labels and positive are names"),
        ({"detokenise": "yes"}, "detokenise = 'yes' must be one of none, pixel, tokenised"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], expected: str):
    with pytest.raises(ValueError) as caught:
        ClassifyOptions(**changes)
    assert expected in str(caught.value)


# ------------------------------------------------------------------ predictions


def test_a_prediction_is_the_likeliest_label_and_how_sure_it_is():
    known = Labels(("a", "b"))
    one = examples(["a"])
    (found,) = classify.decode({"logits": np.array([[0.0, math.log(3)]], np.float32)}, one, [Layout(2)], known, ALL)
    assert found.label == "b" and found.probability == pytest.approx(0.75)
    record = classify.record(one[0], found)
    assert record == {"id": "0", "text": "x", "label": "a", "predicted": "b", "probability": found.probability}
    assert classify.lines(one[0], found, ALL) == ["0\tb"]
    (number,) = classify.decode({"logits": np.array([[2.5]], np.float32)}, one, [Layout(2)], Labels(()), NUMBERS)
    assert number == TextPrediction(label=2.5)
    assert json.dumps(classify.record(one[0], number))


def test_pairs_are_drawn_as_pairs():
    assert classify.drawn(TextExample(id="", text="a", second="b")) == ("a", "b")
    assert classify.drawn(TextExample(id="", text="a")) == "a"


# ------------------------------------------------------------------ figures


def slow_figures(gold: str, said: str) -> dict[str, float]:
    """Figures by their definitions, pair by pair, for a check that shares no line with ours."""
    labels = sorted(set(gold) | set(said))
    f1 = {}
    for label in labels:
        right = sum(g == s == label for g, s in zip(gold, said))
        precision = right / said.count(label) if label in said else 0.0
        recall = right / gold.count(label) if label in gold else 0.0
        f1[label] = 2 * precision * recall / (precision + recall) if right else 0.0
    one_hot = [[[float(char == label) for label in labels] for char in text] for text in (gold, said)]
    x, y = (np.array(side) - np.mean(side, 0) for side in one_hot)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return {
        "accuracy": sum(g == s for g, s in zip(gold, said)) / len(gold),
        "f1": f1.get("b", 0.0),
        "macro_f1": sum(f1.values()) / len(f1),
        "matthews": float((x * y).sum() / spread) if spread else 0.0,
    }


def test_figures_of_labels_are_those_of_their_definitions():
    generator = np.random.default_rng(0)
    for _ in range(60):
        size = int(generator.integers(1, 14))
        gold, said = ("".join(generator.choice(list("abcd"[: generator.integers(1, 5)]), size)) for _ in range(2))
        assert scored(gold, said, ALL) == pytest.approx(slow_figures(gold, said)), (gold, said)


def test_figures_of_labels_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(1)
    for _ in range(40):
        gold, said = (generator.choice(list("abc"), 12).tolist() for _ in range(2))
        expected = {
            "accuracy": metrics.accuracy_score(gold, said),
            "f1": metrics.f1_score(gold, said, labels=["b"], average=None, zero_division=0)[0],
            "macro_f1": metrics.f1_score(gold, said, average="macro", zero_division=0),
            "matthews": metrics.matthews_corrcoef(gold, said),
        }
        assert scored(gold, said, ALL) == pytest.approx(expected)


def slow_ranks(values: list[float]) -> list[float]:
    """1 + how many are smaller + half of the others that are equal."""
    return [1 + sum(other < one for other in values) + (values.count(one) - 1) / 2 for one in values]


def test_correlations_are_those_of_their_definitions_with_ties():
    generator = np.random.default_rng(2)
    for _ in range(40):
        gold, said = (generator.integers(0, 6, 15).astype(float).tolist() for _ in range(2))
        expected = {
            "pearson": float(np.corrcoef(gold, said)[0, 1]),
            "spearman": float(np.corrcoef(slow_ranks(gold), slow_ranks(said))[0, 1]),
        }
        assert scored(gold, said, NUMBERS) == pytest.approx(expected)
    assert scored([1.0, 2.0], [0.1, 0.1], NUMBERS) == {"spearman": 0.0, "pearson": 0.0}


def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(3)
    gold, said = generator.integers(0, 5, 50).astype(float), generator.normal(size=50)
    found = scored(gold.tolist(), said.tolist(), NUMBERS)
    assert found["pearson"] == pytest.approx(stats.pearsonr(gold, said)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(gold, said)[0])


@pytest.mark.parametrize("options", [ALL, NUMBERS], ids=["labels", "numbers"])
def test_a_bootstrap_scores_what_it_has_drawn(options: ClassifyOptions):
    """Drawing with weights is the same as scoring a list in which examples stand as often as they were drawn."""
    generator = np.random.default_rng(4)
    values = list("abc") if options is ALL else [0.0, 1.5, 2.0, 3.0]
    sides = [generator.choice(values, 12).tolist() for _ in range(2)]
    counts = classify.counts(examples(sides[0]), predicted(sides[1]), options)
    times = generator.multinomial(12, [1 / 12] * 12, 5).astype(float)
    found = classify.figures(Sums(counts, times), options)
    for row, drawn in enumerate(times.astype(int)):
        repeated = [[value for value, count in zip(side, drawn, strict=True) for _ in range(count)] for side in sides]
        expected = scored(repeated[0], repeated[1], options)
        assert {name: value[row] for name, value in found.items()} == pytest.approx(expected)
    # and for several runs at once, as where two sets of them are compared
    both = {name: np.stack([column, column[::-1]], 1) for name, column in counts.items()}
    assert all(value.shape == (5, 2) for value in classify.figures(Sums(both, times), options).values())
    low, high = bootstrap.intervals(counts, lambda sums: classify.figures(sums, options), draws=100)[
        classify.select(options)
    ]
    assert -1 <= low <= high <= 1


def test_a_difference_of_correlations_has_an_interval():
    generator = np.random.default_rng(5)
    gold = generator.normal(size=80)

    def run(noise: float) -> dict[str, Any]:
        said = gold + noise * generator.normal(size=80)
        return classify.counts(examples(gold.tolist()), predicted(said.tolist()), NUMBERS)

    worse, better = [run(2.0) for _ in range(2)], [run(0.2) for _ in range(3)]
    differ = bootstrap.differences(better, worse, lambda sums: classify.figures(sums, NUMBERS), draws=200)
    found = differ["spearman"]
    assert found.low > 0 and found.seeds == (3, 2)


def test_a_difference_is_told_of_each_group_too():
    options = ClassifyOptions(metrics=("accuracy",))
    texts = examples("abab", groups=["de", "de", "fr", "fr"])
    ours, theirs = (classify.counts(texts, predicted(said), options) for said in ("abab", "abbb"))
    found = bootstrap.differences([ours], [theirs], lambda sums: classify.figures(sums, options), draws=50)
    assert {name: each.difference for name, each in found.items()} == pytest.approx(
        {"accuracy": 0.25, "accuracy_mean": 0.25, "accuracy_de": 0.0, "accuracy_fr": 0.5}
    )


def test_groups_have_figures_and_a_mean():
    options = ClassifyOptions(metrics=("accuracy",))
    found = scored("abab", "abbb", options, groups=["de", "de", "de", "fr"])
    assert found == pytest.approx({"accuracy": 0.75, "accuracy_mean": 5 / 6, "accuracy_de": 2 / 3, "accuracy_fr": 1.0})
    # MNLI's two dev files
    nli = ClassifyOptions(layout="glue:mnli")
    names = scored(["neutral", "neutral"], ["neutral", "entailment"], nli, groups=["matched", "mismatched"])
    assert names["accuracy_matched"] == 1.0 and names["accuracy_mismatched"] == 0.0


def test_a_run_selects_on_the_figure_of_its_set():
    found = {name: classify.select(ClassifyOptions(layout=f"glue:{name}")) for name in ("cola", "mrpc", "stsb", "rte")}
    assert found == {"cola": "matthews", "mrpc": "f1", "stsb": "spearman", "rte": "accuracy"}
    assert classify.select(ClassifyOptions(layout="sib200")) == "macro_f1"


def test_figures_of_nothing_have_their_names():
    for options in (ALL, NUMBERS):
        found = classify.figures(Sums(classify.counts([], [], options)), options)
        assert {name: float(value) for name, value in found.items()} == dict.fromkeys(
            classify.form_of(options).metrics, 0.0
        )


# ------------------------------------------------------------------ baselines


TOPICS = {"sea": ["the ferry sails", "a ship at sea", "ferry and ship", "sea and sail"], "food": ["fresh bread"] * 3}


def test_baselines_learn_what_there_is_to_learn():
    train = [TextExample(id="", text=text, label=label) for label, texts in TOPICS.items() for text in texts]
    test = [TextExample(id="", text=text, label=label) for text, label in (("ships sail", "sea"), ("bread", "food"))]
    found = classify.baselines(train, test, ALL)
    assert found["majority"]["accuracy"] == 0.5
    assert found["characters"]["accuracy"] == 1.0
    numbers = [TextExample(id="", text=text, label=float(len(text))) for text in ("a", "aaa", "aaaaaa", "aaaaaaaa")]
    found = classify.baselines(numbers, numbers, NUMBERS)
    assert found["mean"]["spearman"] == 0.0 and found["characters"]["spearman"] > 0.9


def test_latin_and_digits_are_what_other_scripts_share():
    assert classify_baselines._latin("2019 年 NASA 宣布 café") == "2019 NASA caf"


def test_baselines_know_the_two_texts_of_a_pair_apart():
    one, other = (
        set(classify_baselines._grams(TextExample(id="", text=text, second=second), str).tolist())
        for text, second in (("ab", "cb"), ("cb", "ab"))
    )
    # in each place they share the space, the b, and the b with the space behind it
    assert len(one) == len(other) == 2 * 9 and len(one & other) == 2 * 3


@pytest.mark.slow
def test_characters_are_as_good_as_they_are_known_to_be_on_sib(shared: Path):
    options = ClassifyOptions(layout="sib200")
    splits = classify.find_splits(shared / "data" / "sib200" / "eng_Latn", options)
    found = {role: classify.read(Path(str(path)), options) for role, path in splits.items()}
    baselines = classify.baselines(found["train"], found["test"], options)
    assert 0.66 < baselines["characters"]["accuracy"] < 0.76
    assert baselines["majority"]["accuracy"] == 0.25
