"""The exact order (a Kulisch accumulator): all products summed exactly, then rounded once.

Where a bound proves that float64 holds every partial sum, BLAS does it. Else each sum is kept as digits of 32 bits
that reach from the smallest product of two float32 to the largest sum, and is then rounded to odd in 53 bits, which
the one real rounding cannot tell from the exact sum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.rounding import RoundingMode
from hwsim.errors import UnsupportedError
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_plan import Facts
from hwsim.kernels.numba_cpu.threads import run_slices

DIGITS = 21  # of 32 bits: products lie above 2**LOWEST, sums below 2**(LOWEST + 32 * 20)
LOWEST = -320
ROW_WORK = 1 << 18


def exact_sums(
    a: np.ndarray, b: np.ndarray, mac: MacSpec, start: np.ndarray | None, facts: tuple[Facts, Facts, Facts]
) -> np.ndarray:
    """Return the m x n sums in float64: exact, or rounded to odd.

    Raises:
        UnsupportedError: operands that are not float32, infinities or NaN.
    """
    one, other, first = facts
    if one.wide or other.wide or first.wide or one.special or other.special or first.special:
        raise UnsupportedError("matmul: order exact takes finite float32 operands in the vector kernels")
    k = a.shape[1]
    lsb = min(one.lsb + other.lsb, first.lsb)
    top = max(one.top + other.top + math.ceil(math.log2(k + 1)), first.top) + 1
    down = mac.rounding.mode is RoundingMode.DOWN
    left, right = (np.ascontiguousarray(x, np.float64) for x in (a, b))
    if top - lsb <= 53 and not down and start is None:
        return _blas(left, right)
    sums = np.empty((left.shape[0], right.shape[1]))
    begin = np.zeros(sums.shape) if start is None else np.ascontiguousarray(start, np.float64)
    columns = np.ascontiguousarray(right.T)
    run_slices(
        lambda i, j: _digit_sums(left, columns, begin, sums, i, j, down),
        sums.shape[0],
        max(1, ROW_WORK // max(1, k * sums.shape[1])),
    )
    return sums


def _blas(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import torch

    result: Any = torch.from_numpy(left) @ torch.from_numpy(right)
    return result.numpy() + 0.0  # no negative zeros


@compiled
def _digit_sums(a, b, start, out, begin, end, down):  # type: ignore[no-untyped-def]
    k = a.shape[1]
    digits = np.empty(DIGITS + 2, np.int64)
    for row in range(begin, end):
        for column in range(b.shape[0]):
            digits[:] = 0
            zero = start[row, column]
            negative_zeros = zero == 0 and np.signbit(zero)
            positive_zeros = zero == 0 and not np.signbit(zero)
            all_zero = zero == 0
            _add_number(digits, zero)
            for i in range(k):
                product = a[row, i] * b[column, i]  # exact: 48 bits
                if product == 0:
                    negative = np.signbit(product)
                    negative_zeros |= negative
                    positive_zeros |= not negative
                else:
                    all_zero = False
                    _add_number(digits, product)
            value = _to_odd(digits)
            if value == 0:
                minus = negative_zeros and (down or not positive_zeros) if all_zero else down
                value = -0.0 if minus else 0.0
            out[row, column] = value


@compiled
def _add_number(digits, x):  # type: ignore[no-untyped-def]
    """Add a float64 of at most 53 bits to the digits."""
    if x == 0:
        return
    code = np.float64(x).view(np.int64)
    exponent = ((code >> 52) & 0x7FF) - 1075
    significand = (code & ((1 << 52) - 1)) | (1 << 52)
    place = exponent - LOWEST
    if place < 0:  # trailing zeros: products are multiples of 2**-298
        significand >>= -place
        place = 0  # type: ignore[assignment]
    sign = -1 if code < 0 else 1
    digit, shift = place >> 5, place & 31
    low = (significand & 0x7FFFFFF) << shift  # below 2**58
    digits[digit] += sign * (low & 0xFFFFFFFF)
    digits[digit + 1] += sign * (low >> 32)
    place += 27
    digit, shift = place >> 5, place & 31
    high = (significand >> 27) << shift
    digits[digit] += sign * (high & 0xFFFFFFFF)
    digits[digit + 1] += sign * (high >> 32)


@compiled
def _to_odd(digits):  # type: ignore[no-untyped-def]
    """Return the number that the digits hold, rounded to odd in 53 bits; the digits are used up."""
    n = digits.shape[0]
    carry = np.int64(0)
    for i in range(n):
        value = digits[i] + carry
        carry = value >> 32
        digits[i] = value & 0xFFFFFFFF
    negative = carry < 0
    if negative:  # two's complement
        borrow = np.int64(1)
        for i in range(n):
            value = (digits[i] ^ 0xFFFFFFFF) + borrow
            borrow = value >> 32
            digits[i] = value & 0xFFFFFFFF
    top = n - 1
    while top >= 0 and digits[top] == 0:
        top -= 1
    if top < 0:
        return 0.0
    head = np.int64(digits[top])
    length = 0
    while head >> length:
        length += 1
    significand = head + np.int64(0)
    exponent = 32 * top + LOWEST
    taken = length
    below = top - 1
    sticky = False
    while taken < 53 and below >= 0:
        more = min(53 - taken, 32)
        significand = (significand << more) | (digits[below] >> (32 - more))
        if digits[below] & ((np.int64(1) << (32 - more)) - 1):
            sticky = True
        exponent -= more
        taken += more
        below -= 1
    while below >= 0:
        if digits[below]:
            sticky = True
        below -= 1
    if sticky:
        significand |= 1
    value = np.ldexp(np.float64(significand), exponent)
    return -value if negative else value

