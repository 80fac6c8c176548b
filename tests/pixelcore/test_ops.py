"""Each operation against its formula, in fp64 where rounding would hide a mistake."""

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.dropout_bits import Drop, keep_features
from pixelcore.kv_cache import Chunk, LayerCache
from pixelcore.ops import (
    IGNORED,
    HeadLayout,
    adamw,
    adamw_formula,
    add_norm,
    attention,
    cross_entropy,
    decode_attention,
    dropout,
    gelu,
    glu,
    mixture_bce,
    patch_embed,
    pixel_bce,
    pixel_mse,
    rms_norm,
    rope_table,
    rotate_half,
    rotate_interleaved,
    softmax_attention,
    split_rope,
    unshuffle,
)
from pixelcore.packed import Packed


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = False) -> Any:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


# ------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rms_norm_is_its_formula(dtype, tolerance):
    x, weight = draw(5, 8, dtype=dtype), draw(8, seed=1, dtype=torch.float32)
    wide = x.double()
    expected = wide / torch.sqrt((wide**2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    for result in (rms_norm(x, weight, 1e-5), add_norm(x, None, weight, None, 1e-5)[1]):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_statistics_of_half_precision_are_taken_in_single():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # the squares are beyond fp16
    assert torch.equal(add_norm(x, None, torch.ones(64), None, 1e-5)[1], torch.ones(1, 64, dtype=torch.float16))


def test_add_norm_adds_then_normalises():
    x, delta, weight, bias = draw(5, 8), draw(5, 8, seed=1), draw(8, seed=2), draw(8, seed=3)
    residual, normed = add_norm(x, delta, weight, None, 1e-5)
    assert torch.equal(residual, x + delta)
    torch.testing.assert_close(normed, rms_norm(x + delta, weight, 1e-5))
    residual, normed = add_norm(x, delta, weight, bias, 1e-5)
    total = x + delta
    centred = total - total.mean(-1, keepdim=True)
    expected = centred / torch.sqrt(total.var(-1, keepdim=True, unbiased=False) + 1e-5) * weight + bias
    torch.testing.assert_close(normed, expected)
    assert add_norm(x, None, weight, None, 1e-5)[0] is x


def test_add_norm_drops_the_branch_and_not_the_stream():
    x, delta, weight = draw(5, 8), draw(5, 8, seed=1), torch.ones(8, dtype=torch.float64)
    drop = Drop(torch.tensor([1, 2]), Packed.from_lengths([5]), 0, 0.5)
    residual, _ = add_norm(x, delta, weight, None, 1e-5, drop)
    keep = keep_features(drop, 8)
    torch.testing.assert_close(residual, x + delta * keep * 2)
    assert 0 < keep.sum() < 40


@pytest.mark.parametrize("dropped", [False, True])
def test_a_bias_of_the_branch_is_added_before_it_is_dropped(dropped):
    x, delta, weight, bias = draw(5, 8), draw(5, 8, seed=1), draw(8, seed=2), draw(8, seed=3, grad=True)
    drop = Drop(torch.tensor([1, 2]), Packed.from_lengths([5]), 0, 0.5) if dropped else None
    ours = add_norm(x, delta, weight, None, 1e-5, drop, bias)
    expected = add_norm(x, delta + bias, weight, None, 1e-5, drop)
    assert all(map(torch.equal, ours, expected))
    (dbias,) = torch.autograd.grad(ours[0].sum(), [bias])
    kept = keep_features(drop, 8) * 2.0 if drop else torch.ones(5, 8)
    torch.testing.assert_close(dbias, kept.sum(0).double())


@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_of_add_norm(with_bias):
    x, delta = draw(3, 4, grad=True), draw(3, 4, seed=1, grad=True)
    weight, bias = draw(4, seed=2, grad=True), draw(4, seed=3, grad=True) if with_bias else None
    inputs = (x, delta, weight) + ((bias,) if bias is not None else ())
    assert torch.autograd.gradcheck(lambda x, d, w, b=None: add_norm(x, d, w, b, 1e-5), inputs)


# ------------------------------------------------------------------ positions


def test_split_rope_is_a_complex_rotation():
    layout = HeadLayout(num_heads=4, num_key_value_heads=2, head_size=6)
    positions = torch.tensor([0, 1, 2, 0, 7], dtype=torch.int32)
    qkv, table = draw(5, 8 * 6), rope_table(6, 10000.0, 16)
    q, k, v = split_rope(qkv, positions, table.double(), layout)
    heads = qkv.unflatten(-1, (8, 6))
    frequency = 10000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    turn = torch.polar(torch.ones(5, 3, dtype=torch.float64), positions[:, None] * frequency)
    pairs = torch.view_as_complex(heads.unflatten(-1, (3, 2)).contiguous())
    turned = torch.view_as_real(pairs * turn[:, None]).flatten(-2)
    torch.testing.assert_close(q, turned[:, :4], atol=1e-6, rtol=0)
    torch.testing.assert_close(k, turned[:, 4:6], atol=1e-6, rtol=0)
    assert torch.equal(v, heads[:, 6:])
    assert torch.equal(q[0], heads[0, :4])  # position 0 turns nothing


def test_scores_depend_on_the_distance_alone():
    table = rope_table(8, 500000.0, 64)
    q, k = draw(1, 1, 8, dtype=torch.float32), draw(1, 1, 8, seed=1, dtype=torch.float32)

    def score(q_position: int, k_position: int) -> Tensor:
        turned = []
        for x, position in ((q, q_position), (k, k_position)):
            cos, sin = table[[position]].unbind(-1)
            turned.append(rotate_interleaved(x, cos, sin))
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(50, 45))
    assert abs(score(9, 4) - score(9, 8)) > 1e-2


def test_without_rotation_split_rope_only_splits():
    layout = HeadLayout(num_heads=2, num_key_value_heads=1, head_size=4, rotation="none")
    qkv = draw(3, 16)
    q, k, v = split_rope(qkv, torch.arange(3), None, layout)
    assert torch.equal(torch.cat((q, k, v), dim=1).flatten(1), qkv)


def test_halves_are_the_pairs_in_another_order():
    table = rope_table(6, 10000.0, 16).double()
    positions = torch.tensor([0, 1, 2, 0, 7], dtype=torch.int32)
    apart = torch.tensor([0, 2, 4, 1, 3, 5])  # the first of each pair, then the second of each
    qkv = draw(5, 8 * 6).unflatten(-1, (8, 6))
    pairs = split_rope(qkv.flatten(1), positions, table, HeadLayout(4, 2, 6))
    halves = split_rope(qkv[..., apart].flatten(1), positions, table, HeadLayout(4, 2, 6, rotation="half"))
    for one, other in zip(pairs, halves, strict=True):
        torch.testing.assert_close(one[..., apart], other)
    cos, sin = table[positions].unbind(-1)
    torch.testing.assert_close(halves[0], rotate_half(qkv[:, :4, apart], cos, sin))


def test_rotating_halves_written_out_for_one_pair():
    cos, sin = torch.tensor([[0.6]]), torch.tensor([[0.8]])
    turned = rotate_half(torch.tensor([[[2.0, 3.0]]]), cos, sin)
    torch.testing.assert_close(turned, torch.tensor([[[2 * 0.6 - 3 * 0.8, 2 * 0.8 + 3 * 0.6]]]))


@pytest.mark.parametrize("rotation", ["interleaved", "half"])
def test_gradients_of_split_rope(rotation):
    layout, table = HeadLayout(2, 1, 4, rotation), rope_table(4, 100.0, 8).double()
    positions = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: split_rope(x, positions, table, layout), (draw(3, 16, grad=True),))


# ------------------------------------------------------------------ attention

RAGGED = [[1], [5], [1, 7, 7, 2, 1, 1, 12], [3, 3, 3]]


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("rule", ["full", "causal"])
@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_attention_is_its_formula_forward_and_backward(lengths, rule, num_key_value_heads):
    packed = Packed.from_lengths(lengths)
    num_rows = sum(lengths)
    shapes = [(num_rows, 4, 8), (num_rows, num_key_value_heads, 8), (num_rows, num_key_value_heads, 8)]
    upstream = draw(num_rows, 4, 8, seed=9)
    results = []
    for function in (attention, softmax_attention):
        inputs = [draw(*shape, seed=seed, grad=True) for seed, shape in enumerate(shapes)]
        q, k, v = inputs
        out, _ = function(q, k, v, packed, rule, 0.3)
        results.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_softmax_attention_written_out_for_one_row():
    q, k, v = draw(3, 2, 4), draw(3, 1, 4, seed=1), draw(3, 1, 4, seed=2)
    out, log_sum = softmax_attention(q, k, v, Packed.from_lengths([3]), "causal", 0.5)
    scores = [0.5 * (q[1, 1] @ k[row, 0]) for row in (0, 1)]
    weights = torch.stack(scores).softmax(0)
    torch.testing.assert_close(out[1, 1], weights[0] * v[0, 0] + weights[1] * v[1, 0])
    torch.testing.assert_close(log_sum[1, 1], torch.stack(scores).logsumexp(0))
    assert log_sum.shape == (3, 2)


def test_documents_do_not_see_each_other():
    q, k, v = draw(9, 2, 4), draw(9, 2, 4, seed=1), draw(9, 2, 4, seed=2)
    out, _ = attention(q, k, v, Packed.from_lengths([4, 5]), "full", 0.5)
    k[4:], v[4:] = 100.0, 100.0
    changed, _ = attention(q, k, v, Packed.from_lengths([4, 5]), "full", 0.5)
    assert torch.equal(out[:4], changed[:4])
    assert not torch.allclose(out[4:], changed[4:])


def test_gradients_of_attention():
    packed = Packed.from_lengths([1, 3])
    inputs = (draw(4, 2, 2, grad=True), draw(4, 1, 2, seed=1, grad=True), draw(4, 1, 2, seed=2, grad=True))
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, packed, "causal", 0.7)[0], inputs)


VISIBLE = Packed.from_lengths([1, 4, 4, 4, 3], visible=[1, 2, 2, 4, 1])


@pytest.mark.parametrize("rule", ["full", "causal"])
def test_attention_of_documents_with_invisible_rows_is_its_formula(rule):
    upstream, results = draw(16, 4, 8, seed=9), []
    for function in (attention, softmax_attention):
        inputs = [draw(16, heads, 8, seed=seed, grad=True) for seed, heads in enumerate((4, 2, 2))]
        q, k, v = inputs
        out, _ = function(q, k, v, VISIBLE, rule, 0.3)
        results.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("drop", [None, Drop(torch.tensor([3, 0]), VISIBLE, 0, 0.3)], ids=["whole", "dropped"])
def test_an_invisible_row_looks_and_is_not_looked_at(drop):
    q, k, v = draw(16, 2, 4), draw(16, 2, 4, seed=1), draw(16, 2, 4, seed=2)
    out, _ = attention(q, k, v, VISIBLE, "full", 0.5, drop)
    invisible = [3, 4, 7, 8, 14, 15]
    k[invisible], v[invisible] = math.nan, math.nan
    changed, log_sum = softmax_attention(q, k, v, VISIBLE, "full", 0.5, drop)
    torch.testing.assert_close(out, changed)
    assert log_sum.isfinite().all()
    q[invisible] += 1.0
    assert not torch.allclose(attention(q, k, v, VISIBLE, "full", 0.5)[0][invisible[:-2]], changed[invisible[:-2]])


@pytest.mark.parametrize("rule", ["full", "causal"])
@pytest.mark.parametrize("p", [None, 0.3])
def test_rows_that_see_nothing_give_zeros(rule, p):
    # of three documents the first shows nothing and the second has no rows
    packed = replace(Packed.from_lengths([2, 3], visible=[2, 2]), lengths=(2, 0, 3), visible=(0, 0, 2))
    drop = None if p is None else Drop(torch.tensor([3, 0]), packed, 0, p)
    inputs = [draw(5, heads, 4, seed=seed, grad=True) for seed, heads in enumerate((4, 2, 2))]
    q, k, v = inputs
    out, log_sum = softmax_attention(q, k, v, packed, rule, 0.5, drop)
    assert (out[:2] == 0).all() and (log_sum[:2] == -math.inf).all()
    gradients = torch.autograd.grad((out, log_sum), inputs, (torch.ones_like(out), torch.ones_like(log_sum)))
    assert all((x[:2] == 0).all() and x[2:].isfinite().all() for x in gradients)


def test_attention_keeps_its_mean_when_weights_are_dropped():
    packed = Packed.from_lengths([200])
    q, k, v = draw(200, 16, 4), draw(200, 16, 4, seed=1), draw(200, 16, 4, seed=2)
    whole, _ = softmax_attention(q, k, torch.ones_like(v), packed, "full", 0.1)
    dropped, _ = softmax_attention(
        q, k, torch.ones_like(v), packed, "full", 0.1, Drop(torch.tensor([3, 0]), packed, 0, 0.1)
    )
    assert abs((dropped - whole).mean()) < 0.002  # of 640,000 weights of deviation 0.34


# documents of 3 real rows and 2 fakes, twice; of 1 and 1; without fakes; of more fakes than real rows, two of one reach
FAKES = replace(
    Packed.from_lengths([5, 5, 2, 4, 5], visible=[3, 3, 1, 4, 2]),
    reach=torch.tensor([0, 1, 2, 0, 2, 0, 1, 2, 1, 1, 0, 0, 0, 1, 2, 3, 0, 1, 1, 0, 1], dtype=torch.int32),
)


@pytest.mark.parametrize("num_key_value_heads", [2, 4])
def test_attention_of_fakes_is_its_formula(num_key_value_heads):
    upstream, results = draw(21, 4, 8, seed=9), []
    for function in (attention, softmax_attention):
        inputs = [
            draw(21, heads, 8, seed=seed, grad=True) for seed, heads in enumerate((4, *[num_key_value_heads] * 2))
        ]
        q, k, v = inputs
        out, _ = function(q, k, v, FAKES, "real_fake", 0.3)
        results.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_of_a_fake_written_out():
    q, k, v = draw(21, 2, 4), draw(21, 2, 4, seed=1), draw(21, 2, 4, seed=2)
    out, log_sum = softmax_attention(q, k, v, FAKES, "real_fake", 0.5)
    scores = torch.stack([0.5 * (q[8, 1] @ k[row, 1]) for row in (5, 6, 8)])  # it reaches to row 1 of rows 5 to 9
    torch.testing.assert_close(out[8, 1], scores.softmax(0) @ v[[5, 6, 8], 1])
    torch.testing.assert_close(log_sum[8, 1], scores.logsumexp(0))


def test_nobody_sees_a_fake_or_what_stands_beyond_its_reach():
    found = []
    for row in range(21):
        q, k, v = draw(21, 2, 4), draw(21, 2, 4, seed=1), draw(21, 2, 4, seed=2)
        out, _ = attention(q, k, v, FAKES, "real_fake", 0.5)
        k[row] += 3
        v[row] *= 1e6
        changed, _ = attention(q, k, v, FAKES, "real_fake", 0.5)
        found.append((changed != out).flatten(1).any(1).nonzero().flatten().tolist())
    assert found[:5] == [[0, 1, 2, 3, 4], [1, 2, 4], [2, 4], [3], [4]]  # real 0, 1, 2 and fakes that reach to 0 and 2
    assert found[5:10] == [[5, 6, 7, 8, 9], [6, 7, 8, 9], [7], [8], [9]]
    assert found[10:12] == [[10, 11], [11]]
    assert found[12:16] == [[12, 13, 14, 15], [13, 14, 15], [14, 15], [15]]
    assert found[16:] == [[16, 17, 18, 19, 20], [17, 18, 20], [18], [19], [20]]


def test_gradients_of_attention_of_fakes():
    packed = replace(Packed.from_lengths([4], visible=[2]), reach=torch.tensor([0, 1, 0, 1]))
    inputs = (draw(4, 2, 2, grad=True), draw(4, 1, 2, seed=1, grad=True), draw(4, 1, 2, seed=2, grad=True))
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, packed, "real_fake", 0.7)[0], inputs)


def test_padding_does_not_change_the_dropped_weights_of_real_rows():
    q, k, v = draw(5, 2, 4), draw(5, 2, 4, seed=1), draw(5, 2, 4, seed=2)
    results = []
    for packed in (Packed.from_lengths([3], [7]), Packed.from_lengths([5], [7], visible=[3])):
        rows = slice(0, packed.lengths[0])
        drop = Drop(torch.tensor([3, 0]), packed, 1, 0.4)
        results.append(attention(q[rows], k[rows], v[rows], packed, "full", 0.5, drop)[0][:3])
    torch.testing.assert_close(*results)


def test_attention_dropout_keeps_the_mean():
    packed = Packed.from_lengths([6])
    q, k, v = draw(6, 2, 4), draw(6, 2, 4, seed=1), draw(6, 2, 4, seed=2)
    expected, _ = attention(q, k, v, packed, "causal", 0.5)
    results = [
        attention(q, k, v, packed, "causal", 0.5, Drop(torch.tensor([3, step]), packed, 0, 0.3))[0]
        for step in range(400)
    ]
    assert not torch.equal(results[0], results[1])
    error = torch.stack(results).mean(0) - expected
    deviation = torch.stack(results).std(0) / math.sqrt(len(results))
    assert (error.abs() < 5 * deviation + 1e-12).all()


# ------------------------------------------------------------------ feed-forward, dropout


def test_glu_is_its_formula():
    x = draw(5, 12, grad=True)
    gate, up = x[:, :6], x[:, 6:]
    torch.testing.assert_close(glu(x, "silu"), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(lambda x: glu(x, "silu"), (x,))


def test_gelu_is_its_formula():
    x, bias = draw(5, 6, grad=True), draw(6, seed=1, grad=True)
    z = x + bias
    torch.testing.assert_close(gelu(x, bias), z * 0.5 * (1 + torch.erf(z / math.sqrt(2))))
    assert torch.autograd.gradcheck(gelu, (x, bias))
    assert gelu(x.bfloat16(), bias.float()).dtype == torch.bfloat16


def test_dropout_scales_what_it_keeps():
    drop = Drop(torch.tensor([5, 0]), Packed.from_lengths([3, 4]), 2, 0.25)
    x = draw(7, 10, grad=True)
    out, keep = dropout(x, drop), keep_features(drop, 10)
    torch.testing.assert_close(out, x * keep / 0.75)
    out.sum().backward()
    torch.testing.assert_close(x.grad, keep / 0.75, check_dtype=False)


# ------------------------------------------------------------------ pixels

ROWS, PLACES = torch.tensor([-1, 0, 3, -1, 1]), torch.tensor([0, 1, 4, 0, 2])


def embedding(dtype: torch.dtype = torch.float64, grad: bool = False) -> list[Tensor]:
    """Weight, bias, CLS and table of positions, for patches of 6 values."""
    return [draw(*shape, seed=seed, dtype=dtype, grad=grad) for seed, shape in enumerate([(4, 6), (4,), (4,), (5, 4)])]


def test_patch_embed_is_its_formula():
    pixels, (weight, bias, cls, table) = draw(4, 6, seed=7), embedding()
    out = patch_embed(pixels, ROWS, weight, bias, cls, table, PLACES)
    for row, (patch, place) in enumerate(zip(ROWS.tolist(), PLACES.tolist())):
        expected = (cls if patch < 0 else weight @ pixels[patch] + bias) + table[place]
        torch.testing.assert_close(out[row], expected)


def test_gradients_of_patch_embed():
    pixels = draw(4, 6, seed=7, grad=True)
    weight, bias, cls, table = embedding(grad=True)
    assert torch.autograd.gradcheck(
        lambda p, w, b, c, t: patch_embed(p, ROWS, w, b, c, t, PLACES), (pixels, weight, bias, cls, table)
    )


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_bytes_are_pixels_from_0_to_1(dtype, tolerance):
    stored = torch.randint(256, (4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    weight, bias, cls, table = embedding()
    expected = patch_embed(stored.double() / 255, ROWS, weight, bias, cls, table, PLACES)
    out = patch_embed(stored, ROWS, weight.to(dtype), bias, cls, table, PLACES)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    prediction, scored, scale = draw(3, 6).to(dtype), torch.tensor([2, 0, 3]), torch.tensor(0.25)
    for normalise in (True, False):
        expected, _ = pixel_mse(prediction.double(), stored.double() / 255, scored, normalise, scale)
        total, _ = pixel_mse(prediction, stored, scored, normalise, scale)
        assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)


def test_signed_pixels_go_from_minus_1_to_1_and_what_is_missing_is_not_added():
    stored = torch.randint(256, (4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    weight, _, cls, _ = embedding()
    signed = stored.double() / 255 * 2 - 1
    expected = torch.stack([cls if patch < 0 else weight @ signed[patch] for patch in ROWS.tolist()])
    for pixels in (stored, stored.double() / 255):
        out = patch_embed(pixels, ROWS, weight, None, cls, None, None, signed=True)
        torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        patch_embed(stored, ROWS[1:3], weight, None, None, None, None, signed=True), signed[ROWS[1:3]] @ weight.T
    )


def test_signed_pixels_pass_their_gradient_on():
    pixels = draw(4, 6, seed=7, grad=True)
    weight, _, cls, _ = embedding(grad=True)
    assert torch.autograd.gradcheck(
        lambda p, w, c: patch_embed(p, ROWS, w, None, c, None, None, signed=True), (pixels, weight, cls)
    )


@pytest.mark.parametrize("signed", [False, True])
def test_eight_bits_a_byte_are_black_and_white_bytes(signed):
    paper = torch.rand(4, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = torch.from_numpy(numpy.packbits(paper.numpy(), axis=1))
    weight, bias = draw(4, 24), draw(4, seed=1)
    of_bits, of_bytes = (
        patch_embed(pixels, ROWS[1:3], weight, bias, None, None, None, signed=signed)
        for pixels in (packed, paper.to(torch.uint8) * 255)
    )
    assert torch.equal(of_bits, of_bytes)


def test_a_grey_patch_is_its_channels_under_summed_weights():
    grey = draw(4, 2, seed=7)
    weight, bias, cls, table = embedding()
    copied = grey.repeat_interleave(3, dim=1)  # the channel is the fastest of row, column, channel
    one = patch_embed(copied, ROWS, weight, bias, cls, table, PLACES)
    other = patch_embed(grey, ROWS, weight.unflatten(1, (2, 3)).sum(2), bias, cls, table, PLACES)
    torch.testing.assert_close(one, other)


def test_unshuffle_is_its_formula():
    kept, token, table = draw(3, 4), draw(4, seed=1), draw(5, 4, seed=2)
    restore, places = torch.tensor([0, -1, 1, 2, -1]), torch.tensor([0, 1, 2, 0, 1])
    out = unshuffle(kept, token, restore, table, places)
    assert torch.equal(out, torch.stack([kept[0], token, kept[1], kept[2], token]) + table[places])
    inputs = [x.clone().requires_grad_() for x in (kept, token)]
    assert torch.autograd.gradcheck(lambda k, t: unshuffle(k, t, restore, table, places), inputs)


@pytest.mark.parametrize("normalise", [True, False])
def test_pixel_mse_is_its_formula(normalise):
    prediction, pixels, scored = draw(3, 6, grad=True), draw(5, 6, seed=1).sigmoid(), torch.tensor([4, 0, 2])
    total, count = pixel_mse(prediction, pixels, scored, normalise, torch.tensor(0.25))
    expected = 0.0
    for row, patch in enumerate(scored.tolist()):
        target = pixels[patch]
        if normalise:
            mean = target.sum() / 6
            target = (target - mean) / ((target - mean).square().sum() / 5 + 1e-6).sqrt()
        expected = expected + 0.25 * (prediction[row] - target).square().sum() / 6
    torch.testing.assert_close(total, expected)
    assert count == 3 and count.dtype == torch.int64
    assert torch.autograd.gradcheck(
        lambda x: pixel_mse(x, pixels, scored, normalise, torch.tensor(0.25))[0], prediction
    )


@pytest.mark.parametrize("normalise", [True, False])
def test_a_grey_target_stands_for_each_channel(normalise):
    prediction, grey, scored = draw(3, 6), draw(5, 2, seed=1), torch.tensor([4, 0, 2])
    one, _ = pixel_mse(prediction, grey, scored, normalise, torch.tensor(1.0))
    other, _ = pixel_mse(prediction, grey.repeat_interleave(3, dim=1), scored, normalise, torch.tensor(1.0))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_where_no_patch_is_scored_the_loss_is_zero():
    prediction, pixels = draw(0, 6, grad=True), draw(5, 6, seed=1)
    total, count = pixel_mse(prediction, pixels, torch.zeros(0, dtype=torch.int64), True, torch.tensor(0.5))
    total.backward()
    assert (total.item(), count.item(), prediction.grad.shape) == (0, 0, (0, 6))


def test_a_blank_patch_has_a_finite_target():
    blank, prediction = torch.full((1, 6), 255, dtype=torch.uint8), draw(1, 6, dtype=torch.float32)
    total, _ = pixel_mse(prediction, blank, torch.tensor([0]), True, torch.tensor(1.0))
    torch.testing.assert_close(total, prediction.square().mean())


# ------------------------------------------------------------------ the likelihood of patches

BITS = torch.randint(2, (5, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8) * 255
TARGETS = torch.tensor([4, 0, 0, 2])


def chance_of(target: Tensor, logits: Tensor) -> Tensor:
    """The probability of a patch of bits, pixel by pixel."""
    paper = 1 / (1 + torch.exp(-logits))
    return torch.where(target > 0, paper, 1 - paper).prod(-1)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_pixel_bce_is_the_likelihood_of_independent_pixels(dtype, tolerance):
    logits = draw(4, 6, dtype=dtype)
    expected = -chance_of(BITS[TARGETS], logits.double()).log() / 6
    total, count = pixel_bce(logits, BITS, TARGETS, torch.tensor(0.25))
    assert count == 4 and total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(total.double(), expected.mean(), rtol=tolerance, atol=0)
    torch.testing.assert_close(pixel_bce(logits, BITS / 255, TARGETS, torch.tensor(0.25))[0], total)
    weights = torch.tensor([0.1, 0.2, 0.0, 0.7])
    one_each, _ = pixel_bce(logits, BITS, TARGETS, weights)
    torch.testing.assert_close(one_each.double(), (expected * weights).sum(), rtol=tolerance, atol=0)


def test_the_likelihood_reads_packed_bits():
    patches = torch.randint(2, (5, 24), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    packed = torch.from_numpy(numpy.packbits(patches.numpy(), axis=1))
    logits, scores, scale = draw(4, 3, 24), draw(4, 3, seed=1), torch.tensor(0.25)
    assert packed.shape == (5, 3)
    assert pixel_bce(logits[:, 0], packed, TARGETS, scale) == pixel_bce(logits[:, 0], patches * 255, TARGETS, scale)
    whole = mixture_bce(logits, scores, patches * 255, TARGETS, scale)
    assert mixture_bce(logits, scores, packed, TARGETS, scale) == whole


def test_pixel_bce_of_certain_pixels_stays_finite():
    certain = torch.where(BITS[TARGETS] > 0, 200.0, -200.0)
    assert pixel_bce(certain, BITS, TARGETS, torch.tensor(1.0))[0] == 0
    assert pixel_bce(-certain, BITS, TARGETS, torch.tensor(1.0))[0] == 800


def test_mixture_bce_is_the_sum_over_its_components():
    logits, scores = draw(4, 3, 6), draw(4, 3, seed=1)
    chance = torch.stack([chance_of(BITS[TARGETS], logits[:, z]) for z in range(3)], dim=1)
    expected = -(scores.softmax(1) * chance).sum(1).log() / 6
    total, count = mixture_bce(logits, scores, BITS, TARGETS, torch.tensor(0.5))
    assert count == 4
    torch.testing.assert_close(total, 0.5 * expected.sum())


def test_the_patches_of_a_mixture_have_a_total_chance_of_one():
    patches = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    logits, scores = draw(1, 3, 4).expand(16, -1, -1), draw(1, 3, seed=1).expand(16, -1)
    chances = [
        torch.exp(-4 * mixture_bce(logits[[row]], scores[[row]], patches, torch.tensor([row]), torch.tensor(1.0))[0])
        for row in range(16)
    ]
    torch.testing.assert_close(torch.stack(chances).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_mixture_of_one_component_is_independent_pixels():
    logits = draw(4, 6)
    one, _ = pixel_bce(logits, BITS, TARGETS, torch.tensor(0.25))
    for copies in (1, 3):
        several = logits[:, None].expand(-1, copies, -1)
        mixed, _ = mixture_bce(several, draw(4, copies, seed=2), BITS, TARGETS, torch.tensor(0.25))
        torch.testing.assert_close(mixed, one)


def test_where_nothing_follows_the_likelihood_is_certain():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert pixel_bce(draw(0, 6), BITS, nothing, torch.tensor(1.0)) == (0, 0)
    assert mixture_bce(draw(0, 2, 6), draw(0, 2), BITS, nothing, torch.tensor(1.0)) == (0, 0)


def test_gradients_of_the_likelihoods():
    scale = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pixel_bce(x, BITS, TARGETS, scale)[0], (draw(4, 6, grad=True),))
    inputs = (draw(4, 3, 6, grad=True), draw(4, 3, seed=1, grad=True))
    assert torch.autograd.gradcheck(lambda x, s: mixture_bce(x, s, BITS, TARGETS, scale)[0], inputs)


# ------------------------------------------------------------------ cross entropy


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_cross_entropy_counts_and_scales(dtype, tolerance):
    logits = draw(6, 11, dtype=dtype, grad=True)
    targets = torch.tensor([3, IGNORED, 0, 10, IGNORED, 3])
    total, count = cross_entropy(logits, targets, torch.tensor(0.25))
    counted = targets != IGNORED
    log_p = logits.detach().double().log_softmax(-1)
    expected = -sum(log_p[row, targets[row]] for row in range(6) if counted[row]) * 0.25
    torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert count == 4
    total.backward()
    probability = log_p.exp()
    one_hot = F.one_hot(targets.clamp(min=0), 11)
    gradient = (probability - one_hot) * counted[:, None] * 0.25
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=tolerance, atol=tolerance)


def test_the_z_loss_is_the_square_of_the_log_sum_exp_of_counted_rows():
    logits = draw(6, 11, dtype=torch.float64, grad=True)
    targets, scale = torch.tensor([3, IGNORED, 0, 10, IGNORED, 3]), torch.tensor(0.25)
    plain, _ = cross_entropy(logits, targets, scale)
    total, count = cross_entropy(logits, targets, scale, z_loss=0.1)
    expected = 0.1 * 0.25 * sum(logits[row].exp().sum().log() ** 2 for row in (0, 2, 3, 5))
    assert count == 4
    torch.testing.assert_close(total - plain, expected)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, scale, 0.1)[0], (logits,))


def test_cross_entropy_of_half_precision_stays_finite():
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    total, _ = cross_entropy(logits, torch.tensor([1]), torch.tensor(1.0))
    assert total == 120000  # -60000 and 60000 are fp16 numbers; their difference is not


def test_cross_entropy_without_targets_is_zero():
    logits = draw(2, 3, grad=True)
    total, count = cross_entropy(logits, torch.full((2,), IGNORED), torch.tensor(1.0))
    total.backward()
    assert (total.item(), count.item(), logits.grad.abs().sum().item()) == (0, 0, 0)


def test_sums_of_micro_batches_add_up_to_the_mean():
    logits, targets = draw(8, 5), torch.tensor([0, 1, IGNORED, 3, 4, IGNORED, IGNORED, 2])
    scale = torch.tensor(1 / 5)
    parts = [cross_entropy(logits[rows], targets[rows], scale)[0] for rows in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(parts), F.cross_entropy(logits, targets))


# ------------------------------------------------------------------ decoding


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 5], [1, 6, 2]])
@pytest.mark.parametrize("num_key_value_heads", [1, 4])
def test_chunks_over_a_cache_are_one_pass(chunks, num_key_value_heads):
    q, k, v = draw(9, 4, 8), draw(9, num_key_value_heads, 8, seed=1), draw(9, num_key_value_heads, 8, seed=2)
    expected, _ = softmax_attention(q, k, v, Packed.from_lengths([9]), "causal", 0.3)
    memory = torch.full((2, 1, num_key_value_heads, 12, 8), math.nan, dtype=torch.float64)
    cache, outputs, first = LayerCache(memory[0], memory[1]), [], 0
    for chunk in chunks:
        rows = slice(first, first + chunk)
        cache.chunk = Chunk.of([first], [chunk], "cpu")
        outputs.append(decode_attention(q[rows], k[rows], v[rows], cache, 0.3))
        first += chunk
    torch.testing.assert_close(torch.cat(outputs), expected)


def test_a_ragged_batch_over_a_cache():
    total, chunks = [7, 3, 5], [[4, 1, 2], [1, 1, 1], [2, 1, 2]]
    documents = [(draw(n, 4, 8, seed=n), draw(n, 2, 8, seed=n + 1), draw(n, 2, 8, seed=n + 2)) for n in total]
    expected = [softmax_attention(*qkv, Packed.from_lengths([len(qkv[0])]), "causal", 0.3)[0] for qkv in documents]
    memory = torch.full((2, 3, 2, 8, 8), 1e9, dtype=torch.float64)  # what stands behind an end is not seen
    cache, held = LayerCache(memory[0], memory[1]), [0, 0, 0]
    for chunk in chunks:
        cache.chunk = Chunk.of(held, chunk, "cpu")
        rows = [slice(h, h + n) for h, n in zip(held, chunk, strict=True)]
        inputs = [torch.cat([qkv[part][r] for qkv, r in zip(documents, rows, strict=True)]) for part in range(3)]
        out = decode_attention(*inputs, cache, 0.3).split(chunk)
        for sequence, r in enumerate(rows):
            torch.testing.assert_close(out[sequence], expected[sequence][r])
        held = [h + n for h, n in zip(held, chunk, strict=True)]
    assert held == total


# ------------------------------------------------------------------ optimizer

RECIPE: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def scalars(**values: float) -> dict[str, Tensor]:
    defaults = {"step": 1.0, "learning_rate": 1e-2, "clip": 1.0, "found_inf": 0.0}
    return {name: torch.tensor(value) for name, value in (defaults | values).items()}


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_adamw_is_its_formula(clip):
    shapes = [(7, 5), (3,), (2, 3, 4)]
    ours = [[draw(*shape, seed=seed, dtype=torch.float32) for shape in shapes] for seed in (0, 1)]
    ours += [[torch.zeros(shape) for shape in shapes], [torch.zeros(shape) for shape in shapes]]
    theirs = [[tensor.double() for tensor in tensors] for tensors in ours]
    for step in (1, 2, 3):
        gradients = [draw(*shape, seed=10 + step, dtype=torch.float32) for shape in shapes]
        parameters, _, firsts, seconds = ours
        used = [gradient.clone() for gradient in gradients]  # the kernel may leave them multiplied by clip
        adamw(parameters, used, firsts, seconds, **scalars(step=step, clip=clip), **RECIPE)
        for parameter, gradient, first, second in zip(theirs[0], gradients, theirs[2], theirs[3], strict=True):
            adamw_formula(parameter, gradient.double() * clip, first, second, step, learning_rate=1e-2, **RECIPE)
    for one, other in zip([*ours[0], *ours[2], *ours[3]], [*theirs[0], *theirs[2], *theirs[3]], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-7)


def test_the_adamw_formula_is_pytorchs():
    parameter = draw(6, 4, grad=True)
    mine, first, second = parameter.detach().clone(), *torch.zeros(2, 6, 4, dtype=torch.float64)
    theirs = torch.optim.AdamW([parameter], lr=3e-3, fused=False, foreach=False, **RECIPE)
    for step in (1, 2, 3):
        parameter.grad = draw(6, 4, seed=step)
        theirs.step()
        adamw_formula(mine, draw(6, 4, seed=step), first, second, step, learning_rate=3e-3, **RECIPE)
    torch.testing.assert_close(mine, parameter.detach())


def test_nothing_changes_where_a_gradient_was_infinite():
    tensors = [[draw(4, 3, seed=seed, dtype=torch.float32)] for seed in range(4)]
    tensors[1][0][0, 0] = math.inf
    tensors[3][0].abs_()
    before = [tensor.clone() for (tensor,) in tensors]
    parameters, gradients, firsts, seconds = tensors
    adamw(parameters, gradients, firsts, seconds, **scalars(found_inf=1.0), **RECIPE)
    for index in (0, 2, 3):
        assert torch.equal(tensors[index][0], before[index])


def test_adamw_of_nothing():
    adamw([], [], [], [], **scalars(), **RECIPE)
