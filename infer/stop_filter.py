"""Text that comes in pieces, up to the first stop string.

A stop string may be cut by the pieces anywhere, so what may turn out to be its beginning is held back until it is
certain.
"""

from collections.abc import Sequence


class StopFilter:
    """Passes text on until a stop string appears in it.

    The result does not depend on how the text was cut into pushes: of several stop strings the one that is complete
    first wins, of two that end together the longer one.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string. Sets `stopped` when one is complete."""
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        self._held += text
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            text, self._held = self._held[:start], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """What was held back, when no more text will come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning, but not all, of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
