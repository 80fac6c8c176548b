"""Three ways to run a layer of experts: grouped product, a loop over sorted rows, every expert on every row.

    python -m benchmarks.moe_forms

Measures the feed-forward layer of a small and a wide model (forward, and forward with backward) and prints JSON:
medians over interleaved runs, so that a machine that slows down slows every form alike. On a GPU in bf16, else on the
CPU in fp32.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# rows, width, hidden, experts, experts per row: a small model, then the widths of the 100m preset
SHAPES = [(512, 256, 688, 4, 2), (512, 768, 2048, 4, 2), (512, 768, 2048, 8, 2)]
NUM_RUNS = 5


def grouped(x_ND: Tensor, expert_NJ: Tensor, weight_NJ: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """What the model does: rows sorted by expert, one grouped product for each map."""
    return _by_expert(x_ND, expert_NJ, weight_NJ, gate_up, down, _grouped_product)


def sorted_loop(x_ND: Tensor, expert_NJ: Tensor, weight_NJ: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same sorted rows, one product for each expert."""
    return _by_expert(x_ND, expert_NJ, weight_NJ, gate_up, down, _loop_product)


def dense(x_ND: Tensor, expert_NJ: Tensor, weight_NJ: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The original's cost: all experts on all rows, weights of zero for those that were not chosen."""
    mix_NE = x_ND.new_zeros(len(x_ND), len(gate_up)).scatter(1, expert_NJ, weight_NJ)
    total = torch.zeros_like(x_ND)
    for expert in range(len(gate_up)):
        out_ND = F.linear(_glu(F.linear(x_ND, gate_up[expert])), down[expert])
        total = total + out_ND * mix_NE[:, expert : expert + 1]
    return total


FORMS = {"grouped": grouped, "sorted_loop": sorted_loop, "dense": dense}


def _by_expert(
    x_ND: Tensor, expert_NJ: Tensor, weight_NJ: Tensor, gate_up: Tensor, down: Tensor, product: Callable[..., Tensor]
) -> Tensor:
    top_k = expert_NJ.shape[1]
    order = expert_NJ.flatten().argsort(stable=True)
    ends_E = torch.bincount(expert_NJ.flatten(), minlength=len(gate_up)).cumsum(0).to(torch.int32)
    inner = _glu(product(x_ND[order // top_k], gate_up, ends_E))
    out_NJD = product(inner, down, ends_E)[order.argsort()].unflatten(0, (-1, top_k))
    return (out_NJD * weight_NJ[..., None]).sum(1)


def _grouped_product(x_ND: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(x_ND, weight_EOD.transpose(1, 2), offs=ends_E)


def _loop_product(x_ND: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    ends = ends_E.tolist()
    pieces = zip([0, *ends[:-1]], ends, weight_EOD, strict=True)
    return torch.cat([F.linear(x_ND[first:end], weight) for first, end, weight in pieces])


def _glu(gate_up_NF: Tensor) -> Tensor:
    gate_NF, up_NF = gate_up_NF.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


def measure(shape: tuple[int, int, int, int, int], device: str, dtype: torch.dtype) -> dict[str, object]:
    """Milliseconds of each form at one shape, forward alone and with the backward pass."""
    num_rows, width, hidden, num_experts, top_k = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return (torch.randn(sizes, generator=generator) * 0.02).to(device, dtype).requires_grad_()

    x_ND = draw(num_rows, width)
    weights = [draw(num_experts, 2 * hidden, width), draw(num_experts, width, hidden)]
    score_NJ, expert_NJ = torch.randn(num_rows, num_experts, generator=generator).topk(top_k)
    weight_NJ, expert_NJ = score_NJ.softmax(-1).to(device, dtype), expert_NJ.to(device)

    def forward(name: str) -> Tensor:
        return FORMS[name](x_ND, expert_NJ, weight_NJ, *weights)

    def both(name: str) -> None:
        torch.autograd.grad(forward(name).sum(), [x_ND, *weights])

    with torch.no_grad():
        truth = dense(x_ND.double(), expert_NJ, weight_NJ.double(), *(weight.double() for weight in weights))
        errors = {name: ((forward(name) - truth).abs().max() / truth.abs().max()).item() for name in FORMS}
    times: dict[str, list[float]] = {f"{name}.{part}": [] for part in ("forward", "both") for name in FORMS}
    for run in range(NUM_RUNS + 1):
        for name in FORMS:
            with torch.no_grad():
                forward_ms = _clock(lambda name=name: forward(name), device)
            both_ms = _clock(lambda name=name: both(name), device)
            if run:  # the first warms up
                times[f"{name}.forward"].append(forward_ms)
                times[f"{name}.both"].append(both_ms)
        print(f"{shape}: run {run} of {NUM_RUNS}", file=sys.stderr)
    medians = {key: round(statistics.median(values), 3) for key, values in times.items()}
    names = ("rows", "width", "hidden", "experts", "experts_per_row")
    return {
        "shape": dict(zip(names, shape, strict=True)),
        "median_ms": medians,
        "grouped_over_dense": round(medians["dense.both"] / medians["grouped.both"], 2),
        "grouped_over_sorted_loop": round(medians["sorted_loop.both"] / medians["grouped.both"], 2),
        "largest_error_over_largest_value": errors,
    }


def _clock(call: Callable[[], object], device: str) -> float:
    if device == "cuda":  # pragma: gpu
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":  # pragma: gpu
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    results = [measure(shape, device, dtype) for shape in SHAPES]
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(
        json.dumps(
            {"device": name, "dtype": str(dtype), "torch": torch.__version__, "runs": NUM_RUNS, "results": results},
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
