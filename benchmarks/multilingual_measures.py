"""What benchmarks/multilingual.py measures of a model, one language at a time.

Bits per character are those of infer/benchmarks/bits_per_character.py. Everything else is read by one reader that knows
the characters of all the languages, so that whatever script the model writes in, it can be told.

The reader's own error comes first: clean strips of held-out rows, as texts and as pixels ("equal": the text that was
read is drawn as just these pixels, so that no reader could tell it from the right one). Then the model writes on behind
the first half of each row, to the end patch or for some patches, and four questions are asked of what it wrote:

    legible         does the reader call it text (render/reader.py)
    exact           is it what the renderer draws of the text that was read, pixel for pixel
    own_script      of the letters read off legible strips, the share in the language's script
    known_patches   the share of its patches that occur, pixel for pixel, in a sample of drawn training text

The same is asked of what truly stands there, which is the most that can be expected, and of what was written with its
columns shuffled, which is what a strip gets for its ink alone. What is legible need not be right: these are questions
of form, and those of sense are asked by bits per character.
"""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.multilingual_text import Language
from benchmarks.reading import edit_distance
from infer.benchmarks.bits_per_character import bits_of_strips, evenly, measured
from infer.benchmarks.intervals import share_of
from infer.figure import Panel, Row, stack
from infer.pixar import LoadedPixar, as_strip, load_pixar, patches_of, strip_of
from infer.write_strip import WriteConfig, write
from pixelcore.accounting import num_parameters
from render import Reader, Reading, RenderConfig, Renderer
from render.picture import write_png
from render.scripts import script_of

SHORTEST = 16  # patches of a row whose first half is written on
KNOWN_ROWS = 400  # training paragraphs whose patches are known
SAMPLE_WORDS = 20  # in a line that tells the reader clusters; a longer one takes it disproportionately long
SHOWN = 8  # rows of a picture
Patches = NDArray[np.uint8]  # [P, A]


def languages_measured(folder: Path, languages: Sequence[Language], options: argparse.Namespace) -> dict[str, Any]:
    """Everything about the model of a run, by language; pictures go to a folder beside it."""
    loaded = load_pixar(folder, device=options.device, dtype="float32")
    reader = reader_of(loaded.renderer.config, languages)
    pictures = folder.with_name(f"{folder.name}-pictures")
    pictures.mkdir(exist_ok=True)
    found = {one.name: language_measured(loaded, reader, one, pictures, options) for one in languages}
    return {"parameters": num_parameters(loaded.model.config), "pictures": str(pictures), "languages": found}


def reader_of(config: RenderConfig, languages: Sequence[Language]) -> Reader:
    """Knows all characters of all texts, and the clusters of the training texts."""
    training = [text for language in languages for text in language.training_texts()]
    alphabet = set().union(*training, *(row for language in languages for row in language.rows))
    words = sorted({word for text in training for word in text.split()})
    lines = [" ".join(words[first : first + SAMPLE_WORDS]) for first in range(0, len(words), SAMPLE_WORDS)]
    reader = Reader(config, alphabet="".join(sorted(alphabet)), sample=lines)
    reader.prepare()
    return reader


def language_measured(
    loaded: LoadedPixar, reader: Reader, language: Language, pictures: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """One language; its picture is written to the folder `pictures`."""
    model, renderer = loaded.model, loaded.renderer
    rows = evenly(language.rows, options.held_out_rows)
    bits = dataclasses.asdict(measured(rows, bits_of_strips(model, renderer, rows)))
    whole = [row for row in language.rows if renderer(row).num_patches >= SHORTEST]
    texts = evenly(whole, options.read_rows) if whole else []
    longest = min(options.patches, model.config.max_patches // 2)
    prompts, rests = halves(renderer, texts)
    truths = [rest[:longest] for rest in rests]
    config = WriteConfig(decode=options.decode, seed=options.seed, max_patches=longest)
    strips = write(model, prompts, config)
    written = [strip.patches[: len(strip.patches) - strip.ended] for strip in strips]
    known = known_patches(renderer, language)
    chance = np.random.default_rng(options.seed)
    readings = [read(reader, patches) for patches in written]
    shuffled = [read(reader, shuffled_columns(patches, renderer.config, chance)) for patches in written]
    true = [read(reader, truth) for truth in truths]
    stopped = share([len(rest) < longest for rest in rests])
    show(pictures / f"{language.name}.png", prompts, truths, written, readings, renderer.config)
    return {
        "script": language.script,
        "missing_glyphs": language.missing_glyphs,
        "overlap": language.overlap,
        "bits": bits,
        "reader": reader_error(reader, renderer, texts),
        "written": about(written, readings, known, language.script) | {"ended": share([one.ended for one in strips])},
        "truth": about(truths, true, known, language.script) | {"ended": stopped},
        "shuffled": about([], shuffled, known, language.script),
        "samples": [
            {"row": text, "read": "" if reading is None else reading.text}
            for text, reading in list(zip(texts, readings, strict=True))[:SHOWN]
        ],
    }


def reader_error(reader: Reader, renderer: Renderer, texts: Sequence[str]) -> dict[str, Any]:
    """Of clean strips. cer: edit distance over length; equal: the share of strips whose reading is drawn as they are;
    strips_per_second: of one core that does nothing else."""
    errors = equal = 0
    seconds = 0.0
    for text in texts:
        pixels = renderer(text).pixels
        start = time.process_time()
        reading = reader(pixels)
        seconds += time.process_time() - start
        errors += edit_distance(reading.text, text)
        equal += reading.exact
    count = len(texts)
    return {
        "strips": count,
        "cer": errors / sum(map(len, texts)) if texts else None,
        "equal": equal / count if count else None,
        "strips_per_second": count / seconds if seconds else None,
    }


# ------------------------------------------------------------------ halves


def halves(renderer: Renderer, texts: Sequence[str]) -> tuple[list[Patches], list[Patches]]:
    """The first and the second halves of strips, without end patches."""
    prompts, truths = [], []
    for text in texts:
        strip = renderer(text)
        patches = strip.patches.reshape(strip.num_patches, -1)[:-1]
        prompts.append(np.ascontiguousarray(patches[: len(patches) // 2]))
        truths.append(patches[len(patches) // 2 :])
    return prompts, truths


def shuffled_columns(patches: Patches, config: RenderConfig, chance: np.random.Generator) -> Patches:
    if not len(patches):
        return patches
    pixels = strip_of(patches, config)
    return patches_of(pixels[:, chance.permutation(pixels.shape[1])], config.patch_width, config.channels)


def read(reader: Reader, patches: Patches) -> Reading | None:
    """None of nothing: a strip that ended at once."""
    return reader(strip_of(patches, reader.config)) if len(patches) else None


def known_patches(renderer: Renderer, language: Language) -> set[bytes]:
    """Patches of training text, a sample."""
    paragraphs = [line for text in language.training_texts() for line in text.split("\n") if line.strip()]
    known: set[bytes] = set()
    for line in evenly(paragraphs, KNOWN_ROWS):
        known.update(patch.tobytes() for patch in renderer(" ".join(line.split()), 1 << 16).patches)
    return known


def about(
    strips: Sequence[Patches], readings: Sequence[Reading | None], known: set[bytes], script: str
) -> dict[str, Any]:
    """What the head of this file asks of strips, and the mean share of their ink that no reading explains."""
    legible = [reading is not None and reading.readable for reading in readings]
    text = "".join(reading.text for reading in readings if reading is not None and reading.readable)
    patches = [patch.tobytes() in known for strip in strips for patch in strip]
    return {
        "legible": dataclasses.asdict(share_of(legible)),
        "exact": dataclasses.asdict(share_of(reading is not None and reading.exact for reading in readings)),
        "unexplained": float(np.mean([1.0 if one is None else one.unexplained for one in readings])),
        "characters": len(text),
        "own_script": share([one == script for one in map(script_of, text) if one]),
        "known_patches": share(patches),
    }


def share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def show(
    file: Path,
    prompts: Sequence[Patches],
    truths: Sequence[Patches],
    written: Sequence[Patches],
    readings: Sequence[Reading | None],
    config: RenderConfig,
) -> None:
    """A picture: held-out rows, and under each the same first half with what was written behind it on a tint."""
    panels = []
    for prompt, truth, new, reading in list(zip(prompts, truths, written, readings, strict=True))[:SHOWN]:
        longest = len(prompt) + max(len(truth), len(new))
        rows = []
        for label, half in (("held out", truth), ("written", new)):
            place = np.arange(longest)
            patches = np.concatenate([prompt, half, np.full((longest - len(prompt) - len(half), prompt.shape[1]), 255)])
            cells = as_strip(patches.astype(np.uint8), config).patches
            tinted = (place >= len(prompt)) if half is new else None
            rows.append(Row(label, cells, tinted=tinted, absent=place >= len(prompt) + len(half)))
        panels.append(Panel(rows, verdict(reading)))
    if panels:
        write_png(file, Image.fromarray(stack(panels)))


def verdict(reading: Reading | None) -> str:
    if reading is None:
        return "ended at once"
    kind = "exact" if reading.exact else "legible" if reading.readable else "not legible"
    return f"{kind}, {100 * reading.unexplained:.0f} % of the ink unexplained"
