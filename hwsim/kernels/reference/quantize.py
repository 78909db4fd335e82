"""The definition of casting a tensor: element by element, block by block, in Python integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from hwsim.arithmetic.number import (
    FLOAT32_EMAX,
    BlockScaled,
    FixedPoint,
    FloatingPoint,
    ScaleRule,
    carrier_of,
    power_of_two,
)
from hwsim.arithmetic.rounding import Overflow, Rounding
from hwsim.arithmetic.storage import Cast
from hwsim.kernels import random_bits
from hwsim.kernels.reference.rounding import floor_log2, round_exact

FLOAT32 = FloatingPoint("float32", 8, 23, 127)
FLOAT32_LARGEST = FLOAT32.largest
SMALLEST_SCALE_EXPONENT = -127


def cast_array(x: np.ndarray, cast: Cast, stream: int = 0) -> np.ndarray:
    """Return x (float32 or float64, any shape) with every element rounded once; dtype is the format's carrier.

    Element i in row-major order rounds with the random word ``word(stream, i)``.
    """
    words = cast.rounding.stochastic
    values = [round_exact(float(v), cast, random_bits.word(stream, i) if words else 0) for i, v in enumerate(x.ravel())]
    return np.array(values, dtype=np.float64).reshape(x.shape).astype(carrier_of(cast.format))


def cast_blocks(
    x: np.ndarray, cast: Cast, stream: int = 0, tensor_scale: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Cast a tensor of shape (outer, n, inner) into a block format whose blocks run along the middle axis.

    Returns:
        values (float32, shape of x), elements (float32, shape of x), block scales (float64, (outer, blocks, inner))
        and the tensor scale (1.0 but for two-level formats): value = element * scale * tensor scale, rounded once to
        float32 (exact for power-of-two scales).
    """
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    outer, n, inner = x.shape
    blocks = -(-n // fmt.block)
    if fmt.scale_rule is not ScaleRule.TWO_LEVEL:
        tensor_scale = 1.0
    elif tensor_scale is None:
        tensor_scale = two_level_tensor_scale(x, fmt, cast.overflow)
    elements, scales = np.zeros(x.shape, np.float32), np.zeros((outer, blocks, inner))
    values = np.zeros(x.shape, np.float32)
    for o in range(outer):
        for b in range(blocks):
            for i in range(inner):
                places = range(b * fmt.block, min((b + 1) * fmt.block, n))
                block = [float(x[o, j, i]) for j in places]
                words = [random_bits.word(stream, (o * n + j) * inner + i) for j in places]
                scale, got = cast_block(block, cast, words, tensor_scale)
                scales[o, b, i] = scale
                for j, element in zip(places, got, strict=True):
                    elements[o, j, i] = element
                    values[o, j, i] = scaled_value(element, scale, tensor_scale)
    return values, elements, scales, tensor_scale


def cast_block(
    block: list[float], cast: Cast, words: list[int], tensor_scale: float = 1.0
) -> tuple[float, list[float]]:
    """Return the scale of one block and its elements. A NaN (or, natively, an infinity) makes all of it NaN."""
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    if cast.overflow is Overflow.SATURATE:
        block = [clip_infinity(v) for v in block]
    if not all(math.isfinite(v) for v in block):
        return math.nan, [math.nan] * len(block)
    amax = max(abs(v) for v in block)
    scale = block_scale(amax, fmt, tensor_scale)
    element_cast = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    elements = []
    for value, word in zip(block, words, strict=True):
        if fmt.scale_rule is ScaleRule.TWO_LEVEL:
            quotient: Fraction | float = value / (scale * tensor_scale)
        else:
            quotient = Fraction(value) / Fraction(scale) if value else value
        element = round_exact(quotient, element_cast, word)
        if abs(element) * Fraction(scale) >= power_of_two(FLOAT32_EMAX + 1) and isinstance(fmt.element, FixedPoint):
            element += fmt.element.step  # the lowest two's complement code would leave float32: take the next one
        elements.append(element)
    return scale, elements


def block_scale(amax: float, fmt: BlockScaled, tensor_scale: float = 1.0) -> float:
    """Return a block's scale from its largest magnitude (finite)."""
    if fmt.scale_rule is ScaleRule.TWO_LEVEL:
        wanted = amax / (fmt.element.largest * tensor_scale)
        scale = round_exact(wanted, Cast(fmt.scale, overflow="saturate"))
        return scale or fmt.scale.smallest_subnormal
    if amax == 0:
        return float(power_of_two(SMALLEST_SCALE_EXPONENT))
    if fmt.scale_rule is ScaleRule.FLOOR:
        exponent = floor_log2(Fraction(amax)) - fmt.element.emax
    else:
        ratio = Fraction(amax) / Fraction(fmt.element.largest)
        exponent = floor_log2(ratio) + (power_of_two(floor_log2(ratio)) < ratio)
    return float(power_of_two(min(max(exponent, SMALLEST_SCALE_EXPONENT), FLOAT32_EMAX - fmt.element.emax)))


def two_level_tensor_scale(x: np.ndarray, fmt: BlockScaled, overflow: Overflow = Overflow.NATIVE) -> float:
    """Return amax / (largest element * largest scale), divided in float64 and rounded to float32 (never 0).

    Only finite values count; under `saturate` an infinity counts as the largest float32.
    """
    finite = [abs(float(v)) for v in x.ravel() if math.isfinite(v)]
    if overflow is Overflow.SATURATE:
        finite = [abs(clip_infinity(float(v))) for v in x.ravel() if not math.isnan(v)]
    amax = max(finite, default=0.0)
    scale = round_exact(amax / (fmt.element.largest * fmt.scale.largest), Cast(FLOAT32, overflow="saturate"))
    return scale or FLOAT32.smallest_subnormal


def scaled_value(element: float, scale: float, tensor_scale: float) -> float:
    """Return element * scale * tensor scale, exact and rounded once to float32 (saturating)."""
    if math.isnan(element) or element == 0:
        return element
    exact = Fraction(element) * Fraction(scale) * Fraction(tensor_scale)
    return round_exact(exact, Cast(FLOAT32, Rounding(), Overflow.SATURATE))


def clip_infinity(value: float) -> float:
    """Return +-the largest float32 for +-infinity, every other value unchanged."""
    return math.copysign(FLOAT32_LARGEST, value) if math.isinf(value) else value
