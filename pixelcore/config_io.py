"""Model configurations as the plain tables that checkpoints and exports store, and back.

A stored table is complete: it was written from a record, every field of it. So reading is strict, a field too many or
too few means that the file was edited by hand or comes from another version, and nothing is filled in by guessing. Only
a record that may be there or not, such as adapters, may be missing: there is none, and folders from before there could
be any say so by their silence.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from pixelcore.config import MODEL_CONFIGS, ModelConfig
from pixelcore.errors import UserError


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """Every field by name, nested records as tables; JSON can hold all of it (a tuple becomes a list there)."""
    return dataclasses.asdict(config)


def config_from_dict(kind: str, data: object, where: str = "model configuration") -> ModelConfig:
    """The configuration of a model of this kind. where: what an error calls the table, such as a file's path.

    Raises UserError for an unknown kind, unknown, missing or mistyped fields, and values the record refuses.
    """
    if kind not in MODEL_CONFIGS:
        raise UserError(f"{where}: kind = {kind!r} must be one of {sorted(MODEL_CONFIGS)}: use the version it is from")
    return record_from_dict(MODEL_CONFIGS[kind], data, where)


def record_from_dict(record: type[Any], data: object, where: str) -> Any:
    """A record of any such class from its table, as strictly: a fine-tuned model's checkpoint has one for its task."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a table of fields, found {type(data).__name__}: restore the file")
    expected = typing.get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    optional = {name for name in names if isinstance(expected[name], types.UnionType)}
    unknown = sorted(set(data) - set(names))
    missing = [name for name in names if name not in data and name not in optional]
    if unknown or missing:
        found = [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
        found += [f"missing {', '.join(map(repr, missing))}"] if missing else []
        raise UserError(
            f"{where}: {' and '.join(found)}; {record.__name__} has exactly {', '.join(names)}: restore the file, or "
            "use the version of pixelcore that wrote it"
        )
    values = {name: _value(expected[name], data.get(name), f"{where}: {name}") for name in names}
    try:
        return record(**values)
    except ValueError as cause:
        raise UserError(f"{where}: {cause}") from cause


def _value(expected: Any, value: object, where: str) -> Any:
    """`value` as the field's type: a table as a record, a list as a tuple, a whole number as a float."""
    if isinstance(expected, types.UnionType):  # "record or nothing" is the only union that configurations have
        if value is None:
            return None
        expected = next(choice for choice in typing.get_args(expected) if choice is not types.NoneType)
    if dataclasses.is_dataclass(expected):
        assert isinstance(expected, type)
        return record_from_dict(expected, value, where)
    if typing.get_origin(expected) is tuple:
        element = typing.get_args(expected)[0]
        if isinstance(value, list | tuple) and all(type(item) is element for item in value):
            return tuple(value)
        raise UserError(f"{where} = {value!r} must be a list of {element.__name__}: restore the file")
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(f"{where} = {value!r} must be of type {expected.__name__}: restore the file")
    return value
