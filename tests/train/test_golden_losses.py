"""Ten losses, written down once: text, split, tokenizer, blocks, order, model, backward pass, optimizer and schedule
all meet in them, so a change of any that nobody meant is seen here. Who means one writes down the new numbers."""

import hashlib
from pathlib import Path

import pytest

from pixelcore.tokenizer import Tokenizer
from tests.train.conftest import losses, newest, small_text
from train.cli import main

# python -m train --preset smoke --data <small_text> --steps 10; torch 2.13.0, sentencepiece 0.2.3, fp32 on a CPU
GOLDEN = [6.251695, 6.183661, 6.063450, 5.889981, 5.718271, 5.553038, 5.392725, 5.247400, 5.157088, 5.102021]
PIECES = "7a813f82e7c396dd5439a1d34485915a124df2d03d4a69fe23d4374e459cd25c"


@pytest.fixture(scope="module")
def smoke(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "run"
    argv = ["--preset", "smoke", "--data", str(text), "--steps", "10", "--device", "cpu", "--out", str(path)]
    assert main(argv) == 0
    return path


def test_text_is_the_one_that_the_losses_are_of():
    digest = hashlib.sha256(small_text().encode()).hexdigest()
    assert digest == "dcb25d5b8c8459343c826c1ee60daa3b71303213482f46577c9d6bc0b843fb6f"


def test_tokenizer_is_the_one_that_the_losses_are_of(smoke: Path):
    tokenizer = Tokenizer.load(newest(smoke) / "tokenizer.model")
    pieces = "\n".join(tokenizer.pieces(range(tokenizer.vocab_size)))
    assert hashlib.sha256(pieces.encode()).hexdigest() == PIECES


def test_smoke_preset_has_its_golden_losses(smoke: Path):
    assert losses(smoke) == pytest.approx(GOLDEN, abs=1e-4)
