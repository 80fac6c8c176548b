"""The held-out split: by content, the same before and after tokenizing, never empty, never overlapping."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelcore.errors import UserError
from pixelcore.tokenizer import train_tokenizer
from train.data.split import SplitRule, overlap_share, split_files, split_store, training_documents
from train.data.token_store import TokenStore, prepare

ROLES = ("train", "valid", "test")


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes files "a.txt", "b.txt", ... with the given numbers of documents, each document its own text."""

    def make(*counts: int) -> list[Path]:
        files = [tmp_path / "texts" / f"{chr(97 + number)}.txt" for number in range(len(counts))]
        for file, count in zip(files, counts):
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n\n".join(f"Text {file.stem} {document}." for document in range(count)))
        return files

    return make


def stored(files: list[Path], tmp_path: Path) -> TokenStore:
    return prepare(files, train_tokenizer(["Text abc 0123456789."], 280), tmp_path / "cache")


def names(texts) -> list[str]:
    return [text.removeprefix("Text ").removesuffix(".") for text in texts]


@pytest.mark.parametrize("split", ["by-file", "by-document", ("b.txt",), ()])
@pytest.mark.parametrize("test", [(), ("c.*",)])
def test_raw_files_and_store_are_split_alike_and_completely(source, tmp_path, split: SplitRule, test: tuple[str, ...]):
    files = source(30, 20, 10, 5)
    raw, prepared = split_files(files, split, 0.1, test), split_store(stored(files, tmp_path), split, 0.1, test)
    assert raw == prepared
    store = stored(files, tmp_path)
    every = [f"{file.stem} {number}" for file, count in zip(files, (30, 20, 10, 5)) for number in range(count)]
    found = []
    for role in ROLES:
        selection = prepared.select(store, role)
        chosen = [every[document] for chunk in selection.chunks(7) for document in chunk]
        assert chosen == names(raw.texts(files, role)) == [every[d] for chunk in selection.chunks() for d in chunk]
        found += chosen
    assert sorted(found) == sorted(every)
    assert names(training_documents(files, split, 0.1, test)) == names(raw.texts(files, "train"))
    assert bool(names(raw.texts(files, "valid"))) == (split != ())
    assert len({prepared.select(store, role).key for role in ROLES}) == 3


def test_by_file_holds_out_enough_whole_files_by_content(source):
    files = source(*range(1, 11))
    split = split_files(files, "by-file", 0.25)
    assert split.roles.count("valid") == 3
    backwards = split_files(files[::-1], "by-file", 0.25)
    assert backwards.roles == split.roles[::-1]
    assert split_files(files, "by-file", 0.001).roles.count("valid") == 1
    assert split_files(files[:2], "by-file", 0.999).roles.count("train") == 1


def test_by_document_holds_out_about_the_share(source):
    files = source(3000, 1000)
    held_out = names(split_files(files, "by-document", 0.1).texts(files, "valid"))
    assert 330 < len(held_out) < 470
    assert {name[0] for name in held_out} == {"a", "b"}
    alone = names(split_files(files[:1], "by-document", 0.1).texts(files[:1], "valid"))
    assert alone == [name for name in held_out if name[0] == "a"]


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("counts", [(2,), (1, 1), (3, 2)])
def test_no_side_is_ever_empty(source, tmp_path, share: float, counts: tuple[int, ...]):
    files = source(*counts)
    split = split_files(files, "by-document", share)
    assert split == split_store(stored(files, tmp_path), "by-document", share)
    assert all(names(split.texts(files, role)) for role in ("train", "valid"))


@pytest.mark.parametrize(("counts", "split", "share", "test", "message"), [
    ((5,), "by-file", 0.1, (), "needs at least 2 files besides the test files, there is 1"),
    ((5, 5), "by-file", 0.1, ("a.txt",), "there is 1"),
    ((1,), "by-document", 0.1, (), "needs at least 2 documents"),
    ((1, 1), "by-document", 0.1, ("b.txt",), "needs at least 2 documents"),
    ((5, 5), ("b.text",), 0.1, (), r"data\.split: no file is called 'b\.text'; near names: b\.txt"),
    ((5, 5), "by-file", 0.1, ("zzz*",), r"data\.test: no file is called 'zzz\*'; near names: a\.txt, b\.txt"),
    ((5, 5), ("*.txt",), 0.1, (), "all 2 files are held out or for testing"),
    ((5, 5), (), 0.1, ("a.txt", "b.txt"), "all 2 files are held out or for testing"),
    ((5, 5), ("a.txt",), 0.1, ("a*",), "a.txt is named by data.split and by data.test"),
    ((5, 5), "by-page", 0.1, (), 'data.split = "by-page": must be'),
    ((5, 5), "by-file", 0.0, (), "data.share = 0.0 must be above 0"),
])  # fmt: skip
def test_impossible_splits_are_refused(source, counts, split, share, test, message: str):
    with pytest.raises(UserError, match=message):
        split_files(source(*counts), split, share, test)


def test_relative_paths_name_files_in_folders(tmp_path: Path):
    files = [tmp_path / folder / "same.txt" for folder in ("one", "two", "three")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    assert split_files(files, ("two/same.txt",)).roles == ("train", "valid", "train")
    assert split_files(files, ("t*/same.txt",)).roles == ("train", "valid", "valid")


def slow_overlap(train: list[str], held_out: list[str], window: int) -> float:
    known = {text[start : start + window] for text in train for start in range(len(text) - window + 1)}
    windows = [text[start : start + window] for text in held_out for start in range(len(text) - window + 1)]
    return sum(text in known for text in windows) / max(1, len(windows))


def test_overlap_equals_its_definition():
    generator = np.random.default_rng(0)
    words = ["ship", "dawn", "नमस्ते", "😀", "sea"]
    texts = [" ".join(generator.choice(words, generator.integers(1, 60))) for _ in range(60)]
    train, held_out = texts[:50], texts[50:] + ["short", texts[0], "x" + texts[1][5:] + "y"]
    for window in (5, 20, 50):
        expected = slow_overlap(train, held_out, window)
        assert 0 < expected < 1
        assert overlap_share(iter(train), iter(held_out), window) == pytest.approx(expected, abs=1e-12)


def test_overlap_of_known_texts():
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    other = "".join(chr(0x4E00 + number) for number in range(80))
    assert overlap_share([text], [text]) == 1.0
    assert overlap_share([other], [text]) == 0.0
    assert overlap_share([text], [text, other]) == pytest.approx(slow_overlap([text], [text, other], 50))
    assert overlap_share([text], ["too short"]) == overlap_share([], [text]) == overlap_share([text], []) == 0.0
    assert overlap_share([text[:40], text[40:]], [text]) == 0.0, (
        "a window must not reach from one document into the next"
    )


def test_large_overlaps_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(1)
    texts = ["".join(map(chr, generator.integers(97, 123, 400))) for _ in range(2000)]
    held_out = [text if number % 4 == 0 else text[::-1] for number, text in enumerate(texts)]
    assert overlap_share(texts, held_out, max_windows=5000) == pytest.approx(0.25, abs=0.02)
