"""Attention and decoding as the bench times them: what models call, without what only the check looks at."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels.registry import KERNELS
from kernels.workshop.cases import Case, Cost, Draw
from pixelcore import ops
from pixelcore.kv_cache import Chunk, LayerCache
from pixelcore.ops import HeadLayout
from pixelcore.packed import Packed


@dataclass(frozen=True)
class Attention:
    """Attention as models use it: the log-sum-exp, which no peer gives a gradient for, is left where it is."""

    __name__ = "attention"
    PARTS = ("attention",)
    CASES = ()

    @property
    def TIMED(self) -> tuple[Case, ...]:
        return tuple(KERNELS["attention"].TIMED)

    @staticmethod
    def reference(**given: Any) -> Tensor:
        return ops.softmax_attention(**given)[0]

    @staticmethod
    def fused(**given: Any) -> Tensor:
        return KERNELS["attention"].fused(**given)[0]

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        return KERNELS["attention"].arguments(case, draw)

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        return KERNELS["attention"].cost(case, size)


@dataclass(frozen=True)
class RopeAttention:
    """From the packed projection to the heads' outputs: divide, turn, attend. Peers turn in a pass of their own or in
    a compiled function; what is compared is the whole."""

    __name__ = "rope_attention"
    PARTS = ("split_rope", "attention")
    CASES = ()
    TIMED = (
        Case("pixar-85m, 384 x 360", {"M": 384, "L": 360, "H": 12, "G": 12, "K": 64}),
        Case("100m, 32 x 1024", {"M": 32, "L": 1024, "H": 12, "G": 4, "K": 64}),
    )

    @staticmethod
    def reference(
        qkv_NO: Tensor, positions_N: Tensor, table: Tensor, layout: HeadLayout, packed: Packed, rule: str, scale: float
    ) -> Tensor:
        q_NHK, k_NGK, v_NGK = ops.split_rope(qkv_NO, positions_N, table, layout)
        return ops.softmax_attention(q_NHK, k_NGK, v_NGK, packed, rule, scale)[0]

    @staticmethod
    def fused(
        qkv_NO: Tensor, positions_N: Tensor, table: Tensor, layout: HeadLayout, packed: Packed, rule: str, scale: float
    ) -> Tensor:
        q_NHK, k_NGK, v_NGK = KERNELS["split_rope"].fused(qkv_NO, positions_N, table, layout)
        return KERNELS["attention"].fused(q_NHK, k_NGK, v_NGK, packed, rule, scale)[0]

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        layout = HeadLayout(case["H"], case["G"], case["K"])
        packed = draw.packed([case["L"]] * case["M"])
        return {
            "qkv_NO": draw.normal(case["M"] * case["L"], (case["H"] + 2 * case["G"]) * case["K"], grad=True),
            "positions_N": packed.positions,
            "table": ops.rope_table(case["K"], 10_000.0, case["L"]).to(draw.device),
            "layout": layout,
            "packed": packed,
            "rule": "causal",
            "scale": case["K"] ** -0.5,
        }

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        """The projection once and the outputs once; their gradients, and both again, backward. Half of all pairs."""
        rows, heads, groups = case["M"] * case["L"], case["H"] * case["K"], case["G"] * case["K"]
        projection, outputs = rows * (heads + 2 * groups) * size, rows * heads * size
        products = 2 * case["M"] * case["L"] ** 2 * heads
        return Cost(
            forward_bytes=projection + outputs,
            backward_bytes=2 * (projection + outputs),
            forward_flops=products,
            backward_flops=5 * products // 2,
        )


@dataclass(frozen=True)
class DecodeAttention:
    """A step of decoding as it runs: it writes the new rows into the cache, the same ones in every call. What the
    kernel's file calls `fused` works on copies of the cache, which would be timed too."""

    __name__ = "decode_attention"
    PARTS = ("decode_attention",)
    CASES = ()

    @property
    def TIMED(self) -> tuple[Case, ...]:
        return tuple(KERNELS["decode_attention"].TIMED)

    @staticmethod
    def reference(keys_BGCK: Tensor, values_BGCK: Tensor, chunk: Chunk, scale: float, **rows: Tensor) -> Tensor:
        return ops.decode_attention(**rows, cache=LayerCache(keys_BGCK, values_BGCK, chunk), scale=scale)

    @staticmethod
    def fused(keys_BGCK: Tensor, values_BGCK: Tensor, chunk: Chunk, scale: float, **rows: Tensor) -> Tensor:
        kernel: Any = KERNELS["decode_attention"]
        cache = LayerCache(keys_BGCK, values_BGCK, chunk)
        return kernel.decode_attention(**rows, cache=cache, scale=scale)

    @staticmethod
    def arguments(case: Case, draw: Draw) -> dict[str, Any]:
        return KERNELS["decode_attention"].arguments(case, draw)

    @staticmethod
    def cost(case: Case, size: int) -> Cost:
        return KERNELS["decode_attention"].cost(case, size)
