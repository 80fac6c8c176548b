"""Runs of the preset pixel-smoke, smaller: what the tests of training on strips share. 12 steps take half a second."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.train.conftest import lines, newest, overrides
from train.cli import main

# 5 rows a step in micro-batches of 2: the last is not full, and the second of two ranks gets a filler
TINY = {
    "model.num_patches": 24,
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.intermediate_size": 24,
    "model.decoder_hidden_size": 16,
    "model.decoder_intermediate_size": 24,
    "data.row_patches": 24,
    "data.min_patches": 6,
    "data.valid_share": 0.1,
    "data.rows_per_step": 5,
    "eval.max_rows": 6,
    "eval.read_rows": 0,
    "eval.picture_rows": 0,
    "run.micro_batch_blocks": 2,
}
LOOKING = {"eval__read_rows": 4, "eval__picture_rows": 2}  # at held-out rows, as the preset does


def tiny_pixels(data: Path, begun: bool = False, **changes: Any) -> list[str]:
    """Flags of a tiny run on a text; changes: fields, with `__` for the dot. begun: the architecture is that of a model
    which --init names, so none is asked for."""
    fields = {name: value for name, value in TINY.items() if not (begun and name.startswith("model."))}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "pixel-smoke", "--data", str(data), *overrides(fields)]


def run(data: Path, out: Path, *flags: str, **changes: Any) -> int:
    begun = "--init" in flags
    return main([*tiny_pixels(data, begun, **changes), "--device", "cpu", "--out", str(out), *flags])


def resume(path: Path, *flags: str) -> int:
    return main(["--resume", str(path), "--device", "cpu", *flags])


def assert_same_pixel_run(one: Path, other: Path) -> None:
    """Bit for bit: metrics, pictures, and every tensor of the newest checkpoint."""
    assert lines(one) == lines(other)
    assert newest(one).name == newest(other).name
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(run) / f"{name}.safetensors") for run in (one, other))
        assert mine.keys() == theirs.keys()
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        assert not different, f"{name}.safetensors: {different}"
    pictures = [{file.name: file.read_bytes() for file in (run / "samples").iterdir()} for run in (one, other)]
    assert pictures[0] == pictures[1]
