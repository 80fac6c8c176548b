"""`python -m kernels inspect`: a table of what the compiler made of the kernels, and what is wrong with it."""

import argparse
import json
import os
import sys
from typing import Any

import triton
from tqdm import tqdm

from kernels.launch import INTERPRETED
from kernels.workshop.inspection import (
    LIMITS_KB,
    Inspected,
    broken_rules,
    how_of,
    inspect,
    name_of,
    shipped,
    unmet,
    widths,
)
from kernels.workshop.names import named
from pixelcore.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels, all of them where there is none")
    known = ", ".join(str(architecture) for architecture in LIMITS_KB)
    parser.add_argument("--arch", action="append", type=int, metavar="SM", help=f"{known}; may be repeated (all)")
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output")


def run(options: argparse.Namespace) -> int:
    if INTERPRETED:
        raise UserError("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it for inspect")
    for architecture in options.arch or ():
        if architecture not in LIMITS_KB:
            raise UserError(f"--arch {architecture}: unknown; choose {', '.join(map(str, LIMITS_KB))}")
    launches = [launch for kernel in named(options.names).values() for launch in shipped(kernel)]
    architectures = options.arch or list(LIMITS_KB)
    total = sum(launch.runs_on(architecture) for launch in launches for architecture in architectures)
    progress = tqdm(
        inspect(launches, architectures, os.cpu_count() or 1),
        total=total,
        desc="compiling",
        unit="launch",
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    found = list(progress)
    broken = [line for x in found for line in broken_rules(x)] + ([] if options.names else unmet(launches))
    if options.json:
        print(json.dumps({"triton": triton.__version__, "launches": [_as_json(x) for x in found], "broken": broken}))
    else:
        print(_table(found), "", *broken, sep="\n")
        print(f"Triton {triton.__version__}: {total} compilations, {len(broken)} complaints")
    return 1 if broken else 0


def _table(found: list[Inspected]) -> str:
    heads = ("kernel", "sm", "regs", "stack", "shared KB", "tmem", "loads", "stores", "tensor cores", "instructions")
    rows: list[tuple[str, ...]] = [(*heads, "launch", "shapes")]
    for x in found:
        device = f" ({x.shipped.device})" if x.shipped.device else ""
        rows.append(
            (
                name_of(x),
                str(x.architecture),
                str(x.registers),
                str(x.stack),
                f"{x.shared / 1024:.1f} of {LIMITS_KB[x.architecture]}",
                str(x.tensor_memory or "-"),
                widths(x.loads),
                widths(x.stores),
                " ".join(f"{count} {name}" for name, count in x.tensor_cores.items()) or "-",
                str(x.instructions),
                how_of(x.shipped.launch.how) + device,
                "; ".join(x.shipped.cases),
            )
        )
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(size) for cell, size in zip(row, sizes)).rstrip() for row in rows)


def _as_json(x: Inspected) -> dict[str, Any]:
    how = x.shipped.launch.how
    return {
        "kernel": name_of(x),
        "architecture": x.architecture,
        "device": x.shipped.device,
        "dtype": str(x.shipped.dtype).removeprefix("torch."),
        "cases": x.shipped.cases,
        "tiles": dict(how.tiles),
        "num_warps": how.num_warps,
        "num_stages": how.num_stages,
        "registers": x.registers,
        "stack": x.stack,
        "shared": x.shared,
        "tensor_memory": x.tensor_memory,
        "loads": x.loads,
        "stores": x.stores,
        "narrow": x.narrow,
        "tensor_cores": x.tensor_cores,
        "instructions": x.instructions,
    }
