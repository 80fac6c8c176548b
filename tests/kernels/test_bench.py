"""The bench's machinery on a CPU: order, book, budget, refusals, verdicts; and that peers compute what we compute.

No speed is tested here: `HostClock` stands in for the GPU's events.
"""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kernels.cli import main
from kernels.registry import KERNELS
from kernels.workshop import (
    bench,
    bench_report,
    book,
    ceilings,
    command_bench,
    contest,
    first,
    peer_calls,
    peers,
    timing,
)
from kernels.workshop.cases import Case, Cost, Draw
from kernels.workshop.composites import COMPOSITES
from kernels.workshop.contest import Arena, Contestant, Setting, Subject, distances
from kernels.workshop.peers import PEERS, Peer
from kernels.workshop.targets import Target
from pixelcore import ops
from pixelcore.errors import UserError

CPU = torch.device("cpu")
SUBJECTS = bench.subjects(KERNELS)
IDENTITY = book.identity(torch.float32, CPU)

# Small shapes, one for each way that a peer takes.
TINY = {
    "add_norm": (
        Case("rms", {"N": 5, "D": 16, "delta": True}),
        Case("layer norm", {"N": 5, "D": 16, "delta": True, "bias": True, "delta_bias": True}),
        Case("no branch", {"N": 5, "D": 16}),
    ),
    "split_rope": tuple(
        Case(rotation, {"N": 5, "H": 4, "G": 2, "K": 8, "rotation": rotation, "length": 3})
        for rotation in ("half", "interleaved")
    ),
    "embed_strips": (Case("strips", {"M": 2, "L": 7, "kept": 4, "D": 8, "A": 16}),),
    "head_cross_entropy": (Case("head", {"N": 5, "D": 8, "V": 11}),),
    "clip_adamw": (Case("clipped", {"N": 6, "D": 8, "T": 2, "shadows": True, "decay": 0.1}),),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    """One round of each pass, and nothing is compiled: the compiler takes longer than all tests."""
    for name in ("_FEWEST", "_MOST", "_WARM_UP"):
        monkeypatch.setattr(timing, name, 1)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)


def setting(dtype: torch.dtype = torch.float32) -> Setting:
    return Setting(dtype, CPU, timing.HostClock(), {"copy_gb_s": 10.0, "product_tflop_s": 0.1}, seconds=0.0)


def doubling(name: str = "double", fused=None, num_cases: int = 2, **others: Peer) -> Subject:
    """A kernel that multiplies by two, in plain torch."""
    kernel = SimpleNamespace(
        __name__=name,
        reference=lambda x_N: x_N * 2,
        fused=fused or (lambda x_N: x_N + x_N),
        CASES=(Case("small", {"N": 3}),),
        TIMED=tuple(Case(f"{name} {index}", {"N": 4 + index}) for index in range(num_cases)),
        arguments=lambda case, draw: {"x_N": draw.normal(case["N"], grad=True)},
        cost=lambda case, size: Cost(2 * size * case["N"], size * case["N"], case["N"], 0),
    )
    return Subject(name, kernel, tuple(others.values()), {name: kernel})


def run(subjects, a_book: book.Book | None = None, budget: float | None = None) -> tuple[bool, dict, list[str]]:
    a_book, said = a_book or new_book(), []
    well = bench.run_plan(bench.plan(subjects), setting(), a_book, budget, said.append)
    return well, a_book.record, said


def new_book(path=None) -> book.Book:
    return book.Book(path, IDENTITY)


# ------------------------------------------------------------------ peers


def test_the_table_of_peers_names_kernels_and_a_kernel_outside_it_meets_its_compiled_reference():
    assert set(PEERS) <= set(KERNELS) | set(COMPOSITES)
    (compiled,) = peers.peers_of("no_such_kernel", lambda x_N: x_N * 2)
    assert compiled.name == "torch.compile"
    call = compiled.make({"x_N": torch.ones(())})
    assert callable(call)
    assert float(call()) == 2.0


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}, {case.name}")
        for name, subject in SUBJECTS.items()
        if name in PEERS and "attention" not in name  # of which see test_attention_peers.py
        for case in TINY.get(name) or subject.kernel.CASES[1:2]
    ],
)
def test_a_peer_computes_what_the_reference_computes(name: str, case: Case):
    kernel = SUBJECTS[name].kernel
    dtype = torch.float32 if name in contest.IN_PLACE else torch.float64  # the optimizer's state is fp32
    given = kernel.arguments(case, Draw(dtype, CPU, torch.Generator().manual_seed(3)))
    if given.get("drop") is not None and name != "dropout":
        given["drop"] = None
    arena = Arena(given, contest.IN_PLACE.get(name, ()), dtype)

    def results(make) -> list[Tensor]:
        contestant = Contestant("", "", make, arena)
        contestant.prepare()
        found = contestant.results()
        arena.dirty.update(arena.written)
        arena.clean()
        return found

    wanted = results(lambda: lambda: kernel.reference(**given))
    for peer in SUBJECTS[name].peers:
        if peer.floor or (peer.random and given.get("drop") is not None) or peers.missing(peer):
            continue
        errors = distances(results(lambda peer=peer: peer.make(given)), wanted)
        assert max(errors, default=0.0) < 1e-6, (peer.name, errors)


def test_a_peer_with_bits_of_its_own_drops_and_scales_alike():
    x_NF = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    drop = Draw(torch.float32, CPU, torch.Generator()).drop([64], 0.25)
    torch.manual_seed(0)
    y_NF = peer_calls.dropout(x_NF, drop)
    kept = y_NF != 0
    assert torch.allclose(y_NF[kept], x_NF[kept] / 0.75)
    assert 0.7 < kept.float().mean() < 0.8


def test_a_mean_is_left_to_libraries_that_give_it_in_one_pass():
    targets_N = torch.tensor([1, -100, 2])
    assert peer_calls.is_mean({"targets_N": targets_N, "scale": torch.tensor(0.5)})
    assert not peer_calls.is_mean({"targets_N": targets_N, "scale": torch.tensor(0.25)})


def test_an_absent_library_is_named_with_its_reason_and_the_verdict_says_so():
    absent = Peer("Other", lambda given: lambda: None, "no_such_library")
    without = Peer("Newer", lambda given: lambda: None, "torch.nn.functional:no_such_function")
    well, record, _ = run([doubling(absent=absent, without=without, num_cases=1)])
    found = {x["name"]: x for x in record["cases"][0]["contestants"]}
    assert well
    assert (found["Other"]["status"], found["Newer"]["status"]) == ("missing", "missing")
    page = bench_report.report(record)
    assert "no_such_library cannot be imported: No module named 'no_such_library'" in page
    assert "torch.nn.functional has no no_such_function in this version" in page
    assert "without Other, Newer" in page


def test_a_peer_that_fails_or_computes_something_else_is_reported_and_not_timed():
    def fails(given):
        raise RuntimeError("not at this shape\nlong text")

    other = Peer("thrice", lambda given: lambda: given["x_N"] * 3)
    _, record, _ = run([doubling(a=Peer("fails", fails), b=other, num_cases=1)])
    found = {x["name"]: x for x in record["cases"][0]["contestants"]}
    assert found["fails"] == {
        "name": "fails",
        "role": "peer",
        "status": "failed",
        "reason": "RuntimeError: not at this shape",
    }
    assert found["thrice"]["status"] == "differs"
    assert "it computes something else: result 0 is 5.0e-01 off" in found["thrice"]["reason"]
    assert "forward" not in found["thrice"]
    assert "both" in found["eager"]


def test_a_peer_without_a_backward_pass_is_timed_forward_and_compared_in_its_results():
    forward = Peer("half", lambda given: lambda: given["x_N"].detach() * 2, forward_only=True)
    _, record, _ = run([doubling(a=forward, num_cases=1)])
    ours, found = record["cases"][0]["contestants"][1:]
    assert found["status"] == "timed"
    assert [direction for direction in contest.DIRECTIONS if direction in found] == ["forward"]
    assert list(found["errors"]) == ["output 0"]
    assert list(ours["errors"]) == ["output 0", "gradient of x_N"]
    assert "half" in bench_report.report(record)


def test_what_a_peer_overwrites_is_restored_for_the_next():
    seen: list[float] = []

    def overwriting(given):
        def call() -> Tensor:
            result = given["x_N"] * 2
            given["x_N"].data.zero_()
            return result

        return call

    def watched(x_N: Tensor) -> Tensor:
        seen.append(float(x_N.detach().abs().min()))
        return x_N + x_N

    well, record, _ = run([doubling(fused=watched, a=Peer("rude", overwriting, overwrites=("x_N",)), num_cases=1)])
    assert well
    assert record["cases"][0]["contestants"][2]["status"] == "timed"
    assert min(seen) > 0


def test_gradients_of_an_update_in_place_are_the_same_before_every_call(monkeypatch: pytest.MonkeyPatch):
    clip, seen = COMPOSITES["clip_adamw"], []

    def watched(gradients: list[Tensor], **given) -> None:
        seen.append(float(gradients[0].double().sum()))
        gradients[0].mul_(0.5)

    monkeypatch.setattr(type(clip), "reference", staticmethod(watched))
    monkeypatch.setattr(type(clip), "fused", staticmethod(watched))
    subject = Subject("clip_adamw", clip, (), {})
    contest.time_case(subject, TINY["clip_adamw"][0], setting())
    assert len(seen) > 4
    assert len(set(seen)) == 1


# ------------------------------------------------------------------ order, book, budget, refusals


def test_first_shapes_of_all_kernels_come_before_second_ones():
    order = bench.plan([doubling("a", num_cases=3), doubling("b", num_cases=1), doubling("c")])
    assert [case.name for _, case in order] == ["a 0", "b 0", "c 0", "a 1", "c 1", "a 2"]


def test_a_case_is_written_down_with_all_that_it_means(tmp_path):
    small = replace(SUBJECTS["glu"], kernel=_with(KERNELS["glu"], TIMED=[Case("tiny", {"N": 3, "F": 8})], CASES=()))
    path = tmp_path / "books" / "glu.json"
    well, _, said = run([small], new_book(path))
    record = json.loads(path.read_text(encoding="utf-8"))
    assert well
    assert said[0].startswith("glu, tiny: measured in ")
    assert set(record) == {*("format", "commit", "sources", "versions", "device", "dtype", "runs", "cases", "left_out")}
    assert set(record["versions"]) == {"python", "torch", "triton", "cuda", "driver"}
    (case,) = record["cases"]
    assert case["bytes"] == {"forward": 3 * 24 * 4, "backward": 5 * 24 * 4, "both": 8 * 24 * 4}
    assert case["clocks"] == {"before": None, "after": None}
    assert [x["name"] for x in case["contestants"]] == ["eager", "ours", "torch.compile", "Liger-Kernel"]
    ours = case["contestants"][1]
    assert ours["error"] < 1e-6
    for direction in contest.DIRECTIONS:
        found = ours[direction]
        assert found["p20_ms"] <= found["median_ms"] <= found["p80_ms"]
        assert len(found["medians_ms"]) == 2
        assert math.isclose(found["gb_s"], case["bytes"][direction] / found["median_ms"] / 1e6)
        assert math.isclose(found["share_of_copy"], found["gb_s"] / 10)
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("*.tmp"))


def _with(module, **changed):
    names = ("__name__", "reference", "fused", "CASES", "TIMED", "arguments", "cost")
    return SimpleNamespace(**{name: getattr(module, name) for name in names} | changed)


def test_a_later_run_keeps_what_is_in_the_book_and_goes_on(tmp_path):
    path = tmp_path / "book.json"
    run([doubling(num_cases=1)], new_book(path))
    well, record, said = run([doubling(num_cases=2)], new_book(path))
    assert well
    assert said[0] == "double, double 0: in the book already"
    assert said[1].startswith("double, double 1: measured")
    assert (len(record["cases"]), len(record["runs"])) == (2, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"format": 1', "it is no JSON"),
        ("[]", "its format is null"),
        ('{"format": 1, "commit": "other"}', 'its commit is "other"'),
    ],
)
def test_a_book_of_other_circumstances_is_not_continued(tmp_path, text: str, expected: str):
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        new_book(path)
    assert path.read_text() == text


def test_no_case_begins_when_the_budget_is_spent_and_they_are_named():
    well, record, _ = run([doubling(num_cases=2)], budget=0.0)
    assert well
    assert record["left_out"] == [{"kernel": "double", "case": f"double {index}"} for index in range(2)]
    assert "left out, the budget was spent: double, double 0; double, double 1" in bench_report.report(record)


def test_a_kernel_whose_check_is_red_is_refused_and_the_run_goes_on():
    wrong = doubling("wrong", fused=lambda x_N: x_N * 2.1, num_cases=1)
    well, record, _ = run([wrong, doubling(num_cases=1)])
    refused, measured = record["cases"]
    assert not well
    assert refused["status"] == "refused"
    assert refused["reason"].startswith("the check of wrong is red: wrong, small, float32, output 0: error")
    assert measured["status"] == "measured"
    page = bench_report.report(record)
    assert "wrong, wrong 0: refused: the check of wrong is red" in page
    assert "unreported" in page


@pytest.mark.parametrize(
    ("fused", "reason"),
    [
        (lambda x_N: x_N * 2 if len(x_N) == 3 else x_N[:2] * 2, "its results have the shapes"),
        (lambda x_N: x_N * (2 if len(x_N) == 3 else 3), "it computes something else"),
        (lambda x_N: [x_N * 2][len(x_N) - 3], "IndexError: list index out of range"),
    ],
)
def test_a_kernel_that_fails_at_a_real_shape_fails_the_case_with_one_line(fused, reason: str):
    well, record, said = run([doubling(fused=fused, num_cases=1), doubling("right", num_cases=1)])
    assert not well
    assert [x["status"] for x in record["cases"]] == ["failed", "measured"]
    assert reason in record["cases"][0]["reason"]
    assert all("\n" not in line for line in said)


# ------------------------------------------------------------------ clock


def test_versions_take_turns_in_each_of_two_passes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "_FEWEST", 3)
    monkeypatch.setattr(timing, "_MOST", 3)
    order: list[str] = []
    steps = [
        timing.Step(lambda name=name: order.append(name.upper()), lambda _, name=name: order.append(name))
        for name in "ab"
    ]
    found = timing.measure(steps, timing.HostClock(), 1.0)
    assert "".join(order) == "AaBb" + "AaBb" * 6
    assert [times.samples for times in found] == [6, 6]


def test_a_summary_holds_the_median_of_each_pass_and_their_difference():
    times = timing._summary([[(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)], [(2.0, 7.0), (2.2, 7.0), (9.0, 7.0)]])
    assert times.medians_ms == (2.0, 2.2)
    assert math.isclose(times.noise, 0.1)
    assert math.isclose(times.median_ms, 2.1)
    assert times.host_ms == 6.0


# ------------------------------------------------------------------ verdicts and targets


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.10, 1.10], "ahead"),
        ([1.5, 0.97], "ahead"),
        ([1.5, 0.96], "parity"),
        ([1.09], "parity"),
        ([0.97], "parity"),
        ([1.2, 0.7], "behind"),
    ],
)
def test_a_verdict_follows_from_the_mean_and_the_worst_shape(ratios: list[float], word: str):
    assert bench_report.verdict_word(ratios) == word


def made_book(kernel: str, shapes: list[dict[str, dict[str, float]]], **roles: str) -> dict:
    """A book in which contestants took so many milliseconds, by shape, name and direction."""
    cases = []
    for index, shape in enumerate(shapes):
        contestants = [
            {"name": name, "role": roles.get(name.split(",")[0].split(" ")[0], "peer"), "status": "timed"}
            | {direction: {"median_ms": ms, "share_of_copy": 1 / ms} for direction, ms in directions.items()}
            for name, directions in ({"ours": shape["ours"]} | shape).items()
        ]
        cases.append({"kernel": kernel, "case": str(index), "status": "measured", "contestants": contestants})
    return {"cases": cases, "left_out": []}


def test_a_verdict_takes_the_best_peer_of_each_shape_and_no_floor():
    times = [
        {"ours": {"both": 1.0}, "eager": {"both": 4.0}, "A": {"both": 2.0}, "floor": {"both": 0.5}},
        {"ours": {"both": 1.0}, "eager": {"both": 0.98}, "A": {"both": 3.0}, "floor": {"both": 0.5}},
    ]
    made = made_book("glu", times, ours="ours", eager="eager", floor="floor")
    (verdict,) = bench_report.verdicts(made)
    assert (verdict.word, verdict.worst, verdict.shapes) == ("ahead", 0.98, 2)
    assert verdict.mean is not None
    assert math.isclose(verdict.mean, math.sqrt(2.0 * 0.98))
    (failed,) = bench_report.verdicts({**made, "cases": [*made["cases"], {"kernel": "glu", "status": "failed"}]})
    assert failed.word == "unreported"


def test_a_target_is_kept_at_its_worst_shape_or_unmeasured():
    times = [
        {"ours": {"forward": 1.0, "backward": 2.0}, "Liger-Kernel": {"backward": 3.2}},
        {"ours": {"forward": 1.25, "backward": 2.0}, "Liger-Kernel": {"backward": 2.8}},
    ]
    made = made_book("add_norm", times, ours="ours")
    lines = {target.what: target.line(made) for target in bench_report.TARGETS}
    assert lines["add_norm, forward, of the copy's bandwidth"].endswith(">= 90%  80% (worst of 2) MISSED")
    assert lines["add_norm, backward, over Liger-Kernel"].endswith(">= 1.50x  1.40x (worst of 2) MISSED")
    assert lines["add_norm, backward, over torch.compile"].endswith(">= 1.50x  unmeasured")
    head = made_book("head_cross_entropy", [{"ours": {"both": 1.15}, "its three products": {"both": 1.0}}], ours="ours")
    line = next(target.line(head) for target in bench_report.TARGETS if target.most is not None)
    assert line.endswith("<= 1.20x  1.15x (one shape) kept")


def test_a_target_can_be_about_some_shapes_and_takes_the_best_of_its_peers():
    times = [
        {"ours": {"both": 1.0}, "A": {"both": 1.3}, "B": {"both": 1.2}},
        {"ours": {"both": 1.0}, "A": {"both": 0.5}, "B": {"both": 0.5}},
        {"ours": {"both": 1.0}, "A": {"both": 1.4}},
    ]
    made = made_book("glu", times, ours="ours")
    for entry, num_bytes in zip(made["cases"], (30, 10, 20), strict=True):
        entry["bytes"] = {"both": num_bytes}
    target = Target("of two", "glu", "both", ("A", "B"), 1.1, cases=("0", "2"), moonshot=1.3)
    assert target.line(made).endswith(">= 1.10x  1.20x (worst of 2) kept, moonshot 1.30x not reached")
    assert Target("large", "glu", "both", ("A",), 1.1, least_bytes=20).values(made) == [1.3, 1.4]


def test_targets_name_kernels_peers_and_shapes_that_exist():
    known = {name: {"eager", "ours", *(peer.name for peer in table)} for name, table in PEERS.items()}
    for target in bench_report.TARGETS:
        assert set(target.peers) <= known[target.kernel]
        assert target.direction in contest.DIRECTIONS
        assert (target.least is None) != (target.most is None)
        if target.kernel in SUBJECTS:
            assert set(target.cases) <= {case.name for case in SUBJECTS[target.kernel].kernel.TIMED}


def test_the_picture_has_a_bar_for_every_peer(tmp_path):
    _, record, _ = run([doubling(num_cases=1)])
    bench_report.plot(record, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------ the first look


def test_a_probe_that_fails_is_written_down_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path):
    def breaks(device, clock):
        raise RuntimeError("no such unit")

    monkeypatch.setattr(first, "PROBES", {"bad": breaks, "good": lambda device, clock: {"rate": 2.0}})
    a_book, said = new_book(tmp_path / "first.json"), []
    assert not first.first(CPU, timing.HostClock(), a_book, None, said.append)
    assert a_book.record["first"] == {"bad": {"failed": "RuntimeError: no such unit"}, "good": {"rate": 2.0}}
    assert "rate 2" in bench_report.report(a_book.record)
    assert len(said) == 2
    said.clear()
    first.first(CPU, timing.HostClock(), new_book(tmp_path / "first.json"), None, said.append)
    assert len(said) == 1  # only what failed is tried again


def test_probes_measure_something_on_any_device(monkeypatch: pytest.MonkeyPatch):
    clock = timing.HostClock()
    assert ceilings.ceilings(CPU, clock, 1 << 16, 16).keys() == {
        *("copy_gb_s", "read_gb_s", "write_gb_s", "product_tflop_s")
    }
    assert ceilings.products(CPU, clock, {"small": (4, 8, 2)})["small"].keys() == {
        *("y_tflop_s", "dx_tflop_s", "dw_tflop_s")
    }
    assert ceilings.exponentials(CPU, clock, programs=1, turns=2)["exp_per_s"] > 0
    assert ceilings.sustained(CPU, 0.0, 16)["product_tflop_s"] > 0
    assert first.tools(CPU, clock)["linear_cross_entropy"] in (True, False)
    assert all(value > 0 for value in first.calls(CPU, clock).values())
    found = first.attention(CPU, clock, {"small": (1, 2, 1, 4, 8, True)})
    assert found["small, plain, math"]["forward_ms"] > 0
    monkeypatch.setattr(first, "KERNELS", {"attention": SimpleNamespace(fused=ops.softmax_attention)})
    monkeypatch.setattr(first, "FLOORS_MS", {"small": (1e-3, 2e-3)})
    ours = first.our_attention(CPU, clock, {"small": (2, 2, 1, 4, 8, True)})
    assert ours["small, ours"]["backward_floors"] == ours["small, ours"]["backward_ms"] / 2e-3
    assert "failed" in ours["small, FlashAttention-2, packed"]  # on a CPU
    assert all("\n" not in str(result) for result in found.values())


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "bench measures a GPU, and there is no CUDA device"),
        (("--dtype", "int8"), "--dtype int8: unknown; choose bfloat16, float16, float32"),
        (("--budget", "0"), "--budget 0: seconds, so it must be positive"),
        (("--first", "glu"), "--first measures the machine"),
        (("--plot", "a.jpg"), "--plot a.jpg: the picture is a PNG"),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_2(flags, expected, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {expected}")
    assert message.count("\n") == 1


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(bench_report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'pixelcore\\[plot\\]'"):
        bench_report.check_plot(tmp_path / "a.png")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="glue: no such kernel; did you mean 'glu'"):
        command_bench._chosen(["glue"])
