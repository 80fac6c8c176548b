"""What a user of strips gets wrong costs one line and exit status 2, before there is a run folder."""

from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import tiny
from tests.train.tiny_pixels import run, tiny_pixels
from train.cli import main


@pytest.fixture
def refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs training with more flags than a run that would work; returns the one line of the error."""
    monkeypatch.chdir(tmp_path)

    def refused(*flags: str, data: Path = text, **changes: Any) -> str:
        assert run(data, tmp_path / "out", "--steps", "1", *flags, **changes) == 2
        assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists(), "nothing is written"
        return one_line(capsys)

    return refused


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    rows = capsys.readouterr().err.strip().splitlines()
    assert [row for row in rows if row.startswith("error: ")] == rows[-1:], rows
    return rows[-1]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"data__row_patches": 25}, "data.row_patches = 25 must not exceed model.num_patches = 24"),
        ({"render__height": 8}, "render.height = 8 and render.patch_width = 16 must be model.patch_size = 16"),
        ({"render__patch_width": 8}, "render.patch_width = 8 must be model.patch_size = 16"),
        ({"model__patch_size": 8}, "must be model.patch_size = 8"),
        ({"render__color": "rgb", "model__num_channels": 1}, "render.color = 'rgb' needs model.num_channels = 3"),
        ({"render__max_patches": 30}, "render.max_patches = 30 is said by data.row_patches = 24 in training"),
        ({"render__layout": "wavy"}, "render.layout = 'wavy'; it must be one of continuous"),
        ({"render__fonts": ["gone.ttf"]}, "[render]: font 'gone.ttf' not found"),
        ({"objective__ratio": 0}, "ratio = 0.0 must lie between 0 and 1"),
        ({"objective__ratio": 1}, "ratio = 1.0 must lie between 0 and 1"),
        ({"objective__rule": "spam"}, "rule = 'spam' must be one of"),
        ({"objective__counts": "all"}, 'counts = \'all\' must be "packed" or "paper"'),
        ({"data__min_patches": 25}, "min_patches = 25 must lie between 2 and row_patches = 24"),
        ({"data__min_patches": 1}, "min_patches = 1 must lie between 2"),
        ({"data__rows_per_step": 0}, "rows_per_step = 0 must be positive"),
        ({"data__workers": -1}, "workers = -1 must not be negative"),
        ({"data__clean": ["unwashed"]}, 'clean = [\'unwashed\'] may hold "unassigned" and "unrenderable"'),
        ({"eval__max_rows": 0}, "max_rows = 0 must be positive"),
        ({"eval__read_rows": -1}, "read_rows = -1 must not be negative"),
        ({"model__decoder_num_attention_heads": 3}, "must be a multiple of decoder_num_attention_heads = 3"),
        ({"objective__ration": 0.5}, "objective: unknown key 'ration'; did you mean 'ratio'?"),
        ({"render__lifts": 1}, "render: unknown key 'lifts'; did you mean 'lift'?"),
        ({"data__block_size": 64}, "data: unknown key 'block_size'"),
        ({"tokenizer__path": "x"}, "unknown table 'tokenizer'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_message_of_a_wrong_value(changes: dict[str, Any], expected: str, refused: Any):
    assert expected in refused(**changes)


@pytest.mark.parametrize(
    "preset, override, expected",
    [
        ("pixel-smoke", "model.kind=decoder", "preset pixel-smoke: model: unknown key 'num_patches'"),
        ("pixel-smoke", "objective.kind=next_token", "'next_token' trains a model of kind 'decoder', and model.kind ="),
        ("smoke", "model.kind=vit_mae", "preset smoke: model: unknown key 'vocab_size'"),
        ("smoke", "objective.kind=masked_patches", "'masked_patches' trains a model of kind 'vit_mae', and model.kind"),
    ],
)
def test_objective_of_another_model(
    preset: str, override: str, expected: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["--preset", preset, "--data", str(text), "--set", override, "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert not (tmp_path / "out").exists()
    assert expected in one_line(capsys)


def test_text_that_is_too_short_for_a_row(refused: Any, tmp_path: Path):
    (tmp_path / "short.txt").write_text("A word.\n\nAnother one.\n\nA third.\n\nAnd a fourth.\n\nThen it ends.\n")
    line = refused(data=tmp_path / "short.txt", data__min_patches=20, data__split="by-document", data__valid_share=0.4)
    assert "short.txt" in line and "data.min_patches = 20" in line


def test_text_in_a_script_that_no_font_has(refused: Any, tmp_path: Path):
    (tmp_path / "script.txt").write_text("\n\n".join("\U00013000\U00013001\U00013002" * 40 for _ in range(30)))
    line = refused(data=tmp_path / "script.txt")
    assert "nothing is left after cleaning" in line and "render.fonts" in line


def test_held_out_rows_in_which_nothing_could_be_read(refused: Any):
    line = refused(
        eval__max_rows=1, eval__read_rows=1, objective__rule="random", objective__ratio=0.04, render__layout="bigrams"
    )
    assert "eval.read_rows = 1: no character lies wholly in hidden patches" in line and "0 reads none" in line


def test_decoder_is_no_model_of_strips_and_the_reverse(
    refused: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*tiny(text), "--steps", "1", "--out", str(tmp_path / "decoder")]) == 0
    assert run(text, tmp_path / "strips", "--steps", "1") == 0
    capsys.readouterr()
    line = refused("--init", str(tmp_path / "decoder"))
    assert "is a model of kind 'decoder', and the preset trains 'vit_mae'" in line
    argv = [*tiny(text), "--init", str(tmp_path / "strips"), "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "is a model of kind 'vit_mae', and the preset trains 'decoder'" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_published_folder_whose_positions_are_too_few(refused: Any, shared: Path):
    line = refused("--init", str(shared / "golden" / "pixel_mae"), data__row_patches=999)
    assert "data.row_patches = 999 must not exceed model.num_patches" in line


def test_tokenizer_of_strips_is_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tokenizer", *tiny_pixels(text), "--out", str(tmp_path / "my.model")]) == 2
    assert "preset pixel-smoke: trains on strips, which need no tokenizer" in one_line(capsys)


def test_tokens_are_not_verified(text: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", *tiny(text)]) == 2
    assert "preset smoke: trains on tokens; only prepared rows of strips can be verified" in one_line(capsys)


@pytest.mark.parametrize("command", ["prepare", "verify"])
def test_flag_without_effect_is_refused(command: str, text: Path, capsys: pytest.CaptureFixture[str]):
    assert main([command, *tiny_pixels(text), "--steps", "3"]) == 2
    assert "--steps has no effect on prepared data" in one_line(capsys)
