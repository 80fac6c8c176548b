"""How likely a decoder of tokens finds a given next word, as a question that a model of strips can be asked too.

A model of strips goes on from a prompt that was aligned, so the space before the next word is given to it, and what it
is asked for are the columns up to the end of the space behind the word (`rank_words`). A decoder pays for both spaces:
the first is most often part of the word's first token, and the second of the next word's. So it is asked for the same
event here: given that a word begins, that it is this word, and that a word begins after it. A word begins with every
token that begins with a space. Only the spelling that the tokenizer chooses counts, as everywhere.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from infer.load import Loaded
from pixelcore.errors import UserError
from pixelcore.packed import Packed

_TOKENS_PER_PASS = 2048
_SPACE = "▁"


@torch.inference_mode()
def bits_of_words(loaded: Loaded, contexts: Sequence[str], words: Sequence[str]) -> NDArray[np.float64]:
    """-log2 of the chance of each word and the space behind it, after its context and the space behind that. float64
    [words]. A context that is too long loses its beginning. Raises UserError for a word that does not fit, and for
    values that are not finite."""
    tokenizer, model = loaded.tokenizer, loaded.model
    device = model.head_weight.device
    surfaces = [tokenizer.surface(id) for id in range(tokenizer.vocab_size)]
    begins_V = torch.tensor(
        [one == ord(" ") if isinstance(one, int) else one.startswith(_SPACE) for one in surfaces], device=device
    )
    bits: list[float] = []
    batch: list[tuple[list[int], int]] = []
    for index, (context, word) in enumerate(zip(contexts, words, strict=True)):
        batch.append(_ids(loaded, context, word))
        if index + 1 == len(words) or sum(len(ids) for ids, _ in batch) > _TOKENS_PER_PASS:
            counts = [len(ids) for ids, _ in batch]
            read_N = torch.tensor([id for ids, _ in batch for id in ids], device=device)
            logits_NV = model(read_N, Packed.from_lengths(counts, device=device)).logits
            assert logits_NV is not None
            for logits_LV, (ids, first) in zip(logits_NV.split(counts), batch, strict=True):
                log_LV = logits_LV[first - 1 :].double().log_softmax(1)
                said_M = torch.tensor(ids[first:], device=device)
                space_L = log_LV[:, begins_V].logsumexp(1)
                word_log = log_LV[:-1].gather(1, said_M[:, None]).sum() + space_L[-1] - space_L[0]
                bits.append(-float(word_log) / math.log(2))
            batch = []
    found = np.array(bits)
    if not np.isfinite(found).all():
        raise UserError(f"{loaded.stored.path}: gave NaN or infinite values: use --dtype float32")
    return found


def _ids(loaded: Loaded, context: str, word: str) -> tuple[list[int], int]:
    """What the model reads, and where the word begins in it."""
    tokenizer, most = loaded.tokenizer, loaded.model.config.context_length
    before = tokenizer.encode(context)
    ids = tokenizer.encode(f"{context} {word}")
    first = next((place for place, pair in enumerate(zip(before, ids)) if pair[0] != pair[1]), len(before))
    start = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    first = max(first, 1 - len(start))  # something has to stand before what is asked for
    length = len(ids) - first
    room = most - length - len(start)
    if room < 1:
        raise UserError(
            f"{loaded.stored.path}: the word {word!r} is {length} tokens, and the model reads {most}: leave it out"
        )
    kept = ids[max(0, first - room) : first]
    return [*start, *kept, *ids[first:]], len(start) + len(kept)
