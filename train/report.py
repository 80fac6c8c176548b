"""What a run tells: a progress bar on standard error, a line of metrics.jsonl for each report, a picture of the curve,
and, where asked for, TensorBoard or Weights & Biases.

Only the first rank reports. metrics.jsonl holds everything; the rest are views of it.
"""

import importlib.util
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pixelcore.errors import UserError
from train.run_folder import RunFolder

_log = logging.getLogger(__name__)

# entries of a metrics line that depend on the machine and not on the mathematics
CLOCK_KEYS = ("seconds", "tokens_per_second", "rows_per_second", "targets_per_second", "memory_gib", "mfu")


class Reporter:
    """Reports of one process; all methods do nothing on ranks after the first."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        unit: str,
        curve: str,
        total: int,
        done: int,
        active: bool,
        services: tuple[str, ...],
    ):
        self.folder = folder
        self.curve = curve
        self.active = active
        self.services = _open_services(folder, services) if active else []
        self.start = time.perf_counter()
        self.bar: tqdm[Any] | None = None
        if active:
            self.bar = tqdm(
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.05,
                mininterval=0.5 if sys.stderr.isatty() else 10,
                file=sys.stderr,
            )

    def advance(self, units: int) -> None:
        """Move the bar on by a micro-batch."""
        if self.bar is not None:
            self.bar.update(units)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the bar's text."""
        if not self.active:
            return
        values = {"step": step, **values, "memory_gib": round(memory_bytes() / 2**30, 3)}
        with self.folder.metrics.open("a") as file:
            file.write(json.dumps(values) + "\n")
        for service in self.services:
            service.log(step, values)
        if self.bar is not None and "loss" in values:
            shown = {"step": step, "loss": f"{values['loss']:.4f}", "memory": f"{values['memory_gib']:.2f} GiB"}
            if values.get("mfu") is not None:
                shown["mfu"] = f"{values['mfu']:.1%}"
            self.bar.set_postfix(shown, refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.active:
            tqdm.write(text, file=sys.stderr)

    def sample(self, step: int, texts: list[tuple[str, str]]) -> None:
        """Keep and show what the model wrote after each prompt."""
        if not self.active or not texts:
            return
        written = "\n\n".join(f"[{prompt}]{text}" for prompt, text in texts)
        (self.folder.samples / f"step_{step:08d}.txt").write_text(written + "\n", encoding="utf-8")
        self.say(written)

    def draw(self) -> None:
        """Draw loss.png from metrics.jsonl."""
        if self.active:
            draw_curve(self.folder.metrics, self.folder.path / "loss.png", self.curve)

    def close(self) -> None:
        for service in self.services:
            service.close()
        if self.bar is not None:
            self.bar.close()


def memory_bytes() -> int:
    """Peak memory: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()  # pragma: gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def draw_curve(metrics: Path, picture: Path, axis: str) -> bool:
    """Loss over steps, training and held-out, as a PNG. axis: what the loss is in. False before the first report, and,
    with a line in the log, without matplotlib."""
    if not metrics.exists():
        return False
    if importlib.util.find_spec("matplotlib") is None:
        _log.info("no %s: drawing it needs matplotlib: pip install 'pixelcore[plot]'", picture.name)
        return False
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("valid_loss", "held-out", "o-")):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel(axis)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    temporary = picture.with_name(f".{picture.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(picture)
    return True


class _TensorBoard:
    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path / "tensorboard"))

    def log(self, step: int, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, int | float) and key != "step":
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: RunFolder) -> None:
        import wandb  # pyright: ignore[reportMissingImports] - an extra that few install

        self.run = wandb.init(project="pixelcore", name=folder.path.name, dir=str(folder.path), resume="allow")

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


_SERVICES = {"tensorboard": _TensorBoard, "wandb": _WandB}


def check_services(names: tuple[str, ...]) -> None:
    """Raise UserError for a service whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"run.report = {name}: the package is not installed: pip install 'pixelcore[log]'")


def _open_services(folder: RunFolder, names: tuple[str, ...]) -> list[Any]:
    return [_SERVICES[name](folder) for name in names]
