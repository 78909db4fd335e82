"""Operands as whole numbers: one pass that converts float32 to integers and proves that nothing was lost.

Finding out which power of two divides every value of an operand, and converting by it, would read the operand twice.
So a few values suggest the power, and the conversion checks it: it converts back, compares, and notes the extremes.
Where the suggestion fails the caller looks at the operand in the ordinary way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hwsim.arithmetic.number import FixedPoint, NumberFormat
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_plan import NOTHING, Facts
from hwsim.kernels.numba_cpu.matmul_tile import read32
from hwsim.kernels.numba_cpu.matrix import Matrix
from hwsim.kernels.numba_cpu.scratch import scratch
from hwsim.kernels.numba_cpu.vector_ir import INT64, Lanes, counted_loop

PADDING = 64  # 16-bit lines are filled up with zeros to a multiple of this
_LINES = 16  # lines between two looks at what was found, so that a wrong suggestion costs little
_FARTHEST = 100  # exponents of float32 that need no care


class Wholes(NamedTuple):
    """An operand as codes * 2**lsb; lines of memory are rows of `codes`, or columns of the operand where `across`."""

    codes: np.ndarray  # int8 or int16; more columns than the operand where 16 bits are filled up
    across: bool
    lsb: int
    largest: float

    @property
    def facts(self) -> Facts:
        """What is known of all values of the operand."""
        if not self.largest:
            return Facts(1, NOTHING.lsb, NOTHING.top)
        top = math.frexp(self.largest)[1]
        return Facts(min(top - self.lsb, 24), self.lsb, top)


def whole_numbers(x: Matrix, bits: int, fmt: NumberFormat | None = None, use: str = "codes") -> Wholes | None:
    """Return a float32 operand as integers of 8 or 16 bits; None where a value is none (or none was suggested).

    Args:
        x: at least 16 values along memory, which must be contiguous one way.
        fmt: what the operand is known to hold.
        use: of the `scratch` that the codes stand in.
    """
    across = abs(x.row) < abs(x.column)
    lines, length, stride, step = (x.columns, x.rows, x.column, x.row) if across else x[1:5]
    if x.bits != 32 or step != 4 or length < 16:
        return None
    lsb = -fmt.fraction_bits if isinstance(fmt, FixedPoint) else suggested_lsb(x.address, stride, lines, length)
    if abs(lsb) > _FARTHEST:
        return None
    width = length
    if bits == 16:  # one cache line more: lines do not meet in the same few cache sets
        width = -(-length // PADDING) * PADDING + 32
    codes = scratch(use, lines * width * bits // 8).view(np.int8 if bits == 8 else np.int16).reshape(lines, width)
    largest = convert(x.address, stride, lines, length, codes, 2.0**lsb, 2.0 ** (bits - 1 + lsb))
    return Wholes(codes, across, lsb, largest) if largest >= 0 else None


def largest_norm(x: Wholes, runs_along_k: bool, length: int, first_only: bool = False) -> float:
    """Return the largest Euclidean norm along k of the operand's rows or columns, rounded up; or the first one's.

    Args:
        runs_along_k: whether lines do. length: values of a line.
    """
    codes, terms = x.codes, length if runs_along_k else len(x.codes)
    lines = 1 if first_only and runs_along_k else len(codes)
    groups = 1 if first_only and not runs_along_k else -(-length // 16)
    squares = _squares(codes, lines, length, groups, runs_along_k)
    if first_only:
        squares = squares[:1]
    return math.sqrt(float(squares.max()) * (1 + terms * 2.0**-22)) * 2.0**x.lsb  # n sums err by n * 2**-23 at most


@compiled
def _squares(codes, lines, length, groups, along):  # type: ignore[no-untyped-def]
    """Return the sum of squares of each line, or across lines of each value (of `groups` x 16)."""
    size, width, whole = codes.itemsize, codes.shape[1], length // 16
    sums, rest = np.zeros(lines if along else groups * 16, np.float32), np.zeros(16, codes.dtype)
    state_array = np.zeros(16, np.float32)
    at, state, last = sums.ctypes.data, state_array.ctypes.data, rest.ctypes.data
    count, left = min(whole, groups), np.int64(groups > whole)
    for i in range(lines):
        source = codes.ctypes.data + i * width * size
        for j in range(16 * whole, length):
            rest[j - 16 * whole] = codes[i, j]
        if not along:
            _add(size, 1, count, source, at)
            _add(size, 1, left, last, at + 64 * whole)
            continue
        state_array[:] = 0
        _add(size, 0, count, source, state)
        _add(size, 0, left, last, state)
        total = np.float32(0)
        for j in range(16):
            total += state_array[j]
        sums[i] = total
    return sums


@compiled
def _add(size, moves, count, source, target):  # type: ignore[no-untyped-def]
    if size == 1:
        if moves:
            add_squares(8, 1, count, source, target)
        else:
            add_squares(8, 0, count, source, target)
    elif moves:
        add_squares(16, 1, count, source, target)
    else:
        add_squares(16, 0, count, source, target)


@intrinsic(prefer_literal=True)
def add_squares(_typing, bits, moves, count, source, target):  # type: ignore[no-untyped-def]
    """target += squares of `count` x 16 integers of 8 or 16 bits, all into the same 16 float32 or (`moves`) the next.

    bits and moves are literals.
    """
    if not isinstance(bits, types.Literal) or not isinstance(moves, types.Literal):
        return None
    width, on = bits.literal_value, bool(moves.literal_value)

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _, _, count, source, target = values
        v = Lanes(b, 32)
        kind = ir.VectorType(ir.IntType(width), 16)

        def add(i: Any, *held: Any) -> list[Any]:
            codes = b.load(b.inttoptr(b.add(source, b.mul(i, INT64(2 * width))), ir.PointerType(kind)), typ=kind)
            codes.align = width // 8
            x = b.sitofp(b.sext(codes, v.integers), v.floats)
            if held:
                return [v.fma(x, x, held[0])]
            place = b.add(target, b.mul(i, INT64(64)))
            v.store(v.fma(x, x, v.load(place)), place)
            return []

        for total in counted_loop(b, "squares", count, [] if on else [v.load(target)], add):
            v.store(total, target)
        return context.get_dummy_value()

    return types.void(bits, moves, *([types.int64] * 3)), generate


@compiled
def suggested_lsb(address, stride, lines, length):  # type: ignore[no-untyped-def]
    """Return the largest lsb that suits a few values; 1000 if they are all 0."""
    lowest: Any = 1000
    for line in range(0, lines, max(1, lines // 4)):
        for i in range(min(16, length)):
            code = np.int64(np.float32(read32(address + line * stride + 4 * i)).view(np.int32))
            exponent = (code >> 23) & 0xFF
            significand = (code & 0x7FFFFF) | 0x800000
            if code & 0x7FFFFFFF == 0 or exponent == 255:
                continue
            while significand & 1 == 0:
                significand >>= 1
                exponent += 1
            lowest = min(lowest, exponent - 150)
    return lowest


@compiled
def convert(address, stride, lines, length, codes, unit, limit):  # type: ignore[no-untyped-def]
    """Convert lines of float32 to codes * unit; return the largest magnitude, -1 where a value is no such number.

    Values must be from -limit to limit - unit.
    """
    state = np.zeros(3 * 16, np.float32)  # what `narrow_exactly` notes
    line, last = np.zeros(16, np.float32), np.empty(16, codes.dtype)
    at, rest, last_at, target = state.ctypes.data, line.ctypes.data, last.ctypes.data, codes.ctypes.data
    size, width = codes.itemsize, codes.shape[1]
    magic = 1.5 * 2.0**23 * unit
    whole = length // 16 * 16
    largest = 0.0
    for begin in range(0, lines, _LINES):
        for i in range(begin, min(begin + _LINES, lines)):
            source, place = address + i * stride, target + i * width * size
            if size == 1:
                narrow_exactly(8, whole // 16, source, place, magic, at)
            else:
                narrow_exactly(16, whole // 16, source, place, magic, at)
            if whole == width:
                continue
            line[:] = 0
            for j in range(whole, length):
                line[j - whole] = read32(source + 4 * j)
            if size == 1:
                narrow_exactly(8, 1, rest, last_at, magic, at)
            else:
                narrow_exactly(16, 1, rest, last_at, magic, at)
            for j in range(whole, width):
                codes[i, j] = last[j - whole] if j < whole + 16 else 0
        for j in range(16):
            if state[j] != 0 or not (state[16 + j] < limit and state[32 + j] >= -limit):
                return -1.0
            largest = max(largest, np.float64(state[16 + j]), -np.float64(state[32 + j]))
    return largest


@intrinsic(prefer_literal=True)
def narrow_exactly(_typing, bits, count, source, target, magic, state):  # type: ignore[no-untyped-def]
    """Store `count` x 16 float32 as integers of 8 or 16 bits, and note what they were in three vectors at `state`.

    magic is 1.5 * 2**23 units: x + magic is rounded to a whole number of units, whose last bits are those of the sum.
    Noted are: not 0 where that number is not x (NaN among them); the highest x; the lowest x, since beyond 2**22 units
    the bits are others.
    """
    if not isinstance(bits, types.Literal):
        return None
    width = bits.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _, count, source, target, magic, state = values
        v = Lanes(b, 32)
        codes = ir.VectorType(ir.IntType(width), 16)
        large = v.spread(b.fptrunc(magic, ir.FloatType()))
        places = [b.add(state, INT64(64 * i)) for i in range(3)]
        start = [v.load(place) for place in places]

        def narrow(i: Any, other: Any, highest: Any, lowest: Any) -> list[Any]:
            x = v.load(b.add(source, b.mul(i, INT64(64))))
            total = v.add(x, large)
            differs = b.sext(b.fcmp_unordered("!=", v.sub(total, large), x), v.integers)
            new = [v.float_of(b.or_(v.bits_of(other), differs)), v.larger(x, highest), v.smaller(x, lowest)]
            place = b.inttoptr(b.add(target, b.mul(i, INT64(2 * width))), ir.PointerType(codes))
            b.store(b.trunc(v.bits_of(total), codes), place).align = width // 8
            return new

        for place, result in zip(places, counted_loop(b, "narrow", count, start, narrow), strict=True):
            v.store(result, place)
        return context.get_dummy_value()

    return types.void(bits, *([types.int64] * 3), types.float64, types.int64), generate
