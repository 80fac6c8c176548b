"""Greedy generation, ours against `LlamaForCausalLM.generate()` of transformers, in one process.

    python -m benchmarks.generation_vs_transformers [--json] [--out FILE]

Both hold the same random weights of the 100m architecture in fp32 on the CPU, read the same prompt and must write the
same tokens; runs alternate, so that whatever else the machine does meets both. The result is the ratio of the medians.
Needs the extra `parity`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM  # pyright: ignore[reportMissingImports] - the extra parity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.llama_peer import architecture, as_llama
from benchmarks.record import publish, record
from infer.sampling import SamplingConfig, choose
from pixelcore.initialise import initialise
from pixelcore.models.decoder import Decoder

CONFIG = architecture("100m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each, after one that is not timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON, not a line")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    ours = Decoder(CONFIG).eval()
    initialise(ours, seed=0)
    with torch.no_grad():  # at 0.02 everywhere a tied model repeats its input; louder layers make it move
        for name, weight in ours.named_parameters():
            if name.endswith(("qkv.weight", "out.weight", "down.weight")):
                weight *= 3
    theirs = as_llama(ours).eval()
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
    } | record(("torch", "transformers"), options.threads)
    table = (
        f"ours {median['ours']:.2f} s, transformers {median['transformers']:.2f} s for {options.new_tokens} tokens: "
        f"{result['speedup']:.2f} times as fast"
    )
    publish(result, table, options.json, options.out)


@torch.inference_mode()
def generate_ours(model: Decoder, prompt: torch.Tensor, new_tokens: int) -> list[int]:
    """The loop of `infer.generate` on ids instead of text, its sampling and log-probabilities included."""
    cache = model.new_cache(1, prompt.shape[1] + new_tokens)
    sampling = SamplingConfig(temperature=0)
    ids: list[int] = []
    pending = prompt[0].tolist()
    while len(ids) < new_tokens:
        packed = cache.begin([len(pending)], "cpu")
        logits = model(torch.tensor(pending), packed, cache=cache, last_only=True).logits
        assert logits is not None
        pending, _ = choose(logits, None, sampling, [])
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


if __name__ == "__main__":
    main()
