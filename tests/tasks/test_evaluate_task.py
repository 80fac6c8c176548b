"""`python -m infer evaluate` by the four tasks: figures, intervals, what is trivial, what is published."""

import json
from pathlib import Path

import pytest

from infer import evaluate_task
from infer.cli import BENCHMARKS
from infer.evaluate_task import published_for
from infer.predict import load_model
from pixelcore.tasks import TASKS
from tests.tasks.fine_tuned import fine_tuned
from tests.tasks.test_predict import SQUAD
from tests.tasks.tiny_tasks import conllu
from tests.train.conftest import marks


def test_every_task_has_a_name():
    assert set(TASKS) <= set(BENCHMARKS)


def test_figures_are_those_of_the_run_with_intervals_and_baselines(command, tagger: Path, tiny_treebank: Path):
    data, train = (tiny_treebank / f"xx_tiny-ud-{role}.conllu" for role in ("test", "train"))
    status, out, log = command("evaluate", "tag", "--model", tagger, "--data", data, "--train", train, "--json")
    found, run = json.loads(out), marks(tagger)
    assert status == 0 and "0.00 % of the characters" in log
    assert found["examples"] == 12 and found["select"] == "accuracy" and found["unseen"] == 0
    assert found["loss"] == pytest.approx(run["test_loss"], rel=1e-5)
    one = found["figures"]["accuracy"]
    assert one == {"value": run["test_accuracy"], "low": run["test_accuracy_low"], "high": run["test_accuracy_high"]}
    assert found["baselines"]["majority"]["accuracy"] == 0.25
    assert found["shares"] == {"truncated": 0, "missing_glyphs": 0}
    table = command("evaluate", "tag", "--model", tagger, "--data", data, "--train", train)[1]
    assert "most frequent of the word" in table and "per cent, 95 % intervals" in table


def test_labels_that_training_has_not_seen_are_counted(command, tagger: Path, tmp_path: Path):
    (tmp_path / "new.conllu").write_text(conllu(range(3)).replace("ADV", "INTJ"))
    status, out, log = command("evaluate", "tag", "--model", tagger, "--data", tmp_path / "new.conllu", "--json")
    found = json.loads(out)
    assert status == 0 and found["unseen"] == 3 and found["figures"]["accuracy"]["value"] <= 0.75
    assert "3 labels of the data were not in the training data" in log and "no baselines" in log


@pytest.mark.parametrize("kind", ["parse", "classify", "answer"])
def test_the_other_tasks_are_measured(command, tmp_path: Path, kind: str):
    if kind == "parse":
        model = fine_tuned(tmp_path / "run", kind, ["_", "dep", "root"], subtypes=True)
        (tmp_path / "data.conllu").write_text(conllu(range(4)))
        data, figures = tmp_path / "data.conllu", {"uas", "las"}
    elif kind == "classify":
        model = fine_tuned(tmp_path / "run", kind, ["no", "yes"])
        (tmp_path / "data.tsv").write_text("text\tlabel\na lamp\tno\na clock\tyes\na ferry\tno\n")
        data, figures = tmp_path / "data.tsv", {"accuracy", "macro_f1"}
    else:
        model = fine_tuned(tmp_path / "run", kind, ["start", "end"])
        (tmp_path / "data.json").write_text(json.dumps(SQUAD))
        data, figures = tmp_path / "data.json", {"exact_match", "f1"}
    words = ("evaluate", kind, "--model", model, "--data", data, "--train", data, "--attack", "inner-swap:1", "--json")
    status, out, _ = command(*words)
    found = json.loads(out)
    assert status == 0 and figures <= set(found["figures"]) and len(found["baselines"]) >= 2
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["figures"].values())
    assert found["attacks"][0]["strata"][0]["examples"] == found["examples"]


def test_published_figures_are_found_by_the_data_and_say_what_they_are_of(command, tagger: Path, tmp_path: Path):
    loaded = load_model(tagger)
    (pixel,) = published_for(loaded, ["treebanks/UD_Vietnamese-VTB/vi_vtb-ud-test.conllu"])
    assert (pixel.model, pixel.figure, pixel.value) == ("PIXEL", "accuracy", 85.7)
    assert pixel.data == "Vietnamese VTB, UD 2.10, test" and "not comparable to the last point" in pixel.note
    assert published_for(loaded, ["own.conllu"]) == ()
    assert published_for(loaded, ["en_ewt-ud-test.conllu", "vi_vtb-ud-test.conllu"]) == ()
    parser = load_model(fine_tuned(tmp_path / "parser", "parse", ["_", "root"]))
    assert {one.model: one.value for one in published_for(parser, ["ja_gsd-ud-test.conllu"])} == {
        "PIXEL": 90.7,
        "PIXEL-M4": 90.88,
    }
    assert published_for(parser, ["ja_gsdluw-ud-test.conllu"]) == ()
    pairs = load_model(fine_tuned(tmp_path / "pairs", "classify", ["a", "b", "c"], layout="glue:mnli"))
    for name, value in (("matched", 78.1), ("mismatched", 78.9)):
        assert [one.value for one in published_for(pairs, [f"mnli/dev_{name}.tsv"])] == [value]
    (tmp_path / "en_ewt-ud-test.conllu").write_text(conllu(range(2)))
    table = command("evaluate", "tag", "--model", tagger, "--data", tmp_path / "en_ewt-ud-test.conllu")[1]
    assert "published, accuracy: English EWT, UD 2.10, test; README of xplip/pixel" in table


def test_every_published_figure_belongs_to_a_set_and_a_task():
    for table in evaluate_task._tables():
        assert table["task"] in TASKS and table["source"] and table["version"] and table["split"]
        for row in table["rows"].values():
            assert set(row) <= set(table["sets"]) and all(0 <= value <= 100 for value in row.values())


def test_what_cannot_be_measured_is_refused(refused, tagger: Path, tmp_path: Path):
    (tmp_path / "bare.conllu").write_text(conllu(range(2), labels=False))
    data = ("--model", tagger, "--data", tmp_path / "bare.conllu")
    assert "s0: has no label to compare with" in refused("evaluate", "tag", *data)
    (tmp_path / "bare.tsv").write_text("text\ttopic\na\tx\n")
    classifier = fine_tuned(tmp_path / "classifier", "classify", ["x", "y"])
    said = refused("evaluate", "classify", "--model", classifier, "--data", tmp_path / "bare.tsv")
    assert "no column 'label'; there are text, topic: name one" in said and "use predict" in said
    assert "a model of the task tag, and this is parse" in refused("evaluate", "parse", *data)
    assert "did you mean tag" in refused("evaluate", "tags", *data)
    assert "--confusables is for --attack confusables" in refused("evaluate", "tag", *data, "--confusables", "x.txt")
