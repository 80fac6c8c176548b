"""Encoders of one size that differ in what they were pretrained on, for benchmarks/fine_tuning.py, and a token partner.

    untrained   one step at a learning rate of 1e-12: initial weights, as a run
    shuffled    the text below with the letters of each document shuffled
    text        a tenth of ten novels; in the last stage beside it the raw training text of the treebanks of Coptic and
                Vietnamese and of SIB-200 in nine languages. Test and dev files are not read.

Rows grow from stage to stage (5, 9, 17, 65 patches), since a model that begins with long rows stays for a long time at
the mean of all patches (docs/experiments.md, entries 13 and 27). Held out are two other novels. The token partner,
`tokens`, reads the tenth of the novels alone.
"""

import argparse
import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.what_masked_pixels_teach import FIRST_CHARACTERS, HELD_OUT, SHARE, copies, shuffled

ENCODERS = ("untrained", "shuffled", "text", "tokens")
_TREEBANKS = {"coptic": "UD_Coptic-Scriptorium", "vietnamese": "UD_Vietnamese-VTB"}
_SENTENCES = 6  # of a treebank in a document, so that a row is not one sentence


def encoder_of(name: str, runs: Path) -> Path:
    """Where the run of an encoder lives."""
    return runs / "encoders" / name


def encoder_commands(name: str, plan: dict[str, Any], shared: Path, runs: Path) -> list[list[str]]:
    """The commands that make an encoder, stage by stage; none where it is finished."""
    about = plan["encoder"]
    run = encoder_of(name, runs)
    if is_finished(run):
        return []
    if name == "tokens":
        novels = texts_of("text", shared, runs)["all"]
        return [_start(run, plan["partner"], shared, novels, plan["partner"]["set"], None)]
    texts = texts_of("shuffled" if name == "shuffled" else "text", shared, runs)
    fonts = json.dumps(["builtin", *(str(shared / "fonts" / font) for font in about["fonts"])])
    drawn, weights = [*about["set"], f"render.fonts={fonts}"], f"data.weights={about['weights']}"
    if name == "untrained":
        still = ["run.steps=1", "optimizer.learning_rate=1e-12", "schedule.warmup_steps=0"]
        return [_start(run, about, shared, texts["first"], [*drawn, *about["stages"][0]["set"], *still], None)]
    commands, before = [], None
    for number, stage in enumerate(about["stages"]):
        is_last = number + 1 == len(about["stages"])
        own = run if is_last else run.with_name(f"{name}-stage{number}")
        # the model says how it wants to be drawn, once it has been begun
        sets = [change for change in drawn if before is None or not change.startswith("render.")]
        sets += [*stage["set"], *([weights] if stage["text"] == "many" else [])]
        if not is_finished(own):
            commands.append(_start(own, about, shared, texts[stage["text"]], sets, before))
        before = own
    return commands


def is_finished(run: Path) -> bool:
    """Whether a run is there and has made its last step."""
    return (run / "run.json").exists() and json.loads((run / "run.json").read_text())["finished"]


def _start(
    run: Path, about: dict[str, Any], shared: Path, texts: list[Path], sets: list[str], init: Path | None
) -> list[str]:
    """The command that starts a run, or goes on with it."""
    command = [sys.executable, "-m", "train"]
    if (run / "run.json").exists():
        return [*command, "--resume", str(run)]
    command += ["--preset", about["preset"], "--seed", str(about["seed"]), "--out", str(run)]
    command += [] if init is None else ["--init", str(init)]
    command += [part for text in texts for part in ("--data", str(text))]
    command += [part for name in HELD_OUT for part in ("--valid", str(shared / "data/text/en_books" / name))]
    return command + [part for change in sets for part in ("--set", change)]


# ------------------------------------------------------------------ texts


def texts_of(arm: str, shared: Path, runs: Path) -> dict[str, list[Path]]:
    """Files by the stage that reads them: the beginnings of the novels, a tenth of each, that and other languages."""
    given = argparse.Namespace(books=shared / "data/text/en_books", out=runs)
    first = copies(given, arm, lambda text: text[:FIRST_CHARACTERS], "first")
    novels = copies(given, arm, lambda text: text[: int(SHARE * len(text))], "all")
    others = []
    for name, documents in {**_treebanks(shared), "sib": _sib(shared)}.items():
        file = runs / "texts" / f"{arm}-{name}" / f"{name}.txt.gz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            text = "\n\n".join(documents)
            with gzip.open(file, "wt", encoding="utf-8") as opened:
                opened.write(shuffled(text, name) if arm == "shuffled" else text)
        others.append(file)
    return {"first": first, "all": novels, "many": [novels[0].parent, *others]}


def _treebanks(shared: Path) -> dict[str, list[str]]:
    """The raw text of training files, some sentences a document."""
    found = {}
    for name, folder in _TREEBANKS.items():
        (file,) = (shared / "data/ud" / folder).glob("*-train.conllu")
        lines = file.read_text(encoding="utf-8").splitlines()
        sentences = [line.split("=", 1)[1].strip() for line in lines if line.startswith("# text ")]
        found[name] = [
            " ".join(sentences[begin : begin + _SENTENCES]) for begin in range(0, len(sentences), _SENTENCES)
        ]
    return found


def _sib(shared: Path) -> list[str]:
    """The training texts of all languages but English, of which the novels are."""
    found = []
    for folder in sorted(each for each in (shared / "data/sib200").iterdir() if (each / "train.tsv").exists()):
        if folder.name != "eng_Latn":
            with (folder / "train.tsv").open(encoding="utf-8", newline="") as opened:
                found += [row["text"] for row in csv.DictReader(opened, delimiter="\t")]
    return found
