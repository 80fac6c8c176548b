"""From paths to rows: who is held out, and what the corpus says of itself."""

from dataclasses import replace

import pytest

from render import RenderConfig, Renderer
from tests.train.conftest import small_text
from train.config import StripDataConfig
from train.data import corpus
from train.data.strips import strip_corpus
from train.data.strips.strip_corpus import StripCorpus, build_strip_corpus

RENDERER = Renderer(RenderConfig(fonts=()))
DATA = StripDataConfig(row_patches=40, min_patches=5, workers=0, valid_share=0.2)


def build(data: StripDataConfig, max_eval_rows: int = 1000) -> StripCorpus:
    sources, held_out = corpus.find_sources(data)
    return build_strip_corpus(sources, held_out, RENDERER, data, max_eval_rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    paths = []
    for name, seed in (("one", 1), ("two", 5), ("three", 9)):
        (folder / f"{name}.txt").write_text(small_text(40, seed).replace("ferryman", name))
        paths.append(str(folder / f"{name}.txt"))
    return paths


def test_every_path_is_a_source_with_held_out_documents(files: list[str]):
    made = build(replace(DATA, paths=tuple(files[:2])))
    assert [len(stores) for stores in (made.sources, made.splits, made.training, made.held_out)] == [2, 2, 2, 2]
    assert 0 <= made.overlap <= 1
    assert made.belongings.renderer == {"config": RENDERER.config.to_dict(), "identity": RENDERER.identity()}
    assert f"{sum(map(len, made.training)):,} rows to train on, {sum(map(len, made.held_out)):,} held out" in (
        made.description
    )
    for training, held_out in zip(made.training, made.held_out, strict=True):
        assert training.counts["documents"] + held_out.counts["documents"] == 40


def test_held_out_text_may_be_files_of_its_own(files: list[str]):
    made = build(replace(DATA, paths=(files[0],), valid=(files[2],)))
    assert [store.counts["documents"] for store in made.training + made.held_out] == [40, 40]
    texts = [made.held_out[0].text(row) for row in range(len(made.held_out[0]))]
    assert any("three" in text for text in texts)


def test_held_out_text_that_is_trained_on_is_seen(files: list[str]):
    assert build(replace(DATA, paths=(files[0],), valid=(files[0],))).overlap == 1


def test_held_out_rows_are_thinned_to_what_is_asked_for(files: list[str]):
    data = replace(DATA, paths=tuple(files[:2]))
    few = build(data, max_eval_rows=8)
    assert [0 < len(store) <= 4 for store in few.held_out] == [True, True]
    assert [len(store) for store in build(data, max_eval_rows=1).held_out] == [1, 1]


def test_a_second_run_finds_everything_and_has_the_same_fingerprint(files: list[str], monkeypatch: pytest.MonkeyPatch):
    data = replace(DATA, paths=(files[0],))
    made = build(data)
    monkeypatch.setattr(strip_corpus, "overlap_share", None)
    again = build(data)
    assert (again.fingerprint, again.overlap) == (made.fingerprint, made.overlap)
    monkeypatch.undo()
    assert build(replace(data, min_patches=6)).fingerprint != made.fingerprint
