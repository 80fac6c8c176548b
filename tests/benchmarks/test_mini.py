"""One table for all families: steps that cost the same arithmetic, texts that are the ones they should be, figures
beside their baselines, and runs that are not made twice. All of it at once, trained, is in `make test-slow`."""

import argparse
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import presets
from benchmarks import mini
from benchmarks.mini import table
from benchmarks.mini_families import FAMILIES, arm_of, fine_tuning, overrides, pretraining, run_of
from benchmarks.mini_measures import filled, hidden_characters, restored, said_rightly
from benchmarks.mini_plan import BUDGETS, SHA256, plan, prepare, sha256_of, short_rows, texts_of
from infer.infilling import CharacterNGrams
from pixelcore.accounting import flops_per_token
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.accounting_vit import strip_flops, tokens_flops
from pixelcore.config import TokenMLMConfig, ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.models.token_encoder import MLMOutput
from pixelcore.tokenizer import Tokenizer, byte_tokenizer
from tests.train.conftest import small_text
from train.cli import main as train
from train.distributed import Ranks
from train.job import read_settings
from train.objectives import OBJECTIVES

BUDGET = BUDGETS["smoke"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    (folder / "training.txt").write_text(small_text(160))
    (folder / "other.txt").write_text(small_text(30, seed=3))
    sib = folder / "eng_Latn"
    sib.mkdir()
    topics = {"travel": "the {} train leaves", "science": "a {} cell divides"}
    for role, count in (("train", 16), ("dev", 4), ("test", 4)):
        lines = [f"{n}\t{topic}\t{text.format(n)}" for n in range(count // 2) for topic, text in topics.items()]
        (sib / f"{role}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *lines]) + "\n")
    bank = folder / "UD"
    bank.mkdir()
    words = [("The", "DET"), ("lamp", "NOUN"), ("waits", "VERB")]
    sentence = "".join(f"{n}\t{w}\t{w}\t{tag}\t_\t_\t0\troot\t_\t_\n" for n, (w, tag) in enumerate(words, 1)) + "\n"
    for role, count in (("train", 8), ("dev", 3), ("test", 3)):
        (bank / f"xx-ud-{role}.conllu").write_text(sentence * count)
    return folder


def options_of(folder: Path, **changes) -> argparse.Namespace:
    given = {
        "books": None,
        "data": [str(folder / "training.txt")],
        "held_out": [str(folder / "other.txt")],
        "own_text": True,
        "sib": folder / "eng_Latn",
        "treebank": folder / "UD",
        "runs": folder / "runs",
        "budget": "smoke",
        "families": list(FAMILIES),
        "seeds": 1,
        "device": "cpu",
    }
    return argparse.Namespace(**given | changes)


@pytest.fixture(scope="module")
def options(folder: Path) -> argparse.Namespace:
    options = options_of(folder)
    plan(options)
    prepare(options, BUDGET)
    return options


@pytest.fixture(scope="module")
def arms(options: argparse.Namespace):
    return {key: arm_of(key, BUDGET, options.runs) for key in FAMILIES}


def test_all_families_train_for_the_same_arithmetic_with_the_same_trunk(arms):
    for arm in arms.values():
        assert arm.flops == pytest.approx(BUDGET.flops, rel=0.01)
    trunks = [arm.trunk_parameters for arm in arms.values()]
    assert max(trunks) / min(trunks) < 1.05  # norms and biases
    assert len(arms["pixel"].stages) == 3 and arms["pixel"].stages[-1].steps > arms["pixel"].stages[0].steps
    # what scores more costs more, and so has fewer steps
    assert arms["pixar-mixture"].stages[0].steps < arms["pixar-bernoulli"].stages[0].steps
    assert arms["decoder-bytes"].characters < arms["decoder-bpe"].characters


@pytest.mark.parametrize("key", ["pixel", "encoder-bpe", "pixar-bernoulli", "decoder-bytes"])
def test_the_price_of_a_step_is_that_of_what_training_reads(arms, key):
    """Counted otherwise: from the micro-batches that a run is dealt."""

    arm, ranks = arms[key], Ranks(0, 1, torch.device("cpu"))
    stage = arm.stages[-1]
    settings = read_settings(presets.load(arm.family.preset), overrides(stage.changes), key)
    objective = OBJECTIVES[settings.objective.kind]
    corpus, settings = objective.find_data(settings, ranks, None, None)
    batches, held_out = objective.deal(settings, corpus, ranks)
    total, steps = 0.0, 24
    for step in range(steps):
        for index in range(batches.per_rank):
            batch = batches.micro_batch(step, index, "cpu")
            if key == "pixel":
                lengths = [int(corpus.training[source].num_patches[row]) for source, row in batch.rows]
                share = batch.count / sum(lengths)
                total += sum(strip_flops(settings.model, n, round(share * n)) for n in lengths)
            elif key == "pixar-bernoulli":
                total += sum(n * flops_per_patch(settings.model, n) for n in batch.lengths)
            elif key == "encoder-bpe":
                lengths = batch.packed.lengths
                share = len(batch.scored_rows) / (sum(lengths) - len(lengths))
                total += sum(tokens_flops(settings.model, n - 1, round(share * (n - 1))) for n in lengths)
            else:
                total += sum(n * flops_per_token(settings.model, n) for n in batch.packed.lengths)
    for part in (batches, getattr(held_out, "batches", held_out)):
        part.close()
    assert total / steps == pytest.approx(stage.flops, rel=0.03)


def test_too_small_a_budget_is_refused(options):
    with pytest.raises(UserError, match="decoder, bytes: 1 steps cost .* more than 1% from the budget"):
        arm_of("decoder-bytes", replace(BUDGET, flops=1e6), options.runs)


def test_a_text_is_known_by_its_content(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\n"))
    assert sha256_of([tmp_path / "a.txt"]) == sha256_of([tmp_path / "b.txt.gz"])
    assert sha256_of([tmp_path / "a.txt"] * 2) != sha256_of([tmp_path / "a.txt"])


def test_a_changed_text_is_refused(folder, options):
    with pytest.raises(UserError, match="--books: sha256 .* is not that of the fixed text"):
        plan(options_of(folder, own_text=False, runs=folder / "fixed"))
    assert not (folder / "fixed").exists()
    changed = folder / "changed.txt"
    changed.write_text(small_text(159))
    with pytest.raises(UserError, match="made with books = "):
        plan(options_of(folder, data=[str(changed)]))
    with pytest.raises(UserError, match="made with budget = smoke, not cpu"):
        plan(options_of(folder, budget="cpu"))
    assert plan(options) == plan(options)


def test_the_fixed_texts_are_those_at_hand(shared):
    data = shared / "data"
    fixed = options_of(data, own_text=False, books=data / "text" / "en_books", data=[], held_out=[])
    fixed.sib, fixed.treebank = data / "sib200" / "eng_Latn", data / "ud" / "UD_English-EWT"
    assert {name: sha256_of(files) for name, files in texts_of(fixed).items()} == SHA256


def test_a_stage_begins_with_the_one_before_and_a_finished_run_is_left_alone(arms, options, tmp_path):
    arm = arms["pixel"]
    runs = list(pretraining(arm, 0, tmp_path, "cpu"))
    assert [run.name for run, _ in runs] == ["pixel-0-stage0", "pixel-0-stage1", "pixel-0"]
    assert "--init" not in runs[0][1] and runs[1][1][runs[1][1].index("--init") + 1] == str(runs[0][0])
    run = runs[0][0]
    run.mkdir()
    (run / "run.json").write_text('{"finished": false}')
    assert next(pretraining(arm, 0, tmp_path, "cpu"))[1][-2:] == ["--resume", str(run)]
    (run / "run.json").write_text('{"finished": true}')
    assert next(pretraining(arm, 0, tmp_path, "cpu"))[1] == []


class _Says(torch.nn.Module):
    """A model of tokens that says the same everywhere."""

    def __init__(self, config: TokenMLMConfig, token: int) -> None:
        super().__init__()
        self.config, self.token = config, token

    def forward(self, ids, packed, scored_rows):
        assert int((ids == self.config.vocab_size).sum()) == len(scored_rows)
        return MLMOutput(torch.eye(self.config.vocab_size)[torch.full((len(scored_rows),), self.token)])


def test_of_bytes_one_that_always_says_e_restores_as_much_as_the_most_frequent_character(options):
    rows = short_rows(options, prepare(options, BUDGET)["held-out"], BUDGET)
    tokenizer = byte_tokenizer()
    config = TokenMLMConfig(
        vocab_size=260, num_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, max_tokens=529
    )
    model = _Says(config, tokenizer.encode("e")[0])
    found = restored(model, tokenizer, ["eee ee e a"], rows, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert found["count"] > 20 and 0 < found["accuracy"] < 0.4
    assert found["accuracy"] == found["most_frequent"]
    assert found["low"] < found["accuracy"] < found["high"]


def test_of_a_piece_said_wrongly_the_characters_that_are_right_count(options):
    tokenizer = Tokenizer.load(options.runs / "bpe.model")
    pieces = {tokenizer.surface(id): id for id in range(tokenizer.vocab_size)}
    text = "the river"
    ids, spans = tokenizer.encode_with_spans(text)
    said = np.array(ids)
    assert said_rightly(tokenizer, ids, said, spans, text).all()
    alike = next(
        (piece, id)
        for piece, id in pieces.items()
        if isinstance(piece, str) and piece != tokenizer.surface(ids[0]) and piece.startswith("▁") and len(piece) > 1
    )
    said[0] = alike[1]
    expected = str(tokenizer.surface(ids[0]))
    right = said_rightly(tokenizer, ids, said, spans, text)
    first, end = spans[0]
    for place in range(first, end):
        offset = len(expected) - (end - place)
        assert right[place] == (alike[0][offset : offset + 1] == expected[offset])
    assert right[end:].all()
    gone = hidden_characters(text, spans, np.arange(len(ids)) == 0)
    assert gone[first:end].all() and not gone[end:].any()
    assert filled(text, gone, CharacterNGrams([text] * 5)) == text


def figures(**changes):
    seed = {
        "memory_gib": 0.5,
        "train_characters_per_second": 1234.0,
        "seconds": {"training": 10.0, "all": 90.0},
        "classify": {"test_macro_f1": 0.5, "test_macro_f1_low": 0.4, "test_macro_f1_high": 0.6},
    }
    return seed | changes


def test_the_table_says_what_was_asked_and_what_no_model_reaches():
    bits = {"bits_per_character": 3.0, "low": 2.9, "high": 3.1, "read_back": 0.5, "num_rows": 6}
    bits |= {"uniform": 8.1, "order_0": 4.4, "xz": 3.3}
    holes = {"accuracy": 0.2, "low": 0.1, "high": 0.3, "ngram": 0.6, "most_frequent": 0.11}
    about = {"parameters": 1000, "trunk_parameters": 900, "flops": 1e12, "characters_read": 2e6}
    result = {
        "budget": {"minutes": 1},
        "plan": {"own_text": True, "sha256": {"books": "0123456789abcdef0"}},
        "num_seeds": 1,
        "device": "cpu",
        "minutes": 2.0,
        "flops_apart": 0.004,
        "baselines": {"classify": {"figures": {"majority": {"macro_f1": 0.25}}}},
        "families": {
            "pixel": {"name": "PIXEL", **about, "seeds": [figures(restored=holes)]},
            "pixar": {
                "name": "PIXAR",
                **about,
                "seeds": [figures(bits_per_character=bits, writing={"characters_per_second": 77.0})],
            },
        },
    }
    said = table(result)
    pixel, pixar = (line.split(" | ") for line in said.splitlines()[2:4])
    assert pixel[4] == "-" and pixel[5] == "20.00 % (10.00 to 30.00); 5-gram 60.00, most frequent 11.00"
    assert pixar[4] == "3.000 (2.900 to 3.100); 50 % of strips read back" and pixar[5] == "-"
    assert pixel[6] == pixar[6] == "50.00 % (40.00 to 60.00)" and pixar[-1] == "77 |"
    for told in ("One seed, which is no claim", "majority 25.00 %", "xz -9e 3.300", "MORE than planned", "Own text"):
        assert told in said
    for one in result["families"].values():
        one["seeds"] *= 2
    result |= {"num_seeds": 2}
    assert "Student's" in table(result) and "no claim" not in table(result)


def test_a_decoder_goes_from_text_to_table_once(arms, options, monkeypatch, capfd):
    """Its training in this process, no more than two steps of it."""
    commands = []

    def execute(command):
        commands.append(command)
        return train(list(command[3:]))

    arm = arms["decoder-bpe"]
    short = replace(arm, stages=tuple(replace(stage, steps=2) for stage in arm.stages))
    monkeypatch.setattr(mini, "arm_of", lambda *given: short)
    monkeypatch.setattr(mini, "execute", execute)
    monkeypatch.setattr("train.report.draw_curve", lambda *given, **named: None)
    out = options.runs.parent / "result.json"
    flags = ["--own-text", "--data", options.data[0], "--held-out", options.held_out[0], "--sib", str(options.sib)]
    flags += ["--treebank", str(options.treebank), "--runs", str(options.runs), "--budget", "smoke", "--out", str(out)]
    mini.main([*flags, "--families", "decoder-bpe"])
    first = json.loads(out.read_text())
    seed = first["families"]["decoder-bpe"]["seeds"][0]
    assert 1 < seed["bits_per_character"]["bits_per_character"] < 8 and 0 <= seed["classify"]["test_macro_f1"] <= 1
    assert seed["writing"]["characters_per_second"] > 0 and "tag" not in seed
    assert out.with_suffix(".md").read_text().startswith("| family |")
    assert "decoder, BPE" in capfd.readouterr().out and len(commands) == 2
    mini.main([*flags, "--families", "decoder-bpe"])
    assert len(commands) == 2
    assert json.loads(out.read_text())["families"] == first["families"]


@pytest.mark.slow
def test_every_family_goes_from_text_to_table(folder, monkeypatch):
    monkeypatch.setattr(mini, "execute", lambda command: train(list(command[3:])))
    options, out = options_of(folder, runs=folder / "whole"), folder / "whole.json"
    flags = ["--own-text", "--data", options.data[0], "--held-out", options.held_out[0], "--sib", str(options.sib)]
    flags += ["--treebank", str(options.treebank), "--runs", str(options.runs), "--budget", "smoke", "--out", str(out)]
    mini.main(flags)
    result = json.loads(out.read_text())
    assert list(result["families"]) == list(FAMILIES) and result["flops_apart"] < 0.02
    for key, one in result["families"].items():
        seed = one["seeds"][0]
        assert "classify" in seed and ("restored" in seed) == ("tag" in seed) == ("bits_per_character" not in seed), key


def test_fine_tuning_has_one_recipe(arms, options, folder):
    found = {}
    for key, arm in arms.items():
        _, command = fine_tuning(arm, "classify", folder / "eng_Latn", BUDGET, 0, options.runs / "none", "cpu")
        found[key] = {word for word in command if word.startswith(("optimizer.", "schedule.", "run.", "data.rows"))}
        assert command[command.index("--init") + 1] == str(run_of(arm, arm.stages[-1], 0, options.runs / "none"))
        assert ("tag" in arm.family.tasks) == isinstance(arm.config, TokenMLMConfig | ViTMAEConfig)
    assert len({frozenset(each) for each in found.values()}) == 1
