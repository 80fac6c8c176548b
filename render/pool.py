"""Many texts drawn by several processes, in order.

Drawing is Python and small C calls, so it scales with processes, not threads. What is hard is not the drawing but
everything around it: results must come in the order of the texts, a fast producer must not fill the memory, a failure
must name its document, and a process that is killed must neither hang the others nor stay behind.

    with RenderPool(renderer, workers=2) as pool:
        for strip in pool.map(texts):
            ...

Each worker has two pipes of its own, one for texts and one for results. With a queue that all share, a worker that is
killed while it holds the lock of the queue would stop everybody; here it breaks its own pipes, and the end of a pipe
is how each side learns that the other is gone. A thread of the worker writes the results and does nothing else, so that
the worker draws on while nobody reads, and always comes back to read: two sides that wait for each other to read
cannot happen. The parent has no thread, so it may fork others as it likes.

How far the workers run ahead is bounded by counting: `workers * queue * batch` texts have been taken from the iterable
at most, and not yet been passed on as results.

Strips are megabytes per message, and plain pickling copies them five times on their way. So large arrays travel
beside their pickle (protocol 5) and are read into the memory that they stay in: half the time of the parent's side,
which is what limits the number of useful workers. Shared memory would halve it once more, but a block cannot be used
again before the last strip in it is gone, or is copied once more. Cheaper still is to send less: `function` runs in
the worker and may return a mask, packed bits or a number in place of a strip.

Processes are forked where that is safe, which hands them the caches of the renderer for nothing: draw some text like
yours before the pool is made. It is safe with one thread only, as a fork copies the locks that other threads hold and
not the threads. Where there are threads, or torch, which starts them unseen, workers are spawned: fresh interpreters
that get the renderer as a pickle and import your main module, which needs the usual `if __name__ == "__main__"`.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import queue as queues
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple, Self

import numpy as np

from render.errors import RenderError

if sys.platform == "linux":
    from fcntl import F_SETPIPE_SZ, fcntl

PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for; the usual 64 KB changes hands too often
BESIDE = 4096  # bytes from which on an array travels beside its pickle
PATIENCE_S = 5.0  # for a worker that was asked to end


def draw(renderer: Callable[[Any], Any], text: Any) -> Any:
    """What a pool does with a text unless it is given another function."""
    return renderer(text)


class RenderPool:
    """Worker processes that draw texts, or do with them what `function(renderer, text)` does.

    renderer: anything that can be pickled, usually a Renderer. workers: processes; 0 = none, the caller's process draws
    (for debugging). function: a function of a module, so that it can be pickled; what stands for a text may then be
    anything, such as an index and a text. batch: texts per message. queue: messages per worker that may be under way.
    start_method: "fork" or "spawn"; None = fork where that is safe. Close it, best by `with`.
    """

    def __init__(
        self,
        renderer: Any,
        workers: int = 2,
        *,
        function: Callable[[Any, Any], Any] = draw,
        queue: int = 4,
        batch: int = 64,
        start_method: str | None = None,
    ):
        for name, value, least in (("workers", workers, 0), ("queue", queue, 1), ("batch", batch, 1)):
            if value < least:
                raise ValueError(f"{name} = {value} must be at least {least}")
        if start_method not in (None, "fork", "spawn"):
            raise ValueError(f'start_method = {start_method!r} must be "fork", "spawn" or None')
        if workers and os.name != "posix":
            raise RenderError(f"workers = {workers} needs the pipes of Linux or macOS: workers = 0 draws without them")
        self.start_method = start_method or safe_start_method()
        self._renderer, self._function = renderer, function
        self._batch, self._window = batch, workers * queue
        self._in_process = workers == 0
        self._closed = self._mapping = False
        self._next_number = 0  # of a batch; never used twice, so that what an abandoned map left behind is recognised
        self._workers: list[_Worker] = []
        if workers and self.start_method == "spawn":
            resource_tracker.ensure_running()  # left to the first start, it would let Ctrl-C through to the others
        with contextlib.ExitStack() as unless_all_started:
            unless_all_started.callback(self.close)
            with _interrupts_wait():
                for index in range(workers):
                    self._workers.append(_Worker(index, self.start_method, renderer, function, self._workers))
            unless_all_started.pop_all()

    def map(self, texts: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of every text, in the order of the texts, which may be endless. One map at a time.

        A text that cannot be drawn raises RenderError, any other failure in a worker RuntimeError with the worker's
        traceback as a note; both name the document, counted from 0, and come after the results of those before it. The
        pool can be used again, as it can after a map that was not read to its end. A worker that ends unasked raises
        RuntimeError at once and closes the pool. What `texts` itself raises comes through at once.
        """
        self._check_open()
        if self._mapping:
            raise RuntimeError("this RenderPool is still busy with another map: read it to its end or close it")
        self._mapping = True
        try:
            yield from self._map_here(texts) if self._in_process else self._map(iter(texts))
        except KeyboardInterrupt:
            self.close()
            raise
        finally:
            self._mapping = False

    def close(self) -> None:
        """End the workers, whatever they are doing. A second call does nothing."""
        self._closed = True
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this RenderPool is closed: make a new one")

    def _map_here(self, texts: Iterable[Any]) -> Iterator[Any]:
        for document, text in enumerate(texts):
            self._check_open()
            yield _naming(document, self._function, self._renderer, text)

    def _map(self, texts: Iterator[Any]) -> Iterator[Any]:
        first_number, num_taken = self._next_number, 0
        under_way: deque[int] = deque()  # batches taken and not yet passed on, oldest first
        arrived: dict[int, _Answer] = {}
        while True:
            self._check_open()
            while len(under_way) < self._window and (batch := list(islice(texts, self._batch))):
                under_way.append(self._next_number)
                self._give(_Batch(self._next_number, num_taken, batch))
                self._next_number += 1
                num_taken += len(batch)
            if not under_way:
                return
            while under_way[0] not in arrived:
                arrived |= {answer.number: answer for answer in self._hear() if answer.number >= first_number}
            answer = arrived.pop(under_way[0])
            for pickled, buffers in answer.results:
                yield pickle.loads(pickled, buffers=buffers)
            if answer.failure is not None:
                raise answer.failure
            under_way.popleft()

    def _give(self, batch: "_Batch") -> None:
        """Hand a batch to the worker that has least to do."""
        worker = min(self._workers, key=lambda worker: len(worker.in_hand))
        with self._closing_unless_complete():
            worker.give(batch)

    def _hear(self) -> "list[_Answer]":
        """Wait until a worker has something to say; returns what each that does has finished."""
        speakers: dict[Any, _Worker] = {worker.results: worker for worker in self._workers}
        sentinels: dict[Any, _Worker] = {worker.process.sentinel: worker for worker in self._workers}
        ready = connection.wait([*speakers, *sentinels])
        with self._closing_unless_complete():
            answers = [speakers[source].hear() for source in ready if source in speakers]
            if not answers:  # it ended, and a process that it started keeps its pipe open
                raise sentinels[ready[0]].death()
        return answers

    @contextlib.contextmanager
    def _closing_unless_complete(self) -> Iterator[None]:
        """Half a message cannot be mended: whatever interrupts one, the pool is of no further use."""
        with contextlib.ExitStack() as unless_complete:
            unless_complete.callback(self.close)
            yield
            unless_complete.pop_all()


def safe_start_method() -> str:
    """How to start processes from this one: "fork" where nothing but this thread can hold a lock, else "spawn"."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return "fork" if alone and sys.platform == "linux" else "spawn"


class _Batch(NamedTuple):
    number: int
    first: int  # document of the first text
    texts: list[Any]

    def __str__(self) -> str:
        last = self.first + len(self.texts) - 1
        return f"{self.first}" if last == self.first else f"{self.first}-{last}"


Pickled = tuple[bytes, list[Any]]  # and the buffers that travel beside it


class _Answer(NamedTuple):
    """What came of a batch: a result for each text, or for those before the one that failed."""

    number: int
    results: list[Pickled]
    failure: Exception | None

    def send(self, pipe: connection.Connection) -> None:
        """Sizes and pickles in one message, then the buffers without any framing."""
        sizes = [(pickled, [buffer.nbytes for buffer in buffers]) for pickled, buffers in self.results]
        pipe.send((self.number, sizes, self.failure))
        for _, buffers in self.results:
            for buffer in buffers:
                while buffer.nbytes:
                    buffer = buffer[os.write(pipe.fileno(), buffer) :]

    @classmethod
    def receive(cls, pipe: connection.Connection) -> Self:
        """Raises EOFError or OSError where the other side is gone."""
        number, sizes, failure = pipe.recv()
        results = []
        for pickled, lengths in sizes:
            # Memory for each of its own: a strip that is kept does not keep its whole batch.
            buffers = [np.empty(length, np.uint8) for length in lengths]
            for buffer in buffers:
                rest = buffer.data
                while rest.nbytes:
                    count = os.readv(pipe.fileno(), [rest])
                    if count == 0:
                        raise EOFError
                    rest = rest[count:]
            results.append((pickled, buffers))
        return cls(number, results, failure)


class _Worker:
    """A process as its parent sees it. Raises RuntimeError where it is gone."""

    def __init__(self, index: int, start_method: str, renderer: Any, function: Any, others: "Sequence[_Worker]"):
        self.index = index
        self.in_hand: dict[int, _Batch] = {}
        context = multiprocessing.get_context(start_method)
        its_tasks, self.tasks = _wide_pipe()
        self.results, its_results = _wide_pipe()
        # A fork has every open file: while it holds our ends, or those of its elders, nobody would see a pipe end.
        ours = [end for worker in (*others, self) for end in (worker.tasks, worker.results)]
        self.process = context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=_work,
            args=(renderer, function, its_tasks, its_results, ours if start_method == "fork" else []),
            name=f"render worker {index}",
            daemon=True,  # ends with this process also where nobody closes the pool
        )
        self.process.start()
        its_tasks.close()
        its_results.close()

    def give(self, batch: _Batch) -> None:
        self.in_hand[batch.number] = batch
        try:
            self.tasks.send(batch)
        except BrokenPipeError:
            raise self.death() from None

    def hear(self) -> _Answer:
        try:
            answer = _Answer.receive(self.results)
        except (EOFError, OSError):
            raise self.death() from None
        del self.in_hand[answer.number]
        return answer

    def death(self) -> RuntimeError:
        """Who ended, how, and which documents it had."""
        self.process.join(PATIENCE_S)
        code = self.process.exitcode
        if code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
            if code == -signal.SIGKILL:
                how += ", which the system sends when memory runs out"
        else:
            how = f"ended with exit code {code}"
        documents = ", ".join(map(str, self.in_hand.values())) or "none"
        return RuntimeError(f"{self.process.name} (process {self.process.pid}) {how}; documents in hand: {documents}")

    def hang_up(self) -> None:
        """What a worker that waits for texts ends by; one that is busy would finish them first, and is stopped."""
        self.tasks.close()
        self.results.close()
        if self.in_hand:
            self.process.terminate()

    def end(self) -> None:
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal. One that is just being started would die of it with a traceback, and
    so would the child of a parent that stops half-way: it comes when all have started."""
    handler = signal.getsignal(signal.SIGINT)
    in_charge = callable(handler) and threading.current_thread() is threading.main_thread()
    arrived = []
    if in_charge:
        signal.signal(signal.SIGINT, lambda *arguments: arrived.append(arguments))
    # Blocked for the children, which inherit that. Here it may still arrive by another thread.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_charge:
            signal.signal(signal.SIGINT, handler)
    if arrived and callable(handler):
        handler(*arrived[0])


def _wide_pipe() -> tuple[connection.Connection, connection.Connection]:
    """The end to read from and the end to write to."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):  # this user has many pipes already: a narrow one is only slower
            fcntl(writer.fileno(), F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def _work(
    renderer: Any,
    function: Callable[[Any, Any], Any],
    tasks: connection.Connection,
    results: connection.Connection,
    ends_of_parent: Sequence[connection.Connection],
) -> None:
    """The life of a worker: until there are no more texts, or no parent to give any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of its parent
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for end in ends_of_parent:
        end.close()
    gc.freeze()  # the collector marks all that it visits, and a fork copies what is written to: all of the caches
    outbox: queues.SimpleQueue[_Answer] = queues.SimpleQueue()
    threading.Thread(target=_send_all, args=(outbox, results), daemon=True).start()
    while True:
        try:
            batch = tasks.recv()
        except (EOFError, OSError):  # OSError: the parent was killed in the middle of a message
            return
        outbox.put(_answer(batch, renderer, function))


def _answer(batch: _Batch, renderer: Any, function: Callable[[Any, Any], Any]) -> _Answer:
    results: list[Pickled] = []
    try:
        for document, text in enumerate(batch.texts, batch.first):
            results.append(_naming(document, _pickled_result, function, renderer, text))
    except (RenderError, RuntimeError) as failure:
        if not isinstance(failure, RenderError):
            trace = "".join(traceback.format_exception(failure.__cause__))
            failure.add_note(f"In the worker:\n{trace}")  # a note is pickled with its exception, a cause is not
        return _Answer(batch.number, results, failure)
    return _Answer(batch.number, results, None)


def _naming(document: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; raise what it raises as an error that names the document and can be pickled."""
    try:
        return function(*arguments)
    except RenderError as cause:
        raise RenderError(f"document {document}: {cause}") from cause
    except Exception as cause:  # in a worker, only the parent can tell anyone
        raise RuntimeError(f"document {document}: {type(cause).__name__}: {cause}") from cause


def _pickled_result(function: Callable[[Any, Any], Any], renderer: Any, text: Any) -> Pickled:
    """Apart from the arrays that are large enough to travel beside the pickle."""
    buffers: list[memoryview] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < BESIDE:
            return True
        buffers.append(view)
        return False

    return pickle.dumps(function(renderer, text), protocol=5, buffer_callback=stays_inside), buffers


def _send_all(outbox: "queues.SimpleQueue[_Answer]", results: connection.Connection) -> None:
    try:
        while True:
            outbox.get().send(results)
    finally:  # as a rule the parent is gone, or has closed the pool: nothing is worth finishing
        os._exit(1)
