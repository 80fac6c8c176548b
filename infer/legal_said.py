"""What a head says of one next patch, as numbers that parts of a patch can be scored with.

Within one component of the head the pixels of a patch are independent, so the log-probability of a patch is a sum over
its pixels, and that of its first columns a sum over theirs. A mixture adds its components up only when the patch is
whole. So whoever builds a patch piece by piece keeps one number for each component, and adds them up at the end.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelcore.models.pixar import PixarOutput


class Said:
    """The head's answer for one next patch, in fp64 on the host.

    log_weights: [Z], of the components; [0] of a head that has only one. ink, paper: [Z, A], log-probabilities that a
    pixel is ink, and that it is not. temperature: of the scores of the components and of the log-odds of the pixels.
    """

    def __init__(self, odds_ZA: Tensor, scores_Z: Tensor | None, temperature: float = 1.0) -> None:
        odds = odds_ZA.double().cpu().numpy() / temperature
        scores = np.zeros(1) if scores_Z is None else scores_Z.double().cpu().numpy() / temperature
        self.log_weights: NDArray[np.float64] = scores - np.logaddexp.reduce(scores)
        self.paper: NDArray[np.float64] = -np.logaddexp(0, -odds)
        self.ink: NDArray[np.float64] = -np.logaddexp(0, odds)

    @classmethod
    def of_row(cls, output: PixarOutput, row: int, temperature: float = 1.0) -> "Said":
        """What a model says after one of the rows that it read."""
        scores = None if output.scores is None else output.scores[row]
        return cls(output.components[row], scores, temperature)

    def log_probability(self, patches_NA: NDArray[np.uint8]) -> NDArray[np.float64]:
        """[N], nats, of whole patches: uint8 [N, A], 0 = ink."""
        is_ink = patches_NA == 0
        parts_NZ = is_ink @ self.ink.T + ~is_ink @ self.paper.T
        return np.logaddexp.reduce(self.log_weights + parts_NZ, axis=1)

    def column(self, place: int, symbols_SY: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[S, Z], nats: one column of the patch, if it is drawn as each of these symbols: [S, Y], True = ink."""
        height = symbols_SY.shape[1]
        ink_YZ, paper_YZ = (part.reshape(len(part), height, -1)[:, :, place].T for part in (self.ink, self.paper))
        return symbols_SY @ ink_YZ + ~symbols_SY @ paper_YZ
