"""One fused tensor-core step in numpy, with what is not yet known about it as switches: the rivals that a chip judges.

The published facts (products exact, aligned to the largest exponent, truncated to F fraction bits, added exactly)
leave open
how zeros, subnormal sums and clamped exponents behave. Each `Hypothesis` is one reading; where two of them differ, a
constructed vector tells them apart. The arithmetic that hwsim offers to users is `hwsim.arithmetic.mac`, not this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.arithmetic.mac import Fused, named_mac, named_macs
from hwsim.measurement.tensor_core_source import Instruction

# format -> (mantissa bits, exponent of the smallest normal number)
FIELDS = {
    "float16": (10, -14),
    "bfloat16": (7, -126),
    "tf32": (10, -126),
    "float8_e4m3fn": (3, -6),
    "float8_e5m2": (2, -14),
    "float32": (23, -126),
}


@dataclass(frozen=True)
class Hypothesis:
    """One reading of the open questions."""

    name: str
    zero_products_align: bool = False  # a product with a zero factor still takes part in the largest exponent
    lowest_exponent: int | None = None  # the largest exponent is never taken below this
    addend_zero_aligns: bool = False  # an addend of zero takes part with its smallest exponent


HYPOTHESES = (
    Hypothesis("exponents clamp at -126", lowest_exponent=-126),  # what hwsim's named MACs say today
    Hypothesis("zeros are dropped, no clamp"),
    Hypothesis("zero products align", zero_products_align=True),
    Hypothesis("zero products align, exponents clamp at -126", zero_products_align=True, lowest_exponent=-126),
    Hypothesis("exponents clamp at -133", lowest_exponent=-133),
    Hypothesis("zero addend aligns", addend_zero_aligns=True),
)


def chip_parameters(chip: str, instruction: Instruction) -> tuple[int, int, bool] | None:
    """Return (terms of one fused step, fraction bits F, FP8 in two groups with the addend last), or None if not
    known."""
    name = f"{chip}.{instruction.id}"
    if name not in named_macs():
        return None
    order = named_mac(name).order
    assert isinstance(order, Fused)
    return order.terms, order.fraction_bits, order.groups == 2


def fused_dots(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    instruction: Instruction,
    chip: str,
    hypothesis: Hypothesis = HYPOTHESES[0],
) -> np.ndarray:
    """Return the results (float64, N) of dots of a, b (float64, N x K, finite, in the operand format) with addends c
    (N).

    K may hold several steps, chained in order. Raises ValueError for a chip whose parameters are not known.
    """
    parameters = chip_parameters(chip, instruction)
    if parameters is None:
        raise ValueError(f"no parameters for {instruction.id} on {chip}")
    terms, fraction, two_groups = parameters
    total = np.asarray(c, np.float64)
    if two_groups:
        for first in range(0, a.shape[1], 32):
            partial = np.zeros_like(total)
            for places in (np.arange(32) % 4 < 2, np.arange(32) % 4 >= 2):
                left, right = a[:, first : first + 32][:, places], b[:, first : first + 32][:, places]
                partial = _step(left, right, partial, instruction, fraction, hypothesis)
            total = _nearest(partial + total, instruction.output)
        return total
    for first in range(0, a.shape[1], terms):
        total = _step(
            a[:, first : first + terms], b[:, first : first + terms], total, instruction, fraction, hypothesis
        )
    return total


def _step(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, instruction: Instruction, fraction: int, hypothesis: Hypothesis
) -> np.ndarray:
    """One fused step; F fraction bits below the largest exponent are kept of every term."""
    mantissa, emin = FIELDS[instruction.operand]
    sa, ea = _decode(a, mantissa, emin)
    sb, eb = _decode(b, mantissa, emin)
    sc, ec = _decode(c, *FIELDS[instruction.output])
    products, exponents = sa * sb, ea + eb
    far = np.int64(-(10**6))
    aligns = (products != 0) | hypothesis.zero_products_align
    top = np.where(aligns, exponents, far).max(axis=1)
    top = np.maximum(top, np.where((sc != 0) | hypothesis.addend_zero_aligns, ec, far))
    if hypothesis.lowest_exponent is not None:
        top = np.maximum(top, hypothesis.lowest_exponent)
    top = np.where(top == far, 0, top)
    unit = top - fraction  # exponent of the last bit that is kept
    kept = _shift(products, exponents - 2 * mantissa - unit[:, None]).sum(axis=1)
    kept += _shift(sc, ec - FIELDS[instruction.output][0] - unit)
    exact = np.ldexp(kept.astype(np.float64), unit.astype(np.int32))
    if instruction.output == "float16":
        return _nearest(exact, "float16")
    bits = 13 if instruction.operand.startswith("float8") and fraction == 13 else 23
    return _truncate(exact, bits)


def _decode(x: np.ndarray, mantissa: int, emin: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the signed integer significand and the exponent of every value: x = significand * 2^(exponent -
    mantissa)."""
    _, exponent = np.frexp(x)
    exponent = np.where(x == 0, emin, np.maximum(exponent.astype(np.int64) - 1, emin))
    return np.ldexp(x, (mantissa - exponent).astype(np.int32)).astype(np.int64), exponent


def _shift(significand: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Shift magnitudes left by `places`, or right with truncation."""
    magnitude = np.abs(significand)
    left = magnitude << np.clip(places, 0, 40)
    right = magnitude >> np.clip(-places, 0, 62)
    return np.sign(significand) * np.where(places >= 0, left, right)


def _truncate(x: np.ndarray, bits: int) -> np.ndarray:
    """Round toward zero to `bits` fraction bits, exponents no lower than float32's; beyond float32, infinity."""
    _, exponent = np.frexp(x)
    unit = np.maximum(exponent - 1, -126) - bits
    result = np.ldexp(np.trunc(np.ldexp(x, -unit)), unit)
    return np.where(np.abs(result) >= 2.0**128, np.copysign(np.inf, result), result)


def _nearest(x: np.ndarray, output: str) -> np.ndarray:
    """Round to nearest even into float16 or float32."""
    kind = np.float16 if output == "float16" else np.float32
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(kind).astype(np.float64)
