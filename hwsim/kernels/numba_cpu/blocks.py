"""Casting into block formats on the CPU: one pass over each block for its scale, one to round its elements.

A power-of-two scale 2**e needs no multiplication: an element format with its exponents moved up by e is a float format
like any other, so elements are rounded where they stand. Blocks of float32 whose scaled format leaves float32's range
are done in float64 by the same code.
"""

# Compiled code: `x != x` is the NaN test and `in` does not fold at compile time.
# ruff: noqa: PLR0124

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
    shift_left,
    shift_right,
    store,
    typed_as,
    wide_vectors,
)
from hwsim.kernels.numba_cpu.quantize import MAX_FAST_RANDOM_BITS
from hwsim.kernels.numba_cpu.rounding import FixedParameters, FloatParameters
from hwsim.kernels.numba_cpu.strips import (
    FLOAT32_LARGEST,
    blocks_in_run,
    counters,
    lanes_of,
    without_infinity,
    word_at,
)
from hwsim.kernels.numba_cpu.threads import MIN_SLICE, run_slices
from hwsim.kernels.numba_cpu.two_level import cast_two_level

STRIP = 512  # elements of a row done together
COLUMNS = 512  # columns done together, where blocks run along another axis than the last
BEYOND = 2.0**200  # float64 work: every larger magnitude saturates too
SAFE_FIELDS = (60, 200)  # exponent fields of a block's largest magnitude that are done in float32


class ScaleParameters(NamedTuple):
    """How a power-of-two scale follows from the largest magnitude of a block."""

    fraction: Any  # of the working float: 23 or 52
    bias: Any
    offset: Any  # bias + emax of the element format
    round_up_above: Any  # fraction bits of amax above which round_up takes the next power; -1 never (floor rule)
    lowest: Any  # smallest exponent of a scale
    largest: Any  # largest exponent of a scale
    safe_from: Any  # bits of the amax from which, and below which, work in the working float is exact
    safe_below: Any


def cast_blocks(
    x: np.ndarray, cast: Cast, stream: int = 0, tensor_scale: float | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the values of x (outer, n, inner; contiguous) in a block format; blocks run along the middle axis.

    The result is float32, in `out` if given (contiguous float32 of the same shape). See `reference.quantize`.
    """
    values = np.empty(x.shape, np.float32) if out is None else out
    _cast(x, cast, stream, tensor_scale, values, np.empty((0, 0, 0)))
    return values


def cast_blocks_with_scales(
    x: np.ndarray, cast: Cast, stream: int = 0, tensor_scale: float | None = None, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return values, block scales (float64; outer, blocks, inner) and the tensor scale (1 if the format has none)."""
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    outer, n, inner = x.shape
    values = np.empty(x.shape, np.float32) if out is None else out
    scales = np.empty((outer, -(-n // fmt.block), inner))
    return values, scales, _cast(x, cast, stream, tensor_scale, values, scales)


def _cast(
    x: np.ndarray, cast: Cast, stream: int, tensor_scale: float | None, out: np.ndarray, scales: np.ndarray
) -> float:
    """Cast into out, block scales into `scales` unless that is of size 0; return the tensor scale."""
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    outer, n, inner = x.shape
    keys = _keys(stream if cast.rounding.stochastic else 0, (max(x.size, 1) - 1 >> 32) + 1)
    if fmt.scale_rule is ScaleRule.TWO_LEVEL:
        return cast_two_level(x, cast, tensor_scale, out, scales, keys)
    given = x if _fits_float32(cast) else x.astype(np.float64, copy=False)
    loop, parameters = plan(cast, given.dtype == np.float32, inner == 1)
    saturate = cast.overflow is Overflow.SATURATE

    def run(start: int, stop: int) -> None:
        loop(given, out, scales, start, stop, *parameters, saturate, keys)

    run_slices(run, outer, max(1, MIN_SLICE // max(1, n * inner)), multiple=1)
    return 1.0


@lru_cache(maxsize=1024)
def plan(cast: Cast, single: bool, contiguous: bool) -> tuple[Any, tuple[Any, ...]]:
    """Return the loop for power-of-two scales of float32 (`single`) or float64 data, and its parameters.

    `contiguous`: the blocks run along the last axis.
    """
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    element = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    parameters_of = rounding.float_parameters if isinstance(fmt.element, FloatingPoint) else rounding.fixed_parameters
    mode = rounding.mode_number(element)
    width = 32 if single else 64
    short = rounding.short_draw(mode, element, width)
    both_zeros = isinstance(fmt.element, FloatingPoint) and fmt.element.negative_zero
    signs = rounding.BOTH_ZEROS if both_zeros else rounding.SIGNED
    loop = (_row_loop if contiguous else _column_loop)(mode, short, signs, fmt.block, width)
    rules = (scale_parameters(fmt, width), scale_parameters(fmt, 64))
    return loop, (parameters_of(element, width), parameters_of(element, 64), *rules)


def scale_parameters(fmt: BlockScaled, width: int) -> ScaleParameters:
    """Return how a block's power-of-two scale is found, for working floats of 32 or 64 bits."""
    real, integer, fraction, bias = (np.float32, np.int32, 23, 127) if width == 32 else (np.float64, np.int64, 52, 1023)
    above = int(real(fmt.element.largest).view(integer)) & ((1 << fraction) - 1)
    return ScaleParameters(
        fraction=integer(fraction),
        bias=integer(bias),
        offset=integer(bias + fmt.element.emax),
        round_up_above=integer(above if fmt.scale_rule is ScaleRule.ROUND_UP else (1 << fraction) - 1),
        lowest=integer(-FLOAT32_EMAX),
        largest=integer(FLOAT32_EMAX - fmt.element.emax),
        safe_from=integer((SAFE_FIELDS[0] if width == 32 else 0) << fraction),
        safe_below=integer((SAFE_FIELDS[1] if width == 32 else 2 * bias) + 1 << fraction),
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


@lru_cache(maxsize=256)
def _keys(stream: int, spans: int) -> np.ndarray:
    """Return the (low, high) random keys of every 2**32 elements as uint32 (read only)."""
    keys = [random_bits.key(stream, 0, high) for high in range(spans)]
    return np.array([(key & random_bits.MASK32, key >> 32) for key in keys], dtype=np.uint32)


# ------------------------------------------------------------------ compiled pieces


@numba.njit
def _scale_exponent(amax, rule):  # type: ignore[no-untyped-def]
    """Return e of the scale 2**e from the bits of the largest magnitude (finite)."""
    rest = typed_as(amax, amax & ((1 << rule.fraction) - 1))
    e = typed_as(amax, shift_right(amax, rule.fraction) - rule.offset)
    e = typed_as(amax, e + 1) if rest > rule.round_up_above else e
    e = e if e > rule.lowest else rule.lowest  # numba's max() would widen
    return e if e < rule.largest else rule.largest


@numba.njit
def _exponent_in_place(amax, rule):  # type: ignore[no-untyped-def]
    """Return the exponent that a block is rounded with, in the place of the exponent field; any serves for zeros."""
    return typed_as(amax, 0) if amax == 0 else shift_left(_scale_exponent(amax, rule), rule.fraction)


@numba.njit
def _scale_of(amax, up, rule):  # type: ignore[no-untyped-def]
    """Return the scale of a block from its amax and `_exponent_in_place`; a block of zeros has the smallest."""
    if amax == 0:
        return float_of(np.int64((1023 - 127) << 52))
    return np.float64(_power(amax, shift_right(up, rule.fraction), rule))


@numba.njit
def _is_safe(amax, rule):  # type: ignore[no-untyped-def]
    return amax == 0 or rule.safe_from <= amax < rule.safe_below


@numba.njit
def _power(like, e, rule):  # type: ignore[no-untyped-def]
    """Return 2**e in the working float type of the bits `like` (normal range)."""
    return float_of(typed_as(like, (e + rule.bias) << rule.fraction))


@numba.njit
def _round_scaled_fixed(value, up, mode, signs, p, word):  # type: ignore[no-untyped-def]
    scale = float_of(typed_as(up, bits_of(p.scale) - up))
    step = float_of(typed_as(up, bits_of(p.step) + up))
    lowest, largest = p.lowest * p.scale * step, p.largest_code * step
    if lowest < -FLOAT32_LARGEST:  # this code would leave float32: the next one takes its place
        lowest += step
    moved = FixedParameters(
        lowest, largest, scale, step, p.magic, p.random_bits, p.random_scale, p.modulus, p.largest_code,
    )  # fmt: skip
    return rounding.round_fixed(value, mode, moved, word)


def _round_scaled(value, up, mode, signs, p, word):  # type: ignore[no-untyped-def]
    """Round a finite value into 2**e times the element format, saturating; the result is scaled already.

    `up` is e in the place of the exponent field, for both kinds of float.
    """
    raise NotImplementedError("compiled code only: the type of p decides")


@overload(_round_scaled)
def _choose_round_scaled(value, up, mode, signs, p, word):  # type: ignore[no-untyped-def]
    chosen = rounding.round_finite if p.instance_class is FloatParameters else _round_scaled_fixed

    def round_scaled(value, up, mode, signs, p, word):  # type: ignore[no-untyped-def]
        return chosen(value, up, mode, signs, p, word)

    return round_scaled


@numba.njit
def _exact_block(x, place, out, gap, count, mode, p, rule, saturate, keys):  # type: ignore[no-untyped-def]
    """Do one block in float64, the way that is right for every input, and return its scale.

    Its elements stand `gap` apart from `place` on.
    """
    amax = 0.0
    poisoned = False
    for j in range(count):
        magnitude = abs(np.float64(x[place + j * gap]))
        if magnitude != magnitude or (magnitude == np.inf and not saturate):
            poisoned = True
        amax = max(amax, min(magnitude, FLOAT32_LARGEST) if magnitude == np.inf else magnitude)
    if poisoned:
        for j in range(count):
            out[place + j * gap] = np.nan
        return np.nan
    e = _scale_exponent(bits_of(amax), rule)
    up = typed_as(e, e << rule.fraction)
    for j in range(count):
        value = min(max(without_infinity(x[place + j * gap]), -BEYOND), BEYOND)
        word = word_at(place + j * gap, keys) if mode == rounding.STOCHASTIC else uint32(0)
        out[place + j * gap] = _round_scaled(value, up, mode, rounding.SIGNED, p, word)
    return np.float64(_power(e, e, rule))


@cache
def _row_loop(mode: int, quick: int, signs: int, block: int, width: int) -> Any:
    """Return the loop for blocks along a contiguous last axis: strips of whole blocks, then what is left of a row.

    Every element of a strip gets its block's exponent in a small array, so that the rounding loop knows no blocks.
    """
    stochastic, lanes = mode == rounding.STOCHASTIC, lanes_of(block)
    integer, strip = np.int32 if width == 32 else np.int64, max(1, STRIP // block)

    def row_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        n = x.shape[1]
        whole, blocks = n // block, -(-n // block)
        flat, flat_out = x.reshape(x.size), out.reshape(x.size)
        largest, ups, exponents = np.empty(strip, integer), np.empty(strip, integer), np.empty(strip * block, integer)
        counter = counters(strip * block if stochastic else 0)
        for o in range(start, stop):
            first = 0
            while first < whole:
                base, many, one_run = o * n + first * block, min(strip, whole - first), True
                if stochastic:
                    many, one_run = blocks_in_run(base, block, many)
                for b in range(many):
                    place = base + b * block
                    amax = largest_magnitude_bits(flat, place, lanes)
                    for j in range(lanes, block, lanes):
                        magnitude = largest_magnitude_bits(flat, place + j, lanes)
                        amax = magnitude if magnitude > amax else amax  # numba's max() would widen
                    store(largest, b, amax)
                lowest, highest = rule.safe_from, rule.safe_from
                for b in range(many):
                    amax = load(largest, b)
                    up = _exponent_in_place(amax, rule)
                    store(ups, b, up)
                    highest = amax if amax > highest else highest
                    amax = rule.safe_from if amax == 0 else amax
                    lowest = amax if amax < lowest else lowest
                for b in range(many):
                    for j in range(0, block, lanes):
                        fill(exponents, b * block + j, lanes, load(ups, b))
                if scales.size:
                    for b in range(many):
                        scales[o, first + b, 0] = _scale_of(largest[b], ups[b], rule)
                key_low, key_high = keys[base >> 32, 0], keys[base >> 32, 1]
                low, run_key = uint32(base & 0xFFFF), rounding.run_key(uint32(base), key_low)
                for j in range(many * block):
                    word = uint32(0)
                    if stochastic:
                        word = rounding.mixed_word(uint32(uint32(low + load(counter, j)) ^ run_key), key_high)
                    value = _round_scaled(load(flat, base + j), load(exponents, j), quick, signs, p, word)
                    store(flat_out, base + j, np.float32(value))
                if not one_run or lowest < rule.safe_from or highest >= rule.safe_below:
                    for b in range(many):
                        if not one_run or not _is_safe(largest[b], rule):
                            scale = _exact_block(
                                flat, base + b * block, flat_out, 1, block,
                                mode, exact_p, exact_rule, saturate, keys,
                            )  # fmt: skip
                            if scales.size:
                                scales[o, first + b, 0] = scale
                first += many
            if whole < blocks:
                place, count = o * n + whole * block, n - whole * block
                scale = _exact_block(flat, place, flat_out, 1, count, mode, exact_p, exact_rule, saturate, keys)
                if scales.size:
                    scales[o, whole, 0] = scale

    return compiled(row_loop)


@cache
def _column_loop(mode: int, quick: int, signs: int, block: int, width: int) -> Any:
    """Return the loop for blocks along another axis than the last: strips of columns side by side."""
    stochastic = mode == rounding.STOCHASTIC
    integer = np.int32 if width == 32 else np.int64

    def column_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        _, n, inner = x.shape
        flat, flat_out = x.reshape(x.size), out.reshape(x.size)
        amax, exponents = np.empty(COLUMNS, integer), np.empty(COLUMNS, integer)
        counter = counters(COLUMNS if stochastic else 0)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                first, last = b * block, min((b + 1) * block, n)
                for left in range(0, inner, COLUMNS):
                    count = min(COLUMNS, inner - left)
                    begin, end = (o * n + first) * inner, (o * n + last) * inner
                    one_span = all_safe = begin >> 32 == end >> 32
                    amax[:] = 0
                    for j in range(first, last):
                        row = (o * n + j) * inner + left
                        for i in range(count):
                            magnitude, so_far = bits_of(abs(load(flat, row + i))), load(amax, i)
                            store(amax, i, magnitude if magnitude > so_far else so_far)
                    for i in range(count):
                        store(exponents, i, _exponent_in_place(load(amax, i), rule))
                        all_safe &= _is_safe(load(amax, i), rule)
                    if scales.size:
                        for i in range(count):
                            scales[o, b, left + i] = _scale_of(amax[i], exponents[i], rule)
                    low, high = keys[begin >> 32, 0], keys[begin >> 32, 1]
                    for j in range(first, last):
                        row = (o * n + j) * inner + left
                        for i in range(count):
                            word = uint32(0)
                            if stochastic:
                                word = rounding.random_word(uint32(uint32(row) + load(counter, i)), low, high)
                            value = _round_scaled(load(flat, row + i), load(exponents, i), quick, signs, p, word)
                            store(flat_out, row + i, np.float32(value))
                    if not all_safe:
                        for i in range(count):
                            if not one_span or not _is_safe(amax[i], rule):
                                scale = _exact_block(
                                    flat, (o * n + first) * inner + left + i, flat_out, inner, last - first,
                                    mode, exact_p, exact_rule, saturate, keys,
                                )  # fmt: skip
                                if scales.size:
                                    scales[o, b, left + i] = scale

    return compiled(column_loop)
