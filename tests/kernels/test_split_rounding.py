"""Rounding by the two-operation splitting (`Step._split`): proven for every significand, and where it stops."""

from __future__ import annotations

import numpy as np
import pytest

from hwsim.kernels.numba_cpu.matmul_plan import MOST_SPLIT_BITS

CODES = np.arange(1 << 23, 1 << 24, dtype=np.int64)  # every float32 significand


def split(codes: np.ndarray, dropped: int) -> np.ndarray:
    """What the kernel computes, in float32 with one rounding in each of the two operations."""
    x = codes.astype(np.float32)
    h = x * np.float32(2.0**dropped - 1)
    return (x.astype(np.float64) * 2.0**dropped - h).astype(np.float32)


def nearest_even(codes: np.ndarray, dropped: int) -> np.ndarray:
    low, kept, half = codes & ((1 << dropped) - 1), codes >> dropped, 1 << (dropped - 1)
    return ((kept + ((low > half) | ((low == half) & (kept & 1 == 1)))) << dropped).astype(np.float32)


@pytest.mark.parametrize("m", [1, 7, MOST_SPLIT_BITS])
def test_every_significand_is_rounded_to_nearest_even(m):
    assert np.array_equal(split(CODES, 23 - m), nearest_even(CODES, 23 - m))


def test_one_more_bit_would_be_wrong():
    """The deliberate break: the bound on m is sharp."""
    dropped = 23 - (MOST_SPLIT_BITS + 1)
    assert (split(CODES, dropped) != nearest_even(CODES, dropped)).any()
