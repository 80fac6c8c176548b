"""Does a model write or recite? The share of its 8-word sequences that stand in its training text.

    python -m benchmarks.written_overlap --model RUN --train FILE... --held-out FILE... [--json] [--out FILE]
    python -m benchmarks.written_overlap --written CONTINUED.json --train FILE... --held-out FILE...

The second form takes what `python -m infer continue --read --json` wrote as strips and read back.

A small model trained for several epochs can learn passages by heart, and a sample then looks better than the model is.
So the words of many samples are cut into overlapping sequences of eight, and each is looked for in the training text.
Writing of one's own also repeats short phrases of others, so the same share is taken of text that the model has never
seen: passages of the held-out works of the very same lengths, and the whole of them. A share far above that is
recitation.

Words are runs of letters, digits and apostrophes in lower case, so a changed comma hides nothing. Only what the model
wrote counts, not the prompts. The samples themselves go to a text file, all of them and in order.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from infer import SamplingConfig, generate, load
from infer.benchmarks.bits_per_byte import read_texts

GRAM = 8
PROMPTS = (
    "It was a dark night, and",
    '"My dear," said',
    "The old house",
    "In the morning he",
    "She looked at him and",
    "When the carriage stopped,",
    "There was a long silence.",
    "I do not know",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a run, a checkpoint folder or an export of a decoder, which writes now")
    source.add_argument("--written", type=Path, metavar="JSON", help="what was written before, strips that were read")
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE", help="what the model was trained on")
    parser.add_argument("--held-out", nargs="+", required=True, metavar="FILE", help="what it was not")
    parser.add_argument("--prompt", action="append", help=f"may be given again; default: {len(PROMPTS)} of our own")
    parser.add_argument("--samples", type=int, default=64, help="texts in all, the prompts in turn")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", type=Path, help="where the samples go; default: beside --out, else written.txt")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()

    written = read_written(options.written) if options.written else write_now(options)
    path = options.text or (options.out.with_suffix(".txt") if options.out else Path("written.txt"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_text(written.texts), encoding="utf-8")

    samples = [words(text) for _, text in written.texts]
    held_out = [words(document) for document in read_texts(options.held_out)]
    passages = passages_of_lengths(held_out, [len(sample) for sample in samples], options.seed)
    groups = {"written": samples, "held_out_of_equal_lengths": passages, "held_out_whole": held_out}
    shares = shares_found(groups, (words(document) for document in read_texts(options.train)))
    result: dict[str, Any] = record(["torch", "sentencepiece"], torch.get_num_threads()) | {
        "what": f"share of {GRAM}-word sequences that occur in the training text",
        "model": written.model,
        "step": written.step,
        "train": [Path(name).name for name in options.train],
        "held_out": [Path(name).name for name in options.held_out],
        "sampling": written.how | {"samples": len(samples), "prompts": sorted({prompt for prompt, _ in written.texts})},
        "shares": {name: vars(share) | {"share": share.share} for name, share in shares.items()},
        "samples": path.name,
    }
    publish(result, as_table(shares), options.json, options.out)
    return 0


@dataclass(frozen=True)
class Samples:
    """texts: (prompt, what was written behind it) each. how: the settings of the writer."""

    model: str
    step: int
    how: dict[str, Any]
    texts: list[tuple[str, str]]


def write_now(options: argparse.Namespace) -> Samples:
    """What a decoder writes behind the prompts, which come in turn."""
    prompts = options.prompt or list(PROMPTS)
    sampling = SamplingConfig(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    loaded = load(options.model)
    written = generate(
        loaded.model,
        loaded.tokenizer,
        [prompts[number % len(prompts)] for number in range(options.samples)],
        sampling,
        max_tokens=options.max_tokens,
        sliding=True,
    )
    how = {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
    texts = [(one.prompt, one.text) for one in written]
    return Samples(Path(options.model).name, loaded.stored.step, how | {"max_tokens": options.max_tokens}, texts)


def read_written(path: Path) -> Samples:
    """What `python -m infer continue --json` printed of strips that were read."""
    report = json.loads(path.read_text(encoding="utf-8"))
    texts = [(strip["prompt"], strip["text"]) for strip in report["strips"]]
    return Samples(Path(report["model"]).name, report["step"], report["settings"], texts)


@dataclass(frozen=True)
class Share:
    """num_grams: word sequences, counted as often as they occur; num_found of them stand in the training text.
    longest: words of the longest run that is nothing but such sequences."""

    num_grams: int
    num_found: int
    longest: int

    @property
    def share(self) -> float:
        return self.num_found / self.num_grams if self.num_grams else 0.0


def words(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes, in lower case."""
    return re.findall(r"\w+(?:'\w+)*", text.lower().replace("’", "'"))


def grams(sequence: Sequence[str], size: int = GRAM) -> Iterator[tuple[str, ...]]:
    """All runs of `size` words."""
    return zip(*(sequence[offset:] for offset in range(size)), strict=False)


def shares_found(
    groups: dict[str, list[list[str]]], training: Iterable[Sequence[str]], size: int = GRAM
) -> dict[str, Share]:
    """The share of each group's word sequences that occur within a training document. Training texts are read once and
    only what is sought is kept."""
    sought = {gram for texts in groups.values() for text in texts for gram in grams(text, size)}
    found = {gram for text in training for gram in grams(text, size) if gram in sought}
    shares = {}
    for name, texts in groups.items():
        hits = [[gram in found for gram in grams(text, size)] for text in texts]
        run = max((longest_run(row) for row in hits), default=0)
        shares[name] = Share(sum(map(len, hits)), sum(map(sum, hits)), run + size - 1 if run else 0)
    return shares


def longest_run(hits: Sequence[bool]) -> int:
    longest = run = 0
    for hit in hits:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    return longest


def passages_of_lengths(texts: Sequence[list[str]], lengths: Sequence[int], seed: int) -> list[list[str]]:
    """A passage of each length (in words) from a place drawn evenly from all the texts, in document order.

    A passage may run on into the next document, as documents are pieces of works.
    """
    everything = [word for text in texts for word in text]
    if lengths and max(lengths) > len(everything):
        raise ValueError(f"a sample has {max(lengths)} words and the held-out text {len(everything)}: give more of it")
    generator = np.random.default_rng(seed)
    starts = [int(generator.integers(len(everything) - length + 1)) for length in lengths]
    return [everything[start : start + length] for start, length in zip(starts, lengths)]


def as_text(texts: Sequence[tuple[str, str]]) -> str:
    """The samples for people: the prompt in brackets, then what was written."""
    return "\n\n".join(f"--- {number}\n[{prompt}]{text}" for number, (prompt, text) in enumerate(texts, start=1)) + "\n"


def as_table(shares: dict[str, Share]) -> str:
    lines = [f"{'':28}{'sequences':>10}{'found':>8}{'share':>9}{'longest':>9}"]
    for name, share in shares.items():
        row = f"{share.num_grams:10,}{share.num_found:8,}{100 * share.share:8.2f}%{share.longest:9}"
        lines.append(f"{name.replace('_', ' '):28}{row}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
