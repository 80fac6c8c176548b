"""Linear maps whose rows are several published maps stacked, alone, for every expert, and with low-rank adapters.

Query, key and value read the same input, so one matrix product computes all three; so do gate and up. A checkpoint of
ours holds the stacked weight. The published names live on as `parts`, name -> rows: conversion splits the weight along
them, and an adapter attaches to exactly the rows of the map it was published for.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelcore.config import LoRAConfig
from pixelcore.dropout_bits import Drop
from pixelcore.ops import Ops
from pixelcore.shadows import cast

_FEW_ROWS = 4  # up to here the other order of the product was faster on a CPU (docs/experiments.md)


class Adapter(nn.Module):
    """A low-rank change of one map: down [.., R, in], up [.., rows, R]; up starts at zero, so nothing changes."""

    def __init__(self, rank: int, in_features: int, rows: int, leading: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(*leading, rank, in_features))
        self.up = nn.Parameter(torch.empty(*leading, rows, rank))


class PackedLinear(nn.Module):
    """y = x W^T + b, W [sum of rows, in_features]; b where it is asked for; adapters on those parts that `lora` names.

    drop: of what adapters read.
    """

    def __init__(
        self, in_features: int, parts: Mapping[str, int], lora: LoRAConfig | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), in_features))
        self.bias = nn.Parameter(torch.empty(sum(parts.values()))) if bias else None
        self.adapters, self.lora_scale = _adapters(in_features, parts, lora)

    def forward(self, x_ND: Tensor, ops: Ops, drop: Drop | None = None) -> Tensor:
        return self._adapted(linear(x_ND, self.weight, self.bias), x_ND, ops, drop)

    def without_bias(self, x_ND: Tensor, ops: Ops, drop: Drop | None = None) -> Tensor:
        """The same for a bias that the operation behind it adds."""
        return self._adapted(linear(x_ND, self.weight), x_ND, ops, drop)

    def _adapted(self, y_NO: Tensor, x_ND: Tensor, ops: Ops, drop: Drop | None) -> Tensor:
        if not self.adapters:
            return y_NO
        x_ND = x_ND if drop is None else ops.dropout(x_ND, drop)

        def change(adapter: Adapter) -> Tensor:
            down_RD, up_OR = (cast(weight, x_ND.dtype) for weight in (adapter.down, adapter.up))
            return F.linear(F.linear(x_ND, down_RD), up_OR) * self.lora_scale

        return y_NO + _stacked(self, change, y_NO)


class ExpertLinear(nn.Module):
    """One `PackedLinear` for each expert: W [E, sum of rows, in_features]. The rows of x come sorted by expert."""

    def __init__(
        self, num_experts: int, in_features: int, parts: Mapping[str, int], lora: LoRAConfig | None = None
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(num_experts, sum(parts.values()), in_features))
        self.adapters, self.lora_scale = _adapters(in_features, parts, lora, (num_experts,))

    def forward(self, x_ND: Tensor, ends_E: Tensor, ops: Ops, drop: Drop | None = None) -> Tensor:
        """ends_E: int32 [E], the row behind the last one of each expert."""
        y_NO = grouped_linear(x_ND, self.weight, ends_E)
        if not self.adapters:
            return y_NO
        x_ND = x_ND if drop is None else ops.dropout(x_ND, drop)

        def change(adapter: Adapter) -> Tensor:
            return grouped_linear(grouped_linear(x_ND, adapter.down, ends_E), adapter.up, ends_E) * self.lora_scale

        return y_NO + _stacked(self, change, y_NO)


class Linear(nn.Module):
    """y = x W^T + b, W [out_features, in_features]; uninitialised, like every parameter here."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x_ND: Tensor) -> Tensor:
        return linear(x_ND, self.weight, self.bias)


def linear(x_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b in the dtype of x. Every product of a model with a whole weight goes through here."""
    weight_OD = cast(weight_OD, x_ND.dtype)
    if bias_O is not None:
        return F.linear(x_ND, weight_OD, bias_O.to(x_ND.dtype))
    num_rows = x_ND.shape[0]
    few = num_rows <= _FEW_ROWS and x_ND.device.type == "cpu" and x_ND.dtype == torch.float32
    if not few or torch.is_grad_enabled():
        return F.linear(x_ND, weight_OD)
    # one token at a time is bound by reading the weights, and the library reads them at a third of the memory's speed
    # for a vector, faster as a product of W with a few columns: at least two
    rows_ND = x_ND.expand(2, -1).contiguous() if num_rows == 1 else x_ND
    return (weight_OD @ rows_ND.T)[:, :num_rows].T.contiguous()


def grouped_linear(x_ND: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    """y[row] = weight[expert of row] x[row] for rows sorted by expert: PyTorch's grouped product where its rules on
    alignment allow (rows of 16 bytes), else one product for each expert that has rows."""
    weight_EOD = cast(weight_EOD, x_ND.dtype)
    per_16_bytes = 16 // x_ND.element_size()
    aligned = weight_EOD.shape[1] % per_16_bytes == 0 and weight_EOD.shape[2] % per_16_bytes == 0
    # on a GPU the grouped kernel is for bf16 alone
    if aligned and x_ND.dtype in (torch.float32, torch.bfloat16) and not (x_ND.is_cuda and x_ND.dtype == torch.float32):
        return F.grouped_mm(x_ND, weight_EOD.transpose(1, 2), offs=ends_E)
    ends = ends_E.tolist()
    pieces = zip([0, *ends[:-1]], ends, weight_EOD, strict=True)
    return torch.cat([F.linear(x_ND[first:end], weight) for first, end, weight in pieces])


def _adapters(
    in_features: int, parts: Mapping[str, int], lora: LoRAConfig | None, leading: tuple[int, ...] = ()
) -> tuple[nn.ModuleDict, float]:
    if lora is None:
        return nn.ModuleDict(), 0.0
    named = {name: rows for name, rows in parts.items() if name in lora.target_modules}
    adapters = nn.ModuleDict({name: Adapter(lora.rank, in_features, rows, leading) for name, rows in named.items()})
    return adapters, lora.alpha / lora.rank


def _stacked(layer: "PackedLinear | ExpertLinear", change, y_NO: Tensor) -> Tensor:
    """The changes of all parts side by side, zero where a part has no adapter."""
    columns = [
        change(layer.adapters[name]) if name in layer.adapters else y_NO.new_zeros(y_NO.shape[0], rows)
        for name, rows in layer.parts.items()
    ]
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def initialise_adapter(adapter: Adapter, generator: torch.Generator) -> None:
    """down uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5), up zero."""
    bound = 1 / math.sqrt(adapter.down.shape[-1])
    nn.init.uniform_(adapter.down, -bound, bound, generator=generator)
    nn.init.zeros_(adapter.up)
