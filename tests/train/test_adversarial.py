"""Stage 2: what a step computes, in which order, what is kept of it, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import presets
from pixelcore.adversarial import adversarial_loss, fake_patches
from pixelcore.checkpoint import load_model, read_manifest
from pixelcore.errors import UserError
from pixelcore.models.discriminator import ContextDiscriminator
from pixelcore.models.pixar import Pixar
from tests.train import tiny_patches
from tests.train.conftest import lines, losses, newest, overrides
from tests.train.tiny_adversarial import (
    FILES,
    PATCH,
    TINY,
    assert_close_duel,
    assert_same_duel,
    begun,
    run,
    stage_one,
    tensors,
)
from tests.train.tiny_pixels import resume
from tests.train.tiny_pixels import run as run_masked
from train.cli import main
from train.config import AdversarialConfig, AdversarialSettings, ContextDiscriminatorConfig
from train.distributed import Ranks
from train.job import Job, new_job, read_settings
from train.objectives import adversarial
from train.opponent import Opponent, Round, strength_at
from train.optimizer import AdamW
from train.run_folder import RunFolder
from train.schedule import learning_rate_factor

__all__ = ["begun"]

SLOW = pytest.mark.slow
PUBLISHED = {"objective__lag": 1, "objective__draw": "batch"}
ROLLED = {"objective__rollout": 3}


@pytest.fixture
def job_of(text: Path, begun: Path, tmp_path: Path) -> Callable[..., tuple[Job, Opponent]]:
    """A job of stage 2 that stands before its first step, with its opponent."""

    def make(init: Path = begun, **changes: Any) -> tuple[Job, Opponent]:
        fields = TINY | {"data.paths": [str(text)]} | {name.replace("__", "."): v for name, v in changes.items()}
        settings = read_settings(presets.load("pixar-adversarial"), overrides(fields)[1::2], "test")
        folder = RunFolder(tmp_path / f"job{len(list(tmp_path.iterdir()))}")
        job = new_job(settings, folder, Ranks(0, 1, torch.device("cpu")), "reference", init)
        assert job.opponent is not None
        return job, job.opponent

    return make


def gradients_apart(job: Job, opponent: Opponent, rounds: list[Round]) -> list[dict[str, torch.Tensor]]:
    """The gradients of the likelihood's loss and of the adversarial one for every parameter of the generator, by two
    backward passes through everything."""
    model, found = job.model, []
    step, targets = opponent._step, job.batches.num_targets(0)
    for which in ("likelihood", "adversarial"):
        first = 0
        for index, each in enumerate(rounds):
            out = model(each.patches, scale=torch.tensor(1 / targets))
            if which == "likelihood":
                out.loss.backward()
                continue
            batch = job.batches.micro_batch(0, index, "cpu")
            count = sum(
                int((step.for_generator.strips == strip).sum()) for strip in range(first, first + len(batch.lengths))
            )
            mine = slice(sum(len(other.rows) for other in rounds[:index]), None)
            places = type(step.for_generator)(
                step.for_generator.strips[mine][:count] - first,
                step.for_generator.before[mine][:count],
                step.for_generator.draws[mine][:count],
            )
            first += len(batch.lengths)
            fakes_FA = fake_patches(out, each.rows, each.fakes, places.draws)
            behind_PA = each.patches.pixels[-sum(batch.lengths) :]  # with a rollout, of copies behind the real strips
            answers_F2 = opponent.model.of_fakes(behind_PA, batch.lengths, fakes_FA, places)
            adversarial_loss(answers_F2, True, torch.tensor(1 / len(step.for_generator)))[0].backward()
        named = model.named_parameters()  # the scores of a mixture get nothing from a drawn component
        found.append({name: torch.zeros_like(one) if one.grad is None else one.grad.clone() for name, one in named})
        model.zero_grad(set_to_none=True)
    opponent.model.zero_grad(set_to_none=True)
    return found


# ------------------------------------------------------------------ a step


@pytest.mark.parametrize(
    "rows, variant",
    [(5, {}), (3, ROLLED), pytest.param(2, PUBLISHED, marks=SLOW), pytest.param(3, PATCH, marks=SLOW)],
    ids=["one micro-batch", "two, behind its own patches", "three, published", "two, without context"],
)
def test_balance_is_the_ratio_of_two_separate_backward_passes(rows: int, variant: dict[str, Any], job_of: Any):
    job, opponent = job_of(run__micro_batch_blocks=rows, **variant)
    rounds = opponent.prepare(0)
    assert len(rounds) == -(-5 // rows)
    likelihood, adversarial = gradients_apart(job, opponent, rounds)
    ratio = likelihood["out_proj.weight"].abs().mean() / (adversarial["out_proj.weight"].abs().mean() + 1e-8)
    opponent.learn(0)
    assert float(opponent.balance) == pytest.approx(float(ratio), rel=1e-5)
    assert float(ratio) != 1


@pytest.mark.parametrize("head, fakes", [("bernoulli", "soft"), ("mixture", "straight-through")])
def test_generator_gets_the_gradient_of_the_weighed_sum(
    head: str, fakes: str, text: Path, begun: Path, tmp_path: Path, job_of: Any
):
    init = begun
    if head == "mixture":
        init = stage_one(text, tmp_path / "begun", model__head="mixture", model__num_components=3)
    job, opponent = job_of(init, objective__fakes=fakes, objective__strength=3.0, objective__strength_warmup_steps=0)
    rounds = opponent.prepare(0)
    likelihood, adversarial_part = gradients_apart(job, opponent, rounds)
    scale = torch.tensor(1 / job.batches.num_targets(0))
    reported = 0.0
    for each in rounds:
        found = adversarial.loss(job.module, each, scale, None)
        found.total.backward()
        reported += float(found.reported)
    for name, parameter in job.model.named_parameters():
        expected = likelihood[name] + 3.0 * float(opponent._measured) * adversarial_part[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6 + 1e-5 * float(expected.abs().max()))
    weight = adversarial_part["out_proj.weight"].abs().mean()
    assert float(weight) > 0, "the discriminator's opinion reaches the generator"
    with torch.no_grad():
        parts = [job.model(each.patches, scale=scale).loss for each in rounds]
    assert reported == pytest.approx(float(sum(parts)), rel=1e-6), "the loss of stage 1 is shown"


def test_strength_warms_up_from_the_first_step_and_stays():
    config = AdversarialConfig(strength=10.0, strength_warmup_steps=1000)
    assert strength_at(config, 0) == pytest.approx(0.01)
    assert strength_at(config, 199) == pytest.approx(2.0), "the published checkpoint's, specs/pixar.md, section 4.3"
    assert strength_at(config, 999) == strength_at(config, 5000) == 10.0
    assert strength_at(AdversarialConfig(strength=3.0, strength_warmup_steps=0), 0) == 3.0


def test_without_strength_the_generator_takes_the_step_of_stage_one(text: Path, begun: Path, tmp_path: Path):
    shared = {name: value for name, value in TINY.items() if name.split(".")[0] not in ("objective", "discriminator")}
    preset = ["--preset", "pixar-113m", "--data", str(text), "--device", "cpu", "--steps", "2", "--init", str(begun)]
    recipe = {"schedule.shape": "constant", "run.log_every": 1}
    assert main([*preset, *overrides(shared | recipe), "--out", str(tmp_path / "one")]) == 0
    assert run(text, begun, tmp_path / "two", "--steps", "2", objective__strength=0.0) == 0
    mine, theirs = tensors(tmp_path / "two", "model"), tensors(tmp_path / "one", "model")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    different = tensors(tmp_path / "two", "discriminator")["head.weight"]
    assert float(different.abs().max()) > 0.01, "the discriminator learns all the same"


@pytest.mark.parametrize(
    "rows, variant",
    [
        (2, ROLLED),
        pytest.param(2, {}, marks=SLOW),
        pytest.param(1, PUBLISHED | {"objective__real_noise": 0.3}, marks=SLOW),
    ],
    ids=["two rows, behind its own patches", "two rows", "one row, published"],
)
def test_any_micro_batch_computes_the_same_duel(
    rows: int, variant: dict[str, Any], text: Path, begun: Path, tmp_path: Path
):
    assert run(text, begun, tmp_path / "whole", "--steps", "2", run__micro_batch_blocks=5, **variant) == 0
    assert run(text, begun, tmp_path / "parts", "--steps", "2", run__micro_batch_blocks=rows, **variant) == 0
    assert_close_duel(tmp_path / "parts", tmp_path / "whole")


# ------------------------------------------------------------------ who learns when


def test_generator_moves_first_and_the_discriminator_learns_from_what_it_was(
    text: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    turns: list[str] = []
    original = AdamW.step

    def watched(optimizer: AdamW, rate: float) -> Any:
        turns.append("discriminator" if "head.weight" in optimizer.named else "generator")
        return original(optimizer, rate)

    monkeypatch.setattr(AdamW, "step", watched)
    for name, rate in (("a", 0.01), ("b", 0.05)):
        assert run(text, begun, tmp_path / name, "--steps", "1", optimizer__learning_rate=rate) == 0
    assert turns == ["generator", "discriminator"] * 2
    generators = [tensors(tmp_path / name, "model")["norm.weight"] for name in "ab"]
    assert not torch.equal(*generators)
    judges = [tensors(tmp_path / name, "discriminator") for name in "ab"]
    assert all(torch.equal(judges[0][key], judges[1][key]) for key in judges[0]), "how far the generator went is unseen"


def test_discriminator_begins_as_a_copy_of_the_generator_with_a_head_of_its_own(job_of: Any):
    job, opponent = job_of()
    assert isinstance(opponent.model, ContextDiscriminator)
    state, copy = job.model.state_dict(), opponent.model.state_dict()
    shared = state.keys() & copy.keys()
    assert copy.keys() - shared == {"head.weight", "head.bias"} and state.keys() - shared == {"out_proj.weight"}
    assert all(torch.equal(state[name], copy[name]) for name in shared)
    assert all(state[name].data_ptr() != copy[name].data_ptr() for name in shared)


def test_with_the_lag_the_generator_stands_still_in_the_first_step(text: Path, begun: Path, tmp_path: Path):
    out = tmp_path / "a"
    assert run(text, begun, out, "--steps", "2", run__save_every=1, run__keep_last=9, **PUBLISHED) == 0
    before, first, second = (_load(out, f"step_0000000{step}") for step in range(3))
    assert all(torch.equal(before[name], first[name]) for name in before)
    assert not torch.equal(before["out_proj.weight"], second["out_proj.weight"])
    metrics = lines(out)
    assert metrics[0]["grad_norm"] == 0 and metrics[1]["grad_norm"] > 0
    judges = [_load(out, step, "discriminator")["head.weight"] for step in ("step_00000000", "step_00000001")]
    assert not torch.equal(*judges)


def _load(run: Path, step: str, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / step / f"{name}.safetensors")


def test_cold_layers_of_both_stay_as_they_were(text: Path, begun: Path, tmp_path: Path):
    out = tmp_path / "a"
    changes = {"objective__hot_layers": 1, "discriminator__hot_layers": 1}
    assert run(text, begun, out, "--steps", "1", run__keep_last=9, **changes) == 0
    for name, head in (("model", "out_proj."), ("discriminator", "head.")):
        first, last = _load(out, "step_00000000", name), tensors(out, name)
        moved = {key for key in first if not torch.equal(first[key], last[key])}
        assert moved == {key for key in first if key.startswith(("layers.1.", "norm.", head))}, name
        assert not any("layers.0" in key for key in tensors(out, {"model": "optimizer"}.get(name, f"{name}_optimizer")))


@SLOW
@pytest.mark.parametrize("kind", [{}, PATCH], ids=["context", "patch"])
def test_discriminator_learns_to_tell(kind: dict[str, Any], text: Path, begun: Path, tmp_path: Path):
    still = {"objective__strength": 0.0, "optimizer__learning_rate": 1e-6}
    assert run(text, begun, tmp_path / "a", "--steps", "12", **still, **kind) == 0
    metrics = [line for line in lines(tmp_path / "a") if "balance" in line]
    for share in ("discriminator_real_right", "discriminator_fake_right"):
        assert metrics[-1][share] > 0.9, "soft fakes are grey"
    for part in ("real", "fake"):
        assert metrics[-1][f"discriminator_{part}_loss"] < metrics[0][f"discriminator_{part}_loss"]
    assert metrics[-1]["adversarial_loss"] > metrics[0]["adversarial_loss"]


@SLOW
def test_figures_of_the_duel_are_in_the_metrics(text: Path, begun: Path, tmp_path: Path):
    assert run(text, begun, tmp_path / "a", "--steps", "4", run__log_every=3, objective__strength=2.0) == 0
    assert run(text, begun, tmp_path / "b", "--steps", "4", objective__strength=2.0) == 0
    mean, each = lines(tmp_path / "a")[0], lines(tmp_path / "b")[:3]
    for key in ("loss", "adversarial_loss", "discriminator_real_loss", "discriminator_fake_right"):
        assert mean[key] == pytest.approx(sum(line[key] for line in each) / 3, rel=1e-6), key
    for key in ("balance", "strength", "discriminator_grad_norm", "grad_norm"):
        assert mean[key] == each[-1][key] > 0, key
    assert mean["strength"] == pytest.approx(2.0 * 3 / 4)
    assert lines(tmp_path / "a")[-1]["valid_bits_per_patch"] > 0, "held-out rows are told as in stage 1"


def test_noise_on_real_patches_keeps_their_order_and_range(job_of: Any):
    opponent = job_of(objective__real_noise=0.25)[1]
    opponent.prepare(0)
    lesson = opponent._lessons[0]
    noised = opponent._noised(lesson)
    real = lesson.pixels.float() / 255
    assert float((noised - real).abs().max()) <= 0.25 and 0.1 < float((noised - real).abs().mean()) < 0.15
    assert torch.equal(noised > 0.5, real > 0.5) and float(noised.min()) >= 0 and float(noised.max()) <= 1
    assert torch.equal(noised, opponent._noised(lesson)), "drawn from where the row stands, not from a state"


# ------------------------------------------------------------------ stopping and going on

VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "gentle, between reports": (2, {"run__log_every": 3}),
    "published, with the balance of the step before": (1, PUBLISHED),
    "without context, with noise, recomputing": (2, PATCH | {"objective__real_noise": 0.3, "run__recompute": True}),
    "in bf16, decided fakes, cold layers": (
        2,
        {"run__precision": "bf16", "objective__fakes": "straight-through", "objective__hot_layers": 1},
    ),
    "fakes in the place before": (2, {"discriminator__positions": "same", "discriminator__hot_layers": 1}),
}


@pytest.mark.parametrize(
    "variant",
    [name if "balance" in name else pytest.param(name, marks=SLOW) for name in VARIANTS],
)
def test_resumed_duel_equals_the_uninterrupted_one(variant: str, text: Path, begun: Path, tmp_path: Path):
    stop, changes = VARIANTS[variant]
    assert run(text, begun, tmp_path / "a", "--steps", "4", "--stop-at", "3", **changes) == 0
    assert run(text, begun, tmp_path / "b", "--steps", "4", "--stop-at", str(stop), **changes) == 0
    assert resume(tmp_path / "b", "--stop-at", "3") == 0
    assert_same_duel(tmp_path / "a", tmp_path / "b")


def test_checkpoint_holds_the_discriminator_and_a_model_is_loaded_without_it(text: Path, begun: Path, tmp_path: Path):
    assert run(text, begun, tmp_path / "a", "--steps", "1") == 0
    manifest = read_manifest(newest(tmp_path / "a"))
    assert {f"{name}.safetensors" for name in FILES} == manifest["files"].keys()
    (newest(tmp_path / "a") / "discriminator.safetensors").unlink()
    model = load_model(tmp_path / "a")
    assert isinstance(model, Pixar)
    assert model.state_dict().keys() == tensors(tmp_path / "a", "model").keys()


def test_missing_discriminator_is_named_on_resume(
    text: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(text, begun, tmp_path / "a", "--steps", "2", "--stop-at", "1") == 0
    for name in ("discriminator_optimizer.safetensors", "discriminator.safetensors"):
        (newest(tmp_path / "a") / name).unlink()
        line = refused(capsys, resume(tmp_path / "a"))
        assert f"step_00000001/{name}: missing from the checkpoint" in line


# ------------------------------------------------------------------ what is refused


def refused(capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert status == 2
    rows = capsys.readouterr().err.strip().splitlines()
    assert [row for row in rows if row.startswith("error: ")] == rows[-1:]
    return rows[-1]


def test_stage_two_without_a_model_to_begin_with(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--preset", "pixar-adversarial", "--data", str(text), "--out", str(tmp_path / "a")]
    line = refused(capsys, main(flags))
    assert "objective.kind = 'adversarial' is stage 2" in line and "name a stage-1 run with --init" in line
    assert not (tmp_path / "a").exists()


@SLOW
def test_stage_two_of_a_model_that_does_not_write(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run_masked(text, tmp_path / "masked", "--steps", "1") == 0
    line = refused(capsys, run(text, tmp_path / "masked", tmp_path / "a", "--steps", "1"))
    assert "is a model of kind 'vit_mae', and the preset trains 'pixar'" in line


def test_resuming_stage_one_where_stage_two_is_meant(begun: Path, capsys: pytest.CaptureFixture[str]):
    line = refused(capsys, main(["--resume", str(begun), "--preset", "pixar-adversarial"]))
    assert "--preset cannot be used with --resume" in line and "start a new run with --init" in line


@SLOW
def test_run_that_never_saved_cannot_go_on(text: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(text, begun, tmp_path / "a", "--steps", "1") == 0
    marks = tmp_path / "a" / "run.json"
    marks.write_text(json.dumps(json.loads(marks.read_text()) | {"newest": None}))
    assert "start it again, with --init" in refused(capsys, resume(tmp_path / "a"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"objective__strength": -1.0}, "strength = -1.0 must not be negative"),
        ({"objective__strength_warmup_steps": -1}, "strength_warmup_steps = -1 must not be negative"),
        ({"objective__lag": 2}, "lag = 2 must be 0 or 1"),
        ({"objective__rollout": 9}, "rollout = 9 must be from 1 to 8"),
        ({"objective__rollout": 2, "objective__draw": "batch"}, 'rollout = 2 with draw = "batch"'),
        ({"objective__fakes": "hard"}, 'fakes = \'hard\' must be "soft" or "straight-through"'),
        ({"objective__draw": "row"}, 'draw = \'row\' must be "strip" or "batch"'),
        ({"objective__fakes_per_strip": 0}, "fakes_per_strip = 0 must be positive"),
        ({"objective__real_noise": 1.5}, "real_noise = 1.5 must lie between 0 and 1"),
        ({"objective__hot_layers": 3}, "objective.hot_layers = 3 must not exceed model.num_layers = 2"),
        ({"discriminator__hot_layers": 3}, "discriminator.hot_layers = 3 must not exceed model.num_layers = 2"),
        ({"discriminator__positions": "last"}, 'positions = \'last\' must be "next" or "same"'),
        ({"discriminator__kind": "cnn"}, "unknown kind 'cnn'; "),
        ({"discriminator__kind": "patch", "discriminator__positions": "same"}, "unknown key 'positions'"),
        ({"discriminator__kind": "patch", "discriminator__hot_layers": 1}, "unknown key 'hot_layers'"),
        ({"discriminator__width": 16}, "unknown key 'width'"),
        ({"discriminator__learning_rate": 0.0}, "learning_rate = 0.0 must be positive"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(f"{name}={item}" for name, item in value.items()),
)
def test_message_of_a_wrong_setting(
    changes: dict[str, Any], expected: str, text: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert expected in refused(capsys, run(text, begun, tmp_path / "a", "--steps", "1", **changes))
    assert not (tmp_path / "a").exists()


@SLOW
def test_greys_and_colours_cannot_be_judged(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grey = {"model__head": "regression", "render__color": "grey"}
    assert tiny_patches.run(text, tmp_path / "grey", "--steps", "1", **grey) == 0
    line = refused(capsys, run(text, tmp_path / "grey", tmp_path / "a", "--steps", "1"))
    assert "model.head = 'regression': a discriminator judges black and white" in line


def test_sharding_is_refused(text: Path, begun: Path, tmp_path: Path):
    settings = read_settings(presets.load("pixar-adversarial"), ["run.parallel=fsdp"], "test")
    with pytest.raises(UserError, match="set run.parallel=ddp"):
        adversarial.find_data(settings, Ranks(0, 2, torch.device("cpu")), None, None)  # pyright: ignore


@pytest.mark.parametrize(
    "name, strength, warmup, rate, judge, rows",
    [("pixar-adversarial", 10.0, 1000, 1e-4, 1e-5, 256), ("pixar-adversarial-published", 5.0, 100, 3e-5, 3e-5, 128)],
)
def test_recipes_say_what_the_specification_says(
    name: str, strength: float, warmup: int, rate: float, judge: float, rows: int
):
    """specs/pixar.md, sections 4.1 and 4.3."""
    settings = read_settings(presets.load(name), (), name)
    assert isinstance(settings, AdversarialSettings)
    objective, discriminator = settings.objective, settings.discriminator
    assert (objective.strength, objective.strength_warmup_steps, objective.fakes_per_strip) == (strength, warmup, 30)
    assert (settings.optimizer.learning_rate, discriminator.learning_rate) == (rate, judge)
    assert (settings.data.rows_per_step, discriminator.warmup_steps) == (rows, 100)
    assert isinstance(discriminator, ContextDiscriminatorConfig)


def test_gentle_recipe_ends_at_a_fifth_of_its_strength_and_a_tenth_of_its_rate():
    settings = read_settings(presets.load("pixar-adversarial"), (), "test")
    assert isinstance(settings, AdversarialSettings) and settings.run.steps == 200
    assert strength_at(settings.objective, 199) == pytest.approx(2.0)
    assert learning_rate_factor(settings.schedule, 199, 200) == pytest.approx(0.1)
