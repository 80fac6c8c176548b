"""Bugs that were planted: the check must see each of them.

A check that has never been red proves nothing. Every kernel is spoilt here in three ways at least, those that happen:
the edge of a mask, a scale that is missing, a term of a gradient that was dropped. The changed text is written to a
file of its own and imported under a name of its own, so its operations stand beside the real ones, and one case is
checked until the first budget breaks. No planted bug writes outside of its tensors: that would spoil the process and
not a test.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from kernels.register import REGISTERED
from kernels.registry import KERNELS
from kernels.workshop.cases import Kernel
from kernels.workshop.check import findings
from tests.conftest import ROOT


class Mutation(NamedTuple):
    """A text of a kernel's file and what takes its place; the case in which it shows. file: another file's text."""

    kernel: str
    what: str
    old: str
    new: str
    case: str
    file: str = ""


# Short names of cases that several bugs show in.
_LEARNS = "pixels that learn, signed"
_FIRST = "first step, clipped, no decay"
_SAMPLED = "sample, 32 components"
_TOKEN, _CHUNKS, _SPLIT = "one token of one sequence", "chunks, ragged, one fills its cache", "decode_split"
_BACKWARD = "attention_backward"
MUTATIONS = (
    Mutation("adamw", "mask ends early", "at, at < size,", "at, at < size - 1,", _FIRST),
    Mutation("adamw", "no clip", "other=0) * clip", "other=0)", _FIRST),
    Mutation("adamw", "eps in the root", "tl.sqrt(second) * root2 + EPS", "tl.sqrt(second + EPS) * root2", _FIRST),
    Mutation(
        "add_norm", "mask ends early", "num_rows) & (column < D))", "num_rows) & (column < D - 1))", "RMSNorm, one row"
    ),
    Mutation(
        "add_norm",
        "no 1 / (1 - p)",
        "tl.where(keep, delta * SCALE, 0)",
        "tl.where(keep, delta, 0)",
        "RMSNorm, dropped, 128 rows",
    ),
    Mutation("add_norm", "dx without a mean", "- hats[chunk] * along", "", "RMSNorm, one row", "add_norm_backward"),
    Mutation(
        "gelu",
        "a sum lacks parts",
        "range(0, num_partials, ROWS)",
        "range(0, num_partials - 1, ROWS)",
        "1 rows",
        "column_sums",
    ),
    Mutation(
        "unshuffle",
        "token without sum",
        "inside = (place < 0)[:, None]",
        "inside = (place < -1)[:, None]",
        "16 rows",
        "row_sums",
    ),
    Mutation(
        "patch_embed",
        "bits turned round",
        "PACKED - 1 - tl.arange(0, PACKED)",
        "tl.arange(0, PACKED)",
        "signed bits",
        "stored_pixels",
    ),
    Mutation("cross_entropy", "zeros behind the row count", 'tl.where(column < V, x, float("-inf"))', "x", "1 rows"),
    Mutation("cross_entropy", "no scale", "loss = scale * (", "loss = (", "16 rows"),
    Mutation(
        "cross_entropy", "dx without z-loss", "scale * (1 + 2 * Z_LOSS * log_sum) / total", "scale / total", "z-loss"
    ),
    Mutation("dropout", "mask ends early", "& (column < F)", "& (column < F - 1)", "1 rows"),
    Mutation("dropout", "no 1 / (1 - p)", "tl.where(keep, x * SCALE, 0)", "tl.where(keep, x, 0)", "1 rows"),
    Mutation(
        "dropout",
        "gradient is not dropped",
        "return _drop(rows(dy_NF), *ctx.saved_tensors, *ctx.use)",
        "return rows(dy_NF)",
        "1 rows",
    ),
    Mutation(
        "gelu",
        "mask ends early",
        "- size * _tail(size), mask=inside",
        "- size * _tail(size), mask=inside & (column < F - 1)",
        "1 rows",
    ),
    Mutation("gelu", "density without its factor", "return 0.3989422804014327 * tl", "return tl", "1 rows"),
    Mutation("gelu", "dx without a term", "w = _tail(size) - size * _density(size)", "w = _tail(size)", "1 rows"),
    Mutation("glu", "mask ends early", "(column < F)\n    gate", "(column < F - 1)\n    gate", "1 rows"),
    Mutation("glu", "no sigmoid in du", "dy * gate * chance, mask", "dy * gate, mask", "1 rows"),
    Mutation("glu", "dg without a term", "chance * (1 + gate * (1 - chance))", "chance", "1 rows"),
    Mutation("mixture_bce", "mask ends early", "(z < Z) & (column < A)", "(z < Z) & (column < A - 1)", "1 rows"),
    Mutation("mixture_bce", "no scale in dx", "tl.reshape(scale * share,", "tl.reshape(share,", "1 rows"),
    Mutation("mixture_bce", "ds without the patch", " - share)", ")", "1 rows"),
    Mutation(
        "patch_embed",
        "mask ends early",
        "None] & (column < D)[None]\n    y =",
        "None] & (column < D - 1)[None]\n    y =",
        _LEARNS,
    ),
    Mutation("patch_embed", "bytes are not divided", "y *= tl.full([], 1 / DIVISOR, WIDE)", "", "1 rows of bytes"),
    Mutation("patch_embed", "dx without the factor of signed", "* (1 + ctx.signed)", "", _LEARNS),
    Mutation(
        "patch_embed",
        "dW without the last rows",
        "tl.minimum((part + 1) * rows_per_part, num_rows)",
        "num_rows - 1",
        _LEARNS,
        "patch_embed_backward",
    ),
    Mutation("pixel_bce", "mask ends early", "num_rows) & (column < A))", "num_rows) & (column < A - 1))", "1 rows"),
    Mutation("pixel_bce", "no 1 / A", "other=0).to(WIDE) / A", "other=0).to(WIDE)", "1 rows"),
    Mutation("pixel_bce", "dx without the target", "chance - target", "chance", "1 rows"),
    Mutation(
        "pixel_mse",
        "mask ends early",
        "distance, mask=is_row & (column < VALUES)",
        "distance, mask=is_row & (column < VALUES - 1)",
        "1 rows",
    ),
    Mutation("pixel_mse", "no 2", "2 * scale * distance", "scale * distance", "1 rows"),
    Mutation("pixel_mse", "variance of all values", "/ (VALUES - 1)", "/ VALUES", "16 rows"),
    Mutation("split_rope", "mask ends early", "(pair < K // 2)", "(pair < K // 2 - 1)", "1 rows, halves"),
    Mutation("split_rope", "dq turned forward", "cos, -sin, inside, H", "cos, sin, inside, H", "127 rows, halves"),
    Mutation("split_rope", "no second term", "a * sin + b * cos, mask", "b * cos, mask", "127 rows, halves"),
    Mutation(
        "step_attend_project",
        "the newest place is not seen",
        "tl.load(lengths_ptr + sequence) + 1",
        "tl.load(lengths_ptr + sequence)",
        "1 row in two splits",
    ),
    Mutation("step_attend_project", "exponents of e", "SCALE=scale * LOG2_E", "SCALE=scale", "1 row in two splits"),
    Mutation("step_attend_project", "no residual", "residual.to(tl.float32) + y", "y", "1 row, the second split empty"),
    Mutation(
        "step_norm_glu",
        "mask ends early",
        "inside = (row < num_rows) & (column < F)",
        "inside = (row < num_rows) & (column < F - 1)",
        "1 row",
    ),
    Mutation("step_norm_glu", "gate is up", "gate, up = tl.split", "up, gate = tl.split", "1 row"),
    Mutation("step_norm_glu", "mean of a piece", "/ D + EPS", "/ DEPTH + EPS", "1 row", "step_rows"),
    Mutation("step_norm_logits", "mask ends early", "& (column < V)[None]", "& (column < V - 1)[None]", "1 row"),
    Mutation("step_norm_logits", "no eps", "/ D + EPS", "/ D", "1 row", "step_rows"),
    Mutation(
        "step_norm_logits",
        "no weight of the norm",
        " * tl.load(norm_ptr + column, mask=column < D, other=0).to(tl.float32)",
        "",
        "1 row",
        "step_rows",
    ),
    Mutation("step_norm_qkv", "turned back", "a * cos - b * sin", "a * cos + b * sin", "1 row, halves"),
    Mutation("step_norm_qkv", "v is turned", "inside & (pair < (H + G) * (K // 2))", "inside", "1 row, halves"),
    Mutation(
        "step_norm_qkv",
        "a full sequence is written",
        "fits = inside & (length < capacity)",
        "fits = inside",
        "3 rows, pairs, the second full",
    ),
    Mutation("step_project_add", "no residual", "residual.to(tl.float32) + y", "y", "1 row"),
    Mutation("step_project_add", "mask ends early", "& (column < OUT)[None]", "& (column < OUT - 1)[None]", "1 row"),
    Mutation(
        "step_project_add",
        "the last piece is lost",
        "range(0, D, DEPTH)",
        "range(0, D - D % DEPTH, DEPTH)",
        "1 row",
        "step_rows",
    ),
    Mutation(
        "unshuffle",
        "mask ends early",
        "mask=(source >= 0) & (column < D)",
        "mask=(source >= 0) & (column < D - 1)",
        "1 rows",
    ),
    Mutation("unshuffle", "no position", " + position.to(WIDE)", "", "1 rows"),
    Mutation("unshuffle", "row 0 has no gradient", "restored = (source >= 0)", "restored = (source > 0)", "1 rows"),
    Mutation("step_next_patch", "temperature forgotten", "sigmoid(odds / temperature)", "sigmoid(odds)", _SAMPLED),
    Mutation("step_next_patch", "black is not made black", "paper & (black == 0)", "paper", "sample, nearly black"),
    Mutation("step_next_patch", "one component's nats", "z < Z, score + nats", "z < 1, score + nats", "mixture"),
    Mutation("step_sample_token", "penalty upside down", "x, 0.0) / penalty", "x, 0.0) * penalty", "every rule, seen"),
    Mutation("step_sample_token", "half a nucleus", "from_low * p", "from_low * p / 2", "nucleus of 16 000"),
    Mutation("step_sample_token", "groups before forgotten", "before + tl.cumsum(", "tl.cumsum(", "no rule"),
    Mutation(
        "decode_attention",
        "a split ends early",
        "tl.minimum(first + each, count)",
        "tl.minimum(first + each, count) - 1",
        _TOKEN,
        _SPLIT,
    ),
    Mutation("decode_attention", "the last key is unseen", "key[None] <= seen", "key[None] < seen", _TOKEN, _SPLIT),
    Mutation(
        "decode_attention",
        "splits weigh alike",
        "tl.exp2(log - tl.where",
        "tl.exp2(0 * log - 0 * tl.where",
        _TOKEN,
        _SPLIT,
    ),
    Mutation("decode_attention", "heads of another token", "token + place // RATIO", "token + place % TOKENS", _CHUNKS),
    Mutation(
        "decode_attention", "a value is not kept", "(place < TOKENS) & (token", "(place < TOKENS - 1) & (token", _CHUNKS
    ),
    Mutation(
        "decode_attention", "keys of the chunk that come later", "end, row_token,", "end, row_token + 1,", _CHUNKS
    ),
    Mutation(
        "attention",
        "the last key is not seen",
        "(there < shown - at)[None]",
        "(there < shown - at - 1)[None]",
        "one token, and twenty",
        "attention_forward",
    ),
    Mutation(
        "attention",
        "no 1 / (1 - p)",
        "(256 / (256 - THRESHOLD) / total)",
        "(1 / total)",
        "full, GQA 2, dropped",
        "attention_forward",
    ),
    Mutation(
        "attention",
        "a sum is not corrected",
        "total = total * correction + tl.sum",
        "total = total + tl.sum",
        "causal, GQA 3",
        "attention_forward",
    ),
    Mutation("attention", "dq without delta", "(dweight - delta[:, None])", "dweight", "causal, GQA 3", _BACKWARD),
    Mutation("attention", "dv without 1 / (1 - p)", "dv * KEPT", "dv", "full, GQA 2, dropped", _BACKWARD),
    Mutation(
        "attention",
        "hidden keys have a gradient",
        "dk = tl.where((column < shown)[:, None], dk, 0)",
        "pass",
        "causal, rows that are not seen",
        _BACKWARD,
    ),
)


@pytest.fixture
def mutated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The kernel's module with the bug in it."""
    mutation: Mutation = request.param
    num_registered = len(REGISTERED)
    spoilt = mutation.file or mutation.kernel
    text = source(spoilt)
    assert text.count(mutation.old) == 1, f"{spoilt}.py has {text.count(mutation.old)} times: {mutation.old}"
    text = text.replace(mutation.old, mutation.new)
    mark = f"spoilt_{MUTATIONS.index(mutation)}"
    module = imported(spoilt, mark, text, tmp_path)
    if mutation.file:
        text = source(mutation.kernel).replace(f"from kernels.{mutation.file} import", f"from {module.__name__} import")
        module = imported(mutation.kernel, mark, text, tmp_path)
    yield module
    del REGISTERED[num_registered:]
    for name in (spoilt, mutation.kernel):
        sys.modules.pop(f"{name}_{mark}", None)


def source(name: str) -> str:
    return (ROOT / "kernels" / f"{name}.py").read_text(encoding="utf-8")


def imported(name: str, mark: str, text: str, folder: Path) -> ModuleType:
    """A module of this text under the name with the mark, as are its operations."""
    marked = f"lambda module, *rest: kernels.register.register(module.removesuffix('_{mark}') + '_{mark}', *rest)"
    own = f"import kernels.register\nregister = {marked}\n"
    name = f"{name}_{mark}"
    file = folder / f"{name}.py"
    # a file: Triton reads a kernel's source there
    file.write_text(text.replace("from kernels.register import register\n", own), encoding="utf-8")
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "mutated, mutation",
    [(x, x) for x in MUTATIONS],
    indirect=["mutated"],
    ids=[f"{x.kernel}: {x.what}" for x in MUTATIONS],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's: spoilt numbers may overflow
def test_a_planted_bug_breaks_a_budget(mutated: Kernel, mutation: Mutation):
    (case,) = (case for case in mutated.CASES if case.name == mutation.case)
    found = findings(mutated, case, torch.float32, torch.device("cpu"))
    assert any(not finding.passed for finding in found), f"{case.name} does not see it"


def test_bugs_are_planted_in_every_kernel():
    planted = Counter(mutation.kernel for mutation in MUTATIONS)
    assert {name: planted[name] for name in KERNELS if planted[name] < 3} == {}
