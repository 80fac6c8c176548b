"""Exports are new folders that appear complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelcore.durable import publish, temporary_folder
from pixelcore.errors import UserError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into: it becomes `folder` when the block ends well, and is removed when it fails.

    Raises UserError when `folder` is a file or holds something: nothing is ever written over.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: this folder is not empty, and an export never writes over files: name a new one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: this is a file, and an export is a folder: name a new one")
    temporary = temporary_folder(folder)
    try:
        yield temporary
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
