"""The families of models that benchmarks/mini.py compares: what each is made of, and how long each may train.

All trunks have as many layers, of the same width and with as many parameters. What goes in and comes out differs, as it
must, and is told in the table: patches need a map, a vocabulary needs an embedding, PIXEL has a decoder that is thrown
away after pretraining, a mixture scores as many patches as it has components.

Steps follow from the accounting (pixelcore/accounting*.py), asked about the very rows and blocks that training reads,
not about full ones. A run that would miss the budget by more than 1 % is refused, which happens where it has so few
steps that one of them is 2 % of it.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import presets
from benchmarks.mini_plan import PIXEL_PATCHES, TASK_OPTIONS, Budget
from pixelcore.accounting import flops_per_token, num_parameters
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.accounting_vit import strip_flops, tokens_flops
from pixelcore.config import DecoderConfig, ModelConfig, PixarConfig, TokenMLMConfig, ViTMAEConfig
from pixelcore.errors import UserError
from pixelcore.masking import draw_masks
from train.config import DrawnSettings, MaskedTokenSettings, Settings, StripSettings, TokenizedSettings
from train.distributed import Ranks
from train.job import read_settings
from train.objectives import OBJECTIVES

TOLERANCE = 0.01  # by which a family may miss the budget, so that no two are further than 2 % apart
LONGEST = 529  # patches or tokens that an encoder has positions for
# PIXEL's rows grow: patches of a row, and the share of the budget (docs/experiments.md, entry 13)
PIXEL_STAGES = ((5, 0.15), (9, 0.25), (PIXEL_PATCHES, 0.6))
_BLOCKS = 400  # of tokens, whose documents are counted


@dataclass(frozen=True)
class Family:
    """name: as in the table. preset: of its pretraining. tokens: "", "bytes" or "bpe". tasks: what it is fine-tuned on,
    and the preset for it; changes of a task preset whose kinds are others. longest: units of a text in fine-tuning."""

    key: str
    name: str
    preset: str
    tokens: str
    tasks: dict[str, str]
    task_model: dict[str, Any]
    longest: int


_OF_TOKENS = {"classify": "token-tiny-pos", "tag": "token-tiny-pos"}
FAMILIES = {
    family.key: family
    for family in (
        Family(
            "pixel",
            "PIXEL, masked patches",
            "pixel-novels",
            "",
            {"classify": "pixel-tiny-sib", "tag": "pixel-tiny-pos"},
            {},
            256,
        ),
        Family("encoder-bpe", "token encoder, BPE", "token-tiny-mlm", "bpe", _OF_TOKENS, {}, 256),
        Family("encoder-bytes", "token encoder, bytes", "token-tiny-mlm", "bytes", _OF_TOKENS, {}, 512),
        Family("pixar-bernoulli", "PIXAR, Bernoulli", "pixar-novels", "", {"classify": "pixar-85m-glue"}, {}, 360),
        Family("pixar-mixture", "PIXAR, mixture", "pixar-novels", "", {"classify": "pixar-85m-glue"}, {}, 360),
        Family("decoder-bpe", "decoder, BPE", "novels", "bpe", {"classify": "decoder-tiny-sib"}, {}, 256),
        Family("decoder-bytes", "decoder, bytes", "novels", "bytes", {"classify": "decoder-tiny-sib"}, {}, 512),
    )
}


@dataclass(frozen=True)
class Stage:
    """One run of pretraining. flops, characters: of a step, the mean. changes: to the preset."""

    name: str
    steps: int
    flops: float
    characters: float
    changes: dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A family with its model and its stages, of which the last one's run is the model that is measured."""

    family: Family
    config: ModelConfig
    stages: tuple[Stage, ...]

    @property
    def flops(self) -> float:
        return sum(stage.steps * stage.flops for stage in self.stages)

    @property
    def characters(self) -> float:
        """That training reads."""
        return sum(stage.steps * stage.characters for stage in self.stages)

    @property
    def trunk_parameters(self) -> int:
        """Of the layers alone: what is equal."""
        one, two = (num_parameters(replace(self.config, num_layers=layers)) for layers in (1, 2))
        return (two - one) * self.config.num_layers


def arm_of(key: str, budget: Budget, runs: Path) -> Arm:
    """The model of a family, with the steps that the budget pays for. Raises UserError where it pays for too few."""
    family = FAMILIES[key]
    parts = PIXEL_STAGES if key == "pixel" else ((budget.row_patches, 1.0),)
    stages: list[Stage] = []
    config, left = None, budget.flops
    for number, (length, share) in enumerate(parts):
        changes = _changes(family, budget, runs, length)
        settings, flops, characters = priced(family.preset, changes, runs)
        is_last = number == len(parts) - 1
        steps = max(1, round((left if is_last else share * budget.flops) / flops))
        left -= steps * flops
        config = settings.model
        stages.append(Stage("" if is_last else f"-stage{number}", steps, flops, characters, changes))
    assert config is not None
    arm = Arm(family, config, tuple(stages))
    if abs(arm.flops / budget.flops - 1) > TOLERANCE:
        raise UserError(
            f"{family.name}: {stages[-1].steps} steps cost {arm.flops:.4g} FLOPs, more than {TOLERANCE:.0%} from the "
            f"budget of {budget.flops:.4g}: choose a larger budget, or a smaller step"
        )
    return arm


# ------------------------------------------------------------------ what a run is


def _changes(family: Family, budget: Budget, runs: Path, length: int) -> dict[str, Any]:
    """What a family's run changes in its preset. length: patches of a row."""
    changes: dict[str, Any] = {
        "model.num_layers": budget.layers,
        "model.hidden_size": budget.width,
        "model.num_attention_heads": budget.heads,
        "data.split": "by-document",
        "data.test": [],
        "run.keep_last": 1,
    }
    is_encoder = "tag" in family.tasks
    changes["model.intermediate_size"] = 4 * budget.width if is_encoder else budget.gated
    role = "txt" if family.key == "pixel" else "jsonl"
    changes["data.paths"] = [str((runs / f"training.{role}").absolute())]
    changes["data.valid"] = [str((runs / f"held-out.{role}").absolute())]
    if family.key == "pixel":
        rows = max(1, budget.units // (4 * length))
        return changes | {
            "model.num_patches": LONGEST,
            "model.decoder_num_layers": max(1, budget.layers // 2),
            "model.decoder_hidden_size": 2 * budget.width // 3,
            "model.decoder_num_attention_heads": budget.heads if budget.heads % 3 else 2 * budget.heads // 3,
            "model.decoder_intermediate_size": 8 * budget.width // 3,
            "data.row_patches": length,
            "data.min_patches": length - 1,
            "data.workers": budget.workers,
            "data.rows_per_step": rows,
            "eval.read_rows": 0,
            "eval.picture_rows": 0,
            "eval.max_rows": max(64, budget.read_rows),
            "run.micro_batch_blocks": rows,
        }
    if family.preset == "pixar-novels":
        rows = max(1, budget.units // length)
        is_mixture = family.key == "pixar-mixture"
        return changes | {
            "model.head": "mixture" if is_mixture else "bernoulli",
            "model.num_components": budget.components if is_mixture else 1,
            "data.row_patches": length,
            "data.min_patches": 2,
            "data.workers": budget.workers,
            "data.rows_per_step": rows,
            "eval.max_rows": 64,
            "eval.picture_rows": 0,
            "eval.words": 0,
            "run.micro_batch_blocks": min(rows, 16),
        }
    block = min(256, budget.units)
    changes |= {
        "data.block_size": block,
        "data.tokens_per_step": budget.units // block * block,
        "tokenizer.kind": family.tokens,
        "tokenizer.path": str((runs / "bpe.model").absolute()) if family.tokens == "bpe" else "",
        "model.vocab_size": budget.pieces if family.tokens == "bpe" else 260,
        "run.micro_batch_blocks": min(8, budget.units // block),
        "eval.max_tokens": 20_000,
    }
    if is_encoder:  # as much is hidden as of PIXEL's patches
        return changes | {"model.max_tokens": LONGEST, "objective.ratio": 0.25}
    return changes | {"model.context_length": 512, "model.num_key_value_heads": budget.heads, "eval.prompts": []}


def priced(preset: str, changes: Mapping[str, Any], runs: Path) -> tuple[Settings, float, float]:
    """The settings of a run, and what a step of it costs and reads, the mean: FLOPs and characters."""
    settings = read_settings(presets.load(preset), overrides(changes), f"preset {preset}")
    objective = OBJECTIVES[settings.objective.kind]
    corpus, settings = objective.find_data(settings, Ranks(0, 1, torch.device("cpu")), None, None)
    rows = [json.loads(line)["text"] for line in (runs / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    characters = sum(map(len, rows))
    if isinstance(settings, DrawnSettings):
        lengths, counts = np.unique(
            np.concatenate([store.num_patches for store in corpus.training]), return_counts=True
        )
        costs = [_strip(settings, int(length)) for length in lengths]
        cost, number = float((np.array(costs) * counts).sum()), int(counts.sum())
        return settings, cost / number * settings.data.rows_per_step, characters / number * settings.data.rows_per_step
    assert isinstance(settings, TokenizedSettings)
    blocks = [source.read(place) for source in corpus.training for place in _evenly(len(source), _BLOCKS)]
    cost = sum(_piece(settings, length) for block in blocks for length in block.lengths) / len(blocks)
    number = sum(map(len, corpus.training))
    in_step = settings.data.tokens_per_step // settings.data.block_size
    return settings, cost * in_step, characters / number * in_step


def _evenly(number: int, most: int) -> Sequence[int]:
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist()


def _strip(settings: DrawnSettings, length: int) -> float:
    """Training on one strip of so many patches."""
    if isinstance(settings, StripSettings):
        hidden = _hidden(settings.objective.rule, length, settings.objective.ratio)
        return strip_flops(settings.model, length, hidden, settings.render.channels)
    assert isinstance(settings.model, PixarConfig)
    rows = length - (not settings.model.start_vector)
    return rows * flops_per_patch(settings.model, rows)


def _piece(settings: TokenizedSettings, length: int) -> float:
    """Training on one document of so many questions, or on as much of it as a block holds."""
    if isinstance(settings, MaskedTokenSettings):
        # the last token of nearly every piece is </s>, which is never hidden
        hidden = _hidden(settings.objective.rule, length - 1, settings.objective.ratio) if length > 2 else 0
        return tokens_flops(settings.model, length, hidden)
    assert isinstance(settings.model, DecoderConfig)
    return length * flops_per_token(settings.model, length)


def _hidden(rule: str, length: int, ratio: float) -> int:
    return int(np.count_nonzero(draw_masks(rule, [length], [0], ratio)))


# ------------------------------------------------------------------ commands


def overrides(changes: Mapping[str, Any]) -> list[str]:
    """As --set takes them."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in changes.items()]


def run_of(arm: Arm, stage: Stage, seed: int, runs: Path) -> Path:
    return runs / f"{arm.family.key}-{seed}{stage.name}"


def pretraining(arm: Arm, seed: int, runs: Path, device: str) -> Iterator[tuple[Path, list[str]]]:
    """The runs of pretraining and the flags of each, stage by stage."""
    before: Path | None = None
    for stage in arm.stages:
        run = run_of(arm, stage, seed, runs)
        is_short = bool(stage.name)
        changes = stage.changes | {
            "schedule.shape": "constant" if is_short else "cosine",
            "schedule.warmup_steps": max(1, stage.steps // 20),
            "eval.every": stage.steps,
            "run.log_every": max(1, stage.steps // 100),
            "run.save_every": max(1, stage.steps // 2),
        }
        begun = [] if before is None else ["--init", str(before)]
        flags = ["--preset", arm.family.preset, "--steps", str(stage.steps), *begun]
        yield run, started(run, flags, changes, seed, device)
        before = run


def fine_tuning(arm: Arm, task: str, folder: Path, budget: Budget, seed: int, runs: Path, device: str):
    """The run on a task, and its flags: one recipe for all."""
    steps = budget.fine_steps[task]
    family = arm.family
    changes: dict[str, Any] = {
        **{f"objective.{name}": value for name, value in {"kind": task, **TASK_OPTIONS[task]}.items()},
        "data.max_patches": family.longest,
        "data.rows_per_step": 16,
        "optimizer.learning_rate": 5e-4,
        "optimizer.betas": [0.9, 0.98],
        "optimizer.weight_decay": 0.01,
        "schedule.shape": "linear",
        "schedule.warmup_steps": steps // 10,
        "schedule.final_ratio": 0.0,
        "eval.every": max(1, math.ceil(steps / (6 if task == "classify" else 2))),
        "eval.patience": 0,
        "run.log_every": max(1, steps // 20),
        "run.save_every": steps,
        "run.keep_last": 1,
        "run.micro_batch_blocks": 16,
    }
    if isinstance(arm.config, TokenMLMConfig):
        changes["model.task"] = "sequence" if task == "classify" else "token"
    if isinstance(arm.config, TokenMLMConfig | DecoderConfig):
        changes["tokenizer.kind"] = family.tokens
    if isinstance(arm.config, PixarConfig):
        changes |= {"objective.detokenise": "none", "data.max_patches": family.longest}
    if isinstance(arm.config, ViTMAEConfig | TokenMLMConfig):
        changes["model.hidden_dropout"] = 0.1
    run = runs / f"{family.key}-{seed}-{task}"
    init = run_of(arm, arm.stages[-1], seed, runs)
    flags = ["--preset", family.tasks[task], "--steps", str(steps), "--init", str(init), "--data", str(folder)]
    return run, started(run, flags, changes, seed, device)


def started(run: Path, flags: list[str], changes: Mapping[str, Any], seed: int, device: str) -> list[str]:
    """The command that starts a run or goes on with it; none for one that is finished."""
    command = [sys.executable, "-m", "train", "--device", device]
    if (run / "run.json").exists():
        finished = json.loads((run / "run.json").read_text())["finished"]
        return [] if finished else [*command, "--resume", str(run)]
    changed = [word for change in overrides(changes) for word in ("--set", change)]
    return [*command, *flags, "--seed", str(seed), "--out", str(run), *changed]
