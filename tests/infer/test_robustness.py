"""Robustness: clean and attacked prompts are asked for the same untouched words, and differences are those of pairs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infer import attacks
from infer.benchmarks import robustness as module
from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.next_word import WordItem
from infer.benchmarks.robustness import Row, change_of_shares, robustness
from infer.benchmarks.robustness_tables import as_text
from infer.benchmarks.token_words import bits_of_words
from infer.confusables import DRAWN, MISSING, UNCHANGED, Strata, built_in
from infer.load import Loaded
from infer.write_strip import WriteConfig
from pixelcore.checkpoint import write_checkpoint
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.packed import Packed
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from render import Renderer
from tests.infer.tiny_pixar import RENDER, bernoulli, pixar, stored

RENDERER = Renderer(RENDER)
ITEMS = [WordItem("Mary moved to the", "garden"), WordItem("Where is John? |", "office"), WordItem("A cat on a", "mat")]
SHORT = WriteConfig(max_patches=2)
STRATA = Strata(RENDERER, built_in())


def decoder(tokenizer: Tokenizer, context: int = 48) -> Loaded:
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=context,
        num_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
    )
    model = Decoder(config)
    initialise(model, 1)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    record = Stored(
        path=Path("."), origin="checkpoint", name="t", step=7, config=config, weights=weights, tokenizer=tokenizer
    )
    return Loaded(model.eval(), tokenizer, record)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["mary moved to the garden and john to the office on a mat\n" * 20], 320)


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {f"{row.attack} {row.strength}".strip(): row for row in rows}


# ------------------------------------------------------------------ items and pairs


def test_the_words_that_are_asked_for_are_those_of_the_clean_prompts(monkeypatch):
    model = bernoulli()
    asked: list[tuple[str, bytes]] = []
    measure = module.log_probabilities

    def spy(model, prompt, drawn):
        asked.append((prompt.tobytes(), drawn[0].patches.tobytes()))
        return measure(model, prompt, drawn)

    monkeypatch.setattr(module, "log_probabilities", spy)
    chosen = [attacks.flips(0.2, 0), attacks.confusables(STRATA, 1, 0), attacks.columns(0.5, 0), attacks.shift(3, 1)]
    robustness(model, RENDERER, ITEMS, chosen, SHORT)
    wanted = [drawn_words(RENDERER, model.config, item.context, [item.word])[0].patches.tobytes() for item in ITEMS]
    assert [target for _, target in asked] == wanted * (1 + len(chosen))
    assert len({prompt for prompt, _ in asked}) == len(asked)


def test_a_model_that_knows_nothing_loses_nothing():
    model = bernoulli()
    with torch.no_grad():
        model.out_proj.weight.zero_()
    found = robustness(model, RENDERER, ITEMS, [attacks.flips(0.3, 0), attacks.blank()], SHORT)
    drawn = [drawn_words(RENDERER, model.config, item.context, [item.word])[0] for item in ITEMS]
    pixels = 8 * sum(one.columns for one in drawn)  # a bit for each that the word and its space have
    for row in found.rows:
        assert row.bits is not None
        assert row.bits.per_patch == pytest.approx(pixels / sum(len(one.patches) for one in drawn), rel=1e-6)
        assert row.bits.per_character == pytest.approx(pixels / sum(len(item.word) + 1 for item in ITEMS), rel=1e-6)
    assert found.rows[1].bits is not None and found.rows[1].bits.change is not None
    assert found.rows[1].bits.change.difference == pytest.approx(0, abs=1e-6)
    assert [row.same_pixels.hits for row in found.rows] == [3, 0, 0]


@pytest.mark.parametrize("decode", ["threshold", "sample"])
def test_prompts_with_the_same_pixels_give_the_same_result_and_cost_nothing(monkeypatch, decode):
    written = []
    write = module.write_patches
    monkeypatch.setattr(
        module, "write_patches", lambda model, prompts, config: written.append(prompts) or write(model, prompts, config)
    )
    # the letters of "mat" and "cat" can be replaced unseen, and so can none of "|"
    items = [*ITEMS[::2], WordItem("| 12", "34")]
    chosen = [attacks.confusables(STRATA, 1, 0, stratum) for stratum in (UNCHANGED, MISSING)]
    config = WriteConfig(max_patches=2, decode=decode)
    clean, unchanged, missing = robustness(pixar(), RENDERER, items, chosen, config).rows
    assert [len(prompts) for prompts in written] == [3, 2 if decode == "threshold" else 3]
    assert unchanged.bits is not None and clean.bits is not None and missing.bits is not None
    assert (unchanged.right, unchanged.bits.per_patch) == (clean.right, clean.bits.per_patch)
    assert unchanged.replacements is not None and unchanged.replacements[UNCHANGED] > 8
    assert unchanged.prompts is not None and unchanged.prompts[UNCHANGED].share == 1
    assert missing.bits.per_patch != clean.bits.per_patch and missing.same_pixels.hits == 1
    assert missing.prompts is not None
    assert {stratum: share.hits for stratum, share in missing.prompts.items()} == {UNCHANGED: 1, DRAWN: 0, MISSING: 2}


def test_a_prompt_belongs_to_the_worst_of_its_replacements():
    everything = robustness(bernoulli(), RENDERER, ITEMS, [attacks.confusables(STRATA, 1, 0)], SHORT).rows[1]
    assert everything.replacements is not None and everything.prompts is not None
    assert set(everything.replacements) == {UNCHANGED, DRAWN, MISSING} and everything.replacements[UNCHANGED]
    assert everything.prompts[MISSING].share == 1
    assert everything.replaced == 1


def test_a_model_that_says_no_chances_is_measured_by_its_words():
    model = pixar(head="regression", num_components=1)
    rows = robustness(model, RENDERER, ITEMS, [attacks.rows(0.5, 0)], SHORT).rows
    assert [row.bits for row in rows] == [None, None]
    assert all(row.right.count == 3 for row in rows)


def test_differences_of_shares_are_of_pairs():
    before, after = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool), np.array([1, 0, 0, 0, 1, 0, 0, 0], bool)
    change = change_of_shares(after, before)
    assert change.difference == -0.25
    # 1.5 gained and 3.5 lost of 10 pairs
    half = 1.959964 * math.sqrt(5 - 4 / 10) / 10
    assert (change.low, change.high) == (pytest.approx(-0.2 - half), pytest.approx(-0.2 + half))
    nothing = change_of_shares(before, before)
    assert nothing.difference == 0 and nothing.low is not None and nothing.low < 0
    assert change_of_shares(~before, before).low is not None


# ------------------------------------------------------------------ the decoder beside it


def test_a_decoder_that_knows_nothing_pays_for_the_tokens_of_the_word(tokenizer):
    loaded = decoder(tokenizer)
    with torch.no_grad():
        loaded.model.head_weight.zero_()
    words = [item.word for item in ITEMS]
    found = bits_of_words(loaded, [item.context for item in ITEMS], words)
    tokens = [len(tokenizer.encode(f"a {word}")) - len(tokenizer.encode("a")) for word in words]
    # what it pays for the space before the word is given back, and paid for the one behind it
    assert found == pytest.approx([count * math.log2(tokenizer.vocab_size) for count in tokens])


def test_a_word_of_bytes_costs_its_bytes_and_the_space_behind_it():
    loaded = decoder(byte_tokenizer())
    ids = loaded.tokenizer.encode("it is so ")
    out = loaded.model(torch.tensor([loaded.tokenizer.bos_id, *ids]), Packed.from_lengths([len(ids) + 1])).logits
    assert out is not None
    log_LV = out.detach().log_softmax(1)
    # "so " behind "it is ", whose last space is given
    costs = [-float(log_LV[place, ids[place]]) / math.log(2) for place in range(6, 9)]
    alone = bits_of_words(loaded, ["it is"], ["so"])
    assert alone == pytest.approx([sum(costs)], rel=1e-5)
    assert bits_of_words(loaded, ["a", "it is", "b c"], ["d", "so", "e"])[1] == pytest.approx(alone[0], rel=1e-5)


def test_a_long_text_loses_its_beginning_and_a_long_word_is_refused():
    loaded = decoder(byte_tokenizer(), context=16)
    long = bits_of_words(loaded, ["abcdefghijklmnopqrstuvwxyz"], ["so"])
    assert long == pytest.approx(bits_of_words(loaded, ["opqrstuvwxyz"], ["so"]), rel=1e-5)
    with pytest.raises(UserError, match="the word .* is 20 tokens, and the model reads 16"):
        bits_of_words(loaded, ["a"], ["x" * 19])


def test_a_decoder_sees_what_the_pixels_do_not_show(tokenizer):
    chosen = [attacks.confusables(STRATA, 1, 0, UNCHANGED), attacks.flips(0.3, 0)]
    found = robustness(bernoulli(), RENDERER, ITEMS, chosen, SHORT, decoder(tokenizer, 128))
    rows = by_name(found.rows)
    clean, attacked = rows["clean"], rows["confusables, unchanged 1"]
    assert clean.bits is not None and attacked.bits is not None and clean.bits.per_patch == attacked.bits.per_patch
    assert clean.tokens is not None and attacked.tokens is not None and attacked.tokens.change is not None
    assert attacked.tokens.change.difference == pytest.approx(
        attacked.tokens.per_character - clean.tokens.per_character
    )
    assert attacked.tokens.change.difference != 0
    assert rows["flips 0.3"].tokens is None
    assert "tokens" in as_text(found)


# ------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """A model of strips and a decoder of bytes."""
    folder = tmp_path_factory.mktemp("runs")
    for name, record in (("strips", stored(bernoulli())), ("tokens", decoder(byte_tokenizer(), 256).stored)):
        run = folder / name
        (run / "checkpoints").mkdir(parents=True)
        write_checkpoint(run / "checkpoints" / "step_00000007", record, state={"none": torch.zeros(1)}, manifest={})
        (run / "run.json").write_text(json.dumps({"newest": "step_00000007", "best": None, "finished": True}))
    return folder / "strips", folder / "tokens"


LAMBADA = """{"context": "Mary is in the", "continuation": "garden"}
{"context": "A cat on a", "continuation": "mat"}
"""
TEXTS = "and then a cat sat on a " * 6


def test_the_command_measures_each_stratum_beside_the_clean_prompts(runs, command, tmp_path):
    (tmp_path / "items.jsonl").write_text(LAMBADA)
    words = ("evaluate", "robustness", "--model", runs[0], "--partner", runs[1], "--task", "lambada", "--count", 2)
    words += ("--data", tmp_path / "items.jsonl", "--attack", "confusables", "--attack", "blank", "--ratio", 0.9)
    status, out, _ = command(*words, "--json", "--strips", tmp_path / "sheet.png")
    assert status == 0
    report = json.loads(out)
    rows = [(row["attack"], row["strength"]) for row in report["rows"]]
    kinds = ["confusables", "confusables, unchanged", "confusables, drawn", "confusables, missing"]
    assert rows == [("clean", ""), *((kind, "0.9") for kind in kinds), ("blank", "")]
    assert report["count"] == 2 and report["confusables"].startswith("built in")
    assert report["rows"][0]["bits"]["change"] is None and report["rows"][0]["tokens"]["per_character"] > 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size[0] > 100


@pytest.mark.parametrize("task, data", [("babi", None), ("next-word", TEXTS)])
def test_the_command_takes_items_from_the_other_benchmarks(runs, command, tmp_path, task, data):
    words = ["evaluate", "robustness", "--model", runs[0], "--task", task, "--count", 1, "--attack", "flips"]
    if data is not None:
        (tmp_path / "texts.txt").write_text(data)
        words += ["--data", tmp_path / "texts.txt"]
    status, out, _ = command(*words, "--ratio", 0.5, "--ratio", 0.1)
    assert status == 0
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(("clean", "flips"))]
    assert [rows[0][0], *rows[1:]] == ["clean", ["flips", "0.5"], ["flips", "0.1"]]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", "babi"], "--attack: name at least one of"),
        (["--task", "bab", "--attack", "flips"], "did you mean babi"),
        (["--task", "lambada", "--attack", "flips"], "needs texts: name them with --data"),
        (["--task", "babi", "--attack", "flip"], "did you mean flips"),
        (["--task", "babi", "--attack", "flips", "--attack", "flips"], "is given twice"),
        (["--task", "babi", "--attack", "flips", "--ratio", "2"], "--ratio 2: must be a share"),
        (["--task", "babi", "--attack", "shift", "--ratio", "0.1"], "--ratio is for --attack confusables or flips"),
        (["--task", "babi", "--attack", "flips", "--confusables", "x"], "--confusables is for --attack confusables"),
        (["--task", "babi", "--attack", "font"], "needs another font: name it with --attack-font"),
        (["--task", "babi", "--attack", "flips", "--attack-size", "7"], "--attack-size is for --attack size"),
        (["--task", "babi", "--attack", "shift", "--shift", "1"], "is not of the form RIGHT,DOWN"),
        (["--task", "babi", "--attack", "blur", "--blur", "box"], "is not of the form KIND:PX"),
        (["--task", "babi", "--attack", "flips", "--variant", "lambada"], "--variant is for --task lambada"),
        (["--task", "babi", "--attack", "flips", "--count", "0"], "--count 0: must be at least 1"),
        (["--task", "babi", "--attack", "flips", "--strips", "x.gif"], "let the name end in .png"),
        (["--task", "babi", "--attack", "flips", "--tokenizer", "x"], "--tokenizer is of --partner"),
        (["--task", "babi", "--attack", "flips", "--seed", "-1"], "--seed -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(runs, refused, words, message):
    assert message in refused("evaluate", "robustness", "--model", runs[0], *words)


def test_an_attack_is_shown(command, tmp_path):
    words = ("attack", "--text", "Mary is in the garden", "--ratio", 0.6, "--attack")
    status, out, _ = command(*words, "confusables", "--attack", "rows", "--out", tmp_path / "a.png", "--json")
    assert status == 0
    confused, rows = json.loads(out)["attacks"]
    assert confused["text"] != "Mary is in the garden" and rows["text"] == "Mary is in the garden"
    assert sum(confused["strata"].values()) == len(confused["replacements"]) > 4
    assert confused["eligible"] == 17 and rows["changed_values"] > 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 100
    status, out, _ = command(*words, "confusables")
    assert status == 0
    assert confused["text"] in out and "of 17 characters replaced: " in out and "missing" in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text", " ", "--attack", "flips"], "--text is empty"),
        (["--text", "a", "--attack", "flips", "--preset", "pixa"], "did you mean"),
        (["--text", "a", "--attack", "flips", "--font", "absent.ttf"], "the text cannot be drawn"),
        (["--text", "a" * 2000, "--attack", "flips"], "more than render.max_patches = 360"),
        (["--text", "a", "--attack", "flips", "--out", "a.gif"], "let the name end in .png"),
    ],
)
def test_what_cannot_be_shown_is_refused(refused, words, message):
    assert message in refused("attack", *words)
