"""One accumulation step as vector instructions: an exact sum, then one rounding.

The sum of a product and the accumulator is formed so that the rounding which follows gives what one rounding of the
exact sum would give. `SUMS` says how: under the processor's rounding toward zero, down or up, a fused multiply-add
followed by the same rule to fewer bits is that rule once; for the other rules the sum is rounded *to odd* first,
which any later rounding to at least two bits fewer cannot tell from the exact sum. "near" (plain round to nearest) is
used only where `matmul_plan` proves that it does no harm; "once" and "residual" form and round the sum together
(`matmul_once`).

Round to odd costs two fused multiply-adds under round-down: d = RD(s) and u = -RD(-s) = RU(s). If they differ, they
are neighbours and the one with the odd code is the result; if not, s is exact.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from hwsim.kernels.numba_cpu.vector_ir import EXPLICIT, INT32, SHORT_VECTORS, Lanes

# How the sum is formed -> rounding mode of the processor while it runs (see `processor_mode`).
SUMS = {
    "near": "nearest", "once": "nearest", "residual": "nearest", "odd": "down", "zero": "zero", "down": "down",
    "up": "up",
}  # fmt: skip

# Places of the run-time numbers in the parameter block: floats, then integers (same width as the lanes).
NUMBERS = (
    "one", "magic", "smallest_normal", "top", "largest", "lowest", "over", "under", "infinity", "minus_infinity",
    "step", "inverse_step", "random_range", "modulus", "inverse_modulus", "split", "split_less_one",
    "twice_split", "twice_split_less_one",
)  # fmt: skip
WHOLES = (
    "scale", "unscale", "dropped", "half_minus_one", "half", "low_mask", "keep_mask", "last", "random_shift",
    "random_place", "random_mask", "split_exponent",
)  # fmt: skip
BLOCK = len(NUMBERS) + len(WHOLES)

LOW_WORDS = "stochastic_low"  # mode of "bits" whose words come as `random_mask` bits, in the place of those dropped


class Step:
    """The pieces of one accumulation step over `lanes`, with parameters read from memory at `block`.

    Args:
        lanes: vector operations.
        block: address of the parameter block (`BLOCK` words of the lanes' width).
    """

    def __init__(self, lanes: Lanes, block: Any) -> None:
        self.v = lanes
        self._block = block
        self._known: dict[str, Any] = {}

    def number(self, name: str) -> Any:
        """Return a float parameter in every lane."""
        return self._parameter(name, NUMBERS.index(name), self.v.scalar)

    def whole(self, name: str) -> Any:
        """Return an integer parameter in every lane."""
        return self._parameter(name, len(NUMBERS) + WHOLES.index(name), self.v.integer)

    def _parameter(self, name: str, place: int, kind: Any) -> Any:
        if name not in self._known:
            address = self.v.builder.add(self._block, self._block.type(place * self.v.bytes))
            self._known[name] = self.v.spread(self.v.load_scalar(address, kind))
        return self._known[name]

    def preload(self, names: tuple[str, ...]) -> None:
        """Read parameters now (before a loop)."""
        for name in names:
            if name in NUMBERS:
                self.number(name)
            else:
                self.whole(name)

    # ------------------------------------------------------------------ sums
    def sum_product(self, how: str, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, rounded as `how` says (a key of `SUMS`)."""
        v = self.v
        if how != "odd":
            return v.fma(a, b, c)
        return self._odd_of(v.fma(a, b, c), v.neg(v.fma(v.neg(a), b, v.neg(c))))

    def sum_two(self, how: str, x: Any, y: Any) -> Any:
        """Return x + y, rounded as `how` says. The run-time 1 keeps LLVM from undoing the two negations."""
        return self.sum_product(how, x, self.number("one"), y)

    def _odd_of(self, down: Any, up: Any) -> Any:
        v = self.v
        if SHORT_VECTORS:  # a shift brings the last bit where the selecting instruction looks
            odd = v.builder.trunc(v.bits_of(down), ir.VectorType(ir.IntType(1), v.count))
            return v.builder.select(odd, down, up)
        last_bit = v.builder.and_(v.bits_of(down), v.whole(1))
        return v.builder.select(v.builder.icmp_signed("!=", last_bit, v.whole(0)), down, up)

    # ------------------------------------------------------------------ roundings
    def round(self, rule: str, x: Any, word: Any = None) -> Any:
        """Round x by a rule: none, split, magic, half, bits_MODE, scaled_MODE, fixed_MODE, wrapped_MODE, clamped."""
        family, _, mode = rule.partition("_")
        if family == "none":
            return x
        return getattr(self, f"_{family}")(mode, x, word)

    def _magic(self, mode: str, x: Any, _word: Any) -> Any:
        """Nearest even by adding and subtracting 1.5 * 2**dropped * 2**exponent; nothing may under- or overflow."""
        v = self.v
        unit, magic = v.exponent_part(x), self.number("magic")
        if mode:
            unit = v.larger(unit, self.number("smallest_normal"))
        if mode == "subnormal_range":
            unit = v.smaller(unit, self.number("top"))  # so that an infinity stays one
        rounded = v.fma(unit, v.neg(magic), v.fma(unit, magic, x))
        if not mode:
            return rounded
        sign = v.builder.and_(v.bits_of(x), v.whole(-1 << (v.bits - 1)))  # a rounded zero keeps the sign of x
        rounded = v.float_of(v.builder.or_(v.bits_of(rounded), sign))
        if mode == "subnormal":
            return rounded
        checked = v.where(rounded, ">", self.number("largest"), self.number("over"), rounded)
        return v.where(rounded, "<", self.number("lowest"), self.number("under"), checked)

    def _split(self, _mode: str, x: Any, _word: Any) -> Any:
        """Nearest even in two operations, where nothing may under- or overflow and 2 bits more than p are dropped.

        With d bits to drop, x * 2**d - x rounded to 24 bits is x * 2**d - r, r being x rounded to 24 - d bits: x * 2**d
        is a multiple of the place that is rounded to, and even there where x is a tie, so that r is the even
        neighbor. Just above a power of two the place is half as large, which still gives that power if d >= m + 2.
        (Veltkamp's splitting adds x instead, which fails just below powers of two.)

        With short vectors x * 2**d is formed by adding d to the exponent, which leaves two additions: they start
        beside the next multiplications. A zero becomes some y, and y - (y - 0) is 0 again. A subnormal becomes a wrong
        y; but x is a multiple of the last place of y then, so that y - x and y - (y - x) are exact.
        """
        v = self.v
        if SHORT_VECTORS and v.bits == 32:
            large = v.float_of(v.builder.add(v.bits_of(x), self.whole("split_exponent")))
            return v.sub(large, v.sub(large, x))
        return v.fma(x, self.number("split"), v.neg(v.mul(x, self.number("split_less_one"))))

    def _half(self, _mode: str, x: Any, _word: Any) -> Any:
        """float16 by the processor's own conversions."""
        v = self.v
        halves = ir.VectorType(ir.HalfType(), v.count)
        return v.builder.fpext(v.builder.fptrunc(x, halves), v.floats)

    def _halves(self, _mode: str, x: Any, _word: Any) -> Any:
        """float16 to nearest even whatever the processor's mode is (AVX-512, F16C)."""
        v = self.v
        if not EXPLICIT:
            return self._halves_by_eight(x)
        codes, mask = ir.VectorType(ir.IntType(16), v.count), ir.IntType(16)
        name = "llvm.x86.avx512.mask.vcvtps2ph.512"
        kind = ir.FunctionType(codes, [v.floats, ir.IntType(32), codes, mask])
        function = v.builder.module.globals.get(name) or ir.Function(v.builder.module, kind, name)
        nearest_even = ir.Constant(ir.IntType(32), 0)
        packed = v.builder.call(function, [x, nearest_even, ir.Constant(codes, [0] * v.count), mask(-1)])
        return v.builder.fpext(v.builder.bitcast(packed, ir.VectorType(ir.HalfType(), v.count)), v.floats)

    def _halves_by_eight(self, x: Any) -> Any:
        v, b = self.v, self.v.builder
        codes, eight = ir.VectorType(ir.IntType(16), 8), ir.VectorType(v.scalar, 8)
        kind = ir.FunctionType(codes, [eight, INT32])
        name = "llvm.x86.vcvtps2ph.256"
        function = b.module.globals.get(name) or ir.Function(b.module, kind, name)

        def places(first: int, count: int) -> ir.Constant:
            return ir.Constant(ir.VectorType(INT32, count), list(range(first, first + count)))

        parts = [b.shuffle_vector(x, x, places(first, 8)) for first in (0, 8)]
        packed = [b.bitcast(b.call(function, [part, INT32(0)]), ir.VectorType(ir.HalfType(), 8)) for part in parts]
        wide = [b.fpext(part, eight) for part in packed]
        return b.shuffle_vector(*wide, places(0, 16))

    def _bits(self, mode: str, x: Any, word: Any) -> Any:
        """Formats with the carrier's exponents: add to the dropped bits and mask; carries, subnormals, infinity fit."""
        v, b = self.v, self.v.builder
        mode, _, saturate = mode.partition("+")
        code = v.bits_of(x)
        negative = b.ashr(code, v.whole(v.bits - 1))  # all ones where the sign bit is set
        if mode == "nearest_even":
            odd = b.and_(b.lshr(code, self.whole("dropped")), v.whole(1))
            code = b.add(code, b.add(odd, self.whole("half_minus_one")))
        elif mode == "nearest_away":
            code = b.add(code, self.whole("half"))
        elif mode == "up":
            code = b.add(code, b.and_(self.whole("low_mask"), b.not_(negative)))
        elif mode == "down":
            code = b.add(code, b.and_(self.whole("low_mask"), negative))
        elif mode == LOW_WORDS:
            code = b.add(code, word)
        elif mode == "stochastic":
            code = b.add(code, b.shl(b.lshr(word, self.whole("random_shift")), self.whole("random_place")))
        kept = b.and_(code, self.whole("keep_mask"))
        if mode == "to_odd":
            inexact = b.icmp_signed("!=", b.and_(code, self.whole("low_mask")), v.whole(0))
            kept = b.or_(kept, b.select(inexact, self.whole("last"), v.whole(0)))
        rounded = v.float_of(kept)
        if saturate:
            rounded = v.where(rounded, ">", self.number("largest"), self.number("largest"), rounded)
            rounded = v.where(rounded, "<", self.number("lowest"), self.number("lowest"), rounded)
        return rounded

    def _scaled(self, mode: str, x: Any, word: Any) -> Any:
        """Any narrower float format: bring the last kept bit to 1, round to an integer, scale back, check the range."""
        v, b = self.v, self.v.builder
        mode, _, unsigned_zero = mode.partition("+")
        unit = v.larger(v.exponent_part(x), self.number("smallest_normal"))
        unit = v.bits_of(v.smaller(unit, self.number("top")))
        scaled = v.mul(x, v.float_of(b.sub(self.whole("scale"), unit)))
        rounded = self._integral(mode, scaled, word)
        rounded = v.mul(rounded, v.float_of(b.sub(unit, self.whole("unscale"))))
        if unsigned_zero:
            rounded = self._positive_zero(rounded)
        return self._in_range(rounded, x)

    def _positive_zero(self, x: Any) -> Any:
        return self.v.where(x, "==", self.v.number(0.0), self.v.number(0.0), x)

    def _fixed(self, mode: str, x: Any, word: Any) -> Any:
        """Fixed point: the step is the same everywhere; out of range saturates."""
        v = self.v
        code = self._integral(mode, v.mul(x, self.number("inverse_step")), word)
        return self._positive_zero(self._in_range(v.mul(code, self.number("step")), x))

    def _wrapped(self, mode: str, x: Any, word: Any) -> Any:
        """Fixed point that wraps: subtract the multiple of the modulus that brings the value into range."""
        v = self.v
        code = self._integral(mode, v.mul(x, self.number("inverse_step")), word)
        value = v.mul(code, self.number("step"))
        offset = v.sub(value, self.number("lowest"))
        turns = v.to_integral("floor", v.mul(offset, self.number("inverse_modulus")))
        return self._positive_zero(v.sub(value, v.mul(turns, self.number("modulus"))))

    def _clamped(self, _mode: str, x: Any, _word: Any) -> Any:
        """Fixed point where x already lies on the grid: only the range is left to do."""
        v = self.v
        return v.smaller(v.larger(x, self.number("lowest")), self.number("largest"))

    def _integral(self, mode: str, y: Any, word: Any) -> Any:
        """Round y to an integral value by the mode, whatever the processor's own mode is."""
        v, b = self.v, self.v.builder
        direct = {"nearest_even": "roundeven", "toward_zero": "trunc", "up": "ceil", "down": "floor"}
        if mode in direct:
            return v.to_integral(direct[mode], y)
        whole = v.to_integral("trunc", y)
        fraction = v.abs(v.sub(y, whole))
        further = v.add(whole, v.copysign(v.number(1.0), y))
        if mode == "nearest_away":
            return v.where(fraction, ">=", v.number(0.5), further, whole)
        if mode == "to_odd":
            half = v.mul(whole, v.number(0.5))
            even = b.fcmp_ordered("==", half, v.to_integral("trunc", half))
            return b.select(b.and_(even, b.fcmp_ordered(">", fraction, v.number(0.0))), further, whole)
        assert mode == "stochastic", mode
        first_bits = v.to_integral("trunc", v.mul(fraction, self.number("random_range")))
        drawn = b.sitofp(b.lshr(word, self.whole("random_shift")), v.floats)
        return v.where(v.add(first_bits, drawn), ">=", self.number("random_range"), further, whole)

    def _in_range(self, rounded: Any, x: Any) -> Any:
        """What the format has beyond its range; an infinity that was one before rounding has its own answer."""
        v = self.v
        inf = v.number(float("inf"))
        over = v.where(x, "==", inf, self.number("infinity"), self.number("over"))
        under = v.where(x, "==", v.neg(inf), self.number("minus_infinity"), self.number("under"))
        checked = v.where(rounded, ">", self.number("largest"), over, rounded)
        return v.where(rounded, "<", self.number("lowest"), under, checked)
