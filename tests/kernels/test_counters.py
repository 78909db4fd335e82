"""Counters: what happened inside the accumulators equals a count by hand on the sampled rows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import hwsim
from hwsim import MacSpec
from hwsim.arithmetic.mac import ProductTable, parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.kernels import matmul
from hwsim.kernels.counters import SAMPLE, Counters
from hwsim.kernels.numba_cpu import matmul_counts
from hwsim.kernels.reference.fused import FLOAT32, addend_format, exponent_of, fused_step, step_positions
from hwsim.kernels.reference.rounding import round_exact


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


def operands(seed, m=20, k=9, n=18):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-4, 5, (m, k)).astype(np.float32), rng.integers(-4, 5, (k, n)).astype(np.float32)
    return a, b * np.exp2(rng.integers(-4, 5, (k, n))).astype(np.float32)


def counted(a, b, mac):
    counters = Counters()
    result = matmul(a, b, mac, counters=counters)
    assert np.array_equal(result, matmul(a, b, mac), equal_nan=True)
    assert counters.rows == -(-len(a) // SAMPLE)
    return counters.swamped, counters.overflowed, counters.terms


def dots(a, b):
    """Yield the exact products of every counted output."""
    for i in range(0, len(a), SAMPLE):
        for j in range(b.shape[1]):
            yield [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[i], b[:, j], strict=True)]


def test_sums_that_cannot_leave_the_range_count_the_same():
    a, b = operands(1, k=12)
    a *= np.exp2(np.arange(12) % 3 * -5).astype(np.float32)
    assert counted(a, b, parse_mac("bfloat16")) == count_by_hand(a, b, parse_mac("bfloat16"))
    assert counted(a, b, parse_mac("bfloat16"))[0] > 0


def test_a_wrong_count_of_the_terms_is_seen(monkeypatch):
    """The deliberate break: zero terms, which change nothing either, counted as terms."""
    a, b = operands(1)
    monkeypatch.setattr(matmul_counts, "terms", lambda a, b: a.size * b.shape[1])
    assert counted(a, b, parse_mac("bfloat16")) != count_by_hand(a, b, parse_mac("bfloat16"))


def test_kahan_sums_are_counted_by_their_running_sum():
    a, b = operands(2)
    mac, expected = parse_mac("e5m2, order=kahan"), [0, 0, 0]
    for products in dots(a, b):
        total = lost = Fraction(0)
        for product in products:
            y = Fraction(round_exact(product - lost, mac.cast))
            new = Fraction(round_exact(total + y, mac.cast))
            lost = Fraction(round_exact(Fraction(round_exact(new - total, mac.cast)) - y, mac.cast))
            expected[0] += product != 0 and new == total
            expected[2] += product != 0
            total = new
    assert counted(a, b, mac) == tuple(expected) and expected[0]


def test_trees_are_counted_by_node():
    a, b = operands(3, k=11)
    mac, expected = parse_mac("e5m2, order=pairwise"), [0, 0, 0]

    def tree(values):
        if len(values) == 1:
            return values[0]
        split = 1 << ((len(values) - 1).bit_length() - 1)
        left, right = tree(values[:split]), tree(values[split:])
        total = Fraction(round_exact(left + right, mac.cast))
        expected[0] += left != 0 and right != 0 and total in (left, right)
        return total

    for products in dots(a, b):
        expected[2] += sum(p != 0 for p in products)
        tree(products)
    assert counted(a, b, mac) == tuple(expected) and expected[0]


@pytest.mark.parametrize(
    "text", ["e5m4, order=fused(4, 4, e5m4)", "e5m4, order=fused(2, 4, e5m4, groups=2, addend=last)"]
)
def test_fused_steps_count_the_products_that_alignment_cuts_away(text):
    a, b = operands(4, k=12)
    mac, expected = parse_mac(text), [0, 0, 0]
    order = mac.order
    span = order.groups * order.terms if order.addend == "last" else a.shape[1]
    for i in range(0, len(a), SAMPLE):
        for j in range(b.shape[1]):
            x, y, total = [float(v) for v in a[i]], [float(v) for v in b[:, j]], 0.0
            for first in range(0, len(x), span):
                total = total if order.addend == "first" else 0.0
                for step in step_positions(min(span, len(x) - first), order):
                    terms = [(x[first + p], y[first + p]) for p in step if x[first + p] and y[first + p]]
                    powers = [exponent_of(v, FLOAT32) + exponent_of(w, FLOAT32) for v, w in terms]
                    top = max(powers + ([exponent_of(total, addend_format(order))] if total else []), default=0)
                    unit = Fraction(2) ** (top - order.fraction_bits)
                    expected[0] += sum(abs(Fraction(v) * Fraction(w)) < unit for v, w in terms)
                    expected[2] += len(terms)
                    values = [(x[first + p], y[first + p]) for p in step]
                    total = fused_step([v for v, _ in values], [w for _, w in values], total, order)
    assert counted(a, b, mac) == tuple(expected) and expected[0]


def test_exact_sums_swamp_nothing_and_overflow_once():
    a, b = operands(5)
    mac = parse_mac("e3m2, order=exact")
    expected = [0, 0, 0]
    for products in dots(a, b):
        expected[1] += abs(round_exact(sum(products), mac.cast)) >= mac.accumulator.largest
        expected[2] += sum(p != 0 for p in products)
    assert counted(a, b, mac) == tuple(expected) and expected[1]


def test_a_table_of_the_true_products_counts_what_exact_products_count():
    fmt = parse_format("int4")
    values = np.array([c - 16 if c > 7 else c for c in range(16)], np.float64)
    table = ProductTable("exact", fmt, fmt, np.outer(values, values).astype("<f8").tobytes())
    a, b = operands(6)
    b = np.clip(np.round(b), -8, 7).astype(np.float32)
    for accumulator, order in (("e5m2", "sequential"), ("e4m3", "chunked(4)")):
        plain = counted(a, b, MacSpec(accumulator, order=order))
        assert counted(a, b, MacSpec(accumulator, product=table, order=order)) == plain and plain[0]
