"""What a masked autoencoder paints where patches of a strip are hidden, and how far that is from what stands there.

A strip is drawn, some of its patches are hidden, the model reads the others and predicts the hidden ones. Two errors
come out of it for each patch: the one that the model was trained on, usually between normalised patches (mean 0,
variance 1), and the squared error of the pixels as they are painted, in [0, 1], which a person who looks at the picture
sees. Between the two lies a choice. A normalised prediction says which pixels of a patch are darker than others, not
how dark; the picture takes both mean and deviation from the visible patches of the same strip (`infer.denormalise`), so
nothing of the answer is in it, or, with `oracle`, from the hidden patch itself, as pictures in papers do.

`figure` puts strips under one another for people: the original, what the model saw, what it predicted, and both pasted
together. Source: specs/pixel.md, sections 2.4 to 2.6 and 7 (the original shows normalised predictions as they are).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from infer.denormalise import paste, paste_with_oracle
from infer.figure import Panel, Row, stack
from infer.pixels import draw, patch_values
from pixelcore.errors import UserError
from pixelcore.masking import check_mask, draw_masks, mix_seed, parse_patches
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.patches import arrange
from render import Reader, Renderer, Strip

RATIO = 0.25  # PIXEL's
PATCHES_PER_PASS = 4096  # read at once, at least one strip; it changes the memory and not the result
_LEAST_VARIANCE = 1e-6

# Where the brightness and the contrast of painted patches come from, as the picture says it.
BRIGHTNESS = {
    "visible": "brightness and contrast of painted patches: the mean of the visible ones",
    "oracle": "brightness and contrast of painted patches: their own, from the truth",
    "predicted": "brightness and contrast of painted patches: as predicted",
}


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One strip, what was hidden of it and what was painted there.

    strip: as it was drawn, of L patches. hidden: bool [L]. predictions: float32 [M, O], of the hidden patches from left
    to right, as the model gives them. pasted: uint8 [L, Y, X] or [L, Y, X, 3], the strip's patches, painted ones in
    the places of hidden ones. losses: float32 [M], of each hidden patch the mean squared error that the model is
    trained on. raw_losses: float32 [M], that of the painted pixels in [0, 1]. brightness: a key of `BRIGHTNESS`.
    """

    text: str | list[str]
    strip: Strip
    hidden: NDArray[np.bool_]
    predictions: NDArray[np.float32]
    pasted: NDArray[np.uint8]
    losses: NDArray[np.float32]
    raw_losses: NDArray[np.float32]
    brightness: str

    @property
    def loss(self) -> float:
        """The mean over the hidden patches."""
        return float(self.losses.mean())

    @property
    def raw_loss(self) -> float:
        """The mean over the hidden patches."""
        return float(self.raw_losses.mean())

    @property
    def painted(self) -> NDArray[np.uint8]:
        """The painted patches: uint8 [M, Y, X] or [M, Y, X, 3]."""
        return self.pasted[self.hidden]

    def spans(self) -> list[tuple[int, int]]:
        """The hidden patches as runs: first patch, patch after the last one."""
        return runs(self.hidden)

    def truth(self, first: int, last: int) -> str:
        """The characters that stand on patches `first` to `last - 1`, those that reach into them included."""
        spans = self.strip.char_spans[first:last]
        spans = spans[spans[:, 0] == 0]
        if not len(spans) or not isinstance(self.text, str):
            return ""
        return self.text[spans[:, 1].min() : spans[:, 2].max()]


def reconstruct(
    model: ViTMAE,
    renderer: Renderer,
    text: str | list[str],
    *,
    rule: str = "span",
    ratio: float = RATIO,
    seed: int = 0,
    mask: str | ArrayLike | None = None,
    oracle: bool = False,
) -> Reconstruction:
    """Hide patches of a text and let the model paint them.

    rule, ratio, seed: as of `pixelcore.masking.draw_masks`, over the patches of the strip; "span-m4" counts over a
    strip as long as the model's table, as that model was trained, and so hides more of a short text. mask: the patches
    to hide instead, as "3-8,12", or a truth value for each patch. oracle: see the head of this file.
    Raises UserError for a text without ink or longer than the table, and for a mask that hides everything or nothing.
    """
    strip = draw(renderer, model.config, text)
    hidden = choose_hidden(model, strip.num_patches, rule=rule, ratio=ratio, seed=seed, mask=mask)
    return _painted(model, [text], [strip], [hidden], oracle)[0]


def choose_hidden(
    model: ViTMAE, length: int, *, rule: str = "span", ratio: float = RATIO, seed: int = 0, mask: str | ArrayLike | None
) -> NDArray[np.bool_]:
    """The patches that `reconstruct` hides of a strip of `length` patches: bool [length]."""
    if isinstance(mask, str):
        return parse_patches(mask, length)
    if mask is not None:
        return check_mask(mask, length)
    padded = max(length, model.config.num_patches) if rule == "span-m4" else None
    return draw_masks(rule, [length], mix_seed(seed, [0]), ratio, padded)[0, :length]


def reconstruct_rows(
    model: ViTMAE,
    renderer: Renderer,
    rows: Sequence[str],
    hidden: Sequence[ArrayLike] | NDArray[np.bool_],
    *,
    oracle: bool = False,
) -> list[Reconstruction]:
    """`reconstruct` for many texts, each under a mask of its own: truth values for its patches, then False.

    Raises UserError as `reconstruct` does, naming the row by its number from 0.
    """
    if len(rows) != len(hidden):
        raise UserError(f"{len(rows)} rows and {len(hidden)} masks: give a mask for each row")
    strips = [draw(renderer, model.config, text, f"row {index}") for index, text in enumerate(rows)]
    masks = [check_mask(mask, strip.num_patches) for mask, strip in zip(hidden, strips, strict=True)]
    return _painted(model, rows, strips, masks, oracle)


def _painted(
    model: ViTMAE,
    texts: Sequence[str | list[str]],
    strips: Sequence[Strip],
    masks: Sequence[NDArray[np.bool_]],
    oracle: bool,
) -> list[Reconstruction]:
    if oracle and not model.config.normalise_pixels:
        raise UserError("the model predicts pixels as they are, so no brightness is taken from the truth: no oracle")
    brightness = ("oracle" if oracle else "visible") if model.config.normalise_pixels else "predicted"
    patches = [np.ascontiguousarray(strip.patches) for strip in strips]
    predictions = predict(model, patches, masks)
    found = []
    for text, strip, cells, hidden, prediction_MO in zip(texts, strips, patches, masks, predictions, strict=True):
        pasted = pasted_patches(model, cells, hidden, prediction_MO, oracle=oracle)
        raw = (pasted[hidden] / 255 - cells[hidden] / 255).reshape(len(prediction_MO), -1)
        found.append(
            Reconstruction(
                text=text,
                strip=strip,
                hidden=hidden,
                predictions=prediction_MO,
                pasted=pasted,
                losses=_losses(model, cells[hidden], prediction_MO),
                raw_losses=np.square(raw).mean(1).astype(np.float32),
                brightness=brightness,
            )
        )
    return found


@torch.inference_mode()
def predict(
    model: ViTMAE, patches: Sequence[NDArray[np.uint8]], hidden: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float32]]:
    """What the model predicts for the hidden patches of each strip: float32 [M, O], from left to right.

    patches: of each strip uint8 [L, Y, X] or [L, Y, X, 3]; hidden: bool [L], some and not all of it true.
    """
    device = model.encoder.cls_token.device
    predictions: list[NDArray[np.float32]] = []
    for first, last in batches([len(strip) for strip in patches]):
        pixels_PA = torch.cat([patch_values(strip) for strip in patches[first:last]])
        hidden_P = torch.from_numpy(np.concatenate(hidden[first:last]))
        lengths = [len(strip) for strip in patches[first:last]]
        out = model(arrange(pixels_PA, lengths, hidden_P, device=device))
        counts = [int(mask.sum()) for mask in hidden[first:last]]
        predictions += [part.numpy() for part in out.logits.float().cpu().split(counts)]
    return predictions


def pasted_patches(
    model: ViTMAE,
    patches: NDArray[np.uint8],
    hidden: NDArray[np.bool_],
    predictions_MO: NDArray[np.float32],
    *,
    oracle: bool = False,
) -> NDArray[np.uint8]:
    """The patches of a strip, uint8 [L, Y, X] or [L, Y, X, 3], with painted ones where it is hidden."""
    channels = 1 if patches.ndim == 3 else 3
    pixels_PA = patches.reshape(len(patches), -1)
    if oracle:
        pasted_PA = paste_with_oracle(pixels_PA, hidden, predictions_MO, channels)
    else:
        pasted_PA = paste(pixels_PA, hidden, predictions_MO, channels, model.config.normalise_pixels)
    return pasted_PA.reshape(patches.shape)


def _losses(model: ViTMAE, truth: NDArray[np.uint8], predictions_MO: NDArray[np.float32]) -> NDArray[np.float32]:
    """`ops.pixel_mse` patch by patch. truth: the hidden patches; grey values stand for all channels of a prediction."""
    target_MA = torch.from_numpy(truth.reshape(len(truth), -1)).float() / 255
    target_MO = target_MA.repeat_interleave(predictions_MO.shape[1] // target_MA.shape[1], dim=1)
    if model.config.normalise_pixels:
        variance_M1, mean_M1 = torch.var_mean(target_MO, dim=1, keepdim=True)
        target_MO = (target_MO - mean_M1) / torch.sqrt(variance_M1 + _LEAST_VARIANCE)
    return (torch.from_numpy(predictions_MO) - target_MO).square().mean(1).numpy()


def batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Strips in their order as groups of at most so many patches, at least one strip each: first, end."""
    groups: list[tuple[int, int]] = []
    first, total = 0, 0
    for index, length in enumerate(lengths):
        if index > first and total + length > PATCHES_PER_PASS:
            groups.append((first, index))
            first, total = index, 0
        total += length
    return [*groups, (first, len(lengths))] if lengths else []


def runs(hidden: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Neighbouring hidden patches as spans: first patch, patch after the last one."""
    groups = groupby(np.flatnonzero(hidden).tolist(), key=lambda patch: patch - int(hidden[:patch].sum()))
    spans = [list(group) for _, group in groups]
    return [(span[0], span[-1] + 1) for span in spans]


def read_spans(reader: Reader, pasted: NDArray[np.uint8], spans: Sequence[tuple[int, int]]) -> list[str]:
    """What a reader makes of parts of a strip, given as patches: one string for each span."""
    pixels = as_pixels(pasted)
    found = reader.read_windows([pixels], [(0, first, last) for first, last in spans])
    return ["".join(seen.texts[0] for seen in part) for part in found]


def as_pixels(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches [L, Y, X] or [L, Y, X, 3] as a strip [Y, L * X] or [Y, L * X, 3]."""
    return np.concatenate(list(patches), axis=1)


def figure(reconstructions: Sequence[Reconstruction]) -> NDArray[np.uint8]:
    """Strips for people, uint8 RGB [height, width, 3]: of each the original, what the model saw, what it predicted, and
    both pasted, one under another; long strips go on below, 64 patches in a line. Painted patches stand on a tint.
    Under each the losses, and where brightness and contrast of the painted patches come from."""
    return stack([_panel(each) for each in reconstructions])


def _panel(each: Reconstruction) -> Panel:
    patches, hidden = each.strip.patches, each.hidden
    note = (
        f"{int(hidden.sum())} of {len(patches)} patches hidden; loss {each.loss:.3f}, of painted pixels "
        f"{each.raw_loss:.4f}; {BRIGHTNESS[each.brightness]}"
    )
    rows = (
        Row("original", patches),
        Row("masked", patches, covered=hidden),
        Row("predicted", each.pasted, tinted=hidden, absent=~hidden),
        Row("pasted", each.pasted, tinted=hidden),
    )
    return Panel(rows, note)
