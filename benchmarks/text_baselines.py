"""What a model has to beat: bits per byte of held-out text under xz, and under counts of what follows five bytes.

    python benchmarks/text_baselines.py --train FILE... --held-out FILE... [--held-out FILE...] [--json] [--out FILE]

A language model's bits per byte mean little alone. Two programs that know no language stand beside it:

* xz -9e, once on the held-out text alone and once after the training text: what the held-out text adds to an archive
  of the training text, with a window that reaches back to its first byte.
* An order-k model: the next byte given the k before it, counted in the training text and fixed. Contexts never seen
  say nothing and rare ones little, so orders are mixed by interpolated Witten-Bell smoothing (Witten and Bell, 1991;
  the escape estimate of PPM-C): with n(c) occurrences of a context c and t(c) different bytes after it,

      p(s | c) = (n(c, s) + t(c) p(s | c without its first byte)) / (n(c) + t(c)),

  down to the byte's own frequency and at last 1/256, so every byte has a probability and they sum to one. A context
  never seen (n = t = 0) passes the question on unchanged. Order 5 is the usual yardstick; order 0 is a table of
  frequencies.

Documents are those that training reads, joined by line ends. A model pays for the end of a document, these pay for that
line end; bits are divided by the UTF-8 bytes of the documents' text alone, as `python -m infer evaluate` does. A
context is a number in base 256, and counting is sorting: no loop goes over the bytes.
"""

import argparse
import lzma
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import publish, record
from pixelcore.documents import find_files, read_documents

MAX_ORDER = 7  # a context and its next byte are one number of 64 bits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--held-out", nargs="+", required=True, action="append", metavar="FILE", help="again for another set of files"
    )
    parser.add_argument("--max-order", type=int, default=5, choices=range(MAX_ORDER + 1), metavar=f"0-{MAX_ORDER}")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()

    training = read_text(options.train)
    sets = [read_text(names) for names in options.held_out]
    shared = {file.resolve() for file in training.files} & {file.resolve() for text in sets for file in text.files}
    if shared:
        parser.error(f"{min(shared)} is both in --train and in --held-out: take it out of one")
    print("xz of the training text", file=sys.stderr)
    longest = len(training.joined) + max(len(text.joined) for text in sets)
    archive = xz_size(training.joined, longest)
    orders = count_orders(training.joined, options.max_order)
    results: list[dict[str, Any]] = []
    for text in sets:
        print(f"xz and orders 0 to {options.max_order} of {', '.join(text.names)}", file=sys.stderr)
        added = xz_size(training.joined + b"\n" + text.joined, longest) - archive
        bits = order_bits(orders, text.joined)
        results.append(
            {
                "held_out": text.names,
                "documents": text.num_documents,
                "bytes": text.num_bytes,
                "bits_per_byte": {
                    "xz": 8 * xz_size(text.joined, longest) / text.num_bytes,
                    "xz_after_training_text": 8 * added / text.num_bytes,
                }
                | {f"order_{order}": total / text.num_bytes for order, total in enumerate(bits)},
            }
        )
    result = record(["numpy"], threads=1) | {
        "what": "bits per byte of held-out text, baselines",
        "smoothing": "interpolated Witten-Bell",
        "train": {"files": training.names, "documents": training.num_documents, "bytes": training.num_bytes},
        "results": results,
    }
    publish(result, as_table(results), options.json, options.out)
    return 0


@dataclass(frozen=True)
class Text:
    """joined: the documents with a line end between two. num_bytes: of the documents alone."""

    files: list[Path]
    joined: bytes
    num_documents: int
    num_bytes: int

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.files]


def read_text(paths: Sequence[str]) -> Text:
    """The documents of files, folders and globs, as training reads them."""
    files = [file for path in paths for file in find_files(path)]
    documents = [document.encode() for file in files for document in read_documents(file)]
    return Text(files, b"\n".join(documents), len(documents), sum(map(len, documents)))


def xz_size(text: bytes, window: int) -> int:
    """Bytes of `xz -9e` with a window of at least `window` bytes, container included."""
    # the default window of -9 is 64 MiB; a power of two is what a decoder has to provide anyway
    size = max(1 << 16, 1 << (window - 1).bit_length())
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=chain))


def order_bits(orders: Sequence["Counts"], held_out: bytes) -> list[float]:
    """The bits of the held-out bytes under the models of order 0, 1, ...; orders: from `count_orders`.

    The first bytes of the held-out text have as many before them as there are.
    """
    text = np.frombuffer(held_out, np.uint8)
    probability_N = np.full(len(text), 1 / 256)
    bits = []
    for order, table in enumerate(orders):
        # the first `order` bytes have shorter contexts: they keep the probability of the order that fits
        keys = ngrams(text, order)
        probability_N[order:] = table.mix(keys >> np.uint64(8), keys, probability_N[order:])
        bits.append(-float(np.log2(probability_N).sum()))
    return bits


def next_byte(orders: Sequence["Counts"], context: bytes) -> NDArray[np.float64]:
    """The distribution [256] of the byte after `context`."""
    probability_S = np.full(256, 1 / 256)
    symbols = np.arange(256, dtype=np.uint64)
    for order, table in enumerate(orders):
        if order <= len(context):
            prefix = np.uint64(int.from_bytes(context[len(context) - order :], "big"))
            contexts = np.full(256, prefix)
            probability_S = table.mix(contexts, (contexts << np.uint64(8)) | symbols, probability_S)
    return probability_S


def count_orders(training: bytes, max_order: int) -> "list[Counts]":
    """What a text says about the next byte, for the orders 0 to max_order."""
    return [Counts.of(np.frombuffer(training, np.uint8), order) for order in range(max_order + 1)]


@dataclass(frozen=True)
class Counts:
    """All contexts of one order in a text, sorted, each with its occurrences n(c) and the number t(c) of different
    bytes after it; and all contexts with their next byte, with n(c, s)."""

    contexts: NDArray[np.uint64]
    occurrences: NDArray[np.int64]
    distinct: NDArray[np.int64]
    ngrams: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, text: NDArray[np.uint8], order: int) -> "Counts":
        keys, counts = np.unique(ngrams(text, order), return_counts=True)
        contexts, first = np.unique(keys >> np.uint64(8), return_index=True)
        occurrences = np.add.reduceat(counts, first) if len(first) else counts
        return cls(contexts, occurrences, np.diff(first, append=len(keys)), keys, counts)

    def mix(
        self, contexts: NDArray[np.uint64], keys: NDArray[np.uint64], lower: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The probability at this order of each key (a context and its next byte), given that at the order below."""
        n_context = look_up(self.contexts, self.occurrences, contexts)
        distinct = look_up(self.contexts, self.distinct, contexts)
        n_key = look_up(self.ngrams, self.counts, keys)
        return np.where(n_context > 0, (n_key + distinct * lower) / np.maximum(n_context + distinct, 1), lower)


def ngrams(text: NDArray[np.uint8], order: int) -> NDArray[np.uint64]:
    """Each byte with the `order` bytes before it as one number [len(text) - order], the byte in the lowest 8 bits."""
    if order > MAX_ORDER:
        raise ValueError(f"order = {order} must be at most {MAX_ORDER}: an n-gram is one number of 64 bits")
    length = max(len(text) - order, 0)
    keys = np.zeros(length, np.uint64)
    for offset in range(order + 1):
        keys = (keys << np.uint64(8)) | text[offset : offset + length].astype(np.uint64)
    return keys


def look_up(known: NDArray[np.uint64], values: NDArray[np.int64], sought: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The value of each number sought among the sorted ones known, 0 where it is not."""
    if not len(known):
        return np.zeros(len(sought), np.int64)
    places = np.minimum(np.searchsorted(known, sought), len(known) - 1)
    return np.where(known[places] == sought, values[places], 0)


def as_table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        lines.append(f"{' + '.join(result['held_out'])}: {result['bytes']:,} bytes, {result['documents']} documents")
        for name, bits in result["bits_per_byte"].items():
            assert math.isfinite(bits)
            lines.append(f"  {name.replace('_', ' '):24}{bits:8.4f} bits per byte")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
