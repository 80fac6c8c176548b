"""Steps of generation on the fused record: what they draw and leave alone, and that a recording draws the same."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from infer.step_loop import GROUP, StepLoop
from kernels import step_attend_project, step_ops_of, step_sample_token
from kernels.record import FUSED, STEP_FUSED
from pixelcore.config import DecoderConfig, MoEConfig, PixarConfig
from pixelcore.decode_step import LARGEST_HEAD, MOST_TOKENS, PatchSteps, Steps, TokenSteps
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.ops import REFERENCE
from pixelcore.step_ops import MOST_ROWS, STEP_REFERENCE, StepOps

Group = tuple[Tensor, ...]
CONTEXT = 8
LENGTHS = (3, 1, CONTEXT - 1)  # the last sequence is full after its first token
DECODER = DecoderConfig(
    vocab_size=61,
    context_length=CONTEXT,
    num_layers=1,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
)
PIXAR = PixarConfig(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=2,
    intermediate_size=24,
    patch_height=4,
    patch_length=1,
    max_patches=CONTEXT,
    head="mixture",
    num_components=3,
)
KNOBS = (0.9, 0, 0.95, 0.0, 1.3)


def model_of(config: DecoderConfig | PixarConfig, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Louder than a fresh one, so that what it says depends on what it read."""
    model = Decoder(config) if isinstance(config, DecoderConfig) else Pixar(config)
    initialise(model, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 8 if weight.dim() >= 2 else 1
    model.compute_dtype = dtype
    return model.to(device=device, dtype=dtype).eval()


def started(model: Any, ops: StepOps, lengths: tuple[int, ...] = LENGTHS) -> tuple[Steps, Callable[..., Group]]:
    """Steps behind prompts of these lengths, and what begins them, as often as it is called."""
    device = model.norm.weight.device
    cache = model.new_cache(len(lengths))
    seeds, generator = list(range(5, 5 + len(lengths))), torch.Generator().manual_seed(0)
    if isinstance(model, Decoder):
        ids_N = torch.randint(0, model.config.vocab_size, (sum(lengths),), generator=generator).to(device)
        logits_BV = model(ids_N, cache.begin(lengths, device), cache=cache, last_only=True).logits
        assert logits_BV is not None
        steps = TokenSteps(model, cache, ops, KNOBS)
        seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
        return steps, partial(steps.begin, logits_BV, seeds, seen_BV)
    pixels = torch.randint(0, 2, (sum(lengths), model.config.patch_values), generator=generator, dtype=torch.uint8)
    out = model.read(pixels.to(device) * 255, lengths, cache, last_only=True)
    steps = PatchSteps(model, cache, ops, "sample", stop=True, temperature=0.8)
    return steps, partial(steps.begin, out.components, out.scores, seeds)


def joined(groups: list[Group]) -> Group:
    return tuple(torch.cat(parts).cpu() for parts in zip(*groups, strict=True))


@pytest.mark.parametrize("config", [DECODER, PIXAR])
@torch.no_grad()
def test_fused_steps_draw_what_the_reference_draws(config):
    model, written = model_of(config), []
    for ops in (STEP_FUSED, STEP_REFERENCE):
        steps, begin = started(model, ops)
        written.append(joined([begin(), steps.run(2)]))
        assert steps.lengths_B.tolist() == [held + 2 for held in LENGTHS] and steps.steps_B.tolist() == [3] * 3
    (mine, nats, *_), (theirs, expected, *_) = written
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(nats, expected)
    assert len(mine.flatten(1).unique(dim=0)) == 3


@torch.no_grad()
def test_a_full_sequence_goes_on_and_changes_nothing():
    model = model_of(DECODER)
    steps, begin = started(model, STEP_REFERENCE)
    group = [begin(), steps.run(2)]
    full = [(layer.keys[2].clone(), layer.values[2].clone()) for layer in steps.cache.layers]
    found = joined([*group, steps.run(3)])
    for layer, (keys, values) in zip(steps.cache.layers, full, strict=True):
        assert torch.equal(layer.keys[2], keys) and torch.equal(layer.values[2], values)
    others, begin = started(model, STEP_REFERENCE, LENGTHS[:2])
    alone = joined([begin(), others.run(5)])
    assert torch.equal(found[0][:, :2], alone[0])
    assert found[1].isfinite().all()


@torch.no_grad()
def test_one_group_or_several_are_the_same():
    for config in (DECODER, PIXAR):
        model = model_of(config)
        steps, begin = started(model, STEP_REFERENCE)
        whole = joined([begin(), steps.run(4)])
        parts = joined([begin(), steps.run(1), steps.run(3)])
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@torch.no_grad()
def test_weights_are_cast_to_the_dtype_of_the_activations():
    written = []
    for dtype_of_weights in (torch.float32, torch.bfloat16):
        model = model_of(DECODER, dtype=torch.bfloat16).to(dtype_of_weights)
        steps, begin = started(model, STEP_REFERENCE)
        assert steps.residual_BD.dtype == torch.bfloat16
        written.append(joined([begin(), steps.run(3)]))
    assert_equal(*written)


def test_a_record_knows_the_operations_of_its_steps():
    assert step_ops_of(FUSED) is STEP_FUSED
    assert step_ops_of(REFERENCE) is None
    assert step_ops_of(replace(FUSED, glu=REFERENCE.glu)) is None


def test_what_cannot_be_stepped_is_refused():
    model = model_of(DECODER)
    with pytest.raises(ValueError, match=f"num_sequences = {MOST_ROWS + 1} must be from 1 to {MOST_ROWS}"):
        TokenSteps(model, model.new_cache(MOST_ROWS + 1), STEP_REFERENCE, KNOBS)
    for changes, reason in (
        ({"moe": MoEConfig(expert_interval=1)}, "experts are chosen row by row"),
        ({"vocab_size": MOST_TOKENS + 1}, f"{MOST_TOKENS + 1} tokens are more than {MOST_TOKENS}"),
        ({"hidden_size": 520}, "heads of 130 features are beyond 128"),
    ):
        model = Decoder(replace(DECODER, **changes))
        with pytest.raises(ValueError, match=f"cannot be stepped: {reason}"):
            TokenSteps(model, model.new_cache(1), STEP_REFERENCE, KNOBS)
    assert (LARGEST_HEAD, MOST_TOKENS) == (step_attend_project._MOST_SIZE, step_sample_token.MOST_TOKENS)


# ------------------------------------------------------------------ with a GPU


WIDE = {"num_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512}
ON_GPU = (
    replace(DECODER, **WIDE, context_length=128, vocab_size=1000),
    replace(PIXAR, **WIDE, max_patches=128, patch_height=8, patch_length=2),
)


@pytest.mark.gpu
@pytest.mark.parametrize("config", ON_GPU)
@torch.no_grad()
def test_a_replayed_recording_draws_what_single_steps_draw(config):
    model = model_of(config, "cuda", torch.bfloat16)
    lengths = (5, 1, 120)  # the last one is full in the first group
    steps, begin = started(model, STEP_FUSED, lengths)
    expected = joined([begin(), *(steps.run(1) for _ in range(3 * GROUP + 5))])
    steps, begin = started(model, STEP_FUSED, lengths)
    loop = StepLoop(steps)
    for _ in range(2):  # the second time from the first group on
        assert_equal(joined(list(loop.groups(begin(), 3 * GROUP + 5))), expected)
        assert loop.is_recorded


@pytest.mark.gpu
@pytest.mark.parametrize("config", ON_GPU)
@torch.no_grad()
def test_fused_steps_in_fp32_draw_what_the_reference_draws_on_a_gpu(config):
    model, written = model_of(config, "cuda"), []
    for ops in (STEP_FUSED, STEP_REFERENCE):
        steps, begin = started(model, ops, (5, 1, 120))
        written.append(joined([begin(), steps.run(20)]))
    assert torch.equal(written[0][0][:, :2], written[1][0][:, :2])
    torch.testing.assert_close(written[0][1], written[1][1], rtol=1e-3, atol=1e-3)


def assert_equal(found: Group, expected: Group) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
