"""Order pairwise by vectors: bit for bit the balanced tree of the definition, whatever its length and its zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hwsim
from hwsim import MacSpec
from hwsim.arithmetic.mac import parse_mac
from hwsim.kernels import matmul
from hwsim.kernels.numba_cpu import matmul as compiled
from hwsim.kernels.numba_cpu import matmul_tree


@pytest.fixture
def rules(monkeypatch) -> list[str]:
    """Record the rule of every GEMM that a compiled recipe did."""
    seen, run = [], compiled.run
    monkeypatch.setattr(compiled, "run", lambda chosen, *rest: seen.append(chosen.recipe.rule) or run(chosen, *rest))
    return seen


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    kind = np.uint32 if got.dtype == np.float32 else np.uint64
    assert got.dtype == expected.dtype and got.shape == expected.shape
    differ = np.argwhere(got.view(kind) != expected.view(kind))
    assert not len(differ), f"{len(differ)} differ, first {got[*differ[0]]!r} not {expected[*differ[0]]!r}"


def compare(a, b, mac, c=None) -> np.ndarray:
    mac = mac if isinstance(mac, MacSpec) else parse_mac(mac)
    got = matmul(a, b, mac, c)
    with hwsim.backend("reference"):
        assert_same(got, matmul(a, b, mac, c))
    return got


def tree(products: np.ndarray, accumulator: str) -> np.ndarray:
    """Sum along the first axis in float64, which holds these products and sums, rounding by the library's casts."""
    if len(products) == 1:
        return products[0]
    split = 1 << ((len(products) - 1).bit_length() - 1)
    total = tree(products[:split], accumulator) + tree(products[split:], accumulator)
    return np.asarray(hwsim.quantize(total, accumulator), np.float64)


def operand(rng: np.random.Generator, shape: tuple[int, int], fmt: str, kind: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "ties":
        x = np.round(x * 4) / 4
    elif kind == "zeros":
        x = np.where(rng.random(shape) < 0.7, np.copysign(0.0, x), x)
    elif kind == "wide":
        x = x * np.exp2(rng.integers(-20, 12, shape))
    return np.asarray(hwsim.quantize(x.astype(np.float32), fmt, overflow="saturate"))


@pytest.mark.parametrize("accumulator", ["bfloat16", "e6m9"])
def test_trees_of_every_length_equal_a_plain_recursion(accumulator, rules):
    rng = np.random.default_rng(1)
    for k in [*range(2, 36), 63, 64, 65, 255, 256, 257, 1000]:
        a, b = operand(rng, (3, k), "float8_e4m3fn", "ties"), operand(rng, (k, 18), "float8_e4m3fn", "ties")
        expected = [tree((a[i].astype(np.float64)[:, None] * b), accumulator) for i in range(3)]
        got = matmul(a, b, MacSpec(accumulator, order="pairwise"))
        assert np.array_equal(got, np.array(expected))
    assert set(rules) == {"split"}


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_trees_equal_the_reference(data):
    compare_a_random_case(data)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_trees_equal_the_reference_at_length(data):
    compare_a_random_case(data)


def compare_a_random_case(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    accumulator = data.draw(st.sampled_from(["bfloat16", "float16", "float32", "e5m2", "float8_e4m3fn", "fixed24.12"]))
    rounding = data.draw(st.sampled_from(["nearest_even", "toward_zero", "down", "to_odd"]))
    product = data.draw(st.sampled_from(["exact", "exact", "bfloat16"]))
    fmt = data.draw(st.sampled_from(["float8_e4m3fn", "bfloat16", "float32"]))
    kind = data.draw(st.sampled_from(["normal", "ties", "zeros", "wide"]))
    m, n = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 16, 17, 33]))
    k = data.draw(st.sampled_from([0, 1, 2, 3, 7, 8, 9, 24, 31]))
    a, b = operand(rng, (m, k), fmt, kind), operand(rng, (k, n), fmt, kind)
    c = operand(rng, (m, n), "float32", kind) if data.draw(st.booleans()) else None
    compare(a, b, MacSpec(accumulator, rounding, "native", product, "pairwise"), c)


def test_the_sign_of_a_zero_sum_is_kept(rules):
    for first in (-0.0, 0.0, 1.0):
        a = np.full((2, 9), -0.0, np.float32)
        a[1, 4] = first
        b = np.ones((9, 17), np.float32)
        b[:, 3], b[5, 6] = -1, -1
        for c in (None, np.full((2, 17), -0.0), np.zeros((2, 17))):
            got = compare(a, b, "bfloat16, order=pairwise", c)
            compare(a, b, "bfloat16 down, order=pairwise", c)
            compare(a, b, "int16, order=pairwise", c)
        assert not np.signbit(got[0]).any()
    cancelling = np.array([[1.0, -1.0, 0.0, -0.0]], np.float32)
    assert not np.signbit(compare(cancelling, np.ones((4, 2), np.float32), "bfloat16, order=pairwise")).any()
    assert "split" in rules


def test_zeros_without_their_sign_are_seen(monkeypatch):
    """The deliberate break of the test above."""
    a, b = np.full((2, 9), -0.0, np.float32), np.ones((9, 17), np.float32)
    monkeypatch.setattr(matmul_tree, "restore_zeros", lambda *_: None)
    with pytest.raises(AssertionError, match="differ"):
        compare(a, b, "bfloat16, order=pairwise")


def test_another_order_is_seen():
    """The deliberate break: the same products one position later make another tree."""
    rng = np.random.default_rng(3)
    a, b = operand(rng, (4, 21), "bfloat16", "wide"), operand(rng, (21, 33), "bfloat16", "wide")
    expected = matmul(a, b, "e6m5, order=pairwise")
    with pytest.raises(AssertionError, match="differ"):
        assert_same(matmul(np.roll(a, 1, 1), np.roll(b, 1, 0), "e6m5, order=pairwise"), expected)


def test_infinities_overflow_and_nan():
    values = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 65504.0], np.float32)
    a = np.stack([np.repeat(values, 10), np.tile(values, 10), np.ones(100, np.float32)], 1)
    b = np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0], [0.0, 1.0, -1.0]], np.float32)
    for mac in ("bfloat16, order=pairwise", "float16 saturate, order=pairwise"):
        assert np.isnan(compare(a, b, mac)).any()


def test_views_and_threads(monkeypatch):
    rng = np.random.default_rng(4)
    a, b = operand(rng, (30, 40), "bfloat16", "normal"), operand(rng, (40, 90), "bfloat16", "normal")
    whole = matmul(a, b, "bfloat16, order=pairwise")
    assert_same(matmul(np.asfortranarray(a), np.asfortranarray(b), "bfloat16, order=pairwise"), whole)
    assert_same(matmul(a[::2], b[:, 5:80], "bfloat16, order=pairwise"), whole[::2, 5:80])
    monkeypatch.setattr(compiled, "threads", lambda: 3)
    monkeypatch.setattr("hwsim.kernels.numba_cpu.matrix.THREADED_WORK", 1)
    assert_same(matmul(a, b, "bfloat16, order=pairwise"), whole)
