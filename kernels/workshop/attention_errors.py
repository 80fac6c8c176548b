"""How far off is attention, beside FlashAttention-2? Both against the formula in fp64, result by result.

The budget of `check` compares a kernel with its reference in the same dtype. Whoever would replace a library asks
another question, whether gradients become worse, so here are both errors of the output and of the gradients of q, k
and v, relative to the size of each: |found - truth| / |truth|. Dropout is left out, since everyone has bits of their
own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.workshop import attention_peers
from kernels.workshop.arena import Arena, OnDevice
from kernels.workshop.cases import Case
from kernels.workshop.contest import Contestant, attempt, distances
from kernels.workshop.peer_calls import Call, Given
from kernels.workshop.variants import fresh, widened

RESULTS = ("out", "dq", "dk", "dv")


def lines(
    kernel: Any,
    dtype: torch.dtype,
    device: torch.device,
    cases: Sequence[Case],
    peer: Callable[[Given], Call] = attention_peers.flash_2,
) -> Iterator[str]:
    """A line for each case that does not drop."""
    yield f"attention, {str(dtype).removeprefix('torch.')}, error against fp64, ours / FlashAttention-2"
    for case in cases:
        if case.get("p"):
            continue
        found, failed = attempt(lambda case=case: errors(kernel, dtype, device, case, peer))
        if failed is not None:
            yield f"  {case.name:32}{failed}"
            continue
        ours, theirs, reason = found
        beside = ["-"] * len(RESULTS) if theirs is None else [f"{x:.1e}" for x in theirs]
        cells = [f"{what} {x:.1e} / {y}" for what, x, y in zip(RESULTS, ours, beside, strict=True)]
        yield f"  {case.name:32}{', '.join(cells)}" + (f"  ({reason})" if reason else "")


def errors(
    kernel: Any, dtype: torch.dtype, device: torch.device, case: Case, peer: Callable[[Given], Call]
) -> tuple[list[float], list[float] | None, str | None]:
    """Ours, the peer's or None, and why the peer has none."""
    given = kernel.arguments(case, OnDevice(dtype, device, torch.Generator().manual_seed(0))) | {"drop": None}
    truth = _results(lambda **own: kernel.reference(**own)[0], widened(given), dtype)
    ours = distances(_results(lambda **own: kernel.fused(**own)[0], fresh(given), dtype), truth)
    found, failed = attempt(lambda: distances(_results(lambda **own: peer(own)(), fresh(given), dtype), truth))
    return ours, found, failed


def _results(function: Any, given: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    contestant = Contestant("", "", lambda: lambda: function(**given), Arena(given, (), dtype))
    contestant.prepare()
    return contestant.results()
