"""Counters: what happened inside the accumulators equals a count by hand on the sampled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hwsim
from hwsim.arithmetic.mac import parse_mac
from hwsim.errors import UnsupportedError
from hwsim.kernels import matmul
from hwsim.kernels.counters import SAMPLE, Counters


def count_by_hand(a, b, mac, chunk=None):
    """Sum with the library one term at a time, and look at what each term did."""
    swamped = overflowed = terms = 0
    largest, lowest = mac.accumulator.largest, mac.accumulator.lowest
    for i in range(0, a.shape[0], SAMPLE):
        for j in range(b.shape[1]):
            total = 0.0
            for k in range(a.shape[1]):
                if chunk and k % chunk == 0:
                    total = 0.0
                term = float(a[i, k]) * float(b[k, j])
                with hwsim.backend("reference"):
                    new = float(matmul(a[i : i + 1, k : k + 1], b[k : k + 1, j : j + 1], parse_mac(str(mac.cast)),
                                       np.full((1, 1), total))[0, 0])  # fmt: skip
                if math.isfinite(term) and term != 0:
                    terms += 1
                    edge = not lowest < new < largest
                    swamped += math.isfinite(total) and not edge and new == total
                    overflowed += math.isfinite(total) and edge
                total = new
    return swamped, overflowed, terms


@pytest.mark.parametrize("text", ["e5m2", "e3m2 saturate", "int16", "e4m3 toward_zero", "e5m2, order=chunked(4)"])
def test_counts_equal_a_count_by_hand(text):
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (20, 9)).astype(np.float32), rng.integers(-4, 5, (9, 18)).astype(np.float32)
    mac, counters = parse_mac(text), Counters()
    result = matmul(a, b, mac, counters=counters)
    assert np.array_equal(result, matmul(a, b, mac))
    assert counters.rows == 2
    expected = count_by_hand(a, b, mac, 4 if "chunked" in text else None)
    assert (counters.swamped, counters.overflowed, counters.terms) == expected
    assert counters.terms and (counters.swamped or text == "int16")


def test_stochastic_sums_are_counted_apart():
    a, b = np.full((1, 40), 1.0, np.float32), np.full((40, 3), 1.0, np.float32)
    counters = Counters()
    matmul(a, b, "e5m2 stochastic", counters=counters)
    assert counters.swamped == 0 and counters.swamped_stochastic > 0 and counters.terms == 120
    plain = Counters()
    matmul(a, b, "e5m2", counters=plain)
    assert plain.swamped == 3 * 32 and plain.swamped_share == 0.8  # 8 is where 1 is half a step


def test_orders_without_a_running_sum_are_refused():
    with pytest.raises(UnsupportedError, match="pairwise"):
        matmul(np.ones((1, 2)), np.ones((2, 1)), "e5m2, order=pairwise", counters=Counters())
