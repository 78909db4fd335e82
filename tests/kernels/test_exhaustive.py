"""A sample of the exhaustive comparison (`make exhaustive` does all of it), and proof that it can fail."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def exhaustive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exhaustive", Path(__file__).with_name("exhaustive.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2fnuz", "float4_e2m1fn", "fixed8.6", "binary6p3se"])
def test_every_code_neighbor_and_midpoint(exhaustive: ModuleType, name: str) -> None:
    tally: Counter[str] = Counter()
    exhaustive.check_format(name, tally, ("numba", "torch"), 0.05)
    assert tally["results tried"] > 1000 and tally["Fraction tried"] > 500
    assert exhaustive.mismatches(tally) == 0, tally


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float16", "binary6p1ue", "float8_e8m0fnu", "float8_e4m3b11fnuz"])
def test_every_code_neighbor_and_midpoint_of_larger_formats(exhaustive: ModuleType, name: str) -> None:
    tally: Counter[str] = Counter()
    exhaustive.check_format(name, tally, ("numba", "torch"), 0.005)
    assert exhaustive.mismatches(tally) == 0, tally


def test_probabilities_of_stochastic_rounding(exhaustive: ModuleType) -> None:
    tally: Counter[str] = Counter()
    exhaustive.check_probabilities(tally)
    assert tally["probabilities tried"] >= 100 and tally["probabilities wrong"] == 0


@pytest.mark.parametrize(
    "oracle", ["back ends differ", "Fraction differs", "gfloat differs", "ml_dtypes differs", "MPFR differs"]
)
def test_one_wrong_result_is_counted(exhaustive: ModuleType, oracle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving one result by one float32 step turns every oracle red."""
    right = exhaustive.cast

    def wrong_once(x: np.ndarray, made: object) -> np.ndarray:
        got = np.array(right(x, made))
        if exhaustive.hwsim.kernels.backends.forced() == "numba":
            at = int(np.flatnonzero(got == np.float32(1.5))[0])
            got[at] = np.nextafter(got[at], np.float32(9))
            tried.append(at)
        return got

    tried: list[int] = []
    monkeypatch.setattr(exhaustive, "cast", wrong_once)
    tally: Counter[str] = Counter()
    exhaustive.check_format("float8_e4m3fn", tally, ("numba", "torch"), 1.0)
    assert tried and tally[oracle] > 0


def test_all_formats_are_listed(exhaustive: ModuleType) -> None:
    names = list(dict.fromkeys(exhaustive.all_formats()))
    assert len(names) > 250 and {"float16", "e6m9", "binary8p3ue", "fixed16.19", "float8_e8m0fnu"} <= set(names)


@pytest.fixture(scope="module")
def pairs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exhaustive_pairs", Path(__file__).with_name("exhaustive_pairs.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pair_of_8_bit_codes(pairs: ModuleType) -> None:
    for name, accumulators in pairs.SAMPLE:
        tally: Counter[str] = Counter()
        pairs.check_pairs(name, accumulators, tally, ("nearest_even",))
        assert tally["sums tried"] > 200_000 and tally["products tried"] > 60_000
        assert pairs.codes.mismatches(tally) == 0, tally


@pytest.mark.parametrize("kind", ["products", "sums"])
def test_one_wrong_pair_is_counted(pairs: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving one result of the products, or of the sums, by one step is noticed, and by that count alone."""
    right = pairs.hwsim.matmul

    def wrong_once(a: np.ndarray, b: np.ndarray, mac: object, c: np.ndarray | None = None) -> np.ndarray:
        got = np.array(right(a, b, mac, c=c))
        if (c is None) == (kind == "products") and got.size > 1:
            got[100, 100] = np.nextafter(got[100, 100], np.float32(1e9))
        return got

    monkeypatch.setattr(pairs.hwsim, "matmul", wrong_once)
    tally: Counter[str] = Counter()
    pairs.check_pairs("int8", ["float16"], tally, ("nearest_even",))
    other = "sums" if kind == "products" else "products"
    assert tally[f"{kind} differ"] > 0 and tally[f"{other} differ"] == 0
