"""Kernels under NVIDIA's compute-sanitizer: addresses outside of allocations (memcheck), and threads of a program that
meet in shared memory without a barrier between them (racecheck).

The interpreter runs one program after the other on memory of the CPU, so neither fault shows there. The tool makes a
program many times slower: a child process runs one small case of each kernel, forward and backward, under it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import torch

from kernels.workshop.cases import Case, Draw, Kernel
from kernels.workshop.names import named
from pixelcore.errors import UserError

_TOOLS = ("memcheck", "racecheck")
_USUAL_PLACE = "/usr/local/cuda/bin/compute-sanitizer"


def sanitize(names: Sequence[str]) -> int:
    """Run the tools over small cases of these kernels; returns the exit status."""
    program = shutil.which("compute-sanitizer") or shutil.which(_USUAL_PLACE)
    if program is None:
        raise UserError("--sanitize: compute-sanitizer is not on the PATH; it comes with NVIDIA's CUDA toolkit")
    if not torch.cuda.is_available():
        raise UserError("--sanitize: compute-sanitizer looks at a GPU, and there is none")
    return max(_under(program, tool, names) for tool in _TOOLS)  # pragma: gpu


def _under(program: str, tool: str, names: Sequence[str]) -> int:  # pragma: gpu
    code = f"from kernels.workshop.sanitize import run_small; run_small({list(names)!r})"
    command = [program, "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", code]
    # without PyTorch's own pool every tensor is an allocation, whose bounds the tool knows
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    environment.pop("TRITON_INTERPRET", None)
    status = subprocess.run(command, env=environment).returncode
    print(f"{tool}: {'ok' if status == 0 else f'RED, exit status {status}'}")
    return min(status, 1) if status >= 0 else 1


def run_small(names: Sequence[str]) -> None:
    """Forward and backward of the small case of each kernel, on the GPU or in the interpreter."""
    from kernels.launch import INTERPRETED  # here: it imports Triton

    device = torch.device("cpu" if INTERPRETED else "cuda")
    for name, kernel in named(names).items():
        draw = Draw(torch.float32, device, torch.Generator().manual_seed(0))
        outputs = kernel.fused(**kernel.arguments(small(kernel), draw))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        reached = [x for x in outputs if x is not None and x.requires_grad]
        torch.autograd.backward(reached, [torch.ones_like(x) for x in reached])
        print(f"{name}: ran")


def small(kernel: Kernel) -> Case:
    """The case that a kernel's file calls SMALL, else the first of its cases with more than one row."""
    return getattr(kernel, "SMALL", None) or kernel.CASES[1]
