"""Silicon area by component, from the same widths that energy follows from.

Good enough to make two machines equally large, not to plan a chip: wiring between blocks, pads, clocking and test
logic are left out. Prices and their sources stand in the `area` block of an energy table.
"""

from __future__ import annotations

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.energy import AreaPrices, EnergyTable, load_energy_table
from hwsim.hardware.mac_energy import add_parts, mac_parts, multiply_parts, round_parts
from hwsim.hardware.price import Range, total

UM2_PER_MM2 = 1e6
COUNTER_BITS = 16  # of a radix select unit's digit counters
SCORE_BITS = 32  # of a heap's keys


def area_mm2(
    machine: Accelerator,
    operand: str | NumberFormat,
    mac: MacSpec | None = None,
    table: EnergyTable | None = None,
) -> dict[str, Range]:
    """Area in mm2 by component: arrays, vector, each memory, select, sparsity.

    Args:
        machine: the machine; its DRAM, interfaces and launch logic are not on the list.
        operand: format that the MAC units are built for (narrower ones share them).
        mac: accumulation they are built for; float32, rounded each step, unless given.
        table: prices; those of the machine's energy table unless given.

    Raises:
        SpecError: the table has no area prices.
    """
    prices = (table or load_energy_table(machine.energy.table)).area
    if prices is None:
        raise SpecError(f"energy.table: {machine.energy.table} has no area prices")
    number = parse_format(operand)
    arrays = machine.arrays
    units = arrays.count * arrays.rows * arrays.cols * arrays.depth
    items = {
        "arrays": total(mac_parts(prices.logic, mac or MacSpec(), number, number).values()) * (units / UM2_PER_MM2),
        "vector": _lane_um2(prices) * (machine.vector.lanes / UM2_PER_MM2),
    }
    for memory in machine.memories:
        items[memory.name] = prices.sram_mm2_per_mib.range * (memory.capacity_kib / 1024)
    if machine.select is not None:
        items["select"] = _select_um2(machine, prices) * (1 / UM2_PER_MM2)
    indexed = [a for a in ("row_skipping", "tile_union", "gather", "zero_skipping") if machine.can(a)]
    if indexed and machine.sparsity is not None:
        items["sparsity"] = _index_um2(machine, prices, len(indexed)) * (1 / UM2_PER_MM2)
    return items


def _lane_um2(prices: AreaPrices) -> Range:
    """A vector lane: a float32 adder, a multiplier and three operand registers."""
    number = parse_format("float32")
    logic = prices.logic
    parts = [*add_parts(logic, number).values(), *multiply_parts(logic, number, number).values()]
    return total([*parts, *round_parts(logic, number).values(), logic.register_bit.range * (3 * number.bits)])


def _select_um2(machine: Accelerator, prices: AreaPrices) -> Range:
    """A heap's entries with a comparator each, or a radix unit's counters and comparators of its lanes."""
    select = machine.select
    assert select is not None
    bit = prices.logic.register_bit.range + prices.logic.adder.range
    if select.method == "heap":
        index_bits = machine.sparsity.index_bits if machine.sparsity is not None else 16
        return bit * (float(select.kept_limit or 0) * (SCORE_BITS + index_bits))
    return bit * (float(2**select.digit_bits) * COUNTER_BITS + select.elements_per_cycle * SCORE_BITS)


def _index_um2(machine: Accelerator, prices: AreaPrices, abilities: int) -> Range:
    """Index registers and address adders: one a row of every array and ability."""
    assert machine.sparsity is not None
    bit = prices.logic.register_bit.range + prices.logic.adder.range
    return bit * float(machine.arrays.count * machine.arrays.rows * machine.sparsity.index_bits * abilities)
