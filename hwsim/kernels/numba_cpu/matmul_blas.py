"""Fixed-point sums that native BLAS gives exactly: no sum can saturate, or the accumulator wraps, and none is rounded.

An integer sum that stays in range (or is only taken modulo 2**bits at the end) does not depend on its order. Where the
processor adds products of bytes (VNNI and its like), operands of 8 bits go through `torch._int_mm`; elsewhere that is
either silently wrong or a plain loop, fifty times slower than a float32 product. All others, and all operands on other
processors, go through float32 or float64, where a bound proves every partial sum exact: products of two 8-bit integers
stay below 2**24 for 1024 terms, so longer sums are made of float32 products over pieces of k, added in float64.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_features

from hwsim.arithmetic.mac import Chunked, Exact, MacSpec, Pairwise, Sequential
from hwsim.arithmetic.number import FixedPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import wide_vectors
from hwsim.kernels.numba_cpu.matmul_plan import Facts

SMALLEST_WORK = 1 << 18  # multiply-accumulates below which the bound costs more than it saves
INTEGER_WORK = 1 << 22
SHORTEST_PIECE = 128  # terms below which a float64 product is cheaper than float32 products over pieces of k
BYTE_PRODUCTS = any(get_host_cpu_features().get(name) for name in ("avx512vnni", "avxvnni", "dotprod"))


def multiply(
    a: Any, b: Any, mac: MacSpec, out: np.ndarray, facts: tuple[Facts, Facts], largest: tuple[float, float]
) -> bool:
    """Compute a @ b into `out` if a bound proves that BLAS gives the same; return whether it did.

    Args:
        largest: the largest magnitude in each operand, or more.
    """
    fmt, order = mac.accumulator, mac.order
    k, work = a.shape[1], out.size * a.shape[1]
    if not isinstance(fmt, FixedPoint) or mac.product != "exact" or work < SMALLEST_WORK:
        return False
    one_sum = isinstance(order, Sequential | Pairwise | Exact) or (isinstance(order, Chunked) and order.outer is None)
    lsb = facts[0].lsb + facts[1].lsb
    if not one_sum or any(f.special or f.wide for f in facts) or lsb < -fmt.fraction_bits or lsb > 1000:
        return False
    wraps = mac.overflow is Overflow.WRAP
    limit = math.inf if wraps else min(fmt.largest, -fmt.lowest)
    bound = k * largest[0] * largest[1]
    if bound > limit:
        # Cauchy and Schwarz; the norms are rounded. One row and one column tell most of what does not fit
        bound = _norm(a[0]) * _norm(b[:, 0])
        if bound <= limit:
            bound = _norms(_tensor(a), 1) * _norms(_tensor(b), 0) * (1 + 2.0**-20)
        if bound > limit:
            return False
    x, y = _tensor(a), _tensor(b)
    steps = bound * 2.0**-lsb
    eight_bits = fmt.signed and (not wraps or lsb == -fmt.fraction_bits) and work >= INTEGER_WORK and steps < 2.0**31
    if eight_bits and BYTE_PRODUCTS:
        eight = [_as_int8(v, f.lsb, top) for v, f, top in zip((x, y), facts, largest, strict=True)]
        if all(v is not None for v in eight) and integer_product_works():
            import torch

            shift = 32 - fmt.bits if wraps and fmt.bits < 32 else 0
            _store_integers(torch._int_mm(*eight).numpy(), out, np.int32(shift), 2.0**lsb)
            return True
    if max(steps, bound / fmt.step - fmt.lowest / fmt.step if wraps else 0.0) > 2.0**53:
        return False
    sums = _sums(x, y, steps, largest[0] * largest[1] * 2.0**-lsb, out)
    if wraps:
        _store_wrapped(sums.numpy(), out, fmt.lowest, fmt.step * 2.0**fmt.bits, 2.0**-fmt.bits / fmt.step)
    else:
        import torch

        torch.add(sums, 0.0, out=torch.from_numpy(out))  # fixed point has no negative zero
    return True


def _sums(x: Any, y: Any, steps: float, term: float, out: np.ndarray) -> Any:
    """Return x @ y, exact: no sum has more than `steps` units in its last place, and no product more than `term`.

    The result may be `out` itself.
    """
    import torch

    if steps <= 2.0**24:
        return torch.matmul(x, y, out=torch.from_numpy(out) if out.itemsize == x.itemsize == y.itemsize else None)
    k, piece = x.shape[1], int(2.0**24 / term) if 0.0 < term < math.inf else 0
    if piece < SHORTEST_PIECE or x.itemsize != 4 or y.itemsize != 4:
        return x.double() @ y.double()
    pieces = -(-k // piece)
    edges = [k * i // pieces for i in range(pieces + 1)]  # of about the same length
    total = torch.zeros(x.shape[0], y.shape[1], dtype=torch.float64)
    for begin, end in pairwise(edges):
        total += x[:, begin:end] @ y[begin:end]
    return total


@compiled
def _store_wrapped(sums, out, lowest, modulus, inverse):  # type: ignore[no-untyped-def]
    """out = sums brought from `lowest` to `lowest` + `modulus` by multiples of `modulus`, a power of two."""
    wide_vectors()
    for i in range(sums.shape[0]):
        source, target = sums[i], out[i]
        for j in range(source.shape[0]):
            value = np.float64(source[j])
            value -= np.floor((value - lowest) * inverse) * modulus
            target[j] = out.dtype.type(value + 0.0)


def _as_int8(x: Any, lsb: int, largest: float) -> Any:
    """Return x / 2**lsb as int8, None where it does not fit."""
    import torch

    scale = 2.0**-lsb
    if largest * scale > 128:
        return None
    turned = not x.is_contiguous()
    plain = (x.t() if turned else x).contiguous()
    result = torch.empty(plain.shape, dtype=torch.int8)
    if _store_int8(plain.view(-1).numpy(), result.view(-1).numpy(), scale) > 127:
        return None
    return result.t() if turned else result


@compiled
def _store_int8(x, out, scale):  # type: ignore[no-untyped-def]
    """out = x * scale, whole numbers from -128 to 128; return the greatest."""
    wide_vectors()
    greatest, factor = np.int32(-129), x.dtype.type(scale)
    for i in range(x.size):
        value = np.int32(x[i] * factor)
        greatest = max(greatest, value)
        out[i] = np.int8(value)
    return greatest


@compiled
def _store_integers(sums, out, shift, scale):  # type: ignore[no-untyped-def]
    """out = sums * scale, the sums' upper `shift` bits replaced by the sign below them (wrap-around)."""
    wide_vectors()
    for i in range(sums.shape[0]):
        source, target = sums[i], out[i]
        for j in range(source.shape[0]):
            value = np.int32(np.int32(source[j] << shift) >> shift)
            target[j] = out.dtype.type(value) * out.dtype.type(scale)


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


def _norm(x: Any) -> float:
    """Return the Euclidean norm of one row or column."""
    line = np.asarray(x, np.float64)
    return math.sqrt(float(line @ line))


def _norms(x: Any, axis: int) -> float:
    """Return the largest Euclidean norm along an axis, rounded up: n additions of float32 err by n * 2**-23 at most."""
    squares = float(x.float().square().sum(axis).max())
    return math.sqrt(squares * (1 + x.shape[axis] * 2.0**-22))
