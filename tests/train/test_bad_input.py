"""What a user gets wrong costs one line and exit status 2, and nothing is written."""

import gzip
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelcore.checkpoint import read_stored
from pixelcore.convert.exported import write_export
from tests.train.conftest import tiny
from train.cli import main

Files = Callable[[str, bytes], str]
Refused = Callable[..., str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Makes an input file; returns its path."""

    def make(name: str, content: bytes) -> str:
        path = tmp_path / "inputs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return make


@pytest.fixture
def refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs training with more flags than a run that would work; returns the one line of the error."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, data: str | Path = text, **changes: Any) -> str:
        out = tmp_path / "out"
        status = main([*tiny(Path(data), **changes), "--steps", "1", "--out", str(out), *flags])
        printed = capsys.readouterr()
        assert status == 2, printed.err
        assert not out.exists() and not (tmp_path / "runs").exists(), "nothing is written"
        return _one_line(printed.err)

    return run


def _one_line(stderr: str) -> str:
    """The error: the last line of standard error, and the only one of its kind."""
    rows = stderr.strip().splitlines()
    assert [row for row in rows if row.startswith("error: ")] == rows[-1:], stderr
    assert "Traceback" not in stderr
    return rows[-1]


# ------------------------------------------------------------------ names and values


def test_unknown_preset_names_the_nearest(refused: Refused):
    assert "unknown preset 'smok'; did you mean 'smoke'? presets: 100m" in refused("--preset", "smok")


def test_no_preset_lists_them(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    line = _one_line(capsys.readouterr().err)
    assert "name a preset with --preset" in line and "smoke" in line


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--set", "run.stepz=3"], "run.stepz=3: run: unknown key 'stepz'; did you mean 'steps'?"),
        (["--set", "modell.dropout=0"], "unknown table 'modell'; did you mean 'model'?"),
        (["--set", "steps"], "'steps' is not an override: write TABLE.KEY=VALUE"),
        (["--set", "run.steps=many"], 'run.steps: expected an integer, got "many"'),
        (["--set", "run.steps=1.5"], "run.steps: expected an integer, got 1.5"),
        (["--set", "run.recompute=1"], "run.recompute: expected true or false, got 1"),
        (["--set", "model.num_attention_heads=5"], "must be a multiple of num_attention_heads = 5"),
        (["--set", "data.tokens_per_step=100"], "must be a positive multiple of block_size"),
        (["--set", "data.weights=[1, 2]"], "weights has 2 entries for 1 paths"),
        (["--set", "data.weights=[-1]"], "weights = [-1.0] must be positive"),
        (["--set", "data.block_size=64"], "data.block_size = 64 must not exceed model.context_length = 32"),
        (["--set", "optimizer.betas=[0.9]"], "betas = [0.9] must be two numbers"),
        (["--set", "schedule.shape=step"], "shape = 'step' must be one of"),
        (["--set", "eval.select=bleu"], "select = 'bleu' must be"),
        (["--set", "run.parallel=tensor"], 'must be "ddp" or "fsdp"'),
        (["--set", "run.precision=fp8"], 'must be "auto", "fp32", "bf16"'),
        (["--set", "run.report=['mail']"], 'may hold "tensorboard" and "wandb"'),
        (["--seed", "-1"], "seed = -1 must lie between 0"),
        (["--steps", "0"], "--steps 0: must be positive"),
        (["--steps", "-3"], "--steps -3: must be positive"),
        (["--stop-at", "0"], "--stop-at 0: must be positive"),
        (["--steps", "ten"], "argument --steps: invalid int value: 'ten'"),
        (["--stpes", "3"], "unrecognized arguments: --stpes"),
        (["--ops", "fast"], "--ops fast: unknown; choose auto, reference or fused"),
        (["--device", "tpu"], "--device tpu: unknown; choose auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:x"], "--device cuda:x: unknown"),
    ],
    ids=lambda value: "=".join(value[-2:]) if isinstance(value, list) else "",
)
def test_message_of_a_wrong_value(flags: list[str], expected: str, refused: Refused):
    device = [] if "--device" in flags else ["--device", "cpu"]
    assert expected in refused(*device, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no mistake")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_gpu_that_is_not_there(device: str, refused: Refused):
    assert f"--device {device}: this machine offers 0 CUDA devices; use --device cpu" in refused("--device", device)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_report_service_that_is_not_installed(name: str, refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.report.importlib.util.find_spec", lambda package: None)
    line = refused("--set", f"run.report=['{name}']")
    assert f"run.report = {name}: the package is not installed: pip install 'pixelcore[log]'" in line


# ------------------------------------------------------------------ data


def test_missing_data_is_named(refused: Refused):
    assert "nowhere.txt" in refused(data="nowhere.txt")


def test_folder_without_text_is_named(refused: Refused, tmp_path: Path):
    (tmp_path / "bare").mkdir()
    assert "bare" in refused(data=tmp_path / "bare")


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("empty.txt", b"", "empty.txt"),
        ("blank.txt", b"\n \n\n", "blank.txt"),
        ("latin.txt", "Un été\n\nencore".encode("latin-1"), "latin.txt"),
        ("late.txt", b"good\n" * 50 + b"\xff\xfe\n", "51"),
        ("other.jsonl", b'{"text": "one"}\n{"txt": "two"}\n', "2"),
        ("broken.jsonl", b'{"text": "one"}\n{"text": \n', "2"),
        ("number.jsonl", b'{"text": 3}\n', "number.jsonl"),
        ("kind.pdf", b"%PDF", "kind.pdf"),
        ("cut.txt.gz", gzip.compress(b"a line of text\n" * 900, mtime=0)[:60], "cut.txt.gz"),
    ],
)
def test_bad_data_is_named(name: str, content: bytes, expected: str, refused: Refused, files: Files):
    line = refused(data=files(name, content))
    assert name in line and expected in line


def test_records_without_the_field_are_named(refused: Refused, files: Files):
    records = "".join(json.dumps({"body": f"document {n}"}) + "\n" for n in range(3)).encode()
    line = refused(data=files("records.jsonl", records))
    assert "records.jsonl" in line and "text" in line
    assert "records.jsonl" in refused("--set", "data.field=title", data=files("records.jsonl", records))


def test_text_shorter_than_a_window_is_refused(refused: Refused, files: Files):
    line = refused(data=files("short.txt", b"A word.\n\nAnother.\n"))
    assert "window" in line or "few" in line, line


def test_bad_held_out_data_is_named(refused: Refused, files: Files):
    assert "held.txt" in refused("--valid", files("held.txt", b"\xff"))


def test_tokenizer_file_that_is_none(refused: Refused, files: Files):
    assert "no.model" in refused("--set", f"tokenizer.path={files('no.model', b'nothing of the kind')}")
    assert "gone.model" in refused("--set", "tokenizer.path=gone.model")


# ------------------------------------------------------------------ the run folder


def _refused_at(out: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    assert main([*tiny(text), "--steps", "1", "--out", str(out)]) == 2
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    return _one_line(capsys.readouterr().err)


def test_out_that_is_a_file(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").write_text("mine")
    assert "out: is a file" in _refused_at(tmp_path / "out", text, capsys)


def test_out_below_a_file(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    assert f"--out {tmp_path}/file/out" in _refused_at(tmp_path / "file" / "out", text, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_where_nothing_may_be_written(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert f"--out {tmp_path}/closed/out" in _refused_at(tmp_path / "closed" / "out", text, capsys)


def test_out_that_holds_something(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "out: is not empty" in _refused_at(tmp_path / "out", text, capsys)


def test_out_that_holds_a_run_says_how_to_go_on(finished: Path, text: Path, capsys: pytest.CaptureFixture[str]):
    line = _refused_at(finished, text, capsys)
    assert "holds a run; continue it with --resume" in line


def test_empty_folder_may_become_a_run(text: Path, tmp_path: Path):
    assert main([*tiny(text, eval__max_tokens=50), "--steps", "1", "--out", str(tmp_path)]) == 0


# ------------------------------------------------------------------ a model to start from


def test_missing_model_is_named(refused: Refused):
    assert "nowhere: no such file or folder" in refused("--init", "nowhere")


def test_empty_model_folder_is_named(refused: Refused, tmp_path: Path):
    (tmp_path / "bare").mkdir()
    assert "bare: no model recognised; found nothing" in refused("--init", "bare")


def test_damaged_model_is_named(refused: Refused, finished: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(finished / "checkpoints" / "step_00000012", copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1])
    assert "model.safetensors: damaged" in refused("--init", str(copy))


def test_tokenizer_of_another_model_is_refused(refused: Refused, finished: Path, text: Path, tmp_path: Path):
    other = tmp_path / "other.model"
    assert main(["tokenizer", *tiny(text, model__vocab_size=320), "--out", str(other)]) == 0
    line = refused("--init", str(finished), "--set", f"tokenizer.path={other}")
    assert "the model was trained with tokenizer" in line


def test_model_without_a_tokenizer_is_refused(refused: Refused, finished: Path, tmp_path: Path):
    write_export(tmp_path / "bare", replace(read_stored(finished), tokenizer=None))
    assert "bare: has no tokenizer" in refused("--init", str(tmp_path / "bare"))


def test_adapters_need_a_model(refused: Refused):
    assert "model.lora adapts a trained model: name it with --init PATH" in refused("--set", "model.lora.rank=2")


def test_adapters_of_another_shape_are_refused(refused: Refused, finished: Path, text: Path, tmp_path: Path):
    adapted = tmp_path / "adapted"
    flags = [*tiny(text, model__lora={"rank": 2}), "--init", str(finished), "--steps", "1"]
    assert main([*flags, "--out", str(adapted)]) == 0
    line = refused("--init", str(adapted), "--set", "model.lora.rank=3")
    assert "adapters of another shape" in line


# ------------------------------------------------------------------ the other commands


def test_tokenizer_is_never_written_over(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = tmp_path / "mine.model"
    mine.write_text("precious")
    assert main(["tokenizer", *tiny(text), "--out", str(mine)]) == 2
    assert "a tokenizer is never overwritten" in _one_line(capsys.readouterr().err)
    assert mine.read_text() == "precious"


def test_tokenizer_needs_a_name(text: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tokenizer", *tiny(text)]) == 2
    assert "name the file to write with --out FILE" in _one_line(capsys.readouterr().err)


def test_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["fly", "--preset", "smoke"]) == 2
    assert "unknown command 'fly'; commands: run, tokenizer, prepare" in _one_line(capsys.readouterr().err)


def test_a_command_leaves_the_log_as_it_was(refused: Refused) -> None:
    before = list(logging.root.handlers), logging.getLogger("train").level
    refused("--set", "model.no_such_field=1")
    assert (list(logging.root.handlers), logging.getLogger("train").level) == before
