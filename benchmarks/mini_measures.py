"""What each family of benchmarks/mini.py can be asked, and how it is asked.

    bits per character      of models that give a likelihood, of the same held-out rows (infer/benchmarks/
                            bits_per_character.py); a model of strips says how its text is drawn, too, so its figure is
                            an upper bound of what it knows of the text
    characters restored     of models that see both sides of a hole: PIXEL's are read off the painted strip
                            (infer/benchmarks/masked_characters.py), tokens say theirs. The same rows and the same share
                            hidden, but holes hold more characters in one family than in another: each figure has a
                            5-gram and the most frequent character, of the same holes, beside it
    writing                 characters a second of eight texts at once

A token that is said wrongly may still begin like the true one, and those characters are right: a painted patch may be
half right, too. Of a character that is several bytes, all must be hidden to count, and all said rightly.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer.benchmarks.bits_per_character import bits_of_strips, bits_of_tokens, measured, read_back
from infer.benchmarks.masked_characters import MaskedCharacters, interval
from infer.generate_tokens import generate
from infer.infilling import CharacterNGrams
from infer.load import choose_device, choose_dtype, load
from infer.pixar import load_pixar
from infer.pixels import renderer_of
from infer.write_strip import WriteConfig, write
from kernels import choose_ops
from pixelcore.checkpoint import build_model, checkpoint_of_run, read_checkpoint
from pixelcore.masking import draw_masks, mix_seed
from pixelcore.models.token_encoder import CLS, TokenMLM
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.packed import Packed
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer
from render import Renderer
from train.objectives.masked_patches import predictions_of

_MASK_SEED = 20181011
_HIDDEN = 0.25  # of the patches or tokens
_TEXTS = 8  # that are written at once
_TRAINING_CHARACTERS = 2_000_000


# ------------------------------------------------------------------ likelihoods


def bits_per_character(run: Path, rows: Sequence[str], device: str) -> dict[str, Any]:
    """Of a model that writes strips or tokens; the limits of what a strip says stand beside it."""
    stored = read_checkpoint(checkpoint_of_run(run))
    if stored.config.kind == "decoder":
        tokens = load(run, device=device, dtype="float32")
        return dataclasses.asdict(measured(rows, bits_of_tokens(tokens.model, tokens.tokenizer, rows)))
    strips = load_pixar(run, device=device, dtype="float32")
    scored = bits_of_strips(strips.model, strips.renderer, rows)
    return dataclasses.asdict(measured(rows, scored, read_back(strips.renderer, rows)))


# ------------------------------------------------------------------ holes


def painted_characters(run: Path, training: Sequence[str], rows: Sequence[str], device: str) -> dict[str, Any]:
    """Of PIXEL: the hidden characters of held-out rows that a reader reads off what it paints."""
    stored, model = _built(run, device)
    assert isinstance(model, ViTMAE)
    config = renderer_of(stored).config
    lengths = [Renderer(config)(row).num_patches for row in rows]
    seeds = mix_seed(_MASK_SEED, np.arange(len(rows)))
    masks = [draw_masks("random", [n], [seed], _HIDDEN)[0] for n, seed in zip(lengths, seeds.tolist(), strict=True)]
    asked = MaskedCharacters(config, training, rows, masks)
    found = asked.score(lambda given: predictions_of(model, given), normalised=model.config.normalise_pixels)
    return dataclasses.asdict(found)


def said_characters(run: Path, training: Sequence[str], rows: Sequence[str], device: str) -> dict[str, Any]:
    """Of a token encoder: the hidden characters of held-out rows that are in the tokens it says."""
    stored, model = _built(run, device)
    assert isinstance(model, TokenMLM) and stored.tokenizer is not None
    return restored(model, stored.tokenizer, training, rows, choose_device(device))


def _built(run: Path, device: str) -> tuple[Stored, Any]:
    """The record of a run's model, and the model in eval mode."""
    stored, chosen = read_checkpoint(checkpoint_of_run(run)), choose_device(device)
    return stored, build_model(stored, chosen, choose_dtype("float32", chosen), choose_ops(chosen, "auto"))


@torch.inference_mode()
def restored(
    model: TokenMLM, tokenizer: Tokenizer, training: Sequence[str], rows: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """Shares of the same hidden characters: said by the model, by a 5-gram, and the most frequent one."""
    frequent = most_frequent(training)
    grams = CharacterNGrams(training, most=_TRAINING_CHARACTERS)
    hits: dict[str, list[int]] = {"accuracy": [], "ngram": [], "most_frequent": []}
    counts: list[int] = []
    for number, text in enumerate(rows):
        ids, spans = tokenizer.encode_with_spans(text)
        if len(ids) < 2:
            continue
        hidden_P = draw_masks("random", [len(ids)], mix_seed(_MASK_SEED, [number]), _HIDDEN)[0]
        said = _said(model, np.array(ids), hidden_P, tokenizer.eos_id, device)
        gone = hidden_characters(text, spans, hidden_P)
        guessed = filled(text, gone, grams)
        right = said_rightly(tokenizer, ids, said, spans, text)
        places = [place for place in np.flatnonzero(gone).tolist() if not text[place].isspace()]
        counts.append(len(places))
        hits["accuracy"].append(sum(bool(right[place]) for place in places))
        hits["ngram"].append(sum(guessed[place] == text[place] for place in places))
        hits["most_frequent"].append(sum(text[place] == frequent for place in places))
    number = sum(counts)
    low, high = interval(np.array(hits["accuracy"]), np.array(counts))
    shares = {name: sum(each) / number for name, each in hits.items()}
    return shares | {"low": low, "high": high, "count": number, "num_rows": len(counts)}


def _said(
    model: TokenMLM, ids: NDArray[np.int64], hidden_P: NDArray[np.bool_], eos_id: int, device: torch.device
) -> NDArray[np.int64]:
    """The tokens of a text, those that are hidden as the model says them, likeliest first."""
    seen = np.where(hidden_P, model.config.vocab_size, ids)
    read = torch.from_numpy(np.concatenate([[CLS], seen, [eos_id]])).to(device)
    rows = torch.from_numpy(1 + np.flatnonzero(hidden_P)).to(device)
    logits_MV = model(read, Packed.from_lengths([len(read)], [0], device), scored_rows=rows).logits
    said = ids.copy()
    said[hidden_P] = logits_MV.argmax(1).cpu().numpy()
    return said


def hidden_characters(text: str, spans: Sequence[tuple[int, int]], hidden_P: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which characters stand wholly in hidden tokens."""
    gone = np.ones(len(text), bool)
    for (first, end), hidden in zip(spans, hidden_P, strict=True):
        gone[first:end] &= hidden
    return gone


def said_rightly(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    said: NDArray[np.int64],
    spans: Sequence[tuple[int, int]],
    text: str,
) -> NDArray[np.bool_]:
    """Of each character, whether all tokens that it stands in say it."""
    right = np.ones(len(text), bool)
    for true, found, (first, end) in zip(ids, said.tolist(), spans, strict=True):
        if true == found:
            continue
        expected, given = tokenizer.surface(true), tokenizer.surface(found)
        if isinstance(expected, int) or isinstance(given, int):  # a byte is right or wrong
            right[first:end] = False
            continue
        for place in range(first, end):
            offset = len(expected) - (end - place)  # a space before the text is in the piece and not in the span
            right[place] &= offset < len(given) and given[offset] == expected[offset]
    return right


def filled(text: str, gone: NDArray[np.bool_], grams: CharacterNGrams) -> str:
    """The text with its hidden characters as the 5-gram has them, told how many they are."""
    reach, found, place = grams.order - 1, "", 0
    while place < len(text):
        if not gone[place]:
            found += text[place]
            place += 1
            continue
        end = place
        while end < len(text) and gone[end]:
            end += 1
        right = ""
        while end + len(right) < len(text) and len(right) < reach and not gone[end + len(right)]:
            right += text[end + len(right)]
        found += grams.fill(found[-reach:], end - place, right)
        place = end
    return found


def most_frequent(training: Sequence[str]) -> str:
    """The character that stands most often in a text, spaces apart."""
    counts: dict[str, int] = {}
    for row in training:
        for character in row:
            counts[character] = counts.get(character, 0) + 1
    return max((c for c in counts if not c.isspace()), key=lambda c: (counts[c], c))


# ------------------------------------------------------------------ writing


def writing_speed(run: Path, units: int, characters_per_unit: float, device: str) -> dict[str, float]:
    """Units and characters a second of eight texts at once, so many units each, after a first text that warms up.
    characters_per_unit: of the held-out text, since what a young model writes may not be any."""
    stored = read_checkpoint(checkpoint_of_run(run))
    if stored.config.kind == "decoder":
        tokens = load(run, device=device)
        generate(tokens.model, tokens.tokenizer, ["It"], max_tokens=2)
        begin = time.perf_counter()
        written = sum(
            one.num_tokens for one in generate(tokens.model, tokens.tokenizer, ["It was"] * _TEXTS, max_tokens=units)
        )
    else:
        strips = load_pixar(run, device=device)
        decode = "mixture" if strips.model.config.head == "mixture" else "threshold"
        empty = np.zeros((0, strips.model.config.patch_values), np.uint8)
        write(strips.model, [empty], WriteConfig(decode=decode, max_patches=2, stop=False))
        config = WriteConfig(decode=decode, max_patches=units, stop=False)
        begin = time.perf_counter()
        written = sum(len(one.patches) for one in write(strips.model, [empty] * _TEXTS, config))
    rate = written / (time.perf_counter() - begin)
    return {"units_per_second": rate, "characters_per_second": rate * characters_per_unit}
