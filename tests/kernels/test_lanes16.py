"""GEMMs in lanes of 16 bits (float16, 16-bit integers) equal the reference, and step aside where they must."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import hwsim
from hwsim import MacSpec
from hwsim.arithmetic.mac import parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.kernels import matmul
from hwsim.kernels.counters import Counters
from hwsim.kernels.numba_cpu import half_lanes, int16_lanes, matmul_blas

needs_half = pytest.mark.skipif(not half_lanes.available(), reason="this processor has no float16 arithmetic")
HALVES = [
    "float16", "e5m10 saturate", "float16 toward_zero", "float16 up", "float16 down", "float16 down saturate",
    "float16, product=float16", "float16, product=float16 down", "float16, order=kahan", "float16, order=chunked(5)",
    "float16, order=chunked(4, float32)", "float16 up, order=chunked(4, float16 down)",
]  # fmt: skip
WHOLES = [
    "int16", "int12", "uint16", "uint12", "int16 wrap", "int9 wrap", "uint16 wrap", "fixed16.8", "fixed12.6",
    "ufixed14.7", "int16, order=chunked(5)", "int12, order=chunked(3)", "int13 wrap, order=chunked(4)",
]  # fmt: skip
TOO_LARGE = ("ufixed14.7", "int12, order=chunked(3)")  # products of full-range int8 leave 16 bits there


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare bit patterns."""
    assert got.dtype == expected.dtype == np.float32 and got.shape == expected.shape
    differ = np.argwhere(got.view(np.uint32) != expected.view(np.uint32))
    assert not len(differ), f"{len(differ)} differ, first at {differ[0]}: {got[*differ[0]]} not {expected[*differ[0]]}"


@pytest.fixture
def lanes(monkeypatch) -> Iterator[list[str]]:
    """Record which GEMMs were done in 16-bit lanes."""
    used: list[str] = []
    for module in (half_lanes, int16_lanes):
        honest = module.multiply

        def watched(*arguments, module=module, honest=honest):
            done = honest(*arguments)
            used.extend([module.__name__.rsplit(".", 1)[1]] * done)
            return done

        monkeypatch.setattr(module, "multiply", watched)
    yield used


def reference(a, b, mac, c=None, bias=None):
    with hwsim.backend("reference"):
        return matmul(a, b, mac, c, bias=bias)


def compiled_result(a, b, mac, c=None, bias=None, formats=(None, None)):
    with hwsim.backend("numba"):
        return matmul(a, b, mac, c, bias=bias, formats=formats)


def halves(rng: np.random.Generator, shape: tuple[int, ...], fmt: str, kind: str) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "wide":
        x = x * np.exp2(rng.integers(-14, 12, shape))
    elif kind == "small":
        x = x * np.exp2(rng.integers(-24, -8, shape))
    elif kind == "huge":
        x = x * 2.0**13
    elif kind == "ties":
        x = np.round(x * 4) / 4
    elif kind == "special":
        chosen = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 2.0**-24], shape)
        x = np.where(rng.random(shape) < 0.3, chosen, x)
    return hwsim.quantize(x.astype(np.float32), fmt)


# ---------------------------------------------------------------------------------------------------------- float16
@needs_half
@pytest.mark.parametrize("mac", HALVES)
def test_float16_sums_equal_the_reference(mac, lanes):
    rng = np.random.default_rng(1)
    spec = parse_mac(mac)
    for fmt, kind in (("float16", "wide"), ("float8_e5m2", "special"), ("float16", "small"), ("float16", "huge"),
                      ("float8_e4m3fn", "ties")):  # fmt: skip
        a, b = halves(rng, (13, 11), fmt, kind), halves(rng, (11, 35), fmt, kind)
        c = None if kind in ("wide", "ties") else rng.standard_normal((13, 35)).astype(np.float32)
        assert_same(compiled_result(a, b, spec, c), reference(a, b, spec, c))
        known = (parse_format(fmt), parse_format(fmt))
        assert_same(compiled_result(a, b, spec, c, formats=known), compiled_result(a, b, spec, c))
    assert len(lanes) == 13  # infinities found by looking hide how large the finite values are


@needs_half
def test_every_pair_of_8_bit_operands_joins_a_sum_correctly(lanes):
    """One step from random starts against float64, which holds these sums exactly, and numpy's conversion."""
    rng = np.random.default_rng(2)
    for fmt in ("float8_e4m3fn", "float8_e5m2"):
        values = hwsim.all_values(fmt)
        values = np.asarray(values[np.isfinite(values)], np.float32)
        a, b = values[:, None], values[None, :]
        for _ in range(3):
            c = rng.integers(0, 0x7C00, (len(values), len(values))).astype(np.uint16).view(np.float16)
            c = np.where(rng.random(c.shape) < 0.5, -c, c).astype(np.float64)
            near = -a.astype(np.float64) * b  # so that sums cancel, or nearly
            with np.errstate(over="ignore"):
                c = np.where(rng.random(c.shape) < 0.3, near.astype(np.float16).astype(np.float64), c)
                c = np.where(np.isinf(c), 1.0, c)
                expected = (c + a.astype(np.float64) * b).astype(np.float16).astype(np.float32)
            assert_same(compiled_result(a, b, "float16", c), expected)
    assert lanes


@needs_half
@pytest.mark.parametrize("mac", ["float16", "float16 down", "float16 saturate", "float16, order=kahan"])
def test_zeros_infinities_nan_and_overflow_in_float16(mac, lanes):
    tiny = 2.0**-24
    values = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 65504, -65504, 65472, tiny, -tiny], np.float32)
    a, b = np.repeat(values, len(values))[:, None], np.tile(values, len(values))[:, None]
    pairs, columns = np.concatenate([a, b], 1), np.array([[1.0, 1.0, 0.0, 2.0], [1.0, -1.0, 1.0, 0.5]], np.float32)
    spec, known = parse_mac(mac), (parse_format("float16"), parse_format("float16"))
    expected = reference(pairs, columns, spec)
    assert_same(compiled_result(pairs, columns, spec, formats=known), expected)
    for c in (0.0, -0.0, np.inf, -65504.0, np.nan):
        start = np.full(expected.shape, c)
        assert_same(compiled_result(pairs, columns, spec, start, formats=known), reference(pairs, columns, spec, start))
    assert len(lanes) == 6 and np.isnan(expected).any()


@needs_half
def test_float16_sums_are_rounded_once(lanes):
    """1 + 2**-10 is the next float16 above 1: sums just beside the midpoint, from either side, in every mode."""
    a = np.array([[1 + 2.0**-10, 2.0**-11], [1, 2.0**-11], [1, 2.0**-11], [1, 2.0**-11]], np.float32)
    b = np.array([[1.0, 1.0, 1.0], [1 + 2.0**-10, 1 - 2.0**-10, 1.0]], np.float32)
    for rounding in ("nearest_even", "toward_zero", "up", "down"):
        for sign in (1, -1):
            mac = MacSpec("float16", rounding)
            assert_same(compiled_result(sign * a, b, mac), reference(sign * a, b, mac))
    assert compiled_result(a, b, "float16")[1].tolist() == [1 + 2.0**-10, 1.0, 1.0]
    assert lanes


@needs_half
def test_a_wrong_rounding_in_half_lanes_is_seen(monkeypatch):
    rng = np.random.default_rng(3)
    a, b = halves(rng, (13, 11), "float16", "wide"), halves(rng, (11, 35), "float16", "wide")
    expected = reference(a, b, "float16")
    honest = half_lanes.recipe_of
    monkeypatch.setattr(half_lanes, "recipe_of", lambda _: honest(MacSpec("float16", "toward_zero")))
    with pytest.raises(AssertionError, match="differ"):
        assert_same(compiled_result(a, b, "float16"), expected)


@needs_half
def test_operands_that_float16_does_not_hold_are_left_to_others(lanes):
    for value in (1 + 2.0**-11, 65536.0, 2.0**-25):
        x = np.full((4, 4), value, np.float32)
        assert_same(compiled_result(x, x, "float16"), reference(x, x, "float16"))
    for mac in ("float16 stochastic", "float16 to_odd", "e6m9", "bfloat16", "float16 error"):
        compiled_result(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32), parse_mac(mac))
    assert not lanes


@needs_half
def test_operands_believed_to_fit_would_be_seen(monkeypatch):
    """The deliberate break: conversion rounds what float16 does not hold."""
    x = np.full((4, 4), 1 + 2.0**-11, np.float32)
    expected = reference(x, x, "float16")
    monkeypatch.setattr(half_lanes, "fits", lambda _: True)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(compiled_result(x, x, "float16"), expected)


def test_without_float16_instructions_the_results_are_the_same(monkeypatch, lanes):
    rng = np.random.default_rng(4)
    a, b = halves(rng, (40, 70), "float8_e5m2", "wide"), halves(rng, (70, 90), "float8_e5m2", "wide")
    macs = [parse_mac(m) for m in ("float16", "float16 down", "e5m10 saturate", "float16, order=chunked(16, float32)")]
    fast = [compiled_result(a, b, mac) for mac in macs]
    assert len(lanes) == (4 if half_lanes.available() else 0)
    monkeypatch.setattr(half_lanes, "available", lambda: False)
    lanes.clear()
    for mac, result in zip(macs, fast, strict=True):
        assert_same(compiled_result(a, b, mac), result)
    assert not lanes


# --------------------------------------------------------------------------------------------------------- integers
def wholes(rng: np.random.Generator, shape: tuple[int, ...], largest: int, fraction: int) -> np.ndarray:
    return (rng.integers(-largest, largest, shape) / 2**fraction).astype(np.float32)


@pytest.mark.parametrize("mac", WHOLES)
@pytest.mark.parametrize("largest", [5, 128])
def test_integer_sums_equal_the_reference(mac, largest, lanes):
    rng = np.random.default_rng(5)
    spec = parse_mac(mac)
    assert hasattr(spec.accumulator, "fraction_bits")
    fraction = spec.accumulator.fraction_bits // 2
    a, b = wholes(rng, (13, 21), largest, fraction), wholes(rng, (21, 35), largest, fraction)
    a[0], b[:, 0] = -largest / 2**fraction, -largest / 2**fraction
    c = np.full((13, 35), 3 * spec.accumulator.step)
    assert_same(compiled_result(a, b, spec), reference(a, b, spec))
    assert_same(compiled_result(a, b, spec, c), reference(a, b, spec, c))
    assert len(lanes) == (0 if largest == 128 and mac in TOO_LARGE else 2)


def test_every_pair_of_int8_saturates_correctly(lanes):
    values = np.arange(-128, 128, dtype=np.float32)
    a, b = values[:, None], values[None, :]
    for bits in (16, 12, 9):
        high = 2 ** (bits - 1) - 1
        for c in (0, high, -high - 1, high // 2):
            expected = np.clip(c + a.astype(np.int64) * b.astype(np.int64), -high - 1, high).astype(np.float32)
            assert_same(compiled_result(a, b, f"int{bits}", np.full(expected.shape, float(c))), expected)
    assert len(lanes) == 12


def test_long_integer_sums_equal_a_plain_loop(lanes):
    rng = np.random.default_rng(6)
    a, b = rng.integers(-128, 128, (50, 300)), rng.integers(-128, 128, (300, 70))
    total = np.zeros((50, 70), np.int64)
    for k in range(300):
        total = np.clip(total + a[:, k : k + 1] * b[k], -(2**15), 2**15 - 1)
    got = compiled_result(a.astype(np.float32), b.astype(np.float32), "int16")
    assert_same(got, total.astype(np.float32))
    assert lanes == ["int16_lanes"] and (np.abs(got) >= 2**15 - 1).any()


def test_integers_out_of_reach_are_left_to_others(lanes):
    cases = ((200, 200, "int16"), (0.5, 1, "int16"), (2.0**20, 1, "int16"), (9, 9, "int17"), (3, 3, "int16 error"))
    for a, b, mac in cases:
        x, y = np.full((3, 3), a, np.float32), np.full((3, 3), b, np.float32)
        spec = parse_mac(mac)
        assert_same(compiled_result(x, y, spec), reference(x, y, spec))
    assert not lanes


@pytest.mark.parametrize("wrong", [("whole wrapped", 0), ("whole saturated", 1), ("whole clamped", 0)])
def test_a_wrong_integer_step_is_seen(monkeypatch, wrong):
    a, b = np.full((13, 9), -128.0, np.float32), np.full((9, 35), 127.0, np.float32)
    expected = reference(a, b, "int16")
    monkeypatch.setattr(int16_lanes, "_step", lambda *_: wrong)
    with pytest.raises(AssertionError, match="differ"):
        assert_same(compiled_result(a, b, "int16"), expected)


# ----------------------------------------------------------------------------------- shapes, strides, batches, threads
MACS = [pytest.param("float16", marks=needs_half), "int16"]
SHAPES = [
    (0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (4, 3, 64), (5, 2, 65), (29, 3, 130), (13, 33, 32), (12, 70, 33),
    (2, 64, 96),
]  # fmt: skip


@pytest.mark.parametrize("mac", MACS)
def test_degenerate_and_odd_shapes(mac):
    rng = np.random.default_rng(7)
    for m, k, n in SHAPES:
        a, b = wholes(rng, (m, k), 90, 0), wholes(rng, (k, n), 90, 0)
        assert_same(compiled_result(a, b, mac), reference(a, b, mac))
        c = wholes(rng, (m, n), 90, 0)
        bias = c[0] if m else None
        assert_same(compiled_result(a, b, mac, c, bias), reference(a, b, mac, c, bias))


@pytest.mark.parametrize("mac", MACS)
def test_views_batches_and_threads(mac, lanes, monkeypatch):
    rng = np.random.default_rng(8)
    a, b = wholes(rng, (30, 40), 90, 0), wholes(rng, (40, 90), 90, 0)
    expected = reference(a[::2, ::-3][:, :12].copy(), b[:36:3, 5:80].copy(), mac)
    assert_same(compiled_result(a[::2, ::-3][:, :12], b[:36:3, 5:80], mac), expected)
    whole = compiled_result(a, b, mac)
    for x in (torch.from_numpy(a.T.copy()).T, torch.from_numpy(a)):
        for y in (torch.from_numpy(b.T.copy()).T, torch.from_numpy(b)):
            assert_same(compiled_result(x, y, mac).numpy(), whole)
    batch = compiled_result(np.stack([a, -a]), b, mac)
    assert_same(batch, np.stack([whole, compiled_result(-a, b, mac)]))
    batch = compiled_result(np.stack([a, -a])[:, None], np.stack([b, -b]), mac)
    assert_same(batch[1, 1], whole)
    monkeypatch.setattr("hwsim.kernels.numba_cpu.driver16.threads", lambda: 3)
    monkeypatch.setattr("hwsim.kernels.numba_cpu.matrix.THREADED_WORK", 1)
    assert_same(compiled_result(a, b, mac), whole)
    assert len(lanes) == 13


def test_counts_are_those_of_the_kernels_that_count(monkeypatch):
    rng = np.random.default_rng(9)
    a, b = wholes(rng, (33, 40), 90, 0), wholes(rng, (40, 50), 90, 0)
    found = []
    for _ in range(2):
        for mac in ("float16", "int16"):
            counters = Counters()
            matmul(a, b, mac, counters=counters)
            found.append(counters)
        monkeypatch.setattr(half_lanes, "multiply", lambda *_: False)
        monkeypatch.setattr(int16_lanes, "multiply", lambda *_: False)
    assert found[:2] == found[2:] and found[0].terms > 0


@needs_half
def test_convolution_patches_go_through_the_lanes(lanes):
    rng = np.random.default_rng(10)
    x, w = torch.from_numpy(wholes(rng, (2, 3, 9, 9), 90, 0)), torch.from_numpy(wholes(rng, (4, 3, 3, 3), 90, 0))
    from hwsim.kernels.convolution import conv_output

    for mac in ("float16", "int16"):
        with hwsim.backend("numba"):
            got = conv_output(x, w, parse_mac(mac), stride=1, padding=1)
        with hwsim.backend("reference"):
            expected = conv_output(x, w, parse_mac(mac), stride=1, padding=1)
        assert_same(got.numpy(), expected.numpy())
    assert set(lanes) == {"half_lanes", "int16_lanes"}


def test_a_large_integer_product_takes_the_shortcut_only_where_it_may(lanes):
    """The bound of `matmul_blas` comes first; what it does not prove is done step by step."""
    rng = np.random.default_rng(11)
    a, b = wholes(rng, (64, 128), 128, 0), wholes(rng, (128, 64), 128, 0)
    matmul(a, b, "int16")
    assert lanes == ["int16_lanes"]
    assert a.shape[0] * a.shape[1] * b.shape[1] >= matmul_blas.SMALLEST_WORK
    for mac in ("int24", "int16 wrap", "fixed16.0 wrap"):
        assert_same(
            matmul(a, b, mac), (a.astype(np.float64) @ b).astype(np.float32) if mac == "int24" else wrapped(a @ b)
        )
    assert lanes == ["int16_lanes"]


def wrapped(x: np.ndarray) -> np.ndarray:
    return ((x + 2.0**15) % 2.0**16 - 2.0**15).astype(np.float32)
