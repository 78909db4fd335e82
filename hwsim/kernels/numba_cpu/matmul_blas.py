"""Fixed-point sums that native BLAS gives exactly: no sum can saturate, or the accumulator wraps, and none is rounded.

An integer sum that stays in range (or is only taken modulo 2**bits at the end) does not depend on its order. Where the
processor adds products of bytes (VNNI and its like), operands of 8 bits go through `torch._int_mm`; elsewhere that is
either silently wrong or a plain loop, fifty times slower than a float32 product. With AVX2 alone, operands of up to 16
bits go through products of pairs (`matmul_pairs`). All others, and all operands on other processors, go through float32
or float64, where a bound proves every partial sum exact: products of two 8-bit integers stay below 2**24 for 1024
terms, so longer sums are made of float32 products over pieces of k, added in float64.
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
from hwsim.kernels.numba_cpu import matmul_pairs
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import wide_vectors
from hwsim.kernels.numba_cpu.matmul_plan import Facts
from hwsim.kernels.numba_cpu.matmul_tile import read32, write32, write64
from hwsim.kernels.numba_cpu.matrix import address_of
from hwsim.kernels.numba_cpu.tile_pairs import PAIR_PRODUCTS, ROWS, widen_sums
from hwsim.kernels.numba_cpu.whole_numbers import Wholes, largest_norm

SMALLEST_WORK = 1 << 18  # multiply-accumulates below which the bound costs more than it saves
INTEGER_WORK = 1 << 22
SHORTEST_PIECE = 128  # terms below which a float64 product is cheaper than float32 products over pieces of k
BYTE_PRODUCTS = any(get_host_cpu_features().get(name) for name in ("avx512vnni", "avxvnni", "dotprod"))


def wanted_bits(mac: MacSpec, work: int) -> int:
    """Return how wide the whole numbers are that the kernels of this accumulator take; 0 where they take none."""
    fmt = mac.accumulator
    if not isinstance(fmt, FixedPoint) or mac.product != "exact" or work < INTEGER_WORK:
        return 0
    if fmt.bits <= 16 and mac.overflow is not Overflow.WRAP:
        return 16  # what comes of a sum that may saturate goes through lanes of 16 bits
    return 0 if not fmt.signed else 8 if BYTE_PRODUCTS else 16 if PAIR_PRODUCTS else 0


def multiply(
    a: Any, b: Any, mac: MacSpec, out: np.ndarray, facts: tuple[Facts, Facts], largest: tuple[float, float],
    wholes: tuple[Wholes, Wholes] | None = None,
) -> bool:  # fmt: skip
    """Compute a @ b into `out` if a bound proves that BLAS gives the same; return whether it did.

    Args:
        largest: the largest magnitude in each operand, or more.
        wholes: the operands as whole numbers, if they are.
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
    largest_sum, lowest, step = _range(fmt)
    limit = math.inf if wraps else min(largest_sum, -lowest)
    bound = k * largest[0] * largest[1]
    if bound > limit:
        bound = _closer_bound(a, b, wholes, limit)
        if bound > limit:
            return False
    steps = bound * 2.0**-lsb
    whole = fmt.signed and (not wraps or lsb == -fmt.fraction_bits)
    if whole and wholes is not None and _multiply_integers(wholes, k, fmt, wraps, steps, out):
        return True
    if max(steps, (bound - lowest) / step if wraps else 0.0) > 2.0**53:
        return False
    sums = _sums(_tensor(a), _tensor(b), steps, largest[0] * largest[1] * 2.0**-lsb, out)
    if wraps:
        _store_wrapped(sums.numpy(), out, lowest, step * 2.0**fmt.bits, 2.0**-fmt.bits / step)
    else:
        import torch

        torch.add(sums, 0.0, out=torch.from_numpy(out))  # fixed point has no negative zero
    return True


@cache
def _range(fmt: FixedPoint) -> tuple[float, float, float]:
    """Return the largest value, the lowest and the step."""
    return fmt.largest, fmt.lowest, fmt.step


def _closer_bound(a: Any, b: Any, wholes: tuple[Wholes, Wholes] | None, limit: float) -> float:
    """Bound every partial sum by Cauchy and Schwarz; the first row and column tell most of what does not fit."""
    if wholes is not None:
        left, right = wholes
        sides = (left, not left.across, a.shape[left.across - 1]), (right, right.across, b.shape[not right.across])
        first = math.prod(largest_norm(*side, first_only=True) for side in sides)
        return first if first > limit else math.prod(largest_norm(*side) for side in sides)
    bound = _norm(a[0]) * _norm(b[:, 0])  # the norms are rounded
    return bound if bound > limit else _norms(_tensor(a), 1) * _norms(_tensor(b), 0) * (1 + 2.0**-20)


def _multiply_integers(
    wholes: tuple[Wholes, Wholes], k: int, fmt: FixedPoint, wraps: bool, steps: float, out: np.ndarray
) -> bool:
    """Multiply whole numbers, sums held in 32 bits; return whether that is exact (modulo 2**bits where it wraps).

    Args:
        steps: no sum is larger, in units of the last place.
    """
    left, right = wholes
    shift = 32 - fmt.bits if wraps and fmt.bits < 32 else 0
    scale = 2.0 ** (left.lsb + right.lsb)
    if not out.flags.c_contiguous:
        return False
    if BYTE_PRODUCTS:
        fits = steps < 2.0**31 and integer_product_works()
        return fits and _multiply_bytes(left, right, k, out, shift, scale)
    most = k if steps < 2.0**31 or (wraps and fmt.bits <= 32) else 0
    if not most and not wraps:
        most = int((2.0**31 - 1) / (left.largest * right.largest / scale)) // 2 * 2
    if not PAIR_PRODUCTS or len(out) < ROWS or most < min(k, SHORTEST_PIECE):
        return False
    matmul_pairs.multiply(left, right, k, out, most, shift, scale)
    return True


def _multiply_bytes(left: Wholes, right: Wholes, k: int, out: np.ndarray, shift: int, scale: float) -> bool:
    """Write left @ right into `out` by `torch._int_mm` if all fit 8 bits; return whether they do.

    The sums of 32 bits stand at the end of `out`, from where they are widened in ascending order.
    """
    import torch

    (m, n), sides = out.shape, []
    for whole, size in ((left, m), (right, n)):
        codes = whole.codes
        if codes.dtype != np.int8:
            if whole.largest > 127 * 2.0**whole.lsb:
                return False
            codes = codes[:, : size if whole.across == (whole is left) else k].astype(np.int8)
        sides.append(torch.from_numpy(codes.T if whole.across else codes))
    sums = out.reshape(-1).view(np.int32)[-m * n :].reshape(m, n)
    torch._int_mm(*sides, out=torch.from_numpy(sums))
    _store_integers(address_of(sums), address_of(out), m * n, 8 * out.itemsize, shift, scale)
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


@compiled
def _store_integers(source, target, count, bits, shift, scale):  # type: ignore[no-untyped-def]
    """Widen `count` sums (see `widen_sums`)."""
    whole = count // 16
    rest, last = np.zeros(16, np.int32), np.empty(16, np.float64)
    if bits == 32:
        widen_sums(32, whole, source, target, shift, scale, 0)
    else:
        widen_sums(64, whole, source, target, shift, scale, 0)
    for j in range(count - 16 * whole):
        write32(rest.ctypes.data + 4 * j, read32(source + 4 * (16 * whole + j)))
    if bits == 32:
        widen_sums(32, 1, rest.ctypes.data, last.ctypes.data, shift, scale, 0)
    else:
        widen_sums(64, 1, rest.ctypes.data, last.ctypes.data, shift, scale, 0)
    for j in range(count - 16 * whole):
        if bits == 32:
            write32(target + 4 * (16 * whole + j), read32(last.ctypes.data + 4 * j))
        else:
            write64(target + 8 * (16 * whole + j), last[j])


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
