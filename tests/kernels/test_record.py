"""Models that run on the fused record: they learn what they learn on the reference, and repeat themselves bit for bit.

The presets' models are taken as they are, dropout included; a step has one or two rows of 64 patches or tokens, because
the interpreter takes milliseconds for every sixteen of them.
"""

import inspect
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infer.cli import main as infer
from kernels import choose_ops
from kernels.launch import Launch
from kernels.record import FUSED, STEP_FUSED
from pixelcore.config import DecoderConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.layers import linear
from pixelcore.models.decoder import Decoder
from pixelcore.ops import REFERENCE, Ops
from pixelcore.packed import Packed
from pixelcore.shadows import keep_shadow
from pixelcore.step_ops import STEP_REFERENCE, StepOps
from tests.conftest import ROOT
from tests.train.conftest import lines, losses, newest, overrides, small_text, weights
from train.cli import main as train
from train.config import OptimizerConfig
from train.optimizer import AdamW

FEW: dict[str, dict[str, Any]] = {
    "smoke": {
        "data.tokens_per_step": 64,
        "eval.prompts": [],
        "eval.max_tokens": 64,
        "model.dropout": 0.1,
        "run.micro_batch_blocks": 1,
    },
    "pixel-smoke": {"data.rows_per_step": 1, "eval.max_rows": 1, "eval.read_rows": 0, "eval.picture_rows": 0},
    "pixar-smoke": {"data.rows_per_step": 1, "eval.max_rows": 1, "eval.picture_rows": 0},
}
STEP_FIELDS = [field.name for field in fields(StepOps)]
FOR_ALL = {"data.valid_share": 0.1, "eval.every": 1000, "run.log_every": 1, "run.keep_last": 9}
# A sum in another order differs by some roundings of 6e-8; a few updates add up. A lost term or factor of a gradient
# moves a weight by about the learning rate, 1e-3 of it, in each step.
LOSS_BUDGET, WEIGHT_BUDGET = 1e-5, 1e-5


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
    monkeypatch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
    # a document of these tests is one tile: what many tiles are is the business of the cases of attention
    whole = Launch({"ROWS": 64, "KEYS": 64, "PROGRAMS": 1})
    monkeypatch.setattr("kernels.attention_forward.INTERPRETED", whole)
    monkeypatch.setattr("kernels.attention_backward.INTERPRETED", whole)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text(small_text())
    return path


def flags(preset: str, data: Path, steps: int, ops: str, **changes: Any) -> list[str]:
    fields = FEW[preset] | FOR_ALL | {name.replace("__", "."): value for name, value in changes.items()}
    few = overrides(fields)
    return ["--preset", preset, "--data", str(data), "--steps", str(steps), "--device", "cpu", "--ops", ops, *few]


def run(preset: str, data: Path, out: Path, steps: int, ops: str, **changes: Any) -> None:
    assert train([*flags(preset, data, steps, ops, **changes), "--out", str(out)]) == 0


def distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative distance of any weight.

    A key's bias adds the same to all scores of a row, so its gradient is zero: what it learns is rounding, which Adam
    makes as large as a step, and nothing is to be compared.
    """
    assert mine.keys() == theirs.keys()
    found = []
    for name, x in theirs.items():
        difference = mine[name] - x
        if name.endswith("qkv.bias"):
            size = len(x) // 3
            difference[size : 2 * size] = 0
        found.append(float(difference.norm() / x.norm().clamp_min(1e-3)))
    return max(found)


# ------------------------------------------------------------------ the choice


def test_each_operation_has_the_signature_of_its_reference():
    for field in fields(Ops):
        ours, wanted = (inspect.signature(getattr(ops, field.name)) for ops in (FUSED, REFERENCE))
        own = {name: x for name, x in ours.parameters.items() if name not in wanted.parameters}
        assert [x for name, x in ours.parameters.items() if name not in own] == list(wanted.parameters.values())
        assert all(x.kind == x.KEYWORD_ONLY and x.default is not x.empty for x in own.values()), field.name


def test_every_operation_is_fused():
    assert choose_ops("cpu", "fused") is choose_ops("cpu", "fused") is FUSED
    same = [field.name for field in fields(Ops) if getattr(FUSED, field.name) is getattr(REFERENCE, field.name)]
    same += [name for name in STEP_FIELDS if getattr(STEP_FUSED, name) is getattr(STEP_REFERENCE, name)]
    assert not same


@pytest.mark.parametrize(
    ("device", "interpreted", "message"),
    [
        ("cpu", False, "kernels run on CUDA devices and not on cpu; use --ops reference, or .* TRITON_INTERPRET=1"),
        ("mps", True, "kernels run on CUDA devices and not on mps"),
        ("cuda", True, "TRITON_INTERPRET is set, which runs kernels on the CPU; unset it for cuda"),
    ],
)
def test_fused_where_it_cannot_run_is_refused(
    device: str, interpreted: bool, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kernels.launch.INTERPRETED", interpreted)
    with pytest.raises(UserError, match=message):
        choose_ops(device, "fused")


def test_fused_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Triton, which is not installed; use --ops reference"):
        choose_ops("cuda", "fused")


# Without the interpreter: what a machine that has no GPU does.
_PLAIN = """
import sys, kernels, pixelcore.ops
assert kernels.choose_ops("cpu") is kernels.choose_ops("cpu", "reference") is pixelcore.ops.REFERENCE
assert "triton" not in sys.modules
from train.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_commands_run_fused_in_the_interpreter_and_nowhere_else_on_a_cpu(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    argv = [*flags("smoke", text, 2, "fused", model__num_layers=1), "--out", str(tmp_path / "run")]

    def started(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run(
            [sys.executable, *command, *argv], capture_output=True, text=True, cwd=ROOT, env=plain | environment
        )

    refused = started("-c", _PLAIN)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("error: --ops fused: kernels run on CUDA devices and not on cpu")
    assert not (tmp_path / "run").exists()
    done = started("-m", "train", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    prompt = ["--model", str(tmp_path / "run"), "--device", "cpu", "--prompt", "The", "--max-tokens", "2"]
    written = []
    for ops in ("fused", "reference"):
        capsys.readouterr()
        assert infer([*prompt, "--ops", ops]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    monkeypatch.setattr("kernels.launch.INTERPRETED", False)
    assert infer([*prompt, "--ops", "fused"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("preset", FEW)
def test_four_fused_steps_stay_beside_the_reference_and_repeat_themselves(preset: str, text: Path, tmp_path: Path):
    for ops in ("fused", "reference"):
        run(preset, text, tmp_path / ops, 4, ops, run__save_every=2)
    mine, theirs = losses(tmp_path / "fused"), losses(tmp_path / "reference")
    assert len(mine) == 4 and max(theirs) > min(theirs)
    assert all(math.isclose(one, other, rel_tol=LOSS_BUDGET) for one, other in zip(mine, theirs, strict=True))
    assert distance(weights(tmp_path / "fused"), weights(tmp_path / "reference")) <= WEIGHT_BUDGET
    argv = [*flags(preset, text, 4, "fused", run__save_every=2), "--stop-at", "2", "--out", str(tmp_path / "again")]
    assert train(argv) == 0
    second = newest(tmp_path / "again").name
    for name in ("model", "optimizer"):
        files = [tmp_path / run / "checkpoints" / second / f"{name}.safetensors" for run in ("fused", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert lines(tmp_path / "again") == lines(tmp_path / "fused")[:2]


@pytest.mark.slow
@pytest.mark.parametrize("preset", FEW)
def test_two_hundred_fused_steps_stay_beside_the_reference(preset: str, text: Path, tmp_path: Path):
    for ops in ("fused", "reference"):
        run(preset, text, tmp_path / ops, 200, ops, run__save_every=1000)
    mine, theirs = losses(tmp_path / "fused"), losses(tmp_path / "reference")
    # steps multiply what separates two runs, so the budget is a hundred times that of four
    assert all(math.isclose(one, other, rel_tol=100 * LOSS_BUDGET) for one, other in zip(mine, theirs, strict=True))


# ------------------------------------------------------------------ compilers and graphs

TINY = DecoderConfig(
    vocab_size=32,
    context_length=16,
    num_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=24,
    dropout=0.1,
)


class Step:
    """A decoder, a batch, and a whole step of training."""

    def __init__(self, config: DecoderConfig, ops: Ops, device: str, dtype: torch.dtype, lengths: list[int]) -> None:
        self.model = Decoder(config, ops)
        initialise(self.model, 0)
        self.model.to(device)
        self.model.compute_dtype = dtype
        self.optimizer = AdamW(self.model, OptimizerConfig(), ops, keeps_shadows=dtype == torch.bfloat16)
        self.packed = Packed.from_lengths(lengths, device=device)
        self.ids = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
        self.scale = torch.full((), 1 / sum(lengths), device=device)
        self.seed = torch.zeros(2, dtype=torch.int64, device=device)
        self.rate = torch.full((), 1e-3, device=device)

    def draw(self, step: int) -> None:
        """Another batch, and other masks."""
        generator = torch.Generator().manual_seed(step)
        size = (len(self.ids),)
        # a text that can be learned: mostly the number after the last one
        jumps = torch.randint(0, self.model.config.vocab_size, size, generator=generator)
        jumps = jumps.where(torch.rand(size, generator=generator) < 0.2, 1)
        self.ids.copy_(jumps.cumsum(0) % self.model.config.vocab_size)
        self.seed.copy_(torch.tensor([1, step]))

    def loss(self) -> Tensor:
        out = self.model(self.ids, self.packed, targets=self.ids.roll(-1), scale=self.scale, dropout_seed=self.seed)
        return out.loss

    def learn(self) -> Tensor:
        loss = self.loss()
        loss.backward()
        self.optimizer.step(self.rate)
        return loss.detach()


def gradients(step: Step, loss: Any) -> dict[str, Tensor]:
    step.model.zero_grad()
    value = loss()
    value.backward()
    found = {name: x.grad.clone() for name, x in step.model.named_parameters() if x.grad is not None}
    return found | {"loss": value.detach()}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's own compiler does
def test_a_fused_decoder_compiles_as_one_graph_and_stays_what_it_was():
    step = Step(TINY, FUSED, "cpu", torch.float32, [12, 8])
    step.draw(0)
    compiled = torch.compile(step.loss, fullgraph=True, backend="aot_eager")
    eager, ours = gradients(step, step.loss), gradients(step, compiled)
    assert eager.keys() == ours.keys() and len(eager) == 9
    for name, x in eager.items():
        torch.testing.assert_close(ours[name], x, rtol=1e-5, atol=1e-7)
    # a weight with a shadow is cast in a compiled function, and followed when it changes
    weight, x_ND = step.model.embed.weight, torch.ones(5, 16, dtype=torch.bfloat16)
    keep_shadow(weight)
    product = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(product(x_ND, weight), linear(x_ND, weight))
        with torch.no_grad():
            weight.mul_(2)


# ------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
def test_a_captured_fused_step_is_the_eager_one():
    config = replace(TINY, vocab_size=512, context_length=64, hidden_size=64, num_attention_heads=4, num_layers=2)
    eager, captured = (Step(config, FUSED, "cuda", torch.bfloat16, [64, 40, 24]) for _ in range(2))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for number in range(3):
            for step in (eager, captured):
                step.draw(number)
                step.learn()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = captured.learn()
    for number in range(3, 9):
        for step in (eager, captured):
            step.draw(number)
        wanted = eager.learn()
        graph.replay()
        assert torch.equal(loss, wanted)
    for one, other in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(one, other)


def run_on_gpu(preset: str, data: Path, out: Path, ops: str, precision: str) -> list[float]:
    """The curve of 200 steps of a preset as it is."""
    fields = FOR_ALL | {"run.precision": precision, "run.save_every": 1000}
    argv = ["--preset", preset, "--data", str(data), "--steps", "200", "--device", "cuda", "--ops", ops]
    # PyTorch's other kernels of attention add up gradients in an order that changes; ours do not
    with sdpa_kernel(SDPBackend.MATH):
        assert train([*argv, *overrides(fields), "--out", str(out)]) == 0
    return losses(out)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", FEW)
def test_two_hundred_fused_steps_in_bf16_are_as_near_to_fp32_as_the_references_and_repeat_themselves(
    preset: str, text: Path, tmp_path: Path
):
    exact = run_on_gpu(preset, text, tmp_path / "exact", "reference", "fp32")
    plain = run_on_gpu(preset, text, tmp_path / "plain", "reference", "bf16")
    fused = run_on_gpu(preset, text, tmp_path / "fused", "fused", "bf16")

    def distance_of(curve: list[float]) -> float:
        return math.fsum(abs(one - other) for one, other in zip(curve, exact, strict=True))

    assert distance_of(fused) <= 1.5 * distance_of(plain)
    assert run_on_gpu(preset, text, tmp_path / "again", "fused", "bf16") == fused
    mine, theirs = (weights(tmp_path / name) for name in ("fused", "again"))
    assert all(torch.equal(mine[name], x) for name, x in theirs.items())
