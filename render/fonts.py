"""Fonts are files. This file finds them, opens them, and picks one of them for each cluster of characters.

A font is named by its path (`NotoSans.ttf`), with the face of a collection (`NotoSansCJK.ttc#2`) or the instance of a
variable font (`NotoSans.ttf#wght=400`). A folder stands for its font files in the order of their names. Other names are
looked for in the folders of $PIXELCORE_FONTS and among the families of installed font packages (the extra `fonts`);
`system:Noto Sans` asks fontconfig once, and only this spelling does: a machine's own fonts never slip in. `builtin` is
the font of this project (render/font).

Fonts in tables only (TTF, OTF, TTC, OTB), which HarfBuzz can shape: BDF and PCF files are converted by `fonttosfnt`.

A chain of fonts is asked in order for each cluster, so that a mark is drawn by the font of its base.
"""

import functools
import hashlib
import logging
import os
import re
import shutil
import struct
import subprocess
import unicodedata
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from render.errors import RenderError
from render.face import Bitmap, Face, Glyph
from render.font import PixelFont
from render.rasterize import Rasterizer
from render.shape import Shaper

_log = logging.getLogger("render")

_ENDINGS = (".ttf", ".otf", ".ttc", ".otc", ".otb")
_BUILTIN_ROWS = 8
# Fonts that published checkpoints name (specs, PIXEL 1.1). Without the file another font draws, and a line says so.
KNOWN = {"GoNotoCurrent.ttf": "83ab5c39e2b1c34a955136275ce0db068cb20d9643ead033d6b8124a73ab4f64"}


class FontFile:
    """A face of a font file at one size. Raises RenderError naming the file if it cannot be used.

    path: of the file; index: of the face in a collection; axes: of a variable font, by tag; size in px.
    """

    def __init__(self, path: Path, index: int, axes: dict[str, float], size: float, hinting: str):
        self._spec = (path, index, axes, size, hinting)
        self.name = path.name + (f"#{index}" if index else "")
        self.name += "".join(f"#{tag}={value:g}" for tag, value in sorted(axes.items()))
        self.path = path
        data = _read(path)
        _check_whole(data, index, str(path))
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._rasterizer = Rasterizer(data, index, size, hinting, str(path), axes)
        self._shaper = Shaper(data, index, size, axes)
        measured = self._rasterizer if self._rasterizer.has_size else self._shaper
        self.ascent, self.descent = measured.ascent, measured.descent
        if not self._shaper.characters:
            raise RenderError(f"{path}: has no character at all; give another font")

    def covers(self, character: str) -> bool:
        return self._shaper.covers(character)

    @property
    def characters(self) -> frozenset[int]:
        """Code points that have a glyph."""
        return self._shaper.characters

    def shape(self, text: str, script: str | None, rtl: bool) -> list[Glyph]:
        return [Glyph(*placed) for placed in self._shaper.place(text, script, rtl)]

    def place(self, text: str, script: str | None, rtl: bool) -> list[tuple[int, int, int, int, int]]:
        """What `shape` returns, without names."""
        return self._shaper.place(text, script, rtl)

    def local_characters(self, characters: Iterable[str]) -> list[str]:
        """Those of these characters that are drawn by their two neighbours alone, in text of nothing else."""
        return self._shaper.local_characters(characters)

    def bitmap(self, glyph: int) -> Bitmap:
        return self._rasterizer.draw(glyph)

    @property
    def has_color(self) -> bool:
        """Whether some glyphs are kept in colour."""
        return self._shaper.has_color

    def color(self, glyph: int) -> tuple[np.ndarray, int, int] | None:
        """A glyph in colour: premultiplied RGBA uint8 [rows, columns, 4], left and top as in Bitmap, or None."""
        return self._shaper.color(glyph)

    def pixel_exact_sizes(self, limit: int = 64) -> list[int]:
        """Sizes in px up to a limit at which the letters and digits of a pixel font have no grey; often none."""
        sample = [glyph.id for glyph in self.shape("HEaegk0358", None, False) if glyph.id]
        path, index, axes, _, _ = self._spec
        exact = []
        for size in range(4, limit + 1):
            try:
                rasterizer = Rasterizer(_read(path), index, size, "none", str(path), axes)
            except RenderError:
                continue  # a font of bitmaps has few sizes
            inks = [rasterizer.draw(glyph).coverage for glyph in sample]
            if inks and all(ink.size and np.isin(ink, (0, 255)).all() for ink in inks):
                exact.append(size)
        return exact

    def __reduce__(self):
        return (FontFile, self._spec)


@functools.lru_cache(maxsize=32)
def _read_version(path: Path, _changed: int) -> bytes:
    return path.read_bytes()


def _read(path: Path) -> bytes:
    try:
        return _read_version(path, path.stat().st_mtime_ns)
    except OSError as cause:
        raise RenderError(f"{path}: cannot be read ({cause.strerror}); give a font file") from cause


def _check_whole(data: bytes, index: int, where: str) -> None:
    """Refuse what is no font, and a font file that was cut off: FreeType and HarfBuzz would draw what is left of it."""
    if data[:4] not in (b"\0\1\0\0", b"OTTO", b"true", b"ttcf"):
        raise RenderError(f"{where}: not a font file; give a TTF, OTF, TTC or OTB file")
    try:
        starts: tuple[int, ...] = (0,)
        if data[:4] == b"ttcf":
            (count,) = struct.unpack_from(">I", data, 8)
            starts = struct.unpack_from(f">{count}I", data, 12)
        for start in starts:
            (tables,) = struct.unpack_from(">H", data, start + 4)
            for i in range(tables):
                tag, _, offset, length = struct.unpack_from(">4sIII", data, start + 12 + 16 * i)
                if offset + length > len(data):
                    name = tag.decode("latin-1")
                    tell = f"table {name!r} ends at byte {offset + length:,} of {len(data):,}; copy the font again"
                    raise RenderError(f"{where}: is cut off: {tell}")
    except struct.error as cause:
        raise RenderError(f"{where}: is cut off inside its directory of tables; copy the font again") from cause
    if not 0 <= index < len(starts):
        if len(starts) == 1:
            raise RenderError(f"{where}: has one face; leave #{index} out")
        raise RenderError(f"{where}: has faces #0 to #{len(starts) - 1}, not #{index}")


class Chain:
    """Fonts in the order in which they are asked. The last may serve for boxes only."""

    def __init__(self, faces: Sequence[Face], boxes: Face | None):
        self.faces: list[Face] = [*faces, *([boxes] if boxes else [])]
        self._num_asked = len(faces)
        self.missing = len(faces) if boxes else 0  # the face that draws what no font has
        self._chosen: dict[str, int] = {}

    def choose(self, cluster: str) -> int:
        """Index of the first font that has all characters of a cluster, -1 if none has."""
        chosen = self._chosen.get(cluster)
        if chosen is None:
            if len(self._chosen) > 200_000:
                self._chosen.clear()
            chosen = self._chosen[cluster] = self._choose(cluster)
        return chosen

    def _choose(self, cluster: str) -> int:
        seen = [character for character in cluster[:64] if not is_ignorable(character)]
        composed = [c for c in unicodedata.normalize("NFC", cluster[:64]) if not is_ignorable(c)]
        for index, face in enumerate(self.faces[: self._num_asked]):
            if all(map(face.covers, seen)) or all(map(face.covers, composed)):
                return index
        # a mark that no font has must not take its base along
        for index, face in enumerate(self.faces[: self._num_asked]):
            if len(seen) > 1 and face.covers(seen[0]):
                return index
        return -1


# Default_Ignorable_Code_Point of the Unicode character database
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def is_ignorable(character: str) -> bool:
    """Whether a character is not meant to be seen: joiners, marks of direction, variation selectors, fillers."""
    return _IGNORABLE.match(character) is not None


def open_chain(names: Sequence[str], size: float, hinting: str, height: int, boxes: bool) -> Chain:
    """Find and open fonts; without a name, the font of this project. The log says which files draw.

    height: rows of a strip, from which the font of this project takes its scale. boxes: whether a character that no
    font has is drawn as a box with its code point. Raises RenderError naming the font that cannot be used.
    """
    scale = max(1, height // _BUILTIN_ROWS)
    faces: list[Face] = []
    for name in names or ("builtin",):
        faces += open_fonts(name, size, hinting, scale)
    only_builtin = all(isinstance(face, PixelFont) for face in faces)
    _log.info("fonts: %s", ", ".join(str(getattr(face, "path", face.name)) for face in faces))
    return Chain(faces, PixelFont(scale) if boxes and not only_builtin else None)


def open_fonts(name: str, size: float, hinting: str, scale: int) -> list[Face]:
    """The fonts that a name stands for: one, or those of a folder. scale: of the font of this project."""
    if name == "builtin":
        return [PixelFont(scale)]
    where, *suffixes = [name] if os.path.exists(name) else name.split("#")
    index, axes = None, {}
    for suffix in suffixes:
        tag, equals, value = suffix.partition("=")
        try:
            if equals:
                axes[tag] = float(value)
            else:
                index = int(suffix)
        except ValueError:
            tell = "a face is written file.ttc#2, an axis file.ttf#wght=400"
            raise RenderError(f"font {name!r}: {'#' + suffix!r} is neither; {tell}") from None
    found = _find(where)
    if found is None:
        return [PixelFont(scale)]
    path, face = found
    if not path.is_dir():
        return [_open(path, face if index is None else index, axes, size, hinting)]
    if suffixes:
        raise RenderError(f"font {name!r}: a folder has neither faces nor axes; name the file")
    return [_open(file, 0, {}, size, hinting) for file in _fonts_of_folder(path)]


def _open(path: Path, index: int, axes: dict[str, float], size: float, hinting: str) -> FontFile:
    font = FontFile(path, index, axes, size, hinting)
    known = KNOWN.get(path.name, font.sha256)
    if font.sha256 != known:
        tell = "inputs are drawn by another version, not as the checkpoint saw them"
        _log.warning("font %s has sha256 %s..., not %s...: %s", path, font.sha256[:16], known[:16], tell)
    return font


def _fonts_of_folder(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(_ENDINGS))
    if not files:
        raise RenderError(f"{folder}: has no font file ({' '.join(_ENDINGS)}); name another folder or a file")
    return files


def _find(name: str) -> tuple[Path, int] | None:
    """Path of a file or folder, and which face of the file; None for a known font that is not here."""
    if name.startswith("system:"):
        return _ask_fontconfig(name.removeprefix("system:"))
    folders = [folder for folder in os.environ.get("PIXELCORE_FONTS", "").split(os.pathsep) if folder]
    for path in [name, *(os.path.join(folder, name) for folder in folders)] if name else []:
        if os.path.exists(path):
            return Path(path), 0
    packaged = _ask_packages(name)
    if packaged is not None:
        return packaged, 0
    if Path(name).name in KNOWN:
        tell = "inputs are drawn by the font of this project, not as the checkpoint saw them"
        _log.warning("font %s (sha256 %s...) is not here: %s", name, KNOWN[Path(name).name][:16], tell)
        return None
    looked = ", ".join(folders) or "unset"
    tell = "give a path, a folder, an installed family (extra fonts), system:NAME or builtin"
    raise RenderError(f"font {name!r} not found, nor in $PIXELCORE_FONTS ({looked}); {tell}")


def _ask_packages(family: str) -> Path | None:
    """A file of an installed font package (fontpkg and its families), by family name."""
    wanted = _letters_of(family)
    for entry in entry_points(group="fontpkg.family"):
        if _letters_of(entry.name) == wanted:
            import fontpkg  # type: ignore[import-not-found]  # present, because its entry point is

            return Path(fontpkg.path(family))
    return None


def _letters_of(family: str) -> str:
    # packages write noto_sans for what people write as Noto Sans
    return "".join(character for character in family.lower() if character.isalnum())


def _ask_fontconfig(family: str) -> tuple[Path, int]:
    program = shutil.which("fc-match")
    if program is None:
        raise RenderError(f"font 'system:{family}': fc-match is not on this machine; install fontconfig or give a path")
    asked = [program, "--format=%{family}\n%{file}\n%{index}", family]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60).stdout.split("\n")
    # fontconfig always answers; a family of another name is its substitute, not the font that was asked for
    if len(answer) < 3 or family.lower() not in [name.lower() for name in answer[0].split(",")]:
        raise RenderError(f"font 'system:{family}': no such family here; `fc-list : family` lists them")
    # the upper half of the index is an instance of a variable font, which is asked for by #wght=400
    return Path(answer[1]), int(answer[2]) & 0xFFFF
