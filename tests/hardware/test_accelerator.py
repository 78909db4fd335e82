"""Machine files: every shipped one loads, every number has a source, mistakes are named."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError, UnsupportedError
from hwsim.hardware.accelerator import Accelerator, sources_of, unsourced_numbers
from hwsim.spec import Spec, dump_yaml, load_yaml

ROOT = Path(__file__).resolve().parents[2]
MACHINES = sorted(
    path for path in (ROOT / "accelerators").glob("*.yaml") if "accelerator/1" in path.read_text().splitlines()[0]
)

MINIMAL = """schema: accelerator/1
name: my_chip
clock: {clock_ghz: 1.0, source: "our RTL"}
arrays: {rows: 8, cols: 8, macs_per_cycle: {int8: 128, float16: 64}, source: "our RTL"}
vector: {lanes: 8, source: "our RTL"}
memories:
  - {name: scratchpad, capacity_kib: 64, bytes_per_cycle: 64, source: "our RTL"}
dram: {kind: lpddr4, peak_gb_per_s: 12.8, source: "data sheet of the part"}
"""


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_every_shipped_machine_loads_and_every_number_has_a_source(path):
    machine = load_yaml(path, Accelerator)
    assert machine.name == path.stem
    assert not list(unsourced_numbers(machine))
    assert {place for place, _ in sources_of(machine)} >= {"clock", "arrays", "vector", "memories[0]", "dram"}


def test_a_number_without_a_source_is_found():
    class Bare(Spec):
        watts: float

    class Holder(Spec):
        bare: Bare
        name: str = "x"

    assert list(unsourced_numbers(Holder(bare=Bare(watts=3.0)))) == ["bare.watts"]


def test_a_user_writes_a_machine_in_a_few_lines_and_it_round_trips():
    machine = load_yaml(MINIMAL, Accelerator)
    assert machine.dram_bytes_per_cycle == Fraction(64, 5)
    assert load_yaml(dump_yaml(machine), Accelerator) == machine


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('{clock_ghz: 1.0, source: "our RTL"}', "{clock_ghz: 1.0}", "clock.source: missing"),
        ("bytes_per_cycle: 64", "bytes_per_cycle: '64 B'", "memories[0].bytes_per_cycle"),
        ("lanes: 8", "lanes: 0", "vector.lanes"),
        ("float16: 64", "float17: 64", "float17"),
        ("kind: lpddr4", "kind: lpddr4, latency_us: 1", "latency_us"),
        ("name: scratchpad", "name: dram", "taken by another resource"),
    ],
)
def test_mistakes_are_named_in_one_line(old, new, expected):
    with pytest.raises(SpecError) as caught:
        load_yaml(MINIMAL.replace(old, new), Accelerator, file="my_chip.yaml")
    assert expected in str(caught.value)
    assert all(problem.startswith("my_chip.yaml:") for problem in caught.value.problems)


def test_unlisted_formats_run_at_the_rate_of_the_next_wider_one():
    arrays = load_yaml(MINIMAL, Accelerator).arrays
    int8, float8, fixed, float16, float32 = map(
        parse_format, ("int8", "float8_e4m3fn", "fixed12.4", "float16", "float32")
    )
    assert arrays.rate_of(int8) == 128
    assert arrays.rate_of(float8) == 128  # stored in the 8-bit lanes
    assert arrays.rate_of(fixed) == 64
    assert arrays.rate_of(int8, float16) == 64
    with pytest.raises(UnsupportedError, match="no format of at least 32 bits for float32"):
        arrays.rate_of(float32)


def test_a_heap_needs_its_limit():
    with pytest.raises(SpecError, match="kept_limit"):
        load_yaml(
            MINIMAL + 'select: {method: heap, elements_per_cycle: 1, source: "our RTL"}\n', Accelerator, file="x.yaml"
        )
