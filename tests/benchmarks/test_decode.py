"""The benchmark of generation runs on tiny shapes: all three write the same, and a wrong choice is noticed."""

import json

import pytest
import torch

from benchmarks.decode import Setting, Tokens, compare, main, models
from pixelcore.models.decoder import Decoder
from pixelcore.step_ops import STEP_REFERENCE


def test_steps_the_loop_and_the_peer_write_the_same(tmp_path, capsys):
    out = tmp_path / "decode.json"
    main(["--smoke", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["family"], row["who"]) for row in rows] == [
        (family, who) for family in ("decoder", "pixar") for who in ("steps", "loop", "compiled")
    ]
    assert all(row["agreement"]["equal"] == row["agreement"]["of"] == 12 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_without_a_gpu_only_the_smoke_test_runs(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main([])
    assert "--smoke checks it on a CPU" in capsys.readouterr().err


@torch.no_grad()
def test_another_choice_than_the_likeliest_is_noticed():
    setting = Setting(torch.device("cpu"), torch.float32, STEP_REFERENCE, smoke=True, new=3, runs=1)
    model, wide = models("decoder", setting)
    assert isinstance(model, Decoder)
    race = Tokens(model, 1, setting)
    written = race.write_steps()
    assert compare(race, wide, written, race.write_loop())["equal"] == 3
    other = written.clone()
    other[1] = (other[1] + 1) % model.config.vocab_size
    with pytest.raises(AssertionError, match="place 1 of row 0: .* apart, more than rounding's"):
        compare(race, wide, written, other)
