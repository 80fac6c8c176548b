"""Runs small enough to make dozens of: a text, a configuration, a way to run it here, and one to run it elsewhere.

What needs a process of its own (a kill, several ranks) gets a fork of one that has imported torch and done nothing
else: starting Python and importing torch for each would take most of the time of these tests.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from train.cli import main
from train.report import CLOCK_KEYS

_SUBJECTS = [
    "the ferryman",
    "an old clock",
    "the river",
    "our neighbour",
    "a tin whistle",
    "the winter wheat",
    "her letter",
    "the lamp",
]
_VERBS = [
    "waits for",
    "remembers",
    "turns away from",
    "carries",
    "listens to",
    "never reaches",
    "begins with",
    "belongs to",
]
_OBJECTS = [
    "the far shore",
    "a quiet street",
    "seven bells",
    "the last train",
    "salt and bread",
    "the garden wall",
    "no one",
]
_ENDS = ["before the rain", "when it is late", "as it always did", "without a word", "for 12 pence", "again"]


def small_text(num_documents: int = 120, seed: int = 1) -> str:
    """English of a kind, about 170 bytes a document, from a linear congruential generator: the same on any machine."""
    state = seed

    def pick(choices: list[str]) -> str:
        nonlocal state
        state = (state * 1103515245 + 12345) % 2**31
        return choices[(state >> 8) % len(choices)]

    def sentence() -> str:
        words = f"{pick(_SUBJECTS)} {pick(_VERBS)} {pick(_OBJECTS)} {pick(_ENDS)}"
        return words[0].upper() + words[1:] + "."

    lengths = [2, 5, 1, 3, 4, 2, 9]
    documents = [" ".join(sentence() for _ in range(lengths[n % len(lengths)])) for n in range(num_documents)]
    return "\n\n".join(documents) + "\n"


# the smoke preset, smaller: 12 steps take half a second
TINY = {
    "model.vocab_size": 300,
    "model.context_length": 32,
    "model.hidden_size": 32,
    "model.num_attention_heads": 4,
    "model.num_key_value_heads": 2,
    "model.intermediate_size": 48,
    "data.block_size": 32,
    "data.tokens_per_step": 128,
    "data.valid_share": 0.1,
    "eval.prompts": [],
    "eval.max_tokens": 512,
    "run.micro_batch_blocks": 2,
}


def overrides(fields: dict[str, Any]) -> list[str]:
    """`--set` flags; a value is written as JSON, which TOML reads, and a nested table field by field."""
    flags = []
    for name, value in fields.items():
        if isinstance(value, dict):
            flags += overrides({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            flags += ["--set", f"{name}={json.dumps(value)}"]
    return flags


def tiny(data: Path, begun: bool = False, **changes: Any) -> list[str]:
    """Flags of a tiny run on a text; changes: fields, with `__` for the dot. begun: the architecture is that of a model
    which --init names, so none is asked for."""
    fields = {name: value for name, value in TINY.items() if not (begun and name.startswith("model."))}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "smoke", "--data", str(data), *overrides(fields)]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of about 20 KB."""
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text(small_text())
    return path


@pytest.fixture(autouse=True)
def _as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`main` sets the precision of products for its process; here, the process goes on. Curves are drawn in the test of
    curves, and nobody needs the speed of this machine: together they take longer than a run."""
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
    monkeypatch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of 12 steps that nothing disturbed. Read it, never write to it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert main([*tiny(text), "--steps", "12", "--out", str(path)]) == 0
    return path


# ------------------------------------------------------------------ looking at runs


def marks(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK_KEYS} for row in rows]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in lines(run) if "loss" in row]


def newest(run: Path) -> Path:
    return run / "checkpoints" / marks(run)["newest"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(newest(run) / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: metrics, samples, and every tensor of the newest checkpoint."""
    assert lines(one) == lines(other)
    assert newest(one).name == newest(other).name
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(run) / f"{name}.safetensors") for run in (one, other))
        assert mine.keys() == theirs.keys()
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        assert not different, f"{name}.safetensors: {different}"
    assert (newest(one) / "tokenizer.model").read_bytes() == (newest(other) / "tokenizer.model").read_bytes()
    samples = [{file.name: file.read_text() for file in (run / "samples").iterdir()} for run in (one, other)]
    assert samples[0] == samples[1]


# ------------------------------------------------------------------ processes

# Reads requests, one JSON line each; forks for "start", reaps for "wait". A child may be told to send itself signals,
# each at the n-th call of a function, so that they come at the same place in every run.
_SERVER = """
import importlib, json, os, sys
import torch._dynamo  # DDP and FSDP2 import it, for seconds
import train.cli, train.report, train.sizing

train.report.draw_curve = lambda metrics, picture, axis: False
train.sizing.measure_matmul_flops = lambda: 1e10

def signal_at(module, name, call, number):
    module = importlib.import_module(module)
    original, calls = getattr(module, name), 0
    def counted(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)
    setattr(module, name, counted)

def child(request):
    os.environ.update(request["env"])
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for where in request["signals"]:
        signal_at(*where)
    return train.cli.main(request["argv"])

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            status = child(request)
            sys.stdout.flush(), sys.stderr.flush()
            if "coverage" in sys.modules:
                sys.exit(status)  # it writes what it saw at the end
            os._exit(status)  # taking Python down takes longer than a run
    print(answer, flush=True)
"""


@dataclass
class Child:
    """A `python -m train` that was started; `wait` gives its exit status, negative for the signal that killed it."""

    pid: int
    server: "Server"
    out: Path
    err: Path

    def wait(self) -> int:
        return self.server.ask({"wait": self.pid})


class Server:
    """Starts `train.cli.main` in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self, argv: list[str], signals: Sequence[tuple[str, str, int, int]] = (), env: dict[str, str] | None = None
    ) -> Child:
        """signals: (module, function, n, number): the process sends itself this one at the n-th call."""
        self.count += 1
        out, err = self.folder / f"{self.count}.out", self.folder / f"{self.count}.err"
        request = {"argv": argv, "env": env or {}, "out": str(out), "err": str(err), "signals": signals}
        return Child(self.ask(request), self, out, err)

    def run(self, argv: list[str], *signals: tuple[str, str, int, int]) -> int:
        return self.start(argv, signals).wait()

    def run_ranks(self, world: int, argv: list[str]) -> None:
        """What torchrun does on one machine, without the seconds that it takes to start."""
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [self.start(argv, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
        assert [rank.wait() for rank in ranks] == [0] * world, "\n".join(rank.err.read_text()[-3000:] for rank in ranks)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("processes"))
    yield server
    assert server.process.stdin is not None and server.process.stdout is not None
    server.process.stdin.close()
    server.process.wait(timeout=60)
    server.process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
