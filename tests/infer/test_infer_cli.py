"""The command line, in process: results on standard output, one line and status 2 for a user's mistake."""

import dataclasses
import io
import json
import math
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from infer import load
from infer.benchmarks.bits_per_byte import bits_per_byte, windows
from infer.cli import COMMANDS, main
from pixelcore.checkpoint import read_stored, write_checkpoint
from pixelcore.config import DecoderConfig, LoRAConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.ops import IGNORED
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer, train_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog and runs away\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 20], 320)


def _stored(tokenizer: Tokenizer, *, seed: int = 0, lora: LoRAConfig | None = None, step: int = 7) -> Stored:
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=32,
        num_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        lora=lora,
    )
    model = Decoder(config)
    initialise(model, seed)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return Stored(
        path=Path("."),
        origin="checkpoint",
        name="small",
        step=step,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
    )


def _write_run(run: Path, stored: Stored) -> Path:
    name = f"step_{stored.step:08d}"
    (run / "checkpoints").mkdir(parents=True)
    write_checkpoint(run / "checkpoints" / name, stored, state={"none": torch.zeros(1)}, manifest={})
    (run / "run.json").write_text(json.dumps({"newest": name, "best": None, "finished": True}))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Path:
    return _write_run(tmp_path_factory.mktemp("runs") / "small", _stored(tokenizer))


def _pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


# ------------------------------------------------------------------ generate


@pytest.mark.parametrize("name", ["decoder_tiny_bundle", "decoder_tiny_moe_bundle"])
def test_greedy_ids_of_a_golden_bundle_are_the_references(shared, command, tmp_path, name):
    bundle = shared / "golden" / name
    reference = json.loads((bundle / "reference.json").read_text())
    arrays = np.load(bundle / "reference.npz")
    rows = reference["prompts"]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["cleaned_prompt"]}) + "\n" for row in rows))
    status, out, _ = command(
        *("--model", bundle, "--prompts", prompts, "--temperature", 0, "--max-tokens", 24, "--json", "--device", "cpu")
    )
    assert status == 0
    checked = 0
    for row, generation in zip(rows, json.loads(out)["generations"], strict=True):
        assert generation["num_prompt_tokens"] == len(row["prompt_ids"])
        margins = arrays[f"greedy_margin_{row['index']}"]
        safe = next((n for n, margin in enumerate(margins) if margin < 1e-3), len(margins))
        if row["greedy_first_eos"] is not None:  # the reference runs on behind </s>
            safe = min(safe, row["greedy_first_eos"])
        assert generation["ids"][:safe] == row["greedy_ids"][:safe]
        checked += safe
    assert checked > 100


def test_the_original_command_line_works_on_a_bundle_at_its_place(shared, command, tmp_path, monkeypatch):
    bundle = tmp_path / "checkpoints" / "pixel_100m"
    shutil.copytree(shared / "golden" / "decoder_tiny_bundle", bundle)
    monkeypatch.chdir(tmp_path)
    status, out, _ = command("--model", "checkpoints/pixel_100m/latest.pt", "--prompt", "Hello from PIXEL")
    assert (status, bool(out.strip())) == (0, True)


def test_the_same_seed_gives_the_same_text_and_another_one_another(run, command):
    def text(seed: int) -> str:
        return command("--model", run, "--prompt", "the fox", "--seed", seed, "--temperature", 1)[1]

    assert text(1) == text(1) != text(2)


def test_streamed_and_whole_output_are_equal(run, command):
    streamed = command("generate", "--model", run, "--prompt", "the", "--stream")
    whole = command("--model", run, "--prompt", "the", "--no-stream")
    assert streamed[:2] == whole[:2]
    assert "tokens/s" in whole[2]


def test_json_holds_settings_and_log_probabilities_and_nothing_else_is_on_standard_output(run, command, tokenizer):
    status, out, _ = command(
        *("--model", run, "--prompt", "the", "--json", "--logprobs", "--max-tokens", 5, "--top-k", 9, "--stop", "zzz")
    )
    report = json.loads(out)
    (generation,) = report["generations"]
    assert status == 0
    assert report["settings"]["seed"] == 0
    assert report["settings"]["top_k"] == 9
    assert report["settings"]["stop"] == ["zzz"]
    assert report["tokenizer_sha256"] == tokenizer.sha256
    assert report["step"] == 7
    assert len(generation["ids"]) == len(generation["log_probabilities"]) == len(generation["pieces"])
    assert generation["finish_reason"] in ("length", "eos")


def test_log_probabilities_are_a_table_for_people(run, command):
    _, out, _ = command("--model", run, "--prompt", "the", "--max-tokens", 3, "--logprobs", "--temperature", 0)
    assert len(out.rstrip("\n").rsplit("\n", 3)) == 4


def test_prompts_from_a_file_give_what_each_gives_alone(run, command, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\n\nand  two spaces \n", encoding="utf-8")
    _, out, _ = command("--model", run, "--prompts", file, "--json", "--max-tokens", 6, "--temperature", 0)
    generations = json.loads(out)["generations"]
    assert [row["prompt"] for row in generations] == ["the fox", "", "and  two spaces "]
    for row in generations:
        _, alone, _ = command("--model", run, f"--prompt={row['prompt']}", "--max-tokens", 6, "--temperature", 0)
        assert alone == row["text"] + "\n"
    _, listed, _ = command("--model", run, "--prompts", file, "--max-tokens", 6)
    assert "==> 1: the fox" in listed


@pytest.mark.parametrize("flags", [(), ("--prompt", "-")])
def test_a_prompt_may_come_from_standard_input(run, command, monkeypatch, flags):
    _pipe(monkeypatch, b"the fox\n")
    _, piped, _ = command("--model", run, "--temperature", 0, *flags)
    assert piped == command("--model", run, "--temperature", 0, "--prompt", "the fox")[1]


def test_out_writes_the_file_and_nothing_else(run, command, tmp_path):
    file = tmp_path / "texts.json"
    status, out, _ = command("--model", run, "--prompt", "the", "--json", "--out", file)
    assert (status, out) == (0, "")
    assert json.loads(file.read_text())["generations"]


def test_without_a_model_the_newest_run_is_used_and_named(tmp_path, command, refused, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    assert "no run with a checkpoint under runs/" in refused("--prompt", "x")
    for age, name in ((0, "zebra"), (100, "apple")):  # the newest by time is not the last by name
        manifest = _write_run(Path("runs") / name, _stored(tokenizer, step=age)) / f"checkpoints/step_{age:08d}"
        os.utime(manifest / "manifest.json", (age, age))
    status, out, err = command("--prompt", "the", "--json")
    assert (status, json.loads(out)["step"]) == (0, 100)
    assert f"newest run, {Path('runs') / 'apple'}" in err


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "argv, message",
    [
        (("generat", "--prompt", "x"), "did you mean generate?"),
        (("--promt", "x"), "did you mean --prompt"),
        (("--max-tokens", "many"), "invalid int value"),
        (("--prompt", "x", "--max-tokens", "0"), "--max-tokens 0"),
        (("--prompt", "x", "--top-p", "0"), "top_p = 0"),
        (("--prompt", "x", "--temperature", "-1"), "temperature = -1"),
        (("--prompt", "x", "--seed", "-1"), "seed = -1"),
        (("--prompt", "x", "--stop", ""), "stop string is empty"),
        (("--prompt", "x", "--prompts", "y"), "give one of them"),
        (("--prompt", "x", "--stream", "--json"), "leave out --json"),
        (("--prompts", "no_such_file"), "no_such_file"),
        (("--prompt", "x", "--device", "cuda:77"), "CUDA devices are usable here"),
        (("--prompt", "x", "--device", "toaster"), "--device toaster"),
        (("--prompt", "x", "--device", "meta"), "--device meta"),
        (("--prompt", "x", "--dtype", "int8"), "--dtype int8"),
        (("--prompt", "x", "--ops", "fast"), "--ops fast"),
        (("--prompt", "x", "--tokenizer", "no_such_file"), "no such file"),
        (("--prompt", "the fox " * 40), "the model's context 32"),
        (("--prompt", "x", "--out", "."), "this is a folder"),
        (("--prompt", "x", "--out", "no_such_folder/f"), "does not exist"),
        (("evaluate",), "choose bits-per-byte"),
        (("evaluate", "lambado"), "did you mean lambada?"),
        (("evaluate", "bits-per-byte"), "--data"),
        (("evaluate", "bits-per-byte", "--data", "no_such_file"), "no such file"),
        (("inspect", "--tensor"), "did you mean --tensors"),
        (("export", "--to", "onnx", "--out", "x"), "--to onnx"),
        (("export", "--out", "x"), "--to"),
        (("export", "--to", "hf", "--out", "x", "--with-optimizer"), "weights alone"),
        (("export", "--to", "bundle", "--out", "x", "--with-optimizer"), "no optimizer state"),
        (("export", "--to", "bundle", "--out", "x", "--with-optimizer", "--merge"), "choose one"),
        (("export", "--to", "bundle", "--out", "x", "--merge"), "no adapters"),
        (("export", "--to", "bundle", "--out", "."), "exists already"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, refused, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("something").write_text("here already")
    assert message in refused(*argv, "--model", run)
    assert [entry.name for entry in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize(
    "content, message", [(b"", "no prompt"), (b"\xff\xfe", "not UTF-8"), (b"{}", 'field "prompt"')]
)
def test_a_bad_file_of_prompts_is_named(run, refused, tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    line = refused("--model", run, "--prompts", file)
    assert str(file) in line and message in line


def test_broken_json_names_its_line(run, refused, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": \n')
    assert "line 2" in refused("--model", run, "--prompts", file)


def test_standard_input_that_is_not_utf8_is_refused(run, refused, monkeypatch):
    _pipe(monkeypatch, b"abc\xff")
    assert "byte 3 is not UTF-8" in refused("--model", run)


def test_a_missing_model_is_named(refused):
    assert "no_such_folder/x.pt: no such file" in refused("--model", "no_such_folder/x.pt", "--prompt", "x")


def test_a_model_without_a_tokenizer_asks_for_one(tmp_path, refused, tokenizer):
    run = _write_run(tmp_path / "bare", dataclasses.replace(_stored(tokenizer), tokenizer=None))
    assert "--tokenizer FILE" in refused("--model", run, "--prompt", "x")


def test_another_tokenizer_is_refused(run, refused, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(["some other words for another model\n" * 20], 320).model_bytes)
    assert "is not that of the model's own tokenizer" in refused("--model", run, "--prompt", "x", "--tokenizer", other)


def test_a_tokenizer_of_another_size_is_refused(tmp_path, refused, tokenizer):
    small = train_tokenizer(["ab"], 300)
    assert small.vocab_size != tokenizer.vocab_size
    run = _write_run(tmp_path / "odd", dataclasses.replace(_stored(tokenizer), tokenizer=small))
    assert "they must be equal" in refused("--model", run, "--prompt", "x")


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), ("evaluate", "bits-per-byte")])
def test_help_shows_examples(capsys, words):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize("number, status, word", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interr")])
def test_a_signal_ends_the_program_with_its_status(run, command, monkeypatch, number, status, word):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("infer.cli.generate", lambda *_, **__: os.kill(os.getpid(), number))
    ended, out, err = command("--model", run, "--prompt", "the")
    assert (ended, out) == (status, "")
    assert err.startswith(word) and err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_module_runs_as_a_program(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["infer", "inspect", str(run)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("infer", run_name="__main__")
    assert end.value.code == 0
    assert "sha256" in capsys.readouterr().out


# ------------------------------------------------------------------ evaluate


@pytest.mark.parametrize(
    "num_ids, window, stride", [(2, 5, 5), (6, 5, 5), (7, 5, 5), (23, 5, 5), (23, 8, 3), (9, 8, 1)]
)
def test_windows_score_every_token_once_with_full_context_at_the_end(num_ids, window, stride):
    ids = list(range(100, 100 + num_ids))
    scored = []
    for inputs, targets in windows(ids, window, stride):
        assert len(inputs) == len(targets) == min(window, num_ids - 1)
        for input, target in zip(inputs, targets, strict=True):
            if target != IGNORED:
                assert target == input + 1
                scored.append(target)
    assert scored == ids[1:]


def test_bits_per_byte_is_the_summed_surprise_over_the_bytes(run):
    model, tokenizer, _ = load(run)
    documents = ["the fox — ran", "a dog"]
    total = 0.0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(document), tokenizer.eos_id])
            total -= model(ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None]).sum().item()
    result = bits_per_byte(model, tokenizer, documents)
    num_bytes = sum(len(document.encode()) for document in documents)
    assert result.num_bytes == num_bytes
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-5)
    assert result.loss == pytest.approx(total / result.num_tokens, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_evaluate_prints_the_measure_beside_its_baselines(run, command, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text(TEXT * 6 + "\n" + TEXT)
    status, out, _ = command("evaluate", "bits-per-byte", "--model", run, "--data", data, "--json", "--stride", 16)
    report = json.loads(out)
    assert status == 0
    assert (report["num_documents"], report["window"], report["stride"]) == (2, 32, 16)
    assert report["uniform"] == 8
    assert 3 < report["order_0"] < 5
    assert report["xz"] < report["order_0"]
    _, text, _ = command("evaluate", "bits-per-byte", "--model", run, "--data", data, "--window", 8)
    assert "bits per byte" in text and "xz -9e" in text


@pytest.mark.parametrize("flags", [("--window", 33), ("--window", 0), ("--stride", 33), ("--stride", 0)])
def test_windows_that_do_not_fit_are_refused(run, refused, tmp_path, flags):
    (tmp_path / "text.txt").write_text(TEXT)
    assert flags[0] in refused("evaluate", "bits-per-byte", "--model", run, "--data", tmp_path / "text.txt", *flags)


def test_a_memorised_text_costs_almost_nothing(shared):
    model, tokenizer, _ = load(shared / "golden" / "decoder_tiny_bundle")
    sentence = "PIXEL is a clean local language model framework built for simple"
    assert bits_per_byte(model, tokenizer, [sentence]).bits_per_byte < 2.5


# ------------------------------------------------------------------ inspect, export


def test_inspect_tells_format_step_parameters_and_hashes(run, command, tokenizer):
    status, out, _ = command("inspect", run, "--json", "--tensors")
    report = json.loads(out)
    assert status == 0
    assert (report["format"], report["kind"], report["step"]) == ("checkpoint", "decoder", 7)
    assert report["parameters"] == sum(math.prod(row["shape"]) for row in report["tensors"])
    assert report["tokenizer"]["sha256"] == tokenizer.sha256
    states = {row["name"]: row["state"] for row in report["files"]}
    assert states["model.safetensors"] == states["tokenizer.model"] == "ok"
    text = command("inspect", "--model", run, "--tensors")[1]
    assert "layers.0.attention.qkv.weight" in text
    assert f"{report['parameters']:,}" in text


def test_inspect_reads_the_golden_bundle(shared, command):
    _, out, _ = command("inspect", shared / "golden" / "decoder_tiny_bundle", "--json")
    report = json.loads(out)
    assert (report["format"], report["step"], report["config"]["vocab_size"]) == ("bundle", 900, 384)
    assert report["parameters"] == 110_912


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "tokenizer.model"])
def test_inspect_finds_a_flipped_byte(run, refused, tmp_path, name):
    shutil.copytree(run, tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob(f"checkpoints/*/{name}")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    line = refused("inspect", tmp_path / "copy")
    assert str(file) in line and "damaged" in line
    file.unlink()
    assert name in refused("inspect", tmp_path / "copy")


def test_inspect_takes_one_path(run, refused):
    assert "give one of them" in refused("inspect", run, "--model", run)


@pytest.mark.parametrize("to", ["bundle", "safetensors"])
def test_an_export_writes_the_same_text_as_the_model(run, command, tmp_path, to):
    status, out, _ = command("export", "--model", run, "--to", to, "--out", tmp_path / "exported")
    assert (status, out) == (0, f"{tmp_path / 'exported'}\n")
    texts = [command("--model", path, "--prompt", "the fox")[1] for path in (run, tmp_path / "exported")]
    assert texts[0] == texts[1]


def test_an_optimizer_goes_along_into_a_bundle_on_request(shared, command, tmp_path):
    golden = shared / "golden" / "decoder_tiny_bundle"
    plain, full = tmp_path / "plain", tmp_path / "full"
    assert command("export", "--model", golden, "--to", "bundle", "--out", plain)[0] == 0
    assert command("export", "--model", golden, "--to", "bundle", "--out", full, "--with-optimizer")[0] == 0
    assert read_stored(plain, with_optimizer=True).optimizer is None
    optimizer = read_stored(full, with_optimizer=True).optimizer
    assert optimizer is not None and optimizer.step == 900


def test_adapters_stay_unless_merged_and_are_always_merged_for_hf(command, tmp_path, tokenizer):
    stored = _stored(tokenizer, lora=LoRAConfig(rank=2))
    generator = torch.Generator().manual_seed(5)
    for name, tensor in stored.weights.items():
        if ".adapters." in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    run = _write_run(tmp_path / "run", stored)
    for name, flags in (("kept", ()), ("merged", ("--merge",))):
        out = tmp_path / name
        assert command("export", "--model", run, "--to", "safetensors", "--out", out, *flags)[0] == 0
        assert (read_stored(out).decoder_config.lora is None) == bool(flags)
    ids = torch.tensor([[0, 5, 7, 9]])
    with torch.no_grad():
        kept, merged = (load(tmp_path / name).model(ids).logits for name in ("kept", "merged"))
    torch.testing.assert_close(kept, merged, atol=1e-5, rtol=1e-5)
    assert command("export", "--model", run, "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    assert (tmp_path / "hf" / "model.safetensors").is_file()


def test_load_takes_dtypes_by_object_too(run):
    assert load(run, dtype=torch.float16).model.compute_dtype == torch.float16
    assert load(run, device=torch.device("cpu"), dtype="bfloat16").model.head_weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match="--dtype"):
        load(run, dtype="float8")
