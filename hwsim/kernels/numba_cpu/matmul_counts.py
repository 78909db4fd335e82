"""Counters (definitions A15): every 16th row is summed a second time, by kernels that count.

Running sums count in the lanes; where no sum can leave the range, it is enough to count the sums that did not change,
and to take away the zero terms, which are known from the operands alone. Trees count at their nodes, fused steps count
the products that alignment cuts to 0; an exact sum swamps nothing.
"""

from __future__ import annotations

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.errors import UnsupportedError
from hwsim.kernels.counters import SAMPLE, Counters
from hwsim.kernels.reference.matmul import result_cast

SWAMPED, OVERFLOWED, TERMS = range(3)  # places in an array of totals


def terms(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many products of a (m x k) and b (k x n), both finite, are not 0."""
    number = np.float32 if a.size < 1 << 24 else np.float64  # so that every sum is exact
    left = np.count_nonzero(a, 0).astype(number)
    return round(float((left @ (b != 0).astype(number)).sum(dtype=np.float64)))


def add(counters: Counters, rows: int, totals: np.ndarray, mac: MacSpec) -> None:
    """Add the totals of one GEMM."""
    counters.add(rows, totals[SWAMPED], totals[OVERFLOWED], totals[TERMS], mac.rounding.stochastic)


def exact(a: np.ndarray, b: np.ndarray, mac: MacSpec, out: np.ndarray, counters: Counters) -> None:
    """Count an exact sum: it loses no term, and overflows at most once."""
    if mac.product != "exact":
        raise UnsupportedError(f"counters: got {mac}, whose rounded products are not counted")
    some, fmt = out[::SAMPLE], result_cast(mac).format
    inside = (some > fmt.lowest) & (some < fmt.largest)  # type: ignore[union-attr]
    totals = np.array([0, some.size - np.count_nonzero(inside), terms(a[::SAMPLE], b)], np.float64)
    add(counters, len(some), totals, mac)
