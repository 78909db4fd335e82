"""The definition of a fused tensor-core step, in integers.

A step adds `terms` exact products to an addend: every term is cut (toward zero) to `fraction_bits` bits below the
largest exponent among the terms that are not zero, the integers are added exactly, and the sum is normalized once into
the output format. Products are not normalized before they are aligned (an exponent is the sum of the factors'), and
a subnormal factor keeps its format's smallest exponent. Longer sums chain steps, k ascending.

Sources: Fasi, Higham, Mikaitis & Pranesh 2021 (PeerJ CS 7:e330); Khattak & Mikaitis 2025 (arXiv 2512.07004);
checked against vectors read off V100, A100, Ada and H200. Not settled by those vectors, and decided here after the
models of Khattak & Mikaitis and of Xie et al. (MMA-Sim, arXiv 2511.10909): the largest exponent is at least -126, that
of a float32 zero; a sum beyond the output's range is an infinity whatever the rounding of its last bit; a sum of zero
is +0; infinities and NaN follow IEEE 754 (an infinity times zero, or infinities of both signs, are NaN).
"""

from __future__ import annotations

import math
from fractions import Fraction

from hwsim.arithmetic.mac import Fused
from hwsim.arithmetic.number import FloatingPoint, power_of_two
from hwsim.arithmetic.rounding import Overflow
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.reference.rounding import floor_log2, round_exact

FLOAT32 = FloatingPoint("float32", 8, 23, 127)
LOWEST_ALIGNMENT = -126


def fused_dot(a: list[float], b: list[float], c: float, order: Fused) -> float:
    """Return the dot product of a and b plus c by chained fused steps; c is a value of the addend's format.

    With the addend last, each instruction (groups x terms positions) sums its products from 0 and then adds what came
    before by one ordinary addition: for mma.sync FP8, nvcc 13.0 emits two HMMA steps and an FADD for sm_90.
    """
    if order.addend == "first":
        return _chain(a, b, c, order)
    span, total = order.groups * order.terms, c
    for first in range(0, max(len(a), 1), span):
        partial = _chain(a[first : first + span], b[first : first + span], 0.0, order)
        total = _add_nearest(partial, total, order)
    return total


def _chain(a: list[float], b: list[float], total: float, order: Fused) -> float:
    """Return total plus the products, step after step."""
    for positions in step_positions(len(a), order):
        total = fused_step([a[k] for k in positions], [b[k] for k in positions], total, order)
    return total


def _add_nearest(total: float, c: float, order: Fused) -> float:
    """Return total + c, rounded once to nearest even in the output's format."""
    if total + c != total + c or math.isinf(total) or math.isinf(c):
        return total + c
    exact = Fraction(total) + Fraction(c)
    both_negative = math.copysign(1.0, total) < 0 and math.copysign(1.0, c) < 0
    return round_exact(exact, Cast(order.output.format, "nearest_even", order.output.overflow), 0, both_negative)


def step_positions(k: int, order: Fused) -> list[list[int]]:
    """Return the positions of each step, in order."""
    if order.groups == 1:
        return [list(range(first, min(first + order.terms, k))) for first in range(0, k, order.terms)]
    steps = []
    for first in range(0, k, 2 * order.terms):
        block = range(first, min(first + 2 * order.terms, k))
        steps += [[p for p in block if (p - first) % 4 in half] for half in ((0, 1), (2, 3))]
    return steps


def fused_step(a: list[float], b: list[float], addend: float, order: Fused) -> float:
    """Return one step: the aligned, truncated sum of the products and the addend."""
    inputs = order.inputs or FLOAT32
    a, b = [cut(x, inputs) for x in a], [cut(x, inputs) for x in b]
    special = [x * y for x, y in zip(a, b, strict=True)] + [addend]
    if any(not math.isfinite(x) for x in (*a, *b, addend)):
        return _special(special)
    terms = []  # (exponent, exact value) of what is not zero
    for x, y in zip(a, b, strict=True):
        if x and y:
            terms.append((exponent_of(x, inputs) + exponent_of(y, inputs), Fraction(x) * Fraction(y)))
    if addend:
        terms.append((exponent_of(addend, addend_format(order)), Fraction(addend)))
    unit = power_of_two(max([LOWEST_ALIGNMENT, *(e for e, _ in terms)]) - order.fraction_bits)
    total = sum(math.trunc(value / unit) for _, value in terms) * unit
    if not total:
        return 0.0
    rounded = round_exact(total, order.output)
    out_of_range = abs(total) >= power_of_two(order.output.format.emax + 1)  # type: ignore[union-attr]
    if out_of_range and order.output.overflow is Overflow.NATIVE:
        return math.copysign(math.inf, rounded)
    return rounded


def addend_format(order: Fused) -> FloatingPoint:
    """Return the format in which the addend is decoded: the output's register, float32 unless it is narrower."""
    fmt = order.output.format
    assert isinstance(fmt, FloatingPoint)
    return fmt if fmt.exponent_bits < 8 else FLOAT32


def exponent_of(x: float, fmt: FloatingPoint) -> int:
    """Return the exponent field's meaning: floor(log2|x|), but not below the format's smallest."""
    return max(floor_log2(abs(Fraction(x))), fmt.emin)


def cut(x: float, fmt: FloatingPoint) -> float:
    """Return x without the bits that the operand format does not have (toward zero)."""
    if not x or not math.isfinite(x):
        return x
    unit = power_of_two(exponent_of(x, fmt) - fmt.mantissa_bits)
    return math.copysign(float(math.trunc(Fraction(x) / unit) * unit), x)


def _special(terms: list[float]) -> float:
    """Return the IEEE sum where a product or the addend is infinite or NaN."""
    infinite = {x for x in terms if math.isinf(x)}
    if any(math.isnan(x) for x in terms) or len(infinite) == 2:
        return math.nan
    return infinite.pop()
