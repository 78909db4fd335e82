"""a * b + c rounded once to nearest even in p <= 11 bits, however wide a, b and c are: five operations, no branch.

Rounding the float32 sum again would go wrong where that sum is a tie of the narrow format and was itself inexact.
Here the sum is rounded down (d) and up (u) by instructions that name their own direction (AVX-512). d and u are equal
where the sum is exact; else they are neighbors around it, so (d + u) / 2 lies on the sum's side of every tie, and is no
tie itself. With n bits to drop, 2**(n+1) * d - (d + u) rounded to 24 bits is 2**(n+1) * d - 2 r, where r is
(d + u) / 2 rounded to 24 - n bits: 2**(n+1) * d is a multiple of the place that is rounded to, and where d = u is a tie
it is an even one, so r is the even neighbor. Just above a power of two that place is half as large, which still gives
the power if n >= p + 1. Nothing may overflow, and every sum below the smallest normal must be exact (the plan proves
both); the sign of a zero comes out right.
"""

from __future__ import annotations

from typing import Any

from hwsim.kernels.numba_cpu.matmul_steps import Step


def nearest_once(step: Step, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c rounded once; `step` has the parameters of the narrow format."""
    v = step.v
    down, up = v.fma_toward("down", a, b, c), v.fma_toward("up", a, b, c)
    large = step.number("twice_split")  # 2**(n+1)
    rest = v.fma(step.number("twice_split_less_one"), down, v.neg(up))
    return v.mul(v.fma(large, down, v.neg(rest)), v.number(0.5))
