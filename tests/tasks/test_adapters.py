"""Adapters in fine-tuning: they and the head move and nothing else, merging changes no score, runs are runs."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infer.export import export
from pixelcore.accounting import num_parameters
from pixelcore.checkpoint import build_model, read_stored
from pixelcore.config import (
    ENCODER_LORA_TARGETS,
    TASKS,
    DecoderTaskConfig,
    EncoderLoRAConfig,
    LoRAConfig,
    PixarTaskConfig,
    TokenTaskConfig,
    ViTTaskConfig,
)
from pixelcore.config_io import config_from_dict, config_to_dict
from pixelcore.convert.merge import merge_lora
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.stored import Stored
from tests.tasks.tiny_tasks import run, tiny_flags
from tests.train.conftest import lines, marks, newest
from train.cli import main
from train.task_models import begun_weights

SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
QUIET: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
ENCODER = EncoderLoRAConfig(rank=2, dropout=0.5)
MODELS_WITH_ADAPTERS: dict[str, Any] = {
    task: ViTTaskConfig(task=task, num_labels=2, patch_size=8, num_patches=12, lora=ENCODER, **SIZES, **QUIET)
    for task in TASKS
} | {
    "some maps": ViTTaskConfig(
        task="sequence",
        num_labels=2,
        patch_size=8,
        num_patches=12,
        lora=EncoderLoRAConfig(rank=3, alpha=5.0, dropout=0.5, target_modules=("v_proj", "down_proj")),
        **SIZES,
        **QUIET,
    ),
    "tokens": TokenTaskConfig(task="token", num_labels=2, vocab_size=40, max_tokens=12, lora=ENCODER, **SIZES, **QUIET),
    "pixar": PixarTaskConfig(num_labels=2, max_patches=12, lora=LoRAConfig(rank=2, dropout=0.5), **SIZES),
    "decoder": DecoderTaskConfig(
        num_labels=2,
        vocab_size=40,
        context_length=12,
        num_key_value_heads=1,
        lora=LoRAConfig(rank=2, dropout=0.5),
        **SIZES,
    ),
}


def moved(config: Any) -> Any:
    """A model whose adapters change something."""
    model = MODELS[config.kind](config)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up") or name.startswith(("head.arcs", "head.relations")):  # zero at first
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def given(config: Any) -> dict[str, Tensor]:
    """Two texts of five units."""
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    if isinstance(config, TokenTaskConfig | DecoderTaskConfig):
        return {"ids": torch.randint(1, 40, (2, 5), generator=generator), "attention_mask": mask}
    wide = 8 if isinstance(config, ViTTaskConfig) else 16
    batch = {"pixel_values": torch.rand(2, 1, 8, 5 * wide, generator=generator), "attention_mask": mask}
    if isinstance(config, ViTTaskConfig) and config.task == "parser":
        batch["word_starts"] = torch.tensor([[0, 2, 3, 5], [0, 1, 3, -1]])
    return batch


def scores(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
    out = model(**batch, **more)
    found = (out.logits, out.start_logits, out.end_logits, out.arc_logits, out.rel_logits)
    return torch.cat([one.flatten() for one in found if one is not None])


def at_rest(model: Any) -> Stored:
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Stored(path=Path("x"), origin="export", name="x", step=0, config=model.config, weights=weights)


# ------------------------------------------------------------------ the models


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS_WITH_ADAPTERS)
def test_merged_adapters_change_no_score(name: str):
    config = MODELS_WITH_ADAPTERS[name]
    stored, batch = at_rest(moved(config)), given(config)
    merged = merge_lora(stored)
    assert merged.config == replace(config, lora=None)
    with_adapters, without = scores(build_model(stored), batch), scores(build_model(merged), batch)
    torch.testing.assert_close(without, with_adapters, rtol=1e-4, atol=1e-5)
    plain = {name: tensor for name, tensor in stored.weights.items() if ".adapters." not in name}
    unchanged = replace(stored, config=merged.config, weights=plain)
    assert not torch.allclose(scores(build_model(unchanged), batch), with_adapters, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS_WITH_ADAPTERS)
def test_fresh_adapters_change_nothing_and_what_they_read_is_dropped(name: str):
    config = MODELS_WITH_ADAPTERS[name]
    fresh = MODELS[config.kind](config)
    initialise(fresh, 0)
    batch, seed = given(config), torch.tensor([3, 4])
    torch.testing.assert_close(scores(fresh, batch, dropout_seed=seed), scores(fresh, batch), rtol=0, atol=0)
    model = moved(config)
    one, other = (scores(model, batch, dropout_seed=seed, documents=(5, 6)) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, scores(model, batch))
    assert not torch.equal(one, scores(model, batch, dropout_seed=seed, documents=(7, 8)))


@pytest.mark.parametrize("name", MODELS_WITH_ADAPTERS)
def test_recomputed_blocks_drop_what_they_dropped_before(name: str):
    config, seed = MODELS_WITH_ADAPTERS[name], torch.tensor([3, 4])
    gradients = []
    for recompute in (False, True):
        model = moved(config)
        model.recompute = recompute
        scores(model, given(config), dropout_seed=seed).square().sum().backward()
        gradients.append([p.grad for n, p in model.named_parameters() if ".adapters." in n])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
        assert plain.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS_WITH_ADAPTERS)
def test_accounts_and_stored_forms_know_adapters(name: str):
    config = MODELS_WITH_ADAPTERS[name]
    assert sum(parameter.numel() for parameter in moved(config).parameters()) == num_parameters(config)
    table = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(config.kind, table) == config
    del table["lora"]  # as folders have it that are older than adapters
    assert config_from_dict(config.kind, table) == replace(config, lora=None)


def test_an_encoder_has_no_gate_to_adapt():
    assert "gate_proj" not in ENCODER_LORA_TARGETS
    with pytest.raises(ValueError, match=r"target_modules = \['gate_proj'\] must be some of \['q_proj'"):
        EncoderLoRAConfig(target_modules=("gate_proj",))


def test_adapters_of_the_model_a_run_begins_with_are_folded_in():
    config = MODELS_WITH_ADAPTERS["token"]
    stored = at_rest(moved(config))
    taken, merged = begun_weights(stored, replace(config, lora=None)), merge_lora(stored).weights
    assert taken.keys() == {name for name in merged if name.startswith("encoder.")}
    assert all(torch.equal(tensor, merged[name]) for name, tensor in taken.items())


# ------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def adapted(tiny_treebank: Path, tagger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger whose encoder is that of `tagger`, with adapters. Read it, never write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
        patch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
        path = tmp_path_factory.mktemp("adapted") / "run"
        assert run(tiny_treebank, path, *BEGUN, "--init", str(tagger), **ADAPTED) == 0
    return path


BEGUN = ("--steps", "12")
ADAPTED: dict[str, Any] = {"model__lora__rank": 2, "eval__patience": 0}


def test_adapters_and_the_head_move_and_nothing_else(adapted: Path, tagger: Path):
    before, after = read_stored(tagger).weights, read_stored(adapted).weights
    encoder = {name for name in before if name.startswith("encoder.")}
    assert not [name for name in encoder if not torch.equal(before[name], after[name])]
    new = after.keys() - encoder
    assert {name for name in new if not name.startswith("head.")} == {name for name in new if ".adapters." in name}
    begun = MODELS["vit_task"](read_stored(adapted).config)  # pyright: ignore[reportArgumentType]
    initialise(begun, 0)  # the run's own values at its first step, from its seed
    assert not [name for name, tensor in begun.state_dict().items() if name in new and torch.equal(tensor, after[name])]
    moments = load_file(newest(adapted) / "optimizer.safetensors")
    assert not [name for name in moments if "head." not in name and ".adapters." not in name]


def test_the_log_says_how_many_values_are_trained(tiny_treebank: Path, tagger: Path, tmp_path: Path, caplog: Any):
    with caplog.at_level(logging.INFO):
        assert run(tiny_treebank, tmp_path / "run", "--steps", "1", "--init", str(tagger), **ADAPTED) == 0
    config = read_stored(tmp_path / "run").config
    assert isinstance(config, ViTTaskConfig) and config.lora is not None
    whole, without = num_parameters(config), num_parameters(replace(config, lora=None))
    trained = whole - without + 4 * (config.hidden_size + 1)  # four parts of speech
    assert f"{trained:,} of {whole:,} values are trained, adapters and the head" in caplog.text


def test_a_resumed_run_with_adapters_is_the_run_without_a_stop(
    adapted: Path, tiny_treebank: Path, tagger: Path, tmp_path: Path
):
    path = tmp_path / "run"
    assert run(tiny_treebank, path, *BEGUN, "--init", str(tagger), "--stop-at", "6", **ADAPTED) == 0
    assert main(["--resume", str(path), "--device", "cpu"]) == 0
    assert lines(path) == lines(adapted)
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(one) / f"{name}.safetensors") for one in (path, adapted))
        assert mine.keys() == theirs.keys()
        assert not [key for key in mine if not torch.equal(mine[key], theirs[key])]
    assert marks(path)["test_accuracy"] == marks(adapted)["test_accuracy"]


def test_predictions_are_the_same_with_adapters_merged_and_as_published(
    command, adapted: Path, tiny_treebank: Path, tmp_path: Path
):
    data = ("--data", str(tiny_treebank / "xx_tiny-ud-test.conllu"))
    _, said, _ = command("predict", "--model", str(adapted), *data)
    records = [json.loads(line) for line in said.splitlines()]
    tested = [json.loads(line) for line in (adapted / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [one["predicted"] for one in records] == [one["predicted"] for one in tested]
    export(adapted, "safetensors", tmp_path / "merged", merge=True)
    config = read_stored(tmp_path / "merged").config
    assert isinstance(config, ViTTaskConfig) and config.lora is None
    assert command("predict", "--model", str(tmp_path / "merged"), *data)[1] == said
    export(adapted, "pixel", tmp_path / "published")
    published = read_stored(tmp_path / "published").weights
    merged = read_stored(tmp_path / "merged").weights
    assert published.keys() == merged.keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in published.items())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--set", "model.lora.rank=2"], "model.lora adapts a trained model: name it with --init PATH"),
        (["--set", "model.lora.rank=0"], "rank = 0 must be positive"),
        (["--set", 'model.lora.target_modules=["gate_proj"]'], "must be some of ['q_proj', 'k_proj'"),
        (["--set", "model.lora.ranks=2"], "did you mean 'rank'?"),
    ],
)
def test_wrong_adapters_are_one_line(
    flags: list[str], expected: str, tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*tiny_flags(tiny_treebank), *flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert expected in said and not (tmp_path / "run").exists()
