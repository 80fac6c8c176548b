"""Greedy generation, ours against `LlamaForCausalLM.generate()` of transformers, in one process.

    python benchmarks/generation_vs_transformers.py [--out results.json]

Both hold the same random weights of the 100m architecture in fp32 on the CPU, read the same prompt and must write the
same tokens; runs alternate, so that whatever else the machine does meets both. The result is the ratio of the medians.
Needs the extra `parity`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infer.sampling import SamplingConfig, choose
from pixelcore.config import DecoderConfig
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Attention, Block, Decoder, FeedForward

CONFIG = DecoderConfig(
    vocab_size=16000,
    context_length=1024,
    num_layers=12,
    hidden_size=768,
    num_attention_heads=12,
    num_key_value_heads=4,
    intermediate_size=2048,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each, after one that is not timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    ours = Decoder(CONFIG).eval()
    initialise(ours, seed=0)
    with torch.no_grad():  # at 0.02 everywhere a tied model repeats its input; louder layers make it move
        for name, weight in ours.named_parameters():
            if name.endswith(("qkv.weight", "out.weight", "down.weight")):
                weight *= 3
    theirs = as_llama(ours)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(4, CONFIG.vocab_size, (1, options.prompt_tokens), generator=generator)

    agreement = compare(
        generate_ours(ours, prompt, options.new_tokens),
        generate_theirs(theirs, prompt, options.new_tokens),
        ours,
        prompt,
    )
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(options.runs):
        start = time.perf_counter()
        generate_ours(ours, prompt, options.new_tokens)
        middle = time.perf_counter()
        generate_theirs(theirs, prompt, options.new_tokens)
        seconds["ours"].append(middle - start)
        seconds["transformers"].append(time.perf_counter() - middle)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)]
    result = {
        "what": "greedy generation, batch 1, fp32, CPU",
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "speedup": median["transformers"] / median["ours"],
        "speedup_of_each_pair": ratios,
        "tokens_per_second": {name: options.new_tokens / value for name, value in median.items()},
        "seconds": seconds,
        "agreement": agreement,
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit(),
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


@torch.inference_mode()
def generate_ours(model: Decoder, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    """The loop of `infer.generate` on ids instead of text, its sampling and log-probabilities included."""
    cache = model.new_cache(1, prompt.shape[1] + new_tokens)
    sampling, generators = SamplingConfig(temperature=0), [torch.Generator()]
    ids: list[int] = []
    pending = prompt[0].tolist()
    while len(ids) < new_tokens:
        packed = cache.begin([len(pending)], "cpu")
        logits = model(torch.tensor(pending), packed, cache=cache, last_only=True).logits
        assert logits is not None
        pending, _ = choose(logits, None, sampling, generators)
        ids += pending
    return ids


@torch.inference_mode()
def generate_theirs(model: LlamaForCausalLM, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
    )
    return out[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def compare(ours: list[int], theirs: list[int], model: Decoder, prompt: torch.Tensor) -> dict[str, object]:
    """Both must write the same tokens up to the first one that rounding decides."""
    same = next((n for n, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), len(ours))
    if same == len(ours):
        return {"equal_tokens": same, "distinct_tokens": len(set(ours))}
    sequence = torch.cat((prompt[0], torch.tensor(ours[:same], dtype=prompt.dtype)))[None]
    logits = model(sequence).logits
    assert logits is not None
    gap = (logits[0, -1, ours[same]] - logits[0, -1, theirs[same]]).abs().item()
    assert gap < 1e-4, f"token {same}: ours {ours[same]}, theirs {theirs[same]}, {gap:.2e} apart: not a near-tie"
    return {"equal_tokens": same, "distinct_tokens": len(set(ours)), "gap_at_first_difference": gap}


@torch.no_grad()
def as_llama(model: Decoder) -> LlamaForCausalLM:
    """The same function as a Llama model, whose rotary positions pair (j, j + K/2) where ours pair (2j, 2j + 1)."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.context_length,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    ).eval()
    weights = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    weights["lm_head.weight"] = model.head_weight
    for index, block in enumerate(model.layers):
        assert isinstance(block, Block)
        attention, feed_forward, layer = block.attention, block.feed_forward, f"model.layers.{index}"
        assert isinstance(attention, Attention) and isinstance(feed_forward, FeedForward)
        rows = list(attention.qkv.parts.values())
        q, k, v = attention.qkv.weight.split(rows)
        gate, up = feed_forward.gate_up.weight.chunk(2)
        weights |= {
            f"{layer}.input_layernorm.weight": block.norm1.weight,
            f"{layer}.self_attn.q_proj.weight": _half_split(q, config.head_size),
            f"{layer}.self_attn.k_proj.weight": _half_split(k, config.head_size),
            f"{layer}.self_attn.v_proj.weight": v,
            f"{layer}.self_attn.o_proj.weight": attention.out.weight,
            f"{layer}.post_attention_layernorm.weight": block.norm2.weight,
            f"{layer}.mlp.gate_proj.weight": gate,
            f"{layer}.mlp.up_proj.weight": up,
            f"{layer}.mlp.down_proj.weight": feed_forward.down.weight,
        }
    llama.load_state_dict(weights, strict=True)
    return llama


def _half_split(weight: torch.Tensor, head_size: int) -> torch.Tensor:
    """In every head: first the even rows, then the odd ones."""
    heads = weight.unflatten(0, (-1, head_size))
    return torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
