"""A bounded cache whose hits cost a dictionary look-up and nothing more.

Keeping the least recently used order would cost more at each hit than drawing saves. Two generations do instead: new
entries go into the young one; when it holds half of the limit it becomes the old one, and the old one is dropped. An
entry that is asked for again while old comes back young, so what is in use survives. Because a hit in the young
generation is a plain dictionary hit, `map(cache.__getitem__, words)` runs without a line of Python.

Half of the different words of a book occur once. With `on_trial`, a value that is cheap to build again waits in a place
of its own first, and is kept when it is asked for again while it waits: it does not push out what will come again. That
place has two generations as well: what is new stays at least until as many others came as fill one of them.
"""

from collections.abc import Callable, Hashable
from typing import Any

_ABSENT = object()


class Cache(dict):
    """The young generation is the dictionary itself; read with `cache[key]`, which builds what is missing.

    build: from a key to its value. cost: bytes that a key and its value take. limit: bytes of everything. on_trial:
    of a key, whether its value has to be asked for twice; a quarter of the limit is for those that wait.
    """

    __slots__ = ("_build", "_cost", "_half", "_new", "_old", "_on_trial", "_trial", "_used", "_waiting", "num_built")

    def __init__(
        self,
        build: Callable[[Any], Any],
        cost: Callable[[Any, Any], int],
        limit: int,
        on_trial: Callable[[Any], object] | None = None,
    ):
        super().__init__()
        self._on_trial, self._trial = on_trial, limit // 8 if on_trial else 0
        self._build, self._cost, self._half = build, cost, limit // 2 - self._trial
        self._old: dict[Hashable, Any] = {}
        self._new: dict[Hashable, Any] = {}  # on trial
        self._waiting: dict[Hashable, Any] = {}  # on trial for longer
        self._used = [0, 0, 0, 0]  # bytes: young, old, new, waiting
        self.num_built = 0

    def __missing__(self, key: Hashable) -> Any:
        value = self._old.get(key, _ABSENT)  # None may be a value
        if value is _ABSENT:
            value = self._new.get(key, _ABSENT)
            if value is _ABSENT:
                value = self._waiting.get(key, _ABSENT)
        if value is not _ABSENT:
            return self.keep(key, value)
        value = self._build(key)
        self.num_built += 1
        if not self._on_trial or not self._on_trial(key):
            return self.keep(key, value)
        cost = self._cost(key, value)
        if self._used[2] + cost > self._trial:
            self._new, self._waiting = {}, self._new
            self._used[2:] = 0, self._used[2]
        if cost <= self._trial:
            self._new[key] = value
            self._used[2] += cost
        return value

    def keep(self, key: Hashable, value: Any) -> Any:
        """Put a value in that was built elsewhere; what alone would fill the cache is not kept. Returns the value."""
        cost = self._cost(key, value)
        if cost > self._half // 8:
            return value
        if self._used[0] + cost > self._half:
            self._old = dict(self)
            self.clear()
            self._used[:2] = 0, self._used[0]
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
        self._old, self._new, self._waiting = {}, {}, {}
        self._used, self.num_built = [0, 0, 0, 0], 0
