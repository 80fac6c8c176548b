"""Patches to rows: the product of the pixels with the weight, the bias, the CLS vector and the position in one pass.

    forward   y_n  = W x_p + b + t_l            p = rows[n], l = places[n], x: pixels in [0, 1], or signed in [-1, 1]
              y_n  = c + t_l                    where rows[n] is -1
    backward  dW   = sum of dy_n x_p^T          over the rows of patches
              db   = sum of dy_n                over the rows of patches
              dc   = sum of dy_n                over the rows of -1
              dt_l = sum of dy_n                over the rows of place l: where the table is trained, in fine-tuning
              dx_p = W^T sum of dy_n            over the rows of patch p: where a model made the pixels, see below

This is a matrix product whose left rows are gathered while it runs. As often written it is a convolution over the fp32
pixels of all patches, in three equal channels, then the positions are added, then the kept patches are chosen: ten
times the traffic. Here pixels stay what the renderer made, a byte or a bit. Whole numbers to 255 are exact in bf16 and
fp16 (`stored_pixels.py`); the tensor cores multiply them as they are and the fp32 sum is divided by 255, more exact
than v / 255 rounded before the product, and free. The floor for grey patches of 256 pixels is the product's; for
patches of 128 bits it is that of writing y.

Forward, a program makes ROWS x COLUMNS of y in steps of DEPTH pixels. The sum begins at what is to be added, times 255,
so that it needs no registers beside the sum's own. Programs of the same rows follow each other and find the pixels in
the L2 cache.

                      A                      D                      D
    pixels  [ v v v v v v v v ]    W^T  [ w w | w w ]     y  [ 0 0 | 1 1 ]  program 0 and 1
            [ v v v v v v v v ]         [ w w | w w ]        [ 0 0 | 1 1 ]
            [ v v v v v v v v ]         [ w w | w w ]        [ 2 2 | 3 3 ]  program 2 and 3

Backward, `patch_embed_backward.py` makes dW and db, and `row_sums.py` dc and dt. Pixels have a gradient in stage 2 of
PIXAR, where a few patches are predictions: it is made of sums of rows and one product of the library.

Source: Dosovitskiy et al., arXiv:2010.11929; He et al., arXiv:2111.06377.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import FLOATS, check, check_together, rows
from kernels.launch import Launch, cdiv, choose, launch
from kernels.patch_embed_backward import weight_gradient
from kernels.register import register
from kernels.row_sums import sum_by_place, sum_without_place
from kernels.stored_pixels import Stored, numbers
from kernels.workshop.cases import Case, Cost, Draw, wide
from pixelcore import ops

reference = ops.patch_embed

DEFAULT = Launch({"ROWS": 128, "COLUMNS": 128, "DEPTH": 64}, num_warps=8, num_stages=3)
# of fp32 and fp64, which use no tensor core and twice the memory
DEFAULT_EXACT = Launch({"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}, num_warps=4, num_stages=2)
INTERPRETED = Launch({"ROWS": 128, "COLUMNS": 64, "DEPTH": 128})


@triton.jit
def _forward_kernel(
    pixels_ptr,
    rows_ptr,
    weight_ptr,
    bias_ptr,
    cls_ptr,
    table_ptr,
    places_ptr,
    y_ptr,
    num_rows,
    pixels_stride,
    weight_stride,
    table_stride,
    D: tl.constexpr,
    A: tl.constexpr,
    PACKED: tl.constexpr,
    FACTOR: tl.constexpr,
    SHIFT: tl.constexpr,
    DIVISOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    column_tiles: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    row = (tl.program_id(0) // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    patch = tl.load(rows_ptr + row, mask=row < num_rows, other=-1)
    written = (row < num_rows)[:, None] & (column < D)[None]
    y = tl.zeros([ROWS, COLUMNS], WIDE)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=column < D, other=0).to(WIDE)[None]
    if cls_ptr is not None:
        cls = tl.load(cls_ptr + column, mask=column < D, other=0).to(WIDE)
        y = tl.where((patch < 0)[:, None], cls[None], y)
    if table_ptr is not None:
        place = tl.load(places_ptr + row, mask=row < num_rows, other=0)
        y += tl.load(table_ptr + place[:, None] * table_stride + column[None], mask=written, other=0).to(WIDE)
    y *= DIVISOR
    for first in range(0, A, DEPTH):
        x = numbers(pixels_ptr, patch, pixels_stride, first, A, DEPTH, WIDE, PACKED, FACTOR, SHIFT)
        if SHIFT != 0 and cls_ptr is not None:
            x = tl.where((patch >= 0)[:, None], x, 0)
        value = first + tl.arange(0, DEPTH)
        weight_tile_ptr = weight_ptr + column.to(tl.int64)[None] * weight_stride + value[:, None]
        weight = tl.load(weight_tile_ptr, mask=(value < A)[:, None] & (column < D)[None], other=0)
        y = tl.dot(x.to(weight.dtype), weight, y, input_precision="ieee", out_dtype=WIDE)
    y *= tl.full([], 1 / DIVISOR, WIDE)
    tl.store(y_ptr + row[:, None] * D + column[None], y, mask=written)


def _run_forward(
    pixels_PB: Tensor,
    rows_N: Tensor,
    weight_DA: Tensor,
    bias_D: Tensor | None,
    cls_D: Tensor | None,
    table_LD: Tensor | None,
    places_N: Tensor | None,
    signed: bool,
) -> Tensor:
    y_ND = _fake_forward(pixels_PB, rows_N, weight_DA, bias_D, cls_D, table_LD, places_N, signed)
    num_rows, (width, num_values) = len(rows_N), weight_DA.shape
    default = DEFAULT if weight_DA.itemsize == 2 else DEFAULT_EXACT
    how = choose("patch_embed_forward", weight_DA, default, INTERPRETED, columns=width, values=num_values)
    launch(
        _forward_kernel,
        (cdiv(num_rows, how.tiles["ROWS"]) * cdiv(width, how.tiles["COLUMNS"]),),
        how,
        *(pixels_PB, rows_N, weight_DA, bias_D, cls_D, table_LD, places_N, y_ND),
        *(num_rows, pixels_PB.stride(0), weight_DA.stride(0), 0 if table_LD is None else table_LD.stride(0)),
        **Stored.of(pixels_PB, num_values, signed)._asdict(),
        D=width,
        A=num_values,
        WIDE=wide(weight_DA),
    )
    return y_ND


def _fake_forward(
    pixels_PB: Tensor,
    rows_N: Tensor,
    weight_DA: Tensor,
    bias_D: Tensor | None,
    cls_D: Tensor | None,
    table_LD: Tensor | None,
    places_N: Tensor | None,
    signed: bool,
) -> Tensor:
    return weight_DA.new_empty(len(rows_N), weight_DA.shape[0])


_forward = register(
    __name__,
    "forward",
    "(Tensor pixels, Tensor rows, Tensor weight, Tensor? bias, Tensor? cls, Tensor? table, Tensor? places, bool signed)"
    " -> Tensor",
    _run_forward,
    _fake_forward,
)


class _PatchEmbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels_PB: Tensor,
        rows_N: Tensor,
        weight_DA: Tensor,
        bias_D: Tensor | None,
        cls_D: Tensor | None,
        table_LD: Tensor | None,
        places_N: Tensor | None,
        signed: bool,
    ) -> Tensor:
        ctx.save_for_backward(pixels_PB, rows_N, weight_DA, places_N)
        ctx.signed = signed
        ctx.dtypes = [None if x is None else x.dtype for x in (bias_D, cls_D, table_LD)]
        ctx.num_places = 0 if table_LD is None else len(table_LD)
        return _forward(pixels_PB, rows_N, weight_DA, bias_D, cls_D, table_LD, places_N, signed)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy_ND: Tensor
    ) -> tuple[Tensor | None, ...]:
        pixels_PB, rows_N, weight_DA, places_N = ctx.saved_tensors
        for_pixels, _, for_weight, for_bias, for_cls, for_table, *_ = ctx.needs_input_grad
        bias_dtype, cls_dtype, table_dtype = ctx.dtypes
        dy_ND = rows(dy_ND)
        dpixels_PA = dweight_DA = dbias_D = dcls_D = dtable_LD = None
        if for_pixels:
            sum_PD = sum_by_place(dy_ND, rows_N, len(pixels_PB), dy_ND.dtype)
            dpixels_PA = ((sum_PD @ weight_DA) * (1 + ctx.signed)).to(pixels_PB.dtype)
        if for_weight or for_bias:
            wanted = bias_dtype if for_bias else None
            dweight_DA, dbias_D = weight_gradient(dy_ND, pixels_PB, rows_N, weight_DA.shape[1], ctx.signed, wanted)
        if for_cls:
            dcls_D = sum_without_place(dy_ND, rows_N, cls_dtype)
        if for_table:
            dtable_LD = sum_by_place(dy_ND, places_N, ctx.num_places, table_dtype)
        return dpixels_PA, None, dweight_DA, dbias_D if for_bias else None, dcls_D, dtable_LD, None, None


def fused(
    pixels_PA: Tensor,
    rows_N: Tensor,
    weight_DA: Tensor,
    bias_D: Tensor | None,
    cls_D: Tensor | None,
    table_LD: Tensor | None,
    places_N: Tensor | None,
    signed: bool = False,
) -> Tensor:
    """As `reference`, rounded once, at the end. Numbers of rows, -1 to P - 1, and of places, 0 to L - 1, are not
    checked: the host does not know them. Raises ValueError for patches that are neither A values nor A / 8 bytes, other
    shapes or dtypes that do not fit, a table without places, or a device on which no kernel runs."""
    check("weight", weight_DA, "D A")
    if weight_DA.dtype == torch.float64 and weight_DA.is_cuda:  # pragma: gpu
        raise ValueError("weight is float64: on a GPU this kernel goes to float32, Triton compiles no such product")
    width, num_values = weight_DA.shape
    check("pixels", pixels_PA, "P A", (torch.uint8, *FLOATS))
    in_bits = pixels_PA.dtype == torch.uint8 and 8 * pixels_PA.shape[1] == num_values
    if pixels_PA.shape[1] != num_values and not in_bits:
        raise ValueError(
            f"pixels is {pixels_PA.shape[1]} x {str(pixels_PA.dtype).removeprefix('torch.')} a patch: it must be the "
            f"weight's {num_values} values, or, as bits, uint8 of an eighth of them"
        )
    check("rows", rows_N, "N", (torch.int64,))
    for name, vector_D in (("bias", bias_D), ("cls", cls_D)):
        if vector_D is not None:
            check(name, vector_D, "D", D=width)
    if (table_LD is None) != (places_N is None):
        said = ["None" if x is None else "given" for x in (table_LD, places_N)]
        raise ValueError(f"table is {said[0]} and places is {said[1]}: they belong together")
    if table_LD is not None and places_N is not None:
        check("table", table_LD, "L D", D=width)
        check("places", places_N, "N", (torch.int64,), N=len(rows_N))
    check_together(
        weight=weight_DA, pixels=pixels_PA, rows=rows_N, bias=bias_D, cls=cls_D, table=table_LD, places=places_N
    )
    return _PatchEmbed.apply(  # pyright: ignore[reportReturnType]
        rows(pixels_PA),
        rows_N.contiguous(),
        rows(weight_DA),
        *(None if x is None else x.contiguous() for x in (bias_D, cls_D)),
        None if table_LD is None else rows(table_LD),
        None if places_N is None else places_N.contiguous(),
        signed,
    )


# ------------------------------------------------------------------ what the workshop asks


_BYTES = {"N": 129, "P": 160, "D": 48, "A": 64, "L": 9, "pixels": "bytes", "added": True, "signed": False}
SMALL = Case(
    "pixels that learn, signed",
    {"N": 40, "P": 25, "D": 12, "A": 20, "L": 9, "pixels": "floats", "added": True, "signed": True, "learns": True},
)
CASES = (
    *(Case(f"{num_rows} rows of bytes", {**_BYTES, "N": num_rows}) for num_rows in (1, 16, 127, 128, 129)),
    Case("signed bytes, ragged", {**_BYTES, "D": 80, "A": 136, "added": False, "signed": True}),
    Case("signed bits", {**_BYTES, "N": 40, "A": 128, "added": False, "signed": True, "pixels": "bits"}),
    Case("bits, ragged", {**_BYTES, "N": 40, "A": 24, "pixels": "bits"}),
    SMALL,
    Case("no rows", {**_BYTES, "N": 0}),
)
TIMED = (
    Case("pixel-base encoder, 256 x 397 of 529", {**_BYTES, "N": 101_632, "P": 135_424, "D": 768, "A": 256, "L": 530}),
    Case(
        "pixar-85m, 384 x 360 patches of bits",
        {"N": 138_240, "P": 138_240, "D": 768, "A": 128, "pixels": "bits", "added": False, "signed": True},
    ),
    Case(
        "pixar-85m, 384 x 360 patches of bytes",
        {"N": 138_240, "P": 138_240, "D": 768, "A": 128, "pixels": "bytes", "added": False, "signed": True},
    ),
)


def arguments(case: Case, draw: Draw) -> dict[str, Any]:
    """added: bias, CLS and table are there. learns: the table has a gradient. Floats have one themselves."""
    num_rows, num_patches, width, num_values = (case[letter] for letter in "NPDA")
    if case["pixels"] == "floats":
        pixels_PA = draw.normal(num_patches, num_values, scale=0.3, shift=0.5, grad=True)
    else:
        pixels_PA = draw.bytes(num_patches, num_values // 8 if case["pixels"] == "bits" else num_values)
    given: dict[str, Any] = {
        "pixels_PA": pixels_PA,
        "rows_N": draw.integers(-1 if case["added"] else 0, num_patches, num_rows),
        "weight_DA": draw.normal(width, num_values, scale=num_values**-0.5, grad=True),
        "bias_D": None,
        "cls_D": None,
        "table_LD": None,
        "places_N": None,
        "signed": case["signed"],
    }
    if case["added"]:
        given["rows_N"][::5] = -1
        given |= {"bias_D": draw.parameter(width), "cls_D": draw.parameter(width)}
        given["table_LD"] = draw.parameter(case["L"], width).requires_grad_(case.get("learns", False))
        given["places_N"] = draw.integers(0, case["L"] - 1, num_rows)
    return given


def poison(given: dict[str, Any]) -> dict[str, Any]:
    """NaN in the table's rows that nobody adds and in the patches that nobody reads; bytes, which have none, change."""
    pixels_PA, rows_N = given["pixels_PA"], given["rows_N"]
    unread_P1 = ~torch.isin(torch.arange(len(pixels_PA), device=rows_N.device), rows_N)[:, None]
    other_PA = 255 - pixels_PA if pixels_PA.dtype == torch.uint8 else torch.full_like(pixels_PA, torch.nan)
    poisoned = given | {"pixels_PA": _replaced(pixels_PA, unread_P1, other_PA)}
    if given["table_LD"] is not None:
        table_LD = given["table_LD"]
        unread_L1 = ~torch.isin(torch.arange(len(table_LD), device=rows_N.device), given["places_N"])[:, None]
        poisoned["table_LD"] = _replaced(table_LD, unread_L1, torch.full_like(table_LD, torch.nan))
    return poisoned


def _replaced(x: Tensor, where: Tensor, by: Tensor) -> Tensor:
    return torch.where(where, by, x).detach().requires_grad_(x.requires_grad)


def cost(case: Case, size: int) -> Cost:
    """The pixels of the rows, the weight and the rows; of the small vectors and tables only their numbers."""
    num_rows, width, num_values = (case[letter] for letter in "NDA")
    pixel_bytes = {"bits": 1 / 8, "bytes": 1, "floats": size}[case["pixels"]]
    moved = round(num_rows * num_values * pixel_bytes) + num_rows * (width * size + (16 if case["added"] else 8))
    product = 2 * num_rows * width * num_values
    weight = width * num_values * size
    return Cost(moved + weight, moved + weight, product, product)
