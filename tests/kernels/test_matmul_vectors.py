"""The sums that take few instructions: rounded once, directed, stochastic and Kahan, against slow twins."""

from __future__ import annotations

import numpy as np
import pytest

import hwsim
from hwsim import MacSpec
from hwsim.arithmetic.mac import parse_mac
from hwsim.arithmetic.rounding import RoundingMode
from hwsim.kernels import matmul
from hwsim.kernels.numba_cpu import matmul as compiled
from hwsim.kernels.numba_cpu import matmul_plan, matmul_random

EXPLICIT = pytest.mark.skipif(not matmul_plan.EXPLICIT, reason="the kernel needs AVX-512")


@pytest.fixture
def recipes(monkeypatch):
    """Record the recipe of every GEMM that runs."""
    seen, run = [], compiled.run
    monkeypatch.setattr(compiled, "run", lambda chosen, *rest: seen.append(chosen.recipe) or run(chosen, *rest))
    return seen


def to_odd_sum(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a * b + c in float64, rounded to odd (the error of an addition is itself a float64)."""
    product = a.astype(np.float64) * b  # exact: 48 bits
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)
    bits = total.view(np.int64)
    toward = np.where((error > 0) == (total > 0), 1, -1)  # away from or toward zero, as codes go
    even = bits & 1 == 0
    return np.where((error != 0) & even & (total != 0), bits + toward, bits).view(np.float64)


def near_ties(rng: np.random.Generator, count: int, mantissa_bits: int) -> np.ndarray:
    """Return numbers that are values and midpoints of a narrow format, powers of two and what lies below among them."""
    whole = rng.integers(2 << mantissa_bits, 4 << mantissa_bits, count)  # one bit more than the format has
    whole[::7] = 2 << mantissa_bits
    whole[1::7] = (4 << mantissa_bits) - 1
    return whole * np.exp2(rng.integers(-6, 3, count) - mantissa_bits) * rng.choice([-1.0, 1.0], count)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype == np.float32
    wrong = np.argwhere(got.view(np.uint32) != expected.view(np.uint32))
    assert not len(wrong), f"{len(wrong)} differ, first {got[*wrong[0]]!r} not {expected[*wrong[0]]!r}"


def one_step(accumulator: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return 16,000 sums a * b + c beside ties of the accumulator, and what they are rounded once."""
    rng = np.random.default_rng(seed)
    m = hwsim.parse_format(accumulator).mantissa_bits
    a = near_ties(rng, 250, m).astype(np.float32)[:, None]
    b = np.ones((1, 64), np.float32)
    b[0, 20:] = hwsim.quantize(rng.standard_normal(44).astype(np.float32), "bfloat16")
    c = near_ties(rng, a.size * b.size, m).reshape(250, 64)
    c[:, ::2] *= np.exp2(rng.integers(-30, -8, (250, 32)))  # below the last bit of float32, or just above
    c = hwsim.quantize(c.astype(np.float32), accumulator)
    c[:, 40] = -np.float32(a[:, 0] * b[0, 40])  # cancellation
    c = hwsim.quantize(c, accumulator)
    expected = hwsim.quantize(to_odd_sum(a, b, c), accumulator).astype(np.float32)
    return matmul(a, b, accumulator, c), expected


@EXPLICIT
@pytest.mark.parametrize("accumulator", ["bfloat16", "e8m5", "e8m10"])
def test_wide_products_are_rounded_once(accumulator, recipes):
    got, expected = one_step(accumulator)
    assert {r.sums for r in recipes} == {"once"}
    assert_same(got, expected)


def ties_and_what_is_lost(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bfloat16 operands of one term each, many products ties of bfloat16, and start values of every size."""
    rng = np.random.default_rng(seed)
    a = rng.integers(1, 256, (256, 1)) * np.exp2(rng.integers(-4, 5, (256, 1))) * rng.choice([-1.0, 1.0], (256, 1))
    b = rng.integers(1, 256, (1, 256)) * rng.choice([-1.0, 1.0], (1, 256))
    exponents = rng.integers(-60, 20, (256, 256))
    c = rng.integers(128, 256, exponents.shape) * np.exp2(exponents) * rng.choice([-1.0, 1.0], exponents.shape)
    c[:, ::5] = 0
    a, b, c = (x.astype(np.float32) for x in (a, b, c))
    c[:, 1::5] = hwsim.quantize(-a * b[:, 1::5], "bfloat16")  # cancellation
    return a, b, c


def test_products_of_two_values_of_the_accumulator_are_rounded_once(recipes):
    a, b, c = ties_and_what_is_lost()
    got = matmul(a, b, "bfloat16", c)
    assert {r.sums for r in recipes} <= {"once", "residual"}  # by directed rounding, or with what the sum lost
    assert_same(got, hwsim.quantize(to_odd_sum(a, b, c), "bfloat16").astype(np.float32))


def test_a_tie_that_forgets_what_its_sum_lost_is_seen(monkeypatch):
    """The deliberate break of the test above."""
    a, b, c = ties_and_what_is_lost()
    honest = compiled.look_at
    monkeypatch.setattr(compiled, "look_at", lambda x: (honest(x)[0]._replace(precision=4), honest(x)[1]))
    with pytest.raises(AssertionError, match="differ"):
        assert_same(matmul(a, b, "bfloat16", c), hwsim.quantize(to_odd_sum(a, b, c), "bfloat16").astype(np.float32))


@pytest.mark.skipif(not matmul_plan.HALF_CONVERSIONS, reason="the kernel needs conversions to float16")
def test_float16_operands_are_rounded_by_the_conversion(recipes, monkeypatch):
    monkeypatch.setattr(compiled.half_lanes, "available", lambda: False)
    rng = np.random.default_rng(3)
    a, b = (hwsim.quantize(rng.standard_normal((7, 7)).astype(np.float32) * 40, "float16") for _ in range(2))
    a[0], b[:, 0] = 6000, 3000  # overflow
    a[1] = a[1] * 2.0**-21  # subnormal sums
    a[1] = hwsim.quantize(a[1], "float16")
    against_reference(a, b, "float16")
    assert [r.rule for r in recipes] == ["halves"]


@EXPLICIT
def test_a_sum_that_is_rounded_twice_is_seen(monkeypatch, recipes):
    """The deliberate break: let every product pass as narrow enough for a float32 sum that is rounded again."""
    honest = compiled.look_at

    def narrow(operand):
        known, largest = honest(operand)
        return known._replace(precision=4), largest

    monkeypatch.setattr(compiled, "look_at", narrow)
    got, expected = one_step("bfloat16")
    assert {r.sums for r in recipes} == {"near"}
    with pytest.raises(AssertionError, match="differ"):
        assert_same(got, expected)


@EXPLICIT
def test_values_are_looked_at_where_a_format_alone_proves_too_little(recipes):
    rng = np.random.default_rng(2)
    a, b = (hwsim.quantize(rng.standard_normal((64, 64)).astype(np.float32), "bfloat16") for _ in range(2))
    known = (hwsim.parse_format("bfloat16"),) * 2
    expected = matmul(a, b, "bfloat16")
    assert_same(matmul(a, b, "bfloat16", formats=known), expected)
    assert [r.sums for r in recipes] == ["once", "once"]
    b[5, 7] = np.inf  # nothing is lost by the look
    got = matmul(a, b, "bfloat16", formats=known)
    assert np.isinf(got[:, 7]).all()
    assert_same(np.delete(got, 7, 1), np.delete(expected, 7, 1))


def against_reference(a, b, mac, c=None, **options):
    got = matmul(a, b, mac, c, **options)
    with hwsim.backend("reference"):
        assert_same(got, matmul(a, b, mac, c, **options))
    return got


@pytest.mark.parametrize("rounding", [m for m in RoundingMode if m is not RoundingMode.NEAREST_EVEN])
def test_in_range_sums_of_narrow_exponents_are_cut_at_a_fixed_bit(rounding, recipes):
    rng = np.random.default_rng(3)
    a, b = (hwsim.quantize(rng.standard_normal(s).astype(np.float32), "float8_e4m3fn") for s in ((4, 20), (20, 18)))
    a[:, 10:], b[10:] = -a[:, 9::-1], b[9::-1]  # cancellation down to zero
    name = f"{rounding}8" if rounding is RoundingMode.STOCHASTIC else str(rounding)
    for overflow in ("native", "saturate"):
        against_reference(a, b, MacSpec("e5m10", name, overflow), seed=4)
    assert all(r.rule.startswith(f"bits_{rounding}") and r.bits == 32 for r in recipes)
    recipes.clear()
    against_reference(a * np.float32(16), b * np.float32(64), MacSpec("e5m10", name), seed=4)  # may overflow
    against_reference(a * np.float32(2**-9), b * np.float32(2**-9), MacSpec("e5m10", name), seed=4)  # subnormal
    assert not any(r.rule.startswith("bits_") for r in recipes)


@pytest.mark.parametrize("random_bits", ["", "8", "1"])
@pytest.mark.parametrize("n", [16, 64, 80, 30])
def test_random_words_do_not_depend_on_how_they_are_made(random_bits, n, recipes):
    """Columns by 16 and not, first indices that are multiples of 16 and not, beyond 2**16, and chunks."""
    rng = np.random.default_rng(5)
    a, b = (hwsim.quantize(rng.standard_normal(s).astype(np.float32), "float8_e4m3fn") for s in ((5, 7), (7, n)))
    rows = np.array([0, 1, 3, 70_001, 9_000_017])
    places = np.array([0, 2, 3, 70_000, 2**33, 2**34 + 1, 2**40])
    for text in (f"bfloat16 stochastic{random_bits}", f"bfloat16 stochastic{random_bits}, order=chunked(3)"):
        against_reference(a, b, parse_mac(text), seed=6, row_positions=rows, k_positions=places)
    assert {r.rule for r in recipes} <= {"bits_stochastic", "bits_stochastic_low"}


@pytest.mark.parametrize("text", [
    "bfloat16 stochastic, order=kahan", "bfloat16, product=e5m2 stochastic8",
    "e5m3 stochastic4, product=bfloat16 stochastic2",
])  # fmt: skip
def test_every_rounding_of_a_step_draws_its_own_words(text, recipes):
    rng = np.random.default_rng(11)
    a, b = (hwsim.quantize(rng.standard_normal(s).astype(np.float32), "float16") for s in ((5, 11), (11, 16)))
    positions = np.arange(11) * 3
    against_reference(a, b, parse_mac(text), seed=12, k_positions=positions)
    against_reference(a, b[:, :7], parse_mac(text), seed=12)
    assert all(r.random for r in recipes)


def test_a_wrong_random_word_is_seen(monkeypatch):
    """The deliberate break: one bit of the fixed mixer."""
    rng = np.random.default_rng(7)
    a, b = (hwsim.quantize(rng.standard_normal(s).astype(np.float32), "float8_e4m3fn") for s in ((3, 9), (9, 16)))
    monkeypatch.setattr(compiled, "keys_of", lambda stream, places, honest=compiled.keys_of: honest(stream, places) ^ 1)
    with pytest.raises(AssertionError, match="differ"):
        against_reference(a, b, parse_mac("bfloat16 stochastic"), seed=8)
    assert matmul_random.M1 == 0x21F0_AAAD and matmul_random.M2 == 0x735A_2D97


@pytest.mark.parametrize("operands", ["float8_e4m3fn", "bfloat16"])
@pytest.mark.parametrize("accumulator", ["bfloat16", "e8m3"])
def test_kahan_sums_whose_next_term_is_larger_than_the_sum(operands, accumulator, recipes):
    rng = np.random.default_rng(9)
    shapes = (4, 24), (24, 18)
    a, b = (hwsim.quantize((rng.standard_normal(s) * np.exp2(rng.integers(-5, 6, s))).astype(np.float32), operands)
            for s in shapes)  # fmt: skip
    a[:, ::3], b[::3] = 1.0, 1.0
    a[:, 1::3] = -1.0
    c = hwsim.quantize(rng.standard_normal((4, 18)).astype(np.float32), "float8_e4m3fn")
    against_reference(a, b, MacSpec(accumulator, order="kahan"), c)
    against_reference(a, b, MacSpec(accumulator, order="kahan"))
    assert {r.rule for r in recipes} == {"split"}
