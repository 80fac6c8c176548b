"""Prompts go in, text comes out: the loop around a token decoder.

All prompts of a batch share one cache and one loop. In each pass every unfinished sequence brings the tokens the model
has not seen yet, the whole prompt at first, then one token; the rows of all sequences stand end to end, so prompts of
different lengths cost no padding. A finished sequence leaves the batch and its memory.

Text is what was given, never trimmed: a prompt is <s> and its ids, and an empty prompt is <s> alone. Sequence i draws
its random numbers from seed + i and meets the others nowhere, so it writes what it would write alone (up to the
rounding of matrix products, which may add in another order for another number of rows).

Streaming holds text back in two cases only: bytes of a character that is not complete, and text that may turn out to be
the beginning of a stop string (`infer.stop_filter`).

A model on fused operations reads its prompts so and goes on in steps that ask the host nothing (`infer.step_loop`): the
same tokens, shown in groups. Sequences that have ended then keep their slots until the last one has.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer.sampling import SamplingConfig, choose, no_numbers
from infer.step_loop import StepLoop, ops_of_steps
from infer.stop_filter import StopFilter
from pixelcore.decode_step import TokenSteps
from pixelcore.errors import UserError
from pixelcore.models.decoder import Decoder
from pixelcore.step_ops import MOST_ROWS, StepOps
from pixelcore.tokenizer import Tokenizer
from pixelcore.uniform import numbers_of

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
        _Sequence(index, prompt, _prompt_ids(model, tokenizer, index, prompt), tokenizer, sampling, max_tokens, stop)
        for index, prompt in enumerate(prompts)
    ]
    ops = ops_of_steps(model, instead="the window slides" if sliding else None)
    if ops is not None:
        _run_steps(model, sequences, sampling, on_text, min(batch_size, MOST_ROWS), ops)
        return [sequence.result() for sequence in sequences]
    for first in range(0, len(sequences), batch_size):
        _run(model, sequences[first : first + batch_size], sampling, sliding, on_text)
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
    sequences: list["_Sequence"],
    sampling: SamplingConfig,
    sliding: bool,
    on_text: Callable[[int, str], None] | None,
) -> None:
    """Generate for one batch; every sequence of it is finished afterwards."""
    start = time.perf_counter()
    context, device = model.config.context_length, model.head_weight.device
    # the last token drawn is never fed back
    cache = model.new_cache(len(sequences), min(context, max(len(one.ids) + one.max_tokens - 1 for one in sequences)))
    seen_BV = _seen(model, sequences, sampling)
    active = sequences
    while active:
        pending = [sequence.pending for sequence in active]
        packed = cache.begin([len(ids) for ids in pending], device)
        ids_N = torch.tensor([id for ids in pending for id in ids], device=device)
        logits_BV = model(ids_N, packed, cache=cache, last_only=True).logits
        chosen, log_probabilities = choose(logits_BV, seen_BV, sampling, [one.numbers for one in active])
        if seen_BV is not None:
            seen_BV[torch.arange(len(active)), chosen] = True
        kept = []
        for row, (sequence, id, log_probability) in enumerate(zip(active, chosen, log_probabilities, strict=True)):
            full = cache.lengths[row] == context
            piece = sequence.take(id, log_probability, is_last=full and not sliding)
            if sequence.finish_reason is None:
                kept.append(row)
                if full:
                    cache.lengths[row] = 0
                    sequence.pending = sequence.ids[-max(context // 2, 1) :]
            else:
                sequence.seconds = time.perf_counter() - start
            if piece and on_text is not None:
                on_text(sequence.index, piece)
        if len(kept) < len(active):
            active = [active[row] for row in kept]
            if active:
                cache.select(kept)
                seen_BV = None if seen_BV is None else seen_BV[kept]


def _run_steps(
    model: Decoder,
    sequences: list["_Sequence"],
    sampling: SamplingConfig,
    on_text: Callable[[int, str], None] | None,
    batch_size: int,
    ops: StepOps,
) -> None:
    """All batches in steps that ask the host nothing (`infer.step_loop`). Those of one size share a cache."""
    context = model.config.context_length
    capacity = min(context, max((len(one.ids) + one.max_tokens - 1 for one in sequences), default=0))
    knobs = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.repetition_penalty)
    loop = None
    for first in range(0, len(sequences), batch_size):
        batch = sequences[first : first + batch_size]
        if loop is None or loop.steps.num_sequences != len(batch):
            steps = TokenSteps(model, model.new_cache(len(batch), capacity), ops, knobs)
            loop = StepLoop(steps)
        start = time.perf_counter()
        steps.cache.lengths = [0] * len(batch)
        packed = steps.cache.begin([len(one.ids) for one in batch], steps.device)
        ids_N = torch.tensor([id for one in batch for id in one.ids], device=steps.device)
        logits_BV = model(ids_N, packed, cache=steps.cache, last_only=True).logits
        drawn = steps.begin(logits_BV, [one.seed % 2**63 for one in batch], _seen(model, batch, sampling))
        wanted = max(min(one.max_tokens, context - len(one.ids) + 1) for one in batch) - 1
        for ids_RB, log_probability_RB in loop.groups(drawn, wanted):
            for ids, log_probabilities in zip(ids_RB.tolist(), log_probability_RB.tolist(), strict=True):
                _take_all(batch, ids, log_probabilities, context, start, on_text)
            if all(one.finish_reason is not None for one in batch):
                break


def _take_all(
    batch: list["_Sequence"],
    ids: list[int],
    log_probabilities: list[float],
    context: int,
    start: float,
    on_text: Callable[[int, str], None] | None,
) -> None:
    """What one step drew for each sequence. What is drawn for one that has ended is nothing."""
    for row, (one, id, log_probability) in enumerate(zip(batch, ids, log_probabilities, strict=True)):
        if one.finish_reason is not None:
            continue
        if not math.isfinite(log_probability):
            raise UserError(no_numbers(row))
        piece = one.take(id, log_probability, is_last=len(one.ids) == context)
        if one.finish_reason is not None:
            one.seconds = time.perf_counter() - start
        if piece and on_text is not None:
            on_text(one.index, piece)


def _seen(model: Decoder, batch: list["_Sequence"], sampling: SamplingConfig) -> Tensor | None:
    """Bool [B, V], the tokens of the prompts, where the sampling asks for them."""
    if sampling.repetition_penalty == 1:
        return None
    seen_BV = torch.zeros(len(batch), model.config.vocab_size, dtype=torch.bool)
    for row, one in enumerate(batch):
        seen_BV[row, one.ids] = True
    return seen_BV.to(model.head_weight.device)


class _Sequence:
    """One prompt on its way: its tokens, its random numbers, the text that is certain."""

    def __init__(
        self,
        index: int,
        prompt: str,
        ids: list[int],
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        max_tokens: int,
        stop: Sequence[str],
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.ids = list(ids)  # prompt and output
        self.num_prompt = len(ids)
        self.max_tokens = max_tokens
        self.eos_id = tokenizer.eos_id
        self.pending = list(ids)  # what the model has not read yet
        self.seed = sampling.seed + index
        self.numbers = numbers_of(self.seed % 2**63)
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

    def take(self, id: int, log_probability: float, is_last: bool) -> str:
        """Take a drawn token, which may end the sequence; returns the text that can be shown now. is_last: there is no
        room for another."""
        if id == self.eos_id:
            self._finish("eos")
            return self.rest
        self.ids.append(id)
        self.pending = [id]
        self.log_probabilities.append(log_probability)
        piece = self.stop_filter.push(self.decoder.push(id))
        self.pieces.append(piece)
        if self.stop_filter.stopped:
            self._finish("stop")
        elif self.num_drawn == self.max_tokens:
            self._finish("length")
        elif is_last:
            self._finish("context")
        return piece + self.rest

    def _finish(self, reason: str) -> None:
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
