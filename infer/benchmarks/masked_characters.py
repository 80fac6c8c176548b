"""How many characters a masked-pixel model restores: the one figure that compares models of different renderers.

The loss of a masked autoencoder counts pixels, in units that its renderer and its normalisation set. What matters is
whether the patches that it paints say what had stood there. So its predictions are pasted into the holes of held-out
strips, the reader reads the holes (render.reader, `read_windows`), and its characters are compared with the text.

Which characters count: clusters of the text that draw ink (spaces do not), all of whose columns lie in hidden patches,
as Strip.clusters has them: from origin to advance, and where two share their patches, the second up to the edge. A
cluster is restored if the reading has one of the same text whose origin is at most a fifth of the height away, 3 px of
16 rows: less than most letters are wide, so that a letter is not found in its neighbour's place, and more than a
neighbour that was misread by a pixel or two shifts it. Clusters that are drawn alike (Latin A, Greek Alpha) count as
the same, since no pixels could tell. No cluster of the reading counts twice. The reader knows the font, the layout and
the characters of the training text, and sees the pasted pixels with the patch at either side of each hole; how many
characters there were, it is not told.

Holes of as many patches hold more characters in one layout than in another; how hard they are to guess, the baselines
tell, so figures of different layouts are compared beside them. Predictions of normalised pixels get the contrast of the
visible patches, never the true one, and are brought to variance 1 before that: undecided predictions are grey, and
nothing is nearer to grey than blank paper (infer/denormalise.py).

Beside it, on the same characters:
- the most frequent character of the training text, spaces apart;
- a character 5-gram model of the training text (infer/infilling.py), with an advantage: it is told how many characters
  are missing, and sees the text of what is visible in exact letters. What stands partly in a visible patch is visible;
- the nearest visible patch (the left one of two) copied into each hidden one, and read by the same reader;
- the ceiling: the true pixels, read by the same reader. It falls short of 1 by the characters that the training text
  does not have, and so the reader does not know, and by the few that it confuses.

Characters of one hole, and of one row, are restored or lost together, so the 95 % interval comes from drawing rows with
replacement (seed 0); where few rows say less than that, Wilson's interval of as many independent characters bounds it.
"""

import functools
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from infer.benchmarks.intervals import wilson
from infer.denormalise import paste, sharpened
from infer.infilling import CharacterNGrams
from pixelcore.errors import UserError
from pixelcore.patches import Patches, arrange
from render import RenderConfig, Renderer
from render.reader import Reader

CONTEXT = 1  # visible patches that the reader sees at either side of a hole; two read no better, and slower
TRAINING_CHARACTERS = 2_000_000
_SAMPLE_WORDS = 20_000  # words with combining marks, whose clusters the reader learns
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Row:
    """A strip with holes. pixels_PA: uint8, of the whole strip, its end patch included, in the order row, column,
    channel; those of hidden patches are the truth and no model's input. hidden_P: bool."""

    text: str
    pixels_PA: np.ndarray
    hidden_P: np.ndarray


@dataclass(frozen=True, kw_only=True)
class MaskedCharacterAccuracy:
    """Shares of the same `count` characters, 0 to 1. low, high: 95 % interval of the accuracy. by_span: patches of a
    hole, characters in such holes, accuracy. ceiling: of perfect predictions. ngram, nearest, most_frequent: baselines.
    seconds: of reading, not of the model; windows: how many were read in them."""

    accuracy: float
    low: float
    high: float
    count: int
    num_rows: int
    by_span: tuple[tuple[int, int, float], ...]
    ceiling: float
    ngram: float
    nearest: float
    most_frequent: float
    most_frequent_character: str
    windows: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A character that counts. first, end: of its cluster in the text; span: patches of its hole."""

    row: int
    first: int
    end: int
    text: str
    column: int
    span: int


class MaskedCharacters:
    """The held-out rows of a run, with what does not depend on the model: made once, asked at every evaluation.

    config: of the renderer. texts, masks: of the held-out rows; a mask is bool [patches of the strip, end patch
    included]. train_texts: of the training data, of which at most TRAINING_CHARACTERS are read.
    Raises UserError where a mask has another length than its strip, or where no character is hidden.
    """

    def __init__(
        self,
        config: RenderConfig,
        train_texts: Iterable[str],
        texts: Sequence[str],
        masks: Sequence[np.ndarray | torch.Tensor],
    ):
        self.config = config
        self._training = _first_characters(train_texts, TRAINING_CHARACTERS)
        renderer = Renderer(config)
        self.rows: list[Row] = []
        self._clusters: list[np.ndarray] = []
        self._black: list[tuple[int, ...]] = []
        for number, (text, mask) in enumerate(zip(texts, masks, strict=True)):
            strip, hidden_P = renderer(text), np.asarray(mask, bool)
            if hidden_P.shape != (strip.num_patches,):
                raise UserError(
                    f"row {number}: a mask of {list(hidden_P.shape)} for a strip of {strip.num_patches} patches, end "
                    "patch included: draw the mask for the strip's own length"
                )
            if hidden_P.any():
                pixels_PA = strip.patches.reshape(strip.num_patches, -1)
                self.rows.append(Row(text=text, pixels_PA=pixels_PA, hidden_P=hidden_P))
                self._black.append(strip.separators)
                clusters = strip.clusters()
                self._clusters.append(clusters[clusters[:, 4] <= strip.separators[-1] * config.patch_width])
        self._scored = [scored for row in range(len(self.rows)) for scored in self._scored_of(row)]
        if not self._scored:
            raise UserError("no character lies wholly in hidden patches: take more rows, or hide longer spans")
        self._windows = [window for row in range(len(self.rows)) for window in self._windows_of(row)]

    def score(self, predict: Callable[[Sequence[Row]], Sequence[np.ndarray]], *, normalised: bool):
        """What a model restores: MaskedCharacterAccuracy.

        predict: gives of each row the predictions of its hidden patches in order, float [M, O] (`infer.denormalise.
        paste` has the shapes). normalised: whether they are of normalised pixels.
        """
        channels = self.config.channels
        predicted = predict(self.rows)
        begin = time.perf_counter()
        pasted = [
            paste(
                row.pixels_PA,
                row.hidden_P,
                sharpened(predictions_MO) if normalised else predictions_MO,
                channels,
                normalised,
            )
            for row, predictions_MO in zip(self.rows, predicted, strict=True)
        ]
        restored = self.restored(pasted)
        seconds = time.perf_counter() - begin
        low, high = self._interval(restored)
        character, most_frequent = self._most_frequent
        return MaskedCharacterAccuracy(
            accuracy=float(restored.mean()),
            low=low,
            high=high,
            count=len(restored),
            num_rows=len({scored.row for scored in self._scored}),
            by_span=self._by_span(restored),
            ceiling=self._ceiling,
            ngram=self._ngram,
            nearest=self._nearest,
            most_frequent=most_frequent,
            most_frequent_character=character,
            windows=len(self._windows),
            seconds=seconds,
        )

    def restored(self, patches: Sequence[np.ndarray]) -> np.ndarray:
        """Whether each character that counts can be read from patches uint8 [P, A] of all rows: bool [characters]."""
        near = self.tolerance
        seen: list[dict[int, tuple[str, ...]]] = [{} for _ in self.rows]
        for (row, _, _), clusters in zip(self._windows, self.read(patches), strict=True):
            seen[row].update(clusters)
        found = np.zeros(len(self._scored), bool)
        for i, scored in enumerate(self._scored):
            row = seen[scored.row]
            for column in sorted(
                range(scored.column - near, scored.column + near + 1), key=lambda c: abs(c - scored.column)
            ):
                if scored.text in row.get(column, ()):
                    del row[column]
                    found[i] = True
                    break
        return found

    def read(self, patches: Sequence[np.ndarray]) -> list[dict[int, tuple[str, ...]]]:
        """What the reader sees in each window of patches uint8 [P, A] of all rows: by the column of its origin, all
        texts that look like a cluster. It depends on these pixels and on which patches are hidden, on nothing else."""
        config = self.config
        channels = (3,) if config.channels == 3 else ()
        strips = []
        for patches_PA in patches:
            shaped = patches_PA.reshape(len(patches_PA), config.height, config.patch_width, *channels)
            strips.append(shaped.swapaxes(0, 1).reshape(config.height, -1, *channels))
        return [
            {cluster.column: tuple(map(_composed, cluster.texts)) for cluster in window}
            for window in self._reader.read_windows(strips, self._windows)
        ]

    @property
    def tolerance(self) -> int:
        """px by which the origin of a cluster may be off."""
        return max(1, self.config.height // 5)

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def _scored_of(self, row: int) -> list[_Scored]:
        data, width = self.rows[row], self.config.patch_width
        spans = np.zeros(len(data.hidden_P), np.int64)
        for first, end in _runs(data.hidden_P):
            spans[first:end] = end - first
        has_ink = self._has_ink(row)
        found = []
        for which, first, end, begin, stop in self._clusters[row].tolist():
            text = data.text[first:end]
            if which or stop <= begin or text.isspace() or not has_ink[begin:stop].any():
                continue
            patches = slice(begin // width, (stop - 1) // width + 1)
            if data.hidden_P[patches].all():
                span = int(spans[patches.start])
                found.append(_Scored(row=row, first=first, end=end, text=_composed(text), column=begin, span=span))
        return found

    def _has_ink(self, row: int) -> np.ndarray:
        """Of each column of the true strip: bool [columns]."""
        shape = len(self.rows[row].pixels_PA), self.config.height, self.config.patch_width, -1
        return (self.rows[row].pixels_PA.reshape(shape) < 255).any((1, 3)).ravel()

    def _windows_of(self, row: int) -> list[tuple[int, int, int]]:
        """Holes of a row with their context, as the reader takes them; what touches is one window."""
        hidden_P = self.rows[row].hidden_P
        last = len(hidden_P) if hidden_P[-1] else len(hidden_P) - 1  # a visible end patch is known to be one
        windows: list[list[int]] = []
        for first, end in _runs(hidden_P):
            first, end = max(0, first - CONTEXT), min(last, end + CONTEXT)
            if windows and first <= windows[-1][1]:
                windows[-1][1] = end
            else:
                windows.append([first, end])
        return [(row, first, end) for first, end in windows]

    # ---- baselines ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _reader(self) -> Reader:
        characters = "".join(
            sorted({character for text in self._training for character in text if character.isprintable()})
        )
        words = Counter(
            word
            for text in self._training
            if not text.isascii()
            for word in text.split()
            if any(unicodedata.category(character)[0] == "M" for character in word)
        )
        sample = [word for word, _ in words.most_common(_SAMPLE_WORDS)]
        return Reader(self.config, alphabet=characters, sample=sample)

    @functools.cached_property
    def _most_frequent(self) -> tuple[str, float]:
        counts = Counter()
        for text in self._training:
            counts.update(text)
        character = max((c for c in counts if not c.isspace()), key=lambda c: (counts[c], c), default="")
        return character, float(np.mean([scored.text == character for scored in self._scored]))

    @functools.cached_property
    def _ceiling(self) -> float:
        return float(self.restored([row.pixels_PA for row in self.rows]).mean())

    @functools.cached_property
    def _nearest(self) -> float:
        """Share that is read where each hidden patch repeats the nearest visible one."""
        pasted = []
        for row, black in zip(self.rows, self._black, strict=True):
            usable = ~row.hidden_P
            usable[list(black)] = False
            sources = np.flatnonzero(usable)
            patches_PA = row.pixels_PA.copy()
            hidden = np.flatnonzero(row.hidden_P)
            if len(sources):
                patches_PA[hidden] = patches_PA[sources[abs(hidden[:, None] - sources).argmin(1)]]
            else:
                patches_PA[hidden] = 255
            pasted.append(patches_PA)
        return float(self.restored(pasted).mean())

    @functools.cached_property
    def _ngram(self) -> float:
        """Share that a character n-gram model fills in rightly."""
        model = CharacterNGrams(self._training)
        filled = [self._filled(row, model) for row in range(len(self.rows))]
        right = [
            filled[scored.row][scored.first : scored.end] == self.rows[scored.row].text[scored.first : scored.end]
            for scored in self._scored
        ]
        return float(np.mean(right))

    def _filled(self, row: int, model: CharacterNGrams) -> str:
        """The text of a row with its hidden characters filled in, from left to right."""
        hidden = self.hidden_characters(row)
        text, filled, reach = self.rows[row].text, "", model.order - 1
        for first, end in _runs(hidden):
            filled += text[len(filled) : first]
            right = text[end : end + reach]
            for length in range(len(right)):
                if end + length < len(hidden) and hidden[end + length]:
                    right = right[:length]  # the next hole begins
                    break
            filled += model.fill(filled[-reach:], end - first, right)
        return filled + text[len(filled) :]

    def hidden_characters(self, row: int) -> np.ndarray:
        """Which characters of a row's text, spaces too, lie wholly in hidden patches: bool [characters of the strip].

        A space that the layout does not draw is hidden if what stands on both sides of it is.
        """
        data, width = self.rows[row], self.config.patch_width
        clusters = self._clusters[row]
        hidden = np.zeros(int(clusters[:, 2].max(initial=0)), bool)
        drawn = np.zeros(len(hidden), bool)
        for _, first, end, begin, stop in clusters.tolist():
            drawn[first:end] = True
            hidden[first:end] = data.hidden_P[begin // width : max(begin, stop - 1) // width + 1].all()
        for i in np.flatnonzero(~drawn).tolist():
            before, after = np.flatnonzero(drawn[:i]), np.flatnonzero(drawn[i:])
            hidden[i] = bool(len(before) and len(after) and hidden[before[-1]] and hidden[i + after[0]])
        return hidden

    # ---- statistics --------------------------------------------------------------------------------------------------

    def _interval(self, restored: np.ndarray) -> tuple[float, float]:
        rows = np.array([scored.row for scored in self._scored])
        counts = np.bincount(rows)
        hits = np.bincount(rows, restored)[counts > 0]
        return interval(hits, counts[counts > 0])

    def _by_span(self, restored: np.ndarray) -> tuple[tuple[int, int, float], ...]:
        spans = np.array([scored.span for scored in self._scored])
        return tuple(
            (length, int((spans == length).sum()), float(restored[spans == length].mean()))
            for length in np.unique(spans).tolist()
        )


def interval(hits_R: np.ndarray, counts_R: np.ndarray) -> tuple[float, float]:
    """95 % interval of a share, from hits among counts by row: the bootstrap over rows, at least Wilson's interval."""
    rng, rows = np.random.default_rng(0), len(counts_R)
    weights = rng.multinomial(rows, np.full(rows, 1 / rows), _RESAMPLES)
    low, high = np.percentile((weights @ hits_R) / (weights @ counts_R), [2.5, 97.5])
    wilson_low, wilson_high = wilson(float(hits_R.sum()), float(counts_R.sum()))
    return min(float(low), wilson_low), max(float(high), wilson_high)


def predictor(
    model: Callable[[Patches], torch.Tensor], device: torch.device | str = "cpu", patches_per_pass: int = 8192
) -> Callable[[Sequence[Row]], list[np.ndarray]]:
    """A model as `score` takes one. model: predictions [M, O] of the scored patches of a micro-batch."""

    @torch.inference_mode()
    def predict(rows: Sequence[Row]) -> list[np.ndarray]:
        predictions: list[np.ndarray] = []
        for batch in _passes(rows, patches_per_pass):
            pixels_PA = torch.from_numpy(np.concatenate([row.pixels_PA for row in batch]))
            hidden_P = torch.from_numpy(np.concatenate([row.hidden_P for row in batch]))
            patches = arrange(pixels_PA, [len(row.hidden_P) for row in batch], hidden_P, device=device)
            predicted_MO = model(patches).float().cpu().numpy()
            ends = np.cumsum([int(row.hidden_P.sum()) for row in batch])
            predictions += np.split(predicted_MO, ends[:-1])
        return predictions

    return predict


def masked_characters(
    model: Callable[[Patches], torch.Tensor],
    config: RenderConfig,
    texts: Sequence[str],
    masks: Sequence[np.ndarray | torch.Tensor],
    train_texts: Iterable[str],
    *,
    normalised: bool,
    device: torch.device | str = "cpu",
) -> MaskedCharacterAccuracy:
    """Score a model once. model: of a micro-batch, the predictions [M, O] of its scored patches. normalised: whether
    they are of normalised pixels. The rest as for MaskedCharacters, which is the better choice where it is asked again.
    """
    return MaskedCharacters(config, train_texts, texts, masks).score(predictor(model, device), normalised=normalised)


def as_text(result: MaskedCharacterAccuracy) -> str:
    """The result for people."""
    spans = [f"  holes of {length} patches: {share:.4f} of {count:,}" for length, count, share in result.by_span]
    always = f"always {result.most_frequent_character!r}"
    return "\n".join(
        [
            f"masked characters  {result.accuracy:.4f}  (95 % interval {result.low:.4f} to {result.high:.4f})",
            f"characters         {result.count:,} in {result.num_rows:,} rows",
            *spans,
            f"read in            {result.seconds:.1f} s, {result.windows:,} windows",
            "for scale, on the same characters",
            f"  true pixels, read by the same reader          {result.ceiling:.4f}",
            f"  character 5-grams, told how many are missing  {result.ngram:.4f}",
            f"  nearest visible patch                         {result.nearest:.4f}",
            f"  {always:<46}{result.most_frequent:.4f}",
        ]
    )


def _passes(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """Rows in order, in groups of at most so many patches, or of one row."""
    groups: list[list[Row]] = []
    size = 0
    for row in rows:
        if not groups or size + len(row.hidden_P) > most:
            groups.append([])
            size = 0
        groups[-1].append(row)
        size += len(row.hidden_P)
    return groups


def _first_characters(texts: Iterable[str], most: int) -> list[str]:
    found, left = [], most
    for text in texts:
        found.append(text[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    return found


def _runs(hidden: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each run of true values."""
    steps = np.diff(np.concatenate([[0], hidden.astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
