"""Presets: TOML files in, frozen dataclasses out, and back.

A preset is data: one TOML table per part of a run (`[model]`, `[optimizer]`, ...), with its provenance in comments. The
dataclasses belong to the packages that act on them, and the caller passes them in, so this package imports none of
them and a default is written once, in the dataclass. Reading is strict because a setting that is silently ignored
costs a training run: unknown tables and keys, missing keys and values of the wrong type stop with one line that names
the nearest thing that exists. `write` is the inverse of `read`, so the resolved configuration that a run saves is
enough to repeat it. TOML has no null: a key that may be None is None when it is absent.

Left out on purpose: inheritance between presets (a preset is read in one place), environment variables, and any type
beyond bool, int, float, str, Literal, tuples, nested dataclasses and unions of these.
"""

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

_MISSING = dataclasses.MISSING
_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class PresetError(ValueError):
    """A preset or an override that cannot be used; the message is one line and names the nearest remedy."""


def names() -> list[str]:
    """The presets that come with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


def load(name: str) -> str:
    """The TOML text of a preset. Raises PresetError with the nearest names, and all of them, if there is none."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known)
        question = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        raise PresetError(f"unknown preset {name!r}{question} presets: {', '.join(known) or 'none'}")
    return (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def read(
    text: str,
    tables: Mapping[str, type | Mapping[str, type]],
    overrides: Sequence[str] = (),
    where: str = "preset",
) -> dict[str, object]:
    """Turn TOML text into one frozen dataclass per table.

    tables: the class of each table, or a mapping from the table's key `kind` to a class. A table that the text leaves
        out gets the defaults of its class; where that is impossible, it is an error.
    overrides: `table.key=value` or `table.nested.key=value`; the value is TOML, and a plain string if it is not.
    where: what the text is, for messages ("preset 'demo'"); a message about an override names the override instead.

    Returns the dataclasses in the order of `tables`. Raises PresetError, also around a ValueError of a dataclass.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise PresetError(f"{where}: not valid TOML: {cause}") from cause
    origins = {}
    for item in overrides:
        origins[_override(raw, item, tables)] = item
    return _Reader(where, origins).tables(raw, tables)


def write(configs: Mapping[str, object]) -> str:
    """The resolved TOML text of dataclasses: read(write(x), ...) == x.

    Every field is written, except None. Raises TypeError for what no preset can hold, and ValueError where leaving
    None out would bring back a default that is not None.
    """
    return "\n".join("\n".join(_table_lines(name, config, base=None)) + "\n" for name, config in configs.items())


def _override(raw: dict[str, Any], item: str, tables: Iterable[str]) -> str:
    """Put one `a.b=v` into the parsed text, in place. Returns its dotted path."""
    path, equals, value = item.partition("=")
    path = path.strip()
    table, *keys = path.split(".")
    if not equals or not keys or not all(keys):
        raise PresetError(f"{item!r} is not an override: write TABLE.KEY=VALUE; tables: {', '.join(tables)}")
    if table not in tables:
        raise PresetError(f"{item}: unknown table {table!r}{_nearest(table, tables)}")
    target = raw.setdefault(table, {})
    for depth, key in enumerate(keys):
        if not isinstance(target, dict):
            parent = ".".join([table, *keys[:depth]])
            raise PresetError(f"{item}: {parent} is {_describe(target)}, not a table that could hold {key!r}")
        if depth == len(keys) - 1:
            target[key] = _override_value(value.strip())
        else:
            target = target.setdefault(key, {})
    return path


def _override_value(value: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    return parsed["value"] if len(parsed) == 1 else value


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Carries what a message needs to say where a wrong value came from: the text, or one of the overrides."""

    where: str
    origins: Mapping[str, str]  # dotted path -> the override that set it

    def fail(self, path: str, message: str, key: str = "") -> NoReturn:
        """One value or key is wrong: blame the override that brought it, else the text."""
        culprit = f"{path}.{key}." if key else f"{path}."
        source = self.where
        for origin, item in self.origins.items():
            if culprit.startswith(f"{origin}.") or f"{origin}.".startswith(culprit):
                source = item
        raise PresetError(f"{source}: {path}: {message}")

    def fail_table(self, path: str, message: str, cause: ValueError | None = None) -> NoReturn:
        """The values of a table do not fit together: name the text, and the overrides that had a hand in it."""
        touched = [item for origin, item in self.origins.items() if f"{origin}.".startswith(f"{path}.")]
        source = f"{self.where} with {', '.join(touched)}" if touched else self.where
        raise PresetError(f"{source}: {path}: {message}") from cause

    def tables(self, raw: dict[str, Any], tables: Mapping[str, type | Mapping[str, type]]) -> dict[str, object]:
        for name in raw:
            if name not in tables:
                raise PresetError(f"{self.where}: unknown table {name!r}{_nearest(name, tables)}")
        return {name: self.table(name, raw.get(name), choice) for name, choice in tables.items()}

    def table(self, name: str, raw: Any, choice: type | Mapping[str, type]) -> object:
        if raw is None:
            required = [] if isinstance(choice, Mapping) else _required(choice)
            if isinstance(choice, Mapping) or required:
                keys = "kind" if isinstance(choice, Mapping) else ", ".join(required)
                raise PresetError(f"{self.where}: missing table [{name}], which must set {keys}")
            raw = {}
        if not isinstance(raw, dict):
            self.fail(name, f"must be a table, got {_describe(raw)}")
        if not isinstance(choice, Mapping):
            return self.build(name, raw, choice, base=None)
        kind = raw.get("kind")
        if kind is None:
            self.fail_table(name, f"missing key 'kind'; kinds: {', '.join(choice)}")
        if not isinstance(kind, str) or kind not in choice:
            self.fail(name, f"unknown kind {kind!r}{_nearest(str(kind), choice)}", "kind")
        return self.build(name, {key: value for key, value in raw.items() if key != "kind"}, choice[kind], base=None)

    def build(self, path: str, raw: dict[str, Any], cls: type, base: object | None) -> object:
        """Construct `cls` from a table. base: the instance whose values stand for keys that the table leaves out."""
        hints, fields = get_type_hints(cls), _fields(cls)
        if "kind" in raw and _kind(cls) is not None:
            if raw["kind"] != _kind(cls):
                self.fail(path, f"kind = {raw['kind']!r} must be {_kind(cls)!r}", "kind")
            raw = {key: value for key, value in raw.items() if key != "kind"}
        for key in raw:
            if key not in fields:
                self.fail(path, f"unknown key {key!r}{_nearest(key, fields)}", key)
        missing = [key for key in _required(cls) if key not in raw] if base is None else []
        if missing:
            self.fail_table(path, f"missing key{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}")

        values = {}
        for key, field in fields.items():
            absent = _absent(field, base)
            if key in raw:
                values[key] = self.convert(f"{path}.{key}", raw[key], hints[key], absent)
            elif base is not None or _has_no_default(field):
                values[key] = absent
        try:
            return cls(**values)
        except ValueError as cause:
            self.fail_table(path, " ".join(str(cause).split()), cause)

    def convert(self, path: str, value: Any, hint: Any, absent: object = None) -> object:
        """Check a TOML value against a type and return it as that type: an array as a tuple, a table as a dataclass."""
        members = _members(hint)
        member = next((member for member in members if _fits(value, member)), None)
        if member is None and type(value) is int and float in members:
            member = float
        if member is None:
            expected = " or ".join(_expected(member) for member in members)
            self.fail(path, f"expected {expected}, got {_describe(value)}")
        if isinstance(value, list):
            return self.convert_array(path, value, member)
        if isinstance(value, dict):
            return self.build(path, value, member, absent if type(absent) is member else None)
        return float(value) if member is float else value

    def convert_array(self, path: str, values: list[Any], hint: Any) -> tuple[object, ...]:
        items = get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            items = (items[0],) * len(values)
        if len(items) != len(values):
            self.fail(path, f"expected {len(items)} values, got {len(values)}")
        return tuple(self.convert(f"{path}[{i}]", value, item) for i, (value, item) in enumerate(zip(values, items)))


def _fits(value: Any, member: Any) -> bool:
    """Whether a TOML value is of this kind at first sight; what is inside an array or a table is checked later."""
    if get_origin(member) is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(member))
    if isinstance(value, list):
        return get_origin(member) is tuple
    if isinstance(value, dict):
        return dataclasses.is_dataclass(member)
    return type(value) is member


def _members(hint: Any) -> list[Any]:
    """The types that a value may have, None apart. A type that no preset can hold is a fault of the dataclass."""
    members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    members = [member for member in members if member is not types.NoneType]
    for member in members:
        known = member in _SCALARS or get_origin(member) in (Literal, tuple) or dataclasses.is_dataclass(member)
        if not known:
            raise TypeError(f"a preset cannot hold a value of type {member!r}")
    if sum(dataclasses.is_dataclass(member) for member in members) > 1:
        raise TypeError(f"a preset cannot tell these apart: {hint!r}")
    return members


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    assert dataclasses.is_dataclass(cls), cls
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _required(cls: type) -> list[str]:
    """The keys that a table must have: no default, and None is not allowed."""
    hints = get_type_hints(cls)
    return [
        name
        for name, field in _fields(cls).items()
        if _has_no_default(field) and types.NoneType not in get_args(hints[name])
    ]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is _MISSING and field.default_factory is _MISSING


def _absent(field: dataclasses.Field[Any], base: object | None) -> object:
    """The value of a field whose key is absent; None where the key is required or may be None."""
    if base is not None:
        return getattr(base, field.name)
    if field.default_factory is not _MISSING:
        return field.default_factory()
    return None if field.default is _MISSING else field.default


def _kind(cls: type) -> str | None:
    """The class attribute `kind`, by which a table chooses its class; None where there is none or it is a field."""
    return None if "kind" in _fields(cls) else getattr(cls, "kind", None)


def _table_lines(path: str, config: object, base: object | None) -> list[str]:
    """base: the instance that a reader would start from, as in _Reader.build."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"[{path}] must be a dataclass, got {config!r}")
    lines, nested = [f"[{path}]"], []
    for name, value, absent in _written(config, base):
        if dataclasses.is_dataclass(value):
            nested += ["", *_table_lines(f"{path}.{name}", value, absent if type(absent) is type(value) else None)]
        else:
            lines.append(f"{name} = {_toml(value)}")
    return lines + nested


def _written(config: Any, base: object | None) -> list[tuple[str, object, object]]:
    """What to write of a dataclass: (key, value, what a reader would take without the key)."""
    kind = _kind(type(config))
    rows: list[tuple[str, object, object]] = [] if kind is None else [("kind", kind, None)]
    for name, field in _fields(type(config)).items():
        value, absent = getattr(config, name), _absent(field, base)
        if value is not None:
            rows.append((name, value, absent))
        elif absent is not None:
            cls = type(config).__name__
            raise ValueError(f"{cls}.{name} = None cannot be written: without the key it would be read as {absent!r}")
    return rows


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value))  # the shortest digits that read back as the same number
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets DEL through, TOML does not
    if isinstance(value, tuple):
        if any(dataclasses.is_dataclass(item) for item in value):
            return "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if dataclasses.is_dataclass(value):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item, _ in _written(value, base=None)) + "}"
    raise TypeError(f"a preset cannot hold {value!r}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the one that is close, else all there are."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _expected(member: Any) -> str:
    if member in _SCALARS:
        return _SCALARS[member]
    if get_origin(member) is Literal:
        return "one of " + ", ".join(map(repr, get_args(member)))
    return "an array" if get_origin(member) is tuple else "a table"


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    return _toml(value) if isinstance(value, bool | int | float | str) else str(value)
