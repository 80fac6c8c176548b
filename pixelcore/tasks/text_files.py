"""Files of tasks: opened, plain or gzip, and found by name in the folder of a data set.

Data sets agree on nothing but the words train, dev and test in the names of their files (`en_ewt-ud-train.conllu`,
`test.txt.gz`, `dev_matched.tsv`), so these are looked for, as words of the name.
"""

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pixelcore.errors import UserError

_ROLES = {"train": "train", "training": "train", "dev": "valid", "valid": "valid", "validation": "valid"}
_ROLES |= {"val": "valid", "test": "test"}


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, counted from 1, without their ends. Raises UserError for what is no UTF-8 text."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: name one with --data")
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as cause:
        raise UserError(f"{path}:{number + 1}: not UTF-8 ({cause.reason}): convert the file") from cause
    except (EOFError, gzip.BadGzipFile) as cause:
        raise UserError(f"{path}: damaged gzip file ({cause}): get it again") from cause


def ending_of(path: Path) -> str:
    """The format by the file's name: what stands behind its last dot, .gz left out."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def find_by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """ "train", "valid" and "test" among the files with one of these endings, by the words of their names.

    Endings are in the order in which they are asked for: files of the first that has any are the data set. Raises
    UserError where none is found, or two for the same role.
    """
    found = find_all_by_name(folder, endings)
    for role, files in found.items():
        if len(files) > 1:
            raise UserError(
                f"{folder}: {files[0].name} and {files[1].name} both look like the {role} file: name the files, "
                "with --data FILE, --valid FILE and --set 'data.test=[\"FILE\"]'"
            )
    return {role: files[0] for role, files in found.items()}


def find_all_by_name(folder: Path, endings: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The same with all files of a role. Raises UserError where none is found."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name the data set's folder, or its files, with --data")
    names = sorted(path for path in folder.iterdir() if path.is_file())
    for ending in endings:
        found: dict[str, tuple[Path, ...]] = {}
        for path in names:
            role = _role_of(path) if ending_of(path) == ending else None
            if role is not None:
                found[role] = (*found.get(role, ()), path)
        if found:
            return found
    listed = ", ".join(path.name for path in names[:8]) or "nothing"
    raise UserError(
        f"{folder}: no file with train, dev or test in its name that ends in {' or '.join(endings)} (or .gz behind "
        f"it); found {listed}: name the files with --data, --valid"
    )


def _role_of(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((_ROLES[word] for word in words if word in _ROLES), None)
