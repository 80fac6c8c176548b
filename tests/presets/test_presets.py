"""The preset reader: what comes out, what goes back in, and what a wrong preset is told."""

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import presets
from presets import PresetError, read, write


@dataclass(frozen=True, kw_only=True)
class Experts:
    num_experts: int = 4
    top_k: int = 2
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k = {self.top_k} must be at most\nnum_experts = {self.num_experts}")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    kind: ClassVar[str] = "decoder"
    width: int
    num_heads: int
    dropout: float = 0.0
    tied: bool = True
    moe: Experts | None = None
    window: int | None = None

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} must be a multiple of num_heads = {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    kind: ClassVar[str] = "encoder"
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    weight: float = 1.0
    field: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    split: str | tuple[str, ...] = "by-file"
    sources: tuple[Source, ...] = ()
    grid: tuple[int, float] = (1, 0.5)
    order: Literal["shuffled", "as-is", 0] = "shuffled"
    limit: int | float | None = None


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    clip: float | None = 1.0
    experts: Experts = field(default_factory=lambda: Experts(num_experts=16, top_k=8))
    computed: int = field(init=False, default=0)


MODELS = {"decoder": Decoder, "encoder": Encoder}
TABLES = {"model": MODELS, "data": Data, "optimizer": Optimizer}
MODEL = '[model]\nkind = "decoder"\nwidth = 8\nnum_heads = 2\n'


def read_one(cls: Any, text: str, *overrides: str) -> Any:
    return read(text, {"t": cls}, overrides)["t"]


def message(text: str, *overrides: str, tables: Any = TABLES, where: str = "preset 'x'") -> str:
    with pytest.raises(PresetError) as caught:
        read(text, tables, overrides, where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what comes out


def test_tables_become_the_dataclasses_that_the_caller_passes():
    configs = read(MODEL + "[model.moe]\nnum_experts = 8\n[data]\nsplit = ['a', 'b']\n", TABLES)
    assert configs == {
        "model": Decoder(width=8, num_heads=2, moe=Experts(num_experts=8)),
        "data": Data(split=("a", "b")),
        "optimizer": Optimizer(),
    }
    assert list(configs) == list(TABLES)


def test_kind_chooses_the_class():
    assert read('[model]\nkind = "encoder"', TABLES)["model"] == Encoder()


def test_a_single_class_accepts_its_own_kind_only():
    assert read_one(Encoder, '[t]\nkind = "encoder"\ndepth = 3') == Encoder(depth=3)
    assert read_one(Encoder, "[t]\ndepth = 3") == Encoder(depth=3)
    assert "kind = 'decoder' must be 'encoder'" in message('[t]\nkind = "decoder"', tables={"t": Encoder})


def test_an_integer_is_accepted_where_a_float_is_meant():
    source = read_one(Source, "[t]\npath = 'a'\nweight = 2")
    assert source.weight == 2.0 and type(source.weight) is float


def test_an_integer_stays_one_where_both_are_allowed():
    assert type(read_one(Data, "[t]\nlimit = 3").limit) is int
    assert type(read_one(Data, "[t]\nlimit = 3.0").limit) is float


def test_arrays_become_tuples_of_checked_values():
    data = read_one(Data, '[t]\ngrid = [2, 3]\nsplit = ["a"]\n[[t.sources]]\npath = "x"\n[[t.sources]]\npath = "y"')
    assert data == Data(grid=(2, 3.0), split=("a",), sources=(Source(path="x"), Source(path="y")))


def test_a_required_key_that_may_be_none_may_be_absent():
    @dataclass(frozen=True, kw_only=True)
    class Limit:
        steps: int | None

    assert read_one(Limit, "[t]") == Limit(steps=None)
    assert read_one(Limit, "") == Limit(steps=None)


def test_a_partial_nested_table_keeps_the_rest_of_its_default():
    assert read_one(Optimizer, "[t.experts]\ntop_k = 4").experts == Experts(num_experts=16, top_k=4)


# --- what a wrong preset is told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODEL + "num_head = 4", "preset 'x': model: unknown key 'num_head'; did you mean 'num_heads'?"),
        (MODEL + "zzz = 4", "model: unknown key 'zzz'; known: width, num_heads, dropout, tied, moe, window"),
        (MODEL + "[modle]", "preset 'x': unknown table 'modle'; did you mean 'model'?"),
        (MODEL + "[model.moe]\ntopk = 1", "model.moe: unknown key 'topk'; did you mean 'top_k'?"),
        ("[model]\nkind = 'decodr'", "model: unknown kind 'decodr'; did you mean 'decoder'?"),
        ("[model]\nkind = 3", "model: unknown kind 3; known: decoder, encoder"),
        ("[model]\nwidth = 8", "model: missing key 'kind'; kinds: decoder, encoder"),
        ("", "preset 'x': missing table [model], which must set kind"),
        ("[model]\nkind = 'decoder'", "model: missing keys 'width', 'num_heads'"),
        ("[model]\nkind = 'decoder'\nwidth = 8", "model: missing key 'num_heads'"),
        ("model = 3", "model: must be a table, got 3"),
        ("[[model]]", "model: must be a table, got an array"),
        ("a = 3\n", "preset 'x': unknown table 'a'"),
        ("[model", "preset 'x': not valid TOML: "),
        (MODEL + "tied = 1", "model.tied: expected true or false, got 1"),
        (MODEL + "dropout = true", "model.dropout: expected a number, got true"),
        (MODEL + "window = true", "model.window: expected an integer, got true"),
        (MODEL + "window = 1.0", "model.window: expected an integer, got 1.0"),
        (MODEL + "window = 2020-01-01", "model.window: expected an integer, got 2020-01-01"),
        (MODEL + "moe = 3", "model.moe: expected a table, got 3"),
        (MODEL + "[data]\nsplit = 3", "data.split: expected a string or an array, got 3"),
        (MODEL + "[data]\nsplit = ['a', 3]", "data.split[1]: expected a string, got 3"),
        (MODEL + "[data]\nsplit = {a = 1}", "data.split: expected a string or an array, got a table"),
        (MODEL + "[data]\ngrid = [1]", "data.grid: expected 2 values, got 1"),
        (MODEL + "[data]\norder = 'random'", "data.order: expected one of 'shuffled', 'as-is', 0, got \"random\""),
        (MODEL + "[data]\norder = false", "data.order: expected one of"),
        (MODEL + "[data]\nsources = [{path = 'a'}, {pth = 'b'}]", "data.sources[1]: unknown key 'pth'"),
        (MODEL + "[optimizer]\ncomputed = 1", "optimizer: unknown key 'computed'"),
        (
            MODEL.replace("8", "9"),
            "preset 'x': model: width = 9 must be a multiple of num_heads = 2",
        ),
        (MODEL + "[model.moe]\ntop_k = 5", "model.moe: top_k = 5 must be at most num_experts = 4"),
    ],
)
def test_message_of_a_wrong_preset(text: str, expected: str):
    assert expected in message(text)


def test_a_missing_table_names_what_it_must_set():
    assert message("", tables={"t": Decoder}).endswith("missing table [t], which must set width, num_heads")


def test_a_type_that_no_preset_can_hold_is_a_fault_of_the_dataclass():
    @dataclass(frozen=True, kw_only=True)
    class Bad:
        when: bytes = b""
        which: Experts | Source | None = None

    with pytest.raises(TypeError, match="bytes"):
        read_one(Bad, "[t]\nwhen = 'a'")
    with pytest.raises(TypeError, match="cannot tell these apart"):
        read_one(Bad, "[t]\nwhich = {}")


def test_errors_other_than_value_errors_are_not_hidden():
    @dataclass(frozen=True, kw_only=True)
    class Broken:
        def __post_init__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read_one(Broken, "[t]")


# --- overrides


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("t.text=abc", "text", "abc"),
        ("t.text=a.b=c", "text", "a.b=c"),
        ("t.text=", "text", ""),
        ('t.text="3"', "text", "3"),
        ("t.text=1\nnumber=2", "text", "1\nnumber=2"),
        ("t.text=a # b", "text", "a # b"),
        (" t.number = 3 ", "number", 3.0),
        ("t.number=1e-4", "number", 1e-4),
        ("t.number=inf", "number", math.inf),
        ("t.flag=false", "flag", False),
        ('t.items=["a", "b"]', "items", ("a", "b")),
    ],
)
def test_an_override_is_toml_else_a_string(override: str, name: str, value: object):
    @dataclass(frozen=True, kw_only=True)
    class Values:
        text: str = "before"
        number: float = 0.5
        flag: bool = True
        items: tuple[str, ...] = ()

    assert getattr(read_one(Values, "[t]\ntext = 'before'", override), name) == value


def test_overrides_reach_nested_tables_that_the_preset_does_not_have():
    model = read(MODEL, TABLES, ["model.moe.num_experts=8", "model.width=16"])["model"]
    assert model == Decoder(width=16, num_heads=2, moe=Experts(num_experts=8))
    assert read(MODEL, TABLES, ["model.moe={top_k = 1}"])["model"].moe == Experts(top_k=1)  # pyright: ignore


def test_an_override_may_bring_a_whole_table_and_the_last_one_wins():
    assert read("", {"t": Encoder}, ["t.depth=3", "t.depth=4"])["t"] == Encoder(depth=4)
    assert read("", TABLES, ["model.kind=encoder"])["model"] == Encoder()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_head=3", "model.num_head=3: model: unknown key 'num_head'; did you mean 'num_heads'?"),
        ("modle.width=3", "modle.width=3: unknown table 'modle'; did you mean 'model'?"),
        ("zzz.width=3", "zzz.width=3: unknown table 'zzz'; known: model, data, optimizer"),
        ("model.mo.top_k=3", "model.mo.top_k=3: model: unknown key 'mo'"),
        ("model.moe={topk = 3}", "model.moe={topk = 3}: model.moe: unknown key 'topk'; did you mean 'top_k'?"),
        ("model.width=abc", 'model.width=abc: model.width: expected an integer, got "abc"'),
        ("model.width.x=3", "model.width.x=3: model.width is 8, not a table that could hold 'x'"),
        ("model.window.x=3", "model.window.x=3: model.window: expected an integer, got a table"),
        ("model.kind=decodr", "model.kind=decodr: model: unknown kind 'decodr'; did you mean 'decoder'?"),
        ("model.width=9", "preset 'x' with model.width=9: model: width = 9 must be a multiple of num_heads = 2"),
        ("model.width", "'model.width' is not an override: write TABLE.KEY=VALUE; tables: model, data, optimizer"),
        ("model=3", "'model=3' is not an override"),
        ("model.=3", "'model.=3' is not an override"),
        ("", "'' is not an override"),
    ],
)
def test_message_of_a_wrong_override(override: str, expected: str):
    assert message(MODEL, override).startswith(expected)


def test_a_mistake_of_the_text_is_not_blamed_on_an_override():
    assert message(MODEL + "zzz = 1", "model.dropout=0.1").startswith("preset 'x': model: unknown key 'zzz'")
    assert message("a = 1\nmodel = 3", "model.width=1").startswith("model.width=1: model is 3, not a table")


# --- and back


def round_trip(configs: dict[str, object], tables: Any = TABLES) -> str:
    text = write(configs)
    assert read(text, tables) == configs
    assert write(read(text, tables)) == text
    return text


def test_written_configs_read_back_equal():
    text = round_trip(
        {
            "model": Decoder(width=8, num_heads=2, dropout=1e-5, moe=Experts(names=("é\n", '"\\', "\x7f\x00"))),
            "data": Data(
                split=("a",),
                sources=(Source(path="C:\\x", weight=0.1), Source(path="y", field="text")),
                grid=(-1, -math.inf),
                order=0,
                limit=2.0,
            ),
            "optimizer": Optimizer(clip=1e22, experts=Experts(num_experts=16, top_k=16)),
        }
    )
    parsed = tomllib.loads(text)
    assert parsed["model"]["kind"] == "decoder"
    assert "window" not in parsed["model"] and "field" not in parsed["data"]["sources"][0]


def test_every_field_is_written_so_that_a_later_default_cannot_change_a_run():
    assert write({"t": Encoder()}) == '[t]\nkind = "encoder"\ndepth = 2\n'
    assert write({"t": Experts(), "u": Encoder(depth=1)}) == (
        '[t]\nnum_experts = 4\ntop_k = 2\nnames = []\n\n[u]\nkind = "encoder"\ndepth = 1\n'
    )


def test_a_none_that_would_come_back_as_something_else_is_refused():
    with pytest.raises(ValueError, match=r"Optimizer.clip = None cannot be written.*1\.0"):
        write({"optimizer": Optimizer(clip=None)})


def test_a_nested_default_stands_for_the_keys_that_its_table_leaves_out():
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        size: int
        limit: int | None = 3

    @dataclass(frozen=True, kw_only=True)
    class Outer:
        inner: Inner = field(default_factory=lambda: Inner(size=1, limit=None))

    assert read_one(Outer, "[t.inner]\nlimit = 5") == Outer(inner=Inner(size=1, limit=5))
    round_trip({"t": Outer()}, {"t": Outer})


@pytest.mark.parametrize("value", [3, {"a": 1}, None, Experts])
def test_only_dataclasses_are_written(value: object):
    with pytest.raises(TypeError, match="must be a dataclass"):
        write({"t": value})


def test_a_value_that_no_preset_can_hold_is_refused():
    with pytest.raises(TypeError, match="cannot hold"):
        write({"t": dataclasses.replace(Experts(), names=["a"])})  # pyright: ignore


@given(
    text=st.text(),
    number=st.floats(allow_nan=False),
    count=st.integers(-(2**62), 2**62),
    names=st.lists(st.text()).map(tuple),
    sources=st.lists(st.builds(Source, path=st.text(), weight=st.floats(allow_nan=False))).map(tuple),
)
def test_any_value_survives_the_round_trip(text, number, count, names, sources):
    data = Data(split=text, grid=(count, number), sources=sources, limit=number)
    round_trip({"data": data, "t": Data(split=names, limit=count)}, {"data": Data, "t": Data})


# --- the presets that come with the package


def test_every_preset_is_toml_of_tables():
    for name in presets.names():
        parsed = tomllib.loads(presets.load(name))
        assert parsed and all(isinstance(table, dict) for table in parsed.values()), name


def test_an_unknown_preset_names_the_nearest_and_all(tmp_path, monkeypatch):
    for name in ("pixel-tiny", "pixel-base", "demo"):
        (tmp_path / f"{name}.toml").write_text("[model]\n")
    (tmp_path / "notes.md").write_text("")
    monkeypatch.setattr(presets, "files", lambda package: tmp_path)
    assert presets.names() == ["demo", "pixel-base", "pixel-tiny"]
    assert presets.load("demo") == "[model]\n"
    with pytest.raises(PresetError, match=r"^unknown preset 'zzz'; presets: demo, "):
        presets.load("zzz")
    with pytest.raises(PresetError) as caught:
        presets.load("pixl-base")
    assert str(caught.value) == (
        "unknown preset 'pixl-base'; did you mean 'pixel-base'? presets: demo, pixel-base, pixel-tiny"
    )


@pytest.mark.parametrize("name", ["../pyproject", "demo.toml", "", "/etc/hostname"])
def test_a_path_is_not_a_preset(name: str):
    with pytest.raises(PresetError, match="unknown preset"):
        presets.load(name)
