"""What pretraining is worth: encoders made stage by stage, files that do not overlap, a table of what is finished."""

import argparse
import gzip
import json
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

import presets
from benchmarks import fine_tuning
from benchmarks.fine_tuning import PLAN, folder_of, report, run_all, table
from benchmarks.fine_tuning_encoders import ENCODERS, encoder_commands, encoder_of
from benchmarks.what_masked_pixels_teach import HELD_OUT
from pixelcore.errors import UserError
from tests.tasks.tiny_tasks import run, treebank
from tests.train.conftest import small_text
from train.config import TaskSettings
from train.job import read_settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder laid out like the reference data: two novels to train on, two held out, treebanks, topics, entities."""
    folder = tmp_path_factory.mktemp("shared")
    books = folder / "data/text/en_books"
    books.mkdir(parents=True)
    for seed, name in enumerate(["moby.txt.gz", "emma.txt.gz", *HELD_OUT]):
        with gzip.open(books / name, "wt") as opened:
            opened.write(small_text(60, seed=seed))
    for name in ("UD_Coptic-Scriptorium", "UD_Vietnamese-VTB"):
        bank = folder / "data/ud" / name
        bank.mkdir(parents=True)
        sentences = "".join(f"# text = {name} says {n}\n1\tx\t_\tX\t_\t_\t0\troot\t_\t_\n\n" for n in range(8))
        (bank / "xx-ud-train.conllu").write_text(sentences)
    for language in ("eng_Latn", "hin_Deva"):
        (folder / "data/sib200" / language).mkdir(parents=True)
        (folder / "data/sib200" / language / "train.tsv").write_text(
            f"index_id\tcategory\ttext\n0\ttravel\ttrains of {language}\n"
        )
    entities = folder / "data/uner/English-EWT"
    entities.mkdir(parents=True)
    for role, first, count in (("dev", 0, 260), ("test", 260, 10)):
        text = "".join(f"1\tword{n}\tO\t-\t-\n\n" for n in range(first, first + count))
        (entities / f"en_ewt-ud-{role}.iob2").write_text(text)
    return folder


@pytest.fixture
def plan() -> dict:
    plan = tomllib.loads(PLAN.read_text())
    plan["encoder"]["fonts"] = []
    return plan


def options_of(shared: Path, runs: Path, **changes) -> argparse.Namespace:
    given = {"shared": shared, "runs": runs, "encoders": list(ENCODERS), "tasks": ["tiny"], "seeds": "0-1"}
    return argparse.Namespace(**given | {"parallel": 2} | changes)


def test_every_run_of_the_plan_has_settings_that_can_be_read(plan, shared, tmp_path):
    options = options_of(shared, tmp_path)
    for task, about in plan["tasks"].items():
        for encoder in ("text", *(["tokens"] if "partner" in about else [])):
            command = fine_tuning.fine_tuning(task, encoder, plan, options)
            name = command[command.index("--preset") + 1]
            changes = [part for flag, part in pairwise(command) if flag == "--set"]
            settings = read_settings(presets.load(name), changes, name)
            assert isinstance(settings, TaskSettings) and settings.run.steps == about["steps"]
            assert settings.eval.every == settings.run.steps, "the dev file is read once"
    for encoder in ENCODERS:
        for command in encoder_commands(encoder, plan, shared, tmp_path):
            changes = [part for flag, part in pairwise(command) if flag == "--set"]
            name = command[command.index("--preset") + 1]
            changes = [change for change in changes if not change.startswith("data.weights")]  # which needs --data
            assert read_settings(presets.load(name), changes, name).run.seed == 0  # that of --seed comes later


def test_stages_begin_with_the_one_before_and_a_finished_one_is_left_alone(plan, shared, tmp_path):
    commands = encoder_commands("text", plan, shared, tmp_path)
    outs = [command[command.index("--out") + 1] for command in commands]
    assert "--init" not in commands[0]
    assert [command[command.index("--init") + 1] for command in commands[1:]] == outs[:-1]
    assert outs[-1] == str(encoder_of("text", tmp_path))
    assert any("render.layout" in part for part in commands[0]), "drawn as the plan says"
    assert not any("render.layout" in part for part in commands[1]), "drawn as the model says"
    Path(outs[0]).mkdir(parents=True)
    (Path(outs[0]) / "run.json").write_text(json.dumps({"finished": True}))
    assert encoder_commands("text", plan, shared, tmp_path) == commands[1:]
    (Path(outs[0]) / "run.json").write_text(json.dumps({"finished": False}))
    assert encoder_commands("text", plan, shared, tmp_path)[0][-2:] == ["--resume", outs[0]]


def test_the_last_stage_reads_training_text_of_other_languages_shuffled_or_not(plan, shared, tmp_path):
    read = {}
    for arm in ("text", "shuffled"):
        last = encoder_commands(arm, plan, shared, tmp_path)[-1]
        files = [Path(part) for flag, part in pairwise(last) if flag == "--data"]
        assert len(files) == len(plan["encoder"]["weights"])
        read[arm] = [gzip.decompress(file.read_bytes()).decode() for file in files[1:]]
    coptic, _, topics = read["text"]
    assert coptic.count("says") == 8 and "trains of hin_Deva" in topics and "eng_Latn" not in topics
    for text, shuffled in zip(*read.values()):
        assert (
            text != shuffled
            and sorted(text) == sorted(shuffled)
            and list(map(len, text.split())) == list(map(len, shuffled.split()))
        )


def test_entities_are_trained_on_what_the_dev_file_does_not_hold_back(plan, shared, tmp_path):
    folder = folder_of(plan["tasks"]["ner-uner"], "ner-uner", options_of(shared, tmp_path))
    words = {role: set((folder / f"{role}.iob2").read_text().split()[1::5]) for role in ("train", "dev", "test")}
    assert [len(words[role]) for role in ("train", "dev", "test")] == [60, 200, 10]
    assert not words["train"] & words["dev"] and not (words["train"] | words["dev"]) & words["test"]


def test_the_table_has_what_is_finished(plan, shared, tmp_path, monkeypatch):
    bank = treebank(tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    plan["tasks"] = {"tiny": {"preset": "pixel-tiny-pos", "data": str(bank), "steps": 4, "figure": "accuracy"}}
    options = options_of(shared, tmp_path / "runs")
    with pytest.raises(UserError, match="no finished run of tiny"):
        report(plan, options)
    for encoder, rate in (("untrained", 1e-9), ("text", 5e-3)):
        folder = options.runs / "tiny" / encoder
        assert run(bank, folder, "--seeds", "0-1", run__steps=8, optimizer__learning_rate=rate) == 0
    found = report(plan, options)
    tiny = found["tasks"]["tiny"]
    assert set(tiny["runs"]) == {"untrained", "text"} and len(tiny["runs"]["text"]) == 2
    ours, theirs = ([each["test_accuracy"] for each in tiny["runs"][name]] for name in ("text", "untrained"))
    difference = tiny["differences"]["untrained"]["test_accuracy"]
    assert difference["difference"] == pytest.approx(sum(ours) / 2 - sum(theirs) / 2)
    assert difference["low"] <= difference["difference"] <= difference["high"]
    row = table(found).splitlines()[-1].split(" | ")
    assert row[0] == "| tiny, accuracy" and row[3] == "-", "an encoder without runs has none"
    assert f"{50 * sum(ours):.1f} +-" in row[4]


def test_a_training_that_fails_is_said(tmp_path):
    with pytest.raises(UserError, match="ended with status 3"):
        run_all([[["sh", "-c", "exit 3"], ["sh", "-c", f"touch {tmp_path}/next"]]], options_of(tmp_path, tmp_path))
    assert not (tmp_path / "next").exists(), "what begins with it is not begun"
