"""A treebank small enough for runs of a second, and the flags of such a run."""

from pathlib import Path
from typing import Any

from tests.train.conftest import overrides
from train.cli import main

_WORDS = {
    "DET": ["the", "a", "her"],
    "NOUN": ["ferry", "clock", "river", "lamp"],
    "VERB": ["waits", "turns", "sinks", "begins"],
    "ADV": ["slowly", "again", "quietly"],
}
_PLAN = ("DET", "NOUN", "VERB", "ADV")

TINY = {
    "model.num_patches": 32,
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.hidden_dropout": 0.0,
    "data.max_patches": 32,
    "data.rows_per_step": 8,
    "optimizer.learning_rate": 5e-3,
    "schedule.warmup_steps": 4,
    "eval.every": 4,
    "run.micro_batch_blocks": 4,
    "run.log_every": 4,
}


def sentence(number: int) -> list[tuple[str, str]]:
    """Words and their parts of speech; no two numbers below 144 make the same sentence."""
    found = []
    number = number * 37 % 144  # neighbours have other words
    for upos in _PLAN:
        words = _WORDS[upos]
        found.append((words[number % len(words)], upos))
        number //= len(words)
    return found


def conllu(numbers: range, labels: bool = True) -> str:
    """Sentences in CoNLL-U, each word a child of the one before it."""
    lines = []
    for number in numbers:
        lines.append(f"# sent_id = s{number}")
        for place, (word, upos) in enumerate(sentence(number), start=1):
            upos = upos if labels else "_"
            lines.append(f"{place}\t{word}\t_\t{upos}\t_\t_\t{place - 1}\t{'root' if place == 1 else 'dep'}\t_\t_")
        lines.append("")
    return "\n".join(lines) + "\n"


def treebank(folder: Path) -> Path:
    """A folder with train, dev and test files."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, numbers in (("train", range(16)), ("dev", range(40, 48)), ("test", range(60, 72))):
        (folder / f"xx_tiny-ud-{role}.conllu").write_text(conllu(numbers), encoding="utf-8")
    return folder


def tiny_flags(data: Path, begun: bool = False, **changes: Any) -> list[str]:
    """Flags of a tiny run; changes: fields, with `__` for the dot. begun: a model is named with --init."""
    sizes = ("model.num", "model.hidden_size", "model.intermediate_size")
    fields = {name: value for name, value in TINY.items() if not (begun and name.startswith(sizes))}
    if begun:
        fields = {
            name: value
            for name, value in fields.items()
            if name not in ("model.hidden_size", "model.intermediate_size")
        }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "pixel-tiny-pos", "--data", str(data), "--device", "cpu", *overrides(fields)]


def run(data: Path, out: Path, *flags: str, **changes: Any) -> int:
    return main([*tiny_flags(data, "--init" in flags, **changes), "--out", str(out), *flags])
