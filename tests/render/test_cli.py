"""The command line of the renderer: what it prints, what it writes, and one line for every mistake.

Most tests call `main` in this process. The guide's commands and code (docs/rendering.md) run as they stand there.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from render import RenderConfig, Renderer
from render.cli import _parser, every_layout, main
from render.picture import strip_pixels_of
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "rendering.md").read_text(encoding="utf-8")


class StandardInput:
    def __init__(self, data: bytes, is_terminal: bool = False):
        self.buffer, self._is_terminal = io.BytesIO(data), is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("COLORTERM", "NO_COLOR", "PIXELCORE_FONTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdin", StandardInput(b""))
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit status, standard output, lines of standard error."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_flags_are_these_and_no_others():
    flags = {flag for action in _parser()._actions for flag in action.option_strings}
    assert flags == {
        *("--columns", "--compare", "--config", "--file", "--font", "--grid", "--help", "--identity", "--json"),
        *("--layout", "--out", "--preset", "--scale", "--set", "--words", "-h"),
    }


def test_help_has_examples(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_text_is_drawn_in_the_terminal_and_its_fonts_are_named(capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, "Hi")
    assert (status, err) == (0, ["fonts: builtin x2"])
    assert set(out) <= set(" ▀▄█▒\n")
    assert "▒" * 16 in out


def test_colour_goes_to_terminals_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert "\x1b" not in run(capsys, "Hi")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[38;2;0;0;0" in run(capsys, "Hi")[1]


def test_a_picture_holds_the_strip_and_its_text(capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, "Hi you", "--preset", "pixar", "--out", "a.png", "--scale", "2", "--columns", "2")
    assert (status, out) == (0, "")
    assert err[-1] == "a.png: 3 patches"
    pixels, metadata = strip_pixels_of("a.png")
    assert np.array_equal(pixels, Renderer(RenderConfig.named("pixar"))("Hi you").pixels)
    assert (metadata["scale"], metadata["columns"], metadata["texts"]) == (2, 2, ["Hi you"])


def test_json_says_what_stands_where(capsys: pytest.CaptureFixture[str]):
    found = report_of(capsys, "ab", "cd", "--layout", "continuous")
    strip = Renderer(RenderConfig(layout="continuous"))(("ab", "cd"))
    assert found["num_patches"] == strip.num_patches
    assert found["separators"] == list(strip.separators)
    assert found["char_spans"] == strip.char_spans.tolist()
    assert found["word_starts"] is None
    assert (found["height"], found["width"]) == strip.pixels.shape
    assert found["given"] == found["drawn"] == [2, 2]
    assert found["truncated"] is False
    assert [font["name"] for font in found["fonts"]] == ["builtin x2"]
    assert RenderConfig.from_dict(found["config"]) == RenderConfig(layout="continuous")


def test_words_are_given_as_a_list(capsys: pytest.CaptureFixture[str]):
    found = report_of(capsys, " two  words ", "--words", "--layout", "words")
    strip = Renderer(RenderConfig(layout="words"))(["two", "words"])
    assert strip.word_starts is not None
    assert found["word_starts"] == strip.word_starts.tolist()
    assert found["given"] == [2]


def test_missing_characters_are_counted_and_named(capsys: pytest.CaptureFixture[str]):
    status, out, err = run(capsys, "क a \ud800 क", "--json")
    assert status == 0
    missing = {row["code_point"]: row for row in json.loads(out)["missing"]}
    assert missing["U+0915"] == {"character": "क", "code_point": "U+0915", "name": "DEVANAGARI LETTER KA", "count": 2}
    assert missing["U+D800"]["name"] == "<surrogate>"
    lines = [line for line in err if line.startswith("missing: ")]
    assert len(lines) == 1
    assert "U+0915 DEVANAGARI LETTER KA x2" in lines[0]


def test_many_missing_characters_stay_one_line(capsys: pytest.CaptureFixture[str]):
    _, _, err = run(capsys, "".join(map(chr, range(0x4E00, 0x4E40))))
    assert err[-1].endswith("and 56 others")


@pytest.mark.parametrize("preset", ["default", "pixel", "pixel-m4", "pixar"])
@pytest.mark.parametrize("form", ["text", "words"])
def test_what_does_not_fit_is_said_once(capsys: pytest.CaptureFixture[str], preset: str, form: str):
    text = "many words in a line " * 3
    arguments = ["--preset", preset, "--set", "max_patches=10", *(["--words"] if form == "words" else [])]
    status, out, err = run(capsys, text, *arguments, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["truncated"] is True
    assert 0 < found["drawn"][0] < found["given"][0] or (preset, form) == ("pixel", "words")
    assert [line.split(":")[0] for line in err] == ["fonts", "truncated"]
    assert report_of(capsys, "few", "--preset", preset)["truncated"] is False


def test_a_text_that_just_fits_is_not_called_truncated(capsys: pytest.CaptureFixture[str]):
    for preset in ("default", "pixel", "pixel-m4", "pixar"):
        patches = Renderer(RenderConfig.named(preset))("just so").num_patches
        found = report_of(capsys, "just so", "--preset", preset, "--set", f"max_patches={patches}")
        assert (preset, found["truncated"], found["drawn"]) == (preset, False, [7])


def test_every_layout_is_compared(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "Hi you", "--compare")
    assert status == 0
    for label, config in every_layout(RenderConfig()).items():
        assert f"{label}: {Renderer(config)('Hi you').num_patches} patches\n" in out
    assert run(capsys, "Hi you", "--compare", "--grid", "--out", "all.png")[0] == 0
    assert Path("all.png").stat().st_size > 500
    status, out, _ = run(capsys, "Hi you", "--compare", "--json")
    assert [row["label"] for row in json.loads(out)] == list(every_layout(RenderConfig()))


def test_identity_is_that_of_the_renderer(capsys: pytest.CaptureFixture[str]):
    status, out, _ = run(capsys, "--identity", "--preset", "pixar")
    assert status == 0
    assert json.loads(out) == Renderer(RenderConfig.named("pixar")).identity()


# ---- where the text and the configuration come from ------------------------------------------------------------------


@pytest.mark.parametrize("data", ["from outside", "from outside\n", "from outside\r\n", "\ufefffrom outside"])
@pytest.mark.parametrize("way", ["file", "pipe"])
def test_text_comes_from_a_file_or_a_pipe(capsys, monkeypatch: pytest.MonkeyPatch, data: str, way: str):
    Path("text.txt").write_bytes(data.encode())
    if way == "pipe":
        monkeypatch.setattr(sys, "stdin", StandardInput(data.encode()))
    found = report_of(capsys, *(["--file", "text.txt"] if way == "file" else []))
    assert found["char_spans"] == Renderer(RenderConfig())("from outside").char_spans.tolist()


def test_an_empty_text_that_is_given_is_drawn(capsys: pytest.CaptureFixture[str]):
    assert report_of(capsys, "")["num_patches"] == 1
    assert report_of(capsys, "", "--preset", "pixel")["num_patches"] == 2


def test_a_field_is_set_with_and_without_its_table(capsys: pytest.CaptureFixture[str]):
    found = report_of(capsys, "a", "--set", "render.layout=words", "--set", "size=12", "--set", 'fonts=["builtin"]')
    assert (found["config"]["layout"], found["config"]["size"], found["config"]["fonts"]) == ("words", 12, ["builtin"])


def test_a_preset_is_a_name_or_a_file(capsys: pytest.CaptureFixture[str]):
    Path("mine.toml").write_text('[model]\nwidth = 4\n[render]\nlayout = "words"\npad = 3\n')
    found = report_of(capsys, "a", "--preset", "mine.toml", "--set", "pad=4")
    assert (found["config"]["layout"], found["config"]["pad"]) == ("words", 4)
    assert report_of(capsys, "a", "--config", "pixar")["config"] == RenderConfig.named("pixar").to_dict()
    assert report_of(capsys, "a", "--preset", "pixel", "--layout", "words")["config"]["pad"] == 2


# ---- mistakes --------------------------------------------------------------------------------------------------------


MISTAKES = {
    "no text": ([], "standard input is empty"),
    "unknown layout": (["a", "--layout", "wrods"], "render.layout = 'wrods'; it must be one of continuous"),
    "unknown preset": (["a", "--preset", "pixl"], "did you mean pixel? there are"),
    "unknown key": (["a", "--set", "layot=words"], "did you mean 'layout'?"),
    "unknown flag": (["a", "--gird"], "did you mean --grid"),
    "no flag's value": (["a", "--font"], "expected one argument"),
    "other table": (["a", "--set", "model.width=3"], "is not of the form"),
    "no value": (["a", "--set", "layout"], "is not of the form"),
    "wrong type": (["a", "--set", "height=tall"], "whole number"),
    "fonts no list": (["a", "--set", "fonts=3"], "fonts are a list"),
    "fonts one string": (["a", "--set", "fonts=x.ttf"], "give a list of fonts"),
    "said twice": (["a", "--font", "builtin", "--set", "fonts=[]"], "--font says it too"),
    "impossible": (["a", "--layout", "words", "--preset", "pixel-m4"], "leave out --layout words"),
    "compare a layout": (["a", "--compare", "--layout", "words"], "leave --layout out"),
    "scale of nothing": (["a", "--scale", "2"], "--out"),
    "grid of nothing": (["a", "--grid", "--json"], "has no effect"),
    "scale 0": (["a", "--scale", "0", "--out", "a.png"], "at least 1"),
    "columns -1": (["a", "--columns", "-1"], "at least 1"),
    "three texts": (["a", "b", "c"], "needs quotes"),
    "words of a pair": (["a", "b", "--words"], "give one text"),
    "file and text": (["a", "--file", "b"], "give one of them"),
    "identity of a text": (["a", "--identity"], "leave a text out"),
    "no such file": (["--file", "nowhere.txt"], "No such file"),
    "file is a folder": (["--file", "."], "cannot be read"),
    "not UTF-8": (["--file", "latin1.txt"], "byte 3 is not UTF-8"),
    "folder that is not there": (["a", "--out", "no/a.png"], "the folder no does not exist"),
    "out is a folder": (["a", "--out", "."], "this is a folder"),
    "no picture": (["a", "--out", "a.jpg"], "end in .png"),
    "font that is not there": (["a", "--font", "Nowhere.ttf"], "'Nowhere.ttf' not found"),
    "font that is no font": (["a", "--font", "latin1.txt"], "not a font"),
    "font that is empty": (["a", "--font", "empty.ttf"], "empty.ttf: not a font"),
    "folder without fonts": (["a", "--font", "folder"], "no font file"),
    "wrong face": (["a", "--font", "empty.ttf#x"], "is neither"),
    "preset that is not there": (["a", "--preset", "no.toml"], "No such file"),
    "preset that is no TOML": (["a", "--preset", "bad.toml"], "not valid TOML"),
    "preset without render": (["a", "--preset", "model.toml"], "has no [render] table, only [model]"),
    "preset with a wrong key": (["a", "--preset", "key.toml"], "did you mean 'height'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], name: str):
    Path("latin1.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("empty.ttf").write_bytes(b"")
    Path("bad.toml").write_text("[render")
    Path("model.toml").write_text("[model]\nwidth = 4\n")
    Path("key.toml").write_text("[render]\nheigth = 4\n")
    Path("folder").mkdir()
    arguments, expected = MISTAKES[name]
    before = sorted(Path().iterdir())
    status, out, err = run(capsys, *arguments)
    assert (status, out, len(err)) == (2, "", 1), err
    assert err[0].startswith("error: ")
    assert expected in err[0]
    assert sorted(Path().iterdir()) == before


def test_no_text_from_a_terminal_is_a_mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", StandardInput(b"never read", is_terminal=True))
    assert run(capsys)[0] == 2


def test_a_font_without_any_character_of_the_text_is_a_mistake(capsys: pytest.CaptureFixture[str], shared: Path):
    font = str(shared / "fonts/noto/NotoSans-Regular.ttf")
    status, _, err = run(capsys, "क ख", "--font", font)
    assert (status, len(err)) == (2, 1)
    assert "U+0915 DEVANAGARI LETTER KA" in err[0]
    assert run(capsys, "क a", "--font", font)[0] == 0


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_a_font_that_is_cut_off_is_a_mistake(capsys: pytest.CaptureFixture[str], shared: Path, share: float):
    data = (shared / "fonts/noto/NotoSans-Regular.ttf").read_bytes()
    Path("cut.ttf").write_bytes(data[: int(len(data) * share)])
    status, _, err = run(capsys, "Hello", "--font", "cut.ttf")
    assert (status, len(err)) == (2, 1)
    assert "cut.ttf" in err[0]


def test_the_known_font_of_published_checkpoints_may_be_absent(capsys: pytest.CaptureFixture[str]):
    status, _, err = run(capsys, "क", "--preset", "pixel", "--font", "GoNotoCurrent.ttf")
    assert status == 0
    assert sum("GoNotoCurrent.ttf" in line for line in err) == 1


def test_a_terminal_without_block_characters_is_told(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["a"]) == 2
    assert "PYTHONIOENCODING" in capsys.readouterr().err
    json_out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", json_out)
    assert main(["क", "--json"]) == 0
    assert json.loads(json_out.buffer.getvalue())["missing"][0]["character"] == "क"  # type: ignore[attr-defined]


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    class Interrupted(StandardInput):
        @property
        def buffer(self):
            raise KeyboardInterrupt

        @buffer.setter
        def buffer(self, value: object) -> None: ...

    monkeypatch.setattr(sys, "stdin", Interrupted(b""))
    assert run(capsys) == (130, "", ["interrupted"])


# ---- as a process ----------------------------------------------------------------------------------------------------


COMMAND = [sys.executable, "-W", "error", "-m", "render"]


def test_status_and_streams_of_the_process():
    done = subprocess.run([*COMMAND, "--layout", "no", "a"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


def test_a_reader_that_has_enough_is_no_failure():
    command = f"{shlex.join(COMMAND)} {'word ' * 400!r} --columns 1 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(line.startswith(("fonts: ", "truncated: ")) for line in done.stderr.splitlines()), done.stderr


# ---- the guide -------------------------------------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    """The fenced blocks of the guide of one kind, "" for those without a name."""
    fences = re.split(r"^```", GUIDE, flags=re.M)[1::2]
    return [fence.partition("\n")[2] for fence in fences if fence.partition("\n")[0] == kind]


COMMANDS = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
OUTSIDE_FONT = re.compile(r"\.(ttf|otf|ttc)\b|system:")


def run_of_guide(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    piped = re.fullmatch(r'echo "(.*)" \| (.*)', command)
    if piped:
        monkeypatch.setattr(sys, "stdin", StandardInput(f"{piped[1]}\n".encode()))
        command = piped[2]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "render"], command
    return main(words[3:])


@pytest.mark.parametrize("command", [command for command in COMMANDS if not OUTSIDE_FONT.search(command)])
def test_commands_of_the_guide_run(command: str, capsys, monkeypatch: pytest.MonkeyPatch):
    assert run_of_guide(command, monkeypatch) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if OUTSIDE_FONT.search(command)])
def test_commands_of_the_guide_that_name_fonts_run(command: str, shared: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    folders = [str(folder) for folder in (shared / "fonts").iterdir() if folder.is_dir()]
    monkeypatch.setenv("PIXELCORE_FONTS", os.pathsep.join(folders))
    status = run_of_guide(command, monkeypatch)
    err = capsys.readouterr().err
    assert status == 0, err
    assert "missing" not in err


@pytest.mark.parametrize("code", blocks("python"))
def test_code_of_the_guide_runs(code: str):
    exec(compile(code, "docs/rendering.md", "exec"), {})


def test_every_field_is_in_the_guide():
    for field in RenderConfig().to_dict():
        assert f"`{field}`" in GUIDE, field


def test_pictures_of_the_guide_are_there_and_small():
    linked = re.findall(r"\]\((gallery/[^)]+)\)", GUIDE)
    files = sorted((ROOT / "docs" / "gallery").glob("*.png"))
    assert sorted(set(linked)) == [f"gallery/{file.name}" for file in files]
    assert sum(file.stat().st_size for file in files) < 400_000


def test_the_terminal_picture_of_the_guide_is_what_is_drawn(capsys: pytest.CaptureFixture[str]):
    _, out, _ = run(capsys, "Hi you, fine words")
    shown = blocks("")[0].rstrip("\n").split("\n")
    assert out.split("\n")[: len(shown)] == shown
