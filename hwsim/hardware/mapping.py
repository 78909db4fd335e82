"""How a GEMM is laid on the arrays: tiles, loop order, what stays on chip, and the dataflow.

A GEMM of m x k times k x n is cut into tiles; three loops visit them, in some order. Each operand misses one of the
three axes (a: n, b: m, the result: k), so walking along that axis meets the same tile again. A mapping says for each
operand whether its tiles are *kept* on chip until then, which takes room, or fetched again. That is the whole space:

    weight_stationary tile=64x500x784 order=mnk keep=ab

`mapping_cost` says what a mapping takes, `mapping_search` finds a good one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations
from typing import Any, Literal

from hwsim.errors import SpecError
from hwsim.workload import ConvGeometry

Dataflow = Literal["weight_stationary", "output_stationary", "input_stationary"]
DATAFLOWS: tuple[Dataflow, ...] = ("weight_stationary", "output_stationary", "input_stationary")
ORDERS = tuple("".join(order) for order in permutations("mnk"))
AXES_OF = {"a": "mk", "b": "kn", "c": "mn"}
FREE_AXIS = {"a": "n", "b": "m", "c": "k"}  # the axis along which the operand is met again

TICKS = 1024  # per cycle; see simulation/program.py

ALL = Fraction(1)

Integers = Any  # an int, or a numpy array of ints: the cost formulas take both


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM as it lies in memory. `bits` are of one element, block scales included, times 256."""

    bits: int
    contiguous: str  # the axis along which neighbors lie next to each other
    on_chip: bool = False  # held by the outermost on-chip memory: no DRAM traffic
    picked: bool = False  # its lines are picked by index, so each of them starts at a burst of its own
    spread: Fraction = ALL  # moved over useful bytes if kept positions lie scattered along the lines
    conv: ConvGeometry | None = None  # an image that is unfolded into the GEMM operand on its way to the arrays

    def bytes_of(self, elements: Integers) -> Integers:
        """Stored bytes, rounded up."""
        return -(-elements * self.bits // 2048)


@dataclass(frozen=True)
class GemmWork:
    """A GEMM as the machine meets it: extents after any selection, and where its operands are.

    a is m x k, b is k x n, c is m x n; `groups` such GEMMs follow each other; `sum_bits` is the width of a partial sum.
    """

    m: int
    n: int
    k: int
    groups: int
    a: Operand
    b: Operand
    c: Operand
    sum_bits: int
    rate: Fraction  # MACs per cycle of one array for these operands
    fed: Fraction = ALL  # share of the streamed positions that take array time (the others are skipped zeros)
    epilogue: Fraction = Fraction(0)  # ticks of the vector unit for each result as it leaves the arrays

    def extent(self, axis: str) -> int:
        """Size along "m", "n" or "k"."""
        return int(getattr(self, axis))

    def operand(self, name: str) -> Operand:
        """The operand named "a", "b" or "c"."""
        found: Operand = getattr(self, name)
        return found


@dataclass(frozen=True)
class Mapping:
    """A point of the mapping space. ``str()`` and `parse` round-trip, so that a mapping can be printed and pinned."""

    dataflow: Dataflow
    tile: tuple[int, int, int]  # m, n, k
    order: str  # outer to inner
    keep: str  # operands kept on chip along their free axis

    def __str__(self) -> str:
        tile = "x".join(map(str, self.tile))
        return f"{self.dataflow} tile={tile} order={self.order} keep={self.keep or '-'}"

    @classmethod
    def parse(cls, text: str) -> Mapping:
        """Read what ``str()`` prints.

        Raises:
            SpecError: says what was expected.
        """
        pattern = r"(\w+) tile=(\d+)x(\d+)x(\d+) order=([mnk]{3}) keep=(-|[abc]{1,3})"
        match = re.fullmatch(pattern, text.strip())
        if match is None or match[1] not in DATAFLOWS or match[5] not in ORDERS:
            example = "weight_stationary tile=64x500x784 order=mnk keep=ab"
            raise SpecError(f"mapping: got {text!r}, expected for example {example!r}")
        keep = "" if match[6] == "-" else match[6]
        return cls(match[1], (int(match[2]), int(match[3]), int(match[4])), match[5], keep)

    def clipped(self, work: GemmWork) -> Mapping:
        """The same mapping with no tile larger than the GEMM."""
        m, n, k = self.tile
        return Mapping(self.dataflow, (min(m, work.m), min(n, work.n), min(k, work.k)), self.order, self.keep)


def ceil_div(a: Integers, b: Integers) -> Integers:
    """a / b rounded up, for integers."""
    return -(-a // b)
