"""AdamW over a model's trainable parameters, without ever waiting for the device.

Learning rate, clip factor and the flag of a non-finite gradient are scalars on the device; a step with a non-finite
gradient changes nothing and is counted there too. Under FSDP2 parameters are sharded tensors, and each rank updates
its own shards; the norm of the gradient is taken over all of them.

A model that computes in bf16 may have shadows of its matrices kept (`pixelcore.shadows`); they are no state, and a
resumed run makes them again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pixelcore.ops import Ops
from pixelcore.shadows import keep_shadow, renewed_shadow, shadow_is_written
from pixelcore.stored import OptimizerState
from train.config import OptimizerConfig


@dataclass
class StepReport:
    """Device scalars of the last update: global gradient norm before clipping, 1.0 where the step was skipped."""

    grad_norm: Tensor
    skipped: Tensor


class AdamW:
    """Two groups: matrices decay, vectors do not (specs/decoder.md, section 5). Moments are fp32.

    keeps_shadows: write bf16 copies of the matrices too, for a model that computes in bf16. No sharded parameter may be
    among them.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, ops: Ops, keeps_shadows: bool = False) -> None:
        self.config = config
        self.ops = ops
        self.keeps_shadows = keeps_shadows
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.firsts = {name: torch.zeros_like(parameter) for name, parameter in self.named.items()}
        self.seconds = {name: torch.zeros_like(parameter) for name, parameter in self.named.items()}
        if keeps_shadows:
            for parameter in self._of_group(decays=True).values():
                assert not isinstance(parameter, DTensor)
                keep_shadow(parameter)
        device = next(iter(self.named.values())).device
        self.num_updates = torch.zeros((), device=device)
        self.skipped_in_a_row = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)

    @torch.no_grad()
    def step(self, learning_rate: float | Tensor) -> StepReport:
        """Update every parameter from its gradient, which is then cleared. learning_rate: a number, or a scalar on the
        device where steps are replayed from a graph."""
        norm = self._gradient_norm()
        found_inf = (~torch.isfinite(norm)).float()
        self.skipped += found_inf
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * found_inf
        self.num_updates += 1 - found_inf
        limit = self.config.max_grad_norm
        clip = torch.ones_like(norm) if limit == 0 else (limit / (norm + 1e-6)).clamp(max=1.0)
        rate = learning_rate
        if not isinstance(rate, Tensor):
            rate = torch.full((), rate, dtype=torch.float32, device=norm.device)  # torch.tensor would wait for the copy
        for decays in (True, False):
            group = self._of_group(decays)
            shadowed = group.values() if decays and self.keeps_shadows else ()
            shadows = [renewed_shadow(parameter) for parameter in shadowed]
            self.ops.adamw(
                [_local(parameter) for parameter in group.values()],
                [_local(parameter.grad) for parameter in group.values()],
                [_local(self.firsts[name]) for name in group],
                [_local(self.seconds[name]) for name in group],
                self.num_updates,
                rate,
                clip,
                found_inf,
                betas=(self.config.betas[0], self.config.betas[1]),
                eps=self.config.eps,
                weight_decay=self.config.weight_decay if decays else 0.0,
                shadows=shadows or None,
            )
            for parameter in shadowed:
                shadow_is_written(parameter)
        for parameter in self.named.values():
            parameter.grad = None
        return StepReport(norm, found_inf)

    def _of_group(self, decays: bool) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named.items() if (parameter.dim() >= 2) == decays}

    def _gradient_norm(self) -> Tensor:
        gradients = []
        for parameter in self.named.values():
            if parameter.grad is None:
                # a parameter no row reached, on a rank that had only fillers: its gradient is zero, not absent
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def gather(self) -> OptimizerState:
        """The whole state, unsharded, on the host. Every rank must call it."""
        return OptimizerState(
            firsts={name: gather(moment) for name, moment in self.firsts.items()},
            seconds={name: gather(moment) for name, moment in self.seconds.items()},
            step=int(self.num_updates.item()),
        )

    @torch.no_grad()
    def restore(self, state: OptimizerState) -> None:
        """Take over a gathered state of the same parameters, whatever number of ranks wrote it."""
        for own, stored in ((self.firsts, state.firsts), (self.seconds, state.seconds)):
            if own.keys() != stored.keys():
                raise ValueError(f"moments of other parameters: {sorted(own.keys() ^ stored.keys())[:3]}")
            for name, moment in own.items():
                scatter(stored[name], moment)
        self.num_updates.fill_(state.step)


def gather(tensor: Tensor) -> Tensor:
    """A whole tensor on the host."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu()


@torch.no_grad()
def scatter(whole: Tensor, target: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(target, DTensor):
        part = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)
        target.to_local().copy_(part.to_local())
    else:
        target.copy_(whole)


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
