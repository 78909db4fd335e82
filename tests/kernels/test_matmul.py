"""Every accumulator: the compiled kernels equal the reference bit for bit, and the reference means what it says."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hwsim
from hwsim import MacSpec
from hwsim.arithmetic.mac import ProductTable, parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import matmul
from hwsim.kernels.numba_cpu import matmul as compiled
from hwsim.kernels.numba_cpu import matmul_blas, matmul_plan, matrix, threads

FLOATS = ["bfloat16", "float16", "float32", "tf32", "e6m9", "e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "e4m3"]
FIXED = ["int16", "fixed16.8", "fixed24.12", "fixed48.20", "ufixed16.8", "fixed12.14"]
ROUNDINGS = ["nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd", "stochastic", "stochastic4"]
ORDERS = ["sequential", "chunked(5)", "chunked(4, float32)", "kahan", "pairwise", "exact"]
PRODUCTS = ["exact", "bfloat16", "float8_e4m3fn saturate", "fixed20.10"]


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """The one comparison of this file: bit patterns, so that -0 differs from 0 and NaN is canonical."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    differ = np.argwhere(bits(got) != bits(expected))
    assert not len(differ), f"{len(differ)} differ, first at {differ[0]}: {got[*differ[0]]} not {expected[*differ[0]]}"


def both(a, b, mac, c=None, bias=None, **options):
    """Return the results of numba (None where it has no kernel) and of the reference."""
    try:
        with hwsim.backend("numba"):
            got = matmul(a, b, mac, c, bias=bias, **options)
    except UnsupportedError:
        got = None
    with hwsim.backend("reference"):
        return got, matmul(a, b, mac, c, bias=bias, **options)


def operand(rng: np.random.Generator, shape: tuple[int, int], fmt: str, kind: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "wide":
        x = x * np.exp2(rng.integers(-40, 20, shape))
    elif kind == "small":
        x = x * np.exp2(rng.integers(-20, -5, shape))
    elif kind == "ties":
        x = np.round(x * 4) / 4
    elif kind == "zeros":
        x = np.where(rng.random(shape) < 0.6, np.copysign(0.0, x), x)
    return hwsim.quantize(x.astype(np.float32), fmt, overflow="saturate")


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_compiled_sums_equal_the_reference(data):
    compare_a_random_case(data)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_compiled_sums_equal_the_reference_at_length(data):
    compare_a_random_case(data)


def compare_a_random_case(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    accumulator = data.draw(st.sampled_from(FLOATS + FIXED))
    overflow = data.draw(st.sampled_from(["native", "saturate", "wrap"][: 3 if accumulator in FIXED else 2]))
    rounding, product = data.draw(st.sampled_from(ROUNDINGS)), data.draw(st.sampled_from(PRODUCTS))
    mac = MacSpec(accumulator, rounding, overflow, product, data.draw(st.sampled_from(ORDERS)))
    fmt, kind = data.draw(st.sampled_from([
        ("float8_e4m3fn", "normal"), ("bfloat16", "wide"), ("float32", "small"), ("float16", "ties"),
        ("bfloat16", "zeros"),
    ]))  # fmt: skip
    m, k, n = (data.draw(st.sampled_from(sizes)) for sizes in ([1, 5, 9], [0, 1, 7, 13], [1, 3, 18, 66]))
    if m * k * n > 1500:
        n = 18
    a, b = operand(rng, (m, k), fmt, kind), operand(rng, (k, n), fmt, kind)
    c = operand(rng, (m, n), "float8_e4m3fn", kind) if data.draw(st.booleans()) else None
    got, expected = both(a, b, mac, c, seed=seed)
    if got is not None:
        assert_same(got, expected)


# --------------------------------------------------------------------------- double rounding: the constructed traps
TRAPS = [
    # accumulator, c, a, b, right answer, what two roundings give
    ("bfloat16", 2.0**-30, 144 / 128, 232 / 256, 1.0234375, 1.015625),
    ("bfloat16", 1 + 2.0**-7, 255 / 256, 2.0**-8 * 257 / 256, 1 + 2.0**-7, 1 + 2.0**-6),
    ("float16", 2.0**-24, 1 + 3 * 2.0**-10, 1 - 2.0**-11, None, None),
]


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd"])
@pytest.mark.parametrize("accumulator", ["bfloat16", "float16", "e6m9", "float32"])
def test_sums_just_beside_a_midpoint_are_rounded_once(accumulator, rounding):
    fmt = parse_format(accumulator)
    ulp = 2.0**-fmt.mantissa_bits
    tiny = 2.0**-20 if accumulator == "float16" else 2.0**-60
    a, c = [], []
    for middle in (1 + ulp / 2, 1 + 3 * ulp / 2, 1.0, 1 + ulp):  # midpoints and values
        for start in (tiny, -tiny):
            a += [middle, -middle]
            c += [start, -start]
    a, c = np.array(a, np.float32).reshape(-1, 1), np.array(c).reshape(-1, 1)
    got, expected = both(a, np.ones((1, 1), np.float32), MacSpec(accumulator, rounding), c)
    assert got is not None
    assert_same(got, expected)


def test_the_known_double_rounding_cases_come_out_right():
    for accumulator, c, x, y, right, _ in TRAPS:
        if right is not None:
            a, b = np.full((1, 1), x, np.float32), np.full((1, 1), y, np.float32)
            got, expected = both(a, b, accumulator, np.full((1, 1), c))
            assert got[0, 0] == expected[0, 0] == right


def test_toward_zero_keeps_what_lies_below_the_sum():
    """1 - 2**-40 is below 1: toward zero it is the bfloat16 below 1."""
    a, b = np.array([[1.0, -(2.0**-20)]], np.float32), np.array([[1.0], [2.0**-20]], np.float32)
    got, expected = both(a, b, MacSpec("bfloat16", "toward_zero"))
    assert got[0, 0] == expected[0, 0] == 0.99609375


def test_a_plan_that_rounds_twice_turns_the_trap_red(monkeypatch):
    """The deliberate break: let every product pass as narrow enough for plain float32 sums."""
    x, y, c = np.full((1, 1), 144 / 128, np.float32), np.full((1, 1), 232 / 256, np.float32), np.full((1, 1), 2.0**-30)
    honest = compiled.look_at

    def narrow(operand):
        known, largest = honest(operand)
        return known._replace(precision=4), largest

    monkeypatch.setattr(compiled, "look_at", narrow)
    got, expected = both(x, y, "bfloat16", c)
    with pytest.raises(AssertionError, match="1 differ"):
        assert_same(got, expected)


@pytest.mark.parametrize("wrong", ["nearest_away", "toward_zero", "to_odd"])
def test_the_comparison_sees_a_wrong_rounding(wrong):
    rng = np.random.default_rng(0)
    a, b = operand(rng, (6, 20), "float8_e4m3fn", "ties"), operand(rng, (20, 20), "float8_e4m3fn", "ties")
    with hwsim.backend("numba"):
        got = matmul(a, b, MacSpec("e5m3", wrong))
    with hwsim.backend("reference"):
        expected = matmul(a, b, "e5m3")
    with pytest.raises(AssertionError, match="differ"):
        assert_same(got, expected)


# --------------------------------------------------------------------------------------- special values and shapes
@pytest.mark.parametrize("mac", [
    "bfloat16", "float16", "float32", "float8_e4m3fn", "e5m10 saturate", "float32 down", "bfloat16, order=chunked(2)",
    "bfloat16, order=pairwise", "float16, order=kahan",
])  # fmt: skip
def test_infinities_nan_and_overflow_follow_the_reference(mac):
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, -1e-45, 65504.0], np.float32)
    a, b = np.repeat(values, len(values))[:, None], np.tile(values, len(values))[:, None]
    pairs = np.concatenate([a, b], 1)  # rows (x, y)
    got, expected = both(pairs, np.array([[1.0, 1.0, 0.0], [1.0, -1.0, 1.0]], np.float32), mac)
    assert got is not None
    assert_same(got, expected)
    assert np.isnan(expected).any()


def test_unusual_nan_patterns_come_out_canonical():
    a = np.array([0x7FFF_FFFF, 0xFFC0_0001, 0x7F80_0001], np.uint32).view(np.float32).reshape(3, 1)
    for mac in ("bfloat16", "bfloat16 to_odd", "float32", "e5m10"):
        with hwsim.backend("numba"):
            got = matmul(a, np.ones((1, 2), np.float32), mac)
        assert (bits(got) == 0x7FC0_0000).all()


@pytest.mark.parametrize("order", ["sequential", "chunked(4)", "pairwise", "exact", "kahan"])
@pytest.mark.parametrize("rounding", ["nearest_even", "down"])
def test_sums_of_no_products_keep_the_sign_of_c(order, rounding):
    a, b = np.zeros((1, 0), np.float32), np.zeros((0, 2), np.float32)
    mac = MacSpec("bfloat16", rounding, order=order)
    for c in (None, np.array([[0.0, -0.0]], np.float32), np.array([[1.0, -3.0]], np.float32)):
        got, expected = both(a, b, mac, c)
        assert got is not None
        assert_same(got, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (4, 3, 64), (5, 2, 65), (29, 3, 130)])
def test_degenerate_and_odd_shapes(shape):
    m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = operand(rng, (m, k), "bfloat16", "normal"), operand(rng, (k, n), "bfloat16", "normal")
    for mac in ("bfloat16", "e5m3 stochastic", "float32, order=chunked(2)"):
        assert_same(*both(a, b, parse_mac(mac), seed=1))


def test_views_of_any_stride_are_read_in_place():
    rng = np.random.default_rng(2)
    a, b = operand(rng, (30, 40), "bfloat16", "normal"), operand(rng, (40, 90), "bfloat16", "normal")
    expected = matmul(a[::2, ::-3][:, :12].copy(), b[:36:3, 5:80].copy(), "bfloat16")
    assert_same(matmul(a[::2, ::-3][:, :12], b[:36:3, 5:80], "bfloat16"), expected)
    for x in (torch.from_numpy(a.T.copy()).T, torch.from_numpy(a)):
        for y in (torch.from_numpy(b.T.copy()).T, torch.from_numpy(b)):
            assert_same(matmul(x, y, "bfloat16").numpy(), matmul(a, b, "bfloat16"))


def test_batches_broadcast_and_count_their_random_words_row_major():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 1, 3, 5)).astype(np.float32), rng.standard_normal((4, 5, 6)).astype(np.float32)
    got, expected = both(a, b, MacSpec("bfloat16", "stochastic"), seed=5)
    assert got.shape == (2, 4, 3, 6)
    assert_same(got, expected)
    flat = rng.standard_normal((2, 7, 5)).astype(np.float32)
    got, expected = both(flat, b[0], MacSpec("bfloat16", "stochastic"), seed=5)
    assert_same(got, expected)
    assert_same(got.reshape(14, 6), matmul(flat.reshape(14, 5), b[0], MacSpec("bfloat16", "stochastic"), seed=5))


def test_c_and_bias_join_the_sum_in_the_accumulator():
    rng = np.random.default_rng(4)
    a, b = operand(rng, (5, 9), "bfloat16", "normal"), operand(rng, (9, 7), "bfloat16", "normal")
    c, bias = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    orders = ("e5m3, order=chunked(4)", "bfloat16, order=pairwise", "float16, order=exact")
    for mac in ("bfloat16", "bfloat16 stochastic", *orders):
        assert_same(*both(a, b, parse_mac(mac), c, bias, seed=2))
    wide = matmul(a, b, "float64", bias=bias.astype(np.float64))
    assert np.allclose(wide, a.astype(np.float64) @ b + bias)


def test_stochastic_sums_do_not_depend_on_threads_or_compaction(monkeypatch):
    rng = np.random.default_rng(5)
    a, b = operand(rng, (64, 40), "bfloat16", "normal"), operand(rng, (40, 70), "bfloat16", "normal")
    mac = MacSpec("bfloat16", "stochastic")
    one = matmul(a, b, mac, seed=7)
    monkeypatch.setattr(compiled, "threads", lambda: 3)
    monkeypatch.setattr(matrix, "THREADED_WORK", 1)
    assert_same(matmul(a, b, mac, seed=7), one)
    monkeypatch.undo()
    rows, positions = np.array([3, 17, 40]), np.sort(rng.permutation(40)[:25])
    got = matmul(a[rows][:, positions], b[positions], mac, seed=7, k_positions=positions, row_positions=rows)
    with hwsim.backend("reference"):
        expected = matmul(a[rows][:, positions], b[positions], mac, seed=7, k_positions=positions, row_positions=rows)
    assert_same(got, expected)
    zeroed = np.zeros_like(a)
    zeroed[:, positions] = a[:, positions]
    assert_same(got, matmul(zeroed, b, mac, seed=7)[rows])  # zeros draw words but never round


def test_known_formats_give_the_same_as_looking_at_the_values():
    rng = np.random.default_rng(6)
    for fmt in ("float8_e4m3fn", "float8_e5m2", "int8", "bfloat16"):
        a, b = operand(rng, (6, 30), fmt, "normal"), operand(rng, (30, 70), fmt, "normal")
        if fmt == "float8_e5m2":
            a[0, 0], b[3, 3] = np.inf, np.nan
        known = (parse_format(fmt), parse_format(fmt))
        for mac in ("bfloat16", "e5m10", "fixed48.16", "int16"):
            if fmt == "float8_e5m2" and mac in ("fixed48.16", "int16"):
                with pytest.raises(SpecError, match="NaN"):
                    matmul(a, b, mac, formats=known)
                continue
            assert_same(matmul(a, b, mac, formats=known), matmul(a, b, mac))


# ------------------------------------------------------------------------------------------------ fixed point, tables
def test_saturating_and_wrapping_integers_by_hand():
    a, b = np.full((1, 3), 100.0, np.float32), np.full((3, 1), 100.0, np.float32)
    assert matmul(a, b, "int16")[0, 0] == 30000
    a = np.array([[127.0, 127.0, 127.0, -128.0]], np.float32)
    b = np.array([[127.0], [127.0], [127.0], [127.0]], np.float32)
    assert matmul(a, b, "int16")[0, 0] == 32767 - 128 * 127  # saturates at the third product, then comes down
    assert matmul(a, b, "int16 wrap")[0, 0] == (3 * 127 * 127 - 128 * 127 + 2**15) % 2**16 - 2**15
    with pytest.raises(SpecError, match="32767"):
        matmul(a, b, "int16 error")


@pytest.mark.parametrize("accumulator", ["int16", "int24", "int32", "int16 wrap", "int24 wrap", "uint16", "int12"])
@pytest.mark.parametrize("largest", [3, 128])
def test_integer_operands_into_integer_accumulators(accumulator, largest):
    rng = np.random.default_rng(7)
    a = rng.integers(-largest, largest, (9, 40)).astype(np.float32)
    b = rng.integers(-largest, largest, (40, 70)).astype(np.float32)
    a[0], b[:, 0] = -largest, -largest
    assert_same(*both(a, b, accumulator))
    known = (parse_format("int8"), parse_format("int8"))
    assert_same(matmul(a, b, accumulator, formats=known), matmul(a, b, accumulator))


def test_products_by_table():
    fmt = parse_format("int4")
    values = np.array([c - 16 if c > 7 else c for c in range(16)], np.float64)
    rng = np.random.default_rng(8)
    products = np.outer(values, values) + rng.integers(-2, 3, (16, 16))
    table = ProductTable("approximate", fmt, fmt, products.astype("<f8").tobytes())
    a, b = rng.integers(-8, 8, (3, 17)).astype(np.float32), rng.integers(-8, 8, (17, 34)).astype(np.float32)
    exact = MacSpec("int16", product=table)
    by_hand = sum(products[int(x) % 16, int(y) % 16] for x, y in zip(a[1], b[:, 2], strict=True))
    assert matmul(a, b, exact)[1, 2] == by_hand
    for accumulator, order in (("int8", "sequential"), ("e5m2", "chunked(4)"), ("e5m3", "pairwise")):
        assert_same(*both(a, b, MacSpec(accumulator, product=table, order=order)))


def test_sums_that_blas_gives_are_those_of_the_exact_kernels(monkeypatch):
    """Large enough for the shortcut: unsaturated, wrapping, and one that saturates and must not take it."""
    rng = np.random.default_rng(14)
    a, b = rng.integers(-128, 128, (40, 256)).astype(np.float32), rng.integers(-128, 128, (256, 512)).astype(np.float32)
    a[0], b[:, 0] = -128, -128
    shortcut = {mac: matmul(a, b, mac) for mac in ("int24", "int32", "int16 wrap", "int16", "fixed40.2")}
    assert matmul_blas.integer_product_works() in (True, False)
    monkeypatch.setattr(matmul_blas, "multiply", lambda *_: False)
    for mac, got in shortcut.items():
        assert_same(got, matmul(a, b, mac))
    monkeypatch.undo()
    monkeypatch.setattr(matmul_blas, "_norm", lambda *_: 0.0)  # the deliberate break: a bound that proves too much
    monkeypatch.setattr(matmul_blas, "_norms", lambda *_: 0.0)
    monkeypatch.setattr(matmul_blas, "largest_norm", lambda *_, **__: 0.0)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(matmul(a, b, "int16"), shortcut["int16"])


@pytest.mark.parametrize("mac", ["int32", "int32 wrap", "int24 wrap", "int16 wrap", "int48", "uint16 wrap"])
def test_long_integer_sums_are_exact_without_products_of_bytes(monkeypatch, mac):
    """float32 products over pieces of k: 3000 terms of 127 * 127 are more than float32 can count."""
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", False)
    rng = np.random.default_rng(15)
    a, b = (rng.integers(-128, 128, shape).astype(np.float32) for shape in ((24, 3000), (3000, 40)))
    a[0], b[:, 0], a[1], b[:, 1] = 127, 127, -128, -128
    a[0, -1] = 126  # an odd sum above 2**25
    a[2:4, ::2] = -0.0
    expected = a.astype(np.int64) @ b.astype(np.int64)
    bits = parse_mac(mac).accumulator.bits
    lowest = 0 if mac.startswith("u") else -(1 << (bits - 1))
    got = matmul(a, b, mac)
    assert np.array_equal(got, (expected - lowest) % (1 << bits) + lowest)
    assert not np.signbit(got[got == 0]).any()


# ------------------------------------------------------------------------------------------------------ known theory
def test_errors_stay_within_the_known_bounds():
    """gamma_k = k u / (1 - k u) for sequential sums, log2(k) for pairwise, 2 u for Kahan (Higham 2002, chapter 4)."""
    rng = np.random.default_rng(9)
    k, u = 100, 2.0**-11
    a, b = operand(rng, (20, k), "float16", "normal"), operand(rng, (k, 20), "float16", "normal")
    exact = matmul(a, b, "float64")
    scale = matmul(np.abs(a), np.abs(b), "float64")
    errors = {}
    for order, steps in (("sequential", k), ("pairwise", math.ceil(math.log2(k)) + 1), ("kahan", 2.5), ("exact", 1)):
        error = np.abs(matmul(a, b, MacSpec("e8m10", order=order)) - exact) / scale
        gamma = steps * u / (1 - steps * u)
        assert error.max() <= gamma
        errors[order] = error.mean()
    assert errors["exact"] <= errors["kahan"] < errors["pairwise"] < errors["sequential"]


@pytest.mark.parametrize("product", ["bfloat16", "float8_e4m3fn saturate", "e5m3 toward_zero"])
def test_rounded_products_are_summed_exactly(product):
    rng = np.random.default_rng(16)
    a, b = (rng.integers(-31, 32, shape).astype(np.float32) / 8 for shape in ((5, 90), (90, 37)))
    a[0], b[:, 0] = -0.0, 1.0
    c = operand(rng, (5, 37), "float8_e4m3fn", "normal")
    mac = MacSpec("e6m5", product=product, order="exact")
    for start in (None, c, np.full_like(c, -0.0)):
        got, expected = both(a, b, mac, start)
        assert got is not None
        assert_same(got, expected)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(matmul(a, b, "e6m5, order=exact"), both(a, b, mac)[1])
    assert both(operand(rng, (2, 9), "float32", "wide"), b[:9], mac)[0] is None  # no bound


def test_the_reference_is_one_rounding_of_the_exact_sum():
    """An independent check of the definition, by Fraction alone."""
    rng = np.random.default_rng(10)
    a, b = rng.standard_normal((1, 6)).astype(np.float32), rng.standard_normal((6, 1)).astype(np.float32)
    with hwsim.backend("reference"):
        got = matmul(a, b, "float32, order=exact")
    exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[0], b[:, 0], strict=True))
    below, above = np.nextafter(got[0, 0], np.float32(-np.inf)), np.nextafter(got[0, 0], np.float32(np.inf))
    assert abs(Fraction(float(got[0, 0])) - exact) <= min(abs(Fraction(float(v)) - exact) for v in (below, above))


def test_chunks_of_the_whole_length_are_the_sequential_sum():
    rng = np.random.default_rng(11)
    a, b = operand(rng, (4, 21), "bfloat16", "normal"), operand(rng, (21, 33), "bfloat16", "normal")
    assert_same(matmul(a, b, "e6m5, order=chunked(21)"), matmul(a, b, "e6m5"))
    with pytest.raises(AssertionError, match="differ"):
        assert_same(matmul(a, b, "e6m5, order=chunked(7)"), matmul(a, b, "e6m5"))


def test_native_order_is_the_machines_float32():
    rng = np.random.default_rng(12)
    a, b = torch.randn(3, 40), torch.randn(40, 5)
    assert torch.equal(matmul(a, b, "float32, order=native"), a @ b)
    assert np.allclose(matmul(a.numpy(), b.numpy(), "float32"), a @ b, atol=1e-5)
    with hwsim.backend("reference"), pytest.raises(UnsupportedError, match="native"):
        matmul(a, b, "float32, order=native")
    del rng


# ------------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(("a", "b", "message"), [
    (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), r"got a of \(2, 3\) and b of \(2, 3\)"),
    (np.zeros((2, 3), np.float32), np.zeros(3, np.float32), r"expected \(..., m, k\)"),
    (np.zeros((2, 2), np.complex64), np.zeros((2, 2), np.float32), "complex64"),
    (np.zeros((2, 1, 2), np.float32), np.zeros((3, 2, 2), np.float32), "do not broadcast"),
])  # fmt: skip
def test_bad_operands_are_named(a, b, message):
    with pytest.raises(SpecError, match=message):
        matmul(a, b, "bfloat16")


def test_out_is_checked_and_filled():
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    out = np.zeros((2, 4), np.float32)
    assert matmul(a, b, "bfloat16", out=out) is out and (out == 3).all()
    with pytest.raises(SpecError, match="got out"):
        matmul(a, b, "bfloat16", out=np.zeros((4, 2), np.float32))


def test_the_processor_is_left_rounding_to_nearest():
    matmul(np.ones((5, 5), np.float32), np.ones((5, 5), np.float32), "bfloat16 down")
    assert 1.0 + 2.0**-53 == 1.0 and -1.0 - 2.0**-53 == -1.0 and 0.1 + 0.2 == 0.30000000000000004


def test_unknown_words_in_a_mac_are_named():
    with pytest.raises(SpecError, match="bfloat17"):
        matmul(np.ones((1, 1)), np.ones((1, 1)), "bfloat17")
    with pytest.raises(SpecError, match="accelerator"):
        matmul(np.ones((1, 1)), np.ones((1, 1)), "float32, order=accelerator")


def test_facts_are_true_of_every_value():
    rng = np.random.default_rng(13)
    for trial in range(40):
        shape = (int(rng.integers(1, 6)), int(rng.integers(1, 40)))
        x = (rng.standard_normal(shape) * np.exp2(rng.integers(-60, 30, shape))).astype(np.float32)
        x = (x.view(np.int32) & np.int32(-(1 << int(rng.integers(0, 24))))).view(np.float32)
        x[rng.random(shape) < 0.3] = 0
        x = x.T if trial % 2 else x
        found = compiled.facts(compiled.matrix(x))
        for value in x[x != 0].ravel():
            number, exponent = math.frexp(abs(float(value)))
            whole = int(number * 2**24)
            last = exponent - 24 + ((whole & -whole).bit_length() - 1)
            assert last >= found.lsb and exponent <= found.top and exponent - last <= found.precision


def test_a_cast_of_every_kind_has_a_parameter_block():
    for text in ("bfloat16", "e5m10 saturate", "fixed24.12 wrap", "float64"):
        cast = Cast.parse(text)
        assert len(matmul_plan.parameter_block(cast, 64)) == matmul_plan.BLOCK
    assert threads.threads() >= 1
