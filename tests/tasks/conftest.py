"""What tests of fine-tuning share with those of training: a process that goes on, and no pictures."""

from pathlib import Path

import pytest

from tests.infer.conftest import command, refused  # noqa: F401 - fixtures for all tests here
from tests.tasks.tiny_tasks import run, treebank
from tests.train.conftest import _as_found, server, text  # noqa: F401 - fixtures for all tests here


@pytest.fixture(scope="session")
def tiny_treebank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A treebank of 16 training sentences. Read it, never write to it."""
    return treebank(tmp_path_factory.mktemp("treebank") / "UD_Tiny")


@pytest.fixture(scope="session")
def tagger(tiny_treebank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tagger that is right about most words of the tiny treebank. Read it, never write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
        patch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
        path = tmp_path_factory.mktemp("tagger") / "run"
        assert run(tiny_treebank, path, "--steps", "24", eval__every=12, eval__patience=0) == 0
    return path
