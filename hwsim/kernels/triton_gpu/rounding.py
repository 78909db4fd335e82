"""One rounding on the GPU, in integers: any value in float64's range into any format, by a rule known when compiled.

A value arrives as the bits of a float64 that is exact, or rounded to odd with bits to spare (`add_to_odd`), so that the
rounding here is the only one. Floating-point casts of the device (and of Triton's interpreter) are not trusted with it.
"""

from __future__ import annotations

import struct
from typing import Any

import triton
import triton.language as tl

from hwsim.arithmetic.number import FixedPoint, FloatingPoint
from hwsim.arithmetic.rounding import Overflow, RoundingMode
from hwsim.arithmetic.storage import Cast, NanRule
from hwsim.errors import UnsupportedError
from hwsim.kernels.reference.rounding import overflow_keeps_largest

MODES = tuple(RoundingMode)  # a rule holds the position of its mode here
NAN, INFINITY, SIGN = 0x7FF8 << 48, 0x7FF0 << 48, -(1 << 63)  # float64 bits as signed integers

# Places in a rule. One tuple of integers and booleans is one constant of the compiled kernel.
_PLACES = (
    "FIXED",
    "MANTISSA",
    "EMIN",
    "BIAS",
    "HAS_ZERO",
    "NEGATIVE_ZERO",
    "MODE",
    "RANDOM_BITS",
    "LARGEST",
    "LOWEST",
    "OVER",
    "UNDER",
    "INFINITE",
    "NEGATIVE_INFINITE",
    "NAN",
    "OVER_WRONG",
    "INFINITE_WRONG",
    "NEGATIVE_INFINITE_WRONG",
    "NAN_WRONG",
    "WRAP",
    "BITS",
    "LOWEST_CODE",
    "OF_ZERO",
    "ZERO_WRONG",
)

Rule = tuple[Any, ...]


def bits_of(value: float) -> int:
    """Return the bits of a float64 as a signed integer."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


def rule_of(cast: Cast) -> Rule:
    """Return a cast as the compiled constant; what cannot be stored is a pattern to store and a flag that it is wrong.

    Raises:
        UnsupportedError: block formats.
    """
    fmt, error = cast.format, cast.overflow is Overflow.ERROR
    saturate = cast.overflow is Overflow.SATURATE
    if not isinstance(fmt, FloatingPoint | FixedPoint):
        raise UnsupportedError(f"backend triton: got block format {fmt}, expected a float or fixed-point format")
    nan_wrong = not fmt.has_nan and cast.nan is NanRule.ERROR
    nan = NAN if fmt.has_nan else 0
    common = (
        MODES.index(cast.rounding.mode),
        cast.rounding.random_bits,
        bits_of(fmt.largest),
        bits_of(abs(fmt.lowest)),
    )
    if isinstance(fmt, FixedPoint):
        largest, lowest = bits_of(fmt.largest), bits_of(fmt.lowest + 0.0)
        wrap = cast.overflow is Overflow.WRAP
        return (
            True,
            0,
            -fmt.fraction_bits,
            0,
            True,
            False,
            *common,
            largest,
            lowest,
            largest,
            lowest,
            nan,
            error,
            error or wrap,
            error or wrap,
            nan_wrong,
            wrap,
            fmt.bits,
            fmt.lowest_code,
            0,
            False,
        )
    beyond = INFINITY if fmt.infinities else NAN if fmt.has_nan else bits_of(fmt.largest)
    over, under = (
        bits_of(fmt.largest) if saturate or overflow_keeps_largest(cast.rounding, negative) else beyond
        for negative in (False, True)
    )
    infinite = bits_of(fmt.largest) if saturate else beyond
    below = bits_of(fmt.lowest) if saturate else NAN  # a negative value in a format without a sign
    lowest_magnitude = common if fmt.signed else (*common[:3], 0)
    return (
        False,
        fmt.mantissa_bits,
        fmt.emin,
        fmt.bias,
        fmt.zero,
        fmt.negative_zero,
        *lowest_magnitude,
        over,
        _negative(under) if fmt.signed else below,
        infinite,
        _negative(infinite) if fmt.signed else below,
        nan,
        error,
        error and not fmt.infinities,
        error and not (fmt.signed and fmt.infinities),
        nan_wrong,
        False,
        fmt.bits,
        0,
        below,
        error,
    )


def _negative(bits: int) -> int:
    return bits if bits == NAN else bits + SIGN


def may_go_wrong(rule: Rule) -> bool:
    """Whether some value is an error for this rule, so that the kernel has to report."""
    names = dict(zip(_PLACES, rule, strict=True))
    zero = names["ZERO_WRONG"] and not names["HAS_ZERO"]
    wrong = ("OVER_WRONG", "INFINITE_WRONG", "NEGATIVE_INFINITE_WRONG", "NAN_WRONG")
    return zero or any(names[name] for name in wrong)


def stream_parts(stream: int) -> tuple[int, int, int]:
    """Cut a 64-bit stream into three arguments that always have the same integer type."""
    return stream & 0x3FFFFF, stream >> 22 & 0x3FFFFF, stream >> 44


@triton.jit
def join_stream(low, middle, high):
    """Put a stream together again (uint64)."""
    return low.to(tl.uint64) | (middle.to(tl.uint64) << 22) | (high.to(tl.uint64) << 44)


@triton.jit
def mix64(x):
    """The 64-bit permutation of `random_bits.mix64`."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def random_word(stream, index, index_high, k):
    """`random_bits.word` for output elements `index` (their low 32 bits) at position k; int64 below 2^32."""
    key = mix64(stream + k.to(tl.uint64) * 0x9E3779B97F4A7C15 + index_high.to(tl.uint64) * 0xD1B54A32D192ED03)
    x = index.to(tl.uint32) ^ key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = x ^ (x >> 15) ^ (key >> 32).to(tl.uint32)
    x = x * 0x735A2D97
    return (x ^ (x >> 15)).to(tl.int64)


@triton.jit
def power_of_two(exponent):
    """2^exponent as float64, for exponents of normal numbers."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def round_bits(bits, word, RULE: tl.constexpr):
    """Round float64 bits into the rule's format; returns the bits of the rounded value and where there is none.

    `word` holds 32 random bits (used by stochastic rounding only).
    """
    FIXED: tl.constexpr = RULE[0]
    MANTISSA: tl.constexpr = RULE[1]
    EMIN: tl.constexpr = RULE[2]
    MODE: tl.constexpr = RULE[6]
    RANDOM_BITS: tl.constexpr = RULE[7]
    magnitude = bits & 0x7FFFFFFFFFFFFFFF
    negative = bits < 0
    field = magnitude >> 52
    fraction = magnitude & 0xFFFFFFFFFFFFF
    significand = tl.where(field > 0, fraction | 0x10000000000000, fraction)
    exponent = tl.maximum(field, 1) - 1075  # value = significand * 2^exponent
    if FIXED:  # noqa: SIM108 (both branches are compiled apart)
        unit = field * 0 + EMIN
    else:
        unit = tl.maximum(field - 1023, EMIN) - MANTISSA
    # Cut the significand at the format's last place; beyond 62 places nothing is left above the cut.
    shift = unit - exponent
    cut = tl.minimum(tl.maximum(shift, 0), 62)
    one = cut * 0 + 1
    count = significand >> cut
    rest = significand & ((one << cut) - 1)
    half = (one << cut) >> 1
    odd = (count & 1) == 1
    if MANTISSA == 0 and not FIXED:  # the parity of a code without a fraction is that of its exponent field
        if RULE[4]:  # noqa: SIM108
            odd = (count > 0) & (((tl.maximum(field - 1023, EMIN) + RULE[3]) & 1) == 1)
        else:
            odd = count > 0
    if MODE == 0:  # nearest_even
        away = (rest > half) | ((rest == half) & odd)
    elif MODE == 1:  # nearest_away
        away = rest >= half
    elif MODE == 2:  # toward_zero
        away = rest < 0
    elif MODE == 3:  # up
        away = ~negative
    elif MODE == 4:  # down
        away = negative
    elif MODE == 5:  # to_odd
        away = ~odd
    else:  # stochastic: the first RANDOM_BITS bits of the fraction plus as many random bits carry over
        places = shift - RANDOM_BITS
        top = tl.where(
            places >= 0,
            rest >> tl.minimum(tl.maximum(places, 0), 63),
            rest << tl.minimum(tl.maximum(-places, 0), RANDOM_BITS),
        )
        away = top + (word >> (32 - RANDOM_BITS)) >= (one << RANDOM_BITS)
    away = away & (rest != 0)
    rounded = count + away.to(tl.int64)
    if not RULE[4]:
        rounded = tl.where(count == 0, 1, rounded)
    last = tl.where(shift > 0, unit, exponent)  # exponent of the last place of `rounded`
    lower = last >> 1  # two factors, each a normal number, so that the product is exact down to subnormals
    value = rounded.to(tl.float64) * power_of_two(lower) * power_of_two(last - lower)
    result = value.to(tl.int64, bitcast=True)
    finite = magnitude < 0x7FF0000000000000
    over = finite & (result > tl.where(negative, RULE[9], RULE[8]))
    wrong = over & RULE[15]
    if RULE[19]:  # wrap: the code modulo 2^bits, in two's complement
        left = tl.maximum(-shift, 0)
        code = tl.where(left > 63, 0, rounded << tl.minimum(left, 63))
        code = tl.where(negative, -code, code)
        code = ((code - RULE[21]) & ((one << RULE[20]) - 1)) + RULE[21]
        lower = unit >> 1
        value = code.to(tl.float64) * power_of_two(lower) * power_of_two(unit - lower)
        result = value.to(tl.int64, bitcast=True)
    else:
        signed = tl.where(negative, result | (one << 63), result)
        if not RULE[5]:
            signed = tl.where(result == 0, 0, signed)
        result = tl.where(over, tl.where(negative, RULE[11], RULE[10]), signed)
    if not RULE[4]:
        is_zero = magnitude == 0
        result = tl.where(is_zero, RULE[22], result)
        wrong = (wrong & ~is_zero) | (is_zero & RULE[23])
    infinite = magnitude == 0x7FF0000000000000
    result = tl.where(infinite, tl.where(negative, RULE[13], RULE[12]), result)
    wrong = wrong | (infinite & tl.where(negative, RULE[17], RULE[16]))
    is_nan = magnitude > 0x7FF0000000000000
    result = tl.where(is_nan, RULE[14], result)
    wrong = wrong | (is_nan & RULE[18])
    return result, wrong


@triton.jit
def add_to_odd(x, y, DOWN: tl.constexpr):
    """The bits of x + y (float64), exact or rounded to odd: one later rounding to at most 50 bits equals rounding the
    sum.

    Needs additions that are not contracted. An exact zero from opposite signs is +0, under round-down -0.
    """
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)  # what the addition lost, exactly (Knuth's TwoSum)
    bits = total.to(tl.int64, bitcast=True)
    finite = (bits & 0x7FFFFFFFFFFFFFFF) < 0x7FF0000000000000
    inexact = finite & (error != 0)
    toward_larger = (error > 0) == (total > 0)
    odd = tl.where(toward_larger, bits + 1, bits - 1)  # of an even last bit: the neighbour on the error's side
    bits = tl.where(inexact & ((bits & 1) == 0), odd, bits)
    if DOWN:
        signs_differ = (x.to(tl.int64, bitcast=True) ^ y.to(tl.int64, bitcast=True)) < 0
        bits = tl.where((total == 0) & signs_differ, (bits & 0) | (-0x8000000000000000), bits)
    return bits


@triton.jit
def carrier_bits(bits):
    """Bits of the float32 that equals a float64 (given by its bits); the canonical NaN stays canonical."""
    narrow = bits.to(tl.float64, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True)
    return tl.where((bits & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000, 0x7FC00000, narrow)
