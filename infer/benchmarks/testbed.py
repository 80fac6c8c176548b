"""A model that writes strips beside a world whose every next patch has a known distribution.

Four questions, on texts that were not trained on; that their beginnings were is in the nature of a small world.

    bits        per patch, beside those of the truth and those of the best independent pixels, on the very same texts:
                what luck the texts had is in all three. Split into patches where several may follow (open) and those
                where one must (determined), and by the kind of the sentence
    answers     of one question of each text: is what the model writes the sentence that follows from what was said?
    legible     of one open sentence of each text: is what it writes a sentence of this world, pixel for pixel, and one
                that may stand here? nearly: no more than 2 % of the pixels of a sentence are wrong
    variety     the entropy of what is written, of what is nearly a sentence that may stand there, beside that of the
                truth: over many pasts, and many times behind one past. A model that always writes the same name is
                legible and wrong

Each text gives one question and one open sentence, so that counts are of independent trials, as Wilson's interval asks.
Entropies are those of the counts plus (outcomes seen - 1) / (2 N ln 2), Miller's correction of their bias; it makes up
for most of it where N is some times the number of outcomes, and falls short where it is not.
"""

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from infer.benchmarks.bits_per_character import patch_nats
from infer.benchmarks.testbed_drawing import Drawing
from infer.benchmarks.testbed_worlds import ANSWER, World
from infer.benchmarks.testbed_writing import (
    NEARLY,
    Decoding,
    Share,
    Variety,
    Writing,
    guesses,
    past_of,
    scored,
    variety,
    write_behind,
    writer_of,
)
from infer.write_strip import check_decoding
from pixelcore.errors import UserError
from pixelcore.models.pixar import Pixar
from pixelcore.next_patches import arrange_next

_PATCHES_AT_ONCE = 4096  # in a pass of the model


@dataclass(frozen=True)
class PatchBits:
    """Bits per patch of some patches: the model's, and those of the truth and of the best independent pixels there.
    error: standard error over the texts of the model's less the truth's."""

    patches: int
    model: float
    truth: float
    bernoulli: float
    error: float


@dataclass(frozen=True)
class TestbedResult:
    """What `measure` found. bits: by "all", "open", "determined" and the kinds of sentences. guesses: how often trivial
    ways to answer are right on the same questions. known: texts that were passed over as trained on."""

    world: str
    texts: int
    known: int
    decode: str
    temperature: float | None
    bits: dict[str, PatchBits]
    answers: Writing
    guesses: dict[str, Share]
    open: Writing
    variety: dict[str, Variety]


def measure(
    model: Pixar,
    drawing: Drawing,
    decoding: Decoding,
    *,
    count: int = 500,
    seed: int = 0,
    known: Collection[str] = (),
    progress: bool = False,
) -> TestbedResult:
    """Measure a model on texts of a world that are not among the `known`.

    Raises UserError for a model that cannot be: one without a start vector, whose first patch has no distribution, one
    without likelihoods, one of other patches, and where a text is longer than the model reads.
    """
    world = drawing.world
    _check(model, drawing, decoding)
    texts, passed = _held_out(world, count, seed, known)
    for sentences in texts:
        drawing.check(sentences)
    bits = bits_of_texts(model, drawing, texts, progress)
    writer = writer_of(model, drawing, decoding)
    questions = [place for place, kind in enumerate(world.kinds) if kind == ANSWER]
    asked = [past_of(world, sentences, questions) for sentences in texts]
    opened = [past_of(world, sentences, world.probed) for sentences in texts]
    answers = write_behind(drawing, writer, asked, decoding.seed, "answers", progress)
    sentences = write_behind(drawing, writer, opened, decoding.seed + count, "open sentences", progress)
    return TestbedResult(
        world=world.name,
        texts=len(texts),
        known=passed,
        decode=decoding.decode,
        temperature=decoding.temperature,
        bits=bits,
        answers=scored(answers),
        guesses=guesses(world, asked),
        open=scored(sentences),
        variety=variety(drawing, writer, sentences, decoding, decoding.seed + 2 * count),
    )


def _check(model: Pixar, drawing: Drawing, decoding: Decoding) -> None:
    config, render = model.config, drawing.renderer.config
    if config.head == "regression":
        raise UserError("the model's head is a regression, which has no likelihoods: give a bernoulli or mixture head")
    if not config.start_vector:
        raise UserError(
            "the test bed measures every patch of a text, the first one too, and this model has no start vector to "
            "foretell it: train with model.start_vector = true"
        )
    if (config.patch_height, config.patch_width) != (render.height, render.patch_width):
        raise UserError(
            f"the model reads patches of {config.patch_height} x {config.patch_width} pixels and the renderer draws "
            f"{render.height} x {render.patch_width}: leave --set render.height and render.patch_width out"
        )
    if decoding.decode != "legal":
        check_decoding(config, decoding.decode)


def _held_out(world: World, count: int, seed: int, known: Collection[str]) -> tuple[list[list[str]], int]:
    """Texts of another source than those to train on, without the known ones; and how many known ones were drawn."""
    source, texts, passed = random.Random(f"{world.name} held out {seed}"), [], 0
    while len(texts) < count:
        sentences = world.draw(source)
        if " ".join(sentences) not in known:
            texts.append(sentences)
        else:
            passed += 1
            if passed > 100 * count:
                raise UserError(f"world {world.name}: --data holds nearly all its texts: train on fewer of them")
    return texts, passed


# ------------------------------------------------------------------ bits


@torch.no_grad()
def bits_of_texts(
    model: Pixar, drawing: Drawing, texts: Sequence[Sequence[str]], progress: bool = False
) -> dict[str, PatchBits]:
    """Bits per patch, by which patches."""
    rows: list[NDArray[np.float64]] = []  # of each text, [patches, 4]: model, truth, independent pixels, open
    drawn = [drawing.text(sentences) for sentences in texts]
    device = model.norm.weight.device
    start = 0
    with tqdm(total=len(texts), desc="bits", unit="text", disable=not progress) as bar:
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and (stop == start or size + len(drawn[stop]) <= _PATCHES_AT_ONCE):
                size += len(drawn[stop])
                stop += 1
            lengths = [len(patches) for patches in drawn[start:stop]]
            patches = arrange_next(torch.from_numpy(np.concatenate(drawn[start:stop])), lengths, True, device=device)
            nats_M = patch_nats(model(patches), patches.pixels[patches.targets]).double().cpu().numpy()
            for sentences, found in zip(texts[start:stop], np.split(nats_M, np.cumsum(lengths)[:-1]), strict=True):
                rows.append(np.column_stack([found / math.log(2), known_bits(drawing, sentences)]))
            bar.update(stop - start)
            start = stop
    kinds = [_kinds(drawing, sentences) for sentences in texts]
    which: dict[str, list[NDArray[np.bool_]]] = {
        "all": [np.ones(len(row), bool) for row in rows],
        "open": [row[:, 3] > 0 for row in rows],
        "determined": [row[:, 3] == 0 for row in rows],
    }
    which |= {f"{kind} sentences": [row == kind for row in kinds] for kind in dict.fromkeys(drawing.world.kinds)}
    return {name: _averaged(rows, chosen) for name, chosen in which.items()}


def known_bits(drawing: Drawing, sentences: Sequence[str]) -> NDArray[np.float64]:
    """Of each patch of a text, [patches, 3]: -log2 of its probability given those before it, the same under the best
    independent pixels, and 1 where another patch might have followed, else 0."""
    found = []
    for place, sentence in enumerate(sentences):
        tree = drawing.tree(place)
        mass_E = tree.masses(drawing.world.next(sentences[:place]))
        for edge in tree.paths[tree.sentences[sentence]]:
            beside = np.flatnonzero((tree.parent_E == tree.parent_E[edge]) & (mass_E > 0))
            if len(beside) == 1:
                found.append((0.0, 0.0, 0.0))
                continue
            share = mass_E[beside] / mass_E[beside].sum()
            ink_A = share @ tree.ink_EA[beside]
            pixels = np.where(tree.ink_EA[edge], ink_A, 1 - ink_A)
            found.append((-math.log2(mass_E[edge] / mass_E[beside].sum()), -float(np.log2(pixels).sum()), 1.0))
    return np.array(found)


def _kinds(drawing: Drawing, sentences: Sequence[str]) -> NDArray[np.str_]:
    last = len(sentences) - 1
    lengths = [len(drawing.sentence(text, i == 0, i == last)) for i, text in enumerate(sentences)]
    return np.repeat(np.array(drawing.world.kinds), lengths)


def _averaged(rows: Sequence[NDArray[np.float64]], chosen: Sequence[NDArray[np.bool_]]) -> PatchBits:
    sums = np.array([row[which, :3].sum(0) for row, which in zip(rows, chosen, strict=True)])
    counts = np.array([which.sum() for which in chosen])
    total = max(1, int(counts.sum()))
    model, truth, bernoulli = (sums.sum(0) / total).tolist()
    # of a ratio of two averages, by its first derivatives
    off = sums[:, 0] - sums[:, 1] - (model - truth) * counts
    error = float(off.std(ddof=1) * math.sqrt(len(off)) / total) if len(off) > 1 else 0.0
    return PatchBits(int(counts.sum()), model, truth, bernoulli, error)


# ------------------------------------------------------------------ for people


def as_text(result: TestbedResult) -> str:
    """The result for people."""
    passed = f", {result.known} passed over as trained on" if result.known else ""
    lines = [
        f"world {result.world}, {result.texts:,} texts{passed}",
        f"{'bits a patch':<22}{'patches':>9}{'model':>10}{'truth':>10}{'independent pixels':>20}{'above truth':>22}",
    ]
    for name, bits in result.bits.items():
        above = f"{bits.model - bits.truth:.4f} +- {bits.error:.4f}"
        lines.append(
            f"  {name:<20}{bits.patches:>9,}{bits.model:>10.4f}{bits.truth:>10.4f}{bits.bernoulli:>20.4f}{above:>22}"
        )
    drawn = "" if result.temperature is None else f", temperature {result.temperature:g}"
    lines += [
        f"written with {result.decode}{drawn}: shares of {result.answers.right.count:,} (95 % intervals)",
        f"  answers right          {_share(result.answers.right)}",
        f"    but for {100 * NEARLY:g} % of pixels {_share(result.answers.nearly_right)}",
        f"    legible              {_share(result.answers.legible)}",
    ]
    lines += [f"    guess: {name:<34}{_share(share)}" for name, share in result.guesses.items()]
    lines += [
        f"  open sentences legible {_share(result.open.legible)}",
        f"    but for {100 * NEARLY:g} % of pixels {_share(result.open.nearly_legible)}",
        f"    and possible there   {_share(result.open.right)}",
    ]
    for name, written in result.variety.items():
        lines.append(
            f"  {name}: {_bits_of(written.over_pasts)} of {written.over_pasts_truth:.2f} bits over many pasts, "
            f"{_bits_of(written.one_past)} of {written.one_past_truth:.2f} behind one past; most often "
            f"{written.most_common!r}, {100 * written.most_common_share:.0f} % of {written.count}"
        )
    return "\n".join(lines)


def _share(share: Share) -> str:
    return f"{share.share:.3f} ({share.low:.3f} to {share.high:.3f})"


def _bits_of(entropy: float | None) -> str:
    return "nothing recognised" if entropy is None else f"{entropy:.2f}"
