"""A decoder-only language model over tokens: what came before goes in, a distribution over what comes next comes out.

The file reads in the order in which it runs. Token ids become rows of width D. Each block normalises the residual
stream, lets every token look back at its own document (grouped-query attention with rotary positions), adds what it
found, normalises again, and passes each row through a gated feed-forward layer, which may be a mixture of experts. The
last normalisation feeds the head, whose matrix is the embedding's own when they are tied.

Blocks hand on the residual stream and the branch not yet added to it, because adding and normalising is one operation
(`ops.add_norm`). Everything runs on packed rows; `Decoder.forward` also takes dense ids [B, T]. The design and its
numbers are those of the original bundle, specs/decoder.md section 2; what it left broken (chunks over a cache,
experts at dense cost, adapters on an unfrozen base, attention dropout alone) is mended here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcore.config import DecoderConfig
from pixelcore.dropout_bits import Drop
from pixelcore.errors import UserError
from pixelcore.kv_cache import KVCache, LayerCache
from pixelcore.layers import ExpertLinear, PackedLinear, linear
from pixelcore.ops import IGNORED, REFERENCE, HeadLayout, Ops, rope_table
from pixelcore.packed import Packed

# places where a layer drops; a site is layer * SITES_PER_LAYER + place, and the embedding stands before layer 0
_EMBEDDING, _ATTENTION, _AFTER_ATTENTION, _AFTER_FEED_FORWARD, _LORA_QKV, _LORA_OUT, _LORA_IN, _LORA_DOWN = range(8)
_SITES_PER_LAYER = 8


@dataclass
class DecoderOutput:
    """logits [B, T, V] or [N, V], None where only the loss was asked for. loss: scaled cross entropy plus the weighted
    balance loss. cross_entropy: the scaled sum alone. count: targets that counted. balance: sum over the expert layers
    of the load-balancing loss, each 1.0 when balanced."""

    logits: Tensor | None = None
    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    count: Tensor | None = None
    balance: Tensor | None = None


class Decoder(nn.Module):
    """The model of one `DecoderConfig`. Parameters are fp32 and uninitialised: see `pixelcore.initialise`.

    compute_dtype: dtype of the activations. recompute: keep only what enters each block and run it again in the
    backward pass. Both are how to run, not what the model is, so neither is part of the configuration.
    """

    def __init__(self, config: DecoderConfig, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.compute_dtype = torch.float32
        self.recompute = False
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.norm = NormWeight(config.hidden_size)
        self.head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._tables: dict[torch.device, Tensor] = {}

    def forward(
        self,
        ids: Tensor,
        packed: Packed | None = None,
        *,
        targets: Tensor | None = None,
        scale: Tensor | None = None,
        dropout_seed: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> DecoderOutput:
        """Logits of the next token, or the loss.

        ids: int64 [B, T], or [N] with `packed`. targets: int64 like ids, `IGNORED` where a row does not count; with
        them logits are not kept. scale: scalar, 1 / (targets of the step); the mean over this call when absent.
        dropout_seed: int64 [2], run seed and step; without it nothing is dropped. cache: the ids are the next ones of
        its sequences. last_only: logits of the last row of each sequence only, [B, V].
        Raises UserError when a sequence is longer than the context.
        """
        shape = ids.shape
        if packed is None:
            batch, length = shape
            packed = (
                Packed.from_lengths([length] * batch, device=ids.device)
                if cache is None
                else cache.begin([length] * batch, ids.device)
            )
        self._check_context(packed)
        targets_N = None if targets is None else targets.flatten()
        hidden_ND, balance = self._hidden(ids.flatten(), packed, targets_N, dropout_seed, cache)
        if cache is not None:
            cache.commit()
        if last_only:
            hidden_ND = hidden_ND[packed.offsets[1:].long() - 1]
        logits = linear(hidden_ND, self.head_weight)
        if targets_N is None:
            return DecoderOutput(logits=logits if last_only else logits.unflatten(0, shape), balance=balance)
        return self._loss(logits, targets_N, scale, balance)

    def encode(self, ids_N: Tensor, packed: Packed, dropout_seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last state of every row [N, D], before the head, and the balance loss. Raises UserError for a sequence
        that is longer than the context."""
        self._check_context(packed)
        return self._hidden(ids_N, packed, None, dropout_seed, None)

    def _check_context(self, packed: Packed) -> None:
        if packed.max_length > self.config.context_length:
            raise UserError(
                f"a sequence of {packed.max_length} tokens is longer than the model's context_length = "
                f"{self.config.context_length}: cut it, or let the window slide, where the command offers it"
            )

    def _hidden(
        self,
        ids_N: Tensor,
        packed: Packed,
        targets_N: Tensor | None,
        dropout_seed: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor]:
        counted_N = None if targets_N is None else targets_N != IGNORED
        residual_ND = self.embed(ids_N).to(self.compute_dtype)
        table = self._table(ids_N.device)
        embedding_drop = _drop(dropout_seed, packed, _EMBEDDING, self.config.dropout)
        if embedding_drop is not None:
            residual_ND = self.ops.dropout(residual_ND, embedding_drop)
        delta_ND, balance = None, torch.zeros((), device=ids_N.device)
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            arguments = (residual_ND, delta_ND, packed, table, self.ops, dropout_seed, counted_N, layer_cache)
            if self.recompute and torch.is_grad_enabled():
                residual_ND, delta_ND, layer_balance = checkpoint(block, *arguments, use_reentrant=False)
            else:
                residual_ND, delta_ND, layer_balance = block(*arguments)
            if layer_balance is not None:
                balance = balance + layer_balance
        last_drop = _drop(
            dropout_seed, packed, len(self.layers) * _SITES_PER_LAYER + _AFTER_FEED_FORWARD, self.config.dropout
        )
        _, hidden_ND = self.ops.add_norm(
            residual_ND, delta_ND, self.norm.weight, None, self.config.rms_norm_eps, last_drop
        )
        return hidden_ND, balance

    def _loss(self, logits_NV: Tensor, targets_N: Tensor, scale: Tensor | None, balance: Tensor) -> DecoderOutput:
        count = (targets_N != IGNORED).sum()
        scale = count.float().reciprocal() if scale is None else scale
        cross_entropy, _ = self.ops.cross_entropy(logits_NV, targets_N, scale)
        loss = cross_entropy
        if self.config.moe is not None:
            # weighted by the micro-batch's share of the targets, so that the sum over a step is a mean
            loss = loss + self.config.moe.balance_coefficient * balance * (count * scale)
        return DecoderOutput(loss=loss, cross_entropy=cross_entropy, count=count, balance=balance)

    @property
    def head_weight(self) -> Tensor:
        """The matrix [V, D] that scores the vocabulary."""
        return self.embed.weight if self.head is None else self.head.weight

    def blocks(self) -> Iterable[nn.Module]:
        """What sharding wraps one by one."""
        return self.layers

    def new_cache(self, num_sequences: int, capacity: int | None = None) -> KVCache:
        """An empty cache on the model's device; capacity in tokens, at most and by default the context length."""
        weight = self.embed.weight
        return KVCache(
            num_layers=self.config.num_layers,
            num_sequences=num_sequences,
            num_key_value_heads=self.config.num_key_value_heads,
            head_size=self.config.head_size,
            capacity=min(capacity or self.config.context_length, self.config.context_length),
            device=weight.device,
            dtype=self.compute_dtype,
        )

    def _table(self, device: torch.device) -> Tensor:
        # made once per device and not a buffer: a change of dtype must never round the angles
        if device not in self._tables:
            config = self.config
            self._tables[device] = rope_table(config.head_size, config.rope_base, config.context_length).to(device)
        return self._tables[device]


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalised residual stream."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.index = index
        self.norm1 = NormWeight(config.hidden_size)
        self.attention = Attention(config, index)
        self.norm2 = NormWeight(config.hidden_size)
        self.feed_forward = Experts(config, index) if config.is_moe_layer(index) else FeedForward(config, index)

    def forward(
        self,
        residual_ND: Tensor,
        delta_ND: Tensor | None,
        packed: Packed,
        table: Tensor,
        ops: Ops,
        dropout_seed: Tensor | None,
        counted_N: Tensor | None,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The residual stream, the feed-forward branch not yet added to it, and the balance loss of expert layers."""
        config, site = self.config, self.index * _SITES_PER_LAYER
        drop_before = _drop(dropout_seed, packed, site + _AFTER_FEED_FORWARD, config.dropout)
        residual_ND, normed_ND = ops.add_norm(
            residual_ND, delta_ND, self.norm1.weight, None, config.rms_norm_eps, drop_before
        )
        attended_ND = self.attention(normed_ND, packed, table, ops, dropout_seed, cache)
        drop_between = _drop(dropout_seed, packed, site + _AFTER_ATTENTION, config.dropout)
        residual_ND, normed_ND = ops.add_norm(
            residual_ND, attended_ND, self.norm2.weight, None, config.rms_norm_eps, drop_between
        )
        return residual_ND, *self.feed_forward(normed_ND, packed, ops, dropout_seed, counted_N)


class Attention(nn.Module):
    """Causal grouped-query attention inside each document."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.site = index * _SITES_PER_LAYER
        self.layout = HeadLayout(config.num_attention_heads, config.num_key_value_heads, config.head_size)
        key_rows = config.num_key_value_heads * config.head_size
        parts = {"q_proj": config.hidden_size, "k_proj": key_rows, "v_proj": key_rows}
        self.qkv = PackedLinear(config.hidden_size, parts, config.lora)
        self.out = PackedLinear(config.hidden_size, {"o_proj": config.hidden_size}, config.lora)

    def forward(
        self,
        x_ND: Tensor,
        packed: Packed,
        table: Tensor,
        ops: Ops,
        dropout_seed: Tensor | None,
        cache: LayerCache | None,
    ) -> Tensor:
        lora_drop = self.config.lora.dropout if self.config.lora else 0.0
        qkv_NO = self.qkv(x_ND, ops, _drop(dropout_seed, packed, self.site + _LORA_QKV, lora_drop))
        q_NHK, k_NGK, v_NGK = ops.split_rope(qkv_NO, packed.positions, table, self.layout)
        scale = self.config.head_size**-0.5
        if cache is None:
            drop = _drop(dropout_seed, packed, self.site + _ATTENTION, self.config.attention_dropout)
            out_NHK, _ = ops.attention(q_NHK, k_NGK, v_NGK, packed, "causal", scale, drop)
        else:
            out_NHK = ops.decode_attention(q_NHK, k_NGK, v_NGK, cache, scale)
        return self.out(out_NHK.flatten(1), ops, _drop(dropout_seed, packed, self.site + _LORA_OUT, lora_drop))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.site = index * _SITES_PER_LAYER
        self.lora_drop = config.lora.dropout if config.lora else 0.0
        hidden = config.intermediate_size
        self.gate_up = PackedLinear(config.hidden_size, {"gate_proj": hidden, "up_proj": hidden}, config.lora)
        self.down = PackedLinear(hidden, {"down_proj": config.hidden_size}, config.lora)

    def forward(
        self, x_ND: Tensor, packed: Packed, ops: Ops, dropout_seed: Tensor | None, counted_N: Tensor | None
    ) -> tuple[Tensor, None]:
        gate_up_NF = self.gate_up(x_ND, ops, _drop(dropout_seed, packed, self.site + _LORA_IN, self.lora_drop))
        inner_NF = ops.glu(gate_up_NF, "silu")
        return self.down(inner_NF, ops, _drop(dropout_seed, packed, self.site + _LORA_DOWN, self.lora_drop)), None


class Experts(nn.Module):
    """A mixture of SwiGLU experts: each row goes to the J experts its router scores highest, and to no other.

    The scores of the chosen experts alone go through the softmax and weigh their outputs. Rows are sorted by expert, so
    each expert is one contiguous matrix product; no expert has a capacity, so no token is dropped.
    """

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        assert config.moe is not None
        self.site = index * _SITES_PER_LAYER
        self.lora_drop = config.lora.dropout if config.lora else 0.0
        self.num_experts, self.top_k = config.moe.num_experts, config.moe.top_k
        hidden = config.intermediate_size
        parts = {"gate_proj": hidden, "up_proj": hidden}
        self.router = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.gate_up = ExpertLinear(self.num_experts, config.hidden_size, parts, config.lora)
        self.down = ExpertLinear(self.num_experts, hidden, {"down_proj": config.hidden_size}, config.lora)

    def forward(
        self, x_ND: Tensor, packed: Packed, ops: Ops, dropout_seed: Tensor | None, counted_N: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores_NE = F.linear(x_ND, self.router.weight.to(x_ND.dtype)).float()
        top_NJ, expert_NJ = scores_NE.topk(self.top_k, dim=-1)
        weight_NJ = top_NJ.softmax(-1)
        order = expert_NJ.flatten().argsort(stable=True)
        rows = order // self.top_k
        ends_E = torch.bincount(expert_NJ.flatten(), minlength=self.num_experts).cumsum(0).to(torch.int32)
        # a dropped feature of the adapters is counted per expert copy: the copies of a row get its own document twice
        copies = None if dropout_seed is None or not self.lora_drop else _copies(packed, rows, expert_NJ, order)
        sorted_ND = x_ND[rows]
        gate_up = self.gate_up(
            sorted_ND, ends_E, ops, _drop(dropout_seed, copies, self.site + _LORA_IN, self.lora_drop)
        )
        inner = ops.glu(gate_up, "silu")
        out = self.down(inner, ends_E, ops, _drop(dropout_seed, copies, self.site + _LORA_DOWN, self.lora_drop))
        # back in the order of the rows; a gather, because adding with an index is not deterministic on a GPU
        out_NJD = out[order.argsort()].unflatten(0, (-1, self.top_k))
        mixed_ND = (out_NJD * weight_NJ[..., None].to(out.dtype)).sum(1)
        return mixed_ND, balance_loss(scores_NE, expert_NJ, counted_N)


def balance_loss(scores_NE: Tensor, expert_NJ: Tensor, counted_N: Tensor | None) -> Tensor:
    """E * sum over experts of (mean router probability) * (share of the choices); 1.0 when balanced.

    Rows that no loss counts (fillers) do not vote. The shares carry no gradient. Source: arXiv:2101.03961, eq. 4-6.
    """
    num_rows, num_experts = scores_NE.shape
    vote_N = scores_NE.new_ones(num_rows) if counted_N is None else counted_N.to(scores_NE.dtype)
    total = vote_N.sum().clamp_min(1)
    probability_E = (scores_NE.softmax(-1) * vote_N[:, None]).sum(0) / total
    chosen_NE = torch.zeros_like(scores_NE).scatter_(1, expert_NJ, 1.0)
    share_E = (chosen_NE * vote_N[:, None]).sum(0) / (total * expert_NJ.shape[1])
    return num_experts * (probability_E * share_E).sum()


class NormWeight(nn.Module):
    """The learned scale of an RMSNorm; `ops.add_norm` does the arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


def _drop(seed: Tensor | None, packed: Packed | None, site: int, p: float) -> Drop | None:
    """None where nothing is dropped: no seed (evaluation) or p = 0."""
    if seed is None or packed is None or p == 0:
        return None
    return Drop(seed, packed, site, p)


def _copies(packed: Packed, rows: Tensor, expert_NJ: Tensor, order: Tensor) -> Packed:
    """Names for the sorted copies of the rows: document and position of the row, and the expert in the high bits of
    the position, so that the two copies of a token do not share a mask."""
    position = packed.positions[rows] + (expert_NJ.flatten()[order] << 24).to(packed.positions.dtype)
    return Packed(packed.offsets, position, packed.documents[rows], packed.max_length, packed.lengths)
