"""The commands of `python -m infer evaluate` that look into an encoder, layer by layer: retrieval, probe, map.

Each compares the model with what can be had without it; what the comparison means stands in the file that makes it.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from infer import vector_map
from infer.arguments import Parser, add_strips_model, check_out, check_picture, strips_choices, write
from infer.layer_vectors import POOLINGS, DrawnTexts, draw_texts, random_encoder, text_vectors
from infer.load import PIXEL_MODELS
from infer.load import read as read_model
from infer.pixels import LoadedPixels, load_pixels
from infer.probe import as_text as probe_as_text
from infer.probe import probe_layers
from infer.probe_words import UPOS, read_treebank
from infer.retrieval import (
    SPLITS,
    Retrieval,
    check_alignment,
    evenly,
    hits_of_shared_strings,
    hits_of_vectors,
    read_languages,
    recalls,
)
from infer.retrieval import as_text as retrieval_as_text
from pixelcore.errors import UserError
from pixelcore.tasks.classify import ClassifyOptions
from pixelcore.tasks.classify import read as read_table
from pixelcore.tasks.examples import TextExample

_log = logging.getLogger(__name__)

COLOURS = ("language", "label")


def _load(options: argparse.Namespace) -> LoadedPixels:
    stored = None if options.model is None else read_model(options.model)
    if stored is not None and stored.config.kind not in PIXEL_MODELS:
        raise UserError(
            f"{stored.path}: a {stored.config.kind} model; layers are compared for encoders of strips alone, "
            f"{' and '.join(PIXEL_MODELS)}: give one"
        )
    return load_pixels(stored, **strips_choices(options), kinds=PIXEL_MODELS)


def _about(loaded: LoadedPixels, options: argparse.Namespace) -> dict[str, object]:
    stored = loaded.stored
    return {"model": str(stored.path), "name": stored.name, "step": stored.step, "data": options.data}


def _say_losses(drawn: Sequence[DrawnTexts]) -> dict[str, float]:
    size = sum(len(one.rows) for one in drawn)
    truncated = sum(one.truncated * len(one.rows) for one in drawn) / size
    missing = max(one.missing_glyphs for one in drawn)
    if truncated or missing:
        _log.warning(
            "texts that were cut: %.2f %%; characters that no font has: up to %.2f %% of a language",
            100 * truncated,
            100 * missing,
        )
    return {"truncated": truncated, "missing_glyphs": missing}


def _at_least(options: argparse.Namespace, least: int, *flags: str) -> None:
    for flag in flags:
        value = getattr(options, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag} {value}: must be at least {least}")


def _listed(flag: str, given: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{flag} {given}: {twice} stands there twice: name each once")
    return names


def _add_sentences(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--split", default="train", metavar="S", help=f"{', '.join(SPLITS)} (%(default)s)")
    add("--pooling", default="mean", metavar="P", help=f"{', '.join(POOLINGS)} (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def _check_sentences(options: argparse.Namespace) -> None:
    for flag, known in (("split", SPLITS), ("pooling", POOLINGS)):
        if getattr(options, flag) not in known:
            raise UserError(f"--{flag} {getattr(options, flag)}: unknown; choose {', '.join(known)}")


# ------------------------------------------------------------------ retrieval


def run_retrieval(argv: Sequence[str]) -> int:
    """Whether translations are near each other."""
    parser = Parser(
        prog="python -m infer evaluate retrieval",
        description="How often the translation of a sentence is among the K most similar sentences of the other "
        "language, for each pair of languages and each layer of an encoder of strips, beside what shared numbers and "
        "Latin words give, an encoder before training, and chance.",
        epilog="""The data is a folder with a folder for each language, as of SIB-200, row i the same sentence in all.
Layer 0 is the embedded patches, n the state after n blocks, before any norm.
pooling:
  mean        over CLS and the patches
  published   the sum over the same, divided by the number of patches, as in PIXEL-M4's analysis

examples:
  python -m infer evaluate retrieval --model runs/m4 --data sib200 --languages eng_Latn,hin_Deva,ukr_Cyrl,zho_Hans
  python -m infer evaluate retrieval --model runs/m4 --data sib200 --languages eng_Latn,deu_Latn --k 1 --json""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="a folder with a folder for each language")
    add("--languages", required=True, metavar="A,B", help="names of these folders, two at least")
    add("--k", type=int, default=5, metavar="K", help="how many candidates are looked at (%(default)s)")
    add("--sentences", type=int, metavar="N", help="at most so many of each language, evenly taken (all)")
    add("--seed", type=int, default=0, metavar="S", help="of the encoder before training (%(default)s)")
    _add_sentences(parser)
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    check_out(options.out)
    _check_sentences(options)
    _at_least(options, 1, "k")
    _at_least(options, 2, "sentences")
    languages = _listed("--languages", options.languages)
    if len(languages) < 2:
        raise UserError(f"--languages {options.languages}: name at least two, with commas between them")
    examples = read_languages(Path(options.data), languages, options.split)
    check_alignment(examples)
    texts = {name: [one.text for one in evenly(of, options.sentences)] for name, of in examples.items()}
    size = len(texts[languages[0]])
    if options.k >= size:
        raise UserError(f"--k {options.k}: must be less than the {size} sentences: every candidate would be found")
    loaded = _load(options)
    drawn = {}
    for name, of in texts.items():
        try:
            drawn[name] = draw_texts(loaded.model, loaded.renderer, of)
        except UserError as cause:
            raise UserError(f"{name}, {cause}") from cause
    sides = []
    for model in (loaded.model, random_encoder(loaded.model, options.seed)):
        vectors = {name: text_vectors(model, strips, options.pooling) for name, strips in drawn.items()}
        layers = range(model.config.num_layers + 1)
        sides.append(
            [recalls(hits_of_vectors({name: of[layer] for name, of in vectors.items()}, options.k)) for layer in layers]
        )
    result = Retrieval(
        k=options.k,
        sentences=size,
        chance=options.k / size,
        shared=recalls(hits_of_shared_strings(texts, options.k)),
        layers=sides[0],
        random=sides[1],
    )
    losses = _say_losses(list(drawn.values()))
    if options.json:
        settings = {"languages": languages, "split": options.split, "pooling": options.pooling, "seed": options.seed}
        write(json.dumps(_about(loaded, options) | settings | losses | asdict(result), indent=2), options.out)
        return 0
    write("\n".join([f"retrieval, {loaded.stored.path}, {options.data}", *retrieval_as_text(result)]), options.out)
    return 0


# ------------------------------------------------------------------ probe


def run_probe(argv: Sequence[str]) -> int:
    """What a linear map reads off the vectors of words."""
    parser = Parser(
        prog="python -m infer evaluate probe",
        description="How well a linear map tells a feature of a word from its vector, for each layer of an encoder of "
        "strips, beside the same on an encoder before training, and what needs no model: the most frequent label, and "
        "that of the same word.",
        epilog="""A probe is trained on the treebank's train file, its penalty chosen on the dev file (1e-1 to 1e-5),
and scored on the test file. Words that do not have the feature are left out.

examples:
  python -m infer evaluate probe --model runs/m4 --data UD_English-EWT --feature upos
  python -m infer evaluate probe --model runs/m4 --data UD_English-EWT --feature Number --words 2000 --seeds 3""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER", help="a treebank: train, dev and test files in CoNLL-U")
    add("--feature", default=UPOS, metavar="F", help=f"{UPOS}, or a name of FEATS, such as Case (%(default)s)")
    add("--words", type=int, default=5000, metavar="N", help="at most so many of each file (%(default)s)")
    add("--seeds", type=int, default=1, metavar="N", help="draws of training words and random encoders (%(default)s)")
    add("--json", action="store_true", help="one JSON object on standard output")
    add("--out", metavar="FILE", help="write the result to FILE instead of standard output")
    options = parser.parse_args(argv)
    check_out(options.out)
    _at_least(options, 1, "words", "seeds")
    data = read_treebank(Path(options.data), options.feature)
    loaded = _load(options)
    result = probe_layers(loaded.model, loaded.renderer, data, options.feature, most=options.words, seeds=options.seeds)
    if options.json:
        write(json.dumps(_about(loaded, options) | asdict(result), ensure_ascii=False, indent=2), options.out)
        return 0
    write("\n".join([f"probe, {loaded.stored.path}, {options.data}", *probe_as_text(result)]), options.out)
    return 0


# ------------------------------------------------------------------ map


def run_map(argv: Sequence[str]) -> int:
    """Sentence vectors in a plane."""
    parser = Parser(
        prog="python -m infer evaluate map",
        description="A picture of sentence vectors for each layer of an encoder of strips, coloured by language or by "
        "label; and for each layer the share of nearest neighbours of the same colour.",
        epilog=f"""The data is a folder with a folder for each language, as of SIB-200, or a table with the columns
"text" and "label" (.tsv, .csv, .jsonl). t-SNE takes at most {vector_map.MOST_POINTS} texts, and minutes
a layer for so many.

examples:
  python -m infer evaluate map --model runs/m4 --data sib200 --languages eng_Latn,hin_Deva --out map.png
  python -m infer evaluate map --model runs/m4 --data sib200 --colour label --method pca --layers 0,6,12 --out map.png
  python -m infer evaluate map --model runs/m4 --data topics.tsv --out topics.png""",
    )
    add_strips_model(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="PATH", help="a folder with a folder for each language, or a table")
    add("--languages", metavar="A,B", help="names of these folders (all)")
    add("--texts", type=int, default=500, metavar="N", help="at most so many in all, evenly taken (%(default)s)")
    add("--method", default="tsne", metavar="M", help=f"{', '.join(vector_map.METHODS)} (%(default)s)")
    add("--layers", metavar="N,N", help="layers to show (all)")
    add("--colour", metavar="C", help=f"{', '.join(COLOURS)} (language, where there are several)")
    add("--seed", type=int, metavar="S", help="of t-SNE (42)")
    _add_sentences(parser)
    add("--out", required=True, metavar="FILE", help="the picture, a PNG")
    options = parser.parse_args(argv)
    check_picture(options.out)
    vector_map.check_drawing(options.out)
    _check_map(options)
    examples = _map_examples(options)
    colour = options.colour or ("language" if len({one.group for one in examples}) > 1 else "label")
    names = [one.group if colour == "language" else one.label for one in examples]
    if any(name is None for name in names):
        raise UserError(f"--colour {colour}: the texts of {options.data} have none: choose the other one")
    loaded = _load(options)
    layers = _map_layers(options.layers, loaded.model.config.num_layers)
    drawn = draw_texts(loaded.model, loaded.renderer, [one.text for one in examples])
    vectors_TND = text_vectors(loaded.model, drawn, options.pooling)
    panels, rows, random = [], [], 0.0
    for layer in layers:
        unit_ND = vector_map.unit(vectors_TND[layer])
        share, random = vector_map.neighbours_alike(unit_ND, list(map(str, names)))
        seed = 42 if options.seed is None else options.seed
        points_N2 = vector_map.pca(unit_ND) if options.method == "pca" else vector_map.tsne(unit_ND, seed=seed)
        panels.append((layer, points_N2, share))
        rows.append({"layer": layer, "neighbours_alike": share})
    heading = f"{loaded.stored.name}, {options.method}, {len(names)} texts by {colour}"
    vector_map.draw_map(options.out, panels, list(map(str, names)), heading, random)
    losses = _say_losses([drawn])
    if options.json:
        settings = {"method": options.method, "colour": colour, "texts": len(names), "out": options.out}
        report = {"neighbours": vector_map.NEIGHBOURS, "random": random, "layers": rows}
        write(json.dumps(_about(loaded, options) | settings | losses | report, indent=2), None)
        return 0
    lines = [f"{options.out}: {heading}", f"neighbours of the same {colour}, at random {100 * random:.1f} %"]
    lines += [f"layer {row['layer']:>2}  {100 * row['neighbours_alike']:.1f} %" for row in rows]
    write("\n".join(lines), None)
    return 0


def _check_map(options: argparse.Namespace) -> None:
    _check_sentences(options)
    _at_least(options, 4, "texts")
    for flag, known in (("method", vector_map.METHODS), ("colour", COLOURS)):
        value = getattr(options, flag)
        if value is not None and value not in known:
            raise UserError(f"--{flag} {value}: unknown; choose {', '.join(known)}")
    if options.method == "tsne" and options.texts > vector_map.MOST_POINTS:
        raise UserError(
            f"--texts {options.texts}: t-SNE takes at most {vector_map.MOST_POINTS} points: give fewer, or --method pca"
        )
    if options.method != "tsne" and options.seed is not None:
        raise UserError(f"--seed is of t-SNE, and --method {options.method} draws nothing: leave it out")
    if Path(options.data).is_file():
        if options.languages is not None:
            raise UserError("--languages is of folders of languages, and --data is a file: leave it out")
        if options.split != "train":
            raise UserError("--split is of folders of languages, and --data is a file: leave it out")


def _map_examples(options: argparse.Namespace) -> list[TextExample]:
    path = Path(options.data)
    if path.is_file():
        found = evenly(read_table(path, ClassifyOptions()), options.texts)
    else:
        languages = None if options.languages is None else _listed("--languages", options.languages)
        if not languages:
            languages = sorted(one.name for one in path.iterdir() if one.is_dir()) if path.is_dir() else ["all"]
        by_language = read_languages(path, languages, options.split)
        room = options.texts // len(by_language)
        found = [one for of in by_language.values() for one in evenly(of, room)]
    if len(found) < 4:
        raise UserError(f"--data {path}: {len(found)} texts; a map needs at least 4: give more, or a larger --texts")
    return found


def _map_layers(given: str | None, num_layers: int) -> list[int]:
    if given is None:
        return list(range(num_layers + 1))
    names = _listed("--layers", given)
    for name in names:
        if not name.isdecimal() or int(name) > num_layers:
            raise UserError(f"--layers {given}: {name!r} must be a number from 0 to {num_layers}, the model's blocks")
    return [int(name) for name in names] or list(range(num_layers + 1))
