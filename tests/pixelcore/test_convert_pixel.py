"""Published PIXEL folders in and out: nothing is lost, nothing is guessed, and what does not fit is named."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelcore.checkpoint import build_model, load_model, read_stored, write_checkpoint
from pixelcore.config import ViTMAEConfig, ViTTaskConfig
from pixelcore.convert import text_renderer
from pixelcore.convert.exported import write_export
from pixelcore.convert.pixel import with_pooling, write_pixel
from pixelcore.convert.pixel_names import packed_shapes, places
from pixelcore.convert.published import PICKLED, SAFETENSORS
from pixelcore.convert.vitmae import vitmae_config, write_vitmae
from pixelcore.errors import UserError
from pixelcore.models.heads import ViTTask
from pixelcore.stored import Stored
from render.config import RenderConfig

GOLDEN = [
    "pixel_mae",
    *(f"pixel_heads/{name}" for name in ("sequence_mean", "sequence_max", "sequence_cls", "token", "qa", "parser")),
]
TASK = ViTTaskConfig(
    task="sequence",
    num_labels=3,
    patch_size=4,
    num_patches=9,
    num_layers=1,
    hidden_size=8,
    num_attention_heads=2,
    intermediate_size=16,
)
MAE = ViTMAEConfig(
    patch_size=4,
    num_patches=9,
    num_layers=1,
    hidden_size=8,
    num_attention_heads=2,
    intermediate_size=16,
    decoder_num_layers=1,
    decoder_hidden_size=4,
    decoder_num_attention_heads=1,
    decoder_intermediate_size=8,
)


def make(config: ViTMAEConfig | ViTTaskConfig, **fields: Any) -> Stored:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in packed_shapes(config).items()}
    filled = {"path": Path("here"), "origin": "checkpoint", "name": "tiny", "step": 3} | fields
    return Stored(config=config, weights=weights, **filled)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def tensors_in(folder: Path) -> dict[str, Tensor]:
    if (folder / SAFETENSORS).exists():
        return load_file(folder / SAFETENSORS)
    return torch.load(folder / PICKLED, weights_only=True)


def table_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


def dead_in(stored: Stored) -> dict[str, Tensor]:
    dead = stored.details["dead"]
    assert isinstance(dead, dict)
    return dead


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A classifier's folder as its program writes it, to be damaged."""
    folder = tmp_path / "published"
    write_pixel(folder, make(TASK), file=SAFETENSORS)
    return folder


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SAFETENSORS)
    change(tensors)
    save_file(tensors, folder / SAFETENSORS)


def change_table(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = table_in(folder)
    change(table)
    (folder / "config.json").write_text(json.dumps(table))


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("file", [SAFETENSORS, PICKLED])
@pytest.mark.parametrize("name", GOLDEN)
def test_a_published_folder_is_written_back_bit_for_bit(name: str, file: str, shared: Path, tmp_path: Path):
    folder = shared / "golden" / name
    first = read_stored(folder)
    write_pixel(tmp_path / "out", first, file=file)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["config.json", file]
    assert same(tensors_in(tmp_path / "out"), tensors_in(folder))
    assert table_in(tmp_path / "out") == table_in(folder)
    second = read_stored(tmp_path / "out")
    assert second.config == first.config and second.origin == "pixel"
    assert same(second.weights, first.weights)
    assert same(dead_in(second), dead_in(first))


@pytest.mark.parametrize("name", GOLDEN)
def test_our_own_checkpoint_and_export_hold_what_was_read(name: str, shared: Path, tmp_path: Path):
    pooling = "max" if name.endswith(("mean", "max")) else None
    stored = replace(with_pooling(read_stored(shared / "golden" / name), pooling), renderer={"config": {"height": 16}})
    write_checkpoint(tmp_path / "checkpoint", stored, state={}, manifest={})
    write_export(tmp_path / "export", stored)
    for kind in ("checkpoint", "export"):
        found = read_stored(tmp_path / kind)
        assert (found.origin, found.config, found.renderer) == (kind, stored.config, {"config": {"height": 16}})
        assert same(found.weights, stored.weights)
        assert same(dict(load_model(tmp_path / kind).state_dict()), stored.weights)


@pytest.mark.parametrize(
    "config",
    [
        MAE,
        replace(MAE, qkv_bias=False, num_channels=1, normalise_pixels=False),
        *(replace(TASK, pooling=pooling) for pooling in ("mean", "max", "cls")),
        replace(TASK, pooling="pma4", pma_padding="published"),
        replace(TASK, pooling="max", pooler_norm=False),
        replace(TASK, task="token", hidden_dropout=0.0),
        replace(TASK, task="qa", num_labels=2, interpolate_positions=True),
        replace(TASK, task="parser", num_labels=5, layer_norm_eps=1e-6),
    ],
    ids=lambda config: getattr(config, "task", "mae") + "-" + getattr(config, "pooling", ""),
)
def test_a_model_of_ours_comes_back_from_the_published_layout(config: ViTMAEConfig | ViTTaskConfig, tmp_path: Path):
    stored = make(config)
    write_pixel(tmp_path / "out", stored)
    assert (tmp_path / "out" / PICKLED).is_file()
    found = read_stored(tmp_path / "out")
    pooling = config.pooling if isinstance(config, ViTTaskConfig) and config.task == "sequence" else None
    assert with_pooling(found, pooling).config == config
    assert same(found.weights, stored.weights)


def test_queries_keys_and_values_are_the_rows_of_one_map(shared: Path):
    folder = shared / "golden" / "pixel_mae"
    tensors, ours = tensors_in(folder), read_stored(folder).weights
    rows = [tensors[f"vit.encoder.layer.1.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(ours["encoder.blocks.1.qkv.weight"], torch.cat(rows))
    assert torch.equal(ours["decoder.positions"], tensors["decoder.decoder_pos_embed"][0])


@torch.no_grad()
def test_a_pretrained_folder_gives_the_originals_logits_from_either_file(shared: Path, tmp_path: Path):
    folder = shared / "golden" / "pixel_mae"
    write_pixel(tmp_path / "out", read_stored(folder), file=PICKLED)
    arrays = {name: torch.from_numpy(value) for name, value in numpy.load(folder / "reference.npz").items()}
    for path in (folder, tmp_path / "out"):
        output = load_model(path)(
            arrays["pixel_values"], attention_mask=arrays["attention_mask"], patch_mask=arrays["patch_mask"]
        )
        assert (output.logits - arrays["logits"]).abs().max() < 1e-4
        assert (output.loss - arrays["loss"]).abs() < 1e-4


def test_the_published_base_model_has_its_tensors_and_its_size():
    config = replace(
        MAE,
        patch_size=16,
        num_patches=529,
        num_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        decoder_num_layers=8,
        decoder_hidden_size=512,
        decoder_num_attention_heads=16,
        decoder_intermediate_size=2048,
    )
    shapes = {place.published: place.shape for place in places(config)}
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (334, 112_334_080)
    encoder = {name: shape for name, shape in shapes.items() if name.startswith("vit.")}
    assert (len(encoder), sum(map(math.prod, encoder.values()))) == (198, 86_054_400)


# ------------------------------------------------------------------ what the folder means


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("qa", ["classifier.bias", "classifier.weight"]),
        ("parser", ["classifier.bias", "classifier.weight"]),
        ("sequence_cls", ["pooler.linear.bias", "pooler.linear.weight", "pooler.ln.bias", "pooler.ln.weight"]),
        ("sequence_mean", []),
        ("token", []),
    ],
)
def test_tensors_that_nothing_reads_are_kept_apart(name: str, dead: list[str], shared: Path):
    assert sorted(dead_in(read_stored(shared / "golden" / "pixel_heads" / name))) == dead


@pytest.mark.parametrize("name", GOLDEN)
def test_without_architectures_the_head_tells_the_class(name: str, shared: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(shared / "golden" / name, folder)
    named = read_stored(folder).config
    change_table(folder, lambda table: table.pop("architectures"))
    assert read_stored(folder).config == named
    change_table(folder, lambda table: table.update(model_type="vit_mae"))
    assert read_stored(folder).config == named


def test_the_stored_rows_of_the_table_decide_how_long_a_strip_may_be(published: Path):
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["vit.embeddings.position_embeddings"] = tensors["vit.embeddings.position_embeddings"][:, :6].clone()

    change_tensors(published, cut)
    assert table_in(published)["image_size"] == [4, 36]
    found = read_stored(published)
    assert isinstance(found.config, ViTTaskConfig) and found.config.num_patches == 5


def test_the_pooling_of_a_classifier_is_asked_for_and_never_guessed(published: Path, shared: Path):
    with pytest.raises(UserError, match="do not say how it pools: give pooling = mean or max"):
        load_model(published)
    with pytest.raises(UserError, match="do not say how it pools"):
        write_export(published.with_name("export"), read_stored(published))
    model = load_model(published, pooling="max")
    assert isinstance(model, ViTTask) and model.config.pooling == "max"
    with pytest.raises(UserError, match="pooling = 'cls' does not go with its tensors: give mean or max"):
        load_model(published, pooling="cls")
    by_cls = load_model(shared / "golden" / "pixel_heads" / "sequence_cls")
    assert isinstance(by_cls, ViTTask) and by_cls.config.pooling == "cls"
    with pytest.raises(UserError, match="pooling = 'mean', but the model says 'cls': leave it out"):
        load_model(shared / "golden" / "pixel_heads" / "sequence_cls", pooling="mean")
    with pytest.raises(UserError, match="pooling = 'mean', but this is no classifier of strips"):
        load_model(shared / "golden" / "pixel_mae", pooling="mean")


def test_attention_pooling_asks_for_its_heads(tmp_path: Path):
    write_pixel(tmp_path / "out", make(replace(TASK, pooling="pma4")))
    with pytest.raises(UserError, match="give pooling = pma<heads>"):
        load_model(tmp_path / "out")
    with pytest.raises(UserError, match="pooling = 'pma3': the heads must divide"):
        load_model(tmp_path / "out", pooling="pma3")
    with pytest.raises(UserError, match="pooling = 'mean' does not go with its tensors"):
        load_model(tmp_path / "out", pooling="mean")
    model = load_model(tmp_path / "out", pooling="pma4")
    assert isinstance(model, ViTTask) and model.config.pooling == "pma4"


# ------------------------------------------------------------------ what does not fit


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("vit.layernorm.bias"), "vit.layernorm.bias is missing"),
        (drop("pooler.ln.bias"), "pooler.ln.bias is missing"),
        (drop("classifier.weight"), "tensor classifier.weight is missing"),
        (drop("vit.embeddings.position_embeddings"), "position_embeddings must be there"),
        (put("qa_outputs.weight", 2, 8), "qa_outputs.weight is extra"),
        (put("decoder.mask_token", 1, 1, 4), "decoder.mask_token is extra"),
        (put("vit.encoder.layer.0.intermediate.dense.bias", 15), r"intermediate.dense.bias has shape \[15\]"),
        (put("vit.encoder.layer.1.layernorm_before.bias", 8), "layer.1.layernorm_before.bias is extra"),
        (put("classifier.weight", 4, 8), "id2label has 3 labels, and classifier.weight 4 rows"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: Callable[[dict], object], message: str, published: Path):
    change_tensors(published, change)
    with pytest.raises(UserError, match=message):
        read_stored(published)


def test_a_dead_tensor_of_another_shape_is_named(shared: Path, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(shared / "golden" / "pixel_heads" / "qa", folder)
    change_tensors(folder, put("classifier.bias", 3))
    with pytest.raises(UserError, match=r"classifier.bias has shape \[3\] \(expected \[2\]\)"):
        read_stored(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "relu", "hidden_act = 'relu'; only \"gelu\" is known"),
        ("architectures", ["PIXELModel"], r"architectures = \['PIXELModel'\]; known are PIXELForPreTraining"),
        ("architectures", "PIXELForPreTraining", "must be a list of names"),
        ("num_attention_heads", 3, "must be a multiple of num_attention_heads = 3"),
        ("num_hidden_layers", "one", "num_layers = 'one' must be of type int"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(key: str, value: object, message: str, published: Path):
    change_table(published, lambda table: table.update({key: value}))
    with pytest.raises(UserError, match=message):
        read_stored(published)


def test_a_pickle_that_could_run_code_is_refused(published: Path):
    (published / SAFETENSORS).unlink()
    torch.save({"classifier.weight": Path("a class of its own")}, published / PICKLED)
    with pytest.raises(
        UserError, match=r"pytorch_model.bin: holds pathlib\S*, and only tensors and plain values are read"
    ):
        read_stored(published)


@pytest.mark.parametrize(
    ("content", "message"),
    [(["a", "list"], "holds list"), ({"classifier.weight": 3}, "classifier.weight is no tensor")],
)
def test_an_archive_of_something_else_is_named(content: object, message: str, published: Path):
    (published / SAFETENSORS).unlink()
    torch.save(content, published / PICKLED)
    with pytest.raises(UserError, match=message):
        read_stored(published)


def test_damaged_and_missing_files_are_named(published: Path):
    whole = (published / SAFETENSORS).read_bytes()
    (published / SAFETENSORS).write_bytes(whole[:-10])
    with pytest.raises(UserError, match="model.safetensors: damaged or cut short"):
        read_stored(published)
    (published / SAFETENSORS).unlink()
    with pytest.raises(
        UserError, match="no weights: neither model.safetensors nor pytorch_model.bin; found config.json"
    ):
        read_stored(published)


def test_writing_refuses_tensors_that_are_not_the_configurations(tmp_path: Path):
    stored = make(MAE)
    del stored.weights["decoder.positions"]
    with pytest.raises(UserError, match="decoder.positions is missing"):
        write_pixel(tmp_path / "out", stored)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ how strips are drawn


def renderer(name: str, **changes: Any) -> dict[str, Any]:
    return {"config": RenderConfig.named(name, **changes).to_dict(), "identity": {"fonts": ["sha"]}}


def test_the_published_renderer_table_and_its_font_travel_along(published: Path, tmp_path: Path):
    table = {
        "font_file": "Go.ttf",
        "font_size": 8,
        "dpi": 120,
        "fonts_list": ["x"],
        "text_renderer_type": "TextRenderer",
    }
    (published / text_renderer.FILE).write_text(json.dumps(table))
    (published / "Go.ttf").write_bytes(b"font")
    found = read_stored(published)
    assert (found.details["text_renderer"], found.renderer) == (table, None)
    write_pixel(tmp_path / "out", found)
    assert json.loads((tmp_path / "out" / text_renderer.FILE).read_bytes()) == table
    assert (tmp_path / "out" / "Go.ttf").read_bytes() == b"font"


@pytest.mark.parametrize("name", ["pixel", "pixel-m4"])
def test_a_trained_models_renderer_is_said_in_published_words_and_in_ours(name: str, tmp_path: Path):
    font = tmp_path / "Noto.ttf"
    font.write_bytes(b"font")
    ours = renderer(name, fonts=[str(font)], color="rgb", max_patches=256)
    write_pixel(tmp_path / "out", make(MAE, renderer=ours))
    table = json.loads((tmp_path / "out" / text_renderer.FILE).read_bytes())
    assert table.pop(text_renderer.TABLE) == ours
    assert table == {
        "background_color": "white",
        "dpi": 120,
        "font_color": "black",
        "font_file": "Noto.ttf",
        "font_size": 8,
        "max_seq_length": 256,
        "pad_size": 3,
        "pixels_per_patch": 16,
        "rgb": True,
        "text_renderer_type": "PangoCairoTextRenderer",
    }
    assert (tmp_path / "out" / "Noto.ttf").read_bytes() == b"font"
    assert read_stored(tmp_path / "out").renderer == ours


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("default", {"fonts": ["a.ttf"]}),
        ("pixar", {"fonts": ["a.ttf"]}),
        ("pixel", {}),
        ("pixel", {"fonts": ["system:Noto Sans"]}),
        ("pixel", {"fonts": ["a.ttf"], "missing": "box"}),
        ("pixel-m4", {"fonts": ["a.ttf"], "word_gap": "space"}),
    ],
)
def test_what_the_published_words_cannot_say_is_said_in_ours_alone(name: str, changes: dict, tmp_path: Path):
    ours = renderer(name, **changes)
    write_pixel(tmp_path / "out", make(MAE, renderer=ours))
    assert json.loads((tmp_path / "out" / text_renderer.FILE).read_bytes()) == {text_renderer.TABLE: ours}


# ------------------------------------------------------------------ transformers


def test_only_a_square_of_patches_is_a_vit_mae(tmp_path: Path):
    assert vitmae_config(MAE)["image_size"] == 12
    with pytest.raises(UserError, match="num_patches = 10, and a ViT-MAE picture is a square"):
        write_vitmae(tmp_path / "out", make(replace(MAE, num_patches=10)))
    with pytest.raises(UserError, match="the ViT-MAE layout is for vit_mae models alone"):
        write_vitmae(tmp_path / "out", make(TASK))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_transformers_computes_the_same_from_the_export(shared: Path, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    folder = shared / "golden" / "pixel_mae"
    stored = read_stored(folder)
    write_vitmae(tmp_path / "out", stored)
    theirs, loading = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    arrays = numpy.load(folder / "reference.npz")
    pixels, hidden = torch.from_numpy(arrays["pixel_values"]), torch.from_numpy(arrays["patch_mask"])
    # patch i of the strip is row i // 7, column i % 7 of the picture
    squares = pixels.unflatten(3, (7, 7, 16)).permute(0, 1, 3, 2, 4, 5).reshape(len(pixels), 3, 112, 112)
    out = theirs.eval()(squares, noise=hidden + torch.linspace(0, 0.01, 49))
    ours = build_model(stored)(pixels, patch_mask=hidden)
    assert torch.equal(out.mask.bool(), hidden.bool())
    assert (out.logits - ours.logits).abs().max() < 1e-4
    assert (out.loss - ours.loss).abs() < 1e-4
