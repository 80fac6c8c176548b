"""Has an encoder of strips learned where to look? How much its rows attend to their neighbours, layer by layer.

    python -m benchmarks.where_attention_looks --model runs/pixel --data dracula.txt.gz

A model of strips that begins with random weights has to find out that what stands beside a patch says most about it:
before that, every row looks at all rows alike, and the model is a bag of patches, however low its loss. The table has,
for each layer and each distance from -2 to 2, the weight that a row gives to the row at that distance, times the number
of rows: 1 is as much as any other row gets, the number of rows is everything. Two figures, the mean over the heads and
the head that gives most. Rows near the ends of a strip, and CLS, are not asked.

It reads a masked autoencoder's encoder, or a fine-tuned one.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import publish, record
from infer.benchmarks.bits_per_character import evenly
from infer.layer_vectors import draw_texts, text_vectors
from infer.load import PIXEL_MODELS
from infer.pixels import load_pixels
from pixelcore.documents import read_documents
from pixelcore.dropout_bits import Drop
from pixelcore.errors import UserError
from pixelcore.ops import REFERENCE
from pixelcore.packed import Packed

DISTANCES = (-2, -1, 0, 1, 2)
_CHARACTERS = 60  # of a text: a strip of some tens of patches


class Watched:
    """Attention as the formula says it, and what each layer gave to each distance: [heads] of every strip."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers, self._calls = num_layers, 0
        self.found: list[dict[int, list[Tensor]]] = [{d: [] for d in DISTANCES} for _ in range(num_layers)]

    def __call__(
        self, q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, packed: Packed, rule: str, scale: float, drop: Drop | None
    ) -> tuple[Tensor, None]:
        """`pixelcore.ops.attention` of an encoder that looks in both directions."""
        assert rule == "full" and packed.visible is None and drop is None
        layer, self._calls = self._calls % self.num_layers, self._calls + 1
        outputs, first, edge = [], 0, max(DISTANCES)
        for length in packed.lengths:
            q_HTK, k_HTK, v_HTK = (x[first : first + length].transpose(0, 1) for x in (q_NHK, k_NHK, v_NHK))
            weights_HTT = (q_HTK @ k_HTK.transpose(1, 2) * scale).softmax(-1)
            outputs.append((weights_HTT @ v_HTK).transpose(0, 1))
            first += length
            inner_HTT = weights_HTT[:, 1 + edge : -edge]  # without CLS and the ends
            if inner_HTT.shape[1] > 0:
                rows_T = torch.arange(1 + edge, length - edge)
                for distance in DISTANCES:
                    given_H = inner_HTT[:, torch.arange(len(rows_T)), rows_T + distance].mean(1)
                    self.found[layer][distance].append(given_H * length)
        return torch.cat(outputs), None


def main(argv: Sequence[str] | None = None) -> None:
    """Read texts, look, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.where_attention_looks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="RUN", help="a run, checkpoint, export or published folder")
    add("--data", type=Path, required=True, metavar="FILE", help="running text")
    add("--texts", type=int, default=100, metavar="N", help="passages of 60 characters, evenly taken (%(default)s)")
    add("--json", action="store_true", help="print JSON, not a table")
    add("--out", type=Path, metavar="FILE", help="a JSON file")
    options = parser.parse_args(argv)
    try:
        result = look(options.model, options.data, options.texts)
    except UserError as cause:
        parser.exit(2, f"error: {cause}\n")
    publish(result, table(result), options.json, options.out)


def look(run: Path, text: Path, count: int) -> dict[str, Any]:
    """Mean and largest head of each layer and distance."""
    loaded = load_pixels(run, kinds=PIXEL_MODELS)
    passages = [
        line[begin : begin + _CHARACTERS]
        for document in read_documents(text)
        for line in document.split("\n")
        for begin in range(0, len(line) - _CHARACTERS, _CHARACTERS)
    ]
    if not passages:
        raise UserError(f"--data {text}: has no line of {_CHARACTERS} characters: give running text")
    model = loaded.model
    watched = Watched(model.config.num_layers)
    model.ops = replace(REFERENCE, attention=watched)
    text_vectors(model, draw_texts(model, loaded.renderer, evenly(passages, count)))
    layers = []
    for layer in watched.found:
        of_head = {distance: torch.stack(given).mean(0) for distance, given in layer.items()}
        layers.append({str(d): {"mean": float(w.mean()), "head": float(w.max())} for d, w in of_head.items()})
    stored = loaded.stored
    about = {"model": stored.name, "step": stored.step, "texts": min(count, len(passages))}
    return (
        {"what": "attention to neighbours, times the number of rows"} | about | {"layers": layers} | record(["torch"])
    )


def table(result: dict[str, Any]) -> str:
    """A line for each layer."""
    heads = ["layer", *(f"{distance:+d}" if distance else "itself" for distance in DISTANCES)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for number, layer in enumerate(result["layers"], start=1):
        cells = [
            f"{layer[str(distance)]['mean']:.2f} (head {layer[str(distance)]['head']:.2f})" for distance in DISTANCES
        ]
        lines.append("| " + " | ".join([str(number), *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
