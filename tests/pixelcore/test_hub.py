"""Published models by name: a path comes first, and every way in which fetching fails has its own line."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pixelcore.checkpoint import load_model, read_stored
from pixelcore.errors import UserError
from pixelcore.hub import FILES, fetch, is_hub_name

ERRORS = {
    "HTTPError": Exception,
    "RepositoryNotFoundError": OSError,
    "RevisionNotFoundError": OSError,
    "HFValidationError": ValueError,
}


class Library:
    """A stand-in for huggingface_hub: answers with a folder, or raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Path | str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer = answer
        errors: Any = ModuleType("huggingface_hub.errors")
        for name, base in ERRORS.items():
            setattr(errors, name, type(name, (base,), {}))
        errors.GatedRepoError = type("GatedRepoError", (errors.RepositoryNotFoundError,), {})
        errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (FileNotFoundError,), {})
        library: Any = ModuleType("huggingface_hub")
        library.errors, library.snapshot_download = errors, self.snapshot_download
        monkeypatch.setitem(sys.modules, "huggingface_hub", library)
        monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
        self.errors = errors

    def snapshot_download(self, repository: str, **how: Any) -> str:
        self.asked.append({"repository": repository, **how})
        if isinstance(self.answer, str):
            raise getattr(self.errors, self.answer)("no")
        return str(self.answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Team-PIXEL/pixel-base", True),
        ("Team-PIXEL/pixel-base@seed2", True),
        ("owner/model_1.5@refs/pr/3", True),
        ("pixel-base", False),
        ("/owner/model", False),
        ("./owner/model", False),
        ("../model", False),
        ("a/b/c", False),
        ("owner/model@", False),
        ("owner/latest model", False),
        ("here/model", False),
    ],
)
def test_a_name_has_an_owner_that_is_no_folder_here(
    text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert is_hub_name(text) is expected


def test_a_model_is_fetched_by_its_name(shared: Path, monkeypatch: pytest.MonkeyPatch):
    library = Library(monkeypatch, shared / "golden" / "pixel_heads" / "token")
    stored = read_stored("Team-PIXEL/pixel-base-pos@seed2")
    assert (stored.name, stored.origin) == ("Team-PIXEL/pixel-base-pos@seed2", "pixel")
    load_model("Team-PIXEL/pixel-base-pos")
    expected = {"repository": "Team-PIXEL/pixel-base-pos", "allow_patterns": list(FILES)}
    assert library.asked == [{**expected, "revision": "seed2"}, {**expected, "revision": None}]


def test_a_path_that_exists_is_never_a_name(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = Library(monkeypatch, "RepositoryNotFoundError")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").symlink_to(shared / "golden" / "pixel_mae")
    assert read_stored("owner/model").config.kind == "vit_mae"
    with pytest.raises(UserError, match="owner/other: no such file or folder; --model takes"):
        read_stored("owner/other")
    assert library.asked == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "its owner asks for an agreement"),
        ("RepositoryNotFoundError", "no such file or folder, and no published model of that name"),
        ("RevisionNotFoundError", "the model has no branch, tag or commit seed9"),
        ("HFValidationError", r"cannot be fetched \(HFValidationError\)"),
        ("LocalEntryNotFoundError", r"cannot be fetched \(LocalEntryNotFoundError\): .* try again with a network"),
        ("HTTPError", r"cannot be fetched \(HTTPError\)"),
    ],
)
def test_each_failure_says_what_to_do(error: str, message: str, monkeypatch: pytest.MonkeyPatch):
    Library(monkeypatch, error)
    with pytest.raises(UserError, match=message) as raised:
        fetch("owner/model@seed9")
    assert "\n" not in str(raised.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"owner/model: no such file or folder; .* pip install 'pixelcore\[hf\]'"):
        read_stored("owner/model")


def test_the_real_library_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"Team-PIXEL/pixel-base: .* cannot be fetched \(\w+\)"):
        fetch("Team-PIXEL/pixel-base")
