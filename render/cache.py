"""A bounded cache whose hits cost a dictionary look-up and nothing more.

Keeping the least recently used order would cost more at each hit than drawing saves. Two generations do instead: new
entries go into the young one; when it holds half of the limit it becomes the old one, and the old one is dropped. An
entry that is asked for again while old comes back young, so what is in use survives. Because a hit in the young
generation is a plain dictionary hit, `map(cache.__getitem__, words)` runs without a line of Python.

Half of the different words of a book occur once. A cache of what is cheap to build again keeps a value when it is asked
for the second time, so that those never push out what will be needed.
"""

from collections.abc import Callable, Hashable
from typing import Any

_MARKS = (1 << 20) - 3  # a prime, one byte each


class Cache(dict):
    """The young generation is the dictionary itself; read with `cache[key]`, which builds what is missing.

    build: from a key to its value. cost: bytes that a key and its value take. limit: bytes of both generations.
    keep_second: keep a value when it is built for the second time, not the first.
    """

    __slots__ = ("_build", "_cost", "_half", "_old", "_seen", "_used", "num_built")

    def __init__(self, build: Callable[[Any], Any], cost: Callable[[Any, Any], int], limit: int, keep_second: bool = False):
        super().__init__()
        # marks of hashes that were built once; two keys that share a mark only mean that one is kept early
        self._seen = bytearray(_MARKS) if keep_second else None
        self._build, self._cost, self._half = build, cost, limit // 2
        self._old: dict[Hashable, Any] = {}
        self._used = [0, 0]  # bytes: young, old
        self.num_built = 0

    def __missing__(self, key: Hashable) -> Any:
        value = self._old.get(key)
        if value is None:
            value = self._build(key)
            self.num_built += 1
            if self._seen is not None:
                mark = hash(key) % _MARKS
                if not self._seen[mark]:
                    self._seen[mark] = 1
                    return value
        return self.keep(key, value)

    def keep(self, key: Hashable, value: Any) -> Any:
        """Put a value in that was built elsewhere; what alone would fill the cache is not kept. Returns the value."""
        cost = self._cost(key, value)
        if cost > self._half // 8:
            return value
        if self._used[0] + cost > self._half:
            self._old = dict(self)
            self.clear()
            self._used = [0, self._used[0]]
            if self._seen is not None:
                self._seen = bytearray(_MARKS)
        self[key] = value
        self._used[0] += cost
        return value

    @property
    def num_bytes(self) -> int:
        """Bytes in use, as `cost` counts them."""
        return sum(self._used)

    def forget(self) -> None:
        """Drop everything."""
        self.clear()
        self._old, self._used, self.num_built = {}, [0, 0], 0
        if self._seen is not None:
            self._seen = bytearray(_MARKS)
