"""Who sees whom: the visibility rules of attention, each a formula of one line and the tiles that it leaves out.

Rows and columns (queries and keys) count from 0 in the document. The formula decides single pairs, for the tiles where
it must be asked; its two ranges tell the loops over tiles which ones those are.

    full                 causal               real_fake: 5 real rows, 3 fakes that reach to row 0, 2 and 2

    row 0  x x x x x     row 0  x . . . .     row 0  x . . . . . . .
        1  x x x x x         1  x x . . .         1  x x . . . . . .
        2  x x x x x         2  x x x . .         2  x x x . . . . .
        3  x x x x x         3  x x x x .         3  x x x x . . . .
        4  x x x x x         4  x x x x x         4  x x x x x . . .
                                                  5  x . . . . x . .
                                                  6  x x x . . . x .
                                                  7  x x x . . . . x

A kernel takes a rule's functions as constants, so each rule is a kernel of its own. Which columns exist at all
(`Packed.visible`, the end of the document) is tested by the kernel, apart from the rule. A row of real_fake reaches to
itself or to a row before it, as `Packed` says.
"""

import triton
import triton.language as tl  # noqa: F401 the interpreter looks for it where a function of Triton's stands


@triton.jit
def full(row, column, reach):
    return (row == row) & (column == column)  # every pair; the compiler drops it


@triton.jit
def causal(row, column, reach):
    return column <= row


@triton.jit
def real_fake(row, column, reach):
    return (column <= reach) | (column == row)


# whether `row`, which has this reach, sees `column`; of tensors that broadcast
RULES = {"full": full, "causal": causal, "real_fake": real_fake}


@triton.jit
def _all(first, last, low, high, end):
    return end, end


@triton.jit
def _up_to_itself(first, last, low, high, end):
    return first + 1, last + 1


@triton.jit
def _within_reach(first, last, low, high, end):
    return low + 1, high + 1


# (free, stop) of the rows first .. last, whose smallest and largest reach are low and high: every row sees every column
# before free, none sees one from stop on, but for itself where there is a reach. end: the number of columns
COLUMNS = {"full": _all, "causal": _up_to_itself, "real_fake": _within_reach}
