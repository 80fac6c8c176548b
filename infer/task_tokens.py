"""Text as tokens, for models that read them in place of strips: `Strips` of `infer/task_rows.py` for a tokenizer.

A row is the tokens of a text and </s>, as in pretraining, where </s> ends each document; between the texts of a pair it
parts them. So it stands where a strip has its black patches. Words are tokenized one by one, each with the space before
it, and a word's label stands on its first token. What does not fit is cut at the end: whole words of a list, whole
characters of a text. Spans count characters, as those of strips do, so tasks read both kinds of rows alike.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.task_rows import Drawn, Row
from pixelcore.errors import UserError
from pixelcore.tasks.task import Layout, Windows
from pixelcore.tokenizer import Tokenizer

Span = tuple[int, int]
_SEPARATOR = (-1, -1, -1)
_PADDING = 0  # any token: nothing looks at it


class Tokens:
    """Rows of at most max_tokens tokens, </s> included."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        if tokenizer.eos_id < 0:
            raise UserError("the tokenizer has no </s>, with which every row ends: give one that has")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        # whether a word says by itself that a space stands before it
        self._marks_words = str(tokenizer.surface(tokenizer.encode("a")[0])).startswith("▁")

    def rows(self, drawn: Drawn, windows: Windows | None, spans: bool) -> list[Row]:
        """As of `Inputs`. Raises UserError for a text in which the tokenizer cannot say where its tokens stand."""
        if isinstance(drawn, list):
            return [self._words(drawn)]
        texts = [self._text(text) for text in ((drawn,) if isinstance(drawn, str) else drawn)]
        if windows is None:
            return [self._cut(texts, spans)]
        return self._windows(texts, windows, spans)

    def _words(self, words: list[str]) -> Row:
        given = [word if self._marks_words or not place else f" {word}" for place, word in enumerate(words)]
        ids: list[int] = []
        starts = [0]
        for found in self.tokenizer.encode_batch(given):
            if len(ids) + len(found) >= self.max_tokens:
                break
            ids += found
            starts.append(len(ids))
        layout = Layout(
            num_units=len(ids) + 1,
            word_starts=np.array(starts, np.int32),
            char_spans=None,
            cut=len(starts) <= len(words),
        )
        return self._row(ids, layout)

    def _text(self, text: str) -> tuple[list[int], list[Span]]:
        return self.tokenizer.encode_with_spans(text)

    def _cut(self, texts: Sequence[tuple[list[int], list[Span]]], spans: bool) -> Row:
        """One row of a text or a pair. The first text of a pair keeps what it has, as in a strip."""
        room = self.max_tokens - len(texts)
        parts = []
        for which, (ids, where) in enumerate(texts):
            end = _whole(where, 0, room)
            parts.append((which, ids[:end], where[:end]))
            room -= end
        cut = any(len(kept) < len(ids) for (_, kept, _), (ids, _) in zip(parts, texts, strict=True))
        return self._joined(parts, spans, cut)

    def _windows(self, texts: list[tuple[list[int], list[Span]]], windows: Windows, spans: bool) -> list[Row]:
        """Rows that show the last text from one end to the other, each with the first one before it."""
        *first, (ids, where) = texts
        before, cut = [], False
        for question, places in first:
            end = _whole(places, 0, windows.first_max)
            before, cut = [(0, question[:end], places[:end])], end < len(question)
        room = self.max_tokens - len(texts) - sum(len(part[1]) for part in before)
        rows, start = [], 0
        while True:
            end = _whole(where, start, start + max(room, 0))
            if end == start < len(ids):
                raise UserError(f"window at token {start}: nothing of the text fits beside the first; shorten it")
            rows.append(self._joined([*before, (len(first), ids[start:end], where[start:end])], spans, cut))
            if end >= len(ids):
                return rows
            again = _begin(where, max(end - windows.stride, 0))
            if again <= start:
                raise UserError(
                    f"stride = {windows.stride} tokens are as many as a window shows of the text; ask for fewer, or "
                    "for more tokens"
                )
            start = again

    def _joined(self, parts: Sequence[tuple[int, list[int], list[Span]]], spans: bool, cut: bool) -> Row:
        """The parts of a row, each with </s> behind it but for the last, which has that of the row."""
        ids: list[int] = []
        places: list[tuple[int, int, int]] = []
        for place, (which, kept, where) in enumerate(parts):
            if place:
                ids.append(self.tokenizer.eos_id)
                places.append(_SEPARATOR)
            ids += kept
            places += [(which, begin, end) for begin, end in where]
        char_spans = np.array([*places, _SEPARATOR], np.int32) if spans else None
        return self._row(ids, Layout(num_units=len(ids) + 1, char_spans=char_spans, cut=cut))

    def _row(self, ids: list[int], layout: Layout) -> Row:
        missing = ids.count(self.tokenizer.unk_id) if self.tokenizer.unk_id >= 0 else 0
        return Row(np.array([*ids, self.tokenizer.eos_id], np.int32), layout, missing)

    def collate(self, rows: Sequence[Row], width: int) -> dict[str, Tensor]:
        """ids int64 [B, L]; attention_mask bool [B, L]."""
        ids_BL: NDArray[np.int64] = np.full((len(rows), width), _PADDING, np.int64)
        real_BL = torch.zeros(len(rows), width, dtype=torch.bool)
        for place, row in enumerate(rows):
            ids_BL[place, : len(row.units)] = row.units
            real_BL[place, : row.layout.num_units] = True
        return {"ids": torch.from_numpy(ids_BL), "attention_mask": real_BL}


def _whole(where: Sequence[Span], start: int, end: int) -> int:
    """The end of a piece from `start`, at most `end`, that does not stop within the bytes of a character, if it can."""
    if end >= len(where):
        return len(where)
    earlier = _begin(where, end)
    return earlier if earlier > start else max(end, start)


def _begin(where: Sequence[Span], place: int) -> int:
    """The first token of the character that `place` is within."""
    while 0 < place < len(where) and where[place] == where[place - 1] and where[place][1] > where[place][0]:
        place -= 1
    return place
