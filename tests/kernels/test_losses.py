"""What the shared check of kernels does not ask of the losses: what is refused, and what is not looked at."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import cross_entropy, mixture_bce, pixel_bce, pixel_mse
from kernels.launch import recorded
from pixelcore.ops import IGNORED

ONE = torch.tensor(1.0)
PATCHES = torch.randint(256, (3, 2), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
ROWS = torch.tensor([2, 0, 2, 1])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def losses(**more: Any) -> list[tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Tensor, ...]]]:
    """Each loss as a function of what is differentiated, and that."""
    targets = torch.tensor([3, 0, IGNORED, 4])
    logits, scores = draw(4, 3, 16), draw(4, 3, seed=1)
    return [
        (lambda x: cross_entropy.fused(x, targets, ONE, **more), (draw(4, 5),)),
        (lambda x: pixel_mse.fused(x, PATCHES, ROWS, True, ONE, **more), (draw(4, 6),)),
        (lambda x: pixel_bce.fused(x, PATCHES, ROWS, ONE, **more), (draw(4, 16),)),
        (lambda x, s: mixture_bce.fused(x, s, PATCHES, ROWS, ONE, **more), (logits, scores)),
    ]


def test_a_factor_behind_a_finished_gradient_is_refused_with_the_remedy():
    for loss, inputs in losses():
        with pytest.raises(RuntimeError, match="put factors into its argument scale"):
            (loss(*inputs)[0] * 2).backward()


def test_a_factor_that_was_announced_multiplies_the_gradient():
    for (loss, inputs), (finished, _) in zip(losses(factor_follows=True), losses(), strict=True):
        once = torch.autograd.grad(finished(*inputs)[0], inputs)
        thrice = torch.autograd.grad(3 * loss(*inputs)[0], inputs)
        torch.testing.assert_close(thrice, tuple(3 * x for x in once))


def test_the_gradient_is_handed_on_and_neither_copied_nor_spent():
    for loss, inputs in losses():
        total, _ = loss(*inputs)
        first = torch.autograd.grad(total, inputs, retain_graph=True)
        second = torch.autograd.grad(total, inputs)
        assert [x.data_ptr() for x in first] == [x.data_ptr() for x in second]


def test_without_a_gradient_none_is_written_and_the_loss_is_the_same():
    for loss, inputs in losses():
        total, count = loss(*inputs)
        with torch.no_grad():
            alone = loss(*inputs)
        assert alone == (total, count) and not alone[0].requires_grad
        assert loss(*(x.detach() for x in inputs)) == alone
        with recorded() as launches, torch.no_grad():
            loss(*inputs)
        sizes = [x.numel() for x in launches[0].arguments if isinstance(x, Tensor)]
        assert sizes.count(inputs[0].numel()) == 1  # what is read, and nothing of its size beside it


def test_two_equal_runs_give_equal_bits():
    logits, targets = draw(300, 70), torch.arange(300) % 70
    results = [cross_entropy.fused(logits, targets, torch.tensor(0.01))[0] for _ in range(2)]
    assert torch.equal(*results)


def test_a_target_that_is_not_there_is_not_read_and_shows_as_nan():
    """To ask for it first would make the host wait for the device."""
    for wrong in (-1, 3, 2**40, -(2**40)):
        rows = torch.tensor([2, wrong])
        cases: list[tuple[Callable[..., Any], Tensor]] = [
            (lambda x, rows=rows: cross_entropy.fused(x, rows, ONE), draw(2, 3)),
            (lambda x, rows=rows: pixel_mse.fused(x, PATCHES, rows, False, ONE), draw(2, 6)),
            (lambda x, rows=rows: pixel_bce.fused(x, PATCHES, rows, ONE), draw(2, 16)),
            (lambda x, rows=rows: mixture_bce.fused(x, draw(2, 3), PATCHES, rows, ONE), draw(2, 3, 16)),
        ]
        for loss, x in cases:
            total, _ = loss(x)
            (gradient,) = torch.autograd.grad(total, x)
            assert total.isnan() and gradient[1].isnan().all() and not gradient[0].isnan().any()


def test_a_vocabulary_of_which_a_whole_block_is_impossible():
    """-inf logits are words that cannot follow; of the first block's sum nothing is left."""
    logits = draw(2, 17_000).detach()
    logits[:, :8192] = -math.inf
    logits.requires_grad_()
    targets = torch.tensor([9000, 16_999])
    total, _ = cross_entropy.fused(logits, targets, ONE)
    expected, _ = cross_entropy.reference(logits, targets, ONE)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (total, expected)))


def test_large_logits_of_half_precision_stay_finite():
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    assert cross_entropy.fused(logits, torch.tensor([1]), ONE)[0] == 120000


def test_certain_pixels_stay_finite():
    bits = torch.tensor([[0b10100000]], dtype=torch.uint8)
    certain = torch.tensor([[800.0, -800, 800, -800, -800, -800, -800, -800]])
    row = torch.tensor([0])
    assert pixel_bce.fused(certain, bits, row, ONE)[0] == 0
    assert pixel_bce.fused(-certain, bits, row, ONE)[0] == 800
    mixture = torch.stack((certain, -certain), dim=1)
    total, _ = mixture_bce.fused(mixture, torch.zeros(1, 2), bits, row, torch.tensor(8.0))
    torch.testing.assert_close(total, torch.tensor(math.log(2)))


def test_components_that_lie_apart_are_read_where_they_are():
    apart, scores = draw(4, 5, 16)[:, ::2], draw(4, 3, seed=1)
    total, _ = mixture_bce.fused(apart, scores, PATCHES, ROWS, ONE)
    torch.testing.assert_close(total, mixture_bce.reference(apart, scores, PATCHES, ROWS, ONE)[0])


@pytest.mark.parametrize(
    "message, call",
    [
        (r"targets is int32", lambda: cross_entropy.fused(draw(2, 3), torch.zeros(2, dtype=torch.int32), ONE)),
        (r"targets has the shape \[4\]", lambda: cross_entropy.fused(draw(2, 3), ROWS, ONE)),
        (r"scale has the shape \[2\]", lambda: cross_entropy.fused(draw(2, 3), ROWS[:2], torch.ones(2))),
        (r"scale is float64", lambda: cross_entropy.fused(draw(2, 3), ROWS[:2], ONE.double())),
        (r"scale requires a gradient", lambda: cross_entropy.fused(draw(2, 3), ROWS[:2], draw(1).sum())),
        (r"it must be a multiple", lambda: pixel_mse.fused(draw(4, 7), PATCHES, ROWS, True, ONE)),
        (r"pixels is int64", lambda: pixel_mse.fused(draw(4, 6), PATCHES.long(), ROWS, True, ONE)),
        (r"pixels has 2 values a patch", lambda: pixel_bce.fused(draw(4, 15), PATCHES, ROWS, ONE)),
        (r"pixels has 2 values a patch", lambda: pixel_bce.fused(draw(4, 16), PATCHES.float(), ROWS, ONE)),
        (r"scale has the shape \[3\]", lambda: pixel_bce.fused(draw(4, 16), PATCHES, ROWS, torch.ones(3))),
        (
            r"scores is float32: it must be one of float16",
            lambda: mixture_bce.fused(draw(4, 3, 16, dtype=torch.float16), draw(4, 3), PATCHES, ROWS, ONE),
        ),
        (r"scores has the shape", lambda: mixture_bce.fused(draw(4, 3, 16), draw(4, 2), PATCHES, ROWS, ONE)),
    ],
)
def test_what_does_not_fit_is_refused(message: str, call: Callable[[], Any]):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own compiler does
def test_compiled_it_still_refuses_a_factor_behind():
    targets = torch.tensor([3, 0, IGNORED, 4])

    def twice(logits: Tensor, factor_follows: bool) -> Tensor:
        return 2 * cross_entropy.fused(logits, targets, ONE, factor_follows=factor_follows)[0]

    logits = draw(4, 5)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="put factors into its argument scale"):
        compiled(logits, False).backward()
    (gradient,) = torch.autograd.grad(compiled(logits, True), logits)
    (expected,) = torch.autograd.grad(partial(twice, factor_follows=True)(logits), logits)
    assert torch.equal(gradient, expected)
