"""Tagging: files in and out, the labels on first patches, what is lost, and figures that are those of seqeval."""

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seqeval.metrics

from infer.task_rows import Strips, TaskRows
from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import bootstrap, columns, conllu, tag, text_files
from pixelcore.tasks.examples import WordsExample
from pixelcore.tasks.labels import Labels, inventory
from pixelcore.tasks.metrics import entities
from pixelcore.tasks.tag import TagOptions, WordsPrediction
from pixelcore.tasks.task import Layout, score
from render import RenderConfig, Renderer
from tests.tasks.tiny_tasks import conllu as tiny_conllu

POS = TagOptions()
ENTITIES = TagOptions(scores="entities")

RANGES = """\
# sent_id = a-1
# text = Vámonos al mar
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tya\t_\tADV\t_\t_\t_\t_\t_\t_
3\tmar adentro\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------ CoNLL-U


def test_ranges_and_empty_nodes_are_no_words_and_are_written_back(tmp_path: Path):
    (example,) = tag.read(write(tmp_path / "a.conllu", RANGES), POS)
    assert example.id == "a-1"
    assert example.words == ("Vamos", "nos", "mar adentro") and example.labels == ("VERB", "PRON", "NOUN")
    back = tag.lines(example, WordsPrediction(labels=("AUX", "PRON", None)), POS)
    expected = RANGES.replace("VERB", "AUX").replace("NOUN", "_").splitlines()
    assert back == [*expected, ""]


def test_gzip_crlf_and_a_byte_order_mark_change_nothing(tmp_path: Path):
    plain = tag.read(write(tmp_path / "a.conllu", tiny_conllu(range(5))), POS)
    packed = tmp_path / "b.rebuilt.conllu.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + tiny_conllu(range(5)).replace("\n", "\r\n").encode()))
    assert tag.read(packed, POS) == plain and len(plain) == 5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2\tword\t_\tNOUN\n", "a.conllu:3: 4 columns; a line of CoNLL-U has 10"),
        ("3\tword\t_\tNOUN\t_\t_\t1\tdep\t_\t_\n", "a.conllu:3: word number '3', and 2 comes next"),
        ("x\tword\t_\tNOUN\t_\t_\t1\tdep\t_\t_\n", "a.conllu:3: word number 'x', and 2 comes next"),
        ("2\t \t_\tNOUN\t_\t_\t1\tdep\t_\t_\n", "a.conllu:3: the word is empty"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, expected: str):
    first = "# text = x\n1\tword\t_\tNOUN\t_\t_\t0\troot\t_\t_\n"
    with pytest.raises(UserError) as caught:
        conllu.read_sentences(write(tmp_path / "a.conllu", first + line))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["3", "-1", "x"])
def test_a_head_that_is_no_word_is_named_and_none_at_all_is_no_tree(tmp_path: Path, head: str):
    text = f"1\ta\t_\tX\t_\t_\t0\troot\t_\t_\n2\tb\t_\tX\t_\t_\t{head}\tdep\t_\t_\n"
    (sentence,) = conllu.read_sentences(write(tmp_path / "a.conllu", text))
    with pytest.raises(UserError, match=f"a.conllu:2: head '{head}' of 'b' must be a number from 0, the root, to 2"):
        sentence.heads()
    (raw,) = conllu.read_sentences(write(tmp_path / "b.conllu", "1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n"))
    assert raw.heads() is None
    (cycle,) = conllu.read_sentences(write(tmp_path / "c.conllu", text.replace(f"\t{head}\t", "\t2\t")))
    assert cycle.heads() == (0, 2)


def test_files_without_sentences_or_text_are_refused(tmp_path: Path):
    for name, read in (("a.conllu", conllu.read_sentences), ("a.txt", columns.read_columns)):
        with pytest.raises(UserError, match="no sentence in"):
            read(write(tmp_path / name, "\n\n"))
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "nowhere")
    (tmp_path / "latin.conllu").write_bytes(b"# text = \xe9\n")
    with pytest.raises(UserError, match="latin.conllu:1: not UTF-8"):
        conllu.read_sentences(tmp_path / "latin.conllu")
    (tmp_path / "cut.conllu.gz").write_bytes(gzip.compress(tiny_conllu(range(5)).encode())[:60])
    with pytest.raises(UserError, match="damaged gzip"):
        conllu.read_sentences(tmp_path / "cut.conllu.gz")


# ------------------------------------------------------------------ columns


def test_the_columns_of_conll_and_of_universal_ner(tmp_path: Path):
    conll = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n# NN O O\n\n\nPeter NNP B-NP B-PER\n"
    examples = tag.read(write(tmp_path / "train.txt", conll), ENTITIES)
    assert [example.words for example in examples] == [("EU", "#"), ("Peter",)]
    assert [example.labels for example in examples] == [("B-ORG", "O"), ("B-PER",)]
    iob2 = "# sent_id = x-1\n# text = New York\n1\tNew\tB-LOC\t-\tann\n2\tYork\tI-LOC\t-\tann\n\n1\tHi\tO\t-\t-\n"
    examples = tag.read(write(tmp_path / "test.iob2", iob2), ENTITIES)
    assert [example.id for example in examples] == ["x-1", "test.iob2:2"]
    assert examples[0].labels == ("B-LOC", "I-LOC")
    back = tag.lines(examples[0], WordsPrediction(labels=("B-LOC", None)), ENTITIES)
    assert back == ["New\tB-LOC", "York\tO", ""]


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("a.txt", "alone", "a.txt:2: 'alone' must be a word and its label"),
        ("a.iob2", "New\tB-LOC", "a.iob2:2: 'New\\tB-LOC' must be a number, a word and its label"),
        ("a.txt", "word\t", "a.txt:2: an empty label"),
    ],
)
def test_a_line_of_columns_that_has_too_few_is_named(tmp_path: Path, name: str, line: str, expected: str):
    with pytest.raises(UserError) as caught:
        columns.read_columns(write(tmp_path / name, "1\tword\tO\n" + line + "\n"))
    assert expected in str(caught.value)


def test_splits_are_found_by_the_words_of_names(tmp_path: Path):
    for name in ("xx-ud-train.rebuilt.conllu.gz", "xx-ud-dev.conllu", "xx-ud-test.conllu", "test.txt", "latest.conllu"):
        (tmp_path / name).touch()
    found = tag.find_splits(tmp_path, POS)
    assert {role: path.name for role, path in found.items()} == {
        "train": "xx-ud-train.rebuilt.conllu.gz",
        "valid": "xx-ud-dev.conllu",
        "test": "xx-ud-test.conllu",
    }
    assert {role: path.name for role, path in tag.find_splits(tmp_path, ENTITIES).items()} == {"test": "test.txt"}
    (tmp_path / "yy-ud-dev.conllu").touch()
    with pytest.raises(UserError, match="xx-ud-dev.conllu and yy-ud-dev.conllu both look like the valid file"):
        tag.find_splits(tmp_path, POS)
    with pytest.raises(UserError, match="no file with train, dev or test in its name that ends in .json"):
        text_files.find_by_name(tmp_path, (".json",))


# ------------------------------------------------------------------ rows


def test_labels_stand_on_the_first_patch_of_each_word_and_lost_words_are_wrong():
    example = WordsExample(id="s", words=("a", "winding", "road", "home"), labels=("DET", "ADJ", "NOUN", "ADV"))
    known = inventory([(label, "") for label in ("ADJ", "DET", "NOUN")])
    for layout in ("continuous", "bigrams", "adaptive"):
        rows = TaskRows(tag, [example], Strips(Renderer(RenderConfig(layout=layout)), 64), known, POS)
        starts, labels = rows.row(0).layout.word_starts, rows.targets(0)["labels"]
        assert starts is not None and len(starts) == 5
        assert labels[starts[:3]].tolist() == [1, 0, 2]
        assert labels[starts[3]] == IGNORED  # a label that training has not seen
        assert (labels != IGNORED).sum() == tag.num_targets({"labels": labels}) == 3
        assert rows.shares() == {"truncated": 0.0, "missing_glyphs": 0.0}
        cut = TaskRows(tag, [example], Strips(Renderer(RenderConfig(layout=layout)), int(starts[2]) + 2), known, POS)
        assert cut.row(0).layout.num_words < 4
        assert cut.shares()["truncated"] == 1.0
    predicted = _predicted(example, Layout(9, np.array([0, 2, 4], np.int32)), known)
    assert predicted.labels == ("DET", "DET", None, None)
    figures = score(tag, [example], [predicted], POS)
    assert figures == {"accuracy": 0.25, "lost_words": 0.5}


def _predicted(example: WordsExample, layout: Layout, known: Labels) -> WordsPrediction:
    logits = np.zeros((1, layout.num_units, len(known)), np.float32)
    logits[..., known.index("DET")] = 1
    return tag.decode({"logits": logits}, [example], [layout], known, POS)[0]


def test_missing_glyphs_are_counted():
    example = WordsExample(id="s", words=("a", "\U00012000"), labels=("X", "X"))
    rows = TaskRows(tag, [example], Strips(Renderer(RenderConfig()), 64), Labels(("X",)), POS)
    rows.row(0)
    assert rows.shares()["missing_glyphs"] == 0.5


def test_rows_are_the_same_whether_they_are_kept_or_drawn_again():
    examples = [WordsExample(id=str(n), words=("ferry",) * (n + 1), labels=("N",) * (n + 1)) for n in range(3)]
    made = [
        TaskRows(tag, examples, Strips(Renderer(RenderConfig()), 64), Labels(("N",)), POS, room) for room in (10**6, 0)
    ]
    for number in (0, 2, 0):
        one, other = (rows.row(number) for rows in made)
        assert (one.units == other.units).all()
    batch = made[1].batch([0, 2], [made[1].targets(0), made[1].targets(2)])
    width = made[0].row(2).layout.num_units
    assert batch["pixel_values"].shape == (2, 1, 16, 16 * width) and batch["attention_mask"].sum(1).tolist() == [
        made[0].row(0).layout.num_units,
        width,
    ]
    assert (batch["pixel_values"][0, :, :, 16 * made[0].row(0).layout.num_units :] == 255).all()


# ------------------------------------------------------------------ figures


def _random_labels(generator: random.Random, count: int) -> list[str]:
    kinds = ["PER", "LOC", "ORG", "A-B"]
    return [
        "O" if generator.random() < 0.4 else f"{generator.choice('BIES')}-{generator.choice(kinds)}"
        for _ in range(count)
    ]


def test_entities_are_those_of_the_definition():
    assert entities(["B-PER", "I-PER", "O", "B-LOC"]) == {("PER", 0, 1), ("LOC", 3, 3)}
    assert entities(["I-PER", "I-PER", "I-LOC"]) == {("PER", 0, 1), ("LOC", 2, 2)}
    assert entities(["B-PER", "B-PER", "I-PER"]) == {("PER", 0, 0), ("PER", 1, 2)}
    assert entities(["O", "O"]) == set() and entities([]) == set()


def test_figures_are_those_of_seqeval():
    generator = random.Random(0)
    never: Any = 0  # its annotation says str, its documentation 0, 1 or "warn"
    for _ in range(200):
        gold = [_random_labels(generator, generator.randint(1, 9)) for _ in range(4)]
        said = [
            [one if generator.random() < 0.6 else other for one, other in zip(row, _random_labels(generator, len(row)))]
            for row in gold
        ]
        examples = [WordsExample(id="", words=("x",) * len(row), labels=tuple(row)) for row in gold]
        found = score(tag, examples, [WordsPrediction(labels=tuple(row)) for row in said], ENTITIES)
        expected = {
            "accuracy": seqeval.metrics.accuracy_score(gold, said),
            "precision": seqeval.metrics.precision_score(gold, said, zero_division=never),
            "recall": seqeval.metrics.recall_score(gold, said, zero_division=never),
            "f1": seqeval.metrics.f1_score(gold, said, zero_division=never),
        }
        assert {name: found[name] for name in expected} == pytest.approx(expected), (gold, said)


def test_baselines_of_the_treebanks_are_where_they_are_known_to_be(shared: Path):
    folder = shared / "data" / "ud" / "UD_Vietnamese-VTB"
    found = {role: tag.read(path, POS) for role, path in tag.find_splits(folder, POS).items()}
    baselines = tag.baselines(found["train"], found["test"], POS)
    assert baselines["most frequent of the word"]["accuracy"] == pytest.approx(0.84, abs=0.01)
    assert baselines["majority"]["accuracy"] < 0.3


# ------------------------------------------------------------------ bootstrap


def _accuracy(sums):
    return {"accuracy": sums["right"] / sums["words"]}


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        counts = {"right": generator.binomial(10, 0.7, 80).astype(float), "words": np.full(80, 10.0)}
        low, high = bootstrap.intervals(counts, _accuracy, seed=trial, draws=300)["accuracy"]
        inside += low <= 0.7 <= high
    assert 88 <= inside <= 99


def test_a_difference_of_every_example_is_seen_and_one_of_none_is_not():
    generator = np.random.default_rng(1)
    words = np.full(200, 10.0)

    def run(share: float) -> dict[str, np.ndarray]:
        return {"right": generator.binomial(10, share, 200).astype(float), "words": words}

    worse, better = [run(0.7) for _ in range(3)], [run(0.8) for _ in range(3)]
    found = bootstrap.differences(better, worse, _accuracy)["accuracy"]
    assert found.low > 0 and found.share_not_positive == 0 and found.seeds == (3, 3)
    assert found.low <= found.difference <= found.high
    same = bootstrap.differences(worse, worse, _accuracy)["accuracy"]
    assert same.low < 0 < same.high and same.difference == 0
    # a pair of runs that are right on the same examples differs by nothing, whatever is drawn
    paired = bootstrap.differences(worse[:1], worse[:1], _accuracy)["accuracy"]
    assert (paired.low, paired.high) == (0.0, 0.0)
    with pytest.raises(UserError, match="only runs of the same task on the same file"):
        bootstrap.differences(worse, [{"right": words[:5], "words": words[:5]}], _accuracy)["accuracy"]
