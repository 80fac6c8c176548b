"""The original program's predictions, loss and gradients, reached through both ways of calling the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelcore.checkpoint import load_model
from pixelcore.convert.pixel_names import unpack
from pixelcore.patches import arrange, patchify

# The bias of the keys adds the same number to all scores of a query, which softmax ignores: its gradient is zero, and
# what the files hold is rounding, 1e-13 at most; the least gradient that is one is 7e-9.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[Any, dict[str, Tensor], dict[str, float]]:
    folder = shared / "golden" / "pixel_mae"
    with np.load(folder / "reference.npz") as stored:
        reference = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return load_model(folder), reference, json.loads((folder / "grad_norms.json").read_text())


def test_nothing_is_dropped_or_moved_on_loading(golden):
    model, _, norms = golden
    assert not model.training
    published = unpack(model.state_dict(), model.config)
    assert norms.keys() == published.keys() - {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


def test_the_dense_call_gives_the_logits_of_every_position(golden):
    model, reference, _ = golden
    with torch.no_grad():
        out = model(
            reference["pixel_values"],
            attention_mask=reference["attention_mask"],
            patch_mask=reference["patch_mask"],
        )
    torch.testing.assert_close(out.logits, reference["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(out.loss, reference["loss"], rtol=0, atol=1e-4)
    assert torch.equal(out.mask, reference["mask"].bool())
    counted = reference["attention_mask"].bool() & reference["patch_mask"].bool()
    assert out.count == counted.sum()


def test_packed_rows_give_the_logits_of_what_the_loss_counts(golden):
    model, reference, _ = golden
    real, counted = real_and_counted(reference)
    with torch.no_grad():
        out = model(packed(reference))
    torch.testing.assert_close(out.logits, reference["logits"][counted], rtol=0, atol=1e-4)
    torch.testing.assert_close(out.loss, reference["loss"], rtol=0, atol=1e-4)
    assert 0 < real.sum() < real.numel()  # there is padding that the packed call leaves out


@pytest.mark.parametrize("call", ["dense", "packed"])
def test_gradients_have_the_norms_of_the_original(golden, call):
    model, reference, norms = golden
    if call == "packed":
        out = model(packed(reference))
    else:
        masks = {name: reference[name] for name in ("attention_mask", "patch_mask")}
        out = model(reference["pixel_values"], **masks)
    out.loss.backward()
    gradients = {name: torch.zeros_like(buffer) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        gradients[name], parameter.grad = parameter.grad, None
    published = unpack(gradients, model.config)
    for name, norm in norms.items():
        assert published[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=ROUNDING), name


def real_and_counted(reference: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    real = reference["attention_mask"].bool()
    return real, real & reference["patch_mask"].bool()


def packed(reference: dict[str, Tensor]) -> Any:
    real, counted = real_and_counted(reference)
    return arrange(patchify(reference["pixel_values"], 16)[real], real.sum(1).tolist(), counted[real])
