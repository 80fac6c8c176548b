"""Fine-tuning from file to test figure: it learns, stops, resumes, begins with a pretrained encoder, has seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixelcore.checkpoint import read_stored
from pixelcore.errors import UserError
from tests.tasks.tiny_tasks import conllu, run, tiny_flags
from tests.train.conftest import Server, lines, marks, newest
from train.cli import main

_STEPS = ("--steps", "24")


@pytest.fixture(scope="module")
def finished(tiny_treebank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps that nothing disturbed. Read it, never write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
        patch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
        path = tmp_path_factory.mktemp("finished") / "run"
        assert run(tiny_treebank, path, *_STEPS, eval__patience=0) == 0
    return path


def test_sixteen_examples_are_learned_by_heart_and_unseen_sentences_with_them(tiny_treebank: Path, tmp_path: Path):
    assert run(tiny_treebank, tmp_path / "run", "--steps", "60", eval__every=20, eval__patience=0) == 0
    found = marks(tmp_path / "run")
    assert found["test_accuracy"] > 0.99 and found["valid_accuracy"] > 0.99
    assert found["test_loss"] < 0.2
    assert found["test_accuracy_low"] <= found["test_accuracy"] <= found["test_accuracy_high"]
    losses = [row["loss"] for row in lines(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.1 * losses[0]


def test_the_run_says_what_it_did(finished: Path):
    found = marks(finished)
    assert found["finished"] and found["best"] is not None
    assert found["test_truncated"] == found["test_missing_glyphs"] == found["train_truncated"] == 0
    written = [json.loads(line) for line in (finished / "predictions" / "test.jsonl").read_text().splitlines()]
    assert len(written) == 12 and written[0]["id"] == "s60"
    right = sum(gold == said for one in written for gold, said in zip(one["labels"], one["predicted"], strict=True))
    assert right / 48 == pytest.approx(found["test_accuracy"])
    assert sum(one["counts"]["right"] for one in written) == right


def test_the_checkpoint_knows_what_its_outputs_mean(finished: Path):
    stored = read_stored(finished)
    assert stored.task == {
        "kind": "tag",
        "labels": ["ADV", "DET", "NOUN", "VERB"],
        "options": {"scores": "words", "column": "upos", "labels": []},
    }
    assert stored.config.num_labels == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resumed_run_is_the_run_without_a_stop(finished: Path, tiny_treebank: Path, tmp_path: Path):
    path = tmp_path / "run"
    assert run(tiny_treebank, path, *_STEPS, "--stop-at", "10", eval__patience=0) == 0
    assert "test_loss" not in marks(path)
    assert main(["--resume", str(path), "--device", "cpu"]) == 0
    assert lines(path) == lines(finished)
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(one) / f"{name}.safetensors") for one in (path, finished))
        assert mine.keys() == theirs.keys()
        assert not [key for key in mine if not torch.equal(mine[key], theirs[key])]
    figures = [{k: v for k, v in marks(one).items() if k.startswith("test_")} for one in (path, finished)]
    assert figures[0] == figures[1]


def test_a_run_without_progress_stops_and_keeps_its_best(tiny_treebank: Path, tmp_path: Path):
    path = tmp_path / "run"
    changes: dict[str, Any] = {"eval__patience": 2, "eval__every": 2, "optimizer__learning_rate": 1e-12}
    assert run(tiny_treebank, path, "--steps", "40", **changes) == 0
    # nothing is learned: the first look is the best, and two more find nothing better
    assert marks(path)["best"] == "step_00000002" and marks(path)["best_step"] == 2
    assert newest(path).name == "step_00000006" and marks(path)["finished"]
    # patience is part of the state: the run that was stopped in between stops at the same step
    other = tmp_path / "other"
    assert run(tiny_treebank, other, "--steps", "40", "--stop-at", "5", **changes) == 0
    assert main(["--resume", str(other), "--device", "cpu"]) == 0
    assert newest(other).name == "step_00000006" and lines(other) == lines(path)
    # and a run that has lost its patience is finished
    assert main(["--resume", str(path), "--device", "cpu"]) == 0
    assert newest(path).name == "step_00000006"


def test_the_encoder_of_a_pretrained_model_is_taken_and_its_renderer(
    tiny_treebank: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
):
    pretrained = tmp_path / "pretrained"
    pixels = ["--preset", "pixel-smoke", "--data", str(text), "--steps", "1", "--device", "cpu"]
    assert main([*pixels, "--out", str(pretrained), "--set", "eval.read_rows=0", "--set", "eval.picture_rows=0"]) == 0
    capsys.readouterr()
    assert run(tiny_treebank, tmp_path / "run", "--steps", "1", "--init", str(pretrained), run__keep_last=2) == 0
    said = capsys.readouterr().err
    assert "took the encoder" in said and "the head begins fresh" in said
    begun = load_file(tmp_path / "run" / "checkpoints" / "step_00000000" / "model.safetensors")
    given = read_stored(pretrained)
    encoder = {name: tensor for name, tensor in given.weights.items() if name.startswith("encoder.")}
    assert encoder and all(torch.equal(begun[name], tensor) for name, tensor in encoder.items())
    assert not any(name.startswith("decoder.") for name in begun)
    stored = read_stored(tmp_path / "run")
    assert stored.renderer is not None and stored.renderer["config"]["layout"] == "continuous"
    # a task model gives its encoder too; architecture that is asked for beside it is refused
    assert run(tiny_treebank, tmp_path / "again", "--steps", "1", "--init", str(tmp_path / "run")) == 0
    given_too = {"model__num_layers": 3}
    assert run(tiny_treebank, tmp_path / "no", "--init", str(pretrained), **given_too) == 2
    assert "has model.num_layers = 2: leave it out" in capsys.readouterr().err


def test_positions_are_cut_to_the_first_where_it_is_asked_for(
    tagger: Path, tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cut: dict[str, Any] = {"data__cut_positions": True, "data__max_patches": 20, "run__keep_last": 2}
    assert run(tiny_treebank, tmp_path / "cut", "--steps", "2", "--stop-at", "1", "--init", str(tagger), **cut) == 0
    assert "kept the first 20 of 32 positions" in capsys.readouterr().err
    begun = load_file(tmp_path / "cut" / "checkpoints" / "step_00000000" / "model.safetensors")
    given = read_stored(tagger).weights
    assert torch.equal(begun["encoder.positions"], given["encoder.positions"][:21])
    assert torch.equal(begun["encoder.patch.weight"], given["encoder.patch.weight"])
    assert main(["--resume", str(tmp_path / "cut"), "--device", "cpu"]) == 0
    assert read_stored(tmp_path / "cut").config.num_patches == 20  # pyright: ignore[reportAttributeAccessIssue]
    assert run(tiny_treebank, tmp_path / "no", model__interpolate_positions=True, **cut) == 2
    assert "stretches the table of all: leave one of them out" in capsys.readouterr().err


def test_entities_are_selected_by_their_f1(tmp_path: Path):
    for role, count in (("train", 16), ("dev", 4), ("test", 4)):
        place = [f"1\tin\tO\t-\t-\n2\t{name}\tB-LOC\t-\t-\n3\tCity\tI-LOC\t-\t-\n" for name in ("York", "Mexico")]
        (tmp_path / f"x-ud-{role}.iob2").write_text("\n".join((place * count)[:count]) + "\n")
    changes: dict[str, Any] = {"objective__scores": "entities", "objective__column": "upos"}
    assert run(tmp_path, tmp_path / "run", "--steps", "40", eval__every=20, **changes) == 0
    found = marks(tmp_path / "run")
    assert found["test_f1"] == found["test_precision"] == found["test_recall"] == found["best_value"] == 1.0
    assert found["test_f1_low"] == 1.0


def test_seeds_have_a_mean_a_deviation_and_a_difference_to_other_runs(
    finished: Path, tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "seeds"
    flags = (*_STEPS, "--seeds", "0-1", "--compare", str(finished))
    assert run(tiny_treebank, path, *flags, eval__patience=0) == 0
    found = json.loads((path / "seeds.json").read_text())
    values = [marks(path / f"seed-{seed}")["test_accuracy"] for seed in (0, 1)]
    assert found["mean"]["test_accuracy"] == pytest.approx(sum(values) / 2)
    assert marks(path / "seed-0")["test_loss"] == marks(finished)["test_loss"]
    compared = found["compare"]["test_accuracy"]
    assert compared["seeds"] == [2, 1] and compared["examples"] == 12
    assert compared["low"] <= compared["difference"] <= compared["high"]
    capsys.readouterr()
    # finished seeds are not run again; other settings are refused
    assert run(tiny_treebank, path, *flags, eval__patience=0) == 0
    assert "from step" not in capsys.readouterr().err
    assert run(tiny_treebank, path, *flags, eval__patience=1) == 2


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(finished: Path, tiny_treebank: Path, tmp_path: Path, server: Server):
    path = tmp_path / "run"
    flags = [*tiny_flags(tiny_treebank, eval__patience=0), *_STEPS, "--out", str(path)]
    server.run_ranks(2, flags)
    for one, other in zip(lines(path), lines(finished), strict=True):
        assert {name: one[name] for name in ("loss", "valid_loss") if name in one} == pytest.approx(
            {name: other[name] for name in ("loss", "valid_loss") if name in other}, rel=1e-4
        )
    assert marks(path)["test_loss"] == pytest.approx(marks(finished)["test_loss"], rel=1e-3)


def test_rows_of_a_step_do_not_depend_on_who_reads_them(tiny_treebank: Path, tmp_path: Path):
    from infer.task_rows import Strips, TaskRows
    from pixelcore.tasks import tag
    from render import RenderConfig, Renderer
    from train.data.task_batches import TaskBatches

    options = tag.TagOptions()
    examples = tag.read(tiny_treebank / "xx_tiny-ud-train.conllu", options)
    rows = TaskRows(tag, examples, Strips(Renderer(RenderConfig()), 32), tag.inventory(examples, options), options)

    def documents(world: int, micro_batch_rows: int) -> list[int]:
        found = []
        for rank in range(world):
            batches = TaskBatches(
                rows, seed=0, rows_per_step=5, micro_batch_rows=micro_batch_rows, rank=rank, world=world
            )
            assert batches.num_targets(3) == 20
            for index in range(batches.per_rank):
                found += batches.micro_batch(3, index, "cpu").documents
        return sorted(found)

    assert documents(1, 5) == documents(2, 1) == documents(3, 2) == list(range(15, 20))


# ------------------------------------------------------------------ what bad input gets


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("changes", "flags", "expected"),
    [
        ({"model__task": "sequence"}, (), "needs model.task = 'token', not 'sequence'"),
        ({"model__num_labels": 3}, (), "model.num_labels = 3, and the task has 4 outputs here"),
        ({"eval__select": "f1"}, (), "eval.select = 'f1' must be one of loss, accuracy, lost_words"),
        ({"objective__scores": "entities"}, (), "label 'DET' is neither O nor B- or I- and a type"),
        ({"objective__labels": ["DET", "NOUN"]}, (), "label 'VERB' is not among the 2 of objective.labels"),
        ({"data__max_patches": 64}, (), "data.max_patches = 64 must not exceed model.num_patches = 32"),
        ({}, ("--compare", "x"), "--compare RUN: belongs to --seeds"),
        ({}, ("--seeds", "0", "--compare", "nowhere"), "nowhere has no predictions/test.jsonl"),
        ({}, ("--valid", "nowhere.conllu"), "nowhere.conllu: no such file"),
    ],
)
def test_a_wrong_setting_is_one_line(
    tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, flags: tuple, expected: str
):
    assert expected in _error(capsys, *tiny_flags(tiny_treebank, **changes), "--out", str(tmp_path / "run"), *flags)
    assert not (tmp_path / "run").exists()


def test_a_task_needs_data_and_a_dev_file(tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "with --data" in _error(capsys, "--preset", "pixel-tiny-pos", "--device", "cpu")
    alone = tiny_treebank / "xx_tiny-ud-train.conllu"
    assert "no dev file beside it" in _error(capsys, *tiny_flags(alone))
    assert "data.valid_examples = 16 must be fewer" in _error(capsys, *tiny_flags(alone, data__valid_examples=16))
    assert "no training file, only xx_tiny-ud-dev.conllu" in _error(
        capsys, *tiny_flags(_only(tiny_treebank, tmp_path / "dev", "dev"))
    )


def _only(treebank: Path, folder: Path, role: str) -> Path:
    folder.mkdir()
    name = f"xx_tiny-ud-{role}.conllu"
    (folder / name).write_bytes((treebank / name).read_bytes())
    return folder


def test_files_without_labels_and_labels_that_training_has_not_are_told(
    tiny_treebank: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from train.config_tasks import TagOptions, TaskDataConfig
    from train.data.task_corpus import read_corpus

    raw, strange = tmp_path / "raw.conllu", tmp_path / "strange.conllu"
    raw.write_text(conllu(range(3), labels=False))
    strange.write_text(conllu(range(3)).replace("VERB", "AUX"))
    paths = (str(tiny_treebank),)
    with caplog.at_level("WARNING", logger="train"):
        assert read_corpus(TaskDataConfig(paths=paths, test=(str(raw),)), TagOptions()).test == []
        read_corpus(TaskDataConfig(paths=paths, test=(str(strange),)), TagOptions())
    assert "raw.conllu: has no labels, so there will be no test figures" in caplog.text
    assert "3 labels of the test file cannot be right, training has no AUX" in caplog.text
    with pytest.raises(UserError, match="s0: has no labels, and the dev file is scored"):
        read_corpus(TaskDataConfig(paths=paths, valid=(str(raw),)), TagOptions())


def test_training_examples_can_be_held_out(tiny_treebank: Path, tmp_path: Path):
    from train.config_tasks import TagOptions, TaskDataConfig
    from train.data.task_corpus import read_corpus

    alone = str(tiny_treebank / "xx_tiny-ud-train.conllu")
    corpus = read_corpus(TaskDataConfig(paths=(alone,), valid_examples=4), TagOptions())
    assert [example.id for example in corpus.held_out] == ["s0", "s4", "s8", "s12"]
    assert len(corpus.training) == 12 and corpus.overlap == 0
