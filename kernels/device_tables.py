"""Small tables of numbers on the device, for kernels that are told by a table what to work on.

A kernel for any number of tensors finds their addresses in memory (`adamw.py`). Gradients are made anew in each step,
mostly where they were before, so a table is kept under what it says, and found again instead of copied again. A new one
is copied from memory that the GPU can read by itself, so the host does not wait.

A CUDA graph remembers addresses, not contents. It reads its tables at every replay, and a copy that was captured with
it is made again at every replay, from the same host memory. So what a capture has seen is held for good; and because
host memory cannot be asked for during a capture, some lies ready for every size that has occurred before.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Tables:
    """The tables of one kernel, the last `limit` of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.known: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self.ready: dict[tuple[Any, ...], Tensor] = {}
        self.held: list[Tensor] = []

    def find(self, key: tuple[Any, ...], device: torch.device, make: Callable[[], np.ndarray]) -> Tensor:
        """The table of a key on a device, made where it is not known."""
        key = (device, *key)
        if device.type == "cpu":
            return self._kept(key, lambda: torch.from_numpy(make()))
        if torch.cuda.is_current_stream_capturing():  # pragma: gpu
            return self._captured(key, device, make)
        table = self._kept(key, lambda: torch.from_numpy(make()).pin_memory().to(device, non_blocking=True))
        table.record_stream(torch.cuda.current_stream(device))  # pragma: gpu
        if (table.shape, table.dtype) not in self.ready:  # pragma: gpu
            self.ready[table.shape, table.dtype] = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        return table  # pragma: gpu

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        table = self.known.pop(key, None)
        self.known[key] = make() if table is None else table
        if len(self.known) > self.limit:
            self.known.popitem(last=False)
        return self.known[key]

    def _captured(
        self, key: tuple[Any, ...], device: torch.device, make: Callable[[], np.ndarray]
    ) -> Tensor:  # pragma: gpu
        table = self.known.get(key)
        if table is None:
            values = torch.from_numpy(make())
            host = self.ready.pop((values.shape, values.dtype), None)
            if host is None:
                raise RuntimeError("a table is needed in a graph: run the same step once before it is captured")
            host.copy_(values)
            table = host.to(device, non_blocking=True)
            self.held.append(host)
        self.held.append(table)
        return table
