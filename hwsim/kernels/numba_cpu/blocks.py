"""Casting into block formats on the CPU: one pass over each block for its scale, one to round its elements.

A power-of-two scale 2**e needs no multiplication: an element format with its exponents moved up by e is a float format
like any other, so elements are rounded where they stand. Blocks of float32 whose scaled format leaves float32's range
are done in float64 by the same code.
"""

# Compiled code: `x != x` is the NaN test and `in` does not fold at compile time.
# ruff: noqa: PLR0124, PLR1714

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import uint32
from numba.extending import overload

from hwsim.arithmetic.number import FLOAT32_EMAX, BlockScaled, FloatingPoint, ScaleRule
from hwsim.arithmetic.rounding import Overflow
from hwsim.arithmetic.storage import Cast
from hwsim.kernels import random_bits
from hwsim.kernels.numba_cpu import rounding
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import (
    bits_of,
    fill,
    float_of,
    largest_magnitude_bits,
    load,
    shift_right,
    store,
    typed_as,
    wide_vectors,
)
from hwsim.kernels.numba_cpu.quantize import MAX_FAST_RANDOM_BITS
from hwsim.kernels.numba_cpu.rounding import FixedParameters, FloatParameters
from hwsim.kernels.numba_cpu.threads import MIN_SLICE, run_slices

FLOAT32_LARGEST = float(np.finfo(np.float32).max)
STRIP = 512  # elements of a row done together; columns, where blocks run along another axis than the last
BEYOND = 2.0**200  # float64 work: every larger magnitude saturates too
TOO_HIGH = 220 << 23  # bits of float32 magnitudes from which a two-level block is done in float64 (NaN is above)
FRACTION_MASK = (1 << 24) - 1  # bits of a count of steps behind the point
INVERSE_24 = ((2 * 127 + 24) << 23) - (1 << 32)  # minus the bits of a float32 power of two, the bits of 2**24 over it
SAFE_FIELDS = (60, 200)  # exponent fields of a block's largest magnitude that are done in float32


class ScaleParameters(NamedTuple):
    """How a power-of-two scale follows from the largest magnitude of a block."""

    fraction: Any  # of the working float: 23 or 52
    bias: Any
    emax: Any  # of the element format
    round_up_above: Any  # fraction bits of amax above which round_up takes the next power; -1 never (floor rule)
    lowest: Any  # smallest exponent of a scale
    largest: Any  # largest exponent of a scale
    safe_low: Any  # exponent fields of amax between which float32 work is exact
    safe_high: Any
    infinity_bits: Any


class TwoLevelParameters(NamedTuple):
    """nvfp4 and its like: the tensor's scale, and how a block's scale follows from it."""

    tensor_scale: Any
    element_largest: Any
    smallest_scale: Any


def cast_blocks(
    x: np.ndarray, cast: Cast, stream: int = 0, tensor_scale: float | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the values of x (outer, n, inner; contiguous) in a block format; blocks run along the middle axis.

    The result is float32, in `out` if given (contiguous float32 of the same shape). See `reference.quantize`.
    """
    return cast_blocks_with_scales(x, cast, stream, tensor_scale, out)[0]


def cast_blocks_with_scales(
    x: np.ndarray, cast: Cast, stream: int = 0, tensor_scale: float | None = None, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return values, block scales (float64; outer, blocks, inner) and the tensor scale (1 if the format has none)."""
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    outer, n, inner = x.shape
    values = np.empty(x.shape, np.float32) if out is None else out
    scales = np.empty((outer, -(-n // fmt.block), inner))
    if fmt.scale_rule is ScaleRule.TWO_LEVEL and tensor_scale is None:
        tensor_scale = find_tensor_scale(x, fmt, cast.overflow)
    given = x if tensor_scale is not None or _fits_float32(cast) else x.astype(np.float64, copy=False)
    run_rows, parameters = plan(cast, given.dtype == np.float32, inner == 1)
    if tensor_scale is not None:
        element_largest, _, smallest_scale = _ends(fmt)
        parameters = (*parameters, TwoLevelParameters(tensor_scale, element_largest, smallest_scale))
    spans = (max(x.size, 1) - 1 >> 32) + 1
    saturate, keys = cast.overflow is Overflow.SATURATE, _keys(stream if cast.rounding.stochastic else 0, spans)

    def run(start: int, stop: int) -> None:
        run_rows(given, values, scales, start, stop, *parameters, saturate, keys)

    run_slices(run, outer, max(1, MIN_SLICE // max(1, n * inner)), multiple=1)
    return values, scales, tensor_scale or 1.0


@lru_cache(maxsize=1024)
def plan(cast: Cast, single: bool, contiguous: bool) -> tuple[Any, tuple[Any, ...]]:
    """Return the loop for a block cast of float32 (`single`) or float64 data, and its parameters.

    `contiguous`: the blocks run along the last axis.
    """
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    element = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    parameters_of = rounding.float_parameters if isinstance(fmt.element, FloatingPoint) else rounding.fixed_parameters
    mode = rounding.mode_number(element)
    width = 32 if single else 64
    if fmt.scale_rule is ScaleRule.TWO_LEVEL:
        scale_cast = Cast(fmt.scale, overflow="saturate")
        exact = (parameters_of(element, 64), rounding.float_parameters(scale_cast, 64))
        if not (single and contiguous and _quotients_fit_float32(element, fmt.scale)):
            return _two_level_loop(mode, fmt.block), exact
        quick = (parameters_of(element, 32), rounding.float_parameters(scale_cast, 32))
        return _quick_two_level_loop(mode, fmt.block), (*exact, *quick)
    short = rounding.short_draw(mode, element, width)
    loop = (_row_loop if contiguous else _column_loop)(mode, short, fmt.block, width)
    rules = (scale_parameters(fmt, width), scale_parameters(fmt, 64))
    return loop, (parameters_of(element, width), parameters_of(element, 64), *rules)


def scale_parameters(fmt: BlockScaled, width: int) -> ScaleParameters:
    """Return how a block's power-of-two scale is found, for working floats of 32 or 64 bits."""
    real, integer, fraction, bias = (np.float32, np.int32, 23, 127) if width == 32 else (np.float64, np.int64, 52, 1023)
    above = int(real(fmt.element.largest).view(integer)) & ((1 << fraction) - 1)
    return ScaleParameters(
        fraction=integer(fraction),
        bias=integer(bias),
        emax=integer(fmt.element.emax),
        round_up_above=integer(above if fmt.scale_rule is ScaleRule.ROUND_UP else (1 << fraction) - 1),
        lowest=integer(-FLOAT32_EMAX),
        largest=integer(FLOAT32_EMAX - fmt.element.emax),
        safe_low=integer(SAFE_FIELDS[0] if width == 32 else 0),
        safe_high=integer(SAFE_FIELDS[1] if width == 32 else 2 * bias),
        infinity_bits=integer((2 * bias + 1) << fraction),
    )


@lru_cache(maxsize=1024)
def _fits_float32(cast: Cast) -> bool:
    """Whether a block cast's scaled element format stays in normal float32 numbers over `SAFE_FIELDS`."""
    n = cast.rounding.random_bits
    assert isinstance(cast.format, BlockScaled)
    fmt = cast.format.element
    if n > MAX_FAST_RANDOM_BITS or fmt.bits > 22:
        return False
    if not isinstance(fmt, FloatingPoint):
        return True
    smallest = fmt.smallest_exponent + SAFE_FIELDS[0] - 127 - fmt.emax
    return smallest >= -100 and n - smallest <= 126


def _quotients_fit_float32(cast: Cast, scale: FloatingPoint) -> bool:
    """Whether x / scale may be judged in float32 first: small element and scale formats of moderate range."""
    fmt = cast.format
    if not isinstance(fmt, FloatingPoint) or cast.rounding.random_bits > MAX_FAST_RANDOM_BITS:
        return False
    small = 0 < fmt.mantissa_bits <= 3 and fmt.emin >= -30 and fmt.emax <= 30
    return small and scale.mantissa_bits <= 10 and scale.emin >= -40 and scale.emax <= 40


def find_tensor_scale(x: np.ndarray, fmt: BlockScaled, overflow: Overflow) -> float:
    """Return the tensor scale of a two-level format: amax of the finite values, divided in float64, once to float32."""
    amax = float(_largest_finite(x.reshape(-1)))
    if overflow is Overflow.SATURATE and np.isinf(x).any():
        amax = max(amax, FLOAT32_LARGEST)
    element_largest, scale_largest, _ = _ends(fmt)
    scale = float(np.float32(min(amax / (element_largest * scale_largest), FLOAT32_LARGEST)))
    return scale or float(np.finfo(np.float32).smallest_subnormal)


@lru_cache(maxsize=256)
def _ends(fmt: BlockScaled) -> tuple[float, float, float]:
    """Return the largest element, the largest scale and the smallest scale of a two-level format."""
    return fmt.element.largest, fmt.scale.largest, fmt.scale.smallest_subnormal


@compiled
def _largest_finite(x):  # type: ignore[no-untyped-def]
    wide_vectors()
    largest = x.dtype.type(0)
    amax, infinity = bits_of(largest), bits_of(typed_as(largest, np.inf))
    for i in range(x.size):  # integers: a maximum of floats is not made vector code
        magnitude = bits_of(abs(x[i]))
        magnitude = magnitude if magnitude < infinity else typed_as(infinity, 0)
        amax = magnitude if magnitude > amax else amax
    return float_of(amax)


@lru_cache(maxsize=256)
def _keys(stream: int, spans: int) -> np.ndarray:
    """Return the (low, high) random keys of every 2**32 elements as uint32 (read only)."""
    keys = [random_bits.key(stream, 0, high) for high in range(spans)]
    return np.array([(key & random_bits.MASK32, key >> 32) for key in keys], dtype=np.uint32)


# ------------------------------------------------------------------ compiled pieces


@numba.njit
def _scale_exponent(amax_bits, rule):  # type: ignore[no-untyped-def]
    """Return e of the scale 2**e from the bits of the largest magnitude (finite)."""
    field = amax_bits >> rule.fraction
    rest = amax_bits & ((1 << rule.fraction) - 1)
    e = field - rule.bias - rule.emax + (1 if rest > rule.round_up_above else 0)
    return typed_as(amax_bits, min(max(e, rule.lowest), rule.largest))


@numba.njit
def _power(like, e, rule):  # type: ignore[no-untyped-def]
    """Return 2**e in the working float type of the bits `like` (normal range)."""
    return float_of(typed_as(like, (e + rule.bias) << rule.fraction))


@numba.njit
def _round_scaled_fixed(value, up, mode, p, word):  # type: ignore[no-untyped-def]
    scale = float_of(typed_as(up, bits_of(p.scale) - up))
    step = float_of(typed_as(up, bits_of(p.step) + up))
    lowest, largest = p.lowest * p.scale * step, p.largest_code * step
    if lowest < -FLOAT32_LARGEST:  # this code would leave float32: the next one takes its place
        lowest += step
    moved = FixedParameters(
        lowest, largest, scale, step, p.magic, p.random_bits, p.random_scale, p.modulus, p.largest_code,
    )  # fmt: skip
    return rounding.round_fixed(value, mode, moved, word)


def _round_scaled(value, up, mode, p, word):  # type: ignore[no-untyped-def]
    """Round a finite value into 2**e times the element format, saturating; the result is scaled already.

    `up` is e in the place of the exponent field, for both kinds of float.
    """
    raise NotImplementedError("compiled code only: the type of p decides")


@overload(_round_scaled)
def _choose_round_scaled(value, up, mode, p, word):  # type: ignore[no-untyped-def]
    chosen = rounding.round_finite if p.instance_class is FloatParameters else _round_scaled_fixed

    def round_scaled(value, up, mode, p, word):  # type: ignore[no-untyped-def]
        return chosen(value, up, mode, p, word)

    return round_scaled


def _round_plain(value, mode, p, word):  # type: ignore[no-untyped-def]
    """Round a value into the element format itself, saturating."""
    raise NotImplementedError("compiled code only: the type of p decides")


@overload(_round_plain)
def _choose_round_plain(value, mode, p, word):  # type: ignore[no-untyped-def]
    def round_plain_float(value, mode, p, word):  # type: ignore[no-untyped-def]
        return rounding.round_float(value, mode, rounding.SIGNED, p, word)

    def round_plain_fixed(value, mode, p, word):  # type: ignore[no-untyped-def]
        return rounding.round_fixed(value, mode, p, word)

    return round_plain_float if p.instance_class is FloatParameters else round_plain_fixed


@numba.njit
def _word(index, keys):  # type: ignore[no-untyped-def]
    span = index >> 32
    return rounding.random_word(uint32(index), keys[span, 0], keys[span, 1])


@numba.njit
def _counters(size):  # type: ignore[no-untyped-def]
    """Return 0, 1, 2, ...: the compiler takes an address that it needs anyway as the counter, lane by lane."""
    counters = np.empty(size, np.uint32)
    for i in range(size):
        counters[i] = i
    return counters


@numba.njit
def _without_infinity(value):  # type: ignore[no-untyped-def]
    """Return value as float64, +-the largest float32 for +-infinity."""
    wide = np.float64(value)
    return np.copysign(FLOAT32_LARGEST, wide) if abs(wide) == np.inf else wide


@numba.njit
def _exact_block(x, out, scales, o, b, i, block, mode, p, rule, saturate, keys):  # type: ignore[no-untyped-def]
    """Do one block in float64: the way that is right for every input. Blocks run along axis 1."""
    _, n, inner = x.shape
    first, last = b * block, min((b + 1) * block, n)
    amax = 0.0
    poisoned = False
    for j in range(first, last):
        magnitude = abs(np.float64(x[o, j, i]))
        if magnitude != magnitude or (magnitude == np.inf and not saturate):
            poisoned = True
        amax = max(amax, min(magnitude, FLOAT32_LARGEST) if magnitude == np.inf else magnitude)
    if poisoned:
        scales[o, b, i] = np.nan
        for j in range(first, last):
            out[o, j, i] = np.nan
        return
    e = _scale_exponent(bits_of(amax), rule)
    scales[o, b, i] = _power(e, e, rule)
    up = typed_as(e, e << rule.fraction)
    for j in range(first, last):
        value = min(max(_without_infinity(x[o, j, i]), -BEYOND), BEYOND)
        word = _word((o * n + j) * inner + i, keys) if mode == rounding.STOCHASTIC else uint32(0)
        out[o, j, i] = _round_scaled(value, up, mode, p, word)


def _lanes(block: int) -> int:
    """Return how many elements of a block are looked at together: the largest divisor of its length up to 64."""
    return max(lanes for lanes in range(1, 65) if block % lanes == 0)


@numba.njit
def _block_exponent(amax, rule):  # type: ignore[no-untyped-def]
    """Return (exponent to work with, in the place of the field; scale; whether float32 work is exact) of a block.

    A block of zeros has the smallest scale and may be rounded with any exponent.
    """
    if amax == 0:
        return typed_as(amax, 0), float_of(np.int64((1023 - 127) << 52)), True
    field = amax >> rule.fraction
    if amax >= rule.infinity_bits or field < rule.safe_low or field > rule.safe_high:
        return typed_as(amax, 0), 0.0, False
    e = _scale_exponent(amax, rule)
    return typed_as(amax, e << rule.fraction), np.float64(_power(e, e, rule)), True


@cache
def _row_loop(mode: int, quick: int, block: int, width: int) -> Any:
    """Return the loop for blocks along a contiguous last axis: strips of whole blocks, then what is left of a row.

    Every element of a strip gets its block's exponent in a small array, so that the rounding loop knows no blocks.
    """
    stochastic, lanes = mode == rounding.STOCHASTIC, _lanes(block)
    integer, strip = np.int32 if width == 32 else np.int64, max(1, STRIP // block)

    def row_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        n, blocks = x.shape[1], scales.shape[1]
        flat, flat_out, flat_scales = x.reshape(x.size), out.reshape(x.size), scales.reshape(scales.size)
        largest, exponents = np.empty(strip, integer), np.empty(strip * block, integer)
        counters = _counters(strip * block if stochastic else 0)
        for o in range(start, stop):
            for first in range(0, n // block, strip):
                last = min(first + strip, n // block)
                base, count = o * n + first * block, (last - first) * block
                all_exact = base >> 32 == (base + count) >> 32
                for b in range(last - first):
                    place = base + b * block
                    amax = largest_magnitude_bits(flat, place, lanes)
                    for j in range(lanes, block, lanes):
                        magnitude = largest_magnitude_bits(flat, place + j, lanes)
                        amax = magnitude if magnitude > amax else amax  # numba's max() would widen
                    store(largest, b, amax)
                for b in range(last - first):
                    e, scale, exact = _block_exponent(load(largest, b), rule)
                    all_exact &= exact
                    store(largest, b, e)
                    store(flat_scales, o * blocks + first + b, scale)
                for b in range(last - first):
                    for j in range(0, block, lanes):
                        fill(exponents, b * block + j, lanes, load(largest, b))
                low, high = keys[base >> 32, 0], keys[base >> 32, 1]
                for j in range(count):
                    word = uint32(0)
                    if stochastic:
                        word = rounding.random_word(uint32(uint32(base) + load(counters, j)), low, high)
                    value = _round_scaled(load(flat, base + j), load(exponents, j), quick, p, word)
                    store(flat_out, base + j, np.float32(value))
                if not all_exact:
                    for b in range(first, last):
                        if scales[o, b, 0] == 0 or base >> 32 != (base + count) >> 32:
                            _exact_block(x, out, scales, o, b, 0, block, mode, exact_p, exact_rule, saturate, keys)
            if n % block:
                _exact_block(x, out, scales, o, blocks - 1, 0, block, mode, exact_p, exact_rule, saturate, keys)

    return compiled(row_loop)


@cache
def _column_loop(mode: int, quick: int, block: int, width: int) -> Any:
    """Return the loop for blocks along another axis than the last: strips of columns side by side."""
    stochastic = mode == rounding.STOCHASTIC
    integer = np.int32 if width == 32 else np.int64

    def column_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        _, n, inner = x.shape
        flat, flat_out = x.reshape(x.size), out.reshape(x.size)
        amax, exponents = np.empty(STRIP, integer), np.empty(STRIP, integer)
        counters = _counters(STRIP if stochastic else 0)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                first, last = b * block, min((b + 1) * block, n)
                for left in range(0, inner, STRIP):
                    count = min(STRIP, inner - left)
                    begin, end = (o * n + first) * inner, (o * n + last) * inner
                    all_exact = begin >> 32 == end >> 32
                    amax[:] = 0
                    for j in range(first, last):
                        row = (o * n + j) * inner + left
                        for i in range(count):
                            magnitude, so_far = bits_of(abs(load(flat, row + i))), load(amax, i)
                            store(amax, i, magnitude if magnitude > so_far else so_far)
                    for i in range(count):
                        exponents[i], scales[o, b, left + i], exact = _block_exponent(amax[i], rule)
                        all_exact &= exact
                    low, high = keys[begin >> 32, 0], keys[begin >> 32, 1]
                    for j in range(first, last):
                        row = (o * n + j) * inner + left
                        for i in range(count):
                            word = uint32(0)
                            if stochastic:
                                word = rounding.random_word(uint32(uint32(row) + load(counters, i)), low, high)
                            value = _round_scaled(load(flat, row + i), load(exponents, i), quick, p, word)
                            store(flat_out, row + i, np.float32(value))
                    if not all_exact:
                        for i in range(left, left + count):
                            if scales[o, b, i] == 0 or begin >> 32 != end >> 32:
                                _exact_block(
                                    x, out, scales, o, b, i, block,
                                    mode, exact_p, exact_rule, saturate, keys,
                                )  # fmt: skip

    return compiled(column_loop)


# ------------------------------------------------------------------ two-level scales


@numba.njit
def _two_level_block(flat, out, scales, o, b, i, place, gap, count, mode, p, scale_p, second, saturate, keys):  # type: ignore[no-untyped-def]
    """Do one block whose scale is itself rounded, in float64; its elements stand `gap` apart from `place` on."""
    amax = 0.0
    finite = True
    for j in range(count):
        magnitude = abs(np.float64(flat[place + j * gap]))
        if saturate:
            magnitude = _without_infinity(magnitude)
        finite = finite and bool(magnitude < np.inf)
        amax = magnitude if magnitude > amax else amax
    if not finite:
        scales[o, b, i] = np.nan
        for j in range(count):
            out[place + j * gap] = np.nan
        return
    scale = _two_level_scale(amax, scale_p, second)
    scales[o, b, i] = scale
    unit = scale * second.tensor_scale
    for j in range(count):
        value = _without_infinity(flat[place + j * gap])
        word = _word(place + j * gap, keys) if mode == rounding.STOCHASTIC else uint32(0)
        element = _round_plain(value / unit, mode, p, word)
        out[place + j * gap] = min(max(element * unit, -FLOAT32_LARGEST), FLOAT32_LARGEST)


@numba.njit
def _two_level_scale(amax, scale_p, second):  # type: ignore[no-untyped-def]
    wanted = amax / (second.element_largest * second.tensor_scale)
    scale = rounding.round_float(wanted, rounding.NEAREST_EVEN, rounding.SIGNED, scale_p, uint32(0))
    return second.smallest_scale if scale == 0 else scale


@cache
def _two_level_loop(mode: int, block: int) -> Any:
    """Return the loop of formats whose block scales are themselves rounded (nvfp4), for any axis, rule and type."""

    def two_level_loop(x, out, scales, start, stop, p, scale_p, second, saturate, keys):  # type: ignore[no-untyped-def]
        _, n, inner = x.shape
        flat, flat_out = x.reshape(x.size), out.reshape(x.size)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                for i in range(inner):
                    _two_level_block(
                        flat, flat_out, scales, o, b, i, (o * n + b * block) * inner + i, inner,
                        min(block, n - b * block), mode, p, scale_p, second, saturate, keys,
                    )  # fmt: skip

    return compiled(two_level_loop)


@cache
def _quick_two_level_loop(mode: int, block: int) -> Any:
    """Return the same for float32 rows with blocks along the last axis, in float32.

    A quotient is taken as steps of its binade with 24 bits of fraction, in one integer, to which the rule adds before
    the fraction is dropped. A strip in which a quotient's error might have changed a result is divided in float64.
    """
    lanes, strip, stochastic = _lanes(block), max(1, STRIP // block), mode == rounding.STOCHASTIC

    def quick_two_level_loop(x, out, scales, start, stop, p, scale_p, narrow, narrow_scale, second, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        n, blocks = x.shape[1], scales.shape[1]
        flat, flat_out, flat_scales = x.reshape(x.size), out.reshape(x.size), scales.reshape(scales.size)
        amaxes = np.empty(strip, np.int32)
        strip_scales, strip_inverses = _two_strips(strip)
        element_scales, inverses = _two_strips(strip * block)
        counters = _counters(strip * block if stochastic else 0)
        # two roundings of at most 2**-24 make a scale
        less, more, zero = np.float32(1 - 2.0**-21), np.float32(1 + 2.0**-21), np.int32(0)
        # Four make a quotient of less than 2**precision steps, and twice that in the finer steps below a power of two:
        # its count is off by less than half of `margin`.
        mantissa_bits = np.int32((23 << 23) - narrow.shift_bits)
        margin = np.int32(np.int32(1) << ((mantissa_bits >> 23) + 5))
        certain = np.int32(FRACTION_MASK & ~(2 * margin - 1))
        drawn_mask = np.int32(FRACTION_MASK & ~((1 << (24 - narrow.random_bits)) - 1))
        tensor_scale, inverse_tensor = np.float32(second.tensor_scale), np.float32(1 / second.tensor_scale)
        to_scale = np.float32(1 / (second.element_largest * second.tensor_scale))
        smallest = np.float32(second.smallest_scale)
        top, emin = float_of(narrow.largest_bits), narrow.emin_bits
        always_doubt = not 2.0**-60 < second.tensor_scale < 2.0**60
        for o in range(start, stop):
            for first in range(0, blocks, strip):
                last = min(first + strip, n // block)
                base, count = o * n + first * block, (last - first) * block
                # a short block is left to the exact way
                doubt = always_doubt | (first + strip > last and last < blocks) | (base >> 32 != (base + count) >> 32)
                for b in range(last - first):
                    place = base + b * block
                    amax = largest_magnitude_bits(flat, place, lanes)
                    for j in range(lanes, block, lanes):
                        magnitude = largest_magnitude_bits(flat, place + j, lanes)
                        amax = magnitude if magnitude > amax else amax
                    store(amaxes, b, amax)
                highest, closest = zero, zero
                for b in range(last - first):
                    wanted = float_of(load(amaxes, b)) * to_scale
                    low = rounding.round_finite(wanted * less, zero, rounding.NEAREST_EVEN, narrow_scale, uint32(0))
                    high = rounding.round_finite(wanted * more, zero, rounding.NEAREST_EVEN, narrow_scale, uint32(0))
                    unsure = certain if high != low else zero
                    closest = unsure if unsure > closest else closest
                    scale = low if low > smallest else smallest
                    inverse = np.divide(np.float32(1), scale) * inverse_tensor  # `/` would test for zero
                    store(strip_scales, b, scale)
                    store(strip_inverses, b, inverse)
                    amax, quotient = load(amaxes, b), bits_of(float_of(load(amaxes, b)) * inverse)
                    highest = amax if amax > highest else highest
                    highest = quotient if quotient > highest else highest
                doubt |= highest >= np.int32(TOO_HIGH)
                for b in range(last - first):
                    store(flat_scales, o * blocks + first + b, np.float64(load(strip_scales, b)))
                    for j in range(0, block, lanes):
                        fill(element_scales, b * block + j, lanes, load(strip_scales, b))
                        fill(inverses, b * block + j, lanes, load(strip_inverses, b))
                key_low, key_high = keys[base >> 32, 0], keys[base >> 32, 1]
                for j in range(count):
                    value = load(flat, base + j)
                    pattern = bits_of(value)
                    quotient = abs(value * load(inverses, j))
                    field = typed_as(pattern, bits_of(quotient) & narrow.field_mask)
                    step_bits = typed_as(pattern, (field if field > emin else emin) - mantissa_bits)
                    level = typed_as(pattern, quotient * float_of(typed_as(pattern, INVERSE_24 - step_bits)))
                    if stochastic:
                        word = rounding.random_word(uint32(uint32(base) + load(counters, j)), key_low, key_high)
                        level = typed_as(pattern, level + (rounding.top_bits(word, pattern, 24) & drawn_mask))
                    elif mode == rounding.NEAREST_EVEN or mode == rounding.NEAREST_AWAY:  # a tie is a doubt
                        level = typed_as(pattern, level + (1 << 23))
                    elif mode == rounding.UP:
                        level = typed_as(pattern, level + (0 if pattern < zero else FRACTION_MASK))
                    elif mode == rounding.DOWN:
                        level = typed_as(pattern, level + (FRACTION_MASK if pattern < zero else 0))
                    near_carry = typed_as(pattern, ~typed_as(pattern, level + margin) & certain)
                    unsure = near_carry if value != 0 else zero
                    closest = unsure if unsure > closest else closest
                    steps = shift_right(level, 24)
                    if mode == rounding.TO_ODD:
                        steps = typed_as(pattern, steps | 1) if value != 0 else steps
                    low = typed_as(value, steps) * float_of(step_bits)
                    low = low if low < top else top
                    # element * scale has few bits: the product with the tensor's scale is the only rounding
                    result = bits_of((low * load(element_scales, j)) * tensor_scale)
                    sign = typed_as(pattern, pattern & narrow.sign_bit)
                    kept_sign = typed_as(pattern, sign & narrow.zero_sign) if low == 0 else sign
                    store(flat_out, base + j, float_of(typed_as(pattern, result | kept_sign)))
                if doubt or closest == certain:
                    for b in range(first, min(first + strip, blocks)):
                        _two_level_block(
                            flat, flat_out, scales, o, b, 0, o * n + b * block, 1,
                            min(block, n - b * block), mode, p, scale_p, second, saturate, keys,
                        )  # fmt: skip

    return compiled(quick_two_level_loop)


@numba.njit
def _two_strips(size):  # type: ignore[no-untyped-def]
    return np.empty(size, np.float32), np.empty(size, np.float32)
