"""Every preset makes the model it says, every setting does something, and the flags are the public interface's."""

import argparse
import ast
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

import presets
from pixelcore.accounting import card_number, num_parameters
from pixelcore.config import DecoderConfig, DecoderTrunkConfig, LoRAConfig, MoEConfig, PixarTrunkConfig
from pixelcore.models import MODELS
from tests.conftest import ROOT
from train.cli import _parser
from train.config import SETTINGS, SETTINGS_OF_TOKENS, DataConfig, Settings, StripDataConfig, Tables
from train.config_tasks import TaskDataConfig
from train.job import read_settings, tables_of

# specs/decoder.md, section 1: preset, overrides, the card's number, the real count
COUNTS = [
    ("100m", (), 87_785_472, 87_804_672),
    ("100m", ("model.vocab_size=1262",), 76_466_688, 76_485_888),
    ("100m", ("model.vocab_size=1262", "model.lora.rank=8"), 76_466_688, 77_788_416),
    ("1b", (), 1_197_998_080, 1_198_098_432),
    ("3b", (), 3_319_529_472, 3_319_729_152),
    ("3b", ("model.moe.num_experts=4",), 3_319_529_472, 5_131_766_784),
    ("7b", (), 5_801_771_008, 5_802_037_248),
    ("7b", ("model.moe.num_experts=8",), 5_801_771_008, 13_377_212_416),
]


def settings_of(name: str, overrides: tuple[str, ...] = ()) -> Settings:
    return read_settings(presets.load(name), overrides, f"preset {name}")


def count_on_meta(settings: Settings) -> int:
    config = settings.model
    with torch.device("meta"):
        model = MODELS[config.kind](config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_builds_and_writes_itself_back(name: str):
    settings = settings_of(name)
    config = settings.model
    assert count_on_meta(settings) == num_parameters(config)
    if isinstance(config, DecoderTrunkConfig):
        most = config.context_length
    else:
        most = config.max_patches if isinstance(config, PixarTrunkConfig) else config.num_units
    data = settings.data
    if isinstance(data, DataConfig):
        assert data.block_size <= most
    else:
        assert isinstance(data, StripDataConfig | TaskDataConfig)
        assert (data.row_patches if isinstance(data, StripDataConfig) else data.max_patches) <= most
    assert read_settings(presets.write(tables_of(settings)), (), "itself") == settings


@pytest.mark.parametrize("name, overrides, card, real", COUNTS, ids=lambda value: str(value))
def test_counts_of_the_specification(name: str, overrides: tuple[str, ...], card: int, real: int):
    settings = settings_of(name, overrides)
    assert isinstance(settings.model, DecoderConfig)
    assert count_on_meta(settings) == real
    assert card_number(settings.model) == card


def test_flags_are_those_of_the_public_interface():
    flags = {
        option: (action.metavar, type(action).__name__.strip("_"))
        for action in _parser()._actions
        for option in action.option_strings or [action.dest]
    }
    assert flags == {
        "-h": (None, "HelpAction"),
        "--help": (None, "HelpAction"),
        "command": ("COMMAND", "StoreAction"),
        "--preset": ("NAME", "StoreAction"),
        "--data": ("PATH", "AppendAction"),
        "--valid": ("PATH", "AppendAction"),
        "--init": ("PATH", "StoreAction"),
        "--out": ("RUN", "StoreAction"),
        "--resume": ("RUN", "StoreAction"),
        "--steps": ("N", "StoreAction"),
        "--stop-at": ("N", "StoreAction"),
        "--seed": ("S", "StoreAction"),
        "--seeds": ("A-B", "StoreAction"),
        "--compare": ("RUN", "StoreAction"),
        "--device": ("D", "StoreAction"),
        "--ops": ("O", "StoreAction"),
        "--set": ("a.b=v", "AppendAction"),
        "--json": (None, "StoreTrueAction"),
    }


def test_help_names_the_presets_and_the_commands():
    text = _parser().format_help()
    assert all(name in text for name in (*presets.names(), "tokenizer", "prepare"))


def test_abbreviated_flags_are_not_guessed():
    with pytest.raises(Exception, match="--pre"):
        _parser().parse_args(["--pre", "smoke"])


# ------------------------------------------------------------------ no option is dead


def attributes_read(folder: Path) -> Iterator[str]:
    """Every attribute that the code outside of config.py reads."""
    for file in folder.rglob("*.py"):
        if file.name != "config.py":
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    yield node.attr


def records() -> Iterator[type]:
    for _, tables in SETTINGS.values():
        for choice in tables.values():
            yield from choice.values() if isinstance(choice, Mapping) else [choice]
    yield from (MoEConfig, LoRAConfig)


@pytest.fixture(scope="module")
def read() -> set[str]:
    packages = ("pixelcore", "train", "infer", "kernels", "render")
    return {name for package in packages for name in attributes_read(ROOT / package)}


@pytest.mark.parametrize("record", list(dict.fromkeys(records())), ids=lambda record: record.__name__)
def test_every_setting_is_read_somewhere(record: type, read: set[str]):
    assert dataclasses.is_dataclass(record)
    assert [field.name for field in dataclasses.fields(record) if field.name not in read] == []


@pytest.mark.parametrize(
    ("record", "tables"), [*SETTINGS.values(), *SETTINGS_OF_TOKENS.values()], ids=[*SETTINGS, *SETTINGS_OF_TOKENS]
)
def test_tables_are_the_fields_of_the_settings(record: type[Settings], tables: Tables):
    assert set(tables) == {field.name for field in dataclasses.fields(record)}
    hints = typing.get_type_hints(record)
    choices = {name: choice.values() if isinstance(choice, Mapping) else [choice] for name, choice in tables.items()}
    said = {name: set(typing.get_args(hint) or [hint]) for name, hint in hints.items()}  # one record or several
    assert [name for name in tables if not said[name] <= set(choices[name])] == []


def test_defaults_are_written_once():
    parser = _parser()
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    assert {name for name, value in defaults.items() if value not in (None, [], False, argparse.SUPPRESS)} == {
        "command",
        "device",
        "ops",
    }, "a flag that stands for a setting has no default of its own"
