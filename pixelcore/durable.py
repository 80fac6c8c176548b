"""Writing so that a crash at any moment leaves either the old state or the new one.

Bytes are on the disk only after fsync, and a name appears at once only through rename. A file is therefore written
under a temporary name, synced and renamed; a folder of files is filled under a temporary name, synced file by file,
and renamed as a whole. What a killed process leaves behind begins with `TEMPORARY` and is removed by the next writer.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

TEMPORARY = ".writing-"


def write_file(path: Path, content: bytes) -> None:
    """Replace a file's content in one step. Two processes may write the same file: one of them wins."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    temporary.write_bytes(content)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Replace a JSON file in one step."""
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def temporary_folder(folder: Path) -> Path:
    """An empty folder beside `folder` to fill and then `publish`; what a killed writer left there is removed."""
    temporary = folder.with_name(TEMPORARY + folder.name)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    return temporary


def publish(temporary: Path, folder: Path) -> None:
    """Give a filled temporary folder its name. Its files are synced first, so the name never leads to half a file."""
    for file in sorted(temporary.iterdir()):
        sync(file)
    sync(temporary)
    os.rename(temporary, folder)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
