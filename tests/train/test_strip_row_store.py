"""The row store: the same however it was built, whole or absent, and able to tell whether rows are as they were."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pixelcore.errors import UserError
from render import RenderConfig, Renderer
from tests.conftest import ROOT
from tests.train.conftest import small_text
from train.config import StripDataConfig
from train.data.split import Role, SplitRule, split_files
from train.data.strips import row_store
from train.data.strips.row_store import RowStore, prepare_rows

RENDERER = Renderer(RenderConfig(fonts=()))
LEFT_OUT = StripDataConfig(row_patches=40, min_patches=10, workers=0)


def prepare(
    file: Path, cache: Path, data: StripDataConfig = LEFT_OUT, split: SplitRule = (), role: Role = "train", **more: Any
) -> RowStore:
    return prepare_rows([file], split_files([file], split, 0.2), role, more.get("renderer", RENDERER), data, cache)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "a.txt"
    path.write_text(small_text(60) + "\nShort.\n")
    return path


def contents(store: RowStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "rows").iterdir()) if (cache / "rows").exists() else []


def words(text: str) -> list[str]:
    return text.split()


def test_a_store_holds_the_rows_of_all_documents_in_order(file: Path, tmp_path: Path):
    store = prepare(file, tmp_path, replace(LEFT_OUT, min_patches=2))
    texts = [store.text(row) for row in range(len(store))]
    assert words(" ".join(texts)) == words(file.read_text())
    documents = [" ".join(document.split()) for document in file.read_text().split("\n\n")]
    assert all(any(text in document for document in documents) for text in texts), "a row crosses documents"
    assert store.counts["documents"] == len(documents)
    assert store.counts["rows"] == len(store) == len(store.hashes) == len(store.num_patches)
    assert store.row_patches == 40 >= store.num_patches.max()
    with pytest.raises(IndexError, match=f"row {len(store)} of {len(store)}"):
        store.text(len(store))


def test_short_rows_are_left_out_and_counted(file: Path, tmp_path: Path):
    every, long = prepare(file, tmp_path, replace(LEFT_OUT, min_patches=2)), prepare(file, tmp_path)
    short = [row for row in range(len(every)) if every.num_patches[row] < 10]
    assert 0 < len(short) < len(every)
    assert len(long) == len(every) - len(short)
    assert long.num_patches.min() >= 10
    assert long.counts["short_rows"] == len(short)
    assert long.counts["short_characters"] == sum(len(every.text(row)) for row in short)


def test_each_role_gets_its_own_documents(file: Path, tmp_path: Path):
    data = StripDataConfig(row_patches=40, min_patches=2, workers=0)
    train, valid = (prepare(file, tmp_path, data, "by-document", role) for role in ("train", "valid"))
    split = split_files([file], "by-document", 0.2)
    for store, texts in ((train, split.texts([file], "train")), (valid, split.texts([file], "valid"))):
        chosen = " ".join(texts)
        assert words(" ".join(store.text(row) for row in range(len(store)))) == words(chosen)
    assert train.key != valid.key
    assert train.counts["documents"] > 2 * valid.counts["documents"] > 0


def test_a_prepared_source_is_opened_without_drawing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = prepare(file, tmp_path)
    monkeypatch.setattr(row_store, "RenderPool", None)
    assert prepare(file, tmp_path).key == store.key


def test_the_key_follows_what_rows_depend_on(file: Path, tmp_path: Path):
    first = prepare(file, tmp_path).key
    for changed in (
        replace(LEFT_OUT, row_patches=41),
        replace(LEFT_OUT, min_patches=11),
        replace(LEFT_OUT, clean=("unassigned",)),
    ):
        assert prepare(file, tmp_path, changed).key != first, changed
    assert prepare(file, tmp_path, renderer=Renderer(RenderConfig(fonts=(), size=11))).key != first
    # the longest strip that the renderer draws is not the longest row, and neither are the processes that draw
    longer = Renderer(RenderConfig(fonts=(), max_patches=99))
    assert prepare(file, tmp_path, renderer=longer).key == first
    assert prepare(file, tmp_path, StripDataConfig(row_patches=40, min_patches=10, workers=3)).key == first


def test_processes_make_the_same_rows_and_show_their_progress(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(row_store, "QUIET_BYTES", 0)
    data = StripDataConfig(row_patches=40, min_patches=10, workers=1)
    here, there = prepare(file, tmp_path / "a"), prepare(file, tmp_path / "b", data)
    assert contents(here) == contents(there)
    written = capsys.readouterr()
    assert written.out == ""
    assert "drawing rows: 100%" in written.err and "rows/s" in written.err


def test_bad_text_is_named_and_leaves_nothing(tmp_path: Path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(small_text(5).encode() + b"\xff\n")
    with pytest.raises(UserError, match=r"bad\.txt, line 10: byte 0xff"):
        prepare(bad, tmp_path)
    for text, message in [
        (" \n", r"no document in it"),
        ("Hi.\n\nHo.", r"all 2 rows have fewer than data\.min_patches = 10 .*smaller data\.min_patches"),
        (
            "\ue000\ue001",
            r"nothing is left after cleaning .*2 characters replaced by a space: unassigned.*render\.fonts",
        ),
    ]:
        bad.write_text(text)
        with pytest.raises(UserError, match=message):
            prepare(bad, tmp_path)
    assert left_in(tmp_path) == []


PREPARE = """
import sys
from pathlib import Path
from render import RenderConfig, Renderer
from train.config import StripDataConfig
from train.data.split import split_files
from train.data.strips.row_store import prepare_rows
files = [Path(sys.argv[1])]
data = StripDataConfig(row_patches=40, min_patches=10, workers=0)
prepare_rows(files, split_files(files, ()), "train", Renderer(RenderConfig(fonts=())), data, Path(sys.argv[2]))
"""


def test_a_killed_preparation_is_done_again(file: Path, tmp_path: Path):
    large = tmp_path / "large.txt"
    large.write_text(small_text(8000))
    cache = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, large, cache], stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.glob("rows/*.tmp/texts.bin")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the preparation ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [Path(name).suffix for name in left_in(cache)] == [".lock", ".tmp"]
    large.write_text(file.read_text())  # the rest is the same with less text
    half = cache / "rows" / (prepare(large, tmp_path / "other").key + ".tmp")
    half.mkdir()
    (half / "texts.bin").write_bytes(b"half of it")
    assert contents(prepare(large, cache)) == contents(prepare(large, tmp_path / "other"))
    assert not half.exists()


def test_a_store_whose_rows_are_drawn_as_they_were_is_verified(file: Path, tmp_path: Path):
    store, seen = prepare(file, tmp_path), []
    store.verify(RENDERER, seen.append)
    assert sum(seen) == len(store)


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("texts.bin", 0, "row 0: (its pixels are not as they were|it is drawn in .* patches, not)"),
        ("hashes.bin", 8, "row 1: its pixels are not as they were"),
        ("num_patches.bin", 8, "row 2: it is drawn in .* patches, not"),
    ],
)
def test_verify_names_the_row_with_a_flipped_bit(file: Path, tmp_path: Path, name: str, place: int, message: str):
    path = prepare(file, tmp_path).folder / name
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{message}.*: the store is damaged: delete the folder"):
        RowStore(path.parent).verify(RENDERER)


def test_verify_tells_another_renderer_from_damage(file: Path, tmp_path: Path):
    other = Renderer(RenderConfig(fonts=(), direction="rtl"))
    with pytest.raises(UserError, match=r"row 0: its pixels .* the renderer has changed \(render\.direction: 'auto'"):
        prepare(file, tmp_path).verify(other)


def test_damage_to_files_is_named(file: Path, tmp_path: Path):
    store = prepare(file, tmp_path)
    path = store.folder / "texts.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(UserError, match="row 0: its text is not UTF-8: the store is damaged"):
        RowStore(store.folder).text(0)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"texts\.bin: damaged, 0 bytes instead of"):
        RowStore(store.folder)


def test_rows_are_thinned_evenly(file: Path, tmp_path: Path):
    store = prepare(file, tmp_path)
    few = store.thinned(7)
    assert 4 <= len(few) <= 7
    assert [few.text(row) for row in range(len(few))] == [store.text(row) for row in range(0, len(store), few.stride)]
    assert few.num_patches.tolist() == store.num_patches[:: few.stride].tolist()
    assert few.key != store.key
    few.verify(RENDERER)
    assert store.thinned(len(store)) is store
