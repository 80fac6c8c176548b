"""The commands of docs/writing.md, run as they stand there, in their order, in one folder.

Presets stay what they are and get smaller: one narrow layer, two rows a step, two steps. Counts become small, a sweep
has one strength and one seed, and a font that is not ours becomes the one that is. Whatever else a command says is
done, and a file that it writes must be there.
"""

import json
import re
from pathlib import Path

import pytest

from pixelcore.accounting import num_parameters
from tests.train import tiny_adversarial, tiny_patches
from tests.train.conftest import Server, lines, overrides, small_text
from tests.train.guides import assert_only_commands, read_guide, run_commands
from tests.train.test_pixar_presets import settings_of
from tests.train.tiny_adversarial import begun  # noqa: F401 - a fixture

GUIDE, COMMANDS = read_guide("writing.md")
HELP, _ = read_guide("troubleshooting.md")
SMALL = {
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 16,
    "data.valid_share": 0.2,
    "data.rows_per_step": 2,
    "data.workers": 0,
    "eval.every": 99,
    "eval.max_rows": 4,
    "eval.picture_rows": 1,
    "eval.words": 2,
    "run.micro_batch_blocks": 2,
}
FEWER = {"--count": "2", "--stop-at": "1", "--at": "0,1", "--strengths": "1", "--seeds": "0", "--steps": "2"}


def test_every_fenced_block_is_one_of_commands():
    assert_only_commands(GUIDE, COMMANDS)


def test_presets_of_the_table_have_the_sizes_that_it_says():
    rows = re.findall(r"^\| `(pixar-[\w.-]+)` \| ([\d.]+) M \| (\d+) \|", GUIDE, re.M)
    assert len(rows) == 10
    for name, millions, patches in rows:
        settings = settings_of(name)
        digits = len(millions.partition(".")[2])
        assert f"{num_parameters(settings.model) / 1e6:.{digits}f}" == millions, name
        assert settings.data.row_patches == int(patches), name


def test_figures_that_are_explained_are_those_that_are_written(text: Path, begun: Path, tmp_path: Path):  # noqa: F811
    longer = {"model__max_patches": 64, "data__row_patches": 64, "eval__words": 2}  # rows with a place to read
    assert tiny_patches.run(text, tmp_path / "one", "--steps", "1", **longer) == 0
    assert tiny_adversarial.run(text, begun, tmp_path / "two", "--steps", "1") == 0
    first, second = (set().union(*lines(tmp_path / name)) for name in ("one", "two"))
    ends = ("_low", "_high")  # of the intervals, which the guide explains with the figure
    held_out = {name for name in first if name.startswith("valid_") and not name.endswith(ends)}
    ours = {name for name in second - first if not name.startswith("valid_")}
    explained = set(re.findall(r"`(\w+)`", GUIDE))
    assert held_out | ours <= explained
    named = explained | set(re.findall(r"`(\w+)`", HELP))
    assert {name for name in named if re.match(r"(valid|discriminator|adversarial)_\w*[a-z]$", name)} <= first | second


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: it has the texts that they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for name in ("texts/text.txt", "default.txt", "held_out.txt"):
        (tmp_path / name).write_text("\n\n".join(small_text(300, seed=len(name)).replace("\n\n", " ").split("again. ")))
    (tmp_path / "prompts.txt").write_text("The old\nHer letter\n")
    (tmp_path / "words.txt").write_text("the\t100\nold\t10\nbells\t3\n")
    record = {"context": "Seven bells rang. The old clock waits for seven", "continuation": " bells"}
    (tmp_path / "lambada_openai.jsonl").write_text(f"{json.dumps(record)}\n" * 3)
    monkeypatch.setattr("train.data.corpus.standard_library_corpus", lambda cache: tmp_path / "default.txt")
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_guide_work(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]):
    run_commands(COMMANDS, replaced, folder, server, capsys)


def replaced(words: list[str]) -> list[str]:
    """The words of a command after the rules."""
    words = [word.replace("PixeloidSans.ttf", "builtin") for word in words]
    for flag, value in FEWER.items():
        if flag in words:
            words[words.index(flag) + 1] = "30" if "--write" in words else value
    if words[2] != "train":
        return words
    fewer = [] if {"--steps", "--stop-at", "sweep"} & set(words) else ["--steps", "2"]
    # overrides of the command come last and hold
    place = 4 if words[3] == "sweep" else 3
    width = ["--set", "discriminator.width=16"] if "discriminator.kind=patch" in words else []
    return [*words[:place], *overrides(SMALL), *words[place:], *fewer, *width]
