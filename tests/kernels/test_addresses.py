"""Rows may lie further apart than int32 can count: logits of 128 k texts pass 2^31 values, and a view passes it sooner.

A wrong address crashes the process, so each of these runs in a child.
"""

import signal
import subprocess
import sys

from kernels.registry import KERNELS
from tests.conftest import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.kernels.far_rows", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_rows_far_apart_give_what_rows_close_together_give():
    result = run(*KERNELS)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    assert result.stdout.split() == list(KERNELS)


def test_a_kernel_with_short_addresses_crashes_there():
    result = run("short")
    assert result.returncode == -signal.SIGSEGV, f"{result.returncode} {result.stdout}{result.stderr}"
