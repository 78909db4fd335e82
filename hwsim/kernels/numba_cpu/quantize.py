"""Casting a whole array on the CPU: one pass, vector code, equal to `reference` bit for bit.

Each (way, rule) pair is one small compiled loop around the scalar functions of `numba_cpu.rounding`. Arrays beyond the
second-level cache are written past the caches: the destination is not read first, which saves a third of the traffic.
"""

# Compiled code: `x != x` is the NaN test.
# ruff: noqa: PLR0124

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
from numba import uint32

from hwsim.arithmetic.number import FixedPoint, FloatingPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels import random_bits
from hwsim.kernels.numba_cpu import rounding
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import (
    STREAM_ALIGNMENT,
    bits_of,
    load,
    store,
    store_streaming,
    typed_as,
    wide_vectors,
)
from hwsim.kernels.numba_cpu.threads import run_slices
from hwsim.kernels.reference import quantize as reference

STREAMING_BYTES = 4 << 20  # results of this size and more do not stay in a core's own cache
MAX_FAST_RANDOM_BITS = 24  # float32 work: fraction bits and random word are added in 32-bit integers
CHUNK = 4096  # elements that are looked over together for values out of range
WARY = 15  # chunks after one with such values that are taken to hold some too
COUNTER_SPAN = 1 << 32  # elements that share the upper half of the random counter

NARROW, ALIGNED, FIXED, WRAP = range(4)


def cast_into(x: np.ndarray, out: np.ndarray, cast: Cast, stream: int = 0) -> bool:
    """Write the cast of x into out; return whether x held a NaN (it became 0 if the format has none).

    Args:
        x: float32 or float64, one-dimensional, contiguous.
        out: of the same size; float32 or float64, and able to hold the format's values.
        cast: an element format; overflow "error" is treated as "saturate" (the caller looks for it).
        stream: random stream; element i uses the word at counter i.

    Raises:
        UnsupportedError: the format's range is beyond what float64 arithmetic rounds exactly.
    """
    if isinstance(cast.format, FloatingPoint) and (not cast.format.zero or cast.format.precision == 53):
        out[...] = _cast_rare(x, cast, stream)
        return False  # both have a NaN
    in_place = False
    if np.may_share_memory(x, out):
        in_place = x.dtype == out.dtype and x.ctypes.data == out.ctypes.data
        x = x if in_place else x.copy()
    parameters, loops = plan(cast, x.dtype == np.float32, in_place)
    found_nan = []

    def run(start: int, stop: int) -> None:
        while start < stop:  # the upper half of the random counter is constant within one call
            end = min(stop, (start // COUNTER_SPAN + 1) * COUNTER_SPAN)
            key = random_bits.key(stream, 0, start // COUNTER_SPAN) if cast.rounding.stochastic else 0
            low, high = np.uint32(key & random_bits.MASK32), np.uint32(key >> 32)
            first, head = np.uint32(start % COUNTER_SPAN), start
            if out.itemsize * (end - start) >= STREAMING_BYTES and out.dtype == np.float32:
                head = min(end, start + (-(out.ctypes.data + out.itemsize * start) % STREAM_ALIGNMENT) // out.itemsize)
                found_nan.append(loops[0](x[start:head], out[start:head], parameters, first, low, high))
                first = np.uint32(head % COUNTER_SPAN)
                found_nan.append(loops[1](x[head:end], out[head:end], parameters, first, low, high))
            else:
                found_nan.append(loops[0](x[start:end], out[start:end], parameters, first, low, high))
            start = end

    run_slices(run, x.size)
    return any(found_nan)


@lru_cache(maxsize=4096)
def plan(cast: Cast, single: bool, in_place: bool = False) -> tuple[Any, tuple[Any, Any]]:
    """Return the parameters and the (plain, streaming) loops for a cast of float32 (`single`) or float64 data."""
    way, width = choose_way(cast, single)
    fmt, mode = cast.format, rounding.mode_number(cast)
    parameters: Any
    if isinstance(fmt, FloatingPoint):
        parameters = rounding.float_parameters(cast, width)
        if way == ALIGNED and parameters.cut == 0:  # float32 into float32: nothing to round
            mode = rounding.TOWARD_ZERO
    else:
        parameters = rounding.fixed_parameters(cast, width)
    mode = rounding.short_draw(mode, cast, width) if way in (NARROW, FIXED) else mode
    signs = rounding.SIGNED  # only one way looks at it
    if way == NARROW and isinstance(fmt, FloatingPoint):
        signs = rounding.BOTH_ZEROS if fmt.negative_zero else rounding.SIGNED if fmt.signed else rounding.UNSIGNED
    # Doing a chunk twice needs its input to be still there; random words cost more than it saves.
    hopeful = way in (NARROW, ALIGNED) and not cast.rounding.stochastic and not in_place
    kind = (way, width, mode, signs, hopeful, in_place)
    return parameters, (loop(*kind, streaming=False), loop(*kind, streaming=True))


def choose_way(cast: Cast, single: bool) -> tuple[int, int]:
    """Return (way, width): the fastest exact arithmetic for this cast, and its float width in bits.

    Raises:
        UnsupportedError: the format's range is beyond what float64 arithmetic rounds exactly.
    """
    fmt, n = cast.format, cast.rounding.random_bits
    single = single and n <= MAX_FAST_RANDOM_BITS
    if isinstance(fmt, FixedPoint):
        if cast.overflow is Overflow.WRAP:
            return WRAP, 64
        fits = fmt.bits <= 22 and abs(fmt.fraction_bits) <= 100
        return FIXED, 32 if single and fits else 64
    assert isinstance(fmt, FloatingPoint)
    if single and (fmt.emin, fmt.bias, fmt.exponent_bits) == (-126, 127, 8) and fmt.infinities and fmt.negative_zero:
        return ALIGNED, 32
    inverse = 277 + n - (127 + fmt.emin + 23 - fmt.mantissa_bits)  # exponent field of the largest 2**n / step
    roomy = fmt.mantissa_bits <= 21 and fmt.emin >= -100 and fmt.emax + 25 - fmt.mantissa_bits <= 127
    if single and roomy and inverse <= 254:
        return NARROW, 32
    if fmt.emax + 54 - fmt.mantissa_bits > 1023 or fmt.smallest_exponent < -1000:
        raise UnsupportedError(f"{fmt}: its range is too wide for the compiled loops; use backend 'reference'")
    return NARROW, 64


def _cast_rare(x: np.ndarray, cast: Cast, stream: int) -> np.ndarray:
    """Cast into float64 (nothing to round) or into a format without zero (a scale format, never a large array)."""
    fmt = cast.format
    assert isinstance(fmt, FloatingPoint)
    if fmt.zero:
        limit = np.inf if cast.overflow is Overflow.NATIVE else fmt.largest
        return np.where(np.isnan(x), np.nan, np.clip(x.astype(np.float64), -limit, limit))
    return reference.cast_array(x, cast, stream)


@cache
def loop(way: int, width: int, mode: int, signs: int, hopeful: bool, in_place: bool, streaming: bool) -> Any:
    """Return the compiled loop of one way and rule: f(x, out, parameters, first counter, key low, key high).

    It returns whether there was a NaN. A `hopeful` loop (float formats) takes a shorter way through a chunk without
    values beyond the largest: it looks for such values meanwhile, and does the chunk once more if there were any.
    In place, one array is both: told so, the compiler still makes vector code.
    """
    work = numba.float32 if width == 32 else numba.float64
    stochastic = mode in (rounding.STOCHASTIC, rounding.STOCHASTIC_SHORT)
    is_float, is_aligned, is_fixed = way == NARROW, way == ALIGNED, way == FIXED

    def cast_loop(x, out, p, first, key_low, key_high):  # type: ignore[no-untyped-def]
        wide_vectors()
        any_nan, start, warned, word = False, 0, 0, uint32(0)
        while start < x.size:
            stop = min(start + CHUNK, x.size) if hopeful else x.size
            inside = False
            if hopeful:
                warned -= 1
                if warned < 0:
                    highest = typed_as(p.largest_bits, 0)
                    for i in range(start, stop):
                        value = work(load(x, i))
                        magnitude = typed_as(highest, bits_of(value) & ~p.sign_bit)
                        highest = magnitude if magnitude > highest else highest
                        if is_float:
                            result = rounding.round_inside(value, mode, signs, p, word)
                        else:
                            result = rounding.round_aligned_inside(value, mode, p, word)
                        if streaming:
                            store_streaming(out, i, numba.float32(result))
                        else:
                            store(out, i, out.dtype.type(result))
                    inside = highest <= p.largest_bits
                    warned = 0 if inside else WARY
            if not inside:
                for i in range(start, stop):
                    if stochastic:
                        word = rounding.random_word(uint32(first + uint32(i)), key_low, key_high)
                    value = work(load(out if in_place else x, i))
                    any_nan |= value != value
                    if is_float:
                        result = rounding.round_float(value, mode, signs, p, word)
                    elif is_aligned:
                        result = rounding.round_aligned(value, mode, p, word)
                    elif is_fixed:
                        result = rounding.round_fixed(value, mode, p, word)
                    else:
                        result = rounding.wrap_fixed(value, mode, p, word)
                    if streaming:
                        store_streaming(out, i, numba.float32(result))
                    else:
                        store(out, i, out.dtype.type(result))
            start = stop
        return any_nan

    return compiled(cast_loop)
