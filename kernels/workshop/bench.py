"""How fast is a kernel beside everybody else's? The real shapes of every kernel, one case after the other.

Cases come most valuable first: the first shape of every kernel, then the second of every kernel, and so on, so that
whatever time there is, the most is known when it ends. What the book holds already is not measured again; a case that
fails is written down with its reason, and the run goes on. A kernel whose check is red is refused: a wrong kernel has
no speed.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from kernels.workshop.book import Book, clocks
from kernels.workshop.cases import Case
from kernels.workshop.check import findings
from kernels.workshop.composites import COMPOSITES
from kernels.workshop.contest import Setting, Subject, attempt, time_case
from kernels.workshop.peers import peers_of


def subjects(kernels: Mapping[str, Any]) -> dict[str, Subject]:
    """These kernels, and the composites all of whose kernels are among them, by name."""
    found = {
        name: Subject(name, kernel, peers_of(name, kernel.reference), {name: kernel})
        for name, kernel in kernels.items()
    }
    for name, composite in COMPOSITES.items():
        if all(part in kernels for part in composite.PARTS):
            parts = {part: kernels[part] for part in composite.PARTS}
            found[name] = Subject(name, composite, peers_of(name, composite.reference), parts)
    return found


def plan(chosen: Iterable[Subject]) -> list[tuple[Subject, Case]]:
    """All first cases, then all second ones, and so on."""
    ranked = [(rank, subject, case) for subject in chosen for rank, case in enumerate(subject.kernel.TIMED)]
    return [(subject, case) for _, subject, case in sorted(ranked, key=lambda entry: entry[0])]


def run_plan(
    cases: Sequence[tuple[Subject, Case]],
    setting: Setting,
    book: Book,
    budget: float | None,
    say: Callable[[str], None],
) -> bool:
    """Measure what the book does not hold yet; whether all went well. budget: seconds after which no further case
    begins."""
    began, left_out, well = time.monotonic(), [], True
    red: dict[str, str | None] = {}
    for subject, case in cases:
        label = f"{subject.name}, {case.name}"
        if book.has(subject.name, case.name):
            say(f"{label}: in the book already")
            continue
        if budget is not None and time.monotonic() - began >= budget:
            left_out.append({"kernel": subject.name, "case": case.name})
            continue
        started = time.monotonic()
        entry = {"kernel": subject.name, "case": case.name, "sizes": dict(case.sizes)}
        entry |= _measured(subject, case, setting, red)
        entry["seconds"] = round(time.monotonic() - started, 1)
        well &= entry["status"] == "measured"
        book.put(entry)
        say(f"{label}: {entry['status']} in {entry['seconds']} s" + _because(entry))
    book.leave_out(left_out)
    return well


def _measured(subject: Subject, case: Case, setting: Setting, red: dict[str, str | None]) -> dict[str, Any]:
    for name, kernel in subject.parts.items():
        if name not in red:
            found, failed = attempt(lambda kernel=kernel: _first_red(kernel, setting))
            red[name] = failed or found
        if red[name] is not None:
            return {"status": "refused", "reason": f"the check of {name} is red: {red[name]}"}
    before = clocks(setting.device)
    found, failed = attempt(lambda: time_case(subject, case, setting))
    torch.compiler.reset()  # else the next shape would be compiled for sizes that vary
    if setting.device.type == "cuda":  # pragma: gpu
        gc.collect()
        torch.cuda.empty_cache()
    entry = {"status": "failed", "reason": failed} if found is None else found
    return entry | {"clocks": {"before": before, "after": clocks(setting.device)}}


def _first_red(kernel: Any, setting: Setting) -> str | None:
    """The first broken budget of the small cases, in one layout: others are `check`'s business and would be compiled
    anew. The real shape is compared when it is timed."""
    for case in kernel.CASES:
        for finding in findings(kernel, case, setting.dtype, setting.device, variants=False):
            if not finding.passed:
                return str(finding)
    return None


def _because(entry: Mapping[str, Any]) -> str:
    return f": {entry['reason']}" if "reason" in entry else ""
