"""Training steps end to end, ours beside the peer: that both learn the same, and what a step counts."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import presets
from benchmarks import training_peer, training_step
from benchmarks.training_peer import Heads
from pixelcore.accounting import flops_per_token
from pixelcore.config import DecoderConfig, ViTMAEConfig
from pixelcore.ops import REFERENCE
from pixelcore.packed import Packed
from pixelcore.patches import arrange
from tests.train.conftest import small_text
from train.data.batches import MicroBatch
from train.job import read_settings

CPU = torch.device("cpu")


def settings_of(preset: str):
    return read_settings(presets.load(preset), (), preset)


def test_both_sides_take_steps_and_stand_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
    text, out = tmp_path / "small.txt", tmp_path / "step.json"
    text.write_text(small_text())
    assert training_step.main(["--smoke", "--preset", "smoke", "--data", str(text), "--out", str(out)]) == 0
    assert "smoke, peer: eager, SDPA by lengths" in capsys.readouterr().out
    found = json.loads(out.read_text())["presets"]["smoke"]
    assert math.isclose(*found["first_losses"].values(), rel_tol=1e-5)
    assert (found["unit"], found["units_per_step"]) == ("tokens", 32)
    for mode in ("staged", "loader"):
        values = found[mode]
        for side in ("ours", "peer"):
            seconds = values["median_seconds"][side]
            assert math.isclose(values["units_per_second"][side], 32 / seconds)
            assert math.isclose(values["mfu"][side]["790"], found["flops_per_step"] / seconds / 790e12)
            assert values["mfu"][side]["989"] < values["mfu"][side]["790"]
        assert math.isclose(values["ratio"], values["median_seconds"]["peer"] / values["median_seconds"]["ours"])


def test_operations_are_those_of_the_documents_that_are_there():
    settings = settings_of("smoke")
    assert isinstance(settings.model, DecoderConfig)
    ids = torch.zeros(8, dtype=torch.int64)
    batch = MicroBatch(ids, ids, Packed.from_lengths([5, 3]))
    assert training_step.flops_of(settings, batch) == sum(
        length * flops_per_token(settings.model, length) for length in (5, 3)
    )
    settings = settings_of("pixel-smoke")
    assert isinstance(settings.model, ViTMAEConfig)
    hidden = torch.tensor([True, False, False, True, False])
    patches = arrange(torch.zeros(5, 256, dtype=torch.uint8), [5], hidden)
    strip = type("", (), {"patches": patches})()
    assert training_step.flops_of(settings, strip) == training_step.strip_flops(settings.model, 5, 2, 1)
    assert [x.lengths for x in training_step.structures(strip)] == [(4,), (6,)]


def test_attention_of_every_family_is_described_as_its_model_calls_it():
    config = settings_of("pixel-base").model
    assert isinstance(config, ViTMAEConfig)
    patches = arrange(torch.zeros(5, 256, dtype=torch.uint8), [5], torch.tensor([True, False, False, True, False]))
    encoder, decoder = training_step.heads_of(config, type("", (), {"patches": patches})())
    assert (encoder.num_heads, encoder.head_size, encoder.rule, encoder.p) == (12, 64, "full", 0.1)
    assert (decoder.num_heads, decoder.head_size) == (16, 32)


def test_the_fastest_attention_that_runs_is_taken_and_the_others_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kernels.workshop.timing._FEWEST", 1)
    monkeypatch.setattr(training_peer, "_SECONDS", 0.0)
    heads = Heads(Packed.from_lengths([3, 2]), 2, 1, 8, "causal", 0.0)
    name, attend = training_peer.best_attention([heads], CPU, torch.float32)
    assert name == "SDPA by lengths"
    assert attend is training_peer.by_lengths
    assert "cuDNN SDPA: RuntimeError: documents differ in length" in capsys.readouterr().err
    record = training_peer.peer_record(attend)
    q = torch.randn(5, 2, 8)
    assert torch.equal(
        record.attention(q, q, q, heads.packed, "causal", 0.3)[0],
        REFERENCE.attention(q, q, q, heads.packed, "causal", 0.3)[0],
    )
    assert record.glu is REFERENCE.glu


def test_a_promise_is_kept_or_missed_beside_its_figure():
    values = {"ratio": 1.25, "mfu": {"ours": {"989": 0.42}}}
    kept, missed = training_step.verdicts(training_step.TARGETS["100m"], values)
    assert kept == "over the peer >= 1.20x: 1.25x kept"
    assert missed == "MFU of 989 >= 43%: 42.0% MISSED, moonshot 48% not reached"
    assert set(training_step.TARGETS) == set(training_step.SHAPES) <= set(presets.names())


def test_a_preset_has_the_fields_that_are_changed():
    for preset, changes in (training_step.SMOKE | training_step.SHAPES).items():
        settings = read_settings(presets.load(preset), changes, preset)
        assert replace(settings) == settings
