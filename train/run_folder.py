"""A run's folder: what is in it, and what makes it whole again after a crash.

    RUN/config.toml      every table, resolved: enough to repeat the run
        run.json         the newest and the best checkpoint, and whether the run is finished
        metrics.jsonl    one line for each report
        loss.png         the curve
        corpus.txt       the text, where it is the standard library's (it changes with the Python that runs)
        samples/         what the model wrote at each evaluation
        checkpoints/     step_00000100/ ...

run.json names a checkpoint only after the checkpoint is on the disk, so whatever moment a process dies at, the named
one is whole.
"""

import json
import os
import shutil
from pathlib import Path

from pixelcore.durable import TEMPORARY, publish, temporary_folder, write_file, write_json
from pixelcore.errors import UserError


class RunFolder:
    """Paths and bookkeeping of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.marks = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.corpus = path / "corpus.txt"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise UserError unless a new run can be made at this path."""
        if path.is_file():
            raise UserError(f"--out {path}: is a file; name a folder that does not exist yet")
        if (path / "run.json").exists() or (path / "config.toml").exists():
            raise UserError(f"--out {path}: holds a run; continue it with --resume {path}, or choose another folder")
        if path.exists() and any(path.iterdir()):
            raise UserError(f"--out {path}: is not empty; choose a folder that does not exist yet")
        above = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UserError(f"--out {path}: nothing can be written in {above}; choose another folder")

    def create(self, config: str, corpus: Path | None = None) -> None:
        """Make the folder of a new run, in one step. corpus: the default text, of which the run keeps a copy."""
        self.check_free(self.path)
        new = RunFolder(temporary_folder(self.path))
        new.checkpoints.mkdir()
        new.samples.mkdir()
        new.write_config(config)
        if corpus is not None:
            shutil.copyfile(corpus, new.corpus)
        new.mark(newest=None, best=None, best_value=None, finished=False)
        publish(new.path, self.path)

    def write_config(self, config: str) -> None:
        """Replace config.toml: a longer run has another number of steps."""
        write_file(self.config, config.encode())

    @staticmethod
    def open(path: Path) -> "RunFolder":
        """An existing run. Raises UserError if there is none at this path."""
        folder = RunFolder(path)
        if not folder.marks.exists() or not folder.config.exists():
            raise UserError(f"--resume {path}: no run there (no run.json); name the folder given as --out")
        return folder

    def read_config(self) -> str:
        try:
            return self.config.read_text(encoding="utf-8")
        except UnicodeDecodeError as cause:
            raise UserError(f"{self.config}: damaged ({cause}); a checkpoint's manifest holds a copy") from cause

    def read_marks(self) -> dict:
        try:
            return json.loads(self.marks.read_bytes())
        except ValueError as cause:
            raise UserError(f"{self.marks}: damaged ({cause}); its checkpoints are whole: name one of them") from cause

    def mark(self, **changes: object) -> None:
        """Change entries of run.json in one step."""
        old = self.read_marks() if self.marks.exists() else {}
        write_json(self.marks, old | changes)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"

    def prune(self, keep_last: int) -> None:
        """Remove all but the last few checkpoints and those that run.json names, and what killed writers left."""
        marks = self.read_marks()
        for leftover in [*self.path.glob(f"{TEMPORARY}*"), *self.checkpoints.glob(f"{TEMPORARY}*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        written = sorted(entry for entry in self.checkpoints.iterdir() if entry.name.startswith("step_"))
        for old in written[:-keep_last]:
            if old.name not in (marks["newest"], marks["best"]):
                shutil.rmtree(old)

    def forget_after(self, step: int) -> None:
        """Before going on from a step, drop what was written after it: lines of metrics.jsonl, samples and
        checkpoints of steps that will be made again."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            # a process that died while writing leaves half a line at the end
            whole = [line for line in lines if line.endswith("}")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            write_file(self.metrics, "".join(line + "\n" for line in kept).encode())
        for entry in [*self.samples.glob("step_*"), *self.checkpoints.glob("step_*")]:
            if int(entry.stem.removeprefix("step_")) > step:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
