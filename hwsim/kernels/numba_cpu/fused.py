"""Fused tensor-core steps on the CPU, in float64 lanes: exact, because every aligned term is a small integer.

A step makes two passes over its terms. The first finds the largest exponent, as a power of two: the product of the
factors' own powers (0 where a factor is 0). The second scales each exact product so that the last kept bit is 1, cuts
it to an integer and adds. A third sum, of the products as they are, is not finite exactly where an infinity or a NaN
takes part, and then it is the result.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hwsim.arithmetic.mac import Fused
from hwsim.arithmetic.number import FloatingPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.errors import UnsupportedError
from hwsim.kernels.counters import SAMPLE
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_plan import parameter_block, rule_for
from hwsim.kernels.numba_cpu.matmul_steps import NUMBERS, WHOLES, Step
from hwsim.kernels.numba_cpu.revision import REVISION
from hwsim.kernels.numba_cpu.threads import run_slices
from hwsim.kernels.numba_cpu.vector_ir import INT64, Lanes, counted_loop
from hwsim.kernels.reference.fused import LOWEST_ALIGNMENT, addend_format, step_positions

ROWS, VECTORS = 2, 2
COLUMNS = 8 * VECTORS
ROW_WORK = 1 << 20  # multiply-accumulates that are worth a thread


def multiply(
    a: np.ndarray, b: np.ndarray, order: Fused, out: np.ndarray, start: np.ndarray | None,
    totals: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Compute a (m x k) times b (k x n) by chained fused steps into `out`; start is m x n, the addend.

    With `totals`, add to it what happened in every `SAMPLE`-th row: non-zero products truncated to 0, steps on finite
    numbers that came to or beyond the output's largest value, and non-zero products in all.

    Raises:
        UnsupportedError: terms that do not fit into float64 lanes, or an output without infinities.
    """
    _check(order)
    inputs = order.inputs
    steps = step_positions(a.shape[1], order)
    places = np.array([p for step in steps for p in step], np.int64)
    left, right = (cut_operand(np.asarray(x, np.float64), inputs) for x in (a, b))
    if order.groups > 1:
        left, right = left[:, places], right[places]
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    left_unit, right_unit = units(left, inputs), units(right, inputs)
    m, n = out.shape
    first = np.zeros((m, n)) if start is None or order.addend == "last" else np.ascontiguousarray(start, np.float64)
    function = kernel(rule_for(order.output, 64))
    lengths = np.array([len(step) for step in steps], np.int64)
    block = _block(order)
    addend = addend_format(order)
    found = np.zeros(2)
    numbers = (block.ctypes.data, 2.0**addend.emin, 2.0**LOWEST_ALIGNMENT, order.fraction_bits, found)

    def share(begin: int, end: int) -> None:
        function(left, left_unit, right, right_unit, first, out, begin, end, lengths, *numbers)

    run_slices(share, m, max(1, ROW_WORK // max(1, n * a.shape[1])))
    if totals is not None:
        some = [np.ascontiguousarray(x[::SAMPLE]) for x in (left, left_unit, first, out)]
        counting = kernel(rule_for(order.output, 64), True)
        counting(some[0], some[1], right, right_unit, *some[2:], 0, len(some[0]), lengths, *numbers)
        totals[:2] += found
        # units are 0 for what is 0 or not finite
        totals[2] += np.count_nonzero(some[1], 0) @ np.count_nonzero(right_unit, 1)


def _check(order: Fused) -> None:
    fmt = order.output.format
    assert isinstance(fmt, FloatingPoint)
    room = order.fraction_bits + 2 + math.ceil(math.log2(order.terms + 1))
    if room > 53 or not fmt.infinities or order.output.rounding.stochastic or order.output.overflow is Overflow.ERROR:
        raise UnsupportedError(f"matmul: order {order} has no vector kernel")
    if order.inputs is not None and (order.inputs.mantissa_bits > 23 or order.inputs.emin < -126):
        raise UnsupportedError(f"matmul: fused steps of {order.inputs} have no vector kernel")


@cache
def _block(order: Fused) -> np.ndarray:
    """Return the output's parameters; beyond its range stands an infinity, whatever the rounding of the last bit."""
    block = parameter_block(order.output, 64).copy()
    if order.output.overflow is Overflow.NATIVE:
        block[NUMBERS.index("over")], block[NUMBERS.index("under")] = math.inf, -math.inf
    return block


def units(x: np.ndarray, inputs: FloatingPoint | None) -> np.ndarray:
    """Return 2**exponent of every element (0 for zero), subnormals with the format's smallest exponent."""
    _, exponent = np.frexp(x)
    lowest = -126 if inputs is None else inputs.emin
    powers = np.ldexp(1.0, np.maximum(exponent - 1, lowest))
    return np.where((x == 0) | ~np.isfinite(x), 0.0, powers)


def cut_operand(x: np.ndarray, inputs: FloatingPoint | None) -> np.ndarray:
    """Return x without the bits that the operand format does not have (toward zero)."""
    if inputs is None:
        return x
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = units(x, inputs) * 2.0**-inputs.mantissa_bits
        return np.where(unit > 0, np.copysign(np.trunc(np.divide(x, unit)) * unit, x), x)


@cache
def kernel(rule: str, counting: bool = False) -> Any:
    """Return the compiled loops for one rounding rule of the output."""
    return _build(f"count {rule}" if counting else rule, counting, REVISION)


def _build(rule: str, counting: bool, revision: str) -> Any:
    @compiled
    def run(a, a_unit, b, b_unit, start, out, begin, end, lengths, block, addend_low, lowest, fraction_bits, found):  # type: ignore[no-untyped-def]
        _ = revision
        k, n = b.shape
        panel = np.zeros((k + 1, COLUMNS))
        panel_unit = np.zeros((k + 1, COLUMNS))
        left = np.zeros((k + 1, ROWS))  # two rows side by side: the tile reads row r at 8 r
        left_unit = np.zeros((k + 1, ROWS))
        state = np.zeros((3 * ROWS, COLUMNS))  # the sums, and where it counts: cut products and overflowed steps
        limits = np.array([addend_low, lowest])
        shift = np.int64(fraction_bits) << 52
        for first in range(0, n, COLUMNS):
            columns = min(COLUMNS, n - first)
            for i in range(k):
                for j in range(columns):
                    panel[i, j] = b[i, first + j]
                    panel_unit[i, j] = b_unit[i, first + j]
            for row in range(begin, end, ROWS):
                rows = min(ROWS, end - row)
                for r in range(rows):
                    for i in range(k):
                        left[i, r] = a[row + r, i]
                        left_unit[i, r] = a_unit[row + r, i]
                    for j in range(columns):
                        state[r, j] = start[row + r, first + j]
                done = 0
                for length in lengths:
                    fused_tile(
                        rule, left[done:].ctypes.data, left_unit[done:].ctypes.data, panel[done:].ctypes.data,
                        panel_unit[done:].ctypes.data, state.ctypes.data, length, block, limits.ctypes.data, shift,
                    )  # fmt: skip
                    done += length
                for r in range(rows):
                    for j in range(columns):
                        value = state[r, j]
                        out[row + r, first + j] = np.nan if np.isnan(value) else value
                        if counting:
                            found[0] += state[ROWS + r, j]
                            found[1] += state[2 * ROWS + r, j]
                if counting:
                    state[ROWS:] = 0.0

    return run


@intrinsic(prefer_literal=True)
def fused_tile(_typing, rule, a, a_unit, b, b_unit, state, length, block, limits, shift):  # type: ignore[no-untyped-def]
    """One step on a tile of ROWS x COLUMNS: state = round(aligned sum of `length` products and state).

    Args:
        rule: literal, the rounding of the output (`Step.round`); "count " before it adds to the counts behind `state`.
        a, a_unit: addresses; k by k, ROWS values side by side. b, b_unit: k by k, COLUMNS values.
        limits: address of two floats: the addend's smallest normal, and the smallest alignment.
        shift: fraction bits, in the place of a float64's exponent field.
    """
    if not isinstance(rule, types.Literal):
        return None
    text = rule.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _FusedTile(builder, text, *values[1:]).emit()
        return context.get_dummy_value()

    return types.void(rule, *([types.int64] * 9)), generate


class _FusedTile:
    def __init__(
        self, builder: ir.IRBuilder, rule: str, a: Any, a_unit: Any, b: Any, b_unit: Any, state: Any, length: Any,
        block: Any, limits: Any, shift: Any,
    ) -> None:  # fmt: skip
        self.builder, self.rule, self.length, self.shift = builder, rule.removeprefix("count "), length, shift
        self.counting = rule.startswith("count ")
        self.a, self.a_unit, self.b, self.b_unit, self.state = a, a_unit, b, b_unit, state
        self.lanes = Lanes(builder, 64)
        self.step = Step(self.lanes, block)
        self.step.preload((*NUMBERS, *WHOLES))
        self.limits = [self.lanes.spread(self.lanes.load_scalar(builder.add(limits, INT64(8 * i)))) for i in range(2)]
        self.places = [(r, v) for r in range(ROWS) for v in range(VECTORS)]

    def _at(self, base: Any, k: Any, width: int) -> Any:
        return self.builder.add(base, self.builder.mul(k, INT64(8 * width)))

    def _terms(self, left: Any, right: Any, k: Any) -> tuple[list[Any], list[Any]]:
        """Load the left values of the rows and the right vectors at k."""
        b, lanes = self.builder, self.lanes
        rows = [lanes.spread(lanes.load_scalar(b.add(self._at(left, k, ROWS), INT64(8 * r)))) for r in range(ROWS)]
        columns = [lanes.load(b.add(self._at(right, k, COLUMNS), INT64(64 * v))) for v in range(VECTORS)]
        return rows, columns

    def _loop(self, start: dict[Any, Any], advance: Any) -> dict[Any, Any]:
        """Run `advance(k, held) -> new values` for every k; return the last values (length is 1 or more)."""

        def in_order(k: Any, *held: Any) -> list[Any]:
            new = advance(k, dict(zip(start, held, strict=True)))
            return [new[place] for place in start]

        last = counted_loop(self.builder, "pass", self.length, list(start.values()), in_order, at_least_one=True)
        return dict(zip(start, last, strict=True))

    def emit(self) -> None:
        b, v = self.builder, self.lanes
        addresses = {(r, c): b.add(self.state, INT64(64 * (r * VECTORS + c))) for r, c in self.places}
        addend = {place: v.load(address) for place, address in addresses.items()}
        zero = v.number(0.0)
        unit = {}
        for place, c in addend.items():
            own = v.larger(v.exponent_part(c), self.limits[0])
            unit[place] = v.larger(v.where(c, "==", zero, zero, own), self.limits[1])

        def widen(k: Any, held: dict[Any, Any]) -> dict[Any, Any]:
            rows, columns = self._terms(self.a_unit, self.b_unit, k)
            return {(r, c): v.larger(v.mul(rows[r], columns[c]), held[r, c]) for r, c in self.places}

        unit = self._loop(unit, widen)
        # 2**(fraction bits - E): exponent fields subtract
        top = v.whole(2 * 1023 << 52)
        scale = {p: v.float_of(b.add(b.sub(top, v.bits_of(u)), v.spread(self.shift))) for p, u in unit.items()}
        sums = {("sum", *p): v.to_integral("trunc", v.mul(c, scale[p])) for p, c in addend.items()}
        plain = {("plain", *p): c for p, c in addend.items()}

        def add(k: Any, held: dict[Any, Any]) -> dict[Any, Any]:
            rows, columns = self._terms(self.a, self.b, k)
            new = {}
            for r, c in self.places:
                scaled = v.mul(v.mul(rows[r], columns[c]), scale[r, c])
                kept = v.to_integral("trunc", scaled)
                new["sum", r, c] = v.add(held["sum", r, c], kept)
                if self.counting:
                    lost = b.and_(b.fcmp_ordered("==", kept, zero), b.fcmp_unordered("!=", scaled, zero))
                    new["cut", r, c] = v.add(held["cut", r, c], b.select(lost, v.number(1.0), zero))
                new["plain", r, c] = v.fma(rows[r], columns[c], held["plain", r, c])
            return new

        cut = {("cut", *p): v.load(self._count_address(0, *p)) for p in self.places} if self.counting else {}
        last = self._loop(sums | plain | cut, add)
        for place, address in addresses.items():
            back = v.float_of(b.sub(v.bits_of(unit[place]), v.spread(self.shift)))
            total = v.mul(v.add(last["sum", *place], zero), back)  # + 0: a sum of zero is +0
            rounded = self.step.round(self.rule, total)
            raw = last["plain", *place]
            finite = b.fcmp_ordered("<", v.abs(raw), v.number(float("inf")))
            v.store(b.select(finite, rounded, raw), address)
            if self.counting:
                v.store(last["cut", *place], self._count_address(0, *place))
                inside = b.fcmp_ordered("<", v.abs(rounded), self.step.number("largest"))
                beyond = b.select(b.and_(finite, b.not_(inside)), v.number(1.0), zero)
                total = self._count_address(1, *place)
                v.store(v.add(v.load(total), beyond), total)

    def _count_address(self, which: int, row: int, vector: int) -> Any:
        return self.builder.add(self.state, INT64(64 * ((which + 1) * len(self.places) + row * VECTORS + vector)))
