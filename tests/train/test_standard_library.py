"""The standard library's documentation as a corpus: English prose, made once, never by importing."""

import re
import sys
from pathlib import Path

import pytest

from pixelcore.documents import read_documents
from pixelcore.errors import UserError
from train.data import standard_library
from train.data.standard_library import standard_library_corpus

MODULE = '''"""Tools for tea.

Tea is made of leaves, and the
water *must* be ``hot`` before :func:`~tea.pour` is called [1]::

    >>> pour(tea)
    the cup is full of tea

=====  ======
leaf   minutes the tea is in the water for.
=====  ======

* A green tea is best when the
  water is not boiling.
* x

pour(cup, amount=None) -> the cup that was poured into, or None.
"""
import does_not_exist
raise SystemExit("imported!")
class Pot:
    def boil(self):
        """Heat the water to the point at which it boils. Then call"""
    async def cool(self):
        """Tea is made of leaves, and the water must be "hot" before "tea.pour" is called."""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "library"
    (folder / "test").mkdir(parents=True)
    (folder / "pydoc_data").mkdir()
    monkeypatch.setattr(standard_library.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_prose_is_unwrapped_and_all_else_is_left_out(library: Path, tmp_path: Path):
    (library / "tea.py").write_text(MODULE)
    (library / "broken.py").write_text("def (")
    (library / "test" / "tea_test.py").write_text('"""This is a test of the tea that nobody should read."""')
    topics = {
        "long": "Tea\n***\n\nAn “escape” such as \\d is\nfine in a topic.\n",
        "short": "It is the short one of the topics.\n",
    }
    (library / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n" + r"x = '\d'")
    corpus = standard_library_corpus(tmp_path)
    assert list(read_documents(corpus)) == [
        'An "escape" such as \\d is fine in a topic.',
        "It is the short one of the topics.",
        'Tea is made of leaves, and the water must be "hot" before "tea.pour" is called.\n'
        "A green tea is best when the water is not boiling.\n"
        "Heat the water to the point at which it boils.",
    ]
    assert "does_not_exist" not in sys.modules


def test_it_is_made_once(library: Path, tmp_path: Path):
    (library / "tea.py").write_text(MODULE)
    corpus = standard_library_corpus(tmp_path)
    (library / "tea.py").write_text("")
    assert standard_library_corpus(tmp_path) == corpus
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus.txt"]
    with pytest.raises(UserError, match="name a text of your own with --data"):
        standard_library_corpus(tmp_path / "other")


def test_the_real_corpus_reads_like_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = standard_library._module_texts  # one package and the topics are enough to judge it, and faster
    monkeypatch.setattr(standard_library, "_module_texts", lambda library: full(library / "email"))
    text = standard_library_corpus(tmp_path).read_text()
    paragraphs = [line for line in text.split("\n") if line]
    assert len(text) > 200_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(re.match(r'["\'(]?[A-Z]', line) and re.search(r'[.!?]["\')]*$', line) for line in paragraphs)
    assert not re.search(r">>>|::=|\*\*\*\*|^[ \t]", text, re.M)
    assert sum(" the " in line for line in paragraphs) > 0.5 * len(paragraphs)
