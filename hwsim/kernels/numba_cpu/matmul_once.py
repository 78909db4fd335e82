"""a * b + c rounded once to nearest even in p bits: five or six operations, no branch.

Rounding the float32 sum again would go wrong where that sum is a tie of the narrow format and was itself inexact.

`nearest_once` (p <= 11, however wide a, b and c are): the sum is rounded down (d) and up (u) by instructions that name
their own direction (AVX-512). d and u are equal where the sum is exact; else they are neighbors around it, so
(d + u) / 2 lies on the sum's side of every tie, and is no tie itself. With n bits to drop, 2**(n+1) * d - (d + u)
rounded to 24 bits is 2**(n+1) * d - 2 r, where r is (d + u) / 2 rounded to 24 - n bits: 2**(n+1) * d is a multiple of
the place that is rounded to, and where d = u is a tie it is an even one, so r is the even neighbor. Just above a power
of two that place is half as large, which still gives the power if n >= p + 1. Nothing may overflow, and every sum below
the smallest normal must be exact (the plan proves both); the sign of a zero comes out right.

`nearest_by_residual` needs no directed rounding, but c of p bits and an exact product of at most 24 - p, a and b of
fewer bits each. Let s be the float32 sum and e what it lost, found as (a * b - s) + c. Then 2**n * s - (2**n - 1) * s,
with e taken from the second part before it is rounded, sends ties to the side of e, and no other s can cross a tie:
those lie a last place of s away, and |e| stays below one. This is right because e is exact wherever s is a tie. Take s
in [1, 2), where ties are odd multiples of 2**-p. s is inexact only if the product or c has bits below 2**-23.
The product: then it is at most 2**(24-p) - 1 units of 2**-24, and it would have to be just that to bring c, a multiple
of 2**(1-p), next to a tie; no product of two integers of a and of b bits is 2**(a+b) - 1. So c has them, which makes it
smaller than 2**(p-24); the product is the tie itself, a * b - s is 0, and e is c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwsim.kernels.numba_cpu.matmul_steps import Step


def nearest_once(step: Step, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c rounded once; `step` has the parameters of the narrow format."""
    v = step.v
    down, up = v.fma_toward("down", a, b, c), v.fma_toward("up", a, b, c)
    large = step.number("twice_split")  # 2**(n+1)
    rest = v.fma(step.number("twice_split_less_one"), down, v.neg(up))
    return v.mul(v.fma(large, down, v.neg(rest)), v.number(0.5))


def nearest_by_residual(step: Step, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c rounded once (half of the operations are additions, see `matmul_steps.Step._split`)."""
    v = step.v
    product = v.mul(a, b)
    total = v.add(product, c)
    lost = v.add(v.sub(product, total), c)
    rest = v.fma(total, step.number("split_less_one"), v.neg(lost))
    return v.fma(total, step.number("split"), v.neg(rest))


TOGETHER: dict[str, Callable[[Step, Any, Any, Any], Any]] = {"once": nearest_once, "residual": nearest_by_residual}
