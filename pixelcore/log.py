"""Where a command's log goes: to standard error, a line a message, for as long as the command runs.

A command may be called from Python, by a test or a notebook, whose standard error may be another one, or closed, the
next time somebody logs. So what a command sets up is taken away again when it ends.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def log_to_stderr(chatty: Sequence[str] = ()) -> Iterator[None]:
    """Warnings of everybody, and what the packages named in `chatty` tell beside them (INFO), on standard error."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(logging.Formatter("%(message)s"))
    levels = {package: logging.getLogger(package).level for package in chatty}
    logging.root.addHandler(stream)
    for package in chatty:
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.root.removeHandler(stream)
        for package, level in levels.items():
            logging.getLogger(package).setLevel(level)
