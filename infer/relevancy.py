"""Which patches an output came from: attention weights times their gradients, rolled out over the layers.

An attention weight says how much a row took from another, and not whether that mattered. Its gradient says how much the
output would change with it. The product, averaged over the heads and without what speaks against the output, is one
layer's share of the explanation; and since rows carry on what they took before, shares of layers are multiplied up:

    R <- R + mean over heads of (A * dA)+ R,    R = I before the first layer

Row r of R then says from which patches row r of the last layer came, and the heat of an output is that row for the rows
it was computed from: the first patch of a word, CLS, or all patches where they are averaged. What a row has of itself
before the first layer, I, is left out.

The model runs once more for this, on a copy whose attention is written out so that its weights can be kept.
Source: Chefer, Gur and Wolf, arXiv:2103.15679, equations 5 and 6, for one kind of attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infer.predict import TaskModel
from pixelcore.checkpoint import build_model
from pixelcore.config import ViTTaskConfig
from pixelcore.dropout_bits import Drop
from pixelcore.errors import UserError
from pixelcore.models.heads import TaskOutput
from pixelcore.ops import REFERENCE
from pixelcore.packed import Packed

Score = Callable[[TaskOutput], Tensor]


class Relevancy:
    """Heat of the outputs of one model, which must be one that reads strips in both directions."""

    def __init__(self, loaded: TaskModel) -> None:
        if not isinstance(loaded.stored.config, ViTTaskConfig):
            raise UserError(
                f"{loaded.stored.path}: heat maps are for encoders that look in both directions, and this is a "
                f"{loaded.stored.config.kind} model: leave them out, --heat 0"
            )
        self._weights: list[Tensor] = []
        # float32 whatever the model runs in: products of small gradients vanish in 16 bits
        ops = replace(REFERENCE, attention=self._attention)
        self._model = build_model(loaded.stored, loaded.device, torch.float32, ops).requires_grad_(False)
        self._device = loaded.device

    def heats(
        self, given: dict[str, Tensor], wanted: Sequence[tuple[Score, Sequence[int]]]
    ) -> list[NDArray[np.float32]]:
        """float32 [L] for each output that is wanted: how much each patch has to do with it, at least 0.

        given: the model's arguments, of one strip. wanted: the output, a scalar, and the patches whose rows it was
        computed from; none is CLS.
        """
        self._weights.clear()
        output = self._model(**{name: tensor.to(self._device) for name, tensor in given.items()})
        found = []
        for number, (score, patches) in enumerate(wanted, start=1):
            gradients = torch.autograd.grad(score(output), self._weights, retain_graph=number < len(wanted))
            rolled_TT = rolled(self._weights, gradients)
            rows = [patch + 1 for patch in patches] or [0]  # CLS stands before the patches
            found.append((rolled_TT - torch.eye(len(rolled_TT), device=self._device))[rows].mean(0)[1:].cpu().numpy())
        return found

    def _attention(
        self, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None
    ) -> tuple[Tensor, None]:
        """`pixelcore.ops.attention` of one document, whose weights are kept with their graph."""
        assert len(packed.lengths) == 1 and packed.visible is None and rule == "full" and drop is None
        q_HTK, k_HSK, v_HSK = (x.transpose(0, 1) for x in (q_NHK, k_NGK, v_NGK))
        weights_HTS = (q_HTK @ k_HSK.transpose(1, 2) * scale).softmax(-1)
        if not weights_HTS.requires_grad:
            weights_HTS.requires_grad_()  # of the first layer: no parameter has a gradient here
        self._weights.append(weights_HTS)
        return (weights_HTS @ v_HSK).transpose(0, 1), None


def rolled(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """R, [T, T], of the weights [H, T, T] of all layers, the first layer first, and their gradients."""
    relevancy_TT = torch.eye(weights[0].shape[-1], device=weights[0].device)
    for weight_HTT, gradient_HTT in zip(weights, gradients, strict=True):
        share_TT = (weight_HTT.detach() * gradient_HTT).clamp_min(0).mean(0)
        relevancy_TT = relevancy_TT + share_TT @ relevancy_TT
    return relevancy_TT
