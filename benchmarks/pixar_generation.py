"""Writing strips: with the cache, without it, and the same model in transformers driven by a loop with its cache.

    python -m benchmarks.pixar_generation [--json] [--out benchmarks/results/pixar_generation.json]

All three hold the same random weights of the size of PIXAR-85M in fp32 on the CPU, read the same prompt of random
pixels, decide every pixel by the sign of its log-odds, and must write the same patches. The peer is `LlamaModel`, whose
layers are PIXAR's, fed with rows instead of tokens; its two linear maps of patches are plain products. Ours computes
the log-probability of what it writes besides. Runs alternate, so that whatever else the machine does meets all of them.
Needs the extra `parity`.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import DynamicCache, LlamaConfig, LlamaModel  # pyright: ignore[reportMissingImports] - extra parity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from infer.write_strip import WriteConfig, write
from pixelcore.accounting import num_parameters
from pixelcore.config import PixarConfig
from pixelcore.convert.pixar import published_config
from pixelcore.convert.pixar_names import unpack
from pixelcore.initialise import initialise
from pixelcore.models.pixar import Pixar

CONFIG = PixarConfig(num_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=2048)  # PIXAR-85M
TARGETS = {"without_cache": 5.0, "transformers": 1.05}  # how many times as fast ours has to be


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-patches", type=int, default=150)
    parser.add_argument("--new-patches", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of ours and of transformers")
    parser.add_argument("--uncached-runs", type=int, default=2, help="timed runs without the cache, which are slow")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON, not a line")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = Pixar(CONFIG).eval()
    initialise(model, seed=0)
    theirs = as_llama(model)
    generator = np.random.default_rng(1)
    prompt = (generator.random((options.prompt_patches, CONFIG.patch_values)) < 0.8).astype(np.uint8) * 255
    contestants = {
        "ours": lambda: write_ours(model, prompt, options.new_patches, cached=True),
        "transformers": lambda: write_theirs(theirs, model, prompt, options.new_patches),
        "without_cache": lambda: write_ours(model, prompt, options.new_patches, cached=False),
    }
    written: dict[str, NDArray[np.uint8]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    written |= {name: contestants[name]() for name in ("ours", "transformers")}  # and not timed
    for run in range(options.runs):
        for name, contestant in contestants.items():
            if name != "without_cache" or run < options.uncached_runs:
                start = time.perf_counter()
                written[name] = contestant()
                seconds[name].append(time.perf_counter() - start)
    agreement = {name: compare(model, prompt, written["ours"], written[name]) for name in list(contestants)[1:]}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "what": "writing strips, batch 1, fp32, CPU, threshold",
        "parameters": num_parameters(CONFIG),
        "prompt_patches": options.prompt_patches,
        "new_patches": options.new_patches,
        "speedup": {name: median[name] / median["ours"] for name in TARGETS},
        "targets": TARGETS,
        "patches_per_second": {name: options.new_patches / value for name, value in median.items()},
        "seconds": seconds,
        "agreement": agreement,
    } | record(("torch", "transformers"), options.threads)
    table = (
        f"ours {median['ours']:.2f} s for {options.new_patches} patches after {options.prompt_patches}; without the "
        f"cache {median['without_cache']:.2f} s: {result['speedup']['without_cache']:.2f} times as fast; transformers "
        f"{median['transformers']:.2f} s: {result['speedup']['transformers']:.2f} times as fast"
    )
    publish(result, table, options.json, options.out)


def as_llama(model: Pixar) -> LlamaModel:
    """The layers of the model as a Llama of its own memory, attention by sdpa; its embedding is not used."""
    fields = {name: value for name, value in published_config(model.config).items() if name != "rope_theta"}
    assert model.config.rope_base == 10000.0, "the default of LlamaConfig"
    fields |= {"vocab_size": 1, "bos_token_id": 0, "eos_token_id": 0, "attn_implementation": "sdpa"}
    llama = LlamaModel(LlamaConfig(**fields))
    state = {name: value.clone() for name, value in unpack(model.state_dict(), model.config).items()}
    layers = {name: value for name, value in state.items() if not name.startswith(("in_proj", "out_proj"))}
    missing, unexpected = llama.load_state_dict(layers, strict=False)
    assert not unexpected and missing == ["embed_tokens.weight"], (missing, unexpected)
    return llama.eval()


def write_ours(model: Pixar, prompt: NDArray[np.uint8], new: int, cached: bool) -> NDArray[np.uint8]:
    """What `infer continue` does."""
    return write(model, [prompt], WriteConfig(max_patches=new, stop=False), cached=cached)[0].patches


@torch.inference_mode()
def write_theirs(llama: LlamaModel, model: Pixar, prompt: NDArray[np.uint8], new: int) -> NDArray[np.uint8]:
    """The loop that a user of transformers writes."""
    values = model.config.patch_values
    weight_in, weight_out = model.in_proj.flat_weight(values), model.out_proj.flat_weight(values).T.contiguous()
    cache = DynamicCache(config=llama.config)
    pixels_1LA = torch.from_numpy(prompt)[None] / 255
    patches = []
    for _ in range(new):
        rows_1LD = F.linear(2 * pixels_1LA - 1, weight_in)
        hidden_1LD = llama(inputs_embeds=rows_1LD, past_key_values=cache, use_cache=True).last_hidden_state
        pixels_1LA = (F.linear(hidden_1LD[:, -1:], weight_out) > 0).float()
        patches.append(pixels_1LA[0])
    return (torch.cat(patches) * 255).to(torch.uint8).numpy()


@torch.no_grad()
def compare(
    model: Pixar, prompt: NDArray[np.uint8], ours: NDArray[np.uint8], other: NDArray[np.uint8]
) -> dict[str, object]:
    """Both must write the same patches up to the first one that rounding decides."""
    differ = (ours != other).any(1)
    same = int(differ.argmax()) if differ.any() else len(ours)
    found: dict[str, object] = {"equal_patches": same, "distinct_patches": len(np.unique(ours, axis=0))}
    if same < len(ours):
        pixels = torch.from_numpy(np.concatenate([prompt, ours[:same]]))
        odds_A = model.read(pixels, [len(pixels)], last_only=True).components[0, 0]
        gap = odds_A[torch.from_numpy(ours[same] != other[same])].abs().max().item()
        assert gap < 1e-4, f"patch {same}: pixels differ whose log-odds are up to {gap:.2e} from 0: not a near-tie"
        found["log_odds_at_first_difference"] = gap
    return found


if __name__ == "__main__":
    main()
