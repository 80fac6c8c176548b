"""The renderer: text in, strip out.

    renderer = Renderer(RenderConfig.named("pixel", fonts=["NotoSans-Regular.ttf"]))
    strip = renderer("text")                    # or ("question", "context"), or ["words", "of", "one", "text"]

It owns its fonts and caches, holds nothing that is shared by the process, and can be pickled and forked: a copy draws
the same bytes. What makes two renderers the same is written down by `identity`.
"""

import hashlib
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from render.config import RenderConfig
from render.errors import RenderError
from render.graphemes import boundaries
from render.layouts import LAYOUTS
from render.rasterize import freetype_version
from render.shape import harfbuzz_version
from render.strip import Draft, Geometry, Strip
from render.typesetter import Typesetter, check_fits_grid

_log = logging.getLogger("render")

_warned: set[str] = set()  # lines that were said in this process

Text = str | tuple[str, str] | Sequence[str]

# One line for each script that a chain of fonts may cover; a change of a font, of its version or of a library that
# moves one pixel of it changes the identity.
PROBE = {
    "Latn": "Sphinx of black quartz, judge my vow! 0123456789 ÄÖÜ éñç",
    "Grek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Cyrl": "Жебракують філософи при ґанку церкви",
    "Arab": "نص حكيم له سر قاطع",
    "Hebr": "דג סקרן שט בים",
    "Deva": "क्षत्रिय ज्ञान हिन्दी में",
    "Taml": "தமிழ் எழுத்து",
    "Thai": "เป็นมนุษย์สุดประเสริฐ",
    "Hani": "我喜欢在早上喝一杯热茶",
    "Hira": "いろはにほへと",
    "Hang": "다람쥐 헌 쳇바퀴",
    "Zsym": "→ ∞ ≠ 😀",
}


class Renderer:
    """Draws text under one configuration. Raises RenderError for fonts or inputs that cannot be drawn."""

    def __init__(self, config: RenderConfig):
        self.config = config
        self._layout = LAYOUTS[config.layout]
        self._setter = Typesetter(config, self._layout.on_patches)
        self._geometry = Geometry(config.height, config.patch_width, config.channels)
        warning = check_fits_grid(self._setter)
        if warning and warning not in _warned:
            _warned.add(warning)
            _log.warning(warning)

    def __call__(self, text: Text, max_patches: int | None = None) -> Strip:
        """Render one text: a string, a pair of strings, or a list of words.

        max_patches: of the strip, end patch included; the configuration's if not given. Raises TypeError for anything
        else than these inputs.
        """
        lay, parts, lengths = self._job(text)
        limit = self._limit(max_patches)
        if self.config.overflow == "cluster":
            return self._fitting(text, lay, parts, lengths, limit)
        draft = self._draft(lay, parts, limit, clips=True)
        if isinstance(text, list) and draft.num_words is not None:
            lengths = (draft.num_words,)
        return draft.finish(lengths)

    def _fitting(self, text: Text, lay: Callable[..., None], parts: tuple, lengths: tuple, limit: int) -> Strip:
        # a text with more characters than a strip can have columns is not worth drawing in full to see that
        if sum(lengths) <= 4 * limit:
            draft = self._draft(lay, parts, limit)
            if not draft.overflows:
                return draft.finish(lengths)
        draft, lengths = self._shorten(text, limit)
        return draft.finish(lengths)

    def batch(self, texts: Iterable[Text], max_patches: int | None = None) -> Iterator[Strip]:
        """Render many texts, one after another. Errors name the text by its number, from 0."""
        for index, text in enumerate(texts):
            try:
                yield self(text, max_patches)
            except (RenderError, TypeError) as cause:
                raise type(cause)(f"text {index}: {cause}") from cause

    def _limit(self, max_patches: int | None) -> int:
        patches = self.config.max_patches if max_patches is None else max_patches
        if patches < 2:
            raise RenderError(f"max_patches = {patches}; a strip has at least 2: one of text and the end patch")
        return patches * self.config.patch_width

    def _job(self, text: Text) -> tuple[Callable[..., None], tuple, tuple[int, ...]]:
        if isinstance(text, str):
            return self._layout.text, (text,), (len(text),)
        if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
            return self._layout.pair, text, (len(text[0]), len(text[1]))
        if isinstance(text, list) and all(isinstance(word, str) for word in text):
            return self._layout.words, (text,), (len(text),)
        found = f"tuple of {len(text)}" if isinstance(text, tuple) else type(text).__name__
        raise TypeError(f"cannot render a {found}; give a string, a pair of strings, or a list of words")

    def _draft(self, lay: Callable[..., None], parts: Sequence, limit: int, clips: bool = False) -> Draft:
        # a layout that clips leaves words out and does not say so: who looks for what fits, must not let it
        draft = Draft(self._geometry, limit, clips=clips)
        lay(self._setter, draft, *parts)
        return draft

    # ---- what does not fit -------------------------------------------------------------------------------------------

    def _shorten(self, text: Text, limit: int) -> tuple[Draft, tuple[int, ...]]:
        """The longest beginning of a text that fits, by whole clusters; of a list, by whole words.

        Of a pair the second text gives way, down to one patch; then the first.
        """
        if isinstance(text, str):
            kept = self._longest(text, lambda part: self._draft(self._layout.text, (part,), limit))
            return self._draft(self._layout.text, (text[:kept],), limit), (kept,)
        if isinstance(text, list):
            kept = _last_true(len(text), lambda n: not self._draft(self._layout.words, (text[:n],), limit).overflows)
            return self._draft(self._layout.words, (text[:kept],), limit), (kept,)
        first, second = text
        room = limit - self.config.patch_width if second else limit
        kept_first = len(first)
        if self._draft(self._layout.pair, (first, ""), room).overflows:
            kept_first = self._longest(first, lambda part: self._draft(self._layout.pair, (part, ""), room))
        first = first[:kept_first]
        kept = self._longest(second, lambda part: self._draft(self._layout.pair, (first, part), limit))
        return self._draft(self._layout.pair, (first, second[:kept]), limit), (kept_first, kept)

    def _longest(self, text: str, lay: Callable[[str], Draft]) -> int:
        """Characters of the longest beginning, in whole clusters, that does not overflow."""
        # texts may be millions of characters long: draw twice as much until it is too much
        size = 64
        while size < len(text) and not lay(text[:size]).overflows:
            size *= 2
        ends = [0, *boundaries(text[: min(size, len(text))])]
        return ends[_last_true(len(ends) - 1, lambda i: not lay(text[: ends[i]]).overflows)]

    def windows(self, text: Text, stride: int, max_patches: int | None = None) -> list[Strip]:
        """A long text, or a pair whose second text is long, as strips that overlap.

        stride: patches of the end of a strip that the next one shows again, at least. Each window of a pair repeats the
        first text. Character spans count from the beginning of the whole text. What is shown again is shaped anew.
        Raises RenderError if a window could not move on.
        """
        if isinstance(text, list):
            raise TypeError("windows of a list of words are not defined; give a string or a pair of strings")
        if type(stride) is not int or stride < 0:
            raise RenderError(f"stride = {stride!r}; it must be a whole number of patches, 0 or more")
        limit = self._limit(max_patches)
        first, long = (None, text) if isinstance(text, str) else text
        which = 0 if first is None else 1
        strips, start = [], 0
        while True:
            rest = long[start:] if first is None else (first, long[start:])
            strip = self._fitting(rest, *self._job(rest), limit)
            drawn = strip.drawn[which]
            strip.shift(which, start)
            strips.append(strip)
            end = start + drawn
            if end >= len(long):
                return strips
            spans = strip.char_spans
            places = spans[spans[:, 0] == which]
            # the first characters of the last `stride` patches of this text, in the order of the text
            begins = np.sort(places[:, 1])[::-1]
            if end <= start:
                raise RenderError(f"window at character {start}: nothing of the text fits beside the first; shorten it")
            again = int(begins[min(stride, len(begins)) - 1]) if stride else end
            if again <= start:
                tell = "as many as a window shows of the text; ask for fewer, or for more patches"
                raise RenderError(f"stride = {stride} patches are {tell}")
            start = again

    # ---- what makes it this renderer ---------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: configuration, fonts by hash, and hashes of drawn probe texts, by script.

        Equal `config`, `fonts` and `probes` mean equal strips; `versions` are for the record and are not compared.
        """
        table = self.config.to_dict()
        del table["fonts"]
        probes = {}
        for script, line in PROBE.items():
            strip = self(line)
            probes[script] = hashlib.sha256(str(strip.pixels.shape).encode() + strip.columns.tobytes()).hexdigest()
        return {
            "config": table,
            "fonts": [{"name": face.name, "sha256": face.sha256} for face in self._setter.chain.faces],
            "probes": probes,
            "versions": {
                "freetype": freetype_version(),
                "harfbuzz": harfbuzz_version(),
                "unicode": unicodedata.unidata_version,
                "python": ".".join(map(str, sys.version_info[:2])),
            },
        }

    @property
    def setter(self) -> Typesetter:
        """What draws the pieces; the reader takes its shapes from it."""
        return self._setter

    @property
    def cache_bytes(self) -> int:
        """Bytes that the caches hold now; at most 128 MB."""
        return self._setter.cache_bytes

    def forget(self) -> None:
        """Empty the caches."""
        self._setter.forget()

    def __reduce__(self):
        return (Renderer, (self.config,))


def changes(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two identities, one line each; empty = the same renderer."""
    found = []
    for key in sorted({*one["config"], *other["config"]}):
        a, b = one["config"].get(key), other["config"].get(key)
        if a != b:
            found.append(f"render.{key}: {a!r} against {b!r}")
    fonts = [[(font["name"], font["sha256"][:16]) for font in table["fonts"]] for table in (one, other)]
    if [digest for _, digest in fonts[0]] != [digest for _, digest in fonts[1]]:
        found.append(f"fonts: {fonts[0]} against {fonts[1]}")
    elif one["probes"] != other["probes"]:
        scripts = [script for script in one["probes"] if one["probes"][script] != other["probes"].get(script)]
        found.append(
            f"pixels of {', '.join(scripts)}, from other library versions: {one['versions']}, {other['versions']}"
        )
    return found


def _last_true(highest: int, test: Callable[[int], bool]) -> int:
    """The largest number from 0 to highest for which a test that turns false once is still true; 0 if none."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        if test(middle):
            low = middle
        else:
            high = middle - 1
    return low
