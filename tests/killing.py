"""Killing a process at every place where it writes, to see what it leaves behind.

Each attempt runs in a fork that dies, by SIGKILL, at one more write than the attempt before: before a file is opened,
with half of its bytes in it, before it is synced, renamed or removed.
"""

import contextlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pixelcore.checkpoint


def killed_at_every_write(action: Callable[[], None]) -> Iterator[str]:
    """Run `action` in a fork that dies at its first write, then in one that dies at its second, and so on; yields where
    it died, after each. Ends when an attempt reaches its end, which is not yielded."""
    for number in range(1, 1000):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # since Python 3.12: a thread could hold a lock; the child writes files and does nothing else
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(action, number, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            place = pipe.read().decode()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            return
        assert status == -signal.SIGKILL, f"attempt {number} failed by itself with status {status}: {place}"
        yield f"{number}: {place}"
    raise AssertionError("no end in sight")


def _child(action: Callable[[], None], deadline: int, writer: int) -> None:
    status = 1
    try:
        with _counting(deadline, writer):
            action()
        status = 0
    except BaseException as cause:
        os.write(writer, repr(cause).encode())
    finally:
        os._exit(status)


@contextlib.contextmanager
def _counting(deadline: int, writer: int) -> Iterator[None]:
    count = 0

    def place(name: str) -> None:
        nonlocal count
        count += 1
        if count == deadline:
            os.write(writer, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str) -> Any:
        original = getattr(owner, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            place(f"before {name} {arguments[0]}")
            return original(*arguments, **keywords)

        return mock.patch.object(owner, name, counted)

    save_file, write_bytes = pixelcore.checkpoint.save_file, Path.write_bytes

    def half(path: Path, write: Callable[[], Any]) -> None:
        place(f"before writing {path}")
        write()
        content = path.read_bytes()
        write_bytes(path, content[: len(content) // 2])
        place(f"half of {path}")
        write_bytes(path, content)

    with contextlib.ExitStack() as stack:
        for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir")):
            stack.enter_context(around(owner, name))
        stack.enter_context(
            mock.patch.object(
                pixelcore.checkpoint, "save_file", lambda tensors, path: half(path, lambda: save_file(tensors, path))
            )
        )
        stack.enter_context(
            mock.patch.object(Path, "write_bytes", lambda path, data: half(path, lambda: write_bytes(path, data)))
        )
        yield
