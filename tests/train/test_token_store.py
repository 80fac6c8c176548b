"""The token store: right, the same however it was built, and whole or absent whatever happens meanwhile."""

import gzip
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pixelcore.documents import read_documents
from pixelcore.errors import UserError
from pixelcore.tokenizer import Tokenizer, train_tokenizer
from train.data import token_store
from train.data.token_store import TokenStore, describe_files, prepare

TEXT = "The ship sailed at dawn.\nNobody saw it leave.\n\nनमस्ते दुनिया\n\nA short one.\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT], 330)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def large_text(num_documents: int) -> str:
    return "".join(f"Document {number} says that the ship sailed at dawn.\n\n" for number in range(num_documents))


def contents(store: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "tokens").iterdir()) if (cache / "tokens").exists() else []


def test_a_store_holds_every_document_between_its_marks(tmp_path: Path, tokenizer: Tokenizer):
    files = [write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt", ""), write(tmp_path / "sub/c.txt", "Last.")]
    store = prepare(files, tokenizer, tmp_path / "cache")
    texts = [text for file in files for text in read_documents(file)]
    assert store.num_documents == len(texts) == 4
    for number, text in enumerate(texts):
        tokens = store.tokens[store.starts[number] : store.starts[number + 1]]
        assert tokens.tolist() == [0, *tokenizer.encode(text), 1]
        assert store.text_bytes[number] == len(text.encode())
    assert store.starts[0] == 0
    assert store.starts[-1] == store.num_tokens == len(store.tokens)
    assert [(f.name, f.first_document, f.num_documents) for f in store.files] == [
        ("a.txt", 0, 3),
        ("b.txt", 3, 0),
        ("sub/c.txt", 3, 1),
    ]
    assert store.tokens.dtype == np.uint16
    assert (store.bos_id, store.eos_id, store.pad_id) == (0, 1, 2)
    assert store.tokenizer_sha256 == tokenizer.sha256
    assert pickle.loads(pickle.dumps(store)).key == store.key
    assert left_in(tmp_path / "cache") == [store.key]


def test_the_key_follows_content_tokenizer_and_field_but_not_the_place(tmp_path: Path, tokenizer: Tokenizer):
    cache = tmp_path / "cache"
    first = prepare([write(tmp_path / "one/a.txt", TEXT)], tokenizer, cache).key
    assert prepare([write(tmp_path / "two/a.txt", TEXT)], tokenizer, cache).key == first
    other = train_tokenizer([TEXT], 331)
    assert prepare([tmp_path / "one/a.txt"], other, cache).key != first
    assert prepare([tmp_path / "one/a.txt"], tokenizer, cache, field="body").key != first
    assert prepare([write(tmp_path / "one/b.txt", TEXT)], tokenizer, cache).key != first
    assert prepare([write(tmp_path / "one/a.txt", TEXT + "More.")], tokenizer, cache).key != first


def test_a_prepared_source_is_opened_without_reading_its_text(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    files = [write(tmp_path / "a.txt", TEXT)]
    store = prepare(files, tokenizer, tmp_path)
    monkeypatch.setattr(token_store, "read_documents", None)
    assert prepare(files, tokenizer, tmp_path).key == store.key


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path, tokenizer: Tokenizer):
    file = write(tmp_path / "a.txt", large_text(20_000))
    one, three = (prepare([file], tokenizer, tmp_path / str(workers), workers=workers) for workers in (1, 3))
    assert contents(one) == contents(three)


def test_bad_text_is_named_and_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(large_text(20_000).encode() + b"\xff\n")
    with pytest.raises(UserError, match=r"bad\.txt, line 40001: byte 0xff"):
        prepare([bad], tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"empty\.txt and 1 more: no text in it"):
        prepare([write(tmp_path / "empty.txt", " \n"), write(tmp_path / "void.txt", "")], tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        prepare([tmp_path / "absent.txt"], tokenizer, tmp_path)
    assert left_in(tmp_path) == []


def test_a_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    file = write(tmp_path / "a.txt", TEXT)

    def read_and_append(path: Path, field: str):
        yield from read_documents(path, field)
        write(file, TEXT + "More.")

    monkeypatch.setattr(token_store, "read_documents", read_and_append)
    with pytest.raises(UserError, match="changed while being read"):
        prepare([file], tokenizer, tmp_path)
    assert left_in(tmp_path) == []


def test_a_damaged_store_is_named(tmp_path: Path, tokenizer: Tokenizer):
    store = prepare([write(tmp_path / "a.txt", TEXT)], tokenizer, tmp_path)
    (store.folder / "starts.bin").write_bytes(b"\0" * 8)
    with pytest.raises(UserError, match=r"starts\.bin: damaged, 8 bytes instead of 32"):
        TokenStore(store.folder)


def test_large_sources_show_their_progress(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(token_store, "QUIET_BYTES", 0)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(large_text(100).encode()))
    prepare([tmp_path / "a.txt.gz", write(tmp_path / "b.txt", TEXT)], tokenizer, tmp_path, label="ships")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "tokenizing ships: 100%" in captured.err


PREPARE = """
import sys
from pathlib import Path
from pixelcore.tokenizer import Tokenizer
from train.data.token_store import prepare
assert "torch" not in sys.modules
prepare([Path(sys.argv[1])], Tokenizer.load(sys.argv[2]), Path(sys.argv[3]), workers=1)
"""


def test_a_killed_preparation_is_done_again(tmp_path: Path, tokenizer: Tokenizer):
    file = write(tmp_path / "a.txt", large_text(60_000))
    (tmp_path / "t.model").write_bytes(tokenizer.model_bytes)
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", PREPARE, file, tmp_path / "t.model", cache], stderr=-3)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in cache.glob("tokens/*.tmp/tokens.bin")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the preparation ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [Path(name).suffix for name in left_in(cache)] == [".lock", ".tmp"]
    store = prepare([file], tokenizer, cache)
    assert left_in(cache) == [store.key]
    assert contents(store) == contents(prepare([file], tokenizer, tmp_path / "other"))


def _prepare_in_child(file: Path, tokenizer: Tokenizer, cache: Path, barrier, results) -> None:
    barrier.wait()
    store = prepare([file], tokenizer, cache, workers=1)
    results.put((store.num_tokens, store.folder.stat().st_ino))


def test_concurrent_preparations_give_one_store(tmp_path: Path, tokenizer: Tokenizer):
    file = write(tmp_path / "a.txt", large_text(10_000))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (file, tokenizer, tmp_path / "cache", barrier, results)
    children = [context.Process(target=_prepare_in_child, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    outcomes = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(outcomes) == 1
    assert len(left_in(tmp_path / "cache")) == 1


def test_a_lock_that_was_removed_while_waited_for_is_not_enough(tmp_path: Path):
    lock = tmp_path / "x.lock"
    order: list[str] = []
    with token_store.locked(lock):
        waiting = threading.Thread(target=_touch_under_lock, args=(lock, tmp_path / "done"))
        waiting.start()
        time.sleep(0.1)
        order.append("held" if not (tmp_path / "done").exists() else "broken")
    waiting.join()
    assert order == ["held"]
    assert (tmp_path / "done").exists()
    assert not lock.exists()


def _touch_under_lock(lock: Path, mark: Path) -> None:
    with token_store.locked(lock):
        mark.touch()


def test_files_are_hashed_again_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "a.txt", "one")
    first = describe_files([file])
    monkeypatch.setattr(token_store.hashlib, "file_digest", None)
    assert describe_files([file]) == first
    monkeypatch.undo()
    write(file, "two")
    os.utime(file, ns=(1, 1))
    assert describe_files([file]) != first


MEASURE = """
import sys, threading, time
from pathlib import Path
from pixelcore.tokenizer import Tokenizer
from train.data.blocks import Blocks
from train.data.split import split_store
from train.data.token_store import prepare

def anonymous_megabytes() -> float:
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

peak = 0.0
def watch() -> None:
    global peak
    while True:
        peak = max(peak, anonymous_megabytes())
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
store = prepare([Path(sys.argv[1])], Tokenizer.load(sys.argv[2]), Path(sys.argv[3]), workers=2)
split = split_store(store, "by-document", 0.01)
blocks = Blocks(store, split.select(store, "train"), 1024)
for block in range(0, len(blocks), max(1, len(blocks) // 1000)):
    blocks.read(block)
print(max(peak, anonymous_megabytes()))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "t.model").write_bytes(tokenizer.model_bytes)
    peaks = []
    for megabytes in (3, 300):
        file = tmp_path / f"{megabytes}.txt"
        line = large_text(1000)
        with open(file, "w") as stream:
            for _ in range(megabytes * 10**6 // len(line)):
                stream.write(line)
        command = [sys.executable, "-c", MEASURE, file, tmp_path / "t.model", tmp_path / "cache"]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 600, peaks
