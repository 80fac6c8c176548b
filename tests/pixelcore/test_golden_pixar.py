"""The original program's predictions, loss and gradients, reached through both ways of calling the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pixelcore.checkpoint import load_model
from pixelcore.convert.pixar_names import unpack
from pixelcore.next_patches import NextPatches, arrange_next
from pixelcore.patches import patchify


@pytest.fixture(scope="module", params=["binary", "rgb"])
def golden(request: Any, shared: Path) -> tuple[Any, dict[str, Tensor], dict[str, float]]:
    folder = shared / "golden" / f"pixar_{request.param}"
    with np.load(folder / "reference.npz") as stored:
        reference = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return load_model(folder), reference, json.loads((folder / "grad_norms.json").read_text())


def packed(reference: dict[str, Tensor]) -> NextPatches:
    real = reference["attention_mask"].bool()
    return arrange_next(patchify(reference["image"], 8, 16)[real], real.sum(1).tolist(), start_vector=False)


def published_scale(reference: dict[str, Tensor], patches: NextPatches) -> Tensor:
    """Of the original's binary loss, in which each strip weighs alike, for rows that are packed."""
    if reference["image"].shape[1] == 3:
        return torch.tensor(1 / len(patches.targets))
    counts = torch.tensor(patches.counts)
    return (1 / (len(counts) * counts)).repeat_interleave(counts)


def test_the_dense_call_gives_the_logits_of_every_position(golden):
    model, reference, _ = golden
    with torch.no_grad():
        out = model(reference["image"], attention_mask=reference["attention_mask"])
    torch.testing.assert_close(out.logits, reference["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(out.loss, reference["loss"], rtol=0, atol=1e-4)
    assert out.count == reference["attention_mask"][:, 1:].sum()


def test_packed_rows_give_the_logits_of_what_has_a_next_patch(golden):
    model, reference, _ = golden
    patches = packed(reference)
    with torch.no_grad():
        out = model(patches, scale=published_scale(reference, patches))
    follows = reference["attention_mask"][:, 1:].bool()
    expected = patchify(reference["logits"], 8, 16)[:, :-1][follows]
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.loss, reference["loss"], rtol=0, atol=1e-4)
    assert out.count == follows.sum() < follows.numel()  # there is padding that the packed call leaves out


@pytest.mark.parametrize("call", ["dense", "packed"])
def test_gradients_have_the_norms_of_the_original(golden, call):
    model, reference, norms = golden
    if call == "packed":
        patches = packed(reference)
        out = model(patches, scale=published_scale(reference, patches))
    else:
        out = model(reference["image"], attention_mask=reference["attention_mask"])
    out.loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name], parameter.grad = parameter.grad, None
    published = unpack(gradients, model.config)
    assert published.keys() == norms.keys()
    for name, norm in norms.items():
        assert published[name].norm().item() == pytest.approx(norm, rel=1e-3), name
