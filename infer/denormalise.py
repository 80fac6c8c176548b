"""From a model's predictions back to pixels: patches pasted into the holes that were cut into a strip.

A model of raw pixels predicts t in [0, 1], and 255 t is the pixel. A model of normalised pixels predicts
(t - mean) / std with the mean and standard deviation of the very patch that it does not see (specs/pixel.md, section
2.6): how dark and how contrasted the patch is, nobody has told it, nor does it tell. To paste its patches, both must
come from elsewhere. To take them from the truth, as pictures in papers do, would show a part of the answer: above all
whether a patch is blank, since black, white and blank patches are all zeros once they are normalised. So the mean and
deviation of the visible patches of the same strip stand in, as averages over those that hold ink and paper.
`paste_with_oracle` takes the truth, for figures; nothing that is counted may come from it.
"""

import numpy as np

from pixelcore.errors import UserError

_EPSILON = 1e-6  # under the root, as in the target


def paste(
    pixels_PA: np.ndarray, hidden_P: np.ndarray, predictions_MO: np.ndarray, channels: int, normalised: bool
) -> np.ndarray:
    """The patches of one strip with predictions in place of the hidden ones: uint8 [P, A], clipped and rounded.

    pixels_PA: uint8, the values of a patch in the order row, column, channel; those of hidden patches are not read.
    hidden_P: bool, M of them true. predictions_MO: float, of the hidden patches in order; O = A, or 3 A of grey strips,
    whose three channels (the fastest) are averaged. channels: of the strip, 1 or 3. normalised: what they predict.
    Where no visible patch holds both ink and paper, normalised predictions become paper: nothing is known of contrast.
    Raises UserError for predictions of another shape.
    """
    values_MA = _in_channels(pixels_PA, hidden_P, predictions_MO, channels)
    if normalised:
        mean, std = _seen_contrast(pixels_PA[~hidden_P], values_MA.shape[1] != predictions_MO.shape[1])
        values_MA = values_MA * std + mean
    return _pasted(pixels_PA, hidden_P, values_MA)


def paste_with_oracle(
    pixels_PA: np.ndarray, hidden_P: np.ndarray, predictions_MO: np.ndarray, channels: int
) -> np.ndarray:
    """`paste` of normalised predictions with the true mean and deviation of each hidden patch: for figures only."""
    values_MA = _in_channels(pixels_PA, hidden_P, predictions_MO, channels)
    mean_M, std_M = _contrasts(pixels_PA[hidden_P], values_MA.shape[1] != predictions_MO.shape[1])
    return _pasted(pixels_PA, hidden_P, values_MA * std_M[:, None] + mean_M[:, None])


def sharpened(predictions_MO: np.ndarray) -> np.ndarray:
    """Predictions of normalised pixels, each patch brought to mean 0 and variance 1, as its target has them.

    A prediction is the mean of all that might stand in a patch, and so has less contrast than any of it: to a reader
    that looks for the nearest drawing, blank paper is nearest. What is brought to full contrast says which letters the
    mean leans to. No truth goes into it. A patch without any contrast stays as it is.
    """
    deviation_M1 = predictions_MO.std(1, ddof=1, keepdims=True)
    centred_MO = predictions_MO - predictions_MO.mean(1, keepdims=True)
    has_contrast_M1 = deviation_M1 > _EPSILON  # more than rounding
    return np.where(has_contrast_M1, centred_MO / np.where(has_contrast_M1, deviation_M1, 1), predictions_MO)


def _in_channels(pixels_PA, hidden_P, predictions_MO, channels: int) -> np.ndarray:
    """Predictions in the channels of the strip: float64 [M, A]."""
    num_hidden, size = int(hidden_P.sum()), pixels_PA.shape[1]
    repeats = 3 if channels == 1 and predictions_MO.shape[-1] == 3 * size else 1
    if predictions_MO.shape != (num_hidden, repeats * size):
        raise UserError(
            f"predictions {list(predictions_MO.shape)} for {num_hidden} hidden patches of {size} values each: "
            "the model must be one of this renderer's patches"
        )
    return predictions_MO.astype(np.float64).reshape(num_hidden, size, repeats).mean(2)


def _contrasts(pixels_PA: np.ndarray, tripled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each patch in [0, 1], as the target has them. tripled: grey counted three times."""
    values_PA = pixels_PA / 255.0
    count = values_PA.shape[1] * (3 if tripled else 1)  # repeated values change the unbiased variance a little
    return values_PA.mean(1), np.sqrt(values_PA.var(1) * count / (count - 1) + _EPSILON)


def _seen_contrast(visible_PA: np.ndarray, tripled: bool) -> tuple[float, float]:
    if len(visible_PA):
        visible_PA = visible_PA[visible_PA.min(1) < visible_PA.max(1)]
    if not len(visible_PA):
        return 1.0, 0.0
    mean_P, std_P = _contrasts(visible_PA, tripled)
    return float(mean_P.mean()), float(std_P.mean())


def _pasted(pixels_PA: np.ndarray, hidden_P: np.ndarray, values_MA: np.ndarray) -> np.ndarray:
    pasted_PA = pixels_PA.copy()
    pasted_PA[hidden_P] = np.rint(np.clip(values_MA * 255, 0, 255)).astype(np.uint8)
    return pasted_PA
