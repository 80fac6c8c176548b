"""The words that count as words: a list that the user names, for what is legible and what is common.

"Readable" means what the list says, no more: a list of 300,000 entries holds most strings of three letters, and a share
of readable words without the name and size of its list says nothing. So both are printed with every figure, and the
first digits of the file's SHA-256 beside them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pixelcore.errors import UserError


@dataclass(frozen=True)
class WordList:
    """counts: of each lower-case word; 1 where the file gives none. sha256: of the file, its first 12 digits."""

    name: str
    sha256: str
    has_counts: bool
    counts: Mapping[str, float] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.name}, {len(self.counts):,} words, SHA-256 {self.sha256}"


def read_word_list(file: str | Path) -> WordList:
    """Read a list with a word in each line, or a word and a count; words are lower-cased, blank lines left out.

    Raises UserError for a file that cannot be read or has no word, and for a line of another form.
    """
    file = Path(file)
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as cause:
        raise UserError(f"--words {file}: cannot be read ({cause.strerror}): give a text file of words") from cause
    except UnicodeDecodeError as cause:
        raise UserError(f"--words {file}: byte {cause.start} is not UTF-8: convert the file to UTF-8") from cause
    counts: dict[str, float] = {}
    has_counts = False
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.replace(",", " ").split()
        if not parts:
            continue
        try:
            count = float(parts[1]) if len(parts) == 2 else 1.0
        except ValueError:
            count = -1.0
        if len(parts) > 2 or not count >= 0:
            if number == 1 and len(parts) == 2:  # the names of the columns
                continue
            raise UserError(f"--words {file}, line {number}: give one word in each line, or a word and its count")
        word = parts[0].lower()
        counts[word] = counts.get(word, 0.0) + count
        has_counts |= len(parts) == 2
    if not counts:
        raise UserError(f"--words {file}: has no word: give one in each line")
    return WordList(file.name, hashlib.sha256(data).hexdigest()[:12], has_counts, counts)
