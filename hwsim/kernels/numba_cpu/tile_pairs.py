"""Integer products in pairs: 16 lanes of 16 bits multiplied and added two by two into 8 sums of 32 bits (AVX2).

One instruction (vpmaddwd) adds two products of 16-bit integers to a 32-bit one without rounding or saturation. Two
products of -2**15 are 2**31, which wraps to -2**31: right modulo 2**32 as everything else here. A processor without
sums of byte products multiplies twice as many integers this way as float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.extending import intrinsic

from hwsim.kernels.numba_cpu.vector_ir import INT32, INT64, SHORT_VECTORS, counted_loop

PAIR_PRODUCTS = SHORT_VECTORS and bool(get_host_cpu_features().get("avx2"))  # float32 of AVX-512 is as fast
ROWS = 6  # of a tile: with two vectors each, 12 sums; two vectors of b, one of a and one product fill 16 registers
COLUMNS = 16
INT16 = ir.IntType(16)


def _vector(kind: Any, count: int) -> Any:
    return ir.VectorType(kind, count)


def _load(b: ir.IRBuilder, address: Any, kind: Any, align: int) -> Any:
    value = b.load(b.inttoptr(address, ir.PointerType(kind)), typ=kind)
    value.align = align
    return value


def _store(b: ir.IRBuilder, value: Any, address: Any, align: int) -> None:
    b.store(value, b.inttoptr(address, ir.PointerType(value.type))).align = align


def _spread(b: ir.IRBuilder, scalar: Any, count: int) -> Any:
    nothing = ir.Constant(_vector(scalar.type, count), ir.Undefined)
    one = b.insert_element(nothing, scalar, INT32(0))
    return b.shuffle_vector(one, nothing, ir.Constant(_vector(INT32, count), [0] * count))


@intrinsic
def tile_pairs(_typing, a, a_row, b, state, pairs):  # type: ignore[no-untyped-def]
    """Write ROWS x COLUMNS sums of `pairs` (even, at least 2) pairs of products to `state`, as int32.

    Args:
        a, a_row: the left operand, rows of int16, consecutive in k. b: for each pair of k, COLUMNS pairs of int16.
    """

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        if PAIR_PRODUCTS:  # else never called, and LLVM does not know the instruction
            _emit_tile(builder, *values)
        return context.get_dummy_value()

    return types.void(*([types.int64] * 5)), generate


def _emit_tile(b: ir.IRBuilder, a: Any, a_row: Any, right: Any, state: Any, pairs: Any) -> None:
    sums, shorts = _vector(INT32, 8), _vector(INT16, 16)
    name = "llvm.x86.avx2.pmadd.wd"
    module = b.module
    pair_product = module.globals.get(name) or ir.Function(module, ir.FunctionType(sums, [shorts, shorts]), name)
    places = [(r, v) for r in range(ROWS) for v in range(2)]
    lines = [b.add(a, b.mul(a_row, INT64(r))) for r in range(ROWS)]

    def add(k: Any, at: Any, *values: Any) -> list[Any]:
        new = dict(zip(places, values, strict=True))
        for step in range(2):  # two, so that keeping the addresses costs half
            columns = [_load(b, b.add(at, INT64(64 * step + 32 * v)), shorts, 2) for v in range(2)]
            offset = b.add(b.mul(k, INT64(4)), INT64(4 * step))
            for r in range(ROWS):
                x = b.bitcast(_spread(b, _load(b, b.add(lines[r], offset), INT32, 4), 8), shorts)
                for v in range(2):
                    new[r, v] = b.add(new[r, v], b.call(pair_product, [x, columns[v]]))
        return [b.add(at, INT64(8 * COLUMNS)), *new.values()]

    start = [right, *[ir.Constant(sums, [0] * 8)] * len(places)]
    _, *totals = counted_loop(b, "pairs", pairs, start, add, step=2, at_least_one=True)
    for (r, v), total in zip(places, totals, strict=True):
        _store(b, total, b.add(state, INT64(4 * COLUMNS * r + 32 * v)), 4)


@intrinsic
def interleave(_typing, first, second, target):  # type: ignore[no-untyped-def]
    """Store 16 pairs of int16, one of each line; `second` 0 means zeros."""

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        first, second, target = values
        shorts, words = _vector(INT16, 16), _vector(INT32, 16)
        there = b.icmp_signed("!=", second, INT64(0))
        low = _load(b, first, shorts, 2)
        high = b.select(there, _load(b, b.select(there, second, first), shorts, 2), ir.Constant(shorts, [0] * 16))
        order = [x for i in range(16) for x in (i, 16 + i)]
        pairs = b.shuffle_vector(low, high, ir.Constant(_vector(INT32, 32), order))
        _store(b, b.bitcast(pairs, words), target, 4)
        return context.get_dummy_value()

    return types.void(*([types.int64] * 3)), generate


def _widened(b: ir.IRBuilder, sums: Any, kind: Any, amount: Any, factor: Any) -> Any:
    """Return sums of 32 bits as floats, scaled, the upper bits replaced by the sign below them."""
    whole = b.ashr(b.shl(sums, amount), amount)
    return b.fmul(b.sitofp(whole, _vector(kind, 16)), factor)


@intrinsic(prefer_literal=True)
def widen_tile(_typing, bits, state, target, target_row, shift, scale):  # type: ignore[no-untyped-def]
    """Store a whole tile of sums as floats of `bits` (literal): see `widen_sums`."""
    if not isinstance(bits, types.Literal):
        return None
    width = bits.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _, state, target, target_row, shift, scale = values
        kind = ir.FloatType() if width == 32 else ir.DoubleType()
        amount = _spread(b, b.trunc(shift, INT32), 16)
        factor = _spread(b, b.fptrunc(scale, kind) if width == 32 else scale, 16)
        for r in range(ROWS):
            sums = _load(b, b.add(state, INT64(4 * COLUMNS * r)), _vector(INT32, 16), 4)
            place = b.add(target, b.mul(target_row, INT64(r)))
            _store(b, _widened(b, sums, kind, amount, factor), place, width // 8)
        return context.get_dummy_value()

    return types.void(bits, *([types.int64] * 4), types.float64), generate


@intrinsic(prefer_literal=True)
def widen_sums(_typing, bits, count, source, target, shift, scale, add):  # type: ignore[no-untyped-def]
    """Store `count` x 16 sums of 32 bits as floats, scaled, their upper `shift` bits replaced by the sign below them.

    Args:
        bits: literal, 32 or 64. add: literal, whether what stands at the target is added.
        source: may lie in the same memory as the target, at its end: each vector is read before its place is written.
    """
    if not isinstance(bits, types.Literal) or not isinstance(add, types.Literal):
        return None
    width, adds = bits.literal_value, bool(add.literal_value)

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _, count, source, target, shift, scale, _ = values
        words, kind = _vector(INT32, 16), ir.FloatType() if width == 32 else ir.DoubleType()
        amount = _spread(b, b.trunc(shift, INT32), 16)
        factor = _spread(b, b.fptrunc(scale, kind) if width == 32 else scale, 16)

        def widen(i: Any) -> list[Any]:
            x = _load(b, b.add(source, b.mul(i, INT64(64))), words, 4)
            place = b.add(target, b.mul(i, INT64(2 * width)))
            value = _widened(b, x, kind, amount, factor)
            if adds:
                value = b.fadd(value, _load(b, place, value.type, width // 8))
            _store(b, value, place, width // 8)
            return []

        counted_loop(b, "widen", count, [], widen)
        return context.get_dummy_value()

    return types.void(bits, *([types.int64] * 4), types.float64, add), generate
