"""Index tensors that stand for masks, against masks; patches against pixels."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pixelcore.config import ViTConfig
from pixelcore.errors import UserError
from pixelcore.patches import arrange, arrange_dense, patchify, unpatchify

CONFIG = ViTConfig(patch_size=4, num_patches=9, num_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8)


def numbered(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_is_read_by_rows_then_columns_then_channels(channels):
    strips = torch.arange(2 * channels * 4 * 12).reshape(2, channels, 4, 12)
    patches = patchify(strips, 4)
    assert patches.shape == (2, 3, 16 * channels)
    for row, column, channel in ((0, 0, 0), (1, 2, 0), (3, 3, channels - 1)):
        assert patches[1, 2, (row * 4 + column) * channels + channel] == strips[1, channel, row, 2 * 4 + column]
    assert torch.equal(unpatchify(patches, 4), strips)


@pytest.mark.parametrize("shape", [(1, 1, 4, 10), (1, 1, 8, 16), (1, 1, 4, 0)])
def test_pixels_that_do_not_divide_into_patches_are_refused(shape):
    with pytest.raises(UserError, match="do not divide into patches of 4 x 4"):
        patchify(torch.zeros(shape), 4)


def test_a_strip_is_cls_and_what_is_not_hidden():
    hidden = torch.tensor([0, 1, 0, 1, 0, 0, 1], dtype=torch.bool)
    patches = arrange(numbered(7), [4, 1, 2], hidden, documents=[30, 10, 20])
    assert patches.kept.lengths == (3, 2, 2)
    assert patches.kept_rows.tolist() == [-1, 0, 2, -1, 4, -1, 5]
    assert patches.kept_places.tolist() == [0, 1, 3, 0, 1, 0, 1]
    assert patches.kept.documents.tolist() == [30, 30, 30, 10, 10, 20, 20]
    assert patches.whole is not None
    assert patches.whole.lengths == (5, 2, 3)
    assert patches.whole.documents.tolist() == [30] * 5 + [10] * 2 + [20] * 3
    assert patches.restore.tolist() == [0, 1, -1, 2, -1, 3, 4, 5, 6, -1]
    assert patches.places.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    assert patches.scored.tolist() == [1, 3, 6]
    assert patches.scored_rows.tolist() == [2, 4, 9]
    assert patches.num_patches == [4, 1, 2]
    assert patches.kept.visible is None and patches.whole.visible is None


def test_without_a_mask_every_patch_is_kept():
    patches = arrange(numbered(3), [2, 1])
    assert patches.whole is None and patches.decoded is patches.kept
    assert patches.kept_rows.tolist() == [-1, 0, 1, -1, 2]
    assert patches.restore.tolist() == [0, 1, 2, 3, 4]
    assert patches.places.tolist() == patches.kept_places.tolist() == [0, 1, 2, 0, 1]
    assert len(patches.scored) == len(patches.scored_rows) == 0
    assert patches.kept.documents.tolist() == [0, 0, 0, 1, 1]  # named by their number in the micro-batch


def test_padding_is_a_row_that_nobody_sees_or_scores():
    hidden = torch.tensor([0, 1, 0, 1, 0, 0, 1, 1], dtype=torch.bool)
    patches = arrange(numbered(8), [4, 4], hidden, visible=[2, 3])
    assert patches.kept.lengths == (3, 3) and patches.kept.visible == (2, 3)
    assert patches.whole is not None
    assert patches.whole.lengths == (5, 5) and patches.whole.visible == (3, 4)
    assert patches.scored.tolist() == [1, 6]


@st.composite
def masked_strips(draw):
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    rows = [draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1)) for n in lengths]
    hidden = [[*row, False] for row in rows]
    hidden[0][0] = True
    return lengths, hidden


@given(masked_strips())
def test_indices_are_the_masks(strips):
    lengths, hidden = strips
    flat = torch.tensor([bit for row in hidden for bit in row])
    patches = arrange(numbered(sum(lengths)), lengths, flat)
    whole, kept, first = [], [], 0
    for row in hidden:
        rows = [(-1, 0, False)] + [(first + place, place + 1, bit) for place, bit in enumerate(row)]
        whole += rows
        kept += [entry for entry in rows if not entry[2]]
        first += len(row)
    assert list(zip(patches.kept_rows.tolist(), patches.kept_places.tolist())) == [entry[:2] for entry in kept]
    assert patches.places.tolist() == [place for _, place, _ in whole]
    assert [patches.kept_rows[r].item() if r >= 0 else "hidden" for r in patches.restore.tolist()] == [
        "hidden" if bit else patch for patch, _, bit in whole
    ]
    assert patches.scored.tolist() == [patch for patch, _, bit in whole if bit]
    assert patches.scored_rows.tolist() == [row for row, (_, _, bit) in enumerate(whole) if bit]


def test_every_tensor_moves_to_another_device():
    hidden = torch.tensor([True, False, False])
    direct = arrange(numbered(3), [3], hidden, device="meta")
    for patches in (direct, arrange(numbered(3), [3], hidden).to("meta")):
        tensors = [getattr(patches, field.name) for field in fields(patches)]
        assert patches.whole is not None
        tensors = [x for x in tensors if isinstance(x, Tensor)] + [patches.kept.offsets, patches.whole.positions]
        assert len(tensors) == 9
        assert all(tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize(
    "hidden, visible, message",
    [
        ([1, 0, 1, 1], None, "the mask of strip 1 hides all of its 2 real patches"),
        ([1, 0, 1, 0], [2, 1], "the mask of strip 1 hides all of its 1 real patches"),
        ([0, 0, 0, 0], None, "the masks hide no real patch"),
        ([0, 0, 0, 1], [2, 1], "the masks hide no real patch"),
        (None, [2, 0], "strip 1 has no real patch"),
    ],
)
def test_masks_that_leave_nothing_to_do_are_the_users_mistake(hidden, visible, message):
    mask = None if hidden is None else torch.tensor(hidden, dtype=torch.bool)
    with pytest.raises(UserError, match=message):
        arrange(numbered(4), [2, 2], mask, visible=visible)


def test_patches_and_lengths_must_agree():
    with pytest.raises(ValueError, match=r"4 patches for strips of 5: lengths = \[2, 3\]"):
        arrange(numbered(4), [2, 3])


# ------------------------------------------------------------------ the dense call


def test_a_dense_batch_has_its_real_patches_in_front_and_their_places_with_them():
    pixels = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 1, 4).repeat_interleave(4, 3).expand(-1, -1, 4, -1)
    attention = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    patches, order, hidden = arrange_dense(pixels, CONFIG, attention, mask)
    assert order.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    assert patches.pixels[:, 0].tolist() == [1, 3, 0, 2, 4, 5, 6, 7]
    assert patches.places.tolist() == [0, 2, 4, 1, 3, 0, 1, 2, 3, 4]
    assert patches.kept.visible == (2, 3) and patches.kept.lengths == (3, 3)
    assert patches.scored.tolist() == [0, 6]
    assert hidden is not None
    assert torch.equal(hidden, mask.bool())


PIXELS = torch.zeros(2, 1, 4, 12)
ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"pixel_values": PIXELS[0]}, r"pixel_values \[1, 4, 12\] must be \[batch, channels, 4, width\]"),
        ({"pixel_values": PIXELS.expand(-1, 2, -1, -1)}, "with 1 or 3 channels"),
        ({"pixel_values": PIXELS.expand(-1, 3, -1, -1), "config": replace(CONFIG, num_channels=1)}, "with 1 channels"),
        ({"pixel_values": PIXELS.long()}, "pixel_values are torch.int64; they must be uint8, or float"),
        ({"pixel_values": torch.zeros(2, 1, 5, 12)}, "strips of 5 x 12 pixels do not divide"),
        ({"pixel_values": torch.zeros(2, 1, 4, 13)}, "strips of 4 x 13 pixels do not divide"),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask \[2, 4\] must be \[batch, patches\] .* \[2, 3\]"),
        ({"patch_mask": torch.ones(1, 3)}, r"patch_mask \[1, 3\] must be"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "strip 1 has no real patch"),
        ({"patch_mask": ONES}, "strip 0 hides all of its 3 real patches"),
        ({"patch_mask": 0 * ONES}, "the masks hide no real patch"),
        (
            {"attention_mask": torch.tensor([[1, 1, 0]] * 2), "patch_mask": torch.tensor([[0, 0, 1]] * 2)},
            "the masks hide no real patch",
        ),
    ],
)
def test_a_dense_call_that_does_not_fit_is_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        arrange_dense(**({"pixel_values": PIXELS, "config": CONFIG} | arguments))
    assert "\n" not in str(caught.value)
