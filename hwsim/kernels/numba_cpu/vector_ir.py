"""Vector instructions for the multiply kernels: a thin, readable layer over LLVM's builder.

numba vectorizes loops by itself, but keeps the accumulators of a matrix product in memory and uses half-width vectors.
The kernels therefore write their inner loop as explicit vectors. LLVM splits them on machines with narrower registers,
so the same code runs anywhere.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
DIRECTIONS = {"nearest": 8, "down": 9, "up": 10, "zero": 11}  # the immediate of an AVX-512 instruction that rounds so

EXPLICIT = bool(get_host_cpu_features().get("avx512f"))  # instructions that name their own rounding, 32 wide registers
# x86 without them: 16 registers of 8 float32, and on many such processors additions start beside multiplications
SHORT_VECTORS = not EXPLICIT and platform.machine().lower() in ("x86_64", "amd64")


def counted_loop(
    b: ir.IRBuilder, name: str, count: Any, start: Sequence[Any], advance: Callable[..., Sequence[Any]],
    step: int = 1, at_least_one: bool = False,
) -> list[Any]:  # fmt: skip
    """Emit ``for i in range(0, count, step): values = advance(i, *values)`` with values in registers; return the last.

    Args:
        name: of the blocks in LLVM's text. start: the values before the first pass.
        at_least_one: count is at least 1, so that nothing is asked before the first pass.
    """
    before, body, after = b.block, b.append_basic_block(name), b.append_basic_block(f"{name}_end")
    if at_least_one:
        b.branch(body)
    else:
        b.cbranch(b.icmp_signed(">", count, INT64(0)), body, after)
    b.position_at_end(body)
    i = b.phi(INT64)
    held = [b.phi(value.type) for value in start]
    for phi, value in zip((i, *held), (INT64(0), *start), strict=True):
        phi.add_incoming(value, before)
    new = list(advance(i, *held))
    following = b.add(i, INT64(step))
    last = b.block  # `advance` may have ended in another block than it began in
    for phi, value in zip((i, *held), (following, *new), strict=True):
        phi.add_incoming(value, last)
    b.cbranch(b.icmp_signed("<", following, count), body, after)
    b.position_at_end(after)
    if at_least_one:
        return new
    results = [b.phi(value.type) for value in start]
    for result, first, value in zip(results, start, new, strict=True):
        result.add_incoming(first, before)
        result.add_incoming(value, last)
    return results


class Lanes:
    """Emits operations on vectors of one width: float32 x 16 or float64 x 8 (512 bits).

    Every method takes and returns LLVM values; `bits` is 32 or 64, and integers have the same width.
    """

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        self.builder = builder
        self.bits = bits
        self.count = 512 // bits
        self.bytes = bits // 8
        self.fraction_bits = 23 if bits == 32 else 52
        self.scalar = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.integer = ir.IntType(bits)
        self.floats = ir.VectorType(self.scalar, self.count)
        self.integers = ir.VectorType(self.integer, self.count)

    # constants, loads and stores
    def number(self, value: float) -> Any:
        """Return a constant vector of floats."""
        return ir.Constant(self.floats, [value] * self.count)

    def whole(self, value: int) -> Any:
        """Return a constant vector of integers."""
        return ir.Constant(self.integers, [value] * self.count)

    def spread(self, scalar: Any) -> Any:
        """Return a vector with `scalar` in every lane."""
        kind = ir.VectorType(scalar.type, self.count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(INT32, 0))
        zeros = ir.Constant(ir.VectorType(INT32, self.count), [0] * self.count)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def load_scalar(self, address: Any, kind: Any = None) -> Any:
        """Load one number from an address (an i64)."""
        kind = kind or self.scalar
        return self.builder.load(self.builder.inttoptr(address, ir.PointerType(kind)), typ=kind)

    def load(self, address: Any) -> Any:
        """Load a vector of floats from an address that is aligned to one element."""
        pointer = self.builder.inttoptr(address, ir.PointerType(self.floats))
        value = self.builder.load(pointer, typ=self.floats)
        value.align = self.bytes
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store a vector at an address that is aligned to one element."""
        pointer = self.builder.inttoptr(address, ir.PointerType(value.type))
        self.builder.store(value, pointer).align = self.bytes

    # arithmetic
    def _call(self, name: str, *values: Any) -> Any:
        kind = values[0].type
        full = f"llvm.{name}.v{self.count}f{self.bits}"
        module = self.builder.module
        function = module.globals.get(full) or ir.Function(module, ir.FunctionType(kind, [kind] * len(values)), full)
        return self.builder.call(function, values)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Return x * y + z with one rounding."""
        return self._call("fma", x, y, z)

    def fma_toward(self, direction: str, x: Any, y: Any, z: Any) -> Any:
        """Return x * y + z rounded nearest, down, up or to zero, whatever the processor's mode is (AVX-512 only)."""
        name = f"llvm.x86.avx512.vfmadd.p{'s' if self.bits == 32 else 'd'}.512"
        kind = ir.FunctionType(self.floats, [self.floats, self.floats, self.floats, INT32])
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, [x, y, z, INT32(DIRECTIONS[direction])])

    def mul(self, x: Any, y: Any) -> Any:
        """Return x * y."""
        return self.builder.fmul(x, y)

    def add(self, x: Any, y: Any) -> Any:
        """Return x + y."""
        return self.builder.fadd(x, y)

    def sub(self, x: Any, y: Any) -> Any:
        """Return x - y."""
        return self.builder.fsub(x, y)

    def neg(self, x: Any) -> Any:
        """Return -x."""
        return self.builder.fneg(x)

    def abs(self, x: Any) -> Any:
        """Return |x|."""
        return self._call("fabs", x)

    def copysign(self, x: Any, sign: Any) -> Any:
        """Return |x| with the sign of `sign`."""
        return self._call("copysign", x, sign)

    def to_integral(self, how: str, x: Any) -> Any:
        """Round to an integral value: how is roundeven, trunc, floor or ceil (whatever the processor's mode is)."""
        return self._call(how, x)

    def larger(self, x: Any, y: Any) -> Any:
        """Return x where x > y, else y (y also where either is NaN)."""
        return self.builder.select(self.builder.fcmp_ordered(">", x, y), x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        """Return x where x < y, else y (y also where either is NaN)."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, y), x, y)

    def where(self, x: Any, relation: str, y: Any, chosen: Any, other: Any) -> Any:
        """Return `chosen` where the (ordered) relation holds, else `other`."""
        return self.builder.select(self.builder.fcmp_ordered(relation, x, y), chosen, other)

    # bits
    def bits_of(self, x: Any) -> Any:
        """Reinterpret floats as integers."""
        return self.builder.bitcast(x, self.integers)

    def float_of(self, x: Any) -> Any:
        """Reinterpret integers as floats."""
        return self.builder.bitcast(x, self.floats)

    def exponent_part(self, x: Any) -> Any:
        """Return 2**floor(log2|x|): 0 for zero and subnormals, infinity for infinity and NaN."""
        mask = ((1 << (self.bits - 1 - self.fraction_bits)) - 1) << self.fraction_bits
        return self.float_of(self.builder.and_(self.bits_of(x), self.whole(mask)))
