"""Reading files: every kind of mistake is named with file, line and field, and nothing else gets through."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.document import parse_json, parse_yaml
from hwsim.errors import SpecError
from hwsim.spec import (
    CastField,
    Format,
    MacField,
    RoundingField,
    Spec,
    dump_json,
    dump_yaml,
    field_problem,
    field_problems,
    load_json,
    load_yaml,
)


class Array(Spec):
    kind: Literal["array"] = "array"
    rows: Annotated[int, Field(ge=1)]


class Vector(Spec):
    kind: Literal["vector"] = "vector"
    lanes: int = 4


class Memory(Spec):
    name: str
    bytes_per_cycle: Annotated[float, Field(gt=0)]
    ports: int | Literal["auto"] = "auto"


class Machine(Spec):
    SCHEMA: ClassVar[str | None] = "machine/1"

    name: str
    memories: tuple[Memory, ...] = ()
    flow: Literal["output_stationary", "weight_stationary"] = "weight_stationary"
    units: dict[str, Annotated[Array | Vector, Field(discriminator="kind")]] = Field(default_factory=dict)
    stored: Format = parse_format("bfloat16")
    rounding: RoundingField | None = None
    cast: CastField | None = None
    mac: MacField = MacSpec()
    notes: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rules(self) -> Machine:
        if self.name == "twin":
            raise field_problem("memories.0.name", "got a twin, expected one of a kind")
        if self.name == "triplets":
            raise field_problems([(("memories", 0), "first"), (("flow",), "second")])
        return self


HEAD = "schema: machine/1\nname: chip\n"


def problems(text: str, reader: Any = load_yaml) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        reader(text, Machine, file="chip.yaml")
    return caught.value.problems


def test_every_problem_of_a_file_comes_at_once_with_its_line() -> None:
    text = """\
schema: machine/1
name: 7
memories:
  - {name: l2, bytes_per_cycle: 64 B}
  - name: dram
    bytes_per_cycle: -1
    prts: 2
    ports: many
flow: weight_stationery
units:
  a: {kind: aray, rows: 1}
  b: {kind: array, rows: 0}
  c: {kind: array}
  d: {rows: 1}
stored: bfloat61
clok: 1
"""
    assert problems(text) == (
        "chip.yaml:2: name: got 7, expected text. Did you mean '7' in quotes?",
        "chip.yaml:4: memories[0].bytes_per_cycle: got '64 B', expected a positive number (the unit is in the key). "
        "Did you mean 64?",
        "chip.yaml:6: memories[1].bytes_per_cycle: got -1, expected a positive number",
        "chip.yaml:7: memories[1].prts: unknown key. Did you mean 'ports'?",
        "chip.yaml:8: memories[1].ports: got 'many', expected a whole number or 'auto'",
        "chip.yaml:9: flow: got 'weight_stationery', expected one of 'output_stationary', 'weight_stationary'. "
        "Did you mean 'weight_stationary'?",
        "chip.yaml:11: units.a: kind: got 'aray', expected one of array, vector. Did you mean 'array'?",
        "chip.yaml:12: units.b.rows: got 0, expected a whole number >= 1",
        "chip.yaml:13: units.c.rows: missing, it is required: a whole number >= 1",
        "chip.yaml:14: units.d: key kind is missing, expected one of array, vector",
        next(line for line in problems(text) if line.startswith("chip.yaml:15: stored: ")),
        "chip.yaml:16: clok: unknown key, expected one of cast, flow, mac, memories, name, notes, rounding, stored, "
        "units",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "name: again\n", "chip.yaml:3: name: stands twice, first in line 2"),
        (HEAD + "notes: {a: .nan}\n", "chip.yaml:3: notes.a: got .nan, expected a finite number"),
        (HEAD + "notes: {a: -.inf}\n", "chip.yaml:3: notes.a: got -.inf, expected a finite number"),
        (
            HEAD + "notes: !secret {a: b}\n",
            "chip.yaml:3: notes: got the tag !secret, expected plain values without tags",
        ),
        (HEAD + "<<: {a: b}\n", "chip.yaml:3: got the merge key '<<', expected the keys written out"),
        (HEAD + "? [a]\n: b\n", "chip.yaml:3: got a list or mapping as a key, expected text"),
        (HEAD + "memories: [\n", "chip.yaml:4: not valid YAML: while parsing a flow node"),
        (HEAD + "\tflow: x\n", "chip.yaml:3: not valid YAML: while scanning for the next token"),
        (HEAD + "---\nname: b\n", "chip.yaml:3: not valid YAML: expected a single document in the stream"),
        ("[" * 5000 + "\n", "chip.yaml: nested too deeply"),
        ("\n", "chip.yaml: is empty"),
        ("- 1\n", "chip.yaml:1: got list, expected a mapping (key: value)"),
        ("name: chip\n", "chip.yaml:1: schema: missing, expected 'schema: machine/1'"),
        (
            "schema: machine/3\nname: chip\n",
            "chip.yaml:1: schema: got 'machine/3', which is newer than the 'machine/1'",
        ),
        (
            "schema: machine/0\nname: chip\n",
            "chip.yaml:1: schema: got 'machine/0', which is older than the 'machine/1'",
        ),
        ("schema: engine/1\nname: chip\n", "chip.yaml:1: schema: got 'engine/1', expected 'machine/1'"),
        (HEAD + "memories: {name: l2}\n", "chip.yaml:3: memories: got a mapping, expected a list"),
        (HEAD + "notes: [1]\n", "chip.yaml:3: notes: got a list of 1, expected a mapping (key: value)"),
        (HEAD + "flow: 3\n", "chip.yaml:3: flow: got 3, expected one of 'output_stationary', 'weight_stationary'"),
        (
            HEAD + "units: {a: {kind: array, rows: true}}\n",
            "chip.yaml:3: units.a.rows: got true, expected a whole number",
        ),
        (
            HEAD + "units: {a: {kind: array, rows: 1.5}}\n",
            "chip.yaml:3: units.a.rows: got 1.5, expected a whole number",
        ),
        (
            HEAD + "cast: {format: int8, rounding: upward}\n",
            "chip.yaml:3: cast: rounding: got 'upward', expected one of",
        ),
        (HEAD + "cast: {fromat: int8}\n", "chip.yaml:3: cast: unknown key 'fromat', expected one of format, rounding"),
        (HEAD + "mac: {order: chunky(64)}\n", "chip.yaml:3: mac: order: got 'chunky(64)', expected one of"),
        (HEAD + "rounding: 3\n", "chip.yaml:3: rounding: got 3, expected a rounding such as"),
        (
            "schema: machine/1\nname: twin\nmemories:\n- name: a\n  bytes_per_cycle: 1\n",
            "chip.yaml:4: memories[0].name: got a twin, expected one of a kind",
        ),
    ],
)
def test_one_mistake_is_one_line(text: str, expected: str) -> None:
    (found,) = problems(text)
    assert found.startswith(expected), found


def test_a_rule_may_point_at_several_places() -> None:
    text = "schema: machine/1\nname: triplets\nflow: output_stationary\nmemories:\n- name: a\n  bytes_per_cycle: 1\n"
    assert problems(text) == ("chip.yaml:3: flow: second", "chip.yaml:5: memories[0]: first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"schema": "machine/1", "name": NaN}', "chip.yaml: got NaN, expected a finite number"),
        ('{"schema": "machine/1", "name": 1e999}', "chip.yaml: got 1e999, expected a number that float64 can hold"),
        ('{"schema": "machine/1", "name": "a", "name": "b"}', "chip.yaml: key 'name' stands twice in one mapping"),
        ('{\n"schema": "machine/1",\n"name": "a"', "chip.yaml:3: not valid JSON: cut short, expecting ',' delimiter"),
        ('{\n"schema": "machine/1",\n"name": "chi', "chip.yaml:3: not valid JSON: cut short, unterminated string"),
        ('{\n"schema": "machine/1",\n"name": 3\n}', "chip.yaml:3: name: got 3, expected text"),
        ('{"a": ' + "[" * 200_000, "chip.yaml: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "chip.yaml: holds a whole number too long to read"),
        ("{}", "chip.yaml:1: schema: missing, expected"),
    ],
)
def test_one_mistake_in_json_is_one_line(text: str, expected: str) -> None:
    assert problems(text, load_json)[0].startswith(expected)


def test_a_short_file_cannot_swell_into_a_huge_one() -> None:
    lines = ["a0: &a0 [1, 2]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "aliases count each use" in problems("\n".join(lines))[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1_000_000_000),
        ("no", "no"),
        ("on", "on"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1.0", 1.0),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("true", True),
        ("1:30", "1:30"),
        ("-.5", -0.5),
    ],
)
def test_scalars_are_read_by_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"x: {text}\n").data["x"]
    assert found == value
    assert type(found) is type(value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Any) -> None:
    with pytest.raises(SpecError, match=r"nothing\.yaml: no such file"):
        load_yaml(tmp_path / "nothing.yaml", Machine)
    with pytest.raises(SpecError, match="is a folder, expected a file"):
        load_yaml(tmp_path, Machine)
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(SpecError, match="not a text file"):
        load_yaml(tmp_path / "binary.yaml", Machine)


def test_what_is_written_reads_back_equal() -> None:
    chip = Machine(
        name="chip: no. 1",
        memories=[Memory(name="l2", bytes_per_cycle=0.1)],
        units={"a": Array(rows=3), "b": Vector()},
        mac={"accumulator": "bfloat16", "order": "chunked(64)"},
        cast={"format": "float8_e4m3fn", "overflow": "saturate"},
        rounding="stochastic8",
        notes={"a": "yes", "b": "1e3", "c": "line one\nline two\n"},
    )
    assert load_yaml(dump_yaml(chip), Machine) == chip
    assert load_json(dump_json(chip), Machine) == chip
    assert chip.mac == MacSpec("bfloat16", order="chunked(64)")


def test_a_value_made_in_python_is_checked_too() -> None:
    with pytest.raises(SpecError, match=r"Machine: memories\[0\].bytes_per_cycle: missing"):
        Machine(name="chip", memories=[{"name": "l2"}])
    with pytest.raises(SpecError, match="finite"):
        Memory(name="l2", bytes_per_cycle=math.inf)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Memory(name="l2", bytes_per_cycle=1).name = "l3"  # type: ignore[misc]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    for parse in (parse_yaml, parse_json):
        try:
            parse(text, "any")
        except SpecError as error:
            assert str(error).startswith("any")


@given(st.data())
def test_a_damaged_file_is_read_or_refused_by_name(data: st.DataObject) -> None:
    good = dump_yaml(Machine(name="chip", memories=[Memory(name="l2", bytes_per_cycle=2)], units={"a": Array(rows=3)}))
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 20)))
    text = good[:start] + data.draw(st.text(max_size=5)) + good[end:] + "\n"
    try:
        load_yaml(text, Machine, file="chip.yaml")
    except SpecError as error:
        assert str(error).startswith("chip.yaml")
