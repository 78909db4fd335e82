"""What an accelerator is: the schema of a machine file, with a unit in every key and a source beside every number.

A machine is arrays of multiply-accumulate units fed from on-chip memories (inner to outer) that are filled from DRAM,
beside a vector unit and, if it has one, a unit that selects the largest gradients. Every block that holds a number is
a `Sourced` block: it does not load without a `source`, which says where its numbers come from (a data sheet, a paper,
or "assumed: reason").

    schema: accelerator/1
    name: my_chip
    clock: {clock_ghz: 1.0, source: "assumed: a 1 GHz target"}
    arrays:
      rows: 32
      cols: 32
      macs_per_cycle: {int8: 1024, bfloat16: 512}      # of one array, by operand format
      source: "our RTL, revision 3"
    ...

Peaks are derived (clock x MACs per cycle), never stored beside their factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import UnsupportedError
from hwsim.hardware.sourced import Count, Name, NonNegative, Positive, Share, Sourced
from hwsim.hardware.tiled import Tiled
from hwsim.spec import Spec, field_problem

# [low, nominal, high]: a price is a range, because published tables differ by more than any design choice.
LowNominalHigh = tuple[NonNegative, NonNegative, NonNegative]

Operation = Literal["add", "multiply", "compare", "exponential", "divide", "square_root"]

# Cycles that one lane takes for one result, unless the machine file says otherwise. Assumed: adders, multipliers and
# comparators are pipelined; the others are iterative units of about the latencies that vector processors publish.
ASSUMED_CYCLES: dict[str, int] = {
    "add": 1,
    "multiply": 1,
    "compare": 1,
    "exponential": 4,
    "divide": 8,
    "square_root": 8,
}


class Clock(Sourced):
    """The clock of the arrays; `sustained_clock_ghz` is what remains of it under load (power, heat)."""

    clock_ghz: Positive
    sustained_clock_ghz: Positive | None = None

    @property
    def running_ghz(self) -> float:
        """The clock at which cycles are turned into time."""
        return self.clock_ghz if self.sustained_clock_ghz is None else self.sustained_clock_ghz


class Arrays(Sourced):
    """`count` equal arrays of rows x cols multiply-accumulate units that share the innermost memory.

    dataflow: which operand stays in place while the others stream past it; "any" lets the mapping choose per op.
    skewed: operands enter along a diagonal, as in a systolic array, so that each fold fills and drains for
      rows + cols - 2 cycles; an array that broadcasts its operands has no such skew.
    folds: "separate" fills and drains for every fold (SCALE-Sim's convention); "back_to_back" lets the next fold
      enter behind the last one (a second register for the stationary operand), so that a tile fills and drains once.
    depth: products that one unit adds in one cycle.
    """

    count: Count = 1
    rows: Count
    cols: Count
    depth: Count = 1
    dataflow: Literal["weight_stationary", "output_stationary", "input_stationary", "any"] = "weight_stationary"
    skewed: bool = True
    folds: Literal["separate", "back_to_back"] = "back_to_back"
    pipeline_cycles: Annotated[int, Field(ge=0)] = 0
    macs_per_cycle: Annotated[dict[str, Positive], Field(min_length=1)]  # of ONE array, by operand format

    @model_validator(mode="after")
    def _formats_exist(self) -> Arrays:
        for name in self.macs_per_cycle:
            parse_format(name)
        return self

    def rate_of(self, *operands: NumberFormat) -> Fraction:
        """MACs per cycle of one array for these operand formats.

        A format that is not listed runs at the rate of the narrowest listed one with at least as many bits, as if it
        were stored in it; two different operands run at the slower of their rates.

        Raises:
            UnsupportedError: no listed format is wide enough.
        """
        return min(self._rate(operand) for operand in operands)

    def _rate(self, operand: NumberFormat) -> Fraction:
        exact = self.macs_per_cycle.get(operand.name)
        if exact is not None:
            return Fraction(exact).limit_denominator(1 << 20)
        wide = [(parse_format(name).bits, -rate) for name, rate in self.macs_per_cycle.items()]
        fitting = sorted(item for item in wide if item[0] >= operand.bits)
        if not fitting:
            widest = max(self.macs_per_cycle, key=lambda name: parse_format(name).bits)
            raise UnsupportedError(
                f"arrays.macs_per_cycle has no format of at least {operand.bits} bits for {operand.name} operands "
                f"(the widest is {widest}); add a rate for {operand.name} or store these tensors in fewer bits"
            )
        return Fraction(-fitting[0][1]).limit_denominator(1 << 20)


class Vector(Sourced):
    """The unit for everything that is not a GEMM: `lanes` results at a time."""

    lanes: Count
    cycles: dict[Operation, Positive] = Field(
        default_factory=dict
    )  # of one result in one lane; others as in ASSUMED_CYCLES
    fused: bool = False  # applies an element-wise op to the array's results as they leave it

    def cycles_of(self, operation: str) -> float:
        """Cycles of one result of this operation in one lane."""
        return float(self.cycles.get(operation, ASSUMED_CYCLES[operation]))  # type: ignore[call-overload]


class Select(Sourced):
    """The unit that finds the largest gradients.

    heap: streams the scores once past a heap of at most `kept_limit` entries; each score costs one compare, and one
      more for each level of the heap if it enters. More than `kept_limit` entries need further passes.
    radix: counts digits of `digit_bits`, most significant first; one pass over the scores a digit, any number kept.
    """

    method: Literal["heap", "radix"]
    elements_per_cycle: Positive
    kept_limit: Count | None = None
    digit_bits: Count = 8
    pj_per_compare: LowNominalHigh | None = None  # none: the energy table's compare

    @model_validator(mode="after")
    def _heap_is_bounded(self) -> Select:
        if self.method == "heap" and self.kept_limit is None:
            raise field_problem("kept_limit", "missing; a heap holds a fixed number of entries")
        return self


class Memory(Sourced):
    """One on-chip memory. The innermost feeds the arrays; the outermost may keep tensors from one op to the next.

    buffers: tiles in flight; 2 is double buffering, 1 lets memory time add to compute time instead of overlapping.
    resident_kib: the part of the outermost memory set aside for tensors that stay between ops.
    """

    name: Name
    capacity_kib: Positive
    bytes_per_cycle: Positive
    latency_cycles: Annotated[int, Field(ge=0)] = 0
    buffers: Annotated[int, Field(ge=1, le=8)] = 2
    resident_kib: NonNegative = 0
    word_bytes: Count = 8  # the width of one access, which sets the energy of a byte
    read_pj_per_byte: LowNominalHigh | None = None  # none: the energy table, by capacity and width
    write_pj_per_byte: LowNominalHigh | None = None

    @model_validator(mode="after")
    def _resident_part_fits(self) -> Memory:
        if self.resident_kib >= self.capacity_kib:
            raise field_problem("resident_kib", f"got {self.resident_kib}, expected less than capacity_kib")
        return self


class Dram(Sourced):
    """Memory off the chip. Transfers are whole bursts at `peak_gb_per_s` x `efficiency`."""

    kind: Name  # "hbm2", "lpddr4", ...: which price of the energy table applies
    peak_gb_per_s: Positive
    efficiency: Share = 1.0
    burst_bytes: Count = 64
    latency_ns: NonNegative = 0
    capacity_gib: Positive | None = None
    pj_per_byte: LowNominalHigh | None = None  # none: the energy table, by kind


class Launch(Sourced):
    """What starting work costs, outside the cycles."""

    overhead_us: NonNegative
    per: Literal["op", "step"] = "op"


class Power(Sourced):
    """Power drawn whether or not there is work."""

    static_w: NonNegative
    limit_w: Positive | None = None


class Sparsity(Sourced):
    """What the machine can do with zeros and with kept indices.

    zero_gating: a MAC with a zero operand takes its cycle but no energy.
    zero_skipping: zeros of the streamed operand are left out (ReLU zeros included), perfectly balanced.
    row_skipping: each array row walks its own list of kept positions; a fold lasts as long as its longest row.
    tile_union: positions that no row of a tile kept are left out.
    gather: kept slices are fetched by their indices on the way in; without it, gathers are copies.
    """

    supports: tuple[Literal["zero_gating", "zero_skipping", "row_skipping", "tile_union", "gather"], ...] = ()
    index_bits: Count = 16


class Energy(Spec):
    """Which table of prices applies: a shipped name or a path."""

    table: Name = "energy_45nm"


class AreaItem(Sourced):
    """Silicon of one component."""

    component: Name
    mm2: Positive


class Accelerator(Spec):
    """A machine: structure and numbers, each with its source."""

    SCHEMA = "accelerator/1"

    name: Name
    description: str = ""
    clock: Clock
    arrays: Arrays
    vector: Vector
    select: Select | None = None
    memories: Annotated[tuple[Memory, ...], Field(min_length=1, max_length=2)]  # inner to outer
    dram: Dram
    launch: Launch | None = None
    power: Power | None = None
    sparsity: Sparsity | None = None
    transpose: Literal["port", "copy"] = "port"  # read across the stored layout for free, or by a copy
    energy: Energy = Energy()
    area: tuple[AreaItem, ...] = ()
    tiled: Tiled | None = None  # GEMMs go through output tiles in waves instead of the arrays' own dataflow

    @model_validator(mode="after")
    def _names_are_unique(self) -> Accelerator:
        names = [memory.name for memory in self.memories]
        for name in names:
            if names.count(name) > 1:
                raise field_problem("memories", f"the name {name!r} stands twice")
            if name in ("dram", "array", "vector", "select"):
                raise field_problem("memories", f"the name {name!r} is taken by another resource")
        return self

    @property
    def scratchpad(self) -> Memory:
        """The innermost memory, which feeds the arrays."""
        return self.memories[0]

    @property
    def outermost(self) -> Memory:
        """The on-chip memory next to DRAM, which may keep tensors between ops."""
        return self.memories[-1]

    @property
    def dram_bytes_per_cycle(self) -> Fraction:
        """Achieved DRAM bytes per cycle of the running clock."""
        return _bytes_per_cycle(self.dram.peak_gb_per_s, self.dram.efficiency, self.clock.running_ghz)

    @property
    def dram_latency_cycles(self) -> float:
        """DRAM latency in cycles of the running clock."""
        return self.dram.latency_ns * self.clock.running_ghz

    def peak_macs_per_cycle(self, *operands: NumberFormat) -> Fraction:
        """MACs per cycle of all arrays together for these operand formats."""
        return self.arrays.count * self.arrays.rate_of(*operands)

    def can(self, ability: str) -> bool:
        """Whether the machine has one of the abilities of `Sparsity.supports`."""
        return self.sparsity is not None and ability in self.sparsity.supports


@lru_cache(maxsize=256)
def _bytes_per_cycle(peak_gb_per_s: float, efficiency: float, clock_ghz: float) -> Fraction:
    achieved = Fraction(peak_gb_per_s) * Fraction(efficiency)
    return (achieved / Fraction(clock_ghz)).limit_denominator(1 << 20)


def sources_of(block: BaseModel, path: str = "") -> Iterator[tuple[str, str]]:
    """Every source in a machine with the path of the block that it covers: ("memories[0]", "our RTL")."""
    if isinstance(block, Sourced):
        yield path, block.source
    for name in type(block).model_fields:
        value = getattr(block, name)
        place = f"{path}.{name}" if path else name
        if isinstance(value, BaseModel):
            yield from sources_of(value, place)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from sources_of(item, f"{place}[{index}]")


def unsourced_numbers(block: BaseModel, path: str = "", covered: bool = False) -> Iterator[str]:
    """Paths of numbers that no source covers. An accelerator that loads has none; the tests hold us to it."""
    covered = covered or isinstance(block, Sourced)
    for name in type(block).model_fields:
        yield from _unsourced(getattr(block, name), f"{path}.{name}" if path else name, covered)


def _unsourced(value: object, path: str, covered: bool) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from unsourced_numbers(value, path, covered)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _unsourced(item, f"{path}[{index}]", covered)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unsourced(item, f"{path}.{key}", covered)
    elif isinstance(value, int | float) and not isinstance(value, bool) and not covered:
        yield path
