"""`python -m kernels bench`: speed on this GPU, beside every peer, with everything one must know to believe it.

The table goes to standard output and a line for each finished case to standard error. `--json` keeps a book that a
later run continues, so a lease of ten minutes after another fills it. Exit status 1 where a case failed or a kernel
whose check is red was refused, 2 without a GPU: a speed that was not measured there is none.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.workshop.names import nearest
from pixelcore.errors import UserError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels or composites, all where there is none")
    parser.add_argument("--first", action="store_true", help="the machine instead: ceilings, launches, attention")
    parser.add_argument("--sweep", action="store_true", help="attention at all lengths instead: 128 to 16384")
    parser.add_argument("--dtype", default="bfloat16", metavar="D", help=f"{', '.join(_DTYPES)} (%(default)s)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no further case after so many seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the book: written after each case, and continued")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the ratios, PNG")


def run(options: argparse.Namespace) -> int:
    dtype = _check(options)
    from kernels.workshop.bench_report import check_plot, plot, report  # here: they import Triton

    if options.plot is not None:
        check_plot(options.plot)
    device = _device()
    from kernels.workshop import sweep  # pragma: gpu
    from kernels.workshop.bench import plan, run_plan  # pragma: gpu
    from kernels.workshop.book import Book, identity  # pragma: gpu
    from kernels.workshop.ceilings import ceilings  # pragma: gpu
    from kernels.workshop.contest import Setting  # pragma: gpu
    from kernels.workshop.first import first  # pragma: gpu
    from kernels.workshop.timing import CudaClock  # pragma: gpu

    chosen = _swept() if options.sweep else _chosen(options.names)  # pragma: gpu
    book = Book(options.json, identity(dtype, device))  # pragma: gpu
    clock = CudaClock(device)  # pragma: gpu
    if options.first:  # pragma: gpu
        well = first(device, clock, book, options.budget, _say)
    else:  # pragma: gpu
        setting = Setting(dtype, device, clock, ceilings(device, clock))
        cases = plan(chosen)
        if options.sweep:
            cases = [(chosen[0], case) for case in sweep.CASES]
        well = run_plan(cases, setting, book, options.budget, _say)
    print(sweep.report(book.record) if options.sweep else report(book.record))  # pragma: gpu
    if options.plot is not None:  # pragma: gpu
        (sweep.plot if options.sweep else plot)(book.record, options.plot)
    return 0 if well else 1  # pragma: gpu


def _check(options: argparse.Namespace) -> torch.dtype:
    if options.dtype not in _DTYPES:
        raise UserError(f"--dtype {options.dtype}: unknown; choose {', '.join(_DTYPES)}")
    if options.budget is not None and not options.budget > 0:
        raise UserError(f"--budget {options.budget:g}: seconds, so it must be positive")
    if options.first and (options.names or options.plot):
        raise UserError("--first measures the machine: names of kernels and --plot have no effect with it")
    if options.sweep and (options.first or options.names != ["attention"]):
        raise UserError("--sweep is of attention alone: python -m kernels bench attention --sweep")
    return _DTYPES[options.dtype]


def _device() -> torch.device:
    from kernels.launch import INTERPRETED

    if not torch.cuda.is_available():
        raise UserError("bench measures a GPU, and there is no CUDA device: run it on a machine with one")
    if INTERPRETED:  # pragma: gpu
        raise UserError("TRITON_INTERPRET is set: kernels would run in the interpreter; unset it to measure them")
    torch.set_float32_matmul_precision("highest")  # pragma: gpu
    return torch.device("cuda", torch.cuda.current_device())  # pragma: gpu


def _chosen(names: Sequence[str]) -> list[Any]:
    from kernels.registry import KERNELS
    from kernels.workshop.bench import subjects

    known = subjects(KERNELS)
    for name in names:
        if name not in known:
            raise UserError(f"{name}: no such kernel{nearest(name, known)}; choose {', '.join(known)}")
    return [known[name] for name in names or known]


def _swept() -> list[Any]:
    from kernels.registry import KERNELS
    from kernels.workshop.sweep import subject

    return [subject(KERNELS["attention"])]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
