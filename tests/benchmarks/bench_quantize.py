"""Speed of quantize against memcpy of the same array and against the packages that users would otherwise take.

    python tests/benchmarks/bench_quantize.py [elements]

One thread. Every row is the best of several interleaved rounds, and ratios are taken inside this run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from hwsim.arithmetic.number import carrier_of
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.casts import cast_numpy

# cast, target as a share of memcpy
CASES = [
    *((f"{name} {rule}", 0.9)
      for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float16", "bfloat16", "float4_e2m1fn", "e6m9")
      for rule in ("nearest_even", "toward_zero")),
    ("float8_e4m3fn nearest_away", 0.9), ("float8_e4m3fn up", 0.9), ("float8_e4m3fn to_odd", 0.9),
    ("float8_e4m3fn saturate", 0.9), ("bfloat16 up", 0.9), ("binary8p3ue", 0.9), ("binary8p1se", 0.9),
    ("fixed8.6", 0.9), ("fixed16.8", 0.9), ("fixed16.8 up", 0.9), ("fixed8.6 nearest_away", 0.9), ("int8", 0.9),
    ("float8_e4m3fn stochastic", 0.5), ("bfloat16 stochastic", 0.5), ("fixed8.6 stochastic", 0.5),
    *((name, 0.35) for name in ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "mxint8")),
    ("mxfp8_e4m3 up", 0.35), ("mxfp4_e2m1 stochastic", 0.35), ("bfp8x16", 0.35), ("nvfp4", 0.35), ("nvfp4 up", 0.35),
    ("nvfp4 stochastic", 0.35),
]  # fmt: skip
PEER_SHARE = 1 << 8  # peers are slow: they get a 256th of the elements


def best_times(works: dict[str, Callable[[], object]], rounds: int, in_a_row: int = 1) -> dict[str, float]:
    """Return the best time in seconds of each work, all of them interleaved so that noise hits them alike.

    `in_a_row`: times each is called per round; a call on a small array finds cold caches after another work.
    """
    best = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            for _ in range(in_a_row):
                start = time.perf_counter()
                work()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def peers(x: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return what other packages offer for float8_e4m3fn or 8-bit fixed point, those that are installed."""
    works: dict[str, Callable[[], object]] = {}
    try:
        import ml_dtypes

        works["ml_dtypes float8_e4m3fn"] = lambda: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    except ImportError:
        pass
    try:
        import gfloat
        from gfloat.formats import format_info_ocp_e4m3

        works["gfloat ocp_e4m3"] = lambda: gfloat.round_ndarray(
            format_info_ocp_e4m3, x, gfloat.RoundMode.TiesToEven, sat=False
        )
    except ImportError:
        pass
    try:
        import apytypes

        works["apytypes float8 e4m3"] = lambda: apytypes.APyFloatArray.from_float(x, 4, 3)
    except ImportError:
        pass
    try:
        import qtorch.quant
        import torch

        t = torch.from_numpy(x)
        works["qtorch e4m3 (ties away)"] = lambda: qtorch.quant.float_quantize(t, 4, 3, rounding="nearest")
    except Exception:  # its C++ extension builds at import and may fail in many ways
        pass
    try:
        import torch

        t32 = torch.from_numpy(x)
        works["torch float8_e4m3fn (saturates)"] = lambda: t32.to(torch.float8_e4m3fn).to(torch.float32)
    except (ImportError, AttributeError):
        pass
    return works


def main(elements: int = 1 << 24, rounds: int = 7) -> int:
    """Print the table and return the number of rows below their target."""
    x = (np.random.default_rng(0).standard_normal(elements) * 4).astype(np.float32)
    out, missed = np.empty_like(x), 0
    print(f"quantize of {elements} float32, 1 thread, out= given; memcpy of the same array is 1")
    print(f"{'cast':32} {'Gelem/s':>8} {'memcpy':>8} {'ratio':>7} {'target':>7}")
    for text, target in CASES:
        made = Cast.parse(text)
        assert carrier_of(made.format) == "float32"

        def work(made: Cast = made) -> object:
            return cast_numpy(x, made, 1, None, out, -1, "numba")

        best = best_times({"memcpy": lambda: np.copyto(out, x), "hwsim": work}, rounds)
        ratio = best["memcpy"] / best["hwsim"]
        missed += ratio < target
        speeds = f"{elements / best['hwsim'] / 1e9:8.2f} {elements / best['memcpy'] / 1e9:8.2f}"
        print(f"{text:32} {speeds} {ratio:7.2f} {target:7.2f}{'' if ratio >= target else '  below'}", flush=True)
    part = np.ascontiguousarray(x[: max(1, elements // PEER_SHARE)])
    part_out = np.empty_like(part)
    works = {"hwsim float8_e4m3fn": lambda: cast_numpy(part, Cast("float8_e4m3fn"), 0, None, part_out, -1, "numba")}
    best = best_times(works | peers(part), rounds, in_a_row=10)
    print(f"\nfloat8_e4m3fn of {part.size} float32, this process, 1 thread")
    for name, seconds in best.items():
        slower = seconds / best["hwsim float8_e4m3fn"]
        print(f"{name:32} {part.size / seconds / 1e9:8.3f} Gelem/s   {slower:8.1f} x hwsim's time")
    return missed


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 24)
