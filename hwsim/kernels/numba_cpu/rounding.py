"""Rounding one float in registers, for every format and rule, written so that a loop over it becomes vector code.

Three ways, all exact (compared with `hwsim.kernels.reference` on every code, neighbour and midpoint):

* `round_float`: with a magnitude a and C = 2**(e + p) such that the last bit of a + C is one step of the format at a's
  exponent e, (a + C) - C is a rounded to nearest even, gradual underflow included. The integer behind a + C counts
  steps, so every other rule is that integer moved by one.
* `round_aligned`: formats with float32's own exponent range (bfloat16, tf32): the step is at a fixed bit of the
  pattern; plain integer arithmetic.
* `round_fixed`: clamp, then the same trick with one C for all.

Each works on float32 (fast) or float64 (everything), after the type of its argument. `mode` and `signed` are
compile-time constants wherever these are called.
"""

# Compiled code: `x != x` is the NaN test and `in` does not fold at compile time.
# ruff: noqa: PLR0124, PLR1714, SIM109

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import uint32

from hwsim.arithmetic.number import FixedPoint, FloatingPoint
from hwsim.arithmetic.rounding import Overflow, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.numba_cpu.intrinsics import (
    bits_of,
    float_of,
    shift_left,
    shift_right,
    shift_right_unsigned,
    typed_as,
)
from hwsim.kernels.random_bits import M1, M2

NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, TO_ODD, STOCHASTIC = range(7)
# Formats of precision 1: "even" and "odd" mean the exponent field, as there is no mantissa.
NEAREST_EVEN_POWER, TO_ODD_POWER = 7, 8
STOCHASTIC_SHORT = 9  # stochastic, where steps and random fraction fit into one integer: see `short_draw`
UNSIGNED, SIGNED, BOTH_ZEROS = range(3)
_MODE_NUMBERS = {mode: number for number, mode in enumerate(RoundingMode)}


def mode_number(cast: Cast) -> int:
    """Return the compile-time number of a cast's rounding rule."""
    number = _MODE_NUMBERS[cast.rounding.mode]
    if isinstance(cast.format, FloatingPoint) and cast.format.mantissa_bits == 0:
        return {NEAREST_EVEN: NEAREST_EVEN_POWER, TO_ODD: TO_ODD_POWER}.get(number, number)
    return number


def short_draw(mode: int, cast: Cast, width: int) -> int:
    """Return STOCHASTIC_SHORT for STOCHASTIC where a 32-bit integer holds a value's steps and random fraction bits."""
    fmt = cast.format
    assert isinstance(fmt, FloatingPoint | FixedPoint)
    bits = fmt.precision if isinstance(fmt, FloatingPoint) else fmt.bits
    return STOCHASTIC_SHORT if mode == STOCHASTIC and width == 32 and bits + cast.rounding.random_bits <= 30 else mode


# ------------------------------------------------------------------ parameters of one format, as machine scalars


class FloatParameters(NamedTuple):
    """A float format as the kernels read it; `bits` are patterns of the working float type (float32 or float64)."""

    sign_bit: Any
    field_mask: Any  # the exponent field of the working float
    fraction: Any  # its fraction bits: 23 or 52
    infinity: Any
    emin_bits: Any  # exponent field of the format's smallest normal value, in place
    shift_bits: Any  # added to an exponent field, makes C
    half_shift: Any  # subtracted from C's bits, makes half a step
    inverse_bits: Any  # minus C's bits, makes 2**random_bits / step
    clamp: Any  # a value that overflows, larger than any that does not
    largest: Any  # largest finite value
    largest_bits: Any
    over_bits: Any  # what a too large magnitude becomes, without sign
    over_sign: Any  # all ones if the sign goes with it (not with NaN)
    over_positive: Any  # the same for rules that know up from down, sign included
    over_negative: Any
    beyond_bits: Any  # what infinity becomes, without sign
    beyond_sign: Any
    below_bits: Any  # unsigned formats: what a negative value becomes
    nan_bits: Any  # what NaN becomes
    zero_sign: Any  # all ones if the format has -0
    parity: Any  # precision 1: C's exponent field + parity is odd where the format's exponent field is
    cut: Any  # aligned formats: low bits to drop
    random_bits: Any


class FixedParameters(NamedTuple):
    """A fixed-point format as the kernels read it."""

    lowest: Any
    largest: Any
    scale: Any  # 2**fraction_bits
    step: Any  # 2**-fraction_bits
    magic: Any  # 1.5 * 2**(fraction bits of the working float): adding it drops the fraction
    random_bits: Any
    random_scale: Any  # 2**random_bits
    modulus: Any  # 2**bits, in steps (wrap only)
    largest_code: Any


def float_parameters(cast: Cast, width: int) -> FloatParameters:
    """Return the parameters of a float cast for working floats of 32 or 64 bits."""
    fmt = cast.format
    assert isinstance(fmt, FloatingPoint)
    real, integer, fraction, bias = (np.float32, np.int32, 23, 127) if width == 32 else (np.float64, np.int64, 52, 1023)
    infinity_bits = (2 * bias + 1) << fraction
    quiet = infinity_bits | 1 << (fraction - 1)

    def pattern(value: float) -> Any:
        return integer(quiet) if value != value else real(value).view(integer)

    native = cast.overflow is Overflow.NATIVE  # under "error" the caller looks at the values that reach the largest
    largest = fmt.largest
    beyond = largest if not native else np.inf if fmt.infinities else np.nan if fmt.has_nan else largest
    mode = cast.rounding.mode
    toward_zero = mode in (RoundingMode.TOWARD_ZERO, RoundingMode.TO_ODD)
    over = largest if toward_zero else beyond
    shift = fraction - fmt.mantissa_bits
    inverse, half_range = (2 * bias + fraction + cast.rounding.random_bits) << fraction, 1 << (width - 1)
    return FloatParameters(
        sign_bit=np.iinfo(integer).min,
        field_mask=integer(infinity_bits),
        fraction=integer(fraction),
        infinity=real(np.inf),
        emin_bits=integer((fmt.emin + bias) << fraction),
        shift_bits=integer(shift << fraction),
        half_shift=integer((fraction + 1) << fraction),
        inverse_bits=integer((inverse + half_range) % (2 * half_range) - half_range),  # the difference fits again
        clamp=real(2.0 ** min(fmt.emax + 2, bias)),
        largest=real(largest),
        largest_bits=pattern(largest),
        over_bits=pattern(over),
        over_sign=integer(-1 if over == over else 0),
        over_positive=pattern(largest if mode is RoundingMode.DOWN else over),
        over_negative=pattern(-largest if mode is RoundingMode.UP else -over),
        beyond_bits=pattern(beyond),
        beyond_sign=integer(-1 if beyond == beyond else 0),
        below_bits=pattern(np.nan if native and fmt.has_nan else fmt.lowest),
        nan_bits=integer(quiet if fmt.has_nan else 0),
        zero_sign=integer(-1 if fmt.negative_zero else 0),
        parity=integer((fmt.bias - bias - shift) & 1),
        cut=integer(shift),
        random_bits=integer(cast.rounding.random_bits),
    )


def fixed_parameters(cast: Cast, width: int) -> FixedParameters:
    """Return the parameters of a fixed-point cast for working floats of 32 or 64 bits."""
    fmt = cast.format
    assert isinstance(fmt, FixedPoint)
    real, integer, fraction = (np.float32, np.int32, 23) if width == 32 else (np.float64, np.int64, 52)
    return FixedParameters(
        lowest=real(fmt.lowest),
        largest=real(fmt.largest),
        scale=real(2.0**fmt.fraction_bits),
        step=real(2.0**-fmt.fraction_bits),
        magic=real(1.5 * 2.0**fraction),
        random_bits=integer(cast.rounding.random_bits),
        random_scale=real(2.0**cast.rounding.random_bits),
        modulus=real(2.0**fmt.bits),
        largest_code=real(fmt.largest_code),
    )


# ------------------------------------------------------------------ random words (see hwsim.kernels.random_bits)


@numba.njit
def random_word(index, key_low, key_high):  # type: ignore[no-untyped-def]
    """Return the 32-bit word of one element; all three are uint32, `index` is the counter's low half."""
    x = uint32(index ^ key_low)
    return mixed_word(uint32(x ^ (x >> uint32(16))), key_high)


@numba.njit
def mixed_word(x, key_high):  # type: ignore[no-untyped-def]
    """Return the word from a counter that has met the low half of its key: see `random_word` and `run_key`."""
    x = uint32(x * uint32(M1))
    x = uint32(uint32(x ^ (x >> uint32(15))) ^ key_high)
    x = uint32(x * uint32(M2))
    return uint32(x ^ (x >> uint32(15)))


@numba.njit
def run_key(index, key_low):  # type: ignore[no-untyped-def]
    """Return what stands for the low half of the key among 2**16 counters that share their upper bits (uint32).

    The low 16 bits of such a counter, xor this, are what `mixed_word` takes: one operation instead of three.
    """
    x = uint32((index & uint32(0xFFFF0000)) ^ key_low)
    return uint32(x ^ (x >> uint32(16)))


@numba.njit
def top_bits(word, like, count):  # type: ignore[no-untyped-def]
    """Return the top `count` bits of a uint32 word in the type of `like`."""
    return typed_as(like, shift_right_unsigned(word, 32 - count))


# ------------------------------------------------------------------ float formats


@numba.njit
def nearby(a, pattern, emin_bits, parity, mode, p, word):  # type: ignore[no-untyped-def]
    """Return the value of an unbounded float format that a magnitude is rounded to; `pattern` tells its sign.

    `emin_bits` and `parity` stand for those of p, so that a format may be moved by a power of two.
    """
    zero = typed_as(pattern, 0)
    field = typed_as(pattern, bits_of(a) & p.field_mask)
    at_least_emin = typed_as(pattern, max(field, emin_bits))
    big_bits = typed_as(pattern, at_least_emin + p.shift_bits)
    big = float_of(big_bits)
    total = a + big
    t = total - big
    if mode == STOCHASTIC_SHORT:  # steps and the first random_bits bits of the fraction, in one integer
        inverse = typed_as(pattern, typed_as(pattern, p.inverse_bits - p.shift_bits) - at_least_emin)
        count = typed_as(pattern, a * float_of(inverse))
        noisy = typed_as(pattern, count + top_bits(word, pattern, p.random_bits))
        from_emin = typed_as(pattern, shift_left(typed_as(pattern, p.fraction), p.fraction) - p.shift_bits)
        step = float_of(typed_as(pattern, at_least_emin - from_emin))
        t = typed_as(a, shift_right(noisy, p.random_bits)) * step
    elif mode != NEAREST_EVEN:
        # Conditional moves of whole results: a comparison turned into a number costs two instructions more.
        steps = bits_of(total)
        floor = typed_as(pattern, steps - 1) if t > a else steps
        if mode == NEAREST_AWAY:
            tie = (a - t) == float_of(typed_as(pattern, big_bits - p.half_shift))
            steps = typed_as(pattern, steps + 1) if tie else steps
        elif mode == TOWARD_ZERO:
            steps = floor
        elif mode == UP or mode == DOWN:
            signed_t = float_of(typed_as(pattern, bits_of(t) | (pattern & p.sign_bit)))
            signed_a = float_of(typed_as(pattern, bits_of(a) | (pattern & p.sign_bit)))
            wrong_side = signed_t < signed_a if mode == UP else signed_t > signed_a
            outward = typed_as(pattern, -1 if pattern < zero else 1)  # one step up in value, as a step in magnitude
            moved = typed_as(pattern, steps + outward if mode == UP else steps - outward)
            steps = moved if wrong_side else steps
        elif mode == TO_ODD:
            steps = typed_as(pattern, floor | 1) if t != a else floor
        elif mode == NEAREST_EVEN_POWER or mode == TO_ODD_POWER:
            odd = typed_as(pattern, (shift_right(big_bits, p.fraction) + parity) & 1)
            even = (odd == zero) | (field < emin_bits)
            if mode == TO_ODD_POWER:
                steps = typed_as(pattern, floor + typed_as(pattern, (t != a) & even))
            else:  # the sum's tie goes to 2 steps or to 0; an even exponent field keeps 1 step
                tie = (t - a) == float_of(typed_as(pattern, big_bits - p.half_shift))
                steps = typed_as(pattern, steps - typed_as(pattern, tie & even))
        else:  # STOCHASTIC: the first random_bits bits of the fraction plus a random word carry, or do not
            # From the nearest step the fraction is negative half of the time; floor and arithmetic shift do not mind.
            scaled = np.floor((a - t) * float_of(typed_as(pattern, p.inverse_bits - big_bits)))
            noisy = typed_as(pattern, typed_as(pattern, scaled) + top_bits(word, pattern, p.random_bits))
            steps = typed_as(pattern, steps + shift_right(noisy, p.random_bits))
        t = float_of(steps) - big
    return t


@numba.njit
def round_finite(x, up, mode, signs, p, word):  # type: ignore[no-untyped-def]
    """Round finite x into the signed format whose values are 2**e times those of p, saturating.

    `up` is e in the place of the exponent field. The magnitude of x is not far above the largest value. `signs` is a
    compile-time constant: SIGNED, or BOTH_ZEROS for a format that surely has -0.
    """
    pattern = bits_of(x)
    a = float_of(typed_as(pattern, pattern & ~p.sign_bit))
    parity = typed_as(pattern, p.parity + shift_right(up, p.fraction))
    t = nearby(a, pattern, typed_as(pattern, p.emin_bits + up), parity, mode, p, word)
    largest = float_of(typed_as(pattern, p.largest_bits + up))
    return float_of(_with_sign(t if t < largest else largest, pattern, signs, p))


@numba.njit
def round_inside(x, mode, signs, p, word):  # type: ignore[no-untyped-def]
    """Round x into a float format whose largest value is not below the magnitude of x: see `round_float`."""
    pattern = bits_of(x)
    magnitude = float_of(typed_as(pattern, pattern & ~p.sign_bit))
    t = nearby(magnitude, pattern, p.emin_bits, p.parity, mode, p, word)
    result = _with_sign(t, pattern, signs, p)
    if signs == UNSIGNED and pattern < typed_as(pattern, 0) and t != 0:
        result = p.below_bits
    return float_of(result)


@numba.njit
def round_float(x, mode, signs, p, word):  # type: ignore[no-untyped-def]
    """Round x into a float format; `word` is a uint32 that only stochastic rounding reads.

    `signs` is a compile-time constant: UNSIGNED, SIGNED, or BOTH_ZEROS for a signed format that surely has -0.
    float32 x: the format's steps must be normal float32 numbers with room above (see `numba_cpu.quantize`).
    """
    pattern = bits_of(x)
    sign = typed_as(pattern, pattern & p.sign_bit)
    magnitude = float_of(typed_as(pattern, pattern & ~p.sign_bit))
    a = p.clamp if magnitude > p.clamp else magnitude
    t = nearby(a, pattern, p.emin_bits, p.parity, mode, p, word)
    result = _with_sign(t, pattern, signs, p)
    result = _out_of_range(result, t > p.largest, magnitude == p.infinity, pattern, sign, mode, p)
    if signs == UNSIGNED and pattern < typed_as(pattern, 0) and t != 0:
        result = p.below_bits
    return float_of(p.nan_bits if x != x else result)


@numba.njit
def _with_sign(t, pattern, signs, p):  # type: ignore[no-untyped-def]
    """Return the bits of a rounded magnitude with the sign of `pattern`, as far as the format has it."""
    sign = typed_as(pattern, pattern & p.sign_bit)
    if signs != BOTH_ZEROS:
        sign = typed_as(pattern, sign & p.zero_sign) if t == 0 else sign
    return typed_as(pattern, bits_of(t) | sign)


@numba.njit
def round_aligned(x, mode, p, word):  # type: ignore[no-untyped-def]
    """Round float32 x into a signed format with float32's exponent field, infinities and -0 (eight exponent bits)."""
    pattern = bits_of(x)
    sign = typed_as(pattern, pattern & p.sign_bit)
    magnitude = typed_as(pattern, pattern & ~p.sign_bit)
    t = _aligned_magnitude(magnitude, pattern, mode, p, word)
    result = typed_as(pattern, t | sign)
    result = _out_of_range(result, t > p.largest_bits, magnitude == p.field_mask, pattern, sign, mode, p)
    return float_of(p.nan_bits if x != x else result)


@numba.njit
def round_aligned_inside(x, mode, p, word):  # type: ignore[no-untyped-def]
    """The same for an x whose magnitude is not above the format's largest."""
    pattern = bits_of(x)
    magnitude = typed_as(pattern, pattern & ~p.sign_bit)
    t = _aligned_magnitude(magnitude, pattern, mode, p, word)
    return float_of(typed_as(pattern, t | (pattern & p.sign_bit)))


@numba.njit
def _aligned_magnitude(magnitude, pattern, mode, p, word):  # type: ignore[no-untyped-def]
    """Return the bits of a magnitude rounded at a fixed bit of its pattern."""
    zero = typed_as(pattern, 0)
    one = typed_as(pattern, 1)
    low = typed_as(pattern, shift_left(one, p.cut) - one)
    if mode == NEAREST_EVEN:
        added = typed_as(pattern, (low >> 1) + (shift_right(magnitude, p.cut) & one))
    elif mode == NEAREST_AWAY:
        added = typed_as(pattern, (low >> 1) + (p.cut > 0))
    elif mode == UP:
        added = zero if pattern < zero else low
    elif mode == DOWN:
        added = low if pattern < zero else zero
    else:
        added = zero
    t = typed_as(pattern, (magnitude + added) & ~low)
    rest = typed_as(pattern, magnitude & low)
    if mode == TO_ODD:
        t = typed_as(pattern, t | shift_left(typed_as(pattern, rest != zero), p.cut))
    elif mode == STOCHASTIC:
        # the first random_bits bits of the dropped part (longer words see zeros below it)
        first = shift_right(shift_left(rest, max(p.random_bits - p.cut, 0)), max(p.cut - p.random_bits, 0))
        noisy = typed_as(pattern, first + top_bits(word, pattern, p.random_bits))
        t = typed_as(pattern, t + shift_left(shift_right(noisy, p.random_bits), p.cut))
    return t


@numba.njit
def _out_of_range(result, over, infinite, pattern, sign, mode, p):  # type: ignore[no-untyped-def]
    """Return what stands for a magnitude above the largest and for infinity, else `result` (bit patterns)."""
    if over:
        if mode == UP or mode == DOWN:
            result = p.over_negative if pattern < 0 else p.over_positive
        else:
            result = typed_as(pattern, p.over_bits | (sign & p.over_sign))
    directed = mode == TOWARD_ZERO or mode == UP or mode == DOWN or mode == TO_ODD or mode == TO_ODD_POWER
    if directed and infinite:  # every other rule has taken infinity for a too large value, which gives the same
        result = typed_as(pattern, p.beyond_bits | (sign & p.beyond_sign))
    return result


# ------------------------------------------------------------------ fixed point


@numba.njit
def round_fixed(x, mode, p, word):  # type: ignore[no-untyped-def]
    """Round x into fixed point, saturating; NaN becomes 0.

    Adding 1.5 * 2**23 (2**52) to a number of steps drops its fraction, nearest even; the integer behind the sum counts
    steps. Comparisons are made with x itself, as x * scale may underflow.
    """
    kept = p.lowest if x < p.lowest else x
    kept = p.largest if kept > p.largest else kept
    y = kept * p.scale
    total = y + p.magic
    t = total - p.magic
    if mode == STOCHASTIC_SHORT:  # on magnitudes, steps and the first random_bits bits of the fraction in one integer
        count = typed_as(bits_of(x), abs(kept) * (p.scale * p.random_scale))
        steps = shift_right(typed_as(count, count + top_bits(word, count, p.random_bits)), p.random_bits)
        t = typed_as(x, typed_as(count, -steps) if kept < 0 else steps)
    elif mode != NEAREST_EVEN:
        steps = bits_of(total)
        value = t * p.step
        floor = typed_as(steps, steps - typed_as(steps, value > kept))
        inexact = value != kept
        inner = typed_as(steps, floor + typed_as(steps, inexact & (kept < 0)))  # toward zero
        if mode == NEAREST_AWAY:
            rest = y - t
            half = typed_as(y, 0.5)
            up, down = typed_as(steps, (rest == half) & (y > 0)), typed_as(steps, (rest == -half) & (y < 0))
            steps = typed_as(steps, steps + up - down)
        elif mode == TOWARD_ZERO:
            steps = inner
        elif mode == UP:
            steps = typed_as(steps, floor + typed_as(steps, inexact))
        elif mode == DOWN:
            steps = floor
        elif mode == TO_ODD:
            steps = typed_as(steps, floor | typed_as(steps, inexact))
        else:  # STOCHASTIC, on magnitudes
            rest = abs(y - (float_of(inner) - p.magic))
            scaled = typed_as(steps, rest * p.random_scale)
            noisy = typed_as(steps, scaled + top_bits(word, steps, p.random_bits))
            carry = shift_right(noisy, p.random_bits)
            steps = typed_as(steps, inner - carry if kept < 0 else inner + carry)
        t = float_of(steps) - p.magic
    # The sums above give +0 for both zeros: fixed point has no -0.
    return typed_as(x, 0) if x != x else t * p.step


@numba.njit
def wrap_fixed(x, mode, p, word):  # type: ignore[no-untyped-def]
    """Round finite float64 x into fixed point modulo its width; NaN becomes 0."""
    if x != x:
        return 0.0
    magnitude = abs(x) * p.scale
    count = np.floor(magnitude)
    rest = magnitude - count
    inexact = count * p.step != abs(x)  # rest itself may have underflowed
    odd = count - 2 * np.floor(count / 2) == 1
    if mode == NEAREST_EVEN:
        away = rest > 0.5 or (rest == 0.5 and odd)
    elif mode == NEAREST_AWAY:
        away = rest >= 0.5
    elif mode == UP:
        away = inexact and x > 0
    elif mode == DOWN:
        away = inexact and x < 0
    elif mode == TO_ODD:
        away = inexact and not odd
    elif mode == STOCHASTIC:
        away = np.floor(rest * p.random_scale) + (word >> uint32(32 - p.random_bits)) >= p.random_scale
    else:
        away = False
    if magnitude == np.inf:  # a multiple of 2**971 steps
        return 0.0
    code = count + away if x > 0 else -(count + away)
    code -= np.floor(code / p.modulus) * p.modulus
    if code > p.largest_code:
        code -= p.modulus
    return code * p.step + 0.0
