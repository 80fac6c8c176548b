"""The corpus that every Python has: the running text of its own documentation.

A first run needs text before anything is downloaded. The standard library brings some: the language reference that
`help()` shows (the dictionary in `pydoc_data/topics.py`) and the docstrings of its modules. Both are read with `ast`
from the source files; nothing is imported or executed.

Documentation is only partly prose. So that a small model can learn to write English from it, hard-wrapped lines are
joined to one line a paragraph, markup is taken off, and a paragraph stays only when it reads like sentences: code,
signatures, tables, grammar rules, headings and repeated paragraphs are left out. Each topic and each module is a
document.
"""

import ast
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pixelcore.errors import UserError

RECIPE_VERSION = 1  # raised when the same Python would give another text
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\xa0": " "})
ARTICLES_AND_PRONOUNS = "a an the this that these it its which who each all any other such"
AUXILIARY_VERBS = "is are was be been has have can may must should will would do does"
PREPOSITIONS_AND_CONJUNCTIONS = "to of in on at by with from as for and or but not no if when where than then only"
FUNCTION_WORDS = frozenset(f"{ARTICLES_AND_PRONOUNS} {AUXILIARY_VERBS} {PREPOSITIONS_AND_CONJUNCTIONS}".split())


def standard_library_corpus(cache: Path) -> Path:
    """A text file below `cache` (a paragraph a line, documents divided by blank lines), made on first use.

    Raises UserError when this Python comes without the sources of its library.
    """
    corpus = cache / "standard_library" / f"{platform.python_version()}-{RECIPE_VERSION}" / "corpus.txt"
    if corpus.exists():
        return corpus
    library = Path(sysconfig.get_path("stdlib"))
    text = "\n\n".join(_documents(library))
    if not text:
        raise UserError(f"{library}: this Python has no sources to take text from: name a text of your own with --data")
    corpus.parent.mkdir(parents=True, exist_ok=True)
    temporary = corpus.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(corpus)
    return corpus


def _documents(library: Path) -> Iterator[str]:
    seen: set[str] = set()
    for text in [*_topics(library / "pydoc_data" / "topics.py"), *_module_texts(library)]:
        paragraphs = [paragraph for paragraph in _paragraphs(text) if _is_prose(paragraph)]
        new = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
        seen.update(new)
        if new:
            yield "\n".join(new)


def _topics(file: Path) -> list[str]:
    """The topics, longest first: the short ones are for the most part excerpts, and then drop out as repetitions."""
    module = _parse(file)
    tables = [node for node in ast.walk(module) if isinstance(node, ast.Dict)] if module else []
    texts = [
        value.value
        for table in tables
        for value in table.values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]
    return sorted(texts, key=lambda text: (-len(text), text))


def _module_texts(library: Path) -> Iterator[str]:
    """All docstrings of each module, in the order of the source."""
    for file in sorted(library.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(file.relative_to(library).parts) and (module := _parse(file)):
            yield "\n\n".join(_docstrings(module))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node) or ""
    for child in ast.iter_child_nodes(node):
        yield from _docstrings(child)


def _parse(file: Path) -> ast.Module | None:
    if not file.is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources have escapes that newer parsers warn about
        try:
            return ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            return None  # some library files are broken on purpose


BULLET = re.compile(r"^\s*([*+-]|\d+[.)]|\(\w\)|\[\d+\])\s+(?=\S)")
NOT_PROSE_LINE = re.compile(r"^\s*(>>>|\.\.\.(\s|$)|[|+]|\.\. |%|\$ |[-=*~^#_+]{3,})|[-=*~^]{6,}|::=|<-+|-+>")


def _paragraphs(text: str) -> Iterator[str]:
    """Unwrapped paragraphs: a blank line, a bullet, a change of the indent or a line that cannot be prose ends one."""
    lines: list[str] = []
    indent = 0
    for line in [*text.expandtabs().split("\n"), ""]:
        bullet = BULLET.match(line)
        if bullet:
            line = " " * bullet.end() + line[bullet.end() :]
        dropped = not line.strip() or NOT_PROSE_LINE.search(line)
        line_indent = len(line) - len(line.lstrip())
        if lines and (dropped or bullet or line_indent != indent):
            yield _without_markup(lines)
            lines = []
        if not dropped:
            lines.append(line.strip())
            indent = line_indent


def _without_markup(lines: list[str]) -> str:
    text = re.sub(r"(?<=\w)- (?=[a-z])", "-", " ".join(lines))
    text = text.translate(TYPOGRAPHY)
    text = re.sub(r":[\w:+-]+:`~?([^`<]+?)(\s*<[^`]*>)?`", r'"\1"', text)
    text = re.sub(r"``([^`]+)``|`([^`']+)[`']", r'"\1\2"', text)
    text = re.sub(r"\*\*(\w[^*]*)\*\*|(?<![\w*])\*(\w[^*]*)\*(?![\w*])", r"\1\2", text)
    text = re.sub(r"\s+", " ", re.sub(r"(?<=\S) \[\d+\]", "", text)).strip()
    return _whole_sentences(text)


def _whole_sentences(text: str) -> str:
    """The text up to its last full stop; a colon before an example, which is left out, counts as one."""
    if text.endswith(":"):
        text = text.rstrip(": ")
        if text.rsplit(" ", 1)[-1].lower() not in FUNCTION_WORDS:
            return text + "."
    ends = [match.end() for match in re.finditer(r'[.!?]["\')]*(?=\s|$)', text)]
    return text[: ends[-1]] if ends else text


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) < 5 or not re.match(r'["\'(]?[A-Z]', text) or not re.search(r'[.!?]["\')]*$', text):
        return False
    code_like = sum(bool(re.search(r"[_=<>{}\[\]|\\/@#$%^&+~]|\w\(|\w\.\w|\d{3}", word)) for word in words)
    function_words = sum(word.strip("\"'(),.;:").lower() in FUNCTION_WORDS for word in words)
    return code_like <= 0.2 * len(words) and function_words >= 0.15 * len(words)
