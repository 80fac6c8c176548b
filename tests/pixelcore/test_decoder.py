"""The decoder as a whole: its size, what each token may know, and every way of running it that must not matter."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.accounting import card_number, num_parameters
from pixelcore.config import DecoderConfig, LoRAConfig, MoEConfig
from pixelcore.convert.names import unpack
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.layers import grouped_linear
from pixelcore.models.decoder import Decoder, _copies, balance_loss
from pixelcore.ops import IGNORED
from pixelcore.packed import Packed

SEED = torch.tensor([1, 5])


def make_config(**changes: Any) -> DecoderConfig:
    base: dict[str, Any] = {
        "vocab_size": 61,
        "context_length": 32,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
    }
    return DecoderConfig(**(base | changes))


EXPERTS = MoEConfig(num_experts=4, top_k=2, expert_interval=2)
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "untied": {"tie_word_embeddings": False},
    "experts": {"moe": EXPERTS},
    "experts, unaligned": {"moe": EXPERTS, "intermediate_size": 49},
    "adapters": {"lora": LoRAConfig(rank=4)},
    "adapters in experts": {"moe": EXPERTS, "lora": LoRAConfig(rank=4)},
}
DROPOUT: dict[str, Any] = {"dropout": 0.2, "attention_dropout": 0.2, "lora": LoRAConfig(rank=4, dropout=0.2)}


def make_model(**changes: Any) -> Any:  # a Decoder, whose parts the tests reach into by name
    """A model with weights large enough for its logits to differ, adapters at work, norms not at one."""
    model = Decoder(make_config(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name:
                parameter += 1
    return model


def draw_ids(*shape: int, seed: int = 0, vocab_size: int = 61) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: Decoder) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ------------------------------------------------------------------ size

SHAPES: dict[str, dict[str, Any]] = {
    "100m": {
        "context_length": 1024,
        "num_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
    },
    "1b": {
        "context_length": 4096,
        "num_layers": 24,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 5632,
    },
    "3b": {
        "context_length": 4096,
        "num_layers": 32,
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    "7b": {
        "context_length": 8192,
        "num_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 11008,
    },
}
PUBLISHED_COUNTS = [
    ("100m", 16000, {}, 87_785_472, 87_804_672),
    ("100m", 1262, {}, 76_466_688, 76_485_888),
    ("100m", 1262, {"lora": LoRAConfig()}, 76_466_688, 77_788_416),
    ("1b", 32000, {}, 1_197_998_080, 1_198_098_432),
    ("3b", 32000, {}, 3_319_529_472, 3_319_729_152),
    ("3b", 32000, {"moe": MoEConfig(num_experts=4)}, 3_319_529_472, 5_131_766_784),
    ("7b", 32000, {}, 5_801_771_008, 5_802_037_248),
    ("7b", 32000, {"moe": MoEConfig(num_experts=8)}, 5_801_771_008, 13_377_212_416),
]


def counted(config: DecoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


@pytest.mark.parametrize(("size", "vocab_size", "changes", "card", "real"), PUBLISHED_COUNTS)
def test_published_sizes(size, vocab_size, changes, card, real):
    config = make_config(vocab_size=vocab_size, **SHAPES[size], **changes)
    assert card_number(config) == card
    assert num_parameters(config) == real
    assert counted(config) == real


@pytest.mark.parametrize("variant", VARIANTS)
def test_accounting_counts_the_parameters_there_are(variant):
    config = make_config(**VARIANTS[variant])
    assert num_parameters(config) == counted(config)


# ------------------------------------------------------------------ what a token may know


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_documents_equal_separate_ones(variant):
    model, lengths = make_model(**VARIANTS[variant]), [5, 1, 12, 12, 3]
    ids, targets = draw_ids(sum(lengths)), draw_ids(sum(lengths), seed=1)
    scale = torch.tensor(1 / sum(lengths))
    with torch.no_grad():
        logits = model(ids, Packed.from_lengths(lengths)).logits
        alone = [model(part[None]).logits[0] for part in ids.split(lengths)]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-5, atol=1e-5)
    model(ids, Packed.from_lengths(lengths), targets=targets, scale=scale).cross_entropy.backward()
    packed_gradients = gradients(model)
    for part, target in zip(ids.split(lengths), targets.split(lengths), strict=True):
        model(part[None], targets=target[None], scale=scale).cross_entropy.backward()
    assert_close(packed_gradients, gradients(model))


@pytest.mark.parametrize("variant", ["dense", "experts"])
@torch.no_grad()
def test_later_tokens_never_change_earlier_logits(variant):
    model, ids = make_model(**VARIANTS[variant]), draw_ids(1, 20)
    logits = model(ids).logits
    changed = ids.clone()
    changed[0, 11:] = (ids[0, 11:] + 1) % 61
    other = model(changed).logits
    torch.testing.assert_close(other[0, :11], logits[0, :11], rtol=1e-6, atol=1e-6)
    assert (other[0, 11:] - logits[0, 11:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_every_earlier_token_matters():
    model, ids = make_model(), draw_ids(1, 8)
    logits = model(ids).logits[0, -1]
    for place in range(8):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 61
        assert (model(changed).logits[0, -1] - logits).abs().max() > 1e-3


def test_a_sequence_beyond_the_context_is_the_users_mistake():
    model = make_model()
    assert model(draw_ids(1, 32)).logits.shape == (1, 32, 61)
    with pytest.raises(UserError, match="33 tokens is longer than the model's context_length = 32"):
        model(draw_ids(1, 33))
    with pytest.raises(UserError, match="33 tokens is longer"):
        model(draw_ids(40), Packed.from_lengths([7, 33]))
    cache = model.new_cache(1)
    model(draw_ids(1, 30), cache=cache)
    with pytest.raises(UserError, match="33 tokens do not fit a context of 32"):
        model(draw_ids(1, 3), cache=cache)
    assert cache.lengths == [30]


# ------------------------------------------------------------------ the cache


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 12], [19, 1], [1, 19]])
@pytest.mark.parametrize("variant", ["dense", "experts", "adapters"])
@torch.no_grad()
def test_chunks_over_a_cache_equal_one_pass(variant, chunks):
    model, ids = make_model(**VARIANTS[variant]), draw_ids(3, 20)
    cache = model.new_cache(3)
    parts = [model(part, cache=cache).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, rtol=1e-5, atol=1e-5)
    assert cache.lengths == [20, 20, 20]


@torch.no_grad()
def test_sequences_of_different_lengths_share_a_cache():
    model, lengths = make_model(), [9, 2, 5]
    sequences = [draw_ids(n + 3, seed=n) for n in lengths]
    cache = model.new_cache(3)
    prompts = [ids[:n] for ids, n in zip(sequences, lengths, strict=True)]
    logits = [model(torch.cat(prompts), cache.begin(lengths, "cpu"), cache=cache, last_only=True).logits]
    for step in range(3):
        new = torch.stack([ids[n + step] for ids, n in zip(sequences, lengths, strict=True)])
        logits.append(model(new[:, None], cache=cache, last_only=True).logits)
    for row, (ids, n) in enumerate(zip(sequences, lengths, strict=True)):
        expected = model(ids[None]).logits[0, n - 1 :]
        torch.testing.assert_close(torch.stack(logits)[:, row], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_last_only_gives_the_last_row_of_each_sequence():
    model, ids = make_model(), draw_ids(2, 7)
    torch.testing.assert_close(model(ids, last_only=True).logits, model(ids).logits[:, -1])


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("variant", ["dense", "untied", "experts", "adapters"])
def test_one_batch_can_be_learned_by_heart(variant):
    model = Decoder(make_config(**VARIANTS[variant]))
    initialise(model, seed=0)
    ids = draw_ids(2, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        out = model(ids[:, :-1], targets=ids[:, 1:])
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(ids[:, :-1], targets=ids[:, 1:]).cross_entropy < 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_loss_is_that_of_guessing(variant):
    model = Decoder(make_config(**VARIANTS[variant]))
    initialise(model, seed=3)
    ids = draw_ids(4, 33)
    with torch.no_grad():
        out = model(ids[:, :-1], targets=ids[:, 1:])
    assert abs(out.cross_entropy - math.log(61)) < 0.15
    assert out.count == 4 * 32


def test_initial_weights_have_the_published_deviations():
    tied, untied = Decoder(make_config(hidden_size=64)), Decoder(make_config(hidden_size=64, tie_word_embeddings=False))
    for model in (tied, untied):
        initialise(model, seed=1)
    assert tied.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert untied.embed.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert untied.head_weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert tied.state_dict()["layers.0.attention.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert (tied.norm.weight == 1).all()
    again = Decoder(tied.config)
    initialise(again, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(tied.parameters(), again.parameters(), strict=True))


def test_the_head_is_the_embedding_only_when_tied():
    ids = draw_ids(1, 4)
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        assert (model.head_weight is model.embed.weight) == tied
        before = model(ids).logits.detach()
        with torch.no_grad():
            model.head_weight[60] += 1  # a token that is not in ids changes its own logit alone
        assert 60 not in ids
        changed = (model(ids).logits != before).any(0).any(0)
        assert changed.nonzero().flatten().tolist() == [60]


@pytest.mark.parametrize("variant", [DROPOUT, DROPOUT | {"moe": EXPERTS}])
def test_recomputing_gives_the_same_gradients_with_dropout_on(variant):
    model, ids = make_model(**variant), draw_ids(2, 9)
    results = []
    for model.recompute in (False, True):
        loss = model(ids[:, :-1], targets=ids[:, 1:], dropout_seed=SEED).loss
        loss.backward()
        results.append({"loss": loss.detach(), **gradients(model)})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_dropout_is_the_same_in_any_micro_batches():
    model, lengths = make_model(**(DROPOUT | {"moe": EXPERTS})), [5, 3, 8]
    starts, scale = [0, 5, 8], torch.tensor(1 / 16)
    ids, targets = draw_ids(16), draw_ids(16, seed=1)

    def run(documents: list[int]) -> Tensor:
        rows = torch.cat([torch.arange(starts[d], starts[d] + lengths[d]) for d in documents])
        packed = Packed.from_lengths([lengths[d] for d in documents], [starts[d] for d in documents])
        out = model(ids[rows], packed, targets=targets[rows], scale=scale, dropout_seed=SEED)
        out.cross_entropy.backward()
        return out.cross_entropy.detach()

    whole = run([0, 1, 2])
    whole_gradients = gradients(model)
    parts = run([2]) + run([1, 0])
    torch.testing.assert_close(whole, parts)
    assert_close(whole_gradients, gradients(model))


@torch.no_grad()
def test_dropout_needs_a_seed_and_follows_it():
    model, ids = make_model(**DROPOUT), draw_ids(2, 9)
    still = model(ids).logits
    assert torch.equal(still, make_model(**(DROPOUT | {"dropout": 0.0, "attention_dropout": 0.0}))(ids).logits)
    one, again = (model(ids, dropout_seed=SEED).logits for _ in range(2))
    assert torch.equal(one, again)
    for other in (still, model(ids, dropout_seed=SEED + 1).logits):
        assert not torch.allclose(one, other)


@pytest.mark.parametrize("variant", ["dense", "experts"])
def test_rows_that_do_not_count_change_nothing(variant):
    model, lengths = make_model(**VARIANTS[variant]), [6, 4]
    ids, targets, scale = draw_ids(10), draw_ids(10, seed=1), torch.tensor(0.1)
    out = model(ids, Packed.from_lengths(lengths), targets=targets, scale=scale)
    out.loss.backward()
    expected = {"loss": out.loss.detach(), **gradients(model)}
    filler = torch.full((7,), 3)
    padded = Packed.from_lengths([*lengths, 7])
    out = model(torch.cat((ids, filler)), padded, targets=torch.cat((targets, torch.full((7,), IGNORED))), scale=scale)
    out.loss.backward()
    assert out.count == 10
    assert_close({"loss": out.loss.detach(), **gradients(model)}, expected)


@pytest.mark.parametrize("variant", ["dense", "experts"])
@torch.no_grad()
def test_bf16_is_close_to_fp32(variant):
    model, ids = make_model(**VARIANTS[variant]), draw_ids(2, 12)
    exact = model(ids).logits
    model.compute_dtype = torch.bfloat16
    rounded = model(ids).logits
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    cache = model.new_cache(2)
    assert cache.layers[0].keys.dtype == torch.bfloat16
    last = model(ids, cache=cache, last_only=True).logits
    assert (last.float() - exact[:, -1]).norm() / exact[:, -1].norm() < 0.03


# ------------------------------------------------------------------ experts


def dense_experts(x: Tensor, published: dict[str, Tensor], layer: str, top_k: int) -> Tensor:
    """Every expert on every row, then the weighted choice: the definition, at the full price."""
    scores = x @ published[f"{layer}.router.weight"].T
    outputs = []
    for expert in range(scores.shape[1]):
        gate, up, down = (published[f"{layer}.experts.{expert}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        outputs.append((F.silu(x @ gate.T) * (x @ up.T)) @ down.T)
    weights = torch.zeros_like(scores)
    for row in range(len(x)):
        chosen = sorted(range(scores.shape[1]), key=lambda expert: -scores[row, expert].item())[:top_k]
        weights[row, chosen] = scores[row, chosen].softmax(0)
    return torch.einsum("ne,end->nd", weights, torch.stack(outputs))


@pytest.mark.parametrize("variant", ["experts", "experts, unaligned"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_experts_equal_the_dense_form(variant, top_k):
    moe = replace(EXPERTS, top_k=top_k)
    model = make_model(**(VARIANTS[variant] | {"moe": moe}))
    experts, packed = model.layers[1].feed_forward, Packed.from_lengths([15])
    upstream = torch.randn(15, 32, generator=torch.Generator().manual_seed(8))
    results = []
    for dense in (True, False):
        x = torch.randn(15, 32, generator=torch.Generator().manual_seed(7)).requires_grad_()
        if dense:
            out = dense_experts(x, unpack(dict(model.named_parameters()), model.config), "layers.1.feed_forward", top_k)
        else:
            out, _ = experts(x, packed, model.ops, None, None)
        leaves = [x, experts.router.weight, experts.gate_up.weight, experts.down.weight]
        # with one expert per row its weight is the constant 1, and the router learns from the balance alone
        grads = torch.autograd.grad(out, leaves, upstream, allow_unused=True, materialize_grads=True)
        results.append([out, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["experts", "experts, unaligned", "adapters in experts"])
def test_an_expert_without_tokens_has_a_zero_gradient(variant):
    model = make_model(**VARIANTS[variant])
    experts = model.layers[1].feed_forward
    x = torch.rand(9, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        experts.router.weight[3] = -9  # no positive row chooses it
    out, _ = experts(x, Packed.from_lengths([9]), model.ops, None, None)
    out.square().sum().backward()
    used = set((x @ experts.router.weight.T).topk(2).indices.flatten().tolist())
    assert used == {0, 1, 2}
    found = {name: p.grad for name, p in experts.named_parameters() if p.dim() == 3}
    assert len(found) == (8 if "adapters" in variant else 2)
    for name, grad in found.items():
        assert grad is not None, name
        assert grad.isfinite().all(), name
        assert not grad[3].any(), name
        assert all(grad[expert].any() for expert in used), name


@pytest.mark.parametrize("rows, columns", [(8, 12), (7, 12), (8, 5)])
@pytest.mark.parametrize("ends", [[2, 2, 5], [0, 0, 4], [0, 3, 3], [1, 2, 3]])
def test_a_grouped_product_is_one_product_for_each_expert(rows, columns, ends):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, rows, columns, generator=generator).requires_grad_()
    x = torch.randn(ends[-1], columns, generator=generator).requires_grad_()
    out = grouped_linear(x, weight, torch.tensor(ends, dtype=torch.int32))
    expert = [sum(row >= end for end in ends) for row in range(ends[-1])]
    expected = torch.stack([weight[e] @ x[row] for row, e in enumerate(expert)])
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(out, (x, weight), upstream),
        torch.autograd.grad(expected, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_balance_loss_is_one_when_balanced():
    scores = 5 * torch.eye(4)
    assert balance_loss(scores, torch.arange(4)[:, None], None).item() == pytest.approx(1)
    assert balance_loss(torch.zeros(3, 4), torch.tensor([[0, 1]] * 3), None).item() == pytest.approx(1)
    collapsed = torch.tensor([[30.0, 0, 0, 0]] * 5)
    assert balance_loss(collapsed, torch.zeros(5, 1, dtype=torch.int64), None).item() == pytest.approx(4)


def test_the_balance_loss_asks_the_rows_that_count():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    chosen = scores.topk(2).indices
    counted = torch.tensor([True, False, True, True, False, True])
    loss = balance_loss(scores, chosen, counted)
    torch.testing.assert_close(loss, balance_loss(scores[counted], chosen[counted], None))
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[~counted].any()
    assert scores.grad[counted].any()


def test_the_balance_loss_is_weighed_by_its_coefficient():
    ids = draw_ids(2, 9)
    for coefficient in (0.0, 0.5):
        model = make_model(moe=replace(EXPERTS, expert_interval=1, balance_coefficient=coefficient))
        out = model(ids[:, :-1], targets=ids[:, 1:])
        assert out.balance > 1.5  # two layers
        torch.testing.assert_close(out.loss, out.cross_entropy + coefficient * out.balance)


# ------------------------------------------------------------------ adapters


def test_the_balance_loss_of_a_micro_batch_weighs_its_share_of_the_step():
    model, ids = make_model(moe=EXPERTS), draw_ids(2, 9)
    quarter = torch.tensor(1 / (4 * ids.numel()))
    out = model(ids, targets=ids, scale=quarter)
    torch.testing.assert_close(out.loss, out.cross_entropy + EXPERTS.balance_coefficient * out.balance / 4)


def test_the_copies_of_a_token_for_its_experts_drop_differently():
    packed = Packed.from_lengths([3, 2])
    expert_NJ = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1], [1, 0]])
    order = expert_NJ.flatten().argsort(stable=True)
    copies = _copies(packed, order // 2, expert_NJ, order)
    names = set(zip(copies.documents.tolist(), copies.positions.tolist(), strict=True))
    assert len(names) == expert_NJ.numel()


@pytest.mark.parametrize("changes", [{}, {"moe": EXPERTS}])
@torch.no_grad()
def test_adapters_start_as_the_identity(changes):
    ids = draw_ids(2, 9)
    base = Decoder(make_config(**changes))
    adapted = Decoder(make_config(lora=LoRAConfig(rank=3), **changes))
    initialise(base, seed=1)
    initialise(adapted, seed=2)
    adapted.load_state_dict(adapted.state_dict() | base.state_dict())
    assert torch.equal(adapted(ids).logits, base(ids).logits)
    assert all(p.any() for name, p in adapted.named_parameters() if name.endswith(".down"))


@torch.no_grad()
def test_an_adapter_changes_the_rows_of_its_map_alone():
    model = make_model(lora=LoRAConfig(rank=2, target_modules=("k_proj",)))
    qkv, x = model.layers[0].attention.qkv, torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    change = qkv(x, model.ops) - x @ qkv.weight.T
    assert change[:, 32:48].any(1).all()
    assert change[:, :32].abs().max() < 1e-5
    assert change[:, 48:].abs().max() < 1e-5
    expected = x @ qkv.adapters["k_proj"].down.T @ qkv.adapters["k_proj"].up.T * (16 / 2)
    torch.testing.assert_close(change[:, 32:48], expected, rtol=1e-4, atol=1e-5)
