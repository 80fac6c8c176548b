"""The peers of attention ask their libraries for what ours computes: results, and gradients where a CPU has them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.workshop import attention_peers, decode_peers
from kernels.workshop.attention_composites import DecodeAttention
from kernels.workshop.cases import Draw
from kernels.workshop.contest import Arena, Contestant, distances
from pixelcore import ops
from pixelcore.kv_cache import Chunk
from pixelcore.ops import HeadLayout
from pixelcore.packed import Packed

CPU = torch.device("cpu")
LENGTHS = [3, 5, 1]


def given_for(rule: str, lengths: list[int] = LENGTHS, groups: int = 1, drop: bool = False) -> dict[str, Any]:
    draw = Draw(torch.float64, CPU, torch.Generator().manual_seed(0))
    rows = sum(lengths)
    return {
        "q_NHK": draw.normal(rows, 2, 8, grad=True),
        "k_NGK": draw.normal(rows, groups, 8, grad=True),
        "v_NGK": draw.normal(rows, groups, 8, grad=True),
        "packed": draw.packed(lengths),
        "rule": rule,
        "scale": 0.3,
        "drop": draw.drop(lengths, 0.1) if drop else None,
    }


def results(make, given: dict[str, Any], forward_only: bool = False) -> list[Tensor]:
    contestant = Contestant("", "", make, Arena(given, (), torch.float64), forward_only=forward_only)
    contestant.prepare()
    return contestant.results()


def agrees(make, given: dict[str, Any], forward_only: bool = False) -> bool:
    found = results(lambda: make(given), given, forward_only)
    wanted = results(lambda: lambda: ops.softmax_attention(**given)[0], given, forward_only)
    return max(distances(found, wanted)) < 1e-10


@pytest.mark.parametrize("rule", ["full", "causal"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lengths", [LENGTHS, [4, 4]], ids=str)
def test_a_padded_batch_gives_the_results_and_gradients_of_the_packed_rows(rule: str, groups: int, lengths: list[int]):
    given = given_for(rule, lengths, groups)
    for backend in (SDPBackend.MATH, None):
        assert agrees(attention_peers.padded(backend), given)
    assert agrees(attention_peers.library, given)


def test_a_backend_without_grouped_queries_gets_repeated_keys(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, enable_gqa: bool) -> Tensor:
        asked.append((k.shape[1], enable_gqa))
        return q

    monkeypatch.setattr(attention_peers.F, "scaled_dot_product_attention", sdpa)
    q, k = torch.zeros(1, 6, 2, 8), torch.zeros(1, 2, 2, 8)
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        attention_peers.dense(backend, 3)(q, k, k, None)
    assert asked == [(2, True), (6, False)]


def packed_by_formula(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> Tensor:
    packed = Packed.from_lengths(offsets.diff().tolist())
    return ops.softmax_attention(q, k, v, packed, "causal" if causal else "full", scale)[0]


def of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    return packed_by_formula(q, k, v, cu_seq_q, is_causal, q.shape[-1] ** -0.5)


def of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=1.0, window_size=(-1, -1)):
    assert window_size in ((-1, 0), (-1, -1))
    return packed_by_formula(q, k, v, cu_seq_q, window_size == (-1, 0), scale)


def of_2_13(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=1.0, window_size=(-1, -1), enable_gqa=False):
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return packed_by_formula(q, k, v, cu_seq_q, window_size == (-1, 0), scale)


@pytest.mark.parametrize("varlen", [of_2_10, of_2_11, of_2_13])
@pytest.mark.parametrize("rule", ["full", "causal"])
def test_flash_attention_2_is_asked_in_the_words_of_each_version(varlen, rule: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    given = given_for(rule, groups=1) | ({"scale": 8**-0.5} if varlen is of_2_10 else {})
    assert agrees(attention_peers.flash_2, given)
    if varlen is of_2_10:
        with pytest.raises(RuntimeError, match="no scale in this version"):
            attention_peers.flash_2(given | {"scale": 0.3})


def test_the_installed_library_takes_our_words_and_has_a_gradient():
    """On meta tensors, which have shapes and no numbers."""
    given = {
        name: x.detach().to("meta", torch.bfloat16).requires_grad_() if isinstance(x, Tensor) else x
        for name, x in given_for("causal", groups=1).items()
    }
    given["packed"] = given["packed"].to("meta")
    leaves = [given[name] for name in ("q_NHK", "k_NGK", "v_NGK")]
    for drop in (None, SimpleNamespace(p=0.1)):
        out = attention_peers.flash_2(given | {"drop": drop})()
        gradients = torch.autograd.grad(out, leaves, torch.empty_like(out))
        assert [x.shape for x in gradients] == [x.shape for x in leaves]


def test_flash_attention_4_gets_what_its_version_knows(monkeypatch: pytest.MonkeyPatch):
    def early(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal):
        return packed_by_formula(q, k, v, cu_seqlens_q, causal, softmax_scale), None

    monkeypatch.setattr(
        attention_peers.importlib, "import_module", lambda name: SimpleNamespace(flash_attn_varlen_func=early)
    )
    assert agrees(attention_peers.flash_4, given_for("causal"))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", ["full", "causal", "real_fake"])
def test_flex_attention_sees_what_the_rule_shows(rule: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    given: dict[str, Any] = given_for(rule, groups=2)
    given |= {name: x.detach().float() for name, x in given.items() if isinstance(x, Tensor)}
    packed = Packed.from_lengths(LENGTHS, visible=[2, 5, 1])
    if rule == "real_fake":
        object.__setattr__(packed, "reach", torch.tensor([0, 1, 0, 0, 1, 2, 3, 4, 0], dtype=torch.int32))
    given["packed"] = packed
    found = attention_peers.flex(given)()
    assert torch.allclose(found, ops.softmax_attention(**given)[0], atol=1e-5)


def test_what_a_library_cannot_do_is_said_in_its_name():
    for peer in (attention_peers.flash_2, attention_peers.padded(None), attention_peers.cudnn):
        with pytest.raises(RuntimeError, match="it has no rule 'real_fake'"):
            peer(given_for("real_fake"))
        with pytest.raises(RuntimeError, match="rows that look and are not looked at"):
            peer(given_for("full") | {"packed": Packed.from_lengths(LENGTHS, visible=[2, 5, 1])})
    for peer in (attention_peers.flex, attention_peers.flash_4):
        with pytest.raises(RuntimeError, match="has no dropout"):
            peer(given_for("full", drop=True))


def test_packed_cudnn_has_a_backward_pass_where_it_does_not_overrun():
    assert [attention_peers.packed_cudnn_has_backward(x) for x in ("2.11.0+cu130", "2.13.0", "2.14.0")] == [0, 0, 1]


def test_rotation_and_attention_together_are_what_the_reference_computes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(SDPBackend, "CUDNN_ATTENTION", SDPBackend.MATH)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_2_13)
    draw = Draw(torch.float64, CPU, torch.Generator().manual_seed(0))
    packed = draw.packed([4, 4])
    given: dict[str, Any] = {
        "qkv_NO": draw.normal(8, 32, grad=True),
        "positions_N": packed.positions,
        "table": ops.rope_table(8, 10_000.0, 4),
        "layout": HeadLayout(2, 1, 8),
        "packed": packed,
        "rule": "causal",
        "scale": 0.3,
    }

    def formula() -> Tensor:
        turned = ops.split_rope(given["qkv_NO"], given["positions_N"], given["table"], given["layout"])
        return ops.softmax_attention(*turned, packed, "causal", 0.3)[0]

    wanted = results(lambda: formula, given)
    makes = (
        attention_peers.rope_cudnn(ops.split_rope),
        attention_peers.rope_compiled,
        attention_peers.rope_flash_2(ops.split_rope),
    )
    for make in makes:
        assert max(distances(results(lambda make=make: make(given), given), wanted)) < 1e-6
    with pytest.raises(RuntimeError, match="these documents differ in length"):
        makes[0](given | {"packed": draw.packed([3, 5])})


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("held", "new"), [((2, 0), (1, 1)), ((1,), (3,))])
def test_a_step_over_a_static_cache_is_what_the_reference_decodes(held, new, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    draw = Draw(torch.float32, CPU, torch.Generator().manual_seed(0))
    rows = sum(new)
    given: dict[str, Any] = {
        "q_NHK": draw.normal(rows, 4, 8),
        "k_NGK": draw.normal(rows, 2, 8),
        "v_NGK": draw.normal(rows, 2, 8),
        "keys_BGCK": draw.normal(len(new), 2, 5, 8),
        "values_BGCK": draw.normal(len(new), 2, 5, 8),
        "chunk": Chunk.of(held, new, CPU),
        "scale": 0.3,
    }
    wanted = DecodeAttention.reference(**given | {name: given[name].clone() for name in ("keys_BGCK", "values_BGCK")})
    for peer in (lambda given: lambda: decode_peers.static_cache(**given), decode_peers.flex):
        own = given | {name: given[name].clone() for name in ("keys_BGCK", "values_BGCK")}
        assert torch.allclose(peer(own)(), wanted, atol=1e-5)
    with pytest.raises(RuntimeError, match="different numbers of rows"):
        decode_peers.flex(given | {"chunk": Chunk.of((0, 0), (1, 2), CPU)})
