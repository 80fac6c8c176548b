"""`python -m kernels check`: every kernel against its budgets, a line for each kernel and dtype.

On a CPU the kernels run in Triton's interpreter, in fp32 and fp16: bf16 is wrong there (it is kept as whole numbers,
and a product of them is a product of bit patterns). On a GPU bf16 joins them, and the real shapes.
"""

import argparse
import json
import math
import os
import sys

import torch
from tqdm import tqdm

from kernels.workshop.attention_errors import lines
from kernels.workshop.check import Finding, cases_on, findings, narrowest
from kernels.workshop.names import named
from kernels.workshop.sanitize import sanitize
from pixelcore.errors import UserError

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels, all of them where there is none")
    choices = ", ".join(_DTYPES)
    parser.add_argument("--dtype", action="append", metavar="D", help=f"{choices}; may be repeated (all that run here)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the numbers that are drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="every comparison as JSON on standard output")
    parser.add_argument("--sanitize", action="store_true", help="small cases on a GPU under compute-sanitizer instead")


def run(options: argparse.Namespace) -> int:
    kernels = named(options.names)
    if options.sanitize:
        if options.dtype or options.json or options.seed:
            raise UserError("--sanitize: runs one small case of each kernel; --dtype, --json and --seed have no effect")
        return sanitize(list(kernels))
    device, dtypes = _where(options.dtype)
    plan = [(name, dtype) for name in kernels for dtype in dtypes]
    total = sum(len(cases_on(kernels[name], device)) for name, _ in plan)
    everything: list[Finding] = []
    with tqdm(total=total, unit="case", disable=not sys.stderr.isatty(), leave=False) as progress:
        for name, dtype in plan:
            progress.set_description(f"{name}, {dtype}".replace("torch.", ""))
            found: list[Finding] = []
            cases = cases_on(kernels[name], device)
            for case in cases:
                found += findings(kernels[name], case, dtype, device, options.seed, dtype == narrowest(dtypes))
                progress.update()
            everything += found
            if not options.json:
                progress.write(_line(name, dtype, len(cases), found), file=sys.stdout)
                if name == "attention" and device.type == "cuda" and dtype.itemsize == 2:  # pragma: gpu
                    for line in lines(kernels[name], dtype, device, cases):
                        progress.write(line, file=sys.stdout)
    red = [finding for finding in everything if not finding.passed]
    if options.json:
        print(json.dumps({"device": str(device), "seed": options.seed, "findings": [_as_json(x) for x in everything]}))
    else:
        print(
            "\n".join(["", *(str(finding) for finding in red), f"{len(red)} of {len(everything)} comparisons failed"])
        )
    return 1 if red else 0


def _where(wanted: list[str] | None) -> tuple[torch.device, list[torch.dtype]]:
    from kernels.launch import INTERPRETED  # here: it imports Triton

    for name in wanted or ():
        if name not in _DTYPES:
            raise UserError(f"--dtype {name}: unknown; choose {', '.join(_DTYPES)}")
    if INTERPRETED:
        if "bfloat16" in (wanted or ()):
            raise UserError("--dtype bfloat16: Triton's interpreter computes it wrongly; check it on a GPU")
        return torch.device("cpu"), [_DTYPES[name] for name in wanted or ("float32", "float16")]
    if not torch.cuda.is_available():
        raise UserError("kernels run on a GPU, and there is none: set TRITON_INTERPRET=1 to check them on this CPU")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # pragma: gpu  (else products may not repeat)
    return torch.device("cuda"), [_DTYPES[name] for name in wanted or _DTYPES]  # pragma: gpu


def _line(name: str, dtype: torch.dtype, num_cases: int, found: list[Finding]) -> str:
    worst = max(found, key=lambda finding: finding.share)
    state = "ok " if all(finding.passed for finding in found) else "RED"
    share = f"{worst.share:6.1%}" if math.isfinite(worst.share) else "   all"
    return (
        f"{state} {name:14} {str(dtype).removeprefix('torch.'):9}{num_cases:3} cases {len(found):4} comparisons, "
        f"worst {share} of its budget: {worst.what}, {worst.case}"
    )


def _as_json(finding: Finding) -> dict[str, object]:
    error = finding.error if math.isfinite(finding.error) else None  # JSON has no infinity
    return {**vars(finding), "error": error, "passed": finding.passed}
