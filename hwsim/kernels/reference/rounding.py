"""The definition of rounding: one real number into one format, in integers and fractions.

Every other back end must equal this bit for bit. A value travels as a `Fraction` (exact) or as a Python float for what
a fraction cannot say (infinities, NaN, -0); a result is a Python float, which holds every value of every format.
"""

from __future__ import annotations

import math
from fractions import Fraction

from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, power_of_two
from hwsim.arithmetic.rounding import Overflow, Rounding, RoundingMode
from hwsim.arithmetic.storage import Cast, NanRule
from hwsim.errors import SpecError


def round_exact(value: Fraction | float, cast: Cast, word: int = 0, negative_zero: bool = False) -> float:
    """Return `value` rounded once into the cast's format.

    Args:
        value: an exact real, or a float (whose infinities, NaN and signed zero are understood).
        cast: element format (not a block format), rounding, overflow and NaN rule.
        word: 32 random bits; stochastic rounding uses the top ones.
        negative_zero: the sign to give a `Fraction` that is zero.

    Raises:
        SpecError: NaN into a format without one, or a value out of range, where the cast makes that an error.
    """
    if isinstance(value, float):
        if math.isnan(value):
            return _round_nan(cast)
        if math.isinf(value):
            return _round_infinity(value < 0, cast)
        if value == 0:
            negative_zero = math.copysign(1.0, value) < 0
        value = Fraction(value)
    fmt = cast.format
    if isinstance(fmt, FixedPoint):
        return _round_fixed(value, fmt, cast, word)
    if isinstance(fmt, FloatingPoint):
        return _round_floating(value, fmt, cast, word, negative_zero)
    raise SpecError(f"round_exact: got block format {fmt}, expected an element format")


def round_away(fraction: Fraction, odd: bool, negative: bool, rounding: Rounding, word: int) -> bool:
    """Decide whether a magnitude between two neighbours goes to the larger one.

    Args:
        fraction: where it lies between them, 0 <= fraction < 1.
        odd: whether the smaller neighbour's code is odd.
        negative: sign of the value. word: 32 random bits.
    """
    if fraction == 0:
        return False
    match rounding.mode:
        case RoundingMode.NEAREST_EVEN:
            return fraction > Fraction(1, 2) or (fraction == Fraction(1, 2) and odd)
        case RoundingMode.NEAREST_AWAY:
            return fraction >= Fraction(1, 2)
        case RoundingMode.TOWARD_ZERO:
            return False
        case RoundingMode.UP:
            return not negative
        case RoundingMode.DOWN:
            return negative
        case RoundingMode.TO_ODD:
            return not odd
        case RoundingMode.STOCHASTIC:
            n = rounding.random_bits
            return math.floor(fraction * 2**n) + (word >> (32 - n)) >= 2**n


def floor_log2(value: Fraction) -> int:
    """Return floor(log2(value)) of a positive fraction exactly."""
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if power_of_two(guess) <= value else guess - 1


def overflow_keeps_largest(rounding: Rounding, negative: bool) -> bool:
    """Whether a rule that rounds toward zero (for this sign) keeps a too large value at the largest finite one."""
    match rounding.mode:
        case RoundingMode.TOWARD_ZERO | RoundingMode.TO_ODD:
            return True
        case RoundingMode.UP:
            return negative
        case RoundingMode.DOWN:
            return not negative
        case _:
            return False


def _round_floating(value: Fraction, fmt: FloatingPoint, cast: Cast, word: int, negative_zero: bool) -> float:
    if value == 0 and fmt.zero:
        return -0.0 if negative_zero and fmt.negative_zero else 0.0
    negative = value < 0
    if value == 0 or (negative and not fmt.signed and not fmt.zero):
        return _below_range(fmt, cast, value)
    magnitude = abs(value)
    exponent = max(floor_log2(magnitude), fmt.emin)
    step = power_of_two(exponent - fmt.mantissa_bits)
    count = magnitude // step
    away = round_away(magnitude / step - count, _odd_code(count, exponent, fmt), negative, cast.rounding, word)
    rounded = (count + away) * step
    if not fmt.zero and count == 0:  # below the smallest value of a format without zero
        rounded = step
    if rounded > fmt.magnitude(fmt.largest_code):
        return _overflow_floating(negative, fmt, cast, value)
    if rounded == 0:
        return -0.0 if negative and fmt.negative_zero else 0.0
    if negative and not fmt.signed:
        return _below_range(fmt, cast, value)
    return float(-rounded if negative else rounded)


def _odd_code(count: int, exponent: int, fmt: FloatingPoint) -> bool:
    """Whether the code of count * step is odd.

    With a mantissa that is the parity of the significand. Without one (precision 1) it is the parity of the exponent
    field; float8_e8m0fnu follows torch and ml_dtypes, whose ties always go up, as an odd hidden bit would.
    """
    if fmt.mantissa_bits > 0 or count == 0:
        return count % 2 == 1
    return (exponent + fmt.bias) % 2 == 1 if fmt.zero else True


def _overflow_floating(negative: bool, fmt: FloatingPoint, cast: Cast, value: Fraction) -> float:
    if cast.overflow is Overflow.ERROR:
        raise out_of_range(float_or_text(value), cast)
    if negative and not fmt.signed:
        return _below_range(fmt, cast, value)
    sign = -1.0 if negative else 1.0
    if cast.overflow is Overflow.SATURATE or overflow_keeps_largest(cast.rounding, negative):
        return sign * fmt.largest
    return _beyond(sign, fmt)


def _beyond(sign: float, fmt: FloatingPoint) -> float:
    """What a format has beyond its largest value: infinity, else NaN, else nothing (it saturates)."""
    if fmt.infinities:
        return sign * math.inf
    return math.nan if fmt.has_nan else sign * fmt.largest


def _below_range(fmt: FloatingPoint, cast: Cast, value: Fraction) -> float:
    """A negative value (or a zero, where the format has none) into an unsigned float format."""
    if cast.overflow is Overflow.ERROR:
        raise out_of_range(float_or_text(value), cast)
    return fmt.lowest if cast.overflow is Overflow.SATURATE else math.nan


def _round_fixed(value: Fraction, fmt: FixedPoint, cast: Cast, word: int) -> float:
    step = power_of_two(-fmt.fraction_bits)
    count = abs(value) // step
    away = round_away(abs(value) / step - count, count % 2 == 1, value < 0, cast.rounding, word)
    code = -(count + away) if value < 0 else count + away
    if not fmt.lowest_code <= code <= fmt.largest_code:
        if cast.overflow is Overflow.ERROR:
            raise out_of_range(float_or_text(value), cast)
        if cast.overflow is Overflow.WRAP:
            code = (code - fmt.lowest_code) % (1 << fmt.bits) + fmt.lowest_code
        else:
            code = fmt.largest_code if code > 0 else fmt.lowest_code
    return float(code * step)


def _round_nan(cast: Cast) -> float:
    if isinstance(cast.format, BlockScaled) or cast.format.has_nan:
        return math.nan
    if cast.nan is NanRule.ZERO:
        return 0.0
    raise nan_not_held(cast)


def _round_infinity(negative: bool, cast: Cast) -> float:
    fmt = cast.format
    sign = -1.0 if negative else 1.0
    if isinstance(fmt, FixedPoint):
        if cast.overflow in (Overflow.ERROR, Overflow.WRAP):
            raise out_of_range(f"{sign * math.inf}", cast)
        return fmt.lowest if negative else fmt.largest
    assert isinstance(fmt, FloatingPoint)
    if negative and not fmt.signed:
        return _below_range(fmt, cast, Fraction(-1))
    if cast.overflow is Overflow.SATURATE:
        return sign * fmt.largest
    if cast.overflow is Overflow.ERROR and not fmt.infinities:
        raise out_of_range(f"{sign * math.inf}", cast)
    return _beyond(sign, fmt)


def float_or_text(value: Fraction) -> str:
    """Return a short decimal form of a fraction of any size."""
    try:
        return repr(float(value))
    except OverflowError:
        return f"about 2**{floor_log2(abs(value))}"


def out_of_range(value: str, cast: Cast) -> SpecError:
    """Return the error for a value that the cast's overflow rule does not admit."""
    fmt = cast.format
    lowest = -fmt.largest if isinstance(fmt, BlockScaled) else fmt.lowest
    return SpecError(f"cast to {cast}: got {value}, expected {lowest} to {fmt.largest}")


def nan_not_held(cast: Cast) -> SpecError:
    """Return the error for a NaN into a format that has none."""
    return SpecError(f"cast to {cast}: got NaN, which {cast.format} cannot hold (nan='zero' stores 0 instead)")
