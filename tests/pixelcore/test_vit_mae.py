"""The masked autoencoder as a whole: what each patch may know, and every way of running it that must not matter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcore.config import ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.vit_mae import ViTMAE
from pixelcore.ops import REFERENCE
from pixelcore.patches import Patches, arrange, patchify
from pixelcore.positions import sincos_table

SEED = torch.tensor([1, 5])
LENGTHS = [5, 1, 12, 12, 3]
ATTENTION = torch.arange(12) < torch.tensor(LENGTHS)[:, None]


def make_config(**changes: Any) -> ViTMAEConfig:
    base: dict[str, Any] = {
        "patch_size": 4,
        "num_patches": 16,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "decoder_num_layers": 2,
        "decoder_hidden_size": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    }
    return ViTMAEConfig(**(base | changes))


def make_model(**changes: Any) -> ViTMAE:
    """A model with weights large enough for its predictions to differ, norms not at one."""
    model = ViTMAE(make_config(**changes))
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return model


def draw_strips(batch: int = 5, length: int = 12, channels: int = 1, seed: int = 0) -> Tensor:
    shape = (batch, channels, 4, 4 * length)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def draw_mask(length: int = 12, seed: int = 3) -> Tensor:
    """About a third of the patches of five strips, padding among them, the first patch of a strip never."""
    mask = torch.rand(5, length, generator=torch.Generator().manual_seed(seed)) < 0.35
    mask[:, 0] = False
    mask[2, 1] = True
    return mask


def pack(strips: Tensor, mask: Tensor | None, rows: list[int] | None = None) -> Patches:
    """The real patches of some of the five strips, named by their number."""
    rows = list(range(5)) if rows is None else rows
    pixels = patchify(strips, 4)
    parts = [pixels[row, : LENGTHS[row]] for row in rows]
    hidden = None if mask is None else torch.cat([mask[row, : LENGTHS[row]] for row in rows])
    return arrange(torch.cat(parts), [LENGTHS[row] for row in rows], hidden, documents=rows)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found


def learn(model: ViTMAE, *inputs: Any, **arguments: Any) -> dict[str, Tensor]:
    out = model(*inputs, **arguments)
    assert out.loss is not None
    out.loss.backward()
    return {"loss": out.loss.detach(), **gradients(model)}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ------------------------------------------------------------------ the beginning


def test_a_model_begins_as_the_original_pretraining_does():
    model = ViTMAE(make_config(hidden_size=64, num_channels=3))
    initialise(model, seed=3)
    values = {name: tensor.flatten() for name, tensor in model.state_dict().items()}
    assert torch.equal(model.encoder.positions, sincos_table(16, 64))
    assert torch.equal(model.decoder.positions, sincos_table(16, 16))
    bound = (6 / (64 + 48)) ** 0.5  # Xavier's, of a map from 48 values to 64
    assert 0.95 * bound < values["encoder.patch.weight"].abs().max() <= bound
    assert 0.8 * 48**-0.5 < values["encoder.patch.bias"].abs().max() <= 48**-0.5
    for name, tensor in values.items():
        if "norm" in name:
            assert (tensor == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias") and "patch" not in name:
            assert not tensor.any(), name
        elif not name.endswith("positions") and "patch" not in name:
            assert 0.7 * 0.02 < tensor.std() < 1.4 * 0.02, name
    again = ViTMAE(model.config)
    initialise(again, seed=3)
    assert all(torch.equal(tensor, again.state_dict()[name].flatten()) for name, tensor in values.items())
    initialise(again, seed=4)
    assert not torch.equal(again.encoder.patch.weight, model.encoder.patch.weight)


def test_positions_are_stored_and_not_trained():
    model = ViTMAE(make_config())
    tables = {"encoder.positions", "decoder.positions"}
    assert tables <= model.state_dict().keys()
    assert not tables & dict(model.named_parameters()).keys()


def test_every_norm_has_its_published_epsilon():
    """By record, not by result: where rows vary as much as theirs do, no epsilon shows."""
    found: list[float] = []

    def noting(*arguments: Any) -> Any:
        found.append(arguments[4])
        return REFERENCE.add_norm(*arguments)

    model = ViTMAE(make_config(num_layers=3), replace(REFERENCE, add_norm=noting))
    initialise(model, seed=0)
    with torch.no_grad():
        model(pack(draw_strips(), draw_mask()))
    assert found == [1e-12] * (2 * 3 + 1 + 2 * 2) + [1e-5]


def test_one_batch_can_be_learnt_by_heart():
    model = ViTMAE(make_config(hidden_dropout=0.0, attention_dropout=0.0))
    initialise(model, seed=0)
    strips = torch.zeros(2, 1, 4, 12, dtype=torch.uint8)
    strips[:, :, ::2] = 255
    strips[1] = strips[1].flip(1)  # lines the other way round: what is visible says which
    patches = arrange(patchify(strips, 4).flatten(0, 1), [3, 3], torch.tensor([0, 1, 0, 0, 0, 1], dtype=torch.bool))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(patches).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 and losses[-1] < 0.05


# ------------------------------------------------------------------ ways of running it


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_packed_rows_equal_the_dense_call(channels, normalise):
    model, strips, mask = make_model(normalise_pixels=normalise), draw_strips(channels=channels), draw_mask()
    counted = mask & ATTENTION
    with torch.no_grad():
        dense = model(strips, attention_mask=ATTENTION, patch_mask=mask)
        packed = model(pack(strips, mask))
    assert dense.logits.shape == (5, 12, 48)
    torch.testing.assert_close(packed.logits, dense.logits[counted], rtol=1e-5, atol=1e-5)
    assert packed.count == dense.count == counted.sum()
    assert torch.equal(dense.mask, mask)
    assert_close(learn(model, pack(strips, mask)), learn(model, strips, attention_mask=ATTENTION, patch_mask=mask))


def test_dropout_is_the_same_packed_and_dense():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    dense = learn(model, strips, attention_mask=ATTENTION, patch_mask=mask, dropout_seed=SEED)
    assert_close(learn(model, pack(strips, mask), dropout_seed=SEED), dense)
    assert not torch.allclose(dense["loss"], learn(model, pack(strips, mask))["loss"])


def test_dropout_follows_its_seed():
    model, patches = make_model(), pack(draw_strips(), draw_mask())
    with torch.no_grad():
        one, again, other = (model(patches, dropout_seed=seed).logits for seed in (SEED, SEED, SEED + 1))
        still = make_model(hidden_dropout=0.0, attention_dropout=0.0)(patches, dropout_seed=SEED).logits
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(still, model(patches).logits)


@pytest.mark.parametrize("site", ["hidden_dropout", "attention_dropout"])
def test_the_encoder_and_the_decoder_both_drop(site):
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, site: 0.3}
    model, patches = make_model(**rates), pack(draw_strips(), draw_mask())
    with torch.no_grad():
        rows = model.encode(patches)
        assert not torch.allclose(model.encode(patches, dropout_seed=SEED), rows)
        run = model._run(SEED)
        assert not torch.allclose(model.decoder(rows, patches, run), model.decoder(rows, patches, model._run(None)))


def test_no_two_places_of_a_step_drop_alike():
    sites: list[int] = []

    def noting(function: Any, place: int) -> Any:
        def call(*arguments: Any) -> Any:
            drop = arguments[place] if len(arguments) > place else None
            # nothing is added before the first norm of a stack, so nothing is dropped there
            if drop is not None and arguments[1] is not None:
                sites.append(drop.site)
            return function(*arguments)

        return call

    ops = replace(REFERENCE, add_norm=noting(REFERENCE.add_norm, 5), attention=noting(REFERENCE.attention, 6))
    model = ViTMAE(make_config(num_layers=3), ops)
    initialise(model, seed=0)
    with torch.no_grad():
        model(pack(draw_strips(), draw_mask()), dropout_seed=SEED)
    assert len(sites) == len(set(sites)) == 3 * (3 + 2)  # in each layer: weights, after attention, after feed-forward
    assert max(sites) < 2**16  # attention puts its head above


def test_a_step_is_the_sum_of_its_micro_batches():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    scale = 1 / (mask & ATTENTION).sum()
    whole = learn(model, pack(strips, mask), scale=scale, dropout_seed=SEED)
    losses = []
    for rows in ([3, 0], [1, 2, 4]):
        loss = model(pack(strips, mask, rows), scale=scale, dropout_seed=SEED).loss
        assert loss is not None
        loss.backward()
        losses.append(loss.detach())
    assert_close({"loss": losses[0] + losses[1], **gradients(model)}, whole)


def test_recomputing_changes_no_gradient():
    model, patches = make_model(), pack(draw_strips(), draw_mask())
    kept = learn(model, patches, dropout_seed=SEED)
    model.recompute = True
    again = learn(model, patches, dropout_seed=SEED)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@torch.no_grad()
def test_bf16_is_close_to_fp32():
    model, patches = make_model(), pack(draw_strips(), draw_mask())
    exact = model(patches)
    model.compute_dtype = torch.bfloat16
    rounded = model(patches)
    assert rounded.logits.dtype == torch.bfloat16 and rounded.loss is not None
    assert rounded.loss.dtype == torch.float32
    assert 1e-4 < (rounded.logits.float() - exact.logits).norm() / exact.logits.norm() < 0.03
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0)


# ------------------------------------------------------------------ pixels


def test_grey_is_three_equal_channels():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    grey = learn(model, pack(strips, mask))
    assert_close(learn(model, pack(strips.expand(-1, 3, -1, -1), mask)), grey)
    assert grey["encoder.patch.weight"].shape == (32, 3, 4, 4)


def test_bytes_and_floats_are_the_same_pixels():
    model, strips, mask = make_model(), draw_strips(channels=3), draw_mask()
    assert_close(learn(model, pack(strips / 255, mask)), learn(model, pack(strips, mask)))


def test_a_model_of_one_channel():
    model, strips, mask = make_model(num_channels=1), draw_strips(), draw_mask()
    dense = model(strips, attention_mask=ATTENTION, patch_mask=mask)
    assert dense.logits.shape == (5, 12, 16)
    with pytest.raises(UserError, match="the patches have 48 values; the model reads 4 x 4 pixels of 1 channel"):
        model(pack(draw_strips(channels=3), mask))


# ------------------------------------------------------------------ what a patch may know


def test_padding_changes_nothing():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    arguments = {"attention_mask": ATTENTION, "patch_mask": mask}
    expected = learn(model, strips, **arguments)
    noise = draw_strips(seed=8)
    padding = ~ATTENTION.repeat_interleave(4, dim=1)[:, None, None].expand(strips.shape)
    other = torch.where(padding, noise, strips)
    assert_close(learn(model, other, **arguments), expected)
    with torch.no_grad():
        one, changed = (model(pixels, **arguments).logits for pixels in (strips, other))
    torch.testing.assert_close(changed[ATTENTION], one[ATTENTION])
    assert not torch.allclose(changed[~ATTENTION], one[~ATTENTION])  # padding is computed, from its own pixels
    assert_close(learn(model, strips, attention_mask=ATTENTION, patch_mask=mask & ATTENTION), expected)


def test_a_narrower_picture_has_the_same_positions():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    rows = [0, 4]  # 5 and 3 patches
    wide, narrow = (
        learn(
            model,
            strips[rows, :, :, : 4 * length],
            attention_mask=ATTENTION[rows, :length],
            patch_mask=mask[rows, :length],
        )
        for length in (12, 5)
    )
    assert_close(wide, narrow)


def test_hidden_pixels_reach_the_loss_and_nothing_else():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    patches = pack(strips, mask)
    changed = patches.pixels.clone()
    changed[patches.scored] = changed[patches.scored].flip(1)
    other = replace(patches, pixels=changed)
    with torch.no_grad():
        one, two = model(patches), model(other)
    assert torch.equal(one.logits, two.logits)
    assert one.loss is not None and two.loss is not None
    assert not torch.equal(one.loss, two.loss)


@torch.no_grad()
def test_a_strip_does_not_see_its_neighbours():
    model, strips = make_model(), draw_strips()
    together = model.encode(pack(strips, None))
    alone = torch.cat([model.encode(pack(strips, None, [row])) for row in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_real_patches_need_not_stand_in_front():
    """Padding on the left, and holes: what follows from the places alone."""
    model, strips = make_model(), draw_strips()
    shuffle = torch.rand(5, 12, generator=torch.Generator().manual_seed(4)).argsort(1)
    attention = ATTENTION.gather(1, shuffle)
    mask = torch.zeros_like(attention)
    for row in range(5):
        mask[row, attention[row].nonzero()[1:3, 0]] = True
    out = model(strips, attention_mask=attention, patch_mask=mask)
    assert out.count == (mask & attention).sum()
    for row in range(5):
        places = attention[row].nonzero()[:, 0]
        if mask[row].any():
            patches = arrange(patchify(strips, 4)[row, places], [len(places)], mask[row, places], columns=places)
            expected = model(patches).logits
            torch.testing.assert_close(out.logits[row, mask[row]], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_mask_everything_is_read():
    model, strips = make_model(), draw_strips()
    out = model(strips, attention_mask=ATTENTION)
    assert out.loss is None and out.mask is None and out.logits.shape == (5, 12, 48)
    for row, length in enumerate(LENGTHS):
        alone = model(strips[row : row + 1, :, :, : 4 * length])
        torch.testing.assert_close(out.logits[row, :length], alone.logits[0], rtol=1e-5, atol=1e-5)
    patches = pack(strips, None)
    rows = model.encode(patches)
    assert rows.shape == (sum(LENGTHS) + 5, 32)
    with pytest.raises(UserError, match="nothing is hidden in these strips"):
        model(patches)


@torch.no_grad()
def test_masks_may_be_numbers():
    model, strips, mask = make_model(), draw_strips(), draw_mask()
    expected = model(strips, attention_mask=ATTENTION, patch_mask=mask)
    for kind in (torch.int64, torch.uint8, torch.float32):
        out = model(strips, attention_mask=ATTENTION.to(kind), patch_mask=mask.to(kind))
        assert torch.equal(out.logits, expected.logits)


# ------------------------------------------------------------------ length


@torch.no_grad()
def test_a_strip_longer_than_the_table_is_the_users_mistake_or_stretches_it():
    strips = draw_strips(length=17)
    with pytest.raises(UserError, match="a strip of 17 patches is longer than the model's num_patches = 16"):
        make_model()(strips)
    model = make_model(interpolate_positions=True)
    assert model(strips).logits.shape == (5, 17, 48)
    assert torch.equal(model(strips[..., :64]).logits, make_model()(strips[..., :64]).logits)


@torch.no_grad()
def test_a_long_strip_changes_nothing_for_its_neighbours():
    model = make_model(interpolate_positions=True)
    pixels = patchify(draw_strips(batch=1, length=23), 4)[0]
    hidden = torch.zeros(23, dtype=torch.bool)
    hidden[[1, 9]] = True
    both = model(arrange(pixels, [3, 20], hidden)).logits
    for row, rows in enumerate((slice(0, 3), slice(3, 23))):
        alone = model(arrange(pixels[rows], [rows.stop - rows.start], hidden[rows])).logits
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_shortest_batches():
    model, strips = make_model(), draw_strips(batch=1, length=2)
    one = model(strips[..., :4])  # one strip of one patch
    assert one.logits.shape == (1, 1, 48) and one.logits.isfinite().all()
    two = model(strips, patch_mask=torch.tensor([[0, 1]]))
    assert two.count == 1 and two.loss is not None
    assert two.loss.isfinite()
