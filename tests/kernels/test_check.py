"""The check itself, on functions of PyTorch that are wrong in one way each, and its command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.cli import main
from kernels.registry import KERNELS
from kernels.workshop.cases import Case, Draw
from kernels.workshop.check import check_case, check_kernel, red_findings
from kernels.workshop.sanitize import run_small
from kernels.workshop.variants import apart, left_over_is_nan
from tests.conftest import ROOT

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16)


def scaled(x_ND: Tensor, weight_D: Tensor, hidden_ND: Tensor) -> Tensor:
    """The operation of these tests: x * weight; hidden is not looked at."""
    return x_ND * weight_D.to(x_ND.dtype)


def toy(fused: Callable[..., Any], **more: Any) -> Any:
    """A kernel's file whose `fused` is this function."""

    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        size = (case["N"], case["D"])
        return {
            "x_ND": draw.normal(*size, grad=True),
            "weight_D": draw.parameter(case["D"]),
            "hidden_ND": draw.normal(*size),
        }

    cases = (Case("five rows", {"N": 5, "D": 7}), Case("no rows", {"N": 0, "D": 7}))
    return SimpleNamespace(
        __name__="kernels.toy",
        reference=scaled,
        fused=lambda x_ND, weight_D, hidden_ND: fused(x_ND, weight_D, hidden_ND),
        CASES=cases,
        TIMED=(),
        arguments=arguments,
        poison=lambda given: given | {"hidden_ND": torch.full_like(given["hidden_ND"], torch.nan)},
        **more,
    )


def wider(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return (x.double() * weight.double()).to(x.dtype)


def test_another_order_of_rounding_is_right():
    assert red_findings(toy(wider), DTYPES, CPU) == []


def missing_factor(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return x * weight.to(x.dtype) * 0.99


def dropped_gradient(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return x * weight.detach().to(x.dtype) + 0 * weight.sum().to(x.dtype)


def unwritten_column(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[:, :-1] = (x * weight)[:, :-1]
    return y


def written_input(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    y = x * weight.to(x.dtype)
    hidden.add_(1)
    return y


def rows_taken_for_close(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return x.as_strided(x.shape, (x.shape[1], 1)) * weight.to(x.dtype)


def one_column_too_far(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    beyond = 0 * x.detach().as_strided(x.shape, x.stride(), x.storage_offset() + 1) if x.stride(0) > x.shape[1] else 0
    return x * weight.to(x.dtype) + beyond


def looks_at_what_is_hidden(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return x * weight.to(x.dtype) + 0 * hidden


def never_the_same_twice(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return x * weight.to(x.dtype) * (1 + torch.finfo(x.dtype).eps * torch.randint(2, x.shape).to(x.dtype))


class _Close(torch.autograd.Function):
    """Takes the gradient's rows for ones that follow each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        together = 1 if dy.is_contiguous() else 0
        return dy * weight.to(x.dtype) * together, (dy * x).sum(0).to(weight.dtype)


def gradient_taken_for_close(x: Tensor, weight: Tensor, hidden: Tensor) -> Tensor:
    return _Close.apply(x, weight)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    "wrong, what",
    [
        (missing_factor, "output 0"),
        (dropped_gradient, "gradient of weight_D"),
        (unwritten_column, "output 0"),
        (written_input, "hidden_ND, an input, which is written"),
        (rows_taken_for_close, "output 0, rows apart"),
        (one_column_too_far, "output 0, rows apart"),
        (looks_at_what_is_hidden, "output 0, NaN where it must not look"),
        (never_the_same_twice, "output 0, run again"),
        (gradient_taken_for_close, "gradient of x_ND, of a sum"),
    ],
)
def test_what_is_wrong_is_named(wrong: Callable[..., Any], what: str):
    torch.manual_seed(0)
    assert what in {finding.what for finding in red_findings(toy(wrong), DTYPES, CPU)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_sees_a_missing_factor(dtype: torch.dtype):
    kernel = toy(missing_factor)
    found = check_case(kernel, kernel.CASES[0], dtype, CPU)
    assert not next(finding for finding in found if finding.what == "output 0").passed


def test_variants_are_run_in_the_narrowest_dtype():
    found = {(finding.dtype, finding.what) for finding in check_kernel(toy(wider), DTYPES, CPU)}
    apart_in = {dtype for dtype, what in found if "rows apart" in what}
    assert apart_in == {"float16"}


def test_another_shape_or_dtype_is_an_error():
    for wrong in (lambda x, weight, hidden: wider(x, weight, hidden)[:, :3], lambda x, weight, hidden: x.double()):
        with pytest.raises(ValueError, match="and the reference's"):
            red_findings(toy(wrong), DTYPES, CPU)


def test_left_over_memory_is_nan_or_the_largest_number():
    with left_over_is_nan():
        assert torch.empty(3).isnan().all()
        assert torch.empty(3, dtype=torch.float16).new_empty(2).isnan().all()
        assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_rows_apart_hold_the_same_numbers_and_nan_between_them():
    x = torch.arange(24.0).view(2, 3, 4)
    view = apart(x)
    assert torch.equal(view, x)
    assert view.stride() == (25, 4, 1)
    assert view.as_strided((2, 25), (25, 1), 0).isnan().sum() == 25 + 13


# ------------------------------------------------------------------ the command


def test_a_green_kernel_is_a_line_for_each_dtype(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(KERNELS, "toy", toy(wider))
    assert main(["check", "toy"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[:2]] == [["ok", "toy", "float32"], ["ok", "toy", "float16"]]
    assert "0 of " in out


def test_a_red_kernel_is_exit_status_1_and_its_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(KERNELS, "toy", toy(missing_factor))
    assert main(["check", "toy", "--dtype", "float32"]) == 1
    out = capsys.readouterr().out
    assert "RED toy" in out
    assert "toy, five rows, float32, output 0: error" in out
    assert main(["check", "toy", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert {(finding["what"], finding["passed"]) for finding in found} >= {("output 0", False), ("inputs", True)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["chekc"], "unknown command; did you mean 'check'?"),
        ([], "name a command: check, inspect, bench"),
        (["check", "glue"], "glue: no such kernel; did you mean 'glu'?"),
        (["check", "--dtype", "float8"], "--dtype float8: unknown; choose float32, float16, bfloat16"),
        (["check", "--dtype", "bfloat16"], "Triton's interpreter computes it wrongly"),
        (["check", "--fast"], "unrecognized arguments: --fast"),
        (["check", "--sanitize", "--json"], "have no effect"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_gpu_and_interpreter_it_stops_with_the_remedy():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels", "check"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "set TRITON_INTERPRET=1" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_sanitize_without_its_tool_or_a_gpu_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "--sanitize"]) == 2
    assert "--sanitize: compute-sanitizer" in capsys.readouterr().err


def test_what_runs_under_the_sanitizer_runs(capsys: pytest.CaptureFixture[str]):
    run_small(["glu", "adamw"])
    assert capsys.readouterr().out == "glu: ran\nadamw: ran\n"
