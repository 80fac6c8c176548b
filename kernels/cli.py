"""The command line of the kernels' workshop: `python -m kernels check | inspect | bench [NAME]...`.

Each command is a file of the workshop with `add_arguments(parser)` and `run(options)`, imported when it is asked for,
because one of them needs Triton's interpreter, one its compiler and one a GPU. Results go to standard output, the log
and the progress to standard error. Exit status: 0 all is well, 1 a kernel is not, 2 the user's mistake in one line,
130 Ctrl-C.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from kernels.workshop.names import nearest
from pixelcore.errors import UserError
from pixelcore.log import log_to_stderr

# The module of each command, what it says of itself, and examples.
_COMMANDS = {
    "check": (
        "kernels.workshop.command_check",
        "Is every kernel right? Its error against the formula in fp64, outputs and gradients.",
        """examples:
  TRITON_INTERPRET=1 python -m kernels check              all kernels on a CPU, in fp32 and fp16
  TRITON_INTERPRET=1 python -m kernels check glu --json   one kernel, every comparison as JSON
  python -m kernels check --dtype bfloat16                on a GPU, where bf16 works
  python -m kernels check --sanitize                      on a GPU, under NVIDIA's compute-sanitizer""",
    ),
    "inspect": (
        "kernels.workshop.command_inspect",
        "What does the compiler make of a kernel? Registers, spills, shared memory, loads; no GPU is needed.",
        """examples:
  python -m kernels inspect                        all kernels, for sm_80, 86, 90, 100 and 120
  python -m kernels inspect glu gelu --arch 90     two of them, for one architecture""",
    ),
    "bench": (
        "kernels.workshop.command_bench",
        "How fast is a kernel on this GPU? Beside the floor of its bytes, eager, torch.compile and other libraries.",
        """examples:
  python -m kernels bench --first                            the machine's own ceilings
  python -m kernels bench glu --json glu.json --budget 120   one kernel, the most valuable shapes first""",
    ),
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, description: str, epilog: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, epilog=epilog, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the flags")


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    with log_to_stderr():
        try:
            status = _run(list(argv))
            sys.stdout.flush()
            return status
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # whoever read our output, such as `head`, has enough; what Python still holds must not raise again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _run(argv: list[str]) -> int:
    if argv and argv[0] in _COMMANDS:
        module, description, examples = _COMMANDS[argv[0]]
        if importlib.util.find_spec("triton") is None:
            raise UserError("kernels are written in Triton, which is not installed: pip install triton, on Linux")
        command: Any = importlib.import_module(module)
        parser = _Parser(f"python -m kernels {argv[0]}", description, examples)
        command.add_arguments(parser)
        return command.run(parser.parse_args(argv[1:]))
    if argv and not argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: unknown command{nearest(argv[0], _COMMANDS)}; choose {', '.join(_COMMANDS)}")
    commands = "\n".join(f"  {name:8} {description}" for name, (_, description, _) in _COMMANDS.items())
    parser = _Parser(
        "python -m kernels",
        "The workshop in which every kernel is checked, inspected and timed, by the same rules.",
        f"commands (each has --help):\n{commands}",
    )
    parser.add_argument("command", metavar="check | inspect | bench", nargs="?")
    parser.parse_args(argv)
    raise UserError(f"name a command: {', '.join(_COMMANDS)}; python -m kernels --help says what they do")
