"""What every kernel of the registry must do: stay within its budgets, be differentiable, be an operation that PyTorch
can compile, and have the signature of its specification.

One test for each kernel and duty, so that a kernel that joins the registry is tested without another line here. The
interpreter takes milliseconds for a program whatever it computes, so what one call can tell is asked of one call.
"""

import inspect
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from kernels.register import REGISTERED
from kernels.registry import KERNELS
from kernels.workshop.cases import Draw, Kernel
from kernels.workshop.check import check_kernel
from kernels.workshop.sanitize import small
from kernels.workshop.variants import fresh
from pixelcore import ops, step_ops
from tests.conftest import ROOT

CPU = torch.device("cpu")
each_kernel = pytest.mark.parametrize("name", KERNELS)


class Calls(TorchDispatchMode):
    """The kernels' operations that are called, each with the smallest arguments that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.smallest: dict[Any, tuple[int, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "pixelcore":
            size = sum(x.numel() for x in args if isinstance(x, Tensor))
            if size and size < self.smallest.get(func, (size + 1,))[0]:
                self.smallest[func] = size, tree_map_only(Tensor, lambda x: x.detach().clone(), args)
        return func(*args, **(kwargs or {}))


@each_kernel
def test_it_stays_within_its_budgets_and_its_operations_keep_what_they_declare(name: str):
    kernel: Kernel = KERNELS[name]
    with Calls() as calls:
        found = list(check_kernel(kernel, (torch.float32, torch.float16), CPU))
    red = [str(finding) for finding in found if not finding.passed]
    assert not red, "\n".join(red)
    called = {operation.name() for operation in calls.smallest}
    own = {operation for operation in REGISTERED if operation.startswith(f"pixelcore::{name}_")}
    assert own <= called, f"no case of {name} calls {', '.join(own - called)}"
    for operation, (_, args) in calls.smallest.items():
        torch.library.opcheck(operation, args)


@each_kernel
def test_gradients_are_those_of_finite_differences(name: str):
    kernel: Kernel = KERNELS[name]
    given = drawn(kernel, torch.float64)
    leaves = {key: x for key, x in given.items() if isinstance(x, Tensor) and x.requires_grad}
    if not leaves:
        return  # nobody differentiates it

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        return floats(kernel.fused(**given | dict(zip(leaves, values, strict=True))))

    function = (
        outputs if all(x.dim() for x in outputs(*leaves.values())) else lambda *x: _AnyGradient.apply(outputs, *x)
    )
    assert gradcheck(function, tuple(leaves.values()), check_undefined_grad=False, fast_mode=True)


class _AnyGradient(torch.autograd.Function):
    """A loss is written with its finished gradient, whose factor is one. gradcheck tries others: here they multiply."""

    @staticmethod
    def forward(ctx: Any, outputs: Any, *values: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in values]
            (loss,) = outputs(*leaves)
        ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *(dy * x for x in ctx.saved_tensors)


@each_kernel
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own compiler does
def test_compiled_as_one_graph_it_gives_the_same(name: str):
    kernel: Kernel = KERNELS[name]
    given = drawn(kernel, torch.float32)
    if not any(isinstance(x, Tensor) and x.requires_grad for x in given.values()):
        return  # an optimizer's, which is no part of a model's graph
    torch._dynamo.reset()
    compiled = torch.compile(kernel.fused, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled, given), results(kernel.fused, given), strict=True):
        assert torch.equal(ours, theirs)


@each_kernel
def test_it_takes_what_its_specification_takes(name: str):
    kernel: Kernel = KERNELS[name]
    fused, reference = (
        [(x.name, x.kind, x.default) for x in inspect.signature(function).parameters.values()]
        for function in (kernel.fused, kernel.reference)
    )
    assert fused[: len(reference)] == reference
    for _, kind, default in fused[len(reference) :]:  # what only a kernel has to be told is never in the way
        assert kind == inspect.Parameter.KEYWORD_ONLY
        assert default is not inspect.Parameter.empty
    if name == "attention":  # the library's, which models call without kernels, keeps its log-sum-exp to itself
        assert kernel.reference is ops.softmax_attention
    elif name not in (
        "adamw",
        "decode_attention",
        "step_norm_qkv",
        "step_sample_token",
    ):  # these write in place, and are compared through copies
        specification = step_ops if name.startswith("step_") else ops
        assert kernel.reference is getattr(specification, name.removeprefix("step_"))


@pytest.mark.gpu
def test_all_kernels_are_right_on_a_gpu():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels", "check"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def drawn(kernel: Kernel, dtype: torch.dtype) -> dict[str, Any]:
    return kernel.arguments(small(kernel), Draw(dtype, CPU, torch.Generator().manual_seed(0)))


def floats(outputs: Any) -> tuple[Tensor, ...]:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(x for x in outputs if x is not None and x.is_floating_point())


def results(function: Any, given: Mapping[str, Any]) -> list[Tensor]:
    """Outputs, and the gradients for ones."""
    given = fresh(given)
    outputs = floats(function(**given))
    leaves = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
    reached = [x for x in outputs if x.requires_grad]
    gradients = torch.autograd.grad(reached, leaves, [torch.ones_like(x) for x in reached]) if leaves else ()
    return [*outputs, *gradients]
