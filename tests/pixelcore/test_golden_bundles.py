"""Two bundles trained and recorded by the original program: what it computed is what we compute."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from pixelcore.convert.bundle_reader import read_bundle
from pixelcore.convert.names import pack, packed_shapes, unpack
from pixelcore.models.decoder import Decoder
from pixelcore.ops import adamw
from pixelcore.packed import Packed
from pixelcore.stored import Stored

BUNDLES = ["decoder_tiny_bundle", "decoder_tiny_moe_bundle"]
NUM_PROMPTS, NUM_NEW, CLEAR_MARGIN = 8, 24, 1e-3


class Golden:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arrays = numpy.load(folder / "reference.npz")
        self.json: dict[str, Any] = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
        self.stored: Stored = read_bundle(folder, with_optimizer=True)
        self.model = Decoder(self.stored.decoder_config)
        self.model.load_state_dict(self.stored.weights)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture(scope="module", params=BUNDLES)
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    return Golden(shared / "golden" / request.param)


def error(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def test_files_are_the_recorded_ones(golden):
    for name, sha256 in golden.json["sha256"].items():
        assert hashlib.sha256((golden.folder / name).read_bytes()).hexdigest() == sha256, name


@torch.no_grad()
def test_logits_and_balance_of_every_prompt(golden):
    worst = 0.0
    for index in range(NUM_PROMPTS):
        out = golden.model(golden.tensor(f"ids_{index}")[None])
        worst = max(worst, error(out.logits[0, -4:], golden.tensor(f"logits_{index}")))
        if f"logits_all_{index}" in golden.arrays:
            worst = max(worst, error(out.logits[0], golden.tensor(f"logits_all_{index}")))
        assert error(out.balance, golden.tensor(f"aux_{index}")) < 1e-5
    print(f"{golden.folder.name}: largest difference of logits {worst:.2e}")
    assert worst < 1e-3


@torch.no_grad()
def test_prompts_packed_into_one_pass_give_the_same_logits(golden):
    prompts = [golden.tensor(f"ids_{index}") for index in range(NUM_PROMPTS)]
    packed = Packed.from_lengths([len(ids) for ids in prompts])
    logits = golden.model(torch.cat(prompts), packed).logits.split(list(packed.lengths))
    for index, rows in enumerate(logits):
        assert error(rows[-4:], golden.tensor(f"logits_{index}")) < 1e-3


@torch.no_grad()
def test_hidden_states_inside_the_model(golden):
    seen: dict[str, Tensor] = {}
    model = golden.model

    def keep(name: str):
        def hook(_module, _inputs, output):
            # a block hands on the residual stream and the branch that is not added yet
            seen[name] = output[0] + output[1] if isinstance(output, tuple) else output

        return hook

    watched = {"hidden_embed_0": model.embed, "attn_layer0_out_0": model.layers[0].attention}
    watched |= {f"hidden_layer{index}_0": layer for index, layer in enumerate(model.layers)}
    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    model(golden.tensor("ids_0")[None])
    for handle in handles:
        handle.remove()
    for name, value in seen.items():
        assert error(value, golden.tensor(name)) < 1e-3, name
    assert len(seen) == 4


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_greedy_ids_through_the_cache(golden, chunk):
    compared = 0
    for index in range(NUM_PROMPTS):
        ids, expected = golden.tensor(f"ids_{index}"), golden.tensor(f"greedy_{index}").tolist()
        cache = golden.model.new_cache(1)
        for part in ids.split(chunk):
            logits = golden.model(part[None], cache=cache, last_only=True).logits
        for number, margin in enumerate(golden.tensor(f"greedy_margin_{index}").tolist()):
            if margin >= CLEAR_MARGIN:
                assert logits.argmax().item() == expected[number], (index, number)
                compared += 1
            logits = golden.model(torch.tensor([[expected[number]]]), cache=cache, last_only=True).logits
    assert compared >= NUM_PROMPTS * NUM_NEW - 2


def test_tokenizer_cases(golden):
    tokenizer = golden.stored.tokenizer
    for case in golden.json["tokenizer_cases"]:
        ids = tokenizer.encode(case["text"])
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids) == case["decoded"]
    for prompt in golden.json["prompts"]:
        assert [tokenizer.bos_id, *tokenizer.encode(prompt["cleaned_prompt"])] == prompt["prompt_ids"]
    assert tokenizer.vocab_text() == (golden.folder / "pixel_tokenizer.vocab").read_text(encoding="utf-8")


def test_training_goes_on_from_the_stored_optimizer(golden):
    config, moments = golden.stored.config, golden.stored.optimizer
    model = Decoder(config)
    model.load_state_dict(golden.stored.weights)
    window = golden.tensor("resume_window")
    out = model(window[None, :-1], targets=window[None, 1:])
    out.loss.backward()
    assert error(out.cross_entropy, golden.tensor("resume_ce")) < 1e-5
    assert error(out.balance, golden.tensor("resume_aux")) < 1e-5

    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    recorded = golden.tensor("resume_grad_norm")
    assert abs(norm / recorded - 1) < 1e-4
    clip = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
    # what decays is a matrix in the published shapes, stacked experts included; norm weights do not
    for decays, weight_decay in ((True, 0.1), (False, 0.0)):
        names = [name for name, shape in packed_shapes(config).items() if (len(shape) > 1) == decays]
        adamw(
            [parameters[name].data for name in names],
            [gradients[name] for name in names],
            [moments.firsts[name].clone() for name in names],
            [moments.seconds[name].clone() for name in names],
            torch.tensor(moments.step + 1.0),
            golden.tensor("resume_lr").float(),
            clip,
            torch.tensor(0.0),
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=weight_decay,
        )
    after = unpack(model.state_dict(), config)
    recorded_names = [name for name in golden.arrays if name.startswith("resume_after.")]
    worst = max(error(after[name.removeprefix("resume_after.")], golden.tensor(name)) for name in recorded_names)
    with torch.no_grad():
        logits = model(window[None, :-1]).logits[0]
    difference = error(logits[-4:], golden.tensor("resume_after_logits"))
    print(f"{golden.folder.name}: after the step, weights differ by {worst:.2e}, logits by {difference:.2e}")
    assert worst < 1e-5
    assert len(recorded_names) == 3
    assert difference < 1e-3


def test_names_carry_every_weight_both_ways(golden):
    published = torch.load(golden.folder / "latest.pt", map_location="cpu", weights_only=True)["model"]
    again = unpack(golden.stored.weights, golden.stored.config)
    assert list(again) == list(published)
    assert all(torch.equal(again[name], published[name]) for name in published)
    packed = pack(again, golden.stored.config)
    assert all(torch.equal(packed[name], tensor) for name, tensor in golden.stored.weights.items())
