"""A checkpoint is whole or not there, damage is named, and a folder is recognised by what is in it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelcore import checkpoint, durable
from pixelcore.checkpoint import (
    hash_weights,
    load_model,
    load_weights,
    read_checkpoint,
    read_manifest,
    read_stored,
    write_checkpoint,
)
from pixelcore.config import DecoderConfig, LoRAConfig, MoEConfig
from pixelcore.convert.bundle_writer import write_bundle
from pixelcore.convert.exported import write_export
from pixelcore.convert.names import packed_shapes
from pixelcore.durable import TEMPORARY, write_file, write_json
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.stored import OptimizerState, Stored
from pixelcore.tokenizer import Tokenizer, train_tokenizer
from tests.killing import killed_at_every_write

FILES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.safetensors", "tokenizer.model"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a checkpoint is whole or it is not there\n" * 20], 300)


def make(tokenizer: Tokenizer, step: int = 3, seed: int = 0, **changes: Any) -> Stored:
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "context_length": 16,
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
    }
    config = DecoderConfig(**fields | changes)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in packed_shapes(config).items()}

    return Stored(
        path=Path("unused"),
        origin="checkpoint",
        name="tiny",
        step=step,
        config=config,
        weights=draw(),
        tokenizer=tokenizer,
        optimizer=OptimizerState(firsts=draw(), seconds=draw(), step=step),
    )


def write(folder: Path, stored: Stored, **how: Any) -> Path:
    write_checkpoint(folder, stored, state={"meter": torch.arange(3.0)}, manifest={"settings": "[run]"}, **how)
    return folder


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def stored(tokenizer: Tokenizer) -> Stored:
    return make(tokenizer)


@pytest.fixture
def folder(stored: Stored, tmp_path: Path) -> Path:
    return write(tmp_path / "step_00000003", stored)


# ------------------------------------------------------------------ round trip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"moe": MoEConfig(num_experts=3, expert_interval=2), "lora": LoRAConfig(rank=2, target_modules=("k_proj",))},
    ],
    ids=["dense", "untied", "experts and adapters"],
)
def test_what_is_written_is_read(changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path):
    stored = make(tokenizer, **changes)
    found = read_checkpoint(write(tmp_path / "c", stored), with_optimizer=True)
    assert (found.config, found.step, found.name, found.tokenizer) == (stored.config, 3, "tiny", tokenizer)
    assert same(found.weights, stored.weights)
    assert found.optimizer is not None and stored.optimizer is not None
    assert same(found.optimizer.firsts, stored.optimizer.firsts)
    assert same(found.optimizer.seconds, stored.optimizer.seconds)
    assert found.optimizer.step == 3


def test_a_checkpoint_is_these_files(folder: Path):
    assert sorted(file.name for file in folder.iterdir()) == FILES
    manifest = read_manifest(folder)
    assert sorted(manifest["files"]) == FILES[1:]
    assert manifest["settings"] == "[run]"


def test_loaded_model_is_in_eval_mode_with_trainable_parameters(folder: Path, stored: Stored):
    model = load_model(folder, dtype=torch.bfloat16)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config == stored.config


def test_loaded_model_owns_its_memory(stored: Stored):
    model = Decoder(stored.decoder_config)
    load_weights(model, stored.weights, "here")
    before = stored.weights["norm.weight"].clone()
    with torch.no_grad():
        model.norm.weight.zero_()
    assert torch.equal(stored.weights["norm.weight"], before)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda weights: weights.pop("norm.weight"), "here: tensor norm.weight [16] is missing"),
        (lambda weights: weights.update(norm_=torch.ones(1)), "here: tensor norm_ belongs to no parameter (1 such"),
        (
            lambda weights: weights.update({"norm.weight": torch.ones(4)}),
            "norm.weight has shape [4]; the configuration",
        ),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_wrong_tensor_is_named(change: Callable[[dict], Any], expected: str, stored: Stored):
    weights = dict(stored.weights)
    change(weights)
    with pytest.raises(UserError) as caught:
        load_weights(Decoder(stored.decoder_config), weights, "here")
    assert expected in str(caught.value)


def test_hash_of_weights_is_that_of_names_shapes_and_values():
    ones = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    assert hash_weights(ones) == hash_weights({"b": torch.zeros(2), "a": torch.ones(2, 3, dtype=torch.bfloat16)})
    others = [
        {"a": torch.ones(3, 2), "b": torch.zeros(2)},
        {"a": torch.ones(2, 3), "c": torch.zeros(2)},
        {"a": torch.ones(2, 3), "b": torch.tensor([0.0, 1e-30])},
    ]
    assert len({hash_weights(ones), *map(hash_weights, others)}) == 4


# ------------------------------------------------------------------ crashes


def save(run: Path, stored: Stored) -> None:
    """What a run does: the checkpoint first, and then its name."""
    name = f"step_{stored.step:08d}"
    write(run / "checkpoints" / name, stored)
    write_json(run / "run.json", {"newest": name, "best": None})


def test_killed_save_leaves_the_previous_checkpoint_loadable(tokenizer: Tokenizer, tmp_path: Path):
    first, second = make(tokenizer, 1, seed=1), make(tokenizer, 2, seed=2)
    run = tmp_path / "run"
    save(run, first)
    places = []
    for place in killed_at_every_write(lambda: save(run, second)):
        places.append(place)
        found = read_stored(run)
        assert same(found.weights, (first if found.step == 1 else second).weights), place
        # the next save of the same step meets what the killed one left, and nothing of that stays
        shutil.rmtree(run / "checkpoints" / "step_00000002", ignore_errors=True)
        save(run, second)
        assert read_stored(run).step == 2, place
        left = sorted(entry.name for entry in (run / "checkpoints").iterdir())
        assert left == ["step_00000001", "step_00000002"], place
        shutil.rmtree(run / "checkpoints" / "step_00000002")
        write_json(run / "run.json", {"newest": "step_00000001", "best": None})
    assert len(places) > 20
    assert any("half of" in place and "optimizer.safetensors" in place for place in places)


def test_a_folder_appears_only_after_all_its_bytes_are_on_the_disk(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    sync, rename = durable.sync, durable.os.rename
    monkeypatch.setattr(durable, "sync", lambda path: calls.append(path.name) or sync(path))
    monkeypatch.setattr(durable.os, "rename", lambda old, new: calls.append("RENAME") or rename(old, new))
    write(tmp_path / "c", stored)
    before, after = calls[: calls.index("RENAME")], calls[calls.index("RENAME") + 1 :]
    assert set(before) >= {*FILES, f"{TEMPORARY}c"}
    assert after == [tmp_path.name]


# ------------------------------------------------------------------ damage


def read_whole(folder: Path) -> None:
    """Read all that a resumed run reads."""
    stored = read_stored(folder, with_optimizer=True)
    checkpoint.read_tensors(folder, stored.details, "state.safetensors")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "longer"])
def test_damaged_file_is_named(damage: str, name: str, folder: Path):
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    changed = {
        "truncated": content[:-1],
        "emptied": b"",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer": content + b"x",
    }[damage]
    (folder / name).write_bytes(changed)
    with pytest.raises(UserError, match=name):
        read_whole(folder)


@pytest.mark.parametrize("name", FILES[1:])
def test_missing_file_is_named(name: str, folder: Path):
    (folder / name).unlink()
    if name == "state.safetensors":
        assert read_stored(folder).step == 3, "a model is loaded without it"
    with pytest.raises(UserError, match=f"{name}: missing"):
        read_whole(folder)


def test_every_flipped_byte_of_the_manifest_is_noticed(folder: Path):
    path = folder / "manifest.json"
    content = path.read_bytes()
    unnoticed = []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            read_manifest(folder)
            message = "read as if nothing had happened"
        except UserError as cause:
            message = str(cause)
        if "manifest.json" not in message:
            unnoticed.append((content[max(0, place - 20) : place + 1], message))
    assert not unnoticed


def test_file_that_the_manifest_does_not_know_is_not_read(folder: Path):
    manifest = read_manifest(folder)
    del manifest["files"]["state.safetensors"]
    with pytest.raises(UserError, match="state.safetensors: missing from the checkpoint"):
        checkpoint.check_file(folder, manifest, "state.safetensors")


def rewrite(folder: Path, **changes: Any) -> None:
    """A manifest that someone wrote on purpose: its own hash is right."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    content["sha256"] = checkpoint._manifest_hash(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_says_what_reads_it(version: object, folder: Path):
    rewrite(folder, version=version)
    with pytest.raises(UserError) as caught:
        read_stored(folder)
    assert f"manifest.json: checkpoint format version {version}; this program reads version 1" in str(caught.value)
    assert "use a pixelcore release that reads it" in str(caught.value)


def test_unknown_model_kind_is_refused(folder: Path):
    rewrite(folder, kind="diffuser")
    with pytest.raises(UserError, match="'diffuser' must be one of"):
        read_stored(folder)


def test_model_file_that_is_no_safetensors_is_named(folder: Path):
    (folder / "model.safetensors").write_bytes(b"not at all")
    rewrite(folder, files={"model.safetensors": checkpoint.sha256_of_file(folder / "model.safetensors")})
    with pytest.raises(UserError, match="model.safetensors: not a safetensors file"):
        read_stored(folder)


# ------------------------------------------------------------------ adapters


@pytest.fixture
def adapted(stored: Stored, folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that holds adapters of `folder` alone."""
    config = replace(stored.decoder_config, lora=LoRAConfig(rank=2, target_modules=("q_proj",)))
    shapes = packed_shapes(config)
    adapters = {name: torch.full(shape, 0.5) for name, shape in shapes.items() if ".adapters." in name}
    base = {"path": str(folder), "sha256": hash_weights(stored.weights)}
    return write(tmp_path / "adapters", replace(stored, config=config, weights=adapters, optimizer=None), base=base)


def test_adapters_are_joined_with_their_base(adapted: Path, stored: Stored):
    assert list((adapted / "model.safetensors").parent.glob("optimizer*")) == []
    found = read_stored(adapted)
    base = {name: tensor for name, tensor in found.weights.items() if ".adapters." not in name}
    assert same(base, stored.weights)
    assert len(found.weights) - len(base) == 4
    model = load_model(adapted)
    assert isinstance(model, Decoder) and model.config.lora is not None


def test_base_that_has_moved_is_named(adapted: Path, folder: Path):
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="put the base model back at that path") as caught:
        read_stored(adapted)
    assert str(folder) in str(caught.value)


def test_base_that_has_changed_is_named(adapted: Path, folder: Path, tokenizer: Tokenizer):
    shutil.rmtree(folder)
    write(folder, make(tokenizer, seed=9))
    with pytest.raises(UserError, match="whose weights have changed since: restore the base model"):
        read_stored(adapted)


# ------------------------------------------------------------------ what a folder is


def test_each_kind_of_folder_is_recognised(folder: Path, stored: Stored, tmp_path: Path):
    run = tmp_path / "run"
    save(run, stored)
    write_bundle(tmp_path / "bundle", stored)
    write_export(tmp_path / "export", stored)
    paths = [folder, run, tmp_path / "bundle", tmp_path / "bundle" / "latest.pt", tmp_path / "export"]
    found = [read_stored(path) for path in paths]
    assert [one.origin for one in found] == ["checkpoint", "checkpoint", "bundle", "bundle", "export"]
    assert all(same(one.weights, stored.weights) for one in found)


def test_first_kind_in_the_list_wins(folder: Path, stored: Stored, tmp_path: Path):
    everything = tmp_path / "everything"
    write_export(everything, stored)
    assert read_stored(everything).origin == "export"
    write_bundle(tmp_path / "bundle", stored)
    for file in (tmp_path / "bundle").iterdir():
        shutil.copy(file, everything)
    assert read_stored(everything).origin == "bundle"
    write_json(everything / "run.json", {"newest": folder.name, "best": None})
    shutil.copytree(folder, everything / "checkpoints" / folder.name)
    assert read_stored(everything).path == everything / "checkpoints" / folder.name
    (everything / "manifest.json").unlink()
    for file in folder.iterdir():
        shutil.copy(file, everything)
    assert read_stored(everything).path == everything


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"patch_len": 2, "num_channel": 1}, "config.json: num_hidden_layers, hidden_size, .* missing"),
        ({"model_type": "pixel"}, "no weights: neither model.safetensors nor pytorch_model.bin"),
        ({"model_type": "vit_mae"}, "no weights: neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_model_of_another_family_is_named(config: dict[str, object], expected: str, tmp_path: Path):
    write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=expected):
        read_stored(tmp_path)


def test_unknown_folder_lists_what_it_holds(tmp_path: Path):
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    write_file(tmp_path / "pytorch_model.bin", b"")
    expected = (
        "no model recognised; found config.json, pytorch_model.bin, and config.json says model_type 'bert'; expected"
    )
    with pytest.raises(UserError, match=expected):
        read_stored(tmp_path)


def test_empty_folder_is_said_to_be_empty(tmp_path: Path):
    with pytest.raises(UserError, match="no model recognised; found nothing"):
        read_stored(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff"], ids=["an array", "half", "not UTF-8"])
def test_table_that_is_no_json_object_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json: damaged"):
        read_stored(tmp_path)


def test_file_that_is_no_model_is_refused(folder: Path):
    with pytest.raises(UserError, match="manifest.json: not a model"):
        read_stored(folder / "manifest.json")


def test_path_that_leads_nowhere_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        load_model(tmp_path / "nothing")


def test_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(UserError, match="not a checkpoint: no manifest.json; found nothing"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="not a checkpoint: no manifest.json; found no folder"):
        read_checkpoint(tmp_path / "nothing")


# ------------------------------------------------------------------ runs


@pytest.fixture
def run(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    for step in (1, 2):
        save(tmp_path / "run", make(tokenizer, step, seed=step))
    return tmp_path / "run"


def test_run_without_a_selection_means_its_newest_checkpoint(run: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "pixelcore")
    assert read_stored(run).step == 2
    assert f"{run}: reading its newest checkpoint, step_00000002" in caplog.text


def test_run_that_selects_means_its_best_checkpoint(run: Path, caplog: pytest.LogCaptureFixture):
    write_json(run / "run.json", {"newest": "step_00000002", "best": "step_00000001"})
    caplog.set_level("INFO", "pixelcore")
    model = load_model(run)
    best = read_stored(run / "checkpoints" / "step_00000001")
    assert same(dict(model.named_parameters()), best.weights)
    assert f"{run}: reading its best checkpoint, step_00000001" in caplog.text


def test_run_without_a_checkpoint_says_how_to_go_on(run: Path):
    write_json(run / "run.json", {"newest": None, "best": None})
    with pytest.raises(UserError, match="the run has no checkpoint yet; resume it"):
        read_stored(run)


def test_run_whose_checkpoint_is_gone_names_it(run: Path):
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    with pytest.raises(UserError, match="step_00000002: not a checkpoint"):
        read_stored(run)
