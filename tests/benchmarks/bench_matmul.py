"""Speed of matmul in every kind of accumulator, with its ratio to this machine's limit, beside the peers.

One thread, 512 x 512 x 512 unless said; best of several runs; everything in one process, and the limit is measured
again beside each row, since other work on the machine moves both. Times are the process's own processor time, so that
a run during which the system gave the core to somebody else still counts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import hwsim
from hwsim.arithmetic.mac import parse_mac
from hwsim.kernels import matmul
from hwsim.kernels.counters import Counters

SIZE = 512

#  operands, mac, floor (ratio to torch float32 GEMM), or GMAC/s where the floor is absolute
ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("float8_e4m3fn", "bfloat16", 0.5, "ratio"),
    ("float8_e4m3fn", "e5m10", 0.25, "ratio"),
    ("float8_e4m3fn", "e5m10 saturate", 0.25, "ratio"),
    ("float8_e5m2", "e5m10", 0.25, "ratio"),
    ("float8_e4m3fn", "e6m9", 0.25, "ratio"),
    ("float32", "float32", 0.2, "ratio"),
    ("bfloat16", "bfloat16", 0.2, "ratio"),
    ("float16", "float16", 0.2, "ratio"),
    ("float8_e4m3fn", "bfloat16, product=bfloat16", 0.1, "ratio"),
    ("float8_e4m3fn", "e6m9, product=e6m9", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16 toward_zero", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16 up", 0.1, "ratio"),
    ("float8_e4m3fn", "e5m10 toward_zero", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16, order=chunked(64, float32)", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16, order=kahan", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16 stochastic", 0.1, "ratio"),
    ("float8_e4m3fn", "bfloat16, order=exact", 0.0, "ratio"),
    ("float8_e4m3fn", "bfloat16, order=pairwise", 0.1, "ratio"),
    ("int8", "int16", 1.0, "ratio"),
    ("int8", "int24", 0.7, "ratio"),
    ("int8", "int32", 3.0, "ratio"),
    ("int8", "int16 wrap", 3.0, "ratio"),
    ("float8_e4m3fn", "h200.float8_e4m3fn.float32.wgmma", 1.0, "GMAC/s"),
    ("bfloat16", "h200.bfloat16.float32.mma", 0.5, "GMAC/s"),
    ("float16", "v100.float16.float16.mma", 0.0, "GMAC/s"),
)


def best(call: Callable[[], Any], runs: int) -> float:
    """Return the processor seconds of the fastest of `runs` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(runs):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def operands(fmt: str, size: int, seed: int) -> torch.Tensor:
    """Return a size x size matrix of values of a format (full range for integers)."""
    rng = np.random.default_rng(seed)
    if fmt == "int8":
        return torch.from_numpy(rng.integers(-128, 128, (size, size)).astype(np.float32))
    return torch.from_numpy(hwsim.quantize(rng.standard_normal((size, size)).astype(np.float32), fmt))


def peers(size: int) -> list[tuple[str, float]]:
    """Return GMAC/s of other libraries on FP8 operands and a bfloat16 accumulator rounded each step."""
    a, b = (operands("float8_e4m3fn", size, seed).numpy() for seed in (0, 1))
    found: list[tuple[str, float]] = []

    def stepwise(name: str, rounded: Callable[[np.ndarray], np.ndarray]) -> None:
        def run() -> None:
            total = np.zeros((size, size), np.float32)
            for k in range(size):
                total = np.asarray(rounded(total + a[:, k : k + 1] * b[k]), np.float32)

        found.append((name, size**3 / best(run, 2) / 1e9))

    try:
        import ml_dtypes

        stepwise("ml_dtypes, numpy loop over k", lambda x: x.astype(ml_dtypes.bfloat16))
    except ImportError:
        print("ml_dtypes is not installed: left out")
    try:
        import gfloat
        from gfloat.formats import format_info_bfloat16 as bfloat16

        stepwise("gfloat, numpy loop over k", lambda x: gfloat.round_ndarray(bfloat16, x))
    except ImportError:
        print("gfloat is not installed: left out")
    try:
        import apytypes

        x, y = (apytypes.APyFloatArray.from_float(v, 8, 7) for v in (a, b))
        with apytypes.APyFloatAccumulatorContext(exp_bits=8, man_bits=7):
            found.append(("apytypes, its own matmul", size**3 / best(lambda: x @ y, 1) / 1e9))
    except ImportError:
        print("apytypes is not installed: left out")
    try:
        import qtorch  # noqa: F401

        print("qtorch is installed but has no per-step accumulator outside its GEMM functions: left out")
    except ImportError:
        print("qtorch is not installed (it builds C++ on first use): left out")
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each row; the fastest counts")
    parser.add_argument("--size", type=int, default=SIZE, help="m = n = k")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, work = options.size, options.size**3
    x, y = operands("float32", size, 0), operands("float32", size, 1)
    print(f"{size}^3, one thread; limit: torch float32 GEMM, measured beside each row")
    print(f"{'operands':15} {'arithmetic':40} {'GMAC/s':>8} {'limit':>7} {'ratio':>6} {'floor':>12}")
    for fmt, text, floor, unit in ROWS:
        mac = parse_mac(text)
        a, b = operands(fmt, size, 2), operands(fmt, size, 3)
        spent = best(lambda a=a, b=b, mac=mac: matmul(a, b, mac), options.runs)
        limit = work / best(lambda: x @ y, 2 * options.runs) / 1e9
        rate = work / spent / 1e9
        reached = rate / limit if unit == "ratio" else rate
        shown = f"{floor:g}{' GMAC/s' if unit != 'ratio' else ''} {'ok' if reached >= floor else 'BELOW'}"
        print(f"{fmt:15} {text:40} {rate:8.2f} {limit:7.1f} {rate / limit:6.2f} {shown if floor else '-':>12}")
    a, b = operands("float8_e4m3fn", size, 2), operands("float8_e4m3fn", size, 3)
    plain = best(lambda: matmul(a, b, "bfloat16"), options.runs)
    counted = best(lambda: matmul(a, b, "bfloat16", counters=Counters()), options.runs)
    print(f"counters: {counted / plain:.2f}x the time (at most 1.3)")
    small = 128
    print(f"peers, {small}^3, FP8 operands, bfloat16 accumulator, one thread:")
    a, b = operands("float8_e4m3fn", small, 0), operands("float8_e4m3fn", small, 1)
    own = small**3 / best(lambda: matmul(a, b, "bfloat16"), options.runs) / 1e9
    for name, rate in [("hwsim", own), *peers(small)]:
        print(f"  {name:32} {rate:9.4f} GMAC/s   hwsim is {own / rate:8.1f} times as fast")


if __name__ == "__main__":
    main()
