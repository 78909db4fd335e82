"""Casting into block formats whose block scales are themselves rounded, in units of a scale of the tensor (nvfp4).

The definition divides in float64. Rows of float32 with blocks along the last axis are judged in float32 first: see
`quotients`. The tensor's scale needs the largest magnitude of all, so that data beyond the caches are read twice; the
first look keeps the largest magnitude of each block for the second.
"""

# Compiled code: `in` does not fold at compile time.

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import uint32
from numba.extending import overload

from hwsim.arithmetic.number import BlockScaled, FloatingPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.numba_cpu import rounding
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import (
    bits_of,
    float_of,
    largest_magnitude_bits,
    load,
    store,
    typed_as,
    wide_vectors,
)
from hwsim.kernels.numba_cpu.quantize import MAX_FAST_RANDOM_BITS, STREAMING_BYTES
from hwsim.kernels.numba_cpu.quotients import BELOW_ONE, MOST_LANES, PART, quotient_parameters, round_quotients
from hwsim.kernels.numba_cpu.rounding import FloatParameters
from hwsim.kernels.numba_cpu.strips import (
    FLOAT32_LARGEST,
    blocks_in_run,
    lanes_of,
    without_infinity,
    word_at,
)
from hwsim.kernels.numba_cpu.threads import MIN_SLICE, run_slices
from hwsim.kernels.numba_cpu.vector_ir import SHORT_VECTORS

STRIP = 2048  # elements of a row done together
TOO_HIGH = 220 << 23  # bits of float32 magnitudes from which a block is done in float64 (NaN is above)
INFINITY = 255 << 23
TENSOR_SCALES = (2.0**-60, 2.0**60)  # between these the products of float32 work are in its range


class TwoLevelParameters(NamedTuple):
    """nvfp4 and its like: the tensor's scale, and how a block's scale follows from it."""

    tensor_scale: Any
    element_largest: Any
    smallest_scale: Any


def cast_two_level(
    x: np.ndarray, cast: Cast, tensor_scale: float | None, out: np.ndarray, scales: np.ndarray, keys: np.ndarray
) -> float:
    """Cast x (outer, n, inner; contiguous) into out, block scales into `scales` unless that is empty.

    Args:
        tensor_scale: None to find it.
        out: contiguous float32 of the shape of x.
        scales: float64 (outer, blocks, inner), or of size 0.
        keys: the (low, high) random keys of every 2**32 elements, uint32.

    Returns:
        The tensor's scale.
    """
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    outer, n, inner = x.shape
    quick, look, loop, parameters = plan(cast, x.dtype == np.float32, inner == 1)
    least = max(1, MIN_SLICE // max(1, n * inner))
    maxima = np.empty(outer * (n // fmt.block) if quick and tensor_scale is None else 0, np.int32)
    if tensor_scale is None:
        highest: list[int] = [INFINITY]
        if quick:
            highest.clear()
            run_slices(lambda start, stop: highest.append(look(x, maxima, start, stop)), outer, least, multiple=1)
        if max(highest, default=0) < INFINITY:
            tensor_scale = _tensor_scale(float(np.int32(max(highest, default=0)).view(np.float32)), fmt)
        else:
            tensor_scale = find_tensor_scale(x, fmt, cast.overflow)
    element_largest, _, smallest_scale = _ends(fmt)
    second = TwoLevelParameters(tensor_scale, element_largest, smallest_scale)
    saturate, given = cast.overflow is Overflow.SATURATE, (maxima, _streams(out, fmt.block)) if quick else ()

    def run(start: int, stop: int) -> None:
        loop(x, out, scales, start, stop, *given, *parameters, second, saturate, keys)

    run_slices(run, outer, least, multiple=1)
    return tensor_scale


def _streams(out: np.ndarray, block: int) -> bool:
    """Whether results go past the caches, where that was measured to be faster: large arrays, without AVX-512."""
    aligned = out.ctypes.data % (4 * PART) == 0 and out.shape[1] % PART == 0 and lanes_of(block, MOST_LANES) % PART == 0
    return SHORT_VECTORS and aligned and out.nbytes >= STREAMING_BYTES


@lru_cache(maxsize=1024)
def plan(cast: Cast, single: bool, contiguous: bool) -> tuple[bool, Any, Any, tuple[Any, ...]]:
    """Return whether float32 work may judge first, the first look, the loop, and the loop's parameters.

    `contiguous`: the blocks run along the last axis.
    """
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    element = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    scale = Cast(fmt.scale, overflow="saturate")
    parameters_of = rounding.float_parameters if isinstance(fmt.element, FloatingPoint) else rounding.fixed_parameters
    mode = rounding.mode_number(element)
    exact = (parameters_of(element, 64), rounding.float_parameters(scale, 64))
    if not (single and contiguous and _quotients_fit_float32(element, fmt.scale)):
        return False, None, _exact_loop(mode, fmt.block), exact
    assert isinstance(fmt.element, FloatingPoint)
    signs = rounding.BOTH_ZEROS if fmt.element.negative_zero else rounding.SIGNED
    judge = (quotient_parameters(fmt.element, cast.rounding), rounding.float_parameters(scale, 32))
    step = np.float32(2.0**-fmt.element.mantissa_bits)
    return True, _first_look(fmt.block), _quick_loop(mode, signs, fmt.block), (*exact, *judge, step)


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
    return _tensor_scale(amax, fmt)


def _tensor_scale(amax: float, fmt: BlockScaled) -> float:
    element_largest, scale_largest, _ = _ends(fmt)
    scale = float(np.float32(min(amax / (element_largest * scale_largest), FLOAT32_LARGEST)))
    return scale or float(np.finfo(np.float32).smallest_subnormal)


@lru_cache(maxsize=256)
def _ends(fmt: BlockScaled) -> tuple[float, float, float]:
    """Return the largest element, the largest scale and the smallest scale of a two-level format."""
    return fmt.element.largest, fmt.scale.largest, fmt.scale.smallest_subnormal


# ------------------------------------------------------------------ compiled pieces


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
def _exact_block(x, place, out, gap, count, mode, p, scale_p, second, saturate, keys):  # type: ignore[no-untyped-def]
    """Do one block in float64, the way that is right for every input, and return its scale.

    Its elements stand `gap` apart from `place` on.
    """
    amax = 0.0
    finite = True
    for j in range(count):
        magnitude = abs(np.float64(x[place + j * gap]))
        if saturate:
            magnitude = without_infinity(magnitude)
        finite = finite and bool(magnitude < np.inf)
        amax = magnitude if magnitude > amax else amax
    if not finite:
        for j in range(count):
            out[place + j * gap] = np.nan
        return np.nan
    scale = _block_scale(amax, scale_p, second)
    unit = scale * second.tensor_scale
    for j in range(count):
        value = without_infinity(x[place + j * gap])
        word = word_at(place + j * gap, keys) if mode == rounding.STOCHASTIC else uint32(0)
        element = _round_plain(value / unit, mode, p, word)
        out[place + j * gap] = min(max(element * unit, -FLOAT32_LARGEST), FLOAT32_LARGEST)
    return scale


@numba.njit
def _block_scale(amax, scale_p, second):  # type: ignore[no-untyped-def]
    wanted = amax / (second.element_largest * second.tensor_scale)
    scale = rounding.round_float(wanted, rounding.NEAREST_EVEN, rounding.SIGNED, scale_p, uint32(0))
    return second.smallest_scale if scale == 0 else scale


@cache
def _exact_loop(mode: int, block: int) -> Any:
    """Return the loop for any axis, rule and type."""

    def exact_loop(x, out, scales, start, stop, p, scale_p, second, saturate, keys):  # type: ignore[no-untyped-def]
        _, n, inner = x.shape
        flat, flat_out = x.reshape(x.size), out.reshape(x.size)
        for o in range(start, stop):
            for b in range(-(-n // block)):
                for i in range(inner):
                    place, count = (o * n + b * block) * inner + i, min(block, n - b * block)
                    scale = _exact_block(flat, place, flat_out, inner, count, mode, p, scale_p, second, saturate, keys)
                    if scales.size:
                        scales[o, b, i] = scale

    return compiled(exact_loop)


@cache
def _first_look(block: int) -> Any:
    """Return f(x, maxima, start, stop): bits of the largest magnitude of each whole block, and of all elements."""
    lanes = lanes_of(block)

    def first_look(x, maxima, start, stop):  # type: ignore[no-untyped-def]
        wide_vectors()
        n = x.shape[1]
        whole, flat, highest = n // block, x.reshape(x.size), np.int32(0)
        for o in range(start, stop):
            for b in range(whole):
                amax = largest_magnitude_bits(flat, o * n + b * block, lanes)
                for j in range(lanes, block, lanes):
                    magnitude = largest_magnitude_bits(flat, o * n + b * block + j, lanes)
                    amax = magnitude if magnitude > amax else amax
                store(maxima, o * whole + b, amax)
                highest = amax if amax > highest else highest
            for j in range(whole * block, n):
                magnitude = bits_of(abs(load(flat, o * n + j)))
                highest = magnitude if magnitude > highest else highest
        return highest

    return compiled(first_look)


@numba.njit
def _nearest(magnitude, p):  # type: ignore[no-untyped-def]
    zero = typed_as(bits_of(magnitude), 0)
    return rounding.round_finite(magnitude, zero, rounding.NEAREST_EVEN, rounding.BOTH_ZEROS, p, uint32(0))


@cache
def _quick_loop(mode: int, signs: int, block: int) -> Any:
    """Return the loop for rows of float32 with blocks along the last axis: strips of whole blocks, judged in float32.

    A block with a result in doubt is divided in float64.
    """
    lanes, strip = lanes_of(block), max(1, STRIP // block)
    stochastic = mode == rounding.STOCHASTIC

    def quick_loop(  # type: ignore[no-untyped-def]
        x, out, scales, start, stop, maxima, streams, p, scale_p, narrow, narrow_scale, step, second, saturate, keys,
    ):  # fmt: skip
        wide_vectors()
        n = x.shape[1]
        whole, blocks = n // block, -(-n // block)
        flat, flat_out, flat_scales = x.reshape(x.size), out.reshape(x.size), scales.reshape(scales.size)
        found, marks = np.empty(strip, np.int32), np.empty(strip, np.int32)
        strip_scales, factors = np.empty(strip, np.float32), np.empty(strip, np.float32)
        zero, one = np.int32(0), np.int32(1)
        less, more = np.float32(1 - 2.0**-21), np.float32(1 + 2.0**-21)  # two roundings of at most 2**-24 make a scale
        below_one = np.float32(BELOW_ONE)
        tensor_scale, inverse_tensor = np.float32(second.tensor_scale), np.float32(1 / second.tensor_scale)
        to_scale = np.float32(1 / (second.element_largest * second.tensor_scale))
        smallest = np.float32(second.smallest_scale)
        far = not TENSOR_SCALES[0] < second.tensor_scale < TENSOR_SCALES[1]
        for o in range(start, stop):
            first = 0
            while first < whole:
                base, many, in_doubt = o * n + first * block, min(strip, whole - first), far
                if stochastic:
                    many, one_run = blocks_in_run(base, block, many)
                    in_doubt |= not one_run
                known, at = maxima, o * whole + first
                if maxima.size == 0:
                    known, at = found, 0
                    for b in range(many):
                        place = base + b * block
                        amax = largest_magnitude_bits(flat, place, lanes)
                        for j in range(lanes, block, lanes):
                            magnitude = largest_magnitude_bits(flat, place + j, lanes)
                            amax = magnitude if magnitude > amax else amax
                        store(found, b, amax)
                marked = zero
                for b in range(many):
                    amax = load(known, at + b)
                    wanted = float_of(amax) * to_scale
                    low = _nearest(wanted * less, narrow_scale)
                    high = _nearest(wanted * more, narrow_scale)
                    scale = low if low > smallest else smallest
                    factor = np.divide(below_one, scale) * inverse_tensor  # `/` would test for zero
                    store(strip_scales, b, scale * step)
                    store(factors, b, factor)
                    quotient = bits_of(float_of(amax) * factor)
                    highest = amax if amax > quotient else quotient
                    mark = one if highest >= np.int32(TOO_HIGH) else zero
                    mark = one if high != low else mark
                    store(marks, b, mark)
                    marked = mark if mark > marked else marked
                if scales.size:
                    for b in range(many):
                        scale = np.float64(load(strip_scales, b)) / np.float64(step)
                        store(flat_scales, o * blocks + first + b, scale)
                key_low, key_high = keys[base >> 32, 0], keys[base >> 32, 1]
                run_key = rounding.run_key(uint32(base), key_low)
                draw = (tensor_scale, uint32(base & 0xFFFF), run_key, key_high)
                if streams:
                    fraction = round_quotients(
                        mode, signs, block, 1, flat, flat_out, base, factors, strip_scales, 0, many, narrow, draw
                    )
                else:
                    fraction = round_quotients(
                        mode, signs, block, 0, flat, flat_out, base, factors, strip_scales, 0, many, narrow, draw
                    )
                if in_doubt or marked > zero or fraction >= narrow.window:
                    for b in range(many):
                        doubt = in_doubt or marks[b] > zero
                        if not doubt:
                            fraction = round_quotients(
                                mode, signs, block, 0, flat, flat_out, base, factors, strip_scales,
                                b, b + 1, narrow, draw,
                            )  # fmt: skip
                            doubt = fraction >= narrow.window
                        if doubt:
                            scale = _exact_block(
                                flat, base + b * block, flat_out, 1, block,
                                mode, p, scale_p, second, saturate, keys,
                            )  # fmt: skip
                            if scales.size:
                                scales[o, first + b, 0] = scale
                first += many
            if whole < blocks:
                place = o * n + whole * block
                scale = _exact_block(
                    flat, place, flat_out, 1, n - whole * block, mode, p, scale_p, second, saturate, keys
                )
                if scales.size:
                    scales[o, whole, 0] = scale

    return compiled(quick_loop)
