"""The book of the bench: a JSON file with everything that was measured, and the circumstances of it.

It is written anew after each case, first beside itself and then renamed, so that a run that is killed leaves the book
of the case before. A later run goes on in the same book only where code, versions, device and dtype are the same: what
was measured under other circumstances does not belong in one table. No path of a machine and no name of a host is kept.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from pixelcore.errors import UserError

_FORMAT = 1


class Book:
    """The record of a run and of those that it continues. path: None keeps it in memory.

    Raises UserError where the file is another kind's, or was written under other circumstances.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.record: dict[str, Any] = {"format": _FORMAT, **identity, "runs": [], "cases": [], "left_out": []}
        if path is not None and path.exists():
            self._continue(path, identity)
        self.record["runs"].append({"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")})

    def _continue(self, path: Path, identity: Mapping[str, Any]) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as cause:
            raise UserError(f"--json {path.name}: it is no JSON ({cause}); name another file") from cause
        for name, value in {"format": _FORMAT, **identity}.items():
            if not isinstance(found, dict) or found.get(name) != value:
                other = found.get(name) if isinstance(found, dict) else None
                raise UserError(
                    f"--json {path.name}: its {name} is {json.dumps(other)} and this run's {json.dumps(value)}: it "
                    "cannot be continued; name another file"
                )
        self.record = found

    def has(self, subject: str, case: str) -> bool:
        entries = self.record["cases"]
        return any((x["kernel"], x["case"], x["status"]) == (subject, case, "measured") for x in entries)

    def put(self, entry: dict[str, Any]) -> None:
        key = (entry["kernel"], entry["case"])
        kept = [x for x in self.record["cases"] if (x["kernel"], x["case"]) != key]
        self.record["cases"] = [*kept, entry]
        self.write()

    def leave_out(self, cases: list[dict[str, str]]) -> None:
        self.record["left_out"] = cases
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.write_text(json.dumps(self.record, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def identity(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What must agree for two runs to be one: code, versions, device, dtype. `sources` names the code where the folder
    is no repository, and where it differs from the commit."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.toml"), root.parent / "pixelcore" / "ops.py"]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return {
        "commit": _output(["git", "describe", "--always", "--exclude=*", "--dirty=+"], root) or "unknown",
        "sources": digest.hexdigest()[:12],
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "driver": nvidia_smi("driver_version"),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
    }


def clocks(device: torch.device) -> dict[str, float] | None:
    """Clocks in MHz, temperature in degrees, power in watts, as the driver tells; None where it does not."""
    names = {"sm_mhz": "clocks.sm", "memory_mhz": "clocks.mem", "celsius": "temperature.gpu", "watts": "power.draw"}
    line = nvidia_smi(",".join(names.values())) if device.type == "cuda" else None
    if line is None:
        return None
    found = {}
    for name, text in zip(names, line.split(","), strict=True):
        text = text.strip()
        if text.replace(".", "", 1).isdigit():  # the driver writes [N/A] for what a machine does not tell
            found[name] = float(text)
    return found


def nvidia_smi(query: str) -> str | None:
    """The driver's answer for the current device."""
    if not torch.cuda.is_available():
        return None
    uuid = getattr(torch.cuda.get_device_properties(), "uuid", None)  # pragma: gpu
    which = [] if uuid is None else [f"--id=GPU-{uuid}"]  # pragma: gpu
    command = ["nvidia-smi", *which, f"--query-gpu={query}", "--format=csv,noheader,nounits"]  # pragma: gpu
    return _output(command, Path.cwd())  # pragma: gpu


def _output(command: list[str], folder: Path) -> str | None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
