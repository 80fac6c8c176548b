"""Launches that break each rule of the inspection, and the program that inspects them beside the registered kernels.

`report` runs in a process of its own: where Triton's interpreter is chosen, as it is for the tests, nothing can be
compiled.
"""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.cli import main
from kernels.launch import Entry, Launch, choose, launch
from kernels.registry import KERNELS
from kernels.workshop.cases import Case, Draw

TIMED = (Case("spoiled", {"N": 100_000, "D": 4096}),)

DEFAULT = Launch({"TILE": 8192}, num_warps=1)


@triton.jit
def _spills_kernel(x_ptr, y_ptr, TILE: tl.constexpr):
    """Holds 256 values a thread until their sum is known."""
    column = tl.arange(0, TILE)
    x = tl.load(x_ptr + column).to(tl.float32)
    tl.store(y_ptr + column, x / tl.sum(x))


@triton.jit
def _narrow_kernel(x_ptr, y_ptr, stride, TILE: tl.constexpr):
    """Rows begin an odd number of values apart."""
    at = tl.program_id(0).to(tl.int64) * stride + tl.arange(0, TILE)
    x = tl.load(x_ptr + at)
    # narrow: excused, so that only the line above is complained of
    tl.store(y_ptr + at, x * 2)


@triton.jit
def _product_kernel(x_ptr, y_ptr, D: tl.constexpr, PRECISE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr):
    row, deep = tl.arange(0, TILE)[:, None], tl.arange(0, DEPTH)
    y = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, D, DEPTH):
        a = tl.load(x_ptr + row * D + start + deep[None])
        b = tl.load(x_ptr + tl.arange(0, TILE)[None] * D + start + deep[:, None])
        if PRECISE:
            y = tl.dot(a.to(tl.float32), b.to(tl.float32), y, input_precision="ieee")
        else:
            y = tl.dot(a, b, y)
    tl.store(y_ptr + row * TILE + tl.arange(0, TILE)[None], y.to(tl.bfloat16))


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    return {"x_ND": draw.normal(case["N"], case["D"])}


def fused(x_ND: Tensor) -> Tensor:
    y_ND = torch.empty_like(x_ND)
    how = choose("spoiled", x_ND, DEFAULT, DEFAULT, columns=x_ND.shape[1])
    launch(_spills_kernel, (1,), how, x_ND, y_ND)
    launch(_narrow_kernel, (8,), Launch({"TILE": 1024}), x_ND, y_ND, 4095)
    for stages, precise, tile, warps in ((4, False, 128, 8), (2, False, 128, 8), (1, True, 32, 2)):
        tiles = Launch({"TILE": tile, "DEPTH": tile}, warps, stages)
        launch(_product_kernel, (1,), tiles, x_ND, y_ND, D=x_ND.shape[1], PRECISE=precise)
    return y_ND


def report() -> None:
    """Print what `inspect` finds in the registered kernels and in this file, as JSON."""
    table = (
        Entry("spoiled", "NVIDIA H200", "bfloat16", {"columns": 4096}, Launch({"TILE": 2048}, num_warps=8)),
        Entry("spoiled", "NVIDIA H200", "bfloat16", {"columns": 8192}, Launch({"TILE": 1024})),
        Entry("spoiled", "NVIDIA A100 80GB", "bfloat16", {"columns": 4096}, Launch({"TILE": 2048})),
    )
    registered = _inspected()
    here: Any = sys.modules[__name__]
    with patch.dict(KERNELS, {"spoiled": here}, clear=True), patch("kernels.launch.entries", lambda: table):
        with patch("kernels.workshop.inspection.entries", lambda: table):
            spoiled = _inspected()
    print(json.dumps({"registered": registered, "spoiled": spoiled}))


def _inspected() -> dict[str, Any]:
    with redirect_stdout(StringIO()) as printed:
        status = main(["inspect", "--arch", "90", "--json"])
    return {"status": status, **json.loads(printed.getvalue())}
