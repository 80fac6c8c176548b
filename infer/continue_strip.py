"""A masked autoencoder as a writer: empty patches behind a text, or in a gap of it, are painted and then read.

Nothing here is a token. The strip of the text gets hidden patches where text is wanted; the model paints them from what
is around them; a reader reads what was painted. One pass paints every hidden patch without knowing what the others will
be, and what fits two words fits neither. So the patches are filled in several passes, as masked language models of
tokens are decoded (Mask-Predict, arXiv:1904.09324; MaskGIT, arXiv:2202.04200): each pass keeps the predictions it is
most certain of, pastes them, and lets the next pass read them as if they had always stood there.

Certainty is the mean square of a patch's prediction. A model of normalised pixels is trained to give the mean of all
that could stand there, and each of those patches has mean 0 and variance 1: so what is left of the 1 in the prediction
is what they agree on, and 1 minus the certainty is the loss that a calibrated model expects. Where many things are
possible, they average out to grey. Blank patches are 0 once they are normalised, so they come last. For a model of raw
pixels the variance over the patch is taken, which orders patches in the same spirit without that meaning.

The brightness and contrast of painted patches are those of the text that was given (`infer.denormalise`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.figure import Panel, Row, stack
from infer.pixels import draw, longest_strip
from infer.reconstruct import pasted_patches, predict, read_spans, runs
from pixelcore.errors import UserError
from pixelcore.masking import parse_patches
from pixelcore.models.vit_mae import ViTMAE
from render import Reader, Renderer

MARKER = "[...]"
PASSES = 4


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One round. patches: the strip after it. pasted: int64, the patches that were filled, from left to right.
    certainty: float32, of each of them."""

    patches: NDArray[np.uint8]
    pasted: NDArray[np.int64]
    certainty: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A strip that was filled. text: as it was given. given: uint8 [L, Y, X] or [L, Y, X, 3], its patches, paper where
    the hidden ones are. hidden: bool [L]. read: what stands on each run of filled patches. line: the whole strip, read.
    """

    text: str
    given: NDArray[np.uint8]
    hidden: NDArray[np.bool_]
    passes: tuple[Pass, ...]
    read: tuple[str, ...]
    line: str

    @property
    def patches(self) -> NDArray[np.uint8]:
        """The filled strip."""
        return self.passes[-1].patches


def continue_strip(
    model: ViTMAE,
    renderer: Renderer,
    text: str,
    *,
    patches: int | None = None,
    gap: str | None = None,
    passes: int = PASSES,
    reader: Reader | None = None,
) -> Continuation:
    """Fill patches and read them.

    patches: so many of them, behind the text, or in the place of "[...]" where the text has it. gap: patches of the
    text's own strip instead, as "12-20"; what stands there is hidden. One of the two is needed. passes: rounds, at most
    one for each patch. reader: of strips of this renderer; it is made when absent.
    Raises UserError for numbers below 1, and where text and filled patches exceed the model's table.
    """
    if passes < 1:
        raise UserError(f"passes = {passes}: must be at least 1")
    given, hidden = _with_gap(model, renderer, text, patches, gap)
    rounds = fill(model, given, hidden, passes)
    reader = Reader(renderer.config) if reader is None else reader
    filled = rounds[-1].patches
    *parts, line = read_spans(reader, filled, [*runs(hidden), (0, len(filled) - 1)])
    return Continuation(text=text, given=given, hidden=hidden, passes=rounds, read=tuple(parts), line=line)


def fill(model: ViTMAE, given: NDArray[np.uint8], hidden: NDArray[np.bool_], passes: int = PASSES) -> tuple[Pass, ...]:
    """Paint the hidden patches of a strip in so many rounds, the most certain first.

    given: uint8 [L, Y, X] or [L, Y, X, 3], read where `hidden`, bool [L], is false.
    """
    cells, still_hidden = given.copy(), hidden.copy()
    predictions_MO = np.zeros((int(hidden.sum()), model.config.patch_values), np.float32)
    row_of = np.cumsum(hidden) - 1  # of each hidden patch in predictions_MO
    rounds = []
    for left in range(min(passes, len(predictions_MO)), 0, -1):
        places = np.flatnonzero(still_hidden)
        found_KO = predict(model, [cells], [still_hidden])[0]
        certainty_K = certainty(model, found_KO)
        count = -(-len(places) // left)
        chosen = np.sort(np.argsort(-certainty_K, kind="stable")[:count])
        pasted = places[chosen]
        predictions_MO[row_of[pasted]] = found_KO[chosen]
        # with the contrast of what was given, not of what was painted since: that is paler, and would grow paler still
        cells[pasted] = pasted_patches(model, given, hidden, predictions_MO)[pasted]
        still_hidden[pasted] = False
        rounds.append(Pass(patches=cells.copy(), pasted=pasted, certainty=certainty_K[chosen]))
    return tuple(rounds)


def certainty(model: ViTMAE, predictions_MO: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of each prediction is not grey: float32 [M]; see the head of this file."""
    if model.config.normalise_pixels:
        return np.square(predictions_MO).mean(1)
    return predictions_MO.var(1)


def _with_gap(
    model: ViTMAE, renderer: Renderer, text: str, patches: int | None, gap: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The patches of the strip, and which of them are to be filled."""
    if gap is not None:
        if patches is not None:
            raise UserError("patches and a gap: the gap says how many patches are filled: give one of them")
        if MARKER in text:
            raise UserError(f"the text has {MARKER}, and a gap is given too: give one of them")
        cells = np.ascontiguousarray(draw(renderer, model.config, text).patches)
        hidden = parse_patches(gap, len(cells))
        return np.where(hidden.reshape(-1, *[1] * (cells.ndim - 1)), np.uint8(255), cells), hidden
    if patches is None:
        raise UserError(
            f"how much to write is not said: give a number of patches, behind the text or for {MARKER} in it"
        )
    if patches < 1:
        raise UserError(f"patches = {patches}: must be at least 1")
    if text.count(MARKER) > 1:
        raise UserError(f"the text has {MARKER} {text.count(MARKER)} times: leave one")
    before, _, after = text.partition(MARKER)
    if not (before + after).strip():
        raise UserError("the text is empty: give at least one character that is not a space")
    parts = [draw(renderer, model.config, part).patches if part.strip() else None for part in (before, after)]
    left, right = parts
    shown = right if left is None else left
    assert shown is not None
    end = shown[-1:]  # black in every layout
    empty = np.full((patches, *shown.shape[1:]), 255, np.uint8)
    pieces = [end[:0] if left is None else left[:-1], empty, end if right is None else right]
    cells = np.concatenate(pieces)
    room = longest_strip(renderer, model.config)
    if len(cells) > room:
        raise UserError(
            f"the text takes {len(cells) - patches} patches, end patch included, and {patches} more make {len(cells)}; "
            f"the model has positions for {room}: shorten the text or fill fewer patches"
        )
    hidden = np.zeros(len(cells), np.bool_)
    hidden[len(pieces[0]) : len(pieces[0]) + patches] = True
    return cells, hidden


def figure(continuations: Sequence[Continuation]) -> NDArray[np.uint8]:
    """The passes of each continuation one under another: uint8 RGB [height, width, 3]. Filled patches stand on a tint,
    those still to be filled are covered."""
    panels = []
    for each in continuations:
        rows = [Row("given", each.given, covered=each.hidden)]
        filled = np.zeros_like(each.hidden)
        for number, one in enumerate(each.passes, 1):
            filled = filled.copy()
            filled[one.pasted] = True
            rows.append(Row(f"pass {number}", one.patches, tinted=filled, covered=each.hidden & ~filled))
        panels.append(Panel(rows, "read: " + " | ".join(each.read)))
    return stack(panels)
