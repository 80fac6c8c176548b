"""The tasks, by the `kind` of their options: `python -m train` fine-tunes them, `python -m infer evaluate` scores."""

from pixelcore.tasks import answer, classify, parse, tag
from pixelcore.tasks.task import Task

TASKS: dict[str, Task] = {"classify": classify, "tag": tag, "parse": parse, "answer": answer}
