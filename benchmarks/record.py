"""What every benchmark writes besides its numbers: when, on which commit, on what machine, with which libraries.

A speed without these is an anecdote. The machine is named by its kind (processor, cores, threads in use) and by how
busy it was, never by its name.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def record(libraries: Sequence[str] = (), threads: int | None = None) -> dict[str, Any]:
    """Date (UTC), commit, machine and versions. libraries: installed packages the numbers depend on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
    }


def publish(result: Mapping[str, Any], table: str, as_json: bool, out: Path | None) -> None:
    """Write the JSON to `out` where one is named, then print the table, or the JSON when asked for."""
    text = json.dumps(result, indent=2, ensure_ascii=False)
    if out is not None:  # before printing: whoever reads our output may have enough of it and be gone
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    print(text if as_json else table)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The short hash of the commit, with "+" where the working tree differs from it; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"
