"""Packed attention by cuDNN's own frontend, the peer that torch does not offer whole.

A graph is described once for a shape and run with the case's tensors. Packed rows are a batch whose sequences have
ragged offsets: tensor [documents, heads, longest, head size] begins, for document m, at element offsets[m] * row
stride; how many rows it has stands beside it (cuDNN, "Attention", ragged layout). The statistics of the forward pass
are padded. Both graphs are built before anything is timed; results are allocated in each call, as everybody's are.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pixelcore.packed import Packed

Call = Callable[[], Any]


def attention(given: Mapping[str, Any]) -> Call:  # pragma: gpu
    """As `peers.py` wants it. RuntimeError where the rule, or dropout, is not its own."""
    if given["rule"] not in ("full", "causal") or given["packed"].visible is not None:
        raise RuntimeError("it is asked here for full and causal attention alone")
    if given.get("drop") is not None:
        raise RuntimeError("it is asked here without dropout")
    q, k, v = (given[name] for name in ("q_NHK", "k_NGK", "v_NGK"))
    graphs = _Graphs(q, k, v, given["packed"], given["rule"] == "causal", given["scale"])
    return lambda: _Attention.apply(q, k, v, graphs)


class _Attention(torch.autograd.Function):  # pragma: gpu
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, graphs: "_Graphs") -> Tensor:
        out, statistics = graphs.forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, statistics)
        ctx.graphs = graphs
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *ctx.graphs.backward(*ctx.saved_tensors, dout.contiguous()), None


class _Graphs:  # pragma: gpu
    """The forward and the backward graph of one shape."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, causal: bool, scale: float) -> None:
        self.cudnn: Any = importlib.import_module("cudnn")
        self.handle = self.cudnn.create_handle()
        self.cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
        self.offsets = packed.offsets.long()[:, None, None, None]
        self.lengths = packed.offsets.diff().int()[:, None, None, None]
        self.num_documents, self.longest = len(packed.lengths), packed.max_length
        self.options = {"attn_scale": scale, "use_causal_mask": causal, "use_padding_mask": True}
        self.statistics_shape = (self.num_documents, q.shape[1], self.longest, 1)
        self.forward_graph = self._build(self._describe_forward, q, k, v)
        self.backward_graph = self._build(self._describe_backward, q, k, v)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        statistics = torch.empty(self.statistics_shape, dtype=torch.float32, device=q.device)
        self._run(self.forward_graph, q=q, k=k, v=v, out=out, statistics=statistics)
        return out, statistics

    def backward(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, statistics: Tensor, dout: Tensor) -> list[Tensor]:
        found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        dq, dk, dv = found
        self._run(self.backward_graph, q=q, k=k, v=v, out=out, statistics=statistics, dout=dout, dq=dq, dk=dk, dv=dv)
        return found

    def _build(self, describe: Callable[..., dict[str, Any]], q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
        """The graph, its tensors by name, what is the same in every run, and its workspace."""
        types = self.cudnn.data_type
        graph = self.cudnn.pygraph(
            io_data_type={torch.bfloat16: types.BFLOAT16, torch.float16: types.HALF}[q.dtype],
            intermediate_data_type=types.FLOAT,
            compute_data_type=types.FLOAT,
            handle=self.handle,
        )
        fixed: dict[Any, Tensor] = {}
        lengths = graph.tensor_like(self.lengths)
        fixed[lengths] = self.lengths
        rows = {"seq_len_q": lengths, "seq_len_kv": lengths}
        named = describe(graph, fixed, rows, q, k, v)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self.cudnn.heur_mode.A, self.cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)
        return graph, named, fixed, workspace

    def _run(self, built: tuple[Any, ...], **tensors: Tensor) -> None:
        graph, named, fixed, workspace = built
        graph.execute(
            {**fixed, **{named[name]: x.detach() for name, x in tensors.items()}}, workspace, handle=self.handle
        )

    def _input(self, graph: Any, fixed: dict[Any, Tensor], x: Tensor, row: int, head: int) -> Any:
        """Packed rows as the graph's input. row, head: strides."""
        sizes = [self.num_documents, x.shape[1], self.longest, x.shape[2]]
        tensor = graph.tensor(dim=sizes, stride=[self.longest * row, head, row, 1], data_type=self._type(x))
        self._make_ragged(graph, fixed, tensor, row)
        return tensor

    def _output(self, graph: Any, fixed: dict[Any, Tensor], tensor: Any, x: Tensor) -> None:
        """Rows of x's shape, without gaps, as the graph's output."""
        row = x.shape[1] * x.shape[2]
        sizes = [self.num_documents, x.shape[1], self.longest, x.shape[2]]
        tensor.set_output(True).set_dim(sizes).set_stride([self.longest * row, x.shape[2], row, 1])
        self._make_ragged(graph, fixed, tensor, row)

    def _make_ragged(self, graph: Any, fixed: dict[Any, Tensor], tensor: Any, row: int) -> None:
        begins = self.offsets * row
        offset = graph.tensor_like(begins)
        fixed[offset] = begins
        tensor.set_ragged_offset(offset)

    def _type(self, x: Tensor) -> Any:
        types = self.cudnn.data_type
        return {torch.bfloat16: types.BFLOAT16, torch.float16: types.HALF, torch.float32: types.FLOAT}[x.dtype]

    def _describe_forward(self, graph: Any, fixed: Any, rows: Any, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
        named = {
            name: self._input(graph, fixed, x, x.stride(0), x.stride(1)) for name, x in (("q", q), ("k", k), ("v", v))
        }
        named["out"], named["statistics"] = graph.sdpa(**named, is_inference=False, **rows, **self.options)
        self._output(graph, fixed, named["out"], q)
        named["statistics"].set_output(True).set_data_type(self.cudnn.data_type.FLOAT)
        return named

    def _describe_backward(self, graph: Any, fixed: Any, rows: Any, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Any]:
        named = {
            name: self._input(graph, fixed, x, x.stride(0), x.stride(1)) for name, x in (("q", q), ("k", k), ("v", v))
        }
        dense = {name: self._input(graph, fixed, q, q.shape[1] * q.shape[2], q.shape[2]) for name in ("out", "dout")}
        statistics = graph.tensor(
            dim=list(self.statistics_shape),
            stride=[self.statistics_shape[1] * self.longest, self.longest, 1, 1],
            data_type=self.cudnn.data_type.FLOAT,
        )
        gradients = graph.sdpa_backward(
            **named, o=dense["out"], dO=dense["dout"], stats=statistics, **rows, **self.options
        )
        for tensor, x in zip(gradients, (q, k, v), strict=True):
            self._output(graph, fixed, tensor, x)
        return named | dense | {"statistics": statistics} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))
