"""Text with holes, filled by counting: the character n-gram model that a masked-pixel model should beat.

The probability of a character after up to four others is interpolated from long contexts to short ones (Witten and
Bell): p(c | h) = (n(hc) + t(h) p(c | h')) / (n(h) + t(h)), with n(h) how often the context h was seen, t(h) how many
different characters followed it, and h' the context without its first character. The shortest context, none, leans on
all characters being equally likely; one of them stands for those that were never seen. There is nothing to tune, and
every distribution adds up to one.

A hole of a known number of characters is filled with the string that makes hole and text behind it likeliest: Viterbi's
algorithm over the last four characters, exact as long as it may keep as many strings of them as there are (`beam`).
"""

from collections.abc import Iterable

import numpy as np

ORDER = 5
BOUNDARY = "\n"  # between texts
UNSEEN = "\ufffd"
_CHARACTERS = 2_000_000


class CharacterNGrams:
    """Counts of strings of 1 to `order` characters of some texts.

    texts: read until `most` characters are reached; line breaks part texts as their ends do. order: 2 or more.
    """

    def __init__(self, texts: Iterable[str], order: int = ORDER, most: int = _CHARACTERS):
        parts, length = [], 0
        for text in texts:
            parts.append(text[: most - length])
            length += len(parts[-1]) + 1
            if length >= most:
                break
        codes = np.frombuffer(BOUNDARY.join(["", *parts, ""]).encode("utf-32-le"), np.uint32)
        known, ids = np.unique(codes, return_inverse=True)
        self.order = order
        self.characters = [chr(code) for code in known.tolist()] + [UNSEEN]
        self.index = {character: i for i, character in enumerate(self.characters)}
        self._never = [self.index.get(character, len(known)) for character in (BOUNDARY, UNSEEN)]  # fill no hole
        self._prefixes: list[np.ndarray] = []  # by length, what _rank looks strings up in
        self._follow: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        size = len(self.characters)
        ranks = np.zeros(len(ids), np.int64)  # of the string of `length` characters that begins here
        for length in range(order):
            followed = ranks[: len(ids) - length] * size + ids[length:]
            strings, ranks, counts = np.unique(followed, return_inverse=True, return_counts=True)
            # the characters that follow each string: they lie side by side
            heads = np.searchsorted(strings // size, np.arange(int(strings[-1]) // size + 2))
            self._follow.append((heads, strings % size, counts))
            self._prefixes.append(strings)

    def __call__(self, context: str) -> np.ndarray:
        """Probabilities of all `characters` after a text, whose last order - 1 count: float64 [characters]."""
        return self._after(self.ids(context))

    def ids(self, text: str) -> tuple[int, ...]:
        """Numbers of characters; those that were never seen share one."""
        return tuple(self.index.get(character, len(self.characters) - 1) for character in text)

    def _after(self, context: tuple[int, ...]) -> np.ndarray:
        context = context[max(0, len(context) - self.order + 1) :]
        found = self._known.get(context)
        if found is None:
            size = len(self.characters)
            shorter = self._after(context[1:]) if context else np.full(size, 1 / size)
            heads, which, counts = self._follow[len(context)]
            rank, found = self._rank(context), shorter
            different = 0 if rank is None or rank + 1 >= len(heads) else int(heads[rank + 1] - heads[rank])
            if different:
                span = slice(heads[rank], heads[rank] + different)
                found = shorter * different
                found[which[span]] += counts[span]
                found /= counts[span].sum() + different
            self._known[context] = found
        return found

    def _rank(self, context: tuple[int, ...]) -> int | None:
        """The place of a string among those of its length, None if it was never seen."""
        rank = 0
        for length, character in enumerate(context):
            strings = self._prefixes[length]
            key = rank * len(self.characters) + character
            rank = int(np.searchsorted(strings, key))
            if rank == len(strings) or strings[rank] != key:
                return None
        return rank

    def log_probability(self, text: str, left: str = "") -> float:
        """Nats of a text after another."""
        ids, start = self.ids(left + text), len(left)
        return float(sum(np.log(self._after(ids[:i])[ids[i]]) for i in range(start, len(ids))))

    def fill(self, left: str, length: int, right: str, beam: int = 64) -> str:
        """The likeliest string of `length` characters between two texts, of which order - 1 characters count each.

        beam: contexts that are kept at each place. No hole is filled with BOUNDARY or UNSEEN.
        """
        self._forget()
        reach = self.order - 1
        left_ids, right_ids = self.ids(left)[-reach:], self.ids(right)[:reach]
        scores, states = np.zeros(1), [left_ids]
        filled: list[tuple[int, ...]] = [()]
        for _ in range(length):
            each = scores[:, None] + np.log(np.stack([self._after(state) for state in states]))
            each[:, self._never] = -np.inf
            kept = self._likeliest(each, states, filled, beam)
            states = list(kept)
            scores, filled = np.array([score for score, _ in kept.values()]), [path for _, path in kept.values()]
        totals = [
            score + sum(np.log(self._after((*state, *right_ids[:i]))[right_ids[i]]) for i in range(len(right_ids)))
            for score, state in zip(scores.tolist(), states, strict=True)
        ]
        return "".join(self.characters[i] for i in filled[int(np.argmax(totals))])

    def _likeliest(self, each: np.ndarray, states: list, filled: list, beam: int) -> dict:
        """The best `beam` states one character on, each with its nats and the likeliest string that leads there."""
        most = min(each.size, 4 * beam)
        while True:
            likely = np.argpartition(-each, most - 1, axis=None)[:most]
            likely = likely[np.lexsort((likely, -each.ravel()[likely]))]
            kept: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
            for at in likely.tolist():
                before, character = divmod(at, each.shape[1])
                state = (*states[before], character)[1 - self.order :]
                if state not in kept:
                    kept[state] = float(each[before, character]), (*filled[before], character)
                    if len(kept) == beam:
                        return kept
            if most == each.size:
                return kept
            most = min(each.size, 4 * most)

    def _forget(self) -> None:
        if len(self._known) * len(self.characters) > 20_000_000:
            self._known.clear()
