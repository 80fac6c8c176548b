"""How kernels are started, and what is asked of their arguments before."""

import logging

import pytest
import torch

from kernels import launch as launching
from kernels.arguments import check, check_limit, check_together, rows
from kernels.launch import Entry, Launch, choose, launch, measured, measured_or_none, num_processors, recorded

ENTRY = Entry("glu_forward", "NVIDIA H200", "bfloat16", {"columns": 2048}, Launch({"COLUMNS": 512}, 8, 2))


class Kernel:
    """Stands for a kernel of Triton and keeps how it was started."""

    def __init__(self) -> None:
        self.started: list[tuple] = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.started.append((grid, arguments, options))


@pytest.fixture
def _table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launching, "entries", lambda: (ENTRY,))
    measured.cache_clear()
    yield
    measured.cache_clear()


@pytest.mark.usefixtures("_table")
def test_a_measured_launch_is_found_and_nothing_is_said(caplog: pytest.LogCaptureFixture):
    found = measured("glu_forward", "NVIDIA H200", "bfloat16", (("columns", 2048),))
    assert found == Launch({"COLUMNS": 512}, num_warps=8, num_stages=2)
    assert caplog.messages == []


@pytest.mark.usefixtures("_table")
@pytest.mark.parametrize(
    "op, device, dtype, columns",
    [
        ("glu_backward", "NVIDIA H200", "bfloat16", 2048),
        ("glu_forward", "NVIDIA A100", "bfloat16", 2048),
        ("glu_forward", "NVIDIA H200", "float16", 2048),
        ("glu_forward", "NVIDIA H200", "bfloat16", 1024),
    ],
)
def test_a_launch_that_was_not_measured_is_said_once(op, device, dtype, columns, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert measured(op, device, dtype, (("columns", columns),)) is None
    assert caplog.messages == [
        f"{op} on {device}, {dtype}, columns {columns}: not measured, running with the default launch"
    ]


@pytest.mark.usefixtures("_table")
def test_another_form_is_found_where_it_was_measured_and_nowhere_else():
    x = torch.empty(2, dtype=torch.bfloat16)
    assert measured_or_none("glu_forward", x, columns=1500) is None
    for device, found in ((None, None), ("NVIDIA H200", ENTRY.how), ("NVIDIA A100", None)):
        with recorded(device):
            assert measured_or_none("glu_forward", x, columns=1500) is found


def test_a_grid_of_no_programs_starts_nothing():
    kernel = Kernel()
    launch(kernel, (0, 3), Launch(), torch.empty(0))
    with recorded() as launches:
        launch(kernel, (3, 0), Launch(), torch.empty(0))
    assert kernel.started == []
    assert launches == []


def test_tiles_warps_and_stages_reach_the_kernel():
    kernel, x = Kernel(), torch.empty(2)
    launch(kernel, (4,), Launch({"ROWS": 8}, num_warps=2, num_stages=1), x, 5, F=16)
    assert kernel.started == [((4,), (x, 5), {"F": 16, "ROWS": 8, "num_warps": 2, "num_stages": 1})]


def test_recorded_collects_launches_with_the_default_and_starts_none():
    kernel, x = Kernel(), torch.empty(2)
    default, interpreted = Launch({"ROWS": 8}), Launch({"ROWS": 64})
    assert choose("any", x, default, interpreted, columns=3) is interpreted
    interpreted_processors = num_processors(x.device)
    with recorded() as launches:
        how = choose("any", x, default, interpreted, columns=3)
        launch(kernel, (4,), how, x, 5, F=16)
        assert num_processors(x.device) > interpreted_processors
    assert kernel.started == []
    (only,) = launches
    assert (only.kernel, only.grid, only.arguments, only.constants) == (kernel, (4,), (x, 5), {"F": 16})
    assert only.how is default


def test_arguments_are_refused_by_name_value_and_rule():
    x = torch.empty(3, 4)
    check("x", x, "N F", F=4)
    with pytest.raises(ValueError, match=r"x has the shape \[3, 4\]: it must be \[N, F\], F = 5"):
        check("x", x, "N F", F=5)
    with pytest.raises(ValueError, match=r"x has the shape \[3, 4\]: it must be \[N\]"):
        check("x", x, "N")
    with pytest.raises(ValueError, match="x is float32: it must be one of uint8"):
        check("x", x, "N F", dtypes=(torch.uint8,))
    with pytest.raises(ValueError, match="y is on meta and x on cpu: they must be on one device"):
        check_together(x=x, bias=None, y=x.to("meta"))
    with pytest.raises(ValueError, match="V = 9: this kernel goes to 8"):
        check_limit("V", 9, 8)


def test_rows_are_read_as_they_are_where_neighbours_stand_side_by_side():
    x = torch.empty(3, 8)
    assert rows(x[:, :4]).stride() == (8, 1)
    assert rows(x[:1].expand(3, 8)).stride() == (0, 1)
    assert rows(x.t()).is_contiguous()
    assert rows(torch.ones(()).expand(3, 8)).is_contiguous()
