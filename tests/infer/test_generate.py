"""The generation loop on a small random model: what the text is, when it ends, and that a batch changes nothing."""

import pytest
import torch

from infer.generate_tokens import StopFilter, generate
from infer.sampling import SamplingConfig
from pixelcore.config import DecoderConfig, MoEConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder
from pixelcore.tokenizer import Tokenizer, train_tokenizer

PROMPTS = ["the quick brown fox", "", "a lazy dog jumps over the quick fox and", "naïve 狐"]
GREEDY = SamplingConfig(temperature=0)
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog and runs away\n" * 20], 330)


@pytest.fixture(scope="module")
def model(tokenizer) -> Decoder:
    return _model(tokenizer)


def _model(tokenizer: Tokenizer, moe: MoEConfig | None = None) -> Decoder:
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        moe=moe,
    )
    model = Decoder(config).eval()
    initialise(model, seed=3)
    with torch.no_grad():
        # larger than at the start of training, so that the text depends on the context
        for name, weight in model.named_parameters():
            weight *= 20 if name.endswith("qkv.weight") else 10 if name.endswith("out.weight") else 1
        model.embed.weight *= 5
    return model


def _never_ends(model: Decoder, tokenizer: Tokenizer) -> Decoder:
    """The same weights with </s> out of reach."""
    with torch.no_grad():
        model.embed.weight[tokenizer.eos_id] = 0
    return model


@torch.no_grad()
def _reference_greedy(model: Decoder, ids: list[int], count: int) -> list[int]:
    ids, first = list(ids), len(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits
        assert logits is not None
        ids.append(int(logits[0, -1].argmax()))
    return ids[first:]


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def test_greedy_equals_argmax_without_a_cache(model, tokenizer):
    for generation in generate(model, tokenizer, PROMPTS, GREEDY, max_tokens=12):
        expected = _reference_greedy(model, _prompt_ids(tokenizer, generation.prompt), 12)
        if tokenizer.eos_id in expected:
            expected = expected[: expected.index(tokenizer.eos_id)]
        assert generation.ids == expected
        assert generation.num_tokens == len(expected)


@pytest.mark.parametrize("config", [GREEDY, SamplingConfig(temperature=1.3, top_p=0.9, repetition_penalty=1.2, seed=7)])
@pytest.mark.parametrize("experts", [None, MoEConfig(num_experts=4, top_k=2, expert_interval=2)])
def test_a_batch_gives_what_each_prompt_gives_alone(tokenizer, config, experts):
    model = _model(tokenizer, moe=experts)
    together = generate(model, tokenizer, PROMPTS, config, max_tokens=20, stop=["q", "u", "a"])
    in_pairs = generate(model, tokenizer, PROMPTS, config, max_tokens=20, stop=["q", "u", "a"], batch_size=2)
    assert len({generation.num_tokens for generation in together}) > 1, "sequences should end at different times"
    for index, (prompt, one, other) in enumerate(zip(PROMPTS, together, in_pairs, strict=True)):
        alone_config = SamplingConfig(
            temperature=config.temperature,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            seed=config.seed + index,
        )
        (alone,) = generate(model, tokenizer, [prompt], alone_config, max_tokens=20, stop=["q", "u", "a"])
        assert (one.ids, one.text, one.finish_reason) == (alone.ids, alone.text, alone.finish_reason)
        assert one.ids == other.ids
        assert one.seed == alone.seed == config.seed + index
        assert one.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def test_the_seed_decides_the_text(model, tokenizer):
    def text(seed: int) -> str:
        return generate(model, tokenizer, PROMPTS[:1], SamplingConfig(temperature=2, top_p=1, seed=seed))[0].text

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_log_probabilities_are_those_of_the_model(model, tokenizer):
    (generation,) = generate(model, tokenizer, PROMPTS[:1], SamplingConfig(temperature=1.5, seed=2), max_tokens=10)
    prompt = _prompt_ids(tokenizer, PROMPTS[0])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + generation.ids])).logits
    log_softmax = logits[0].log_softmax(-1)
    expected = [log_softmax[len(prompt) - 1 + n, id].item() for n, id in enumerate(generation.ids)]
    assert generation.log_probabilities == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stop", [[], ["e"], ["o", "\ufffd"]])
def test_streamed_pieces_joined_are_the_text(model, tokenizer, stop):
    pieces: dict[int, str] = dict.fromkeys(range(len(PROMPTS)), "")

    def on_text(index: int, piece: str) -> None:
        assert piece
        pieces[index] += piece

    config = SamplingConfig(temperature=1.5, top_p=1, seed=11)
    generations = generate(model, tokenizer, PROMPTS, config, max_tokens=30, stop=stop, on_text=on_text)
    for index, generation in enumerate(generations):
        assert pieces[index] == generation.text
        if not stop:
            prompt = _prompt_ids(tokenizer, generation.prompt)
            whole = tokenizer.decode(prompt + generation.ids)
            assert whole == generation.prompt + generation.text


def test_a_stop_string_may_span_tokens_and_is_not_part_of_the_text(model, tokenizer):
    (free,) = generate(_never_ends(_model(tokenizer), tokenizer), tokenizer, [PROMPTS[0]], GREEDY, max_tokens=16)
    stop = free.text[3:9]
    end = free.text.index(stop)
    shown: list[str] = []
    (stopped,) = generate(
        _never_ends(_model(tokenizer), tokenizer),
        tokenizer,
        [PROMPTS[0]],
        GREEDY,
        max_tokens=16,
        stop=["never there", stop],
        on_text=lambda _, piece: shown.append(piece),
    )
    assert len(tokenizer.encode(stop)) > 1
    assert (stopped.text, stopped.finish_reason) == (free.text[:end], "stop")
    assert "".join(shown) == stopped.text
    assert stopped.ids == free.ids[: stopped.num_tokens]
    assert stopped.num_tokens < free.num_tokens


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stop_filter_does_not_depend_on_how_the_text_is_cut(size):
    def filtered(text: str, stop: list[str]) -> tuple[str, bool]:
        one = StopFilter(stop)
        out = "".join(one.push(text[at : at + size]) for at in range(0, len(text), size))
        return out + ("" if one.stopped else one.finish()), one.stopped

    assert filtered("ababac rest", ["abac"]) == ("ab", True)
    assert filtered("abcd", ["bcd", "c"]) == ("ab", True)  # "c" is complete first
    assert filtered("xbcd", ["cd", "bcd"]) == ("x", True)  # both end together: the longer
    assert filtered("aab", ["ab"]) == ("a", True)
    assert filtered("the end EN", ["END"]) == ("the end EN", False)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_certain():
    one = StopFilter(["END"])
    assert [one.push("x E"), one.push("N"), one.push("x"), one.push("END")] == ["x ", "", "ENx", ""]
    assert one.stopped
    assert one.push("more") == ""


def test_eos_ends_a_sequence_and_is_not_part_of_it(tokenizer):
    model = _model(tokenizer)
    (free,) = generate(_never_ends(model, tokenizer), tokenizer, [PROMPTS[0]], GREEDY, max_tokens=8)
    with torch.no_grad():  # </s> becomes a louder copy of the fourth token written
        model.embed.weight[tokenizer.eos_id] = model.embed.weight[free.ids[3]] * 1.01
    (ended,) = generate(model, tokenizer, [PROMPTS[0]], GREEDY, max_tokens=8)
    assert ended.finish_reason == "eos"
    assert ended.ids == free.ids[: free.ids.index(free.ids[3])]


def test_the_context_ends_a_sequence_that_does_not_slide(tokenizer):
    model = _never_ends(_model(tokenizer), tokenizer)
    prompt = PROMPTS[2] + " quick" * 12
    full, short = generate(model, tokenizer, [prompt, "a"], GREEDY, max_tokens=CONTEXT - 10)
    assert full.finish_reason == "context"
    assert full.num_prompt_tokens + full.num_tokens == CONTEXT + 1  # the last token drawn has no place to be read
    assert full.ids == _reference_greedy(model, _prompt_ids(tokenizer, prompt), full.num_tokens)
    assert (short.finish_reason, short.num_tokens) == ("length", CONTEXT - 10)


def test_sliding_goes_on_with_the_last_half_of_the_context(tokenizer):
    model = _never_ends(_model(tokenizer), tokenizer)
    slid, short = generate(model, tokenizer, [PROMPTS[2], "a"], GREEDY, max_tokens=CONTEXT + 20, sliding=True)
    assert slid.finish_reason == short.finish_reason == "length"
    assert slid.num_tokens == CONTEXT + 20
    everything = _prompt_ids(tokenizer, PROMPTS[2])
    window = list(everything)
    while len(everything) < slid.num_prompt_tokens + slid.num_tokens:
        everything += _reference_greedy(model, window, 1)
        window.append(everything[-1])
        if len(window) > CONTEXT:
            window = everything[-CONTEXT // 2 :]
    assert slid.ids == everything[slid.num_prompt_tokens :]


def test_a_prompt_as_long_as_the_context_gives_one_token(tokenizer):
    model = _never_ends(_model(tokenizer), tokenizer)
    prompt = "the" + " fox" * (CONTEXT - 2)
    assert len(_prompt_ids(tokenizer, prompt)) == CONTEXT
    (generation,) = generate(model, tokenizer, [prompt], GREEDY, max_tokens=5)
    assert (generation.num_tokens, generation.finish_reason) == (1, "context")


def test_a_prompt_longer_than_the_context_stops_before_anything_is_generated(model, tokenizer):
    with pytest.raises(UserError, match=r"prompt 2 has \d+ tokens and the model's context 64"):
        generate(model, tokenizer, ["a", "the quick fox " * 40], GREEDY, on_text=lambda *_: pytest.fail("generated"))


@pytest.mark.parametrize("sliding", [False, True])
def test_damaged_weights_are_an_error_and_not_a_text(tokenizer, sliding):
    model = _model(tokenizer)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        generate(model, tokenizer, ["a"], GREEDY, sliding=sliding)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop string is empty"),
        ({"batch_size": 0}, "batch_size"),
        ({"prompts": "one string"}, "a list"),
        ({"prompts": ["\ud800"]}, "not valid text"),
    ],
)
def test_nonsense_is_refused(model, tokenizer, changes, message):
    with pytest.raises(UserError, match=message):
        generate(model, tokenizer, **({"prompts": ["a"]} | changes))


def test_generating_first_does_not_spoil_training_afterwards(tokenizer):
    model = _model(tokenizer)
    generate(model, tokenizer, ["a"], GREEDY, max_tokens=2)
    ids = torch.tensor([_prompt_ids(tokenizer, PROMPTS[0])])
    model(ids, targets=ids).loss.backward()
    assert model.embed.weight.grad is not None
