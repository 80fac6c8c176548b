"""Decoding beyond what every kernel is asked: bad input, chunks of any length, what is written and what is not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.decode_attention import decode_attention
from kernels.decode_split import num_splits
from pixelcore.kv_cache import Chunk, KVCache, LayerCache

CPU = torch.device("cpu")


def given(**changed: Any) -> dict[str, Any]:
    cache = changed.pop("cache", None) or LayerCache(torch.zeros(2, 2, 8, 6), torch.zeros(2, 2, 8, 6))
    chunk = Chunk.of(changed.pop("held", (7, 2)), changed.pop("new", (1, 2)), "cpu")
    good = {"q_NHK": torch.zeros(3, 4, 6), "k_NGK": torch.zeros(3, 2, 6), "v_NGK": torch.zeros(3, 2, 6), "scale": 0.4}
    return good | {"cache": LayerCache(cache.keys, cache.values, chunk)} | changed


def caches(*shape: int, **changed: Any) -> LayerCache:
    return LayerCache(torch.zeros(*shape, **changed), torch.zeros(*shape, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"new": (2, 1)}, "sequence 0 holds 7 tokens and brings 2: the cache is full at C = 8"),
        ({"q_NHK": torch.zeros(3, 3, 6)}, "H = 3 query heads, G = 2: G must divide H"),
        ({"q_NHK": torch.zeros(3, 66, 6)}, "query heads of a key/value head = 33: this kernel goes to 32"),
        ({"q_NHK": torch.zeros(3, 4, 130)}, "head size K = 130: this kernel goes to 128"),
        ({"k_NGK": torch.zeros(3, 2, 6, dtype=torch.float16)}, "k is float16: it must be one of float32"),
        ({"v_NGK": torch.zeros(2, 2, 6)}, r"v has the shape \[2, 2, 6\]: it must be \[N, G, K\], N = 3"),
        ({"cache": caches(2, 2, 8, 6, dtype=torch.float16)}, "cache.keys is float16: it must be one of float32"),
        ({"cache": caches(2, 4, 8, 6)}, r"cache.keys has the shape .* G = 2, K = 6"),
        (
            {"cache": LayerCache(torch.zeros(2, 2, 6, 8).mT, torch.zeros(2, 2, 6, 8).mT)},
            "cache.keys has the strides .* in one piece",
        ),
        ({"new": (1, 1)}, "q has 3 rows: the chunk announced 2"),
        ({"q_NHK": torch.zeros(3, 4, 6, requires_grad=True)}, "requires a gradient: .* torch.no_grad"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(changed: dict[str, Any], message: str):
    arguments = given(**changed)
    for name in ("k_NGK", "v_NGK"):
        arguments[name].fill_(5)
    with pytest.raises(ValueError, match=message):
        decode_attention(**arguments)
    assert not arguments["cache"].keys.any()
    assert not arguments["cache"].values.any()


def test_without_a_pass_there_is_nothing_to_attend_to():
    arguments = given()
    arguments["cache"].chunk = None
    with pytest.raises(ValueError, match=r"cache.chunk = None: `KVCache.begin` announces"):
        decode_attention(**arguments)


def test_chunks_of_any_length_are_the_whole_and_what_stands_behind_the_end_stays():
    lengths, chunks = [5, 23, 9], [(4, 1, 2), (1, 20, 1), (0, 1, 5), (0, 1, 1)]
    torch.manual_seed(0)
    documents = [[torch.randn(n, heads, 8) for heads in (6, 2, 2)] for n in lengths]
    cache = KVCache(
        num_layers=1,
        num_sequences=3,
        num_key_value_heads=2,
        head_size=8,
        capacity=24,
        device="cpu",
        dtype=torch.float32,
    )
    layer, alive = cache.layers[0], [0, 1, 2]
    layer.keys.fill_(math.nan)
    layer.values.fill_(math.nan)
    outputs: list[list[Tensor]] = [[], [], []]
    for chunk in chunks:
        if 0 in [chunk[sequence] for sequence in alive]:
            alive = [1, 2]  # the first one has ended
            cache.select(alive)
        new = [chunk[sequence] for sequence in alive]
        held = list(cache.lengths)
        cache.begin(new, "cpu")
        parts = zip(alive, held, new, strict=True)
        rows = [[x[h : h + n] for x in documents[sequence]] for sequence, h, n in parts]
        out = decode_attention(*(torch.cat(x) for x in zip(*rows, strict=True)), layer, 0.3)
        cache.commit()
        for sequence, piece in zip(alive, out.split(new), strict=True):
            outputs[sequence].append(piece)
    for (q, k, v), pieces in zip(documents, outputs, strict=True):
        scores = torch.einsum("tgrk,sgk->grts", q.unflatten(1, (2, 3)), k) * 0.3
        weights = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -math.inf).softmax(-1)
        expected = torch.einsum("grts,sgk->tgrk", weights, v).flatten(1, 2)
        torch.testing.assert_close(torch.cat(pieces), expected, rtol=1e-5, atol=1e-5)
    for row, sequence in enumerate(alive):
        length = lengths[sequence]
        assert torch.equal(layer.keys[row, :, :length], documents[sequence][1].transpose(0, 1))
        assert torch.equal(layer.values[row, :, :length], documents[sequence][2].transpose(0, 1))
        assert layer.keys[row, :, length:].isnan().all()
        assert layer.values[row, :, length:].isnan().all()


def test_many_heads_read_one_key():
    q, k, v = torch.randn(2, 17, 6), torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    cache = LayerCache(torch.zeros(1, 1, 2, 6), torch.zeros(1, 1, 2, 6), Chunk.of([0], [2], "cpu"))
    out = decode_attention(q, k, v, cache, 0.4)
    weights = (q[1] @ k[:, 0].T * 0.4).softmax(-1)
    torch.testing.assert_close(out[0], v[0].expand(17, 6))
    torch.testing.assert_close(out[1], weights @ v[:, 0])


def test_the_cache_is_known_to_be_written():
    arguments = given()
    cache = arguments["cache"]
    before = cache.keys._version
    decode_attention(**arguments)
    assert cache.keys._version > before
    with torch.inference_mode():
        arguments = given()
        decode_attention(**arguments)  # such tensors have no version


@pytest.mark.parametrize(
    ("programs", "capacity", "splits"),
    [(4, 1024, 16), (4, 16_384, 32), (64, 1024, 4), (256, 1024, 1), (12, 360, 4), (4, 64, 1), (1, 1, 1)],
)
def test_keys_are_shared_out_where_programs_are_few(
    programs: int, capacity: int, splits: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kernels.decode_split.num_processors", lambda device: 132)
    assert num_splits(programs, capacity, 64, CPU) == splits
