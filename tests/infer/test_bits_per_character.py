"""Bits per character: known models have known bits, both kinds of model are asked about the same rows, and rows are
those of training."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from infer.benchmarks.bits_per_character import (
    AFTER_FIRST,
    as_text,
    baselines,
    bits_of_strips,
    bits_of_tokens,
    evenly,
    measured,
    ratio_interval,
    read_back,
)
from infer.benchmarks.text_rows import cut_rows
from pixelcore.checkpoint import write_checkpoint
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.next_patches import arrange_next
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from render import RenderConfig, Renderer
from train.data.strips.rows import RowMaker

CONFIG = PixarConfig(
    num_layers=2,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=24,
    max_patches=24,
    start_vector=True,
)
Model = TypeVar("Model", bound=torch.nn.Module)
RENDER = RenderConfig.named("pixar", max_patches=24)
DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog.\nIt barks.\n\n  And then?\tIt sleeps, \u00a0as dogs do. \n",
    "A paragraph that is wider than a row is cut between words, as often as it takes, and the rest joins the next.\n"
    "End." + " A word that is much too long: " + "x" * 200 + " and on.",
]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RENDER)


@pytest.fixture(scope="module")
def rows(renderer: Renderer) -> list[str]:
    return list(cut_rows(DOCUMENTS, renderer, 24).texts)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS * 9, 330)


def pixar(**changes) -> Pixar:
    model = Pixar(dataclasses.replace(CONFIG, **changes))
    initialise(model, 1)
    return model.eval()


def decoder(tokenizer: Tokenizer, context: int = 128) -> Decoder:
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=context,
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
    )
    model = Decoder(config)
    initialise(model, 1)
    return model.eval()


def silent(model: Model, *names: str) -> Model:
    """The model with these weights at zero, so that it says the same of everything."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                weight.zero_()
    return model


# ------------------------------------------------------------------ models whose bits are known


@pytest.mark.parametrize("changes", [{}, {"head": "mixture", "num_components": 3}])
def test_a_model_that_knows_nothing_pays_a_bit_for_each_pixel_of_each_patch(renderer, rows, changes):
    model = silent(pixar(**changes), "out_proj.weight")
    if "head" in changes:
        assert model.score is not None
        silent(model.score, "weight")
    scored = bits_of_strips(model, renderer, rows)
    patches = [renderer(row).num_patches for row in rows]
    assert scored.units_R.tolist() == patches
    assert scored.bits_R == pytest.approx([128 * count for count in patches], rel=1e-6)
    result = measured(rows, scored)
    assert result.bits_per_unit == pytest.approx(128, rel=1e-6)
    assert result.bits_per_character == pytest.approx(128 * sum(patches) / len("".join(rows)), rel=1e-6)
    assert (result.unit, result.comparable) == ("patch", True)


@pytest.mark.parametrize("changes", [{}, {"head": "mixture", "num_components": 3}, {"start_vector": False}])
def test_the_bits_are_those_of_the_trained_loss(renderer, rows, changes):
    model = pixar(**changes)
    scored = bits_of_strips(model, renderer, rows)
    for row, bits in zip(rows, scored.bits_R, strict=True):  # one at a time, with the loss that training uses
        strip_LA = torch.from_numpy(renderer(row).patches.reshape(-1, 128))
        out = model(arrange_next(strip_LA, [len(strip_LA)], model.config.start_vector))
        assert out.loss is not None and out.count is not None
        assert bits == pytest.approx(out.loss.item() * out.count.item() * 128 / math.log(2), rel=1e-5)


def test_without_a_start_vector_the_first_patch_is_left_out_and_the_result_says_so(renderer, rows):
    scored = bits_of_strips(pixar(start_vector=False), renderer, rows)
    assert scored.units_R.tolist() == [renderer(row).num_patches - 1 for row in rows]
    result = measured(rows, scored)
    assert (result.counted, result.comparable) == (AFTER_FIRST, False)
    assert "not to be compared" in as_text(result)


def test_a_decoder_that_knows_nothing_pays_the_logarithm_of_its_vocabulary_for_each_token(rows, tokenizer):
    scored = bits_of_tokens(silent(decoder(tokenizer), "embed.weight"), tokenizer, rows)
    tokens = [len(tokenizer.encode(row)) + 1 for row in rows]
    assert scored.units_R.tolist() == tokens
    assert scored.bits_R == pytest.approx([math.log2(tokenizer.vocab_size) * count for count in tokens], rel=1e-6)


def test_tokens_of_a_row_are_scored_alone(rows, tokenizer):
    model = decoder(tokenizer)
    scored = bits_of_tokens(model, tokenizer, rows)
    with torch.no_grad():
        for row, bits in zip(rows, scored.bits_R, strict=True):
            ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(row), tokenizer.eos_id])
            logs = model(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])
            assert bits == pytest.approx(-logs.sum().item() / math.log(2), rel=1e-5)


# ------------------------------------------------------------------ rows


@pytest.mark.parametrize("row_patches", [24, 60])
def test_rows_are_those_that_training_makes(renderer, row_patches):
    documents = [DOCUMENTS[0], DOCUMENTS[1].replace("x", "")]  # how training cuts a word, it guesses from its width
    maker = RowMaker(renderer=renderer, clean=("unrenderable",), row_patches=row_patches, min_patches=2)
    expected = [row.text for document in documents for row in maker(document).rows]
    assert list(cut_rows(documents, renderer, row_patches).texts) == expected


@pytest.mark.parametrize("layout", ["words", "continuous"])
def test_rows_are_full_and_lose_nothing_but_the_spaces_between_them(layout):
    renderer = Renderer(RenderConfig.named("pixar", layout=layout))
    text = "one two three four five six seven eight nine ten " * 40
    rows = cut_rows([text], renderer, 20).texts
    assert " ".join(rows).split() == text.split()
    for row, following in pairwise(rows):
        assert renderer(row).num_patches <= 20 < renderer(f"{row} {following.split()[0]}").num_patches


def test_characters_that_no_font_has_become_spaces_and_are_counted(renderer):
    cut = cut_rows(["one \U0001e900\U0001e901 two\ufdd0three"], renderer, 60)
    assert cut.texts == ("one two three",)
    assert cut.replaced == 3


def test_data_without_text_is_refused(renderer):
    with pytest.raises(UserError, match="nothing to evaluate"):
        cut_rows(["", " \n "], renderer, 24)


# ------------------------------------------------------------------ figures beside it


def test_strips_of_clean_text_are_read_back_one_to_one(renderer, rows):
    assert read_back(renderer, rows, 4) == (4, 4)
    assert read_back(renderer, rows, 0) == (0, 0)


def test_a_text_that_is_drawn_like_another_is_not_read_back(renderer):
    # Latin A and Cyrillic A look alike, so a strip cannot say which one it shows
    exact, count = read_back(renderer, ["A Bad Ace", "\u0410 \u0410"])
    assert (exact, count) == (1, 2)


def test_nine_in_ten_intervals_and_more_hold_the_true_ratio():
    rng = np.random.default_rng(0)
    length_R = rng.integers(20, 200, 400)
    inside = 0
    for _ in range(300):
        bits_R = length_R * rng.normal(2.0, 0.5, 400)
        ratio, half = ratio_interval(bits_R, length_R)
        assert half is not None
        inside += abs(ratio - 2) < half
    assert 0.91 < inside / 300 < 0.99
    assert ratio_interval(np.ones(1), np.ones(1)) == (1, None)


def test_baselines_are_in_bits_per_character_and_pay_for_line_ends():
    found = baselines(["abab", "é"])
    assert found["uniform"] == pytest.approx(8 * 8 / 5)  # 6 bytes and 2 line ends, 5 characters
    assert found["order_0"] == pytest.approx((6 * math.log2(7 / 2) + math.log2(7)) / 5)


def test_rows_are_taken_evenly():
    assert evenly(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert evenly(["a", "b"], 5) == ["a", "b"]


# ------------------------------------------------------------------ refusals


def test_what_has_no_likelihood_is_refused(renderer, rows):
    with pytest.raises(UserError, match="regression"):
        bits_of_strips(pixar(head="regression"), renderer, rows)
    with pytest.raises(UserError, match="strips in grey"):
        bits_of_strips(pixar(), Renderer(RENDER.replace(color="grey")), rows)


def test_rows_that_do_not_fit_are_refused(renderer, rows, tokenizer):
    with pytest.raises(UserError, match=r"row 2 needs \d+ patches"):
        bits_of_strips(pixar(), renderer, ["short", "long " * 40])
    with pytest.raises(UserError, match="row 1 is .* tokens, more than the model's context of 4"):
        bits_of_tokens(decoder(tokenizer, context=4), tokenizer, rows)


# ------------------------------------------------------------------ the command


def write_run(run: Path, model: Pixar | Decoder, **belongings) -> Path:
    name = "step_00000007"
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    stored = Stored(
        path=Path("."), origin="checkpoint", name="t", step=7, config=model.config, weights=weights, **belongings
    )
    (run / "checkpoints").mkdir(parents=True)
    write_checkpoint(run / "checkpoints" / name, stored, state={"none": torch.zeros(1)}, manifest={})
    (run / "run.json").write_text(json.dumps({"newest": name, "best": None, "finished": True}))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, renderer) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    drawn = {"config": RENDER.to_dict(), "identity": renderer.identity()}
    strips = write_run(folder / "strips", pixar(), renderer=drawn)
    return strips, write_run(folder / "tokens", decoder(byte_tokenizer()), tokenizer=byte_tokenizer())


def test_two_models_are_asked_about_the_same_rows(runs, command, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS).replace("x", ""))
    strips, tokens = runs
    measure = ("evaluate", "bits-per-character", "--json", "--model")
    status, out, _ = command(
        *measure,
        strips,
        "--data",
        tmp_path / "text.txt",
        "--write-rows",
        tmp_path / "r.jsonl",
        "--row-patches",
        20,
        "--read-rows",
        3,
    )
    assert status == 0
    status, of_tokens, _ = command(*measure, tokens, "--rows", tmp_path / "r.jsonl")
    assert status == 0
    pixel, token = json.loads(out), json.loads(of_tokens)
    for name in ("num_rows", "num_characters", "num_bytes", "uniform", "order_0", "xz"):
        assert pixel[name] == token[name]
    assert (pixel["unit"], token["unit"]) == ("patch", "token")
    assert pixel["row_patches"] == 20 and pixel["read_back"] == 1 and token["read_back"] is None
    assert token["num_units"] == token["num_bytes"] + token["num_rows"]
    again = json.loads(command(*measure, strips, "--rows", tmp_path / "r.jsonl", "--read-rows", 0)[1])
    assert again["bits_per_character"] == pixel["bits_per_character"] and again["num_read"] == 0
    _, text, _ = command(
        "evaluate", "bits-per-character", "--model", strips, "--rows", tmp_path / "r.jsonl", "--read-rows", 1
    )
    assert "bits per character" in text and "read back exactly    100.0 %" in text


def test_a_wrong_command_is_refused_in_one_line(runs, refused, tmp_path):
    strips, tokens = runs
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    lines = ("--rows", tmp_path / "lines.txt")
    for model, flags, expected in [
        (strips, (), "--data and --rows: give one"),
        (strips, (*lines, "--data", "x"), "--data and --rows: give one"),
        (strips, (*lines, "--row-patches", 8), "--row-patches is for --data"),
        (strips, ("--data", tmp_path / "lines.txt", "--row-patches", 25), "the model reads at most 24"),
        (strips, ("--data", tmp_path / "lines.txt", "--row-patches", 1), "must be at least 2"),
        (strips, ("--data", tmp_path / "lines.txt", "--write-rows", "rows.txt"), "name a .jsonl file"),
        (strips, ("--rows", tmp_path / "empty.jsonl"), "no row in it has text"),
        (strips, (*lines, "--tokenizer", tmp_path / "lines.txt"), "--tokenizer is for models of tokens"),
        (strips, (*lines, "--set", "render.height=16"), "--set render.height=8"),
        (tokens, ("--data", tmp_path / "lines.txt"), "a decoder of tokens has no renderer"),
        (tokens, (*lines, "--read-rows", 3), "--read-rows is for models of strips"),
        (tokens, (*lines, "--font", "builtin"), "--font is for models of strips"),
    ]:
        assert expected in refused("evaluate", "bits-per-character", "--model", model, *flags)
