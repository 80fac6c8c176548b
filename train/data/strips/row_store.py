"""Rows, made once from a source and read ever after from a memory map.

Cleaning, joining and measuring text takes two drawings of it, so it is done once for each source and role (training,
held out) and kept in the cache, under a key made of what it depends on: the content of every file, the split, the
rules of cleaning, the lengths of rows, the pixels of the renderer. The pixels themselves are a hundred times as large
as their text and are not kept: rows are drawn again whenever they are needed, and a hash of each tells whether they
came out the same.

A store is a folder: `texts.bin` (UTF-8, end to end), `offsets.bin` (where each text starts, and the end),
`num_patches.bin`, `hashes.bin`, `store.json`. It is built by processes that take whole documents; results are written
in the order of the documents, so the bytes do not depend on the number of processes, and documents are read as they are
needed, so the memory does not depend on the size of the text. Like a token store it is there as a whole or not at all.
"""

import hashlib
import json
import logging
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from pixelcore.errors import UserError
from render import Renderer, RenderError
from render.pool import RenderPool
from render.renderer import changes
from train.config import StripDataConfig
from train.data.split import Role, Split
from train.data.strips.drawing import draw_hash
from train.data.strips.rows import COUNTS, RowMaker
from train.data.token_store import byte_progress, describe_files, listed, locked, new_folder, open_array, text_size

FORMAT_VERSION = 1
QUIET_BYTES = 2 << 20  # less text than this is prepared before processes have started and a progress bar could be read
DOCUMENTS_PER_MESSAGE = 8  # of at most 16 KiB each

_log = logging.getLogger(__name__)


class RowStore:
    """Prepared rows, opened read-only; every `stride`-th of them where a stride is given.

    num_patches int32 [rows] and hashes uint64 [rows], memory-mapped; key, row_patches, identity (of the renderer),
    counts (by the names of rows.COUNTS; of all rows, whatever the stride). Raises UserError when the folder is damaged.
    """

    def __init__(self, folder: Path, stride: int = 1) -> None:
        self.folder, self.stride = folder, stride
        try:
            content = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        except ValueError as cause:
            raise UserError(
                f"{folder / 'store.json'}: damaged ({cause}): delete the folder, it will be made again"
            ) from cause
        self.key: str = content["key"] if stride == 1 else f"{content['key']}-{stride}"
        self.row_patches: int = content["row_patches"]
        self.identity: dict[str, Any] = content["renderer"]
        self.counts: dict[str, int] = content["counts"]
        num_rows = self.counts["rows"]
        self._offsets = open_array(folder / "offsets.bin", "int64", num_rows + 1)
        self._texts = open_array(folder / "texts.bin", "uint8", content["text_bytes"])
        self.num_patches = open_array(folder / "num_patches.bin", "int32", num_rows)[::stride]
        self.hashes = open_array(folder / "hashes.bin", "uint64", num_rows)[::stride]

    def __len__(self) -> int:
        return len(self.num_patches)

    def text(self, row: int) -> str:
        """The text of a row. Raises IndexError beyond the last one, UserError for bytes that are no text."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, stop = self._offsets[row * self.stride], self._offsets[row * self.stride + 1]
        try:
            return self._texts[start:stop].tobytes().decode()
        except UnicodeDecodeError as cause:
            raise self.damage(row, "its text is not UTF-8") from cause

    def thinned(self, max_rows: int) -> Self:
        """At most `max_rows` of the rows, evenly taken."""
        stride = -(-len(self) // max_rows)
        return self if stride <= 1 else type(self)(self.folder, self.stride * stride)

    def verify(self, renderer: Renderer, progress: Callable[[int], object] | None = None, workers: int = 0) -> None:
        """Draw every row again. Raises UserError naming the first one whose length or pixels are not as they were.

        progress: called with the number of rows that are found right. workers: processes that draw.
        """
        rows = ((self.text(row), self.row_patches) for row in range(len(self)))
        with RenderPool(renderer, workers, function=draw_hash) as pool:
            for row, (num_patches, pixels_hash) in enumerate(pool.map(rows)):
                if num_patches != self.num_patches[row]:
                    tell = f"it is drawn in {num_patches} patches, not {self.num_patches[row]}"
                    raise self.damage(row, tell, renderer)
                if pixels_hash != self.hashes[row]:
                    raise self.damage(row, "its pixels are not as they were", renderer)
                if progress is not None:
                    progress(1)

    def damage(self, row: int, what: str, renderer: Renderer | None = None) -> UserError:
        """The error for a row that is not as it was prepared. renderer: who has drawn it now."""
        where = f"{self.folder}: row {row * self.stride}: {what}"
        differences = [] if renderer is None else changes(self.identity, _decisive(renderer))
        if differences:
            return UserError(f"{where}: the renderer has changed ({'; '.join(differences)}): use the one of the rows")
        return UserError(f"{where}: the store is damaged: delete the folder, it will be made again")


def prepare_rows(
    files: Sequence[Path],
    split: Split,
    role: Role,
    renderer: Renderer,
    data: StripDataConfig,
    cache: Path,
    label: str = "",
) -> RowStore:
    """Open the rows of the documents of these files that have the role, making them first where the cache has none.

    split: made for these files. label: names the source in the progress bar. Raises UserError at the first bad line,
    where no document has text, and where all rows are too short; nothing is left behind then.
    """
    sources = describe_files(files)
    rules = sorted(set(data.clean))
    depends_on = [
        FORMAT_VERSION,
        [asdict(source) for source in sources],
        [split.roles, str(split.held_out_below), split.forced, role],
        data.field,
        [rules, unicodedata.unidata_version if "unassigned" in rules else ""],
        [data.row_patches, data.min_patches],
        {name: value for name, value in _decisive(renderer).items() if name != "versions"},
    ]
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache / "rows" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if not folder.exists():
                with new_folder(folder) as temporary:
                    content = _build(temporary, files, split, role, renderer, data, label)
                    if sources != describe_files(files):
                        raise UserError(
                            f"{listed(files)}: changed while being read: start again when the files are complete"
                        )
                    content |= {"key": key, "files": [asdict(source) for source in sources]}
                    (temporary / "store.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return RowStore(folder)


def _build(
    folder: Path,
    files: Sequence[Path],
    split: Split,
    role: Role,
    renderer: Renderer,
    data: StripDataConfig,
    label: str,
) -> dict[str, Any]:
    """Write the arrays of a store; returns what is to be known about them."""
    maker = RowMaker(
        renderer=renderer, clean=tuple(data.clean), row_patches=data.row_patches, min_patches=data.min_patches
    )
    total = _bytes_of_role(files, split, role)
    workers = data.workers if total >= QUIET_BYTES else 0
    counts = dict.fromkeys(COUNTS, 0)
    sizes: deque[int] = deque()  # of documents that are under way

    def documents() -> Iterator[str]:
        for text in split.texts(files, role, data.field):
            sizes.append(len(text.encode()))
            yield text

    with (
        open(folder / "texts.bin", "wb") as texts,
        open(folder / "offsets.bin", "wb") as offsets,
        open(folder / "num_patches.bin", "wb") as num_patches,
        open(folder / "hashes.bin", "wb") as hashes,
        RenderPool(maker, workers, batch=DOCUMENTS_PER_MESSAGE) as pool,
        byte_progress(total, f"drawing rows {label}".strip(), QUIET_BYTES) as bar,
    ):
        offsets.write(np.zeros(1, np.int64).tobytes())
        text_bytes, begin = 0, time.perf_counter()
        try:
            for rows, counts_of_document in pool.map(documents()):
                for name, number in counts_of_document.items():
                    counts[name] += number
                encoded = [row.text.encode() for row in rows]
                ends = text_bytes + np.cumsum([len(text) for text in encoded], dtype=np.int64)
                text_bytes += sum(map(len, encoded))
                texts.write(b"".join(encoded))
                offsets.write(ends.tobytes())
                num_patches.write(np.array([row.num_patches for row in rows], np.int32).tobytes())
                hashes.write(np.array([row.pixels_hash for row in rows], np.uint64).tobytes())
                rate = counts["rows"] / (time.perf_counter() - begin)
                bar.set_postfix_str(f"{counts['rows']:,} rows, {rate:,.0f} rows/s", refresh=False)
                bar.update(sizes.popleft())
        except RenderError as cause:
            raise UserError(f"{listed(files)}, {role} text: {cause}") from cause
        bar.update(max(0, bar.total - bar.n))  # the total is an estimate
    _check(files, role, counts, data)
    _log.info("rows of %s, %s text: %s", label or listed(files), role, describe(counts))
    return {
        "format": "pixelcore rows",
        "version": FORMAT_VERSION,
        "role": role,
        "row_patches": data.row_patches,
        "min_patches": data.min_patches,
        "clean": sorted(set(data.clean)),
        "renderer": _decisive(renderer),
        "text_bytes": text_bytes,
        "counts": counts,
    }


def _decisive(renderer: Renderer) -> dict[str, Any]:
    """The renderer's identity without the length of its strips: that of a row is given with it."""
    identity = renderer.identity()
    del identity["config"]["max_patches"]
    return identity


def describe(counts: Mapping[str, int]) -> str:
    """What became of a text, for people: what did not happen is not told."""
    return "; ".join(f"{counts[name]:,} {what}" for name, what in COUNTS.items() if counts[name])


def _check(files: Sequence[Path], role: Role, counts: dict[str, int], data: StripDataConfig) -> None:
    where = f"{listed(files)}, {role} text"
    if counts["rows"]:
        return
    if not counts["documents"]:
        raise UserError(f"{where}: no document in it; a source needs at least one that is not empty")
    if not counts["paragraphs"]:
        raise UserError(
            f"{where}: nothing is left after cleaning ({describe(counts)}): give the renderer fonts for its script in "
            "render.fonts"
        )
    raise UserError(
        f"{where}: all {counts['short_rows']:,} rows have fewer than data.min_patches = {data.min_patches} patches "
        f"({describe(counts)}): give longer documents or set a smaller data.min_patches"
    )


def _bytes_of_role(files: Sequence[Path], split: Split, role: Role) -> int:
    """Bytes of text that have the role, about."""
    held_out = split.held_out_below / 2**64
    shares = {"train": 1 - held_out, "valid": held_out, "test": 0.0}
    total = 0.0
    for number, file in enumerate(files):
        of_file = split.roles[number]
        total += text_size(file) * (shares[role] if of_file is None else of_file == role)
    return int(total)
