"""Fixed-point sums that native BLAS gives exactly: no sum can saturate, or the accumulator wraps, and none is rounded.

An integer sum that stays in range (or is only taken modulo 2**bits at the end) does not depend on its order. Operands
of 8 bits go through `torch._int_mm`, which is silently wrong on processors without the right instructions and is
therefore tested with full-range operands first; else float32 or float64, where a bound proves every partial sum exact.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import Chunked, Exact, MacSpec, Pairwise, Sequential
from hwsim.arithmetic.number import FixedPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.kernels.numba_cpu.matmul_plan import Facts

SMALLEST_WORK = 1 << 18  # multiply-accumulates below which the bound costs more than it saves
INTEGER_WORK = 1 << 22


def multiply(a: Any, b: Any, mac: MacSpec, out: np.ndarray, facts: tuple[Facts, Facts]) -> bool:
    """Compute a @ b into `out` if a bound proves that BLAS gives the same; return whether it did."""
    fmt, order = mac.accumulator, mac.order
    k, work = a.shape[1], out.size * a.shape[1]
    if not isinstance(fmt, FixedPoint) or mac.product != "exact" or work < SMALLEST_WORK:
        return False
    one_sum = isinstance(order, Sequential | Pairwise | Exact) or (isinstance(order, Chunked) and order.outer is None)
    lsb = facts[0].lsb + facts[1].lsb
    if not one_sum or any(f.special or f.wide for f in facts) or lsb < -fmt.fraction_bits or lsb > 1000:
        return False
    wraps = mac.overflow is Overflow.WRAP
    x, y = _tensor(a), _tensor(b)
    bound = k * _largest(x) * _largest(y)
    if not wraps and bound > min(fmt.largest, -fmt.lowest):
        bound = _norms(x, 1) * _norms(y, 0) * (1 + 2.0**-20)  # Cauchy and Schwarz; the norms are rounded
        if bound > min(fmt.largest, -fmt.lowest):
            return False
    steps = bound * 2.0**-lsb
    sums = _integer_sums(x, y, facts, steps) if work >= INTEGER_WORK else None
    if sums is None:
        if steps > 2.0**53:
            return False
        sums = x @ y if steps <= 2.0**24 else x.double() @ y.double()
    _finish(sums, fmt, wraps, out)
    return True


def _finish(sums: Any, fmt: FixedPoint, wraps: bool, out: np.ndarray) -> None:
    import torch

    if wraps:
        sums = sums.double()
        modulus = fmt.step * 2.0**fmt.bits
        sums = sums - torch.floor((sums - fmt.lowest) / modulus) * modulus
    torch.from_numpy(out).copy_(sums + 0.0)  # + 0: fixed point has no negative zero


def _integer_sums(x: Any, y: Any, facts: tuple[Facts, Facts], steps: float) -> Any:
    """Return the sums by 8-bit integers as float32 or float64, None where operands or processor do not allow it."""
    import torch

    if steps >= 2.0**31 or not integer_product_works():
        return None
    eight = []
    for value, f in ((x, facts[0]), (y, facts[1])):
        if f.top - f.lsb > 8:
            return None
        whole = value if f.lsb == 0 else value * 2.0**-f.lsb
        low, high = torch.aminmax(whole)
        if low < -128 or high > 127:
            return None
        eight.append(whole.to(torch.int8))
    sums = torch._int_mm(*eight)
    kind = torch.float32 if steps <= 2.0**24 else torch.float64
    return sums.to(kind) * 2.0 ** (facts[0].lsb + facts[1].lsb)


@cache
def integer_product_works() -> bool:
    """Return whether `torch._int_mm` is right on this processor, tried once with full-range operands."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, (40, 200), generator=generator, dtype=torch.int8) for _ in range(2))
    a[0], b[0] = -128, -128
    b = b.t()
    try:
        return bool(torch.equal(torch._int_mm(a, b).long(), a.long() @ b.long()))
    except RuntimeError:
        return False


def _tensor(x: Any) -> Any:
    import torch

    if not isinstance(x, np.ndarray):
        return x.detach()
    return torch.from_numpy(x if min(x.strides, default=0) >= 0 else np.ascontiguousarray(x))


def _largest(x: Any) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _norms(x: Any, axis: int) -> float:
    """Return the largest Euclidean norm along an axis, rounded up: n additions of float32 err by n * 2**-23 at most."""
    squares = float(x.float().square().sum(axis).max())
    return math.sqrt(squares * (1 + x.shape[axis] * 2.0**-22))
