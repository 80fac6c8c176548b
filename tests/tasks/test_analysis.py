"""Looking into an encoder: vectors of all layers, who finds whose translation, what a probe reads, and pictures."""

import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from infer import embed
from infer.layer_vectors import draw_texts, random_encoder, text_vectors, word_vectors
from infer.probe import train_probe
from infer.probe_words import choose_words, read_treebank
from infer.retrieval import (
    MEAN,
    check_alignment,
    evenly,
    hits_of_shared_strings,
    hits_of_vectors,
    read_languages,
    recalls,
)
from infer.vector_map import neighbours_alike, pca, tsne
from pixelcore.errors import UserError
from render import Renderer
from tests.infer import tiny_pixar
from tests.infer.conftest import command, refused  # noqa: F401 - fixtures
from tests.infer.tiny_pixels import RENDER, TEXT, classifier, mae, stored, write_run
from tests.tasks.tiny_tasks import treebank

TEXTS = [TEXT, "Hello", "Pack my box", "a"]
WORDS = [["Hello", "you"], ["one", "two", "three"]]

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib absent (the extra `plot`)"
)


@pytest.fixture(scope="module")
def model():
    return mae()


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(RENDER)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


# ------------------------------------------------------------------ vectors


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_a_text_is_the_mean_over_cls_and_patches_of_each_layer(kind, renderer):
    model = mae() if kind == "mae" else classifier()
    found = text_vectors(model, draw_texts(model, renderer, TEXTS))
    published = text_vectors(model, draw_texts(model, renderer, TEXTS), "published")
    assert found.shape == (3, 4, 16)
    for layer in range(3):
        patches, cls = (embed(model, renderer, TEXTS, pooling=pooling, layer=layer) for pooling in ("mean", "cls"))
        count = patches.num_patches[:, None]
        total = patches.vectors * count + cls.vectors
        np.testing.assert_allclose(found[layer], total / (count + 1), atol=1e-5)
        np.testing.assert_allclose(published[layer], total / count, atol=1e-5)


def test_a_vector_does_not_depend_on_the_other_texts(model, renderer, monkeypatch):
    together = text_vectors(model, draw_texts(model, renderer, TEXTS))
    monkeypatch.setattr("infer.layer_vectors.PATCHES_PER_PASS", 20)
    np.testing.assert_allclose(text_vectors(model, draw_texts(model, renderer, TEXTS)), together, atol=1e-5)
    drawn = draw_texts(model, renderer, WORDS)
    vectors, _ = word_vectors(model, drawn, [[0, 1], [2]])
    monkeypatch.undo()
    np.testing.assert_allclose(word_vectors(model, drawn, [[0, 1], [2]])[0], vectors, atol=1e-5)


def test_a_word_is_the_mean_of_its_patches_and_only_wanted_words_are_given(model, renderer):
    vectors, seen = word_vectors(model, draw_texts(model, renderer, WORDS), [[1], [0, 2]])
    assert seen.tolist() == [True] * 3
    for layer in range(3):
        everything = embed(model, renderer, WORDS, layer=layer).word_vectors
        assert everything is not None
        np.testing.assert_allclose(vectors[layer], everything[[1, 2, 4]], atol=1e-5)


def test_what_does_not_fit_is_counted_and_a_lost_word_is_zero(model, renderer):
    drawn = draw_texts(model, renderer, [["word"] * 60, ["word"]])
    assert drawn.truncated == 0.5
    vectors, seen = word_vectors(model, drawn, [[0, 59], [0]])
    assert seen.tolist() == [True, False, True]
    assert not vectors[:, 1].any() and vectors[:, 0].any()
    assert draw_texts(model, renderer, ["\U000e0123x", "abc"]).missing_glyphs <= 0.25
    with pytest.raises(UserError, match="text 2 is empty"):
        draw_texts(model, renderer, ["a", " "])


def test_a_random_encoder_follows_from_its_seed_and_is_not_the_model(model):
    one, same, other = (random_encoder(model, seed).state_dict() for seed in (1, 1, 2))
    name = "encoder.blocks.0.qkv.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert one.keys() == model.state_dict().keys()


# ------------------------------------------------------------------ retrieval


def test_recall_equals_a_slow_loop():
    generator = np.random.default_rng(0)
    common = generator.standard_normal((30, 6))
    vectors = {name: (common + generator.standard_normal((30, 6)) + 3).astype(np.float32) for name in "abc"}
    hits = hits_of_vectors(vectors, 4)
    mean = np.mean([row for rows in vectors.values() for row in rows], axis=0, dtype=np.float64)
    for a, b in ((a, b) for a in "abc" for b in "abc" if a != b):
        for i in range(30):
            one = vectors[a][i] - mean
            cosines = [
                float(one @ (other - mean) / np.linalg.norm(one) / np.linalg.norm(other - mean)) for other in vectors[b]
            ]
            best = sorted(range(30), key=lambda place: -cosines[place])[:4]
            assert hits[f"{a}>{b}"][i] == float(i in best)
    assert len(hits) == 6


def test_equal_vectors_give_chance_and_equal_sentences_everything():
    flat = {name: np.ones((20, 3), np.float32) for name in "ab"}
    np.testing.assert_allclose(hits_of_vectors(flat, 5)["a>b"], 0.25)
    own = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    assert (hits_of_vectors({"a": own, "b": own}, 1)["b>a"] == 1).all()


def test_shared_strings_find_names_and_numbers_and_nothing_else():
    texts = {
        "x": ["In 1994 GPS came", "one thing", "the NASA of 2001", "two of them"],
        "y": ["gps 1994", "甲", "NASA 2001", "乙"],
    }
    hits = hits_of_shared_strings(texts, 1)["x>y"]
    assert hits[0] == hits[2] == 1
    assert hits[1] == hits[3] == 0.25  # nothing shared: any of the four


def test_the_mean_over_pairs_lies_within_its_interval():
    hits = {"a>b": np.repeat([1.0, 0.0], 50), "b>a": np.repeat([0.0, 1.0], [30, 70])}
    found = recalls(hits)
    assert found["a>b"].value == 0.5 and found[MEAN].value == pytest.approx(0.6)
    assert found["a>b"].low < 0.45 and found["a>b"].high > 0.55
    # sentences are drawn in all pairs at once: of opposite pairs the mean hardly moves
    assert found[MEAN].high - found[MEAN].low < found["a>b"].high - found["a>b"].low


def _languages(folder: Path, indices: dict[str, list[int]]) -> Path:
    for name, of in indices.items():
        (folder / name).mkdir(parents=True)
        rows = [f"{index}\t{'even' if index % 2 == 0 else 'odd'}\t{name} says {index}" for index in of]
        (folder / name / "train.tsv").write_text("\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
    return folder


def test_rows_that_are_not_aligned_are_refused(tmp_path):
    folder = _languages(tmp_path, {"aaa": [4, 7, 9], "bbb": [4, 9, 7], "ccc": [4, 7], "ddd": [4, 7, 9]})
    check_alignment(read_languages(folder, ["aaa", "ddd"]))
    with pytest.raises(UserError, match="sentence 2 has the index 7 in aaa and 9 in bbb"):
        check_alignment(read_languages(folder, ["aaa", "bbb"]))
    with pytest.raises(UserError, match="3 sentences in aaa and 2 in ccc"):
        check_alignment(read_languages(folder, ["aaa", "ccc"]))


def test_sib_is_aligned(shared):
    found = read_languages(shared / "data" / "sib200", ["eng_Latn", "hin_Deva", "zho_Hans"], "valid")
    check_alignment(found)
    assert [one.id.split(":")[1] for one in evenly(found["eng_Latn"], 7)] == [
        one.id.split(":")[1] for one in evenly(found["zho_Hans"], 7)
    ]


def test_retrieval_reports_all_layers_beside_what_needs_no_model(run, command, tmp_path):  # noqa: F811
    data = _languages(tmp_path / "sib", {"aaa": list(range(12)), "bbb": list(range(12))})
    words = ("evaluate", "retrieval", "--model", run, "--data", data, "--languages", "aaa,bbb", "--k", 2)
    status, out, _ = command(*words, "--json")
    report = json.loads(out)
    assert status == 0 and report["sentences"] == 12 and report["chance"] == pytest.approx(2 / 12)
    assert len(report["layers"]) == len(report["random"]) == 3
    assert report["shared"]["aaa>bbb"]["value"] == 1.0  # the number stands in both
    # the run is as training begins it, from the same seed
    assert report["layers"] == report["random"]
    _, text, _ = command(*words, "--sentences", 6, "--pooling", "published")
    assert "Recall@2 in per cent of 6 sentences; chance 33.3" in text and "random encoder" in text


# ------------------------------------------------------------------ probes


def test_a_probe_learns_what_is_written_into_vectors():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    vectors = generator.standard_normal((300, 10)) * 100
    vectors[:, 4] = 1000 + 0.01 * labels + 0.001 * generator.standard_normal(300)
    probe = train_probe(vectors[:200], labels[:200], vectors[200:250], labels[200:250], 3)
    assert (probe.predict(vectors[250:]) == labels[250:]).mean() > 0.9


def test_a_probe_of_noise_gives_the_most_frequent_label():
    generator = np.random.default_rng(0)
    labels = (generator.random(900) < 0.2).astype(np.int64)
    vectors = generator.standard_normal((900, 4))
    vectors[:, 2] = 7.0  # a constant column is no division by zero
    probe = train_probe(vectors[:600], labels[:600], vectors[600:700], labels[600:700], 2)
    assert (probe.predict(vectors[700:]) == 0).all()


def test_a_probe_is_a_penalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((120, 5))
    labels = (vectors[:, 0] + generator.standard_normal(120) > 0).astype(np.int64) + (vectors[:, 1] > 1)
    probe = train_probe(vectors, labels, vectors[:40], labels[:40], 3)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    witness = LogisticRegression(C=1 / (probe.l2 * 120), tol=1e-8, max_iter=1000).fit(scaled, labels)
    np.testing.assert_allclose(probe.weight_EK[:-1].T, witness.coef_, atol=2e-3)


_FEATURES = ("Case=Nom|Number=Sing", "_", "Case=Acc", "Case=Acc|Number=Plur")


def _with_features(folder: Path) -> Path:
    """The tiny treebank, each sentence with these features."""
    for file in treebank(folder).glob("*.conllu"):
        lines = file.read_text(encoding="utf-8").split("\n")
        for place, line in enumerate(lines):
            if "\t" in line:
                fields = line.split("\t")
                fields[5] = _FEATURES[int(fields[0]) - 1]
                lines[place] = "\t".join(fields)
        file.write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_only_words_with_the_feature_are_chosen(tmp_path):
    data = read_treebank(_with_features(tmp_path / "bank"), "Number")
    words = choose_words(data["train"], 5, 0)
    assert words.wanted == [[0, 3], [0, 3], [0]]
    assert words.flat == ["Sing", "Plur", "Sing", "Plur", "Sing"] and len(words.forms) == 5
    assert words.owner.tolist() == [0, 0, 1, 1, 2]
    assert choose_words(data["train"], 5, 1).sentences != words.sentences
    assert len(choose_words(data["test"], 1000, 0).flat) == 24


def test_probes_report_all_layers_beside_what_needs_no_model(run, command, tmp_path):  # noqa: F811
    data = _with_features(tmp_path / "bank")
    words = ("evaluate", "probe", "--model", run, "--data", data, "--feature", "Case", "--words", 24, "--seeds", 2)
    status, out, _ = command(*words, "--json")
    report = json.loads(out)
    assert status == 0 and report["labels"] == ["Acc", "Nom"] and report["words"]["test"] == 24
    assert report["baselines"]["majority"]["value"] == pytest.approx(2 / 3)
    assert report["baselines"]["most frequent of the word"]["value"] > 0.9
    assert len(report["layers"]) == 3 and report["lost"] == 0
    for layer in report["layers"]:
        assert 0 <= layer["model"]["low"] <= layer["model"]["value"] <= layer["model"]["high"] <= 1
        gain = layer["model"]["value"] - layer["random"]["value"]
        assert math.isclose(layer["gain"]["difference"], gain, abs_tol=1e-9) and layer["gain"]["seeds"] == [2, 2]
    _, text, _ = command(*words[:-2])
    assert "majority" in text and text.count("\n") == 9


# ------------------------------------------------------------------ maps


def _blobs() -> tuple[np.ndarray, list[str]]:
    generator = np.random.default_rng(0)
    centres = np.repeat([[4.0] * 8, [-4.0] * 8], 30, axis=0)
    return centres + generator.standard_normal((60, 8)), ["one"] * 30 + ["two"] * 30


@pytest.mark.parametrize("method", [tsne, pca])
def test_two_groups_stay_apart(method):
    vectors, _ = _blobs()
    points = method(vectors)
    assert points.shape == (60, 2) and np.isfinite(points).all()
    apart = np.linalg.norm(points[:30].mean(0) - points[30:].mean(0))
    spread = max(np.linalg.norm(half - half.mean(0), axis=1).max() for half in (points[:30], points[30:]))
    assert apart > 1.5 * spread
    np.testing.assert_array_equal(points, method(vectors))


def test_tsne_is_as_good_as_that_of_scikit_learn():
    from sklearn.manifold import TSNE

    from infer.vector_map import _neighbourhood, _squared_distances

    vectors = np.random.default_rng(2).standard_normal((60, 5))
    shared = _neighbourhood(vectors, (60 - 1) / 3)
    near = 1 / (1 + _squared_distances(tsne(vectors)))
    np.fill_diagonal(near, 0)
    ours = float((shared * np.log(shared / np.maximum(near / near.sum(), 1e-12))).sum())
    witness = TSNE(perplexity=59 / 3, method="exact", init="random", random_state=0)
    witness.fit(vectors)
    assert ours < witness.kl_divergence_ * 1.1


def test_neighbours_alike_are_counted_beside_chance():
    vectors, names = _blobs()
    assert neighbours_alike(vectors, names) == (1.0, pytest.approx(29 / 59))
    share, random = neighbours_alike(np.random.default_rng(3).standard_normal((200, 5)), ["a", "b"] * 100)
    assert abs(share - random) < 0.06


def test_equal_vectors_are_a_picture_too():
    assert np.isfinite(tsne(np.ones((8, 3)), steps=300)).all()
    assert np.isfinite(pca(np.ones((8, 3)))).all()


@needs_matplotlib
def test_a_map_is_drawn_of_languages_and_of_a_table(run, command, tmp_path):  # noqa: F811
    data = _languages(tmp_path / "sib", {"aaa": list(range(8)), "bbb": list(range(8))})
    words = ("evaluate", "map", "--model", run, "--out", tmp_path / "map.png", "--json")
    status, out, _ = command(*words, "--data", data, "--layers", "0,2", "--texts", 12)
    report = json.loads(out)
    assert status == 0 and [row["layer"] for row in report["layers"]] == [0, 2]
    assert report["texts"] == 12 and report["colour"] == "language"
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    table = tmp_path / "topics.tsv"
    table.write_text("text\tlabel\n" + "".join(f"the ferry {number}\t{number % 2}\n" for number in range(9)))
    status, out, _ = command(*words, "--data", table, "--method", "pca", "--layers", "1")
    assert status == 0 and json.loads(out)["colour"] == "label"


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("retrieval", "--data", "sib", "--languages", "aaa"), "name at least two"),
        (("retrieval", "--data", "sib", "--languages", "aaa,aaa"), "aaa stands there twice"),
        (("retrieval", "--data", "sib", "--languages", "aaa,zzz"), "zzz: not in .* there are aaa, bbb"),
        (("retrieval", "--data", "sib", "--languages", "aaa,bbb", "--split", "test"), "no test file"),
        (("retrieval", "--data", "sib", "--languages", "aaa,bbb", "--split", "dev"), "--split dev: unknown"),
        (("retrieval", "--data", "sib", "--languages", "aaa,bbb", "--pooling", "max"), "choose mean, published"),
        (("retrieval", "--data", "sib", "--languages", "aaa,bbb", "--k", "6"), "must be less than the 6 sentences"),
        (("retrieval", "--data", "sib", "--languages", "aaa,bbb", "--k", "0"), "must be at least 1"),
        (("retrieval", "--data", "nowhere", "--languages", "aaa,bbb"), "no folders of languages"),
        (("probe", "--data", "bank", "--feature", "Tense"), "there are upos, Case, Number"),
        (("probe", "--data", "sib"), "no file with train, dev or test"),
        (("probe", "--data", "bank", "--words", "0"), "--words 0: must be at least 1"),
        (("probe", "--data", "bank", "--words", "1"), "all training words have the label"),
        pytest.param(("map", "--data", "sib", "--out", "map.jpg"), "end in .png", marks=needs_matplotlib),
        pytest.param(
            ("map", "--data", "sib", "--out", "m.png", "--texts", "2001"), "at most 2000", marks=needs_matplotlib
        ),
        pytest.param(
            ("map", "--data", "sib", "--out", "m.png", "--layers", "3"), "from 0 to 2", marks=needs_matplotlib
        ),
        pytest.param(
            ("map", "--data", "sib", "--out", "m.png", "--method", "pca", "--seed", "1"),
            "leave it out",
            marks=needs_matplotlib,
        ),
        pytest.param(
            ("map", "--data", "bare.tsv", "--out", "m.png"), "--colour label: the texts", marks=needs_matplotlib
        ),
        pytest.param(
            ("map", "--data", "sib", "--out", "m.png", "--texts", "4", "--colour", "hue"),
            "choose language, label",
            marks=needs_matplotlib,
        ),
    ],
)
def test_mistakes_are_one_line(words, message, run, refused, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    _languages(tmp_path / "sib", {"aaa": list(range(6)), "bbb": list(range(6))})
    _with_features(tmp_path / "bank")
    (tmp_path / "bare.tsv").write_text("text\n" + "".join(f"the ferry {number}\n" for number in range(9)))
    err = refused("evaluate", words[0], "--model", run, *words[1:])
    assert re.search(message, err), err


def test_other_models_are_refused_in_one_line(refused, tmp_path):  # noqa: F811
    other = write_run(tmp_path / "pixar", tiny_pixar.stored(tiny_pixar.pixar()))
    data = _with_features(tmp_path / "bank")
    assert "a pixar model; layers are compared for encoders of strips alone" in refused(
        "evaluate", "probe", "--model", other, "--data", data
    )
