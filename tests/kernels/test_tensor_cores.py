"""Fused tensor-core steps: vectors read off real chips, and cases those do not show, against the definition."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import hwsim
from hwsim.arithmetic.mac import named_mac, named_macs
from hwsim.kernels import matmul
from hwsim.kernels.numba_cpu import fused as compiled

FORMATS = {"bf16": "bfloat16", "fp16": "float16", "tf32": "tf32", "E4M3": "float8_e4m3fn", "E5M2": "float8_e5m2"}
CASES = [
    f"{chip}_{fmt}"
    for chip, formats in {
        "V100": ["fp16"], "A100": ["fp16", "bf16", "tf32"], "Ada": ["fp16", "bf16", "tf32", "E4M3", "E5M2"],
        "H200": ["fp16", "bf16", "tf32", "E4M3", "E5M2"],
    }.items()
    for fmt in formats
]  # fmt: skip
SAMPLE = 60


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def chip_vectors(case):
    folder = os.environ.get("HWSIM_DATA")
    path = Path(folder or ".") / "tensor_core" / f"{case}.npz"
    if folder is None or not path.exists():
        pytest.skip("HWSIM_DATA names no folder with tensor_core vectors")
    return np.load(path)


def mismatches(case, count, name=None):
    """Return how many of the first `count` vectors of each output differ, and how many were compared."""
    stored = chip_vectors(case)
    chip, fmt = case.split("_")
    a, b, c = (stored[key].view(np.float32) for key in "abc")
    wrong = compared = 0
    for output in ("float32", "float16"):
        key = f"d_fp{output[-2:]}"
        if key not in stored:
            continue
        instruction, start = "mma", c
        if chip == "H200" and fmt.startswith("E") and output == "float32":
            instruction, start = "wgmma", np.zeros_like(c)  # how these vectors were made
        mac = named_mac(name or f"{chip.lower()}.{FORMATS[fmt]}.{output}.{instruction}")
        picked = np.linspace(0, len(a) - 1, min(count, len(a))).astype(int)
        got = matmul(a[picked][:, None, :], b[picked][:, :, None], mac, start[picked][:, :, None])
        wrong += int((bits(got[:, 0, 0]) != stored[key][picked, 0]).sum())
        compared += len(picked)
    return wrong, compared


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_a_sample_of_the_chips_vectors_is_reproduced(case):
    wrong, compared = mismatches(case, SAMPLE)
    assert wrong == 0 and compared >= SAMPLE


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_every_vector_of_the_chips_is_reproduced(case):
    wrong, compared = mismatches(case, 5000)
    assert wrong == 0 and compared >= 5000


@pytest.mark.data
def test_another_chips_arithmetic_does_not_reproduce_them():
    wrong, _ = mismatches("A100_bf16", SAMPLE, "h200.bfloat16.float32.mma")
    assert wrong > 0


def operands(rng, fmt, kind, shape):
    x = rng.standard_normal(shape)
    wide = fmt in ("bfloat16", "tf32")
    if kind == "wide":
        x = x * np.exp2(rng.integers(-30, 10, shape))
    elif kind == "tiny":
        x = x * np.exp2(rng.integers(-75, -60, shape)) if wide else x * 2.0**-13
    elif kind == "huge":
        x = x * 2.0 ** (62 if wide else 6)
    elif kind == "zeros":
        x = x * (rng.random(shape) < 0.3)
    stored = hwsim.quantize(x.astype(np.float32), "float32" if fmt == "tf32" else fmt, overflow="saturate")
    if kind == "special":
        draw = rng.random(shape)
        if fmt != "float8_e4m3fn":
            stored[draw < 0.02], stored[(draw > 0.02) & (draw < 0.04)] = np.inf, -np.inf
        stored[(draw > 0.04) & (draw < 0.05)] = np.nan
    return stored


def distinct_macs():
    return {mac: name for name in sorted(named_macs()) if (mac := named_mac(name))}.items()


@pytest.mark.parametrize(("mac", "name"), list(distinct_macs()), ids=[name for _, name in distinct_macs()])
def test_compiled_steps_equal_the_definition(mac, name):
    rng = np.random.default_rng(len(name))
    fmt = name.split(".")[1]
    for kind in ("wide", "tiny", "special", "zeros", "huge"):
        k = int(rng.integers(0, 70))
        a, b = operands(rng, fmt, kind, (2, k)), operands(rng, fmt, kind, (k, 5))
        c = (rng.standard_normal((2, 5)) * np.exp2(rng.integers(-20, 5, (2, 5)))).astype(np.float32)
        c = c * np.float32(1e-38) if kind == "tiny" else c
        with hwsim.backend("numba"):
            got = matmul(a, b, mac, c)
        with hwsim.backend("reference"):
            expected = matmul(a, b, mac, c)
        assert np.array_equal(bits(got), bits(expected)), kind


def test_a_step_that_counts_zero_terms_turns_the_comparison_red(monkeypatch):
    """The deliberate break: let a zero factor take part in the largest exponent."""
    mac = named_mac("h200.bfloat16.float32.mma")
    a, b = np.array([[0.0, 2.0**-15]], np.float32), np.array([[2.0**100], [2.0**-15]], np.float32)
    assert matmul(a, b, mac)[0, 0] == 2.0**-30
    honest = compiled.units
    monkeypatch.setattr(compiled, "units", lambda x, inputs: np.where(x == 0, 1.0, honest(x, inputs)))
    assert matmul(a, b, mac)[0, 0] == 0.0


def test_special_values_of_a_step_by_hand():
    mac = named_mac("a100.float16.float32.mma")
    inf = np.inf

    def dot(a, b, c=0.0):
        left, right = np.array([a], np.float32), np.array(b, np.float32)[:, None]
        return matmul(left, right, mac, np.full((1, 1), c, np.float32))[0, 0]

    assert np.isnan(dot([inf, 1.0], [0.0, 1.0])) and np.isnan(dot([inf, inf], [1.0, -1.0]))
    assert dot([inf, 1.0], [-1.0, 1.0]) == -inf and dot([1.0], [1.0], inf) == inf
    assert dot([1.0, 1.0], [2.0**-14, -(2.0**-14)]) == 0 and not np.signbit(dot([1.0, -1.0], [1.0, 1.0]))
    assert dot([65504.0] * 8, [65504.0] * 8, 3.4e38) == np.float32(3.4e38)  # what is below the cut is lost
    wide = named_mac("a100.bfloat16.float32.mma")
    big = np.full((1, 2), 2.0**127, np.float32)
    assert matmul(big, np.ones((2, 1), np.float32), wide)[0, 0] == inf  # truncated in the last bit, not at the top
    assert matmul(big, np.full((2, 1), 0.5, np.float32), wide)[0, 0] == 2.0**127
