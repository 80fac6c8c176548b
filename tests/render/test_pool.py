"""The pool of worker processes: order, bounds, failures, and that nothing stays behind.

The renderer is a stand-in: what a pool does is the same for any. Processes that are interrupted or killed together with
their parent run in a script of their own; that all of them are gone is seen by the end of the output that they share.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from render.errors import RenderError
from render.pool import RenderPool, safe_start_method
from tests.conftest import ROOT

pytestmark = [
    # since Python 3.12: a thread could hold a lock; those of pytest-xdist hold none that a worker needs
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(os.name != "posix", reason="POSIX pipes"),
]

both_ways = pytest.mark.parametrize("start_method", ["fork", "spawn"])
any_number = pytest.mark.parametrize("workers", [0, 2])


class Shouting:
    """Stands for a renderer: has a state, can be pickled, refuses a text."""

    def __init__(self, mark: str = "!"):
        self.mark = mark

    def __call__(self, text: str) -> str:
        if text == "refused":
            raise RenderError("no glyph")
        if text == "broken":
            return text[len(text)]
        return text.upper() + self.mark


def after_a_while(renderer: Shouting, text: str) -> str:
    time.sleep(random.Random(text).choice([0, 0, 0, 0.002, 0.01]))
    return renderer(text)


def pixels(renderer: Shouting, width: int) -> dict[str, np.ndarray]:
    columns = np.arange(width * 16, dtype=np.uint8).reshape(width, 16)
    frozen = columns.copy()
    frozen.flags.writeable = False
    return {"rows": columns.T.copy(), "columns": columns.T, "frozen": frozen, "few": columns[:2], "none": columns[:0]}


def unpicklable(renderer: Shouting, text: str) -> object:
    return (lambda: text) if text == "lambda" else text


def deadly(renderer: Shouting, text: str) -> bytes:
    if text == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "exit":
        os._exit(3)
    return os.urandom(1 << 18)


def process_id(renderer: Shouting, text: str) -> int:
    return os.getpid()


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    assert multiprocessing.active_children() == []


@both_ways
def test_results_come_in_the_order_of_the_texts_however_long_each_takes(start_method: str):
    with RenderPool(Shouting("?"), 3, function=after_a_while, batch=3, start_method=start_method) as pool:
        assert list(pool.map(texts(301))) == [f"TEXT {number}?" for number in range(301)]
        assert list(pool.map(iter(texts(2)))) == ["TEXT 0?", "TEXT 1?"]
        assert list(pool.map([])) == []


@any_number
def test_the_renderer_itself_is_the_default_function(workers: int):
    with RenderPool(Shouting(), workers, batch=1) as pool:
        assert list(pool.map(texts(5))) == [Shouting()(text) for text in texts(5)]


@both_ways
def test_arrays_arrive_as_they_were(start_method: str):
    widths = [4000, 1, 16 * 529, 0, 256]
    with RenderPool(Shouting(), 2, function=pixels, batch=2, start_method=start_method) as pool:
        for width, got in zip(widths, pool.map(widths), strict=True):
            for name, expected in pixels(Shouting(), width).items():
                np.testing.assert_array_equal(got[name], expected)
                assert got[name].flags.writeable == expected.flags.writeable, name
                assert got[name].flags.c_contiguous == expected.flags.c_contiguous, name


def test_texts_are_shared_out():
    with RenderPool(Shouting(), 2, function=process_id, batch=1, queue=1) as pool:
        ids = list(pool.map(texts(20)))
    assert len(set(ids)) == 2 and os.getpid() not in ids


@pytest.mark.parametrize(("workers", "queue", "batch"), [(1, 1, 1), (2, 3, 4), (0, 3, 4)])
def test_only_so_many_texts_of_an_endless_iterable_are_taken_ahead(workers: int, queue: int, batch: int):
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield str(taken)

    ahead = []
    with RenderPool(Shouting(), workers, queue=queue, batch=batch) as pool:
        for given, _ in enumerate(itertools.islice(pool.map(endless()), 50)):
            ahead.append(taken - given)
    assert max(ahead) == max(workers * queue * batch, 1)


@any_number
def test_a_refused_text_is_named_after_the_results_before_it(workers: int):
    with RenderPool(Shouting(), workers, batch=4) as pool:
        got = []
        with pytest.raises(RenderError, match=r"^document 17: no glyph$"):
            got.extend(pool.map([*texts(17), "refused", *texts(90)]))  # extends by each as it comes
        assert got == [f"TEXT {number}!" for number in range(17)]
        assert list(pool.map(["after"])) == ["AFTER!"]


@any_number
def test_any_other_failure_is_a_runtime_error_with_the_line_where_it_happened(workers: int):
    with RenderPool(Shouting(), workers, batch=4) as pool:
        with pytest.raises(RuntimeError, match=r"^document 5: IndexError: string index out of range\b") as caught:
            list(pool.map([*texts(5), "broken", "refused"]))
    told = "".join(getattr(caught.value, "__notes__", [])) if workers else str(caught.value.__cause__)
    assert ("return text[len(text)]" if workers else "string index out of range") in told


def test_a_result_that_cannot_be_pickled_is_named():
    with RenderPool(Shouting(), 2, function=unpicklable) as pool:
        results = pool.map(["fine", "lambda"])
        assert next(results) == "fine"
        with pytest.raises(RuntimeError, match=r"^document 1: \w+: .*local object"):
            next(results)


@any_number
def test_what_the_iterable_raises_comes_through(workers: int):
    def failing() -> Iterator[str]:
        yield from texts(9)
        raise LookupError("no more books")

    with RenderPool(Shouting(), workers, batch=2) as pool:
        with pytest.raises(LookupError, match="no more books"):
            list(pool.map(failing()))
        assert list(pool.map(["after"])) == ["AFTER!"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SIGKILL", r"was killed by signal 9 \(Killed\), which the system sends when memory runs out"),
        ("exit", "ended with exit code 3"),
    ],
)
def test_a_worker_that_dies_is_named_with_its_documents(text: str, told: str):
    with RenderPool(Shouting(), 2, function=deadly, batch=4) as pool:
        start = time.monotonic()
        with pytest.raises(
            RuntimeError, match=rf"^render worker \d \(process \d+\) {told}; documents in hand:.* 8-10$"
        ):
            list(pool.map(texts(9) + [text, "one more"]))
        assert time.monotonic() - start < 2
        with pytest.raises(RuntimeError, match="this RenderPool is closed"):
            list(pool.map(["after"]))


def test_a_worker_killed_while_it_writes_or_waits_is_noticed():
    with RenderPool(Shouting(), 1, function=deadly, batch=16) as pool:
        results = pool.map(itertools.cycle(["text"]))
        next(results)
        [worker] = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(RuntimeError, match="was killed by signal 9"):
            list(results)
    with RenderPool(Shouting(), 1) as pool:
        [worker] = multiprocessing.active_children()
        worker.kill()
        worker.join()
        with pytest.raises(RuntimeError, match=r"was killed by signal 9 .* in hand: 0$"):
            list(pool.map(["text"]))


@both_ways
def test_a_map_left_early_leaves_nothing_to_the_next(start_method: str):
    with RenderPool(Shouting(), 2, batch=2, start_method=start_method) as pool:
        results = pool.map(f"first {number}" for number in itertools.count())
        assert next(results) == "FIRST 0!"
        with pytest.raises(RuntimeError, match="still busy with another map"):
            next(pool.map(["second"]))
        results.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert list(pool.map(texts(30))) == [f"TEXT {number}!" for number in range(30)]
        for _ in pool.map(itertools.cycle(["third"])):
            break


@any_number
def test_a_closed_pool_says_so(workers: int):
    pool = RenderPool(Shouting(), workers)
    results = pool.map(itertools.cycle(["text"]))
    next(results)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="this RenderPool is closed"):
        list(results)


def test_messages_larger_than_the_pipes_in_both_directions_do_not_wait_for_each_other():
    long = [str(number) * 300_000 for number in range(10, 34)]
    with RenderPool(Shouting(""), 2, batch=4) as pool:
        assert list(pool.map(long)) == long


def test_workers_that_write_large_results_to_nobody_are_ended():
    start = time.monotonic()
    with RenderPool(Shouting(), 2, function=deadly) as pool:
        next(pool.map(itertools.cycle(["text"])))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers = -1 must be at least 0"),
        ({"queue": 0}, "queue = 0 must be at least 1"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
        ({"start_method": "thread"}, 'start_method = \'thread\' must be "fork", "spawn" or None'),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        RenderPool(Shouting(), **options)


def test_forks_only_where_no_other_thread_can_hold_a_lock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert safe_start_method() == "fork"
    monkeypatch.setitem(sys.modules, "torch", threading)
    assert safe_start_method() == "spawn"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert safe_start_method() == "spawn"


# Draws for ever, and says when it has begun.
SCRIPT = """
import itertools, signal, sys
from render.pool import RenderPool

def longer(renderer, text):
    return sum(range(20_000))

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with RenderPool(None, 2, function=longer, start_method=sys.argv[1]) as pool:
        for number, _ in enumerate(pool.map(itertools.repeat("text"))):
            if number == 0:
                print("drawing", flush=True)

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@pytest.fixture
def drawing(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "draws.py"
    script.write_text(SCRIPT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), request.param],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "drawing\n"
        yield process


@pytest.mark.parametrize("drawing", ["fork", "spawn"], indirect=True)
def test_ctrl_c_ends_all_without_a_traceback(drawing: subprocess.Popen[str]):
    os.killpg(drawing.pid, signal.SIGINT)  # as a terminal does
    assert drawing.communicate(timeout=5) == ("", "interrupted\n")
    assert drawing.returncode == 1


@pytest.mark.parametrize("drawing", ["fork", "spawn"], indirect=True)
def test_workers_outlive_a_killed_parent_only_for_a_moment(drawing: subprocess.Popen[str]):
    drawing.kill()
    output, errors = drawing.communicate(timeout=5)
    assert output == ""
    assert errors == "" or "resource_tracker" in errors
