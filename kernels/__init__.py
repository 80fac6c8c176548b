"""Hand-written kernels behind the functions of `pixelcore.ops`, and the choice between them.

No fused kernel is built yet: `choose_ops` gives the reference everywhere and refuses a request for fused ones, rather
than quietly running something else under that name.
"""

import torch

from pixelcore.errors import UserError
from pixelcore.ops import REFERENCE, Ops


def choose_ops(device: torch.device | str, choice: str = "auto") -> Ops:
    """The operations to run on a device. choice: "auto" (the fastest that is built for it), "reference", "fused".

    Raises UserError where fused operations are asked for and cannot run.
    """
    if choice in ("auto", "reference"):
        return REFERENCE
    if choice == "fused":
        raise UserError(f"--ops fused: there are no fused kernels for device {device} yet; use --ops reference or auto")
    raise UserError(f"--ops {choice}: unknown; choose auto, reference or fused")
