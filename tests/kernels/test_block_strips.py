"""Block casts beyond one strip: edges of runs of counters, block lengths and formats, results past the caches."""

from __future__ import annotations

import numpy as np
import pytest

import hwsim
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.casts import cast
from hwsim.kernels.numba_cpu import two_level

TWO_LEVEL = [  # one of every kind: each costs seconds of compilation
    ("block(float4_e2m1fn, 12, float8_e4m3fn)", "nearest_even"),
    ("block(float6_e2m3fn, 7, float8_e4m3fn)", "stochastic3"),
    ("block(float8_e4m3fnuz, 24, float8_e5m2)", "down"),
    pytest.param("block(float4_e2m1fn, 32, float8_e4m3fn)", "stochastic", marks=pytest.mark.slow),
    pytest.param("block(float8_e4m3fnuz, 24, float8_e5m2)", "up", marks=pytest.mark.slow),
    pytest.param("block(float6_e2m3fn, 7, float8_e4m3fn)", "to_odd", marks=pytest.mark.slow),
    pytest.param("block(float4_e2m1fn, 12, float8_e4m3fn)", "nearest_away", marks=pytest.mark.slow),
    pytest.param("block(float4_e2m1fn, 32, float8_e4m3fn)", "toward_zero", marks=pytest.mark.slow),
]


def by(backend: str, x: np.ndarray, made: Cast, out: np.ndarray | None = None) -> np.ndarray:
    with hwsim.backend(backend):
        return np.asarray(cast(x, made, 11, out=out)).view(np.int32)


@pytest.mark.parametrize(("name", "rule"), TWO_LEVEL)
def test_two_level_formats_of_every_shape_equal_the_definition(name: str, rule: str) -> None:
    """Block lengths that are no power of two, elements without -0, ReLU's zeros, quotients that are exact."""
    rng = np.random.default_rng(4)
    x = np.maximum(rng.standard_normal((4, 100)), 0).astype(np.float32)
    x[1] = np.round(rng.standard_normal(100) * 2) / 2
    x[2] = -x[2] * np.exp2(rng.integers(-30, 3, 100))
    made = Cast(name, rule)
    want, got = by("reference", x, made), by("numba", x, made)
    assert (want == got).all(), np.argwhere(want != got)[:5]


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4_e2m1", "mxint8", "mxfp8_e4m3"])
@pytest.mark.parametrize("shape", [(1, 70_001), (3, 40_008)])
def test_random_words_beyond_a_run_of_counters(name: str, shape: tuple[int, int]) -> None:
    """The upper bits of a counter change within a row, within a strip, within a block."""
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    made = Cast(name, "stochastic")
    assert (by("torch", x, made) == by("numba", x, made)).all()


@pytest.mark.parametrize("rule", ["nearest_even", "up", "stochastic"])
def test_large_two_level_results_are_the_same_wherever_they_start(rule: str) -> None:
    """Aligned ones go past the caches on some processors; a NaN and doubtful blocks are written once more."""
    x = np.random.default_rng(6).standard_normal((3, 400_000)).astype(np.float32)
    x[1, 5], x[2, 160:480] = np.nan, 1.5
    made, room = Cast("nvfp4", rule), np.empty(x.size + 16, np.float32)
    want = by("torch", x, made)
    for start in (0, 1, 4):
        out = room[start : start + x.size].reshape(x.shape)
        assert (by("numba", x, made, out) == want).all(), start


def test_a_broken_judgement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons above can fail: with a window too far up, exact quotients are taken as they come out."""
    x = np.tile(np.float32([6, 3, 1.5, 0.75, 0.5, 0.25, 2.5, 5]) * np.float32(1.7), 8)[None]
    made = Cast("nvfp4", "up")
    assert (by("reference", x, made) == by("numba", x, made)).all()
    find = two_level.quotient_parameters
    monkeypatch.setattr(two_level, "quotient_parameters", lambda *of: find(*of)._replace(window=np.int32(1 << 24)))
    two_level.plan.cache_clear()
    assert not (by("reference", x, made) == by("numba", x, made)).all()
    two_level.plan.cache_clear()
