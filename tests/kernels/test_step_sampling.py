"""The kernels that choose: the same tokens and patches as the loops of `infer` choose, and what cannot be chosen."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from infer.sampling import SamplingConfig, choose
from kernels.step_next_patch import fused as next_patch
from kernels.step_sample_token import sample_token
from pixelcore import step_sampling
from pixelcore.uniform import numbers_of
from tests.pixelcore.test_step_sampling import OFF, RULES, knobs


def given(num_rows: int, num_tokens: int, config: SamplingConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(num_rows, num_tokens, generator=generator)
    return {
        "logits_BV": (logits_BV * 6).round() / 2,  # many are equal
        "seen_BV": torch.rand(num_rows, num_tokens, generator=generator) < 0.3,
        "knobs": knobs(config),
        "seeds_B": torch.arange(num_rows) + 2**40,
        "steps_B": torch.full((num_rows,), 2, dtype=torch.int32),
        "embed_VD": torch.randn(num_tokens, 4, generator=generator),
    }


@pytest.mark.parametrize("rule", RULES, ids=[" ".join(rule) for rule in RULES])
def test_tokens_are_those_that_the_loop_draws(rule: dict[str, Any]):
    config = SamplingConfig(**OFF | rule)
    arguments = given(5, 300, config)
    seen_BV = arguments["seen_BV"].clone()
    ids_B, log_probability_B, residual_BD = sample_token(**arguments)
    numbers = [numbers_of(2**40 + row) for row in range(5)]
    for one in numbers:
        for _ in range(2):
            next(one)
    chosen, nats = choose(arguments["logits_BV"], seen_BV, config, numbers)
    assert ids_B.tolist() == chosen
    assert log_probability_B.tolist() == pytest.approx(nats, abs=1e-5)
    assert torch.equal(residual_BD, arguments["embed_VD"][chosen])
    seen_BV[torch.arange(5), chosen] = True
    assert torch.equal(arguments["seen_BV"], seen_BV)


def test_one_recorded_call_serves_all_settings_and_every_extreme_of_them():
    arguments = given(1, 300, SamplingConfig())
    for values in ((1e-30, 0, 1, 0, 1), (1e30, 300, 1, 0.5, 1), (1, 1, 1e-7, 0, 1), (2, 301, 0.9999999, 1e-9, 1)):
        arguments["knobs"].copy_(torch.tensor(values))
        arguments["steps_B"] += 1
        wanted = step_sampling.sample_token(**arguments | {"seen_BV": arguments["seen_BV"].clone()})[0]
        assert torch.equal(sample_token(**arguments | {"seen_BV": arguments["seen_BV"].clone()})[0], wanted), values


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of what is not finite
def test_a_row_that_is_not_finite_has_no_id_and_marks_nothing():
    arguments = given(4, 20, SamplingConfig())
    before = sample_token(**arguments | {"seen_BV": arguments["seen_BV"].clone()})
    seen_BV = arguments["seen_BV"].clone()
    for row, bad in enumerate((math.nan, math.inf, -math.inf)):
        arguments["logits_BV"][row, 7] = bad
    ids_B, log_probability_B, residual_BD = sample_token(**arguments)
    assert ids_B[:3].tolist() == [-1] * 3 and log_probability_B[:3].isnan().all()
    assert torch.equal(residual_BD[:3], arguments["embed_VD"][:1].expand(3, -1))
    assert torch.equal(arguments["seen_BV"][:3], seen_BV[:3])
    assert all(torch.equal(one[3], other[3]) for one, other in zip((ids_B, residual_BD), before[::2], strict=True))


def strips(num_rows: int, num_components: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "components_BZA": torch.randn(num_rows, num_components, 16, generator=generator),
        "scores_BZ": torch.randn(num_rows, num_components, generator=generator),
        "decoding": "sample",
        "stop": True,
        "temperature": torch.tensor(0.7),
        "seeds_B": torch.arange(num_rows),
        "steps_B": torch.full((num_rows,), 4, dtype=torch.int32),
        "in_DA": torch.randn(8, 16, generator=generator),
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of what is not finite
def test_a_strip_that_is_not_finite_is_told_by_its_probability():
    arguments = strips(3, 2)
    arguments["components_BZA"][0, 1, 3] = math.nan
    arguments["scores_BZ"][1, 0] = math.inf
    assert next_patch(**arguments)[1].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"knobs": torch.zeros(4)}, r"knobs has the shape \[4\]: it must be \[five\], five = 5"),
        ({"logits_BV": torch.zeros(65, 300)}, "rows of logits = 65: this kernel goes to 64"),
        ({"logits_BV": torch.zeros(1, 70_000)}, "tokens of logits = 70000: this kernel goes to 65536"),
        ({"logits_BV": torch.zeros(1, 300).half()}, "logits is float16: it must be one of float32"),
        (
            {"seen_BV": torch.zeros(300, 2, dtype=torch.bool).T[:1]},
            "seen has the strides .* its rows must be in one piece",
        ),
        ({"embed_VD": torch.zeros(299, 4)}, r"embed has the shape \[299, 4\]: it must be \[V, D\], V = 300"),
    ],
)
def test_tokens_of_other_sizes_are_refused(changes: dict[str, Tensor], expected: str):
    with pytest.raises(ValueError, match=expected):
        sample_token(**given(1, 300, SamplingConfig()) | changes)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"decoding": "beam"}, "decoding = 'beam': it must be one of threshold, mixture, sample"),
        ({"temperature": torch.ones(1)}, r"temperature has the shape \[1\]"),
        ({"scores_BZ": torch.zeros(1, 3)}, r"scores has the shape \[1, 3\]: it must be \[B, Z\], B = 1, Z = 2"),
        ({"in_DA": torch.zeros(8, 15)}, r"in has the shape \[8, 15\]: it must be \[D, A\], A = 16"),
        ({"components_BZA": torch.zeros(1, 65, 1000)}, "as powers of two, = 131072: this kernel goes to 65536"),
    ],
)
def test_patches_of_other_sizes_are_refused(changes: dict[str, Any], expected: str):
    with pytest.raises(ValueError, match=expected):
        next_patch(**strips(1, 2) | changes)
