"""The loop of generation without a host: every sequence of a batch gets its next token, or patch, by fixed operations.

A model's own forward pass asks the host at every turn: how many rows there are, where each sequence ends, what was
drawn. None of that changes from one token to the next but by one. Here it lies in small buffers on the device, made
once and written in place, so that a step is the same operations on the same addresses every time:

    residual_BD    the rows that go into the next step: of the tokens drawn last
    lengths_B      rows that each sequence holds in the cache, which is where the next one goes
    steps_B        how many each sequence has drawn, which counts its random numbers
    seeds_B        and what they are drawn with

    step:  residual_BD -> layers (pixelcore.step_ops) -> logits -> what is drawn, and residual_BD of it; the counts + 1

Several steps are one group: what they draw is stacked, a ring of [R, B] that the host reads when it likes. A group can
be recorded as a CUDA graph and replayed (`infer.step_loop`). It knows nothing of ends: a sequence that is over, or
full, goes on until the host leaves the group behind. That costs nobody anything, for its slot would be idle, and it
writes nothing that is not its own: the operations write no place behind the cache.

The prompts are read by the model itself into the cache, in any lengths; `begin` takes the logits that follow them.
Weights are cast to the dtype of the activations once, here. That takes a model whose layers are the four maps of
`step_ops`: experts choose their weights row by row and adapters have more maps, and their models are not stepped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcore.config import PixarConfig
from pixelcore.kv_cache import KVCache
from pixelcore.models.decoder import Attention, Block, Decoder, FeedForward
from pixelcore.models.pixar import Pixar
from pixelcore.models.pixar_trunk import Block as PixarBlock
from pixelcore.ops import HeadLayout
from pixelcore.step_ops import MOST_ROWS, StepOps

LARGEST_HEAD, MOST_TOKENS = 128, 65_536  # what a program of the kernels holds


def why_not(model: Decoder | Pixar) -> str | None:
    """What about a model cannot be stepped, as half a sentence; None where all can."""
    config = model.config
    if config.head_size > LARGEST_HEAD:
        return f"heads of {config.head_size} features are beyond {LARGEST_HEAD}"
    if isinstance(config, PixarConfig):
        return "a regression's patches are not of two colours" if config.head == "regression" else None
    if config.moe is not None:
        return "experts are chosen row by row"
    if config.lora is not None:
        return "its adapters are not folded into its weights (export --merge)"
    return f"{config.vocab_size} tokens are more than {MOST_TOKENS}" if config.vocab_size > MOST_TOKENS else None


class Steps:
    """What tokens and patches have in common: the buffers, the layers, groups.

    cache: of the model's own making, for at most `MOST_ROWS` sequences. Raises ValueError for more of them, and for a
    model that `why_not` names a reason for.
    """

    def __init__(self, model: Decoder | Pixar, cache: KVCache, ops: StepOps) -> None:
        reason = why_not(model)
        if reason is not None:
            raise ValueError(f"the model cannot be stepped: {reason}")
        self.num_sequences = len(cache.lengths)
        if not 1 <= self.num_sequences <= MOST_ROWS:
            raise ValueError(f"num_sequences = {self.num_sequences} must be from 1 to {MOST_ROWS}")
        self.cache = cache
        self.device, self.dtype = cache.layers[0].keys.device, model.compute_dtype
        self._ops = ops
        self._layers = _layers(model, cache, self.dtype)
        self._norm_D, self._eps = model.norm.weight.detach(), model.config.rms_norm_eps
        self._table = model._table(self.device)
        self._clock_2B = torch.zeros(2, self.num_sequences, dtype=torch.int32, device=self.device)
        self.lengths_B, self.steps_B = self._clock_2B.unbind()
        self.seeds_B = torch.zeros(self.num_sequences, dtype=torch.int64, device=self.device)
        self.residual_BD = torch.zeros(
            self.num_sequences, model.config.hidden_size, dtype=self.dtype, device=self.device
        )

    def _begin(self, seeds: Sequence[int], said: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Set the buffers for sequences as the cache holds them and draw what follows them."""
        counts = torch.tensor([self.cache.lengths, [0] * self.num_sequences], dtype=torch.int32)
        self._clock_2B.copy_(counts)
        self.seeds_B.copy_(torch.tensor(seeds, dtype=torch.int64))
        drawn, residual_BD = self._draw(*said)
        self.residual_BD.copy_(residual_BD)
        self.steps_B += 1
        return tuple(one[None] for one in drawn)

    def run(self, count: int) -> tuple[Tensor, ...]:
        """The next `count` of every sequence, one step each: what `_draw` says of a step, stacked."""
        residual_BD, group = self.residual_BD, []
        for _ in range(count):
            drawn, residual_BD = self._draw(*self._said(residual_BD))
            self._clock_2B += 1
            group.append(drawn)
        self.residual_BD.copy_(residual_BD)
        return tuple(torch.stack(one) for one in zip(*group, strict=True))

    def _through(self, residual_BD: Tensor, head_VD: Tensor) -> Tensor:
        """The logits, fp32, of a row for each sequence, whose keys and values the cache holds afterwards."""
        ops = self._ops
        for layer in self._layers:
            places = (layer.keys_BGCK, layer.values_BGCK)
            q_BHK = ops.norm_qkv(
                residual_BD, layer.norm1_D, self._eps, layer.qkv_OD, self._table, self.lengths_B, layer.layout, *places
            )
            scale = layer.layout.head_size**-0.5
            residual_BD = ops.attend_project(q_BHK, *places, self.lengths_B, scale, layer.out_DO, residual_BD)
            inner_BF = ops.norm_glu(residual_BD, layer.norm2_D, self._eps, layer.gate_up_FD)
            residual_BD = ops.project_add(inner_BF, layer.down_DF, residual_BD)
        return ops.norm_logits(residual_BD, self._norm_D, self._eps, head_VD)

    def _said(self, residual_BD: Tensor) -> tuple[Tensor, ...]:
        """What the model says of the next one of each sequence."""
        raise NotImplementedError

    def _draw(self, *said: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What is drawn of it, and its residual [B, D]."""
        raise NotImplementedError


class TokenSteps(Steps):
    """Tokens of a decoder. What `begin` and `run` return: ids int64 [R, B] and their log-probabilities fp32 [R, B].

    knobs: temperature, top_k, top_p, min_p and repetition penalty, as `step_sampling.sample_token` takes them. Where
    the penalty is not 1, a buffer more holds the tokens that were seen. Of logits that are not finite the id is -1 and
    the log-probability NaN.
    """

    def __init__(self, model: Decoder, cache: KVCache, ops: StepOps, knobs: Sequence[float]) -> None:
        super().__init__(model, cache, ops)
        self._embed_VD = _cast(model.embed.weight, self.dtype)
        self._head_VD = self._embed_VD if model.head is None else _cast(model.head.weight, self.dtype)
        self._knobs = torch.tensor(knobs, dtype=torch.float32, device=self.device)
        self.seen_BV = None
        if knobs[-1] != 1:
            shape = self.num_sequences, model.config.vocab_size
            self.seen_BV = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def begin(self, logits_BV: Tensor, seeds: Sequence[int], seen_BV: Tensor | None = None) -> tuple[Tensor, ...]:
        """The first token of each sequence, as a group of one.

        logits_BV: what the model said behind the prompts that the cache holds. seeds: of each sequence. seen_BV: bool,
        the tokens of the prompts, where there is a penalty.
        """
        if self.seen_BV is not None:
            assert seen_BV is not None
            self.seen_BV.copy_(seen_BV)
        return self._begin(seeds, (logits_BV.to(torch.promote_types(self.dtype, torch.float32)),))

    def _said(self, residual_BD: Tensor) -> tuple[Tensor, ...]:
        return (self._through(residual_BD, self._head_VD),)

    def _draw(self, *said: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        id_B, log_probability_B, residual_BD = self._ops.sample_token(
            *said, self.seen_BV, self._knobs, self.seeds_B, self.steps_B, self._embed_VD
        )
        return (id_B, log_probability_B), residual_BD


class PatchSteps(Steps):
    """Patches of a PIXAR. What `begin` and `run` return: pixels uint8 [R, B, A], the log-probabilities fp32 [R, B] of
    the patches, and bool [R, B], whether each is black.

    decoding, stop, temperature: as `step_sampling.next_patch` takes them.
    """

    def __init__(
        self, model: Pixar, cache: KVCache, ops: StepOps, decoding: str, stop: bool, temperature: float
    ) -> None:
        super().__init__(model, cache, ops)
        config = model.config
        self._num_components, self._num_values = config.num_components, config.patch_values
        # the scores of a mixture are rows of the same product, behind those of its components
        head_VD = model.out_proj.flat_weight(config.num_components * config.patch_values).T
        if model.score is not None:
            head_VD = torch.cat((head_VD, model.score.weight))
        self._head_VD = _cast(head_VD, self.dtype)
        self._in_DA = _cast(model.in_proj.flat_weight(config.patch_values), self.dtype)
        self._decoding, self._stop = decoding, stop
        self._temperature = torch.full((), temperature, device=self.device)

    def begin(self, components_BZA: Tensor, scores_BZ: Tensor | None, seeds: Sequence[int]) -> tuple[Tensor, ...]:
        """The first patch of each strip, as a group of one. components, scores: what the model said behind the patches
        that the cache holds. seeds: of each strip."""
        wide = torch.promote_types(self.dtype, torch.float32)
        scores = () if scores_BZ is None else (scores_BZ.to(wide),)
        return self._begin(seeds, (components_BZA.to(wide), *scores))

    def _said(self, residual_BD: Tensor) -> tuple[Tensor, ...]:
        logits_BV = self._through(residual_BD, self._head_VD)
        of_pixels = self._num_components * self._num_values
        components_BZA = logits_BV[:, :of_pixels].unflatten(1, (self._num_components, -1))
        return (components_BZA,) if logits_BV.shape[1] == of_pixels else (components_BZA, logits_BV[:, of_pixels:])

    def _draw(self, *said: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        components_BZA, scores_BZ = said if len(said) == 2 else (*said, None)
        pixels_BA, log_probability_B, is_black_B, residual_BD = self._ops.next_patch(
            components_BZA,
            scores_BZ,
            self._decoding,
            self._stop,
            self._temperature,
            self.seeds_B,
            self.steps_B,
            self._in_DA,
        )
        return (pixels_BA, log_probability_B, is_black_B), residual_BD


@dataclass(frozen=True)
class _Layer:
    """A layer's weights, and its places in the cache."""

    layout: HeadLayout
    norm1_D: Tensor
    qkv_OD: Tensor
    out_DO: Tensor
    norm2_D: Tensor
    gate_up_FD: Tensor
    down_DF: Tensor
    keys_BGCK: Tensor
    values_BGCK: Tensor


def _layers(model: Decoder | Pixar, cache: KVCache, dtype: torch.dtype) -> list[_Layer]:
    found: list[_Layer] = []
    for block, held in zip(model.layers, cache.layers, strict=True):
        attention, feed_forward = (block.attention, block.feed_forward) if isinstance(block, Block) else (block, block)
        assert isinstance(attention, Attention | PixarBlock) and isinstance(feed_forward, FeedForward | PixarBlock)
        assert isinstance(block, Block | PixarBlock)
        layer = _Layer(
            layout=attention.layout,
            norm1_D=block.norm1.weight.detach(),
            qkv_OD=_cast(attention.qkv.weight, dtype),
            out_DO=_cast(attention.out.weight, dtype),
            norm2_D=block.norm2.weight.detach(),
            gate_up_FD=_cast(feed_forward.gate_up.weight, dtype),
            down_DF=_cast(feed_forward.down.weight, dtype),
            keys_BGCK=held.keys,
            values_BGCK=held.values,
        )
        found.append(layer)
    return found


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype).contiguous()
