"""How wide an accumulator must be: how much of a long sum's variance a floating-point accumulator keeps.

After Sakr et al., "Accumulation Bit-Width Scaling For Ultra-Low Precision Training Of Deep Networks", ICLR 2019
(arXiv 1901.06588). A sum of n independent products of mean 0 and standard deviation 1 has the variance n. With m
mantissa bits in the accumulator, a term is *swamped* while the partial sum is more than 2^m times as large: it changes
nothing. A term is *partly swamped* while it loses its last j bits. What is lost is missing from the variance of the
result, which is what the retention ratio counts: the weighted mean over how a sum can go, with Q the Gaussian tail.

    swamped for good from step i on   weight 2 Q(2^m / sqrt(i)) (1 - 2 Q(2^m / sqrt(i - 1)))            keeps i - a(p)
    j of the products' p bits lost    weight 2 Q(2^(m-p+j-1) / sqrt(n)) (1 - 2 Q(2^(m-p+j) / sqrt(n)))  n - a(j - 1)
    nothing lost                      weight 1 - 2 Q(2^(m-p+1) / sqrt(n))                               keeps n

    a(j) = 2^(m - 3 p) / 3 * sum over 1..j of 2^i (2^i - 1) (2^(i + 1) - 1)

a(j) is what is lost on the way through the first j stages: the variance of i truncated bits, times the 2^(m-p+i+1)
terms that a stage lasts. In chunks, what remains is the product of both levels' ratios; a chunk's result brings
min(m, p + log2(chunk)) mantissa bits to the outer sum.

The model, the stages and the criterion below are the paper's; its text was not at hand when this was written, and the
weights of the partly swamped cases are re-derived. Where the two differ, the paper wins. docs/accumulator-width.md
shows how the ratio compares with variances measured through the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, erfc, exp, inf, log2, sqrt

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import FloatingPoint, NumberFormat
from hwsim.errors import SpecError

LARGEST_LOSS = 50.0
"""A width suits a length while exp(n (1 - retention)), the normalized exponential variance lost, is under this."""

WIDEST = 52
EXACT_STEPS = 4096  # up to here every step is a term of its own; beyond, steps are grouped by 0.1 %


@dataclass(frozen=True)
class AccumulatorWidth:
    """What a sum of `length` products asks of its accumulator, and what a given accumulator keeps."""

    length: int
    product_bits: int
    chunk: int | None
    needed_bits: int
    """The fewest mantissa bits that suit this length, in chunks if there are any."""
    accumulator_bits: int | None
    """Mantissa bits of the accumulator that was asked about."""
    retention: float | None
    """Share of the variance that it keeps."""
    loss: float | None
    """exp(length * (1 - retention)): under 50 suits."""

    @property
    def suits(self) -> bool | None:
        """Whether the accumulator suits; None if none was given."""
        return None if self.loss is None else self.loss < LARGEST_LOSS


def accumulator_width(
    length: int,
    a: str | NumberFormat,
    b: str | NumberFormat | None = None,
    accumulator: str | NumberFormat | None = None,
    chunk: int | None = None,
) -> AccumulatorWidth:
    """Say how many mantissa bits a sum of products needs, and how much variance an accumulator keeps.

    Args:
        length: products in a sum (k of the GEMM; of sparse operands, those that are not 0).
        a, b: formats of the operands (b: as a); float formats.
        accumulator: the accumulator to judge, if there is one.
        chunk: products in a chunk, if the sum is chunked.

    Raises:
        SpecError: a format that is no float, or a length or chunk under 1.

    >>> accumulator_width(4096, "float8_e5m2", accumulator="e6m9", chunk=64).suits
    True
    """
    for name, value in (("length", length), ("chunk", chunk)):
        if value is not None and value < 1:
            raise SpecError(f"{name}: got {value}, expected 1 or more")
    product_bits = mantissa_bits(a, "a") + mantissa_bits(a if b is None else b, "b") + 1
    given = None if accumulator is None else mantissa_bits(accumulator, "accumulator")
    retention = None if given is None else variance_retention(length, given, product_bits, chunk)
    return AccumulatorWidth(
        length=length,
        product_bits=product_bits,
        chunk=chunk,
        needed_bits=needed_bits(length, product_bits, chunk),
        accumulator_bits=given,
        retention=retention,
        loss=None if retention is None else variance_loss(length, retention),
    )


def mantissa_bits(number: str | NumberFormat, name: str = "format") -> int:
    """Return a float format's mantissa bits. Raises SpecError for fixed-point and block formats."""
    parsed = parse_format(number)
    if not isinstance(parsed, FloatingPoint):
        raise SpecError(f"{name}: got {parsed}, expected a float format: only there can a large sum swamp a term")
    return parsed.mantissa_bits


def needed_bits(length: int, product_bits: int, chunk: int | None = None) -> int:
    """Return the fewest mantissa bits of an accumulator that suits a sum of `length` products."""
    for bits in range(1, WIDEST):
        if variance_loss(length, variance_retention(length, bits, product_bits, chunk)) < LARGEST_LOSS:
            return bits
    return WIDEST


def variance_loss(length: int, retention: float) -> float:
    """Return the normalized exponential variance lost; infinite where no float holds it."""
    power = length * (1 - retention)
    return exp(power) if power < 700 else inf


@lru_cache(maxsize=4096)
def variance_retention(length: int, accumulator_bits: int, product_bits: int, chunk: int | None = None) -> float:
    """Return the share of a sum's variance that is kept, 0 to 1; the formula stands at the top of this file."""
    if chunk is not None and chunk < length:
        inner = variance_retention(chunk, accumulator_bits, product_bits)
        brought = min(accumulator_bits, product_bits + ceil(log2(chunk)))
        return inner * variance_retention(ceil(length / chunk), accumulator_bits, brought)
    n, m, p = length, accumulator_bits, min(product_bits, accumulator_bits)
    if n < 3:
        return 1.0
    kept = weights = 0.0
    lost = _lost(m, p, p)
    for i, steps in _grouped(2, n):
        weight = steps * _beyond(2.0**m, i) * (1 - _beyond(2.0**m, i - 1))
        kept += weight * max(0.0, i - lost)
        weights += weight
    for j in range(2, p + 1):
        weight = _beyond(2.0 ** (m - p + j - 1), n) * (1 - _beyond(2.0 ** (m - p + j), n))
        kept += weight * max(0.0, n - _lost(m, p, j - 1))
        weights += weight
    weight = 1 - _beyond(2.0 ** (m - p + 1), n)
    return min(1.0, (kept + weight * n) / ((weights + weight) * n))


def _beyond(bound: float, steps: float) -> float:
    """Return the chance that a sum of so many terms lies beyond the bound, either way: 2 Q(bound / sqrt(steps))."""
    return erfc(bound / sqrt(2 * steps))


def _lost(m: int, p: int, stages: int) -> float:
    """Return a(stages): the variance lost on the way through the first stages of partial swamping."""
    return 2.0 ** (m - 3 * p) / 3 * sum(2**i * (2**i - 1) * (2 ** (i + 1) - 1) for i in range(1, stages + 1))


def _grouped(first: int, end: int) -> list[tuple[float, int]]:
    """Return steps from `first` up to `end`, as (middle, number of steps): one by one, then in groups of 0.1 %."""
    groups: list[tuple[float, int]] = [(float(i), 1) for i in range(first, min(end, EXACT_STEPS))]
    start = max(first, EXACT_STEPS)
    while start < end:
        size = min(end - start, max(1, start // 1000))
        groups.append((start + (size - 1) / 2, size))
        start += size
    return groups
