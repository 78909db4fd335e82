"""Casting: every back end equals the definition bit for bit, and the definition says what the contracts say."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hwsim
from hwsim.arithmetic.number import carrier_of
from hwsim.arithmetic.rounding import Rounding
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import cast, random_bits
from hwsim.kernels.numba_cpu import quantize as compiled
from hwsim.kernels.reference.rounding import round_away, round_exact

ROUNDINGS = [
    "nearest_even",
    "nearest_away",
    "toward_zero",
    "up",
    "down",
    "to_odd",
    "stochastic",
    "stochastic4",
    "stochastic32",
]
# One or two of every way that the compiled kernels go: narrow, aligned, float64 work, unsigned, precision 1, fixed.
ELEMENT_FORMATS = [
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float16",
    "bfloat16",
    "float32",
    "float4_e2m1fn",
    "binary8p1se",
    "binary8p3uf",
    "binary16p8se",
    "fixed8.6",
    "ufixed8.7",
    "fixed8.-3",
    "fixed40.20",
    "float8_e8m0fnu",
    "float64",
]
BLOCK_FORMATS = ["mxfp4_e2m1", "mxint8", "mxfp8_e5m2:round_up", "nvfp4", "bfp16x5"]


def hard_values(dtype: type, seed: int = 0) -> np.ndarray:
    """Random bit patterns, everyday numbers, ties, zeros, subnormals, infinities, NaN."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 2**32, 250, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = rng.integers(-300, 300, 150).astype(np.float32) / 64
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-45, 2.0**-127, 3.4e38, -3.4e38]
    edges = [448, 464, 465, 480, 57344, 61440, 65504, 65520, 65519, 240, 248, 1.9921875, 127.5, -128.5, -129]
    x = np.concatenate([patterns, ties, np.array(special + edges + [-e for e in edges], np.float32)])
    if dtype == np.float64:
        wide = rng.integers(0, 2**63, 150, dtype=np.uint64).view(np.float64)
        x = np.concatenate([x.astype(np.float64), wide, [5e-324, -5e-324, 1.7e308]])
    return x.astype(dtype)


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal as bit patterns (so -0 differs from 0), every NaN quiet and positive."""
    integer = np.int32 if a.dtype == np.float32 else np.int64
    return a.view(integer) == b.view(integer)


def run(backend: str, x: np.ndarray, made: Cast, stream: int) -> np.ndarray:
    with hwsim.backend(backend):
        return cast(x, made, stream)


def some(names: list[str], slow: tuple[str, ...]) -> list[object]:
    """Mark the names whose kernels take long to compile the first time; the others stand for them in `make test`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", some(ELEMENT_FORMATS, ("binary8p1se", "binary16p8se", "binary8p3uf", "fixed40.20", "fixed8.-3"))
)
def test_every_backend_equals_the_definition(name: str, dtype: type, backend: str) -> None:
    x = hard_values(dtype)
    for rounding in ROUNDINGS:
        for overflow in ("native", "saturate", "wrap"):
            if overflow == "wrap" and "fixed" not in name:
                continue
            given = np.where(np.isinf(x), 1, x).astype(dtype) if overflow == "wrap" else x
            made = Cast(name, rounding, overflow, nan="zero")
            want, got = run("reference", given, made, 7), run(backend, given, made, 7)
            assert got.dtype == want.dtype == carrier_of(made.format)
            wrong = np.flatnonzero(~same_bits(want, got))
            assert not wrong.size, (str(made), [(given[i], want[i], got[i]) for i in wrong[:5]])


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "rules"),
    [
        ((9, 70), 1, np.float32, ["nearest_even"]),
        pytest.param((9, 70), 1, np.float32, ["down", "to_odd", "stochastic8"], marks=pytest.mark.slow),
        pytest.param((40, 9), 0, np.float32, ["nearest_even", "stochastic8"], marks=pytest.mark.slow),
        pytest.param((2, 33, 4), 1, np.float64, ["nearest_even", "up"], marks=pytest.mark.slow),
    ],
)
def test_every_backend_equals_the_definition_on_blocks(
    name: str, shape: tuple[int, ...], axis: int, dtype: type, rules: list[str], backend: str
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-8, 8, shape))
    rows = np.moveaxis(x, axis, -1)
    rows[..., 0, :] *= 2.0**-140
    rows[..., 1, :] *= 2.0**117
    rows[..., 0, 1:9] = -0.0
    rows[0, ..., 3] = np.nan
    if shape[0] > 2:
        rows[2, ..., 4] = np.inf
        rows[3, :] = 0
        rows[4, :] = 3.4e38
    for rounding in rules:
        for overflow in ("native", "saturate"):
            made = Cast(name, rounding, overflow)
            with hwsim.backend("reference"):
                want = cast(x.astype(dtype), made, 5, axis=axis)
            with hwsim.backend(backend):
                got = cast(x.astype(dtype), made, 5, axis=axis)
            wrong = np.argwhere(~same_bits(want, got))
            first = [(x[tuple(i)], want[tuple(i)], got[tuple(i)]) for i in wrong[:5]]
            assert not len(wrong), (str(made), shape, axis, first)


@pytest.mark.parametrize("rounding", some(ROUNDINGS[:8], tuple(ROUNDINGS[2:6])))
def test_nvfp4_judged_in_float32_equals_the_division(rounding: str) -> None:
    """Exact quotients, ties, zeros, underflow, a tensor scale out of float32 work's range, infinities, short blocks."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((5, 100)) * np.exp2(rng.integers(-30, 6, (5, 100)))).astype(np.float32)
    x[0] = np.round(x[0] * 4) / 4 * 6
    x[1, 20:40] = np.round(rng.standard_normal(20) * 2) / 2
    x[2, 5], x[2, 64:80], x[3, 3], x[3, 90] = 1e-44, -0.0, np.inf, np.nan
    for overflow in ("native", "saturate"):
        for scale in (None, float(np.float32(0.01)), 1.0, 2.0**-70):
            made, answers = Cast("nvfp4", rounding, overflow), []
            for backend in ("reference", "numba"):
                with hwsim.backend(backend):
                    answers.append(cast(x, made, 3, scale))
            assert same_bits(*answers).all(), (str(made), scale)


@pytest.mark.parametrize("rounding", some(ROUNDINGS[:8], ("nearest_even", "stochastic4")))
def test_nvfp4_beside_a_step_equals_the_division(rounding: str) -> None:
    """Quotients a few float32 steps from every value and midpoint of the element format, where an error would show."""
    rng = np.random.default_rng(2)
    steps = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6], np.float32)
    x = rng.choice(steps, (8, 16)) * np.float32(1.7)
    x = (x.view(np.int32) + rng.integers(-12, 13, x.shape) * (x > 0)).astype(np.int32).view(np.float32)
    x *= rng.choice([-1, 1], x.shape).astype(np.float32)
    for scale in (None, float(np.float32(1.7)), float(np.float32(1.7 / 448))):
        made, answers = Cast("nvfp4", rounding), []
        for backend in ("reference", "numba"):
            with hwsim.backend(backend):
                answers.append(cast(x, made, 3, scale))
        assert same_bits(*answers).all(), (str(made), scale)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_blocks_may_be_cast_in_place(name: str) -> None:
    """A strip that is done once more, in float64, must find its input as it was."""
    x = np.concatenate([np.linspace(-3, 3, 500), np.full(12, 1e30)]).astype(np.float32)
    want = hwsim.quantize(x.copy(), name)
    assert hwsim.quantize(x, name, out=x) is x
    assert same_bits(want, x).all()


def test_a_broken_kernel_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: the rule next to the right one differs on these values."""
    x = hard_values(np.float32)
    want = run("reference", x, Cast("float8_e4m3fn"), 0)
    monkeypatch.setattr(compiled.rounding, "mode_number", lambda _: compiled.rounding.NEAREST_AWAY)
    compiled.plan.cache_clear()
    assert not same_bits(want, run("numba", x, Cast("float8_e4m3fn"), 0)).all()
    compiled.plan.cache_clear()


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["float8_e5m2", "e6m9", "bfloat16", "fixed16.8"]),
    st.sampled_from(ROUNDINGS[:6]),
    st.lists(st.floats(width=32), min_size=1, max_size=8),
)
def test_backends_agree_on_any_float(name: str, rounding: str, values: list[float]) -> None:
    x = np.array(values, np.float32)
    made = Cast(name, rounding, nan="zero")
    want = run("reference", x, made, 0)
    assert same_bits(want, run("numba", x, made, 0)).all()
    assert same_bits(want, run("torch", x, made, 0)).all()


def test_double_rounding_is_not_done() -> None:
    """1 - 2**-40 toward zero into bfloat16 is 0.99609375; through float32 it would be 1."""
    x = np.array([1 - 2.0**-40])
    for backend in ("reference", "numba", "torch"):
        assert run(backend, x, Cast("bfloat16", "toward_zero"), 0)[0] == 0.99609375


def test_native_overflow_follows_the_format() -> None:
    def q(value: float, name: str, rounding: str = "nearest_even", overflow: str = "native") -> float:
        return float(hwsim.quantize(np.float32([value]), name, rounding, overflow)[0])

    assert q(1e6, "float8_e5m2") == math.inf and q(-1e6, "float8_e5m2") == -math.inf
    assert q(1e6, "float8_e5m2", "toward_zero") == 57344 and q(1e6, "float8_e5m2", "down") == 57344
    assert q(-1e6, "float8_e5m2", "down") == -math.inf and q(-1e6, "float8_e5m2", "up") == -57344
    assert math.isnan(q(1e6, "float8_e4m3fn")) and math.isnan(q(math.inf, "float8_e4m3fn"))
    assert q(464, "float8_e4m3fn") == 448 and math.isnan(q(465, "float8_e4m3fn"))
    assert q(math.inf, "float8_e4m3fn", overflow="saturate") == 448 and q(1e6, "float4_e2m1fn") == 6
    assert q(300, "int8") == 127 and q(-300, "int8") == -128 and q(300, "int8", overflow="wrap") == 44
    assert math.copysign(1, q(-0.0, "bfloat16")) == -1 and math.copysign(1, q(-0.0, "float8_e4m3fnuz")) == 1


def test_errors_say_what_came_and_what_was_allowed() -> None:
    with pytest.raises(SpecError, match="got NaN, which int8 cannot hold"):
        hwsim.quantize(np.float32([1, np.nan]), "int8")
    for backend in ("reference", "numba", "torch"):
        with hwsim.backend(backend), pytest.raises(SpecError, match=r"got 449.0, expected -448.0 to 448.0|got 1000"):
            hwsim.quantize(np.float32([448, 1000]), "float8_e4m3fn", overflow="error")
        with hwsim.backend(backend):
            kept = hwsim.quantize(np.float32([448, 460]), "float8_e4m3fn", overflow="error")
        assert kept.tolist() == [448, 448]
    with pytest.raises(SpecError, match=r"got shape \(3,\)"):
        hwsim.quantize(np.zeros(4, np.float32), "int8", scale=[1, 2, 3])
    with pytest.raises(SpecError, match="complex"):
        hwsim.quantize(np.zeros(4, np.complex64), "int8")
    with pytest.raises(UnsupportedError, match="finds its own scales"):
        hwsim.quantize(np.zeros(4, np.float32), "mxint8", scale=2.0)
    with pytest.raises(SpecError, match="Did you mean numba"), hwsim.backend("numbas"):
        pass


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_any_shape_and_stride(make) -> None:  # type: ignore[no-untyped-def]
    plain = np.random.default_rng(1).standard_normal((6, 4, 10)).astype(np.float32)
    want = np.asarray(hwsim.quantize(plain, "float8_e5m2", "stochastic", seed=3))
    x = make(plain)
    strided = np.empty((12, 4, 20), np.float32)[::2, :, ::2]
    strided[...] = plain
    assert (np.asarray(hwsim.quantize(make(plain), "float8_e5m2", "stochastic", seed=3)) == want).all()
    for backend in ("reference", "numba", "torch"):
        with hwsim.backend(backend):
            got = hwsim.quantize(strided, "float8_e5m2", "stochastic", seed=3)
            assert (np.asarray(got) == want).all()
            moved = np.ascontiguousarray(plain.transpose(2, 0, 1))
            back = moved.transpose(1, 2, 0) if make is np.asarray else torch.from_numpy(moved).permute(1, 2, 0)
            assert (np.asarray(hwsim.quantize(back, "float8_e5m2", "stochastic", seed=3)) == want).all()
    out = np.empty_like(plain)
    given_out = make(out)
    assert hwsim.quantize(x, "float8_e5m2", "stochastic", seed=3, out=given_out) is given_out
    assert (np.asarray(given_out) == want).all()
    assert hwsim.quantize(make(np.zeros((0, 3), np.float32)), "bfloat16").shape == (0, 3)
    assert float(hwsim.quantize(make(np.array(1.3, np.float32)), "fixed8.1")) == 1.5


def test_scales_per_tensor_axis_and_block() -> None:
    x = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    rows = np.float32([[0.1], [0.2], [0.5], [1.0]])
    blocks = np.float32([[0.1, 0.2], [0.3, 0.4]])
    for backend in ("reference", "numba", "torch"):
        with hwsim.backend(backend):
            for scale in (0.03, rows / 10, blocks / 10, torch.from_numpy(rows)):
                factor = np.asarray(scale, np.float64)
                if factor.shape == (2, 2):
                    factor = factor.repeat(2, 0).repeat(3, 1)
                want = (np.clip(np.rint(x.astype(np.float64) / factor), -128, 127) * factor).astype(np.float32)
                assert (np.asarray(hwsim.quantize(x, "int8", scale=scale)) == want).all()


def test_stochastic_rounding_has_its_exact_probabilities() -> None:
    """For every n up to 10 and fraction, exactly floor(f * 2**n) of the 2**n random words round away from zero."""
    for n in range(1, 11):
        rule = Rounding.parse(f"stochastic{n}")
        words = [r << (32 - n) for r in range(2**n)]
        for f in {Fraction(0), Fraction(1, 3), Fraction(1, 2**n), Fraction(1, 2), 1 - Fraction(1, 2**14)}:
            away = sum(round_away(f, False, False, rule, word) for word in words)
            assert away == math.floor(f * 2**n)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "fixed8.6"])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
def test_compiled_stochastic_rounding_uses_the_word_as_the_definition_does(name: str, dtype: type) -> None:
    """All 2**n random words, through the compiled scalar functions, at fractions that n bits cannot hold."""
    rounding = compiled.rounding
    for n in (1, 5, 10):
        made = Cast(name, f"stochastic{n}")
        way, width = compiled.choose_way(made, dtype == np.float32)
        values = [1.0390625, -1.3, 0.0011, 1.9999, -0.017]
        modes = {6, rounding.short_draw(6, made, width)}  # the long way, and the one that such casts take
        for value, mode in itertools.product(map(dtype, values), sorted(modes)):
            away = 0
            for r in range(2**n):
                word = np.uint32(r << (32 - n))
                work = np.float32(value) if width == 32 else np.float64(value)
                if name.startswith("fixed"):
                    got = rounding.round_fixed(work, mode, rounding.fixed_parameters(made, width), word)
                elif way == compiled.ALIGNED:
                    got = rounding.round_aligned(work, 6, rounding.float_parameters(made, width), word)
                else:
                    p = rounding.float_parameters(made, width)
                    got = rounding.round_float(work, mode, True, p, word)
                want = round_exact(float(value), made, int(word))
                assert got == want
                away += abs(want) > abs(round_exact(float(value), Cast(name, "toward_zero")))
            low = Fraction(abs(round_exact(float(value), Cast(name, "toward_zero"))))
            high = Fraction(abs(round_exact(float(value), Cast(name, "up" if value > 0 else "down"))))
            fraction = (Fraction(abs(float(value))) - low) / (high - low) if high > low else Fraction(0)
            assert away == math.floor(fraction * 2**n)


def test_random_bits_are_fixed_for_ever() -> None:
    """Golden numbers of hwsim-mix-1: a change here changes published results and needs another name."""
    assert random_bits.MIXER == "hwsim-mix-1"
    stream = random_bits.stream(0, "train", "fc1.weight", "grad_weight", "accumulate", 3, 1)
    assert (stream, random_bits.word(stream, 0), random_bits.word(stream, 2**32 + 5, 9)) == GOLDEN
    assert random_bits.stream(0) != random_bits.stream(1) != random_bits.stream(0, step=1)


GOLDEN = (7493851677716031387, 1836026149, 2525838530)


def test_stochastic_rounding_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from hwsim.kernels.numba_cpu import threads

    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    results = []
    for count in (1, 3):
        monkeypatch.setattr(threads, "threads", lambda count=count: count)
        monkeypatch.setattr(compiled, "run_slices", lambda run, size: threads.run_slices(run, size, 1000))
        results.append(hwsim.quantize(x, "float8_e4m3fn", "stochastic", seed=1))
    assert (results[0] == results[1]).all()
    assert (results[0] != hwsim.quantize(x, "float8_e4m3fn", "stochastic", seed=2)).any()
    assert (results[0] != hwsim.quantize(x, "float8_e4m3fn", "stochastic", seed=1, step=1)).any()


def test_streaming_stores_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal(5003).astype(np.float32)
    for made in (Cast("float8_e4m3fn"), Cast("float8_e4m3fn", "stochastic")):
        want = cast(x, made, 9)
        monkeypatch.setattr(compiled, "STREAMING_BYTES", 64)
        for offset in (0, 1, 7):
            out = np.full(6000, np.nan, np.float32)
            cast(x, made, 9, out=out[offset : offset + x.size])
            assert (out[offset : offset + x.size] == want).all()
            assert np.isnan(out[:offset]).all() and np.isnan(out[offset + x.size :]).all()
        monkeypatch.undo()


CHUNK_FORMATS = ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "binary8p3ue", "float4_e2m1fn", "fixed8.6"]


@pytest.mark.parametrize("name", CHUNK_FORMATS)
@pytest.mark.parametrize("rule", ["nearest_even", "toward_zero", "up", "to_odd", "stochastic"])
def test_rare_values_out_of_range_in_a_long_array(name: str, rule: str) -> None:
    """Chunks without such values go a shorter way; a chunk with some is done again, and so are the next ones."""
    rng = np.random.default_rng(0)
    fmt = hwsim.parse_format(name)
    gap = compiled.WARY + 2
    x = (rng.uniform(-1, 1, 5 * gap * compiled.CHUNK + 5) * min(fmt.largest, 1e30)).astype(np.float32)
    for chunk, value in ((1, min(fmt.largest * 1.01, 3.4e38)), (2, 3e38), (gap + 1, -np.inf), (4 * gap, -3e38)):
        x[chunk * compiled.CHUNK + 77] = value
    x[3 * gap * compiled.CHUNK] = np.nan
    x[-1] = np.inf
    made = Cast(name, rule, nan="zero") if not fmt.has_nan else Cast(name, rule)
    with hwsim.backend("torch"):
        want = cast(x, made, 5)
    assert np.array_equal(cast(x, made, 5).view(np.int32), want.view(np.int32))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "fixed8.6", "float16 stochastic", "fixed16.8 wrap"])
def test_in_place_and_overlapping(name: str) -> None:
    x = (np.random.default_rng(0).standard_normal(9001) * 300).astype(np.float32)
    want = cast(x, name, 3)
    for shift in (0, 1, 5):
        room = np.zeros(x.size + shift, np.float32)
        room[: x.size] = x
        cast(room[: x.size], name, 3, out=room[shift:])
        assert np.array_equal(room[shift:], want, equal_nan=True)


def test_overflow_is_an_error_in_place_too() -> None:
    x = np.float32([1, 500, 2])
    with pytest.raises(SpecError, match="got 500"):
        hwsim.quantize(x, "int8", overflow="error", out=x)
    assert x.tolist() == [1, 500, 2]


def test_block_scale_of_mx_and_nvfp4() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 1] = 500.0, 3.0
    codes = hwsim.encode(x, "mxfp8_e4m3")
    assert codes.scales[0, 0] == 127  # 2**(floor(log2 500) - 8) = 1: 500 saturates to 448
    assert hwsim.quantize(x, "mxfp8_e4m3")[0, 0] == 448
    assert hwsim.quantize(x, "mxfp8_e4m3:round_up")[0, 0] == 512
    zero = hwsim.encode(np.zeros((1, 32), np.float32), "mxfp4_e2m1")
    assert zero.scales[0, 0] == 0
    x[0, 5] = np.nan
    assert np.isnan(hwsim.quantize(x, "mxfp8_e4m3")).all()
    y = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    assert hwsim.encode(y, "nvfp4").tensor_scale == np.float32(np.abs(y).max() / (448.0 * 6.0))


@pytest.mark.parametrize("name", [*ELEMENT_FORMATS, *BLOCK_FORMATS])
def test_codes_and_back_is_quantize(name: str) -> None:
    x = np.random.default_rng(4).standard_normal((8, 40)).astype(np.float32)
    x = np.abs(x) if name.startswith(("binary8p3u", "float8_e8m0")) else x
    want = hwsim.quantize(x, name)
    assert np.array_equal(hwsim.decode(hwsim.encode(x, name), name), want)
    if name != "nvfp4":  # its tensor scale is found anew
        assert np.array_equal(hwsim.quantize(want, name), want)


def test_the_documented_tables_are_the_computed_ones() -> None:
    from hwsim.kernels import format_table

    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    begin, end = text.index(format_table.BEGIN), text.index(format_table.END) + len(format_table.END)
    assert text[begin:end] == format_table.section(), "run: python -m hwsim.kernels.format_table docs/formats.md"
