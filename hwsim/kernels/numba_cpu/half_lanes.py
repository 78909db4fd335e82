"""GEMMs whose accumulator is float16, in float16 arithmetic: AVX-512 FP16 does 32 such steps in one instruction.

The processor's fused multiply-add rounds the exact sum of a product and an accumulator once, with subnormals,
infinities, signed zeros and all four IEEE roundings, which is one step of the definition where both operands are values
of float16. Saturation is the same step kept within the largest finite values. Nothing needs to be proven about sums.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np

from hwsim.arithmetic.mac import Chunked, Kahan, MacSpec, Sequential
from hwsim.arithmetic.number import FloatingPoint
from hwsim.arithmetic.rounding import Overflow, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.numba_cpu import driver16
from hwsim.kernels.numba_cpu.matmul_plan import Facts
from hwsim.kernels.numba_cpu.matrix import Matrix, Patches
from hwsim.kernels.numba_cpu.tile16 import HALF_LANES, Recipe16

LARGEST = 65504
_DIRECTIONS = {
    RoundingMode.NEAREST_EVEN: "near",
    RoundingMode.TOWARD_ZERO: "zero",
    RoundingMode.UP: "up",
    RoundingMode.DOWN: "down",
}


def available() -> bool:
    """Return whether this processor computes in float16."""
    return HALF_LANES


def multiply(
    left: Matrix, right: Matrix | Patches, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    facts: tuple[Facts, Facts],
) -> bool:  # fmt: skip
    """Compute one GEMM into `out` if float16 steps are exactly those of `mac`; return whether they were."""
    recipe = recipe_of(mac) if available() else None
    if recipe is None or out.itemsize != 4 or left.bits != 32 or not all(map(fits, facts)):
        return False
    if (right.values.itemsize if isinstance(right, Patches) else right.bits // 8) != 4:
        return False
    order = mac.order
    chunk = order.size if isinstance(order, Chunked) else max(left.columns, 1)
    driver16.run(recipe, left, right, out, start, chunk, (-LARGEST, LARGEST), driver16.Numbers())
    return True


def fits(facts: Facts) -> bool:
    """Whether every finite value is one of float16."""
    return facts.precision <= 11 and facts.lsb >= -24 and facts.top <= 16 and not facts.wide


@lru_cache(maxsize=1024)
def recipe_of(mac: MacSpec) -> Recipe16 | None:
    """Return the recipe of a MacSpec in half lanes, None where its steps are others."""
    rule, order = rule_of(mac.cast), mac.order
    product = "exact" if mac.product == "exact" else rule_of(mac.product) if isinstance(mac.product, Cast) else ""
    if not rule or not product or not isinstance(order, Sequential | Chunked | Kahan):
        return None
    step, outer = f"half {rule}", "none"
    if isinstance(order, Chunked):
        outer = outer_of(order.outer) if order.outer is not None else step
        if not outer:
            return None
    return Recipe16(step, product, "kahan" if isinstance(order, Kahan) else "sequential", outer)


@cache
def rule_of(cast: Cast) -> str:
    """Return how the processor's float16 does a cast ("near", "up+saturate", ...), "" where it does not."""
    fmt = cast.format
    is_half = (
        isinstance(fmt, FloatingPoint)
        and (fmt.exponent_bits, fmt.mantissa_bits, fmt.emax, fmt.emin) == (5, 10, 15, -14)
        and fmt.signed
        and fmt.infinities
        and fmt.has_nan
        and fmt.negative_zero
        and fmt.largest == LARGEST
    )
    direction = _DIRECTIONS.get(cast.rounding.mode, "")
    if not is_half or not direction or cast.overflow not in (Overflow.NATIVE, Overflow.SATURATE):
        return ""
    return direction + ("+saturate" if cast.overflow is Overflow.SATURATE else "")


def outer_of(cast: Cast) -> str:
    """Return the step by which chunks join an outer sum of this cast, "" where there is none."""
    fmt = cast.format
    if isinstance(fmt, FloatingPoint) and fmt.name == "float32" and cast.overflow is Overflow.NATIVE:
        return "float32" if cast.rounding.mode is RoundingMode.NEAREST_EVEN else ""
    rule = rule_of(cast)
    return f"half {rule}" if rule else ""
