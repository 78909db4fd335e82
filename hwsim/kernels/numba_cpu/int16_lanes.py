"""GEMMs into fixed-point accumulators of at most 16 bits, in 16-bit integers: 32 steps in two or four instructions.

Products and sums are counted in steps of the accumulator's grid, so nothing is rounded and only the range matters.

- Saturating: an accumulator of fewer bits stands in the upper ones, where the addition that saturates at 16 bits
  saturates at its own largest value. That leaves ones below the last bit, which no later product (zeros there) can
  carry out of; the last shift drops them. Unsigned ones count from -2**15.
- Products too large to be shifted up are clamped by a minimum and a maximum instead.
- Wrapping is what integers do; the lower bits of a product do not depend on its upper ones.
"""

from __future__ import annotations

import numpy as np

from hwsim.arithmetic.mac import Chunked, MacSpec, Sequential
from hwsim.arithmetic.number import FixedPoint
from hwsim.arithmetic.rounding import Overflow
from hwsim.kernels.numba_cpu import driver16
from hwsim.kernels.numba_cpu.matmul_plan import Facts
from hwsim.kernels.numba_cpu.matrix import Matrix, Patches
from hwsim.kernels.numba_cpu.tile16 import Recipe16
from hwsim.kernels.numba_cpu.whole_numbers import Wholes

BITS = 16
MOST = (1 << (BITS - 1)) - 1
_FARTHEST_STEP = 100  # exponents of float32 that need no care


def multiply(
    left: Matrix, right: Matrix | Patches, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    facts: tuple[Facts, Facts], largest: tuple[float, float], wholes: tuple[Wholes, Wholes] | None = None,
) -> bool:  # fmt: skip
    """Compute one GEMM into `out` if 16-bit integer steps are exactly those of `mac`; return whether they were.

    Args:
        largest: the largest magnitude in each operand.
        wholes: the operands as integers, if they are. Those of 16 bits are used up; those of 8 bits, made for products
            of bytes that were not to be had in the end, are left aside.
    """
    fmt, order = mac.accumulator, mac.order
    if not isinstance(fmt, FixedPoint) or fmt.bits > BITS or not isinstance(order, Sequential | Chunked):
        return False
    if any(f.special or f.wide for f in facts) or mac.product != "exact" or mac.overflow is Overflow.ERROR:
        return False
    if isinstance(order, Chunked) and (order.outer is not None or not fmt.signed):
        return False
    if left.bits != 32 or (right.values.itemsize if isinstance(right, Patches) else right.bits // 8) != 4:
        return False
    places = [f.lsb if top else 0 for f, top in zip(facts, largest, strict=True)]
    grid = sum(places) + fmt.fraction_bits  # products are multiples of 2**grid steps
    if grid < 0 or max(*map(abs, places), grid, abs(fmt.fraction_bits)) > _FARTHEST_STEP:
        return False
    sizes = [top * 2.0**-place for top, place in zip(largest, places, strict=True)]
    chosen = _step(fmt, mac.overflow is Overflow.WRAP, grid, *sizes)
    if chosen is None or (chosen[0] == "whole clamped" and isinstance(order, Chunked)):
        return False
    step, shift = chosen
    offset = 0 if fmt.signed or step == "whole clamped" else MOST + 1
    numbers = driver16.Numbers(
        2.0 ** (grid + shift - places[0]),
        2.0 ** -places[1],
        2.0 ** (fmt.fraction_bits + shift),
        offset,
        shift,
        fmt.step,
    )
    limits = (int(fmt.lowest / fmt.step), int(fmt.largest / fmt.step))
    recipe = Recipe16(step, outer=step if isinstance(order, Chunked) else "none")
    chunk = order.size if isinstance(order, Chunked) else max(left.columns, 1)
    if wholes is not None and any(x.codes.itemsize * 8 != BITS for x in wholes):
        wholes = None
    driver16.run(recipe, left, right, out, start, chunk, limits, numbers, wholes)
    return True


def _step(fmt: FixedPoint, wraps: bool, grid: int, a: float, b: float) -> tuple[str, int] | None:
    """Return the step and the shift to the upper bits, for integers up to a and b whose product counts 2**grid."""
    shift = BITS - fmt.bits
    if wraps:
        return ("whole wrapped", shift) if max(a * 2.0 ** (grid + shift), b) < 2.0**31 else None
    product = a * b * 2.0**grid
    if max(product * 2**shift, a * 2.0 ** (grid + shift), b) <= MOST:
        return "whole saturated", shift
    farthest = max(fmt.largest, -fmt.lowest) / fmt.step
    if max(product + farthest, a * 2.0**grid, b) <= MOST:
        return "whole clamped", 0
    return None
