"""`python -m infer predict`: files with and without labels, bare texts, every format, and what is refused."""

import json
from pathlib import Path

import pytest

from infer.predict import load_model, predict, read_files
from pixelcore.tasks.conllu import read_sentences
from tests.infer import tiny_pixels
from tests.tasks.fine_tuned import fine_tuned
from tests.tasks.tiny_tasks import conllu

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "The ferry sinks slowly.",
                    "qas": [{"id": "q1", "question": "What sinks?", "answers": [{"text": "ferry", "answer_start": 4}]}],
                }
            ]
        }
    ]
}


def test_predictions_stand_in_the_lines_of_the_file_and_nothing_else_changes(
    command, tagger: Path, tiny_treebank: Path, tmp_path: Path
):
    data = tiny_treebank / "xx_tiny-ud-test.conllu"
    status, out, log = command("predict", "--model", tagger, "--data", data, "--out", tmp_path / "said.conllu")
    assert (status, out) == (0, "") and "0.00 % of the rows do not show" in log
    before, after = read_sentences(data), read_sentences(tmp_path / "said.conllu")
    right = total = 0
    for gold, said in zip(before, after, strict=True):
        assert [column for name in ("form", "head", "deprel") for column in gold.column(name)] == [
            column for name in ("form", "head", "deprel") for column in said.column(name)
        ]
        right += sum(a == b for a, b in zip(gold.column("upos"), said.column("upos"), strict=True))
        total += len(gold.words)
    assert right / total > 0.9


def test_gold_labels_are_not_needed_and_change_nothing(command, tagger: Path, tmp_path: Path):
    for name, labels in (("with", True), ("without", False)):
        (tmp_path / f"{name}.conllu").write_text(conllu(range(60, 66), labels))
        data = tmp_path / f"{name}.conllu"
        assert command("predict", "--model", tagger, "--data", data, "--out", tmp_path / f"{name}.jsonl")[0] == 0
    rows = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    assert [one["predicted"] for one in rows[0]] == [one["predicted"] for one in rows[1]]
    assert "labels" in rows[0][0] and "labels" not in rows[1][0]


def test_bare_texts_are_cut_at_spaces_and_empty_lines_are_counted(command, tagger: Path, tmp_path: Path):
    (tmp_path / "lines.txt").write_text("the ferry sinks again\n\nher lamp turns\n")
    lines = ("predict", "--model", tagger, "--lines", tmp_path / "lines.txt")
    status, out, log = command(*lines)
    assert status == 0 and "left out 1 empty lines (33.33 %)" in log
    rows = [json.loads(line) for line in out.splitlines()]
    assert [one["id"] for one in rows] == ["line 1", "line 3"]
    assert rows[0]["predicted"] == ["DET", "NOUN", "VERB", "ADV"]
    assert json.loads(command("predict", "--model", tagger, "--text", "the ferry sinks again")[1]) == {
        "id": "the text",
        "words": ["the", "ferry", "sinks", "again"],
        "predicted": ["DET", "NOUN", "VERB", "ADV"],
    }
    command(*lines, "--out", tmp_path / "said.conllu")
    assert [one.column("upos")[:2] for one in read_sentences(tmp_path / "said.conllu")] == [("DET", "NOUN")] * 2
    command(*lines, "--out", tmp_path / "said.txt")
    assert (tmp_path / "said.txt").read_text().splitlines()[:3] == ["the\tDET", "ferry\tNOUN", "sinks\tVERB"]


def test_what_does_not_fit_is_counted_and_has_no_label(command, tagger: Path):
    status, out, log = command("predict", "--model", tagger, "--text", "the ferry sinks " * 20)
    said = json.loads(out)["predicted"]
    assert status == 0 and "100.00 % of the rows do not show all" in log
    assert None in said and said.index(None) > 3 and not any(said[said.index(None) :])


def test_a_parser_writes_trees(command, tmp_path: Path):
    model = fine_tuned(tmp_path / "run", "parse", ["_", "det", "root"])
    assert command("predict", "--model", model, "--text", "the ferry sinks", "--out", tmp_path / "t.conllu")[0] == 0
    (sentence,) = read_sentences(tmp_path / "t.conllu")
    assert sentence.heads() is not None and sentence.column("deprel").count("root") == 1


def test_classifiers_and_answers_have_formats_of_their_own(command, tmp_path: Path):
    model = fine_tuned(tmp_path / "labels", "classify", ["no", "yes"])
    (tmp_path / "texts.tsv").write_text("text\na gripping story\na lamp\n")
    command("predict", "--model", model, "--data", tmp_path / "texts.tsv", "--out", tmp_path / "said.txt")
    said = [line.split("\t") for line in (tmp_path / "said.txt").read_text().splitlines()]
    assert len(said) == 2 and all(label in ("no", "yes") for _, label in said)
    (tmp_path / "other.tsv").write_text("headline\na lamp\n")
    named = ("--data", tmp_path / "other.tsv", "--set", "objective.text=headline")
    assert json.loads(command("predict", "--model", model, *named)[1])["text"] == "a lamp"

    model = fine_tuned(tmp_path / "answers", "answer", ["start", "end"])
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    command("predict", "--model", model, "--data", tmp_path / "squad.json", "--out", tmp_path / "said.json")
    assert json.loads((tmp_path / "said.json").read_text())["q1"] in SQUAD["data"][0]["paragraphs"][0]["context"]
    asked = ("--text", "What sinks?", "--second", "The ferry sinks.")
    assert json.loads(command("predict", "--model", model, *asked)[1])["context"] == "The ferry sinks."


def test_the_model_that_predicts_is_the_one_that_was_tested(tagger: Path, tiny_treebank: Path):
    loaded = load_model(tagger)
    examples = read_files(loaded, [tiny_treebank / "xx_tiny-ud-test.conllu"])
    found, _ = predict(loaded, examples)
    written = [json.loads(line) for line in (tagger / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [list(one.labels) for one in found.predictions] == [one["predicted"] for one in written]


def test_what_cannot_be_is_refused(refused, tagger: Path, tmp_path: Path):
    def error(*more: object) -> str:
        return refused("predict", "--model", tagger, *more)

    assert "no examples: give one of --data" in error()
    assert "--data and --text: give one" in error("--data", "x.conllu", "--text", "a")
    assert "the text is empty" in error("--text", "  ")
    assert "--second: this model of the task tag reads single texts" in error("--text", "a", "--second", "b")
    assert "are written as .jsonl, .conllu, .txt" in error("--text", "a", "--out", tmp_path / "said.xml")
    wrong = error("--text", "a", "--set", "objective.colum=1")
    assert "objective.colum: unknown; of tag there are scores, column" in wrong
    assert "must be of type str" in error("--text", "a", "--set", "objective.column=1")
    (tmp_path / "bad.conllu").write_text("1\tword\n")
    assert "bad.conllu:1: 2 columns" in error("--data", tmp_path / "bad.conllu")
    parser = fine_tuned(tmp_path / "parser", "parse", ["_", "root"])
    assert "written as .jsonl, .conllu:" in refused("predict", "--model", parser, "--text", "a", "--out", "said.txt")
    answers = fine_tuned(tmp_path / "answers", "answer", ["start", "end"])
    assert "questions need the text" in refused("predict", "--model", answers, "--text", "Who?")


@pytest.mark.parametrize("kind", ["vit_mae", "vit_task"])
def test_a_model_that_was_not_fine_tuned_here_says_so(refused, tmp_path: Path, kind: str):
    model = tiny_pixels.mae() if kind == "vit_mae" else tiny_pixels.classifier()
    run = tiny_pixels.write_run(tmp_path / "run", tiny_pixels.stored(model))
    said = "it reads strips" if kind == "vit_mae" else "does not say what its outputs mean"
    assert said in refused("predict", "--model", run, "--text", "a")
