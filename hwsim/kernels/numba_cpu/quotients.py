"""Rounding the quotients of two-level blocks in explicit vectors: one float32 multiplication in place of a division.

A quotient is taken as steps of its binade with 24 bits of fraction, in one integer, to which the rule adds before the
fraction is dropped. Factors are a little below the inverse of a block's unit, by more than all roundings together, so
that the integer lies below the exact count of steps, by less than `window`. Only where its fraction lies that close
below the next step may the exact count have reached that step: the largest fraction of a strip tells whether one of its
results is in doubt. A tie and an exact number of steps always are; zero never is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hwsim.arithmetic.number import FloatingPoint
from hwsim.arithmetic.rounding import Rounding
from hwsim.kernels.numba_cpu import rounding
from hwsim.kernels.numba_cpu.strips import lanes_of
from hwsim.kernels.numba_cpu.vector_ir import SHORT_VECTORS
from hwsim.kernels.random_bits import M1, M2

FRACTION_BITS = 24
FRACTION_MASK = (1 << FRACTION_BITS) - 1
MOST_LANES = 16
PART = 4  # elements that are written past the caches at once: NumPy aligns large arrays to no more than their 16 bytes
# A factor, and the quotient made with it, take four roundings of at most 2**-24 each: below by five is surely below.
BELOW_ONE = 1 - 5 * 2.0**-24


class QuotientParameters(NamedTuple):
    """An element format as `round_quotients` reads it (int32 and float32)."""

    smallest_field: Any  # exponent field of its smallest normal value, in place
    inverse: Any  # minus an exponent field in place, the bits of 2**FRACTION_BITS steps at that exponent
    largest: Any  # largest value * 2**mantissa bits, as elements are counted in steps
    drawn_mask: Any  # of a random word's top FRACTION_BITS: those that count
    window: Any  # fractions from here on are in doubt


def quotient_parameters(fmt: FloatingPoint, rule: Rounding) -> QuotientParameters:
    """Return the parameters of an element format (with a mantissa) under a rule of at most 24 random bits."""
    m = fmt.mantissa_bits
    # 5 + 4 roundings of a count below 2**(m + 1) steps, and the fraction that its integer drops
    window = 10 * 2 ** (m + 1) + 2
    return QuotientParameters(
        smallest_field=np.int32((fmt.emin + 127) << 23),
        inverse=np.int32(((2 * 127 + m + FRACTION_BITS) << 23) - (1 << 32)),
        largest=np.float32(fmt.largest * 2.0**m),
        drawn_mask=np.int32(FRACTION_MASK & ~((1 << (FRACTION_BITS - rule.random_bits)) - 1)),
        window=np.int32((1 << FRACTION_BITS) - window),
    )


@intrinsic(prefer_literal=True)
def round_quotients(typing_context, mode, signs, block, streams, x, out, place, factors, scales, begin, end, p, draw):  # type: ignore[no-untyped-def]
    """Round blocks `begin` to `end` of a strip and return the largest fraction (int32): see the top.

    The strip stands at `place` in x and in out. Block b is multiplied by factors[b]; its elements, times the exact
    scales[b] (a power of two smaller, as they are counted in steps), times the tensor's scale, are the results.
    `mode`, `signs` (SIGNED, or BOTH_ZEROS if the format has -0), `block` and `streams` are compile-time constants;
    with `streams` (0 or 1) results go past the caches, and stand where PART of them are aligned.
    p: QuotientParameters. draw: (tensor's scale, low 16 bits of the strip's first counter, `rounding.run_key`, high
    half of the key), float32 and uint32.
    """
    if not all(isinstance(constant, types.IntegerLiteral) for constant in (mode, signs, block, streams)):
        return None
    rule, length, past = (mode.literal_value, signs.literal_value), block.literal_value, bool(streams.literal_value)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place, begin, end, p, draw = (arguments[i] for i in (6, 9, 10, 11, 12))
        kinds = signature.args
        data = [context.make_array(kinds[i])(context, builder, arguments[i]).data for i in (4, 5, 7, 8)]
        numbers = dict(zip(kinds[11].fields, cgutils.unpack_tuple(builder, p), strict=True))
        emitter = _Blocks(builder, lanes_of(length, MOST_LANES), *rule, numbers, cgutils.unpack_tuple(builder, draw))
        highest = cgutils.alloca_once_value(builder, emitter.narrowed(emitter.whole(0)))
        with cgutils.for_range(builder, end, start=begin, intp=end.type) as loop:
            first = builder.mul(loop.index, ir.Constant(end.type, length))
            factor, scale = (
                emitter.spread(builder.load(builder.gep(d, [loop.index], inbounds=True))) for d in data[2:]
            )
            for piece in range(0, length, emitter.count):
                at = builder.add(first, ir.Constant(end.type, piece))
                value = emitter.load(data[0], builder.add(place, at))
                result, level = emitter.rounded(value, factor, scale, at)
                (emitter.stream if past else emitter.store)(result, data[1], builder.add(place, at))
                fraction = emitter.narrowed(builder.and_(level, emitter.whole(FRACTION_MASK)))
                builder.store(emitter.larger(fraction, builder.load(highest)), highest)
        return emitter.largest_of(builder.load(highest))

    intp = types.intp
    return types.int32(mode, signs, block, streams, x, out, intp, factors, scales, intp, intp, p, draw), generate


class _Blocks:
    """Emits the rounding of `count` neighbouring elements."""

    def __init__(
        self, builder: ir.IRBuilder, count: int, rule: int, signs: int, p: dict[str, Any], draw: list[Any]
    ) -> None:
        self.builder, self.count, self.rule, self.signs = builder, count, rule, signs
        self.integers = ir.VectorType(ir.IntType(32), count)
        self.floats = ir.VectorType(ir.FloatType(), count)
        self.p = {name: self.spread(value) for name, value in p.items()}
        self.draw = [self.spread(value) for value in draw]

    def whole(self, value: int) -> Any:
        return ir.Constant(self.integers, [value] * self.count)

    def spread(self, scalar: Any) -> Any:
        kind = ir.VectorType(scalar.type, self.count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), self.whole(0))

    def load(self, data: Any, index: Any) -> Any:
        place = self.builder.gep(data, [index], inbounds=True)
        return self.builder.load(self.builder.bitcast(place, self.floats.as_pointer()), align=4)

    def store(self, value: Any, data: Any, index: Any) -> None:
        place = self.builder.gep(data, [index], inbounds=True)
        self.builder.store(value, self.builder.bitcast(place, value.type.as_pointer()), align=4)

    def stream(self, value: Any, data: Any, index: Any) -> None:
        """Store past the caches: the lines are not read first."""
        b = self.builder
        for start in range(0, self.count, PART):
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), PART), list(range(start, start + PART)))
            part = b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)
            place = b.gep(data, [b.add(index, ir.Constant(index.type, start))], inbounds=True)
            written = b.store(part, b.bitcast(place, part.type.as_pointer()), align=4 * PART)
            written.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    def larger(self, x: Any, y: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed(">", x, y), x, y)

    def narrowed(self, vector: Any) -> Any:
        """Return the larger ones of both halves of a vector of integers where registers are short, else the vector."""
        half, odd = divmod(self.count, 2)
        if odd or not SHORT_VECTORS:
            return vector
        undefined, kind = ir.Constant(vector.type, ir.Undefined), ir.VectorType(ir.IntType(32), half)
        halves = [ir.Constant(kind, list(range(start, start + half))) for start in (0, half)]
        return self.larger(*(self.builder.shuffle_vector(vector, undefined, lanes) for lanes in halves))

    def largest_of(self, vector: Any) -> Any:
        name = f"llvm.vector.reduce.smax.v{vector.type.count}i32"
        kind = ir.FunctionType(ir.IntType(32), [vector.type])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [vector])

    def rounded(self, value: Any, factor: Any, scale: Any, at: Any) -> tuple[Any, Any]:
        """Return the results, and the counts of steps with their fraction as the rule left them."""
        b, p = self.builder, self.p
        pattern = b.bitcast(value, self.integers)
        quotient = b.and_(b.bitcast(b.fmul(value, factor), self.integers), self.whole(0x7FFFFFFF))
        field = b.and_(quotient, self.whole(0x7F800000))
        field = self.larger(field, p["smallest_field"])
        to_steps = b.bitcast(b.sub(p["inverse"], field), self.floats)
        level = b.fptosi(b.fmul(b.bitcast(quotient, self.floats), to_steps), self.integers)
        if self.rule == rounding.STOCHASTIC:
            level = b.add(level, self.drawn(at))
        elif self.rule in (rounding.NEAREST_EVEN, rounding.NEAREST_AWAY):
            level = b.add(level, self.whole(1 << (FRACTION_BITS - 1)))
        steps = b.ashr(level, self.whole(FRACTION_BITS))
        zero = ir.Constant(self.floats, [0.0] * self.count)
        if self.rule in (rounding.UP, rounding.DOWN):
            outward = b.fcmp_ordered(">" if self.rule == rounding.UP else "<", value, zero)
            steps = b.sub(steps, b.sext(outward, self.integers))
        elif self.rule == rounding.TO_ODD:
            steps = b.or_(steps, b.zext(b.fcmp_unordered("!=", value, zero), self.integers))
        element = b.fmul(b.sitofp(steps, self.floats), b.bitcast(field, self.floats))
        element = b.select(b.fcmp_ordered("<", element, p["largest"]), element, p["largest"])
        # element * scale has few bits: the product with the tensor's scale is the only rounding
        result = b.bitcast(b.fmul(b.fmul(element, scale), self.draw[0]), self.integers)
        sign = b.and_(pattern, self.whole(-(1 << 31)))
        if self.signs != rounding.BOTH_ZEROS:
            sign = b.select(b.icmp_signed("==", steps, self.whole(0)), self.whole(0), sign)
        return b.bitcast(b.or_(result, sign), self.floats), level

    def drawn(self, at: Any) -> Any:
        """Return the random bits that count, in their place in the fraction: see `rounding.random_word`."""
        b = self.builder
        _, first, run_key, key_high = self.draw
        lanes = ir.Constant(self.integers, list(range(self.count)))
        x = b.xor(b.add(b.add(first, self.spread(b.trunc(at, ir.IntType(32)))), lanes), run_key)
        x = b.mul(x, self.whole(M1))
        x = b.xor(b.xor(x, b.lshr(x, self.whole(15))), key_high)
        x = b.mul(x, self.whole(M2))
        word = b.xor(x, b.lshr(x, self.whole(15)))
        return b.and_(b.lshr(word, self.whole(32 - FRACTION_BITS)), self.p["drawn_mask"])
