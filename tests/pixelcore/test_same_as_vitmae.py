"""A second witness: the masked autoencoder of transformers, where its architecture and ours coincide.

It reads square pictures, ours strips. A picture of 4 x 4 patches, its patches laid in a row from left to right and line
by line, is a strip of 16 whose positions are the same grid. It has no attention mask, and one epsilon for all norms.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelcore.config import ViTMAEConfig
from pixelcore.convert.pixel_names import unpack
from pixelcore.initialise import initialise
from pixelcore.models.vit_mae import ViTMAE

pytestmark = pytest.mark.slow

SIDE, PATCH = 4, 8
CONFIG = ViTMAEConfig(
    patch_size=PATCH,
    num_patches=SIDE**2,
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=48,
    layer_norm_eps=1e-5,
    decoder_num_layers=2,
    decoder_hidden_size=16,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=24,
)


def strip_of(picture_BCYX: Tensor) -> Tensor:
    """The patches of a square picture in raster order, as one strip."""
    return picture_BCYX.unflatten(2, (SIDE, PATCH)).transpose(2, 3).flatten(3)


def witness_of(model: ViTMAE, folder: Path):
    transformers = pytest.importorskip("transformers", reason="the witness is transformers: pip install '.[parity]'")
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        num_channels=3,
        decoder_num_attention_heads=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=24,
        mask_ratio=0.25,
        norm_pix_loss=True,
    )
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["ViTMAEForPreTraining"]}))
    published = {name: tensor.contiguous() for name, tensor in unpack(model.state_dict(), CONFIG).items()}
    save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    witness, report = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return witness.eval()


def test_logits_loss_and_gradients_are_those_of_transformers(tmp_path):
    model = ViTMAE(CONFIG)
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # away from biases of zero and norms of one
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    witness = witness_of(model, tmp_path)
    pictures = torch.rand(3, 3, SIDE * PATCH, SIDE * PATCH, generator=generator)
    noise = torch.rand(3, SIDE**2, generator=generator)
    theirs = witness(pictures, noise=noise)
    ours = model(strip_of(pictures), patch_mask=theirs.mask)
    assert ours.mask is not None and ours.loss is not None
    assert ours.mask.sum(1).tolist() == [4, 4, 4]
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=0, atol=1e-4)
    for out in (ours, theirs):
        out.loss.backward()
    for name, of_theirs in {
        "encoder.patch.weight": witness.vit.embeddings.patch_embeddings.projection.weight,
        "encoder.cls_token": witness.vit.embeddings.cls_token,
        "decoder.mask_token": witness.decoder.mask_token,
        "decoder.predict.weight": witness.decoder.decoder_pred.weight,
    }.items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient, of_theirs.grad.reshape(gradient.shape), rtol=1e-3, atol=1e-6)
