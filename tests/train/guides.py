"""The commands of a page of docs/, and how to run them here: what the tests of the guides share.

Every fenced block of such a page is one of commands, a line each, and they are run as they stand there, in their order,
in one folder. What a test replaces in them, because it is large, or not on this machine, it says itself.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infer.cli import main as infer
from tests.conftest import ROOT
from tests.train.conftest import Server
from train.cli import main as train

_PROGRAMS: dict[str, Callable[[list[str]], int]] = {"train": train, "infer": infer}


def read_guide(name: str) -> tuple[str, list[str]]:
    """The page, and its commands."""
    guide = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return guide, [
        line for block in re.findall(r"^```sh\n(.*?)^```$", guide, re.M | re.S) for line in block.splitlines()
    ]


def assert_only_commands(guide: str, commands: Sequence[str]) -> None:
    """Every fenced block of a page is one of commands."""
    fences = re.findall(r"^```.*$", guide, re.M)
    assert fences == ["```sh", "```"] * (len(fences) // 2)
    assert len(commands) >= 12
    assert all(re.match(r"(python|torchrun --nproc-per-node 8) -m (train|infer) ", line) for line in commands)


def run_commands(
    commands: Sequence[str],
    replaced: Callable[[list[str]], list[str]],
    folder: Path,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run the commands in a folder; each succeeds, and what it says that it writes is there."""
    for line in commands:
        words = replaced(shlex.split(line))
        start = words.index("-m")
        program, arguments = words[start + 1], words[start + 2 :]
        if words[0] == "torchrun":
            server.run_ranks(2, ["--device", "cpu", *_absolute(arguments, folder)])
        else:
            assert _PROGRAMS[program](arguments) == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"
        for flag in ("--out", "--resume", "--write", "--write-rows", "--strips"):
            if flag in arguments:
                assert (folder / arguments[arguments.index(flag) + 1]).exists(), line


def without_data(flags: list[str]) -> list[str]:
    place = flags.index("--data")
    return flags[:place] + flags[place + 2 :]


def _absolute(arguments: list[str], folder: Path) -> list[str]:
    """Ranks stand in another folder."""
    return [
        str(folder / word) if before in ("--data", "--out") else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]
