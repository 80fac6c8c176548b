"""The peer of the step benchmark computes the same loss as our model: only then is a comparison of their times one."""

import numpy as np
import pytest
import torch

from benchmarks.plain_mae import PlainBlock, PlainMAE
from pixelcore.config import ViTMAEConfig
from pixelcore.initialise import initialise
from pixelcore.masking import draw_masks
from pixelcore.models.vit import Block
from pixelcore.models.vit_mae import ViTMAE

CONFIG = ViTMAEConfig(
    num_patches=36,
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=48,
    decoder_num_layers=2,
    decoder_hidden_size=24,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=40,
)


def copy_block(ours: Block, plain: PlainBlock) -> None:
    width = ours.out.weight.shape[0]
    for part, layer in enumerate((plain.query, plain.key, plain.value)):
        rows = slice(part * width, (part + 1) * width)
        assert ours.qkv.bias is not None
        layer.weight.copy_(ours.qkv.weight[rows])
        layer.bias.copy_(ours.qkv.bias[rows])
    for name in ("out", "norm1", "norm2", "up", "down"):
        getattr(plain, name).load_state_dict(getattr(ours, name).state_dict())


@torch.no_grad()
def copied(ours: ViTMAE) -> PlainMAE:
    plain = PlainMAE(ours.config)
    plain.project.load_state_dict(ours.encoder.patch.state_dict())
    plain.cls.copy_(ours.encoder.cls_token[None])
    plain.places.copy_(ours.encoder.positions[None])
    plain.decoder_places.copy_(ours.decoder.positions[None])
    plain.mask_token.copy_(ours.decoder.mask_token[None])
    pairs = (("norm", ours.encoder.norm), ("embed", ours.decoder.embed))
    pairs += (("decoder_norm", ours.decoder.norm), ("predict", ours.decoder.predict))
    for name, module in pairs:
        getattr(plain, name).load_state_dict(module.state_dict())
    for blocks, trunk in ((plain.encoder, ours.encoder), (plain.decoder, ours.decoder)):
        for block, own in zip(blocks, trunk.blocks, strict=True):
            assert isinstance(block, PlainBlock) and isinstance(own, Block)
            copy_block(own, block)
    return plain


@pytest.mark.parametrize("real", [36, 25])
def test_plain_peer_has_the_loss_of_our_model_with_and_without_padding(real: int):
    ours = ViTMAE(CONFIG)
    initialise(ours, 0)
    lengths = np.array([real, 36])
    hidden_BL = torch.from_numpy(np.asarray(draw_masks("span", lengths, np.arange(2), 0.25, padded_length=36)))
    real_BL = torch.arange(36)[None] < torch.from_numpy(lengths)[:, None]
    pixels = torch.rand((2, 3, 16, 16 * 36), generator=torch.Generator().manual_seed(0))
    expected = ours(pixels, attention_mask=real_BL, patch_mask=hidden_BL).loss
    assert expected is not None
    assert copied(ours)(pixels, real_BL, hidden_BL).item() == pytest.approx(expected.item(), abs=1e-5)
