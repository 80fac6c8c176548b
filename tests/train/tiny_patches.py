"""Runs of the preset pixar-smoke, smaller: what the tests of training on next patches share."""

from pathlib import Path
from typing import Any

from tests.train.conftest import overrides
from train.cli import main

# 5 rows a step in micro-batches of 2: the last is not full, and the second of two ranks gets a filler
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.intermediate_size": 24,
    "model.max_patches": 24,
    "data.row_patches": 24,
    "data.min_patches": 6,
    "data.valid_share": 0.1,
    "data.rows_per_step": 5,
    "eval.max_rows": 6,
    "eval.picture_rows": 0,
    "run.micro_batch_blocks": 2,
}


def tiny_patches(data: Path, begun: bool = False, **changes: Any) -> list[str]:
    """Flags of a tiny run on a text; changes: fields, with `__` for the dot. begun: the architecture is that of a model
    which --init names, so none is asked for."""
    fields = {name: value for name, value in TINY.items() if not (begun and name.startswith("model."))}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "pixar-smoke", "--data", str(data), *overrides(fields)]


def run(data: Path, out: Path, *flags: str, **changes: Any) -> int:
    begun = "--init" in flags
    return main([*tiny_patches(data, begun, **changes), "--device", "cpu", "--out", str(out), *flags])
