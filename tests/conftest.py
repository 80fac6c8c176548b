"""What every test shares: where the reference data lies, a cache that is not the user's, and an account of the time.

Reference data (inputs and outputs of the original programs) is not part of the repository. A test that needs it takes
the fixture `shared` and is skipped without it; the summary says how many were, so that a green run cannot hide it.
Seeds stand in the tests themselves: nothing here touches a random state.
"""

import os
import re
import signal
from collections import Counter, defaultdict
from pathlib import Path

# Before torch is imported: sums then have one order, here and in children.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before triton is imported: its interpreter then runs kernels on the CPU, here and in children.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_ABSENT = "shared/ absent (PIXELCORE_SHARED)"

# No example database and no clock: the same examples on every machine, and no failure because one is busy.
hypothesis.settings.register_profile("pixelcore", database=None, deadline=None, derandomize=True)
hypothesis.settings.load_profile("pixelcore")


def pytest_configure() -> None:
    # a shell starts background jobs with SIGINT ignored, and what is ignored is inherited: tests of Ctrl-C send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_folder() -> Path:
    """Where the reference data is looked for; it need not be there."""
    return Path(os.environ.get("PIXELCORE_SHARED") or ROOT.parent / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data; without it, the test is skipped."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip(SHARED_ABSENT)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for the session and all its workers, so that what one test prepares the next one finds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELCORE_CACHE", str(folder / "cache"))
        yield


def time_shares() -> dict[str, int]:
    """Seconds of `make test` that each package may take, from the table in CONTRIBUTING.md."""
    rows = re.findall(r"^\| `?(\w+)`? \| (\d+) s \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    return {package: int(seconds) for package, seconds in rows}


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    kinds = (pytest.TestReport, pytest.CollectReport)
    reports = [report for group in terminalreporter.stats.values() for report in group if isinstance(report, kinds)]
    _write_times(terminalreporter, reports, workers=getattr(config.option, "numprocesses", None) or 1)
    absent = len({report.nodeid for report in reports if report.skipped and SHARED_ABSENT in str(report.longrepr)})
    if shared_folder().is_dir():
        terminalreporter.write_line(f"shared data: {shared_folder()} found, {absent} tests skipped")
    else:
        terminalreporter.write_line(f"shared data absent: {absent} tests skipped (set PIXELCORE_SHARED)")


def _write_times(terminalreporter, reports: list, workers: int) -> None:
    """Seconds of each package beside its share: the durations of its tests, divided by the workers that ran them."""
    shares, tests = time_shares(), Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports:
        if not isinstance(report, pytest.TestReport):
            continue
        folder = Path(report.nodeid.split("::")[0]).parts[1:-1]
        package = folder[0] if folder and folder[0] in shares else "rest"
        seconds[package] += report.duration / workers
        tests[package] += report.when == "call"
    if not tests:
        return
    terminalreporter.section("time")
    for package, share in shares.items():
        if package in tests:
            over = "  over its share" if seconds[package] > share else ""
            row = f"{package:10}{tests[package]:6} tests {seconds[package]:7.1f} s of {share:3} s{over}"
            terminalreporter.write_line(row)
