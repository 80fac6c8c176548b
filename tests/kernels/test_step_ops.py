"""A step of generation made of the step's operations: what the models compute for one more row of each sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import step_attend_project, step_norm_glu, step_norm_logits, step_norm_qkv, step_project_add
from kernels.record import STEP_FUSED
from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.initialise import initialise
from pixelcore.kv_cache import KVCache
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.ops import HeadLayout, rope_table
from pixelcore.step_ops import STEP_REFERENCE, StepOps

# Sums in another order, through one layer: some roundings of 6e-8 of values about 1.
BUDGET = 2e-6
PROMPTS = [5, 1, 9]


def tiny_decoder() -> Decoder:
    config = DecoderConfig(
        vocab_size=40,
        context_length=32,
        num_layers=1,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
    )
    return started(Decoder(config))


def tiny_pixar() -> Pixar:
    config = PixarConfig(
        max_patches=32,
        patch_length=1,
        num_layers=1,
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=40,
        head="mixture",
        num_components=3,
    )
    return started(Pixar(config))


def started(model: Any) -> Any:
    """With weights that are far from what a new model has, norms too, so that nothing is hidden by a one or a zero."""
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def chain(model: Any, ops: StepOps, residual_BD: Tensor, cache: KVCache, head_VD: Tensor) -> Tensor:
    """All layers of a model for one row of each sequence, and the head."""
    lengths_B = torch.tensor(cache.lengths, dtype=torch.int32)
    eps, table = model.config.rms_norm_eps, model._table(residual_BD.device)
    for block, held in zip(model.layers, cache.layers, strict=True):
        attention, feed_forward = getattr(block, "attention", block), getattr(block, "feed_forward", block)
        layout: HeadLayout = attention.layout
        scale, places = layout.head_size**-0.5, (held.keys, held.values)
        q_BHK = ops.norm_qkv(
            residual_BD, block.norm1.weight, eps, attention.qkv.weight, table, lengths_B, layout, *places
        )
        residual_BD = ops.attend_project(q_BHK, *places, lengths_B, scale, attention.out.weight, residual_BD)
        inner_BF = ops.norm_glu(residual_BD, block.norm2.weight, eps, feed_forward.gate_up.weight)
        residual_BD = ops.project_add(inner_BF, feed_forward.down.weight, residual_BD)
    return ops.norm_logits(residual_BD, model.norm.weight, eps, head_VD)


@pytest.mark.parametrize("ops", [STEP_REFERENCE, STEP_FUSED], ids=["reference", "kernels"])
@torch.no_grad()
def test_steps_of_a_decoder_give_the_logits_of_its_own_forward_pass(ops: StepOps):
    model = tiny_decoder()
    whole, stepped = (model.new_cache(len(PROMPTS)) for _ in range(2))
    ids_N = torch.arange(sum(PROMPTS)) % 37
    for cache in (whole, stepped):
        model(ids_N, cache.begin(PROMPTS, "cpu"), cache=cache)
    for step in range(2):
        ids_B = torch.tensor([3, 39, 7]) - step
        wanted_BV = model(ids_B[:, None], cache=whole).logits[:, 0]
        logits_BV = chain(model, ops, model.embed(ids_B), stepped, model.head_weight)
        torch.testing.assert_close(logits_BV, wanted_BV, rtol=BUDGET, atol=BUDGET)
        stepped.lengths = [length + 1 for length in stepped.lengths]
    same_places(whole, stepped)


@pytest.mark.parametrize("ops", [STEP_REFERENCE, STEP_FUSED], ids=["reference", "kernels"])
@torch.no_grad()
def test_a_step_of_pixar_gives_what_it_says_of_the_next_patch_itself(ops: StepOps):
    model = tiny_pixar()
    assert model.score is not None
    whole, stepped = (model.new_cache(len(PROMPTS)) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    pixels = (
        torch.randint(0, 2, (sum(PROMPTS), model.config.patch_values), generator=generator, dtype=torch.uint8) * 255
    )
    for cache in (whole, stepped):
        model.read(pixels, PROMPTS, cache)
    new_BA = pixels[: len(PROMPTS)]
    wanted = model.read(new_BA, [1] * len(PROMPTS), whole)
    components = model.config.num_components
    head_VD = torch.cat((model.out_proj.flat_weight(components * new_BA.shape[1]).T, model.score.weight))
    logits_BV = chain(model, ops, model._embed(new_BA, torch.arange(len(PROMPTS))), stepped, head_VD)
    pixels_BZA = logits_BV[:, :-components].unflatten(1, (components, -1))
    torch.testing.assert_close(pixels_BZA, wanted.components, rtol=BUDGET, atol=BUDGET)
    torch.testing.assert_close(logits_BV[:, -components:], wanted.scores, rtol=BUDGET, atol=BUDGET)
    same_places(whole, stepped)


def same_places(whole: KVCache, stepped: KVCache) -> None:
    """What both hold, and that the rest is as it was."""
    for one, other in zip(whole.layers, stepped.layers, strict=True):
        torch.testing.assert_close(other.keys, one.keys, rtol=BUDGET, atol=BUDGET)
        torch.testing.assert_close(other.values, one.values, rtol=BUDGET, atol=BUDGET)


# ------------------------------------------------------------------ arguments

ROWS = torch.zeros(2, 8)
NORM, LENGTHS = torch.ones(8), torch.zeros(2, dtype=torch.int32)
CACHE = torch.zeros(2, 1, 4, 4)
LAYOUT = HeadLayout(2, 1, 4)
QKV, TABLE = torch.zeros(16, 8), rope_table(4, 100.0, 4)


def into_attention(**changes: Any) -> Tensor:
    given = {
        "residual_BD": ROWS,
        "norm_D": NORM,
        "eps": 1e-5,
        "qkv_OD": QKV,
        "table": TABLE,
        "lengths_B": LENGTHS,
        "layout": LAYOUT,
        "keys_BGCK": CACHE,
        "values_BGCK": CACHE.clone(),
    }
    return step_norm_qkv.norm_qkv(**given | changes)


def out_of_attention(**changes: Any) -> Tensor:
    given = {
        "q_BHK": torch.zeros(2, 2, 4),
        "keys_BGCK": CACHE,
        "values_BGCK": CACHE,
        "lengths_B": LENGTHS,
        "scale": 0.5,
        "out_DO": torch.zeros(8, 8),
        "residual_BD": ROWS,
    }
    return step_attend_project.fused(**given | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: step_norm_glu.fused(torch.zeros(65, 8), NORM, 1e-5, QKV), "rows of residual = 65: .* goes to 64"),
        (lambda: step_norm_glu.fused(ROWS, NORM, 1e-5, QKV[:3]), "gate_up has 3 rows: .* even number"),
        (lambda: step_norm_glu.fused(ROWS, NORM[:4], 1e-5, QKV), r"norm has the shape \[4\]: it must be \[D\], D = 8"),
        (lambda: step_norm_glu.fused(ROWS, NORM, 1e-5, QKV.half()), "gate_up is float16 and the rows are float32"),
        (lambda: step_norm_logits.fused(ROWS.double(), NORM, 1e-5, QKV), "residual is float64: it must be one of"),
        (lambda: step_project_add.fused(ROWS, QKV, ROWS), r"residual has the shape \[2, 8\]: .* D = 16"),
        (lambda: into_attention(lengths_B=LENGTHS.long()), "lengths is int64: it must be one of int32"),
        (lambda: into_attention(keys_BGCK=CACHE[:1]), r"keys has the shape \[1, 1, 4, 4\]: .* B = 2"),
        (lambda: into_attention(keys_BGCK=CACHE.mT.contiguous().mT), "keys has the strides .* written in place"),
        (lambda: into_attention(table=TABLE[:3]), "table has 3 positions: the cache has places for 4"),
        (lambda: into_attention(table=None), "table = None: rotation 'interleaved' needs"),
        (lambda: into_attention(layout=HeadLayout(2, 1, 4, "both")), "rotation = 'both': it must be"),
        (lambda: out_of_attention(keys_BGCK=CACHE.expand(2, 3, 4, 4), values_BGCK=CACHE.expand(2, 3, 4, 4)), "2 heads"),
        (lambda: out_of_attention(out_DO=torch.zeros(8, 4)), r"out has the shape \[8, 4\]: .* O = 8"),
        (lambda: out_of_attention(q_BHK=torch.zeros(2, 1, 130)), "head_size = 130: this kernel goes to 128"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
def test_a_captured_step_is_the_eager_one_and_moves_on_with_the_lengths():
    torch.manual_seed(0)
    lengths_B = torch.tensor([0, 5], dtype=torch.int32, device="cuda")
    table = rope_table(64, 10_000.0, 16).cuda()
    given = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in ((2, 256), (256,), (512, 256))]
    out_DO = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
    eager, captured = (torch.zeros(2, 2, 2, 16, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def step(cache: Tensor) -> Tensor:
        residual_BD, norm_D, qkv_OD = given
        layout = HeadLayout(4, 2, 64)
        q_BHK = STEP_FUSED.norm_qkv(residual_BD, norm_D, 1e-5, qkv_OD, table, lengths_B, layout, *cache)
        return STEP_FUSED.attend_project(q_BHK, *cache, lengths_B, 0.125, out_DO, residual_BD)

    step(captured.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(captured)
    captured.zero_()
    for _ in range(3):
        wanted = step(eager)
        graph.replay()
        assert torch.equal(out, wanted)
        assert torch.equal(captured, eager)
        lengths_B += 1
