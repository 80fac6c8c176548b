"""What an attack did to the pixels of an example: nothing, something, or it put in what no font has.

For a reader of code points every change is one. For a reader of pixels a change may be invisible, and where no font has
a character the strip shows a box, which says more of fonts than of reading. So figures of an attack are given for all
examples, and for these strata apart:

    unchanged   drawn with exactly the same pixels as before
    drawn       drawn, and not the same
    missing     more characters than before are in no font

What reads tokens is asked the same of its tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infer.confusables import DRAWN, MISSING, STRATA, UNCHANGED
from infer.task_rows import Row, TaskRows

SAID = {UNCHANGED: "pixels unchanged", DRAWN: "drawn, different", MISSING: "not drawable"}


def strata_of(clean: TaskRows, attacked: TaskRows) -> NDArray[np.str_]:
    """The stratum of each example."""
    pairs = zip(_by_example(clean), _by_example(attacked), strict=True)
    return np.array([_stratum(before, after) for before, after in pairs], dtype=f"<U{max(map(len, STRATA))}")


def _stratum(before: Sequence[Row], after: Sequence[Row]) -> str:
    if sum(row.missing for row in after) > sum(row.missing for row in before):
        return MISSING
    same = len(before) == len(after) and all(
        np.array_equal(one.units, other.units) for one, other in zip(before, after, strict=True)
    )
    return UNCHANGED if same else DRAWN


def _by_example(rows: TaskRows) -> list[list[Row]]:
    found: list[list[Row]] = [[] for _ in rows.examples]
    for number, (example, _) in enumerate(rows.places):
        found[example].append(rows.row(number))
    return found
