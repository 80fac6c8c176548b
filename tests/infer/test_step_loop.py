"""Steps that ask the host nothing write what the model writes token by token: the same ids, texts, ends and strips.

The reference of the step's operations runs here; `tests/kernels/test_decode_step.py` has the kernels.
"""

import logging
from typing import cast

import numpy as np
import pytest
import torch

from infer.generate_tokens import Generation, generate
from infer.sampling import SamplingConfig
from infer.step_loop import GROUP, StepLoop, say_once
from infer.write_strip import WriteConfig, Written, write
from pixelcore.config import DecoderConfig, LoRAConfig, MoEConfig
from pixelcore.decode_step import Steps
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.models.pixar import Pixar
from pixelcore.step_ops import STEP_REFERENCE
from pixelcore.tokenizer import Tokenizer, train_tokenizer
from tests.infer.tiny_pixar import bernoulli, pixar

PROMPTS = ["the quick brown fox", "", "a lazy dog jumps over the quick fox and", "naïve 狐"]
GREEDY = SamplingConfig(temperature=0)
WARM = SamplingConfig(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=7)
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog and runs away\n" * 20], 330)


def decoder(tokenizer: Tokenizer, moe: MoEConfig | None = None, lora: LoRAConfig | None = None) -> Decoder:
    """Loud enough that its text depends on the context."""
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        moe=moe,
        lora=lora,
    )
    model = Decoder(config).eval()
    initialise(model, seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 20 if name.endswith("qkv.weight") else 10 if name.endswith("out.weight") else 1
        model.embed.weight *= 5
    return model


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch):
    """Call a function as it would run with a record that has operations of a step."""
    say_once.cache_clear()

    def call(function, *arguments, **named):
        with monkeypatch.context() as patch:
            patch.setattr("infer.step_loop.step_ops_of", lambda ops: STEP_REFERENCE)
            return function(*arguments, **named)

    return call


def assert_same(one: list[Generation], other: list[Generation]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.ids, a.text, a.finish_reason, a.seed) == (b.ids, b.text, b.finish_reason, b.seed)
        assert a.log_probabilities == pytest.approx(b.log_probabilities, abs=1e-4)


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize("config", [GREEDY, WARM])
@pytest.mark.parametrize("batch_size", [3, 100])
def test_steps_write_what_the_model_writes(tokenizer, stepped, config, batch_size):
    model = decoder(tokenizer)
    shown: list[list[tuple[int, str]]] = [[], []]
    options = {"max_tokens": GROUP + 4, "stop": ["q"]}
    expected = generate(model, tokenizer, PROMPTS, config, **options, on_text=lambda *piece: shown[0].append(piece))
    found = stepped(
        generate,
        *(model, tokenizer, PROMPTS, config),
        **options,
        batch_size=batch_size,
        on_text=lambda *piece: shown[1].append(piece),
    )
    assert_same(found, expected)
    assert len({one.num_tokens for one in found}) > 1, "sequences should end at different times"
    assert {one.finish_reason for one in found} >= {"stop", "length"}
    assert all(one.seconds > 0 for one in found)
    for index in range(len(PROMPTS)):
        pieces = [[piece for prompt, piece in pieces if prompt == index] for pieces in shown]
        assert pieces[0] == pieces[1]


def test_an_end_in_the_middle_of_a_group_is_an_end(tokenizer, stepped):
    model = decoder(tokenizer)
    with torch.no_grad():
        model.embed.weight[tokenizer.eos_id] = 0
        free = generate(model, tokenizer, PROMPTS, GREEDY, max_tokens=GROUP + 8)
        # </s> becomes a louder copy of a token of the second group
        model.embed.weight[tokenizer.eos_id] = model.embed.weight[free[0].ids[GROUP + 3]] * 1.01
    expected = generate(model, tokenizer, PROMPTS, GREEDY, max_tokens=3 * GROUP)
    found = stepped(generate, model, tokenizer, PROMPTS, GREEDY, max_tokens=3 * GROUP)
    assert_same(found, expected)
    assert found[0].finish_reason == "eos" and 1 < (found[0].num_tokens - 1) % GROUP < GROUP - 1
    assert len({one.num_tokens for one in found}) > 1


def test_a_sequence_whose_context_is_full_leaves_the_others_as_they_are(tokenizer, stepped):
    model = decoder(tokenizer)
    with torch.no_grad():
        model.embed.weight[tokenizer.eos_id] = 0
    prompts = [PROMPTS[2] + " quick" * 12, "a", "the" + " fox" * (CONTEXT - 2)]
    expected = generate(model, tokenizer, prompts, GREEDY, max_tokens=CONTEXT - 10)
    found = stepped(generate, model, tokenizer, prompts, GREEDY, max_tokens=CONTEXT - 10)
    assert_same(found, expected)
    assert [one.finish_reason for one in found] == ["context", "length", "context"]
    assert found[0].num_prompt_tokens + found[0].num_tokens == CONTEXT + 1 and found[2].num_tokens == 1


def test_damaged_weights_are_an_error_wherever_they_show(tokenizer, stepped):
    model = decoder(tokenizer)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite logits for sequence 0"):
        stepped(generate, model, tokenizer, ["a"], GREEDY)
    with pytest.raises(UserError, match=r"prompt 1 has \d+ tokens and the model's context 64"):
        stepped(generate, decoder(tokenizer), tokenizer, ["the quick fox " * 40], GREEDY)
    assert stepped(generate, model, tokenizer, []) == []


@pytest.mark.parametrize(
    ("changes", "sliding", "reason"),
    [
        ({"moe": MoEConfig(num_experts=4, top_k=2, expert_interval=2)}, False, "experts are chosen row by row"),
        ({"lora": LoRAConfig()}, False, "its adapters are not folded into its weights"),
        ({}, True, "the window slides"),
    ],
)
def test_what_cannot_be_stepped_runs_as_it_is_and_says_so(tokenizer, stepped, caplog, changes, sliding, reason):
    model = decoder(tokenizer, **changes)
    expected = generate(model, tokenizer, PROMPTS[:1], GREEDY, max_tokens=3)
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        assert_same(stepped(generate, model, tokenizer, PROMPTS[:1], GREEDY, max_tokens=3, sliding=sliding), expected)
    [record] = caplog.records
    assert record.getMessage().startswith("--ops fused: the model runs as it is, token by token")
    assert reason in record.getMessage()


# ------------------------------------------------------------------ groups of a device


class Counting:
    """Steps of a device that there need not be: they draw 1, 2, 3 .. and note what was asked for."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.drawn, self.events = 0, []

    def run(self, count: int, how: str = "run") -> tuple[torch.Tensor]:
        self.events.append((how, count))
        self.drawn += count
        return (torch.arange(self.drawn - count, self.drawn)[:, None] + 1,)


@pytest.mark.parametrize("wanted", [0, 1, GROUP, GROUP + 1, 2 * GROUP - 1, 2 * GROUP, 4 * GROUP - 1])
def test_groups_are_asked_for_ahead_and_replayed_where_it_pays(wanted, monkeypatch):
    steps = Counting()
    loop = StepLoop(cast(Steps, steps))

    class Replayed:
        def replay(self) -> None:
            loop._recorded = steps.run(GROUP, "replay")

    monkeypatch.setattr(loop, "_record", lambda: setattr(loop, "_graph", Replayed()))
    first = (torch.zeros(1, 1, dtype=torch.int64),)
    for batch in range(2):
        steps.drawn, steps.events, found = 0, [], []
        for group in loop.groups(first, wanted):
            steps.events.append(("read", len(group[0])))
            found += group[0].flatten().tolist()
        assert found == list(range(wanted + 1))
        names = [name for name, _ in steps.events]
        groups = -(-wanted // GROUP)
        # each group is asked for before the one ahead of it is read
        assert [name == "read" for name in names] == [False, True] * groups + [True]
        recorded = wanted >= 2 * GROUP
        asked = ["run"] * bool(groups and not (batch and recorded)) + (["replay"] if recorded else ["run"]) * groups
        assert [name for name in names if name != "read"] == asked[:groups]


# ------------------------------------------------------------------ strips


def strips(model: Pixar) -> list[np.ndarray]:
    """Prompts of different lengths, one of them nothing but the start vector."""
    random = np.random.default_rng(0)
    return [(random.random((count, model.config.patch_values)) < 0.8).astype(np.uint8) * 255 for count in (5, 0, 3)]


def assert_same_strips(one: list[Written], other: list[Written]) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.patches, b.patches) and a.ended == b.ended
        assert a.log_probability == pytest.approx(b.log_probability, rel=1e-4)


@pytest.mark.parametrize(
    ("head", "decode", "temperature"),
    [
        ("bernoulli", "threshold", 1.0),
        ("bernoulli", "sample", 0.7),
        ("mixture", "threshold", 1.0),
        ("mixture", "mixture", 1.5),
        ("mixture", "sample", 1.0),
    ],
)
def test_steps_write_the_strips_that_the_model_writes(stepped, head, decode, temperature):
    model = pixar() if head == "mixture" else bernoulli()
    config = WriteConfig(decode=decode, temperature=temperature, seed=3, max_patches=GROUP + 4)
    came: list[int] = []
    expected = write(model, strips(model), config)
    found = stepped(write, model, strips(model), config, on_patch=lambda index, patch: came.append(index), batch=2)
    assert_same_strips(found, expected)
    assert [came.count(index) for index in range(3)] == [len(one.patches) for one in found]
    assert len(np.unique(np.concatenate([one.patches for one in found]), axis=0)) > 20


@pytest.mark.parametrize("stop", [True, False])
def test_a_black_patch_in_the_middle_of_a_group_is_an_end_where_it_is_wanted(stepped, stop):
    model = bernoulli()
    with torch.no_grad():
        model.out_proj.weight.sub_(0.35)  # ink becomes likelier
    config = WriteConfig(decode="sample", stop=stop)
    expected = write(model, strips(model), config)
    assert_same_strips(stepped(write, model, strips(model), config), expected)
    ends = {len(one.patches) for one in expected}
    assert any(one.ended for one in expected) == stop
    assert len(ends) > 1


def test_a_damaged_strip_is_named(stepped):
    model = pixar()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN or infinite values for prompt 1"):
        stepped(write, model, strips(model))


def test_a_regression_runs_as_it_is_and_says_so(stepped, caplog):
    model = pixar(head="regression", num_components=1)
    expected = write(model, strips(model), WriteConfig(max_patches=2))
    with caplog.at_level(logging.INFO):
        found = stepped(write, model, strips(model), WriteConfig(max_patches=2))
    assert all(np.array_equal(a.patches, b.patches) for a, b in zip(expected, found, strict=True))
    assert "not of two colours" in caplog.text
