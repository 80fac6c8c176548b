"""What AdamW's kernel does beside the arithmetic: whose tensors it takes, and what it remembers of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import adamw as file
from kernels.adamw import adamw
from kernels.device_tables import Tables
from pixelcore import ops

RECIPE: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
    """Parameters, gradients and moments."""
    generator = torch.Generator().manual_seed(0)
    lists = [[torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(4)]
    return [*lists[:3], [x.square() for x in lists[3]]]


def scalars(**changes: float) -> dict[str, Tensor]:
    values = {"step": 3.0, "learning_rate": 1e-2, "clip": 1.0, "found_inf": 0.0} | changes
    return {name: torch.tensor(float(value)) for name, value in values.items()}


def test_updates_are_seen_as_changes_by_autograd_and_gradients_are_not_written():
    lists = draw((5, 3), (7,))
    shadows = [x.bfloat16() for x in lists[0]]
    gradients = [x.clone() for x in lists[1]]
    before = [[x._version for x in tensors] for tensors in (*lists, shadows)]
    adamw(*lists, **scalars(clip=0.5), **RECIPE, shadows=shadows)
    after = [[x._version for x in tensors] for tensors in (*lists, shadows)]
    assert [[now > then for now, then in zip(*pair)] for pair in zip(after, before)] == [
        [name != "gradients"] * 2 for name in ("parameters", "gradients", "firsts", "seconds", "shadows")
    ]
    assert all(torch.equal(one, other) for one, other in zip(lists[1], gradients))


def test_tensors_that_move_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file, "_tables", Tables(limit=3))
    mine, theirs = draw((5, 3), (7,)), draw((5, 3), (7,))
    for step in (1, 2, 3, 4):
        mine[1], theirs[1] = ([x * step for x in lists[1]] for lists in (mine, theirs))  # elsewhere in each step
        adamw(*mine, **scalars(step=step), **RECIPE)
        ops.adamw(*theirs, **scalars(step=step), **RECIPE)
    for one, other in zip(mine[0], theirs[0]):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert len(file._tables.known) == 3


def test_gradients_in_another_order_of_strides_are_read_as_what_they_are():
    mine, theirs = draw((5, 3)), draw((5, 3))
    mine[1] = [mine[1][0].T.contiguous().T]
    adamw(*mine, **scalars(), **RECIPE)
    adamw(*theirs, **scalars(), **RECIPE)
    assert torch.equal(mine[0][0], theirs[0][0])


def test_nothing_to_update():
    adamw([], [], [], [], **scalars(), **RECIPE)
    adamw(*draw((0, 3)), **scalars(), **RECIPE, shadows=[torch.empty(0, 3, dtype=torch.bfloat16)])


def spoil(index: int, change: Callable[[Tensor], Tensor]) -> Any:
    lists = draw((4, 4), (7,))
    lists[index][0] = change(lists[index][0])
    return lists


@pytest.mark.parametrize(
    ("lists", "changes", "message"),
    [
        (draw((3,), dtype=torch.float16), {}, r"parameters\[0\] is float16: it must be one of float32, float64"),
        (spoil(1, Tensor.half), {}, r"gradients\[0\].dtype is torch.float16: it must be torch.float32"),
        (spoil(2, Tensor.flatten), {}, r"firsts have the shapes \[\[16\], \[7\]\]: they must be those of the param"),
        (spoil(3, Tensor.t), {}, r"seconds\[0\] has the strides \(1, 4\): it must lie in one piece"),
        (draw((3,)), {"shadows": [torch.zeros(3)]}, r"shadows\[0\].dtype is torch.float32: it must be torch.bfloat16"),
        (draw((3,)), {"shadows": []}, r"shadows have the shapes \[\]"),
        (draw((3,)), {"clip": torch.ones(1)}, r"clip has the shape \[1\]: it must be \[\]"),
        (draw((3,)), {"step": torch.tensor(1)}, r"step is int64: it must be one of float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(lists: Any, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        adamw(*lists, **{**scalars(), **RECIPE, **changes})
