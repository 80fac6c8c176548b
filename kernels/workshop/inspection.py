"""What does the compiler make of a kernel? Found without a GPU, for every architecture.

The launches are collected, not listed: the models' shapes are run through `fused`, forward and backward, on tensors of
the CPU whose results are left unwritten (`kernels.launch.recorded`), so what is looked at is what the models start. The
rows are cut down to a few hundred, because the compiler sees no more of their number than whether 16 divides it; the
widths stay. Each launch is specialised by Triton's own launcher, compiled for a GPU that is not there, and the machine
code is read back with the disassembler that Triton brings along.

What is known before anything runs:

    registers and stack    a stack of more than 0 bytes is a spill: values that did not fit wait in memory
    shared memory          more than an architecture has, and the launch fails there
    widths of the loads    16 bytes a thread is one instruction where 2 bytes would be eight; one lost fact about the
                           alignment of an address or of a mask is enough to lose it, and no error says so
    tensor cores           a product that misses them is ten times slower, and no error says so either
"""

import hashlib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import create_function_from_signature

from kernels.launch import Entry, Launch, Recorded, entries, recorded
from kernels.workshop import accesses
from kernels.workshop.cases import Case, Draw, Kernel

LIMITS_KB = {80: 163, 86: 99, 90: 227, 100: 227, 120: 99}  # of shared memory that one program may have
SAFE_KB = min(LIMITS_KB.values())
TENSOR_COLUMNS = 512  # of tensor memory, where there is any

_ARCHITECTURES = {"A100": 80, "RTX 3090": 86, "H100": 90, "H200": 90, "B200": 100, "RTX 5090": 120}
_ROWS = frozenset(["N", "M", "P", "B", "R", "L", "T"])  # sizes that count rows, see pixelcore/shapes.py
_FEW = 256


@dataclass(frozen=True)
class Shipped:
    """A launch that the models make. cases: the shapes from which it comes. device: the GPU for which `launches.toml`
    names it; None for a default, which must run on every architecture."""

    kernel: str
    dtype: torch.dtype
    cases: tuple[str, ...]
    device: str | None
    launch: Recorded

    def runs_on(self, architecture: int) -> bool:
        return self.device is None or architecture_of(self.device) == architecture


@dataclass(frozen=True)
class Inspected:
    """A launch as it was compiled for one architecture.

    stack, shared: bytes. tensor_memory: columns. loads, stores: how many instructions on global memory move so many
    bytes a thread. narrow: lines that move main tiles in small pieces. multiplies: contains tl.dot.
    """

    shipped: Shipped
    architecture: int
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    loads: Mapping[int, int]
    stores: Mapping[int, int]
    narrow: Sequence[str]
    tensor_cores: Mapping[str, int]
    instructions: int
    multiplies: bool


def shipped(kernel: Kernel) -> list[Shipped]:
    """The launches of a kernel's timed shapes, each once however many shapes make it: the defaults in bf16, and what
    was measured on each device."""
    found: dict[tuple[str, ...], Shipped] = {}
    wanted = dict.fromkeys([(None, torch.bfloat16), *((x.device, dtype) for x in entries() for dtype in _dtypes(x))])
    for device, dtype in wanted:
        for case in kernel.TIMED:
            for launch in _launches(kernel, _few_rows(case), dtype, device):
                if device and not any(launch.how is x.how for x in entries()):
                    continue  # a default, which the first round found
                source, options = _specialised(launch, max(LIMITS_KB))
                key = (str(device), source.hash(), str(options))
                cases = dict.fromkeys([*(found[key].cases if key in found else ()), case.name])
                name = kernel.__name__.rsplit(".", 1)[-1]
                found[key] = Shipped(name, dtype, tuple(cases), device, launch)
    return list(found.values())


def _dtypes(entry: Entry) -> tuple[torch.dtype, ...]:
    """Of the activations under which an entry may be met: it names those of a parameter where these are chosen by."""
    return torch.bfloat16, getattr(torch, entry.dtype)


def unmet(launches: Sequence[Shipped]) -> list[str]:
    """A line for each entry of `launches.toml` that none of the launches came from."""
    return [
        f"launches.toml: {x.op}, {x.device}, {x.dtype}, {dict(x.sizes)}: no timed shape of a kernel asks for it"
        for x in entries()
        if not any(launch.launch.how is x.how for launch in launches)
    ]


def architecture_of(device: str) -> int:
    """Raises ValueError for a device that is not known here."""
    for name, architecture in _ARCHITECTURES.items():
        if name in device:
            return architecture
    raise ValueError(f"{device}: which architecture is it? Its name belongs into {Path(__file__).name}")


def _few_rows(case: Case) -> Case:
    """The case with at most a few hundred rows, of which 16 divides as many as it did before."""
    few = {
        name: _FEW + size % 16 if name in _ROWS and isinstance(size, int) and size > _FEW else size
        for name, size in case.sizes.items()
    }
    return Case(case.name, few)


def _launches(kernel: Kernel, case: Case, dtype: torch.dtype, device: str | None) -> list[Recorded]:
    given = kernel.arguments(case, Draw(dtype, torch.device("cpu"), torch.Generator().manual_seed(0)))
    with recorded(device) as launches:
        outputs = kernel.fused(**given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        reached = [x for x in outputs if isinstance(x, Tensor) and x.requires_grad]
        if reached:
            leaves = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(reached, leaves, [torch.ones_like(x) for x in reached])
    return launches


def _specialised(launch: Recorded, architecture: int) -> tuple[ASTSource, dict[str, Any]]:
    """What the launcher would give the compiler: which numbers and addresses 16 divides, which numbers are 1."""
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    named = {**launch.constants, **launch.how.tiles}
    named |= {"num_warps": launch.how.num_warps, "num_stages": launch.how.num_stages}
    bind = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    bound, specialization, options = bind(*launch.arguments, **named)
    options, signature, constants, attributes = launch.kernel._pack_args(backend, named, bound, specialization, options)
    return ASTSource(launch.kernel, signature, constants, attributes), dict(options.__dict__)


def inspect(launches: Sequence[Shipped], architectures: Sequence[int], workers: int) -> Iterator[Inspected]:
    """Compile every launch for every architecture on which it runs. Results come in order; most of the work is done
    outside Python, so threads share it."""
    pairs = [(x, architecture) for x in launches for architecture in architectures if x.runs_on(architecture)]
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda pair: _inspect_one(*pair), pairs)


def _inspect_one(shipped: Shipped, architecture: int) -> Inspected:
    source, options = _specialised(shipped.launch, architecture)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return Inspected(shipped, architecture, **_measured(compiled))


def _measured(compiled: Any) -> dict[str, Any]:
    """What stands in the machine code. Kept beside it in Triton's cache, under a name that changes with this file."""
    kept = get_cache_manager(compiled.hash)
    name = f"inspected-{_own_hash()}.json"
    path = kept.get_file(name)
    if path is None:
        binary = Path(next(path for path in compiled.metadata_group.values() if path.endswith(".cubin")))
        found = _read(_disassembled(binary))
        found["shared"] = compiled.metadata.shared
        found["tensor_memory"] = getattr(compiled.metadata, "tmem_size", None) or 0
        found["narrow"] = accesses.narrow_accesses(compiled.asm["ttgir"], compiled.asm["ptx"])
        found["multiplies"] = "tt.dot" in compiled.asm["ttir"]
        path = kept.put(json.dumps(found), name, binary=False)
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return found | {way: {int(width): count for width, count in found[way].items()} for way in ("loads", "stores")}


@cache
def _own_hash() -> str:
    files = (Path(__file__), Path(accesses.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _disassembled(binary: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    texts = (subprocess.run([tool, flag, binary], capture_output=True, text=True) for flag in ("-res-usage", "-sass"))
    return "".join(done.stdout for done in texts)


def _read(text: str) -> dict[str, Any]:
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage, f"cuobjdump said nothing of registers:\n{text[:500]}"
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", text, re.MULTILINE)
    parts = [operation.split(".") for operation in operations]
    return {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "loads": Counter(_width(rest) for first, *rest in parts if first in ("LDG", "LDGSTS")),
        "stores": Counter(_width(rest) for first, *rest in parts if first == "STG"),
        "tensor_cores": Counter(first for first, *_ in parts if first.endswith("MMA")),
        "instructions": sum(operation != "NOP" for operation in operations),
    }


def _width(modifiers: Sequence[str]) -> int:
    """Bytes that one thread moves; the code names them where they are not four."""
    for bits in (256, 128, 64, 16, 8):
        if any(modifier in (str(bits), f"U{bits}", f"S{bits}") for modifier in modifiers):
            return bits // 8
    return 4


# ------------------------------------------------------------------ what must hold


def broken_rules(x: Inspected) -> list[str]:
    """One line for each rule that a launch breaks."""
    rules: dict[str, Callable[[Inspected], str | None]] = {
        "spills": _spills,
        "shared memory": _shared_memory,
        "tensor memory": _tensor_memory,
        "tensor cores": _tensor_cores,
        "narrow accesses": _narrow_accesses,
    }
    complaints = {rule: complain(x) for rule, complain in rules.items()}
    place = f"{name_of(x)}, sm_{x.architecture}, {x.shipped.cases[0]}"
    return [f"{place}: {rule}: {complaint}" for rule, complaint in complaints.items() if complaint]


def name_of(x: Inspected) -> str:
    """As in "glu.forward"."""
    return f"{x.shipped.kernel}.{x.shipped.launch.kernel.__name__.strip('_').removesuffix('_kernel')}"


def _spills(x: Inspected) -> str | None:
    if x.stack == 0:
        return None
    return f"{x.stack} bytes of stack at {x.registers} registers: smaller tiles or more warps"


def _shared_memory(x: Inspected) -> str | None:
    if x.shared > LIMITS_KB[x.architecture] * 1024:
        return f"{x.shared / 1024:.0f} KB, and a program has {LIMITS_KB[x.architecture]} KB"
    if x.shipped.device is None and x.shared > SAFE_KB * 1024:
        return f"{x.shared / 1024:.0f} KB, and a default must run where there are {SAFE_KB} KB"
    return None


def _tensor_memory(x: Inspected) -> str | None:
    if x.tensor_memory <= TENSOR_COLUMNS:
        return None
    return f"{x.tensor_memory} columns, and there are {TENSOR_COLUMNS}"


def _tensor_cores(x: Inspected) -> str | None:
    if x.tensor_cores or not x.multiplies or x.shipped.dtype.itemsize != 2:
        return None
    return "tl.dot without an instruction of the tensor cores"


def _narrow_accesses(x: Inspected) -> str | None:
    folder = Path(x.shipped.launch.kernel.fn.__code__.co_filename).parent
    return "; ".join(phrase for phrase in x.narrow if not _excused(folder / phrase.split(":")[0], phrase)) or None


def _excused(file: Path, phrase: str) -> bool:
    """Whether the comment above the line says `# narrow: ` and why it cannot be otherwise."""
    if not file.is_file():
        return False
    before = file.read_text(encoding="utf-8").splitlines()[: int(phrase.split(":")[1].split()[0]) - 1]
    comment = list(takewhile(lambda line: line.startswith("#"), map(str.strip, reversed(before))))
    return any(line.startswith("# narrow: ") for line in comment)


def widths(counts: Mapping[int, int]) -> str:
    """As in "2x16 1x4": two instructions of 16 bytes a thread, one of 4."""
    return " ".join(f"{count}x{width}" for width, count in sorted(counts.items(), reverse=True)) or "-"


def how_of(x: Launch) -> str:
    sizes = " ".join(f"{name.lower()} {size}" for name, size in x.tiles.items())
    return f"{sizes} warps {x.num_warps} stages {x.num_stages}".strip()
