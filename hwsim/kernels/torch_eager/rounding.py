"""Rounding float64 tensors with plain torch operations, on any device: floor to the grid, then decide upward.

Everything is exact in float64: adding and subtracting a power of two finds the grid point below, and the fraction
between two neighbours is a quotient by a power of two.
"""

from __future__ import annotations

import math

import torch

from hwsim.arithmetic.number import FixedPoint, FloatingPoint
from hwsim.arithmetic.rounding import Overflow, Rounding, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels.random_bits import M1, M2, MASK32, key

FRACTION = 52
BIAS = 1023


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2**exponent as float64 from int64 exponents of normal numbers (torch.ldexp goes through float32)."""
    return ((exponent + BIAS) << FRACTION).view(torch.float64)


def random_words(stream: int, index: torch.Tensor) -> torch.Tensor:
    """Return the 32-bit random word of each counter (int64 in, int64 out); see `hwsim.kernels.random_bits`."""
    words = torch.empty_like(index)
    high = index >> 32
    spans = range(int(high.max()) + 1) if index.numel() else range(0)
    for span in spans:
        keyed = key(stream, 0, span)
        x = (index & MASK32) ^ (keyed & MASK32)
        x = ((x ^ (x >> 16)) * M1) & MASK32
        x = x ^ (x >> 15) ^ (keyed >> 32)
        x = (x * M2) & MASK32
        words = torch.where(high == span, x ^ (x >> 15), words)
    return words


def away_from_zero(
    fraction: torch.Tensor,
    inexact: torch.Tensor,
    odd: torch.Tensor,
    negative: torch.Tensor,
    rounding: Rounding,
    words: torch.Tensor | None,
) -> torch.Tensor:
    """Decide for each magnitude between two neighbours whether it goes to the larger one (boolean)."""
    match rounding.mode:
        case RoundingMode.NEAREST_EVEN:
            return (fraction > 0.5) | ((fraction == 0.5) & odd)
        case RoundingMode.NEAREST_AWAY:
            return fraction >= 0.5
        case RoundingMode.TOWARD_ZERO:
            return torch.zeros_like(odd)
        case RoundingMode.UP:
            return inexact & ~negative
        case RoundingMode.DOWN:
            return inexact & negative
        case RoundingMode.TO_ODD:
            return inexact & ~odd
        case RoundingMode.STOCHASTIC:
            assert words is not None
            n = rounding.random_bits
            return torch.floor(fraction * 2.0**n) + (words >> (32 - n)) >= 2.0**n


def round_float(
    x: torch.Tensor, cast: Cast, words: torch.Tensor | None, moved: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float64 x rounded into a float cast; `moved` (int64) scales the format by 2**moved, elementwise.

    Raises:
        UnsupportedError: the format's range is beyond what float64 arithmetic rounds exactly.
    """
    fmt = cast.format
    assert isinstance(fmt, FloatingPoint)
    if fmt.emax + FRACTION + 2 - fmt.mantissa_bits > BIAS or fmt.smallest_exponent < -1000:
        raise UnsupportedError(f"{fmt}: its range is too wide for the torch back end; use backend 'reference'")
    shift = torch.zeros((), dtype=torch.int64, device=x.device) if moved is None else moved
    unit = power_of_two(shift)
    largest = fmt.largest * unit
    negative, magnitude = torch.signbit(x) & ~torch.isnan(x), x.abs()
    a = torch.minimum(magnitude, 4 * 2.0**fmt.emax * unit)
    exponent = torch.maximum((a.view(torch.int64) >> FRACTION) - BIAS, fmt.emin + shift)
    big, step = power_of_two(exponent + (FRACTION - fmt.mantissa_bits)), power_of_two(exponent - fmt.mantissa_bits)
    nearest = (a + big) - big
    floor = torch.where(nearest > a, nearest - step, nearest)
    count = floor / step
    odd = torch.remainder(count, 2) == 1
    if fmt.mantissa_bits == 0:
        field = torch.remainder(exponent - shift + fmt.bias, 2) == 1
        odd = odd & (field if fmt.zero else torch.ones_like(odd))
    rounded = floor + step * away_from_zero((a - floor) / step, floor != a, odd, negative, cast.rounding, words)
    if not fmt.zero:
        rounded = torch.where(count == 0, step, rounded)
    return _with_specials(x, rounded, magnitude, negative, largest, cast)


def _with_specials(
    x: torch.Tensor,
    rounded: torch.Tensor,
    magnitude: torch.Tensor,
    negative: torch.Tensor,
    largest: torch.Tensor,
    cast: Cast,
) -> torch.Tensor:
    """Apply range, sign, infinity and NaN rules to rounded magnitudes."""
    fmt = cast.format
    assert isinstance(fmt, FloatingPoint)
    native = cast.overflow is Overflow.NATIVE
    beyond = torch.full_like(rounded, math.inf if fmt.infinities else math.nan)
    if not native or not (fmt.infinities or fmt.has_nan):
        beyond = largest.expand_as(rounded)
    match cast.rounding.mode:
        case RoundingMode.TOWARD_ZERO | RoundingMode.TO_ODD:
            over = largest.expand_as(rounded)
        case RoundingMode.UP:
            over = torch.where(negative, largest, beyond)
        case RoundingMode.DOWN:
            over = torch.where(negative, beyond, largest)
        case _:
            over = beyond
    result = torch.where(rounded > largest, over, rounded)
    result = torch.where(magnitude == math.inf, beyond, result)
    result = torch.where(negative & ~torch.isnan(result), -result, result)
    if not fmt.negative_zero:
        result = torch.where(result == 0, 0.0, result)
    if not fmt.signed:
        below = math.nan if native else fmt.lowest
        lost = (negative & (rounded != 0)) if fmt.zero else (negative | (x == 0))
        result = torch.where(lost, below, result)
    return torch.where(torch.isnan(x), math.nan if fmt.has_nan else 0.0, result)


def round_fixed(
    x: torch.Tensor, cast: Cast, words: torch.Tensor | None, moved: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float64 x rounded into fixed point (saturating or wrapping); `moved` scales the format by 2**moved."""
    fmt = cast.format
    assert isinstance(fmt, FixedPoint)
    shift = torch.zeros((), dtype=torch.int64, device=x.device) if moved is None else moved
    step = power_of_two(shift - fmt.fraction_bits)
    lowest, largest = fmt.lowest_code * step, fmt.largest_code * step
    if moved is not None:  # a block's lowest code may leave float32: the next one takes its place
        lowest = torch.where(lowest < -torch.finfo(torch.float32).max, lowest + step, lowest)
    x = torch.where(torch.isnan(x), 0.0, x)
    wrap = cast.overflow is Overflow.WRAP
    kept = x if wrap else torch.minimum(torch.maximum(x, lowest), largest)
    magnitude = kept.abs() * power_of_two(fmt.fraction_bits - shift)
    count = torch.floor(magnitude)
    odd, inexact = torch.remainder(count, 2) == 1, count * step != kept.abs()
    away = away_from_zero(magnitude - count, inexact, odd, kept < 0, cast.rounding, words)
    code = count + away
    if wrap:
        code = torch.where(magnitude == math.inf, 0.0, code)
        code = torch.where(x < 0, -code, code)
        code = torch.remainder(code, 2.0**fmt.bits)
        code = torch.where(code > fmt.largest_code, code - 2.0**fmt.bits, code)
    else:
        code = torch.where(kept < 0, -code, code)
    return code * step + 0.0
