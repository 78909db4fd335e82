"""Casting into block formats on the CPU: one pass over each block for its scale, one to round its elements.

A power-of-two scale 2**e needs no multiplication: an element format with its exponents moved up by e is a float format
like any other, so elements are rounded where they stand. Blocks of float32 whose scaled format leaves float32's range
are done in float64 by the same code.
"""

# Compiled code: `x != x` is the NaN test and `in` does not fold at compile time.
# ruff: noqa: PLR0124

from __future__ import annotations

from functools import cache
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
from hwsim.kernels.numba_cpu.intrinsics import bits_of, float_of, typed_as, wide_vectors
from hwsim.kernels.numba_cpu.quantize import MAX_FAST_RANDOM_BITS
from hwsim.kernels.numba_cpu.rounding import FixedParameters, FloatParameters
from hwsim.kernels.numba_cpu.threads import MIN_SLICE, run_slices

FLOAT32_LARGEST = float(np.finfo(np.float32).max)
STRIP = 128  # columns done together where blocks run along another axis than the last
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
    element_cast = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    two_level = fmt.scale_rule is ScaleRule.TWO_LEVEL
    if two_level and tensor_scale is None:
        tensor_scale = find_tensor_scale(x, fmt, cast.overflow)
    saturate = cast.overflow is Overflow.SATURATE
    is_float = isinstance(fmt.element, FloatingPoint)
    width = 32 if x.dtype == np.float32 and _fits_float32(element_cast) else 64
    if width == 64 and not two_level:
        x = x.astype(np.float64, copy=False)
    elements = [
        (rounding.float_parameters if is_float else rounding.fixed_parameters)(element_cast, bits)
        for bits in (width, 64)
    ]
    rules = [scale_parameters(fmt, bits) for bits in (width, 64)]
    mode, keeps_sign = rounding.mode_number(element_cast), bool(fmt.element.negative_zero)
    if two_level:
        second = TwoLevelParameters(float(tensor_scale or 1.0), fmt.element.largest, fmt.scale.smallest_subnormal)
        scale_format = rounding.float_parameters(Cast(fmt.scale, overflow="saturate"), 64)
        run_rows = _two_level_loop(mode, keeps_sign, fmt.block)
    elif inner == 1:
        run_rows = _row_loop(mode, keeps_sign, fmt.block)
    else:
        run_rows = _column_loop(mode, keeps_sign, width)

    def run(start: int, stop: int) -> None:
        keys = _keys(stream, cast, x.size)
        if two_level:
            run_rows(x, values, scales, start, stop, elements[1], scale_format, second, saturate, keys)
        elif inner == 1:
            run_rows(x, values, scales, start, stop, *elements, *rules, saturate, keys)
        else:
            run_rows(x, values, scales, start, stop, *elements, *rules, saturate, keys, fmt.block)

    run_slices(run, outer, max(1, MIN_SLICE // max(1, n * inner)), multiple=1)
    return values, scales, float(tensor_scale or 1.0)


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


def _fits_float32(cast: Cast) -> bool:
    """Whether the scaled element format stays within normal float32 numbers for every block in `SAFE_FIELDS`."""
    fmt, n = cast.format, cast.rounding.random_bits
    if n > MAX_FAST_RANDOM_BITS or fmt.bits > 22:
        return False
    if not isinstance(fmt, FloatingPoint):
        return True
    smallest = fmt.smallest_exponent + SAFE_FIELDS[0] - 127 - fmt.emax
    return smallest >= -100 and n - smallest <= 126


def find_tensor_scale(x: np.ndarray, fmt: BlockScaled, overflow: Overflow) -> float:
    """Return the tensor scale of a two-level format: amax of the finite values, divided in float64, once to float32."""
    amax = float(_largest_finite(x.reshape(-1)))
    if overflow is Overflow.SATURATE and np.isinf(x).any():
        amax = max(amax, FLOAT32_LARGEST)
    scale = float(np.float32(min(amax / (fmt.element.largest * fmt.scale.largest), FLOAT32_LARGEST)))
    return scale or float(np.finfo(np.float32).smallest_subnormal)


@compiled
def _largest_finite(x):  # type: ignore[no-untyped-def]
    wide_vectors()
    amax = typed_as(x[0], 0) if x.size else x.dtype.type(0)
    for i in range(x.size):
        magnitude = abs(x[i])
        amax = magnitude if (magnitude > amax) & (magnitude < np.inf) else amax
    return amax


def _keys(stream: int, cast: Cast, size: int) -> np.ndarray:
    """Return the (low, high) random keys of every 2**32 elements as uint32; one unused row if nothing is random."""
    spans = (max(size, 1) - 1 >> 32) + 1 if cast.rounding.stochastic else 1
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
def _moved_float(p, e, largest):  # type: ignore[no-untyped-def]
    """Return the parameters of the format whose values are 2**e times those of p; `largest` is its largest value."""
    like = p.emin_bits
    up = typed_as(like, e << p.fraction)
    over = bits_of(largest)
    return FloatParameters(
        p.sign_bit, p.field_mask, p.fraction, p.infinity,
        typed_as(like, p.emin_bits + up), p.shift_bits, p.half_shift, p.inverse_bits,
        float_of(typed_as(like, over + typed_as(like, 2 << p.fraction))),
        largest, over, over, p.over_sign, over, p.beyond_sign, p.below_bits, p.nan_bits,
        typed_as(like, (p.parity + e) & 1), p.cut, p.random_bits,
    )  # fmt: skip


@numba.njit
def _power(like, e, rule):  # type: ignore[no-untyped-def]
    """Return 2**e in the working float type of the bits `like` (normal range)."""
    return float_of(typed_as(like, (e + rule.bias) << rule.fraction))


@numba.njit
def _round_scaled_float(value, e, mode, keeps_sign, p, rule, word):  # type: ignore[no-untyped-def]
    unit = _power(bits_of(value), e, rule)
    return rounding.round_float(value, mode, True, keeps_sign, _moved_float(p, e, p.largest * unit), word)


@numba.njit
def _round_scaled_fixed(value, e, mode, keeps_sign, p, rule, word):  # type: ignore[no-untyped-def]
    unit, inverse = _power(bits_of(value), e, rule), _power(bits_of(value), -e, rule)
    lowest = p.lowest * unit
    if lowest < -FLOAT32_LARGEST:  # this code would leave float32: the next one takes its place
        lowest += p.step * unit
    moved = FixedParameters(
        lowest, p.largest * unit, p.scale * inverse, p.step * unit,
        p.magic, p.random_bits, p.random_scale, p.modulus, p.largest_code,
    )  # fmt: skip
    return rounding.round_fixed(value, mode, moved, word)


def _round_scaled(value, e, mode, keeps_sign, p, rule, word):  # type: ignore[no-untyped-def]
    """Round a finite value into 2**e times the element format, saturating; the result is scaled already."""
    raise NotImplementedError("compiled code only: the type of p decides")


@overload(_round_scaled)
def _choose_round_scaled(value, e, mode, keeps_sign, p, rule, word):  # type: ignore[no-untyped-def]
    chosen = _round_scaled_float if p.instance_class is FloatParameters else _round_scaled_fixed

    def round_scaled(value, e, mode, keeps_sign, p, rule, word):  # type: ignore[no-untyped-def]
        return chosen(value, e, mode, keeps_sign, p, rule, word)

    return round_scaled


def _round_plain(value, mode, keeps_sign, p, word):  # type: ignore[no-untyped-def]
    """Round a value into the element format itself, saturating."""
    raise NotImplementedError("compiled code only: the type of p decides")


@overload(_round_plain)
def _choose_round_plain(value, mode, keeps_sign, p, word):  # type: ignore[no-untyped-def]
    if p.instance_class is FloatParameters:
        return lambda value, mode, keeps_sign, p, word: rounding.round_float(value, mode, True, keeps_sign, p, word)
    return lambda value, mode, keeps_sign, p, word: rounding.round_fixed(value, mode, p, word)


@numba.njit
def _word(index, keys):  # type: ignore[no-untyped-def]
    span = index >> 32
    return rounding.random_word(uint32(index), keys[span, 0], keys[span, 1])


@numba.njit
def _exact_block(x, out, scales, o, b, i, block, mode, keeps_sign, p, rule, saturate, keys):  # type: ignore[no-untyped-def]
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
    for j in range(first, last):
        value = np.float64(x[o, j, i])
        if value == np.inf:
            value = FLOAT32_LARGEST
        elif value == -np.inf:
            value = -FLOAT32_LARGEST
        word = _word((o * n + j) * inner + i, keys) if mode == rounding.STOCHASTIC else uint32(0)
        out[o, j, i] = _round_scaled(value, e, mode, keeps_sign, p, rule, word)


@cache
def _row_loop(mode: int, keeps_sign: bool, block: int) -> Any:
    """Return the loop for blocks along a contiguous last axis; the block's length is known when it is compiled."""
    stochastic = mode == rounding.STOCHASTIC

    def row_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        outer, n, _ = x.shape
        flat, flat_out = x.reshape(outer, n), out.reshape(outer, n)
        whole = n // block
        for o in range(start, stop):
            for b in range(-(-n // block)):
                base = o * n + b * block
                span = base >> 32
                source, target = flat[o, b * block : (b + 1) * block], flat_out[o, b * block : (b + 1) * block]
                amax = rule.infinity_bits
                if b < whole and (base + block - 1) >> 32 == span:
                    amax = bits_of(abs(source[0]))
                    for j in range(block):
                        amax = max(amax, bits_of(abs(source[j])))
                field = amax >> rule.fraction
                if amax >= rule.infinity_bits or field < rule.safe_low or field > rule.safe_high:
                    _exact_block(x, out, scales, o, b, 0, block, mode, keeps_sign, exact_p, exact_rule, saturate, keys)
                    continue
                e = _scale_exponent(amax, rule)
                scales[o, b, 0] = _power(e, e, rule)
                low, high = keys[span, 0], keys[span, 1]
                for j in range(block):
                    word = uint32(0)
                    if stochastic:
                        word = rounding.random_word(uint32(uint32(base) + uint32(j)), low, high)
                    target[j] = _round_scaled(source[j], e, mode, keeps_sign, p, rule, word)

    return compiled(row_loop)


@cache
def _column_loop(mode: int, keeps_sign: bool, width: int) -> Any:
    """Return the loop for blocks along another axis than the last: strips of columns side by side."""
    stochastic = mode == rounding.STOCHASTIC
    integer = np.int32 if width == 32 else np.int64

    def column_loop(x, out, scales, start, stop, p, exact_p, rule, exact_rule, saturate, keys, block):  # type: ignore[no-untyped-def]
        wide_vectors()
        _, n, inner = x.shape
        amax = np.empty(STRIP, integer)
        exponents = np.empty(STRIP, integer)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                first, last = b * block, min((b + 1) * block, n)
                for left in range(0, inner, STRIP):
                    count = min(STRIP, inner - left)
                    base, end = (o * n + first) * inner, (o * n + last) * inner
                    amax[:] = 0
                    for j in range(first, last):
                        source = x[o, j, left : left + count]
                        for i in range(count):
                            amax[i] = max(amax[i], bits_of(abs(source[i])))
                    safe = base >> 32 == end >> 32
                    for i in range(count):
                        field = amax[i] >> rule.fraction
                        safe &= (amax[i] < rule.infinity_bits) & (field >= rule.safe_low) & (field <= rule.safe_high)
                    if not safe:
                        for i in range(left, left + count):
                            _exact_block(
                                x, out, scales, o, b, i, block,
                                mode, keeps_sign, exact_p, exact_rule, saturate, keys,
                            )  # fmt: skip
                        continue
                    for i in range(count):
                        exponents[i] = _scale_exponent(amax[i], rule)
                        scales[o, b, left + i] = _power(exponents[i], exponents[i], rule)
                    low, high = keys[base >> 32, 0], keys[base >> 32, 1]
                    for j in range(first, last):
                        source, target = x[o, j, left : left + count], out[o, j, left : left + count]
                        row = uint32((o * n + j) * inner + left)
                        for i in range(count):
                            word = uint32(0)
                            if stochastic:
                                word = rounding.random_word(uint32(row + uint32(i)), low, high)
                            target[i] = _round_scaled(source[i], exponents[i], mode, keeps_sign, p, rule, word)

    return compiled(column_loop)


@cache
def _two_level_loop(mode: int, keeps_sign: bool, block: int) -> Any:
    """Return the loop of formats whose block scales are themselves rounded (nvfp4): divisions in float64."""
    stochastic = mode == rounding.STOCHASTIC

    def two_level_loop(x, out, scales, start, stop, p, scale_p, second, saturate, keys):  # type: ignore[no-untyped-def]
        wide_vectors()
        outer, n, inner = x.shape
        strides = n * inner
        flat, flat_out = x.reshape(outer * strides), out.reshape(outer * strides)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                count = min(block, n - b * block)
                for i in range(inner):
                    base = o * strides + b * block * inner + i
                    amax = 0.0
                    finite = True
                    for j in range(count):
                        magnitude = abs(np.float64(flat[base + j * inner]))
                        if saturate and magnitude == np.inf:
                            magnitude = FLOAT32_LARGEST
                        finite &= magnitude < np.inf
                        amax = magnitude if magnitude > amax else amax
                    if not finite:
                        scales[o, b, i] = np.nan
                        for j in range(count):
                            flat_out[base + j * inner] = np.nan
                        continue
                    wanted = amax / (second.element_largest * second.tensor_scale)
                    scale = rounding.round_float(wanted, rounding.NEAREST_EVEN, True, True, scale_p, uint32(0))
                    scale = second.smallest_scale if scale == 0 else scale
                    scales[o, b, i] = scale
                    unit = scale * second.tensor_scale
                    for j in range(count):
                        place = base + j * inner
                        value = np.float64(flat[place])
                        value = FLOAT32_LARGEST if value == np.inf else value
                        value = -FLOAT32_LARGEST if value == -np.inf else value
                        word = _word(place, keys) if stochastic else uint32(0)
                        element = _round_plain(value / unit, mode, keeps_sign, p, word)
                        result = min(max(element * unit, -FLOAT32_LARGEST), FLOAT32_LARGEST)
                        flat_out[place] = result

    return compiled(two_level_loop)
