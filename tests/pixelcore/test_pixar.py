"""The language model over patches: what each patch may know, what a head can say, and every way of running it that must
not matter."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pixelcore.accounting import num_parameters
from pixelcore.accounting_pixar import flops_per_patch, pixar_training_bytes
from pixelcore.config import PixarConfig
from pixelcore.config_io import config_from_dict, config_to_dict
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.pixar import Pixar, mixture_log_odds
from pixelcore.next_patches import NextPatches, arrange_next
from pixelcore.patches import patchify, unpatchify

LENGTHS = [5, 2, 12, 12, 3]
ATTENTION = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
HEADS: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "mixture": {"head": "mixture", "num_components": 3},
    "regression": {"head": "regression"},
    "colour": {"head": "regression", "num_channels": 3},
    "published colour": {"head": "regression", "num_channels": 3, "values": "published"},
}


def make_config(**changes: Any) -> PixarConfig:
    base: dict[str, Any] = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "patch_height": 4,
        "max_patches": 16,
    }
    return PixarConfig(**(base | changes))


def make_model(**changes: Any) -> Pixar:
    """A model with weights large enough for its predictions to differ, norms not at one."""
    model = Pixar(make_config(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name:
                parameter += 1
    return model


def draw_strips(channels: int = 1, seed: int = 0, width: int = 8) -> Tensor:
    """Five strips of twelve patches, black and white."""
    bits = torch.randint(2, (5, channels, 4, width * 12), generator=torch.Generator().manual_seed(seed))
    return (bits * 255).to(torch.uint8)


def pack(strips: Tensor, start: bool = False, rows: list[int] | None = None, width: int = 8) -> NextPatches:
    """The real patches of some of the five strips."""
    rows = list(range(5)) if rows is None else rows
    pixels = patchify(strips, 4, width)
    parts = [pixels[row, : LENGTHS[row]] for row in rows]
    return arrange_next(torch.cat(parts), [LENGTHS[row] for row in rows], start)


def learn(model: Pixar, *inputs: Any, **arguments: Any) -> dict[str, Tensor]:
    out = model(*inputs, **arguments)
    assert out.loss is not None
    out.loss.backward()
    return {"loss": out.loss.detach(), **gradients(model)}


def gradients(model: Pixar) -> dict[str, Tensor]:
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


# ------------------------------------------------------------------ the record


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"head": "softmax"}, "head = 'softmax' must be one of"),
        (
            {"num_components": 8},
            "num_components = 8 with head = 'bernoulli': it must be at least 2 for \"mixture\", and 1",
        ),
        ({"head": "mixture"}, "num_components = 1 with head = 'mixture': it must be at least 2"),
        ({"values": "published"}, 'values = "published" goes with head = "regression" alone'),
        ({"values": "mixed", "head": "regression"}, "values = 'mixed' must be one of"),
        ({"num_channels": 3}, 'num_channels = 3 goes with head = "regression" alone'),
        ({"num_channels": 2}, "num_channels = 2 must be 1 or 3"),
        ({"num_attention_heads": 5}, "hidden_size = 32 must be a multiple of num_attention_heads = 5"),
        ({"hidden_size": 12}, "the head size 3 must be even"),
        ({"patch_length": 0}, "patch_length = 0 must be positive"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(changes: dict[str, Any], expected: str):
    with pytest.raises(ValueError, match=expected):
        make_config(**changes)


@pytest.mark.parametrize("head", HEADS)
def test_a_configuration_survives_its_table(head):
    config = make_config(**HEADS[head], start_vector=True)
    assert config_from_dict("pixar", config_to_dict(config)) == config


# ------------------------------------------------------------------ the beginning, and what it costs


def test_a_model_begins_as_the_original_does():
    model = Pixar(make_config(patch_height=8, hidden_size=64, start_vector=True, **HEADS["mixture"]))
    initialise(model, seed=3)
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            assert (tensor == 1).all(), name
        elif name in ("in_proj.weight", "out_proj.weight"):
            assert 0.98 * 128**-0.5 < tensor.abs().max() <= 128**-0.5, name
            assert 0.9 < tensor.std() * (3 * 128) ** 0.5 < 1.1, name
        else:
            assert 0.7 * 0.02 < tensor.std() < 1.4 * 0.02, name
    again = Pixar(model.config)
    initialise(again, seed=3)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("hidden, number", [(2048, 85_150_464), (3072, 113_462_016)])
def test_the_published_sizes(hidden, number):
    config = PixarConfig(num_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=hidden)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Pixar(config).parameters()) == number
    assert num_parameters(config) == number
    colour = replace(config, num_channels=3, head="regression")
    assert num_parameters(colour) == number + 2 * 768 * 256


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("start", [False, True])
def test_accounting_counts_the_parameters_there_are(head, start):
    config = make_config(**HEADS[head], start_vector=start)
    assert num_parameters(config) == sum(parameter.numel() for parameter in Pixar(config).parameters())


def test_estimate_of_arithmetic_is_that_of_the_products():
    model = make_model(**HEADS["mixture"])
    patches = arrange_next(patchify(draw_strips(), 4, 8).flatten(0, 1), [12] * 5, False)
    with FlopCounterMode(display=False) as counter:
        learn(model, patches)
    products = sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(name))
    # the counter knows no attention on a CPU
    attention = 3 * 2 * 2 * 2 * 32 * 11 / 2
    assert products == 55 * (flops_per_patch(model.config, 11) - attention)


@pytest.mark.parametrize("recompute", [False, True])
def test_estimate_of_memory_is_near_what_is_kept(recompute):
    model = make_model(num_layers=12)
    model.recompute = recompute
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(arrange_next(patchify(draw_strips(), 4, 8).flatten(0, 1), [12] * 5, False))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    real = sum(size for place, size in kept.items() if place not in parameters) + 4 * out.components.numel()
    estimate = pixar_training_bytes(model.config, 55, bytes_per_value=4, recompute=recompute)
    assert 0.6 < (estimate - 16 * num_parameters(model.config)) / real < 1.6


# ------------------------------------------------------------------ ways of running it


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_packed_rows_equal_the_dense_call(head, start):
    model = make_model(**HEADS[head], start_vector=start)
    strips = draw_strips(model.config.num_channels)
    counts = torch.tensor(LENGTHS) - 1 + start
    scale = torch.tensor(1 / int(counts.sum()))
    if model.config.head != "regression":
        scale = (1 / (5 * counts)).repeat_interleave(counts)
    with torch.no_grad():
        dense = model(strips, attention_mask=ATTENTION)
        packed = model(pack(strips, start))
    assert dense.logits.shape == strips.shape and dense.count == packed.count == counts.sum()
    expected = patchify(dense.logits, 4, 8)[:, :-1][ATTENTION[:, 1:]]
    shown = pack(strips, start).rows >= 0
    torch.testing.assert_close(packed.logits[shown], expected, rtol=1e-5, atol=1e-5)
    assert_close(learn(model, pack(strips, start), scale=scale), learn(model, strips, attention_mask=ATTENTION))


def test_a_step_is_the_sum_of_its_micro_batches():
    model, strips = make_model(**HEADS["mixture"]), draw_strips()
    scale = torch.tensor(1 / (sum(LENGTHS) - 5))
    whole = learn(model, pack(strips))
    losses = []
    for rows in ([3, 0], [1, 2, 4]):
        loss = model(pack(strips, rows=rows), scale=scale).loss
        assert loss is not None
        loss.backward()
        losses.append(loss.detach())
    assert_close({"loss": losses[0] + losses[1], **gradients(model)}, whole)


def test_recomputing_changes_no_gradient():
    model, patches = make_model(), pack(draw_strips())
    kept = learn(model, patches)
    model.recompute = True
    again = learn(model, patches)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@torch.no_grad()
@pytest.mark.parametrize("head", ["bernoulli", "mixture", "colour"])
def test_bf16_is_close_to_fp32(head):
    model = make_model(**HEADS[head])
    patches = pack(draw_strips(model.config.num_channels))
    exact = model(patches)
    model.compute_dtype = torch.bfloat16
    rounded = model(patches)
    assert rounded.components.dtype == torch.bfloat16 and rounded.loss is not None
    assert rounded.loss.dtype == torch.float32
    assert 1e-4 < (rounded.logits.float() - exact.logits).norm() / exact.logits.norm() < 0.03
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0)


def test_bytes_and_floats_are_the_same_pixels():
    for head in ("bernoulli", "colour"):
        model = make_model(**HEADS[head])
        strips = draw_strips(model.config.num_channels)
        assert_close(learn(model, pack(strips / 255)), learn(model, pack(strips)))


def test_grey_is_three_equal_channels():
    model, strips = make_model(**HEADS["colour"]), draw_strips()
    assert_close(learn(model, pack(strips.expand(-1, 3, -1, -1))), learn(model, pack(strips)))


@pytest.mark.parametrize("patch_length", [1, 2, 3, 5])
def test_patches_of_every_length(patch_length):
    model, strips = make_model(patch_length=patch_length), draw_strips(width=4 * patch_length)
    out = model(strips, attention_mask=ATTENTION)
    assert out.logits.shape == strips.shape
    out.logits.sum().backward()
    flat = patchify(strips, 4, 4 * patch_length)
    assert torch.equal(unpatchify(flat, 4, 4 * patch_length), strips)
    # a patch is a block of columns, its rows one after another
    assert torch.equal(flat[1, 2], strips[1, 0, :, 2 * 4 * patch_length : 3 * 4 * patch_length].flatten())


# ------------------------------------------------------------------ what a patch may know


@pytest.mark.parametrize("start", [False, True])
def test_padding_changes_nothing(start):
    model, strips = make_model(**HEADS["mixture"], start_vector=start), draw_strips()
    expected = learn(model, strips, attention_mask=ATTENTION)
    padding = ~ATTENTION.repeat_interleave(8, dim=1)[:, None, None].expand(strips.shape)
    other = torch.where(padding, draw_strips(seed=8), strips)
    assert_close(learn(model, other, attention_mask=ATTENTION), expected)
    short = [1, 4]  # strips of 2 and 3 patches
    assert_close(
        learn(model, strips[short, :, :, :24], attention_mask=ATTENTION[short, :3]),
        learn(model, other[short], attention_mask=ATTENTION[short]),
    )


@torch.no_grad()
def test_a_patch_knows_what_stands_before_it_and_nothing_else():
    model, strips = make_model(), draw_strips()
    one = patchify(model(strips).logits, 4, 8)
    changed = strips.clone()
    changed[2, :, :, 8 * 7 : 8 * 8] = 255 - changed[2, :, :, 8 * 7 : 8 * 8]
    two = patchify(model(changed).logits, 4, 8)
    differs = (one - two).abs().amax(2) > 1e-4
    assert torch.equal(differs, (torch.arange(12) >= 7) & (torch.arange(5) == 2)[:, None])


def test_the_last_patch_is_a_target_and_is_not_read():
    patches = pack(draw_strips())
    assert patches.counts == (4, 1, 11, 11, 2)
    assert patches.packed.lengths == patches.counts
    assert patches.rows.tolist()[:6] == [0, 1, 2, 3, 5, 7]
    assert patches.targets.tolist()[:6] == [1, 2, 3, 4, 6, 8]
    started = pack(draw_strips(), start=True)
    assert started.counts == tuple(LENGTHS)
    assert started.rows.tolist()[:8] == [-1, 0, 1, 2, 3, -1, 5, -1]
    assert started.targets.tolist() == list(range(sum(LENGTHS)))


def test_what_is_said_of_the_last_patch_changes_the_loss():
    model, patches = make_model(), pack(draw_strips())
    pixels = patches.pixels.clone()
    pixels[-1] = 255 - pixels[-1]
    one, two = model(patches), model(replace(patches, pixels=pixels))
    assert torch.equal(one.logits, two.logits)
    assert not torch.equal(one.loss, two.loss)


def test_strips_of_one_patch_do_not_weigh_in_the_dense_mean():
    model, strips = make_model(), draw_strips()
    attention = ATTENTION.clone()
    attention[1, 1:] = False
    rest = [0, 2, 3, 4]
    expected = learn(model, strips[rest], attention_mask=ATTENTION[rest])
    assert_close(learn(model, strips, attention_mask=attention), expected)
    nothing = model(strips[:1, :, :, :8])
    assert nothing.loss is None and nothing.count is None and nothing.logits.shape == (1, 1, 4, 8)


# ------------------------------------------------------------------ what a head can say


def memorise(model: Pixar, patches: NextPatches, steps: int) -> list[float]:
    initialise(model, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(patches).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("head", ["bernoulli", "mixture", "colour"])
def test_one_batch_can_be_learnt_by_heart(head):
    model = Pixar(make_config(**HEADS[head], start_vector=True))
    patches = arrange_next(patchify(draw_strips(model.config.num_channels)[:1], 4, 8)[0], [12], True)
    losses = memorise(model, patches, 80)
    assert losses[0] > 0.25 and losses[-1] < 0.03


def test_a_mixture_knows_that_one_of_two_comes_where_independent_pixels_do_not():
    first, one = draw_strips()[0, :, :, :8], draw_strips()[1, :, :, :8]
    strips = torch.stack([torch.cat((first, next_one), dim=2) for next_one in (one, 255 - one)])
    patches = arrange_next(patchify(strips, 4, 8).flatten(0, 1), [2, 2], False)
    bits = 32 / math.log(2)  # of a patch, from nats of a pixel
    alone = memorise(Pixar(make_config(num_layers=1)), patches, 80)[-1] * bits
    mixed = memorise(Pixar(make_config(num_layers=1, head="mixture", num_components=2)), patches, 80)[-1] * bits
    assert alone >= 32 - 1e-3  # one bit for every pixel
    assert 1 - 1e-3 <= mixed < 1.1  # one bit, which of the two


def test_the_log_odds_of_a_mixture_are_those_of_its_average():
    model, strips = make_model(**HEADS["mixture"]).double(), draw_strips()
    model.compute_dtype = torch.float64
    out = model(pack(strips))
    assert out.scores is not None and out.components.shape == (29, 3, 32)
    average = (out.scores.softmax(1)[..., None] * out.components.sigmoid()).sum(1)
    torch.testing.assert_close(out.logits.sigmoid(), average)
    same = out.components[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(mixture_log_odds(same, out.scores), same[:, 0])


def test_a_mixture_of_equals_is_the_published_head():
    alone, mixed = make_model(), make_model(**HEADS["mixture"])
    weights = dict(alone.state_dict())
    weights["out_proj.weight"] = weights["out_proj.weight"].repeat(1, 3, 1, 1)
    mixed.load_state_dict(weights | {"score.weight": mixed.state_dict()["score.weight"]})
    one, other = alone(draw_strips()), mixed(draw_strips())
    torch.testing.assert_close(other.logits, one.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.loss, one.loss)


def test_consistent_values_come_out_as_they_went_in():
    strips = torch.rand(2, 3, 4, 8 * 3, generator=torch.Generator().manual_seed(0))
    consistent, published = make_model(**HEADS["colour"]), make_model(**HEADS["published colour"])
    said = consistent(strips).logits
    assert torch.equal(said, published(strips).logits)
    followed, following = said[..., :-8], strips[..., 8:]
    torch.testing.assert_close(consistent(strips).loss, ((followed - (2 * following - 1)) / 2).square().mean())
    torch.testing.assert_close(published(strips).loss, (followed - following).square().mean())


# ------------------------------------------------------------------ writing


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [1, 9, 2]])
@pytest.mark.parametrize("start", [False, True])
def test_reading_in_pieces_is_reading_at_once(chunks, start):
    model = make_model(**HEADS["mixture"], start_vector=start)
    patches = patchify(draw_strips()[:2], 4, 8)
    cache = model.new_cache(2)
    whole = model.read(patches.flatten(0, 1), [12, 12])
    found, first = [], 0
    for length in chunks:
        piece = patches[:, first : first + length]
        found.append(model.read(piece.flatten(0, 1), [length] * 2, cache).components.unflatten(0, (2, -1)))
        first += length
    expected = whole.components.unflatten(0, (2, -1))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-5, atol=1e-5)
    assert cache.lengths == [12 + start] * 2
    dense = model(draw_strips()[:2]).components
    torch.testing.assert_close(expected[:, int(start) :], dense, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_of_different_lengths_are_continued_together():
    model = make_model(start_vector=True)
    patches = patchify(draw_strips()[:3], 4, 8)
    held, new = [4, 0, 7], [1, 3, 2]
    cache = model.new_cache(3)
    model.read(torch.cat([patches[row, : held[row]] for row in range(3)]), held, cache)
    pieces = torch.cat([patches[row, held[row] : held[row] + new[row]] for row in range(3)])
    last = model.read(pieces, new, cache, last_only=True)
    assert last.logits.shape == (3, 32)
    for row in range(3):
        alone = model.read(patches[row, : held[row] + new[row]], [held[row] + new[row]], last_only=True)
        torch.testing.assert_close(last.logits[[row]], alone.logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_start_vector_foretells_the_first_patch():
    model = make_model(start_vector=True)
    nothing = torch.zeros(0, 32, dtype=torch.uint8)
    expected = model.read(patchify(draw_strips(), 4, 8)[0, :2], [2]).logits[:1]
    for cache in (None, model.new_cache(1)):
        torch.testing.assert_close(model.read(nothing, [0], cache).logits, expected)
    with pytest.raises(UserError, match="strip 0 brings no patch, and only a start vector, at the beg"):
        make_model().read(nothing, [0])
    with pytest.raises(ValueError, match="0 patches for strips of 1"):
        model.read(nothing, [1])


# ------------------------------------------------------------------ what does not fit


@torch.no_grad()
def test_strips_longer_than_the_context_are_refused():
    for start in (False, True):
        model = make_model(max_patches=12, start_vector=start)
        strips = draw_strips()
        model(strips)
        longer = torch.cat((strips, strips[..., :8]), dim=3)
        expected = "a strip of 13 patches is longer than the model's max_patches = 12: cut it"
        with pytest.raises(UserError, match=expected):
            model(longer)
        with pytest.raises(UserError, match=expected):
            model.read(patchify(longer, 4, 8)[0], [13])
        cache = model.new_cache(1, capacity=3)
        model.read(patchify(strips, 4, 8)[0, :3], [3], cache)
        with pytest.raises(UserError, match="a strip of 4 patches is longer than the room that was made for it = 3"):
            model.read(patchify(strips, 4, 8)[0, 3:4], [1], cache)
        assert cache.lengths == [3 + start]


def test_strips_and_masks_that_do_not_fit_are_named():
    model, strips = make_model(), draw_strips()
    for image, mask, expected in (
        (strips[0], None, r"the image \[1, 4, 96\] must be \[batch, channels, 4, width\] with 1 channels"),
        (strips.expand(-1, 3, -1, -1), None, r"the image \[5, 3, 4, 96\] must be"),
        (strips.long(), None, "the image is torch.int64; it must be uint8, or float"),
        (strips[..., :12], None, "strips of 4 x 12 pixels do not divide into patches of 4 x 8: .* a multiple of 8"),
        (strips, ATTENTION[:, :5], r"attention_mask \[5, 5\] must be \[batch, patches\] of the image, \[5, 12\]"),
        (strips, ATTENTION.flip(1), "attention_mask of strip 0: padding stands before real patches"),
        (strips, ATTENTION & (torch.arange(5) != 3)[:, None], "strip 3 has no real patch"),
    ):
        with pytest.raises(UserError, match=expected):
            model(image, attention_mask=mask)
    with pytest.raises(UserError, match="the patches have 48 values; the model reads 4 x 8 pixels of 1 channel"):
        model(arrange_next(torch.zeros(4, 48), [4], False))
    with pytest.raises(UserError, match="strip 1 has one patch, and the model foretells patches from those before"):
        arrange_next(torch.zeros(4, 32), [3, 1], False)
    with pytest.raises(ValueError, match="4 patches for strips of 5"):
        arrange_next(torch.zeros(4, 32), [3, 2], False)
