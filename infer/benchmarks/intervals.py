"""How far a share of a sample can be from the share of everything: an interval for every figure that is printed.

Wilson's interval is the one that holds up where it is needed most: for shares near 0 and 1, and for few trials. It
takes the trials as independent. Where they are not, such as characters of one row, it is too narrow, and the caller
has to look further (`masked_characters` draws rows with replacement besides).

Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_Z = 1.959964  # of the normal distribution, 95 % between -z and z


def wilson(successes: float, count: float) -> tuple[float, float]:
    """95 % interval of the share that `successes` out of `count` independent trials are a sample of: low, high.

    Nothing tried says nothing: 0 to 1. Raises ValueError for more successes than trials.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes of {count} trials")
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    middle = (share + _Z * _Z / (2 * count)) / (1 + _Z * _Z / count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z * _Z / (4 * count * count)) / (1 + _Z * _Z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of a sample with its 95 % interval, all from 0 to 1. hits: how many of `count`."""

    hits: int
    count: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.4f}  (95 % interval {self.low:.4f} to {self.high:.4f})"


def share_of(flags: Iterable[bool]) -> Share:
    """How many of these are true. Of nothing, the share is 0 and the interval everything."""
    given = [bool(flag) for flag in flags]
    hits, count = sum(given), len(given)
    low, high = wilson(hits, count)
    return Share(hits=hits, count=count, share=hits / count if count else 0.0, low=low, high=high)
