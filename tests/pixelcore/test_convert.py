"""Foreign layouts in and out: every kind of model round trips, every kind of bad input gets one clear line."""

import json
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelcore.accounting import card_number, num_parameters
from pixelcore.config import DecoderConfig, LoRAConfig, MoEConfig
from pixelcore.config_io import config_from_dict, config_to_dict
from pixelcore.convert.bundle_reader import read_bundle
from pixelcore.convert.bundle_writer import bundle_fields, write_bundle
from pixelcore.convert.exported import read_export, write_export
from pixelcore.convert.llama import (
    from_llama_state,
    permute_for_half_split,
    permute_for_interleaved,
    to_llama_state,
    write_llama,
)
from pixelcore.convert.merge import merge_lora
from pixelcore.convert.names import optimizer_order, pack, packed_shapes, published_shapes, unpack
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.stored import OptimizerState, Stored
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog\n" * 20], 300)


def make_config(vocab_size: int, **changes: Any) -> DecoderConfig:
    base: dict[str, Any] = {
        "vocab_size": vocab_size,
        "context_length": 32,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
    }
    return DecoderConfig(**(base | changes))


VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "untied": {"tie_word_embeddings": False},
    "experts": {"moe": MoEConfig(num_experts=3, top_k=2, expert_interval=2, balance_coefficient=1.0)},
    "adapters": {"lora": LoRAConfig(rank=2)},
    "some adapters": {"lora": LoRAConfig(rank=3, alpha=5.0, dropout=0.0, target_modules=("k_proj", "up_proj"))},
    "adapters in experts": {
        "moe": MoEConfig(num_experts=2, top_k=1, expert_interval=1, balance_coefficient=1.0),
        "lora": LoRAConfig(rank=2),
        "tie_word_embeddings": False,
    },
}


def make_stored(tokenizer: Tokenizer, path: Path, variant: str = "dense") -> Any:  # a Stored with an optimizer
    config = make_config(tokenizer.vocab_size, **VARIANTS[variant])
    generator = torch.Generator().manual_seed(1)

    def draw() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in packed_shapes(config).items()}

    optimizer = OptimizerState(firsts=draw(), seconds=draw(), step=7)
    return Stored(
        path=path,
        origin="checkpoint",
        name="tiny",
        step=7,
        config=config,
        weights=draw(),
        tokenizer=tokenizer,
        optimizer=optimizer,
    )


@pytest.fixture
def stored(tokenizer: Tokenizer, tmp_path: Path) -> Stored:
    return make_stored(tokenizer, tmp_path)


@pytest.fixture
def bundle(stored: Stored, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    write_bundle(folder, stored, training={"size": "100m", "sequence_length": 32})
    return folder


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logits(stored: Stored) -> torch.Tensor:
    model = Decoder(stored.decoder_config)
    model.load_state_dict(stored.weights)
    ids = torch.arange(24).reshape(2, 12) * 7 % stored.decoder_config.vocab_size
    with torch.no_grad():
        return model(ids).logits


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_shapes_are_those_of_the_model(variant):
    config = make_config(300, **VARIANTS[variant])
    with torch.device("meta"):
        model = Decoder(config)
    assert packed_shapes(config) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_unpack_and_pack_are_inverse(tokenizer, tmp_path, variant):
    stored = make_stored(tokenizer, tmp_path, variant)
    published = unpack(stored.weights, stored.config)
    assert equal(pack(published, stored.config), stored.weights)
    moments = unpack(stored.optimizer.firsts, stored.config, tied_head=False)
    assert list(moments) == list(published_shapes(stored.config))
    assert equal(pack(moments, stored.config), stored.optimizer.firsts)


def test_a_tied_head_is_the_embedding_under_a_second_name(stored):
    published = unpack(stored.weights, stored.config)
    assert published["lm_head.weight"].data_ptr() == published["embed_tokens.weight"].data_ptr()
    published["lm_head.weight"] = published["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head\.weight .* must be one tensor"):
        pack(published, stored.config)


def test_published_names_of_the_spec():
    config = make_config(300, moe=MoEConfig(expert_interval=2), lora=LoRAConfig(target_modules=("q_proj", "down_proj")))
    names = list(published_shapes(config))
    assert names[1:5] == [
        "layers.0.norm1.weight",
        "layers.0.attention.q_proj.lora_a",
        "layers.0.attention.q_proj.lora_b",
        "layers.0.attention.q_proj.base_layer.weight",
    ]
    assert "layers.1.feed_forward.experts.3.down_proj.base_layer.weight" in names
    matrices, norms = optimizer_order(config)
    assert norms[-1] == "norm.weight"
    assert len(norms) == 5
    router = matrices.index("layers.1.feed_forward.router.weight")
    assert matrices[router + 1] == "layers.1.feed_forward.experts.0.gate_proj.weight"


def test_100m_has_the_published_number_of_tensors():
    config = make_config(1262, num_layers=12)
    assert len(published_shapes(config)) + 1 == 111
    assert len(published_shapes(replace(config, lora=LoRAConfig()))) + 1 == 279


def test_every_wrong_tensor_is_named_with_both_shapes(stored):
    published = unpack(stored.weights, stored.config)
    del published["layers.1.norm2.weight"]
    published["layers.0.attention.k_proj.weight"] = torch.zeros(16, 31)
    published["layers.0.attention.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as caught:
        pack(published, stored.config, "x.pt")
    message = str(caught.value)
    assert message.startswith("x.pt: ")
    assert "\n" not in message
    assert "layers.1.norm2.weight is missing (expected shape [32]" in message
    assert "layers.0.attention.k_proj.weight has shape [16, 31] (expected [16, 32])" in message
    assert "layers.0.attention.bias is extra (expected none, found shape [3])" in message


def test_an_error_about_many_tensors_stays_short(stored):
    with pytest.raises(UserError, match="and 14 more"):
        pack({}, stored.config)


# ------------------------------------------------------------------ bundles


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_bundle_round_trips(tokenizer, tmp_path, variant, with_optimizer):
    stored = make_stored(tokenizer, tmp_path, variant)
    write_bundle(tmp_path / "a", stored, with_optimizer, training={"size": "100m", "learning_rate": 1e-3})
    first = read_bundle(tmp_path / "a", with_optimizer=with_optimizer)
    assert (first.config, first.name, first.step, first.origin) == (stored.config, "tiny", 7, "bundle")
    assert equal(first.weights, stored.weights)
    assert first.tokenizer == tokenizer
    if with_optimizer:
        assert first.optimizer is not None
        assert equal(first.optimizer.firsts, stored.optimizer.firsts)
        assert equal(first.optimizer.seconds, stored.optimizer.seconds)
        assert first.optimizer.step == 7
    else:
        assert first.optimizer is None

    write_bundle(tmp_path / "b", first, with_optimizer)
    assert {file.name for file in (tmp_path / "b").iterdir()} == {
        "README.md",
        "latest.pt",
        "manifest.json",
        "pixel_model_config.json",
        "pixel_tokenizer.model",
        "pixel_tokenizer.vocab",
        "pixel_training_config.json",
    }
    for name in ("manifest.json", "pixel_model_config.json", "pixel_training_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert equal(read_bundle(tmp_path / "b").weights, stored.weights)


@pytest.mark.parametrize("name", ["decoder_tiny_bundle", "decoder_tiny_moe_bundle"])
def test_an_original_bundle_round_trips(shared, tmp_path, name):
    source = shared / "golden" / name
    read = read_bundle(source, with_optimizer=True)
    write_bundle(tmp_path / "copy", read, with_optimizer=True)
    for file in ("manifest.json", "pixel_model_config.json", "pixel_training_config.json", "pixel_tokenizer.vocab"):
        assert (tmp_path / "copy" / file).read_bytes() == (source / file).read_bytes(), file
    one = torch.load(source / "latest.pt", weights_only=True)
    two = torch.load(tmp_path / "copy" / "latest.pt", weights_only=True)
    assert list(one) == list(two)
    assert equal(one["model"], two["model"])
    assert isinstance(two["model"], OrderedDict)
    assert one["metadata"] == two["metadata"]
    assert one["config"] == two["config"]
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    for index, moments in one["optimizer"]["state"].items():
        assert equal(moments, two["optimizer"]["state"][index])


def test_weights_alone_make_a_third_of_the_file(stored, tmp_path):
    write_bundle(tmp_path / "small", stored)
    write_bundle(tmp_path / "large", stored, with_optimizer=True)
    small, large = ((tmp_path / name / "latest.pt").stat().st_size for name in ("small", "large"))
    assert 4 * num_parameters(stored.config) < small < 4 * num_parameters(stored.config) + 40_000
    assert large > 2.5 * small
    assert not (tmp_path / "small" / "pixel_training_config.json").exists()  # there were no settings to write


def test_the_model_card_has_the_original_sections_and_both_counts(bundle, stored):
    card = (bundle / "README.md").read_text(encoding="utf-8")
    sections = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert sections == [
        "What This Model Is",
        "Architecture",
        "Included Files",
        "Training Snapshot",
        "Runtime Snapshot",
        "Usage With PIXEL",
        "Limitations",
        "Export Provenance",
    ]
    assert f"`{num_parameters(stored.config):,}`" in card
    assert f"`~{card_number(stored.config):,}`" in card
    assert "license: mit" not in card


def test_tables_are_written_as_the_original_writes_them(bundle):
    text = (bundle / "pixel_model_config.json").read_text(encoding="ascii")
    assert text.startswith('{\n  "name": "tiny",\n  "vocab_size"')
    assert text.endswith("}")
    keys = list(json.loads(text))
    assert keys[7:] == [
        "intermediate_size",
        "rope_base",
        "tie_word_embeddings",
        "dropout",
        "attention_dropout",
        "rms_norm_eps",
        "use_moe",
        "moe",
        "lora",
    ]
    assert (bundle / "manifest.json").read_text() == '{\n  "latest": "latest.pt",\n  "step": 7\n}'


def test_merged_adapters_leave_the_table_too(tokenizer, tmp_path):
    write_bundle(tmp_path / "a", make_stored(tokenizer, tmp_path, "adapters"))
    merged = merge_lora(read_bundle(tmp_path / "a"))
    write_bundle(tmp_path / "b", merged)
    assert bundle_fields(merged)["lora"]["enabled"] is False
    assert read_bundle(tmp_path / "b").decoder_config.lora is None


def test_a_failed_write_leaves_nothing_behind(stored, tmp_path):
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "out", stored, training={"size": object()})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_never_written_over(bundle, stored, tmp_path):
    for write in (write_bundle, write_export, write_llama):
        with pytest.raises(UserError, match="not empty"):
            write(bundle, stored)
    with pytest.raises(UserError, match="this is a file"):
        write_bundle(bundle / "latest.pt", stored)
    (tmp_path / "empty").mkdir()
    write_export(tmp_path / "empty", stored)
    assert read_export(tmp_path / "empty").step == 7


def change_archive(bundle: Path, change) -> None:
    payload = torch.load(bundle / "latest.pt", weights_only=True)
    change(payload)
    torch.save(payload, bundle / "latest.pt")


def change_table(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_six_files_and_fewer_are_enough(bundle, stored):
    for name in ("pixel_training_config.json", "README.md", "pixel_tokenizer.vocab", "manifest.json"):
        (bundle / name).unlink()
    assert equal(read_bundle(bundle).weights, stored.weights)
    assert equal(read_bundle(bundle / "latest.pt").weights, stored.weights)


def test_a_folder_of_checkpoints_means_latest_then_the_last_step(bundle, stored):
    (bundle / "pixel_model_config.json").unlink()
    change_archive(bundle, lambda payload: payload.update(step=20))
    (bundle / "latest.pt").rename(bundle / "step_0000020.pt")
    assert read_bundle(bundle).step == 20
    other = dict(torch.load(bundle / "step_0000020.pt", weights_only=True), step=3)
    torch.save(other, bundle / "step_0000003.pt")
    assert read_bundle(bundle).step == 20
    torch.save(other, bundle / "latest.pt")
    assert read_bundle(bundle).step == 3


def test_missing_fields_have_defaults_and_unknown_ones_are_dropped(bundle):
    (bundle / "pixel_model_config.json").unlink()

    def change(payload):
        model = payload["metadata"]["model"]
        for name in ("rope_base", "moe", "lora", "rms_norm_eps", "use_moe"):
            del model[name]
        model["colour"] = "blue"
        payload["step"] = "seven"

    change_archive(bundle, change)
    read = read_bundle(bundle)
    assert read.decoder_config.rope_base == 500000
    assert read.decoder_config.moe is None
    assert read.step == 0
    assert "colour" not in str(read.details["model_config"])


def test_the_switches_decide_about_experts_and_adapters(bundle):
    (bundle / "pixel_model_config.json").unlink()
    change_archive(bundle, lambda payload: payload["metadata"]["model"]["moe"].update(enabled=True))
    assert read_bundle(bundle).decoder_config.moe is None


def test_the_rows_of_the_embedding_decide_the_vocabulary(bundle, stored):
    (bundle / "pixel_model_config.json").unlink()
    change_archive(bundle, lambda payload: payload["metadata"]["model"].update(vocab_size=16000))
    assert read_bundle(bundle).decoder_config.vocab_size == stored.decoder_config.vocab_size


def test_a_whole_number_is_made_of_rope_base(bundle):
    change_table(bundle / "pixel_model_config.json", rope_base=500000.0)
    assert read_bundle(bundle).decoder_config.rope_base == 500000


def test_a_tokenizer_may_be_given(bundle, stored, tmp_path):
    own = tmp_path / "elsewhere.model"
    (bundle / "pixel_tokenizer.model").rename(own)
    assert read_bundle(bundle, own).tokenizer == stored.tokenizer
    assert read_bundle(bundle, require_tokenizer=False).tokenizer is None
    with pytest.raises(UserError, match="--tokenizer FILE"):
        read_bundle(bundle)
    with pytest.raises(UserError, match="missing\\.model"):
        read_bundle(bundle, tmp_path / "missing.model")


def test_a_tokenizer_beside_another_is_refused(bundle, tmp_path):
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(["pack my box with five dozen liquor jugs\n" * 9], 290).model_bytes)
    with pytest.raises(UserError, match="leave out --tokenizer"):
        read_bundle(bundle, other)
    (bundle / "pixel_tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"290 pieces and the embedding of latest\.pt 300 rows"):
        read_bundle(bundle, other)


class Foreign:
    pass


def damage_truncate(bundle: Path) -> None:
    content = (bundle / "latest.pt").read_bytes()
    (bundle / "latest.pt").write_bytes(content[: len(content) // 2])


def damage_flip(bundle: Path) -> None:
    content = bytearray((bundle / "latest.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "latest.pt").write_bytes(content)


def write_other_archive(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "latest.pt", "w") as archive:
        archive.writestr("letter.txt", "hello")


BAD_BUNDLES = {
    "absolute path": (
        lambda b: change_table(b / "manifest.json", latest="/etc/passwd"),
        "'/etc/passwd' must be the name",
    ),
    "path upwards": (lambda b: change_table(b / "manifest.json", latest="../latest.pt"), "without directories"),
    "dots": (lambda b: change_table(b / "manifest.json", latest=".."), "without directories"),
    "path with backslash": (lambda b: change_table(b / "manifest.json", latest="..\\x.pt"), "without directories"),
    "absent file": (lambda b: change_table(b / "manifest.json", latest="other.pt"), "'other.pt' is not in the folder"),
    "manifest not JSON": (lambda b: (b / "manifest.json").write_text("{"), r"manifest\.json: not JSON"),
    "manifest a list": (lambda b: (b / "manifest.json").write_text("[]"), "must be a table, not list"),
    "no archive": (
        lambda b: ((b / "manifest.json").unlink(), (b / "latest.pt").unlink()),
        "expected latest.pt or step",
    ),
    "truncated": (damage_truncate, r"latest\.pt: damaged, cut short"),
    "flipped bit": (damage_flip, r"latest\.pt: damaged: the checksum"),
    "empty file": (lambda b: (b / "latest.pt").write_bytes(b""), r"latest\.pt: damaged, cut short"),
    "no archive but a pickle": (
        lambda b: (b / "latest.pt").write_bytes(pickle.dumps({"model": 1})),
        "no torch.save archive",
    ),
    "empty archive": (
        lambda b: zipfile.ZipFile(b / "latest.pt", "w").close(),
        r"latest\.pt: damaged, or no torch\.save archive",
    ),
    "archive of something else": (write_other_archive, r"latest\.pt: damaged, or no torch\.save archive"),
    "foreign class": (
        lambda b: torch.save({"model": Foreign()}, b / "latest.pt"),
        r"holds \S*test_convert\.Foreign, and only tensors",
    ),
    "no dict": (lambda b: torch.save([1], b / "latest.pt"), "holds list"),
    "no metadata": (lambda b: change_archive(b, lambda p: p.pop("metadata")), "metadata is NoneType"),
    "no model table": (lambda b: change_archive(b, lambda p: p["metadata"].pop("model")), "model is NoneType"),
    "no weights": (lambda b: change_archive(b, lambda p: p.pop("model")), "model is NoneType"),
    "weights no tensors": (lambda b: change_archive(b, lambda p: p["model"].update(x=3)), r"model\.x must be a tensor"),
    "missing field": (
        lambda b: change_archive(b, lambda p: p["metadata"]["model"].pop("num_layers")),
        "num_layers missing",
    ),
    "field of another type": (
        lambda b: (
            ((b / "pixel_model_config.json").unlink(),)
            and change_archive(b, lambda p: p["metadata"]["model"].update(num_layers="2"))
        ),
        "num_layers = '2' must be of type int",
    ),
    "impossible value": (
        lambda b: (
            ((b / "pixel_model_config.json").unlink(),)
            and change_archive(b, lambda p: p["metadata"]["model"].update(num_key_value_heads=3))
        ),
        "must be a multiple of num_key_value_heads = 3",
    ),
    "targets no list": (
        lambda b: change_archive(b, lambda p: p["metadata"]["model"]["lora"].update(target_modules=3)),
        "target_modules = 3 must be a list",
    ),
    "rope base a text": (
        lambda b: change_archive(b, lambda p: p["metadata"]["model"].update(rope_base="500000")),
        "rope_base = '500000' must be a number",
    ),
    "contradicting table": (
        lambda b: change_table(b / "pixel_model_config.json", num_layers=3),
        r"pixel_model_config\.json: num_layers = 3, but latest\.pt was trained with 2",
    ),
    "misshapen tensor": (
        lambda b: change_archive(b, lambda p: p["model"].update({"norm.weight": torch.ones(31)})),
        r"norm\.weight has shape \[31\] \(expected \[32\]\)",
    ),
    "tokenizer no model": (
        lambda b: (b / "pixel_tokenizer.model").write_bytes(b"nonsense"),
        r"pixel_tokenizer\.model: not a SentencePiece model",
    ),
}


@pytest.mark.parametrize("case", BAD_BUNDLES)
def test_a_bad_bundle_gets_one_line_that_names_it(bundle, case):
    damage, expected = BAD_BUNDLES[case]
    damage(bundle)
    with pytest.raises(UserError, match=expected) as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_bad_optimizer_is_named(tokenizer, tmp_path):
    write_bundle(tmp_path / "a", make_stored(tokenizer, tmp_path), with_optimizer=True)
    change_archive(tmp_path / "a", lambda payload: payload["optimizer"]["param_groups"][1]["params"].pop())
    assert read_bundle(tmp_path / "a").optimizer is None
    with pytest.raises(UserError, match=r"groups have \[15, 4\] parameters; this model has \[15, 5\]"):
        read_bundle(tmp_path / "a", with_optimizer=True)
    change_archive(tmp_path / "a", lambda payload: payload.update(optimizer={"state": {}}))
    with pytest.raises(UserError, match="must hold param_groups and state"):
        read_bundle(tmp_path / "a", with_optimizer=True)


def test_an_expert_that_was_never_used_has_zero_moments(tokenizer, tmp_path):
    stored = make_stored(tokenizer, tmp_path, "experts")
    write_bundle(tmp_path / "a", stored, with_optimizer=True)
    index = optimizer_order(stored.config)[0].index("layers.1.feed_forward.experts.2.up_proj.weight")
    change_archive(tmp_path / "a", lambda payload: payload["optimizer"]["state"].pop(index))
    optimizer = read_bundle(tmp_path / "a", with_optimizer=True).optimizer
    assert optimizer is not None
    assert not optimizer.firsts["layers.1.feed_forward.gate_up.weight"][2, 48:].any()
    assert optimizer.firsts["layers.1.feed_forward.gate_up.weight"][1, 48:].any()


def test_what_a_bundle_cannot_hold_is_refused(stored, tokenizer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--tokenizer FILE"):
        write_bundle(out, replace(stored, tokenizer=None))
    with pytest.raises(UserError, match="leave out --with-optimizer"):
        write_bundle(out, replace(stored, optimizer=None), with_optimizer=True)
    with pytest.raises(UserError, match="rope_base = 10000.5 must be a whole number"):
        write_bundle(out, replace(stored, config=replace(stored.config, rope_base=10000.5)))
    adapted = make_stored(tokenizer, tmp_path, "adapters")
    own = {name: moment for name, moment in adapted.optimizer.firsts.items() if "adapters" in name}
    adapted = replace(adapted, optimizer=OptimizerState(firsts=own, seconds=own, step=1))
    with pytest.raises(UserError, match="only the adapters were trained"):
        write_bundle(out, adapted, with_optimizer=True)
    assert not out.exists()


# ------------------------------------------------------------------ our export, merging


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_round_trips(tokenizer, tmp_path, variant):
    stored = make_stored(tokenizer, tmp_path, variant)
    write_export(tmp_path / "out", stored)
    read = read_export(tmp_path / "out")
    assert (read.config, read.name, read.step, read.origin) == (stored.config, "tiny", 7, "export")
    assert equal(read.weights, stored.weights)
    assert read.tokenizer == tokenizer
    assert read.optimizer is None


BAD_EXPORTS = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "another format": (lambda f: change_table(f / "config.json", format="x"), "not an export of this project"),
    "newer version": (lambda f: change_table(f / "config.json", version=2), "export version 2; this program reads"),
    "another kind": (lambda f: change_table(f / "config.json", kind="x"), "kind = 'x' must be one of"),
    "model no table": (lambda f: change_table(f / "config.json", model=3), "expected a table of fields, found int"),
    "step a text": (lambda f: change_table(f / "config.json", step="x"), "step a whole number"),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        r"model\.safetensors: damaged or cut short",
    ),
    "another tokenizer": (
        lambda f: (f / "tokenizer.model").write_bytes(train_tokenizer(["some more words\n" * 9], 270).model_bytes),
        "they must be equal",
    ),
}


@pytest.mark.parametrize("case", BAD_EXPORTS)
def test_a_bad_export_gets_one_line_that_names_it(stored, tmp_path, case):
    damage, expected = BAD_EXPORTS[case]
    write_export(tmp_path / "out", stored)
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=expected) as caught:
        read_export(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_an_export_without_a_field_names_it(stored, tmp_path):
    write_export(tmp_path / "out", stored)
    path = tmp_path / "out" / "config.json"
    content = json.loads(path.read_text())
    del content["name"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="name missing"):
        read_export(tmp_path / "out")


@pytest.mark.parametrize("variant", ["adapters", "some adapters", "adapters in experts"])
def test_merging_adapters_changes_no_logit(tokenizer, tmp_path, variant):
    stored = make_stored(tokenizer, tmp_path, variant)
    before = {name: tensor.clone() for name, tensor in stored.weights.items()}
    merged = merge_lora(stored)
    assert merged.config == replace(stored.config, lora=None)
    torch.testing.assert_close(logits(merged), logits(stored), rtol=1e-4, atol=1e-5)
    assert equal(stored.weights, before)
    assert merge_lora(merged) is merged


# ------------------------------------------------------------------ configuration tables


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_configuration_survives_json(variant):
    config = make_config(300, **VARIANTS[variant])
    assert config_from_dict("decoder", json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_heads": 3}, "unknown 'num_heads'"),
        ({"num_layers": True}, "num_layers = True must be of type int"),
        ({"num_layers": 0}, "num_layers = 0 must be positive"),
        ({"moe": {"top_k": 1}}, "moe: missing 'num_experts'"),
        (
            {"lora": config_to_dict(make_config(9, lora=LoRAConfig()))["lora"] | {"target_modules": "q_proj"}},
            "a list of",
        ),
    ],
)
def test_a_configuration_table_is_read_strictly(change, expected):
    with pytest.raises(UserError, match=expected):
        config_from_dict("decoder", config_to_dict(make_config(300)) | change)


# ------------------------------------------------------------------ Llama


def test_permutation_of_a_head_and_back():
    rows = torch.arange(16.0)[:, None]
    assert permute_for_half_split(rows, 2).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert torch.equal(permute_for_interleaved(permute_for_half_split(rows, 2), 2), rows)


@pytest.mark.parametrize("variant", ["dense", "untied"])
def test_llama_state_round_trips(tokenizer, tmp_path, variant):
    stored = make_stored(tokenizer, tmp_path, variant)
    state = to_llama_state(stored.config, stored.weights)
    assert equal(from_llama_state(stored.config, state), stored.weights)
    assert ("lm_head.weight" in state) == (variant == "untied")


def test_llama_refuses_what_it_has_no_place_for(tokenizer, tmp_path):
    experts = make_stored(tokenizer, tmp_path, "experts")
    with pytest.raises(UserError, match="3 experts"):
        write_llama(tmp_path / "out", experts)
    adapters = make_stored(tokenizer, tmp_path, "adapters")
    with pytest.raises(UserError, match="merge them first"):
        to_llama_state(adapters.config, adapters.weights)
    dense = make_stored(tokenizer, tmp_path)
    state = to_llama_state(dense.config, dense.weights)
    del state["model.norm.weight"]
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        from_llama_state(dense.config, state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("variant", ["dense", "untied", "adapters"])
def test_transformers_computes_the_same_logits(tokenizer, tmp_path, variant):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra parity)")
    stored = make_stored(tokenizer, tmp_path, variant)
    # large enough that a wrong rotation, grouping or epsilon would show
    weights = {name: 1 + tensor if tensor.dim() == 1 else 5 * tensor for name, tensor in stored.weights.items()}
    stored = replace(stored, weights=weights)
    write_llama(tmp_path / "out", stored)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == torch.float32
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == stored.config.tie_word_embeddings
    ids = torch.arange(64).reshape(2, 32) * 11 % stored.config.vocab_size
    model = Decoder(stored.config)
    model.load_state_dict(weights)
    with torch.no_grad():
        ours = model(ids).logits
        difference = (theirs(ids).logits - ours).abs().max().item()
    print(f"{variant}: largest difference of logits {difference:.1e}")
    assert ours.std() > 1
    assert difference < 1e-4
    back = from_llama_state(replace(stored.config, lora=None), theirs.state_dict())
    assert equal(back, merge_lora(stored).weights)


def test_bytes_go_into_the_llama_layout_with_a_tokenizer_that_marks_no_spaces(tmp_path):
    words = byte_tokenizer()
    write_llama(tmp_path / "out", make_stored(words, tmp_path))
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.model") == words
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert written["model"]["vocab"]["<0x41>"] == words.encode("A")[0]
    assert len(written["model"]["vocab"]) == words.vocab_size
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transformers_reads_the_same_bytes(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra parity)")
    words = byte_tokenizer()
    write_llama(tmp_path / "out", make_stored(words, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ["the fox  é jumps", " ▁ \n\t", "你好😀"]:
        ids = theirs(text)["input_ids"]
        assert ids == [words.bos_id, *words.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text
