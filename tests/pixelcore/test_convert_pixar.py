"""Published PIXAR folders in and out: nothing is lost, nothing is guessed, and what does not fit is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelcore.checkpoint import load_model, read_stored, write_checkpoint
from pixelcore.config import PixarConfig
from pixelcore.convert.exported import write_export
from pixelcore.convert.pixar import published_config, write_pixar
from pixelcore.convert.pixar_names import packed_shapes, places
from pixelcore.convert.published import PICKLED, SAFETENSORS
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from pixelcore.stored import Stored

GOLDEN = ["pixar_binary", "pixar_rgb"]
SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
OURS = {
    "bernoulli": PixarConfig(**SIZES, patch_length=3),
    "mixture": PixarConfig(**SIZES, head="mixture", num_components=3, start_vector=True),
    "regression": PixarConfig(**SIZES, head="regression", num_channels=3),
}


def make(config: PixarConfig) -> Stored:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in packed_shapes(config).items()}
    return Stored(config=config, weights=weights, path=Path("here"), origin="checkpoint", name="tiny", step=3)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def tensors_in(folder: Path) -> dict[str, Tensor]:
    if (folder / SAFETENSORS).exists():
        return load_file(folder / SAFETENSORS)
    return torch.load(folder / PICKLED, weights_only=True)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as the original writes it, to be damaged."""
    write_pixar(tmp_path / "published", make(OURS["bernoulli"]), file=SAFETENSORS)
    return tmp_path / "published"


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("file", [SAFETENSORS, PICKLED])
@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_folder_is_written_back_bit_for_bit(name: str, file: str, shared: Path, tmp_path: Path):
    folder = shared / "golden" / name
    first = read_stored(folder)
    write_pixar(tmp_path / "out", first, file=file)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["config.json", file]
    assert same(tensors_in(tmp_path / "out"), tensors_in(folder))
    assert json.loads((tmp_path / "out/config.json").read_bytes()) == json.loads((folder / "config.json").read_bytes())
    second = read_stored(tmp_path / "out")
    assert (second.config, second.origin) == (first.config, "pixar")
    assert same(second.weights, first.weights)


def test_weights_keep_the_precision_of_their_file(published: Path, tmp_path: Path):
    save_file({name: tensor.half() for name, tensor in tensors_in(published).items()}, published / SAFETENSORS)
    write_pixar(tmp_path / "again", read_stored(published))
    assert same(tensors_in(tmp_path / "again"), tensors_in(published))
    assert {parameter.dtype for parameter in load_model(published).parameters()} == {torch.float32}


def test_a_model_is_found_in_the_folder_of_its_experiment(published: Path, tmp_path: Path):
    shutil.copytree(published, tmp_path / "step" / "backbone")
    (tmp_path / "step" / "optim.bin").write_bytes(b"")
    stored = read_stored(tmp_path / "step")
    assert (stored.name, stored.path) == ("step", tmp_path / "step" / "backbone")
    assert same(stored.weights, read_stored(published).weights)


@pytest.mark.parametrize("head", OURS)
def test_our_own_checkpoint_and_export_hold_every_model(head: str, tmp_path: Path):
    stored = make(OURS[head])
    write_checkpoint(tmp_path / "checkpoint", stored, state={}, manifest={})
    write_export(tmp_path / "export", stored)
    for kind in ("checkpoint", "export"):
        found = read_stored(tmp_path / kind)
        assert (found.origin, found.config) == (kind, stored.config)
        assert same(dict(load_model(tmp_path / kind).state_dict()), stored.weights)


def test_a_model_that_was_written_and_read_says_the_same(published: Path):
    before, after = load_model(published), Pixar(OURS["bernoulli"])
    after.load_state_dict(make(OURS["bernoulli"]).weights)
    image = torch.rand(2, 1, 8, 24 * 4, generator=torch.Generator().manual_seed(0)).round()
    with torch.no_grad():
        assert torch.equal(before(image).logits, after(image).logits)


def test_the_names_cover_the_model():
    for config in OURS.values():
        with torch.device("meta"):
            state = Pixar(config).state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == packed_shapes(config)


def test_the_published_model_has_111_tensors():
    sizes: dict[str, Any] = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    shapes = {place.published: place.shape for place in places(PixarConfig(**sizes))}
    assert len(shapes) == 111
    assert shapes["out_proj.weight"] == (768, 1, 8, 16)
    assert shapes["layers.11.mlp.up_proj.weight"] == (3072, 768)


# ------------------------------------------------------------------ what a folder means


def test_colour_of_the_original_comes_out_from_0_to_1(shared: Path):
    config = read_stored(shared / "golden" / "pixar_rgb").config
    assert isinstance(config, PixarConfig)
    assert (config.head, config.values, config.num_channels) == ("regression", "published", 3)


def test_the_context_is_that_of_the_file(shared: Path):
    config = read_stored(shared / "golden" / "pixar_binary").config
    assert isinstance(config, PixarConfig)
    assert (config.max_patches, config.patch_length, config.rms_norm_eps, config.head) == (1024, 2, 1e-6, "bernoulli")


def test_what_the_layout_does_not_know_is_refused(tmp_path: Path):
    for head, setting in (("mixture", 'head = "mixture"'), ("regression", 'values = "consistent" of a regression')):
        with pytest.raises(UserError, match=f"{setting} has no place in the published layout: export it as safet"):
            write_pixar(tmp_path / "out", make(OURS[head]))
    started = PixarConfig(**SIZES, start_vector=True)
    with pytest.raises(UserError, match="start_vector = true has no place"):
        write_pixar(tmp_path / "out", make(started))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda raw: raw.pop("hidden_size"), "config.json: hidden_size missing, which the shape of the model depends"),
        (lambda raw: raw.update(num_key_value_heads=1), "num_key_value_heads = 1 and num_attention_heads = 2; they"),
        (lambda raw: raw.update(hidden_act="gelu"), "hidden_act = 'gelu'; only 'silu' is known"),
        (lambda raw: raw.update(attention_bias=True), "attention_bias = True; only False is known"),
        (lambda raw: raw.update(rope_scaling={"factor": 2}), "rope_scaling = {'factor': 2}; only None is known"),
        (lambda raw: raw.update(num_channel=3), 'config.json: num_channels = 3 goes with head = "regression" alone'),
        (lambda raw: raw.update(patch_len="2"), "config.json: patch_length = '2' must be of type int"),
        (lambda raw: raw.update(patch_len=2), "in_proj.weight has shape .*8, 24. .expected .8, 1, 8, 16."),
        (lambda raw: raw.update(num_hidden_layers=3), "layers.2.input_layernorm.weight is missing"),
        (lambda raw: raw.update(num_hidden_layers=1), "layers.1.self_attn.k_proj.weight is extra"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    change: Callable[[dict[str, Any]], object], expected: str, published: Path
):
    raw = json.loads((published / "config.json").read_bytes())
    change(raw)
    (published / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=expected):
        read_stored(published)


def test_weights_that_are_missing_or_damaged_are_named(published: Path):
    (published / SAFETENSORS).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="model.safetensors: damaged or cut short"):
        read_stored(published)
    (published / SAFETENSORS).unlink()
    with pytest.raises(UserError, match="no weights: neither model.safetensors nor pytorch_model.bin"):
        read_stored(published)


def test_a_damaged_backbone_is_named(tmp_path: Path):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text("{")
    with pytest.raises(UserError, match="backbone/config.json: not JSON"):
        read_stored(tmp_path)


def test_published_fields_come_back_as_they_went(tmp_path: Path):
    config = PixarConfig(
        **SIZES, head="regression", values="published", num_channels=3, rope_base=500.0, max_patches=77
    )
    write_pixar(tmp_path / "out", make(config))
    assert read_stored(tmp_path / "out").config == config
    assert published_config(config)["binary"] is False
