"""Prompts go in, text comes out: the loop around a token decoder.

All prompts of a batch share one cache and one loop. In each pass every unfinished sequence brings the tokens the model
has not seen yet, the whole prompt at first, then one token; the rows of all sequences stand end to end, so prompts of
different lengths cost no padding. A finished sequence leaves the batch and its memory.

Text is what was given, never trimmed: a prompt is <s> and its ids, and an empty prompt is <s> alone. Sequence i draws
its random numbers from seed + i and meets the others nowhere, so it writes what it would write alone (up to the
rounding of matrix products, which may add in another order for another number of rows).

Streaming holds text back in two cases only: bytes of a character that is not complete, and text that may turn out to be
the beginning of a stop string.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from infer.sampling import SamplingConfig, choose
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 96
BATCH_SIZE = 16  # prompts that share a cache; more only wait longer for the memory


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one prompt became.

    text: the continuation, without the prompt and without the stop string. ids: the tokens drawn, without </s>; they
    include those that spell a stop string. log_probabilities: of each id, natural, under the model's own distribution.
    finish_reason: "eos", "stop" (a stop string), "length" (max_tokens) or "context" (the context is full).
    seconds: from the start of the sequence's batch to its own end.
    """

    prompt: str
    text: str
    ids: list[int]
    log_probabilities: list[float]
    finish_reason: str
    num_prompt_tokens: int
    seed: int
    seconds: float

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


@torch.inference_mode()
def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    stop: Sequence[str] = (),
    sliding: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Generation]:
    """Continue each prompt by at most `max_tokens` tokens.

    stop: strings that end a sequence where they first appear in its continuation; the one that is complete first wins.
    sliding: when the context is full, forget all but its last half and go on (those tokens are read again, at positions
        from 0 and without <s>); without it the sequence ends there, finish_reason "context".
    on_text: called with the index of the prompt and each new piece of its text; the pieces joined are the text.
    batch_size: prompts that run together; it changes the speed and not the result.
    Raises UserError, before anything is generated, for a prompt longer than the context.
    """
    sampling = sampling or SamplingConfig()
    if isinstance(prompts, str):
        raise UserError("prompts is one string; generate takes a list of them: [prompt]")
    if max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens} must be at least 1")
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size} must be at least 1")
    if "" in stop:
        raise UserError("a stop string is empty; it would end every text at once: leave it out")
    sequences = [
        _Sequence(index, prompt, _prompt_ids(model, tokenizer, index, prompt), tokenizer, sampling, stop)
        for index, prompt in enumerate(prompts)
    ]
    for first in range(0, len(sequences), batch_size):
        _run(model, tokenizer, sequences[first : first + batch_size], sampling, max_tokens, sliding, on_text)
    return [sequence.result() for sequence in sequences]


def _prompt_ids(model: Decoder, tokenizer: Tokenizer, index: int, prompt: str) -> list[int]:
    begin = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    try:
        prompt.encode()
    except UnicodeEncodeError as cause:  # bytes of a command line that are not UTF-8 arrive as lone surrogates
        raise UserError(f"prompt {index + 1}: not valid text ({cause.reason}): give UTF-8") from cause
    ids = begin + tokenizer.encode(prompt)
    context = model.config.context_length
    if len(ids) > context:
        raise UserError(
            f"prompt {index + 1} has {len(ids)} tokens and the model's context {context}: shorten the prompt by "
            f"{len(ids) - context} tokens or more"
        )
    if not ids:
        raise UserError(f"prompt {index + 1} is empty and this tokenizer has no <s> to begin with: give some text")
    if max(ids) >= model.config.vocab_size:
        raise UserError(
            f"prompt {index + 1}: the tokenizer gives id {max(ids)}, the model's vocabulary ends at "
            f"{model.config.vocab_size - 1}: use the model's own tokenizer"
        )
    return ids


def _run(
    model: Decoder,
    tokenizer: Tokenizer,
    sequences: list["_Sequence"],
    sampling: SamplingConfig,
    max_tokens: int,
    sliding: bool,
    on_text: Callable[[int, str], None] | None,
) -> None:
    """Generate for one batch; every sequence of it is finished afterwards."""
    start = time.perf_counter()
    context, device = model.config.context_length, model.head_weight.device
    longest = max(len(sequence.ids) for sequence in sequences)
    # the last token drawn is never fed back
    cache = model.new_cache(len(sequences), min(context, longest + max_tokens - 1))
    seen_BV = None
    if sampling.repetition_penalty != 1:
        seen_BV = torch.zeros(len(sequences), model.config.vocab_size, dtype=torch.bool, device=device)
        for row, sequence in enumerate(sequences):
            seen_BV[row, sequence.ids] = True
    active = sequences
    while active:
        pending = [sequence.pending for sequence in active]
        packed = cache.begin([len(ids) for ids in pending], device)
        ids_N = torch.tensor([id for ids in pending for id in ids], device=device)
        logits_BV = model(ids_N, packed, cache=cache, last_only=True).logits
        chosen, log_probabilities = choose(logits_BV, seen_BV, sampling, [one.generator for one in active])
        if seen_BV is not None:
            seen_BV[torch.arange(len(active)), chosen] = True
        kept = []
        for row, (sequence, id, log_probability) in enumerate(zip(active, chosen, log_probabilities, strict=True)):
            is_end = id == tokenizer.eos_id
            piece = "" if is_end else sequence.add(id, log_probability)
            full = cache.lengths[row] == context
            if is_end:
                sequence.finish("eos")
            elif sequence.stop_filter.stopped:
                sequence.finish("stop")
            elif sequence.num_drawn == max_tokens:
                sequence.finish("length")
            elif full and not sliding:
                sequence.finish("context")
            elif full:
                cache.lengths[row] = 0
                sequence.pending = sequence.ids[-max(context // 2, 1) :]
            if sequence.finish_reason is None:
                kept.append(row)
            else:
                piece += sequence.rest
                sequence.seconds = time.perf_counter() - start
            if piece and on_text is not None:
                on_text(sequence.index, piece)
        if len(kept) < len(active):
            active = [active[row] for row in kept]
            if active:
                cache.select(kept)
                seen_BV = None if seen_BV is None else seen_BV[kept]


class _Sequence:
    """One prompt on its way: its tokens, its random numbers, the text that is certain."""

    def __init__(
        self,
        index: int,
        prompt: str,
        ids: list[int],
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        stop: Sequence[str],
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.ids = list(ids)  # prompt and output
        self.num_prompt = len(ids)
        self.pending = list(ids)  # what the model has not read yet
        self.seed = sampling.seed + index
        self.generator = torch.Generator().manual_seed(self.seed % 2**63)
        self.log_probabilities: list[float] = []
        self.decoder = tokenizer.stream(ids)
        self.stop_filter = StopFilter(stop)
        self.pieces: list[str] = []
        self.finish_reason: str | None = None
        self.rest = ""
        self.seconds = 0.0

    @property
    def num_drawn(self) -> int:
        return len(self.ids) - self.num_prompt

    def add(self, id: int, log_probability: float) -> str:
        """Take a drawn token; returns the text that can be shown now."""
        self.ids.append(id)
        self.pending = [id]
        self.log_probabilities.append(log_probability)
        piece = self.stop_filter.push(self.decoder.push(id))
        self.pieces.append(piece)
        return piece

    def finish(self, reason: str) -> None:
        """Nothing more will come: what was held back is text after all, unless it was a stop string."""
        if not self.stop_filter.stopped:
            self.rest = self.stop_filter.push(self.decoder.finish())
            self.rest += self.stop_filter.finish()
            self.pieces.append(self.rest)
        self.finish_reason = reason

    def result(self) -> Generation:
        assert self.finish_reason is not None
        return Generation(
            prompt=self.prompt,
            text="".join(self.pieces),
            ids=self.ids[self.num_prompt :],
            log_probabilities=self.log_probabilities,
            finish_reason=self.finish_reason,
            num_prompt_tokens=self.num_prompt,
            seed=self.seed,
            seconds=self.seconds,
        )


class StopFilter:
    """Passes text on until a stop string appears in it.

    The result does not depend on how the text was cut into pushes: of several stop strings the one that is complete
    first wins, of two that end together the longer one.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string. Sets `stopped` when one is complete."""
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        self._held += text
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            text, self._held = self._held[:start], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """What was held back, when no more text will come."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning, but not all, of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
