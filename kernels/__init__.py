"""Hand-written kernels behind the functions of `pixelcore.ops`, and the choice between them.

`choose_ops` gives the reference unless fused operations are asked for by name. Nothing has been measured on a GPU yet,
so "auto" is the reference everywhere; it becomes the fused record on CUDA devices when there it is proven to be right
and faster. A request for fused operations that cannot run is refused with the remedy, and never answered by something
else. Triton is imported with the fused record and not before.
"""

from importlib.util import find_spec

import torch

from pixelcore.errors import UserError
from pixelcore.ops import REFERENCE, Ops
from pixelcore.step_ops import StepOps


def choose_ops(device: torch.device | str, choice: str = "auto") -> Ops:
    """The operations to run on a device. choice: "auto" (for now the reference), "reference", "fused".

    Raises UserError where fused operations are asked for and cannot run.
    """
    if choice in ("auto", "reference"):
        return REFERENCE
    if choice == "fused":
        return _fused(torch.device(device))
    raise UserError(f"--ops {choice}: unknown; choose auto, reference or fused")


def step_ops_of(ops: Ops) -> StepOps | None:
    """The operations of a decoding step that belong to a record; None for the reference, whose models run as they
    are."""
    if ops is REFERENCE:
        return None
    from kernels.record import FUSED, STEP_FUSED

    return STEP_FUSED if ops is FUSED else None


def _fused(device: torch.device) -> Ops:
    if find_spec("triton") is None:
        raise UserError("--ops fused: the kernels are written in Triton, which is not installed; use --ops reference")
    from kernels.launch import INTERPRETED

    if device.type == "cuda" and INTERPRETED:
        raise UserError(f"--ops fused: TRITON_INTERPRET is set, which runs kernels on the CPU; unset it for {device}")
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        raise UserError(
            f"--ops fused: kernels run on CUDA devices and not on {device}; use --ops reference, or look at them on a "
            "CPU, slowly, with TRITON_INTERPRET=1"
        )
    from kernels.record import FUSED

    return FUSED
