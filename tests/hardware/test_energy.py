"""Prices: every number has a source, parts and items sum, formats and orders move energy as logic says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hwsim.arithmetic.mac import MacSpec, named_mac
from hwsim.arithmetic.named import named_formats, parse_format
from hwsim.errors import SpecError
from hwsim.hardware.energy import EnergyTable, itemize, load_energy_table
from hwsim.hardware.node_scaling import area_factor, energy_factor
from hwsim.hardware.price import Range, total
from hwsim.spec import dump_yaml, load_yaml

SHIPPED = ("energy_45nm", "energy_7nm")


@pytest.fixture(params=SHIPPED)
def table(request) -> EnergyTable:
    return load_energy_table(request.param)


def numbers_without_source(data, path="", covered=False):
    """Paths of numbers in plain data that no `source` beside or above them covers."""
    if isinstance(data, dict):
        covered = covered or bool(data.get("source"))
        for key, value in data.items():
            yield from numbers_without_source(value, f"{path}.{key}", covered)
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from numbers_without_source(value, f"{path}[{index}]", covered)
    elif isinstance(data, int | float) and not isinstance(data, bool) and not covered:
        yield path


def test_every_price_has_its_source(table):
    unsourced = set(numbers_without_source(table.model_dump()))
    # What names the table or defines a unit is no price.
    assert unsourced == {".node_nm", ".supply_v", ".sram.access_bits"}


def test_the_search_for_sources_finds_one_that_is_missing(table):
    data = table.model_dump()
    del data["logic"]["adder"]["source"]
    assert ".logic.adder.value[0]" in set(numbers_without_source(data))


def test_a_price_without_source_does_not_load():
    text = dump_yaml(load_energy_table("energy_45nm"))
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("source:"))
    last = first + 1
    indent = len(lines[first]) - len(lines[first].lstrip())
    while lines[last].strip() and len(lines[last]) - len(lines[last].lstrip()) > indent:
        last += 1
    with pytest.raises(SpecError, match="source"):
        load_yaml("\n".join(lines[:first] + lines[last:]) + "\n", EnergyTable)


def test_a_range_out_of_order_is_refused():
    text = dump_yaml(load_energy_table("energy_45nm")).replace("0.00305", "0.5", 1)
    with pytest.raises(SpecError, match="ascending order"):
        load_yaml(text, EnergyTable)


def test_users_swap_in_a_table_of_their_own(tmp_path: Path):
    text = dump_yaml(load_energy_table("energy_45nm")).replace("name: energy_45nm", "name: mine")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_energy_table(str(tmp_path / "mine.yaml")).name == "mine"
    with pytest.raises(SpecError, match="neither shipped"):
        load_energy_table("energy_3nm")


@pytest.mark.parametrize("name", sorted(named_formats()))
def test_parts_of_a_mac_sum_to_it_in_every_format(table, name):
    number = parse_format(name)
    parts = table.mac_parts_pj(MacSpec("float32"), number, number)
    whole = table.mac_pj(MacSpec("float32"), number, number)
    assert whole == total(parts.values())
    assert 0 < whole.low <= whole.nominal <= whole.high
    assert all(part.low >= 0 for part in parts.values())


def test_integers_pay_for_no_float_logic(table):
    int8 = parse_format("int8")
    parts = table.mac_parts_pj(MacSpec("int32"), int8, int8)
    for name in ("exponent_adder", "alignment", "normalization", "rounding"):
        assert parts[name] == Range(0.0, 0.0, 0.0)


def test_multiplier_grows_with_the_product_of_significand_widths(table):
    def multiplier(name):
        number = parse_format(name)
        return table.mac_parts_pj(MacSpec("float32"), number, number)["multiplier"].nominal

    assert multiplier("int16") == pytest.approx(4 * multiplier("int8"))
    assert multiplier("float16") / multiplier("bfloat16") == pytest.approx(11**2 / 8**2)
    assert multiplier("float8_e5m2") < multiplier("float8_e4m3fn") < multiplier("bfloat16")


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        (MacSpec("bfloat16"), MacSpec("float32")),
        (MacSpec("float32", "toward_zero"), MacSpec("float32")),
        (MacSpec("float32"), MacSpec("float32", "stochastic")),
        (MacSpec("float32"), MacSpec("float32", order="kahan")),
        (MacSpec("float32"), MacSpec("float32", order="exact")),
        (MacSpec("bfloat16"), MacSpec("bfloat16", order="chunked(8, float32)")),
        (MacSpec("float32"), MacSpec("float32", product="float16")),
        (named_mac("h200.float16.float32.wgmma"), MacSpec("float32")),
    ],
)
def test_simpler_accumulation_costs_less(table, cheap, dear):
    number = parse_format("float16")
    assert table.mac_pj(cheap, number, number).nominal < table.mac_pj(dear, number, number).nominal


def test_float_operations_meet_the_table_that_they_come_from():
    """Horowitz's float adders and integer multipliers at 45 nm, within 25 % of nominal, registers left out."""
    table = load_energy_table("energy_45nm")
    for name, add in (("float32", 0.9), ("float16", 0.4)):
        number = parse_format(name)
        parts = table.mac_parts_pj(MacSpec(name), number, number)
        logic = sum(parts[p].nominal for p in ("alignment", "adder", "normalization", "rounding"))
        assert logic == pytest.approx(add, rel=0.25)
    for name, multiply in (("int8", 0.2), ("int32", 3.1)):
        number = parse_format(name)
        parts = table.mac_parts_pj(MacSpec("int32"), number, number)
        assert parts["multiplier"].nominal == pytest.approx(multiply, rel=0.05)


def test_sram_goes_through_its_anchors_and_grows(table):
    for anchor in table.sram.anchors:
        per_byte = table.sram_pj_per_byte(anchor.capacity_kib, table.sram.access_bits)
        assert per_byte.nominal == pytest.approx(anchor.value[1] / 8)
    prices = [table.sram_pj_per_byte(kib).nominal for kib in (1, 4, 16, 100, 700, 5000)]
    assert prices == sorted(prices)
    assert table.sram_pj_per_byte(64, 256).nominal < table.sram_pj_per_byte(64, 32).nominal
    assert table.sram_pj_per_byte(64, write=True).high > table.sram_pj_per_byte(64).high


def test_unknown_memory_and_operation_are_named(table):
    with pytest.raises(SpecError, match=r"hbm9.*hbm2"):
        table.dram_pj_per_byte("hbm9")
    with pytest.raises(SpecError, match=r"logarithm.*exponential"):
        table.vector_op_pj("logarithm", parse_format("float32"))


def test_vector_operations_are_ordered_by_what_they_do(table):
    number = parse_format("float32")
    names = ("compare", "add", "multiply", "divide")
    prices = [table.vector_op_pj(name, number).nominal for name in names]
    assert prices == sorted(prices)
    assert table.vector_op_pj("exponential", number).nominal > table.vector_op_pj("multiply", number).nominal


def test_items_sum_to_the_whole_and_a_missing_price_is_an_error():
    prices = {"mac": Range(1.0, 2.0, 3.0), "dram": Range(0.5, 0.5, 0.75)}
    items = itemize({"mac": 3, "dram": 8}, prices)
    assert total(items.values()) == Range(7.0, 10.0, 15.0)
    with pytest.raises(SpecError, match="no price for wire"):
        itemize({"wire": 1}, prices)


def test_low_ends_at_7_nm_are_45_nm_scaled_by_the_gate_equations():
    old, new = (load_energy_table(name) for name in SHIPPED)
    factor = energy_factor(45, old.supply_v, 7, new.supply_v)
    assert factor == pytest.approx(0.0566, rel=0.01)
    for name in ("multiplier", "adder", "shifter", "register_bit"):
        scaled = getattr(old.logic, name).value[0] * factor
        assert getattr(new.logic, name).value[0] == pytest.approx(scaled, rel=0.03)


def test_areas_at_7_nm_are_45_nm_scaled():
    old, new = (load_energy_table(name).area for name in SHIPPED)
    for name in ("multiplier", "adder", "shifter", "register_bit"):
        for a, b in zip(getattr(old.logic, name).value, getattr(new.logic, name).value, strict=True):
            assert b == pytest.approx(a * area_factor(45, 7), rel=0.02)


def test_scaling_is_neutral_within_a_node_and_refuses_unknown_ones():
    assert energy_factor(45, 0.9, 45, 0.9) == 1.0
    assert energy_factor(45, 0.9, 45, 0.7) < 1.0
    assert math.isclose(area_factor(45, 7) * area_factor(7, 45), 1.0)
    with pytest.raises(SpecError, match="got 5, expected one of"):
        energy_factor(45, 0.9, 5, 0.6)
