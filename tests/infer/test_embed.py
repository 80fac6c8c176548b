"""Vectors of texts and words: what they are means of, and that nothing else decides them."""

import json
import sys

import numpy as np
import pytest
import torch

from infer import embed
from infer.embed import save
from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.infer.tiny_pixels import CONFIG, RENDER, TEXT, classifier, mae, stored, write_run

TEXTS = [TEXT, "Hello", "Pack my box with jugs", "a"]


@pytest.fixture(scope="module")
def model():
    return mae()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RENDER)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


def _rows(model, strip) -> torch.Tensor:
    """[L + 1, D], CLS and patches, by the dense form of the patches."""
    from pixelcore.patches import arrange_dense

    pixels = torch.from_numpy(np.ascontiguousarray(strip.pixels))[None, None]
    patches, _, _ = arrange_dense(pixels, model.config)
    with torch.no_grad():
        return model.encode(patches)


def test_the_mean_is_over_the_patches_end_patch_included_and_cls_not(model, renderer):
    rows = _rows(model, renderer(TEXT))
    found = embed(model, renderer, [TEXT])
    np.testing.assert_allclose(found.vectors[0], rows[1:].mean(0), atol=1e-6)
    assert found.num_patches.tolist() == [len(rows) - 1]


def test_cls_and_max(model, renderer):
    rows = _rows(model, renderer(TEXT))
    np.testing.assert_allclose(embed(model, renderer, [TEXT], pooling="cls").vectors[0], rows[0], atol=1e-6)
    np.testing.assert_allclose(embed(model, renderer, [TEXT], pooling="max").vectors[0], rows[1:].amax(0), atol=1e-6)


def test_a_vector_does_not_depend_on_the_batch(model, renderer, monkeypatch):
    monkeypatch.setattr(sys.modules["infer.embed"], "PATCHES_PER_PASS", 20)
    together = embed(model, renderer, TEXTS).vectors
    monkeypatch.undo()
    for vector, text in zip(together, TEXTS, strict=True):
        np.testing.assert_allclose(vector, embed(model, renderer, [text]).vectors[0], atol=1e-5)
    np.testing.assert_array_equal(embed(model, renderer, TEXTS).vectors, embed(model, renderer, TEXTS).vectors)


def test_layers_count_from_the_embedded_patches_to_the_last_block_and_the_norm_comes_after(model, renderer):
    layers = [embed(model, renderer, [TEXT], pooling="cls", layer=layer).vectors[0] for layer in (0, 1, 2)]
    cls = model.encoder.cls_token[0].detach().numpy()
    np.testing.assert_allclose(layers[0], cls, atol=1e-6)  # the position of CLS is zero
    assert not np.allclose(layers[1], layers[2])
    last = torch.from_numpy(layers[2])
    norm = model.encoder.norm
    with torch.no_grad():
        expected = torch.nn.functional.layer_norm(last, last.shape, norm.weight, norm.bias, CONFIG.layer_norm_eps)
    np.testing.assert_allclose(embed(model, renderer, [TEXT], pooling="cls").vectors[0], expected, atol=1e-5)


def test_a_fine_tuned_model_gives_the_vectors_of_its_encoder(renderer):
    task = classifier()
    assert embed(task, renderer, [TEXT]).vectors.shape == (1, CONFIG.hidden_size)


@pytest.mark.parametrize("layout", ["continuous", "words", "bigrams", "adaptive"])
def test_a_word_is_the_mean_of_its_patches(model, layout):
    renderer = Renderer(RenderConfig(layout=layout, max_patches=36))
    texts = [["Hello", "you"], ["one", "two", "three"]]
    found = embed(model, renderer, texts)
    assert found.words == ("Hello", "you", "one", "two", "three")
    assert found.texts == ("Hello you", "one two three")
    assert found.word_offsets is not None and found.word_spans is not None and found.word_vectors is not None
    assert found.word_offsets.tolist() == [0, 2, 5]
    for index, words in enumerate(texts):
        strip = renderer(words)
        rows, starts = _rows(model, strip), strip.word_starts
        assert starts is not None
        first = int(found.word_offsets[index])
        for place in range(len(words)):
            begin, end = int(starts[place]), int(starts[place + 1])
            assert found.word_spans[first + place].tolist() == [begin, end]
            expected = rows[begin + 1 : end + 1].mean(0)
            np.testing.assert_allclose(found.word_vectors[first + place], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "at least one text"),
        ("Hello", {}, "give a list"),
        (["Hello", ""], {}, "text 2 is empty"),
        ([["Hello", ""]], {}, "text 1: one of its words is empty"),
        (["Hello", ["you"]], {}, "some are strings and some are lists"),
        (["Hello", TEXT * 9], {}, "text 2 needs .* more than the 36 patches"),
        (["Hello"], {"pooling": "sum"}, "choose mean, cls, max"),
        (["Hello"], {"layer": 3}, "has 2 blocks: choose 0"),
        (["Hello"], {"layer": -2}, "layer = -2"),
    ],
)
def test_what_has_no_vector_is_one_line(model, renderer, texts, options, message):
    with pytest.raises(UserError, match=message):
        embed(model, renderer, texts, **options)


# ------------------------------------------------------------------ the command


def test_the_file_has_vectors_words_and_spans_and_no_pickle(run, command, tmp_path, model, renderer):
    data, out = tmp_path / "lines.jsonl", tmp_path / "v.npz"
    data.write_text('{"text": "Hello you"}\n{"text": "Пак my box"}\n', encoding="utf-8")
    status, said, _ = command("embed", "--model", run, "--data", data, "--words", "--json", "--out", out)
    assert (status, json.loads(said)["num_words"]) == (0, 5)
    expected = embed(model, renderer, [["Hello", "you"], ["Пак", "my", "box"]])
    with np.load(out, allow_pickle=False) as file:
        assert file["words"].tolist() == ["Hello", "you", "Пак", "my", "box"]
        assert file["texts"].tolist() == ["Hello you", "Пак my box"]
        assert file["word_offsets"].tolist() == [0, 2, 5]
        np.testing.assert_array_equal(file["vectors"], expected.vectors)
        np.testing.assert_array_equal(file["word_vectors"], expected.word_vectors)
        np.testing.assert_array_equal(file["word_spans"], expected.word_spans)
        assert (str(file["pooling"]), int(file["layer"]), str(file["model_name"])) == ("mean", -1, "tiny")


def test_without_words_the_running_text_is_drawn(run, command, tmp_path, model, renderer):
    out = tmp_path / "v.npz"
    status, said, _ = command("embed", "--model", run, "--text", TEXT, "--layer", 1, "--pooling", "max", "--out", out)
    assert (status, "1 texts, vectors of 16 values" in said) == (0, True)
    with np.load(out, allow_pickle=False) as file:
        assert "words" not in file
        expected = embed(model, renderer, [TEXT], layer=1, pooling="max").vectors
        np.testing.assert_array_equal(file["vectors"], expected)


def test_two_files_of_the_same_vectors_are_equal(model, renderer, tmp_path):
    for name in ("a.npz", "b.npz"):
        save(tmp_path / name, embed(model, renderer, TEXTS), {"model": "tiny"})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--text", "x"), "the following arguments are required: --out"),
        (("--text", "x", "--out", "v.npy"), "let the name end in it"),
        (("--text", "x", "--pooling", "sum", "--out", "v.npz"), "--pooling sum: unknown"),
        (("--text", "x", "--layer", "9", "--out", "v.npz"), "layer = 9"),
        (("--text", "", "--out", "v.npz"), "text 1 is empty"),
        (("--text", TEXT * 9, "--out", "v.npz"), "more than the 36 patches"),
        (("--data", "no_such_file", "--out", "v.npz"), "no_such_file"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, refused, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("embed", "--model", run, *argv)
    assert not list(tmp_path.iterdir())
