"""Documents: what ends one, what is cut, and how bad input is named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelcore.documents import MAX_DOCUMENT_BYTES, find_files, read_documents
from pixelcore.errors import UserError


def write(file: Path, content: bytes | str) -> Path:
    content = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def documents(file: Path, field: str = "text") -> list[str]:
    return list(read_documents(file, field))


def records(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def parquet(file: Path, column: object, name: str = "text") -> Path:
    tables = pytest.importorskip("pyarrow.parquet")
    tables.write_table(pytest.importorskip("pyarrow").table({name: column}), file)
    return file


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_blank_lines_end_a_document_and_lines_are_paragraphs(tmp_path: Path, name: str):
    file = write(tmp_path / name, "one\n  two\n\n \t\n\nthree\r\n\r\nfour\n\nlast ")
    assert documents(file) == ["one\n  two", "three", "four", "last "]


def test_byte_order_mark_and_carriage_returns_are_dropped(tmp_path: Path):
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one\ntwo"]
    assert documents(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + records({"text": "one\r\ntwo"}).encode())) == [
        "one\ntwo"
    ]


def test_files_without_text_have_no_documents(tmp_path: Path):
    assert documents(write(tmp_path / "a.txt", "")) == []
    assert documents(write(tmp_path / "b.txt", "\n \n\r\n")) == []
    assert documents(write(tmp_path / "c.jsonl", "\n" + records({"text": ""}, {"text": " \n"}))) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_record_is_a_document(tmp_path: Path, name: str):
    file = write(tmp_path / name, records({"body": "one\n\ntwo", "id": 1}, {"body": "three"}).rstrip())
    assert documents(file, "body") == ["one\n\ntwo", "three"]


def test_a_parquet_row_is_a_document(tmp_path: Path):
    assert documents(parquet(tmp_path / "a.parquet", ["one\r\ntwo", "", "नमस्ते"])) == ["one\ntwo", "नमस्ते"]


def test_long_documents_are_cut_at_paragraph_ends(tmp_path: Path):
    paragraphs = [f"{number} " + "x" * 5000 for number in range(8)]
    text = "\n".join(paragraphs)
    expected = ["\n".join(paragraphs[start : start + 3]) for start in (0, 3, 6)]
    assert documents(write(tmp_path / "a.txt", text)) == expected
    assert documents(write(tmp_path / "a.jsonl", records({"text": text}))) == expected


def test_a_long_paragraph_is_cut_at_whitespace_else_at_a_character(tmp_path: Path):
    words = "word " * 5000
    pieces = documents(write(tmp_path / "a.txt", words))
    assert [piece.endswith("word") for piece in pieces[:-1]] == [True] * (len(pieces) - 1)
    assert " ".join(pieces) == words
    pieces = documents(write(tmp_path / "b.txt", "न" * 10000))
    assert "".join(pieces) == "न" * 10000
    assert [len(piece) for piece in pieces] == [5461, 4539]


def test_a_document_of_exactly_the_limit_is_whole(tmp_path: Path):
    text = "a" * 9999 + "\n" + "b" * (MAX_DOCUMENT_BYTES - 10000)
    assert documents(write(tmp_path / "a.txt", text)) == [text]
    assert documents(write(tmp_path / "b.txt", text + "b")) == text.split("\n")[:1] + [text.split("\n")[1] + "b"]


def test_a_line_longer_than_the_read_buffer_gives_the_same_pieces_as_a_record(tmp_path: Path):
    line = "".join(f"{number * number} é" + (" " if number % 7 == 0 else "") for number in range(100_000))
    assert len(line.encode()) > 3 * (1 << 18)
    from_text = documents(write(tmp_path / "a.txt", "first\n" + line + "\nlast"))
    assert from_text == documents(write(tmp_path / "a.jsonl", records({"text": "first\n" + line + "\nlast"})))
    assert "".join(from_text).replace("\n", "").replace(" ", "") == "first" + line.replace(" ", "") + "last"


@given(st.lists(st.text(alphabet="ab é€\n\r", max_size=12), max_size=4))
def test_no_visible_character_is_lost(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    folder = tmp_path_factory.mktemp("documents")
    file = write(folder / "a.txt", "\n\n".join(texts))
    joined = "\n".join(documents(file))
    assert joined.split() == " ".join(texts).split()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\nf\xe4hig\n", r"a\.txt, line 3: byte 0xe4 is not UTF-8"),
        ("a.txt.gz", b"fine\nf\xe4hig", r"a\.txt\.gz, line 2: byte 0xe4"),
        ("a.txt", b"cut \xe2\x82", r"a\.txt, line 1: byte 0xe2"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "f\xe4hig"}\n', r"a\.jsonl, line 2: byte 0xe4"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": \n', r"a\.jsonl, line 3: not JSON"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl, line 1: the record is a list"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"a\.jsonl, line 1: no field 'text', there are 'body', 'id'"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', r"a\.jsonl, line 2: field 'text' is null"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl, line 1: field 'text' is int"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', r"a\.jsonl, line 1: field 'text' has half a surrogate pair"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, name: str, content: bytes, message: str):
    with pytest.raises(UserError, match=message) as error:
        documents(write(tmp_path / name, content))
    assert "\n" not in str(error.value)


def test_damaged_containers_are_named(tmp_path: Path):
    whole = write(tmp_path / "a.txt.gz", "some text\n" * 1000).read_bytes()
    for damaged in (whole[:-9], whole[:30], b"plain", whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / "a.txt.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.txt\.gz: damaged or cut short"):
            documents(tmp_path / "a.txt.gz")
    with pytest.raises(UserError, match="damaged or not Parquet"):
        documents(write(tmp_path / "a.parquet", "no table"))
    with pytest.raises(UserError, match="cannot be read"):
        documents(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="must end in one of"):
        documents(tmp_path / "a.csv")


def test_bad_parquet_rows_are_named(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=r"record 2: field 'text' is null"):
        documents(parquet(tmp_path / "a.parquet", ["one", None]))
    with pytest.raises(UserError, match=r"no column 'text', there are 'body'"):
        documents(parquet(tmp_path / "b.parquet", ["one"], "body"))
    with pytest.raises(UserError, match=r"record 1: field 'text' is int"):
        documents(parquet(tmp_path / "c.parquet", [1]))
    broken = pyarrow.array([b"fine", b"f\xe4hig"], pyarrow.binary()).view(pyarrow.string())
    with pytest.raises(UserError, match=r"record 2, field 'text': byte 0xe4"):
        documents(parquet(tmp_path / "d.parquet", broken))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'pixelcore\[data\]'"):
        documents(write(tmp_path / "a.parquet", ""))


def test_find_files_takes_files_folders_and_globs(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    names = ["b.txt", "a.jsonl.gz", "sub/c.parquet", "sub/d.txt.gz"]
    for name in [*names, "README.md", "sub/e.csv"]:
        write(tmp_path / name, "x")
    assert find_files(tmp_path) == sorted(tmp_path / name for name in names)
    assert find_files(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]
    assert find_files(tmp_path / "**" / "*.txt*") == [tmp_path / "b.txt", tmp_path / "sub" / "d.txt.gz"]


def test_find_files_says_what_is_there_instead(tmp_path: Path):
    write(tmp_path / "a.csv", "x")
    write(tmp_path / "b.tar.gz", "x")
    with pytest.raises(UserError, match=r"no such file or folder"):
        find_files(tmp_path / "absent")
    with pytest.raises(UserError, match=r"a\.csv: a text file must end in one of \.txt"):
        find_files(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"1 x \.csv, 1 x \.tar\.gz"):
        find_files(tmp_path)
    with pytest.raises(UserError, match="no file at all"):
        find_files(tmp_path / "*.txt")
