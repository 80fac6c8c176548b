"""Running on one device or on many: who this process is, and how gradients meet.

`torchrun` starts one process for each device and tells each its rank. Data parallelism (DDP) keeps a whole model on
every rank and adds up gradients; FSDP2 also shards parameters, gradients and moments. The engine is PyTorch's; a run
without torchrun takes the same path with one rank and no communication.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from pixelcore.errors import UserError
from pixelcore.models import Model


@dataclass(frozen=True)
class Ranks:
    """This process among all of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place, on every rank."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """True on every rank if it is on one."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def agree(self, value: int) -> int:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        box = torch.tensor(value, device=self.device, dtype=torch.int64)
        dist.broadcast(box, 0)
        return int(box.item())

    def agree_float(self, value: float) -> float:
        """The same for a float."""
        if self.world == 1:
            return value
        box = torch.tensor(value, device=self.device, dtype=torch.float64)
        dist.broadcast(box, 0)
        return box.item()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Ranks:
    """Find out who we are; under torchrun, join the process group.

    device: "auto", "cpu", "cuda" or "cuda:N". Raises UserError for a GPU that is not there.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else None)
    if world > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Ranks(rank, world, chosen)


def leave(ranks: Ranks) -> None:
    """Close the process group."""
    if ranks.world > 1:
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int | None = None) -> torch.device:
    """The device to run on; local_rank picks the GPU under torchrun."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"--device {device}: unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    number = local_rank if local_rank is not None else int(index or 0)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(f"--device {device}: this machine offers {count} CUDA devices; use --device cpu or auto")
    torch.cuda.set_device(number)  # pragma: gpu
    return torch.device("cuda", number)  # pragma: gpu


def parallelise(model: Model, ranks: Ranks, parallel: str, dtype: torch.dtype) -> nn.Module:
    """The module to call in training. "fsdp" shards `model` in place, block by block; "ddp" wraps it."""
    if parallel == "fsdp" and ranks.world > 1:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in model.blocks():
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        return model
    if ranks.world > 1:
        device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
    return model


def gradients_stay_local(module: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """A context for one micro-batch: gradients are exchanged in the last one of a step only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)
    elif isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    return nullcontext()
