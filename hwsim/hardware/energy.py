"""What an operation costs: prices in pJ, each a range with its source, and how a MAC's price follows from its formats.

A table of prices is a YAML file (`schema: energy/1`). Shipped are `energy_45nm` and `energy_7nm`; a user swaps in
another by name or path. Every price is [low, nominal, high], because published tables differ more than most design
choices do, and no price loads without its source.

A multiplier costs its significand widths times each other, an adder or a register its width, a shifter its width
times the stages of a barrel shifter. Floating point adds what integers do not have: the exponent adder, the shifter
that aligns the addends, normalization and rounding.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from math import exp, log
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.number import NumberFormat
from hwsim.document import is_path
from hwsim.errors import SpecError
from hwsim.hardware.mac_energy import Logic, add_parts, mac_parts, multiply_parts, round_parts
from hwsim.hardware.price import Price, Range, total
from hwsim.spec import Spec, field_problem, load_yaml

MULTIPLY_ADDS_OF_EXPONENTIAL = 5  # multiply-adds of a polynomial that approximates the exponential: degree 5 (assumed)


class SramAnchor(Price):
    """Energy of one access of the reference width to an SRAM of this capacity."""

    capacity_kib: Annotated[float, Field(gt=0)]


class Sram(Spec):
    """SRAM prices: anchors by capacity (power laws in between and beyond), the share that width does not change."""

    access_bits: Annotated[int, Field(ge=1)]
    anchors: Annotated[tuple[SramAnchor, ...], Field(min_length=2)]
    fixed_share: Price  # of an access of the reference width: decoders and word lines, paid whatever the width
    write_over_read: Price

    @model_validator(mode="after")
    def _ascending(self) -> Sram:
        sizes = [anchor.capacity_kib for anchor in self.anchors]
        if sizes != sorted(set(sizes)):
            raise field_problem("anchors", f"got capacities {sizes}, expected them in ascending order")
        return self


class AreaPrices(Spec):
    """Area of logic in um2 per bit (as `Logic` counts bits), of SRAM in mm2 per MiB."""

    logic: Logic
    sram_mm2_per_mib: Price


class EnergyTable(Spec):
    """Prices of one technology."""

    SCHEMA = "energy/1"

    name: Annotated[str, Field(min_length=1)]
    node_nm: Annotated[float, Field(gt=0)]
    supply_v: Annotated[float, Field(gt=0)]
    description: str = ""
    logic: Logic
    sram: Sram
    dram_pj_per_bit: Annotated[dict[str, Price], Field(min_length=1)]  # by kind of memory
    wire_pj_per_bit_mm: Price
    static_mw_per_mm2: Price
    area: AreaPrices | None = None

    # ---- memory

    def sram_pj_per_byte(self, capacity_kib: float, width_bits: int = 64, write: bool = False) -> Range:
        """Energy of one byte read from (or written to) an SRAM, by its capacity and the width of one access.

        Between two anchors, and beyond the outer ones, the energy of an access follows a power law of the capacity.
        """
        anchors = self.sram.anchors
        above = next((i for i, a in enumerate(anchors) if a.capacity_kib >= capacity_kib), len(anchors) - 1)
        left, right = anchors[max(above - 1, 0)], anchors[max(above, 1)]
        place = log(capacity_kib / left.capacity_kib) / log(right.capacity_kib / left.capacity_kib)
        at = [exp(log(a) + place * (log(b) - log(a))) for a, b in zip(left.value, right.value, strict=True)]
        fixed = self.sram.fixed_share.value[1]
        by_width = fixed * self.sram.access_bits / width_bits + (1.0 - fixed)
        price = Range(*at) * (8.0 / self.sram.access_bits * by_width)
        if not write:
            return price
        more = self.sram.write_over_read.value
        return Range(price.low * more[0], price.nominal * more[1], price.high * more[2])

    def dram_pj_per_byte(self, kind: str) -> Range:
        """Energy of one byte moved from or to DRAM of this kind, interface included.

        Raises:
            SpecError: the table has no such kind.
        """
        if kind not in self.dram_pj_per_bit:
            known = ", ".join(self.dram_pj_per_bit)
            raise SpecError(f"dram.kind: got {kind!r}, energy table {self.name} has prices for {known}")
        return self.dram_pj_per_bit[kind].range * 8.0

    def register_pj_per_byte(self) -> Range:
        """Energy of one byte clocked into a register."""
        return self.logic.register_bit.range * 8.0

    def wire_pj_per_byte_mm(self) -> Range:
        """Energy of one byte moved by a millimetre of on-chip wire."""
        return self.wire_pj_per_bit_mm.range * 8.0

    # ---- arithmetic

    def mac_pj(self, mac: MacSpec, a: NumberFormat, b: NumberFormat) -> Range:
        """Energy of one multiply-accumulate on operands of formats `a` and `b`: the sum of `mac_parts_pj`."""
        return total(self.mac_parts_pj(mac, a, b).values())

    def mac_parts_pj(self, mac: MacSpec, a: NumberFormat, b: NumberFormat) -> dict[str, Range]:
        """Energy of one multiply-accumulate by part.

        Parts: multiplier, exponent_adder, alignment, adder, normalization, rounding, register.
        """
        return mac_parts(self.logic, mac, a, b)

    def vector_op_pj(self, operation: str, format: NumberFormat) -> Range:
        """Energy of one elementary operation of the vector unit, registers of its operands included.

        operation: add, multiply, compare, exponential, divide or square_root.

        Raises:
            SpecError: no such operation.
        """
        if operation == "compare":
            return self.compare_pj(format)
        registers = self.logic.register_bit.range * (3.0 * format.bits)
        multiply = total(
            [*multiply_parts(self.logic, format, format).values(), *round_parts(self.logic, format).values()]
        )
        add = total(add_parts(self.logic, format).values())
        match operation:
            case "add":
                return add + registers
            case "multiply":
                return multiply + registers
            case "divide" | "square_root":
                low, nominal, high = self.logic.divide_over_multiply.value
                return Range(multiply.low * low, multiply.nominal * nominal, multiply.high * high) + registers
            case "exponential":
                return (multiply + add) * MULTIPLY_ADDS_OF_EXPONENTIAL + registers
        raise SpecError(
            f"operation: got {operation!r}, expected add, multiply, compare, exponential, divide or square_root"
        )

    def compare_pj(self, format: NumberFormat) -> Range:
        """Energy of one comparison: a subtraction as wide as the code (floats compare like integers), one register."""
        return (self.logic.adder.range + self.logic.register_bit.range) * float(format.bits)


def itemize(counts: Mapping[str, float], prices: Mapping[str, Range]) -> dict[str, Range]:
    """Counts times prices, item by item; the items sum to the whole.

    Raises:
        SpecError: something was counted that has no price.
    """
    missing = [name for name in counts if name not in prices]
    if missing:
        raise SpecError(f"energy: no price for {', '.join(missing)}")
    return {name: prices[name] * count for name, count in counts.items()}


@lru_cache(maxsize=32)
def load_energy_table(name_or_path: str) -> EnergyTable:
    """Read a table of prices: a shipped name (``energy_45nm``, ``energy_7nm``) or a YAML file.

    Raises:
        SpecError: there is no such table, or its file holds mistakes.
    """
    if is_path(name_or_path):
        return load_yaml(Path(name_or_path), EnergyTable)
    folder = _shipped_folder()
    path = folder / f"{name_or_path}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in folder.glob("energy_*.yaml")))
        raise SpecError(f"energy.table: got {name_or_path!r}, which is neither shipped ({shipped}) nor a path")
    return load_yaml(path, EnergyTable)


def _shipped_folder() -> Path:
    spec = importlib.util.find_spec("hwsim.accelerators")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "accelerators"
