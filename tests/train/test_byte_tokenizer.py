"""Runs whose tokens are bytes: a vocabulary that nobody learns, in the checkpoint like any other."""

import json
import math
from pathlib import Path

import pytest

from infer.benchmarks.bits_per_byte import bits_per_byte
from infer.load import load
from pixelcore.tokenizer import Tokenizer, byte_tokenizer
from tests.train.conftest import marks, newest, tiny
from train.cli import main


def test_a_run_on_bytes_trains_and_says_what_a_byte_costs(text: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert main([*tiny(text, tokenizer__kind="bytes"), "--steps", "4", "--out", str(run), "--json"]) == 0
    assert marks(run)["finished"]
    assert Tokenizer.load(newest(run) / "tokenizer.model") == byte_tokenizer()
    model, tokenizer, stored = load(run)
    assert stored.decoder_config.vocab_size == model.config.vocab_size == 260
    found = bits_per_byte(model, tokenizer, ["a line of text"])
    assert found.num_tokens == found.num_bytes + 1
    assert found.bits_per_byte < math.log2(260) * 15 / 14
    summary = json.loads(capsys.readouterr().out)
    assert summary["finished"] and summary["valid_bits_per_byte"] < 9


def test_the_tokenizer_command_writes_the_bytes(text: Path, tmp_path: Path):
    flags = tiny(text, tokenizer__kind="bytes")
    assert main(["tokenizer", *flags, "--out", str(tmp_path / "bytes.model")]) == 0
    assert Tokenizer.load(tmp_path / "bytes.model") == byte_tokenizer()


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"tokenizer__kind": "letters"}, 'must be "bpe" or "bytes"'),
        ({"tokenizer__kind": "bytes", "tokenizer__path": "a.model"}, "leave one of them out"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(text: Path, tmp_path: Path, capsys, changes, expected):
    assert main([*tiny(text, **changes), "--out", str(tmp_path / "run")]) == 2
    assert expected in capsys.readouterr().err
