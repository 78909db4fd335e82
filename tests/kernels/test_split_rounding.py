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


def split_by_sums(x: np.ndarray, dropped: int) -> np.ndarray:
    """What the kernel computes where vectors are short."""
    large = (x.view(np.int32) + (dropped << 23)).view(np.float32)
    return large - (large - x)


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


@pytest.mark.parametrize("m", [1, 7, MOST_SPLIT_BITS])
def test_two_sums_round_like_the_splitting(m):
    x = CODES.astype(np.float32)
    assert np.array_equal(split_by_sums(x, 23 - m), split(CODES, 23 - m))
    assert np.array_equal(split_by_sums(-x, 23 - m), -split(CODES, 23 - m))


@pytest.mark.parametrize("m", [1, 7, MOST_SPLIT_BITS])
def test_two_sums_keep_zero_and_every_subnormal_of_the_format(m):
    x = np.arange(0, 1 << 23, 1 << (23 - m), dtype=np.int32).view(np.float32)
    assert np.array_equal(split_by_sums(x, 23 - m), x)
    step = np.float32(2.0 ** (-126 - m))
    between = x + np.float32(0.625) * step  # the deliberate break: finer than the format, which a plan excludes
    assert (split_by_sums(between, 23 - m) != x + step).any()
