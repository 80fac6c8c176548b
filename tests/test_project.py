"""The project around the code: what is packaged, pinned, promised and said about the machine it was made on."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT, time_shares

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = {"pixelcore", "kernels", "render", "train", "infer", "presets"}
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]


def tracked_files() -> list[Path]:
    """The files of the project: what git has or would add, or everything where there is no repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    ignored = {".venv", "runs", "build", "dist", "__pycache__"}
    return [file for file in ROOT.rglob("*") if file.is_file() and not ignored & set(file.relative_to(ROOT).parts)]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.fixture(scope="module")
def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned: dict[str, Requirement] = {canonicalize_name(pin.name): pin for pin in listed}
    assert len(pinned) == len(listed), "a package is pinned twice"
    return pinned


def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows(pins: dict[str, Requirement]):
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"constraints.txt does not pin {requirement.name}"
        versions = [specifier.version for specifier in pin.specifier if specifier.operator == "=="]
        assert len(versions) == 1, f"{pin} must pin one version with =="
        assert requirement.specifier.contains(versions[0]), f"{pin} is not allowed by {requirement}"


def test_the_tests_run_on_the_pinned_versions_or_say_what_differs(pins: dict[str, Requirement]):
    from importlib.metadata import version

    for name in ("pytest", "hypothesis", "safetensors", "torch", "numpy"):
        assert pins[name].specifier.contains(version(name)), (
            f"{name} {version(name)} is installed, {pins[name]} is tested"
        )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_commands_of_the_documents_exist(document: str):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.M))
    assert named
    assert named <= make_targets()


def test_continuous_integration_calls_a_target_that_exists():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert set(re.findall(r"make ([a-z][\w-]*)", script.read_text())) <= make_targets()


def test_local_links_of_the_documents_lead_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{document} links to {link}, which is not there"


def test_no_file_names_a_folder_of_one_machine():
    folders = "|".join(["work", "root", "farm", "home", "opt", "Users"])
    found = []
    for file in tracked_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(rf"(?<![\w.*~)\]])/({folders})/\w", line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_the_version_is_the_newest_of_the_changelog_and_of_the_citation():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.M)
    assert newest and newest[1] == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_shares_of_test_time_fit_into_ten_minutes():
    shares = time_shares()
    assert {"pixelcore", "render", "train", "infer", "kernels", "tasks", "rest"} == set(shares)
    assert sum(shares.values()) <= 600


def test_summary_counts_what_was_skipped_without_reference_data(tmp_path: Path):
    package = tmp_path / "tests" / "render"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "CONTRIBUTING.md", tmp_path)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (package / "test_inner.py").write_text(
        "import os\n"
        "def test_golden(shared): raise AssertionError\n"
        "def test_golden_too(shared): raise AssertionError\n"
        f"def test_cache(): assert os.environ['PIXELCORE_CACHE'].startswith({str(tmp_path / 'base')!r})\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "--basetemp",
        str(tmp_path / "base"),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["PIXELCORE_SHARED"] = str(tmp_path / "nowhere")
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "shared data absent: 2 tests skipped (set PIXELCORE_SHARED)" in result.stdout, result.stdout
    assert re.search(r"^render +1 tests +\d+\.\d s of +90 s$", result.stdout, re.M), result.stdout
    assert "1 passed, 2 skipped" in result.stdout


@pytest.mark.slow
def test_wheel_holds_the_packages_and_presets_and_nothing_else(tmp_path: Path):
    source = tmp_path / "source"
    for file in tracked_files():
        target = source / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())

    metadata = f"pixelcore-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in packed} <= SHIPPED | {metadata}
    expected = {
        file.relative_to(ROOT).as_posix()
        for file in tracked_files()
        if file.relative_to(ROOT).parts[0] in SHIPPED and file.suffix in (".py", ".toml")
    }
    assert {name for name in packed if not name.startswith(metadata)} == expected
    assert f"{metadata}/licenses/LICENSE" in packed
