"""Who may import whom: the walls of the house, checked in the syntax trees of every file.

Reading the trees instead of importing finds an import inside a function or a branch that no test enters.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Package -> what it may import of ours besides itself.
ALLOWED = {
    "presets": set(),
    "pixelcore": set(),
    "render": set(),
    "kernels": {"pixelcore"},
    "infer": {"pixelcore", "kernels", "render", "presets"},
    "train": {"pixelcore", "kernels", "render", "presets", "infer"},
}
# Library -> the only places that may import it, as prefixes of a path.
ONLY_IN = {
    "triton": ["kernels/"],
    "freetype": ["render/"],
    "uharfbuzz": ["render/"],
    "sentencepiece": ["pixelcore/tokenizer.py"],
    "huggingface_hub": ["pixelcore/hub.py"],
    "torch": ["pixelcore/", "kernels/", "infer/", "train/"],
}
NOT_SHIPPED = {"tests", "benchmarks"}
PACKAGES = [name for name in ALLOWED if (ROOT / name).is_dir()]


def imported_modules(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, relative ones resolved, and of import_module("name")."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def broken_rules(source: str, path: str) -> list[str]:
    """One line for each import that a file must not have."""
    package = path.split("/")[0]
    broken = []
    for line, module in imported_modules(source, path):
        top = module.split(".")[0]
        if top in NOT_SHIPPED or (top in ALLOWED and top != package and top not in ALLOWED[package]):
            broken.append(f"{path}:{line}: {package} must not import {module}")
        if top in ONLY_IN and not any(path.startswith(place) for place in ONLY_IN[top]):
            broken.append(f"{path}:{line}: {module} only in {', '.join(ONLY_IN[top])}")
    return broken


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str):
    broken = []
    for file in sorted((ROOT / package).rglob("*.py")):
        broken += broken_rules(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("pixelcore/a.py", "import kernels.glu", "pixelcore must not import kernels.glu"),
        ("pixelcore/a.py", "def f():\n    from render import Renderer", "pixelcore/a.py:2: pixelcore must not import"),
        ("kernels/a.py", "from infer import load", "kernels must not import infer"),
        ("infer/a.py", "import train", "infer must not import train"),
        ("presets/__init__.py", "from importlib import import_module as i\nimport torch.nn", "torch.nn only in"),
        ("render/a.py", "if x:\n    import torch", "torch only in"),
        ("train/a.py", "import triton", "triton only in kernels/"),
        ("kernels/a.py", "from .. import train", ""),  # beyond the top level: Python itself refuses that
        ("pixelcore/data.py", "import sentencepiece", "sentencepiece only in pixelcore/tokenizer.py"),
        ("pixelcore/tokenizer.py", "import sentencepiece", ""),
        ("infer/a.py", "import uharfbuzz, freetype", "freetype only in render/"),
        ("train/a.py", "import importlib\nimportlib.import_module('tests.x')", "train must not import tests.x"),
        ("train/data/a.py", "from ..loop import run\nfrom . import order\nimport kernels, infer, render", ""),
        ("kernels/a.py", "import triton.language as tl\nfrom pixelcore.ops import glu as reference", ""),
    ],
)
def test_the_rules_see_an_import(path: str, source: str, expected: str):
    broken = "\n".join(broken_rules(source, path))
    assert expected in broken if expected else not broken, broken


def test_importing_a_package_does_nothing_that_can_be_seen(tmp_path: Path):
    """No output, no files, no threads left behind; no triton through kernels, no torch through presets and render."""
    script = f"""
import sys, threading
for package in {PACKAGES}:
    __import__(package)
    if package in ("presets", "render"):
        assert "torch" not in sys.modules, f"{{package}} imports torch"
    if package in ("presets", "pixelcore", "render", "kernels"):
        assert "triton" not in sys.modules, f"{{package}} imports triton"
assert threading.active_count() == 1, threading.enumerate()
"""
    command = [sys.executable, "-W", "error", "-c", script]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
