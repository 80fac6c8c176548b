"""The commands of docs/pretraining.md, run as they stand there, in their order, in one folder.

Five things are replaced, by rule: a preset by the smoke preset of its kind, smaller still, and two steps; a folder
of texts by a short text; eight processes by two; a name on the hub by a folder in the published form; a font that is
not ours by the one that is. Whatever else a command says is done, and a file that it writes must be there.
"""

import re
from pathlib import Path

import pytest

from infer.cli import main as infer
from pixelcore.accounting_vit import published_parameters
from pixelcore.masking import draw_masks, mix_seed
from tests.train.conftest import Server, lines, small_text, tiny
from tests.train.guides import assert_only_commands, read_guide, run_commands, without_data
from tests.train.test_pixel_presets import settings_of
from tests.train.tiny_pixels import run, tiny_pixels

GUIDE, COMMANDS = read_guide("pretraining.md")


def test_every_fenced_block_is_one_of_commands():
    assert_only_commands(GUIDE, COMMANDS)


def test_presets_of_the_table_have_the_sizes_that_it_says():
    rows = re.findall(r"^\| `(pixel-\w+)` \| ([\d.]+) M \| (\d+) \|", GUIDE, re.M)
    assert len(rows) == 6
    for name, millions, patches in rows:
        settings = settings_of(name)
        assert f"{published_parameters(settings.model) / 1e6:.1f}" == millions, name
        assert settings.data.row_patches == int(patches), name


def test_figures_that_are_explained_are_those_that_are_written(text: Path, tmp_path: Path):
    assert run(text, tmp_path / "a", "--steps", "1", eval__read_rows=4) == 0
    (found,) = [line.keys() - {"step"} for line in lines(tmp_path / "a") if "valid_loss" in line]
    assert {name for name in found if f"`{name}`" not in GUIDE} == {
        "valid_characters_low",
        "valid_characters_high",
        "valid_characters_count",
    }
    assert set(re.findall(r"`(valid_\w+)`", GUIDE.split("# Pretraining PIXEL")[1])) <= found


def test_masks_of_the_paper_hide_the_share_of_a_short_text_that_it_says():
    rows = 200
    hidden = draw_masks("span-m4", [100] * rows, mix_seed(0, range(rows)), 0.25, padded_length=529)[:, :100]
    assert "about 40 % of 100 patches in 529" in GUIDE
    assert hidden.mean() == pytest.approx(0.4, abs=0.02)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: it has the texts that they name, and a model in the published form."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(sorted(set(re.findall(r"--data (\w+)/", GUIDE)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(small_text(seed=number + 1))
    default = tmp_path / "default.txt"
    default.write_text(small_text())
    monkeypatch.setattr("train.data.corpus.standard_library_corpus", lambda cache: default)
    assert run(default, tmp_path / "model", "--steps", "1") == 0
    assert infer(["export", "--model", "model", "--to", "pixel", "--out", "published"]) == 0
    (
        tmp_path / "published" / "text_renderer_config.json"
    ).unlink()  # those on the hub do not say which pixels they drew
    return tmp_path


def test_commands_of_the_guide_work(folder: Path, server: Server, capsys: pytest.CaptureFixture[str]):
    run_commands(COMMANDS, replaced, folder, server, capsys)


def replaced(words: list[str]) -> list[str]:
    """The words of a command after the five rules."""
    words = [word.replace("GoNotoCurrent.ttf", "builtin") for word in words]
    words = ["published" if word == "Team-PIXEL/pixel-base" else word for word in words]
    if "--preset" not in words:
        return words
    place = words.index("--preset")
    pixels = words[place + 1].startswith("pixel-")
    begun = "--init" in words
    room = {} if begun else {"model__num_patches": 36}  # for the texts of the guide, which are longer than the rows
    small = tiny_pixels(Path("unused"), begun, **room) if pixels else tiny(Path("unused"))
    flags = without_data(small)
    steps = [] if {"prepare", "verify", "--steps"} & set(words) else ["--steps", "2"]
    return [*words[:place], *flags, *steps, *words[place + 2 :]]
