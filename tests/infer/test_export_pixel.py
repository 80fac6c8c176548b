"""`export` and `inspect` of models of strips, from the command line."""

import json
from pathlib import Path

import pytest
import torch

from infer.cli import main
from pixelcore.checkpoint import read_stored
from pixelcore.config import ViTTaskConfig
from pixelcore.convert.published import PICKLED


@pytest.fixture
def command(capsys):
    """Run a command that must succeed; returns its standard output."""

    def run(*argv: object) -> str:
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out

    return run


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; returns its one line."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = (line for line in captured.err.splitlines() if line.startswith("error: "))
        return line

    return run


def same_weights(one: Path, other: Path) -> bool:
    first, second = read_stored(one).weights, read_stored(other).weights
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("to", ["pixel", "safetensors", "vitmae"])
def test_a_pretrained_model_goes_into_each_of_its_formats(shared, command, tmp_path, to):
    source = shared / "golden" / "pixel_mae"
    assert command("export", "--model", source, "--to", to, "--out", tmp_path / "out") == f"{tmp_path / 'out'}\n"
    assert read_stored(tmp_path / "out").config == read_stored(source).config
    assert same_weights(tmp_path / "out", source)


def test_an_export_of_ours_goes_to_the_original_programs_file(shared, command, tmp_path):
    source = shared / "golden" / "pixel_heads" / "token"
    command("export", "--model", source, "--to", "safetensors", "--out", tmp_path / "ours")
    command("export", "--model", tmp_path / "ours", "--to", "pixel", "--out", tmp_path / "published")
    assert sorted(file.name for file in (tmp_path / "published").iterdir()) == ["config.json", PICKLED]
    assert same_weights(tmp_path / "published", source)


def test_a_classifiers_pooling_is_said_on_the_way_into_our_format(shared, command, refused, tmp_path):
    words = ("export", "--model", shared / "golden" / "pixel_heads" / "sequence_max", "--to", "safetensors")
    assert "give pooling = mean or max" in refused(*words, "--out", tmp_path / "out")
    command(*words, "--out", tmp_path / "out", "--pooling", "max")
    config = read_stored(tmp_path / "out").config
    assert isinstance(config, ViTTaskConfig) and config.pooling == "max"


@pytest.mark.parametrize(
    ("model", "to", "message"),
    [
        ("pixel_mae", "bundle", "is a vit_mae model; choose pixel or vitmae or safetensors"),
        ("pixel_mae", "hf", "is a vit_mae model"),
        ("pixel_heads/qa", "vitmae", "is a vit_task model; choose pixel or safetensors"),
        ("decoder_tiny_bundle", "pixel", "is a decoder model; choose bundle or hf or safetensors"),
        ("pixel_mae", "onnx", "--to onnx: unknown format; choose bundle, hf, pixel, vitmae, pixar, safetensors"),
    ],
)
def test_a_format_for_another_kind_is_refused(shared, refused, tmp_path, model, to, message):
    out = tmp_path / "out"
    assert message in refused("export", "--model", shared / "golden" / model, "--to", to, "--out", out)
    assert not out.exists()


def test_merging_and_pooling_need_something_to_act_on(shared, refused, tmp_path):
    words = ("export", "--model", shared / "golden" / "pixel_mae", "--to", "pixel", "--out", tmp_path / "out")
    assert "has no adapters to merge" in refused(*words, "--merge")
    assert "is no classifier of strips" in refused(*words, "--pooling", "mean")


def test_inspect_shows_a_pretrained_model(shared, command):
    folder = shared / "golden" / "pixel_mae"
    report = json.loads(command("inspect", folder, "--json", "--tensors"))
    assert (report["format"], report["kind"], report["dead"]) == ("pixel", "vit_mae", [])
    tables = 50 * 64 + 50 * 32
    assert report["frozen"] == tables
    assert report["parameters"] + tables == sum(torch.Size(row["shape"]).numel() for row in report["tensors"])
    text = command("inspect", folder)
    assert f"{report['parameters']:,}" in text and "frozen positions" in text


@pytest.mark.parametrize("to", ["pixar", "safetensors"])
def test_a_model_that_writes_strips_goes_into_each_of_its_formats(shared, command, tmp_path, to):
    source = shared / "golden" / "pixar_rgb"
    command("export", "--model", source, "--to", to, "--out", tmp_path / "out")
    assert read_stored(tmp_path / "out").config == read_stored(source).config
    assert same_weights(tmp_path / "out", source)
    text = command("inspect", tmp_path / "out")
    assert "kind                        pixar\n" in text and "frozen" not in text


@pytest.mark.parametrize(
    "words", [("generate", "--prompt", "a"), ("reconstruct", "--text", "a"), ("embed", "--text", "a", "--out", "a.npz")]
)
def test_a_model_that_writes_strips_is_refused_by_commands_for_others(shared, refused, words):
    line = refused(words[0], "--model", shared / "golden" / "pixar_binary", *words[1:])
    assert "a pixar model; it writes strips patch by patch: use continue, or evaluate by one of its benchmarks" in line


def test_inspect_shows_dead_tensors_and_an_open_question(shared, command):
    heads = shared / "golden" / "pixel_heads"
    report = json.loads(command("inspect", heads / "qa", "--json"))
    assert [row["name"] for row in report["dead"]] == ["classifier.weight", "classifier.bias"]
    assert "stored and never read\n  classifier.weight" in command("inspect", heads / "qa")
    assert "not said: mean or max" in command("inspect", heads / "sequence_mean")


def test_inspect_shows_how_strips_were_drawn(shared, command, tmp_path):
    stored = read_stored(shared / "golden" / "pixel_mae")
    out = tmp_path / "published"
    command("export", "--model", stored.path, "--to", "pixel", "--out", out)
    table = {"font_file": "Go.ttf", "font_size": 8, "fonts_list": ["every font of that machine"]}
    (out / "text_renderer_config.json").write_text(json.dumps(table))
    text = command("inspect", out)
    assert "renderer                    as published" in text and "Go.ttf" in text and "every font" not in text
    assert json.loads(command("inspect", out, "--json"))["renderer"] == table
