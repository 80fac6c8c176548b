"""Texts as vectors: what the encoder makes of a strip, pooled over the strip or over each of its words.

The rows of the encoder, one for each patch and CLS before them, are pooled:

    mean   over the patches, the end patch included, CLS not: what classifiers fine-tuned with it read
    max    over the same patches, feature by feature
    cls    the row of CLS

The analysis programs of PIXEL-M4 add up CLS and patches and divide by the number of patches alone (specs/pixel.md,
section 7), which weighs CLS by the length of the text; only the right mean is here.

A layer is counted as those programs count: 0 is the embedded patches, n the residual stream after n blocks, before any
norm. The default, -1, is the end of the encoder after its last norm, which is what every head and the decoder read.
Strips of different lengths share a pass without padding, so a vector does not depend on what it was computed beside,
up to the rounding of matrix products.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from infer.pixels import draw, patch_values
from infer.reconstruct import PATCHES_PER_PASS
from pixelcore.durable import write_file
from pixelcore.errors import UserError
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit import Run
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.patches import Patches, arrange
from render import Renderer, Strip

POOLINGS = ("mean", "cls", "max")
LAST = -1  # after the encoder's last norm


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of texts, in the order they were given.

    vectors: float32 [texts, D]. num_patches: int32 [texts], end patch included. Where texts were given as words:
    words, those of all texts end to end; word_offsets: int64 [texts + 1], text i has words word_offsets[i] to
    word_offsets[i + 1] - 1; word_spans: int32 [words, 2], first patch and the one after the last; word_vectors: float32
    [words, D], each the mean over its patches.
    """

    pooling: str
    layer: int
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]
    num_patches: NDArray[np.int32]
    words: tuple[str, ...] | None = None
    word_offsets: NDArray[np.int64] | None = None
    word_spans: NDArray[np.int32] | None = None
    word_vectors: NDArray[np.float32] | None = None


@torch.inference_mode()
def embed(
    model: ViTMAE | ViTTask,
    renderer: Renderer,
    texts: Sequence[str] | Sequence[list[str]],
    *,
    pooling: str = "mean",
    layer: int = LAST,
    progress: bool = False,
) -> Embeddings:
    """Vectors of texts, and of words where each text is a list of them (all or none).

    Words given one by one are drawn as taggers and parsers are trained: each starts on a patch of its own. That is
    another strip than that of the running text, so the vectors of whole texts differ a little too.
    pooling, layer: see the head of this file. Raises UserError for a text without ink or longer than the model's table,
    naming it by its number from 1, and for a layer that the model does not have.
    """
    if isinstance(texts, str) or not texts:
        raise UserError("texts: give a list of at least one text")
    if pooling not in POOLINGS:
        raise UserError(f"pooling = {pooling!r}: choose {', '.join(POOLINGS)}")
    num_layers = model.config.num_layers
    if not LAST <= layer <= num_layers:
        raise UserError(
            f"layer = {layer}: the encoder has {num_layers} blocks: choose 0 (embedded patches) to {num_layers}, or -1 "
            "(after the last norm)"
        )
    in_words = [isinstance(text, list) for text in texts]
    if any(in_words) != all(in_words):
        raise UserError("texts: some are strings and some are lists of words: give one kind")
    device = model.encoder.cls_token.device
    run = Run(model.ops, model.compute_dtype)
    strips = (draw(renderer, model.config, text, f"text {number}") for number, text in enumerate(texts, 1))
    vectors: list[Tensor] = []
    word_vectors: list[Tensor] = []
    word_spans: list[tuple[int, int]] = []
    lengths: list[int] = []
    bar = tqdm(total=len(texts), unit=" texts", disable=not progress, leave=False)
    for group in _groups(strips):
        counts = [strip.num_patches for strip in group]
        pixels_PA = torch.cat([patch_values(strip.patches) for strip in group])
        rows_ND = hidden_states(model, arrange(pixels_PA, counts, device=device), run, layer).float().cpu()
        for strip, rows_LD in zip(group, rows_ND.split([count + 1 for count in counts]), strict=True):
            vectors.append(_pooled(rows_LD, pooling))
            if all(in_words):
                spans = list(pairwise(_word_starts(strip)))
                # behind CLS, patch i is row i + 1
                word_vectors += [rows_LD[begin + 1 : end + 1].mean(0) for begin, end in spans]
                word_spans += spans
        lengths += counts
        bar.update(len(group))
    bar.close()
    found = {
        "pooling": pooling,
        "layer": layer,
        "texts": tuple(" ".join(text) if isinstance(text, list) else text for text in texts),
        "vectors": torch.stack(vectors).numpy(),
        "num_patches": np.array(lengths, np.int32),
    }
    if all(in_words):
        found |= {
            "words": tuple(word for text in texts for word in text),
            "word_offsets": np.cumsum([0, *map(len, texts)]).astype(np.int64),
            "word_spans": np.array(word_spans, np.int32),
            "word_vectors": torch.stack(word_vectors).numpy(),
        }
    return Embeddings(**found)


def _groups(strips: Iterable[Strip]) -> Iterator[list[Strip]]:
    """Strips in their order, so many patches at a time, at least one strip each; drawn when their turn comes, since all
    of a large file would not fit into memory."""
    group: list[Strip] = []
    total = 0
    for strip in strips:
        if group and total + strip.num_patches > PATCHES_PER_PASS:
            yield group
            group, total = [], 0
        group.append(strip)
        total += strip.num_patches
    yield group


def _word_starts(strip: Strip) -> list[int]:
    """Of a list of words: the first patch of each, then the end of the last."""
    starts = strip.word_starts
    assert starts is not None
    return starts.tolist()


def hidden_states(model: ViTMAE | ViTTask, patches: Patches, run: Run, layer: int = LAST) -> Tensor:
    """[N, D] for the rows of `patches.kept` at a layer; see the head of this file."""
    return model.encoder(patches, run, None if layer == LAST else layer)


def _pooled(rows_LD: Tensor, pooling: str) -> Tensor:
    """One vector of CLS and the patches behind it."""
    if pooling == "cls":
        return rows_LD[0]
    return rows_LD[1:].mean(0) if pooling == "mean" else rows_LD[1:].amax(0)


def save(path: str | Path, found: Embeddings, about: Mapping[str, str]) -> None:
    """Write vectors as .npz, whole or not at all: an array for each field that is there. Nothing in it is a pickle;
    strings are arrays of Unicode.

    about: further strings, such as the model's path. Raises UserError if the file cannot be written.
    """
    arrays: dict[str, Any] = {
        name: np.array(value) for name, value in {**vars(found), **about}.items() if value is not None
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    try:
        write_file(Path(path), content.getvalue())
    except OSError as cause:
        raise UserError(f"--out {path}: cannot be written ({cause.strerror}): choose another place") from cause
