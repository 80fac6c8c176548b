import pytest
import torch

from pixelcore.config import DecoderConfig, PixarConfig
from pixelcore.errors import UserError
from pixelcore.kv_cache import Chunk, KVCache
from pixelcore.models import decoder, pixar_trunk
from pixelcore.models.pixar import Pixar
from pixelcore.ops import rope_table


def make_cache(num_sequences: int = 2, capacity: int = 6) -> KVCache:
    return KVCache(
        num_layers=2,
        num_sequences=num_sequences,
        num_key_value_heads=1,
        head_size=4,
        capacity=capacity,
        device="cpu",
        dtype=torch.float32,
    )


def test_positions_go_on_where_each_sequence_stands():
    cache = make_cache()
    assert cache.begin([3, 1], "cpu").positions.tolist() == [0, 1, 2, 0]
    cache.commit()
    packed = cache.begin([1, 2], "cpu")
    assert packed.positions.tolist() == [3, 1, 2]
    assert packed.offsets.tolist() == [0, 1, 3]
    cache.commit()
    assert cache.lengths == [4, 3]


def test_each_layer_keeps_its_rows_in_place():
    cache = make_cache()
    layer = cache.layers[1]
    for new in ([3, 1], [1, 2]):
        cache.begin(new, "cpu")
        rows = torch.arange(sum(new) * 4.0).reshape(-1, 1, 4) + 100 * cache.lengths[0]
        layer.append(rows, -rows)
        cache.commit()
    assert layer.keys[0, 0, :4, 0].tolist() == [0, 4, 8, 300]
    assert layer.values[1, 0, :3, 0].tolist() == [-12, -304, -308]
    assert not layer.keys[:, :, 4:].any()
    assert not cache.layers[0].keys.any()


def test_a_pass_that_fails_leaves_the_cache_as_it_was():
    cache = make_cache()
    cache.begin([2, 2], "cpu")
    cache.commit()
    cache.begin([1, 1], "cpu")  # and no commit
    assert cache.lengths == [2, 2]
    assert cache.begin([1, 1], "cpu").positions.tolist() == [2, 2]


def test_outgrowing_the_context_is_the_users_mistake():
    cache = make_cache()
    cache.begin([6, 1], "cpu")
    cache.commit()
    with pytest.raises(UserError, match="7 tokens do not fit a context of 6: shorten"):
        cache.begin([1, 1], "cpu")
    assert cache.lengths == [6, 1]


def test_another_number_of_sequences_is_refused():
    with pytest.raises(ValueError, match="3 sequences brought tokens; the cache holds 2"):
        make_cache().begin([1, 1, 1], "cpu")


def test_sequences_are_selected_reordered_and_doubled():
    cache = make_cache(num_sequences=3)
    rows = torch.arange(6 * 4.0).reshape(6, 1, 4)
    cache.begin([1, 2, 3], "cpu")
    for layer in cache.layers:
        layer.append(rows, -rows)
    cache.commit()
    cache.select([2, 0, 2])
    assert cache.lengths == [3, 1, 3]
    assert cache.begin([1, 1, 1], "cpu").positions.tolist() == [3, 1, 3]
    more = torch.tensor([[100.0], [200.0], [300.0]]).expand(3, 4).reshape(3, 1, 4)
    for layer in cache.layers:
        layer.append(more, -more)
    cache.commit()
    for layer in cache.layers:  # the two that were one go on apart
        assert layer.keys[:, 0, :4, 0].tolist() == [[12, 16, 20, 100], [0, 200, 0, 0], [12, 16, 20, 300]]
        assert torch.equal(layer.values, -layer.keys)
    cache.select([])
    assert cache.lengths == [] and not len(cache.layers[0].keys)


def test_lengths_are_on_the_device_once_for_all_layers():
    cache = make_cache(num_sequences=3)
    cache.begin([1, 2, 3], "cpu")
    cache.commit()
    packed = cache.begin([2, 1, 1], "cpu")
    first, second = (layer.chunk for layer in cache.layers)
    assert first is second
    assert first is not None
    assert first.held_B.tolist() == [1, 2, 3]
    assert first.starts.tolist() == [0, 2, 3, 4]
    assert first.positions.tolist() == [1, 2, 2, 3]
    assert packed.documents.tolist() == [0, 0, 2, 3]
    numbers = (first.held_B, first.starts, first.positions)
    assert {x.dtype for x in numbers} == {torch.int32}
    assert len({x.untyped_storage().data_ptr() for x in numbers}) == 1  # one copy
    assert not any(x.data_ptr() % 16 for x in numbers)


@pytest.mark.parametrize("batch", [1, 3, 4, 5])
def test_a_chunk_of_any_batch(batch: int):
    new = [index % 3 + 1 for index in range(batch)]
    chunk = Chunk.of([5] * batch, new, "cpu")
    assert chunk.held_B.tolist() == [5] * batch
    assert chunk.starts.diff().tolist() == new
    assert chunk.positions.tolist() == [5 + place for more in new for place in range(more)]


@pytest.mark.parametrize("new", [[0, 1], [1, -1]])
def test_a_sequence_that_brings_nothing_is_refused(new: list[int]):
    with pytest.raises(ValueError, match="must be positive"):
        make_cache().begin(new, "cpu")


def test_memory_is_taken_once_and_copied_when_a_sequence_leaves():
    cache = make_cache()
    places = [layer.keys.data_ptr() for layer in cache.layers]
    for _ in range(3):
        cache.begin([1, 1], "cpu")
        for layer in cache.layers:
            layer.append(torch.ones(2, 1, 4), torch.ones(2, 1, 4))
        cache.commit()
        cache.select([0, 1])
    assert [layer.keys.data_ptr() for layer in cache.layers] == places
    cache.select([1])
    assert cache.lengths == [3]
    assert all(len(layer.keys) == 1 and layer.keys[0, 0, :3].all() for layer in cache.layers)


@pytest.mark.parametrize("family", ["decoder", "pixar"])
def test_angles_are_computed_once(family: str, monkeypatch: pytest.MonkeyPatch):
    """A table for each token would cost more than the token."""
    models, calls = {"decoder": decoder, "pixar": pixar_trunk}[family], []
    monkeypatch.setattr(models, "rope_table", lambda *given: calls.append(given) or rope_table(*given))
    if family == "decoder":
        model = decoder.Decoder(
            DecoderConfig(
                vocab_size=8,
                context_length=8,
                num_layers=2,
                hidden_size=8,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=8,
            )
        )
    else:
        model = Pixar(
            PixarConfig(num_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=8, max_patches=8)
        )
    cache = model.new_cache(1, 6)
    for _ in range(3):
        if isinstance(model, decoder.Decoder):
            model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)
        else:
            model.read(torch.zeros(2, model.config.patch_values), [2], cache)
    assert len(calls) == 1
